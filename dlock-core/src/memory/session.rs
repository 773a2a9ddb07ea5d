//! A client's side of a session at a memory store.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;

use super::backend::key;
use super::profile::{Expiry, LeaseScope};
use super::state::Look;
use super::store::MemoryStore;
use crate::backend::{
    ClaimRef, ClaimReply, ClaimRequest, Cookie, ReleaseRequest, Released, Renewed, Resolution, Session,
    SessionEvent,
};
use crate::clock::{Clock, Timestamp, sleep_until};
use crate::error::BackendError;
use crate::holder::Holder;
use crate::name::LockName;

pub(super) struct MemorySession {
    pub(super) store: MemoryStore,
    pub(super) number: u64,
    pub(super) ttl: Duration,
    pub(super) prefix: Arc<str>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) mailbox: Arc<Mailbox>,
}

/// What the store has to tell a session.
#[derive(Debug, Default)]
pub(super) struct Mailbox {
    events: Mutex<VecDeque<SessionEvent>>,
    arrived: Notify,
}

impl Mailbox {
    pub(super) fn put(&self, event: SessionEvent) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push_back(event);
        self.arrived.notify_one();
    }

    async fn take(&self) -> SessionEvent {
        loop {
            let next = self.events.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            if let Some(event) = next {
                return event;
            }
            self.arrived.notified().await;
        }
    }
}

impl MemorySession {
    fn key<'a>(&self, name: &'a LockName) -> Cow<'a, str> {
        key(&self.prefix, name)
    }

    /// Sleeps by the store's clock.
    async fn sleep(&self, until: Option<Timestamp>) {
        match until {
            Some(until) => sleep_until(self.store.clock(), until).await,
            None => std::future::pending().await,
        }
    }
}

#[async_trait]
impl Session for MemorySession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let since = self.clock.now();
        let name = request.claim.name.clone();
        let key = self.key(&name);
        self.store.state().claim(self.number, self.ttl, since, &key, request)
    }

    async fn wait(&self, claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        let key = self.key(&claim.name);
        self.store.state().requests.wait += 1;
        loop {
            // The future that is woken is made under the store's lock, so no change between look and sleep is missed.
            let look = self.store.state().look(self.number, &key, claim.id, cookie);
            match look {
                Look::Worth => return Ok(()),
                Look::Never => std::future::pending().await,
                Look::Sleep { changed, until } => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = self.sleep(until) => {}
                    }
                }
            }
        }
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let since = self.clock.now();
        let mut state = self.store.state();
        Ok(match self.store.profile().leases {
            LeaseScope::Session => {
                state.renew_session(self.number, since, claims.iter().map(|c| (self.key(&c.name), c.id)))
            }
            LeaseScope::Claim => state.renew_claims(since, claims.iter().map(|c| (self.key(&c.name), c.id))),
        })
    }

    async fn settled(&self, claim: &ClaimRef) -> Result<(), BackendError> {
        self.store.state().settled(self.number, &self.key(&claim.name), claim.id)
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.store.state().resolve(self.number, &self.key(&claim.name), claim.id)
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        let key = self.key(&request.claim.name);
        self.store.state().release(self.number, &key, request.claim.id, request.unpaid)
    }

    async fn event(&self) -> SessionEvent {
        self.mailbox.take().await
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        let mut state = self.store.state();
        state.requests.observe += 1;
        Ok(state.observe(&self.key(name)))
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        let leaving = leaving.iter().map(|r| (self.key(&r.claim.name), r.claim.id, r.unpaid));
        self.store.state().close(self.number, leaving)
    }
}

impl Drop for MemorySession {
    /// A connection that breaks. Where the store ends sessions by their lease it notices nothing.
    fn drop(&mut self) {
        let profile = self.store.profile();
        let mut state = self.store.state();
        match (profile.leases, profile.expiry) {
            (LeaseScope::Session, Expiry::Proven) => {}
            (LeaseScope::Session, Expiry::Settled) => state.disconnect(self.number),
            (LeaseScope::Claim, _) | (_, Expiry::Observed) => state.forget_client(self.number),
        }
    }
}

impl fmt::Debug for MemorySession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemorySession").field("number", &self.number).finish_non_exhaustive()
    }
}
