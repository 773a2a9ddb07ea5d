//! Holders that did not leave cleanly: nobody is told that the lock is theirs while such a one may still believe so.

use std::future::Future;

use dlock_core::{AcquireError, LossReason};

use super::loss::{check, take_over};
use super::waiting::spawn_acquire;
use crate::contest::Contest;
use crate::fixture::{Client, Fixture, Profile, Setup};
use crate::history::WatchedGuard;
use crate::patience::{soon, until, within};

/// What each case starts from: somebody who crashed while holding, and does not know yet.
struct Crashed {
    contest: Contest,
    guard: WatchedGuard,
}

impl Crashed {
    async fn new(fx: &dyn Fixture) -> Self {
        let profile = fx.profile();
        // A machine that is too busy just then loses the lock first, and has another chance.
        for attempt in 1..=5 {
            let contest = Contest::new(fx, format!("crashed-{attempt}"));
            let holder = fx.client(Setup::new()).await;
            let guard =
                contest.history.acquire("crashed", &contest.lock(&holder)).await.expect("the lock is free");
            // Renewed a while ago, so that what is left of its lease is not a whole one.
            let before = holder.locks.metrics().renewals;
            let renewed =
                until(profile, async || holder.locks.metrics().renewals > before || !guard.is_held());
            soon(profile, "it is renewed", renewed).await;
            tokio::time::sleep(profile.renewal() / 2).await;
            if guard.is_held() {
                fx.crash(&holder).await;
                guard.crashed();
                return Self { contest, guard };
            }
            let loss = guard.guard().loss();
            assert_eq!(loss, Some(LossReason::Expired), "no busy machine takes a lock so");
        }
        panic!("the store is too slow: no lock is held for as long as a lease");
    }

    /// Has `next` take over and checks the record.
    async fn ends_with(self, profile: &Profile, next: &Client) {
        let successor = take_over(profile, &self.contest, next, &[&self.guard]).await;
        successor.release().await.expect("the store answers");
        check(&self.contest, profile);
    }

    /// Asks the crashed one whether it holds for as long as another thing takes.
    async fn meanwhile<T>(&self, profile: &Profile, thing: impl Future<Output = T>) -> T {
        let mut thing = Box::pin(thing);
        loop {
            self.guard.is_held();
            tokio::select! {
                biased;
                output = &mut thing => return output,
                () = tokio::time::sleep(profile.moment()) => {}
            }
        }
    }
}

/// P1, P4: a crashed holder is replaced within the bound, and not before its guard stops saying that it holds; by who
/// waited before the crash, and by who comes after it.
pub async fn crashed_holder_is_settled(fx: &dyn Fixture) {
    let profile = fx.profile();
    Crashed::new(fx).await.ends_with(profile, &fx.client(Setup::new()).await).await;

    let contest = Contest::new(fx, "waited-for");
    let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = contest.history.acquire("crashed", &contest.lock(&holder)).await.expect("the lock is free");
    let (theirs, lock) = (contest.clone(), contest.lock(&other));
    let waiting = tokio::spawn(async move { theirs.history.acquire("waiter", &lock).await });
    tokio::time::sleep(profile.renewal() * 3 / 2).await;
    fx.crash(&holder).await;
    guard.crashed();
    let crashed = Crashed { contest, guard };
    let bound = profile.takeover();
    let taken =
        within(profile, bound, "P4: a crashed holder is replaced", crashed.meanwhile(profile, waiting)).await;
    let successor = taken.expect("the task does not panic").expect("the store answers");
    assert!(!crashed.guard.is_held(), "P1 broken: held by two");
    successor.release().await.expect("the store answers");
    check(&crashed.contest, profile);
}

/// P1: who gives up while it waits for an earlier holder's lease to end leaves the rest of that wait to the next.
pub async fn cancelled_settle_leaves_the_rest(fx: &dyn Fixture) {
    let profile = fx.profile();
    let crashed = Crashed::new(fx).await;
    for _ in 0..3 {
        let impatient = fx.client(Setup::new()).await;
        let waiting = spawn_acquire(&crashed.contest.lock(&impatient));
        crashed.meanwhile(profile, tokio::time::sleep(profile.ttl / 10)).await;
        waiting.abort();
        assert!(
            waiting.await.is_err() || !crashed.guard.is_held(),
            "P1 broken: granted while the crashed one holds"
        );
    }
    crashed.ends_with(profile, &fx.client(Setup::new()).await).await;
}

/// P1: as [`cancelled_settle_leaves_the_rest`], by waiters of one manager with time-outs shorter than the wait: each hands
/// on what it has waited, so one of them gets the lock in the end.
pub async fn short_waiters_settle_together(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = fx.client(Setup::new()).await;
    // So that each attempt gets an answer.
    client.locks.open().await.expect("the store answers");
    let crashed = Crashed::new(fx).await;
    let lock = crashed.contest.lock(&client);
    let attempts = async {
        loop {
            match crashed.contest.history.acquire_timeout("short", &lock, profile.ttl / 4).await {
                Ok(guard) => return guard,
                Err(AcquireError::Timeout { .. }) => {}
                Err(AcquireError::Unavailable { .. }) if profile.may_be_late() => {}
                Err(error) => panic!("held by others: {error:?}"),
            }
        }
    };
    // Each attempt may have to find out anew what is owed, which costs at most one attempt more each.
    let bound = profile.takeover() * 2;
    let guard =
        within(profile, bound, "short waiters are served", crashed.meanwhile(profile, attempts)).await;
    assert!(!crashed.guard.is_held(), "P1 broken: held by two");
    guard.release().await.expect("the store answers");
    check_without_bound(&crashed.contest, profile);
}

