//! Renewing many held locks.
//!
//! Tokio's clock is paused and moved by hand from one renewal to the next, so that nothing is waited for, while the
//! time that the work takes is read from the machine's clock. What is timed is all that the session's keeper does when a
//! renewal is due: it wakes, sends one request, and books the answer to every claim.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::memory::{LeaseScope, MemoryStore};
use dlock_core::{Clock, LockGuard, LockManager, SystemClock, TestClock};
use tokio::runtime::Builder;

use crate::figures::{Figures, LONG_ROUNDS, nanos};
use crate::setting::memory;
use crate::table::{Unit, row, row_with_target, section};

const HELD: u32 = 10_000;
const TTL: Duration = Duration::from_secs(9);
const INTERVAL: Duration = Duration::from_secs(3);

pub(crate) fn run() {
    section(&format!("RENEWAL of {HELD} held locks, memory backend, current-thread"));
    for (leases, scope) in
        [(LeaseScope::Session, "a lease per session"), (LeaseScope::Claim, "a lease per claim")]
    {
        let (requests, batch) = measure(leases);
        row_with_target(
            &format!("requests per interval (TTL/3), {scope}"),
            Unit::Times,
            requests,
            "1 for all locks",
        );
        row(&format!("one interval's work, {scope}"), Unit::Nanoseconds, batch);
    }
}

/// The renew requests of each interval, and nanoseconds of work in it.
fn measure(leases: LeaseScope) -> (Figures, Figures) {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime can be started");
    runtime.block_on(async {
        let (store, backend) = memory(leases);
        let locks = LockManager::builder(backend)
            .ttl(TTL)
            .clock(Arc::new(TestClock::new()))
            .build()
            .expect("the settings are valid");
        let mut guards = Vec::new();
        for number in 0..HELD {
            let lock = locks.lock(format!("orders/{number:05}")).expect("a valid name");
            guards.push(lock.acquire().await.expect("the lock is free"));
        }
        interval(&store).await;
        let (mut requests, mut times) = (Vec::new(), Vec::new());
        for _ in 0..LONG_ROUNDS {
            let before = store.requests().renew;
            times.push(interval(&store).await);
            let sent = u32::try_from(store.requests().renew - before).expect("it fits");
            requests.push(f64::from(sent));
        }
        if !guards.iter().all(LockGuard::is_held) {
            eprintln!("some of the locks were lost: the figures are those of the rest");
        }
        (Figures::of(requests), Figures::of(times))
    })
}

/// Lets one interval pass; nanoseconds of work in it.
async fn interval(store: &MemoryStore) -> f64 {
    let before = store.requests().renew;
    let start = SystemClock.now();
    // A little more, since tokio's timers have a resolution of a millisecond.
    tokio::time::advance(INTERVAL + Duration::from_millis(2)).await;
    while store.requests().renew == before {
        tokio::task::yield_now().await;
    }
    tokio::task::yield_now().await;
    nanos(SystemClock.now().since(start))
}
