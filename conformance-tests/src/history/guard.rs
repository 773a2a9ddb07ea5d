//! Acquisitions and guards that write down what they see.

use dlock_core::{AcquireError, FencingToken, Lock, LockGuard, LossReason, ReleaseError, ReleaseOutcome};

use super::{AttemptId, History, Register, Seen};

/// An attempt under way. Dropped before it got the lock, it counts as given up.
#[derive(Debug)]
pub struct Asking {
    history: History,
    attempt: AttemptId,
    open: bool,
}

/// A guard that writes down what it is asked.
#[derive(Debug)]
#[must_use = "dropping a guard releases its lock"]
pub struct WatchedGuard {
    history: History,
    attempt: AttemptId,
    guard: LockGuard,
}

impl History {
    /// Waits for a lock as [`Lock::acquire`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Lock::acquire`].
    pub async fn acquire(&self, who: &str, lock: &Lock) -> Result<WatchedGuard, AcquireError> {
        let asking = self.ask(who, lock.name().as_str());
        Ok(asking.got(lock.acquire().await?))
    }

    /// Waits for a lock as [`Lock::acquire_timeout`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Lock::acquire_timeout`].
    pub async fn acquire_timeout(
        &self,
        who: &str,
        lock: &Lock,
        timeout: std::time::Duration,
    ) -> Result<WatchedGuard, AcquireError> {
        let asking = self.ask(who, lock.name().as_str());
        Ok(asking.got(lock.acquire_timeout(timeout).await?))
    }

    /// Tries for a lock as [`Lock::try_acquire`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Lock::try_acquire`].
    pub async fn try_acquire(&self, who: &str, lock: &Lock) -> Result<Option<WatchedGuard>, AcquireError> {
        let asking = self.ask(who, lock.name().as_str());
        Ok(lock.try_acquire().await?.map(|guard| asking.got(guard)))
    }
}

impl Asking {
    pub(super) fn new(history: History, attempt: AttemptId) -> Self {
        Self { history, attempt, open: true }
    }

    /// The acquisition returned this guard, just now.
    pub fn got(mut self, guard: LockGuard) -> WatchedGuard {
        self.open = false;
        self.history.see(self.attempt, Seen::Acquired { token: guard.token().get() });
        WatchedGuard { history: self.history.clone(), attempt: self.attempt, guard }
    }

    /// Which attempt this is.
    pub fn attempt(&self) -> AttemptId {
        self.attempt
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        if self.open {
            self.history.see(self.attempt, Seen::GaveUp);
        }
    }
}

impl WatchedGuard {
    /// [`LockGuard::is_held`], written down with the moment of the call.
    pub fn is_held(&self) -> bool {
        let called = self.history.now();
        let held = self.guard.is_held();
        self.history.see_at(called, self.attempt, Seen::Held(held));
        held
    }

    /// [`LockGuard::token`].
    pub fn token(&self) -> FencingToken {
        self.guard.token()
    }

    /// [`LockGuard::lost`], written down when it is told.
    pub async fn lost(&self) -> LossReason {
        let reason = self.guard.lost().await;
        self.history.see(self.attempt, Seen::Lost);
        reason
    }

    /// [`LockGuard::release`], written down with the moment of the call and what it found.
    ///
    /// # Errors
    ///
    /// Those of [`LockGuard::release`].
    pub async fn release(self) -> Result<ReleaseOutcome, ReleaseError> {
        self.history.see(self.attempt, Seen::ReleaseCalled);
        let outcome = self.guard.release().await;
        let seen = match &outcome {
            Ok(ReleaseOutcome::Released) => Seen::Released,
            Ok(_) => Seen::AlreadyLost,
            Err(_) => Seen::ReleaseUnknown,
        };
        self.history.see(self.attempt, seen);
        outcome
    }

    /// Writes to a fenced resource with the guard's token. True if the resource took the write.
    pub fn write(&self, register: &Register, value: u64) -> bool {
        let called = self.history.now();
        let taken_as = register.write(self.token().get(), value);
        self.history.see(self.attempt, Seen::Wrote { called, taken_as });
        taken_as.is_some()
    }

    /// Writes down that the holder's process died or was cut off for ever.
    pub fn crashed(&self) {
        self.history.see(self.attempt, Seen::Crashed);
    }

    /// Which attempt got this guard.
    pub fn attempt(&self) -> AttemptId {
        self.attempt
    }

    /// The guard itself, for what is not written down.
    pub fn guard(&self) -> &LockGuard {
        &self.guard
    }

    /// The guard itself, which is not written down any more.
    pub fn into_guard(self) -> LockGuard {
        self.guard
    }
}
