//! Leases: renewed in time, dead when they should be, and not handed out when they are.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::faults::{Fault, Op};
use dlock_core::memory::{LeaseScope, MemoryBackend, MemoryStore};
use dlock_core::{
    AcquireError, Backend, BackendError, ClaimRef, ClaimReply, ClaimRequest, Clock, Cookie, Guarantees,
    Lease, Location, LockGuard, LockManager, LockName, LossReason, OpenOptions, Opened, ReleaseOutcome,
    ReleaseRequest, Released, Renewal, Renewed, Resolution, Session, TestClock, Timestamp, faults,
};
use tokio::time::sleep;

use crate::{TTL, faulty, lock, millis, secs, settings};

/// A store that opens sessions for as long as asked, and then grants and renews only `ttl`.
#[derive(Debug)]
struct Shrinking {
    inner: MemoryBackend,
    ttl: Duration,
}

#[derive(Debug)]
struct ShrinkingSession {
    inner: Arc<dyn Session>,
    ttl: Duration,
}

impl ShrinkingSession {
    fn shrink(&self, renewal: &mut Renewal) {
        if let Renewal::Extended(lease) = renewal {
            lease.ttl = self.ttl;
        }
    }
}

#[async_trait]
impl Backend for Shrinking {
    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }

    fn locate(&self, name: &LockName) -> Location {
        self.inner.locate(name)
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let mut opened = self.inner.open(options).await?;
        opened.session = Arc::new(ShrinkingSession { inner: opened.session, ttl: self.ttl });
        Ok(opened)
    }
}

#[async_trait]
impl Session for ShrinkingSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let mut reply = self.inner.claim(request).await?;
        if let ClaimReply::Granted(grant) = &mut reply {
            grant.lease = grant.lease.map(|lease| Lease::new(lease.since, self.ttl));
        }
        Ok(reply)
    }

    async fn wait(&self, claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        self.inner.wait(claim, cookie).await
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let mut renewed = self.inner.renew(claims).await?;
        renewed.session.iter_mut().for_each(|renewal| self.shrink(renewal));
        renewed.claims.iter_mut().for_each(|(_, renewal)| self.shrink(renewal));
        Ok(renewed)
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.inner.resolve(claim).await
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        self.inner.release(request).await
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        self.inner.close(leaving).await
    }
}

/// P4: a healthy store costs no guard, also one that grants less than it was asked for when it opened the session.
///
/// Opened for 10 s, then granted and renewed for 3 s: a renewal every third of what was opened would be too late.
#[tokio::test(start_paused = true)]
async fn a_smaller_lease_is_renewed_in_time() {
    for leases in [LeaseScope::Session, LeaseScope::Claim] {
        let store = MemoryStore::builder().leases(leases).build();
        let backend = Shrinking { inner: MemoryBackend::new(&store), ttl: secs(3) };
        let manager = settings(backend, "b").build().unwrap();
        let guard = lock(&manager).acquire().await.unwrap();
        sleep(secs(60)).await;
        assert_eq!(guard.loss(), None, "{leases:?}");
        let renewals = manager.metrics().renewals;
        assert!((50..=70).contains(&renewals), "{leases:?}: {renewals} renewals in 60 s");
    }
}

/// A clock that panics once if it is read too often, since a task that never gives way cannot be stopped otherwise.
#[derive(Debug)]
struct Counted {
    inner: TestClock,
    readings: AtomicU64,
}

const MANY_READINGS: u64 = 10_000;

impl Clock for Counted {
    fn now(&self) -> Timestamp {
        let before = self.readings.fetch_add(1, Ordering::Relaxed);
        assert_ne!(before, MANY_READINGS, "a task spins");
        self.inner.now()
    }
}

/// Other tasks run on: a guard that is dead, and whose release the store does not confirm, wakes the keeper no more.
///
/// Under claim leases the store is frozen, the guard is released, and its deadline passes.
#[tokio::test(start_paused = true)]
async fn the_keeper_does_not_spin_while_a_release_is_not_answered() {
    let store = MemoryStore::builder().leases(LeaseScope::Claim).build();
    let (backend, faults) = faults::inject(MemoryBackend::new(&store));
    let clock = Arc::new(Counted { inner: TestClock::new(), readings: AtomicU64::new(0) });
    let manager = settings(backend, "b").clock(clock.clone()).build().unwrap();
    let guard = lock(&manager).acquire().await.unwrap();
    let kept = manager.lock("y").unwrap().acquire().await.unwrap();
    faults.freeze();
    guard.release().await.unwrap_err();
    assert_eq!(kept.lost().await, LossReason::Expired);
    sleep(TTL * 10).await;
    let readings = clock.readings.load(Ordering::Relaxed);
    assert!(readings < MANY_READINGS / 10, "{readings} readings in ten leases: a task spins");

    faults.thaw();
    assert!(lock(&manager).acquire().await.unwrap().is_held());
}

