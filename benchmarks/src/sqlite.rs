//! Acquire and release in a lock file, beside what SQLite itself takes for two commits.

use std::path::Path;

use dlock_core::{Clock, Lock, SystemClock};
use dlock_sqlite::SqliteBackend;
use rusqlite::Connection;

use crate::figures::{Figures, LONG_ROUNDS, nanos};
use crate::setting::{Setting, manager};
use crate::table::{Unit, row, section};

const OPERATIONS: u32 = 20;

pub(crate) fn run() {
    let folder = tempfile::tempdir().expect("the folder for temporary files is writable");
    section("SQLITE, uncontended, every commit flushed to disk");
    row(
        "rusqlite, an insert and a delete, each its own commit",
        Unit::Nanoseconds,
        two_commits(folder.path()),
    );
    for setting in [Setting::CurrentThread, Setting::MultiThread] {
        let lock = manager(SqliteBackend::new(folder.path().join("locks.db")))
            .lock("orders/42")
            .expect("a valid name");
        let figures = setting.run(Figures::timed(LONG_ROUNDS, move || acquire_and_release(lock.clone())));
        row(&format!("acquire + release().await, {setting}"), Unit::Nanoseconds, figures);
    }
}

async fn acquire_and_release(lock: Lock) -> u32 {
    for _ in 0..OPERATIONS {
        let guard = lock.acquire().await.expect("the lock is free");
        guard.release().await.expect("the store answers");
    }
    OPERATIONS
}

/// The least that a lock in a file can take which outlives a power cut.
fn two_commits(folder: &Path) -> Figures {
    let db = Connection::open(folder.join("floor.db")).expect("the folder is writable");
    db.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;
         CREATE TABLE held (name TEXT PRIMARY KEY) WITHOUT ROWID;",
    )
    .expect("SQLite works");
    let mut insert = db.prepare("INSERT INTO held VALUES ('orders/42')").expect("the statement is valid");
    let mut delete = db.prepare("DELETE FROM held").expect("the statement is valid");
    Figures::each_blocking(LONG_ROUNDS, || {
        let start = SystemClock.now();
        for _ in 0..OPERATIONS {
            insert.execute(()).expect("SQLite works");
            delete.execute(()).expect("SQLite works");
        }
        nanos(SystemClock.now().since(start)) / f64::from(OPERATIONS)
    })
}
