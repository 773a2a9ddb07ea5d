//! The way to a memory store.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::profile::{Expiry, LeaseScope, Waiting};
use super::session::MemorySession;
use super::store::MemoryStore;
use crate::backend::{Backend, Location, OpenOptions, Opened};
use crate::error::BackendError;
use crate::guarantees::{Basis, Fairness, Guarantees};
use crate::lease::Lease;
use crate::name::LockName;
use crate::url::{BackendUrl, UrlError, check_prefix};

/// A backend whose store is in this process.
///
/// # Examples
///
/// ```
/// use dlock_core::memory::{MemoryBackend, MemoryStore};
///
/// let store = MemoryStore::new();
/// let one = MemoryBackend::new(&store); // two managers over one store see each other's locks
/// let other = MemoryBackend::new(&store);
/// let third = MemoryBackend::named("orders"); // the store that `memory:orders` names
/// # let _ = (one, other, third);
/// ```
#[derive(Clone, Debug)]
pub struct MemoryBackend {
    store: MemoryStore,
    prefix: Arc<str>,
}

impl MemoryBackend {
    /// A backend over `store`.
    pub fn new(store: &MemoryStore) -> Self {
        Self { store: store.clone(), prefix: Arc::from("") }
    }

    /// A backend over the store of this process that has this name; the empty name is that of `memory:`.
    ///
    /// Named stores stay for as long as the process lives, so that their tokens go on rising.
    pub fn named(name: &str) -> Self {
        Self::new(&MemoryStore::named(name))
    }

    /// Reads `memory:` or `memory:NAME`, and the parameter `prefix`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if the name is not percent-encoded UTF-8 or the prefix has control characters.
    pub fn from_url(url: &mut BackendUrl) -> Result<Self, UrlError> {
        let mut backend = Self::named(&url.decoded_rest()?);
        if let Some(prefix) = url.take("prefix") {
            check_prefix(&prefix)?;
            backend = backend.prefix(&prefix);
        }
        Ok(backend)
    }

    /// Puts `prefix` before every name, so that several applications can share a store.
    pub fn prefix(mut self, prefix: &str) -> Self {
        self.prefix = Arc::from(prefix);
        self
    }

    /// The store.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }
}

/// The key of a name: where it lives in the store.
pub(super) fn key<'a>(prefix: &str, name: &'a LockName) -> Cow<'a, str> {
    if prefix.is_empty() { Cow::Borrowed(name.as_str()) } else { Cow::Owned(format!("{prefix}{name}")) }
}

#[async_trait]
impl Backend for MemoryBackend {
    fn guarantees(&self) -> Guarantees {
        let profile = self.store.profile();
        let poll =
            if profile.waiting == Waiting::Fifo || profile.notify { Duration::ZERO } else { profile.poll };
        let stays = || Basis::If("everybody is in this process: the store lives and ends with it".to_owned());
        let guarantees = Guarantees::new("memory")
            .exclusion(stays())
            .tokens(stays())
            .fairness(if profile.waiting == Waiting::Fifo { Fairness::Global } else { Fairness::Process })
            .min_ttl(Duration::from_millis(10))
            .takeover(1, poll);
        match profile.expiry {
            Expiry::Proven => guarantees,
            Expiry::Settled => guarantees
                .takeover(2, poll)
                .note("after a crash the next holder waits for the earlier one's lease"),
            Expiry::Observed => guarantees
                .takeover(1, poll * 2)
                .note("after a crash a lock is taken by who has seen it unchanged for a lease"),
        }
    }

    fn locate(&self, name: &LockName) -> Location {
        Location::new("memory", key(&self.prefix, name))
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let since = options.now();
        let (number, ttl, mailbox) = self.store.open(&options);
        let session = Arc::new(MemorySession {
            store: self.store.clone(),
            number,
            ttl,
            prefix: Arc::clone(&self.prefix),
            clock: options.clock,
            mailbox,
        });
        Ok(match self.store.profile().leases {
            LeaseScope::Session => Opened::with_session_lease(session, Lease::new(since, ttl)),
            LeaseScope::Claim => Opened::with_claim_leases(session, ttl),
        })
    }
}
