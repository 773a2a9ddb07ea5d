//! The lock manager: settings, and the handle that locks are made from.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::{Backend, Location};
use crate::clock::{Clock, SystemClock};
use crate::error::{CloseError, ConfigError, NameError, StoreError};
use crate::guarantees::Guarantees;
use crate::holder::default_owner;
use crate::lock::Lock;
use crate::metrics::Metrics;
use crate::name::LockName;
use crate::shared::{Liveness, Options, Shared};

/// The lease that is asked for unless something else is set: 10 s.
pub const DEFAULT_TTL: Duration = Duration::from_secs(10);
const DEFAULT_REQUEST_TIMEOUT: Duration = Duration::from_secs(3);
const DEFAULT_GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const LONGEST_REQUEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);
const LONGEST_OWNER: usize = 256;

/// A client of one store: one session, many locks. Cheap to clone; clones share the session and the local queues.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use dlock_core::{LockManager, memory::{MemoryBackend, MemoryStore}};
///
/// let locks = LockManager::builder(MemoryBackend::new(&MemoryStore::new()))
///     .ttl(Duration::from_secs(10))
///     .owner("worker-7")
///     .build()?;
/// let guard = locks.lock("orders/42")?.acquire().await?;
/// assert!(guard.is_held());
/// drop(guard); // released in the background
/// locks.close().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct LockManager {
    live: Arc<Liveness>,
}

impl LockManager {
    /// Starts the settings of a manager over a backend.
    pub fn builder(backend: impl Backend) -> LockManagerBuilder {
        Self::builder_arc(Arc::new(backend))
    }

    /// As [`builder`](Self::builder), for a backend that is chosen at run time.
    pub fn builder_arc(backend: Arc<dyn Backend>) -> LockManagerBuilder {
        LockManagerBuilder {
            backend,
            ttl: DEFAULT_TTL,
            owner: None,
            request_timeout: None,
            give_up_after: DEFAULT_GIVE_UP_AFTER,
            max_hold: None,
            clock: Arc::new(SystemClock),
            seed: None,
        }
    }

    /// A lock by its name. Checks the name, does no I/O.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule the name breaks.
    pub fn lock(&self, name: impl AsRef<str>) -> Result<Lock, NameError> {
        Ok(Lock::new(LockName::new(name)?, Arc::clone(&self.live)))
    }

    /// Opens the session now, so that a wrong address or password shows here; else the first use opens it. One attempt.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt goes on in the background.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be reached, or refuses.
    pub async fn open(&self) -> Result<(), StoreError> {
        self.live.0.open().await.map(drop)
    }

    /// Prepares a store that is known to be new, as `dlock init` does. Returns what was done and what is left to do, one
    /// sentence each, for people; most stores need nothing. Does no harm to a store that is in use. One attempt.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: the attempt goes on in the background.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store cannot be reached, or refuses.
    pub async fn init(&self) -> Result<Vec<String>, StoreError> {
        self.live.0.init().await
    }

    /// What the backend promises as it is configured.
    pub fn guarantees(&self) -> Guarantees {
        self.live.0.backend.guarantees()
    }

    /// Where a lock lives in the store. No I/O.
    pub fn locate(&self, name: &LockName) -> Location {
        self.live.0.backend.locate(name)
    }

    /// The lease that is asked for. A store may grant less: a guard's [`valid_for`](crate::LockGuard::valid_for) tells.
    pub fn ttl(&self) -> Duration {
        self.live.0.options.ttl
    }

    /// Who this manager is, for people who look into the store.
    pub fn owner(&self) -> &str {
        &self.live.0.options.owner
    }

    /// A snapshot of the counters.
    pub fn metrics(&self) -> Metrics {
        let (held, waiting) = self.live.0.population();
        self.live.0.counters.snapshot(held, waiting)
    }

    /// Releases everything and ends the session.
    ///
    /// Guards die at once with [`LossReason::Closed`](crate::LossReason::Closed), waiters get
    /// [`AcquireError::Closed`](crate::AcquireError::Closed), later calls too. Dropping the last handle and the last
    /// guard does the same in the background.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: closing goes on in the background.
    ///
    /// # Errors
    ///
    /// [`CloseError`] if the store did not confirm within the request time-out; what is left expires by itself.
    pub async fn close(&self) -> Result<(), CloseError> {
        let shared = Arc::clone(&self.live.0);
        // Guards die and waiters are told here and now, whether or not there is a runtime to tell the store.
        shared.shut();
        let Some(runtime) = self.live.0.runtime() else { return Ok(()) };
        let ttl = shared.options.ttl;
        let closing = runtime.spawn(shared.close());
        closing.await.unwrap_or(Err(CloseError { expires_within: ttl, source: None }))
    }
}

