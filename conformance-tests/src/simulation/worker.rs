//! What a user of a lock does, in every order.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dlock_core::{AcquireError, ReleaseOutcome};
use tokio::time::{sleep, timeout};

use super::random::Random;
use super::world::World;
use crate::history::WatchedGuard;

pub(super) async fn work(world: Arc<World>, at: usize, who: String, mut random: Random) {
    let rounds = 1 + random.below(4);
    for _ in 0..rounds {
        sleep(random.upto(world.sites[at].plan.ttl)).await;
        let number = random.below(world.plan.names);
        match acquire(&world, at, number, &who, &mut random).await {
            Ok(Some(guard)) => hold(&world, at, number, guard, &mut random).await,
            Ok(None) => world.tally("not acquired"),
            Err(AcquireError::Closed { .. }) if world.sites[at].over.load(Ordering::SeqCst) => return,
            Err(error) => world.failed(kind(&error), &error),
        }
    }
}

fn kind(error: &AcquireError) -> &'static str {
    match error {
        AcquireError::Timeout { .. } => "timeout",
        AcquireError::Unavailable { .. } => "unavailable",
        AcquireError::Refused { .. } => "refused",
        AcquireError::Unresolved { .. } => "unresolved",
        _ => "other errors",
    }
}

async fn acquire(
    world: &World,
    at: usize,
    number: u64,
    who: &str,
    random: &mut Random,
) -> Result<Option<WatchedGuard>, AcquireError> {
    let site = &world.sites[at];
    let ttl = site.plan.ttl;
    let mut lock = site.locks.lock(format!("lock {number}")).expect("the name is legal");
    if random.percent(10) {
        lock = lock.max_hold(random.upto(ttl * 2));
    }
    match random.below(6) {
        0 | 1 => world.history.try_acquire(who, &lock).await,
        2 => world.history.acquire_timeout(who, &lock, random.upto(ttl * 3)).await.map(Some),
        // The future is dropped wherever it is by then.
        3 => match timeout(random.upto(ttl * 2), world.history.acquire(who, &lock)).await {
            Ok(acquired) => acquired.map(Some),
            Err(_) => Ok(None),
        },
        _ => world.history.acquire(who, &lock).await.map(Some),
    }
}

async fn hold(world: &World, at: usize, number: u64, guard: WatchedGuard, random: &mut Random) {
    let ttl = world.sites[at].plan.ttl;
    let register = &world.registers[usize::try_from(number).expect("a small number")];
    let guard = world.acquired(guard);
    for _ in 0..random.below(5) {
        sleep(random.upto(ttl)).await;
        guard.is_held();
        guard.write(register, 0);
    }
    match random.below(8) {
        0 => {
            // The worker goes on until it is told, or has enough.
            drop(timeout(ttl * 2, guard.lost()).await);
            guard.is_held();
            drop(world.give_up(guard));
        }
        1 | 2 => drop(world.give_up(guard)),
        _ => match world.give_up(guard).release().await {
            Ok(ReleaseOutcome::Released) => world.tally("released"),
            Ok(_) => world.tally("already lost"),
            Err(error) => world.failed("release unknown", &error),
        },
    }
}
