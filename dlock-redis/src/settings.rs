//! How a backend is configured, and what follows from it.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::keys::{Keys, STRIPES};

/// The clock's bucket of the tokens' floor, and how far a proposal may be ahead of a node's clock.
pub(crate) const BUCKET: Duration = Duration::from_secs(1);

/// How long an old master that was cut off may go on serving beside its successor: `min-replicas-max-lag`, 10 s, and 2 s
/// for it to notice.
const OLD_MASTER: Duration = Duration::from_secs(12);

/// Everything that a URL or a builder can say.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) topology: Topology,
    pub(crate) database: i64,
    pub(crate) tls: Option<TlsFiles>,
    pub(crate) prefix: String,
    /// W; zero: no quarantine.
    pub(crate) restart_delay: Duration,
    /// e.
    pub(crate) clock_skew: Duration,
    pub(crate) node_timeout: Option<Duration>,
    pub(crate) client_name: Option<String>,
}

/// Where the nodes are.
#[derive(Clone, Debug)]
pub(crate) enum Topology {
    /// One node.
    Single(Server),
    /// Several independent nodes.
    Redlock(Vec<Server>),
    /// One node that Sentinels know.
    Sentinel {
        /// The Sentinels, with their own credentials.
        sentinels: Vec<Server>,
        service: String,
        /// Credentials of the node.
        credentials: Option<Credentials>,
    },
}

/// A server's address, and who we are there.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    pub(crate) endpoint: Endpoint,
    pub(crate) credentials: Option<Credentials>,
}

/// Host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// A name or an address, without brackets.
    pub(crate) host: String,
    pub(crate) port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Who we are at a server.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Credentials {
    pub(crate) user: Option<String>,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).finish_non_exhaustive()
    }
}

/// Files for TLS; without any, the certificates of the system are trusted and none is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TlsFiles {
    pub(crate) ca: Option<PathBuf>,
    pub(crate) cert: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
}

impl Settings {
    pub(crate) fn new(topology: Topology) -> Self {
        Self {
            topology,
            database: 0,
            tls: None,
            prefix: "dlock:".to_owned(),
            restart_delay: Duration::from_secs(35),
            clock_skew: Duration::from_millis(500),
            node_timeout: None,
            client_name: None,
        }
    }

    /// What cannot be, and what to write instead.
    pub(crate) fn check(&self) -> Result<(), String> {
        if let Topology::Redlock(servers) = &self.topology {
            let count = servers.len();
            if count < 3 || count % 2 == 0 {
                return Err(format!(
                    "Redlock takes 3, 5 or another odd number of nodes, and there are {count}: a majority of an even \
                     number bears no more failures; for one node write redis://HOST"
                ));
            }
            let twice = servers.iter().enumerate().find(|(at, server)| {
                servers[..*at].iter().any(|earlier| earlier.endpoint == server.endpoint)
            });
            if let Some((_, server)) = twice {
                return Err(format!("{} is there twice: Redlock needs independent nodes", server.endpoint));
            }
        }
        if !self.restart_delay.is_zero() && self.longest_lease() < Duration::from_millis(100) {
            return Err(format!(
                "a restart_delay of {:?} leaves no room for a lease: it must exceed the longest by {:?}, so write {:?} \
                 or more, or 0s for none",
                self.restart_delay,
                self.reserve(),
                self.reserve() + Duration::from_secs(10),
            ));
        }
        if self.restart_delay > Duration::from_secs(24 * 3600) || self.clock_skew > Duration::from_secs(3600)
        {
            return Err("a restart_delay is at most a day, and a clock_skew at most an hour".to_owned());
        }
        let odd = |duration: Duration| !duration.subsec_nanos().is_multiple_of(1_000_000);
        if odd(self.restart_delay) || odd(self.clock_skew) {
            return Err("restart_delay and clock_skew are whole milliseconds".to_owned());
        }
        let bad = |name: &String| name.is_empty() || !name.chars().all(|c| c.is_ascii_graphic());
        if self.client_name.as_ref().is_some_and(bad) {
            return Err("a client_name has no spaces and only printable ASCII characters".to_owned());
        }
        if self.tls.as_ref().is_some_and(|tls| tls.cert.is_some() != tls.key.is_some()) {
            return Err("a client certificate needs both parameters, cert and key".to_owned());
        }
        Ok(())
    }

    pub(crate) fn keys(&self) -> Keys {
        Keys::new(self.prefix.clone())
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        match &self.topology {
            Topology::Redlock(servers) => servers.len(),
            Topology::Single(_) | Topology::Sentinel { .. } => 1,
        }
    }

    /// What the restart delay must exceed a lease by: 3 D + 2 e, and behind an automatic failover the time for which an
    /// old master may go on serving.
    pub(crate) fn reserve(&self) -> Duration {
        let failover = if self.is_sentinel() { OLD_MASTER } else { Duration::ZERO };
        self.start_delay() + failover
    }

    /// How long a new node grants nothing: 3 D + 2 e.
    pub(crate) fn start_delay(&self) -> Duration {
        if self.restart_delay.is_zero() { Duration::ZERO } else { BUCKET * 3 + self.clock_skew * 2 }
    }

    /// The longest lease that the restart delay outlasts.
    pub(crate) fn longest_lease(&self) -> Duration {
        if self.restart_delay.is_zero() {
            Duration::MAX
        } else {
            self.restart_delay.saturating_sub(self.reserve())
        }
    }

    pub(crate) fn is_sentinel(&self) -> bool {
        matches!(self.topology, Topology::Sentinel { .. })
    }

    /// What all clients of a deployment must agree on: version, W, N, D, e, the number of counters, and the hash that
    /// picks one. Durations in milliseconds. Part of the public layout.
    pub(crate) fn par(&self) -> String {
        format!(
            "1:{}:{}:{}:{}:{STRIPES}:fnv1a-fmix64",
            self.restart_delay.as_millis(),
            self.nodes(),
            BUCKET.as_millis(),
            self.clock_skew.as_millis(),
        )
    }

    /// For how long one node is waited for.
    ///
    /// A claim takes up to three requests to a node (grant, commit, release), so it is at most a third of what core gives
    /// a claim.
    ///
    /// # Errors
    ///
    /// Says what to write instead, if the setting is more than that.
    pub(crate) fn limit(&self, ttl: Duration, request_timeout: Duration) -> Result<Duration, String> {
        if self.nodes() == 1 {
            return Ok(request_timeout);
        }
        let most = request_timeout / 3;
        match self.node_timeout {
            Some(limit) if limit > most || limit.is_zero() => Err(format!(
                "a node_timeout of {limit:?} does not fit a request_timeout of {request_timeout:?}, which is for three \
                 requests to a node: write {most:?} or less, or raise request_timeout"
            )),
            Some(limit) => Ok(limit),
            None => Ok((ttl / 10).max(Duration::from_millis(100)).min(most)),
        }
    }
}
