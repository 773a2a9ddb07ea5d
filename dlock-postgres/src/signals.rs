//! Who waits for which lock, and the connection that hears of releases.
//!
//! Messages are hints: whoever waits also asks again now and then. So a connection that breaks costs time and nothing else.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, OpenOptions};
use sqlx::postgres::{PgListener, PgPoolOptions};
use sqlx::{Executor as _, Row as _};
use tokio::sync::watch;

use crate::connection::{Plan, shown_as};
use crate::error::{of_connecting, of_opening};

/// How often is looked for locks whose holders left without a word, in one statement for all that are waited for.
pub(crate) const LOOK: Duration = Duration::from_secs(1);

/// How long the answer may take.
const ANSWER: Duration = Duration::from_secs(5);

/// How often is looked in vain for somebody who waits before the connection is closed.
const IDLE: u32 = 20;

/// The number of keys above which those that nobody waits for are looked for.
const CROWD: usize = 64;

/// The signals of one session.
pub(crate) struct Signals {
    state: Mutex<State>,
    plan: Arc<Plan>,
    owner: String,
    ttl: Duration,
    /// Whether releases are heard of.
    hears: AtomicBool,
    /// True once the session is over.
    over: watch::Receiver<bool>,
}

#[derive(Default)]
struct State {
    /// The value is raised by each signal.
    keys: HashMap<i64, watch::Sender<u64>>,
    crowd: usize,
    listening: bool,
}

/// What was there when a claim was sent; a wait with it ends at the first signal after that.
#[derive(Debug)]
pub(crate) struct Armed(watch::Receiver<u64>);

impl Armed {
    /// Waits for a signal since this was armed.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe, and may be called again.
    pub(crate) async fn signal(&self) {
        // A clone has seen what its original had seen.
        if self.0.clone().changed().await.is_err() {
            // Nobody signals any more. The session is over, which core hears of otherwise.
            std::future::pending::<()>().await;
        }
    }
}

impl Signals {
    pub(crate) fn new(plan: Arc<Plan>, options: &OpenOptions, over: watch::Receiver<bool>) -> Arc<Self> {
        let OpenOptions { owner, ttl, .. } = options.clone();
        Arc::new(Self { state: Mutex::default(), plan, owner, ttl, hears: AtomicBool::new(false), over })
    }

    /// How soon to ask again without having been told anything.
    pub(crate) fn patience(&self) -> Duration {
        if self.hears.load(Ordering::SeqCst) { self.ttl.clamp(LOOK, LOOK * 10) } else { self.look_every() }
    }

    fn look_every(&self) -> Duration {
        (self.ttl / 4).min(LOOK)
    }

    /// Takes note of what is signalled from now on for a key.
    pub(crate) fn arm(&self, key: i64) -> Armed {
        let mut state = self.state();
        if state.keys.len() >= state.crowd.max(CROWD) {
            state.keys.retain(|_, sender| sender.receiver_count() > 0);
            state.crowd = state.keys.len() * 2;
        }
        Armed(state.keys.entry(key).or_insert_with(|| watch::Sender::new(0)).subscribe())
    }

    /// Signals a release to those of this process who wait for the key.
    pub(crate) fn ring(&self, key: i64) {
        if let Some(sender) = self.state().keys.get(&key) {
            sender.send_modify(|count| *count += 1);
        }
    }

    /// Signals to all, since a message may have been missed.
    fn ring_all(&self) {
        for sender in self.state().keys.values() {
            sender.send_modify(|count| *count += 1);
        }
    }

    /// Starts to listen, unless that is done already. Whoever is armed gets a signal when it is.
    pub(crate) fn listen(self: &Arc<Self>) {
        let mut state = self.state();
        if !state.listening {
            state.listening = true;
            let signals = Arc::clone(self);
            drop(tokio::spawn(async move { signals.run().await }));
        }
    }

    async fn run(self: Arc<Self>) {
        let mut over = self.over.clone();
        tokio::select! {
            biased;
            // An error means that the session's task is gone.
            _ = over.wait_for(|over| *over) => {}
            () = self.keep_listening() => {}
        }
    }

