//! The nodes of a session, and what every request to them needs to know.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dlock_core::{BackendError, ClaimRef, Clock, ErrorKind, LockName, OpenOptions};
use tokio::runtime::Handle;

use crate::connect::Connector;
use crate::error;
use crate::fanout::{Fanout, Pass};
use crate::identities::Identities;
use crate::keys::{Keys, STRIPES, stripe};
use crate::node::{Node, Target};
use crate::scripts::Call;
use crate::sentinel::Sentinels;
use crate::settings::{BUCKET, Server, Settings, Topology};
use crate::strays::Strays;
use crate::tls;
use crate::wakes::Wakes;

/// How many locks one call of a script renews or releases: a script runs alone at its node, so it must be short.
const CHUNK: usize = 100;

/// The nodes of a session: one, or the odd number of a Redlock.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) nodes: Vec<Arc<Node>>,
    pub(crate) keys: Keys,
    pub(crate) figures: Figures,
    pub(crate) wakes: Arc<Wakes>,
    pub(crate) seen: Arc<Seen>,
    pub(crate) strays: Strays,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) runtime: Handle,
    /// For how long one node is waited for.
    pub(crate) limit: Duration,
    /// For how long a node is waited for that is not one of several that would do.
    pub(crate) patience: Duration,
    pub(crate) closed: AtomicBool,
}

/// What the scripts are told, in the form in which they are.
#[derive(Debug)]
pub(crate) struct Figures {
    pub(crate) ttl: Duration,
    pub(crate) px: String,
    pub(crate) par: String,
    pub(crate) wait: String,
    pub(crate) reserve: String,
    pub(crate) bucket: String,
    pub(crate) start_delay: String,
    /// Behind an automatic failover: nothing is renewed while a node is in quarantine.
    pub(crate) careful: bool,
}

/// Whether those who wait for a lock are told of a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Telling {
    Loud,
    Quiet,
}

/// The greatest counters that were seen, by stripe. Only what is proposed depends on them.
#[derive(Debug)]
pub(crate) struct Seen(Vec<AtomicU64>);

impl Seen {
    pub(crate) fn new() -> Self {
        Self((0..STRIPES).map(|_| AtomicU64::new(0)).collect())
    }

    pub(crate) fn note(&self, name: &LockName, token: u64) {
        self.0[stripe(name)].fetch_max(token, Ordering::Relaxed);
    }

    pub(crate) fn next(&self, name: &LockName) -> u64 {
        self.0[stripe(name)].load(Ordering::Relaxed) + 1
    }
}

impl Group {
    /// Connects to the nodes. A majority must answer.
    ///
    /// # Errors
    ///
    /// What is wrong with the settings, or with so many nodes that there is no majority.
    pub(crate) async fn open(
        settings: &Settings,
        seen: Arc<Seen>,
        options: &OpenOptions,
    ) -> Result<Self, BackendError> {
        settings.check().map_err(BackendError::refused)?;
        let ttl = Duration::from_millis(u64::try_from(options.ttl.as_millis()).unwrap_or(u64::MAX));
        if ttl > settings.longest_lease() {
            return Err(BackendError::refused(format!(
                "a TTL of {ttl:?} is too long for a restart_delay of {:?}: it may be {:?} at most, or raise \
                 restart_delay for all clients",
                settings.restart_delay,
                settings.longest_lease(),
            )));
        }
        let limit = settings.limit(ttl, options.request_timeout).map_err(BackendError::refused)?;
        let tls = settings.tls.as_ref().map(tls::client_config).transpose()?;
        let keys = settings.keys();
        let count = settings.nodes();
        let identities = Arc::new(Identities::new(count));
        let connector = Arc::new(Connector {
            database: settings.database,
            tls,
            client_name: settings.client_name.clone(),
            pattern: keys.pattern(),
            identities: Arc::clone(&identities),
        });
        let wakes = Arc::new(Wakes::new(count));
        let patience = options.request_timeout;
        let nodes = targets(&settings.topology, patience)
            .enumerate()
            .map(|(index, (target, credentials))| {
                let connector = Arc::clone(&connector);
                Arc::new(Node::new(index, target, credentials, connector, Arc::clone(&wakes), patience))
            })
            .collect();
        let group = Self {
            nodes,
            keys,
            figures: Figures {
                ttl,
                px: ttl.as_millis().to_string(),
                par: settings.par(),
                wait: settings.restart_delay.as_millis().to_string(),
                reserve: settings.reserve().as_millis().to_string(),
                bucket: BUCKET.as_millis().to_string(),
                start_delay: settings.start_delay().as_millis().to_string(),
                careful: settings.is_sentinel() && !settings.restart_delay.is_zero(),
            },
            wakes,
            seen,
            strays: Strays::default(),
            clock: Arc::clone(&options.clock),
            runtime: Handle::current(),
            limit,
            patience,
            closed: AtomicBool::new(false),
        };
        group.connect().await?;
        match identities.twins() {
            Some((one, other)) => Err(BackendError::refused(format!(
                "{} and {} are one server: Redlock needs independent nodes",
                group.nodes[one], group.nodes[other]
            ))),
            None => Ok(group),
        }
    }

