//! A session: reads the clock, and has the store's thread do one request after the other.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use dlock_core::{
    BackendError, ClaimRef, ClaimReply, ClaimRequest, Clock, Holder, LockName, ReleaseRequest, Released,
    Renewed, Resolution, Session,
};

use crate::owner::{Abandoned, Owner};
use crate::store::Store;

/// One connection to the lock file, on a thread of its own, which ends when this is closed or dropped.
#[derive(Debug)]
pub(crate) struct SqliteSession {
    owner: Owner,
    clock: Arc<dyn Clock>,
    path: PathBuf,
}

impl SqliteSession {
    pub(crate) fn new(owner: Owner, clock: Arc<dyn Clock>, path: PathBuf) -> Self {
        Self { owner, clock, path }
    }

    /// A request that leaves nothing behind, or nothing that its answer would help with.
    async fn run<T: Send + 'static>(
        &self,
        abandoned: Abandoned,
        work: impl FnOnce(&mut Store) -> Result<T, BackendError> + Send + 'static,
    ) -> Result<T, BackendError> {
        self.owner.run(&self.path, abandoned, work, |_, _| ()).await
    }
}

#[async_trait]
impl Session for SqliteSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let since = self.clock.now();
        let claim = request.claim.clone();
        let undo = move |store: &mut Store, reply| {
            // P6: a grant that nobody waits for any more goes at once. Should that fail, `resolve` or its expiry do it.
            if let ClaimReply::Granted(_) = reply
                && let Err(error) = store.release(&claim)
            {
                tracing::debug!(name = %claim.name, %error, "an abandoned claim was not released");
            }
        };
        self.owner.run(&self.path, Abandoned::Skip, move |store| store.claim(&request, since), undo).await
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let since = self.clock.now();
        let claims = claims.to_vec();
        let answers = self.run(Abandoned::Skip, move |store| store.renew(&claims, since)).await?;
        Ok(Renewed::claims(answers))
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        let claim = claim.clone();
        self.run(Abandoned::Do, move |store| store.resolve(&claim)).await
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        // Nothing is ever owed here, so `unpaid` is zero.
        self.run(Abandoned::Do, move |store| store.release(&request.claim)).await
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        let name = name.clone();
        self.run(Abandoned::Skip, move |store| store.observe(&name)).await
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        self.owner.finish(&self.path, move |store| store.close(&leaving)).await
    }
}