    /// Listens, over as many connections as it takes, until nobody waits any more.
    async fn keep_listening(&self) {
        loop {
            let outcome = self.listen_once().await;
            self.hears.store(false, Ordering::SeqCst);
            match outcome {
                Ok(()) => return,
                Err(error) => {
                    // Whoever counts on being told asks again now, and is then told to ask more often.
                    self.ring_all();
                    tracing::debug!(%error, "waiters are not notified of releases, and ask again now and then");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// Listens until nobody waits any more.
    async fn listen_once(&self) -> Result<(), BackendError> {
        let place = &self.plan.place;
        let owner = shown_as(&self.owner);
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .max_lifetime(None)
            .idle_timeout(None)
            .test_before_acquire(false)
            .after_connect(move |connection, _| {
                let query = sqlx::query(
                    // It asks every second, so the server may end what has said nothing for a minute.
                    "SELECT set_config('application_name', $1, false), set_config('idle_session_timeout', '60s', false),
                            set_config('tcp_user_timeout', '60s', false), set_config('tcp_keepalives_idle', '20', false),
                            set_config('tcp_keepalives_interval', '30', false), set_config('tcp_keepalives_count', '3', false)",
                );
                let query = query.bind(owner.clone()).persistent(false);
                Box::pin(async move { connection.execute(query).await.map(drop) })
            })
            .connect_lazy_with(self.plan.connect.clone());
        let listener = PgListener::connect_with(&pool).await.map_err(|error| of_connecting(place, error))?;
        let mut listener = Ear(Some(listener));
        let listener = listener.listener();
        listener.eager_reconnect(false);
        listener.listen("dlock").await.map_err(|error| of_opening(place, error))?;
        self.hears.store(true, Ordering::SeqCst);
        // What was released before was not heard.
        self.ring_all();
        let (mut idle, mut look) = (0, tokio::time::interval(self.look_every()));
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let message = tokio::select! {
                biased;
                _ = look.tick() => None,
                message = listener.try_recv() => Some(message),
            };
            match message {
                Some(Ok(Some(message))) => {
                    if let Ok(key) = message.payload().parse() {
                        self.ring(key);
                    }
                }
                Some(Ok(None)) => {
                    return Err(BackendError::unavailable("the connection that listens was lost"));
                }
                Some(Err(error)) => return Err(of_opening(place, error)),
                None => {
                    let keys = self.waited_for();
                    idle = if keys.is_empty() { idle + 1 } else { 0 };
                    if idle > IDLE && self.stop_if_nobody_waits() {
                        return Ok(());
                    }
                    self.look(listener, keys).await?;
                }
            }
        }
    }

    /// Signals those locks that nobody holds, and finds out whether the connection still carries anything.
    async fn look(&self, listener: &mut PgListener, keys: Vec<i64>) -> Result<(), BackendError> {
        let query = self.plan.statements.free(keys);
        let rows = tokio::time::timeout(ANSWER, query.fetch_all(listener))
            .await
            .map_err(|_| BackendError::unavailable("the connection that listens is silent"))?
            .map_err(|error| of_opening(&self.plan.place, error))?;
        for row in rows {
            if let Ok(key) = row.try_get("key") {
                self.ring(key);
            }
        }
        Ok(())
    }

    fn waited_for(&self) -> Vec<i64> {
        let state = self.state();
        state.keys.iter().filter(|(_, sender)| sender.receiver_count() > 0).map(|(key, _)| *key).collect()
    }

    fn stop_if_nobody_waits(&self) -> bool {
        let mut state = self.state();
        state.keys.retain(|_, sender| sender.receiver_count() > 0);
        state.listening = !state.keys.is_empty();
        !state.listening
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A listener whose connection is closed at once when it is dropped.
///
/// Its own way is to say UNLISTEN first, in a task of the runtime, which on a silent connection goes on until the machine
/// gives the connection up: a quarter of an hour.
struct Ear(Option<PgListener>);

impl Ear {
    fn listener(&mut self) -> &mut PgListener {
        self.0.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        let listener = self.0.take();
        // A runtime that never runs: the task is dropped with it, and the connection with the task.
        match tokio::runtime::Builder::new_current_thread().build() {
            Ok(never) => {
                let inside = never.enter();
                drop(listener);
                drop(inside);
                never.shutdown_background();
            }
            Err(_) => drop(listener),
        }
    }
}

impl fmt::Debug for Signals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signals").finish_non_exhaustive()
    }
}
