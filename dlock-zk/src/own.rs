//! The nodes of claims that are held, and who is told when one is removed by somebody else.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use dlock_core::{ClaimId, SessionEvent};
use tokio::sync::mpsc;

/// The nodes that are watched for the holders' sake, by path.
#[derive(Debug)]
pub(crate) struct Own {
    nodes: Mutex<HashMap<String, ClaimId>>,
    events: mpsc::UnboundedSender<SessionEvent>,
}

impl Own {
    pub(crate) fn new(events: mpsc::UnboundedSender<SessionEvent>) -> Self {
        Self { nodes: Mutex::default(), events }
    }

    /// From now on it is told if the node goes.
    pub(crate) fn insert(&self, path: String, id: ClaimId) {
        self.nodes().insert(path, id);
    }

    /// From now on it is not told: we remove the node ourselves.
    pub(crate) fn forget(&self, path: &str) {
        self.nodes().remove(path);
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.nodes().contains_key(path)
    }

    pub(crate) fn paths(&self) -> Vec<String> {
        self.nodes().keys().cloned().collect()
    }

    /// The node is gone.
    pub(crate) fn gone(&self, path: &str) {
        if let Some(id) = self.nodes().remove(path) {
            self.tell(SessionEvent::Removed(id));
        }
    }

    /// The session is gone.
    pub(crate) fn all_gone(&self) {
        self.nodes().clear();
        self.tell(SessionEvent::Gone);
    }

    fn tell(&self, event: SessionEvent) {
        // Nobody listens to a session that has been closed.
        self.events.send(event).ok();
    }

    fn nodes(&self) -> MutexGuard<'_, HashMap<String, ClaimId>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
