//! A session: one lease, the claims put with it, and what is asked of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Busy, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Clock, Cookie, ErrorKind, FencingToken,
    Grant, Holder, Lease, LockName, Mode, Patience, ReleaseRequest, Released, Renewal, Renewed, Resolution,
    Session, SpentClaims,
};

use crate::client::Client;
use crate::keep_alive::KeepAlive;
use crate::layout::{SessionKeys, created_at, delete, look_at, range};
use crate::resolver::Resolver;
use crate::watch::{self, Seen};
use crate::wire::{
    Did, KeyValue, LeaseRevokeRequest, LeaseTimeToLiveRequest, Op, PutRequest, TxnResponse, txn,
};

/// So many keys are looked at in one transaction; etcd takes 128 operations unless told otherwise.
const BATCH: usize = 100;
/// When a waiter whose key is gone asks again.
const SOON: Duration = Duration::from_millis(20);

/// One lease at etcd.
#[derive(Debug)]
pub(crate) struct EtcdSession {
    client: Client,
    keys: SessionKeys,
    clock: Arc<dyn Clock>,
    /// How long one answer may take.
    limit: Duration,
    keep_alive: KeepAlive,
    /// How long a look at the lease's keys may take. It goes beside the renewal, whose answer must not be lost for want of
    /// this one's: core waits two ninths of the TTL for both, and `limit` at most.
    look_limit: Duration,
    resolver: Resolver,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The revision of the session key that claims are conditional on.
    session_revision: i64,
    /// The claims that are at the store, and the revisions at which their keys were made.
    placed: HashMap<ClaimId, i64>,
    spent: SpentClaims,
}

