//! Requests about many claims at once: renewing and releasing them, by majority.

use std::collections::HashSet;
use std::sync::Arc;

use dlock_core::{BackendError, ClaimRef, ErrorKind, Lease, Released, Renewal, Renewed, Resolution};
use redis::Value;
use tokio::time::Instant;

use crate::claim::grace;
use crate::error;
use crate::fanout::Fanout;
use crate::group::{Group, Telling};
use crate::node::Node;
use crate::replies::{NotRenewed, flags};
use crate::scripts::{Call, RELEASE, RENEW, Script};

/// For each claim, how many nodes did what was asked, and at how many there was nothing to do it to.
struct Count {
    done: Vec<usize>,
    absent: Vec<usize>,
    /// How many nodes answered for all claims.
    complete: usize,
    failures: Vec<(usize, BackendError)>,
    /// What does not count as done, by claim and node.
    strays: HashSet<(usize, usize)>,
}

impl Group {
    /// Extends what is still ours on a majority of nodes.
    pub(crate) async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        self.check_open()?;
        let since = self.clock.now();
        let mut count = Count { strays: self.strays.of(claims), ..Count::new(claims.len()) };
        let mut round = self.run(&RENEW, self.renewals(claims));
        while let Some(answer) = round.next().await {
            count.book(answer);
            if (0..claims.len()).all(|at| self.verdict(&count, at).is_some()) {
                break;
            }
        }
        round.done();
        if !claims.is_empty() && (0..claims.len()).all(|at| self.verdict(&count, at).is_none()) {
            return Err(self.failure(&count.failures));
        }
        let renewal = |at: usize| match self.verdict(&count, at) {
            Some(true) => Renewal::Extended(Lease::new(since, self.figures.ttl)),
            // It can be on no majority any more, and no renewal makes a key anew.
            Some(false) => Renewal::Gone,
            None => Renewal::Unknown,
        };
        Ok(Renewed::claims(claims.iter().enumerate().map(|(at, claim)| (claim.id, renewal(at))).collect()))
    }

    /// Gives up a claim that may be held. It was held if a majority had it.
    pub(crate) async fn release(&self, claim: &ClaimRef) -> Result<Released, BackendError> {
        self.check_open()?;
        let count = self.release_all(std::slice::from_ref(claim)).await;
        match self.verdict(&count, 0) {
            Some(true) => Ok(Released::Done),
            Some(false) => Ok(Released::NotFound),
            None => Err(self.undecided(&count)),
        }
    }

    /// Removes a claim of which nothing is known. Once a majority does not have it, it cannot be held, and since nobody
    /// renews it, what a request on its way may still make is over within a lease.
    pub(crate) async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.check_open()?;
        let count = self.release_all(std::slice::from_ref(claim)).await;
        if count.complete >= self.quorum() { Ok(Resolution::Absent) } else { Err(self.undecided(&count)) }
    }

    /// Removes many claims.
    pub(crate) async fn release_many(&self, claims: &[ClaimRef]) -> Result<(), BackendError> {
        let count = self.release_all(claims).await;
        if claims.is_empty() || count.complete >= self.quorum() {
            return Ok(());
        }
        Err(self.undecided(&count))
    }

    async fn release_all(&self, claims: &[ClaimRef]) -> Count {
        let mut count = Count::new(claims.len());
        if claims.is_empty() {
            return count;
        }
        self.strays.forget(claims);
        let mut round = self.run(&RELEASE, self.releases(claims, Telling::Loud));
        let sent = Instant::now();
        let mut until = None;
        loop {
            let answer = match until {
                None => round.next().await,
                // The outcome is clear; a node that is a little slower is waited for, so that nothing is left there.
                Some(until) => match tokio::time::timeout_at(until, round.next()).await {
                    Ok(answer) => answer,
                    Err(_) => break,
                },
            };
            let Some(answer) = answer else { break };
            count.book(answer);
            let clear = (0..claims.len()).all(|at| self.verdict(&count, at).is_some());
            if until.is_none() && clear {
                until = Some(Instant::now() + grace(sent.elapsed()));
            }
        }
        round.done();
        count
    }

    fn run(&self, script: &'static Script, calls: Arc<Vec<Call>>) -> Fanout<Answers> {
        let limit = self.limit;
        self.ask(&self.nodes, self.pass(), move |node, pass| {
            let calls = Arc::clone(&calls);
            async move {
                let answers = node.run(script, &calls, limit, &pass).await?;
                let read = |(answer, call): (Result<Value, BackendError>, &Call)| {
                    let claims = call.claims;
                    (claims, answer.and_then(|value| read(&node, &value, claims)))
                };
                Ok(answers.into_iter().zip(calls.iter()).map(read).collect())
            }
        })
    }

    /// Whether a majority has done what was asked for a claim; none if that is open.
    fn verdict(&self, count: &Count, at: usize) -> Option<bool> {
        if count.done[at] >= self.quorum() {
            Some(true)
        } else if count.absent[at] > self.nodes.len() - self.quorum() {
            Some(false)
        } else {
            None
        }
    }

    /// Some nodes deleted a key and others did not answer, or none of them did.
    fn undecided(&self, count: &Count) -> BackendError {
        if count.failures.is_empty() {
            return BackendError::unknown("the nodes disagree about the claim");
        }
        let failure = self.failure(&count.failures);
        // Answers beside failures: whether the claim was held is not known, and asking again tells.
        if count.complete > 0 && !matches!(failure.kind(), ErrorKind::SessionGone) {
            return BackendError::unknown(failure.to_string());
        }
        failure
    }
}

