//! PostgreSQL's own URLs, and what dlock adds to them.

use std::str::FromStr as _;

use dlock_core::{BackendUrl, UrlError, check_prefix};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::PostgresBackend;

/// The parameters of PostgreSQL's URLs that sqlx knows.
const PARAMETERS: [&str; 11] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "options",
];

/// The longest identifier of a server.
const LONGEST_SCHEMA: usize = 63;

pub(crate) fn read(url: &mut BackendUrl) -> Result<PostgresBackend, UrlError> {
    let schema = url.take("schema");
    if let Some(schema) = &schema {
        check_schema(schema)?;
    }
    let prefix = url.take("prefix").unwrap_or_default();
    check_prefix(&prefix)?;
    let may_create = match url.take("create_schema").as_deref() {
        None | Some("true") => true,
        Some("false") => false,
        Some(other) => {
            return Err(UrlError::new(format!("parameter create_schema is true or false, not {other:?}")));
        }
    };
    let failover_settle = url.take_duration("failover_settle")?;
    let mut backend =
        PostgresBackend::builder(connect_options(url)?).prefix(prefix).create_schema(may_create);
    if let Some(schema) = schema {
        backend = backend.schema(schema);
    }
    if let Some(settle) = failover_settle {
        backend = backend.failover_settle(settle);
    }
    Ok(backend.build())
}

/// A schema may have any name that the server takes.
pub(crate) fn check_schema(schema: &str) -> Result<(), UrlError> {
    let error = |what: &str| Err(UrlError::new(format!("parameter schema: {what}")));
    match schema {
        "" => error("a schema has a name; leave the parameter out for dlock"),
        _ if schema.len() > LONGEST_SCHEMA => error("a schema's name has at most 63 bytes"),
        _ if schema.contains('\0') => error("a schema's name has no zero character"),
        _ if schema.starts_with("pg_") => error("names that start with pg_ are the server's own"),
        _ => Ok(()),
    }
}

fn connect_options(url: &mut BackendUrl) -> Result<PgConnectOptions, UrlError> {
    let authority = url.rest().split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if host.contains(',') {
        return Err(UrlError::new(
            "one host: this backend talks to the primary alone; give it an address that follows the primary",
        ));
    }
    if host.is_empty() && !authority.is_empty() {
        return Err(UrlError::new(
            "the URL has no host: write postgres://USER@HOST/DATABASE, or the folder of a socket as in \
             postgres:///DATABASE?user=USER&host=/var/run/postgresql",
        ));
    }
    let mut text = format!("postgres://{}", url.rest());
    let mut separator = '?';
    for parameter in PARAMETERS {
        let Some(value) = url.take(parameter) else { continue };
        match parameter {
            "sslmode" if value.parse::<PgSslMode>().is_err() || value == "allow" => {
                return Err(UrlError::new(format!(
                    "parameter sslmode is disable, prefer, require, verify-ca or verify-full, not {value:?}"
                )));
            }
            "port" if value.parse::<u16>().is_err() => {
                return Err(UrlError::new(format!("parameter port is a number up to 65535, not {value:?}")));
            }
            "hostaddr" if value.parse::<std::net::IpAddr>().is_err() => {
                return Err(UrlError::new(format!("parameter hostaddr is an IP address, not {value:?}")));
            }
            _ => {}
        }
        text.push(separator);
        separator = '&';
        text.push_str(parameter);
        text.push('=');
        text.extend(utf8_percent_encode(&value, NON_ALPHANUMERIC));
    }
    // The cause is not shown: it may repeat parts of the URL, the password's among them.
    PgConnectOptions::from_str(&text).map_err(|_| {
        UrlError::new(
            "the part before the question mark is USER:PASSWORD@HOST:PORT/DATABASE with special characters \
             percent-encoded (@ as %40, / as %2F, # as %23)",
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dlock_core::{Backend as _, Basis};

    use super::*;

    fn options(url: &str) -> Result<PgConnectOptions, UrlError> {
        let mut url = BackendUrl::parse(url)?;
        let backend = read(&mut url)?;
        url.finish()?;
        Ok(backend.connect)
    }

    #[test]
    fn urls_are_those_of_postgresql() {
        let read = options("postgres://app:s%40cret@db.example:5433/shop?sslmode=verify-full").unwrap();
        assert_eq!(
            (read.get_host(), read.get_port(), read.get_username(), read.get_database()),
            ("db.example", 5433, "app", Some("shop"))
        );
        assert!(matches!(read.get_ssl_mode(), PgSslMode::VerifyFull));
        let read = options("postgresql:///shop?host=/var/run/postgresql&user=app").unwrap();
        assert_eq!(read.get_socket().unwrap().to_str(), Some("/var/run/postgresql"));
        assert_eq!((read.get_username(), read.get_database()), ("app", Some("shop")));
        options("postgres:").unwrap();
    }

    #[test]
    fn what_a_failover_settles_is_a_duration() {
        for (url, seconds, holds) in [
            ("postgres://h/shop", 60, true),
            ("postgres://h/shop?failover_settle=2m", 120, true),
            ("postgres://h/shop?failover_settle=0s", 0, false),
        ] {
            let backend = read(&mut BackendUrl::parse(url).unwrap()).unwrap();
            assert_eq!(backend.failover_settle, Duration::from_secs(seconds), "{url}");
            let exclusion = backend.guarantees().exclusion;
            assert_eq!(exclusion == Basis::Holds, holds, "{url}: {exclusion}");
        }
    }

    #[test]
    fn what_cannot_be_meant_is_refused_without_a_secret() {
        for (url, word) in [
            ("postgres://app:secret@h1,h2/shop", "one host"),
            ("postgres://app:secret@/shop", "no host"),
            ("postgres://app:secret@h:port/shop", "percent-encoded"),
            ("postgres://app:secret@h/shop?sslmode=yes", "verify-full"),
            ("postgres://app:secret@h/shop?port=x", "65535"),
            ("postgres://app:secret@h/shop?schema=", "leave the parameter out"),
            ("postgres://app:secret@h/shop?schema=pg_locks", "server's own"),
            ("postgres://app:secret@h/shop?create_schema=no", "true or false"),
            ("postgres://app:secret@h/shop?failover_settle=60", "10s"),
            ("postgres://app:secret@h/shop?connect_timeout=5", "known are"),
        ] {
            let error = options(url).unwrap_err().to_string();
            assert!(error.contains(word), "{url}: {error}");
            assert!(!error.contains("secret"), "{url}: {error}");
        }
        let mut url = BackendUrl::parse("postgres://app:secret@h/shop").unwrap();
        let backend = read(&mut url).unwrap();
        let builder = PostgresBackend::builder(backend.connect.clone());
        for text in [
            format!("{backend:?}"),
            format!("{builder:?}"),
            format!("{:?}", backend.plan().unwrap()),
            format!("{:?}", backend.transaction_locks()),
        ] {
            assert!(!text.contains("secret"), "{text}");
            assert!(text.contains("shop"), "it is of use: {text}");
        }
    }
}
