#![doc = include_str!("../README.md")]

mod client;
mod connect;
mod error;
mod keep_alive;
mod layout;
mod open;
mod resolver;
mod session;
mod url;
mod version;
mod watch;
mod wire;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Backend, BackendError, BackendUrl, Fairness, Guarantees, Location, LockName, OpenOptions, Opened,
    UrlError, with_port,
};

use crate::connect::Credentials;
pub use crate::connect::Tls;
use crate::layout::Layout;
use crate::version::Versions;

/// The prefix of all keys unless another is set.
pub const DEFAULT_PREFIX: &str = "dlock/";

/// Locks in etcd.
///
/// Making one does no I/O: what is wrong with an address, a password or a certificate shows when the session is opened.
///
/// # Examples
///
/// ```
/// use dlock_core::{Backend, LockName};
/// use dlock_etcd::EtcdBackend;
///
/// let backend = EtcdBackend::new(["etcd-1:2379", "etcd-2:2379", "etcd-3:2379"]);
/// let location = backend.locate(&LockName::new("orders/42")?);
/// // What `etcdctl lock` takes; the keys of the claims are under it.
/// assert_eq!(location.location, "dlock/orders%2F42");
/// assert_eq!(
///     location.inspect.unwrap(),
///     "etcdctl --endpoints etcd-1:2379,etcd-2:2379,etcd-3:2379 get --prefix dlock/orders%2F42/",
/// );
/// # Ok::<(), dlock_core::NameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct EtcdBackend {
    endpoints: Vec<String>,
    layout: Layout,
    prefix: String,
    user: Option<Credentials>,
    tls: Option<Tls>,
    /// What the members have told of themselves when sessions were opened.
    versions: Arc<Mutex<Versions>>,
}

impl EtcdBackend {
    /// Locks in the etcd whose members are at these addresses, each `host:port`, or `host` for port 2379.
    pub fn new<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Self {
        Self::builder(endpoints).build()
    }

    /// Locks in the etcd whose members are at these addresses, with settings.
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> EtcdBackendBuilder {
        EtcdBackendBuilder(Self {
            endpoints: endpoints
                .into_iter()
                .map(|endpoint| with_port(endpoint.into(), url::DEFAULT_PORT))
                .collect(),
            layout: Layout::new(DEFAULT_PREFIX),
            prefix: DEFAULT_PREFIX.to_owned(),
            user: None,
            tls: None,
            versions: Arc::default(),
        })
    }

    /// Reads `etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT...]`, or `etcds://` for TLS, and the parameters `prefix`, `ca`,
    /// `cert`, `key` and `server_name`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what to write instead.
    ///
    /// # Examples
    ///
    /// ```
    /// use dlock_core::BackendUrl;
    /// use dlock_etcd::EtcdBackend;
    ///
    /// let mut url = BackendUrl::parse("etcds://shop:secret@etcd-1:2379,etcd-2?prefix=shop/&ca=/etc/etcd/ca.pem")?;
    /// let backend = EtcdBackend::from_url(&mut url)?;
    /// url.finish()?;
    /// assert!(!format!("{backend:?}").contains("secret"));
    /// # Ok::<(), dlock_core::UrlError>(())
    /// ```
    pub fn from_url(url: &mut BackendUrl) -> Result<Self, UrlError> {
        url::read(url)
    }

    fn versions(&self) -> MutexGuard<'_, Versions> {
        self.versions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Settings of an [`EtcdBackend`].
#[derive(Clone, Debug)]
#[must_use = "settings do nothing until build is called"]
pub struct EtcdBackendBuilder(EtcdBackend);

impl EtcdBackendBuilder {
    /// Sets the prefix of all keys, as it is: end it with a slash to keep its keys together. [`DEFAULT_PREFIX`] unless
    /// set.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self.0.layout = Layout::new(self.0.prefix.clone());
        self
    }

    /// Sets the user and its password, for an etcd with authentication.
    pub fn user(mut self, name: impl Into<String>, password: impl Into<String>) -> Self {
        self.0.user = Some(Credentials { name: name.into(), password: password.into() });
        self
    }

    /// Connects with TLS.
    pub fn tls(mut self, tls: Tls) -> Self {
        self.0.tls = Some(tls);
        self
    }

    /// The backend. No I/O.
    pub fn build(self) -> EtcdBackend {
        self.0
    }
}

#[async_trait]
impl Backend for EtcdBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees::new("etcd")
            .exclusion(self.versions().exclusion(&self.endpoints))
            .fairness(Fairness::Global)
            .min_ttl(Duration::from_secs(1))
            .takeover(1, Duration::from_secs(3))
            .note(
                "a TTL is rounded up to whole seconds, and to 1.5 election time-outs of the servers (2 s unless they are set \
                 otherwise)",
            )
            .note("what is said of exclusion is known of the members that were named")
            .note("when another member comes to lead, it starts every lease anew: a crashed holder stays a TTL longer")
    }

    fn locate(&self, name: &LockName) -> Location {
        let key = self.layout.lock(name);
        let scheme = if self.tls.is_some() { "https://" } else { "" };
        let endpoints: Vec<_> = self.endpoints.iter().map(|endpoint| format!("{scheme}{endpoint}")).collect();
        let word = url::shell_word(&format!("{key}/"));
        let endpoints = url::shell_word(&endpoints.join(","));
        Location::new("etcd", key).inspect(format!("etcdctl --endpoints {endpoints} get --prefix {word}"))
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        open::open(self, options).await
    }
}