/// Polls a future once, as a task does that is then not run for a while.
fn poll_once(future: &mut (impl Future<Output = Result<LockGuard, AcquireError>> + Unpin)) {
    let answer = pin!(future).poll(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(answer, Poll::Pending));
}

/// `acquire` hands out guards that are held: a grant that was lost on its way to its caller is asked for again.
///
/// The grant arrives while the caller's task is not run; when it is, the lease is long over.
#[tokio::test(start_paused = true)]
async fn a_grant_that_is_lost_on_its_way_is_not_handed_out() {
    let store = MemoryStore::new();
    let clock = TestClock::new();
    let (backend, faults) = faults::inject(MemoryBackend::new(&store));
    let manager = settings(backend, "b").clock(Arc::new(clock.clone())).build().unwrap();
    faults.delay(Op::Claim, millis(100));
    let lock = lock(&manager);
    let mut acquiring = Box::pin(lock.acquire());
    poll_once(&mut acquiring);
    sleep(secs(1)).await;
    assert_eq!(store.len(), 1, "granted, and not yet accepted");
    clock.jump(TTL);
    assert!(acquiring.await.unwrap().is_held());
}

/// After `close` nobody gets a guard: a caller whose grant is on its way is told that the manager is closed.
#[tokio::test(start_paused = true)]
async fn a_grant_on_its_way_does_not_survive_close() {
    let store = MemoryStore::new();
    let (manager, faults) = faulty(&store, "b");
    faults.delay(Op::Claim, millis(100));
    let lock = lock(&manager);
    let mut acquiring = Box::pin(lock.acquire());
    poll_once(&mut acquiring);
    sleep(secs(1)).await;
    assert_eq!(store.len(), 1, "granted, and not yet accepted");
    manager.close().await.unwrap();
    assert!(matches!(acquiring.await, Err(AcquireError::Closed { .. })));
    assert!(store.is_empty());
}

/// `close` kills every guard, whatever the store and the runtime say.
///
/// The runtime that the manager was first used in is gone, so nobody is left to tell the store.
#[test]
fn close_kills_guards_when_the_runtime_is_gone() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let manager = LockManager::builder(MemoryBackend::new(&MemoryStore::new())).build().unwrap();
    let first = runtime();
    let guard = first.block_on(lock(&manager).acquire()).unwrap();
    drop(first);
    assert!(guard.is_held());
    runtime().block_on(manager.close()).unwrap_err();
    assert_eq!(guard.loss(), Some(LossReason::Closed));
}

/// Dropping a guard only spawns: no code of a backend runs in `drop`, which may happen anywhere.
#[tokio::test(start_paused = true)]
async fn a_drop_sends_nothing_by_itself() {
    let (manager, faults) = faulty(&MemoryStore::new(), "b");
    let guard = lock(&manager).acquire().await.unwrap();
    drop(guard);
    assert_eq!(faults.count(Op::Release), 0);
    sleep(secs(1)).await;
    assert_eq!(faults.count(Op::Release), 1);
}

/// A store of several servers loses no lock with one of them: two renewals in a row are not answered (the first went to a
/// server that is frozen, the second to one that waits for it), and there is time for a third.
#[tokio::test(start_paused = true)]
async fn two_silent_renewals_cost_no_lock() {
    for leases in [LeaseScope::Session, LeaseScope::Claim] {
        let store = MemoryStore::builder().leases(leases).build();
        let (backend, faults) = faults::inject(MemoryBackend::new(&store));
        let manager = settings(backend, "b").build().unwrap();
        let guard = lock(&manager).acquire().await.unwrap();
        for round in 0..5 {
            faults.next_of(Op::Renew, 2, Fault::BlackHole);
            sleep(TTL * 2).await;
            assert_eq!(guard.loss(), None, "{leases:?}, round {round}");
        }
    }
}

/// A release is repeated while its caller waits: one that is not answered, and whose proof is not, is confirmed all the same.
#[tokio::test(start_paused = true)]
async fn a_silent_release_is_confirmed_in_the_end() {
    for leases in [LeaseScope::Session, LeaseScope::Claim] {
        let store = MemoryStore::builder().leases(leases).build();
        let (backend, faults) = faults::inject(MemoryBackend::new(&store));
        let manager = settings(backend, "b").request_timeout(TTL).build().unwrap();
        let (guard, kept) =
            (lock(&manager).acquire().await.unwrap(), manager.lock("y").unwrap().acquire().await.unwrap());
        faults.next_of(Op::Release, 1, Fault::BlackHole);
        faults.next_of(Op::Resolve, 1, Fault::BlackHole);
        assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released, "{leases:?}");
        assert_eq!(kept.loss(), None, "{leases:?}: one silent answer ended the session");
    }
}
