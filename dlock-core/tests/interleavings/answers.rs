//! What callers are told: held by others, not known, not ready, and each only when it is so.

use std::error::Error;

use dlock_core::faults::{Fault, Op};
use dlock_core::memory::{MemoryStore, Waiting};
use dlock_core::{AcquireError, BackendError, ErrorKind};
use tokio::time::sleep;

use crate::{faulty, lock, millis, secs, sound};

/// `Timeout` says that others held the lock, also when the caller's time ends between two of them.
///
/// A guard of the same manager is held for most of the wait; the time ends while the store is told of its release.
#[tokio::test(start_paused = true)]
async fn a_wait_that_ends_during_a_release_is_a_timeout() {
    let (manager, faults) = faulty(&MemoryStore::new(), "b");
    let guard = lock(&manager).acquire().await.unwrap();
    faults.delay(Op::Release, millis(50));
    let waiter = lock(&manager);
    let waiting = tokio::spawn(async move { waiter.acquire_timeout(millis(100)).await.map(drop) });
    sleep(millis(80)).await;
    drop(guard);
    let error = waiting.await.unwrap().unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
}

/// A try is never told `Timeout`: what it cannot know in time is `Unavailable`.
///
/// The second try joins while the first is at the store; the answer is too old for it, and the next comes too late.
#[tokio::test(start_paused = true)]
async fn a_try_without_an_answer_of_its_own_is_unavailable() {
    let store = MemoryStore::new();
    let holder = sound(&store, "a");
    let _held = lock(&holder).acquire().await.unwrap();
    let (manager, faults) = faulty(&store, "b");
    manager.open().await.unwrap();
    faults.delay_reply(Op::Claim, millis(2900));
    let first = lock(&manager);
    let trying = tokio::spawn(async move { first.try_acquire().await.unwrap().is_none() });
    sleep(millis(200)).await;
    let error = lock(&manager).try_acquire().await.unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable { .. }), "{error:?}");
    assert!(trying.await.unwrap(), "the first try was answered");
}

/// Errors say why: a store that is not ready yet is named as the reason when the caller's time is over before it is.
#[tokio::test(start_paused = true)]
async fn the_reason_of_a_store_that_is_not_ready_is_told() {
    let (manager, faults) = faulty(&MemoryStore::new(), "b");
    faults.on(Op::Claim, |_| Fault::Fail(ErrorKind::NotReady { retry_after: secs(10) }));
    let error = lock(&manager).acquire_timeout(secs(2)).await.unwrap_err();
    assert!(matches!(error, AcquireError::Unavailable { .. }), "{error:?}");
    let source = error.source().and_then(|source| source.downcast_ref::<BackendError>()).unwrap();
    assert!(matches!(source.kind(), ErrorKind::NotReady { .. }), "{source:?}");
}

/// `None` is an answer of the store, or of somebody who waits here, and never one from the past.
///
/// The only waiter leaves; the holder released since the store was asked last. A try right behind the waiter must ask.
#[tokio::test(start_paused = true)]
async fn a_try_behind_the_last_waiter_asks_the_store() {
    let store = MemoryStore::builder().waiting(Waiting::Poll).notify(false).poll(secs(10)).build();
    let (a, b) = (sound(&store, "a"), sound(&store, "b"));
    let held = lock(&a).acquire().await.unwrap();
    let lock = lock(&b);
    let caller = tokio::spawn(async move {
        assert!(lock.acquire_timeout(secs(1)).await.unwrap_err().is_timeout());
        lock.try_acquire().await.unwrap().is_some()
    });
    sleep(millis(900)).await;
    held.release().await.unwrap();
    assert!(caller.await.unwrap(), "nobody holds the lock, and the try got none");
}
