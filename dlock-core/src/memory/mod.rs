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
