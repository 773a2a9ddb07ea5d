//! The sabotaged backend: opens sabotaged sessions.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use dlock_core::memory::MemoryStore;
use dlock_core::{
    Backend, BackendError, ClaimId, FencingToken, Guarantees, Location, LockName, OpenOptions, Opened,
};

use super::Sabotage;
use super::session::SabotagedSession;

/// What all clients of one fixture share: what a mistaken backend would keep at its store.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) store: MemoryStore,
    pub(super) counter: AtomicU64,
    names: Mutex<BTreeSet<LockName>>,
    /// The last token granted of each name.
    granted: Mutex<HashMap<LockName, FencingToken>>,
    /// The token that each claim drew when it was asked for.
    drawn: Mutex<HashMap<ClaimId, FencingToken>>,
    sessions: Mutex<HashMap<String, Opened>>,
}

impl Common {
    pub(super) fn new(store: MemoryStore) -> Self {
        Self {
            store,
            counter: AtomicU64::new(0),
            names: Mutex::default(),
            granted: Mutex::default(),
            drawn: Mutex::default(),
            sessions: Mutex::default(),
        }
    }

    /// The records that were left besides those of the store.
    pub(super) fn records(&self) -> usize {
        locked(&self.names).len()
    }

    pub(super) fn record(&self, name: &LockName) {
        locked(&self.names).insert(name.clone());
    }

    pub(super) fn note_grant(&self, name: &LockName, token: FencingToken) {
        let mut granted = locked(&self.granted);
        let last = granted.entry(name.clone()).or_insert(token);
        *last = token.max(*last);
    }

    pub(super) fn last_granted(&self, name: &LockName) -> Option<FencingToken> {
        locked(&self.granted).get(name).copied()
    }

    /// The token that a claim draws when it is first asked for: one more than the last that was granted.
    pub(super) fn draw(&self, id: ClaimId, name: &LockName) -> FencingToken {
        let last = self.last_granted(name).map_or(0, FencingToken::get);
        *locked(&self.drawn).entry(id).or_insert(FencingToken::new(last + 1))
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A backend with a mistake.
#[derive(Clone, Debug)]
pub(super) struct SabotagedBackend {
    inner: Arc<dyn Backend>,
    how: Sabotage,
    common: Arc<Common>,
    /// Counts the grants of this client, over its sessions.
    grants: Arc<AtomicU64>,
}

impl SabotagedBackend {
    pub(super) fn new(inner: impl Backend, how: Sabotage, common: &Arc<Common>) -> Self {
        Self { inner: Arc::new(inner), how, common: Arc::clone(common), grants: Arc::default() }
    }
}

#[async_trait]
impl Backend for SabotagedBackend {
    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }

    fn locate(&self, name: &LockName) -> Location {
        match self.how {
            Sabotage::NamesAlias => self.inner.locate(&alias(name)),
            _ => self.inner.locate(name),
        }
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let earlier = locked(&self.common.sessions).get(&options.owner).cloned();
        let mut opened = match earlier.filter(|_| self.how == Sabotage::SessionContinues) {
            Some(opened) => opened,
            None => self.inner.open(options.clone()).await?,
        };
        locked(&self.common.sessions).insert(options.owner.clone(), opened.clone());
        if matches!(self.how, Sabotage::LateStopwatch | Sabotage::SessionContinues)
            && let Some(lease) = &mut opened.lease
        {
            lease.since = options.clock.now();
        }
        let grants = match self.how {
            Sabotage::TokenOfTheSession => Arc::default(),
            _ => Arc::clone(&self.grants),
        };
        opened.session = Arc::new(SabotagedSession::new(
            opened.session,
            self.how,
            Arc::clone(&self.common),
            grants,
            options,
            opened.ttl,
        ));
        Ok(opened)
    }
}

/// The lock that a name is mistaken for.
pub(super) fn alias(name: &LockName) -> LockName {
    LockName::new(name.as_str().to_ascii_lowercase()).expect("letters stay letters")
}
