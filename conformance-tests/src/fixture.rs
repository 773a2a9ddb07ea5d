//! What a backend brings to be tested: its stores, its clients, and its operator's hand.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::faults::{Faults, inject};
use dlock_core::{
    Backend, Clock, Fairness, Guarantees, Lock, LockManager, SystemClock, TestClock, Timestamp,
};

/// A fresh store for one case, and the ways to it.
///
/// A fixture is made anew for each case and cleans up when it is dropped. Its store holds nothing when the case begins;
/// the runner checks that it holds nothing when the case is over.
///
/// The methods from [`residue`](Self::residue) on are the operator's: they act at the store, behind the back of every
/// client.
#[async_trait]
pub trait Fixture: Send + Sync {
    /// What the cases need to know of the backend.
    fn profile(&self) -> &Profile;

    /// A new client: a lock manager of its own, as another process would have, with faults of its own.
    ///
    /// [`Setup::client`] does all but the backend.
    async fn client(&self, setup: Setup) -> Client;

    /// Everything at the store that belongs to a lock, a claim, a waiter or a debt, one line each, of whatever client.
    /// Counters whose number is fixed are not counted.
    async fn residue(&self) -> Vec<String>;

    /// How many records of any kind the store has, counters and sessions included.
    async fn footprint(&self) -> usize;

    /// Removes the claim that holds the lock `name`, as a hand that deletes its key, node or row.
    async fn remove(&self, name: &str);

    /// Ends the session of a client and with it its claims, as an operator who revokes a lease, kills a connection, or
    /// deletes all that this client has. The client may be told by the store, and can go on under a new session.
    async fn end_session(&self, client: &Client);

    /// Does what the store sees when the client's process dies: its connections close, and it is not heard of again.
    ///
    /// The client object lives on in the test, where it plays the process that does not know yet. A lock may be free
    /// at once if the store frees it so and leaves a debt; where it ends when the lease runs out, there is nothing to
    /// do but to cut the client off, which is what the default does.
    async fn crash(&self, client: &Client) {
        client.faults.black_hole();
    }

    /// Stops the store and starts it again; it keeps what it acknowledged. Sessions may be lost or not.
    async fn restart(&self);

    /// The command that starts a worker process on this store, with all its arguments; see
    /// [`worker`](crate::worker). None where the store lives in this process only.
    fn worker(&self) -> Option<std::process::Command> {
        None
    }

    /// The clock of the record: one for all clients, on which no client's jumps are seen.
    ///
    /// For worker processes it must be the machine's, which is the default.
    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(SystemClock)
    }
}

/// How time passes in a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Time {
    /// On tokio's paused clock: it jumps to the next timer when nothing else is to be done, so bounds are exact and a
    /// minute costs nothing. For stores in this process.
    Simulated,
    /// As it does: bounds get the [slack](Profile::slack) that a loaded machine needs.
    Real,
}

/// What the cases need to know of a backend.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Profile {
    /// The backend's name, for messages.
    pub backend: String,
    /// How time passes.
    pub time: Time,
    /// What the backend promises.
    pub guarantees: Guarantees,
    /// The TTL of the clients, unless a case asks for another. As short as the store and the machine bear.
    pub ttl: Duration,
    /// How long a request may take, unless a case asks for another.
    pub request_timeout: Duration,
    /// A free lock reaches a process that waits for it within this, after a release.
    pub handoff: Duration,
    /// How many names the case about a great many names uses. More than [`counters`](Self::counters).
    pub bulk_names: usize,
    /// How many records the store has at most for all names together, such as counters and sessions.
    pub counters: usize,
}

impl Profile {
    /// A profile on simulated time, with round figures.
    pub fn simulated(guarantees: Guarantees) -> Self {
        Self {
            backend: guarantees.backend.to_owned(),
            time: Time::Simulated,
            guarantees,
            ttl: Duration::from_secs(10),
            request_timeout: Duration::from_secs(3),
            handoff: Duration::ZERO,
            bulk_names: 100_000,
            counters: 1100,
        }
    }

    /// A profile on real time with a TTL that is as short as the machine bears.
    pub fn real(guarantees: Guarantees, ttl: Duration) -> Self {
        Self {
            time: Time::Real,
            ttl,
            request_timeout: ttl * 3 / 2,
            handoff: Duration::from_millis(250),
            bulk_names: 2_000,
            ..Self::simulated(guarantees)
        }
    }

    /// Sets the name that messages show.
    #[must_use]
    pub fn backend(mut self, name: impl Into<String>) -> Self {
        self.backend = name.into();
        self
    }

    /// Sets within what time a release reaches a waiter of another process.
    #[must_use]
    pub fn handoff(mut self, handoff: Duration) -> Self {
        self.handoff = handoff;
        self
    }

    /// Sets how many names the case about a great many names uses.
    #[must_use]
    pub fn bulk_names(mut self, names: usize) -> Self {
        self.bulk_names = names;
        self
    }

    /// Sets how many records the store has at most for all names together.
    #[must_use]
    pub fn counters(mut self, counters: usize) -> Self {
        self.counters = counters;
        self
    }

    /// Whether time is simulated.
    pub fn is_simulated(&self) -> bool {
        self.time == Time::Simulated
    }

    /// Whether the store serves waiters of different processes first come, first served.
    pub fn is_fifo(&self) -> bool {
        self.guarantees.fairness == Fairness::Global
    }

    /// What a bound may be exceeded by, since the machine is busy with other things.
    pub fn slack(&self) -> Duration {
        match self.time {
            Time::Simulated => Duration::from_millis(10),
            Time::Real => Duration::from_secs(3),
        }
    }

