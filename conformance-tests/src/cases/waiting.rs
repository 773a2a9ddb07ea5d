//! Trying, waiting, timing out, and whose turn it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock_core::faults::Op;
use dlock_core::{AcquireError, Lock, LockGuard};
use futures_util::FutureExt;
use tokio::task::JoinHandle;

use crate::fixture::{Client, Fixture, Profile, Setup};
use crate::patience::{soon, until, within};

/// A try on a free lock gets it, a try on a held one is told so at once, by whatever client, and a release frees it.
pub async fn try_tells_free_from_held(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for _ in 0..3 {
        let guard =
            one.lock("tried").try_acquire().await.expect("the store answers").expect("the lock is free");
        assert!(guard.is_held() && guard.valid_for() <= profile.ttl);
        for client in [&one, &other] {
            let tried = soon(profile, "a try is answered", client.lock("tried").try_acquire()).await;
            assert!(
                tried.expect("the store answers").is_none(),
                "P1 broken: a held lock was granted to a try"
            );
        }
        guard.release().await.expect("the store answers");
        let guard = other.lock("tried").try_acquire().await.expect("the store answers");
        drop(guard.expect("a released lock is free for the next try"));
        soon(
            profile,
            "a dropped guard frees the lock",
            until(profile, async || fx.residue().await.is_empty()),
        )
        .await;
    }
}

/// P6: a try that finds the lock held leaves nothing at the store, and stands in nobody's way.
pub async fn busy_try_leaves_nothing(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, trier, next) =
        (fx.client(Setup::new()).await, fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = holder.lock("busy").acquire().await.expect("the lock is free");
    let held = fx.residue().await;
    for _ in 0..10 {
        assert!(trier.lock("busy").try_acquire().await.expect("the store answers").is_none(), "P1 broken");
        let ended = trier.lock("busy").acquire_timeout(Duration::ZERO).await;
        assert!(ended.is_err_and(|error| error.is_timeout()), "no time to wait is one try");
    }
    let left = fx.residue().await;
    assert!(left.len() <= held.len(), "P6 broken: busy tries left something: {left:#?}, it was {held:#?}");
    // Whatever the tries left would stand before this one, and would hold the lock when its turn came.
    let waiting = spawn_acquire(&next.lock("busy"));
    tokio::time::sleep(profile.moment()).await;
    guard.release().await.expect("the store answers");
    let guard = within(profile, profile.handoff, "a waiter after busy tries gets the lock", waiting).await;
    let guard = guard.expect("the task does not panic").expect("the lock is free");
    guard.release().await.expect("the store answers");
}

/// No time to wait means one try: a free lock is got, a held one is a time-out.
pub async fn zero_timeout_is_one_try(fx: &dyn Fixture) {
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard =
        one.lock("zero").acquire_timeout(Duration::ZERO).await.expect("a free lock is got in no time");
    let error = other.lock("zero").acquire_timeout(Duration::ZERO).await.expect_err("P1: the lock is held");
    assert!(matches!(error, AcquireError::Timeout { .. }), "a held lock is a time-out, not {error:?}");
    guard.release().await.expect("the store answers");
}

/// P6: a time too short for the store's answer ends the call all the same, and what was asked for is given back.
pub async fn tiny_timeouts_leave_nothing(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for nanos in [1, 100, 1_000, 10_000, 100_000, 1_000_000] {
        let tiny = Duration::from_nanos(nanos);
        let lock = one.lock("tiny");
        match soon(profile, "a tiny time-out", lock.acquire_timeout(tiny)).await {
            Ok(guard) => drop(guard),
            Err(error) => assert!(error.is_transient(), "out of time is transient, not {error:?}"),
        }
        let guard = within(profile, profile.handoff, "the lock is free", other.lock("tiny").acquire()).await;
        let guard = guard.expect("the lock is free");
        match soon(profile, "a tiny time-out", lock.acquire_timeout(tiny)).await {
            Ok(_) => panic!("P1 broken: a held lock was granted"),
            Err(error) => assert!(error.is_transient(), "out of time is transient, not {error:?}"),
        }
        guard.release().await.expect("the store answers");
    }
}

/// A huge time to wait is no trouble, and does not delay anything.
pub async fn huge_timeouts_wait(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = one.lock("huge").acquire_timeout(Duration::MAX).await.expect("the lock is free");
    let lock = other.lock("huge");
    let waiting = tokio::spawn(async move { lock.acquire_timeout(Duration::MAX).await });
    tokio::time::sleep(profile.ttl * 2).await;
    assert!(!waiting.is_finished(), "a waiter with a huge time-out gave up or got a held lock");
    guard.release().await.expect("the store answers");
    let guard = within(profile, profile.handoff, "the waiter gets the lock", waiting).await;
    guard
        .expect("the task does not panic")
        .expect("the lock is free")
        .release()
        .await
        .expect("the store answers");
}

