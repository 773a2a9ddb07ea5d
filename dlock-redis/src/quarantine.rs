//! Why a node grants nothing for now, in words.

use std::fmt::Display;
use std::time::{Duration, UNIX_EPOCH};

use dlock_core::BackendError;

use crate::replies::Quarantine;

/// The end of the year 9999, beyond which no time is shown.
const LAST: Duration = Duration::from_secs(253_402_300_799);

/// Says which nodes wait, why, until when, and what spares the wait. `left` is when a majority has waited.
pub(crate) fn error<'a, N: Display + 'a>(
    nodes: impl IntoIterator<Item = (&'a N, &'a Quarantine)>,
    left: Duration,
) -> BackendError {
    let mut first = None;
    let mut each = Vec::new();
    for (node, quarantine) in nodes {
        let why = match quarantine.why.as_str() {
            "changed" => "it was restarted, or took over from another master",
            "new" => "dlock init has marked it as new a moment ago",
            _ => "it has just been used for the first time, or has lost all its data",
        };
        let till = UNIX_EPOCH + Duration::from_micros(quarantine.till_us).min(LAST);
        let till = humantime::format_rfc3339_seconds(till);
        each.push(format!("{node} grants no lock until {till} (in {}): {why}", seconds(quarantine.left_us)));
        first.get_or_insert(quarantine.why.as_str());
    }
    let advice = match first {
        Some("new") => "",
        Some("changed") => {
            ". Leases from before may still run; the wait is the restart_delay, which is 0 only where every write is \
             synced to a disk that is not lost, or where the promises over a loss of data are not needed"
        }
        _ => {
            ". Leases from before may still run; a server that is new is spared most of the wait by `dlock init` \
             before its first use, and restart_delay=0s waits never and promises nothing over a loss of data"
        }
    };
    // Rounded up: asked a little earlier it would wait once more.
    BackendError::not_ready(left + Duration::from_millis(1), format!("{}{advice}", each.join("; ")))
}

/// The node is used with other figures.
pub(crate) fn mismatch(node: &(impl Display + ?Sized), theirs: &str, ours: &str) -> BackendError {
    BackendError::refused(format!(
        "{node} is used with other settings: its mark says {theirs:?} and this client {ours:?} (version, \
         restart_delay, nodes, bucket, clock_skew in milliseconds, counters, hash). All clients must agree; to change \
         the settings stop all clients, wait for the longest TTL, delete the mark on every node, and run `dlock init`"
    ))
}

/// `4 s`, rounded up.
pub(crate) fn seconds(micros: u64) -> String {
    format!("{} s", micros.div_ceil(1_000_000))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_says_who_why_and_until_when() {
        let quarantine =
            Quarantine { till_us: 1_767_225_631_000_000, left_us: 30_500_000, why: "changed".to_owned() };
        let error_of =
            |quarantine| super::error([(&"h:6379", quarantine)], Duration::from_secs(31)).to_string();
        let error = error_of(&quarantine);
        assert!(
            error.starts_with("h:6379 grants no lock until 2026-01-01T00:00:31Z (in 31 s): it was restarted"),
            "{error}"
        );
        assert!(error.contains("restart_delay"), "{error}");
        let odd = Quarantine { till_us: u64::MAX, left_us: u64::MAX, why: String::new() };
        let error = error_of(&odd);
        assert!(error.contains("until 9999-12-31T23:59:59Z"), "{error}");
        let quarantine = Quarantine { why: "unmarked".to_owned(), ..quarantine };
        let error = error_of(&quarantine);
        assert!(error.contains("dlock init") && error.contains("restart_delay=0s"), "{error}");
    }
}
