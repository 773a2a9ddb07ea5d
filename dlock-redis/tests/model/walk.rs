//! Random walks: worlds one after the other, each from a seed of its own that replays it.

use std::fmt::Write as _;

use crate::check::Broken;
use crate::event::Lots;
use crate::random::Random;
use crate::scenario::Scenario;
use crate::variant::Variant;
use crate::world::{Tour, World};

/// A promise that was broken, and how to see it again.
#[derive(Debug)]
pub(crate) struct Violation {
    pub(crate) broken: Broken,
    /// Of the walk.
    pub(crate) seed: u64,
    /// Of all walks until then.
    pub(crate) steps: u64,
}

/// Walks until a promise is broken or the steps are used up. The same seed makes the same walks.
pub(crate) fn walks(
    scenario: &Scenario,
    variant: Variant,
    seed: u64,
    steps: u64,
) -> (Tour, Option<Violation>) {
    let lots = Lots::new(scenario.events);
    let mut seeds = Random::new(seed);
    let mut tour = Tour::default();
    let mut walked = 0;
    while walked < steps {
        let seed = seeds.next();
        let mut world = World::new(scenario, variant, Random::new(seed));
        let end = walk(&mut world, &lots, &mut walked);
        if let Err(broken) = end {
            tour.add(&world.tour);
            return (tour, Some(Violation { broken, seed, steps: walked }));
        }
        tour.add(&world.tour);
    }
    (tour, None)
}

/// One walk, to its end or to a promise that is broken.
fn walk(world: &mut World<'_>, lots: &Lots, walked: &mut u64) -> Result<(), Broken> {
    world.begin_with(world.scenario.prologue)?;
    for _ in 0..world.scenario.steps {
        *walked += 1;
        let event = lots.draw(&mut world.random);
        world.step(event)?;
    }
    Ok(())
}

/// What happened in one walk.
pub(crate) fn story(scenario: &Scenario, variant: Variant, seed: u64) -> String {
    let lots = Lots::new(scenario.events);
    let mut world = World::new(scenario, variant, Random::new(seed));
    world.story = Some(Vec::new());
    let end = match walk(&mut world, &lots, &mut 0) {
        Ok(()) => "nothing was broken".to_owned(),
        Err(broken) => broken.to_string(),
    };
    let mut story = format!("walk {seed} of {:?}, {variant:?}:\n", scenario.name);
    for node in 0..scenario.nodes {
        for server in &world.servers[2 * node..2 * node + 1 + usize::from(scenario.replicas)] {
            writeln!(story, "  node {node}: a server with a clock {} ahead at first", server.ahead_at_first)
                .expect("a string takes everything");
        }
    }
    for line in world.story.unwrap_or_default() {
        story.push_str(&line);
        story.push('\n');
    }
    story + &end
}

impl Tour {
    fn add(&mut self, other: &Self) {
        self.acquired += other.acquired;
        self.in_two_rounds += other.in_two_rounds;
        self.renewed += other.renewed;
        self.refused += other.refused;
        self.losses += other.losses;
        self.acquired_after_loss += other.acquired_after_loss;
    }
}
