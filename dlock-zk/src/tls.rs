//! TLS: which certificates are trusted, and which one is shown.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use dlock_core::BackendError;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

/// TLS for connections to ZooKeeper: whom to trust, and who we are.
///
/// Without an own authority, those of the operating system are trusted. Files are read whenever a session is opened
/// and whenever it connects anew, so that renewed certificates are found. Never shows a key.
///
/// # Examples
///
/// ```
/// use dlock_zk::{Tls, ZkBackend};
///
/// let tls = Tls::new().ca_file("/etc/zk/ca.pem").identity_files("/etc/zk/me.pem", "/etc/zk/me.key");
/// let backend = ZkBackend::builder(["zk-1:2281", "zk-2:2281"]).tls(tls).build();
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tls {
    ca: Option<Pem>,
    identity: Option<(Pem, Pem)>,
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

    /// Expects this name in the servers' certificates, instead of the host that each is reached at.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the files. The cryptography is named, not taken from the process: that would panic where two are linked in.
    pub(crate) async fn config(&self) -> Result<Arc<ClientConfig>, BackendError> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has ciphers for the default versions")
            .with_root_certificates(self.roots().await?);
        let Some((certificate, key)) = &self.identity else {
            return Ok(Arc::new(builder.with_no_client_auth()));
        };
        let chain = certificates("cert", &certificate.read("cert").await?)?;
        let key = PrivateKeyDer::from_pem_slice(&key.read("key").await?)
            // The cause is not shown: it is about a secret.
            .map_err(|_| BackendError::refused("what was given as key is no private key in PEM form"))?;
        let config = builder.with_client_auth_cert(chain, key).map_err(|error| {
            BackendError::refused("the key does not fit the certificate").with_source(error)
        })?;
        Ok(Arc::new(config))
    }

    async fn roots(&self) -> Result<RootCertStore, BackendError> {
        let mut store = RootCertStore::empty();
        if let Some(ca) = &self.ca {
            for certificate in certificates("ca", &ca.read("ca").await?)? {
                store.add(certificate).map_err(|error| {
                    BackendError::refused("what was given as ca holds no certificate to be trusted")
                        .with_source(error)
                })?;
            }
            return Ok(store);
        }
        let system = off_the_runtime(rustls_native_certs::load_native_certs).await?;
        // Some that cannot be read are no harm: a server that needs one of them is refused by name.
        store.add_parsable_certificates(system.certs);
        if store.is_empty() {
            return Err(BackendError::refused(
                "this system has no trusted certificates: install ca-certificates, or name a file with the parameter ca",
            ));
        }
        Ok(store)
    }
}

fn certificates(what: &str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, BackendError> {
    let wrong =
        || BackendError::refused(format!("what was given as {what} holds no certificate in PEM form"));
    match CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(wrong()),
        Err(error) => Err(wrong().with_source(error)),
    }
}

#[derive(Clone)]
enum Pem {
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
        off_the_runtime(move || std::fs::read(path)).await?.map_err(|error| {
            let message = format!("the file {what}={shown} cannot be read: give the path of a PEM file");
            BackendError::refused(message).with_source(error)
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

async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BackendError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BackendError::unavailable("the runtime shuts down"))
}
