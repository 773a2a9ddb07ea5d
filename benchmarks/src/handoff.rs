//! From the call of `release` in one task to the return of `acquire` in another that waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dlock_core::memory::LeaseScope;
use dlock_core::{Clock, Lock, SystemClock, Timestamp};
use tokio::sync::Mutex;

use crate::figures::{Figures, SHORT_ROUNDS, nanos};
use crate::setting::{Setting, manager, memory};
use crate::table::{Unit, row, section};

/// Acquisitions by each of the two tasks in a round.
const ACQUISITIONS: u32 = 50;

/// What one of the two tasks acquires.
#[derive(Clone)]
enum Contender {
    Mutex(Arc<Mutex<()>>),
    Lock(Lock),
}

pub(crate) fn run() {
    for (setting, runtime) in
        [(Setting::CurrentThreadTask, "current-thread"), (Setting::MultiThreadTask, "multi-thread")]
    {
        section(&format!("HANDOFF between two tasks, memory backend, {runtime}"));
        let mutex = Contender::Mutex(Arc::new(Mutex::new(())));
        let (_, backend) = memory(LeaseScope::Session);
        let contender = || Contender::Lock(manager(backend.clone()).lock("orders/42").expect("a valid name"));
        let one = contender();
        let pairs = [
            ("tokio::sync::Mutex", [mutex.clone(), mutex]),
            ("release().await to acquire(), of one manager", [one.clone(), one]),
            ("release().await to acquire(), of two managers", [contender(), contender()]),
        ];
        for (what, pair) in pairs {
            row(
                what,
                Unit::Nanoseconds,
                setting.run(Figures::each(SHORT_ROUNDS, move || round(pair.clone()))),
            );
        }
    }
}

/// One round: nanoseconds for one handoff.
async fn round(pair: [Contender; 2]) -> f64 {
    let pass = Arc::new(Pass::default());
    let tasks = pair.into_iter().enumerate().map(|(me, contender)| {
        let pass = Arc::clone(&pass);
        tokio::spawn(async move { contender.contend(&pass, me).await })
    });
    let (mut total, mut handoffs) = (0.0, 0);
    for task in tasks.collect::<Vec<_>>() {
        let (time, count) = task.await.expect("the task does not panic");
        total += time;
        handoffs += count;
    }
    total / f64::from(handoffs)
}

/// What the two tasks know of each other.
#[derive(Default)]
struct Pass {
    /// Whether a task waits, or has finished.
    waits: [AtomicBool; 2],
    /// When the lock was last given up, and by whom: the reading, and in its last bit the task.
    given_up: AtomicU64,
}

impl Contender {
    /// Nanoseconds of all handoffs to this task, and their number.
    async fn contend(&self, pass: &Pass, me: usize) -> (f64, u32) {
        let (mut total, mut handoffs) = (0.0, 0);
        for _ in 0..ACQUISITIONS {
            pass.waits[me].store(true, Ordering::SeqCst);
            match self {
                Self::Mutex(mutex) => {
                    let guard = mutex.lock().await;
                    pass.taken(me, &mut total, &mut handoffs);
                    pass.before_release(me).await;
                    drop(guard);
                }
                Self::Lock(lock) => {
                    let guard = lock.acquire().await.expect("the store answers");
                    pass.taken(me, &mut total, &mut handoffs);
                    pass.before_release(me).await;
                    guard.release().await.expect("the store answers");
                }
            }
        }
        pass.waits[me].store(true, Ordering::SeqCst);
        (total, handoffs)
    }
}

impl Pass {
    fn taken(&self, me: usize, total: &mut f64, handoffs: &mut u32) {
        let now = SystemClock.now();
        self.waits[me].store(false, Ordering::SeqCst);
        let given_up = self.given_up.load(Ordering::SeqCst);
        if given_up != 0 && given_up & 1 != mark(me) {
            *total += nanos(now.since(Timestamp::from_nanos(given_up)));
            *handoffs += 1;
        }
    }

    /// Returns when the other task waits, so that what follows is a handoff.
    async fn before_release(&self, me: usize) {
        while !self.waits[1 - me].load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        self.given_up.store(SystemClock.now().as_nanos() & !1 | mark(me), Ordering::SeqCst);
    }
}

fn mark(task: usize) -> u64 {
    u64::from(task == 1)
}
