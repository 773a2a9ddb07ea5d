//! Bytes on the heap, and how often it is asked.
//!
//! The counting allocator counts one thread, so everything here runs on a current-thread runtime.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use allocation_counter::{AllocationInfo, measure};
use dlock_core::memory::LeaseScope;
use dlock_core::{AcquireError, Backend, LockGuard, LockManager};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::Mutex;

use crate::figures::{FEW_ROUNDS, Figures};
use crate::null::NullBackend;
use crate::setting::{manager, memory};
use crate::table::{Unit, row, row_with_target, section};

/// Locks held, and tasks waiting, at once.
const MANY: u32 = 10_000;
const TARGET: &str = "below 1.5 KB";

pub(crate) fn run() {
    section(&format!("HEAP of one held lock, of {MANY} held"));
    let held = [
        ("core and memory backend, a lease per session", held(|| memory(LeaseScope::Session).1)),
        ("core and memory backend, a lease per claim", held(|| memory(LeaseScope::Claim).1)),
        ("core over a store that does nothing", held(|| NullBackend)),
    ];
    for (what, figures) in held {
        row_with_target(what, Unit::Bytes, figures, TARGET);
    }

    section(&format!("HEAP of one waiter, of {MANY} waiting for one lock"));
    row("tokio::sync::Mutex, the boxed future", Unit::Bytes, waiting_for_mutex());
    let timeout = Duration::from_secs(60);
    row_with_target(
        "acquire(), the boxed future and core",
        Unit::Bytes,
        waiting(|lock| Box::pin(async move { lock.acquire().await })),
        TARGET,
    );
    row_with_target(
        "acquire_timeout(), the boxed future and core",
        Unit::Bytes,
        waiting(move |lock| Box::pin(async move { lock.acquire_timeout(timeout).await })),
        TARGET,
    );
    row_with_target("acquire() in a task of its own, task included", Unit::Bytes, waiting_tasks(), TARGET);

    section("HEAP, how often it is asked for one acquire + release().await");
    row("core and memory backend", Unit::Times, allocations(memory(LeaseScope::Session).1));
    row("core over a store that does nothing", Unit::Times, allocations(NullBackend));
}

type Waiting<'a> = Pin<Box<dyn Future<Output = Result<LockGuard, AcquireError>> + 'a>>;

/// A runtime, and a manager whose session is open.
fn open(backend: impl Backend) -> (Runtime, LockManager) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime can be started");
    let locks = manager(backend);
    runtime.block_on(locks.open()).expect("the store answers");
    (runtime, locks)
}

/// Bytes that are still there after `work`, for each of [`MANY`].
fn bytes_left(work: impl FnOnce()) -> f64 {
    each(measure(work).bytes_current)
}

fn each(total: i64) -> f64 {
    f64::from(i32::try_from(total).expect("less than two gigabytes")) / f64::from(MANY)
}

/// The name, the entry of the local queue, the hold, the guard, and what the store keeps if it is in this process.
fn held<B: Backend>(backend: impl Fn() -> B) -> Figures {
    let names: Vec<String> = (0..MANY).map(|number| format!("orders/{number:05}")).collect();
    Figures::each_blocking(FEW_ROUNDS, || {
        let (runtime, locks) = open(backend());
        let mut guards = Vec::new();
        bytes_left(|| {
            guards.reserve_exact(names.len());
            runtime.block_on(async {
                for name in &names {
                    let lock = locks.lock(name).expect("a valid name");
                    guards.push(lock.acquire().await.expect("the lock is free"));
                }
            });
        })
    })
}

/// Futures polled by hand: what a waiter costs where it is part of a greater future.
fn waiting(acquire: impl Fn(&dlock_core::Lock) -> Waiting<'_>) -> Figures {
    Figures::each_blocking(FEW_ROUNDS, || {
        let (runtime, locks) = open(memory(LeaseScope::Session).1);
        let lock = locks.lock("orders/42").expect("a valid name");
        let _held = runtime.block_on(lock.acquire()).expect("the lock is free");
        let mut waiters = Vec::with_capacity(usize::try_from(MANY).expect("it fits"));
        let _entered = runtime.enter();
        bytes_left(|| {
            for _ in 0..MANY {
                let mut waiter = acquire(&lock);
                poll(waiter.as_mut());
                waiters.push(waiter);
            }
        })
    })
}

fn waiting_for_mutex() -> Figures {
    Figures::each_blocking(FEW_ROUNDS, || {
        let mutex = Mutex::new(());
        let _held = mutex.try_lock().expect("nobody else holds it");
        let mut waiters = Vec::with_capacity(usize::try_from(MANY).expect("it fits"));
        bytes_left(|| {
            for _ in 0..MANY {
                let mut waiter = Box::pin(mutex.lock());
                poll(waiter.as_mut());
                waiters.push(waiter);
            }
        })
    })
}

/// Polls a future that waits.
fn poll<F: Future + ?Sized>(waiter: Pin<&mut F>) {
    let Poll::Pending = waiter.poll(&mut Context::from_waker(Waker::noop())) else {
        unreachable!("the lock is held, so nobody else gets it");
    };
}

fn waiting_tasks() -> Figures {
    Figures::each_blocking(FEW_ROUNDS, || {
        let (runtime, locks) = open(memory(LeaseScope::Session).1);
        let lock = locks.lock("orders/42").expect("a valid name");
        let _held = runtime.block_on(lock.acquire()).expect("the lock is free");
        bytes_left(|| {
            runtime.block_on(async {
                for _ in 0..MANY {
                    let lock = lock.clone();
                    tokio::spawn(async move { lock.acquire().await.map(drop) });
                }
                while locks.metrics().waiting < u64::from(MANY) {
                    tokio::task::yield_now().await;
                }
            });
        })
    })
}

fn allocations(backend: impl Backend) -> Figures {
    let (runtime, locks) = open(backend);
    let lock = locks.lock("orders/42").expect("a valid name");
    Figures::each_blocking(FEW_ROUNDS, || {
        let AllocationInfo { count_total, .. } = measure(|| {
            runtime.block_on(async {
                for _ in 0..MANY {
                    let guard = lock.acquire().await.expect("the lock is free");
                    guard.release().await.expect("the store answers");
                }
            });
        });
        each(i64::try_from(count_total).expect("it fits"))
    })
}
