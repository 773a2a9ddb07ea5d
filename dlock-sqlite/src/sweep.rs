//! Removal of what crashed holders left under names that nobody asks for again.
//!
//! Without it a file would grow by one row for each crash. A row of our clock is removed once its lease is over, any
//! other once it was seen unchanged for its whole lease, as core does it for a lock that somebody waits for.

use std::collections::HashMap;
use std::time::Duration;

use dlock_core::Timestamp;
use rusqlite::{Connection, params};

use crate::store::nanos;

/// Rows that one sweep looks at, so that it never holds the write lock for long.
const BATCH: i64 = 1000;

/// When to sweep, and what was seen.
#[derive(Debug)]
pub(crate) struct Sweep {
    interval: Duration,
    next: Timestamp,
    seen: HashMap<String, Seen>,
}

/// A row of another clock.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    claim: String,
    version: i64,
    /// When this version was first seen.
    at: Timestamp,
}

impl Sweep {
    pub(crate) fn new(ttl: Duration) -> Self {
        Self {
            interval: ttl.max(Duration::from_secs(10)),
            next: Timestamp::from_nanos(0),
            seen: HashMap::new(),
        }
    }

    /// Sweeps if it is time. To be correct, it is called in a write transaction in which `now` was read: no holder can
    /// renew between `now` and what is seen here.
    pub(crate) fn run(
        &mut self,
        connection: &Connection,
        now: Timestamp,
        clock_id: &str,
    ) -> rusqlite::Result<()> {
        if now < self.next {
            return Ok(());
        }
        let removed = connection
            .prepare_cached(
                "DELETE FROM claim WHERE name IN (
                     SELECT name FROM claim WHERE clock = ?1 AND expires_ns <= ?2 LIMIT ?3)",
            )?
            .execute(params![clock_id, nanos(now), BATCH])?;
        self.remove_unchanged(connection, now, clock_id)?;
        let more = i64::try_from(removed).is_ok_and(|removed| removed == BATCH);
        self.next = if more { now } else { now.plus(self.interval) };
        Ok(())
    }

    fn remove_unchanged(
        &mut self,
        connection: &Connection,
        now: Timestamp,
        clock_id: &str,
    ) -> rusqlite::Result<()> {
        // Also rows that name our clock but reach further than it ever wrote: see Held::is_of_our_clock.
        let mut look = connection.prepare_cached(
            "SELECT name, claim, version, lease_ms FROM claim
             WHERE clock <> ?1 OR expires_ns - ?2 > lease_ms * 1000000 LIMIT ?3",
        )?;
        let mut removal =
            connection.prepare_cached("DELETE FROM claim WHERE name = ?1 AND claim = ?2 AND version = ?3")?;
        let mut seen = HashMap::new();
        let mut rows = look.query(params![clock_id, nanos(now), BATCH])?;
        let mut over = Vec::new();
        while let Some(row) = rows.next()? {
            let name: String = row.get(0)?;
            let (claim, version) = (row.get::<_, String>(1)?, row.get::<_, i64>(2)?);
            let lease = Duration::from_millis(u64::try_from(row.get::<_, i64>(3)?).unwrap_or(0));
            let at = match self.seen.get(&name) {
                Some(earlier) if earlier.claim == claim && earlier.version == version => earlier.at,
                _ => now,
            };
            if now.since(at) >= lease && at < now {
                over.push((name, claim, version));
            } else {
                seen.insert(name, Seen { claim, version, at });
            }
        }
        for (name, claim, version) in over {
            removal.execute(params![name, claim, version])?;
        }
        self.seen = seen;
        Ok(())
    }
}
