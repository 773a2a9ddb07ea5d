//! The guard: what a user holds while holding a lock.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::clock::sleep_until;
use crate::error::ReleaseError;
use crate::hold::Hold;
use crate::keeper::{expires_within, time_for_proof};
use crate::lease::{LossReason, margin};
use crate::metrics::count;
use crate::name::LockName;
use crate::shared::{Liveness, Shared};
use crate::token::FencingToken;

/// What became of a lock that was released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReleaseOutcome {
    /// It was held until now, and the store has confirmed that it is free.
    Released,
    /// It had been lost before: what was done since may have been done by a successor as well.
    AlreadyLost,
}

/// A held lock. Dropping it releases the lock in the background.
///
/// The guard tells by itself whether the lock is still held: [`is_held`](Self::is_held), [`lost`](Self::lost) and
/// [`run_until_lost`](Self::run_until_lost) compare the clock with the deadline of the lease at every call or poll, so
/// a process that was frozen past its lease, or a machine that slept, finds `false` at the first look after waking,
/// before any background task has run. Nobody else can have acquired the lock before that moment.
///
/// What no guard can do is to stop a side effect that is already on its way; for that, send the
/// [`token`](Self::token) along and let the resource refuse smaller ones.
///
/// # Drop
///
/// Never blocks and never panics, also outside a runtime and while one shuts down; there the lock stays taken until its
/// lease is over. A guard keeps its session alive after every [`LockManager`](crate::LockManager) handle is gone.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use dlock_core::{LockManager, ReleaseOutcome, memory::{MemoryBackend, MemoryStore}};
///
/// let locks = LockManager::builder(MemoryBackend::new(&MemoryStore::new())).build()?;
/// let guard = locks.lock("orders/42")?.acquire().await?;
/// println!("holding with token {}", guard.token());
///
/// // The work stops by itself when the lock is lost.
/// let done = guard.run_until_lost(async { 6 * 7 }).await?;
/// assert_eq!(done, 42);
///
/// assert_eq!(guard.release().await?, ReleaseOutcome::Released);
/// # Ok(()) }
/// ```
#[must_use = "a lock is released as soon as its guard is dropped: bind it to a variable"]
pub struct LockGuard {
    hold: Arc<Hold>,
    /// Set until the claim is given up.
    held: bool,
    live: Arc<Liveness>,
}

impl LockGuard {
    pub(crate) fn new(hold: Arc<Hold>, max_hold: Option<Duration>, live: Arc<Liveness>) -> Self {
        let shared = &live.0;
        count(&shared.counters.acquired);
        if let Some(longest) = max_hold {
            hold.expire_at(shared.now().plus(longest));
            shared.spawn(end_at_max_hold(Arc::clone(shared), Arc::clone(&hold)));
        }
        Self { hold, held: true, live }
    }

    /// The lock's name.
    pub fn name(&self) -> &LockName {
        &self.hold.claim.name
    }

    /// The fencing token of this acquisition: greater than that of every acquisition that was complete before this one
    /// began. It belongs to the guard and is never read again from the store.
    pub fn token(&self) -> FencingToken {
        self.hold.token
    }

    /// True while the lock is certainly held: no other guard of this name answers true at the same time (P1).
    ///
    /// Reads the clock, does no I/O. Once false it stays false.
    pub fn is_held(&self) -> bool {
        self.hold.check(self.shared().now()).is_ok()
    }

    /// How long the lock is certainly held from now if no further renewal succeeds; zero if it is lost.
    pub fn valid_for(&self) -> Duration {
        let now = self.shared().now();
        self.hold.check(now).map_or(Duration::ZERO, |deadline| deadline.since(now))
    }

    /// Why the lock is lost; none while it is held. Reads the clock, does no I/O.
    pub fn loss(&self) -> Option<LossReason> {
        self.hold.check(self.shared().now()).err()
    }