    /// Whether a store that works may answer too late for a short wait: on a busy machine.
    pub fn may_be_late(&self) -> bool {
        self.time == Time::Real
    }

    /// How long anything that must happen may take: generous, since it only ends cases that fail.
    pub fn patience(&self) -> Duration {
        match self.time {
            Time::Simulated => Duration::from_secs(600),
            Time::Real => Duration::from_secs(90),
        }
    }

    /// How long a request may take of a client whose requests are going to be unanswered: a busy machine may make it
    /// wait in vain now and then.
    pub fn short_timeout(&self) -> Duration {
        self.request_timeout.min(self.ttl / 2)
    }

    /// The time between two renewals.
    pub fn renewal(&self) -> Duration {
        self.ttl / 3
    }

    /// P4: a crashed holder is replaced within this.
    pub fn takeover(&self) -> Duration {
        self.guarantees.takeover_bound(self.ttl) + self.slack()
    }

    /// So many rounds of something, fewer in real time.
    pub fn rounds(&self, simulated: usize) -> usize {
        match self.time {
            Time::Simulated => simulated,
            Time::Real => simulated.div_ceil(5),
        }
    }

    /// A short pause, during which others get on.
    pub fn moment(&self) -> Duration {
        match self.time {
            Time::Simulated => Duration::from_millis(1),
            Time::Real => Duration::from_millis(5),
        }
    }
}

/// How a client is to be made. Whatever is not set is as the [profile](Profile) says.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Setup {
    /// The owner's name; by default another one for each client.
    pub owner: Option<String>,
    /// The TTL.
    pub ttl: Option<Duration>,
    /// How long a request may take.
    pub request_timeout: Option<Duration>,
    /// How long an unreachable store is asked again.
    pub give_up_after: Option<Duration>,
    /// The longest hold.
    pub max_hold: Option<Duration>,
    /// Whether the case means to drop every handle of the client.
    pub is_dropped: bool,
}

impl Setup {
    /// As the profile says.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the owner's name.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.owner = Some(owner.into());
        self
    }

    /// Sets the TTL.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// Sets how long a request may take.
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = Some(limit);
        self
    }

    /// Sets the [short time-out](Profile::short_timeout): for a client whose requests are going to be unanswered.
    pub fn impatient(self, profile: &Profile) -> Self {
        self.request_timeout(profile.short_timeout())
    }

    /// Sets how long an unreachable store is asked again.
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = Some(limit);
        self
    }

    /// Sets the longest hold.
    pub fn max_hold(mut self, limit: Duration) -> Self {
        self.max_hold = Some(limit);
        self
    }

    /// Says that the case drops every handle of the client. Others are kept until nothing is left at the store, so that
    /// what a client leaves behind is not cleared away with its session.
    pub fn dropped(mut self) -> Self {
        self.is_dropped = true;
        self
    }

    /// Makes the client: wraps the backend so that its requests can be made to fail, and builds the manager.
    ///
    /// # Panics
    ///
    /// If the settings do not go together.
    pub fn client(self, profile: &Profile, backend: impl Backend) -> Client {
        let (backend, faults) = inject(backend);
        self.client_with(profile, backend, faults)
    }

    /// As [`client`](Self::client), over a backend in which the faults are already.
    ///
    /// # Panics
    ///
    /// If the settings do not go together.
    pub fn client_with(self, profile: &Profile, backend: impl Backend, faults: Faults) -> Client {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let clock = ClientClock::new(profile.time);
        let mut builder = LockManager::builder(backend)
            .clock(Arc::new(clock.clone()))
            .ttl(self.ttl.unwrap_or(profile.ttl))
            .request_timeout(self.request_timeout.unwrap_or(profile.request_timeout))
            .owner(self.owner.unwrap_or_else(|| format!("client-{number}")))
            .seed(number);
        if let Some(limit) = self.give_up_after {
            builder = builder.give_up_after(limit);
        }
        if let Some(limit) = self.max_hold {
            builder = builder.max_hold(limit);
        }
        let locks = builder.build().expect("the profile's settings go together");
        Client { locks, faults, clock, label: format!("client-{number}") }
    }
}

/// A client of the store: what a process has.
#[derive(Clone)]
pub struct Client {
    /// Its lock manager.
    pub locks: LockManager,
    /// What happens to its requests.
    pub faults: Faults,
    /// Its clock.
    pub clock: ClientClock,
    label: String,
}

impl Client {
    /// A name for messages and records, another one for each client.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// A lock of this client.
    ///
    /// # Panics
    ///
    /// If the name is not a legal one.
    pub fn lock(&self, name: &str) -> Lock {
        self.locks.lock(name).expect("the name is legal")
    }
}

/// The clock of one client, which can jump: tokio's on simulated time, else the machine's.
#[derive(Clone, Debug)]
pub struct ClientClock {
    base: Arc<dyn Clock>,
    jumped: Arc<AtomicU64>,
}

impl ClientClock {
    fn new(time: Time) -> Self {
        let base: Arc<dyn Clock> = match time {
            Time::Simulated => Arc::new(TestClock::new()),
            Time::Real => Arc::new(SystemClock),
        };
        Self { base, jumped: Arc::default() }
    }

    /// Moves the clock forward at once, without any timer firing: what a process sees that was frozen for so long.
    ///
    /// Where several clients share the machine's clock, the client must not claim anything any more: its clock is
    /// wrong from now on.
    pub fn jump(&self, by: Duration) {
        self.jumped.fetch_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX), Ordering::SeqCst);
    }
}

impl Clock for ClientClock {
    fn now(&self) -> Timestamp {
        self.base.now().plus(Duration::from_nanos(self.jumped.load(Ordering::SeqCst)))
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("label", &self.label).finish_non_exhaustive()
    }
}
