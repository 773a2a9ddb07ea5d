//! The URLs that pick and configure a backend.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::name::LockName;

/// A backend's URL, taken apart: scheme, the part before `?`, and the parameters.
///
/// Each reader of parameters takes out what it knows; what is left at the end is an error that names the known ones
/// ([`finish`](Self::finish)). Never shows a password.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use dlock_core::BackendUrl;
///
/// let mut url = BackendUrl::parse("etcd://h1:2379,h2:2379?ttl=10s")?;
/// assert_eq!(url.scheme(), "etcd");
/// assert_eq!(url.rest(), "h1:2379,h2:2379");
/// assert_eq!(url.take_duration("ttl")?, Some(Duration::from_secs(10)));
/// url.finish()?;
/// # Ok::<(), dlock_core::UrlError>(())
/// ```
#[derive(Clone)]
pub struct BackendUrl {
    scheme: String,
    rest: String,
    parameters: BTreeMap<String, String>,
    known: Vec<&'static str>,
}

/// What is wrong with a URL, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UrlError(String);

impl UrlError {
    /// An error with a message: lower case, no full stop, says what to write instead, never a secret.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

impl BackendUrl {
    /// Takes a URL apart. `//` after the scheme is optional.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if there is no scheme, a parameter has no `=`, comes twice, or is not percent-encoded UTF-8.
    pub fn parse(url: &str) -> Result<Self, UrlError> {
        let (scheme, rest) = url.split_once(':').ok_or_else(|| {
            UrlError::new("a URL starts with a scheme and a colon, as in sqlite:/var/lib/locks.db or memory:")
        })?;
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
        if scheme.is_empty() || !scheme.chars().all(legal) {
            // The text may be anything, a password included: it is not repeated.
            return Err(UrlError::new(
                "a URL starts with a scheme of letters, as in sqlite:/var/lib/locks.db",
            ));
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        if query.contains('@') && !rest.contains('@') {
            // A password with a question mark in it would be read, and shown, as parameters.
            return Err(UrlError::new(
                "an @ behind a question mark: write a ? of a password as %3F, and an @ of a parameter as %40",
            ));
        }
        let mut parameters = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            // A pair without a value is not repeated: it may be the rest of a password.
            let (key, value) = pair.split_once('=').ok_or_else(|| {
                UrlError::new("a parameter has no value: write NAME=VALUE after the question mark")
            })?;
            let key = decode(key, "the name of a parameter")?;
            let value = decode(value, &format!("the value of parameter {key:?}"))?;
            if parameters.insert(key.clone(), value).is_some() {
                return Err(UrlError::new(format!("parameter {key:?} is there twice: write it once")));
            }
        }
        Ok(Self {
            scheme: scheme.to_ascii_lowercase(),
            rest: rest.strip_prefix("//").unwrap_or(rest).to_owned(),
            parameters,
            known: Vec::new(),
        })
    }

    /// The scheme in lower case.
    pub fn scheme(&self) -> &str {
        &self.scheme
    }

    /// What stands between the scheme and the parameters, not decoded; it may hold a password.
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// What stands between the scheme and the parameters, percent-decoded: for a path.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if it is not percent-encoded UTF-8.
    pub fn decoded_rest(&self) -> Result<String, UrlError> {
        decode(&self.rest, "the part after the scheme")
    }

    /// Takes out a parameter.
    pub fn take(&mut self, key: &'static str) -> Option<String> {
        self.known.push(key);
        self.parameters.remove(key)
    }

    /// Takes out a parameter that is a duration with a unit: `500ms`, `10s`, `2m`, `1h`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if it is not one.
    pub fn take_duration(&mut self, key: &'static str) -> Result<Option<Duration>, UrlError> {
        self.take(key)
            .map(|value| {
                parse_duration(&value).map_err(|error| UrlError::new(format!("parameter {key}: {error}")))
            })
            .transpose()
    }

