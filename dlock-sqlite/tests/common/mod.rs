//! A lock file in a folder of its own, a clock that only moves by hand, and a look behind the sessions' back.

#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses its part"
)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dlock_core::{
    Backend, BackendError, Busy, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Clock, Grant, Holder, LockName,
    OpenOptions, Patience, Session, Timestamp,
};
use dlock_sqlite::SqliteBackend;
use rusqlite::Connection;
use tempfile::TempDir;

pub const TTL: Duration = Duration::from_secs(10);

/// Moves only when it is told to.
#[derive(Clone, Debug)]
pub struct HandClock(Arc<AtomicU64>);

impl HandClock {
    pub fn new() -> Self {
        Self(Arc::new(AtomicU64::new(3_600_000_000_000)))
    }

    pub fn advance(&self, by: Duration) {
        self.0.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_nanos(self.0.load(Ordering::SeqCst))
    }
}

/// A lock file that does not exist yet, and a clock that its sessions share.
pub struct Place {
    pub folder: TempDir,
    pub path: PathBuf,
    pub clock: HandClock,
}

impl Place {
    pub fn new() -> Self {
        // In memory where possible: the tests are about meaning, not about disks.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = folder.path().join("locks.db");
        Self { folder, path, clock: HandClock::new() }
    }

    pub fn backend(&self) -> SqliteBackend {
        SqliteBackend::builder(&self.path).clock_id("this").build()
    }

    pub fn options(&self) -> OpenOptions {
        OpenOptions::new(TTL, "test:1", Duration::from_secs(3), Arc::new(self.clock.clone()))
    }

    /// A session on this machine's clock.
    pub async fn session(&self) -> Arc<dyn Session> {
        self.backend().open(self.options()).await.unwrap().session
    }

    /// A session on the clock of another boot, which shows another time.
    pub async fn other_boot(&self) -> (Arc<dyn Session>, HandClock) {
        let clock = HandClock::new();
        clock.advance(Duration::from_secs(1_000_000));
        let options = OpenOptions::new(TTL, "other:1", Duration::from_secs(3), Arc::new(clock.clone()));
        let backend = SqliteBackend::builder(&self.path).clock_id("other").build();
        (backend.open(options).await.unwrap().session, clock)
    }

    pub async fn error(&self) -> BackendError {
        error_of(&self.backend(), self.options()).await
    }

    /// A connection behind the sessions' back.
    pub fn look(&self) -> Connection {
        let connection = Connection::open(&self.path).unwrap();
        connection.busy_timeout(Duration::from_secs(10)).unwrap();
        connection
    }

    pub fn rows(&self) -> i64 {
        self.look().query_row("SELECT count(*) FROM claim", [], |row| row.get(0)).unwrap()
    }

    /// A connection that keeps everybody from writing until it is dropped.
    pub fn blocker(&self) -> Connection {
        let connection = self.look();
        connection.execute_batch("BEGIN IMMEDIATE").unwrap();
        connection
    }
}

pub async fn error_of(backend: &SqliteBackend, options: OpenOptions) -> BackendError {
    backend.open(options).await.expect_err("the file is not usable")
}

pub fn claim_ref(name: &str, id: u128) -> ClaimRef {
    ClaimRef { id: ClaimId::from_bits(id), name: LockName::new(name).unwrap() }
}

pub fn request(name: &str, id: u128) -> ClaimRequest {
    let holder = Holder::from_json(r#"{"owner":"worker-7","since_ms":1767225600000}"#);
    ClaimRequest::new(claim_ref(name, id), Patience::Try, holder)
}

pub async fn claim(session: &dyn Session, name: &str, id: u128) -> ClaimReply {
    session.claim(request(name, id)).await.unwrap()
}

pub async fn granted(session: &dyn Session, name: &str, id: u128) -> Grant {
    match claim(session, name, id).await {
        ClaimReply::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

pub fn busy(reply: ClaimReply) -> Busy {
    match reply {
        ClaimReply::Busy(busy) => busy,
        other => panic!("not busy: {other:?}"),
    }
}

/// The error and its causes in one line, as a command line shows them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
