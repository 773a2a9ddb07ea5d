//! Seeded random schedules of faults over the memory backend, on a paused clock.
//!
//! A seed decides everything: what kind of store it is, how many managers there are and how far their clocks are out,
//! what their workers do, which requests are delayed, lost, executed late or refused, when the network is cut, the
//! store stops, a session is killed or the whole machine sleeps. [`run`] plays it, checks the history, and then that
//! the locks still work and nothing is left at the store. It takes about a millisecond, and the same seed does the
//! same again.
//!
//! Only what the promises allow for happens (assumptions A1 to A3): clocks drift by less than the margin, the store
//! forgets nothing, and no hand removes what a store without settling has granted.

mod chaos;
mod plan;
mod random;
mod worker;
mod world;

use std::cell::Cell;
use std::fmt;
use std::sync::Once;

pub use plan::Plan;

use crate::history::{Event, Summary};

/// What a seed did.
#[derive(Clone, Debug)]
pub struct Played {
    /// What the seed stands for.
    pub plan: Plan,
    /// What was acquired, lost and written.
    pub summary: Summary,
    /// How often each thing happened, by name; a test looks that nothing it counts on is missing.
    pub tally: Tally,
    /// Everything that was seen, for a comparison of two runs.
    pub events: Vec<Event>,
}

/// How often things happened in one schedule, or in many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(std::collections::BTreeMap<&'static str, u64>);

impl Tally {
    /// How often this happened.
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// Counts.
    pub fn add(&mut self, what: &'static str, times: u64) {
        *self.0.entry(what).or_insert(0) += times;
    }

    /// Adds what happened in another schedule.
    pub fn merge(&mut self, other: &Self) {
        for (what, times) in &other.0 {
            self.add(what, *times);
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (what, times)) in self.0.iter().enumerate() {
            write!(f, "{}{times} {what}", if at == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

/// A seed that found something.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What it stands for.
    pub plan: Plan,
    /// What went wrong.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, plan, what } = self;
        write!(
            f,
            "schedule {seed} fails: {what}\nits plan: {plan:?}\nplay it again with DLOCK_SIMULATION_SEED={seed} cargo \
             test -p conformance-tests --test simulation"
        )
    }
}

impl std::error::Error for Failure {}

thread_local! {
    /// Panics of this thread; tokio keeps those of tasks to itself.
    static PANICS: Cell<u64> = const { Cell::new(0) };
}

/// Plays the schedule that a seed stands for. Needs no runtime, and must not be called inside one.
///
/// # Errors
///
/// [`Failure`] says which promise was broken, and how to play it again.
///
/// # Panics
///
/// If no runtime can be built.
pub fn run(seed: u64) -> Result<Played, Failure> {
    count_panics();
    let plan = Plan::new(seed);
    let before = PANICS.get();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without I/O takes nothing from the system");
    let outcome = runtime.block_on(world::play(seed, &plan));
    drop(runtime);
    let failure = |what| Failure { seed, plan: plan.clone(), what };
    if PANICS.get() > before {
        return Err(failure("a task panicked".to_owned()));
    }
    let (summary, tally, events) = outcome.map_err(failure)?;
    Ok(Played { plan, summary, tally, events })
}

fn count_panics() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let earlier = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.set(PANICS.get() + 1);
            earlier(panic);
        }));
    });
}
