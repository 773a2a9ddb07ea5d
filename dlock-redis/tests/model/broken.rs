//! The algorithm written wrong, in every way that somebody thought of: walks must find each of them out.

use crate::event::{Event, FAILOVERS, LOSSES, NETWORK, REPAIRS, RESTORES, TWICE, WORK};
use crate::hunt::{BASE, SENTINEL, breaks};
use crate::scenario::{Clocks, Figures, Odd, Prologue, Promise, Proposals, Scenario};
use crate::variant::Variant;

const MILLION: u64 = 1_000_000;

const LOSSY: Scenario = Scenario { name: "losses", events: &[WORK, NETWORK, TWICE, LOSSES], ..BASE };
/// The mark is never lost: who comes first after that decides, which is documented.
const RESTORED: Scenario = Scenario { name: "restores", events: &[WORK, NETWORK, TWICE, RESTORES], ..BASE };
const FAILOVER: Scenario = Scenario {
    name: "failovers",
    nodes: 1,
    replicas: true,
    events: &[WORK, NETWORK, TWICE, FAILOVERS],
    ..BASE
};
/// A client may be late without knowing.
const LATE: Scenario = Scenario { name: "late clients", promise: Promise::Tokens, ..BASE };

#[test]
fn no_mitigation_and_a_wiped_node() {
    for nodes in [1, 3, 5] {
        breaks(Variant::NoMitigation, &Scenario { nodes, ..LOSSY }, MILLION);
    }
    // Tokens fall as well, not only exclusion.
    breaks(Variant::NoMitigation, &Scenario { promise: Promise::Tokens, ..LOSSY }, MILLION);
}

/// Long leases, and a client whose W would not outlast them.
const SHORT_WAIT: Scenario =
    Scenario { nodes: 1, odd: Odd::Wait(15), figures: Figures::tight(3, 2, 0, [20, 20, 2]), ..RESTORED };

#[test]
fn a_mark_that_is_compared_after_it_is_rewritten() {
    breaks(Variant::ComparedTooLate, &SHORT_WAIT, 5 * MILLION);
}

#[test]
fn a_mark_without_w() {
    breaks(Variant::MarkWithoutWait, &SHORT_WAIT, 5 * MILLION);
    breaks(Variant::MarkWithoutWait, &Scenario { nodes: 3, ..SHORT_WAIT }, 20 * MILLION);
}

/// A client takes proposals further ahead than W was made for.
#[test]
fn a_mark_without_d() {
    for nodes in [1, 3] {
        breaks(
            Variant::MarkWithoutBucket,
            &Scenario { nodes, odd: Odd::Bucket(40), ..RESTORED },
            5 * MILLION,
        );
    }
}

#[test]
fn a_mark_without_the_stripes() {
    for nodes in [1, 3, 5] {
        breaks(Variant::MarkWithoutStripes, &Scenario { nodes, odd: Odd::Stripes, ..BASE }, MILLION);
    }
}

/// A promotion there and back returns the run id.
#[test]
fn a_life_known_by_its_run_id_alone() {
    breaks(Variant::RunIdAlone, &FAILOVER, 5 * MILLION);
}

/// The same, and then the backlog is given up sooner than W, which clears the second replication id.
#[test]
fn a_life_known_without_what_it_was_fed() {
    breaks(Variant::NotFed, &FAILOVER, 40 * MILLION);
}

/// A flushed server, or a replica that never saw the mark, is up for long.
#[test]
fn first_use_inferred_from_uptime() {
    for nodes in [1, 3] {
        breaks(Variant::UptimeForFirstUse, &Scenario { nodes, ..LOSSY }, 10 * MILLION);
        breaks(Variant::UptimeForFirstUse, &Scenario { nodes, ..FAILOVER }, 10 * MILLION);
    }
}

#[test]
fn a_renewal_beyond_what_was_granted() {
    breaks(Variant::RenewBeyondLease, &Scenario { nodes: 1, ..LOSSY }, 5 * MILLION);
    breaks(Variant::RenewBeyondLease, &LOSSY, 30 * MILLION);
}

/// Client 0 renews at the successor only, while client 1 takes the lock from the old master.
#[test]
fn a_renewal_in_quarantine_behind_an_old_master_that_serves() {
    let scenario = Scenario {
        clients: 2,
        steps: 120,
        figures: Figures::tight(1, 0, 16, [8, 8, 5]).careful(),
        events: &[WORK, NETWORK, &[(Event::Renew, 40), (Event::Replicate, 20), (Event::Promote, 10)]],
        ..SENTINEL
    };
    breaks(Variant::RenewInQuarantine, &scenario, 40 * MILLION);
}

