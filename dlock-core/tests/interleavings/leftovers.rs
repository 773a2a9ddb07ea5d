//! What a withdrawal leaves at the store: its debts (P1), and else nothing for longer than it says (P6).

use dlock_core::ErrorKind;
use dlock_core::faults::{Fault, Op};
use dlock_core::memory::{Expiry, LeaseScope, MemoryBackend, MemoryStore};
use dlock_core::{ReleaseError, ReleaseOutcome, faults};
use tokio::time::{Instant, sleep, timeout};

use crate::{TTL, faulty, lock, millis, secs, settings, sound};

/// P1: a claim that became first in line unawares leaves the debt it inherited, also when the store tells of it only
/// while the claim is withdrawn.
///
/// The store ends A's session early and promotes B's claim, owing A's lease; B's watch is dead. B's waiter times out; the
/// release is lost, `resolve` answers "granted, owed", and B releases again. C is next, while A still counts on its lease.
#[tokio::test(start_paused = true)]
async fn a_debt_that_is_found_while_withdrawing_is_left_to_the_next() {
    let store = MemoryStore::builder().expiry(Expiry::Settled).events(false).build();
    let (a, c) = (sound(&store, "a"), sound(&store, "c"));
    let (b, faults) = faulty(&store, "b");
    let held = lock(&a).acquire().await.unwrap();
    faults.on(Op::Wait, |_| Fault::BlackHole);
    faults.fail_next(Op::Release, 1, ErrorKind::Unknown);

    let waiter = lock(&b);
    let waiting = tokio::spawn(async move { waiter.acquire_timeout(secs(1)).await.map(drop) });
    sleep(millis(500)).await;
    assert_eq!(store.expire_session("a"), 1);
    waiting.await.unwrap().unwrap_err();

    let next = lock(&c).acquire().await.unwrap();
    assert_eq!((faults.count(Op::Release), faults.count(Op::Resolve)), (2, 1), "the interleaving took place");
    assert!(next.is_held() && !held.is_held(), "two guards of one name answer true");
}

/// P6: a claim of which the store does not tell what became of it is not kept alive by its session's renewals.
///
/// The claim is executed and its answer lost, every `resolve` fails, renewals work; nobody waits any more.
#[tokio::test(start_paused = true)]
async fn an_unproved_claim_ends_its_session() {
    let store = MemoryStore::new();
    let (b, faults) = faulty(&store, "b");
    faults.drop_reply_next(Op::Claim, 1);
    faults.on(Op::Resolve, |_| Fault::Fail(ErrorKind::Unavailable));
    lock(&b).acquire_timeout(secs(5)).await.unwrap_err();
    assert_eq!(store.len(), 1, "the lost claim was executed");

    let other = sound(&store, "c");
    let next = timeout(TTL * 2, lock(&other).acquire()).await;
    assert!(next.expect("an orphan keeps the lock").unwrap().is_held());
}

/// P6: a release that is never confirmed frees the lock within the time that its error names.
///
/// Releases fail, or neither they nor `resolve` are answered, while renewals work, so only the end of the session ends the
/// claim. The store does not always hear of that end; then the lease has to run out.
#[tokio::test(start_paused = true)]
async fn an_unproved_release_ends_its_session_in_the_time_it_says() {
    let failing = Fault::Fail(ErrorKind::Unavailable);
    for (release, close) in
        [(failing, Fault::None), (failing, Fault::BlackHole), (Fault::BlackHole, Fault::BlackHole)]
    {
        let store = MemoryStore::new();
        let (b, faults) = faulty(&store, "b");
        let held = lock(&b).acquire().await.unwrap();
        faults.on_each(move |op, _| match op {
            Op::Release | Op::Resolve => release,
            Op::Close => close,
            _ => Fault::None,
        });
        let error: ReleaseError = held.release().await.unwrap_err();

        let other = sound(&store, "c");
        let next = timeout(error.expires_within(), lock(&other).acquire()).await;
        assert!(next.is_ok(), "an orphan keeps the lock: {release:?}, {close:?}");
        assert!(next.unwrap().unwrap().is_held());
    }
}

/// P5: `Released` is said only when the store has confirmed it, not when the claim must have run out by itself.
///
/// Under claim leases the answer to the release is lost and every `resolve` fails until the lease is over; the caller is
/// patient enough to be there still.
#[tokio::test(start_paused = true)]
async fn a_release_that_only_time_ends_is_not_confirmed() {
    let store = MemoryStore::builder().leases(LeaseScope::Claim).build();
    let (backend, faults) = faults::inject(MemoryBackend::new(&store));
    let b = settings(backend, "b").ttl(secs(1)).request_timeout(secs(60)).build().unwrap();
    let held = lock(&b).acquire().await.unwrap();
    faults.on(Op::Release, |_| Fault::Fail(ErrorKind::Unknown));
    faults.on(Op::Resolve, |_| Fault::Fail(ErrorKind::Unavailable));
    let started = Instant::now();
    held.release().await.unwrap_err();
    assert!(started.elapsed() >= millis(900), "it did not wait for the proof");

    faults.heal();
    assert_eq!(lock(&b).acquire().await.unwrap().release().await.unwrap(), ReleaseOutcome::Released);
}
