//! Faults on the way to a store: requests that are slow, fail, are lost, or are executed when nobody waits any more.
//!
//! [`inject`] puts itself between a lock manager and any backend; the [`Faults`] it gives say what happens to the
//! requests that pass. It makes no choices of its own, so a test replays exactly, and it sleeps by tokio's clock, so a
//! test runs in no time with `#[tokio::test(start_paused = true)]`, given that its managers read a
//! [`TestClock`](crate::TestClock).
//!
//! What is not on the way, but at the store or in the process, is elsewhere: sessions that end, claims that are removed
//! and disks that are wiped are methods of [`MemoryStore`](crate::memory::MemoryStore); a process that was frozen is
//! [`TestClock::jump`](crate::TestClock::jump).
//!
//! # What does your code do when the store is slow?
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{sync::Arc, time::Duration};
//! use dlock_core::{LockManager, TestClock, faults::{self, Op}, memory::{MemoryBackend, MemoryStore}};
//!
//! let (backend, faults) = faults::inject(MemoryBackend::new(&MemoryStore::new()));
//! let clock = Arc::new(TestClock::new()); // follows the paused clock of the test
//! let locks = LockManager::builder(backend).clock(clock).build()?;
//! let lock = locks.lock("orders/42")?;
//!
//! faults.delay(Op::Claim, Duration::from_secs(2));
//! let error = lock.acquire_timeout(Duration::from_secs(1)).await.unwrap_err(); // your code
//! assert!(error.is_transient());
//!
//! faults.heal();
//! assert!(lock.acquire().await?.is_held()); // the late request left nothing in the way
//! # Ok(()) }
//! ```
//!
//! # And when the network is cut under a lock that is held?
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//! use dlock_core::{LockManager, LossReason, TestClock, faults, memory::{MemoryBackend, MemoryStore}};
//!
//! let (backend, faults) = faults::inject(MemoryBackend::new(&MemoryStore::new()));
//! let locks = LockManager::builder(backend).clock(Arc::new(TestClock::new())).build()?;
//! let guard = locks.lock("orders/42")?.acquire().await?;
//!
//! faults.black_hole();
//! let worker = std::future::pending::<()>(); // your code
//! assert_eq!(guard.run_until_lost(worker).await, Err(LossReason::Expired));
//! # Ok(()) }
//! ```

mod script;
#[cfg(test)]
mod tests;

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::oneshot;

pub use script::{Fault, Faults, Op};

use crate::backend::{
    Backend, ClaimRef, ClaimReply, ClaimRequest, Cookie, Location, OpenOptions, Opened, ReleaseRequest,
    Released, Renewed, Resolution, Session, SessionEvent,
};
use crate::error::BackendError;
use crate::guarantees::Guarantees;
use crate::holder::Holder;
use crate::name::LockName;

/// Puts faults between a lock manager and `backend`. None until they are asked for.
///
/// # Examples
///
/// ```
/// use dlock_core::{LockManager, faults, memory::{MemoryBackend, MemoryStore}};
///
/// let (backend, faults) = faults::inject(MemoryBackend::new(&MemoryStore::new()));
/// let locks = LockManager::builder(backend).build()?;
/// faults.freeze(); // from here on the store answers nothing
/// # Ok::<(), dlock_core::ConfigError>(())
/// ```
pub fn inject(backend: impl Backend) -> (FaultyBackend, Faults) {
    let faults = Faults::new();
    (FaultyBackend { inner: Arc::new(backend), faults: faults.clone() }, faults)
}

/// A backend on whose way faults happen; made by [`inject`].
#[derive(Clone, Debug)]
pub struct FaultyBackend {
    inner: Arc<dyn Backend>,
    faults: Faults,
}

#[async_trait]
impl Backend for FaultyBackend {
    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }

    fn locate(&self, name: &LockName) -> Location {
        self.inner.locate(name)
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let inner = Arc::clone(&self.inner);
        let mut opened = carry(&self.faults, Op::Open, async move { inner.open(options).await }).await?;
        opened.session = Arc::new(FaultySession {
            inner: opened.session,
            faults: self.faults.clone(),
            endings_before: self.faults.endings(),
            end_told: AtomicBool::new(false),
        });
        Ok(opened)
    }

    async fn init(&self, options: OpenOptions) -> Result<Vec<String>, BackendError> {
        let inner = Arc::clone(&self.inner);
        carry(&self.faults, Op::Open, async move { inner.init(options).await }).await
    }
}

#[derive(Debug)]
struct FaultySession {
    inner: Arc<dyn Session>,
    faults: Faults,
    /// Counted when it was opened: an ending after that is its own.
    endings_before: u64,
    end_told: AtomicBool,
}

impl FaultySession {
    /// Sends one request: `send` owns all it needs, since it may be executed when the caller is gone.
    async fn request<T, F>(&self, op: Op, send: impl FnOnce(Arc<dyn Session>) -> F) -> Result<T, BackendError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        carry(&self.faults, op, send(Arc::clone(&self.inner))).await
    }
}

