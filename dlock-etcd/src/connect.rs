//! How one member of etcd is reached: address, TLS, time limits.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use dlock_core::BackendError;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::error;

/// The interval of HTTP/2 pings on a connection that is silent and has calls open. Servers of etcd end connections that
/// ping more often than every 5 s (`--grpc-keepalive-min-time`).
const PING_INTERVAL: Duration = Duration::from_secs(6);

/// TLS for connections to etcd: whom to trust, and who we are.
///
/// Without an own authority, those of the operating system are trusted. Files are read whenever a session is opened, so
/// that renewed certificates are found. Never shows a key.
///
/// # Examples
///
/// ```
/// use dlock_etcd::{EtcdBackend, Tls};
///
/// let tls = Tls::new().ca_file("/etc/etcd/ca.pem").identity_files("/etc/etcd/me.pem", "/etc/etcd/me.key");
/// let backend = EtcdBackend::builder(["etcd-1:2379", "etcd-2:2379"]).tls(tls).build();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tls {
    pub(crate) ca: Option<Pem>,
    pub(crate) identity: Option<(Pem, Pem)>,
    pub(crate) server_name: Option<String>,
}

impl Tls {
    /// TLS with the authorities of the operating system.
    pub fn new() -> Self {
        Self::default()
    }

    /// Trusts the authorities in a PEM file, and no others.
    pub fn ca_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.ca = Some(Pem::File(path.into()));
        self
    }

    /// Trusts the authorities in PEM text, and no others.
    pub fn ca_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca = Some(Pem::Text(pem.into()));
        self
    }

    /// Shows a client certificate, from PEM files of the certificate and its key.
    pub fn identity_files(mut self, certificate: impl Into<PathBuf>, key: impl Into<PathBuf>) -> Self {
        self.identity = Some((Pem::File(certificate.into()), Pem::File(key.into())));
        self
    }

    /// Shows a client certificate, from PEM texts of the certificate and its key.
    pub fn identity_pem(mut self, certificate: impl Into<Vec<u8>>, key: impl Into<Vec<u8>>) -> Self {
        self.identity = Some((Pem::Text(certificate.into()), Pem::Text(key.into())));
        self
    }

    /// Expects this name in the server's certificate, instead of the host that it is reached at.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    async fn config(&self) -> Result<ClientTlsConfig, BackendError> {
        let mut config = ClientTlsConfig::new();
        config = match &self.ca {
            Some(ca) => config.ca_certificate(Certificate::from_pem(ca.read("ca").await?)),
            None => config.with_native_roots(),
        };
        if let Some((certificate, key)) = &self.identity {
            config =
                config.identity(Identity::from_pem(certificate.read("cert").await?, key.read("key").await?));
        }
        if let Some(name) = &self.server_name {
            config = config.domain_name(name.clone());
        }
        Ok(config)
    }
}

#[derive(Clone)]
pub(crate) enum Pem {
    File(PathBuf),
    Text(Vec<u8>),
}

impl Pem {
    async fn read(&self, what: &str) -> Result<Vec<u8>, BackendError> {
        let path = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::File(path) => path.clone(),
        };
        let shown = path.display().to_string();
        let read = tokio::task::spawn_blocking(move || std::fs::read(path)).await;
        let read = read.map_err(|_| BackendError::unavailable("the runtime shuts down"))?;
        read.map_err(|error| {
            BackendError::refused(format!(
                "the file {what}={shown} cannot be read: give the path of a PEM file"
            ))
            .with_source(error)
        })
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.fmt(f),
            Self::Text(_) => f.write_str("PEM"),
        }
    }
}

/// A user and its password, which is never shown.
#[derive(Clone)]
pub(crate) struct Credentials {
    pub(crate) name: String,
    pub(crate) password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One member, as clients reach it.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// `host:port`.
    pub(crate) address: String,
    endpoint: Endpoint,
    pub(crate) tls: bool,
    limit: Duration,
}

impl Member {
    /// The members at these addresses. Reads the files that TLS names.
    pub(crate) async fn all(
        addresses: &[String],
        tls: Option<&Tls>,
        request_timeout: Duration,
    ) -> Result<Vec<Self>, BackendError> {
        let config = match tls {
            Some(tls) => Some(tls.config().await?),
            None => None,
        };
        // So that one that does not answer leaves time to ask another.
        let limit = (request_timeout / 3).max(Duration::from_millis(100));
        addresses.iter().map(|address| Self::new(address, config.clone(), limit)).collect()
    }

    fn new(address: &str, tls: Option<ClientTlsConfig>, limit: Duration) -> Result<Self, BackendError> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let illegal = || BackendError::refused(format!("{address:?} is no address of etcd: write HOST:PORT"));
        let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
            .map_err(|_| illegal())?
            .connect_timeout(limit)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(limit.max(Duration::from_secs(1)))
            // Pings on a connection without calls are a reason for servers to end it.
            .keep_alive_while_idle(false)
            .user_agent(concat!("dlock/", env!("CARGO_PKG_VERSION")))
            .map_err(|_| illegal())?;
        let with_tls = tls.is_some();
        if let Some(tls) = tls {
            endpoint = endpoint.tls_config(tls).map_err(|error| {
                BackendError::refused(
                    "the certificates for TLS cannot be used: see that ca, cert and key are PEM files",
                )
                .with_source(error::Cause::of(&error))
            })?;
        }
        Ok(Self { address: address.to_owned(), endpoint, tls: with_tls, limit })
    }

    /// Connects, within a limit.
    pub(crate) async fn connect(&self) -> Result<Channel, BackendError> {
        let Self { address, limit, .. } = self;
        match tokio::time::timeout(*limit, self.endpoint.connect()).await {
            Ok(Ok(channel)) => Ok(channel),
            Ok(Err(error)) => Err(error::of_connecting(address, &error)),
            Err(_) => {
                Err(BackendError::unavailable(format!("etcd at {address} did not answer within {limit:?}")))
            }
        }
    }
}
