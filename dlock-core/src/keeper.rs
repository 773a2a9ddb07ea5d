//! The session keeper: opens a session when one is needed, renews it, tells losses, and ends it.
//!
//! One task per session. It reads the clock and acts on what it finds; that guards die in time does not depend on it,
//! since they read the clock themselves (P3).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::backend::{ClaimId, ClaimRef, ReleaseRequest, Renewal, Renewed, SessionEvent};
use crate::clock::{Timestamp, sleep_until};
use crate::error::{BackendError, CloseError, ErrorKind, StoreError};
use crate::hold::{Hold, Incarnation, locked};
use crate::lease::{LossReason, Seen, margin};
use crate::metrics::count;
use crate::shared::Shared;

/// The current incarnation, and the single flight of opening the next.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    current: Mutex<Option<Arc<Incarnation>>>,
    opening: tokio::sync::Mutex<()>,
    /// Attempts that are over.
    attempts: AtomicU64,
    last_failure: Mutex<Option<(u64, BackendError)>>,
}

impl Shared {
    /// The current incarnation, opened if there is none. One attempt: retrying is the caller's.
    ///
    /// Callers that come while an attempt is under way share its outcome, so a store that is down costs one time-out
    /// and not one per name.
    pub(crate) async fn incarnation(self: &Arc<Self>) -> Result<Arc<Incarnation>, BackendError> {
        if let Some(current) = self.current() {
            return Ok(current);
        }
        let before = self.sessions.attempts.load(Ordering::SeqCst);
        let _single = self.sessions.opening.lock().await;
        if let Some(current) = self.current() {
            return Ok(current);
        }
        if let Some((attempt, error)) = &*locked(&self.sessions.last_failure)
            && *attempt > before
        {
            return Err(error.clone());
        }
        let outcome = self.open_session().await;
        let attempt = self.sessions.attempts.fetch_add(1, Ordering::SeqCst) + 1;
        *locked(&self.sessions.last_failure) = outcome.as_ref().err().map(|error| (attempt, error.clone()));
        outcome
    }

    /// As [`incarnation`](Self::incarnation), for a caller whose future may be dropped: the attempt goes on, so that no
    /// half-opened session stays behind.
    pub(crate) async fn open(self: &Arc<Self>) -> Result<Arc<Incarnation>, StoreError> {
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        let Some(runtime) = self.runtime() else { return Err(StoreError::NoRuntime) };
        let shared = Arc::clone(self);
        let opening = runtime.spawn(async move { shared.incarnation().await });
        match opening.await {
            Ok(Err(_)) if self.is_closed() => Err(StoreError::Closed),
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(StoreError::NoRuntime),
        }
    }

    /// Has the backend prepared the store. A caller's future may be dropped: the attempt goes on.
    pub(crate) async fn init(self: &Arc<Self>) -> Result<Vec<String>, StoreError> {
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        let Some(runtime) = self.runtime() else { return Err(StoreError::NoRuntime) };
        let shared = Arc::clone(self);
        let limit = self.time_to_open();
        let preparing = runtime.spawn(async move {
            tokio::time::timeout(limit, shared.backend.init(shared.open_options())).await
        });
        match preparing.await {
            Ok(Ok(outcome)) => Ok(outcome?),
            Ok(Err(_)) => Err(BackendError::no_answer(limit).into()),
            Err(_) => Err(StoreError::NoRuntime),
        }
    }

    /// Opening may take several requests: name resolution, TLS, authentication, checks of the schema.
    fn time_to_open(&self) -> Duration {
        self.options.request_timeout.saturating_mul(3)
    }

    fn current(&self) -> Option<Arc<Incarnation>> {
        locked(&self.sessions.current).as_ref().filter(|current| !current.is_over()).cloned()
    }