    /// Ends the reading.
    ///
    /// # Errors
    ///
    /// [`UrlError`] if a parameter was not taken out: it names the first and lists those that are known.
    pub fn finish(self) -> Result<(), UrlError> {
        let Some(unknown) = self.parameters.keys().next() else { return Ok(()) };
        let mut known = self.known;
        known.sort_unstable();
        known.dedup();
        Err(UrlError::new(format!(
            "unknown parameter {unknown:?} for {}: known are {}",
            self.scheme,
            known.join(", ")
        )))
    }
}

impl fmt::Debug for BackendUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendUrl").field("scheme", &self.scheme).finish_non_exhaustive()
    }
}

/// Reads a duration with a unit: `500ms`, `10s`, `2m`, `1h`, also `1m30s`.
///
/// # Errors
///
/// Says what to write instead.
///
/// ```
/// use std::time::Duration;
/// assert_eq!(dlock_core::parse_duration("1m30s").unwrap(), Duration::from_secs(90));
/// assert!(dlock_core::parse_duration("10").unwrap_err().to_string().contains("10s"));
/// ```
pub fn parse_duration(text: &str) -> Result<Duration, UrlError> {
    humantime::parse_duration(text.trim()).map_err(|_| {
        UrlError::new(format!(
            "{text:?} is not a duration: write a number and a unit, as in 500ms, 10s, 2m or 1h"
        ))
    })
}

/// The prefix that a `prefix` parameter may set: like a lock name, it has no control characters.
///
/// # Errors
///
/// [`UrlError`] says what is wrong.
pub fn check_prefix(prefix: &str) -> Result<(), UrlError> {
    if prefix.is_empty() {
        return Ok(());
    }
    LockName::new(prefix).map(drop).map_err(|error| UrlError::new(format!("parameter prefix: {error}")))
}

fn decode(text: &str, what: &str) -> Result<String, UrlError> {
    percent_encoding::percent_decode_str(text)
        .decode_utf8()
        .map(std::borrow::Cow::into_owned)
        .map_err(|_| UrlError::new(format!("{what} is not percent-encoded UTF-8")))
}

/// For backends: a `HOST:PORT`, `[V6]:PORT`, or either without a port, which gets the default one; none if it is neither.
pub fn parse_endpoint(text: &str, default_port: u16) -> Option<String> {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (text, None),
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let legal = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
        }
    };
    if !legal || port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return None;
    }
    Some(with_port(text.to_owned(), default_port))
}

/// For backends: adds the default port to an address without one.
pub fn with_port(address: String, default_port: u16) -> String {
    let has_port = match address.rsplit_once(':') {
        Some((_, port)) => !port.ends_with(']'),
        None => false,
    };
    if has_port { address } else { format!("{address}:{default_port}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_part_of_a_password_is_repeated() {
        for url in [
            "redis://me:se?cret@h",
            "redis://me:se?cre=t@h",
            "me@h:secret",
            "://me:secret@h",
            "redis://me:s@h?cret",
        ] {
            let error = BackendUrl::parse(url).unwrap_err().to_string();
            assert!(!error.contains("cret") && !error.contains("secret"), "{url}: {error}");
        }
        let url = BackendUrl::parse("redis://me:secret@h/0?ttl=1s").unwrap();
        assert!(!format!("{url:?}").contains("secret"));
    }

    #[test]
    fn what_is_left_is_named_and_so_is_what_is_known() {
        let mut url = BackendUrl::parse("sqlite:/a%20b?ttll=1s&prefix=x").unwrap();
        assert_eq!(url.decoded_rest().unwrap(), "/a b");
        assert_eq!(url.take("prefix").as_deref(), Some("x"));
        assert_eq!(url.take_duration("ttl"), Ok(None));
        let error = url.finish().unwrap_err().to_string();
        assert_eq!(error, r#"unknown parameter "ttll" for sqlite: known are prefix, ttl"#);
    }

    #[test]
    fn parameters_come_once_and_with_a_unit() {
        assert!(BackendUrl::parse("memory:?ttl=1s&ttl=2s").unwrap_err().to_string().contains("twice"));
        let mut url = BackendUrl::parse("memory:?ttl=10").unwrap();
        assert!(url.take_duration("ttl").unwrap_err().to_string().contains("10s"));
    }
}
