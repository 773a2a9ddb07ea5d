//! Files that are missing, foreign, damaged, not writable or full: each is told in words that say what to do.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use common::{Place, chain, claim_ref, error_of, granted, request};
use dlock_core::{Backend as _, BackendUrl, ErrorKind, ReleaseRequest, Released, Renewal};
use dlock_sqlite::SqliteBackend;
use rusqlite::Connection;

/// The file is refused for good, in a message that has each of `parts`.
async fn refused(place: &Place, path: impl AsRef<Path>, parts: &[&str]) {
    let backend = SqliteBackend::builder(path).clock_id("this").build();
    let error = error_of(&backend, place.options()).await;
    assert_eq!(error.kind(), ErrorKind::Refused, "{}", chain(&error));
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in {:?}", chain(&error));
    }
}

#[tokio::test]
async fn a_missing_folder_is_told_with_the_command_that_makes_it() {
    let place = Place::new();
    let folder = place.folder.path().join("no/such");
    refused(&place, folder.join("locks.db"), &["does not exist", &format!("mkdir -p {}", folder.display())])
        .await;
    assert!(!folder.exists());
}

#[tokio::test]
async fn what_is_not_a_file_is_refused() {
    let place = Place::new();
    refused(&place, place.folder.path(), &["is a folder", "locks.db"]).await;
    refused(&place, "/dev/null", &["not a regular file"]).await;
    refused(&place, ":memory:", &["memory:NAME"]).await;
    refused(&place, "", &["empty"]).await;
    fs::write(place.folder.path().join("file"), "").unwrap();
    refused(&place, place.folder.path().join("file/locks.db"), &["is not a folder"]).await;
}

/// The lines of a URL that cannot work, without any I/O.
#[test]
fn urls_say_what_to_write() {
    let error =
        |url: &str| SqliteBackend::from_url(&mut BackendUrl::parse(url).unwrap()).unwrap_err().to_string();
    assert!(error("sqlite:").contains("sqlite:PATH"));
    assert!(error("sqlite::memory:").contains("memory:NAME"));
    assert!(error("sqlite:~/locks.db").contains("$HOME"));
    assert!(error("sqlite:locks.db?prefix=a%0Ab").contains("prefix"));
    let mut url = BackendUrl::parse("sqlite:///var/lib/a%20b.db?prefix=x/").unwrap();
    let backend = SqliteBackend::from_url(&mut url).unwrap();
    url.finish().unwrap();
    assert_eq!(backend.path(), Path::new("/var/lib/a b.db"));
}

#[tokio::test]
async fn a_database_of_another_application_is_refused_and_not_touched() {
    let place = Place::new();
    let theirs = Connection::open(&place.path).unwrap();
    theirs.execute_batch("CREATE TABLE customers (id INTEGER); INSERT INTO customers VALUES (7)").unwrap();
    drop(theirs);
    let before = fs::read(&place.path).unwrap();
    refused(&place, &place.path, &["another application", "a file of its own"]).await;
    assert_eq!(fs::read(&place.path).unwrap(), before);
    // Also when it only has a number of its own.
    let theirs = Place::new();
    Connection::open(&theirs.path).unwrap().pragma_update(None, "application_id", 77).unwrap();
    refused(&theirs, &theirs.path, &["another application"]).await;
}

#[tokio::test]
async fn a_file_of_a_newer_version_is_refused() {
    let place = Place::new();
    place.session().await.close(Vec::new()).await.unwrap();
    place.look().pragma_update(None, "user_version", 2).unwrap();
    refused(&place, &place.path, &["newer version", "layout 2", "update"]).await;
}

#[tokio::test]
async fn an_empty_file_is_taken() {
    let place = Place::new();
    fs::write(&place.path, "").unwrap();
    granted(&*place.session().await, "a", 1).await;
}

#[tokio::test]
async fn a_damaged_file_is_refused() {
    let place = Place::new();
    fs::write(
        &place.path,
        "this is no database, though it is long enough to have a header of 100 bytes ".repeat(100),
    )
    .unwrap();
    refused(&place, &place.path, &["damaged", "move it aside", "locks.db-wal"]).await;

    // The header is fine, the rest is not.
    let place = Place::new();
    place.session().await.close(Vec::new()).await.unwrap();
    let mut bytes = fs::read(&place.path).unwrap();
    bytes[4096..].fill(0x5a);
    fs::write(&place.path, bytes).unwrap();
    let session = place.backend().open(place.options()).await;
    let error = match session {
        Err(error) => error,
        Ok(opened) => opened.session.claim(request("a", 1)).await.unwrap_err(),
    };
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("move it aside"), "{}", chain(&error));
}

#[tokio::test]
async fn a_file_whose_tables_were_dropped_is_refused() {
    let place = Place::new();
    let session = place.session().await;
    place.look().execute_batch("DELETE FROM counter").unwrap();
    let error = session.claim(request("a", 1)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("not as dlock made it"), "{}", chain(&error));
    assert_eq!(place.rows(), 0);
}

