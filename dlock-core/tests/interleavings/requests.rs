//! How often and in which order a store is asked.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock_core::faults::{Fault, Op};
use dlock_core::memory::{MemoryBackend, MemoryStore, Waiting};
use dlock_core::{Clock, ErrorKind, LockManager, TestClock};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::{faulty, lock, millis, secs, settings, sound};

/// A store that is in trouble is not flooded: a claim or a release that comes to nothing again and again is repeated with
/// growing pauses.
///
/// Requests fail at once with "unknown", and `resolve` answers at once that they were not executed. Without pauses no
/// task ever gives way, so the fault ends after a thousand requests.
#[tokio::test(start_paused = true)]
async fn requests_that_come_to_nothing_are_repeated_with_pauses() {
    let (manager, faults) = faulty(&MemoryStore::new(), "b");
    let a_thousand = |nth| if nth <= 1000 { Fault::Fail(ErrorKind::Unknown) } else { Fault::None };
    faults.on(Op::Claim, a_thousand);
    lock(&manager).acquire_timeout(secs(20)).await.unwrap_err();
    let claims = faults.count(Op::Claim);
    assert!((5..=25).contains(&claims), "{claims} claims in 20 s");

    faults.heal();
    let guard = lock(&manager).acquire().await.unwrap();
    faults.on(Op::Release, a_thousand);
    guard.release().await.unwrap_err();
    let releases = faults.count(Op::Release);
    assert!((3..=12).contains(&releases), "{releases} releases in 3 s");
}

/// A wait that fails is no reason to look again and again: the looks become fewer.
///
/// The store allows claims and forbids watches.
#[tokio::test(start_paused = true)]
async fn a_wait_that_keeps_failing_backs_off() {
    let store = MemoryStore::new();
    let holder = sound(&store, "a");
    let _held = lock(&holder).acquire().await.unwrap();
    let (manager, faults) = faulty(&store, "b");
    faults.on(Op::Wait, |_| Fault::Fail(ErrorKind::Refused));
    assert!(lock(&manager).acquire_timeout(secs(600)).await.unwrap_err().is_timeout());
    let looks = faults.count(Op::Claim);
    assert!((100..=300).contains(&looks), "{looks} looks in 600 s");
}

/// Whoever asks for a session while one is being opened shares the outcome: a store that is down costs one time-out.
#[tokio::test(start_paused = true)]
async fn an_opening_under_way_is_shared() {
    let (manager, faults) = faulty(&MemoryStore::new(), "b");
    faults.on(Op::Open, |_| Fault::BlackHole);
    let callers = (0..3).map(|n| {
        let manager = manager.clone();
        tokio::spawn(async move {
            sleep(millis(n * 10)).await;
            manager.open().await.unwrap_err();
            Instant::now()
        })
    });
    let mut ends = Vec::new();
    for caller in callers.collect::<Vec<_>>() {
        ends.push(caller.await.unwrap());
    }
    assert_eq!(faults.count(Op::Open), 1);
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:?}");
}

/// First come, first served over all managers of a store with a queue, also behind a mere try.
///
/// B's try is on its way to the store when B's waiter joins; the answer "busy" is the try's and not the waiter's, who
/// must join the store's queue now and not a pause later, before C's waiter comes.
#[tokio::test(start_paused = true)]
async fn a_waiter_behind_a_try_joins_the_queue_of_the_store() {
    let store = MemoryStore::new();
    let (a, c) = (sound(&store, "a"), sound(&store, "c"));
    let (b, faults) = faulty(&store, "b");
    b.open().await.unwrap();
    let held = lock(&a).acquire().await.unwrap();
    faults.next_of(Op::Claim, 1, Fault::Delay(millis(100)));

    let order = Arc::new(Mutex::new(Vec::new()));
    let queue = |manager: &LockManager, who: &'static str| -> JoinHandle<()> {
        let (lock, order) = (lock(manager), Arc::clone(&order));
        tokio::spawn(async move {
            let _guard = lock.acquire().await.unwrap();
            order.lock().unwrap().push(who);
        })
    };
    let tried = lock(&b);
    let trying = tokio::spawn(async move { tried.try_acquire().await.unwrap().is_none() });
    sleep(millis(10)).await;
    let first = queue(&b, "b");
    sleep(secs(1)).await;
    let second = queue(&c, "c");
    sleep(secs(1)).await;
    drop(held);
    first.await.unwrap();
    second.await.unwrap();
    assert!(trying.await.unwrap());
    assert_eq!(*order.lock().unwrap(), ["b", "c"]);
}

/// A release wakes all who wait for a store without a queue. Who keeps being too late spreads its requests, so that many
/// processes do not ask at one moment again and again; the first hand-overs are at once.
#[tokio::test(start_paused = true)]
async fn those_who_are_woken_in_vain_spread_out() {
    let store = MemoryStore::builder().waiting(Waiting::Poll).notify(true).build();
    let clock = TestClock::new();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let managers: Vec<_> = (0..40).map(|n| faulty(&store, &format!("{n}"))).collect();
    let first = sound(&store, "first");
    let mut held = Some(lock(&first).acquire().await.unwrap());
    let (taken, mut taken_by) = tokio::sync::mpsc::unbounded_channel();
    for (manager, faults) in &managers {
        let (asked, clock, taken, lock) = (Arc::clone(&asked), clock.clone(), taken.clone(), lock(manager));
        faults.on(Op::Claim, move |_| {
            asked.lock().unwrap().push(clock.now());
            Fault::None
        });
        drop(tokio::spawn(async move { taken.send(lock.acquire().await.unwrap()) }));
    }
    let mut moments = Vec::new();
    for _ in 0..8 {
        sleep(secs(1)).await;
        asked.lock().unwrap().clear();
        let released = clock.now();
        drop(held.take());
        held = taken_by.recv().await;
        sleep(millis(20)).await;
        let mut asked: Vec<_> = asked.lock().unwrap().iter().map(|at| at.since(released)).collect();
        assert!(asked.iter().all(|after| *after <= millis(10)), "a waiter was late: {asked:?}");
        asked.dedup();
        moments.push(asked.len());
    }
    assert_eq!(moments[0], 1, "a hand-over is at once: {moments:?}");
    // The timer counts milliseconds, so there are nine moments at most.
    assert!(moments[7] >= 5, "who is always too late asks at another moment than the others: {moments:?}");
}

/// Settings that would overflow or never end are turned away where they are made, and not by a panic at first use.
#[test]
fn a_request_timeout_has_an_upper_bound() {
    let build = |limit| settings(MemoryBackend::new(&MemoryStore::new()), "b").request_timeout(limit).build();
    let error = build(Duration::MAX).unwrap_err();
    assert!(error.to_string().contains("request_timeout"), "{error}");
    build(secs(60)).unwrap();
}
