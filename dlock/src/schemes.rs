//! Every backend by its URL schemes: those of this build, and those that a feature adds.

use std::sync::Arc;

use dlock_core::memory::MemoryBackend;
use dlock_core::{Backend, BackendUrl, UrlError};

use crate::error::ConnectError;

/// Makes a backend from its URL.
pub(crate) type Make = fn(&mut BackendUrl) -> Result<Arc<dyn Backend>, UrlError>;

/// A backend as the facade knows it.
#[derive(Debug)]
pub(crate) struct Entry {
    /// As people write it.
    pub(crate) name: &'static str,
    schemes: &'static [&'static str],
    /// What people may write instead, each near the first scheme.
    also: &'static [&'static str],
    /// The URLs for people, each with what it leads to.
    forms: &'static [(&'static str, &'static str)],
    /// The cargo feature that adds it; none if it is always there.
    feature: Option<&'static str>,
    /// None if it is not in this build.
    make: Option<Make>,
}

/// A form of URL that [`connect`](crate::connect) understands in this version; see [`url_forms`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UrlForm {
    /// The form, as in `sqlite:PATH`.
    pub url: &'static str,
    /// What it leads to, in a few words.
    pub leads_to: &'static str,
    /// The backend's name.
    pub backend: &'static str,
    /// The cargo feature that adds the backend; none if it is always there.
    pub feature: Option<&'static str>,
    /// Whether this build has it.
    pub is_available: bool,
}

/// The forms of URL that [`connect`](crate::connect) understands in this version, for help texts.
///
/// ```
/// assert_eq!(dlock::url_forms().next().unwrap().url, "memory:");
/// ```
pub fn url_forms() -> impl Iterator<Item = UrlForm> {
    BACKENDS.iter().flat_map(|entry| {
        entry.forms.iter().map(|(url, leads_to)| UrlForm {
            url,
            leads_to,
            backend: entry.name,
            feature: entry.feature,
            is_available: entry.make.is_some(),
        })
    })
}

/// The only list of backends; the order is that of the documentation.
static BACKENDS: [Entry; 6] = [
    Entry {
        name: "memory",
        schemes: &["memory"],
        also: &["mem"],
        forms: &[("memory:", "this process alone; memory:NAME for a separate store")],
        feature: None,
        make: Some(memory),
    },
    Entry {
        name: "SQLite",
        schemes: &["sqlite"],
        also: &["file", "db"],
        forms: &[("sqlite:PATH", "a file, for the processes of one machine; nothing to install")],
        feature: Some("sqlite"),
        make: SQLITE,
    },
    Entry {
        name: "etcd",
        schemes: &["etcd", "etcds"],
        also: &[],
        forms: &[
            ("etcd://HOST:PORT,HOST:PORT", "an etcd cluster; USER:PASSWORD@ before the addresses"),
            ("etcds://HOST:PORT", "the same with TLS; ca=FILE, cert=FILE and key=FILE after a ?"),
        ],
        feature: Some("etcd"),
        make: ETCD,
    },
    Entry {
        name: "ZooKeeper",
        schemes: &["zk", "zks"],
        also: &["zookeeper"],
        forms: &[
            ("zk://HOST:PORT,HOST:PORT/CHROOT", "a ZooKeeper ensemble; USER:PASSWORD@ before the addresses"),
            ("zks://HOST:PORT", "the same with TLS; ca=FILE, cert=FILE and key=FILE after a ?"),
        ],
        feature: Some("zk"),
        make: ZK,
    },
    Entry {
        name: "PostgreSQL",
        schemes: &["postgres", "postgresql"],
        also: &["pg", "psql"],
        forms: &[(
            "postgres://USER@HOST/DATABASE",
            "a PostgreSQL database, with PostgreSQL's own parameters",
        )],
        feature: Some("postgres"),
        make: POSTGRES,
    },
    Entry {
        name: "Redis",
        schemes: &["redis", "rediss", "redis+redlock", "rediss+redlock", "redis+sentinel", "rediss+sentinel"],
        also: &["valkey", "redlock", "sentinel"],
        forms: &[
            ("redis://HOST:6379/0", "one Redis or Valkey server; rediss:// for TLS"),
            ("redis+redlock://H1,H2,H3", "a majority of independent servers; rediss+redlock://"),
            ("redis+sentinel://S1,S2,S3/SERVICE", "the master that Sentinel names; rediss+sentinel://"),
        ],
        feature: Some("redis"),
        make: REDIS,
    },
];

fn memory(url: &mut BackendUrl) -> Result<Arc<dyn Backend>, UrlError> {
    Ok(Arc::new(MemoryBackend::from_url(url)?))
}

#[cfg(feature = "redis")]
const REDIS: Option<Make> = Some(|url| Ok(Arc::new(dlock_redis::RedisBackend::from_url(url)?)));
#[cfg(not(feature = "redis"))]
const REDIS: Option<Make> = None;

