//! Rows that nobody living stands behind, and when they may go.

use std::collections::HashMap;
use std::time::Duration;

use dlock_core::Timestamp;

/// How many rows are watched at a time.
const CAPACITY: usize = 5000;

/// How many rows are looked for in one statement.
pub(crate) const BATCH: usize = 500;

/// How often to look at least.
const MINUTE: Duration = Duration::from_secs(60);

/// A row, and when what it owes has passed on the own clock.
#[derive(Debug)]
struct Orphan {
    token: i64,
    paid_at: Timestamp,
}

/// Watches rows whose holder's session is over, for names that nobody may ever ask for again.
#[derive(Debug)]
pub(crate) struct Sweep {
    /// By key.
    orphans: HashMap<i64, Orphan>,
    every: Duration,
    look_at: Timestamp,
}

impl Sweep {
    /// Looks at once, and then every ten leases, or every minute if that is more often.
    pub(crate) fn new(ttl: Duration, now: Timestamp) -> Self {
        Self { orphans: HashMap::new(), every: (ttl * 10).min(MINUTE), look_at: now }
    }

    /// Watches a row that was seen before `now`.
    pub(crate) fn expect(&mut self, key: i64, token: i64, owed: Duration, now: Timestamp) {
        let known = self.orphans.get(&key).is_some_and(|orphan| orphan.token == token);
        if !known && self.orphans.len() < CAPACITY {
            self.orphans.insert(key, Orphan { token, paid_at: now.plus(owed) });
        }
    }

    /// The keys of the rows that are watched.
    pub(crate) fn known(&self) -> Vec<i64> {
        self.orphans.keys().copied().collect()
    }

    /// Keys and tokens of the rows that may go.
    pub(crate) fn due(&mut self, now: Timestamp) -> (Vec<i64>, Vec<i64>) {
        let due = self.orphans.extract_if(|_, orphan| orphan.paid_at <= now);
        due.map(|(key, orphan)| (key, orphan.token)).unzip()
    }

    /// Whether it is time to look for more, and there is room for it.
    pub(crate) fn is_time_to_look(&mut self, now: Timestamp) -> bool {
        let is_time = now >= self.look_at && self.orphans.len() < CAPACITY;
        if is_time {
            self.look_at = now.plus(self.every);
        }
        is_time
    }

    /// Whether to look again at once, after so many were found. If there is no room for more, that is done once there is.
    pub(crate) fn goes_on(&mut self, found: usize) -> bool {
        if found < BATCH {
            return false;
        }
        let is_full = self.orphans.len() >= CAPACITY;
        if is_full {
            self.look_at = Timestamp::from_nanos(0);
        }
        !is_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn rows_go_when_what_they_owe_has_passed() {
        let mut sweep = Sweep::new(Duration::from_secs(10), at(100));
        sweep.expect(1, 7, Duration::from_secs(5), at(100));
        sweep.expect(2, 8, Duration::from_secs(9), at(100));
        sweep.expect(1, 7, Duration::from_secs(50), at(101));
        assert_eq!(sweep.due(at(104)), (vec![], vec![]));
        assert_eq!(sweep.due(at(105)), (vec![1], vec![7]));
        assert_eq!(sweep.due(at(200)), (vec![2], vec![8]));
    }

    #[test]
    fn it_looks_at_once_and_then_every_minute_at_least() {
        let mut sweep = Sweep::new(Duration::from_secs(2), at(100));
        assert!(sweep.is_time_to_look(at(100)));
        assert!(!sweep.is_time_to_look(at(119)));
        assert!(sweep.is_time_to_look(at(120)));
        let mut sweep = Sweep::new(Duration::from_secs(600), at(100));
        assert!(sweep.is_time_to_look(at(100)));
        assert!(!sweep.is_time_to_look(at(159)));
        assert!(sweep.is_time_to_look(at(160)));
    }

    #[test]
    fn a_full_batch_is_followed_by_another_look_as_far_as_there_is_room() {
        let mut sweep = Sweep::new(Duration::from_secs(10), at(100));
        let mut number = 0;
        assert!(sweep.is_time_to_look(at(100)));
        loop {
            for _ in 0..BATCH {
                sweep.expect(number, 7, Duration::from_secs(5), at(100));
                number += 1;
            }
            if !sweep.goes_on(BATCH) {
                break;
            }
        }
        assert_eq!(sweep.known().len(), CAPACITY);
        assert!(!sweep.is_time_to_look(at(104)), "there is no room");
        assert_eq!(sweep.due(at(105)).0.len(), CAPACITY);
        assert!(sweep.is_time_to_look(at(105)), "there were more");
        assert!(!sweep.goes_on(BATCH - 1));
        assert!(!sweep.is_time_to_look(at(106)));
    }
}
