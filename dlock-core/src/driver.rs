//! The state machine of one name: claiming, waiting, settling, handing out, giving up, and finding out what became of
//! a request that was never answered.
//!
//! A driver runs while something is to be done at the store for its name, and ends when a guard is out or nobody waits.
//! It belongs to the queue and not to any caller: dropping a user's future at any await point leaves the driver to
//! finish its request and to give back what nobody wants any more (P6).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use crate::backend::{
    Busy, ClaimRef, ClaimReply, ClaimRequest, Cookie, Grant, Patience, ReleaseRequest, Released, Resolution,
};
use crate::clock::{Timestamp, sleep_until};
use crate::error::{BackendError, ErrorKind};
use crate::guard::ReleaseOutcome;
use crate::hold::{Hold, Incarnation, locked};
use crate::holder::Holder;
use crate::keeper::time_for_proof;
use crate::lease::LossReason;
use crate::metrics::count;
use crate::name::LockName;
use crate::queue::{ReleaseReply, Step};
use crate::shared::Shared;
use crate::watchlist::Met;

/// Drives one name until a guard is out or nothing is left to do.
///
/// The driver exists before the first poll, so a task that a dead runtime drops unpolled turns its waiters away too.
pub(crate) fn drive(shared: Arc<Shared>, name: LockName) -> impl Future<Output = ()> + Send + 'static {
    let poke = shared.poke_of(&name);
    Driver {
        shared,
        name,
        poke,
        failures: 0,
        wait_failures: 0,
        woken: false,
        woken_in_vain: 0,
        finished: false,
    }
    .run()
}

struct Driver {
    shared: Arc<Shared>,
    name: LockName,
    poke: Arc<Notify>,
    /// Failed requests in a row.
    failures: u32,
    /// Failed waits in a row.
    wait_failures: u32,
    /// The store told of a change before the last request.
    woken: bool,
    /// How often others were faster after such a wake-up.
    woken_in_vain: u32,
    finished: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        // Dropped half-way by a runtime that shuts down, or unwound by a panic in a backend.
        if !self.finished {
            self.shared.driver_died(&self.name, std::thread::panicking());
        }
    }
}

fn session_over() -> BackendError {
    BackendError::session_gone("the session ended before the store had confirmed")
}

/// What came of asking the store for a claim.
enum Asked {
    Granted(Grant),
    Waiting(Cookie),
    Busy(Busy),
    /// Certainly not executed.
    Failed(BackendError),
    /// It was not known, and is now: nothing of it is at the store. Ask with a fresh id.
    Absent,
    /// It was never known. Nobody renews the claim, and it is over by now.
    Expired(BackendError),
    /// The incarnation is over.
    Over,
}

/// Why a wait ended.
enum Woken {
    Ask,
    Nobody,
    Over,
}

impl Driver {
    async fn run(mut self) {
        loop {
            match self.shared.next_step(&self.name) {
                Step::Stop => break,
                Step::Claim => self.claim().await,
                Step::Deliver(hold) => self.deliver(hold).await,
                Step::GiveUp(hold, reply) => self.give_up(hold, reply).await,
            }
        }
        self.finished = true;
    }

    /// One attempt to get the lock for those who wait.
    async fn claim(&mut self) {
        let incarnation = match self.shared.incarnation().await {
            Ok(incarnation) => incarnation,
            Err(error) => return self.trouble(&error).await,
        };
        let Some(demand) = self.shared.demand(&self.name) else { return };
        let claim = self.shared.new_claim(&self.name);
        let mut request =
            ClaimRequest::new(claim.clone(), demand.patience, Holder::now(&self.shared.options.owner));
        match locked(&self.shared.watchlist).ripe(&self.name, self.shared.now()) {
            Some(Met::Debt(id)) => request.paid = Some(id),
            Some(Met::Version(version)) => request.take_if_unchanged = Some(version),
            None => {}
        }
        let mut waiting = false;
        let mut upto = demand.upto;
        loop {
            match self.ask(&incarnation, &request).await {
                Asked::Granted(grant) => return self.granted(&incarnation, claim, grant, upto).await,
                Asked::Waiting(cookie) => {
                    waiting = true;
                    self.failures = 0;
                    self.forget_watched();
                    self.shared.contended(&self.name, upto);
                    match self.wait_turn(&incarnation, &claim, &cookie).await {
                        Woken::Ask => {}
                        Woken::Nobody => return self.withdraw(&incarnation, &claim, None, None).await,
                        Woken::Over => return self.session_ended().await,
                    }
                }
                Asked::Busy(busy) => return self.busy(&incarnation, &request, busy, upto).await,
                Asked::Failed(error) if waiting && !matches!(error.kind(), ErrorKind::Refused) => {
                    // The claim stands in the store's queue; another one would stand behind it for ever.
                    self.trouble(&error).await;
                    if !self.shared.has_queued(&self.name) {
                        return self.withdraw(&incarnation, &claim, None, None).await;
                    }
                }
                Asked::Failed(error) => {
                    if waiting {
                        self.withdraw(&incarnation, &claim, None, None).await;
                    }
                    return self.trouble(&error).await;
                }
                Asked::Absent => {
                    // Booked as a failure when it was one; that the store tells of it now is none.
                    self.failures += 1;
                    if self.failures > 1 {
                        self.rest(self.shared.backoff(self.failures - 1)).await;
                    }
                    return;
                }
                Asked::Expired(error) => return self.trouble(&error).await,
                Asked::Over => return self.session_ended().await,
            }
            upto = self.shared.demand(&self.name).map_or(upto, |demand| demand.upto);
        }
    }

