//! Requests that are never answered, or carried out when nobody waits any more; stores that are down or refuse.

use dlock_core::faults::{Fault, Op};
use dlock_core::{AcquireError, ErrorKind, ReleaseOutcome};

use super::waiting::spawn_acquire;
use crate::case::nothing_is_left;
use crate::contest::Contest;
use crate::fixture::{Fixture, Setup};
use crate::patience::{soon, within};

/// P1, P6: the answer to a claim is lost: the caller gets the lock all the same, once, and nothing is left after.
pub async fn lost_reply_of_a_claim(fx: &dyn Fixture) {
    let profile = fx.profile();
    for fault in [Fault::DropReply, Fault::Unknown(std::time::Duration::ZERO)] {
        let contest = Contest::new(fx, "lost-reply");
        let (client, other) =
            (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
        for lost in 1..=profile.rounds(6) as u64 {
            client.faults.next_of(Op::Claim, lost, fault);
            let lock = contest.lock(&client);
            let guard = soon(profile, "a claim is resolved", contest.history.acquire("client", &lock)).await;
            let guard = guard.expect("the store answers in the end");
            assert!(guard.is_held(), "a guard was handed out that was lost already");
            let tried = contest.lock(&other).try_acquire().await.expect("the store answers");
            assert!(tried.is_none(), "P1 broken: granted to another one as well");
            // Renewals know of the claim, whichever request made it.
            tokio::time::sleep(profile.ttl * 3 / 2).await;
            assert!(guard.is_held(), "a claim that was resolved is not renewed");
            drop(guard.release().await);
            nothing_is_left(fx).await;
        }
        // A try is answered, or is an error; it is never told that somebody else holds a free lock.
        client.faults.next_of(Op::Claim, 1, fault);
        match soon(profile, "a try ends", contest.lock(&client).try_acquire()).await {
            Ok(Some(guard)) => drop(guard),
            Ok(None) => panic!("a try met its own unresolved claim and took it for somebody else's"),
            Err(error) => assert!(error.is_transient(), "it may work later: {error:?}"),
        }
        nothing_is_left(fx).await;
        contest.history.assert_sound();
    }
}

/// P1, P6: a claim is carried out long after its time-out: before, during or after somebody asked what became of it. No
/// orphan is left that a renewed session would keep alive.
pub async fn claim_executed_late(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "late-claim");
    let (client, other) = (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
    for quarters in [2, 5, 7, 11] {
        for cancelled in [false, true] {
            client.locks.open().await.expect("the store answers");
            client.faults.execute_late(Op::Claim, 1, profile.short_timeout() * quarters / 4);
            let lock = contest.lock(&client);
            if cancelled {
                let limit = profile.short_timeout() / 2;
                let tried = contest.history.acquire_timeout("client", &lock, limit).await;
                assert!(!tried.is_ok_and(|guard| guard.is_held()), "nothing was answered");
            } else {
                let asked =
                    soon(profile, "a late claim is resolved", contest.history.acquire("client", &lock)).await;
                let guard = asked.expect("the store answers in the end");
                contest.update(&guard).await;
                // The late one is carried out while this one holds.
                tokio::time::sleep(profile.short_timeout() * 2).await;
                assert!(contest.update(&guard).await, "a late claim of its own ended a hold");
                drop(guard.release().await);
            }
            let bound = profile.takeover() + profile.short_timeout() * 4;
            let what = "P6: a late claim is no orphan";
            let lock = contest.lock(&other);
            let asked = contest.history.acquire("other", &lock);
            let guard = within(profile, bound, what, asked).await.expect("the store answers");
            contest.update(&guard).await;
            guard.release().await.expect("the store answers");
            nothing_is_left(fx).await;
        }
    }
    contest.history.assert_sound();
}

/// P7: a release that is carried out long after its time-out frees only the claim it was for, not the next one of the
/// same manager, nor anybody else's.
pub async fn release_executed_late(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "late-release");
    let (client, other) = (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
    for quarters in [2, 5, 7, 11] {
        let lock = contest.lock(&client);
        let guard = soon(profile, "the lock is free", contest.history.acquire("client", &lock)).await;
        let guard = guard.expect("the store answers");
        client.faults.execute_late(Op::Release, 1, profile.short_timeout() * quarters / 4);
        // Released in the end, or not known: both are true.
        drop(soon(profile, "a release ends", guard.release()).await);
        let again = soon(profile, "the lock is free again", contest.history.acquire("again", &lock)).await;
        let again = again.expect("the store answers");
        for _ in 0..8 {
            tokio::time::sleep(profile.short_timeout() / 2).await;
            assert!(contest.update(&again).await, "P7 broken: a late release ended the next hold");
            let tried = contest.lock(&other).try_acquire().await.expect("the store answers");
            assert!(tried.is_none(), "P7 broken: a late release freed the next claim");
        }
        let outcome = again.release().await;
        assert!(!matches!(outcome, Ok(ReleaseOutcome::AlreadyLost)), "it was held when it was released");
        nothing_is_left(fx).await;
    }
    contest.history.assert_sound();
}

/// P5: the answer to a release is lost: the lock is free all the same, at once for others, and the caller is told so or
/// told that it is not known.
pub async fn lost_reply_of_a_release(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "lost-release");
    let (client, other) = (fx.client(Setup::new().impatient(profile)).await, fx.client(Setup::new()).await);
    for _ in 0..2 {
        let lock = contest.lock(&client);
        let guard = soon(profile, "the lock is free", contest.history.acquire("client", &lock)).await;
        let guard = guard.expect("the store answers");
        client.faults.drop_reply_next(Op::Release, 1);
        let releasing = tokio::spawn(guard.release());
        let lock = contest.lock(&other);
        let asked = contest.history.acquire("other", &lock);
        let successor =
            within(profile, profile.handoff, "the lock is free", asked).await.expect("the store answers");
        let outcome = soon(profile, "a release ends", releasing).await.expect("the task does not panic");
        assert!(!matches!(outcome, Ok(ReleaseOutcome::AlreadyLost)), "it was held when it was released");
        // Whatever is repeated in the background is about the first claim only.
        tokio::time::sleep(profile.short_timeout() * 3).await;
        assert!(successor.is_held(), "P7 broken: a repeated release hit the successor");
        successor.release().await.expect("the store answers");
        nothing_is_left(fx).await;
    }
    contest.history.assert_sound();
}

