//! A granted claim, and the incarnation of the session that it belongs to.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::backend::{ClaimId, ClaimRef, Grant, Opened, ReleaseRequest, Session};
use crate::clock::Timestamp;
use crate::lease::{DeadlineCell, LossReason, renewal_interval};
use crate::token::FencingToken;

/// One life of a session. A re-opened session is another incarnation; a grant, an event and a release belong to the one
/// under which their request was sent.
#[derive(Debug)]
pub(crate) struct Incarnation {
    pub(crate) session: Arc<dyn Session>,
    pub(crate) ttl: Duration,
    /// The time between two renewals, in nanoseconds: a third of the smallest lease that was granted last.
    interval: AtomicU64,
    /// Tells the keeper that the next renewal would come late for a claim.
    pub(crate) hurry: Notify,
    /// The time from which the first renewal is counted.
    pub(crate) since: Timestamp,
    /// The deadline shared by all claims, where the session carries the lease.
    pub(crate) lease: Option<Arc<DeadlineCell>>,
    /// The granted claims, from the grant until the store has confirmed that they are gone. Dead ones are not renewed.
    claims: Mutex<BTreeMap<ClaimId, Arc<Hold>>>,
    over: AtomicBool,
    ended: Notify,
}

/// A granted claim. Shared by the guard, the local queue and the keeper.
#[derive(Debug)]
pub(crate) struct Hold {
    pub(crate) claim: ClaimRef,
    pub(crate) token: FencingToken,
    pub(crate) incarnation: Arc<Incarnation>,
    /// The guard's own deadline, for `max_hold`; it also carries every loss, so that a loss is final.
    own: DeadlineCell,
    /// The deadline of the lease: the session's, or the claim's.
    pub(crate) lease: Arc<DeadlineCell>,
    /// What an earlier holder left is waited out at this moment; zero where nothing was owed.
    pub(crate) settle_until: Timestamp,
    changed: Notify,
}

impl Incarnation {
    pub(crate) fn new(opened: Opened, now: Timestamp) -> Self {
        Self {
            since: opened.lease.map_or(now, |lease| lease.since),
            lease: opened.lease.map(|lease| Arc::new(DeadlineCell::new(lease.deadline()))),
            session: opened.session,
            ttl: opened.ttl,
            interval: AtomicU64::new(nanos(renewal_interval(opened.ttl))),
            hurry: Notify::new(),
            claims: Mutex::default(),
            over: AtomicBool::new(false),
            ended: Notify::new(),
        }
    }

    /// Books a grant so that it is renewed; none if the incarnation is over, or if the backend left out the lease that
    /// it said each claim would carry.
    pub(crate) fn admit(
        self: &Arc<Self>,
        claim: ClaimRef,
        grant: &Grant,
        now: Timestamp,
    ) -> Option<Arc<Hold>> {
        let lease = match (&self.lease, grant.lease) {
            (Some(shared), _) => Arc::clone(shared),
            (None, Some(lease)) => Arc::new(DeadlineCell::new(lease.deadline())),
            (None, None) => return None,
        };
        let settle_until = if grant.owed.is_zero() { Timestamp::from_nanos(0) } else { now.plus(grant.owed) };
        let hold = Arc::new(Hold {
            claim,
            token: grant.token,
            incarnation: Arc::clone(self),
            own: DeadlineCell::never(),
            lease,
            settle_until,
            changed: Notify::new(),
        });
        let mut claims = locked(&self.claims);
        // Read under the lock under which `end` takes the claims: whoever is in the map is told.
        if self.is_over() {
            return None;
        }
        claims.insert(hold.claim.id, Arc::clone(&hold));
        drop(claims);
        // Renewals come every interval; a grant that was long on its way, or for less time than others, may not live
        // until the next and one that fails.
        if let Some(lease) = grant.lease
            && lease.since.plus(lease.ttl / 3 * 2) < now.plus(self.interval())
        {
            self.hurry.notify_one();
        }
        Some(hold)
    }

    /// The time between two renewals.
    pub(crate) fn interval(&self) -> Duration {
        Duration::from_nanos(self.interval.load(Ordering::SeqCst))
    }

    /// How long the answer to a renewal is waited for after so many failures in a row: less the first time, so that three
    /// attempts fit into what is left of a lease. The first may go to a server that is frozen, the second to one that waits
    /// for that one.
    pub(crate) fn patience(&self, failures: u32) -> Duration {
        if failures == 0 { self.interval() * 2 / 3 } else { self.interval() }
    }

    /// Renews as often as the smallest lease of the last answer needs.
    pub(crate) fn set_smallest_lease(&self, ttl: Duration) {
        self.interval.store(nanos(renewal_interval(ttl.min(self.ttl))), Ordering::SeqCst);
    }

    /// Forgets a claim that is gone from the store.
    pub(crate) fn forget(&self, id: ClaimId) {
        locked(&self.claims).remove(&id);
    }

    pub(crate) fn hold(&self, id: ClaimId) -> Option<Arc<Hold>> {
        locked(&self.claims).get(&id).cloned()
    }

    pub(crate) fn holds(&self) -> Vec<Arc<Hold>> {
        locked(&self.claims).values().cloned().collect()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    /// Ends the incarnation: every claim dies here, before anything is said to the store and before anybody can see that
    /// it is over. None if it was over already.
    pub(crate) fn end(&self, reason: LossReason) -> Option<Vec<Arc<Hold>>> {
        let mut claims = locked(&self.claims);
        if self.is_over() {
            return None;
        }
        if let Some(lease) = &self.lease {
            lease.lose(reason);
        }
        let holds: Vec<_> = std::mem::take(&mut *claims).into_values().collect();
        for hold in &holds {
            hold.lose(reason);
        }
        self.over.store(true, Ordering::SeqCst);
        drop(claims);
        self.ended.notify_waiters();
        Some(holds)
    }

    /// Resolves when the incarnation is over.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn ended(&self) {
        let mut ended = pin!(self.ended.notified());
        ended.as_mut().enable();
        if !self.is_over() {
            ended.await;
        }
    }
}

impl Hold {
    /// The deadline if the claim is certain at `now`, else why not. P3: reads the given clock, nothing else.
    pub(crate) fn check(&self, now: Timestamp) -> Result<Timestamp, LossReason> {
        let own = self.own.check_as(now, LossReason::MaxHold)?;
        match self.lease.check(now) {
            Ok(lease) => Ok(own.min(lease)),
            Err(reason) => {
                self.own.lose(reason);
                // Whoever was first has named the reason, and it stays.
                self.own.check(now)
            }
        }
    }

    /// Kills the hold locally; true for the caller that did it.
    pub(crate) fn lose(&self, reason: LossReason) -> bool {
        let first = self.own.lose(reason);
        self.changed.notify_waiters();
        first
    }

    /// Starts the guard's own deadline.
    pub(crate) fn expire_at(&self, deadline: Timestamp) {
        self.own.set_first(deadline);
    }

    /// What is still owed to an earlier holder.
    pub(crate) fn unpaid(&self, now: Timestamp) -> Duration {
        self.settle_until.since(now)
    }

    /// The request that gives this claim up, with what is still owed.
    pub(crate) fn release_request(&self, now: Timestamp) -> ReleaseRequest {
        ReleaseRequest::new(self.claim.clone()).unpaid(self.unpaid(now))
    }

    /// Resolves at the next change that is not a renewal. Enable it before the check that it is to follow.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Locks a mutex; a panic elsewhere does not make its state unusable, since every change under a lock is complete.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