    /// The incarnation ended under a claim. Those who wait go on under the next one: at once if the store has answered as
    /// it should since the last failure, else after a pause.
    async fn session_ended(&mut self) {
        if self.failures == 0 {
            self.failures = 1;
        } else {
            self.trouble(&session_over()).await;
        }
    }

    /// One request for a claim; what is unknown is found out before this returns.
    async fn ask(&mut self, incarnation: &Arc<Incarnation>, request: &ClaimRequest) -> Asked {
        if incarnation.is_over() {
            return Asked::Over;
        }
        let limit = self.shared.options.request_timeout;
        let answer = tokio::select! {
            biased;
            answer = tokio::time::timeout(limit, incarnation.session.claim(request.clone())) => answer,
            () = incarnation.ended() => return Asked::Over,
        };
        // An answer for an ended incarnation is never handed out.
        if incarnation.is_over() {
            return Asked::Over;
        }
        match answer {
            Ok(Ok(ClaimReply::Granted(grant))) => Asked::Granted(grant),
            Ok(Ok(ClaimReply::Waiting(cookie))) => Asked::Waiting(cookie),
            Ok(Ok(ClaimReply::Busy(busy))) => Asked::Busy(busy),
            Ok(Err(error)) => match error.kind() {
                ErrorKind::Unknown => self.find_out(incarnation, &request.claim, error).await,
                ErrorKind::SessionGone => {
                    self.shared.end_session(incarnation, LossReason::SessionEnded);
                    Asked::Over
                }
                _ => Asked::Failed(error),
            },
            Err(_) => self.find_out(incarnation, &request.claim, BackendError::no_answer(limit)).await,
        }
    }

    /// Finds out what became of a claim, in the time there is for proof from now on.
    async fn find_out(
        &mut self,
        incarnation: &Arc<Incarnation>,
        claim: &ClaimRef,
        error: BackendError,
    ) -> Asked {
        let give_up_at = self.shared.now().plus(time_for_proof(incarnation.ttl));
        self.resolve(incarnation, claim, error, give_up_at).await
    }

    /// Finds out what became of a claim or its release. Until that is proved, the name is not tried again under this
    /// incarnation; where it cannot be until `give_up_at`, the session ends, or the claim that nobody renews has.
    async fn resolve(
        &mut self,
        incarnation: &Arc<Incarnation>,
        claim: &ClaimRef,
        error: BackendError,
        give_up_at: Timestamp,
    ) -> Asked {
        count(&self.shared.counters.unknown);
        self.shared.failed(&self.name, &error, true);
        loop {
            if incarnation.is_over() {
                return Asked::Over;
            }
            let limit = self.time_left(give_up_at);
            let answer = tokio::select! {
                biased;
                answer = tokio::time::timeout(limit, incarnation.session.resolve(claim)) => answer,
                () = incarnation.ended() => return Asked::Over,
            };
            if incarnation.is_over() {
                return Asked::Over;
            }
            let failure = match answer {
                Ok(Ok(resolution)) => {
                    self.shared.resolved(&self.name);
                    return match resolution {
                        Resolution::Absent => Asked::Absent,
                        Resolution::Waiting(cookie) => Asked::Waiting(cookie),
                        Resolution::Granted(grant) => Asked::Granted(grant),
                    };
                }
                Ok(Err(error)) if matches!(error.kind(), ErrorKind::SessionGone | ErrorKind::Refused) => {
                    self.shared.end_session(incarnation, LossReason::SessionEnded);
                    return Asked::Over;
                }
                Ok(Err(error)) => error,
                Err(_) => BackendError::no_answer(limit),
            };
            // Before the pause: who comes during it is not turned away for a failure older than himself.
            self.shared.failed(&self.name, &failure, true);
            if self.shared.now() >= give_up_at {
                return self.unproved(incarnation, failure);
            }
            self.pause(incarnation, give_up_at).await;
        }
    }

