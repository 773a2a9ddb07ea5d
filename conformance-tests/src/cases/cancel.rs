//! P6: futures are dropped at every point, and nothing is left behind: no claim, no stolen wake-up, no lost place.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use dlock_core::faults::Op;

use super::waiting::{Served, spawn_acquire, wait_for_claims, wait_for_waiters};
use crate::case::nothing_is_left;
use crate::fixture::{Client, Fixture, Setup};
use crate::patience::{cancelled_after, poll_once, soon, until, within};

type Acquiring = Pin<Box<dyn Future<Output = bool>>>;

/// The ways to ask for a lock, each as a future that says whether it got it.
fn ways(client: &Client, name: &str, limit: Duration) -> Vec<(&'static str, Acquiring)> {
    let lock = client.lock(name);
    let (waiting, trying, timing) = (lock.clone(), lock.clone(), lock);
    vec![
        ("acquire", Box::pin(async move { waiting.acquire().await.is_ok() })),
        (
            "try_acquire",
            Box::pin(async move { trying.try_acquire().await.is_ok_and(|guard| guard.is_some()) }),
        ),
        ("acquire_timeout", Box::pin(async move { timing.acquire_timeout(limit).await.is_ok() })),
    ]
}

/// A future that asks for a free lock is dropped after its first poll, its second, and so on; each time the lock is
/// free for the next, and nothing is left at the store.
pub async fn cancel_at_every_poll(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, next) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for slow in [false, true] {
        let delay = if slow { profile.moment() * 4 } else { Duration::ZERO };
        for op in [Op::Claim, Op::Release] {
            client.faults.delay_reply(op, delay);
        }
        for way in 0..3 {
            for polls in 1.. {
                let (what, future) = ways(&client, "cancelled", profile.patience()).remove(way);
                let done = soon(profile, "a future is polled", cancelled_after(polls, future)).await;
                let taken =
                    soon(profile, "P6: a cancelled claim is given back", next.lock("cancelled").acquire())
                        .await;
                let guard = taken.expect("the store answers");
                guard.release().await.expect("the store answers");
                nothing_is_left(fx).await;
                if let Some(got) = done {
                    assert!(got, "{what} did not get a free lock");
                    break;
                }
            }
        }
    }
}

/// As [`cancel_at_every_poll`], while somebody else holds the lock and releases it afterwards.
pub async fn cancel_at_every_poll_of_a_wait(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, client, next) =
        (fx.client(Setup::new()).await, fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for way in 0..3 {
        for polls in 1..=4 {
            let guard = soon(profile, "the lock is free", holder.lock("waited").acquire()).await;
            let guard = guard.expect("the store answers");
            let (what, future) = ways(&client, "waited", profile.moment() * 4).remove(way);
            let polled = cancelled_after(polls, future);
            // Who waits without end is polled no more once it waits, so the case goes on without it.
            let done = tokio::time::timeout(profile.moment() * 10, polled).await;
            assert!(!matches!(done, Ok(Some(true))), "P1 broken: {what} got a held lock");
            let waiting = spawn_acquire(&next.lock("waited"));
            wait_for_waiters(profile, &next, 1).await;
            guard.release().await.expect("the store answers");
            let got =
                within(profile, profile.handoff, "P6: no wake-up goes to a waiter that is gone", waiting)
                    .await;
            let guard = got.expect("the task does not panic").expect("the store answers");
            guard.release().await.expect("the store answers");
            nothing_is_left(fx).await;
        }
    }
}

/// As [`cancel_at_every_poll`], by time: the future is dropped while its request, its wait or its release is under way.
pub async fn cancel_at_every_moment(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, client, next) = (
        fx.client(Setup::new()).await,
        fx.client(Setup::new().impatient(profile)).await,
        fx.client(Setup::new()).await,
    );
    client.locks.open().await.expect("the store answers");
    let moment = profile.moment();
    for op in [Op::Claim, Op::Release, Op::Resolve] {
        client.faults.delay_reply(op, moment * 3);
    }
    for lost_reply in [false, true] {
        for step in 0..u32::try_from(profile.rounds(40)).expect("a small number") {
            let guard = soon(profile, "the lock is free", holder.lock("moment").acquire()).await;
            let guard = guard.expect("the store answers");
            if lost_reply {
                client.faults.drop_reply_next(Op::Claim, 1);
            }
            let waiting = spawn_acquire(&client.lock("moment"));
            // Half of the steps are before the release, half after it.
            tokio::time::sleep(moment * step / 2).await;
            guard.release().await.expect("the store answers");
            tokio::time::sleep(moment * step / 2).await;
            waiting.abort();
            drop(waiting.await);
            let bound = profile.handoff + profile.request_timeout * 3;
            let what = "P6: a cancelled waiter's claim goes to the next";
            let guard = within(profile, bound, what, next.lock("moment").acquire()).await;
            guard.expect("the store answers").release().await.expect("the store answers");
            nothing_is_left(fx).await;
        }
    }
}