/// P1: as [`short_waiters_settle_together`], for overlapping waiters: who gives up hands its wait to the next in line.
pub async fn overlapping_waiters_settle_together(fx: &dyn Fixture) {
    let profile = fx.profile();
    let crashed = Crashed::new(fx).await;
    let client = fx.client(Setup::new()).await;
    let mut waiting = Vec::new();
    for number in 1..=12_u32 {
        let (contest, lock) = (crashed.contest.clone(), crashed.contest.lock(&client));
        let limit = profile.ttl * number / 4;
        waiting.push(tokio::spawn(async move {
            let guard = contest.history.acquire_timeout("overlapping", &lock, limit).await?;
            contest.update(&guard).await;
            guard.release().await.expect("the store answers");
            Ok::<_, AcquireError>(())
        }));
    }
    let mut served = 0;
    for waiter in waiting {
        let bound = profile.ttl * 3;
        let ended = within(profile, bound, "a wait ends", crashed.meanwhile(profile, waiter)).await;
        served += usize::from(ended.expect("the task does not panic").is_ok());
    }
    assert!(served > 0, "nobody was served though some waited for {:?}", profile.ttl * 3);
    assert!(!crashed.guard.is_held(), "P1 broken: held by two");
    check(&crashed.contest, profile);
}

/// P4: who only ever tries is granted the lock in the end, and not before the crashed one's guard stops saying that it
/// holds.
pub async fn tries_are_granted_in_the_end(fx: &dyn Fixture) {
    let profile = fx.profile();
    let crashed = Crashed::new(fx).await;
    let client = fx.client(Setup::new()).await;
    let lock = crashed.contest.lock(&client);
    let attempts = async {
        loop {
            let tried = crashed.contest.history.try_acquire("trier", &lock).await.expect("the store answers");
            if let Some(guard) = tried {
                return guard;
            }
            if let Some(wait) = lock.settles_in() {
                let longest = profile.takeover();
                assert!(wait <= longest, "what is met may be taken in {wait:?}, more than {longest:?}");
            }
            tokio::time::sleep(profile.ttl / 20).await;
        }
    };
    let bound = profile.takeover() + profile.ttl;
    let guard = within(profile, bound, "P4: tries are granted", crashed.meanwhile(profile, attempts)).await;
    assert!(!crashed.guard.is_held(), "P1 broken: held by two");
    guard.release().await.expect("the store answers");
    assert!(lock.settles_in().is_none(), "nothing is owed any more");
    let guard = lock.try_acquire().await.expect("the store answers");
    drop(guard.expect("the debt was paid, and the lock was released cleanly"));
    check_without_bound(&crashed.contest, profile);
}

/// P1: who crashes while it waits for an earlier holder's lease to end leaves no gap: the next waits for both.
pub async fn crashed_settle_leaves_the_rest(fx: &dyn Fixture) {
    let profile = fx.profile();
    let crashed = Crashed::new(fx).await;
    let second = fx.client(Setup::new()).await;
    let waiting = spawn_acquire(&crashed.contest.lock(&second));
    crashed.meanwhile(profile, tokio::time::sleep(profile.ttl / 10)).await;
    fx.crash(&second).await;
    crashed.meanwhile(profile, tokio::time::sleep(profile.ttl / 10)).await;
    waiting.abort();
    let next = fx.client(Setup::new()).await;
    // The second may hold a claim of its own at the store by now.
    let lock = crashed.contest.lock(&next);
    let asked = crashed.meanwhile(profile, crashed.contest.history.acquire("third", &lock));
    let guard = within(profile, profile.takeover() * 2, "P4: the lock passes on", asked).await;
    let guard = guard.expect("the store answers");
    assert!(!crashed.guard.is_held(), "P1 broken: held by two");
    guard.release().await.expect("the store answers");
    check_without_bound(&crashed.contest, profile);
}

/// P1: a manager that is closed while it waits for an earlier holder's lease to end leaves the rest to the next.
pub async fn close_while_settling_leaves_the_rest(fx: &dyn Fixture) {
    let profile = fx.profile();
    let crashed = Crashed::new(fx).await;
    let closed = fx.client(Setup::new()).await;
    let waiting = spawn_acquire(&crashed.contest.lock(&closed));
    crashed.meanwhile(profile, tokio::time::sleep(profile.ttl / 10)).await;
    let closing = within(profile, profile.request_timeout * 2, "a close ends", closed.locks.close()).await;
    closing.expect("the store answers");
    let ended = waiting.await.expect("the task does not panic");
    assert!(matches!(ended, Err(AcquireError::Closed { .. })), "the manager was closed: {ended:?}");
    crashed.ends_with(profile, &fx.client(Setup::new()).await).await;
}

/// Checks the record without the bound on takeovers, where several waited one after the other.
fn check_without_bound(contest: &Contest, profile: &Profile) {
    if let Err(violations) = contest.history.check() {
        panic!("on {}:\n{violations}", profile.backend);
    }
}
