//! The memory backend: the executable specification of what a store does, and the store of every test and example.
//!
//! A [`MemoryStore`] is the server; a [`MemoryBackend`] is a way to it. Several managers that are built over one store
//! see each other's locks, as several processes do at a real server. By default the store behaves like etcd or
//! ZooKeeper: sessions that expire, a queue served first come, first served, and proof that an expired holder is over.
//! [`MemoryStore::builder`] makes it behave like the others, and its operator's hooks do what a hand, a crash or a
//! wiped disk does to a real one. [`faults`](crate::faults) adds what a network does.
//!
//! Every request costs one short critical section, so nothing here needs a server, a file or a background task. Leases
//! run out by the store's own clock and are looked at with each request.
//!
//! # What does your code do when the lock is lost?
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use dlock_core::{LockManager, LossReason, memory::{MemoryBackend, MemoryStore}};
//!
//! let store = MemoryStore::new();
//! let locks = LockManager::builder(MemoryBackend::new(&store)).build()?;
//! let guard = locks.lock("orders/42")?.acquire().await?;
//!
//! let worker = async { std::future::pending::<()>().await }; // your code
//! let operator = async { store.remove_claim("orders/42") }; // or expire_all_sessions, or forget
//! let (outcome, _) = tokio::join!(guard.run_until_lost(worker), operator);
//!
//! assert_eq!(outcome, Err(LossReason::Removed));
//! # Ok(()) }
//! ```
//!
//! # And when its process was frozen?
//!
//! Give the manager a [`TestClock`](crate::TestClock), and let it jump: the time passes, and no timer fires, no task
//! runs and no lease is renewed meanwhile. On tokio's paused clock every manager needs a test clock, which follows it;
//! the store does so by itself.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use std::{sync::Arc, time::Duration};
//! use dlock_core::{LockManager, TestClock, memory::{MemoryBackend, MemoryStore}};
//!
//! let (store, clock) = (MemoryStore::new(), TestClock::new());
//! let manager = |clock| LockManager::builder(MemoryBackend::new(&store)).clock(Arc::new(clock)).build();
//! let (frozen, other) = (manager(clock.clone())?, manager(TestClock::new())?);
//! let stale = frozen.lock("orders/42")?.acquire().await?;
//!
//! clock.jump(Duration::from_secs(60)); // a long pause of the process, or a night with the lid closed
//! assert!(!stale.is_held()); // at the first look, before anybody else can have it
//!
//! let fresh = other.lock("orders/42")?.acquire().await?;
//! assert!(fresh.token() > stale.token()); // so the resource can refuse what the stale one still sends
//! # Ok(()) }
//! ```
//!
//! # Limits
//!
//! The store lives in one process and is gone with it, together with everybody who could hold a lock in it. Tokens
//! rise as long as the process lives.

mod backend;
mod profile;
mod session;
mod state;
mod store;
#[cfg(test)]
mod tests;

pub use backend::MemoryBackend;
pub use profile::{Expiry, LeaseScope, MemoryStoreBuilder, Waiting};
pub use state::Requests;
pub use store::MemoryStore;
