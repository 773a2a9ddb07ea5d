//! The lock file's transactions: what one request reads and writes. Runs on the owner's thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    BackendError, Busy, ClaimRef, ClaimReply, ClaimRequest, Clock, FencingToken, Grant, Holder, Lease,
    LockName, Mode, Observed, ReleaseRequest, Released, Renewal, Resolution, Timestamp, Version,
};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use crate::error::{Phase, of_sqlite};
use crate::file::{self, LockFile, Patience};
use crate::sweep::Sweep;

/// How often a waiter looks, at the latest; core adds jitter.
pub(crate) const POLL: Duration = Duration::from_millis(20);

/// What a store is opened with.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) path: PathBuf,
    pub(crate) prefix: String,
    pub(crate) ttl: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) clock_id: String,
}

/// The lock file as one session uses it.
#[derive(Debug)]
pub(crate) struct Store {
    connection: Connection,
    file: LockFile,
    prefix: String,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    clock_id: String,
    sweep: Sweep,
}

impl Store {
    pub(crate) fn open(settings: Settings) -> Result<Self, BackendError> {
        let Settings { path, prefix, ttl, request_timeout, clock, clock_id } = settings;
        // Core waits request_timeout for a claim, and no more than ttl / 3 for a renewal.
        let busy = (request_timeout.min(ttl / 3) / 2).max(Duration::from_millis(1));
        let patience = Patience { busy, open: request_timeout / 4 * 3 };
        let (connection, file) = file::open(&path, patience, &*clock)?;
        let sweep = Sweep::new(ttl);
        Ok(Self { connection, file, prefix, ttl, clock, clock_id, sweep })
    }

    /// One try. `since` was read before the request was sent.
    pub(crate) fn claim(
        &mut self,
        request: &ClaimRequest,
        since: Timestamp,
    ) -> Result<ClaimReply, BackendError> {
        let Mode::Exclusive = request.mode else {
            return Err(BackendError::refused("the SQLite backend has exclusive locks only"));
        };
        self.file.check()?;
        let key = self.key(&request.claim.name);
        let take = request.take_if_unchanged.as_ref();
        let Self { connection, file, clock, clock_id, ttl, sweep, .. } = self;
        let clock_id: &str = clock_id;
        // Waiters poll, so the write lock is only taken when it looks as if there were something to get.
        let look = read(connection, &key).map_err(|error| of_sqlite(file.path(), Phase::Before, error))?;
        if let Some(busy) = verdict(look.as_ref(), clock.now(), clock_id, take) {
            return Ok(ClaimReply::Busy(busy));
        }
        transaction(connection, file, |connection| {
            // P1: read inside the transaction, after any wait for the write lock, so that the row outlives the guard.
            let now = clock.now();
            if let Some(busy) = verdict(read(connection, &key)?.as_ref(), now, clock_id, take) {
                return Ok(Outcome::RolledBack(ClaimReply::Busy(busy)));
            }
            // P2: one counter for the whole file, in the transaction of the grant.
            let token = connection
                .prepare_cached("UPDATE counter SET last = last + 1 WHERE id = 1 RETURNING last")?
                .query_row([], |row| row.get::<_, i64>(0))?;
            connection
                .prepare_cached(
                    "INSERT OR REPLACE INTO claim (name, claim, token, version, lease_ms, expires_ns, clock, holder)
                     VALUES (?1, ?2, ?3, 1, ?4, ?5, ?6, ?7)",
                )?
                .execute(params![
                    key,
                    request.claim.id.to_string(),
                    token,
                    whole_millis(*ttl),
                    nanos(now.plus(*ttl)),
                    clock_id,
                    request.holder.to_json(),
                ])?;
            sweep.run(connection, now, clock_id)?;
            let token = FencingToken::new(u64::try_from(token).unwrap_or(0));
            Ok(Outcome::Committed(ClaimReply::Granted(Grant::new(token).lease(Lease::new(since, *ttl)))))
        })
    }

