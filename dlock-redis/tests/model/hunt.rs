//! What tests ask for: that walks break nothing, or that they break something.

use std::env;

use crate::event::{FAILOVERS, NETWORK, TWICE, WORK};
use crate::scenario::{Clocks, Figures, Odd, Prologue, Promise, Proposals, Scenario};
use crate::variant::Variant;
use crate::walk::{story, walks};

/// Of all walks. Those that must find something out are always the same.
const SEED: u64 = 1;

/// Three nodes on which nothing is lost but messages; they arrive in any order, and more than once.
pub(crate) const BASE: Scenario = Scenario {
    name: "nothing is lost",
    nodes: 3,
    clients: 3,
    names: 1,
    replicas: false,
    figures: Figures::tight(3, 2, 0, [8, 8, 5]),
    odd: Odd::Nothing,
    promise: Promise::Both,
    clocks: Clocks::Steady,
    proposals: Proposals::Anything,
    prologue: Prologue::None,
    steps: 300,
    events: &[WORK, NETWORK, TWICE],
};

/// A master with a replica that takes over while the master goes on serving for a while.
pub(crate) const SENTINEL: Scenario = Scenario {
    name: "Sentinel",
    nodes: 1,
    replicas: true,
    clocks: Clocks::SteadyEach,
    figures: Figures::tight(3, 2, 4, [8, 8, 5]).careful(),
    events: &[WORK, NETWORK, TWICE, FAILOVERS],
    ..BASE
};

/// Walks of this many steps, or more if that is wished, keep every promise; and they get somewhere.
pub(crate) fn holds(variant: Variant, scenario: &Scenario, steps: u64) {
    let steps = steps * number("DLOCK_MODEL_STEPS", 1);
    let (tour, violation) = walks(scenario, variant, number("DLOCK_MODEL_SEED", SEED), steps);
    if let Some(violation) = violation {
        panic!("{}", story(scenario, variant, violation.seed));
    }
    let (name, nodes) = (scenario.name, scenario.nodes);
    println!("{name}, {nodes} nodes, {variant:?}: {steps} steps, {tour:?}");
    let least = steps / 2000;
    assert!(tour.acquired > least && tour.renewed > least / 10, "the walks get nowhere: {tour:?}");
    if tour.losses > 0 {
        assert!(tour.refused > least && tour.acquired_after_loss > least / 10, "nothing recovers: {tour:?}");
    }
    if nodes > 1 && variant == Variant::Sound {
        assert!(tour.in_two_rounds > least / 20, "the nodes always agree: {tour:?}");
    }
}

/// Within this many steps a promise is broken, and it is the variant's doing: the same walks keep it without.
pub(crate) fn breaks(variant: Variant, scenario: &Scenario, steps: u64) {
    let (tour, violation) = walks(scenario, variant, SEED, steps);
    let (name, nodes) = (scenario.name, scenario.nodes);
    let Some(violation) = violation else {
        panic!("{name}, {nodes} nodes: {variant:?} was not found out in {steps} steps, {tour:?}");
    };
    let after = violation.steps;
    println!("{name}, {nodes} nodes: {variant:?} was found out after {after} steps: {}", violation.broken);
    let (_, sound) = walks(scenario, Variant::Sound, SEED, after);
    if let Some(sound) = sound {
        panic!("it is not the variant's doing: {}", story(scenario, Variant::Sound, sound.seed));
    }
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |value| {
        value.parse().unwrap_or_else(|_| panic!("{name} is a number, not {value:?}"))
    })
}
