//! Interleavings that once broke a promise, replayed through the public API on a paused clock.
//!
//! Each test names the promise and the order of events that broke it. Managers are seeded, so a test is the same every
//! time; what it asserts holds for every seed.

mod answers;
mod leases;
mod leftovers;
mod requests;

use std::sync::Arc;
use std::time::Duration;

use dlock_core::memory::{MemoryBackend, MemoryStore};
use dlock_core::{Backend, Lock, LockManager, LockManagerBuilder, TestClock, faults};

/// The default lease.
const TTL: Duration = Duration::from_secs(10);

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// The settings of a manager; another owner has another seed.
fn settings(backend: impl Backend, owner: &str) -> LockManagerBuilder {
    let seed = owner.bytes().fold(0, |seed, byte| seed * 256 + u64::from(byte));
    LockManager::builder(backend).owner(owner).seed(seed).clock(Arc::new(TestClock::new()))
}

/// A manager whose way to the store has no faults.
fn sound(store: &MemoryStore, owner: &str) -> LockManager {
    settings(MemoryBackend::new(store), owner).build().expect("the settings are sound")
}

/// A manager with faults on its way to the store.
fn faulty(store: &MemoryStore, owner: &str) -> (LockManager, faults::Faults) {
    let (backend, faults) = faults::inject(MemoryBackend::new(store));
    (settings(backend, owner).build().expect("the settings are sound"), faults)
}

/// The lock that all these tests are about.
fn lock(manager: &LockManager) -> Lock {
    manager.lock("x").expect("the name is legal")
}
