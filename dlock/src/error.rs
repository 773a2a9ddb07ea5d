//! Why no lock manager could be had from a URL.

use dlock_core::{ConfigError, StoreError, UrlError};

/// Why [`connect`](crate::connect) or [`builder`](crate::builder) failed, and what to write instead. Never shows a
/// password.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The URL cannot be read: its shape, a parameter that nobody knows, or a value.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// No backend has this scheme.
    #[error("no backend has the scheme {scheme:?}{}: this version has {known}", meant(*nearest))]
    UnknownScheme {
        /// The scheme in lower case.
        scheme: String,
        /// The scheme that was probably meant.
        nearest: Option<&'static str>,
        /// The schemes that this version has.
        known: String,
    },
    /// The backend is there, but the program was built without it.
    #[error("this program was built without the {backend} backend: {}", cure(feature))]
    FeatureOff {
        /// The backend.
        backend: &'static str,
        /// The cargo feature that adds it.
        feature: &'static str,
    },
    /// A setting does not fit the backend.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The URL is fine, the store is not.
    #[error("no session could be opened at the {backend} store")]
    Store {
        /// The backend.
        backend: &'static str,
        /// What it said.
        source: StoreError,
    },
}

impl ConnectError {
    /// The same call may work later without anybody changing anything: the store could not be reached.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Store { source: StoreError::Unavailable(_), .. })
    }
}

fn meant(nearest: Option<&str>) -> String {
    nearest.map(|scheme| format!(" (did you mean {scheme:?}?)")).unwrap_or_default()
}

fn cure(feature: &str) -> String {
    format!(
        "turn its feature on in Cargo.toml: dlock = {{ package = \"dlock-rs\", version = \"{}.{}\", features = \
         [\"{feature}\"] }}",
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
    )
}
