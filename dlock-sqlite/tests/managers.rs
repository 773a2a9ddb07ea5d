//! Managers over one file: what core makes of the answers, with real processes that are killed and frozen.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dlock_core::{AcquireError, Clock as _, FencingToken, LockManager, LossReason, SystemClock};
use dlock_sqlite::SqliteBackend;
use rusqlite::Connection;
use tempfile::TempDir;

const TTL: Duration = Duration::from_secs(2);
const FILE: &str = "DLOCK_TEST_FILE";

/// In memory where that can be had: a busy disk may take as long as a lease.
fn folder() -> TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

fn manager(file: impl AsRef<Path>) -> LockManager {
    LockManager::builder(SqliteBackend::new(file)).ttl(TTL).build().unwrap()
}

/// The child process: acquires, says its token, and tells when it lost the lock. Does nothing for the test runner.
#[test]
fn child() {
    let Ok(file) = std::env::var(FILE) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let guard = manager(file).lock("a").unwrap().acquire().await.unwrap();
        println!("\ntoken {}", guard.token());
        let reason = guard.lost().await;
        println!("lost {reason:?} {}", guard.is_held());
    });
}

/// A process that holds the lock, and what it says.
struct Holder(Child, BufReader<std::process::ChildStdout>);

impl Holder {
    fn start(file: &Path) -> (Self, FencingToken) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(FILE, file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut holder = Self(child, output);
        let token = holder.says("token ").parse().unwrap();
        (holder, FencingToken::new(token))
    }

    /// The rest of the next line that starts so.
    fn says(&mut self, start: &str) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(self.1.read_line(&mut line).unwrap(), 0, "the holder ended without {start:?}");
            if let Some(rest) = line.trim_end().strip_prefix(start) {
                return rest.to_owned();
            }
        }
    }

    #[cfg(target_os = "linux")]
    fn freeze(&self) {
        use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

        let id = Pid::from_child(&self.0);
        kill_process(id, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(id), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped());
    }

    #[cfg(target_os = "linux")]
    fn thaw(&self) {
        use rustix::process::{Pid, Signal, kill_process};

        kill_process(Pid::from_child(&self.0), Signal::CONT).unwrap();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // It may be gone already.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test]
async fn a_killed_holder_is_replaced_within_its_lease() {
    let folder = folder();
    let file = folder.path().join("locks.db");
    let (mut holder, first) = Holder::start(&file);
    let locks = manager(&file);
    let lock = locks.lock("a").unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none());
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    let killed = SystemClock.now();
    let guard = lock.acquire().await.unwrap();
    let took = SystemClock.now().since(killed);
    println!("replaced after {took:?}, lease {TTL:?}");
    assert!(took < TTL + Duration::from_secs(2), "{took:?}");
    assert!(guard.token() > first);
    locks.close().await.unwrap();
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_frozen_holder_knows_its_loss_when_it_wakes() {
    let folder = folder();
    let file = folder.path().join("locks.db");
    let locks = manager(&file);
    locks.open().await.unwrap();
    let (mut holder, first) = Holder::start(&file);
    // Not in the middle of a write, which is the documented exception.
    let pause = Connection::open(&file).unwrap();
    pause.busy_timeout(Duration::from_secs(10)).unwrap();
    pause.execute_batch("BEGIN IMMEDIATE").unwrap();
    holder.freeze();
    drop(pause);
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    assert!(guard.token() > first);
    holder.thaw();
    assert_eq!(holder.says("lost "), "Expired false");
    assert!(guard.is_held());
    locks.close().await.unwrap();
}

#[tokio::test]
async fn a_lock_from_before_a_reboot_is_taken_after_its_lease() {
    let folder = folder();
    let file = folder.path().join("locks.db");
    let (mut holder, first) = Holder::start(&file);
    holder.0.kill().unwrap();
    holder.0.wait().unwrap();
    let table = Connection::open(&file).unwrap();
    let reboot = "UPDATE claim SET clock = 'another boot', expires_ns = 9000000000000000000";
    assert_eq!(table.execute(reboot, []).unwrap(), 1);

    let locks = manager(&file);
    let lock = locks.lock("a").unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none());
    let wait = lock.settles_in().expect("nobody knows whether the holder lives");
    assert!(wait <= TTL, "{wait:?}");
    let early = lock.acquire_timeout(TTL / 4).await.unwrap_err();
    assert!(matches!(early, AcquireError::Timeout { .. }), "{early}");
    let guard = lock.acquire_timeout(TTL * 4).await.unwrap();
    assert!(guard.token() > first);
    locks.close().await.unwrap();
}

#[tokio::test]
async fn a_row_removed_by_hand_is_missed_within_a_renewal() {
    let folder = folder();
    let file = folder.path().join("locks.db");
    let locks = manager(&file);
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    assert_eq!(Connection::open(&file).unwrap().execute("DELETE FROM claim", []).unwrap(), 1);
    let removed = SystemClock.now();
    assert_eq!(guard.lost().await, LossReason::Removed);
    assert!(SystemClock.now().since(removed) < TTL);
    locks.close().await.unwrap();
}

#[tokio::test]
async fn a_file_that_is_removed_costs_its_locks_and_nothing_else() {
    let folder = folder();
    let file = folder.path().join("locks.db");
    let locks = manager(&file);
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    for end in ["", "-wal", "-shm"] {
        std::fs::remove_file(format!("{}{end}", file.display())).unwrap();
    }
    assert_eq!(guard.lost().await, LossReason::SessionEnded);
    let next = locks.lock("a").unwrap().acquire().await.unwrap();
    assert!(next.is_held() && next.token() > guard.token());
    locks.close().await.unwrap();
}

#[tokio::test]
async fn holders_killed_anywhere_leave_a_sound_file() {
    let folder = folder();
    let file = folder.path().join("locks.db");
    let mut last = FencingToken::new(0);
    for round in 0..4 {
        let (mut holder, token) = Holder::start(&file);
        assert!(token > last, "round {round}");
        last = token;
        holder.0.kill().unwrap();
        holder.0.wait().unwrap();
    }
    let look = Connection::open(&file).unwrap();
    let check: String = look.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    let locks = manager(&file);
    assert!(locks.lock("a").unwrap().acquire().await.unwrap().token() > last);
    locks.close().await.unwrap();
}