    /// The store does not tell what became of a claim. Under a session that is renewed it might stay for ever (P6), so
    /// that session ends; a claim with a lease of its own is over by itself.
    fn unproved(&self, incarnation: &Arc<Incarnation>, error: BackendError) -> Asked {
        if incarnation.lease.is_some() {
            self.shared.end_session(incarnation, LossReason::SessionEnded);
            Asked::Over
        } else {
            Asked::Expired(error)
        }
    }

    /// Waits in the store's queue until it is worth looking again.
    async fn wait_turn(&mut self, incarnation: &Incarnation, claim: &ClaimRef, cookie: &Cookie) -> Woken {
        // A watch may die without a word, and a claim that is first in line and does not know it blocks everybody.
        let mut look_at = self.shared.now().plus(self.shared.jittered(incarnation.ttl * 2));
        let mut wait_failed = false;
        let mut wait = std::pin::pin!(incarnation.session.wait(claim, cookie));
        loop {
            if incarnation.is_over() {
                return Woken::Over;
            }
            if !self.shared.has_queued(&self.name) {
                return Woken::Nobody;
            }
            tokio::select! {
                biased;
                () = incarnation.ended() => return Woken::Over,
                () = self.poke.notified() => {}
                outcome = &mut wait, if !wait_failed => {
                    let Err(error) = outcome else {
                        self.wait_failures = 0;
                        return Woken::Ask;
                    };
                    tracing::debug!(lock = %self.name, %error, "waiting failed");
                    wait_failed = true;
                    self.wait_failures += 1;
                    let pause = self.shared.backoff(self.wait_failures);
                    look_at = look_at.min(self.shared.now().plus(pause));
                }
                () = sleep_until(&*self.shared.clock, look_at) => return Woken::Ask,
            }
        }
    }

    /// Somebody else holds the lock, and the store keeps no queue: tell the tries, and sleep until it is worth asking.
    async fn busy(&mut self, incarnation: &Incarnation, request: &ClaimRequest, busy: Busy, upto: u64) {
        self.failures = 0;
        self.woken_in_vain += u32::from(std::mem::take(&mut self.woken));
        let now = self.shared.now();
        {
            let mut watchlist = locked(&self.shared.watchlist);
            match (&busy.debt, &busy.observed) {
                (Some(debt), _) => watchlist.meet(&self.name, Met::Debt(debt.id), debt.owed, now),
                (None, Some(seen)) => {
                    watchlist.meet(&self.name, Met::Version(seen.version.clone()), seen.lease, now);
                }
                // A living holder's debt is not yet due.
                (None, None) => watchlist.forget(&self.name),
            }
        }
        let tries_left = self.shared.contended(&self.name, upto);
        // Who joined while a mere try was at the store has not asked yet.
        let queue_asked = request.patience == Patience::Queue;
        if tries_left || !queue_asked || !self.shared.has_queued(&self.name) {
            return;
        }
        let mut pause = self.shared.jittered(busy.retry_after);
        if busy.observed.is_some()
            && let Some(ripe) = locked(&self.shared.watchlist).ripe_in(&self.name, now)
        {
            pause = pause.min(ripe);
        }
        let until = now.plus(pause);
        let mut wait_failed = false;
        let mut wait = std::pin::pin!(incarnation.session.wait(&request.claim, &busy.cookie));
        loop {
            tokio::select! {
                biased;
                () = incarnation.ended() => return,
                () = self.poke.notified() => {
                    if !self.shared.has_queued(&self.name) {
                        return;
                    }
                }
                outcome = &mut wait, if !wait_failed => {
                    if outcome.is_ok() {
                        self.woken = true;
                        return self.rest(self.spread()).await;
                    }
                    // Messages are hints: the pause remains.
                    wait_failed = true;
                }
                () = sleep_until(&*self.shared.clock, until) => return,
            }
        }
    }

