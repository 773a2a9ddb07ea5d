//! The background runtime on which servers are driven and proxies run.
//!
//! Tests run on runtimes of every flavour, some with a paused clock, and a pool outlives the runtime of each of them. So
//! nothing here belongs to the caller's runtime: work is spawned on this one and only its result is awaited there.

use std::future::Future;
use std::panic;
use std::sync::LazyLock;

use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

static HUB: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("test-servers")
        .enable_all()
        .build()
        .expect("a process that runs tests may start two threads")
});

/// Runs a future on the background runtime and waits for its output.
///
/// # Cancel safety
///
/// Dropping the returned future does not stop the work: what was begun with a server is finished.
pub(crate) async fn run<F>(work: F) -> F::Output
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match spawn(work).await {
        Ok(output) => output,
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}

/// Starts a future on the background runtime.
pub(crate) fn spawn<F>(work: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    HUB.spawn(work)
}

/// Runs a blocking function on a thread of the background runtime. Called on that runtime only.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(output) => output,
        Err(error) => panic::resume_unwind(error.into_panic()),
    }
}