    async fn connect(&self) -> Result<(), BackendError> {
        let mut round = self.ask(&self.nodes, self.pass(), |node, _| async move { node.ready().await });
        let mut failures = Vec::new();
        let mut ready = 0;
        loop {
            // The others are not needed, and yet it is good to know of what is wrong with them.
            let wait = if ready >= self.quorum() { self.limit } else { Duration::MAX };
            match tokio::time::timeout(wait, round.next()).await {
                Ok(Some((_, Ok(())))) => ready += 1,
                Ok(Some((node, Err(failure)))) => failures.push((node, failure)),
                Ok(None) | Err(_) => break,
            }
        }
        round.done();
        if ready < self.quorum() {
            return Err(self.failure(&failures));
        }
        for (_, failure) in failures {
            tracing::warn!(error = %failure, "a node cannot be used; the others are enough");
        }
        Ok(())
    }

    pub(crate) fn quorum(&self) -> usize {
        self.nodes.len() / 2 + 1
    }

    pub(crate) fn pass(&self) -> Pass {
        Pass::new(self.nodes.len())
    }

    /// Asks some nodes at once.
    pub(crate) fn ask<T, F>(
        &self,
        nodes: &[Arc<Node>],
        pass: Pass,
        ask: impl Fn(Arc<Node>, Arc<Pass>) -> F,
    ) -> Fanout<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        Fanout::new(nodes, &self.runtime, pass, ask)
    }

    /// An error if the session is over.
    pub(crate) fn check_open(&self) -> Result<(), BackendError> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(BackendError::session_gone("the session was closed"));
        }
        Ok(())
    }

    /// What the failures of nodes mean for a request that they leave without a majority.
    pub(crate) fn failure(&self, failures: &[(usize, BackendError)]) -> BackendError {
        let failures: Vec<_> = failures.iter().map(|(_, failure)| failure).collect();
        self.failure_of(&failures)
    }

    pub(crate) fn failure_of(&self, failures: &[&BackendError]) -> BackendError {
        let nodes = self.nodes.len();
        if let ([only], 1) = (failures, nodes) {
            return (*only).clone();
        }
        let any = |wanted: fn(&ErrorKind) -> bool| failures.iter().filter(|f| wanted(&f.kind())).count();
        let kind = if any(|kind| matches!(kind, ErrorKind::SessionGone)) > 0 {
            ErrorKind::SessionGone
        } else if any(|kind| matches!(kind, ErrorKind::Unknown)) > 0 {
            ErrorKind::Unknown
        } else if any(|kind| matches!(kind, ErrorKind::Refused)) > nodes - self.quorum() {
            ErrorKind::Refused
        } else {
            ErrorKind::Unavailable
        };
        error::of_nodes(kind, nodes, failures)
    }

    /// The calls of RENEW for these claims.
    pub(crate) fn renewals(&self, claims: &[ClaimRef]) -> Arc<Vec<Call>> {
        let call = |claims: &[ClaimRef]| Call {
            keys: claims
                .iter()
                .map(|claim| self.keys.lock(&claim.name))
                .chain(std::iter::once(self.keys.mark()))
                .collect(),
            args: [self.figures.px.clone(), u8::from(self.figures.careful).to_string()]
                .into_iter()
                .chain(claims.iter().map(|claim| claim.id.to_string()))
                .collect(),
            claims: claims.len(),
        };
        Arc::new(claims.chunks(CHUNK).map(call).collect())
    }

    /// The calls of RELEASE for these claims.
    pub(crate) fn releases<'a>(
        &self,
        claims: impl IntoIterator<Item = &'a ClaimRef>,
        telling: Telling,
    ) -> Arc<Vec<Call>> {
        let channel = |claim: &&ClaimRef| match telling {
            Telling::Loud => self.keys.channel(&claim.name),
            Telling::Quiet => String::new(),
        };
        let claims: Vec<_> = claims.into_iter().collect();
        let call = |claims: &[&ClaimRef]| Call {
            keys: claims.iter().map(|claim| self.keys.lock(&claim.name)).collect(),
            args: claims.iter().map(|claim| claim.id.to_string()).chain(claims.iter().map(channel)).collect(),
            claims: claims.len(),
        };
        Arc::new(claims.chunks(CHUNK).map(call).collect())
    }
}

fn targets(
    topology: &Topology,
    patience: Duration,
) -> Box<dyn Iterator<Item = (Target, Option<crate::settings::Credentials>)> + '_> {
    let at = |server: &Server| (Target::At(server.endpoint.clone()), server.credentials.clone());
    match topology {
        Topology::Single(server) => Box::new(std::iter::once(at(server))),
        Topology::Redlock(servers) => Box::new(servers.iter().map(at)),
        Topology::Sentinel { sentinels, service, credentials } => {
            let target = Target::Known(Sentinels {
                servers: sentinels.clone(),
                service: service.clone(),
                limit: patience / 3,
            });
            Box::new(std::iter::once((target, credentials.clone())))
        }
    }
}
