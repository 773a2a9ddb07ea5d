//! Random schedules of faults; see `conformance_tests::simulation`.
//!
//! `DLOCK_SIMULATION_SCHEDULES` says how many (100,000), `DLOCK_SIMULATION_START` from which seed on (0), and
//! `DLOCK_SIMULATION_SEED` plays a single one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use conformance_tests::simulation::{self, Tally};

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

#[test]
fn every_schedule_keeps_the_promises() {
    if let Some(seed) = setting("DLOCK_SIMULATION_SEED") {
        match simulation::run(seed) {
            Ok(played) => println!("schedule {seed} is sound: {:?}\n{}", played.plan, played.tally),
            Err(failure) => panic!("{failure}"),
        }
        return;
    }
    let start = setting("DLOCK_SIMULATION_START").unwrap_or(0);
    let schedules = setting("DLOCK_SIMULATION_SCHEDULES").unwrap_or(100_000);
    let next = AtomicU64::new(start);
    let (tally, failures) = (Mutex::new(Tally::default()), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut mine = Tally::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= start + schedules {
                        break;
                    }
                    match simulation::run(seed) {
                        Ok(played) => mine.merge(&played.tally),
                        Err(failure) => {
                            failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
                        }
                    }
                }
                tally.lock().unwrap_or_else(PoisonError::into_inner).merge(&mine);
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let tally = tally.into_inner().unwrap();
    println!("{schedules} schedules: {tally}");
    if let Some(first) = failures.iter().min_by_key(|failure| failure.seed) {
        let seeds: Vec<u64> = failures.iter().map(|failure| failure.seed).collect();
        panic!("{} of {schedules} schedules fail: {seeds:?}\n{first}", failures.len());
    }
    // What never happened was not tested.
    if schedules >= 1000 {
        for what in [
            "acquired",
            "released",
            "already lost",
            "release unknown",
            "not acquired",
            "timeout",
            "unavailable",
            "unresolved",
            "refused",
            "expired",
            "session ended",
            "removed",
            "max_hold",
            "unknown",
            "settled",
            "renewals failed",
            "stale writes refused",
            "suspends",
            "sessions killed",
            "died",
            "closed early",
        ] {
            assert!(tally.of(what) > 0, "no schedule had one of: {what}");
        }
    }
}

#[test]
fn a_seed_plays_the_same_again() {
    for seed in 0..200 {
        let [one, two] =
            [(); 2].map(|()| simulation::run(seed).unwrap_or_else(|failure| panic!("{failure}")));
        assert_eq!(one.events, two.events, "schedule {seed} differs from itself");
        assert_eq!(one.tally, two.tally, "schedule {seed} differs from itself");
    }
}
