#![doc = include_str!("../README.md")]

mod batch;
mod claim;
mod connect;
mod error;
mod fanout;
mod group;
mod guarantees;
mod identities;
mod init;
mod keys;
mod locate;
mod node;
mod quarantine;
mod replies;
mod scripts;
mod sentinel;
mod session;
mod settings;
mod strays;
mod takeback;
mod tally;
mod tls;
mod url;
mod wakes;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Backend, BackendError, BackendUrl, Guarantees, Location, LockName, OpenOptions, Opened, UrlError,
    check_prefix,
};

use crate::group::{Group, Seen};
use crate::session::RedisSession;
use crate::settings::{Credentials, Server, Settings, TlsFiles, Topology};

/// Locks on one Redis or Valkey server, or by majority on several.
///
/// Making one does no I/O: what is wrong with a server shows when the session is opened. Clones share what is known of
/// counters, and nothing else.
///
/// # Examples
///
/// ```
/// use dlock_core::{Backend, LockName};
/// use dlock_redis::RedisBackend;
///
/// let backend = RedisBackend::builder("redis.shop.example:6379").prefix("shop:").build()?;
/// let location = backend.locate(&LockName::new("orders/42")?);
/// assert_eq!(location.location, "shop:lock:orders%2F42");
/// assert_eq!(location.inspect.unwrap(), "redis-cli -h redis.shop.example -p 6379 GET shop:lock:orders%2F42");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct RedisBackend {
    settings: Settings,
    seen: Arc<Seen>,
}

impl RedisBackend {
    /// Locks on one server at `HOST` or `HOST:PORT`, with settings.
    pub fn builder(address: impl AsRef<str>) -> RedisBackendBuilder {
        RedisBackendBuilder::new(Kind::Single, [address], 6379)
    }

    /// Locks by majority on several independent servers, an odd number of 3 or more, with settings.
    pub fn redlock<A: AsRef<str>>(addresses: impl IntoIterator<Item = A>) -> RedisBackendBuilder {
        RedisBackendBuilder::new(Kind::Redlock, addresses, 6379)
    }

    /// Locks on the master that Sentinels at these addresses call `service`, with settings.
    pub fn sentinel<A: AsRef<str>>(
        addresses: impl IntoIterator<Item = A>,
        service: impl Into<String>,
    ) -> RedisBackendBuilder {
        RedisBackendBuilder::new(Kind::Sentinel(service.into()), addresses, 26379)
    }

    /// Reads `redis://`, `redis+redlock://`, `redis+sentinel://` and their TLS forms with `rediss`, with the parameters
    /// that the table above lists.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what to write instead. It never repeats a password.
    ///
    /// # Examples
    ///
    /// ```
    /// use dlock_core::BackendUrl;
    /// use dlock_redis::RedisBackend;
    ///
    /// let mut url = BackendUrl::parse("redis+redlock://h1:6379,h2:6379,h3:6379/0?prefix=shop:")?;
    /// let backend = RedisBackend::from_url(&mut url)?;
    /// url.finish()?;
    /// # Ok::<(), dlock_core::UrlError>(())
    /// ```
    pub fn from_url(url: &mut BackendUrl) -> Result<Self, UrlError> {
        Ok(Self::new(url::settings(url)?))
    }

    fn new(settings: Settings) -> Self {
        Self { settings, seen: Arc::new(Seen::new()) }
    }
}

/// Settings of a [`RedisBackend`].
#[derive(Clone, Debug)]
pub struct RedisBackendBuilder {
    kind: Kind,
    addresses: Vec<String>,
    default_port: u16,
    user: Option<String>,
    password: Option<Secret>,
    sentinel_user: Option<String>,
    sentinel_password: Option<Secret>,
    settings: Settings,
}

#[derive(Clone, Debug)]
enum Kind {
    Single,
    Redlock,
    Sentinel(String),
}

/// Never shown.
#[derive(Clone)]
struct Secret(String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("..")
    }
}

impl RedisBackendBuilder {
    fn new<A: AsRef<str>>(kind: Kind, addresses: impl IntoIterator<Item = A>, default_port: u16) -> Self {
        Self {
            kind,
            addresses: addresses.into_iter().map(|address| address.as_ref().to_owned()).collect(),
            default_port,
            user: None,
            password: None,
            sentinel_user: None,
            sentinel_password: None,
            // Replaced when it is built.
            settings: Settings::new(Topology::Redlock(Vec::new())),
        }
    }

    /// The user at every node; without one, the server's default user.
    pub fn user(mut self, user: impl Into<String>) -> Self {
        self.user = Some(user.into());
        self
    }