    /// Renews all of `claims` in one transaction. `since` was read before the request was sent.
    pub(crate) fn renew(
        &mut self,
        claims: &[ClaimRef],
        since: Timestamp,
    ) -> Result<Vec<(dlock_core::ClaimId, Renewal)>, BackendError> {
        self.file.check()?;
        let Self { connection, file, clock, clock_id, ttl, sweep, prefix } = self;
        let clock_id: &str = clock_id;
        let lease = Lease::new(since, *ttl);
        transaction(connection, file, |connection| {
            let now = clock.now();
            // A row whose lease is over is not revived: its guard is dead, and another may just be looking at it.
            let mut renewal = connection.prepare_cached(
                "UPDATE claim SET version = version + 1, lease_ms = ?3, expires_ns = ?4
                 WHERE name = ?1 AND claim = ?2 AND clock = ?5 AND expires_ns > ?6",
            )?;
            let mut answers = Vec::with_capacity(claims.len());
            for claim in claims {
                // P7: the id is that of our claim, so never a successor's.
                let extended = renewal.execute(params![
                    format!("{prefix}{}", claim.name),
                    claim.id.to_string(),
                    whole_millis(*ttl),
                    nanos(now.plus(*ttl)),
                    clock_id,
                    nanos(now),
                ])?;
                answers
                    .push((claim.id, if extended == 1 { Renewal::Extended(lease) } else { Renewal::Gone }));
            }
            sweep.run(connection, now, clock_id)?;
            Ok(Outcome::Committed(answers))
        })
    }

    /// Removes what an unanswered request may have left. Requests are done in order on one connection, so this comes
    /// after it and the answer is proof.
    pub(crate) fn resolve(&mut self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.file.check()?;
        let key = self.key(&claim.name);
        let row = read(&self.connection, &key);
        let row = row.map_err(|error| of_sqlite(self.file.path(), Phase::Before, error))?;
        if row.is_some_and(|row| row.claim == claim.id.to_string()) {
            self.release_all(std::slice::from_ref(claim))?;
        }
        Ok(Resolution::Absent)
    }

    pub(crate) fn release(&mut self, claim: &ClaimRef) -> Result<Released, BackendError> {
        self.file.check()?;
        let removed = self.release_all(std::slice::from_ref(claim))?;
        Ok(if removed == 1 { Released::Done } else { Released::NotFound })
    }

    /// The last request of a session.
    pub(crate) fn close(&mut self, leaving: &[ReleaseRequest]) -> Result<(), BackendError> {
        // In a file that was replaced nothing of ours is left.
        if leaving.is_empty() || self.file.check().is_err() {
            return Ok(());
        }
        let claims: Vec<ClaimRef> = leaving.iter().map(|request| request.claim.clone()).collect();
        self.release_all(&claims).map(drop)
    }

    pub(crate) fn observe(&mut self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        self.file.check()?;
        let row = read(&self.connection, &self.key(name));
        let row = row.map_err(|error| of_sqlite(self.file.path(), Phase::Before, error))?;
        let now = self.clock.now();
        Ok(row.filter(|row| !row.is_over(now, &self.clock_id)).map(|row| Holder::from_json(&row.holder)))
    }

    fn release_all(&mut self, claims: &[ClaimRef]) -> Result<usize, BackendError> {
        let Self { connection, file, clock, clock_id, sweep, prefix, .. } = self;
        transaction(connection, file, |connection| {
            let mut removal =
                connection.prepare_cached("DELETE FROM claim WHERE name = ?1 AND claim = ?2")?;
            let mut removed = 0;
            for claim in claims {
                // P7: the id is that of our claim, so never a successor's.
                removed +=
                    removal.execute(params![format!("{prefix}{}", claim.name), claim.id.to_string()])?;
            }
            sweep.run(connection, clock.now(), clock_id)?;
            Ok(Outcome::Committed(removed))
        })
    }

    fn key(&self, name: &LockName) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// A row of the table `claim`, as far as requests look at it.
struct Held {
    claim: String,
    version: i64,
    lease: Duration,
    expires: Timestamp,
    clock: String,
    holder: String,
}

impl Held {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            claim: row.get(0)?,
            version: row.get(1)?,
            lease: Duration::from_millis(u64::try_from(row.get::<_, i64>(2)?).unwrap_or(0)),
            expires: Timestamp::from_nanos(u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0)),
            clock: row.get(4)?,
            holder: row.get(5)?,
        })
    }

    /// Whether its expiry can be compared with our clock. A row that would outlive a whole lease from now was not
    /// written by this clock, whatever it says.
    fn is_of_our_clock(&self, now: Timestamp, clock_id: &str) -> bool {
        self.clock == clock_id && self.expires <= now.plus(self.lease)
    }

    /// Whether its lease is certainly over.
    fn is_over(&self, now: Timestamp, clock_id: &str) -> bool {
        self.is_of_our_clock(now, clock_id) && self.expires <= now
    }

    /// Differs between claims, and between the renewals of one.
    fn version(&self) -> Version {
        Version::new(format!("{}.{}", self.claim, self.version))
    }
}

fn read(connection: &Connection, key: &str) -> rusqlite::Result<Option<Held>> {
    connection
        .prepare_cached(
            "SELECT claim, version, lease_ms, expires_ns, clock, holder FROM claim WHERE name = ?1",
        )?
        .query_row([key], Held::from_row)
        .optional()
}