/// Waiters that are dropped, at the head or in the middle, take nobody's turn and nobody's place with them.
pub async fn cancelled_waiters_keep_the_places_behind(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, early, late) =
        (fx.client(Setup::new()).await, fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = holder.lock("places").acquire().await.expect("the lock is free");
    let served = Served::default();
    let mut tasks = Vec::new();
    for number in 0..6 {
        tasks.push(served.spawn(&early.lock("places"), number));
    }
    wait_for_waiters(profile, &early, 6).await;
    if profile.is_fifo() {
        wait_for_claims(fx, 2).await;
    }
    tasks.push(served.spawn(&late.lock("places"), 6));
    wait_for_waiters(profile, &late, 1).await;
    if profile.is_fifo() {
        wait_for_claims(fx, 3).await;
    }
    for gone in [0, 1, 3, 5] {
        tasks[gone].abort();
    }
    tokio::time::sleep(profile.moment() * 2).await;
    guard.release().await.expect("the store answers");
    for task in tasks {
        drop(soon(profile, "every waiter that stayed gets its turn", task).await);
    }
    let order = served.order();
    let local: Vec<_> = order.iter().copied().filter(|number| *number < 6).collect();
    assert_eq!(local, [2, 4], "the waiters that stayed are served in the order of asking");
    assert_eq!(order.len(), 3, "every waiter that stayed is served");
    if profile.is_fifo() {
        // One turn of the process that came first, before the other one's.
        assert_eq!(order[0], 2, "a process lost its place since its first waiter gave up");
    }
}

/// A guard that was granted to a waiter which never looks again goes to the next waiter when that one is dropped.
pub async fn a_grant_nobody_takes_goes_on(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, client) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for _ in 0..profile.rounds(10) {
        let guard = soon(profile, "the lock is free", holder.lock("taken").acquire()).await;
        let guard = guard.expect("the store answers");
        let lock = client.lock("taken");
        let mut first = Box::pin(lock.acquire());
        assert!(poll_once(&mut first).await.is_pending(), "P1 broken: a held lock was granted");
        let second = spawn_acquire(&lock);
        wait_for_waiters(profile, &client, 2).await;
        guard.release().await.expect("the store answers");
        // The grant arrives, and lies with the first, which is not polled any more.
        let arrived = until(profile, async || client.locks.metrics().waiting < 2);
        soon(profile, "the grant arrives", arrived).await;
        assert!(!second.is_finished(), "P1 broken: two waiters got the lock");
        drop(first);
        let guard = within(profile, profile.handoff, "P6: the grant goes to the next waiter", second).await;
        let guard = guard.expect("the task does not panic").expect("the store answers");
        guard.release().await.expect("the store answers");
    }
}

/// A release whose future is dropped at any point still releases.
pub async fn cancelled_releases_release(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, next) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for delay in [Duration::ZERO, profile.moment() * 3] {
        client.faults.delay_reply(Op::Release, delay);
        for polls in 0..5 {
            let guard = soon(profile, "the lock is free", client.lock("freed").acquire()).await;
            let release = guard.expect("the store answers").release();
            // Dropped before it was ever polled, it drops the guard in it.
            let done = soon(profile, "a release is polled", cancelled_after(polls, release)).await;
            let bound = profile.handoff + delay * 2;
            let what = "P6: a cancelled release still releases";
            let guard = within(profile, bound, what, next.lock("freed").acquire()).await;
            guard.expect("the store answers").release().await.expect("the store answers");
            nothing_is_left(fx).await;
            if done.is_some() {
                break;
            }
        }
    }
}

/// A future that is dropped while the first session is being opened leaves no claim.
pub async fn cancel_while_opening(fx: &dyn Fixture) {
    let profile = fx.profile();
    let next = fx.client(Setup::new()).await;
    for step in 0..6 {
        let client = fx.client(Setup::new().dropped()).await;
        client.faults.delay_reply(Op::Open, profile.moment() * 2);
        client.faults.delay_reply(Op::Claim, profile.moment() * 2);
        let waiting = spawn_acquire(&client.lock("opening"));
        tokio::time::sleep(profile.moment() * step).await;
        waiting.abort();
        drop(waiting.await);
        let taken =
            soon(profile, "P6: a cancelled claim is given back", next.lock("opening").acquire()).await;
        taken.expect("the store answers").release().await.expect("the store answers");
        drop(client);
        nothing_is_left(fx).await;
    }
}
