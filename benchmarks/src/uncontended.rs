//! Acquire and release of one lock that nobody else wants.

use std::sync::Arc;

use dlock_core::Lock;
use dlock_core::memory::LeaseScope;
use tokio::sync::Mutex;

use crate::figures::{Figures, SHORT_ROUNDS};
use crate::null::NullBackend;
use crate::setting::{Setting, manager, memory};
use crate::table::{Unit, row, row_with_target, section};

const OPERATIONS: u32 = 200;
const TARGET: &str = "below 3 us";

/// One operation, repeated.
enum Subject {
    Mutex(Mutex<()>),
    Release(Lock),
    Drop(Lock),
    IsHeld(Lock),
}

pub(crate) fn run() {
    let lock = || manager(memory(LeaseScope::Session).1).lock("orders/42").expect("a valid name");
    for setting in Setting::ALL {
        section(&format!("UNCONTENDED, memory backend, {setting}"));
        row(
            "tokio::sync::Mutex, lock + unlock",
            Unit::Nanoseconds,
            measure(setting, Subject::Mutex(Mutex::new(()))),
        );
        for (what, subject) in [
            ("acquire + release().await", Subject::Release(lock())),
            ("acquire + drop", Subject::Drop(lock())),
        ] {
            row_with_target(what, Unit::Nanoseconds, measure(setting, subject), TARGET);
        }
    }
    section("UNCONTENDED, other, current-thread, main future");
    let others = [
        (
            "acquire + release().await, a lease per claim",
            Subject::Release(manager(memory(LeaseScope::Claim).1).lock("orders/42").expect("a valid name")),
        ),
        (
            "acquire + release().await, core over a store that does nothing",
            Subject::Release(manager(NullBackend).lock("orders/42").expect("a valid name")),
        ),
        ("is_held()", Subject::IsHeld(lock())),
    ];
    for (what, subject) in others {
        row(what, Unit::Nanoseconds, measure(Setting::CurrentThread, subject));
    }
}

fn measure(setting: Setting, subject: Subject) -> Figures {
    let subject = Arc::new(subject);
    setting.run(Figures::timed(SHORT_ROUNDS, move || {
        let subject = Arc::clone(&subject);
        async move {
            subject.repeat().await;
            OPERATIONS
        }
    }))
}

impl Subject {
    async fn repeat(&self) {
        match self {
            Self::Mutex(mutex) => {
                for _ in 0..OPERATIONS {
                    drop(mutex.lock().await);
                }
            }
            Self::Release(lock) => {
                for _ in 0..OPERATIONS {
                    let guard = lock.acquire().await.expect("the lock is free");
                    guard.release().await.expect("the store answers");
                }
            }
            Self::Drop(lock) => {
                for _ in 0..OPERATIONS {
                    drop(lock.acquire().await.expect("the lock is free"));
                }
            }
            Self::IsHeld(lock) => {
                let guard = lock.acquire().await.expect("the lock is free");
                for _ in 0..OPERATIONS {
                    std::hint::black_box(guard.is_held());
                }
            }
        }
    }
}
