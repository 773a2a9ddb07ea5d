//! The server: its operator's side.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::profile::{MemoryStoreBuilder, Profile};
use super::session::Mailbox;
use super::state::{Requests, State};
use crate::backend::OpenOptions;
use crate::clock::Clock;
use crate::holder::Holder;

/// A store in this process: the server that managers share.
///
/// Clones are the same store. The methods here are its operator's: they act behind the back of every client, at once,
/// and are not counted as requests. Keys are lock names, after the backend's prefix if it has one.
///
/// # Examples
///
/// ```
/// use dlock_core::memory::MemoryStore;
///
/// let store = MemoryStore::new();
/// assert!(store.is_empty());
/// assert_eq!(store.holder_of("orders/42"), None);
/// ```
#[derive(Clone)]
pub struct MemoryStore(Arc<Server>);

struct Server {
    clock: Arc<dyn Clock>,
    profile: Profile,
    state: Mutex<State>,
}

/// The stores that URLs name. They stay, so that tokens rise for as long as the process lives (P2).
static NAMED: Mutex<BTreeMap<String, MemoryStore>> = Mutex::new(BTreeMap::new());

impl MemoryStore {
    /// A store of its own, with session leases, a queue and proven expiry, which follows tokio's clock.
    pub fn new() -> Self {
        Self::builder().build()
    }

    /// A store that behaves as it is told to.
    pub fn builder() -> MemoryStoreBuilder {
        MemoryStoreBuilder::new()
    }

    /// The store of this process that `memory:NAME` names; the empty name is that of `memory:`.
    pub fn named(name: &str) -> Self {
        let mut named = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
        named.entry(name.to_owned()).or_default().clone()
    }

    /// Ends every session of `owner` at once, as an operator who revokes a lease or kills a connection; says how many.
    ///
    /// Where claims carry their own leases, those of `owner` run out.
    pub fn expire_session(&self, owner: &str) -> usize {
        self.expire_sessions_where(|_, of| of == owner)
    }

    /// Ends every session at once; says how many.
    pub fn expire_all_sessions(&self) -> usize {
        self.expire_sessions_where(|_, _| true)
    }

    /// Ends each session for which `which(number, owner)` is true; says how many. Sessions are numbered from 1 in the
    /// order in which they were opened.
    pub fn expire_sessions_where(&self, which: impl FnMut(u64, &str) -> bool) -> usize {
        self.state().expire_sessions_where(which)
    }

    /// Removes the claim that holds a lock, as a hand that deletes its key; whether there was one.
    pub fn remove_claim(&self, key: impl AsRef<str>) -> bool {
        self.state().remove_holder(key.as_ref())
    }

    /// Loses every session, claim, queue and debt, as a server that restarts without its disk, but goes on counting
    /// tokens where it was. Nobody is told: sessions find out with their next request.
    pub fn forget(&self) {
        self.state().forget();
    }

    /// As [`forget`](Self::forget), and loses the count of tokens too, which breaks what every store is trusted with
    /// (assumption A2): tokens start again at 1.
    pub fn forget_tokens_too(&self) {
        let mut state = self.state();
        state.forget();
        state.restart_tokens();
    }

    /// Everything that is left at the store, one line each: claims that hold, claims that wait, and debts; sessions
    /// are not counted. Empty when every lock was given back.
    pub fn residue(&self) -> Vec<String> {
        self.state().residue()
    }

    /// Who holds a lock.
    pub fn holder_of(&self, key: impl AsRef<str>) -> Option<Holder> {
        self.state().observe(key.as_ref())
    }

    /// The number of names of which the store knows anything.
    pub fn len(&self) -> usize {
        self.state().len()
    }

    /// Whether the store knows of no name at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The sessions that are open, as number and owner. Where claims carry their own leases these are the clients that
    /// are connected.
    pub fn sessions(&self) -> Vec<(u64, String)> {
        self.state().sessions()
    }

    /// The requests that reached the store so far, by kind.
    pub fn requests(&self) -> Requests {
        self.state().requests
    }

    pub(super) fn build(profile: Profile, clock: Arc<dyn Clock>) -> Self {
        Self(Arc::new(Server { clock, profile, state: Mutex::new(State::new(profile)) }))
    }

    pub(super) fn profile(&self) -> &Profile {
        &self.0.profile
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.0.clock
    }

    /// The state as it is now: leases that have run out are gone.
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held would be a bug of this module; the maps are whole all the same.
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.advance(self.0.clock.now());
        state
    }

    pub(super) fn open(&self, options: &OpenOptions) -> (u64, Duration, Arc<Mailbox>) {
        let ttl = options.ttl.min(self.0.profile.max_ttl);
        let mailbox = Arc::new(Mailbox::default());
        let number = self.state().open(&options.owner, ttl, Arc::clone(&mailbox));
        (number, ttl, mailbox)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("profile", &self.0.profile).finish_non_exhaustive()
    }
}