    /// The store granted the claim: settle what is owed, then hand it out.
    async fn granted(&mut self, incarnation: &Arc<Incarnation>, claim: ClaimRef, grant: Grant, upto: u64) {
        let received = self.shared.now();
        self.forget_watched();
        self.shared.answered(&self.name);
        let Some(hold) = incarnation.admit(claim.clone(), &grant, received) else {
            if !incarnation.is_over() {
                self.withdraw(incarnation, &claim, Some(received.plus(grant.owed)), None).await;
                let error =
                    BackendError::refused("the backend granted a claim without the lease it promised");
                self.trouble(&error).await;
            }
            return;
        };
        if hold.check(received).is_err() {
            // Too late to be of use; the store's answer took longer than the lease.
            self.give_up(hold, None).await;
            let ttl = incarnation.ttl;
            let error = BackendError::unavailable(format!(
                "the grant arrived after its lease of {ttl:?} was over: the store is too slow for this TTL"
            ));
            return self.trouble(&error).await;
        }
        self.failures = 0;
        if !grant.owed.is_zero() {
            count(&self.shared.counters.settles);
            self.shared.contended(&self.name, upto);
            if !self.settle(&hold).await {
                return self.give_up(hold, None).await;
            }
            let limit = self.shared.options.request_timeout;
            // A hint to the store. Unanswered, the next holder settles longer than it must.
            drop(tokio::time::timeout(limit, incarnation.session.settled(&hold.claim)).await);
        }
        self.deliver(hold).await;
    }

    /// Waits out what an earlier holder left. False if the claim was lost, or nobody wants it any more.
    async fn settle(&mut self, hold: &Hold) -> bool {
        loop {
            let mut changed = std::pin::pin!(hold.changed());
            changed.as_mut().enable();
            let now = self.shared.now();
            if hold.check(now).is_err() || !self.shared.has_queued(&self.name) {
                return false;
            }
            if now >= hold.settle_until {
                return true;
            }
            tokio::select! {
                biased;
                () = changed => {}
                () = self.poke.notified() => {}
                () = sleep_until(&*self.shared.clock, hold.settle_until) => {}
            }
        }
    }

    /// Hands a held claim to the first who waits, or gives it up.
    async fn deliver(&mut self, hold: Arc<Hold>) {
        if hold.check(self.shared.now()).is_err() {
            return self.give_up(hold, None).await;
        }
        match self.shared.deliver(hold) {
            Ok(()) => {}
            Err(hold) => self.give_up(hold, None).await,
        }
    }

    /// Gives a granted claim up.
    async fn give_up(&mut self, hold: Arc<Hold>, reply: Option<ReleaseReply>) {
        // P6: a dead hold is renewed no more, from before the request on, so that nothing keeps an orphan alive.
        hold.lose(LossReason::Closed);
        self.withdraw(&hold.incarnation, &hold.claim, Some(hold.settle_until), reply).await;
        // Until here a close would have named it among what is left.
        hold.incarnation.forget(hold.claim.id);
    }

