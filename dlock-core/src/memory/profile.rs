//! What a memory store behaves like.

use std::sync::Arc;
use std::time::Duration;

use super::store::MemoryStore;
use crate::clock::{Clock, TestClock};

/// What carries a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseScope {
    /// One lease per session, which ends with all its claims: etcd, ZooKeeper, PostgreSQL.
    Session,
    /// One lease per claim, and the store knows of no sessions: Redis, SQLite.
    Claim,
}

/// What happens to a claim that is willing to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Waiting {
    /// It joins a queue at the store, first come, first served: etcd, ZooKeeper.
    Fifo,
    /// It is told `Busy` and asks again: PostgreSQL, Redis, SQLite.
    Poll,
}

/// What becomes of a lease that is not renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expiry {
    /// The store ends it by its own clock, which proves that its holder is past its deadline: etcd, ZooKeeper, Redis.
    Proven,
    /// The store frees the lock when the session ends, which may be before its holder knows. It leaves a debt of the
    /// holder's lease, which the next one settles: PostgreSQL.
    Settled,
    /// The store ends nothing. Who comes next must have seen the record unchanged for a whole lease, and then takes it
    /// by comparison: DynamoDB, S3, and SQLite after a reboot.
    Observed,
}

/// The settings of a store, once it is built.
#[derive(Clone, Copy, Debug)]
pub(super) struct Profile {
    pub(super) leases: LeaseScope,
    pub(super) waiting: Waiting,
    pub(super) expiry: Expiry,
    pub(super) poll: Duration,
    pub(super) notify: bool,
    pub(super) events: bool,
    pub(super) max_ttl: Duration,
}

/// Builds a [`MemoryStore`] that behaves like a kind of store.
///
/// # Examples
///
/// ```
/// use dlock_core::memory::{Expiry, LeaseScope, MemoryStore, Waiting};
///
/// // As Redis does it: a lease per claim; waiters sleep until a message or the end of the holder's lease.
/// let store = MemoryStore::builder().leases(LeaseScope::Claim).waiting(Waiting::Poll).notify(true).build();
/// # let _ = (store, Expiry::Proven);
/// ```
#[derive(Clone, Debug)]
pub struct MemoryStoreBuilder {
    profile: Profile,
    clock: Option<Arc<dyn Clock>>,
}

impl MemoryStoreBuilder {
    pub(super) fn new() -> Self {
        Self {
            profile: Profile {
                leases: LeaseScope::Session,
                waiting: Waiting::Fifo,
                expiry: Expiry::Proven,
                poll: Duration::from_millis(100),
                notify: true,
                events: true,
                max_ttl: Duration::MAX,
            },
            clock: None,
        }
    }

    /// Sets what carries a lease; by default the session.
    pub fn leases(mut self, leases: LeaseScope) -> Self {
        self.profile.leases = leases;
        self
    }

    /// Sets what becomes of a claim that is willing to wait; by default it joins a queue.
    ///
    /// A queue needs sessions that the store ends: with [`LeaseScope::Claim`] or [`Expiry::Observed`] claims poll,
    /// whatever is set here.
    pub fn waiting(mut self, waiting: Waiting) -> Self {
        self.profile.waiting = waiting;
        self
    }

    /// Sets what becomes of a lease that is not renewed; by default the store ends it and that is proof.
    pub fn expiry(mut self, expiry: Expiry) -> Self {
        self.profile.expiry = expiry;
        self
    }

    /// Sets when a claim that was told `Busy` is to ask again at the latest; by default after 100 ms. Where waiters
    /// are woken ([`notify`](Self::notify)) and leases end by themselves, it is the end of the holder's lease instead.
    pub fn poll(mut self, interval: Duration) -> Self {
        self.profile.poll = interval;
        self
    }

    /// Sets whether a release wakes those who were told `Busy`; by default it does.
    pub fn notify(mut self, notify: bool) -> Self {
        self.profile.notify = notify;
        self
    }

    /// Sets whether a session is told of its end and of claims that were removed, as by a watch, or finds out with its
    /// next request; by default it is told.
    pub fn events(mut self, events: bool) -> Self {
        self.profile.events = events;
        self
    }

    /// Sets the longest lease that the store grants, whatever is asked for; by default there is none.
    pub fn max_ttl(mut self, ttl: Duration) -> Self {
        self.profile.max_ttl = ttl;
        self
    }

    /// Sets the clock by which the store ends leases: give it one of its own, so that it drifts and jumps apart from
    /// its clients. By default it follows tokio's clock, also a paused one.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Builds the store.
    pub fn build(self) -> MemoryStore {
        let mut profile = self.profile;
        if profile.leases == LeaseScope::Claim || profile.expiry == Expiry::Observed {
            profile.waiting = Waiting::Poll;
        }
        // Stops while the machine sleeps, which does no harm: then the clients, which count the sleep, lose first.
        let clock = self.clock.unwrap_or_else(|| Arc::new(TestClock::new()));
        MemoryStore::build(profile, clock)
    }
}
