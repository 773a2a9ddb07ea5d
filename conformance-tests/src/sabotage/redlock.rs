//! Redlock as it is often written: three nodes, a majority grants, and the token is the greatest of their counters.
//!
//! With one node out of reach at a time, another one each time, two acquisitions get the same token although no clock is
//! wrong and no node forgets anything.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::memory::MemoryBackend;
use dlock_core::{
    Backend, BackendError, Busy, ClaimRef, ClaimReply, ClaimRequest, Grant, Guarantees, Lease, Location,
    LockName, OpenOptions, Opened, ReleaseRequest, Released, Renewal, Renewed, Resolution, Session,
};

use super::backend::Common;

#[derive(Clone, Debug)]
pub(super) struct Redlock {
    nodes: [MemoryBackend; 3],
    common: Arc<Common>,
}

impl Redlock {
    pub(super) fn new(nodes: [MemoryBackend; 3], common: &Arc<Common>) -> Self {
        Self { nodes, common: Arc::clone(common) }
    }
}

#[async_trait]
impl Backend for Redlock {
    fn guarantees(&self) -> Guarantees {
        self.nodes[0].guarantees()
    }

    fn locate(&self, name: &LockName) -> Location {
        self.nodes[0].locate(name)
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let mut nodes = Vec::new();
        for node in &self.nodes {
            nodes.push(node.open(options.clone()).await?.session);
        }
        let ttl = options.ttl;
        let session = RedlockSession { nodes, common: Arc::clone(&self.common), options };
        Ok(Opened::with_claim_leases(Arc::new(session), ttl))
    }
}

#[derive(Debug)]
struct RedlockSession {
    nodes: Vec<Arc<dyn Session>>,
    common: Arc<Common>,
    options: OpenOptions,
}

impl RedlockSession {
    const MAJORITY: usize = 2;

    fn lease(&self) -> Lease {
        Lease::new(self.options.now(), self.options.ttl)
    }
}

#[async_trait]
impl Session for RedlockSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let lease = self.lease();
        let mut tokens = Vec::new();
        let out_of_reach = self.common.counter.fetch_add(1, Ordering::SeqCst) % 3;
        for (number, node) in (0_u64..).zip(&self.nodes) {
            if number == out_of_reach {
                continue;
            }
            if let ClaimReply::Granted(grant) = node.claim(request.clone()).await? {
                tokens.push(grant.token);
            }
        }
        match tokens.iter().max() {
            Some(token) if tokens.len() >= Self::MAJORITY => {
                Ok(ClaimReply::Granted(Grant::new(*token).lease(lease)))
            }
            _ => {
                self.release(ReleaseRequest::new(request.claim)).await?;
                Ok(ClaimReply::Busy(Busy::retry_after(Duration::from_millis(100))))
            }
        }
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let lease = self.lease();
        let mut extended = vec![0; claims.len()];
        for node in &self.nodes {
            for (count, (_, renewal)) in extended.iter_mut().zip(node.renew(claims).await?.claims) {
                *count += usize::from(matches!(renewal, Renewal::Extended(_)));
            }
        }
        let renewals = claims.iter().zip(extended).map(|(claim, count)| {
            (claim.id, if count >= Self::MAJORITY { Renewal::Extended(lease) } else { Renewal::Gone })
        });
        Ok(Renewed::claims(renewals.collect()))
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.release(ReleaseRequest::new(claim.clone())).await?;
        Ok(Resolution::Absent)
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        let mut released = Released::NotFound;
        for node in &self.nodes {
            if node.release(request.clone()).await? == Released::Done {
                released = Released::Done;
            }
        }
        Ok(released)
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        for node in &self.nodes {
            node.close(leaving.clone()).await?;
        }
        Ok(())
    }
}
