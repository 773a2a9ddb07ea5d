//! Who holds a lock, as the store can show it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a claim says of its holder, for people. Nothing decides by it.
///
/// Stored as JSON: `{"owner":"worker-7","since_ms":1767225600000}`, the time in milliseconds of the Unix epoch by the
/// clock of the holder's machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Holder {
    /// The owner given to the manager; by default `host:pid`.
    pub owner: String,
    /// When the claim was made, in milliseconds of the Unix epoch.
    pub since_ms: u64,
}

impl Holder {
    /// A claim made now by `owner`.
    pub(crate) fn now(owner: &str) -> Self {
        // Shown to people only, so a clock that may step will do.
        #[allow(clippy::disallowed_methods)]
        let now = SystemTime::now();
        let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { owner: owner.to_owned(), since_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }

    /// The JSON form in which backends store it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a string and a number always serialise")
    }

    /// Reads the JSON form; whatever else somebody wrote there becomes the owner's name, cut to 256 characters.
    pub fn from_json(text: &str) -> Self {
        serde_json::from_str(text)
            .unwrap_or_else(|_| Self { owner: text.chars().take(256).collect(), since_ms: 0 })
    }

    /// When the claim was made by the clock of the holder's machine; none if it does not say, or says something after the
    /// year 9999, which few programs can show.
    pub fn since(&self) -> Option<SystemTime> {
        if !(1..=LAST_MS).contains(&self.since_ms) {
            return None;
        }
        UNIX_EPOCH.checked_add(Duration::from_millis(self.since_ms))
    }
}

/// The end of the year 9999, in milliseconds since 1970.
const LAST_MS: u64 = 253_402_300_799_999;

/// `host:pid`, the default owner.
pub(crate) fn default_owner() -> String {
    #[cfg(unix)]
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    #[cfg(not(unix))]
    let host = std::env::var("COMPUTERNAME").unwrap_or_else(|_| "localhost".to_owned());
    format!("{host}:{}", std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_nobody_can_show_is_none() {
        let since = |since_ms| Holder { owner: String::new(), since_ms }.since();
        assert_eq!(since(0), None);
        assert_eq!(since(1), Some(UNIX_EPOCH + Duration::from_millis(1)));
        assert!(since(LAST_MS).is_some());
        for late in [LAST_MS + 1, 1_767_225_600_000_000, u64::MAX] {
            assert_eq!(since(late), None);
        }
    }
}
