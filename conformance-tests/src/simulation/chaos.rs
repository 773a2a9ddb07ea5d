//! What happens to managers, store and machine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use dlock_core::ErrorKind;
use dlock_core::memory::Expiry;
use tokio::time::sleep;

use super::random::Random;
use super::world::World;

/// Faults on the way of one manager to the store.
pub(super) async fn at_site(world: Arc<World>, at: usize, mut random: Random) {
    let site = &world.sites[at];
    let ttl = site.plan.ttl;
    site.calm_down(&world);
    for _ in 0..random.below(4) {
        sleep(random.upto(ttl * 3)).await;
        let time = random.upto(ttl * 2);
        match random.below(5) {
            0 => site.faults.black_hole(),
            1 => site.faults.freeze(),
            2 => site.faults.fail_all(ErrorKind::Unavailable),
            3 => {
                site.faults.end_session();
                continue;
            }
            // Its clock goes ahead of the world's: it loses what it holds too early. Where a contender's clock decides
            // when an earlier holder is over, that would break A1.
            _ => {
                if world.plan.expiry == Expiry::Proven {
                    site.clock.jump(time);
                }
                continue;
            }
        }
        sleep(time).await;
        site.calm_down(&world);
    }
    if site.plan.dies {
        site.over.store(true, Ordering::SeqCst);
        site.faults.black_hole();
        world.tally("died");
    } else if site.plan.closes {
        site.over.store(true, Ordering::SeqCst);
        // Under faults the end of the session may not be confirmed.
        drop(site.locks.close().await);
        world.tally("closed early");
    }
}

/// What concerns all.
pub(super) async fn everywhere(world: Arc<World>, mut random: Random) {
    let ttl = world.plan.longest_ttl();
    for _ in 0..random.below(4) {
        sleep(random.upto(ttl * 4)).await;
        match random.below(4) {
            0 => suspend(&world, random.upto(ttl * 2)),
            // A store that settles may end sessions whose holders do not know it: the debt makes that harmless.
            1 if world.plan.expiry == Expiry::Settled => {
                world.store.expire_sessions_where(|_, _| random.percent(50));
                world.tally("sessions killed");
            }
            2 if world.plan.expiry == Expiry::Settled => {
                let site = &world.sites[random.index(world.sites.len())];
                if site.over.load(Ordering::SeqCst) {
                    continue;
                }
                site.faults.black_hole();
                world.store.expire_session(&site.owner);
                world.tally("sessions killed");
                sleep(random.upto(ttl * 2)).await;
                if !site.over.load(Ordering::SeqCst) {
                    site.calm_down(&world);
                }
            }
            _ => {}
        }
    }
}

/// The machine sleeps: time passes for all, and no timer fires.
fn suspend(world: &World, time: Duration) {
    world.true_clock.jump(time);
    let rate = |drift: i32| i64::from(1_000_000 + drift);
    let local = |drift: i32| {
        let nanos = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let scaled = u128::from(nanos) * u128::try_from(rate(drift)).unwrap_or(0) / 1_000_000;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    };
    world.store_clock.jump(local(world.plan.store_drift));
    for site in &world.sites {
        site.clock.jump(local(site.plan.drift));
    }
    world.tally("suspends");
}