/// Runs `test` without the rights of root, which no permission keeps out: credentials are a thread's on Linux.
#[cfg(target_os = "linux")]
fn unprivileged<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    std::thread::spawn(move || {
        if rustix::process::geteuid().is_root() {
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_uid(nobody).unwrap();
        }
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test());
    })
    .join()
    .unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn what_this_user_may_not_write_is_refused() {
    unprivileged(|| async {
        // Made by this user, whoever that is, so that it may then take its own rights away.
        let place = Place::new();
        place.session().await.close(Vec::new()).await.unwrap();
        let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();

        mode(&place.path, 0o444);
        refused(&place, &place.path, &["cannot be written", "chmod"]).await;
        mode(&place.path, 0o000);
        refused(&place, &place.path, &["locks.db"]).await;
        mode(&place.path, 0o644);

        mode(place.folder.path(), 0o555);
        refused(&place, place.folder.path().join("new.db"), &["let this user write to the folder"]).await;
        refused(&place, &place.path, &["locks.db"]).await;
        mode(place.folder.path(), 0o000);
        refused(&place, &place.path, &["cannot be reached"]).await;
        mode(place.folder.path(), 0o755);
        granted(&*place.session().await, "a", 1).await;
    });
}

/// Needs root for the small file system; the unit test of the store does the same with a limit of SQLite's own.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

    let mut place = Place::new();
    let disk = place.folder.path().join("disk");
    fs::create_dir(&disk).unwrap();
    if mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), Some(c"size=512k")).is_err() {
        println!("not root: only the unit test checks a full disk");
        return;
    }
    place.path = disk.join("locks.db");
    let session = place.session().await;
    let held = granted(&*session, "held", 1).await;
    let rest = fs::metadata(&disk).map(|_| 512 * 1024).unwrap();
    // Fills the rest of the disk; the write that fails is the wanted one.
    drop(fs::write(disk.join("ballast"), vec![0; rest]));
    let mut id = 2;
    let error = loop {
        match session.claim(request(&format!("{id:0>500}"), id)).await {
            Ok(_) => id += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Refused, "{}", chain(&error));
    assert!(error.to_string().contains("no space is left"), "{}", chain(&error));
    let before = place.rows();
    fs::remove_file(disk.join("ballast")).unwrap();

    // With space again everything that was held is still held, and nothing more.
    assert_eq!(before, i64::try_from(id - 1).unwrap());
    let renewed = session.renew(&[claim_ref("held", 1)]).await.unwrap();
    assert!(matches!(renewed.claims[0].1, Renewal::Extended(_)));
    assert_eq!(session.release(ReleaseRequest::new(claim_ref("held", 1))).await.unwrap(), Released::Done);
    assert!(granted(&*session, "held", 1_000_000).await.token > held.token);
    let check: String = place.look().query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(check, "ok");
    session.close(Vec::new()).await.unwrap();
    unmount(&disk, UnmountFlags::DETACH).unwrap();
}

#[tokio::test]
async fn the_layout_is_public_and_pinned() {
    let place = Place::new();
    let _session = place.session().await;
    let look = place.look();
    let pragma = |name: &str| look.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).unwrap();
    assert_eq!(pragma("application_id"), i64::from(u32::from_be_bytes(*b"DLOK")));
    assert_eq!(pragma("user_version"), 1);
    assert_eq!(pragma("auto_vacuum"), 1, "full");
    let mode: String = look.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
    assert_eq!(mode, "wal");
    let columns = |table: &str| -> Vec<(String, String)> {
        look.prepare("SELECT name, type FROM pragma_table_info(?1)")
            .unwrap()
            .query_map([table], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap()
            .collect::<Result<_, _>>()
            .unwrap()
    };
    let expected = |columns: &[(&str, &str)]| -> Vec<(String, String)> {
        columns.iter().map(|(name, kind)| ((*name).to_owned(), (*kind).to_owned())).collect()
    };
    assert_eq!(
        columns("claim"),
        expected(&[
            ("name", "TEXT"),
            ("claim", "TEXT"),
            ("token", "INTEGER"),
            ("version", "INTEGER"),
            ("lease_ms", "INTEGER"),
            ("expires_ns", "INTEGER"),
            ("clock", "TEXT"),
            ("holder", "TEXT"),
        ])
    );
    assert_eq!(columns("counter"), expected(&[("id", "INTEGER"), ("last", "INTEGER")]));
    let objects: i64 = look.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
    assert_eq!(objects, 2, "a change of the layout raises user_version");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_sessions_create_one_file() {
    for _ in 0..20 {
        let place = Arc::new(Place::new());
        let tasks: Vec<_> = (0..8_u128)
            .map(|id| {
                let place = Arc::clone(&place);
                tokio::spawn(async move {
                    let session = place.session().await;
                    granted(&*session, &id.to_string(), id).await.token
                })
            })
            .collect();
        let mut tokens = Vec::new();
        for task in tasks {
            tokens.push(task.await.unwrap());
        }
        tokens.sort_unstable();
        tokens.dedup();
        assert_eq!(tokens.len(), 8);
        assert_eq!(place.rows(), 8);
    }
}
