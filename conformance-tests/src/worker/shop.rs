//! What worker processes have in common.

use std::path::PathBuf;
use std::sync::Arc;

use dlock_core::SystemClock;
use tempfile::TempDir;

use super::{Order, Worker};
use crate::fixture::{Fixture, Profile};
use crate::history::History;

/// What the processes of one case share beside the store.
#[derive(Debug)]
pub(crate) struct Shop {
    pub(crate) history: History,
    pub(crate) register: PathBuf,
    _folder: TempDir,
}

impl Shop {
    /// The lock that all of them want.
    pub(crate) const LOCK: &str = "shared";

    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let register = folder.path().join("register");
        Self { history: History::of_process(Arc::new(SystemClock), 0), register, _folder: folder }
    }

    pub(crate) async fn workers(&self, fx: &dyn Fixture, count: u32) -> Vec<Worker> {
        let mut workers = Vec::new();
        for process in 1..=count {
            workers.push(Worker::start(fx, &self.history, process).await);
        }
        workers
    }

    pub(crate) fn contend(&self, tasks: u64, rounds: u64) -> Order {
        Order::Contend { name: Self::LOCK.to_owned(), register: self.register.clone(), tasks, rounds }
    }

    pub(crate) fn write(&self, value: u64) -> Order {
        Order::Write { name: Self::LOCK.to_owned(), register: self.register.clone(), value }
    }

    pub(crate) fn check(&self, profile: &Profile) {
        if let Err(violations) = self.history.check_with_takeover(profile.takeover()) {
            panic!("on {}:\n{violations}", profile.backend);
        }
    }
}