#[cfg(feature = "sqlite")]
const SQLITE: Option<Make> = Some(|url| Ok(Arc::new(dlock_sqlite::SqliteBackend::from_url(url)?)));
#[cfg(not(feature = "sqlite"))]
const SQLITE: Option<Make> = None;

#[cfg(feature = "etcd")]
const ETCD: Option<Make> = Some(|url| Ok(Arc::new(dlock_etcd::EtcdBackend::from_url(url)?)));
#[cfg(not(feature = "etcd"))]
const ETCD: Option<Make> = None;

#[cfg(feature = "postgres")]
const POSTGRES: Option<Make> = Some(|url| Ok(Arc::new(dlock_postgres::PostgresBackend::from_url(url)?)));
#[cfg(not(feature = "postgres"))]
const POSTGRES: Option<Make> = None;

#[cfg(feature = "zk")]
const ZK: Option<Make> = Some(|url| Ok(Arc::new(dlock_zk::ZkBackend::from_url(url)?)));
#[cfg(not(feature = "zk"))]
const ZK: Option<Make> = None;

/// The backend of a scheme, or why it cannot be had; none if the scheme is not known.
pub(crate) fn find(scheme: &str) -> Result<Option<(&'static Entry, Make)>, ConnectError> {
    let scheme = scheme.to_ascii_lowercase();
    let Some(entry) = BACKENDS.iter().find(|entry| entry.schemes.contains(&scheme.as_str())) else {
        return Ok(None);
    };
    obtain(entry).map(|make| Some((entry, make)))
}

fn obtain(entry: &'static Entry) -> Result<Make, ConnectError> {
    entry.make.ok_or_else(|| ConnectError::FeatureOff {
        backend: entry.name,
        feature: entry.feature.expect("the backend without a feature is in every build"),
    })
}

/// The error for a scheme of no backend.
pub(crate) fn unknown(scheme: String) -> ConnectError {
    let nearest = nearest(&scheme);
    ConnectError::UnknownScheme { scheme, nearest, known: known() }
}

/// The first schemes of all backends, with their features on or off.
fn known() -> String {
    BACKENDS.iter().map(|entry| format!("{}:", entry.schemes[0])).collect::<Vec<_>>().join(", ")
}

/// The scheme that was probably meant, of any backend.
fn nearest(scheme: &str) -> Option<&'static str> {
    let spellings = BACKENDS.iter().flat_map(|entry| {
        let own = entry.schemes.iter().map(|own| (*own, *own));
        own.chain(entry.also.iter().map(|also| (*also, entry.schemes[0])))
    });
    let distances = spellings.map(|(spelling, meant)| (distance(scheme, spelling), spelling.len(), meant));
    let (distance, length, meant) = distances.min_by_key(|(distance, ..)| *distance)?;
    // A third of the letters: `sqllite`, `etdc`, `redys`, but not `http` for `etcd`.
    (distance * 3 <= length).then_some(meant)
}

/// The edits that make one word of the other (optimal string alignment: Levenshtein's, with neighbours swapped).
fn distance(one: &str, other: &str) -> usize {
    let (one, other) = (one.as_bytes(), other.as_bytes());
    let mut rows = vec![(0..=other.len()).collect::<Vec<_>>()];
    for i in 1..=one.len() {
        let mut row = vec![i];
        for j in 1..=other.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(one[i - 1] != other[j - 1]);
            let mut least = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_understood() {
        for (written, meant) in [
            ("sqllite", "sqlite"),
            ("sqlite3", "sqlite"),
            ("file", "sqlite"),
            ("memroy", "memory"),
            ("mem", "memory"),
            ("etdc", "etcd"),
            ("zookeeper", "zk"),
            ("postgre", "postgres"),
            ("pg", "postgres"),
            ("redi", "redis"),
        ] {
            assert_eq!(nearest(written), Some(meant), "{written}");
        }
        for written in ["http", "localhost", "c", "mysql", "consul"] {
            assert_eq!(nearest(written), None, "{written}");
        }
    }

    #[test]
    fn a_backend_whose_feature_is_off_names_it() {
        static OFF: Entry = Entry {
            name: "Other",
            schemes: &["other"],
            also: &[],
            forms: &[],
            feature: Some("other"),
            make: None,
        };
        let error = obtain(&OFF).map(drop).unwrap_err().to_string();
        assert!(error.contains(r#"features = ["other"]"#), "{error}");
    }

    #[test]
    fn no_scheme_is_there_twice() {
        let mut all: Vec<_> =
            BACKENDS.iter().flat_map(|entry| entry.schemes.iter().chain(entry.also)).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn lengths_of_schemes_are_bounded() {
        assert_eq!(nearest(&"x".repeat(1000)), None);
        assert_eq!(nearest(""), None);
    }
}
