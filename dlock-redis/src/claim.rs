//! Claiming: grants from all nodes at once, and agreement on a token.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    BackendError, Busy, ClaimRef, ClaimReply, ClaimRequest, Cookie, FencingToken, Grant, Lease,
};
use tokio::time::Instant;

use crate::error;
use crate::fanout::{Fanout, Pass};
use crate::group::Group;
use crate::node::Node;
use crate::quarantine;
use crate::replies::{CommitReply, GrantReply};
use crate::scripts::{COMMIT, Call, GRANT};
use crate::takeback::Undo;
use crate::tally::{Loss, Standing, Tally, Vote};
use crate::wakes::Heard;

/// What a waiter remembers of its try: what had been heard when it was sent; none if a release would not have been heard.
#[derive(Debug)]
pub(crate) struct Tried(pub(crate) Option<Heard>);

/// What became of a claim.
enum Outcome {
    /// A majority has this token.
    Won(u64),
    /// There is no majority for it, for the reason that the votes tell.
    Lost,
    /// A majority would agree on its token, if these nodes had not failed.
    Failed(Vec<(usize, BackendError)>),
}

/// Asked again no earlier than this after a key was to expire.
const AFTER_EXPIRY: Duration = Duration::from_millis(2);

impl Group {
    /// Asks for a lock, once.
    pub(crate) async fn claim(self: &Arc<Self>, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        self.check_open()?;
        let claim = request.claim.clone();
        let channel = self.keys.channel(&claim.name);
        // Both before the request is sent: a release after it is heard, and the lease is not counted too long.
        let heard = self.wakes.heard(&channel);
        let since = self.clock.now();
        let mut round = self.grants(&request);
        let undo = Undo::of(self, &claim, round.pass());
        let mut tally = Tally::new(self.nodes.len());
        let outcome = self.count(&claim, &mut round, &mut tally).await;
        if let Outcome::Won(token) = outcome {
            undo.disarm();
            self.leave(&claim, round, &tally);
            self.seen.note(&claim.name, token);
            self.wakes.no_split(&channel);
            let lease = Lease::new(since, self.figures.ttl);
            return Ok(ClaimReply::Granted(Grant::new(FencingToken::new(token)).lease(lease)));
        }
        self.hear_the_rest(&claim, &mut round, &mut tally).await;
        round.done();
        self.take_back(&claim, undo.pass(), &tally).await;
        undo.disarm();
        if let Outcome::Failed(failures) = outcome {
            return Err(self.failure(&failures));
        }
        let retry_after = match tally.loss() {
            Loss::Held(end) => {
                self.wakes.no_split(&channel);
                end.map_or(self.figures.ttl, |end| end + AFTER_EXPIRY)
            }
            Loss::Split(end) => {
                let pause = self.wakes.pause_after_split(&channel);
                end.map_or(pause, |end| pause.min(end + AFTER_EXPIRY))
            }
            Loss::Quarantined(nodes) => {
                let left = Duration::from_micros(tally.quarantine_left_us(&nodes));
                let named = nodes.iter().map(|(node, quarantine)| (&*self.nodes[*node], *quarantine));
                return Err(quarantine::error(named, left));
            }
            Loss::Failed(failures) => return Err(self.failure_of(&failures)),
        };
        Ok(ClaimReply::Busy(Busy::retry_after(retry_after).cookie(Cookie::new(Tried(heard)))))
    }

    fn grants(&self, request: &ClaimRequest) -> Fanout<Vote> {
        let name = &request.claim.name;
        let clock = request.holder.since_ms.saturating_mul(1000);
        let call = Arc::new(Call {
            keys: vec![self.keys.lock(name), self.keys.counter(name), self.keys.mark()],
            args: vec![
                request.claim.id.to_string(),
                self.figures.px.clone(),
                self.seen.next(name).max(clock).to_string(),
                self.figures.par.clone(),
                self.figures.wait.clone(),
                self.figures.reserve.clone(),
                self.figures.bucket.clone(),
                request.holder.to_json(),
            ],
            claims: 1,
        });
        let (limit, par) = (self.limit, self.figures.par.clone());
        self.ask(&self.nodes, self.pass(), move |node, pass| {
            let (call, par) = (Arc::clone(&call), par.clone());
            async move { grant(&node, &call, limit, &pass, &par).await }
        })
    }

    /// Counts the answers until the outcome is clear.
    async fn count(&self, claim: &ClaimRef, round: &mut Fanout<Vote>, tally: &mut Tally) -> Outcome {
        let sent = Instant::now();
        let mut patience = None;
        loop {
            match tally.standing() {
                Standing::Won(token) => return Outcome::Won(token),
                Standing::Lost => return Outcome::Lost,
                Standing::Disagreed => return self.agree(claim, tally).await,
                Standing::Enough => {
                    // A slow node may make them agree, which saves a round trip if it takes no longer than one.
                    let until = *patience.get_or_insert_with(|| Instant::now() + grace(sent.elapsed()));
                    let Ok(answer) = tokio::time::timeout_at(until, round.next()).await else {
                        round.pass().close();
                        return self.agree(claim, tally).await;
                    };
                    self.book(claim, tally, answer);
                }
                Standing::Open => {
                    let answer = round.next().await;
                    self.book(claim, tally, answer);
                }
            }
        }
    }

