//! Acquire, release and handoff through a server on loopback, for whichever store a URL names.

use std::time::Duration;

use dlock::{Clock, Lock, LockManager, SystemClock};
use tokio::sync::oneshot;

use crate::figures::{Figures, LONG_ROUNDS, nanos};
use crate::table::{Unit, row, row_with_target};

/// Of one round.
pub(crate) const OPERATIONS: u32 = 50;
pub(crate) const HANDOFFS: usize = 101;
/// Time for a waiter to line up.
pub(crate) const LINED_UP: Duration = Duration::from_millis(50);

/// The rows of dlock, by two managers with the settings that users get by default; what a handoff shall take, where that is
/// laid down.
pub(crate) async fn measure(url: &str, handoff_target: &str) {
    let [one, other] = [manager(url), manager(url)];
    one.init().await.expect("the servers run");
    let [lock, waiting] = [&one, &other].map(|locks| locks.lock("orders/42").expect("a valid name"));
    // A new Redis node grants nothing for a few seconds.
    drop(lock.acquire().await.expect("the servers run").release().await);
    let figures = Figures::timed(LONG_ROUNDS, || acquire_and_release(lock.clone())).await;
    row("dlock, acquire + release().await", Unit::Nanoseconds, figures);

    let mut handoffs = Vec::new();
    for _ in 0..HANDOFFS {
        handoffs.push(handoff(&lock, &waiting).await);
    }
    row_with_target(
        "dlock, release() to acquire() of another manager",
        Unit::Nanoseconds,
        Figures::of(handoffs),
        handoff_target,
    );
    for locks in [one, other] {
        locks.close().await.expect("the servers run");
    }
}

fn manager(url: &str) -> LockManager {
    let builder = dlock::builder(url).unwrap_or_else(|error| panic!("{error}"));
    builder.owner("benchmark").build().expect("the defaults are valid")
}

async fn acquire_and_release(lock: Lock) -> u32 {
    for _ in 0..OPERATIONS {
        let guard = lock.acquire().await.expect("the lock is free");
        guard.release().await.expect("the servers run");
    }
    OPERATIONS
}

/// Nanoseconds from the call of `release` to the return of `acquire` in another manager, which has waited for a while.
async fn handoff(lock: &Lock, waiting: &Lock) -> f64 {
    let guard = lock.acquire().await.expect("the lock is free");
    let (waiting, (told, acquired)) = (waiting.clone(), oneshot::channel());
    let waiter = tokio::spawn(async move {
        let guard = waiting.acquire().await.expect("the servers run");
        told.send(SystemClock.now()).ok();
        guard.release().await.expect("the servers run");
    });
    tokio::time::sleep(LINED_UP).await;
    let released = SystemClock.now();
    guard.release().await.expect("the servers run");
    let acquired = acquired.await.expect("the waiter gets the lock");
    waiter.await.expect("the waiter ends");
    nanos(acquired.since(released))
}
