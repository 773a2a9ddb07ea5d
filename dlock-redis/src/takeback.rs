//! Taking back what a claim was granted for nothing, or may yet be.

use std::sync::Arc;
use std::time::Duration;

use dlock_core::{BackendError, ClaimRef, ErrorKind};

use crate::fanout::{Fanout, Pass};
use crate::group::{Group, Telling};
use crate::node::Node;
use crate::scripts::{Call, RELEASE};
use crate::tally::{Tally, Vote};

impl Group {
    /// Releases what a lost claim was granted, before its loss is told. A node that has not answered yet is not waited
    /// for: the release follows the grant on the same connection.
    pub(crate) async fn take_back(self: &Arc<Self>, claim: &ClaimRef, pass: &Pass, tally: &Tally) {
        let granted: Vec<_> = tally.grants().iter().map(|(node, _)| *node).collect();
        // Also a grant whose answer came when nobody counted any more.
        let open: Vec<_> =
            (0..self.nodes.len()).filter(|&node| pass.was_sent(node) && tally.is_open(node)).collect();
        // A claim that had no majority was nobody's reason to wait. The claim's own session listens as well: told of
        // each vain try, it would ask again at once, and so would all others.
        let telling =
            if granted.len() + open.len() >= self.quorum() { Telling::Loud } else { Telling::Quiet };
        if !open.is_empty() {
            self.release_later(claim, &open, Pass::behind(pass), telling);
        }
        if granted.is_empty() {
            return;
        }
        let nodes: Vec<_> = granted.iter().map(|node| Arc::clone(&self.nodes[*node])).collect();
        let (calls, limit) = (self.releases([claim], telling), self.limit);
        let mut round = self.ask(&nodes, self.pass(), move |node, pass| {
            let calls = Arc::clone(&calls);
            async move { release(&node, &calls, limit, &pass).await }
        });
        let mut left = Vec::new();
        while let Some((node, outcome)) = round.next().await {
            if outcome.is_err() {
                left.push(node);
            }
        }
        if !left.is_empty() {
            self.release_later(claim, &left, Pass::behind(round.pass()), telling);
        }
    }

    /// Leaves the rest of a claim that is won to itself. A node that gives no answer may grant it at any time, also once
    /// the lock was released for good: a release follows there. It is none of those by which the claim is held.
    pub(crate) fn leave(self: &Arc<Self>, claim: &ClaimRef, mut round: Fanout<Vote>, tally: &Tally) {
        let pass = Arc::clone(round.pass());
        pass.close();
        let open: Vec<_> =
            (0..self.nodes.len()).filter(|&node| pass.was_sent(node) && tally.is_open(node)).collect();
        if open.is_empty() {
            return round.done();
        }
        self.strays.add(claim.id, &open);
        let (silent, pending): (Vec<_>, Vec<_>) = open.into_iter().partition(|&node| tally.has(node));
        if !silent.is_empty() {
            self.release_later(claim, &silent, Pass::behind(&pass), Telling::Quiet);
        }
        if pending.is_empty() {
            return round.done();
        }
        let (group, claim) = (Arc::clone(self), claim.clone());
        self.runtime.spawn(async move {
            while let Some((node, answer)) = round.next().await {
                match answer {
                    Err(failure) if failure.kind() == ErrorKind::Unknown => {
                        group.release_later(&claim, &[node], Pass::behind(round.pass()), Telling::Quiet);
                    }
                    _ => group.strays.settled(claim.id, node),
                }
            }
        });
    }

    /// Releases a claim at some nodes in the background, behind what is still under way on the same connections.
    fn release_later(self: &Arc<Self>, claim: &ClaimRef, nodes: &[usize], behind: Pass, telling: Telling) {
        let nodes: Vec<_> = nodes.iter().map(|node| Arc::clone(&self.nodes[*node])).collect();
        let (calls, limit) = (self.releases([claim], telling), self.limit);
        let again = self.pass();
        let (group, id) = (Arc::clone(self), claim.id);
        self.runtime.spawn(async move {
            let again = Arc::new(again);
            let mut round = group.ask(&nodes, behind, move |node, pass| {
                let (calls, again) = (Arc::clone(&calls), Arc::clone(&again));
                async move {
                    // Only behind the grant an answer proves that nothing comes of that any more.
                    let ordered = pass.link(node.index).is_some();
                    match release(&node, &calls, limit, &pass).await {
                        // The connection is gone; the grant may have been executed all the same.
                        Err(failure) if failure.kind() == ErrorKind::Unknown => {
                            release(&node, &calls, limit, &again).await.map(|()| false)
                        }
                        outcome => outcome.map(|()| ordered),
                    }
                }
            });
            while let Some((node, outcome)) = round.next().await {
                match outcome {
                    Ok(true) => group.strays.settled(id, node),
                    Ok(false) => {}
                    // It expires by itself: nobody renews it.
                    Err(error) => tracing::debug!(%error, "what a claim may have got was not released"),
                }
            }
        });
    }
}

/// One RELEASE of one claim.
async fn release(node: &Arc<Node>, calls: &[Call], limit: Duration, pass: &Pass) -> Result<(), BackendError> {
    node.run(&RELEASE, calls, limit, pass).await?.remove(0).map(drop)
}

/// P6: a claim whose future is dropped is released wherever it was asked for.
pub(crate) struct Undo<'a> {
    group: &'a Arc<Group>,
    claim: &'a ClaimRef,
    pass: Arc<Pass>,
    armed: bool,
}

impl<'a> Undo<'a> {
    /// Undoes what these requests do, unless it is disarmed.
    pub(crate) fn of(group: &'a Arc<Group>, claim: &'a ClaimRef, pass: &Arc<Pass>) -> Self {
        Self { group, claim, pass: Arc::clone(pass), armed: true }
    }

    pub(crate) fn pass(&self) -> &Pass {
        &self.pass
    }

    pub(crate) fn disarm(mut self) {
        self.armed = false;
    }
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        // From here on nothing more is sent, so what is released now is not granted later.
        self.pass.close();
        let nodes: Vec<_> = (0..self.group.nodes.len()).filter(|&node| self.pass.was_sent(node)).collect();
        if !nodes.is_empty() {
            // It may have had a majority, and others may wait for it.
            self.group.release_later(self.claim, &nodes, Pass::behind(&self.pass), Telling::Loud);
        }
    }
}
