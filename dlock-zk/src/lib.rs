#![doc = include_str!("../README.md")]

mod client;
mod connect;
mod error;
mod layout;
mod lease;
mod link;
mod open;
mod own;
mod sasl;
mod session;
mod settings;
mod tls;
mod url;
mod wire;

use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Backend, BackendError, BackendUrl, Basis, Fairness, Guarantees, Location, LockName, OpenOptions, Opened,
    UrlError, with_port,
};

#[doc(hidden)]
pub use crate::lease::LeaseRule;
use crate::settings::{Authentication, Secret, Settings};
pub use crate::tls::Tls;

/// The node below which all locks are, unless another is set.
pub const DEFAULT_PREFIX: &str = "dlock";
/// The `tickTime` of the servers, unless another is set: that of ZooKeeper's own example configuration.
pub const DEFAULT_TICK: Duration = Duration::from_secs(2);

/// Locks in ZooKeeper.
///
/// Making one does no I/O: what is wrong with an address, a password or a certificate shows when the session is opened.
///
/// # Examples
///
/// ```
/// use dlock_core::{Backend, LockName};
/// use dlock_zk::ZkBackend;
///
/// let backend = ZkBackend::new(["zk-1:2181", "zk-2:2181", "zk-3:2181"]);
/// let location = backend.locate(&LockName::new("orders/42")?);
/// // The path that Curator's InterProcessMutex takes; the nodes of the claims are below it.
/// assert_eq!(location.location, "/dlock/orders%2F42");
/// assert_eq!(
///     location.inspect.unwrap(),
///     "zkCli.sh -server zk-1:2181,zk-2:2181,zk-3:2181 ls /dlock/orders%2F42",
/// );
/// # Ok::<(), dlock_core::NameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ZkBackend(Settings);

impl ZkBackend {
    /// Locks in the ensemble whose servers are at these addresses, each `host:port`, or `host` for port 2181.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self::builder(endpoints).build()
    }

    /// Locks in the ensemble whose servers are at these addresses, with settings.
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> ZkBackendBuilder {
        let endpoints =
            endpoints.into_iter().map(|endpoint| with_port(endpoint.into(), url::DEFAULT_PORT)).collect();
        ZkBackendBuilder(Settings::new(endpoints))
    }

    /// Reads `zk://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...][/CHROOT]`, or `zks://` for TLS, and the parameters `prefix`,
    /// `tick`, `auth`, `world_readable`, `ca`, `cert`, `key` and `server_name`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what to write instead.
    ///
    /// # Examples
    ///
    /// ```
    /// use dlock_core::BackendUrl;
    /// use dlock_zk::ZkBackend;
    ///
    /// let mut url = BackendUrl::parse("zks://shop:secret@zk-1:2281,zk-2:2281/apps?prefix=locks&ca=/etc/zk/ca.pem")?;
    /// let backend = ZkBackend::from_url(&mut url)?;
    /// url.finish()?;
    /// assert!(!format!("{backend:?}").contains("secret"));
    /// # Ok::<(), dlock_core::UrlError>(())
    /// ```
    pub fn from_url(url: &mut BackendUrl) -> Result<Self, UrlError> {
        url::read(url)
    }
}

/// Settings of a [`ZkBackend`].
#[derive(Clone, Debug)]
#[must_use = "settings do nothing until build is called"]
pub struct ZkBackendBuilder(Settings);

impl ZkBackendBuilder {
    /// Sets the path, below the chroot, below which all locks are: `dlock` or `shop/locks`. It is made where it is not
    /// there. [`DEFAULT_PREFIX`] unless set.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.layout = self.0.layout.with_prefix(&prefix.into());
        self
    }

    /// Sets the node that stands for the root. It must be there.
    pub fn chroot(mut self, chroot: impl Into<String>) -> Self {
        self.0.layout = self.0.layout.with_chroot(&chroot.into());
        self
    }

    /// Sets the greatest `tickTime` of the servers, on which the certainty of leases rests. [`DEFAULT_TICK`] unless set.
    ///
    /// Less than the servers have breaks exclusion (P1). Behind observers that follow a follower it is twice their
    /// `tickTime`.
    pub fn tick(mut self, tick: Duration) -> Self {
        self.0.tick = tick;
        self
    }

    /// Authenticates with scheme `digest`, and keeps what is made to this user.
    pub fn digest(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.authentication = Some(Authentication::Digest(Secret::new(user, password)));
        self
    }

    /// Authenticates with SASL's DIGEST-MD5, and keeps what is made to this user.
    pub fn sasl(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.authentication = Some(Authentication::Sasl(Secret::new(user, password)));
        self
    }

    /// Lets everybody read what an authenticated user makes. Without a user everybody may do everything.
    pub fn world_readable(mut self, world_readable: bool) -> Self {
        self.0.world_readable = world_readable;
        self
    }

    /// Connects with TLS.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.0.tls = Some(tls);
        self
    }

    /// Takes leases for certain by another rule, all but one of them wrong: for the tests that show it.
    #[doc(hidden)]
    pub fn lease_rule(mut self, rule: LeaseRule) -> Self {
        self.0.rule = rule;
        self
    }

    /// The backend. No I/O.
    pub fn build(self) -> ZkBackend {
        ZkBackend(self.0)
    }
}

#[async_trait]
impl Backend for ZkBackend {
    fn guarantees(&self) -> Guarantees {
        let tick = self.0.tick;
        Guarantees::new("zk")
            .exclusion(Basis::If(format!(
                "the tickTime of every server is at most {tick:?} (parameter tick; half of it behind observers that follow \
                 a follower), and the maxSessionTimeout of every server is at least the TTL"
            )))
            .fairness(Fairness::Global)
            .min_ttl(lease::least_ttl(tick))
            .takeover(1, tick.saturating_mul(2))
            .note("a TTL is at most, and at least, what the servers are set to grant: 2 to 20 ticks unless they say otherwise")
            .note("when another server comes to lead, it starts every session anew: a crashed holder stays a TTL longer")
    }

    fn locate(&self, name: &LockName) -> Location {
        let path = self.0.layout.lock(name);
        let endpoints = url::shell_word(&self.0.endpoints.join(","));
        let word = url::shell_word(&path);
        Location::new("zk", path).inspect(format!("zkCli.sh -server {endpoints} ls {word}"))
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        open::open(&self.0, options).await
    }
}
