//! Lease arithmetic: pure functions, and the cell that holds a deadline.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Timestamp;

/// What a store granted: the claim is certain for `ttl` counted from `since`.
///
/// To be correct, `since` is a reading of the injected clock taken *before* the request was sent that the store counts
/// as the start or the renewal of the lease, or an earlier one. A backend whose store may end a lease early by more
/// than the [`margin`] reports a smaller `ttl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Read before the request was sent.
    pub since: Timestamp,
    /// What the store granted; it may be less than was asked for, and less than before.
    pub ttl: Duration,
}

impl Lease {
    /// A lease of `ttl` from `since`.
    pub const fn new(since: Timestamp, ttl: Duration) -> Self {
        Self { since, ttl }
    }

    /// The last moment at which the claim is certain: `since + ttl - margin(ttl)`.
    pub fn deadline(self) -> Timestamp {
        self.since.plus(self.ttl.saturating_sub(margin(self.ttl)))
    }
}

/// What is taken off a lease for clocks of different rates and for the time a check takes: `ttl / 100 + 2 ms`.
///
/// The formula of Redis' Redlock text, where it is called the clock drift.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(dlock_core::margin(Duration::from_secs(10)), Duration::from_millis(102));
/// ```
pub fn margin(ttl: Duration) -> Duration {
    ttl / 100 + Duration::from_millis(2)
}

/// The time between two renewals: a third of the lease, so that two may fail before the third would be too late.
pub(crate) fn renewal_interval(ttl: Duration) -> Duration {
    ttl / 3
}

/// Why a guard stopped being valid before it was released. Final: a lost guard is never held again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LossReason {
    /// The lease ran out before a renewal was answered: the store was out of reach, or this process did not run.
    Expired,
    /// The store ended the session that carried the lock.
    SessionEnded,
    /// The store no longer has the claim: somebody removed its key, node or row.
    Removed,
    /// The longest hold that was allowed ([`max_hold`](crate::Lock::max_hold)) is over.
    MaxHold,
    /// The lock manager was closed.
    Closed,
}

impl LossReason {
    const fn code(self) -> u64 {
        match self {
            Self::Expired => 1,
            Self::SessionEnded => 2,
            Self::Removed => 3,
            Self::MaxHold => 4,
            Self::Closed => 5,
        }
    }

    const fn from_code(code: u64) -> Self {
        match code {
            2 => Self::SessionEnded,
            3 => Self::Removed,
            4 => Self::MaxHold,
            5 => Self::Closed,
            _ => Self::Expired,
        }
    }
}

impl fmt::Display for LossReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expired => "the lease ran out before it could be renewed",
            Self::SessionEnded => "the store ended the session",
            Self::Removed => "the claim was removed from the store by somebody else",
            Self::MaxHold => "the longest allowed hold is over",
            Self::Closed => "the lock manager was closed",
        })
    }
}

impl std::error::Error for LossReason {}

/// A deadline that renewals move and that has a last state, LOST.
///
/// P3: whoever reads the clock past the deadline swaps it to LOST before answering "not held", so a renewal that is
/// answered late finds LOST and cannot revive what somebody has already been told is gone.
#[derive(Debug)]
pub(crate) struct DeadlineCell(AtomicU64);

/// Values below this are codes of a [`LossReason`]; no clock reads the first 16 nanoseconds of its life.
const FIRST_DEADLINE: u64 = 16;
/// A deadline that never comes.
const NEVER: u64 = u64::MAX;

/// The value that a renewal was based on; see [`DeadlineCell::renew`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen(u64);

impl DeadlineCell {
    pub(crate) fn new(deadline: Timestamp) -> Self {
        Self(AtomicU64::new(deadline.as_nanos().clamp(FIRST_DEADLINE, NEVER - 1)))
    }

    /// A cell without a deadline, which can only be lost by [`lose`](Self::lose).
    pub(crate) fn never() -> Self {
        Self(AtomicU64::new(NEVER))
    }

    /// The deadline if it is after `now`; else the loss, which is final from here on.
    pub(crate) fn check(&self, now: Timestamp) -> Result<Timestamp, LossReason> {
        self.check_as(now, LossReason::Expired)
    }

