//! What is promised, as configured.

use std::time::Duration;

use dlock_core::{Basis, Fairness, Guarantees};

use crate::settings::{Settings, Topology};

/// The smallest TTL that leaves room for renewals over a network.
const SHORTEST: Duration = Duration::from_millis(100);

/// A waiter hears of an expiry from nobody: it asks again this much later at most.
const LATE: Duration = Duration::from_millis(50);

/// Redlock: what contenders pause for that split the votes six times in a row, each time twice as long.
const SPLITS: Duration = Duration::from_secs(2);

pub(crate) fn of(settings: &Settings) -> Guarantees {
    let (what, clocks) = match &settings.topology {
        Topology::Single(_) => ("the server", "the server's clock is not stepped"),
        Topology::Redlock(_) => {
            ("a majority of the nodes", "the clocks of a majority of the nodes are not stepped")
        }
        Topology::Sentinel { .. } => ("the master", "the clocks of master and replicas are not stepped"),
    };
    let is_redlock = matches!(settings.topology, Topology::Redlock(_));
    let late = if is_redlock { LATE + SPLITS } else { LATE };
    let mut guarantees = Guarantees::new("redis")
        .fairness(Fairness::Process)
        .min_ttl(SHORTEST)
        .takeover(1, late)
        .note("Redis must not evict: maxmemory-policy noeviction");
    if is_redlock {
        // Its grants may wait for such a node, and a ballot for another one.
        guarantees = guarantees.note(
            "while a minority of the nodes gives no answer, a takeover takes up to two node_timeouts longer (by default \
             a tenth of the TTL each)",
        );
    }
    if settings.restart_delay.is_zero() {
        without_restart_delay(guarantees, what, clocks)
    } else {
        with_restart_delay(guarantees, settings, clocks)
    }
}

fn without_restart_delay(guarantees: Guarantees, what: &str, clocks: &str) -> Guarantees {
    let kept = format!(
        "{what} never loses what it acknowledged: appendfsync always, no flush, no failover (restart_delay is 0, which \
         gives up what dlock promises beyond that)"
    );
    guarantees.exclusion(Basis::If(format!("{clocks}, and {kept}"))).tokens(Basis::If(kept))
}

fn with_restart_delay(guarantees: Guarantees, settings: &Settings, clocks: &str) -> Guarantees {
    let old_master = match &settings.topology {
        Topology::Single(_) => Some("an old master is stopped before a replica is promoted in its place"),
        Topology::Sentinel { .. } => Some(
            "an old master stops taking writes within 10 s of being cut off: min-replicas-to-write set to the number of \
             replicas, min-replicas-max-lag to 10",
        ),
        Topology::Redlock(_) => None,
    };
    let join = |first: String| match old_master {
        Some(second) => format!("{first}, and {second}"),
        None => first,
    };
    let tokens = format!(
        "after a loss of data the clocks of the servers differ by {:?} at most and have not gone back",
        settings.clock_skew
    );
    guarantees
        .exclusion(Basis::If(join(clocks.to_owned())))
        .tokens(Basis::If(join(tokens)))
        .max_ttl(settings.longest_lease())
        .note(format!(
            "a node that was restarted, promoted, flushed, or is used for the first time grants no lock for {:?} \
             (restart_delay); `dlock init` spares a new one most of that",
            settings.restart_delay
        ))
        .note(
            "with appendfsync always locks stay held over a crash of the server; without it they may be lost to their \
             holders, who are told",
        )
        .note("a server whose replicas come and go: repl-backlog-ttl 0, or no less than the restart_delay")
}

#[cfg(test)]
mod tests {
    use dlock_core::{Backend, BackendUrl};

    use super::*;
    use crate::RedisBackend;

    fn of_url(url: &str) -> Guarantees {
        RedisBackend::from_url(&mut BackendUrl::parse(url).unwrap()).unwrap().guarantees()
    }

    #[test]
    fn leases_are_as_long_as_the_restart_delay_allows() {
        assert_eq!(of_url("redis://h").max_ttl, Duration::from_secs(31));
        assert_eq!(of_url("redis+redlock://a,b,c?restart_delay=65s").max_ttl, Duration::from_secs(61));
        assert_eq!(of_url("redis+sentinel://h/mine").max_ttl, Duration::from_secs(19));
        assert_eq!(of_url("redis://h?clock_skew=0").max_ttl, Duration::from_secs(32));
        assert!(of_url("redis://h?restart_delay=0").max_ttl > Duration::from_secs(3600));
    }

    #[test]
    fn a_takeover_by_majority_takes_a_little_longer() {
        assert_eq!(of_url("redis://h").takeover_extra, Duration::from_millis(50));
        let redlock = of_url("redis+redlock://a,b,c");
        assert_eq!(redlock.takeover_extra, Duration::from_millis(2050));
        assert!(redlock.notes.iter().any(|note| note.contains("two node_timeouts")));
    }

    #[test]
    fn what_is_given_up_is_declared() {
        let texts = |url| {
            let guarantees = of_url(url);
            (guarantees.exclusion.to_string(), guarantees.tokens.to_string())
        };
        for url in [
            "redis://h?restart_delay=0",
            "redis+redlock://a,b,c?restart_delay=0",
            "redis+sentinel://h/m?restart_delay=0",
        ] {
            let (exclusion, tokens) = texts(url);
            assert!(
                exclusion.contains("restart_delay is 0") && tokens.contains("restart_delay is 0"),
                "{url}"
            );
        }
        assert!(texts("redis+sentinel://h/m").0.contains("min-replicas-to-write"));
        assert!(texts("redis://h").1.contains("old master is stopped"));
    }
}
