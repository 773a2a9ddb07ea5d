//! Several processes on one file, from its creation on.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use common::{claim_ref, request};
use dlock_core::{Backend as _, ClaimReply, OpenOptions, ReleaseRequest, Released, Session, SystemClock};
use dlock_sqlite::SqliteBackend;
use rusqlite::Connection;

const FILE: &str = "DLOCK_TEST_FILE";
const PROCESSES: u128 = 8;
const ROUNDS: u128 = 25;

/// The child process; does nothing when the test runner calls it.
#[test]
fn child() {
    let Ok(file) = std::env::var(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(work(&file, u128::from(std::process::id()) << 32));
}

async fn open(file: &str) -> Arc<dyn Session> {
    let clock = Arc::new(SystemClock);
    let options = OpenOptions::new(Duration::from_secs(60), "child", Duration::from_secs(20), clock);
    SqliteBackend::new(file).open(options).await.unwrap().session
}

/// Counts up in a plain file under the lock, without any other care.
async fn work(file: &str, first_id: u128) {
    let session = open(file).await;
    let count = format!("{file}.count");
    let mut id = first_id;
    for _ in 0..ROUNDS {
        loop {
            id += 1;
            match session.claim(request("count", id)).await.unwrap() {
                ClaimReply::Granted(_) => break,
                ClaimReply::Busy(busy) => tokio::time::sleep(busy.retry_after).await,
                ClaimReply::Waiting(_) => unreachable!("there is no queue"),
            }
        }
        let before: u128 = std::fs::read_to_string(&count).unwrap_or_default().parse().unwrap_or(0);
        std::fs::write(&count, (before + 1).to_string()).unwrap();
        let released = session.release(ReleaseRequest::new(claim_ref("count", id))).await.unwrap();
        assert_eq!(released, Released::Done);
    }
    session.close(Vec::new()).await.unwrap();
}

fn spawn(file: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(FILE, file)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn eight_processes_create_one_file_and_lose_no_update() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("locks.db").to_str().unwrap().to_owned();
    let children: Vec<Child> = (0..PROCESSES).map(|_| spawn(&file)).collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let count = std::fs::read_to_string(format!("{file}.count")).unwrap();
    assert_eq!(count, (PROCESSES * ROUNDS).to_string());
    let rows: i64 = Connection::open(&file)
        .unwrap()
        .query_row("SELECT count(*) FROM claim", [], |row| row.get(0))
        .unwrap();
    assert_eq!(rows, 0);
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn processes_of_one_machine_share_its_clock() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("locks.db").to_str().unwrap().to_owned();
    let (one, two) = (open(&file).await, open(&file).await);
    one.claim(request("a", 1)).await.unwrap();
    let ClaimReply::Busy(busy) = two.claim(request("a", 2)).await.unwrap() else { panic!("held") };
    assert_eq!(busy.observed, None, "the expiry can be compared");
    let clock: String =
        Connection::open(&file).unwrap().query_row("SELECT clock FROM claim", [], |row| row.get(0)).unwrap();
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert!(clock.starts_with(boot.trim()), "{clock}");
}
