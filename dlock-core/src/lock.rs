//! One lock of a manager: acquiring it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Location, Patience};
use crate::clock::sleep_until;
use crate::error::{AcquireError, BackendError, StoreError};
use crate::guard::LockGuard;
use crate::hold::locked;
use crate::holder::Holder;
use crate::name::LockName;
use crate::shared::Liveness;

/// A lock that can be acquired. Cheap to clone; made by [`LockManager::lock`](crate::LockManager::lock), without I/O.
///
/// Tasks of one manager that wait for one name queue in memory, first come, first served, behind one claim at the
/// store. Locks are not re-entrant: a second `acquire` by the task that holds the guard waits for ever.
///
/// # Cancel safety
///
/// Every future here may be dropped at any point: the place in the queue is given up, a grant that was on its way goes
/// to the next who waits, and nothing stays behind in the store (P6). Calling again joins the queue at its end.
#[derive(Clone)]
pub struct Lock {
    name: LockName,
    max_hold: Option<Duration>,
    live: Arc<Liveness>,
}

impl Lock {
    pub(crate) fn new(name: LockName, live: Arc<Liveness>) -> Self {
        let max_hold = live.0.options.max_hold;
        Self { name, max_hold, live }
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// Where the lock lives in the store. No I/O.
    pub fn locate(&self) -> Location {
        self.live.0.backend.locate(&self.name)
    }

    /// Limits how long a guard acquired through this handle is held, counted from the moment it is handed over.
    ///
    /// When the time is over the guard is lost with [`LossReason::MaxHold`](crate::LossReason::MaxHold) and the claim
    /// is released, although renewals would go on.
    #[must_use = "the limit applies to guards acquired through the returned handle"]
    pub fn max_hold(mut self, longest: Duration) -> Self {
        self.max_hold = Some(longest);
        self
    }

    /// Waits until the lock is held.
    ///
    /// A store that fails meanwhile is asked again, at growing intervals, until it has failed without a break for
    /// [`give_up_after`](crate::LockManagerBuilder::give_up_after).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; see [`Lock`].
    ///
    /// # Errors
    ///
    /// [`AcquireError::Unavailable`] and [`AcquireError::Unresolved`] when it gives up, [`AcquireError::Refused`] at
    /// once when the store says no for good, [`AcquireError::Closed`] when the manager is closed, and
    /// [`AcquireError::NoRuntime`] outside of one.
    pub async fn acquire(&self) -> Result<LockGuard, AcquireError> {
        let guard = self.obtain(Patience::Queue, None).await?;
        Ok(guard.expect("only tries are told that somebody else holds the lock"))
    }

    /// Takes the lock if it is free now; `None` if somebody holds it, or earlier callers of this manager wait for it.
    ///
    /// A lock that a crashed holder left is free only once it is proved that the holder's lease is over, which on some
    /// stores takes time that a try does not wait: [`settles_in`](Self::settles_in) tells. Callers that live on and try
    /// again get the lock then; a process that lives shorter than that must use
    /// [`acquire_timeout`](Self::acquire_timeout).
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; see [`Lock`].
    ///
    /// # Errors
    ///
    /// As [`acquire`](Self::acquire); a store that fails is asked again for the request time-out and no longer.
    /// [`AcquireError::Unresolved`], and never `None`, if what became of an earlier request is not known by then.
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>, AcquireError> {
        self.obtain(Patience::Try, Some(self.live.0.options.request_timeout)).await
    }

    /// Waits until the lock is held, but no longer than `timeout`. A zero `timeout` is one try.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe; see [`Lock`].
    ///
    /// # Errors
    ///
    /// [`AcquireError::Timeout`] if others held the lock for the whole time; else as [`acquire`](Self::acquire), with
    /// `timeout` as the limit.
    pub async fn acquire_timeout(&self, timeout: Duration) -> Result<LockGuard, AcquireError> {
        let guard = if timeout.is_zero() {
            self.try_acquire().await?
        } else {
            self.obtain(Patience::Queue, Some(timeout)).await?
        };
        guard.ok_or_else(|| AcquireError::Timeout { name: self.name.clone(), waited: timeout })
    }

    /// Who holds the lock, for people; `None` if it is free or the backend cannot tell. One request.
    ///
    /// The answer is out of date when it arrives: never decide by it whether to do something.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: it only reads.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be reached within the request time-out, or refuses.
    pub async fn holder(&self) -> Result<Option<Holder>, StoreError> {
        let shared = &self.live.0;
        let incarnation = shared.open().await?;
        let limit = shared.options.request_timeout;
        match tokio::time::timeout(limit, incarnation.session.observe(&self.name)).await {
            Ok(answer) => Ok(answer?),
            Err(_) => Err(BackendError::no_answer(limit).into()),
        }
    }

    /// After a try that returned `None`: the time until what it met may be taken, if that was not a living holder but
    /// what a crashed one left. `None` if the lock is in living hands, or free.
    ///
    /// When the time is over, try again: unless somebody took or renewed the lock meanwhile, that try gets it.
    pub fn settles_in(&self) -> Option<Duration> {
        let shared = &self.live.0;
        locked(&shared.watchlist).ripe_in(&self.name, shared.now())
    }

    async fn obtain(
        &self,
        patience: Patience,
        limit: Option<Duration>,
    ) -> Result<Option<LockGuard>, AcquireError> {
        let shared = &self.live.0;
        let deadline = limit.map(|limit| shared.now().plus(limit));
        loop {
            let Some(mut place) = shared.join(&self.name, patience)? else { return Ok(None) };
            let answer = match deadline {
                None => (&mut place.answer).await.ok(),
                Some(deadline) => tokio::select! {
                    biased;
                    answer = &mut place.answer => answer.ok(),
                    () = sleep_until(&*shared.clock, deadline) => Some(place.out_of_time()),
                },
            };
            let gone = || Err(AcquireError::NoRuntime { name: self.name.clone() });
            let Some(delivery) = answer.unwrap_or_else(gone)? else { return Ok(None) };
            // A grant that was lost on its way to a task which was long not polled is none.
            if delivery.is_held() {
                return Ok(Some(LockGuard::new(delivery.accept(), self.max_hold, Arc::clone(&self.live))));
            }
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock")
            .field("name", &self.name.as_str())
            .field("max_hold", &self.max_hold)
            .finish_non_exhaustive()
    }
}
