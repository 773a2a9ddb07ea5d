//! Every backend by its URL schemes: those of this build, those that a feature adds, and those that are to come.

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
    /// The cargo feature that adds it; none if it is always there, or in no build.
    feature: Option<&'static str>,
    /// None if it is not in this build.
    make: Option<Make>,
}

/// The only list of backends; the order is that of the documentation.
static BACKENDS: [Entry; 6] = [
    Entry { name: "memory", schemes: &["memory"], also: &["mem"], feature: None, make: Some(memory) },
    Entry {
        name: "SQLite",
        schemes: &["sqlite"],
        also: &["file", "db"],
        feature: Some("sqlite"),
        make: SQLITE,
    },
    Entry { name: "etcd", schemes: &["etcd", "etcds"], also: &[], feature: None, make: None },
    Entry { name: "ZooKeeper", schemes: &["zk", "zks"], also: &["zookeeper"], feature: None, make: None },
    Entry {
        name: "PostgreSQL",
        schemes: &["postgres", "postgresql"],
        also: &["pg", "psql"],
        feature: None,
        make: None,
    },
    Entry {
        name: "Redis",
        schemes: &["redis", "rediss", "redis+redlock", "rediss+redlock"],
        also: &["valkey", "redlock"],
        feature: None,
        make: None,
    },
];

fn memory(url: &mut BackendUrl) -> Result<Arc<dyn Backend>, UrlError> {
    Ok(Arc::new(MemoryBackend::from_url(url)?))
}

#[cfg(feature = "sqlite")]
const SQLITE: Option<Make> = Some(|url| Ok(Arc::new(dlock_sqlite::SqliteBackend::from_url(url)?)));
#[cfg(not(feature = "sqlite"))]
const SQLITE: Option<Make> = None;

/// The backend of a scheme, or why it cannot be had; none if the scheme is not known.
pub(crate) fn find(scheme: &str) -> Result<Option<(&'static Entry, Make)>, ConnectError> {
    let scheme = scheme.to_ascii_lowercase();
    let Some(entry) = BACKENDS.iter().find(|entry| entry.schemes.contains(&scheme.as_str())) else {
        return Ok(None);
    };
    obtain(entry).map(|make| Some((entry, make)))
}

fn obtain(entry: &'static Entry) -> Result<Make, ConnectError> {
    match (entry.make, entry.feature) {
        (Some(make), _) => Ok(make),
        (None, Some(feature)) => Err(ConnectError::FeatureOff { backend: entry.name, feature }),
        (None, None) => Err(ConnectError::NotInThisVersion { backend: entry.name, known: obtainable() }),
    }
}

/// The error for a scheme of no backend.
pub(crate) fn unknown(scheme: String) -> ConnectError {
    let nearest = nearest(&scheme);
    ConnectError::UnknownScheme { scheme, nearest, known: obtainable() }
}

/// The first schemes of the backends that are in this version, with their features on or off.
fn obtainable() -> String {
    let entries = BACKENDS.iter().filter(|entry| entry.make.is_some() || entry.feature.is_some());
    entries.map(|entry| format!("{}:", entry.schemes[0])).collect::<Vec<_>>().join(", ")
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
        static OFF: Entry =
            Entry { name: "Other", schemes: &["other"], also: &[], feature: Some("other"), make: None };
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
