//! Guards, managers and runtimes: how they end, in whatever order.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use dlock_core::faults::Op;
use dlock_core::{AcquireError, ErrorKind, LockGuard, LossReason, ReleaseOutcome, StoreError};
use futures_util::FutureExt;

use super::waiting::{spawn_acquire, wait_for_waiters};
use crate::case::nothing_is_left;
use crate::fixture::{Fixture, Profile, Setup};
use crate::patience::{cancelled_after, soon, until, within};

/// P5: a release says that the claim was there and is gone, or that it was lost before.
pub async fn release_says_what_happened(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = client.lock("said").acquire().await.expect("the lock is free");
    assert_eq!(guard.release().await.expect("the store answers"), ReleaseOutcome::Released);
    // The claim goes away behind the client's back, just before it is released.
    let guard = client.lock("said").acquire().await.expect("the lock is free");
    fx.remove("said").await;
    let outcome = guard.release().await.expect("the store answers");
    assert_eq!(outcome, ReleaseOutcome::AlreadyLost, "P5 broken: the claim was not there");
    // The same, when somebody else has it already.
    let guard = client.lock("said").acquire().await.expect("the lock is free");
    fx.remove("said").await;
    let successor =
        soon(profile, "the lock is free", other.lock("said").acquire()).await.expect("the store answers");
    let outcome = guard.release().await.expect("the store answers");
    assert_eq!(outcome, ReleaseOutcome::AlreadyLost, "P5 broken: the claim was not there");
    assert!(client.lock("said").try_acquire().await.expect("the store answers").is_none(), "P7 broken");
    successor.release().await.expect("the store answers");
}

/// P7: no release frees a successor's claim: not a late one, not a repeated one, not the drop of a lost guard.
pub async fn release_spares_the_successor(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
    for dropped in [false, true] {
        let guard = client.lock("spared").acquire().await.expect("the lock is free");
        fx.remove("spared").await;
        let successor = soon(profile, "the lock is free", other.lock("spared").acquire()).await;
        let successor = successor.expect("the store answers");
        if dropped {
            drop(guard);
        } else {
            client.faults.drop_reply_next(Op::Release, 1);
            drop(soon(profile, "a release ends", guard.release()).await);
        }
        // Beyond a renewal, at which the successor would learn of it, and beyond whatever is repeated.
        tokio::time::sleep(profile.ttl.max(profile.short_timeout() * 2)).await;
        assert!(successor.is_held(), "P7 broken: the successor's claim was released");
        let third = fx.client(Setup::new()).await;
        let tried = soon(profile, "a try is answered", third.lock("spared").try_acquire()).await;
        assert!(tried.expect("the store answers").is_none(), "P7 broken: the successor's claim was released");
        assert_eq!(successor.release().await.expect("the store answers"), ReleaseOutcome::Released);
    }
}

/// P5: with the store down a release ends within a TTL with "not known", the guard is dead, and the lock is free when the
/// lease is over at the latest.
pub async fn release_with_the_store_down(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
    for unanswered in [false, true] {
        let guard = soon(profile, "the lock is free", client.lock("down").acquire()).await;
        let guard = guard.expect("the store answers");
        if unanswered {
            client.faults.black_hole();
        } else {
            client.faults.fail_all(ErrorKind::Unavailable);
        }
        let outcome =
            within(profile, profile.ttl + profile.request_timeout, "a release ends", guard.release()).await;
        let error = outcome.expect_err("nothing was answered");
        assert_eq!(error.name().as_str(), "down");
        // A lease until the session that keeps it alive is ended, and one more until that has run out.
        let limit = profile.ttl * 2;
        assert!(error.expires_within() <= limit, "it expires within {:?}", error.expires_within());
        let bound = profile.takeover();
        let taken =
            within(profile, bound, "P5: the claim expires by itself", other.lock("down").acquire()).await;
        let taken = taken.expect("the store answers");
        client.faults.heal();
        tokio::time::sleep(profile.ttl).await;
        assert!(taken.is_held(), "P7 broken: a release that was repeated hit the successor");
        taken.release().await.expect("the store answers");
    }
}

/// A dropped guard is released in the background, within the time of a release.
pub async fn drop_releases(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    for _ in 0..profile.rounds(10) {
        let guard = soon(profile, "the lock is free", client.lock("dropped").acquire()).await;
        let waiting = spawn_acquire(&other.lock("dropped"));
        wait_for_waiters(profile, &other, 1).await;
        drop(guard.expect("the store answers"));
        let next = within(profile, profile.handoff, "a dropped guard frees its lock", waiting).await;
        drop(next.expect("the task does not panic").expect("the store answers"));
    }
}

