//! The sabotaged session: passes each request on, but for its mistake.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Cookie, FencingToken, Grant, Holder, Lease,
    LockName, OpenOptions, Patience, ReleaseRequest, Released, Renewal, Renewed, Resolution, Session,
    SessionEvent,
};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Sabotage;
use super::backend::{Common, alias};
use crate::patience::poll_once;

type RenewAnswer = Result<Renewed, BackendError>;

#[derive(Debug)]
pub(super) struct SabotagedSession {
    inner: Arc<dyn Session>,
    how: Sabotage,
    common: Arc<Common>,
    grants: Arc<AtomicU64>,
    options: OpenOptions,
    ttl: Duration,
    /// Answers to renewals, of whichever request.
    renewals: (UnboundedSender<RenewAnswer>, Mutex<UnboundedReceiver<RenewAnswer>>),
}

impl SabotagedSession {
    pub(super) fn new(
        inner: Arc<dyn Session>,
        how: Sabotage,
        common: Arc<Common>,
        grants: Arc<AtomicU64>,
        options: OpenOptions,
        ttl: Duration,
    ) -> Self {
        let (send, receive) = unbounded_channel();
        Self { inner, how, common, grants, options, ttl, renewals: (send, Mutex::new(receive)) }
    }

    fn is(&self, how: Sabotage) -> bool {
        self.how == how
    }

    /// The claim as the store is to know it.
    fn known(&self, claim: &ClaimRef) -> ClaimRef {
        match self.how {
            Sabotage::NamesAlias => ClaimRef { id: claim.id, name: alias(&claim.name) },
            _ => claim.clone(),
        }
    }

    fn now(&self) -> Lease {
        Lease::new(self.options.now(), self.ttl)
    }

    /// What the mistakes about tokens, leases and debts make of a grant.
    fn twist(&self, claim: &ClaimRef, mut grant: Grant) -> Grant {
        match self.how {
            Sabotage::LateStopwatch => {
                if let Some(lease) = &mut grant.lease {
                    lease.since = self.options.now();
                }
            }
            Sabotage::TokenOfTheAsking => grant.token = self.common.draw(claim.id, &claim.name),
            Sabotage::TokenOfTheClient | Sabotage::TokenOfTheSession => {
                grant.token = FencingToken::new(self.grants.fetch_add(1, Ordering::SeqCst) + 1);
            }
            Sabotage::TokenReadLater => {
                grant.token = self.common.last_granted(&claim.name).unwrap_or(grant.token).max(grant.token);
            }
            Sabotage::DebtIgnored => grant.owed = Duration::ZERO,
            _ => {}
        }
        self.common.note_grant(&claim.name, grant.token);
        grant
    }

    async fn ask(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        if self.is(Sabotage::TimeOutIsDefinite) {
            let limit = self.options.request_timeout / 2;
            let answer = tokio::time::timeout(limit, self.inner.claim(request)).await;
            return answer.unwrap_or_else(|_| Err(BackendError::unavailable("no answer")));
        }
        self.inner.claim(request).await
    }

    /// A claim of which core does not know.
    async fn claim_behind_the_back(&self, request: &ClaimRequest, name: &LockName, patience: Patience) {
        let mut other = request.clone();
        other.claim = ClaimRef { id: ClaimId::from_bits(!request.claim.id.bits()), name: name.clone() };
        other.patience = patience;
        drop(self.inner.claim(other).await);
    }
}

#[async_trait]
impl Session for SabotagedSession {
    async fn claim(&self, mut request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        request.claim = self.known(&request.claim);
        let claim = request.claim.clone();
        if self.is(Sabotage::TokenOfTheAsking) {
            self.common.draw(claim.id, &claim.name);
        }
        match self.ask(request.clone()).await? {
            ClaimReply::Granted(grant) => Ok(ClaimReply::Granted(self.twist(&claim, grant))),
            ClaimReply::Busy(_)
                if self.is(Sabotage::ExclusionBroken)
                    && self.common.counter.fetch_add(1, Ordering::SeqCst) % 3 == 2 =>
            {
                let token = 1_000_000 + self.common.counter.load(Ordering::SeqCst);
                Ok(ClaimReply::Granted(Grant::new(FencingToken::new(token)).lease(self.now())))
            }
            ClaimReply::Busy(busy) => {
                if self.is(Sabotage::TryStaysInQueue) && request.patience == Patience::Try {
                    self.claim_behind_the_back(&request, &claim.name, Patience::Queue).await;
                }
                Ok(ClaimReply::Busy(busy))
            }
            ClaimReply::Waiting(cookie) => Ok(ClaimReply::Waiting(cookie)),
        }
    }