/// A wait ends when its time is over: not before, and not much after; the claim that waited is given back.
pub async fn timeouts_end_a_wait(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = one.lock("late").acquire().await.expect("the lock is free");
    // So that the first answer comes within the shortest wait.
    other.locks.open().await.expect("the store answers");
    let held = fx.residue().await;
    let clock = fx.clock();
    let mut limits = vec![profile.ttl, profile.ttl / 2, profile.ttl / 4];
    let mut late = 0;
    while let Some(limit) = limits.pop() {
        let asked = clock.now();
        let ended =
            within(profile, limit, "the wait ends in time", other.lock("late").acquire_timeout(limit)).await;
        let waited = clock.now().since(asked);
        match ended {
            Err(AcquireError::Timeout { name, waited: said }) => {
                assert_eq!(name.as_str(), "late");
                assert!(said >= limit, "it says it waited {said:?}, less than {limit:?}");
            }
            // Nobody has said that the lock is held: once more.
            Err(AcquireError::Unavailable { .. }) if profile.may_be_late() && late < 5 => {
                late += 1;
                limits.push(limit);
            }
            other => panic!("a held lock is a time-out, not {other:?}"),
        }
        assert!(waited >= limit, "it gave up after {waited:?}, before the {limit:?} were over");
    }
    let given_back = until(profile, async || fx.residue().await.len() <= held.len());
    soon(profile, "P6: claims that timed out are given back", given_back).await;
    assert!(guard.is_held());
    guard.release().await.expect("the store answers");
}

/// No wake-up is lost, whenever the release comes: before the waiter's first look, during it, or while it waits.
pub async fn no_wake_up_is_lost(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for client in [&one, &other] {
        client.locks.open().await.expect("the store answers");
    }
    let steps = u32::try_from(profile.rounds(20)).expect("a small number");
    for slow_look in [false, true] {
        // The answer to the first look is on its way when the release comes.
        let delay = if slow_look { profile.moment() * steps / 2 } else { Duration::ZERO };
        for step in 0..steps {
            let guard = soon(profile, "the lock is free", one.lock("woken").acquire()).await;
            let guard = guard.expect("the lock is free");
            other.faults.delay_reply(Op::Claim, delay);
            let waiting = spawn_acquire(&other.lock("woken"));
            tokio::time::sleep(profile.moment() * step).await;
            guard.release().await.expect("the store answers");
            let bound = profile.handoff + delay * 2;
            let guard = within(profile, bound, "a waiter is woken by the release", waiting).await;
            other.faults.delay_reply(Op::Claim, Duration::ZERO);
            let guard = guard.expect("the task does not panic").expect("the lock is free");
            guard.release().await.expect("the store answers");
        }
    }
}

/// Tasks of one manager get the lock in the order in which they asked for it.
pub async fn local_waiters_are_served_in_order(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = fx.client(Setup::new()).await;
    let guard = client.lock("local").acquire().await.expect("the lock is free");
    let served = Served::default();
    let mut tasks = Vec::new();
    for number in 0..20 {
        tasks.push(served.spawn(&client.lock("local"), number));
        wait_for_waiters(profile, &client, number + 1).await;
    }
    guard.release().await.expect("the store answers");
    for task in tasks {
        soon(profile, "every waiter gets its turn", task).await.expect("the task does not panic");
    }
    assert_eq!(
        served.order(),
        (0..20).collect::<Vec<_>>(),
        "local waiters are served in the order of asking"
    );
}

/// Where the store keeps a queue, processes get the lock in the order in which they asked; everywhere each gets it.
pub async fn waiters_of_several_managers_are_all_served(fx: &dyn Fixture) {
    let profile = fx.profile();
    let holder = fx.client(Setup::new()).await;
    let guard = holder.lock("queue").acquire().await.expect("the lock is free");
    let served = Served::default();
    let mut tasks = Vec::new();
    for number in 0..8 {
        let client = fx.client(Setup::new()).await;
        tasks.push(served.spawn(&client.lock("queue"), number));
        if profile.is_fifo() {
            wait_for_claims(fx, number + 2).await;
        }
    }
    guard.release().await.expect("the store answers");
    for task in tasks {
        soon(profile, "every waiter gets its turn", task).await.expect("the task does not panic");
    }
    let mut order = served.order();
    if !profile.is_fifo() {
        order.sort_unstable();
    }
    assert_eq!(order, (0..8).collect::<Vec<_>>(), "waiters are served in the order of asking");
}

