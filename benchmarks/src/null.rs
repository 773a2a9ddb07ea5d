//! A store that grants everything and remembers nothing, so that what is left is core's own cost.
//!
//! It breaks every promise a backend makes; core alone excludes, by its local queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Backend, BackendError, ClaimRef, ClaimReply, ClaimRequest, FencingToken, Grant, Guarantees, Lease,
    Location, LockName, OpenOptions, Opened, ReleaseRequest, Released, Renewal, Renewed, Resolution, Session,
};

#[derive(Debug)]
pub(crate) struct NullBackend;

#[derive(Debug)]
struct NullSession {
    options: OpenOptions,
    tokens: AtomicU64,
}

#[async_trait]
impl Backend for NullBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees::new("null").min_ttl(Duration::from_millis(10))
    }

    fn locate(&self, name: &LockName) -> Location {
        Location::new("null", name.as_str())
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let lease = Lease::new(options.now(), options.ttl);
        let session = NullSession { options, tokens: AtomicU64::new(0) };
        Ok(Opened::with_session_lease(Arc::new(session), lease))
    }
}

#[async_trait]
impl Session for NullSession {
    async fn claim(&self, _: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed) + 1;
        Ok(ClaimReply::Granted(Grant::new(FencingToken::new(token))))
    }

    async fn renew(&self, _: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let lease = Lease::new(self.options.now(), self.options.ttl);
        Ok(Renewed::session(Renewal::Extended(lease)))
    }

    async fn resolve(&self, _: &ClaimRef) -> Result<Resolution, BackendError> {
        Ok(Resolution::Absent)
    }

    async fn release(&self, _: ReleaseRequest) -> Result<Released, BackendError> {
        Ok(Released::Done)
    }

    async fn close(&self, _: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        Ok(())
    }
}