    /// Gives a claim up, waiting or granted, and repeats it until the store has confirmed that it is gone.
    ///
    /// `paid_at` is when what the claim owes is settled; none if it has only waited, as far as is known.
    async fn withdraw(
        &mut self,
        incarnation: &Arc<Incarnation>,
        claim: &ClaimRef,
        mut paid_at: Option<Timestamp>,
        mut reply: Option<ReleaseReply>,
    ) {
        let mut answer = |outcome: Result<ReleaseOutcome, BackendError>| {
            if let Some(reply) = reply.take() {
                // A caller that no longer listens needs no answer.
                drop(reply.send(outcome));
            }
        };
        let give_up_at = self.shared.now().plus(time_for_proof(incarnation.ttl));
        let mut attempts = 0_u32;
        let mut unanswered = false;
        loop {
            if incarnation.is_over() {
                return answer(Err(session_over()));
            }
            attempts += 1;
            let limit = self.time_left(give_up_at);
            let unpaid = paid_at.map_or(Duration::ZERO, |paid_at| paid_at.since(self.shared.now()));
            let request = ReleaseRequest::new(claim.clone()).unpaid(unpaid);
            let released = tokio::select! {
                biased;
                released = tokio::time::timeout(limit, incarnation.session.release(request)) => released,
                () = incarnation.ended() => return answer(Err(session_over())),
            };
            let error = match released {
                Ok(Ok(released)) => {
                    self.failures = 0;
                    self.shared.answered(&self.name);
                    // After an unanswered attempt "not found" is our own doing.
                    let ours = released == Released::Done || unanswered;
                    return answer(Ok(if ours {
                        ReleaseOutcome::Released
                    } else {
                        ReleaseOutcome::AlreadyLost
                    }));
                }
                Ok(Err(error)) => error,
                Err(_) => BackendError::no_answer(limit),
            };
            match error.kind() {
                ErrorKind::SessionGone => {
                    self.shared.end_session(incarnation, LossReason::SessionEnded);
                    return answer(Err(session_over()));
                }
                ErrorKind::Refused => {
                    // Our claim cannot be removed; then at least nobody renews it.
                    self.unproved(incarnation, error.clone());
                    return answer(Err(error));
                }
                ErrorKind::Unknown => {
                    unanswered = true;
                    match self.resolve(incarnation, claim, error, give_up_at).await {
                        Asked::Absent => {
                            self.shared.answered(&self.name);
                            return answer(Ok(ReleaseOutcome::Released));
                        }
                        Asked::Over => return answer(Err(session_over())),
                        Asked::Expired(error) => return answer(Err(error)),
                        // It became first in line unawares: what it inherited goes on to the next (P1).
                        Asked::Granted(grant) => {
                            paid_at = paid_at.or(Some(self.shared.now().plus(grant.owed)));
                        }
                        Asked::Waiting(_) | Asked::Busy(_) | Asked::Failed(_) => {}
                    }
                    // Still there: released again, the first time at once.
                    if attempts == 1 {
                        continue;
                    }
                }
                _ => self.shared.failed(&self.name, &error, true),
            }
            if self.shared.now() >= give_up_at {
                self.unproved(incarnation, session_over());
                return answer(Err(BackendError::unknown("the store did not confirm the release")));
            }
            self.pause(incarnation, give_up_at).await;
        }
    }

    /// The time-out of a request that is of no use after `give_up_at`: what the caller is told of how long a claim can live
    /// counts on the end (P6). A third of what is left, so that one server which says nothing leaves time to ask two others.
    fn time_left(&self, give_up_at: Timestamp) -> Duration {
        const SHORTEST: Duration = Duration::from_millis(50);
        let left = give_up_at.since(self.shared.now());
        self.shared.options.request_timeout.min((left / 3).max(SHORTEST)).min(left)
    }

    /// The store failed: tell those whom it concerns, and wait before the next attempt.
    async fn trouble(&mut self, error: &BackendError) {
        let pause = match error.kind() {
            ErrorKind::Refused => return self.shared.refused(&self.name, error),
            ErrorKind::NotReady { retry_after } => {
                self.shared.not_ready(&self.name, error);
                // Looked at again now and then: whoever looks after the store may shorten the wait.
                retry_after.min(Duration::from_secs(5))
            }
            _ => {
                self.shared.failed(&self.name, error, false);
                self.failures += 1;
                self.shared.backoff(self.failures)
            }
        };
        self.rest(pause).await;
    }

    /// A release wakes every process that waits, and one of them wins: those that have been too late twice spread their
    /// requests over a few milliseconds. Two processes that hand a lock to and fro lose nothing.
    fn spread(&self) -> Duration {
        match self.woken_in_vain {
            0 | 1 => Duration::ZERO,
            vain => self.shared.up_to(Duration::from_millis(1 << vain.min(3))),
        }
    }

    /// A pause before the next attempt, cut short when nobody waits any more.
    async fn rest(&mut self, pause: Duration) {
        let until = self.shared.now().plus(pause);
        while self.shared.demand(&self.name).is_some() {
            tokio::select! {
                biased;
                () = self.poke.notified() => {}
                () = sleep_until(&*self.shared.clock, until) => return,
            }
        }
    }

    /// A pause before the next attempt, until `latest` at the latest, cut short by the end of the incarnation.
    async fn pause(&mut self, incarnation: &Incarnation, latest: Timestamp) {
        self.failures += 1;
        let until = self.shared.now().plus(self.shared.backoff(self.failures)).min(latest);
        tokio::select! {
            biased;
            () = incarnation.ended() => {}
            () = sleep_until(&*self.shared.clock, until) => {}
        }
    }

    fn forget_watched(&self) {
        locked(&self.shared.watchlist).forget(&self.name);
    }
}