/// None if the lock may be taken; else what to tell who asks.
fn verdict(held: Option<&Held>, now: Timestamp, clock_id: &str, take: Option<&Version>) -> Option<Busy> {
    let held = held?;
    if held.is_of_our_clock(now, clock_id) {
        let left = held.expires.since(now);
        return (!left.is_zero()).then(|| Busy::retry_after(left.min(POLL)));
    }
    let version = held.version();
    if take == Some(&version) {
        return None;
    }
    Some(Busy::retry_after(POLL).observed(Observed { version, lease: held.lease }))
}

/// How a transaction ends.
enum Outcome<T> {
    Committed(T),
    RolledBack(T),
}

/// Runs `work` under the write lock. Nothing of it stays unless it is committed.
fn transaction<T>(
    connection: &Connection,
    file: &LockFile,
    work: impl FnOnce(&Connection) -> rusqlite::Result<Outcome<T>>,
) -> Result<T, BackendError> {
    let run = |sql: &str| connection.prepare_cached(sql)?.execute([]).map(drop);
    let before = |error| of_sqlite(file.path(), Phase::Before, error);
    run("BEGIN IMMEDIATE").map_err(before)?;
    let (answer, error, phase) = match work(connection) {
        Ok(Outcome::Committed(answer)) => match run("COMMIT") {
            Ok(()) => return Ok(answer),
            Err(error) => (None, Some(error), Phase::Commit),
        },
        Ok(Outcome::RolledBack(answer)) => (Some(answer), None, Phase::Before),
        Err(error) => (None, Some(error), Phase::Before),
    };
    // After some errors SQLite has rolled back already. A commit that can still be rolled back has not happened.
    let rolled_back = !connection.is_autocommit() && run("ROLLBACK").is_ok();
    let phase = if rolled_back { Phase::Before } else { phase };
    match (answer, error) {
        (_, Some(error)) => Err(of_sqlite(file.path(), phase, error)),
        (Some(answer), None) => Ok(answer),
        (None, None) => unreachable!("a transaction gives an answer or an error"),
    }
}

/// Rounded up, so that who waits for this long has waited for the whole lease.
fn whole_millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// Nanoseconds of a clock as SQLite's signed integer, which is enough for 292 years.
pub(crate) fn nanos(moment: Timestamp) -> i64 {
    i64::try_from(moment.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use dlock_core::{ClaimId, ErrorKind, Patience, TestClock};

    use super::*;

    fn request(id: u128) -> ClaimRequest {
        // Long names fill pages fast.
        let name = LockName::new(format!("{id:0>500}")).unwrap();
        let holder = Holder::from_json(r#"{"owner":"test","since_ms":1}"#);
        ClaimRequest::new(ClaimRef { id: ClaimId::from_bits(id), name }, Patience::Try, holder)
    }

    #[test]
    fn a_full_file_refuses_and_goes_on_when_there_is_space() {
        let folder = tempfile::tempdir().unwrap();
        let clock = Arc::new(TestClock::new());
        let since = clock.now();
        let mut store = Store::open(Settings {
            path: folder.path().join("locks.db"),
            prefix: String::new(),
            ttl: Duration::from_secs(60),
            request_timeout: Duration::from_secs(3),
            clock,
            clock_id: "this".to_owned(),
        })
        .unwrap();
        store.connection.pragma_update(None, "max_page_count", 12).unwrap();
        let mut held = Vec::new();
        let error = loop {
            let request = request(u128::try_from(held.len()).unwrap());
            match store.claim(&request, since) {
                Ok(ClaimReply::Granted(grant)) => held.push((request.claim, grant.token)),
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), ErrorKind::Refused);
        assert!(error.to_string().contains("no space is left"), "{error}");
        assert!(held.len() > 10, "{}", held.len());

        let claims: Vec<ClaimRef> = held.iter().map(|(claim, _)| claim.clone()).collect();
        let renewals = store.renew(&claims, since).unwrap();
        assert!(renewals.iter().all(|(_, renewal)| matches!(renewal, Renewal::Extended(_))));
        let rows: i64 =
            store.connection.query_row("SELECT count(*) FROM claim", [], |row| row.get(0)).unwrap();
        assert_eq!(rows, i64::try_from(held.len()).unwrap(), "the refused one left nothing");
        assert_eq!(store.release_all(&claims).unwrap(), held.len());
        let ClaimReply::Granted(grant) = store.claim(&request(1_000_000), since).unwrap() else {
            panic!("space")
        };
        assert!(held.iter().all(|(_, token)| *token < grant.token));
    }
}