    /// Waits until the lock is lost, and says why. Resolves no later than the deadline at which somebody else may get
    /// the lock, as far as timers allow: after the machine slept they are late by up to 30 s, while
    /// [`is_held`](Self::is_held), and every poll of this, tell it at once.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    ///
    /// # Panics
    ///
    /// If the guard is still held and this is polled outside a tokio runtime, whose timers it needs.
    pub async fn lost(&self) -> LossReason {
        loop {
            let mut changed = pin!(self.hold.changed());
            changed.as_mut().enable();
            let deadline = match self.hold.check(self.shared().now()) {
                Ok(deadline) => deadline,
                Err(reason) => return reason,
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = sleep_until(&*self.shared().clock, deadline) => {}
            }
        }
    }

    /// Runs `work` as long as the lock is held.
    ///
    /// The clock is read before every poll of `work`, so no step of it begins after the lock was lost. A step that is
    /// being polled is not interrupted: keep steps short, and send the [`token`](Self::token) with every write.
    ///
    /// # Cancel safety
    ///
    /// As cancel safe as `work`: dropping this future drops it.
    ///
    /// # Panics
    ///
    /// If the guard is still held and this is polled outside a tokio runtime, whose timers it needs.
    ///
    /// # Errors
    ///
    /// The [`LossReason`] if the lock is lost before `work` is complete; `work` is dropped then.
    pub async fn run_until_lost<F: Future>(&self, work: F) -> Result<F::Output, LossReason> {
        let mut work = pin!(work);
        let mut lost = pin!(self.lost());
        std::future::poll_fn(|context| {
            // P3: the clock, not a task, says whether another step may begin.
            if let Some(reason) = self.loss() {
                return Poll::Ready(Err(reason));
            }
            if let Poll::Ready(reason) = lost.as_mut().poll(context) {
                return Poll::Ready(Err(reason));
            }
            work.as_mut().poll(context).map(Ok)
        })
        .await
    }

    /// Releases the lock and says what happened. After any answer, errors included, the guard is dead.
    ///
    /// One request to the store; repeated while it is not answered, for one TTL at most.
    ///
    /// # Cancel safety
    ///
    /// The release goes on in the background when this future is dropped after its first poll; before that the drop of
    /// the guard releases it.
    ///
    /// # Errors
    ///
    /// [`ReleaseError`] if the store refused it, or did not confirm within a TTL: then the session that keeps the claim alive
    /// is ended, and the claim runs out by itself. Also if the runtime is gone.
    pub async fn release(mut self) -> Result<ReleaseOutcome, ReleaseError> {
        self.held = false;
        let (reply, answer) = oneshot::channel();
        let shared = Arc::clone(self.shared());
        if !shared.release(&self.hold, Some(reply)) {
            return Ok(ReleaseOutcome::AlreadyLost);
        }
        let ttl = self.hold.incarnation.ttl;
        // By then the driver has an answer, or has given up.
        let deadline = shared.now().plus(time_for_proof(ttl) + margin(ttl));
        let timer = async {
            // Without a runtime there is no timer, and nobody who would wait for one.
            if Handle::try_current().is_ok() {
                sleep_until(&*shared.clock, deadline).await;
            }
        };
        let source = tokio::select! {
            biased;
            answer = answer => match answer {
                Ok(Ok(outcome)) => return Ok(outcome),
                Ok(Err(error)) => Some(error),
                // The driver is gone with its runtime, or the manager was closed meanwhile.
                Err(_) => None,
            },
            () = timer => None,
        };
        let source = source.or_else(|| shared.last_failure(self.name()));
        let expires_within = expires_within(&self.hold.incarnation);
        Err(ReleaseError { name: self.name().clone(), expires_within, source })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.live.0
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if self.held {
            self.shared().release(&self.hold, None);
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("name", &self.name().as_str())
            .field("token", &self.token().get())
            .field("held", &self.is_held())
            .finish_non_exhaustive()
    }
}

/// Gives the claim up when the longest hold is over; ends when the guard is gone, whatever the reason.
async fn end_at_max_hold(shared: Arc<Shared>, hold: Arc<Hold>) {
    loop {
        let mut changed = pin!(hold.changed());
        changed.as_mut().enable();
        let Ok(deadline) = hold.check(shared.now()) else { break };
        tokio::select! {
            biased;
            () = changed => {}
            () = sleep_until(&*shared.clock, deadline) => {}
        }
    }
    shared.lost(&hold);
}