/// A guard keeps its session alive when every handle of the manager is gone, and can be released; the session ends after.
pub async fn guards_outlive_their_manager(fx: &dyn Fixture) {
    let profile = fx.profile();
    let other = fx.client(Setup::new()).await;
    let client = fx.client(Setup::new().dropped()).await;
    let released = client.lock("outlives").acquire().await.expect("the lock is free");
    let dropped = client.lock("outlives-too").acquire().await.expect("the lock is free");
    drop(client);
    for _ in 0..12 {
        tokio::time::sleep(profile.ttl / 4).await;
        assert!(released.is_held() && dropped.is_held(), "a guard was lost with the handles of its manager");
    }
    assert!(other.lock("outlives").try_acquire().await.expect("the store answers").is_none(), "P1 broken");
    assert_eq!(released.release().await.expect("the store answers"), ReleaseOutcome::Released);
    assert!(dropped.is_held(), "a guard was lost with another one of its manager");
    drop(dropped);
    let what = "a guard dropped last frees its lock";
    let taken =
        within(profile, profile.handoff + profile.takeover(), what, other.lock("outlives-too").acquire())
            .await;
    taken.expect("the store answers").release().await.expect("the store answers");
}

/// A guard can be dropped outside a runtime: it does not panic, and frees the lock.
pub async fn drop_outside_a_runtime(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new().dropped()).await, fx.client(Setup::new()).await);
    let guard = client.lock("outside").acquire().await.expect("the lock is free");
    let elsewhere = std::thread::spawn(move || {
        assert!(guard.is_held());
        drop(guard);
    });
    elsewhere.join().expect("a guard dropped outside a runtime does not panic");
    let next = other.lock("outside");
    let taken = within(profile, profile.handoff, "a dropped guard frees its lock", next.acquire()).await;
    taken.expect("the store answers").release().await.expect("the store answers");
    // Nor do the other handles.
    let lock = client.lock("outside");
    let elsewhere = std::thread::spawn(move || drop((client, lock)));
    elsewhere.join().expect("a manager dropped outside a runtime does not panic");
}

/// Guards, waiters and managers that are dropped by a runtime which shuts down, or after it, do not panic; the lock is
/// free when its lease is over at the latest.
pub async fn drop_during_runtime_shutdown(fx: &dyn Fixture) {
    let profile = fx.profile();
    let dropped = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        let flag = Arc::clone(&dropped);
        let ended = scope.spawn(move || {
            let runtime = runtime(profile);
            let (guard, client) = runtime.block_on(async {
                let client = fx.client(Setup::new().dropped()).await;
                let held = client.lock("shutdown-1").acquire().await.expect("the lock is free");
                let bomb = DropsIn { guard: Some(held), dropped: flag };
                drop(tokio::spawn(async move {
                    let _bomb = bomb;
                    std::future::pending::<()>().await;
                }));
                let waiting = client.lock("shutdown-1");
                drop(tokio::spawn(async move { drop(waiting.acquire().await) }));
                tokio::task::yield_now().await;
                (client.lock("shutdown-2").acquire().await.expect("the lock is free"), client)
            });
            drop(runtime);
            // What the clock says does not need the runtime.
            let _ = (guard.is_held(), guard.valid_for());
            drop((guard, client));
        });
        ended.join().expect("nothing panics when its runtime shuts down");
    });
    assert!(dropped.load(Ordering::SeqCst), "dropping a guard in a runtime that shuts down panicked");
    let next = fx.client(Setup::new()).await;
    for name in ["shutdown-1", "shutdown-2"] {
        let bound = profile.takeover();
        let taken =
            within(profile, bound, "P4: the lock is free after the lease", next.lock(name).acquire()).await;
        taken.expect("the store answers").release().await.expect("the store answers");
    }
}

/// A guard that notes when it was dropped without a panic.
struct DropsIn {
    guard: Option<LockGuard>,
    dropped: Arc<AtomicBool>,
}

impl Drop for DropsIn {
    fn drop(&mut self) {
        drop(self.guard.take());
        self.dropped.store(true, Ordering::SeqCst);
    }
}

/// A manager whose runtime is gone says so, from another runtime and from none, and does not wait for ever.
pub async fn a_gone_runtime_is_an_error(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = std::thread::scope(|scope| {
        let ended = scope.spawn(move || {
            let runtime = runtime(profile);
            let client = runtime.block_on(async {
                let client = fx.client(Setup::new().dropped()).await;
                client.locks.open().await.expect("the store answers");
                client
            });
            drop(runtime);
            client
        });
        ended.join().expect("nothing panics when its runtime shuts down")
    });
    let ended = soon(profile, "a call ends", client.lock("gone").acquire()).await;
    assert!(matches!(ended, Err(AcquireError::NoRuntime { .. })), "the runtime is gone: {ended:?}");
    let ended = soon(profile, "a call ends", client.lock("gone").try_acquire()).await;
    assert!(matches!(ended, Err(AcquireError::NoRuntime { .. })), "the runtime is gone: {ended:?}");
    drop(soon(profile, "a close ends", client.locks.close()).await);
    // And where there is no runtime at all.
    let elsewhere = std::thread::spawn(move || client.lock("gone").try_acquire().now_or_never());
    let ended = elsewhere.join().expect("a call outside a runtime does not panic");
    assert!(matches!(ended, Some(Err(AcquireError::NoRuntime { .. }))), "there is no runtime: {ended:?}");
}