/// Waiters with short time-outs do not lose the place in the store's queue of those behind them in their process.
pub async fn short_waiters_keep_the_place(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, early, late) =
        (fx.client(Setup::new()).await, fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = holder.lock("place").acquire().await.expect("the lock is free");
    early.locks.open().await.expect("the store answers");
    let served = Served::default();
    // The first to wait makes the claim, and gives up; who stands behind it inherits the place.
    let limit = profile.ttl / 4;
    let short = early.lock("place");
    let short = tokio::spawn(async move { short.acquire_timeout(limit).await.map(drop) });
    wait_for_waiters(profile, &early, 1).await;
    if profile.is_fifo() {
        wait_for_claims(fx, 2).await;
    }
    let mut tasks = vec![served.spawn(&early.lock("place"), 0)];
    wait_for_waiters(profile, &early, 2).await;
    tasks.push(served.spawn(&late.lock("place"), 1));
    wait_for_waiters(profile, &late, 1).await;
    if profile.is_fifo() {
        wait_for_claims(fx, 3).await;
    }
    let ended = soon(profile, "the short wait ends", short).await.expect("the task does not panic");
    assert!(ended.is_err_and(|error| error.is_timeout()), "P1 broken: a held lock was granted");
    // Another one comes and goes behind.
    let brief = early.lock("place").acquire_timeout(profile.moment()).await;
    assert!(brief.is_err_and(|error| error.is_timeout()), "P1 broken: a held lock was granted");
    guard.release().await.expect("the store answers");
    for task in tasks {
        soon(profile, "every waiter gets its turn", task).await.expect("the task does not panic");
    }
    let mut order = served.order();
    if !profile.is_fifo() {
        order.sort_unstable();
    }
    assert_eq!(order, [0, 1], "a waiter lost its place since one before it gave up");
}

/// Ten thousand tasks wait for one lock at the cost of one claim at the store, and are served in order; those that go
/// away are in nobody's way.
pub async fn ten_thousand_local_waiters(fx: &dyn Fixture) {
    const WAITERS: usize = 10_000;
    let profile = fx.profile();
    let (holder, client) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = holder.lock("crowd").acquire().await.expect("the lock is free");
    let served = Served::default();
    let tasks: Vec<_> = (0..WAITERS).map(|number| served.spawn(&client.lock("crowd"), number)).collect();
    wait_for_waiters(profile, &client, WAITERS).await;
    let claims = fx.residue().await;
    assert!(claims.len() <= 2, "ten thousand local waiters are one at the store, not {}", claims.len());
    // Where each turn costs real requests, most give up.
    let every = if profile.is_simulated() { 2 } else { 200 };
    for (number, task) in tasks.iter().enumerate() {
        if number % every != 0 {
            task.abort();
        }
    }
    guard.release().await.expect("the store answers");
    for (number, task) in tasks.into_iter().enumerate() {
        let ended = soon(profile, "every waiter gets its turn", task).await;
        assert_eq!(ended.is_ok(), number % every == 0, "waiter {number} was cancelled, or not");
    }
    let expected: Vec<_> = (0..WAITERS).step_by(every).collect();
    assert!(served.order() == expected, "local waiters are served in the order of asking");
}

/// Who holds a lock can be shown, where the backend knows: the owner's name while it is held, nobody when it is free.
pub async fn the_holder_is_shown(fx: &dyn Fixture) {
    let (one, other) = (fx.client(Setup::new().owner("worker-7")).await, fx.client(Setup::new()).await);
    assert_eq!(other.lock("shown").holder().await.expect("the store answers"), None);
    let guard = one.lock("shown").acquire().await.expect("the lock is free");
    if let Some(holder) = other.lock("shown").holder().await.expect("the store answers") {
        assert_eq!(holder.owner, "worker-7");
    }
    guard.release().await.expect("the store answers");
    assert_eq!(other.lock("shown").holder().await.expect("the store answers"), None);
}

/// Starts to wait for a lock.
pub(super) fn spawn_acquire(lock: &Lock) -> JoinHandle<Result<LockGuard, AcquireError>> {
    let lock = lock.clone();
    tokio::spawn(async move { lock.acquire().await })
}

/// Waits until so many tasks of a client wait for locks.
pub(super) async fn wait_for_waiters(profile: &Profile, client: &Client, count: usize) {
    let there = until(profile, async || client.locks.metrics().waiting >= count as u64);
    soon(profile, "the waiters are there", there).await;
}

/// Waits until the store knows of so many claims, where waiters stand in its queue.
pub(super) async fn wait_for_claims(fx: &dyn Fixture, count: usize) {
    let there = until(fx.profile(), async || fx.residue().await.len() >= count);
    soon(fx.profile(), "the waiters stand in the store's queue", there).await;
}

/// In which order waiters were served.
#[derive(Clone, Default)]
pub(super) struct Served(Arc<Mutex<Vec<usize>>>);

impl Served {
    /// Starts a task that waits for a lock that is held, notes its number, and gives the lock back. Tasks wait in the
    /// order of these calls.
    pub(super) fn spawn(&self, lock: &Lock, number: usize) -> JoinHandle<()> {
        let (served, lock) = (self.clone(), lock.clone());
        let mut waiting = Box::pin(async move {
            let guard = lock.acquire().await.expect("nothing is broken");
            served.0.lock().expect("nobody panics with it").push(number);
            guard.release().await.expect("nothing is broken");
        });
        // Its place is that of its first poll, and several threads would poll the tasks in any order.
        assert!(waiting.as_mut().now_or_never().is_none(), "P1 broken: a held lock was granted");
        tokio::spawn(waiting)
    }

    pub(super) fn order(&self) -> Vec<usize> {
        self.0.lock().expect("nobody panics with it").clone()
    }
}