/// A try whose store does not answer is an error, never "somebody else holds it", and ends in time.
pub async fn unanswered_try_is_an_error(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = fx.client(Setup::new().impatient(profile)).await;
    client.locks.open().await.expect("the store answers");
    client.faults.black_hole();
    for _ in 0..3 {
        let bound = profile.short_timeout() * 2;
        let tried =
            within(profile, bound, "an unanswered try ends", client.lock("unanswered").try_acquire()).await;
        match tried {
            Err(AcquireError::Unresolved { .. } | AcquireError::Unavailable { .. }) => {}
            other => panic!("what the store did not answer is not known, not {other:?}"),
        }
    }
    client.faults.heal();
    let guard = soon(profile, "the store is back", client.lock("unanswered").acquire()).await;
    guard.expect("the store answers").release().await.expect("the store answers");
}

/// A store that is down is asked again and again, until the caller's time is over or the manager gives up; and a caller
/// that still waits when it comes back gets the lock.
pub async fn a_store_that_is_down_is_asked_again(fx: &dyn Fixture) {
    let profile = fx.profile();
    let give_up = profile.ttl * 3 / 2;
    let client = fx.client(Setup::new().impatient(profile).give_up_after(give_up)).await;
    for opened in [false, true] {
        client.faults.fail_all(ErrorKind::Unavailable);
        let limit = profile.ttl / 2;
        let asked = fx.clock().now();
        let ended =
            within(profile, limit, "a wait ends in time", client.lock("down").acquire_timeout(limit)).await;
        assert!(matches!(ended, Err(AcquireError::Unavailable { .. })), "the store is down: {ended:?}");
        assert!(fx.clock().now().since(asked) >= limit, "it gave up before its time was over");
        let tried = soon(profile, "a try ends", client.lock("down").try_acquire()).await;
        assert!(matches!(tried, Err(AcquireError::Unavailable { .. })), "the store is down: {tried:?}");
        let waiting = spawn_acquire(&client.lock("down"));
        tokio::time::sleep(profile.ttl / 2).await;
        assert!(!waiting.is_finished(), "it gave up though the store may come back");
        client.faults.heal();
        let guard = soon(profile, "the store is back", waiting).await.expect("the task does not panic");
        let guard = guard.unwrap_or_else(|error| panic!("opened {opened}: the store is back, but {error:?}"));
        guard.release().await.expect("the store answers");
    }
    client.faults.fail_all(ErrorKind::Unavailable);
    // The longest pause between two attempts may come on top.
    let bound = give_up + profile.patience() / 4;
    let ended = within(profile, bound, "the manager gives up", client.lock("down").acquire()).await;
    assert!(matches!(ended, Err(AcquireError::Unavailable { .. })), "the store is down: {ended:?}");
    client.faults.heal();
}

/// A refusal is told at once to who waits, and the next call asks anew.
pub async fn a_refusal_is_told(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = fx.client(Setup::new()).await;
    client.locks.open().await.expect("the store answers");
    for _ in 0..2 {
        client.faults.fail_next(Op::Claim, 1, ErrorKind::Refused);
        let ended =
            within(profile, profile.slack(), "a refusal is told", client.lock("refused").acquire()).await;
        assert!(matches!(ended, Err(AcquireError::Refused { .. })), "the store refused: {ended:?}");
        client.faults.fail_next(Op::Claim, 1, ErrorKind::Refused);
        let ended = client.lock("refused").try_acquire().await;
        assert!(matches!(ended, Err(AcquireError::Refused { .. })), "the store refused: {ended:?}");
        let guard = client.lock("refused").acquire().await.expect("the store refuses no more");
        guard.release().await.expect("the store answers");
    }
}

/// A request that certainly failed is repeated, and nothing is left of it.
pub async fn a_failed_claim_is_repeated(fx: &dyn Fixture) {
    let profile = fx.profile();
    let client = fx.client(Setup::new()).await;
    for op in [Op::Open, Op::Claim, Op::Release, Op::Renew, Op::Resolve] {
        client.faults.fail_next(op, 3, ErrorKind::Unavailable);
        client.faults.drop_reply_next(Op::Claim, u64::from(op == Op::Resolve));
        let guard = soon(profile, "a failed request is repeated", client.lock("repeated").acquire()).await;
        let guard = guard.expect("the store answers in the end");
        tokio::time::sleep(profile.renewal() * 2).await;
        assert!(guard.is_held(), "a guard was lost though its renewal was only late");
        drop(soon(profile, "a release ends", guard.release()).await);
        nothing_is_left(fx).await;
    }
}
