//! Every order of everything, in worlds that are small enough: no draw is missed, unlike in walks.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::check::Broken;
use crate::client::{Client, Phase};
use crate::hunt::BASE;
use crate::post::{Message, Text};
use crate::random::Random;
use crate::scenario::{Figures, Scenario};
use crate::server::{Data, Time};
use crate::variant::Variant;
use crate::world::World;

/// How much may happen in a world.
#[derive(Clone, Copy)]
struct Bounds {
    claims: u16,
    ticks: Time,
    losses: u64,
    renewals: u64,
    releases: bool,
}

/// One node that is wiped, and time to wait out its quarantine.
const ONE: Scenario = Scenario { nodes: 1, clients: 2, figures: Figures::tight(1, 0, 0, [2, 2, 2]), ..BASE };
const ONE_BOUNDS: Bounds = Bounds { claims: 2, ticks: 5, losses: 1, renewals: 1, releases: true };

/// Three nodes of which one is wiped while two claims meet.
const THREE: Scenario = Scenario { nodes: 3, ..ONE };
const THREE_BOUNDS: Bounds = Bounds { claims: 2, ticks: 0, losses: 1, renewals: 0, releases: false };

/// One step, with whom it befalls.
#[derive(Clone, Copy, Debug)]
enum Step {
    Tick,
    Claim(usize),
    Agree(usize),
    GiveUp(usize),
    Renew(usize),
    Release(usize),
    Deliver(usize),
    Wipe(usize),
}

/// Takes every step that there is, again and again, and returns how many states there are. The error tells how a promise
/// was broken, if that is wanted: it costs much.
fn explore(
    scenario: &Scenario,
    variant: Variant,
    bounds: Bounds,
    story: Option<Vec<String>>,
) -> Result<usize, String> {
    let mut first = World::new(scenario, variant, Random::new(0));
    first.make_ready();
    first.story = story;
    let start = first.now;
    let mut seen = HashSet::from([fingerprint(&first)]);
    let mut worlds = vec![first];
    while let Some(world) = worlds.pop() {
        for step in steps(&world, start, bounds) {
            let mut next = world.clone();
            if let Err(broken) = take(&mut next, step) {
                return Err(format!("{}\n{broken}", next.story.unwrap_or_default().join("\n")));
            }
            tidy(&mut next);
            if seen.insert(fingerprint(&next)) {
                worlds.push(next);
            }
        }
    }
    Ok(seen.len())
}

/// No order breaks a promise, and there are at least so many states.
fn holds(scenario: &Scenario, bounds: Bounds, least: usize) {
    if let Ok(states) = explore(scenario, Variant::Sound, bounds, None) {
        assert!(states >= least, "there are more than {states} states");
        return;
    }
    panic!(
        "{}",
        explore(scenario, Variant::Sound, bounds, Some(Vec::new())).expect_err("it was broken before")
    );
}

/// Some order breaks a promise.
fn breaks(variant: Variant, scenario: &Scenario, bounds: Bounds) {
    assert!(explore(scenario, variant, bounds, None).is_err(), "{variant:?} was not found out");
}

fn steps(world: &World<'_>, start: Time, bounds: Bounds) -> Vec<Step> {
    let mut steps = Vec::new();
    if world.now < start + bounds.ticks {
        steps.push(Step::Tick);
    }
    for client in 0..world.scenario.clients {
        let mut noticed = world.clients[client];
        noticed.notice(world.now);
        match noticed.phase {
            // That client 1 is the first would only change names.
            Phase::Idle if world.nonces < bounds.claims && (world.nonces > 0 || client == 0) => {
                steps.push(Step::Claim(client));
            }
            Phase::Idle => {}
            Phase::Asking => steps.extend([Step::Agree(client), Step::GiveUp(client)]),
            Phase::Agreeing => steps.push(Step::GiveUp(client)),
            Phase::Holding(_) => {
                if bounds.releases {
                    steps.push(Step::Release(client));
                }
                if world.tour.renewed < bounds.renewals && noticed.renewal == 0 {
                    steps.push(Step::Renew(client));
                }
            }
        }
    }
    // A message that is lost is one that is never delivered.
    steps.extend((0..world.post.all().len()).map(Step::Deliver));
    if world.tour.losses < bounds.losses {
        steps.extend((0..world.scenario.nodes).map(Step::Wipe));
    }
    steps
}

fn take(world: &mut World<'_>, step: Step) -> Result<(), Broken> {
    match step {
        Step::Tick => world.now += 1,
        Step::Claim(client) => {
            world.clients[client].notice(world.now);
            world.claim_with(client, 0, 0);
        }
        Step::Agree(client) => world.agree_of(client),
        Step::GiveUp(client) => world.drop_claim(client, true),
        Step::Renew(client) => world.renewal_of(client),
        Step::Release(client) => world.release_of(client),
        Step::Deliver(at) => return world.deliver_at(at, false),
        Step::Wipe(node) => world.restart_of(world.masters[node], |_| Data::default()),
    }
    Ok(())
}

/// Drops what makes no difference any more.
fn tidy(world: &mut World<'_>) {
    for client in &mut world.clients {
        client.notice(world.now);
        client.seen = 0;
        if client.phase == Phase::Idle {
            *client = Client::new();
        }
    }
    let clients = world.clients;
    let is_dead = |message: &Message| {
        let client = &clients[message.client];
        let awaited = match message.text {
            Text::Granted(_) => client.phase == Phase::Asking,
            Text::Committed(agrees) => agrees && client.phase == Phase::Agreeing,
            Text::Renewed(renewal, done) => done && client.renewal == renewal,
            Text::Grant(_) | Text::Commit(_) | Text::Renew(_) | Text::Release => return false,
        };
        !awaited || client.nonce != message.nonce
    };
    while let Some(at) = world.post.oldest(is_dead) {
        world.post.remove(at);
    }
}

/// What tells states apart. The order of messages does not, nor what a world has seen but for what bounds it.
fn fingerprint(world: &World<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    let Scenario { nodes, clients, .. } = *world.scenario;
    for server in world.servers[..2 * nodes].iter().step_by(2) {
        (server.data.locks[0], server.data.counters[0], server.data.mark, server.replid).hash(&mut hasher);
    }
    (world.now, &world.clients[..clients], world.nonces, world.tokens.given(0)).hash(&mut hasher);
    (world.tour.losses, world.tour.renewed).hash(&mut hasher);
    let messages = world.post.all().iter().fold(0_u64, |sum, message| {
        let mut hasher = DefaultHasher::new();
        (message.client, message.node, message.nonce, message.text).hash(&mut hasher);
        sum.wrapping_add(hasher.finish())
    });
    messages.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn every_order_on_one_node_that_is_wiped() {
    holds(&ONE, ONE_BOUNDS, 50_000);
    for variant in [Variant::NoMitigation, Variant::NoIncrement, Variant::PureBallot] {
        breaks(variant, &ONE, ONE_BOUNDS);
    }
}

#[test]
fn every_order_of_two_claims_on_three_nodes() {
    holds(&THREE, THREE_BOUNDS, 300_000);
    for variant in [Variant::NoMitigation, Variant::QuorumLessOne, Variant::QuorumOfOne] {
        breaks(variant, &THREE, THREE_BOUNDS);
    }
}

#[test]
fn every_order_of_two_claims_and_their_releases_on_three_nodes() {
    let bounds = Bounds { losses: 0, releases: true, ..THREE_BOUNDS };
    holds(&THREE, bounds, 100_000);
    for variant in [Variant::NoIncrement, Variant::PureBallot] {
        breaks(variant, &THREE, bounds);
    }
}