    async fn open_session(self: &Arc<Self>) -> Result<Arc<Incarnation>, BackendError> {
        if self.is_closed() {
            return Err(closed());
        }
        let limit = self.time_to_open();
        let opened = tokio::time::timeout(limit, self.backend.open(self.open_options()))
            .await
            .unwrap_or_else(|_| {
                Err(BackendError::unknown(format!("no session could be opened within {limit:?}: no answer")))
            })?;
        let now = self.now();
        let incarnation = Arc::new(Incarnation::new(opened, now));
        if incarnation.lease.as_ref().is_some_and(|lease| lease.check(now).is_err()) {
            self.end_session(&incarnation, LossReason::Expired);
            let ttl = incarnation.ttl;
            return Err(BackendError::unavailable(format!(
                "the session's lease of {ttl:?} was over when the answer came: the store is too slow for this TTL"
            )));
        }
        count(&self.counters.sessions_opened);
        *locked(&self.sessions.current) = Some(Arc::clone(&incarnation));
        self.spawn(keep(Arc::clone(self), Arc::clone(&incarnation)));
        // Looked at after the session can be found: either this or the one who closes ends it.
        if self.is_closed() {
            self.end_session(&incarnation, LossReason::Closed);
            return Err(closed());
        }
        Ok(incarnation)
    }

    /// Ends an incarnation: its guards die here and now, then those who wait go on under the next, and the store is
    /// told in the background.
    pub(crate) fn end_session(self: &Arc<Self>, incarnation: &Arc<Incarnation>, reason: LossReason) {
        let Some(holds) = incarnation.end(reason) else { return };
        tracing::warn!(%reason, claims = holds.len(), "session ended");
        // Their guards are dead, so they leave as cleanly as the store lets them.
        let leaving = leaving(&holds, self.now());
        for hold in holds {
            self.lost(&hold);
        }
        let session = Arc::clone(&incarnation.session);
        let limit = self.options.request_timeout;
        self.spawn(async move {
            // Nobody renews it any more, so what the store does not confirm expires by itself.
            drop(tokio::time::timeout(limit, session.close(leaving)).await);
        });
    }

    pub(crate) fn end_current_session(self: &Arc<Self>) {
        let current = locked(&self.sessions.current).take();
        if let Some(current) = current {
            self.end_session(&current, LossReason::SessionEnded);
        }
    }

    /// Kills every guard, gives everything back, ends the session. The same for all callers.
    pub(crate) async fn close(self: Arc<Self>) -> Result<(), CloseError> {
        let shared = Arc::clone(&self);
        self.closing.get_or_init(|| shared.close_once()).await.clone()
    }

    async fn close_once(self: Arc<Self>) -> Result<(), CloseError> {
        let limit = self.options.request_timeout;
        self.shut();
        // What is not over by then is a store that does not answer; ending the session ends it.
        drop(tokio::time::timeout(limit, self.drained()).await);
        // An opening under way ends by itself when it finds the manager closed.
        let Some(incarnation) = locked(&self.sessions.current).take() else { return Ok(()) };
        // Beside the guards that were out, what a driver could not give up in time.
        let Some(holds) = incarnation.end(LossReason::Closed) else { return Ok(()) };
        let leaving = leaving(&holds, self.now());
        let error = match tokio::time::timeout(limit, incarnation.session.close(leaving)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) if error.kind() == ErrorKind::SessionGone => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => BackendError::unknown(format!("no answer within {limit:?}")),
        };
        Err(CloseError { expires_within: incarnation.ttl, source: Some(error) })
    }

    /// Tells the losses that the clock alone brings.
    fn sweep(self: &Arc<Self>, incarnation: &Arc<Incarnation>) {
        let now = self.now();
        if let Some(lease) = &incarnation.lease {
            if let Err(reason) = lease.check(now) {
                self.end_session(incarnation, reason);
            }
            return;
        }
        for hold in incarnation.holds() {
            if hold.check(now).is_err() {
                self.claim_lost(&hold, LossReason::Expired);
            }
        }
    }

    /// One claim is lost: dead from here on it is renewed no more, and those behind it have their turn.
    fn claim_lost(self: &Arc<Self>, hold: &Arc<Hold>, reason: LossReason) {
        hold.lose(reason);
        self.lost(hold);
    }
}

