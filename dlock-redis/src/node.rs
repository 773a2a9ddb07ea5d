//! One node: the connection to it, made when it is needed, and the requests that go over it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind};
use redis::Value;
use tokio::sync::watch;

use crate::connect::{Connector, Link};
use crate::error;
use crate::fanout::Pass;
use crate::scripts::{Call, Script};
use crate::sentinel::Sentinels;
use crate::settings::{Credentials, Endpoint};
use crate::wakes::{Channel, Wakes, locked};

/// One node of a session.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) index: usize,
    target: Target,
    credentials: Option<Credentials>,
    connector: Arc<Connector>,
    wakes: Arc<Wakes>,
    /// How long making a connection may take. It goes on when the request that wanted it has given up.
    patience: Duration,
    slot: Mutex<Slot>,
    /// It was a master once: that it is none now may change again.
    was_master: AtomicBool,
}

/// Where a node is.
#[derive(Debug)]
pub(crate) enum Target {
    At(Endpoint),
    /// Wherever the Sentinels say that the master is.
    Known(Sentinels),
}

type Attempt = watch::Receiver<Option<Result<Arc<Link>, BackendError>>>;

#[derive(Debug)]
enum Slot {
    Empty,
    Connecting(Attempt),
    Open(Arc<Link>),
    /// The session is over.
    Closed,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Target::At(endpoint) => endpoint.fmt(f),
            Target::Known(sentinels) => sentinels.fmt(f),
        }
    }
}

impl Node {
    pub(crate) fn new(
        index: usize,
        target: Target,
        credentials: Option<Credentials>,
        connector: Arc<Connector>,
        wakes: Arc<Wakes>,
        patience: Duration,
    ) -> Self {
        Self {
            index,
            target,
            credentials,
            connector,
            wakes,
            patience,
            slot: Mutex::new(Slot::Empty),
            was_master: AtomicBool::new(false),
        }
    }

    /// Runs a script once for each of `calls`, in one batch, within `limit`.
    ///
    /// # Errors
    ///
    /// The outer error is about the whole batch; an inner one about one call.
    pub(crate) async fn run(
        self: &Arc<Self>,
        script: &'static Script,
        calls: &[Call],
        limit: Duration,
        pass: &Pass,
    ) -> Result<Vec<Result<Value, BackendError>>, BackendError> {
        let work = async {
            let link = match pass.link(self.index) {
                // In order behind what was sent before.
                Some(link) => link,
                None => self.link().await?,
            };
            if !pass.sends(self.index, &link) {
                return Err(error::not_sent(self));
            }
            let doubt = Doubt::of(&link);
            let mut connection = link.connection();
            let pipeline = script.pipeline(calls);
            let mut answers = connection
                .send_packed_commands(&pipeline, 0, calls.len())
                .await
                .map_err(|failure| error::of_connection(self, &failure))?;
            // All or none of them: a script is not forgotten half-way, or if it is, the next request finds it again.
            if answers.iter().any(is_unknown_script) {
                if !pass.sends(self.index, &link) {
                    // What was not executed never will be: a release may have been sent since, and must stay the last.
                    doubt.answered();
                    pass.answered(self.index);
                    return Err(error::not_sent(self));
                }
                let missing: Vec<_> =
                    (0..calls.len()).filter(|&at| is_unknown_script(&answers[at])).collect();
                let pipeline = script.loading_pipeline(missing.iter().map(|&at| &calls[at]));
                let again = connection
                    .send_packed_commands(&pipeline, 0, missing.len() + 1)
                    .await
                    .map_err(|failure| error::of_connection(self, &failure))?;
                for (at, answer) in missing.into_iter().zip(again.into_iter().skip(1)) {
                    answers[at] = answer;
                }
            }
            doubt.answered();
            pass.answered(self.index);
            Ok((link, answers))
        };
        let (link, answers) = match tokio::time::timeout(limit, work).await {
            Ok(done) => done?,
            Err(_) if pass.was_sent(self.index) => return Err(error::no_answer(self, limit)),
            Err(_) => return Err(error::no_connection(self, limit, self.connector.tls.is_some())),
        };
        Ok(answers.into_iter().map(|answer| self.answer(&link, answer)).collect())
    }