    async fn wait(&self, claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        let claim = self.known(claim);
        let mut wait = pin!(self.inner.wait(&claim, cookie));
        if self.is(Sabotage::MissedWakeUp) && poll_once(&mut wait).await.is_ready() {
            // It had happened already when the watch was set, and a watch tells of what happens later.
            return std::future::pending().await;
        }
        wait.await
    }

    async fn renew(&self, claims: &[ClaimRef]) -> RenewAnswer {
        let known: Vec<_> = claims.iter().map(|claim| self.known(claim)).collect();
        if self.is(Sabotage::LateRenewalBooked) {
            // A stream of answers that are not told apart, and the stopwatch of the latest request.
            let (inner, answers) = (Arc::clone(&self.inner), self.renewals.0.clone());
            drop(tokio::spawn(async move { drop(answers.send(inner.renew(&known).await)) }));
            let lease = self.now();
            let answer = self.renewals.1.lock().await.recv().await;
            return Ok(restamped(answer.expect("the sender is here")?, lease));
        }
        let renewed = self.inner.renew(&known).await;
        match self.how {
            Sabotage::LateStopwatch => Ok(restamped(renewed?, self.now())),
            Sabotage::BlindRenewal => {
                renewed?;
                let lease = self.now();
                Ok(Renewed::claims(claims.iter().map(|claim| (claim.id, Renewal::Extended(lease))).collect()))
            }
            _ => renewed,
        }
    }

    async fn settled(&self, claim: &ClaimRef) -> Result<(), BackendError> {
        self.inner.settled(&self.known(claim)).await
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        if self.is(Sabotage::ResolveLies) {
            return Ok(Resolution::Absent);
        }
        let claim = self.known(claim);
        Ok(match self.inner.resolve(&claim).await? {
            Resolution::Granted(grant) => Resolution::Granted(self.twist(&claim, grant)),
            other => other,
        })
    }

    async fn release(&self, mut request: ReleaseRequest) -> Result<Released, BackendError> {
        request.claim = self.known(&request.claim);
        let name = request.claim.name.clone();
        match self.how {
            Sabotage::ReleaseWithoutNonce if self.common.store.remove_claim(name.as_str()) => {
                return Ok(Released::Done);
            }
            Sabotage::RecordPerName => self.common.record(&name),
            Sabotage::DebtDropped => request.unpaid = Duration::ZERO,
            _ => {}
        }
        let claim = request.claim.clone();
        let released = self.inner.release(request).await?;
        match self.how {
            Sabotage::ReleaseAlwaysDone => return Ok(Released::Done),
            Sabotage::ReleaseLeavesResidue => {
                let holder = Holder::from_json("{}");
                let request = ClaimRequest::new(claim, Patience::Try, holder);
                let left = LockName::new(format!("{name}.tmp")).expect("a short name");
                self.claim_behind_the_back(&request, &left, Patience::Try).await;
            }
            _ => {}
        }
        Ok(released)
    }

    async fn event(&self) -> SessionEvent {
        if self.is(Sabotage::BlindRenewal) {
            return std::future::pending().await;
        }
        self.inner.event().await
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        self.inner.observe(name).await
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        match self.how {
            Sabotage::CloseDoesNothing => Ok(()),
            Sabotage::DebtDropped => {
                let leaving = leaving.into_iter().map(|request| ReleaseRequest::new(request.claim));
                self.inner.close(leaving.collect()).await
            }
            _ => {
                let known = leaving
                    .into_iter()
                    .map(|request| ReleaseRequest::new(self.known(&request.claim)).unpaid(request.unpaid));
                self.inner.close(known.collect()).await
            }
        }
    }
}

/// The same answer, with every lease counted from another moment.
fn restamped(mut renewed: Renewed, lease: Lease) -> Renewed {
    let stamp = |renewal: &mut Renewal| {
        if let Renewal::Extended(extended) = renewal {
            extended.since = lease.since;
        }
    };
    renewed.session.iter_mut().for_each(stamp);
    renewed.claims.iter_mut().map(|(_, renewal)| renewal).for_each(stamp);
    renewed
}
