//! What all handles of one lock manager share.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Handle;

use crate::backend::{Backend, ClaimId, ClaimRef, OpenOptions};
use crate::clock::{Clock, Timestamp};
use crate::error::CloseError;
use crate::hold::locked;
use crate::keeper::Sessions;
use crate::metrics::Counters;
use crate::name::LockName;
use crate::queue::Queues;
use crate::watchlist::Watchlist;

/// The settings of a lock manager.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) ttl: Duration,
    pub(crate) owner: String,
    pub(crate) request_timeout: Duration,
    pub(crate) give_up_after: Duration,
    pub(crate) max_hold: Option<Duration>,
}

/// The state behind every handle. Tasks hold it too; that users still do is what [`Liveness`] counts.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) backend: Arc<dyn Backend>,
    pub(crate) options: Options,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) queues: Queues,
    pub(crate) sessions: Sessions,
    pub(crate) watchlist: Mutex<Watchlist>,
    pub(crate) counters: Counters,
    pub(crate) closing: tokio::sync::OnceCell<Result<(), CloseError>>,
    random: Mutex<StdRng>,
    runtime: OnceLock<Handle>,
}

impl Shared {
    pub(crate) fn new(
        backend: Arc<dyn Backend>,
        options: Options,
        clock: Arc<dyn Clock>,
        seed: Option<u64>,
    ) -> Self {
        let random = seed.map_or_else(|| StdRng::from_rng(&mut rand::rng()), StdRng::seed_from_u64);
        Self {
            backend,
            options,
            clock,
            queues: Queues::default(),
            sessions: Sessions::default(),
            watchlist: Mutex::default(),
            counters: Counters::default(),
            closing: tokio::sync::OnceCell::new(),
            random: Mutex::new(random),
            runtime: OnceLock::new(),
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A claim with a fresh id.
    pub(crate) fn new_claim(&self, name: &LockName) -> ClaimRef {
        ClaimRef { id: ClaimId::from_bits(locked(&self.random).random()), name: name.clone() }
    }

    /// Between half of `duration` and all of it, so that clients that failed together do not ask again together.
    pub(crate) fn jittered(&self, duration: Duration) -> Duration {
        let part: f64 = locked(&self.random).random_range(0.5..=1.0);
        duration.mul_f64(part)
    }

    /// Between nothing and `duration`.
    pub(crate) fn up_to(&self, duration: Duration) -> Duration {
        let part: f64 = locked(&self.random).random_range(0.0..=1.0);
        duration.mul_f64(part)
    }

    pub(crate) fn open_options(&self) -> OpenOptions {
        OpenOptions::new(
            self.options.ttl,
            self.options.owner.clone(),
            self.options.request_timeout,
            Arc::clone(&self.clock),
        )
    }

    /// The runtime that serves this manager: the first it was used in.
    pub(crate) fn runtime(&self) -> Option<&Handle> {
        if let Some(handle) = self.runtime.get() {
            Some(handle)
        } else {
            let handle = Handle::try_current().ok()?;
            Some(self.runtime.get_or_init(|| handle))
        }
    }

    /// Runs a task on the manager's runtime, also from outside any runtime. If that runtime is gone the task is
    /// dropped, which the tasks are made to bear.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = self.runtime.get() {
            drop(runtime.spawn(task));
        }
    }

    /// Runs a task at once as far as it gets, and as a task of the manager's runtime from there.
    ///
    /// What needs no waiting, as an uncontended claim in memory, then costs no task switch, and what waits belongs to
    /// no caller: dropping the caller's future cannot leave a request half-way (P6).
    pub(crate) fn run(&self, task: impl Future<Output = ()> + Send + 'static) {
        let here = Handle::try_current().ok().map(|handle| handle.id());
        if here.is_none() || here != self.runtime.get().map(Handle::id) {
            return self.spawn(task);
        }
        let mut task = Box::pin(task);
        // Polled once without a waker; when it is spawned it is polled again, with its own. A panic of a backend ends
        // the task, as it would in a task of its own, and not the caller.
        let first = AssertUnwindSafe(|| task.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        match catch_unwind(first) {
            Ok(Poll::Pending) => self.spawn(task),
            Ok(Poll::Ready(())) => {}
            Err(_) => tracing::error!("a backend panicked"),
        }
    }

    /// The pause before a try after `failures` failed ones: 100, 200, 400 ms ... at most 5 s, with jitter.
    pub(crate) fn backoff(&self, failures: u32) -> Duration {
        let base = Duration::from_millis(100) * 2_u32.pow(failures.clamp(1, 7) - 1);
        self.jittered(base.min(Duration::from_secs(5)))
    }
}

/// Held by every manager, lock, guard and waiter of one manager. When the last goes, the session is closed.
#[derive(Debug)]
pub(crate) struct Liveness(pub(crate) Arc<Shared>);

impl Drop for Liveness {
    fn drop(&mut self) {
        let shared = Arc::clone(&self.0);
        self.0.spawn(async move {
            // The store's answer interests nobody any more; what it did not confirm expires by itself.
            drop(shared.close().await);
        });
    }
}