/// One answer of RENEW or RELEASE, which is about so many claims.
fn read(node: &Node, value: &Value, claims: usize) -> Result<Vec<bool>, BackendError> {
    if let Some(flags) = flags(value).filter(|flags| flags.len() == claims) {
        return Ok(flags);
    }
    Err(match NotRenewed::read(value) {
        Some(NotRenewed::Quarantined) => BackendError::unavailable(format!(
            "{node} has taken over from another master, and renews nothing for as long as that one may still serve"
        )),
        Some(NotRenewed::Replica(master)) => node.not_the_master(&master),
        None => error::strange_answer(node),
    })
}

/// For each call how many claims it was about, and what became of each.
type Answers = Vec<(usize, Result<Vec<bool>, BackendError>)>;

impl Count {
    fn new(claims: usize) -> Self {
        Self {
            done: vec![0; claims],
            absent: vec![0; claims],
            complete: 0,
            failures: Vec::new(),
            strays: HashSet::new(),
        }
    }

    fn book(&mut self, (node, answers): (usize, Result<Answers, BackendError>)) {
        let answers = match answers {
            Ok(answers) => answers,
            Err(failure) => return self.failures.push((node, failure)),
        };
        let mut at = 0;
        let mut failed = None;
        for (claims, answer) in answers {
            match answer {
                Ok(flags) => {
                    for (offset, flag) in flags.into_iter().enumerate() {
                        let at = at + offset;
                        // P1: what a node is about to release is as good as gone.
                        let done = flag && !self.strays.contains(&(at, node));
                        let counts = if done { &mut self.done } else { &mut self.absent };
                        counts[at] += 1;
                    }
                }
                Err(failure) => failed = Some(failure),
            }
            at += claims;
        }
        match failed {
            Some(failure) => self.failures.push((node, failure)),
            None => self.complete += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_is_about_to_release_is_not_renewed() {
        let answers = || vec![(2, Ok(vec![true, true]))];
        let mut count = Count { strays: HashSet::from([(1, 2)]), ..Count::new(2) };
        count.book((0, Ok(answers())));
        count.book((2, Ok(answers())));
        assert_eq!((count.done, count.absent, count.complete), (vec![2, 1], vec![0, 1], 2));
    }
}