    /// The password at every node.
    pub fn password(mut self, password: impl Into<String>) -> Self {
        self.password = Some(Secret(password.into()));
        self
    }

    /// The user at the Sentinels, where they want one.
    pub fn sentinel_user(mut self, user: impl Into<String>) -> Self {
        self.sentinel_user = Some(user.into());
        self
    }

    /// The password at the Sentinels, where they want one.
    pub fn sentinel_password(mut self, password: impl Into<String>) -> Self {
        self.sentinel_password = Some(Secret(password.into()));
        self
    }

    /// The number of the database; 0 by default.
    pub fn database(mut self, number: u16) -> Self {
        self.settings.database = i64::from(number);
        self
    }

    /// Uses TLS, and trusts the certificates that the system trusts.
    pub fn tls(mut self) -> Self {
        self.files();
        self
    }

    /// Uses TLS, and trusts the certificates in this PEM file only. Files are read when a session is opened.
    pub fn ca(mut self, file: impl Into<PathBuf>) -> Self {
        self.files().ca = Some(file.into());
        self
    }

    /// Uses TLS, and shows the certificate in the PEM file `cert`, whose key is in the PEM file `key`.
    pub fn client_certificate(mut self, cert: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.files().cert = Some(cert.into());
        self.files().key = Some(key.into());
        self
    }

    /// Puts `prefix` in front of every key and channel; `dlock:` by default.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.settings.prefix = prefix.into();
        self
    }

    /// How long a node grants no locks after it was restarted, promoted, flushed or first used; 35 s by default.
    ///
    /// All clients must agree. It exceeds the longest TTL by 3 s and twice the [`clock_skew`](Self::clock_skew), behind
    /// Sentinels by 12 s more. Zero: never, and nothing is promised over a loss of data.
    pub fn restart_delay(mut self, delay: Duration) -> Self {
        self.settings.restart_delay = delay;
        self
    }

    /// How far the clocks of servers may differ, replicas included; 500 ms by default. All clients must agree.
    pub fn clock_skew(mut self, skew: Duration) -> Self {
        self.settings.clock_skew = skew;
        self
    }

    /// For how long one node of a Redlock is waited for: a tenth of the TTL by default, 100 ms at least, and a third of
    /// the request time-out at most.
    pub fn node_timeout(mut self, timeout: Duration) -> Self {
        self.settings.node_timeout = Some(timeout);
        self
    }

    /// How the connections are called in `CLIENT LIST`; the user needs the permission `+client|setname`.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.settings.client_name = Some(name.into());
        self
    }

    /// The backend. No I/O.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what is wrong with an address or a setting.
    pub fn build(self) -> Result<RedisBackend, UrlError> {
        let own = |user, password: Option<Secret>| match (user, password) {
            (user, Some(Secret(password))) => Ok(Some(Credentials { user, password })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(UrlError::new("a user needs a password as well")),
        };
        let credentials = own(self.user, self.password)?;
        let at_sentinels = own(self.sentinel_user, self.sentinel_password)?;
        let of_servers = if matches!(self.kind, Kind::Sentinel(_)) { &at_sentinels } else { &credentials };
        let servers: Vec<_> = self
            .addresses
            .iter()
            .map(|address| {
                let endpoint = url::endpoint(address, self.default_port)?;
                Ok(Server { endpoint, credentials: of_servers.clone() })
            })
            .collect::<Result<_, UrlError>>()?;
        let mut settings = self.settings;
        settings.topology = match self.kind {
            Kind::Single => {
                Topology::Single(servers.into_iter().next().expect("a single one has one address"))
            }
            Kind::Redlock => Topology::Redlock(servers),
            Kind::Sentinel(service) => Topology::Sentinel { sentinels: servers, service, credentials },
        };
        check_prefix(&settings.prefix)?;
        settings.check().map_err(UrlError::new)?;
        Ok(RedisBackend::new(settings))
    }

    fn files(&mut self) -> &mut TlsFiles {
        self.settings.tls.get_or_insert_default()
    }
}

#[async_trait]
impl Backend for RedisBackend {
    fn guarantees(&self) -> Guarantees {
        guarantees::of(&self.settings)
    }

    fn locate(&self, name: &LockName) -> Location {
        locate::of(&self.settings, name)
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let group = Group::open(&self.settings, Arc::clone(&self.seen), &options).await?;
        let ttl = group.figures.ttl;
        Ok(Opened::with_claim_leases(Arc::new(RedisSession::new(group)), ttl))
    }

    async fn init(&self, options: OpenOptions) -> Result<Vec<String>, BackendError> {
        let group = Group::open(&self.settings, Arc::clone(&self.seen), &options).await?;
        group.init().await
    }
}