impl EtcdSession {
    /// The session of a lease whose session key was put at this revision.
    pub(crate) fn new(
        client: Client,
        keys: SessionKeys,
        session_revision: i64,
        ttl: Duration,
        limit: Duration,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let state = State { session_revision, placed: HashMap::new(), spent: SpentClaims::default() };
        Self {
            client,
            keys,
            clock,
            limit,
            look_limit: (limit / 2).min(ttl / 9),
            keep_alive: KeepAlive::default(),
            resolver: Resolver::default(),
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The revision of the session key under which a claim may be sent.
    fn ticket(&self, id: ClaimId) -> Result<i64, BackendError> {
        let state = self.state();
        if state.spent.contains(id) {
            return Err(BackendError::refused("the claim was found not to be at the store: its id is spent"));
        }
        Ok(state.session_revision)
    }

    /// Notes that the session key was put anew.
    fn session_moved(&self, revision: i64) {
        let mut state = self.state();
        // Answers may overtake each other.
        state.session_revision = state.session_revision.max(revision);
    }

    fn place(&self, id: ClaimId, created: i64) {
        self.state().placed.insert(id, created);
    }

    /// Looks how far a claim has come that stands in the queue.
    async fn look(&self, claim: &ClaimRef, created: i64) -> Result<ClaimReply, BackendError> {
        let latest = self.keys.layout.latest(&claim.name, 2, created);
        let look = self.client.call(latest).await.map_err(only_read)?;
        let own = self.keys.claim(claim);
        if !look.kvs.first().is_some_and(|kv| kv.key == own && kv.create_revision == created) {
            // Somebody removed the key, and with it our place.
            self.state().placed.remove(&claim.id);
            return Ok(ClaimReply::Busy(Busy::retry_after(SOON)));
        }
        Ok(match look.kvs.get(1) {
            Some(ahead) => ClaimReply::Waiting(behind(ahead)),
            // The revision of this look and not of the key: whoever held the lock meanwhile may have got tokens since.
            None => ClaimReply::Granted(granted(look.revision())?),
        })
    }

    /// Which of these claims the store no longer has.
    async fn missing(&self, claims: &[ClaimRef]) -> Result<Vec<ClaimId>, BackendError> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        let request = LeaseTimeToLiveRequest { id: self.keys.lease, keys: true };
        let listed: HashSet<Vec<u8>> =
            self.client.look(request).await.map_err(only_read)?.keys.into_iter().collect();
        let suspects: Vec<_> = claims
            .iter()
            .map(|claim| (claim.id, self.keys.claim(claim)))
            .filter(|(_, key)| !listed.contains(key))
            .collect();
        let mut missing = Vec::new();
        // The list is the leader's memory, which may not have seen yet what another member has answered: read them.
        for suspects in suspects.chunks(BATCH) {
            let ops = suspects.iter().map(|(_, key)| range(look_at(key.clone()))).collect();
            let look = self.client.look(txn(Vec::new(), ops, Vec::new())).await.map_err(only_read)?;
            let state = self.state();
            for (at, (id, _)) in suspects.iter().enumerate() {
                let made = look.found(at).first().map(|kv| kv.create_revision);
                if made.is_none() || made != state.placed.get(id).copied() {
                    missing.push(*id);
                }
            }
        }
        Ok(missing)
    }
}

#[async_trait]
impl Session for EtcdSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let Mode::Exclusive = request.mode else {
            return Err(BackendError::refused("etcd knows no such mode of a lock in this version"));
        };
        let claim = &request.claim;
        let placed = self.state().placed.get(&claim.id).copied();
        if let Some(created) = placed {
            return self.look(claim, created).await;
        }
        loop {
            let session_revision = self.ticket(claim.id)?;
            let mut compare = vec![self.keys.session_is_at(session_revision)];
            let mut ops = Vec::new();
            match request.patience {
                Patience::Try => compare.push(self.keys.layout.is_free(&claim.name)),
                // Before the put: the latest claim so far is the one ahead of ours.
                Patience::Queue => ops.push(range(self.keys.layout.latest(&claim.name, 1, 0))),
            }
            ops.push(Op::Put(PutRequest {
                key: self.keys.claim(claim),
                value: request.holder.to_json().into_bytes(),
                lease: self.keys.lease,
            }));
            let otherwise = vec![range(look_at(self.keys.session()))];
            let done = self.client.call(txn(compare, ops, otherwise)).await?;
            if done.succeeded {
                let created = done.revision();
                self.place(claim.id, created);
                let ahead = match request.patience {
                    Patience::Try => None,
                    Patience::Queue => done.found(0).first(),
                };
                return Ok(match ahead {
                    Some(ahead) => ClaimReply::Waiting(behind(ahead)),
                    None => ClaimReply::Granted(granted(created)?),
                });
            }
            let Some(session) = done.found(0).first() else {
                return Err(BackendError::session_gone(
                    "the session's key is gone: its lease ran out or was revoked",
                ));
            };
            if session.mod_revision == session_revision {
                return Ok(ClaimReply::Busy(Busy::retry_after(self.limit)));
            }
            if session.mod_revision < session_revision {
                return Err(BackendError::session_gone(
                    "etcd went back to an earlier state: it was restored from a backup",
                ));
            }
            // Certainly not executed, and for no reason of the lock: somebody asked about another claim meanwhile.
            self.session_moved(session.mod_revision);
        }
    }

    async fn wait(&self, _: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        match cookie.get::<Seen>() {
            Some(ahead) => watch::gone(&self.client, ahead, self.limit).await,
            // Who is ahead is not known yet.
            None => Ok(()),
        }
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        let since = self.clock.now();
        let look = tokio::time::timeout(self.look_limit, self.missing(claims));
        let (renewed, missing) =
            futures_util::future::join(self.keep_alive.renew(&self.client, self.keys.lease), look).await;
        let seconds = u64::try_from(renewed?).unwrap_or(0);
        if seconds == 0 {
            return Ok(Renewed::session(Renewal::Gone));
        }
        let lease = Lease::new(since, Duration::from_secs(seconds));
        let renewed = Renewed::session(Renewal::Extended(lease));
        // The lease is renewed, whatever became of the look: the next renewal looks again.
        let missing = match missing {
            Ok(Ok(missing)) => missing,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the claims of a session were not looked at");
                Vec::new()
            }
            Err(_) => Vec::new(),
        };
        Ok(missing.into_iter().fold(renewed, Renewed::gone))
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        let placed = self.state().placed.get(&claim.id).copied();
        if let Some(created) = placed {
            // The put was answered. What was not is a look or a deletion, which cannot make a key: reading it is proof.
            return Ok(match self.look(claim, created).await.map_err(not_answered)? {
                ClaimReply::Granted(grant) => Resolution::Granted(grant),
                ClaimReply::Waiting(ahead) => Resolution::Waiting(ahead),
                ClaimReply::Busy(_) => Resolution::Absent,
            });
        }
        // Before the transaction is sent: from here on nothing of this claim is.
        self.state().spent.insert(claim.id);
        let moved = |revision| self.session_moved(revision);
        let found =
            self.resolver.resolve(&self.client, &self.keys, claim, moved).await.map_err(not_answered)?;
        let Some(created) = found.created else { return Ok(Resolution::Absent) };
        self.place(claim.id, created);
        Ok(if found.is_first {
            Resolution::Granted(granted(found.revision)?)
        } else {
            Resolution::Waiting(Cookie::none())
        })
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        // Nothing is ever owed here, so `unpaid` is zero.
        let claim = &request.claim;
        let key = self.keys.claim(claim);
        let created = self.state().placed.get(&claim.id).copied();
        // P7: the key that was made for this claim, and not one that a hand has put in its place.
        let compare = created.map(|created| created_at(key.clone(), created)).into_iter().collect();
        let done = self.client.call(txn(compare, vec![delete(key)], Vec::new())).await?;
        self.state().placed.remove(&claim.id);
        Ok(if deleted(&done) { Released::Done } else { Released::NotFound })
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        let look = self.client.look(self.keys.layout.first(name)).await.map_err(only_read)?;
        Ok(look.kvs.first().map(holder))
    }

    async fn close(&self, _: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        self.keep_alive.end();
        // Deletes every key that was put with the lease, those of the claims that leave among them; and what is put late
        // fails for want of it.
        match self.client.call(LeaseRevokeRequest { id: self.keys.lease }).await {
            Err(error) if error.kind() != ErrorKind::SessionGone => Err(error),
            _ => Ok(()),
        }
    }
}

