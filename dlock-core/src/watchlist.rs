//! What tries have met that nobody living may stand behind, and since when.
//!
//! Two kinds, never mixed: a debt that a try met when it got the lock itself, and the version of a record whose holder
//! the store cannot prove dead. Either may be presented to the store once it has stood unchanged on the own clock for
//! as long as it says.

use std::collections::HashMap;
use std::time::Duration;

use crate::backend::{DebtId, Version};
use crate::clock::Timestamp;
use crate::name::LockName;

/// How many names are watched at most; beyond it the longest-watched is forgotten, which costs only time.
const CAPACITY: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Met {
    Debt(DebtId),
    Version(Version),
}

#[derive(Debug)]
struct Watched {
    met: Met,
    since: Timestamp,
    lasts: Duration,
}

#[derive(Debug, Default)]
pub(crate) struct Watchlist(HashMap<LockName, Watched>);

impl Watchlist {
    /// Books what an answer received at `now` showed. The time starts anew if it is another debt or version.
    pub(crate) fn meet(&mut self, name: &LockName, met: Met, lasts: Duration, now: Timestamp) {
        if let Some(watched) = self.0.get_mut(name)
            && watched.met == met
        {
            watched.lasts = watched.lasts.max(lasts);
            return;
        }
        if self.0.len() >= CAPACITY && !self.0.contains_key(name) {
            let oldest = self.0.iter().min_by_key(|(name, watched)| (watched.since, (*name).clone()));
            if let Some(name) = oldest.map(|(name, _)| name.clone()) {
                self.0.remove(&name);
            }
        }
        self.0.insert(name.clone(), Watched { met, since: now, lasts });
    }

    /// Forgets a name: its lock was granted, or found in the hands of a living holder.
    pub(crate) fn forget(&mut self, name: &LockName) {
        // The common case by far is an empty list, and this is on the path of every acquisition.
        if !self.0.is_empty() {
            self.0.remove(name);
        }
    }

    /// What has stood for long enough to be presented.
    pub(crate) fn ripe(&self, name: &LockName, now: Timestamp) -> Option<Met> {
        if self.0.is_empty() {
            return None;
        }
        let watched = self.0.get(name)?;
        (now.since(watched.since) >= watched.lasts).then(|| watched.met.clone())
    }

    /// The time until what is watched for this name is ripe; none if nothing is.
    pub(crate) fn ripe_in(&self, name: &LockName, now: Timestamp) -> Option<Duration> {
        let watched = self.0.get(name)?;
        Some(watched.lasts.saturating_sub(now.since(watched.since)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWED: Duration = Duration::from_secs(10);

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_nanos(seconds * 1_000_000_000)
    }

    #[test]
    fn ripens_only_if_unchanged_for_the_whole_time() {
        let name = LockName::new("a").unwrap();
        let mut list = Watchlist::default();
        list.meet(&name, Met::Debt(DebtId(1)), OWED, at(100));
        list.meet(&name, Met::Debt(DebtId(1)), OWED, at(109));
        assert_eq!(list.ripe(&name, at(109)), None);
        assert_eq!(list.ripe_in(&name, at(109)), Some(Duration::from_secs(1)));
        assert_eq!(list.ripe(&name, at(110)), Some(Met::Debt(DebtId(1))));
        list.meet(&name, Met::Debt(DebtId(2)), OWED, at(111));
        assert_eq!(list.ripe(&name, at(120)), None, "another debt starts anew");
        list.forget(&name);
        assert_eq!(list.ripe(&name, at(1000)), None);
    }

    #[test]
    fn is_bounded() {
        let mut list = Watchlist::default();
        for n in 0..2 * CAPACITY as u64 {
            list.meet(&LockName::new(n.to_string()).unwrap(), Met::Debt(DebtId(n)), OWED, at(n));
        }
        assert_eq!(list.0.len(), CAPACITY);
        assert!(list.ripe_in(&LockName::new("0").unwrap(), at(0)).is_none(), "the oldest went first");
    }
}