    /// As [`check`](Self::check), naming a passed deadline by `reason`.
    pub(crate) fn check_as(&self, now: Timestamp, reason: LossReason) -> Result<Timestamp, LossReason> {
        let mut value = self.0.load(Ordering::SeqCst);
        loop {
            if value < FIRST_DEADLINE {
                return Err(LossReason::from_code(value));
            }
            if now.as_nanos() < value {
                return Ok(Timestamp::from_nanos(value));
            }
            match self.0.compare_exchange(value, reason.code(), Ordering::SeqCst, Ordering::SeqCst) {
                Ok(_) => return Err(reason),
                Err(other) => value = other,
            }
        }
    }

    /// Marks the loss, unless it is lost already. True for the caller that did it.
    pub(crate) fn lose(&self, reason: LossReason) -> bool {
        self.0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |value| {
                (value >= FIRST_DEADLINE).then_some(reason.code())
            })
            .is_ok()
    }

    /// What a renewal about to be sent starts from; none if lost.
    pub(crate) fn before_renewal(&self, now: Timestamp) -> Option<Seen> {
        self.check(now).ok().map(|deadline| Seen(deadline.as_nanos()))
    }

    /// Moves the deadline after an answered renewal: only from the value seen before, and only if `now`, read after
    /// the answer, is still before that value. Otherwise the cell is lost.
    pub(crate) fn renew(&self, seen: Seen, lease: Lease, now: Timestamp) -> Result<Timestamp, LossReason> {
        self.check(now)?;
        let deadline = lease.deadline().as_nanos().clamp(FIRST_DEADLINE, NEVER - 1);
        if now.as_nanos() < seen.0 {
            // A failed exchange means LOST: there is one renewal in flight at a time, nobody else moves the value.
            self.0.compare_exchange(seen.0, deadline, Ordering::SeqCst, Ordering::SeqCst).ok();
        }
        self.check(now)
    }

    /// Sets a deadline on a cell that had none. No effect on a lost one.
    pub(crate) fn set_first(&self, deadline: Timestamp) {
        let deadline = deadline.as_nanos().clamp(FIRST_DEADLINE, NEVER - 1);
        self.0.compare_exchange(NEVER, deadline, Ordering::SeqCst, Ordering::SeqCst).ok();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000_000 + millis * 1_000_000)
    }

    fn cell() -> DeadlineCell {
        DeadlineCell::new(Lease::new(at(0), TTL).deadline())
    }

    #[test]
    fn the_deadline_is_counted_from_before_the_request_and_less_a_margin() {
        assert_eq!(Lease::new(at(0), TTL).deadline(), at(10_000 - 102));
        assert_eq!(
            Lease::new(at(0), Duration::from_millis(1)).deadline(),
            at(0),
            "a lease below the margin is none"
        );
    }

    #[test]
    fn whoever_finds_the_deadline_past_makes_the_loss_final() {
        let cell = cell();
        let seen = cell.before_renewal(at(3_000)).expect("still held");
        assert_eq!(cell.check(at(9_897)), Ok(at(9_898)));
        assert_eq!(cell.check(at(9_898)), Err(LossReason::Expired));
        let late = cell.renew(seen, Lease::new(at(3_000), TTL), at(9_000));
        assert_eq!(late, Err(LossReason::Expired), "a late answer revives nothing");
        assert_eq!(cell.check(at(0)), Err(LossReason::Expired));
    }

    #[test]
    fn a_renewal_counts_only_if_its_answer_came_before_the_old_deadline() {
        let in_time = cell();
        let seen = in_time.before_renewal(at(3_000)).expect("still held");
        assert_eq!(in_time.renew(seen, Lease::new(at(3_000), TTL), at(3_100)), Ok(at(12_898)));
        let late = cell();
        let seen = late.before_renewal(at(9_000)).expect("still held");
        let answered = late.renew(seen, Lease::new(at(9_000), TTL), at(9_900));
        assert_eq!(answered, Err(LossReason::Expired), "nobody looked, but the old deadline is past");
    }

    #[test]
    fn a_smaller_lease_moves_the_deadline_back() {
        let cell = cell();
        let seen = cell.before_renewal(at(1_000)).expect("still held");
        let shorter = Lease::new(at(1_000), Duration::from_secs(2));
        assert_eq!(cell.renew(seen, shorter, at(1_001)), Ok(at(3_000 - 22)));
    }

    #[test]
    fn the_first_reason_stays() {
        let cell = DeadlineCell::never();
        assert!(cell.lose(LossReason::Removed));
        assert!(!cell.lose(LossReason::Closed));
        cell.set_first(at(5));
        assert_eq!(cell.check(at(0)), Err(LossReason::Removed));
    }
}
