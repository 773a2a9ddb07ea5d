//! A session: hands requests to the task that owns the connection, and waits for releases.

use std::sync::Arc;

use async_trait::async_trait;
use dlock_core::{
    BackendError, ClaimRef, ClaimReply, ClaimRequest, Cookie, Holder, LockName, ReleaseRequest, Released,
    Renewed, Resolution, Session, SessionEvent,
};

use crate::owner::Owner;
use crate::signals::{Armed, Signals};

/// One connection, which carries all locks of the session.
#[derive(Debug)]
pub(crate) struct PostgresSession {
    owner: Owner,
    signals: Arc<Signals>,
}

impl PostgresSession {
    pub(crate) fn new(owner: Owner, signals: Arc<Signals>) -> Self {
        Self { owner, signals }
    }
}

#[async_trait]
impl Session for PostgresSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        self.owner.claim(request).await
    }

    async fn wait(&self, _claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        let Some(armed) = cookie.get::<Armed>() else { return std::future::pending().await };
        self.signals.listen();
        armed.signal().await;
        Ok(())
    }

    async fn renew(&self, _claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        self.owner.renew().await
    }

    async fn settled(&self, claim: &ClaimRef) -> Result<(), BackendError> {
        self.owner.settled(claim.clone()).await
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.owner.remove(claim.clone()).await.map(|()| Resolution::Absent)
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        self.owner.release(request).await
    }

    async fn event(&self) -> SessionEvent {
        self.owner.ended().await;
        SessionEvent::Gone
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        self.owner.observe(name.clone()).await
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        self.owner.close(leaving).await
    }
}
