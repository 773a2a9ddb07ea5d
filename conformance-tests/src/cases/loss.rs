//! Leases that are kept, and losses that are told: before anybody else can have the lock, and for good.

use std::time::Duration;

use dlock_core::faults::{Fault, Op};
use dlock_core::{Clock, ErrorKind, LossReason, ReleaseOutcome};
use futures_util::FutureExt;

use super::waiting::spawn_acquire;
use crate::contest::Contest;
use crate::fixture::{Client, Fixture, Profile, Setup};
use crate::history::WatchedGuard;
use crate::patience::{poll_once, soon, until, within};

/// A lock is held for as long as its guard lives, far beyond the TTL.
pub async fn renewed_far_beyond_the_ttl(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "renewed");
    let (client, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = contest.history.acquire("holder", &contest.lock(&client)).await.expect("the lock is free");
    let waiting = spawn_acquire(&contest.lock(&other));
    for _ in 0..profile.rounds(20) * 4 {
        tokio::time::sleep(profile.ttl / 4).await;
        assert!(guard.is_held(), "a guard was lost though every renewal was answered");
        let left = guard.guard().valid_for();
        assert!(!left.is_zero() && left <= profile.ttl, "a renewed guard is valid for {left:?}");
    }
    assert!(!waiting.is_finished(), "P1 broken: a held and renewed lock was granted");
    assert_eq!(guard.release().await.expect("the store answers"), ReleaseOutcome::Released);
    let next =
        within(profile, profile.handoff, "the lock is free", waiting).await.expect("the task does not panic");
    next.expect("the lock is free").release().await.expect("the store answers");
}

/// P1, P3: a holder that cannot renew knows of its loss before anybody else can have the lock, however slowly the store
/// answered before: a lease counts from before the request.
pub async fn loss_by_expiry_is_told_before_takeover(fx: &dyn Fixture) {
    let profile = fx.profile();
    for op in [None, Some(Op::Open), Some(Op::Claim), Some(Op::Renew)] {
        let contest = Contest::new(fx, "expired");
        let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
        other.locks.open().await.expect("the store answers");
        if let Some(op) = op {
            // The first attempt of a renewal is waited for a shorter time than other requests.
            let slow = if op == Op::Renew { profile.ttl / 8 } else { profile.ttl / 4 };
            holder.faults.delay_reply(op, slow);
        }
        let guard =
            contest.history.acquire("holder", &contest.lock(&holder)).await.expect("the lock is free");
        if op == Some(Op::Renew) {
            // Some renewals are answered, late but in time.
            tokio::time::sleep(profile.ttl).await;
            assert!(guard.is_held(), "a guard was lost though every renewal was answered in time");
        }
        holder.faults.black_hole();
        guard.crashed();
        let successor = take_over(profile, &contest, &other, &[&guard]).await;
        assert_eq!(
            guard.lost().now_or_never(),
            Some(LossReason::Expired),
            "P3: a passed deadline is told at once"
        );
        successor.release().await.expect("the store answers");
        // What is lost stays lost when the store is back.
        holder.faults.heal();
        assert_stays_lost(profile, &guard).await;
        assert_eq!(guard.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
        assert_can_acquire_again(profile, &holder, "expired").await;
        check(&contest, profile);
    }
}

/// P6: where the renewals are carried out but never answered, the guard is lost, and then the lock is given up: no
/// session keeps a lock alive of which its holder does not know.
pub async fn unanswered_renewals_free_the_lock(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "unanswered");
    let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = contest.history.acquire("holder", &contest.lock(&holder)).await.expect("the lock is free");
    holder.faults.on(Op::Renew, |_| Fault::DropReply);
    let waiting = {
        let (contest, lock) = (contest.clone(), contest.lock(&other));
        tokio::spawn(async move { contest.history.acquire("other", &lock).await })
    };
    within(profile, profile.ttl, "P3: the loss is told by the deadline", sample_until_lost(profile, &guard))
        .await;
    // The store counts the last renewal that it carried out, so its lease may be up to one longer.
    let bound = profile.takeover() + profile.ttl;
    let successor = within(profile, bound, "P6: the lock is given up", waiting).await;
    let successor = successor.expect("the task does not panic").expect("the store answers");
    assert!(!guard.is_held(), "P1 broken");
    holder.faults.heal();
    successor.release().await.expect("the store answers");
    assert_stays_lost(profile, &guard).await;
    check(&contest, profile);
}