fn granted(revision: i64) -> Result<Grant, BackendError> {
    let token = u64::try_from(revision).map_err(|_| {
        BackendError::unknown(format!(
            "etcd answered with revision {revision}, which cannot be: look at its log"
        ))
    })?;
    Ok(Grant::new(FencingToken::new(token)))
}

fn behind(ahead: &KeyValue) -> Cookie {
    Cookie::new(Seen { key: ahead.key.clone(), created: ahead.create_revision })
}

fn deleted(done: &TxnResponse) -> bool {
    done.responses
        .iter()
        .any(|response| matches!(&response.response, Some(Did::Delete(delete)) if delete.deleted > 0))
}

/// Who put a key. Those of other tools have no value, and are shown by their lease.
fn holder(kv: &KeyValue) -> Holder {
    if kv.value.is_empty() {
        return Holder::from_json(&format!("lease {:x}", kv.lease));
    }
    Holder::from_json(&String::from_utf8_lossy(&kv.value))
}

/// That the server refuses the question, as it does while its disk is full, says nothing of the claim; and it is no reason to
/// give up locks whose lease goes on. Core asks again for as long as may be.
fn not_answered(error: BackendError) -> BackendError {
    if error.kind() == ErrorKind::Refused {
        BackendError::unavailable(error.to_string()).with_source(error)
    } else {
        error
    }
}

/// A request that only reads changes nothing, whatever became of it.
fn only_read(error: BackendError) -> BackendError {
    if error.kind() == ErrorKind::Unknown {
        BackendError::unavailable(error.to_string()).with_source(error)
    } else {
        error
    }
}