    /// Waits for nodes that have not answered a lost claim: a moment, since those that denied it too have nothing to release;
    /// and as long as each may take while they can still tell that the lock is held, which is no failure of the nodes that fail.
    async fn hear_the_rest(&self, claim: &ClaimRef, round: &mut Fanout<Vote>, tally: &mut Tally) {
        round.pass().close();
        let until = Instant::now() + PATIENCE;
        while !tally.is_complete() && !round.pass().unanswered().is_empty() {
            let answer = if tally.may_tell_more(round.pass().unanswered().len()) {
                round.next().await
            } else {
                let Ok(answer) = tokio::time::timeout_at(until, round.next()).await else { return };
                answer
            };
            self.book(claim, tally, answer);
        }
    }

    fn book(&self, claim: &ClaimRef, tally: &mut Tally, answer: Option<(usize, Result<Vote, BackendError>)>) {
        let (node, vote) = answer.expect("while votes are missing there are requests under way");
        let vote = vote.unwrap_or_else(Vote::Failed);
        match &vote {
            Vote::Granted(token) => self.seen.note(&claim.name, *token),
            Vote::Denied(denial) => self.seen.note(&claim.name, denial.counter),
            Vote::Quarantined(_) | Vote::Failed(_) => {}
        }
        tally.book(node, vote);
    }

    /// Puts the greatest token to the nodes that granted a smaller one. It is won if a majority then has it.
    async fn agree(&self, claim: &ClaimRef, tally: &Tally) -> Outcome {
        let grants = tally.grants();
        let Some(token) = grants.iter().map(|(_, token)| *token).max() else { return Outcome::Lost };
        let (have, lack): (Vec<_>, Vec<_>) = grants.into_iter().partition(|(_, granted)| *granted == token);
        let lacking: Vec<_> = lack.iter().map(|(node, _)| Arc::clone(&self.nodes[*node])).collect();
        let name = &claim.name;
        let call = Arc::new(Call {
            keys: vec![self.keys.lock(name), self.keys.counter(name), self.keys.mark()],
            args: vec![claim.id.to_string(), token.to_string()],
            claims: 1,
        });
        let limit = self.limit;
        let mut round = self.ask(&lacking, self.pass(), move |node, pass| {
            let call = Arc::clone(&call);
            async move {
                let answer = node.run(&COMMIT, &[(*call).clone()], limit, &pass).await?.remove(0)?;
                CommitReply::read(&answer).ok_or_else(|| error::strange_answer(&node))
            }
        });
        let mut votes = have.len();
        let mut pending = lacking.len();
        let mut failures = Vec::new();
        while votes < self.quorum() && votes + failures.len() + pending >= self.quorum() {
            let Some((node, answer)) = round.next().await else { break };
            pending -= 1;
            match answer {
                Ok(CommitReply::Ok) => votes += 1,
                Ok(CommitReply::Lost | CommitReply::Stale) => {}
                Err(failure) => failures.push((node, failure)),
            }
        }
        round.done();
        if votes >= self.quorum() {
            Outcome::Won(token)
        } else if votes + failures.len() >= self.quorum() {
            Outcome::Failed(failures)
        } else {
            Outcome::Lost
        }
    }
}

/// One GRANT, as a vote.
async fn grant(
    node: &Arc<Node>,
    call: &Call,
    limit: Duration,
    pass: &Pass,
    par: &str,
) -> Result<Vote, BackendError> {
    let answer = node.run(&GRANT, std::slice::from_ref(call), limit, pass).await?.remove(0)?;
    let reply = GrantReply::read(&answer).ok_or_else(|| error::strange_answer(node))?;
    match reply {
        GrantReply::Granted(token) => Ok(Vote::Granted(token)),
        GrantReply::Denied(denial) => Ok(Vote::Denied(denial)),
        GrantReply::Quarantined(quarantine) => Ok(Vote::Quarantined(quarantine)),
        GrantReply::Replica(master) => Err(node.not_the_master(&master)),
        GrantReply::Mismatch(theirs) => Err(quarantine::mismatch(&**node, &theirs, par)),
        GrantReply::LeaseTooLong => Err(BackendError::refused(format!(
            "{node} takes no lease as long as this one: raise restart_delay for all clients, or take a shorter TTL"
        ))),
        GrantReply::Damaged(key) => Err(BackendError::refused(format!(
            "the key {key:?} at {node} holds something that dlock did not write: remove it if nobody needs it, or use \
             another prefix"
        ))),
        GrantReply::Blind(field) => Err(error::blind(node, &field)),
        GrantReply::OutOfRange => Err(BackendError::refused(format!(
            "the tokens of {node} have reached 2^53: is its clock centuries ahead?"
        ))),
    }
}

/// How long the rest is waited for when a majority took `elapsed`.
pub(crate) fn grace(elapsed: Duration) -> Duration {
    elapsed.clamp(Duration::from_millis(2), PATIENCE)
}

/// How long the rest is waited for at most.
const PATIENCE: Duration = Duration::from_millis(20);