    /// Subscribes to a channel.
    pub(crate) async fn subscribe(
        self: &Arc<Self>,
        channel: &Channel,
        limit: Duration,
    ) -> Result<(), BackendError> {
        let work = async {
            let link = self.link().await?;
            let doubt = Doubt::of(&link);
            let outcome = link.connection().subscribe(&channel.name).await;
            doubt.answered();
            outcome.map_err(|failure| match failure.clone().try_into() {
                Ok(server) => error::of_server(self, &self.connector.pattern, &server),
                Err(_) => error::of_connection(self, &failure),
            })?;
            channel.arm(self.index, link.id);
            if link.is_closed() {
                channel.disarm(self.index, link.id);
            }
            Ok(())
        };
        tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(error::no_answer(self, limit)))
    }

    /// Ends a subscription, if the connection that it is on still serves.
    pub(crate) async fn unsubscribe(&self, channel: &Channel, link: u64, limit: Duration) {
        let open = match &*locked(&self.slot) {
            Slot::Open(open) if open.id == link => Arc::clone(open),
            _ => return,
        };
        let doubt = Doubt::of(&open);
        match tokio::time::timeout(limit, open.connection().unsubscribe(&channel.name)).await {
            Ok(Ok(())) => doubt.answered(),
            // The connection would hear messages that nobody waits for, one channel more for each name.
            Ok(Err(failure)) => tracing::debug!(node = %self, error = %failure, "not unsubscribed"),
            Err(_) => {}
        }
    }

    /// Ends all subscriptions on the connection in use, those on their way included.
    pub(crate) async fn hush(&self, channels: &[String], limit: Duration) {
        let open = match &*locked(&self.slot) {
            Slot::Open(open) if !open.is_closed() => Arc::clone(open),
            _ => return,
        };
        let ends = channels.iter().map(|channel| {
            let mut connection = open.connection();
            async move { connection.unsubscribe(channel).await }
        });
        let ended = tokio::time::timeout(limit, futures_util::future::join_all(ends)).await;
        if !ended.is_ok_and(|ends| ends.iter().all(Result::is_ok)) {
            tracing::debug!(node = %self, "not all channels were unsubscribed before the close");
        }
    }

    /// Makes a connection if there is none.
    pub(crate) async fn ready(self: &Arc<Self>) -> Result<(), BackendError> {
        self.link().await.map(drop)
    }

    /// Ends what there is; requests fail from now on.
    pub(crate) fn close(&self) {
        *locked(&self.slot) = Slot::Closed;
    }

    /// The connection in use, or a new one. All who come while it is being made share the attempt and its outcome.
    ///
    /// # Errors
    ///
    /// Nothing was sent.
    async fn link(self: &Arc<Self>) -> Result<Arc<Link>, BackendError> {
        let mut attempt = {
            let mut slot = locked(&self.slot);
            match &*slot {
                Slot::Open(link) if link.is_good() => return Ok(Arc::clone(link)),
                Slot::Closed => return Err(BackendError::session_gone("the session was closed")),
                Slot::Connecting(attempt) => attempt.clone(),
                Slot::Open(_) | Slot::Empty => {
                    let attempt = self.attempt();
                    *slot = Slot::Connecting(attempt.clone());
                    attempt
                }
            }
        };
        let outcome = attempt.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        if let Ok(outcome) = outcome {
            return outcome.expect("it was waited for");
        }
        // It panicked, or its runtime is gone. In the first case the next one may succeed.
        let mut slot = locked(&self.slot);
        if matches!(&*slot, Slot::Connecting(dead) if dead.same_channel(&attempt)) {
            *slot = Slot::Empty;
        }
        Err(BackendError::unavailable(format!("the attempt to connect to {self} was broken off")))
    }

    /// One attempt to connect, on a task of its own: who gives up waiting does not end it, and the next one finds it done.
    fn attempt(self: &Arc<Self>) -> Attempt {
        let (told, attempt) = watch::channel(None);
        let node = Arc::clone(self);
        tokio::spawn(async move {
            let patience = node.patience;
            let outcome = tokio::time::timeout(patience, node.connect())
                .await
                .unwrap_or_else(|_| Err(error::no_connection(&node, patience, node.connector.tls.is_some())));
            let outcome = outcome.map(Arc::new);
            {
                let mut slot = locked(&node.slot);
                if !matches!(*slot, Slot::Closed) {
                    *slot = outcome.as_ref().map_or(Slot::Empty, |link| Slot::Open(Arc::clone(link)));
                }
            }
            told.send_replace(Some(outcome));
        });
        attempt
    }

    async fn connect(&self) -> Result<Link, BackendError> {
        let sentinels = match &self.target {
            Target::At(endpoint) => return self.enter(endpoint).await,
            Target::Known(sentinels) => sentinels,
        };
        let masters = sentinels.masters(&self.connector).await?;
        // A Sentinel that was cut off names a master of yesterday, which may not even answer.
        let share =
            self.patience.saturating_sub(sentinels.limit) / u32::try_from(masters.len()).unwrap_or(u32::MAX);
        let mut failures = Vec::new();
        for endpoint in &masters {
            match tokio::time::timeout(share, self.enter(endpoint)).await {
                Ok(Ok(link)) => return Ok(link),
                Ok(Err(failure)) => failures.push(failure),
                Err(_) => {
                    failures.push(error::no_connection(endpoint, share, self.connector.tls.is_some()));
                }
            }
        }
        Err(match &*failures {
            [only] => only.clone(),
            several => error::of_masters(self, several),
        })
    }

    /// Connects to what is to be the node, and makes sure that it can be.
    async fn enter(&self, endpoint: &Endpoint) -> Result<Link, BackendError> {
        let (link, greeting) =
            self.connector.connect(endpoint, self.credentials.as_ref(), self.index, &self.wakes).await?;
        if let Some(master) = greeting.master {
            let error = error::replica(endpoint, &master);
            let passing = matches!(self.target, Target::Known(_)) || self.was_master.load(Ordering::SeqCst);
            return Err(if passing { BackendError::unavailable(error.to_string()) } else { error });
        }
        self.was_master.store(true, Ordering::SeqCst);
        let identities = &self.connector.identities;
        let twin = identities.book(self.index, &greeting.run_id, link.id);
        if link.is_closed() {
            // It may have been forgotten before it was known.
            identities.forget(self.index, link.id);
        }
        if let Some(twin) = twin {
            return Err(BackendError::refused(format!(
                "{self} is the same server as node {} of the URL: Redlock needs independent nodes",
                twin + 1
            )));
        }
        Ok(link)
    }

    fn answer(&self, link: &Link, answer: Value) -> Result<Value, BackendError> {
        let Value::ServerError(failure) = answer else { return Ok(answer) };
        if matches!(failure.code(), "READONLY" | "MASTERDOWN") {
            self.demoted(link);
        }
        Err(error::of_server(self, &self.connector.pattern, &failure))
    }

    /// The node is no master any more: the next request looks where the master is.
    fn demoted(&self, link: &Link) {
        link.doubt();
        tracing::debug!(node = %self, "not the master any more");
    }

    /// The same, when a script said so.
    pub(crate) fn not_the_master(&self, master: &str) -> BackendError {
        if let Slot::Open(link) = &*locked(&self.slot) {
            self.demoted(link);
        }
        BackendError::new(ErrorKind::Unavailable, error::replica(self, master).to_string())
    }
}

fn is_unknown_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(failure) if failure.code() == "NOSCRIPT")
}

/// Doubts a connection unless the request on it was answered: it failed, was not answered in time, or was given up.
struct Doubt<'a> {
    link: &'a Link,
    answered: bool,
}

impl<'a> Doubt<'a> {
    fn of(link: &'a Link) -> Self {
        Self { link, answered: false }
    }

    fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.link.doubt();
        }
    }
}