#[async_trait]
impl Session for FaultySession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        self.request(Op::Claim, |inner| async move { inner.claim(request).await }).await
    }

    async fn wait(&self, claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        match self.faults.next(Op::Wait) {
            Fault::None | Fault::DelayReply(_) => {}
            Fault::Delay(by) => tokio::time::sleep(by).await,
            Fault::Fail(kind) => return Err(injected(kind)),
            Fault::Unknown(_) => return Err(injected(crate::ErrorKind::Unknown)),
            // A wait changes nothing at the store: without an answer it makes no difference whether it arrived.
            Fault::DropReply | Fault::ExecuteLate(_) | Fault::BlackHole => {
                return std::future::pending().await;
            }
        }
        loop {
            let changed = self.faults.changed();
            if self.faults.is_cut_off() {
                changed.await;
                continue;
            }
            tokio::select! {
                biased;
                () = changed => {}
                answer = self.inner.wait(claim, cookie) => return answer,
            }
        }
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let claims = claims.to_vec();
        self.request(Op::Renew, |inner| async move { inner.renew(&claims).await }).await
    }

    async fn settled(&self, claim: &ClaimRef) -> Result<(), BackendError> {
        let claim = claim.clone();
        self.request(Op::Settled, |inner| async move { inner.settled(&claim).await }).await
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        let claim = claim.clone();
        self.request(Op::Resolve, |inner| async move { inner.resolve(&claim).await }).await
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        self.request(Op::Release, |inner| async move { inner.release(request).await }).await
    }

    async fn event(&self) -> SessionEvent {
        loop {
            let changed = self.faults.changed();
            if self.faults.is_cut_off() {
                changed.await;
                continue;
            }
            if self.faults.endings() > self.endings_before && !self.end_told.swap(true, Ordering::SeqCst) {
                return SessionEvent::Gone;
            }
            tokio::select! {
                biased;
                () = changed => {}
                event = self.inner.event() => return event,
            }
        }
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        let name = name.clone();
        self.request(Op::Observe, |inner| async move { inner.observe(&name).await }).await
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        self.request(Op::Close, |inner| async move { inner.close(leaving).await }).await
    }
}

fn injected(kind: crate::ErrorKind) -> BackendError {
    BackendError::new(kind, "a fault was injected here")
}

/// Carries one request to the store and its answer back, as the script says.
async fn carry<T: Send + 'static>(
    faults: &Faults,
    op: Op,
    request: impl Future<Output = Result<T, BackendError>> + Send + 'static,
) -> Result<T, BackendError> {
    let fault = faults.next(op);
    let answer = match fault {
        Fault::None | Fault::DelayReply(_) if !faults.is_congested() => request.await,
        Fault::None | Fault::DelayReply(_) => answer_of(send(faults, Duration::ZERO, request)).await,
        Fault::Delay(by) => answer_of(send(faults, by, request)).await,
        Fault::Fail(kind) => return Err(injected(kind)),
        Fault::Unknown(after) => {
            let answer = send(faults, after, request);
            if after.is_zero() {
                drop(answer.await);
            }
            return Err(injected(crate::ErrorKind::Unknown));
        }
        Fault::DropReply => {
            drop(send(faults, Duration::ZERO, request));
            return std::future::pending().await;
        }
        Fault::ExecuteLate(after) => {
            drop(send(faults, after, request));
            return std::future::pending().await;
        }
        Fault::BlackHole => return std::future::pending().await,
    };
    if let Fault::DelayReply(by) = fault {
        tokio::time::sleep(by).await;
    }
    // A server that is frozen by now, or cut off, does not answer either.
    loop {
        let changed = faults.changed();
        if !faults.is_cut_off() {
            return answer;
        }
        changed.await;
    }
}

/// Sends a request that arrives `after` that time, whether or not anybody still waits for the answer.
fn send<T: Send + 'static>(
    faults: &Faults,
    after: Duration,
    request: impl Future<Output = Result<T, BackendError>> + Send + 'static,
) -> oneshot::Receiver<Result<T, BackendError>> {
    let (reply, answer) = oneshot::channel();
    let faults = faults.clone();
    let ticket = after.is_zero().then(|| faults.queue_up());
    drop(tokio::spawn(async move {
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        loop {
            let changed = faults.changed();
            if !faults.is_frozen() {
                break;
            }
            changed.await;
        }
        drop(ticket);
        // Nobody may be there any more to hear it.
        drop(reply.send(request.await));
    }));
    answer
}

async fn answer_of<T>(answer: oneshot::Receiver<Result<T, BackendError>>) -> Result<T, BackendError> {
    match answer.await {
        Ok(answer) => answer,
        // The task is gone with its runtime.
        Err(_) => std::future::pending().await,
    }
}
