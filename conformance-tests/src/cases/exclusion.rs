//! P1: one holder at a time.

use std::time::Duration;

use dlock_core::ErrorKind;
use dlock_core::faults::{Fault, Op};

use crate::contest::Contest;
use crate::fixture::{Fixture, Setup};
use crate::patience::{soon, within};

/// P1: of many tasks of one manager one holds the lock at a time, and each gets its turn.
pub async fn exclusion_between_tasks(fx: &dyn Fixture) {
    let client = fx.client(Setup::new()).await;
    let contest = Contest::new(fx, "contended");
    contest.fight(&[client], 8, fx.profile().rounds(25)).await;
}

/// P1: of the tasks of several managers one holds the lock at a time, and each gets its turn.
pub async fn exclusion_between_managers(fx: &dyn Fixture) {
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(fx.client(Setup::new()).await);
    }
    let contest = Contest::new(fx, "contended");
    contest.fight(&clients, 3, fx.profile().rounds(25)).await;
}

/// P1, P2, P3: whatever becomes of single requests, one holds at a time, tokens rise, and losses are told.
pub async fn exclusion_under_faults(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "contended");
    let mut fighters = Vec::new();
    let mut clients = Vec::new();
    for number in 0..3_u64 {
        let client = fx.client(Setup::new().request_timeout(profile.ttl / 4)).await;
        clients.push(client.clone());
        let (contest, lock) = (contest.clone(), contest.lock(&client));
        let (rounds, ttl, moment) = (profile.rounds(30) as u64, profile.ttl, profile.moment());
        fighters.push(tokio::spawn(async move {
            for round in 0..rounds {
                // Each client in its own order through all that can happen to a request.
                let late = ttl * u32::try_from(round % 5).expect("below five") / 4;
                let faults = &client.faults;
                match (round * 3 + number * 5) % 9 {
                    0 => faults.drop_reply_next(Op::Claim, 1),
                    1 => faults.execute_late(Op::Claim, 1, late),
                    2 => faults.drop_reply_next(Op::Release, 1),
                    3 => faults.execute_late(Op::Release, 1, late),
                    4 => faults.unknown_next(Op::Claim, 2),
                    5 => faults.execute_late(Op::Renew, 2, late),
                    6 => faults.next_of(Op::Claim, 1, Fault::DelayReply(ttl / 5)),
                    7 => faults.fail_next(Op::Claim, 1, ErrorKind::Unavailable),
                    _ => faults.next_of(Op::Resolve, 1, Fault::Unknown(late)),
                }
                let Ok(guard) = contest.history.acquire_timeout(client.label(), &lock, ttl * 4).await else {
                    continue;
                };
                contest.update(&guard).await;
                tokio::time::sleep(moment).await;
                guard.is_held();
                if round % 3 > 0 {
                    drop(guard.release().await);
                }
            }
        }));
    }
    for fighter in fighters {
        soon(profile, "every client ends its rounds", fighter).await.expect("the task does not panic");
    }
    let summary = contest.history.assert_sound();
    assert!(summary.acquisitions > 0, "somebody got the lock");
}

/// P1, P7: two managers that say they are the same owner exclude each other, and neither releases the other's claim.
pub async fn two_managers_one_owner(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "shared");
    let twins = [fx.client(Setup::new().owner("twin")).await, fx.client(Setup::new().owner("twin")).await];
    let [first, second] = [contest.lock(&twins[0]), contest.lock(&twins[1])];
    let guard = contest.history.acquire("first", &first).await.expect("the lock is free");
    let tried = second.try_acquire().await.expect("the store answers");
    assert!(tried.is_none(), "P1 broken: a second manager of the same owner was granted the same lock");

    // The end of one session is not the end of the other's.
    soon(profile, "the second manager closes", twins[1].locks.close()).await.expect("the store answers");
    tokio::time::sleep(profile.ttl).await;
    assert!(guard.is_held(), "closing one manager ended the hold of another one with the same owner");

    let third = fx.client(Setup::new().owner("twin")).await;
    let tried = contest.lock(&third).try_acquire().await.expect("the store answers");
    assert!(tried.is_none(), "P1 broken: a new session was taken for an earlier one of the same owner");
    guard.release().await.expect("the store answers");
    contest.fight(&[twins[0].clone(), third], 2, profile.rounds(10)).await;
}

/// Locks are not re-entrant: a second acquire of the same manager waits, also in the same task.
pub async fn a_second_acquire_waits(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = fx.client(Setup::new()).await;
    let lock = client.locks.lock("once").expect("a legal name");
    let guard = lock.acquire().await.expect("the lock is free");
    assert!(lock.try_acquire().await.expect("the store answers").is_none(), "P1 broken: granted twice");
    let again = lock.acquire_timeout(Duration::from_millis(50)).await;
    assert!(again.is_err_and(|error| error.is_timeout()), "a second acquire waits for the first guard");
    // A clone of the handle, and another handle to the same name, are the same lock.
    let other = client.locks.clone().lock("once").expect("a legal name");
    assert!(other.try_acquire().await.expect("the store answers").is_none(), "P1 broken: granted twice");
    guard.release().await.expect("the store answers");
    let guard = soon(profile, "the lock is free again", other.acquire()).await.expect("the lock is free");
    guard.release().await.expect("the store answers");
}

/// Holding one lock keeps nobody from another: a hundred names are held at once by one manager, each by one guard.
pub async fn names_are_independent(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let mut guards = Vec::new();
    for number in 0..100 {
        let lock = one.locks.lock(format!("name-{number}")).expect("a legal name");
        let guard = within(profile, profile.patience(), "a free lock", lock.acquire()).await;
        guards.push(guard.expect("the lock is free"));
    }
    for guard in &guards {
        let lock = other.locks.lock(guard.name().as_str()).expect("a legal name");
        assert!(
            lock.try_acquire().await.expect("the store answers").is_none(),
            "P1 broken: {}",
            guard.name()
        );
    }
    // One is given back; only that one is free.
    let last = guards.pop().expect("there are a hundred");
    let free = other.locks.lock(last.name().as_str()).expect("a legal name");
    last.release().await.expect("the store answers");
    let guard = soon(profile, "the lock is free again", free.acquire()).await.expect("the lock is free");
    assert!(
        guards.iter().all(dlock_core::LockGuard::is_held),
        "releasing one lock ended the hold of another"
    );
    guard.release().await.expect("the store answers");
    for guard in guards {
        guard.release().await.expect("the store answers");
    }
}