/// P1, P3: when a session ends, the loss of each of its guards is told before anybody else can have its lock; the next
/// session of the same manager has no part in the claims of the first.
pub async fn session_end_is_told_before_takeover(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (one, two) = (Contest::new(fx, "session-1"), Contest::new(fx, "session-2"));
    let (holder, other) = (fx.client(Setup::new().owner("same")).await, fx.client(Setup::new()).await);
    let guards = [
        one.history.acquire("holder", &one.lock(&holder)).await.expect("the lock is free"),
        two.history.acquire("holder", &two.lock(&holder)).await.expect("the lock is free"),
    ];
    holder.faults.black_hole();
    guards[0].crashed();
    let successor = take_over(profile, &one, &other, &[&guards[0], &guards[1]]).await;
    // Where each claim has a lease of its own, the second may last a little longer.
    for guard in &guards {
        within(profile, profile.ttl, "a lease is not renewed", sample_until_lost(profile, guard)).await;
    }
    holder.faults.heal();
    for guard in &guards {
        assert!(!guard.is_held(), "P3 broken: the session is over, its guards are not");
        assert!(guard.lost().now_or_never().is_some(), "P3 broken: the loss was not told");
    }
    // The manager goes on under a new session, to which the claims of the first are somebody else's.
    let tried = soon(profile, "a try is answered", one.lock(&holder).try_acquire()).await;
    assert!(
        tried.expect("the store answers").is_none(),
        "P1 broken: a new session got what another one holds"
    );
    let again =
        soon(profile, "the other lock is free again", two.history.acquire("again", &two.lock(&holder))).await;
    let again = again.expect("the store answers");
    assert!(again.is_held() && !guards[1].is_held(), "P3 broken: a new session revived a guard of the first");
    again.release().await.expect("the store answers");
    successor.release().await.expect("the store answers");
    for guard in guards {
        assert_eq!(guard.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
    }
    check(&one, profile);
    check(&two, profile);
}

/// A session that an operator ends is told to each of its guards within one renewal interval, and the manager goes on
/// under a new one.
pub async fn an_ended_session_is_told(fx: &dyn Fixture) {
    let profile = fx.profile();
    let holder = fx.client(Setup::new()).await;
    let guards = [
        holder.lock("ended-1").acquire().await.expect("the lock is free"),
        holder.lock("ended-2").acquire().await.expect("the lock is free"),
    ];
    fx.end_session(&holder).await;
    for guard in &guards {
        let reason = within(profile, profile.renewal(), "the end of a session is told", guard.lost()).await;
        let known = matches!(reason, LossReason::SessionEnded | LossReason::Removed);
        assert!(known, "the reason is that the session ended, not {reason:?}");
        assert!(!guard.is_held() && guard.valid_for().is_zero());
    }
    for guard in guards {
        assert_eq!(guard.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
    }
    assert_can_acquire_again(profile, &holder, "ended-1").await;
}

/// A claim that a hand removes is told to its guard within one renewal interval, whatever else the session holds; the
/// loss touches neither the other guards nor who gets the lock next.
pub async fn removal_by_hand_is_told(fx: &dyn Fixture) {
    let profile = fx.profile();
    let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let kept = holder.lock("kept").acquire().await.expect("the lock is free");
    let removed = holder.lock("removed").acquire().await.expect("the lock is free");
    // A renewal has been answered since, so that what follows is not the first.
    tokio::time::sleep(profile.renewal() * 3 / 2).await;
    fx.remove("removed").await;
    let reason = within(profile, profile.renewal(), "a removal is told", removed.lost()).await;
    assert!(matches!(reason, LossReason::Removed | LossReason::SessionEnded), "the reason is not {reason:?}");
    assert!(!removed.is_held());
    let successor =
        soon(profile, "the lock is free", other.lock("removed").acquire()).await.expect("the store answers");
    // P7: whatever the loser does now is about its own claim.
    assert_eq!(removed.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
    tokio::time::sleep(profile.ttl * 2).await;
    assert!(successor.is_held(), "P7 broken: the loser's release or renewal hit its successor");
    let reheld = soon(profile, "a try is answered", holder.lock("removed").try_acquire()).await;
    assert!(reheld.expect("the store answers").is_none(), "P1 broken: the loser got the lock back");
    if reason == LossReason::Removed {
        assert!(kept.is_held(), "the removal of one claim ended the hold of another");
    }
    successor.release().await.expect("the store answers");
    drop(kept.release().await);
}

/// P3: a loss is final: an answer to a renewal that arrives after the deadline, or any later one, revives nothing.
pub async fn loss_is_final(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "final");
    let holder = fx.client(Setup::new()).await;
    let guard = contest.history.acquire("holder", &contest.lock(&holder)).await.expect("the lock is free");
    // The next renewal is carried out at once, and answered while the process that sent it is frozen past its lease.
    let sent = holder.faults.count(Op::Renew);
    holder.faults.delay_reply(Op::Renew, profile.renewal() / 2);
    soon(profile, "a renewal is sent", until(profile, async || holder.faults.count(Op::Renew) > sent)).await;
    holder.clock.jump(profile.ttl);
    assert!(!guard.is_held(), "P3 broken: held past the deadline");
    holder.faults.delay_reply(Op::Renew, Duration::ZERO);
    assert_stays_lost(profile, &guard).await;
    assert_eq!(guard.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
    contest.history.assert_sound();
}

/// P1: the late answer to a renewal is never taken for the answer to a later one, which was never carried out.
pub async fn late_renewal_is_not_booked_to_a_later_one(fx: &dyn Fixture) {
    let profile = fx.profile();
    let contest = Contest::new(fx, "booked");
    let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = contest.history.acquire("holder", &contest.lock(&holder)).await.expect("the lock is free");
    // The first renewal is carried out and answered when the second, which never reaches the store, is under way.
    let sent = holder.faults.count(Op::Renew);
    holder.faults.delay_reply(Op::Renew, profile.renewal() * 3 / 2);
    soon(profile, "a renewal is sent", until(profile, async || holder.faults.count(Op::Renew) > sent)).await;
    holder.faults.on(Op::Renew, |_| Fault::BlackHole);
    tokio::time::sleep(profile.renewal() * 3 / 2 + profile.moment()).await;
    // Nor does the store get through to tell that the session is over.
    holder.faults.black_hole();
    guard.crashed();
    let successor = take_over(profile, &contest, &other, &[&guard]).await;
    holder.faults.heal();
    successor.release().await.expect("the store answers");
    assert_stays_lost(profile, &guard).await;
    check(&contest, profile);
}

/// P1: a grant that arrives when its lease is over is not handed out; the caller waits for another one.
pub async fn stalled_grant_is_not_handed_out(fx: &dyn Fixture) {
    let profile = fx.profile();
    for op in [Op::Claim, Op::Open] {
        let contest = Contest::new(fx, "stalled");
        let patient = Setup::new().request_timeout(profile.ttl * 3);
        let (slow, other) = (fx.client(patient).await, fx.client(Setup::new()).await);
        slow.faults.next_of(op, 1, Fault::DelayReply(profile.ttl * 3 / 2));
        let waiting = {
            let (contest, lock, profile) = (contest.clone(), contest.lock(&slow), profile.clone());
            tokio::spawn(async move {
                let guard = contest.history.acquire("slow", &lock).await.expect("the store answers");
                assert!(guard.is_held(), "a guard was handed out that was lost already");
                for _ in 0..10 {
                    tokio::time::sleep(profile.ttl / 40).await;
                    guard.is_held();
                }
                guard.release().await.expect("the store answers");
            })
        };
        tokio::time::sleep(profile.moment()).await;
        for _ in 0..4 {
            let guard =
                soon(profile, "the lock is got", contest.history.acquire("other", &contest.lock(&other)))
                    .await;
            let guard = guard.expect("the store answers");
            for _ in 0..10 {
                tokio::time::sleep(profile.ttl / 20).await;
                guard.is_held();
            }
            guard.release().await.expect("the store answers");
        }
        soon(profile, "the slow one gets the lock too", waiting).await.expect("the task does not panic");
        check(&contest, profile);
    }
}

/// P1, P3: a process that was frozen past its lease knows of the loss at its first look, before any task of it ran; work
/// under the guard takes no further step.
pub async fn frozen_process_knows_at_once(fx: &dyn Fixture) {
    let profile = fx.profile();
    let holder = fx.client(Setup::new()).await;
    let guard = holder.lock("frozen").acquire().await.expect("the lock is free");
    let steps = std::cell::Cell::new(0);
    let mut work = Box::pin(guard.run_until_lost(async {
        loop {
            steps.set(steps.get() + 1);
            tokio::task::yield_now().await;
        }
    }));
    assert!(poll_once(&mut work).await.is_pending());
    assert!(guard.is_held());
    // No await from here on: no task of the process can run.
    holder.clock.jump(profile.ttl);
    assert!(!guard.is_held(), "P3 broken: still held at the first look after the freeze");
    assert!(guard.valid_for().is_zero());
    assert_eq!(
        guard.lost().now_or_never(),
        Some(LossReason::Expired),
        "P3 broken: the loss is not told at once"
    );
    let before = steps.get();
    let ended: Option<Result<(), LossReason>> = work.now_or_never();
    assert_eq!(ended, Some(Err(LossReason::Expired)), "P3 broken: work under the guard went on");
    assert_eq!(steps.get(), before, "P3 broken: work took a step after the loss");
    assert_eq!(guard.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
}

/// The longest hold ends a guard, and not before; then the lock is given back though the session goes on.
pub async fn max_hold_ends_a_hold(fx: &dyn Fixture) {
    let profile = fx.profile();
    let longest = profile.ttl * 3 / 2;
    let contest = Contest::new(fx, "longest");
    let (holder, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let unlimited = holder.lock("unlimited").acquire().await.expect("the lock is free");
    let lock = contest.lock(&holder).max_hold(longest);
    let guard = contest.history.acquire("holder", &lock).await.expect("the lock is free");
    let start = holder.clock.now();
    assert!(guard.guard().valid_for() <= longest);
    let waiting = {
        let (contest, lock) = (contest.clone(), contest.lock(&other));
        tokio::spawn(async move { contest.history.acquire("other", &lock).await })
    };
    within(profile, longest, "the longest hold ends", sample_until_lost(profile, &guard)).await;
    let lasted = holder.clock.now().since(start);
    assert!(lasted + profile.moment() >= longest, "the hold ended after {lasted:?}, before the {longest:?}");
    assert_eq!(guard.lost().await, LossReason::MaxHold);
    let successor = within(profile, profile.handoff, "the lock is given back", waiting).await;
    let successor = successor.expect("the task does not panic").expect("the store answers");
    assert!(unlimited.is_held(), "the end of one hold ended another");
    assert_eq!(guard.release().await.expect("a lost guard needs no store"), ReleaseOutcome::AlreadyLost);
    assert!(successor.is_held(), "P7 broken: the loser's release hit its successor");
    successor.release().await.expect("the store answers");
    unlimited.release().await.expect("the store answers");
    // A limit on the manager counts for each of its locks.
    let limited = fx.client(Setup::new().max_hold(profile.moment() * 5)).await;
    let guard = limited.lock("longest").acquire().await.expect("the lock is free");
    assert_eq!(soon(profile, "the longest hold ends", guard.lost()).await, LossReason::MaxHold);
    drop(guard);
    check(&contest, profile);
}

/// An outage shorter than the lease costs nothing.
pub async fn short_outages_are_survived(fx: &dyn Fixture) {
    let profile = fx.profile();
    let holder = fx.client(Setup::new()).await;
    let guard = holder.lock("survives").acquire().await.expect("the lock is free");
    for _ in 0..3 {
        holder.faults.fail_all(ErrorKind::Unavailable);
        tokio::time::sleep(profile.ttl / 3).await;
        holder.faults.heal();
        let renewed = holder.locks.metrics().renewals;
        let again = until(profile, async || holder.locks.metrics().renewals > renewed);
        soon(profile, "renewals go on after an outage", again).await;
        assert!(guard.is_held(), "a guard was lost in an outage shorter than its lease");
    }
    assert_eq!(guard.release().await.expect("the store answers"), ReleaseOutcome::Released);
}

/// Has `other` acquire the contested lock while the guards of a holder that is cut off are asked again and again.
pub(super) async fn take_over(
    profile: &Profile,
    contest: &Contest,
    other: &Client,
    guards: &[&WatchedGuard],
) -> WatchedGuard {
    let (theirs, lock) = (contest.clone(), contest.lock(other));
    let mut waiting = tokio::spawn(async move { theirs.history.acquire("successor", &lock).await });
    let sampling = async {
        loop {
            for guard in guards {
                guard.is_held();
            }
            tokio::select! {
                biased;
                taken = &mut waiting => return taken,
                () = tokio::time::sleep(profile.moment()) => {}
            }
        }
    };
    let successor = within(profile, profile.takeover() * 2, "P4: the lock passes on", sampling).await;
    let successor = successor.expect("the task does not panic").expect("the store answers");
    assert!(!guards.iter().take(1).any(|guard| guard.is_held()), "P1 broken: held by two");
    successor
}

/// Asks a guard whether it holds until it does not.
async fn sample_until_lost(profile: &Profile, guard: &WatchedGuard) {
    until(profile, async || !guard.is_held()).await;
}

/// Checks that a lost guard stays lost.
async fn assert_stays_lost(profile: &Profile, guard: &WatchedGuard) {
    for _ in 0..20 {
        assert!(!guard.is_held(), "P3 broken: a lost guard was revived");
        tokio::time::sleep(profile.ttl / 20).await;
    }
    assert!(guard.lost().now_or_never().is_some(), "P3 broken: a loss was taken back");
}

/// Checks that a client which lost its session or its claim can go on.
async fn assert_can_acquire_again(profile: &Profile, client: &Client, name: &str) {
    let guard = soon(profile, "a client goes on after a loss", client.lock(name).acquire()).await;
    let guard = guard.expect("the store answers");
    assert!(guard.is_held());
    guard.release().await.expect("the store answers");
}

/// Checks the record, takeovers included.
pub(super) fn check(contest: &Contest, profile: &Profile) {
    if let Err(violations) = contest.history.check_with_takeover(profile.takeover()) {
        panic!("on {}:\n{violations}", profile.backend);
    }
}
