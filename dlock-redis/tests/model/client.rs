//! A client: its claim, the votes on it, and its hold. The rules are those of `claim.rs`, `tally.rs` and `batch.rs`.

use crate::scenario::NODES;
use crate::server::{Time, Token};
use crate::variant::Variant;

/// What a client is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    /// GRANT was sent to all nodes.
    Asking,
    /// COMMIT was sent to the nodes that granted less.
    Agreeing,
    /// It holds the lock until this time, if that is not past.
    Holding(Time),
}

/// What a node said to GRANT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Vote {
    None,
    Granted(Token),
    Refused,
}

/// A client, with its latest claim.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Client {
    pub(crate) phase: Phase,
    pub(crate) nonce: u16,
    pub(crate) name: usize,
    /// When its requests were sent.
    pub(crate) began: Time,
    pub(crate) proposal: Token,
    /// The greatest token of all acquisitions of the name that were complete then.
    pub(crate) before: Token,
    votes: [Vote; NODES],
    /// What the nodes are to agree on.
    pub(crate) token: Token,
    /// Nodes that have agreed, as bits.
    agreed: u8,
    /// The greatest counter it was ever told.
    pub(crate) seen: Token,
    /// The renewal under way: its number, when it was sent, and where it was done. Zero: none.
    pub(crate) renewal: u8,
    pub(crate) renewal_began: Time,
    renewed: u8,
    renewals: u8,
}

/// What follows from a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Open,
    Won(Token),
    /// No majority can grant any more.
    Lost,
}

impl Client {
    pub(crate) fn new() -> Self {
        Self {
            phase: Phase::Idle,
            nonce: 0,
            name: 0,
            began: 0,
            proposal: 0,
            before: 0,
            votes: [Vote::None; NODES],
            token: 0,
            agreed: 0,
            seen: 0,
            renewal: 0,
            renewal_began: 0,
            renewed: 0,
            renewals: 0,
        }
    }

    /// Begins another claim.
    pub(crate) fn claim(&mut self, nonce: u16, name: usize, now: Time, proposal: Token, before: Token) {
        *self = Self {
            phase: Phase::Asking,
            nonce,
            name,
            began: now,
            proposal,
            before,
            seen: self.seen,
            ..Self::new()
        };
    }

    /// Whether it holds the lock for certain.
    pub(crate) fn holds(&self, now: Time) -> bool {
        matches!(self.phase, Phase::Holding(until) if now < until)
    }

    /// The lease has ended, which is final.
    pub(crate) fn notice(&mut self, now: Time) {
        if matches!(self.phase, Phase::Holding(until) if now >= until) {
            self.phase = Phase::Idle;
        }
    }

    fn granted(&self) -> impl Iterator<Item = (usize, Token)> + '_ {
        self.votes.iter().enumerate().filter_map(|(node, vote)| match vote {
            Vote::Granted(token) => Some((node, *token)),
            Vote::None | Vote::Refused => None,
        })
    }

    /// Books a vote. Only the first of a node counts.
    pub(crate) fn vote(
        &mut self,
        node: usize,
        vote: Vote,
        nodes: usize,
        quorum: usize,
        variant: Variant,
    ) -> Outcome {
        if self.phase != Phase::Asking || self.votes[node] != Vote::None {
            return Outcome::Open;
        }
        self.votes[node] = vote;
        let Vote::Granted(token) = vote else { return self.denied(nodes, quorum) };
        let granted = self.granted().count();
        match variant {
            Variant::MaximumOfCounters if granted >= quorum => {
                Outcome::Won(self.granted().map(|(_, token)| token).max().unwrap_or(0))
            }
            Variant::OwnProposal if granted >= quorum => Outcome::Won(self.proposal),
            Variant::MaximumOfCounters
            | Variant::OwnProposal
            | Variant::PureBallot
            | Variant::PureBallotAndOne => Outcome::Open,
            _ => {
                let enough = if variant == Variant::QuorumLessOne { quorum - 1 } else { quorum };
                let equal = self.granted().filter(|(_, other)| *other == token).count();
                if equal >= enough { Outcome::Won(token) } else { Outcome::Open }
            }
        }
    }

    fn denied(&self, nodes: usize, quorum: usize) -> Outcome {
        let refused = self.votes.iter().filter(|vote| **vote == Vote::Refused).count();
        if nodes - refused < quorum { Outcome::Lost } else { Outcome::Open }
    }

    /// Takes the greatest token to those that granted a smaller one, and returns these as bits; if a majority granted.
    pub(crate) fn agree(&mut self, quorum: usize, variant: Variant) -> Option<u8> {
        if self.phase != Phase::Asking || self.granted().count() < quorum {
            return None;
        }
        let greatest = self.granted().map(|(_, token)| token).max()?;
        self.phase = Phase::Agreeing;
        self.token = greatest + Token::from(variant == Variant::PureBallotAndOne);
        let mut lacking = 0;
        self.agreed = 0;
        for (node, token) in self.votes.iter().enumerate().filter_map(|(node, vote)| match vote {
            Vote::Granted(token) => Some((node, *token)),
            Vote::None | Vote::Refused => None,
        }) {
            if token == self.token && !variant.is_ballot() {
                self.agreed |= 1 << node;
            } else {
                lacking |= 1 << node;
            }
        }
        Some(lacking)
    }

    /// Books a node's agreement.
    pub(crate) fn agreed(&mut self, node: usize, quorum: usize) -> Outcome {
        if self.phase != Phase::Agreeing {
            return Outcome::Open;
        }
        self.agreed |= 1 << node;
        if is_quorum(self.agreed, quorum) { Outcome::Won(self.token) } else { Outcome::Open }
    }

    /// Begins another renewal.
    pub(crate) fn renew(&mut self, now: Time) {
        self.renewals = self.renewals.wrapping_add(1).max(1);
        self.renewal = self.renewals;
        self.renewal_began = now;
        self.renewed = 0;
    }

    /// Books a node's renewal. The lease moves once a majority has renewed, and only if it is not over.
    pub(crate) fn renewed(&mut self, node: usize, now: Time, quorum: usize, lease: Time) -> bool {
        self.notice(now);
        let Phase::Holding(_) = self.phase else { return false };
        self.renewed |= 1 << node;
        if !is_quorum(self.renewed, quorum) {
            return false;
        }
        self.phase = Phase::Holding(self.renewal_began + lease);
        self.renewal = 0;
        true
    }
}

fn is_quorum(nodes: u8, quorum: usize) -> bool {
    usize::try_from(nodes.count_ones()).is_ok_and(|nodes| nodes >= quorum)
}