#[test]
fn a_grant_that_does_not_count() {
    for nodes in [1, 3, 5] {
        breaks(Variant::NoIncrement, &Scenario { nodes, ..BASE }, MILLION);
    }
}

#[test]
fn the_maximum_of_counters_without_agreement() {
    for nodes in [3, 5] {
        breaks(Variant::MaximumOfCounters, &Scenario { nodes, ..BASE }, 5 * MILLION);
    }
}

#[test]
fn a_commit_without_nonce() {
    breaks(Variant::CommitWithoutNonce, &LATE, 10 * MILLION);
}

#[test]
fn a_commit_with_any_key_present() {
    breaks(Variant::CommitWithAnyKey, &LATE, 10 * MILLION);
}

/// Another name that shares the counter has raised it.
#[test]
fn a_commit_by_nonce_only_on_a_shared_counter() {
    let scenario = Scenario { name: "two names", names: 2, events: &[WORK, NETWORK], ..BASE };
    breaks(Variant::CommitByNonceOnly, &scenario, 20 * MILLION);
}

#[test]
fn a_pure_ballot_for_the_greatest() {
    for nodes in [1, 3, 5] {
        breaks(Variant::PureBallot, &Scenario { nodes, ..BASE }, MILLION);
    }
}

#[test]
fn one_equal_reply_fewer_than_a_majority() {
    for nodes in [3, 5] {
        breaks(Variant::QuorumLessOne, &Scenario { nodes, ..BASE }, MILLION);
    }
}

#[test]
fn a_quorum_of_one() {
    for nodes in [3, 5] {
        breaks(Variant::QuorumOfOne, &Scenario { nodes, ..BASE }, MILLION);
    }
}

#[test]
fn a_token_that_is_the_proposal() {
    for nodes in [1, 3, 5] {
        breaks(Variant::OwnProposal, &Scenario { nodes, ..BASE }, MILLION);
    }
}

/// Client 1 has a vote of node 2, which is wiped. Client 0 makes its key there by renewing, so that it holds on while its
/// key expires at node 1, which client 1 then gets.
#[test]
fn a_renewal_that_sets_again() {
    let scenario = Scenario {
        clients: 2,
        steps: 80,
        figures: Figures::tight(8, 0, 0, [3, 15, 5]),
        prologue: Prologue::HeldAtTwo,
        events: &[WORK, NETWORK, &[(Event::Renew, 40), (Event::Wipe, 20)]],
        ..BASE
    };
    breaks(Variant::RenewSetsAgain, &scenario, 60 * MILLION);
}

/// A replica with a clock that is behind takes over: there the key of a late client is alive again, and the counter old.
#[test]
fn a_commit_in_quarantine() {
    let scenario = Scenario {
        steps: 100,
        replicas: true,
        figures: Figures::tight(20, 40, 0, [8, 8, 8]),
        clocks: Clocks::SteadyEach,
        proposals: Proposals::Counters,
        prologue: Prologue::AgreeingLate,
        events: &[WORK, NETWORK, FAILOVERS],
        ..LATE
    };
    breaks(Variant::CommitInQuarantine, &scenario, 60 * MILLION);
}

const REPAIRED: Scenario = Scenario { name: "repairs", events: &[WORK, NETWORK, TWICE, REPAIRS], ..BASE };

#[test]
fn a_repair_from_fewer_than_a_majority() {
    breaks(Variant::RepairFromFewer, &REPAIRED, 30 * MILLION);
}

#[test]
fn a_repair_from_nodes_that_have_lost_their_data() {
    breaks(Variant::RepairFromUnmarked, &REPAIRED, 30 * MILLION);
}

/// Not a variant but a limit: the clock of a node is that of its replicas. Where a replica is behind, a key is alive again
/// after a failover that had expired, and renewing it keeps a holder in office whose node has voted for another meanwhile.
/// Renewing nothing in quarantine, as behind Sentinels, would do without that.
#[test]
fn a_failover_of_a_redlock_node_to_a_clock_that_is_behind() {
    let scenario = Scenario {
        name: "a replica that is behind",
        clients: 2,
        steps: 150,
        replicas: true,
        figures: Figures::tight(20, 3, 0, [4, 20, 4]).careful(),
        clocks: Clocks::SteadyEach,
        prologue: Prologue::RenewedAtTwo,
        events: &[WORK, NETWORK, FAILOVERS, &[(Event::Promote, 20), (Event::Renew, 40)]],
        ..BASE
    };
    breaks(Variant::RenewInQuarantine, &scenario, 60 * MILLION);
}