/// What is asked of the store for claims that end with their session: those that were out, and those whose release it
/// has not confirmed.
fn leaving(holds: &[Arc<Hold>], now: Timestamp) -> Vec<ReleaseRequest> {
    holds.iter().map(|hold| hold.release_request(now)).collect()
}

fn closed() -> BackendError {
    BackendError::refused("the lock manager was closed")
}

/// Ends the session of a keeper that panicked in a backend: without renewals its locks would be lost one by one, and
/// those who wait would not be told.
struct EndOnPanic(Arc<Shared>, Arc<Incarnation>);

impl Drop for EndOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.end_session(&self.1, LossReason::SessionEnded);
        }
    }
}

/// A renewal on its way, with what each deadline was when it was sent.
struct Renewing {
    session: Option<Seen>,
    claims: Vec<(Arc<Hold>, Seen)>,
    sent: Timestamp,
    answer: Pin<Box<dyn Future<Output = Result<Renewed, BackendError>> + Send>>,
}

/// Keeps one incarnation until it is over.
async fn keep(shared: Arc<Shared>, incarnation: Arc<Incarnation>) {
    let _end = EndOnPanic(Arc::clone(&shared), Arc::clone(&incarnation));
    let mut next = incarnation.since.plus(incarnation.interval());
    let mut renewing: Option<Renewing> = None;
    let mut failures = 0_u32;
    loop {
        let mut wake = earliest_deadline(&incarnation);
        if renewing.is_none() {
            wake = wake.min(next);
        }
        tokio::select! {
            biased;
            () = incarnation.ended() => return,
            answer = answer_of(&mut renewing) => {
                let done = renewing.take().expect("an answer belongs to a renewal");
                let sent = done.sent;
                if book(&shared, &incarnation, done, answer) {
                    failures = 0;
                    next = sent.plus(incarnation.interval());
                } else {
                    // Unknown, not lost: tried again until the deadline.
                    failures += 1;
                    count(&shared.counters.renewals_failed);
                    // An attempt that was waited for has had its pause.
                    next = sent.plus(shared.backoff(failures).min(incarnation.interval() / 2));
                }
            }
            () = incarnation.hurry.notified() => next = shared.now(),
            event = incarnation.session.event() => match event {
                SessionEvent::Gone => shared.end_session(&incarnation, LossReason::SessionEnded),
                SessionEvent::Removed(id) => {
                    if let Some(hold) = incarnation.hold(id) {
                        shared.claim_lost(&hold, LossReason::Removed);
                    }
                }
            },
            () = sleep_until(&*shared.clock, wake) => {}
        }
        shared.sweep(&incarnation);
        if !incarnation.is_over() && renewing.is_none() && shared.now() >= next {
            renewing = start_renewal(&shared, &incarnation, failures);
            if renewing.is_none() {
                next = shared.now().plus(incarnation.interval());
            }
        }
    }
}

/// The moment at which the next deadline passes if nothing is renewed.
fn earliest_deadline(incarnation: &Incarnation) -> Timestamp {
    let never = Timestamp::from_nanos(u64::MAX);
    let start = Timestamp::from_nanos(0);
    match &incarnation.lease {
        Some(lease) => lease.check(start).unwrap_or(never),
        None => {
            // A dead hold stays until its release is confirmed; its deadline, long past, wakes nobody.
            incarnation.holds().iter().filter_map(|hold| hold.check(start).ok()).min().unwrap_or(never)
        }
    }
}

