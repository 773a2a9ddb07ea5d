//! A memory store whose clients have a sabotaged backend.

use std::sync::Arc;

use async_trait::async_trait;
use dlock_core::Clock;
use dlock_core::faults::inject;
use dlock_core::memory::MemoryBackend;

use super::Sabotage;
use super::backend::{Common, SabotagedBackend};
use super::redlock::Redlock;
use crate::fixture::{Client, Fixture, Profile, Setup};
use crate::fixtures::MemoryFixture;

/// A memory store on simulated time, the backend of whose clients has a mistake.
#[derive(Debug)]
pub struct SabotagedFixture {
    how: Sabotage,
    store: MemoryFixture,
    /// The further nodes of [`Sabotage::MaximumOfCounters`].
    nodes: [MemoryFixture; 2],
    common: Arc<Common>,
}

impl SabotagedFixture {
    /// The kind of store in which the mistake shows, with the mistake.
    pub fn new(how: Sabotage) -> Self {
        let store = how.store();
        let common = Arc::new(Common::new(store.store().clone()));
        Self { how, store, nodes: [how.store(), how.store()], common }
    }

    /// The same kind of store, and the decorator without a mistake.
    pub fn sound(like: Sabotage) -> Self {
        let mut fixture = Self::new(like);
        fixture.how = Sabotage::None;
        fixture
    }
}

#[async_trait]
impl Fixture for SabotagedFixture {
    fn profile(&self) -> &Profile {
        self.store.profile()
    }

    async fn client(&self, setup: Setup) -> Client {
        let memory = MemoryBackend::new(self.store.store());
        if self.how == Sabotage::MaximumOfCounters {
            let [second, third] = &self.nodes;
            let nodes = [memory, MemoryBackend::new(second.store()), MemoryBackend::new(third.store())];
            return setup.client(self.profile(), Redlock::new(nodes, &self.common));
        }
        if self.how.is_of_the_client() {
            let (backend, faults) = inject(memory);
            let backend = SabotagedBackend::new(backend, self.how, &self.common);
            setup.client_with(self.profile(), backend, faults)
        } else {
            setup.client(self.profile(), SabotagedBackend::new(memory, self.how, &self.common))
        }
    }

    async fn residue(&self) -> Vec<String> {
        let mut residue = self.store.residue().await;
        for node in &self.nodes {
            residue.extend(node.residue().await);
        }
        residue
    }

    async fn footprint(&self) -> usize {
        self.store.footprint().await + self.common.records()
    }

    async fn remove(&self, name: &str) {
        self.store.remove(name).await;
    }

    async fn end_session(&self, client: &Client) {
        self.store.end_session(client).await;
    }

    async fn crash(&self, client: &Client) {
        self.store.crash(client).await;
    }

    async fn restart(&self) {
        self.store.restart().await;
    }

    fn clock(&self) -> Arc<dyn Clock> {
        self.store.clock()
    }
}