impl fmt::Debug for LockManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockManager")
            .field("backend", &self.live.0.backend)
            .field("options", &self.live.0.options)
            .finish_non_exhaustive()
    }
}

/// The settings of a lock manager, each with a sensible default.
#[derive(Clone, Debug)]
#[must_use = "settings do nothing until build is called"]
pub struct LockManagerBuilder {
    backend: Arc<dyn Backend>,
    ttl: Duration,
    owner: Option<String>,
    request_timeout: Option<Duration>,
    give_up_after: Duration,
    max_hold: Option<Duration>,
    clock: Arc<dyn Clock>,
    seed: Option<u64>,
}

impl LockManagerBuilder {
    /// The lease to ask for; 10 s by default.
    ///
    /// A crashed or frozen holder blocks others for so long. Renewals are sent every third of it, and a store that is
    /// out of reach for two thirds of it costs the lock.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Who this is, for people who look into the store; `host:pid` by default. Need not be unique.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// How long to wait for one answer of the store; the smaller of 3 s and the TTL by default.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = Some(timeout);
        self
    }

    /// How long a store may fail without a break before an `acquire` without a time limit gives up; 60 s by default.
    pub fn give_up_after(mut self, time: Duration) -> Self {
        self.give_up_after = time;
        self
    }

    /// The longest hold of every guard, as [`Lock::max_hold`]; unlimited by default.
    pub fn max_hold(mut self, longest: Duration) -> Self {
        self.max_hold = Some(longest);
        self
    }

    /// The clock to read; the machine's by default.
    ///
    /// On a paused tokio clock set a [`TestClock`](crate::TestClock), which follows it: the machine's clock goes on, and
    /// time-outs counted by it would not elapse.
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Makes claim ids and jitter from a seed, so that a simulation can be replayed. Never use it outside of tests: two
    /// managers with one seed make the same claim ids, and P7 rests on these being unique.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = Some(seed);
        self
    }

    /// What the backend promises as it is configured.
    pub fn guarantees(&self) -> Guarantees {
        self.backend.guarantees()
    }

    /// Makes the manager. No I/O: the session is opened by [`LockManager::open`] or at first use.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] if a setting cannot work, saying what to set instead.
    pub fn build(self) -> Result<LockManager, ConfigError> {
        let error = |message: String| Err(ConfigError(message));
        let Guarantees { min_ttl: shortest, max_ttl: longest, .. } = self.backend.guarantees();
        if self.ttl < shortest {
            return error(format!(
                "a ttl of {:?} is below this backend's minimum: set at least {shortest:?}",
                self.ttl
            ));
        }
        if self.ttl > longest {
            return error(format!(
                "a ttl of {:?} is above this backend's maximum as it is configured: set at most {longest:?}",
                self.ttl
            ));
        }
        let request_timeout = self.request_timeout.unwrap_or(DEFAULT_REQUEST_TIMEOUT.min(self.ttl));
        if request_timeout < Duration::from_millis(1) || request_timeout > LONGEST_REQUEST_TIMEOUT {
            return error(format!(
                "a request_timeout of {request_timeout:?} cannot work: set 1 ms to {LONGEST_REQUEST_TIMEOUT:?}"
            ));
        }
        if self.max_hold.is_some_and(|longest| longest.is_zero()) {
            return error(
                "a max_hold of zero would lose every lock at once: leave it out, or set a time".to_owned(),
            );
        }
        let owner = self.owner.unwrap_or_else(default_owner);
        if owner.is_empty() || owner.len() > LONGEST_OWNER || owner.chars().any(char::is_control) {
            return error(format!("an owner has 1 to {LONGEST_OWNER} bytes and no control characters"));
        }
        let options = Options {
            ttl: self.ttl,
            owner,
            request_timeout,
            give_up_after: self.give_up_after,
            max_hold: self.max_hold,
        };
        let shared = Arc::new(Shared::new(self.backend, options, self.clock, self.seed));
        Ok(LockManager { live: Arc::new(Liveness(shared)) })
    }
}
