//! The algorithm as it is: no walk breaks a promise. And what looks unsound but is not.

use crate::event::{FAILOVERS, LOSSES, NETWORK, REPAIRS, RESTORES, STEPS, TWICE, WORK};
use crate::hunt::{BASE, SENTINEL, holds};
use crate::scenario::{Clocks, Figures, Odd, Promise, Scenario};
use crate::variant::Variant;

const MILLION: u64 = 1_000_000;

/// One node, and majorities of three and five.
fn holds_at_any_size(variant: Variant, scenario: &Scenario) {
    for nodes in [1, 3, 5] {
        holds(variant, &Scenario { nodes, ..*scenario }, 4 * MILLION);
    }
}

#[test]
fn while_nothing_is_lost() {
    holds_at_any_size(Variant::Sound, &BASE);
}

/// `restart_delay=0`.
#[test]
fn without_quarantine_while_nothing_is_lost() {
    let figures = Figures { wait: 0, ..BASE.figures };
    holds_at_any_size(Variant::Sound, &Scenario { name: "without quarantine", figures, ..BASE });
}

/// P2 needs no clock at all while nothing is lost: neither the nodes' nor the clients'.
#[test]
fn tokens_whatever_the_clocks_show() {
    let scenario = Scenario {
        name: "clocks that show anything",
        names: 2,
        promise: Promise::Tokens,
        clocks: Clocks::Wild,
        events: &[WORK, NETWORK, TWICE, STEPS],
        ..BASE
    };
    holds_at_any_size(Variant::Sound, &scenario);
    let figures = Figures { wait: 0, ..BASE.figures };
    holds_at_any_size(Variant::Sound, &Scenario { figures, ..scenario });
}

#[test]
fn nodes_lose_their_data() {
    let scenario = Scenario { name: "losses", events: &[WORK, NETWORK, TWICE, LOSSES], ..BASE };
    holds_at_any_size(Variant::Sound, &scenario);
    holds_at_any_size(Variant::Sound, &Scenario { name: "losses, two names", names: 2, ..scenario });
}

#[test]
fn replicas_take_over_and_give_back() {
    let scenario =
        Scenario { name: "failovers", replicas: true, events: &[WORK, NETWORK, TWICE, FAILOVERS], ..BASE };
    holds_at_any_size(Variant::Sound, &scenario);
    let events = &[WORK, NETWORK, TWICE, FAILOVERS, LOSSES];
    holds_at_any_size(Variant::Sound, &Scenario { name: "failovers and losses", events, ..scenario });
}

/// P2 after losses needs clocks that agree and do not go back; a client may sleep for as long as it likes.
#[test]
fn tokens_over_losses_with_clocks_stepped_forward() {
    let scenario = Scenario {
        name: "clocks stepped forward",
        replicas: true,
        promise: Promise::Tokens,
        clocks: Clocks::SteppedForward,
        events: &[WORK, NETWORK, TWICE, FAILOVERS, LOSSES, STEPS],
        ..BASE
    };
    holds_at_any_size(Variant::Sound, &scenario);
}

#[test]
fn exclusion_over_losses_with_clocks_stepped_a_little_in_quarantine() {
    let scenario = Scenario {
        name: "clocks stepped in quarantine",
        promise: Promise::Exclusion,
        clocks: Clocks::SteppedInQuarantine,
        events: &[WORK, NETWORK, TWICE, LOSSES, STEPS],
        ..BASE
    };
    holds_at_any_size(Variant::Sound, &scenario);
}

/// Replicas have clocks of their own, and the old master serves for a while beside its successor.
#[test]
fn behind_sentinels_an_old_master_goes_on_serving() {
    holds(Variant::Sound, &SENTINEL, 8 * MILLION);
    let events = &[WORK, NETWORK, TWICE, FAILOVERS, LOSSES];
    holds(Variant::Sound, &Scenario { name: "Sentinel and losses", events, ..SENTINEL }, 8 * MILLION);
}

/// Renewing nothing in quarantine serves Redlock as well where replicas have clocks of their own.
#[test]
fn careful_renewals_bear_replicas_with_other_clocks() {
    let scenario = Scenario {
        name: "replicas with other clocks",
        replicas: true,
        clocks: Clocks::SteadyEach,
        figures: BASE.figures.careful(),
        events: &[WORK, NETWORK, TWICE, FAILOVERS, LOSSES],
        ..BASE
    };
    holds_at_any_size(Variant::Sound, &scenario);
}

/// They are refused, and change nothing for the others.
#[test]
fn clients_with_other_figures() {
    let scenario = Scenario { name: "restores", events: &[WORK, NETWORK, TWICE, RESTORES], ..BASE };
    for odd in [Odd::Wait(15), Odd::Bucket(40), Odd::Stripes] {
        for nodes in [1, 3] {
            holds(Variant::Sound, &Scenario { nodes, odd, ..scenario }, 2 * MILLION);
        }
    }
}

/// It is left out only because contenders would outdo each other for ever.
#[test]
fn a_bump_on_denial_is_not_unsound() {
    holds_at_any_size(Variant::BumpOnDenial, &Scenario { events: &[WORK, NETWORK, TWICE, LOSSES], ..BASE });
}

/// While nothing is delivered twice, and no other name shares the counter.
#[test]
fn a_commit_by_nonce_only_is_not_unsound_alone() {
    let events = &[WORK, NETWORK, LOSSES];
    holds_at_any_size(Variant::CommitByNonceOnly, &Scenario { events, ..BASE });
}

#[test]
fn a_ballot_for_one_more_is_not_unsound() {
    holds_at_any_size(Variant::PureBallotAndOne, &BASE);
}

/// As to tokens and exclusion, once all claims of the past are over. It is left out since it needs a majority of the
/// others, which a single node has not.
#[test]
fn a_repair_from_a_majority_is_not_unsound() {
    let scenario = Scenario { name: "repairs", events: &[WORK, NETWORK, TWICE, REPAIRS], ..BASE };
    for nodes in [3, 5] {
        holds(Variant::RepairFromMajority, &Scenario { nodes, ..scenario }, 4 * MILLION);
    }
}
