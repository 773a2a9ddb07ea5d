//! TLS: which certificates are trusted, and which one is shown.

use std::path::Path;
use std::sync::Arc;

use dlock_core::BackendError;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

use crate::settings::TlsFiles;

/// Reads the files. The cryptography is named, not taken from the process: that would panic where two are linked in.
pub(crate) fn client_config(files: &TlsFiles) -> Result<Arc<ClientConfig>, BackendError> {
    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("the provider has ciphers for the default versions")
        .with_root_certificates(roots(files.ca.as_deref())?);
    let config = match (&files.cert, &files.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let private = PrivateKeyDer::from_pem_file(key).map_err(|_| {
                // The cause is not shown: it is about a secret.
                BackendError::refused(format!("{} is no readable private key in PEM form", key.display()))
            })?;
            config.with_client_auth_cert(chain, private).map_err(|error| {
                BackendError::refused(format!("the key {} does not fit {}", key.display(), cert.display()))
                    .with_source(error)
            })?
        }
        _ => config.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

fn roots(ca: Option<&Path>) -> Result<RootCertStore, BackendError> {
    let mut store = RootCertStore::empty();
    if let Some(ca) = ca {
        for certificate in certificates(ca)? {
            store.add(certificate).map_err(|error| {
                BackendError::refused(format!("{} holds no certificate to be trusted", ca.display()))
                    .with_source(error)
            })?;
        }
        return Ok(store);
    }
    let system = rustls_native_certs::load_native_certs();
    // Some that cannot be read are no harm: a server that needs one of them is refused by name.
    store.add_parsable_certificates(system.certs);
    if store.is_empty() {
        return Err(BackendError::refused(
            "this system has no trusted certificates: install ca-certificates, or name a file with the parameter ca",
        ));
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BackendError> {
    let unreadable = || BackendError::refused(format!("{} holds no certificate in PEM form", path.display()));
    let read: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(unreadable()),
        Err(error) => Err(unreadable().with_source(error)),
    }
}