async fn answer_of(renewing: &mut Option<Renewing>) -> Result<Renewed, BackendError> {
    match renewing {
        Some(renewing) => renewing.answer.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Sends a renewal of all that is still held; none if that is nothing.
fn start_renewal(shared: &Shared, incarnation: &Incarnation, failures: u32) -> Option<Renewing> {
    let now = shared.now();
    let session = match &incarnation.lease {
        Some(lease) => Some(lease.before_renewal(now)?),
        None => None,
    };
    // A hold that is dead locally is not renewed, so no orphan is kept alive (P6).
    let claims: Vec<_> = incarnation
        .holds()
        .into_iter()
        .filter(|hold| hold.check(now).is_ok())
        .filter_map(|hold| hold.lease.before_renewal(now).map(|seen| (hold, seen)))
        .collect();
    if session.is_none() && claims.is_empty() {
        return None;
    }
    let refs: Vec<ClaimRef> = claims.iter().map(|(hold, _)| hold.claim.clone()).collect();
    let limit = shared.options.request_timeout.min(incarnation.patience(failures));
    let backend = Arc::clone(&incarnation.session);
    let answer = Box::pin(async move {
        // When the time is over the future is dropped, and with it whatever carries a late answer.
        tokio::time::timeout(limit, backend.renew(&refs)).await.unwrap_or_else(|_| {
            Err(BackendError::unknown(format!("a renewal was not answered within {limit:?}")))
        })
    });
    Some(Renewing { session, claims, sent: now, answer })
}

/// Books the answer to a renewal. False if it is to be tried again soon.
fn book(
    shared: &Arc<Shared>,
    incarnation: &Arc<Incarnation>,
    renewing: Renewing,
    answer: Result<Renewed, BackendError>,
) -> bool {
    // Read after the answer: a renewal moves a deadline only if it is not past yet.
    let now = shared.now();
    let renewed = match answer {
        Ok(renewed) => renewed,
        Err(error) => {
            tracing::debug!(%error, "renewal failed");
            if error.kind() == ErrorKind::SessionGone {
                shared.end_session(incarnation, LossReason::SessionEnded);
            }
            return false;
        }
    };
    let mut all_known = true;
    let mut smallest = incarnation.ttl;
    if let (Some(lease), Some(seen)) = (&incarnation.lease, renewing.session) {
        match renewed.session {
            Some(Renewal::Extended(granted)) => {
                smallest = smallest.min(granted.ttl);
                if let Err(reason) = lease.renew(seen, granted, now) {
                    shared.end_session(incarnation, reason);
                }
            }
            Some(Renewal::Gone) => shared.end_session(incarnation, LossReason::SessionEnded),
            Some(Renewal::Unknown) | None => all_known = false,
        }
    }
    let mut answers: BTreeMap<ClaimId, Renewal> = renewed.claims.into_iter().collect();
    for (hold, seen) in renewing.claims {
        match (answers.remove(&hold.claim.id), &incarnation.lease) {
            (Some(Renewal::Gone), _) => shared.claim_lost(&hold, LossReason::Removed),
            (Some(Renewal::Extended(granted)), None) => {
                smallest = smallest.min(granted.ttl);
                if let Err(reason) = hold.lease.renew(seen, granted, now) {
                    shared.claim_lost(&hold, reason);
                }
            }
            (Some(Renewal::Unknown) | None, None) => all_known = false,
            (_, Some(_)) => {}
        }
    }
    incarnation.set_smallest_lease(smallest);
    if all_known {
        count(&shared.counters.renewals);
    }
    all_known
}

/// How long the store is asked what became of a claim: just below a lease. After it the claim has run out, or its session
/// is ended.
pub(crate) fn time_for_proof(ttl: Duration) -> Duration {
    ttl.saturating_sub(margin(ttl) * 2)
}

/// The longest that a claim can live whose release the store does not confirm: until the asking ends, and with it the
/// renewals of the session that keeps the claim alive, and one lease more. A claim with its own lease has that only.
pub(crate) fn expires_within(incarnation: &Incarnation) -> Duration {
    let lease = incarnation.ttl + margin(incarnation.ttl);
    if incarnation.lease.is_some() { time_for_proof(incarnation.ttl) + lease } else { lease }
}