/// A runtime of its own, with time as in this case.
fn runtime(profile: &Profile) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(profile.is_simulated())
        .build()
        .expect("a runtime can be made")
}

/// A closed manager has given everything back and ended its session, also with guards out and tasks waiting: the guards
/// are lost, the waiters are told, and nothing is left.
pub async fn close_leaves_nothing(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let held = client.lock("closed-1").acquire().await.expect("the lock is free");
    let theirs = other.lock("closed-2").acquire().await.expect("the lock is free");
    let waiting = [spawn_acquire(&client.lock("closed-1")), spawn_acquire(&client.lock("closed-2"))];
    wait_for_waiters(profile, &client, 2).await;
    let closing = soon(profile, "a close ends", client.locks.close()).await;
    closing.expect("the store answers");
    // At once: what a close confirmed needs no time to go away.
    assert!(!held.is_held());
    assert_eq!(held.lost().now_or_never(), Some(LossReason::Closed));
    let left = fx.residue().await;
    assert_eq!(left.len(), 1, "P6 broken: only the other manager's claim is left: {left:#?}");
    for waiter in waiting {
        let ended = soon(profile, "waiters are told", waiter).await.expect("the task does not panic");
        assert!(matches!(ended, Err(AcquireError::Closed { .. })), "the manager was closed: {ended:?}");
    }
    assert_eq!(held.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
    let taken = other.lock("closed-1").try_acquire().await.expect("the store answers");
    drop(taken.expect("a closed manager has given its locks back"));
    theirs.release().await.expect("the store answers");
    // Closed is closed, and closing again is no error.
    let tried = client.lock("closed-1").try_acquire().await;
    assert!(matches!(tried, Err(AcquireError::Closed { .. })), "the manager was closed: {tried:?}");
    let ended = client.lock("closed-1").acquire().await;
    assert!(matches!(ended, Err(AcquireError::Closed { .. })), "the manager was closed: {ended:?}");
    assert!(matches!(client.locks.open().await, Err(StoreError::Closed)));
    client.locks.close().await.expect("a closed manager can be closed");
    let never_used = fx.client(Setup::new()).await;
    never_used.locks.close().await.expect("a manager that was never used can be closed");
}

/// A close whose future is dropped goes on.
pub async fn cancelled_close_goes_on(fx: &dyn Fixture) {
    let profile = fx.profile();
    let other = fx.client(Setup::new()).await;
    for polls in 1..4 {
        let client = fx.client(Setup::new()).await;
        let held = soon(profile, "the lock is free", client.lock("closing").acquire()).await;
        let held = held.expect("the store answers");
        client.faults.delay_reply(Op::Close, profile.moment() * 2);
        let done = soon(profile, "a close is polled", cancelled_after(polls, client.locks.close())).await;
        assert!(done.is_none_or(|closed| closed.is_ok()), "the store answers");
        soon(profile, "a close goes on", until(profile, async || !held.is_held())).await;
        let what = "a close gives the locks back";
        let taken = within(profile, profile.handoff, what, other.lock("closing").acquire()).await;
        taken.expect("the store answers").release().await.expect("the store answers");
        drop(held);
        nothing_is_left(fx).await;
    }
}

/// A close with the store down ends in time, says that it was not confirmed, and its guards are dead all the same.
pub async fn close_with_the_store_down(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (client, other) = (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
    let held = client.lock("unconfirmed").acquire().await.expect("the lock is free");
    let waiting = spawn_acquire(&client.lock("unconfirmed"));
    wait_for_waiters(profile, &client, 1).await;
    client.faults.black_hole();
    let closing = within(profile, profile.request_timeout * 3, "a close ends", client.locks.close()).await;
    let error = closing.expect_err("nothing was answered");
    assert!(error.expires_within() <= profile.ttl);
    assert!(!held.is_held());
    let ended = soon(profile, "waiters are told", waiting).await.expect("the task does not panic");
    assert!(matches!(ended, Err(AcquireError::Closed { .. })), "the manager was closed: {ended:?}");
    let bound = profile.takeover();
    let taken =
        within(profile, bound, "P4: the lock is free after the lease", other.lock("unconfirmed").acquire())
            .await;
    taken.expect("the store answers").release().await.expect("the store answers");
}

/// P1, P2: preparing a store that is in use already changes nothing: what is held stays held, and tokens go on rising.
pub async fn preparing_again_does_no_harm(fx: &dyn Fixture) {
    let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = holder.lock("prepared").acquire().await.expect("the lock is free");
    for _ in 0..2 {
        other.locks.init().await.expect("the store answers");
        assert!(guard.is_held(), "a lock was lost by preparing the store again");
        let tried = other.lock("prepared").try_acquire().await.expect("the store answers");
        assert!(tried.is_none(), "P1 broken: granted to another one after preparing the store again");
    }
    let before = guard.token();
    guard.release().await.expect("the store answers");
    other.locks.init().await.expect("the store answers");
    let guard = other.lock("prepared").acquire().await.expect("the lock is free");
    assert!(guard.token() > before, "P2 broken: {} after {before}", guard.token());
}
