//! Counters of one lock manager.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::lease::LossReason;

/// What a lock manager has done since it was built. A snapshot: read it again for newer figures.
///
/// Export it under the names of its fields to whatever metrics system you use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metrics {
    /// Guards handed out.
    pub acquired: u64,
    /// Guards released or dropped while still held.
    pub released: u64,
    /// Guards lost, whatever the reason.
    pub lost: u64,
    /// Of these, lost since the lease ran out.
    pub lost_expired: u64,
    /// Of these, lost since the store ended the session.
    pub lost_session_ended: u64,
    /// Of these, lost since the claim was removed from the store.
    pub lost_removed: u64,
    /// Of these, lost since the longest allowed hold was over.
    pub lost_max_hold: u64,
    /// Renewals that the store answered.
    pub renewals: u64,
    /// Renewals that failed or were not answered in time.
    pub renewals_failed: u64,
    /// Requests whose answer never came.
    pub unknown: u64,
    /// Sessions opened.
    pub sessions_opened: u64,
    /// Grants that were waited out for an earlier holder.
    pub settles: u64,
    /// Guards held now.
    pub held: u64,
    /// Tasks waiting now.
    pub waiting: u64,
}

/// The live counters; `held` and `waiting` are counted when a snapshot is taken.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) acquired: AtomicU64,
    pub(crate) released: AtomicU64,
    lost: [AtomicU64; 5],
    pub(crate) renewals: AtomicU64,
    pub(crate) renewals_failed: AtomicU64,
    pub(crate) unknown: AtomicU64,
    pub(crate) sessions_opened: AtomicU64,
    pub(crate) settles: AtomicU64,
}

impl Counters {
    pub(crate) fn lost(&self, reason: LossReason) {
        count(&self.lost[reason as usize]);
    }

    pub(crate) fn snapshot(&self, held: u64, waiting: u64) -> Metrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let lost = |reason: LossReason| read(&self.lost[reason as usize]);
        Metrics {
            acquired: read(&self.acquired),
            released: read(&self.released),
            lost: self.lost.iter().map(read).sum(),
            lost_expired: lost(LossReason::Expired),
            lost_session_ended: lost(LossReason::SessionEnded),
            lost_removed: lost(LossReason::Removed),
            lost_max_hold: lost(LossReason::MaxHold),
            renewals: read(&self.renewals),
            renewals_failed: read(&self.renewals_failed),
            unknown: read(&self.unknown),
            sessions_opened: read(&self.sessions_opened),
            settles: read(&self.settles),
            held,
            waiting,
        }
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
