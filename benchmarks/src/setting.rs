//! Where a measurement runs: the runtime, and whether as its main future or as a task.

use std::fmt;
use std::future::Future;

use dlock_core::memory::{LeaseScope, MemoryBackend, MemoryStore};
use dlock_core::{Backend, LockManager};
use tokio::runtime::{Builder, Runtime};

/// The runtime, and how the measuring future is run in it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setting {
    CurrentThread,
    CurrentThreadTask,
    MultiThread,
    MultiThreadTask,
}

impl Setting {
    pub(crate) const ALL: [Self; 4] =
        [Self::CurrentThread, Self::CurrentThreadTask, Self::MultiThread, Self::MultiThreadTask];

    /// Runs a future in a runtime of its own.
    pub(crate) fn run<F>(self, future: F) -> F::Output
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let runtime = self.runtime();
        match self {
            Self::CurrentThread | Self::MultiThread => runtime.block_on(future),
            Self::CurrentThreadTask | Self::MultiThreadTask => {
                let task = runtime.spawn(future);
                runtime.block_on(task).expect("a measurement neither panics nor is aborted")
            }
        }
    }

    fn runtime(self) -> Runtime {
        let mut builder = match self {
            Self::CurrentThread | Self::CurrentThreadTask => Builder::new_current_thread(),
            Self::MultiThread | Self::MultiThreadTask => Builder::new_multi_thread(),
        };
        builder.enable_all().build().expect("a runtime can be started")
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::CurrentThread => "current-thread, main future",
            Self::CurrentThreadTask => "current-thread, task",
            Self::MultiThread => "multi-thread, main future",
            Self::MultiThreadTask => "multi-thread, task",
        })
    }
}

/// A manager with the settings that users get by default.
pub(crate) fn manager(backend: impl Backend) -> LockManager {
    LockManager::builder(backend).owner("benchmark").build().expect("the defaults are valid")
}

pub(crate) fn memory(leases: LeaseScope) -> (MemoryStore, MemoryBackend) {
    let store = MemoryStore::builder().leases(leases).build();
    let backend = MemoryBackend::new(&store);
    (store, backend)
}
