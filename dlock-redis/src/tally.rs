//! What the nodes said to a claim, and what follows from it. No I/O and no clock.
//!
//! The rules are those of Redlock with agreement on a token: held with the same token on a majority of nodes. A greatest
//! token that fewer have is put to those that granted a smaller one (COMMIT). The maximum of independent counters without
//! that agreement would repeat tokens.

use std::time::Duration;

use dlock_core::{BackendError, ErrorKind};

use crate::replies::{Denial, Quarantine};

/// What one node said to a claim.
#[derive(Clone, Debug)]
pub(crate) enum Vote {
    Granted(u64),
    Denied(Denial),
    Quarantined(Quarantine),
    Failed(BackendError),
}

/// The votes so far, by node.
#[derive(Debug)]
pub(crate) struct Tally {
    votes: Vec<Option<Vote>>,
}

/// Where a claim stands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// More answers are needed.
    Open,
    /// A majority granted different tokens; another answer may still make them agree.
    Enough,
    /// A majority has this token.
    Won(u64),
    /// All have answered, a majority granted, and the tokens differ.
    Disagreed,
    /// No majority can grant any more.
    Lost,
}

/// Why a claim was lost.
#[derive(Debug)]
pub(crate) enum Loss<'a> {
    /// Somebody holds the lock; the lease is over after this, unless it is renewed.
    Held(Option<Duration>),
    /// Several contenders got some nodes each, and nobody a majority.
    Split(Option<Duration>),
    /// Enough nodes answer, and these grant nothing for now.
    Quarantined(Vec<(usize, &'a Quarantine)>),
    /// Too few nodes can be used.
    Failed(Vec<&'a BackendError>),
}

impl Tally {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { votes: vec![None; nodes] }
    }

    pub(crate) fn book(&mut self, node: usize, vote: Vote) {
        self.votes[node] = Some(vote);
    }

    /// Whether every node has answered.
    pub(crate) fn is_complete(&self) -> bool {
        self.votes.iter().all(Option::is_some)
    }

    pub(crate) fn quorum(&self) -> usize {
        self.votes.len() / 2 + 1
    }

    pub(crate) fn standing(&self) -> Standing {
        let granted = self.grants();
        let pending = self.votes.iter().filter(|vote| vote.is_none()).count();
        let agreed = granted
            .iter()
            .find(|(_, token)| granted.iter().filter(|(_, other)| other == token).count() >= self.quorum());
        if let Some((_, token)) = agreed {
            Standing::Won(*token)
        } else if granted.len() + pending < self.quorum() {
            Standing::Lost
        } else if pending == 0 {
            Standing::Disagreed
        } else if granted.len() >= self.quorum() {
            Standing::Enough
        } else {
            Standing::Open
        }
    }

    /// The nodes that granted, with their tokens.
    pub(crate) fn grants(&self) -> Vec<(usize, u64)> {
        let granted = |(node, vote): (usize, &Option<Vote>)| match vote {
            Some(Vote::Granted(token)) => Some((node, *token)),
            _ => None,
        };
        self.votes.iter().enumerate().filter_map(granted).collect()
    }

    pub(crate) fn has(&self, node: usize) -> bool {
        self.votes[node].is_some()
    }

    /// Whether a node that was asked may have granted, or may still: it has not said otherwise.
    pub(crate) fn is_open(&self, node: usize) -> bool {
        match &self.votes[node] {
            None => true,
            Some(Vote::Failed(failure)) => failure.kind() == ErrorKind::Unknown,
            Some(_) => false,
        }
    }

    /// Whether it is not known yet that somebody holds the lock, and `unanswered` more answers may say so.
    pub(crate) fn may_tell_more(&self, unanswered: usize) -> bool {
        let told =
            self.votes.iter().flatten().filter(|vote| matches!(vote, Vote::Granted(_) | Vote::Denied(_)));
        let told = told.count();
        told < self.quorum() && told + unanswered >= self.quorum()
    }

    /// Why the claim is lost. A claim that lost its ballot only was lost to contenders.
    pub(crate) fn loss(&self) -> Loss<'_> {
        let granted = self.grants().len();
        let denials: Vec<_> = self.votes.iter().flatten().filter_map(denial).collect();
        if granted + denials.len() >= self.quorum() {
            let same = |one: &Denial| denials.iter().filter(|other| other.nonce == one.nonce).count();
            let one_holder = denials.iter().any(|denial| same(denial) >= self.quorum());
            // So many of the nodes that denied must come free, and the first do so after this.
            let wanted = self.quorum().saturating_sub(granted).max(1);
            let mut ends: Vec<_> =
                denials.iter().map(|denial| denial.expires_ms.unwrap_or(u64::MAX)).collect();
            ends.sort_unstable();
            let end =
                ends.get(wanted - 1).filter(|end| **end != u64::MAX).map(|end| Duration::from_millis(*end));
            return if one_holder { Loss::Held(end) } else { Loss::Split(end) };
        }
        let quarantines: Vec<_> = self
            .votes
            .iter()
            .enumerate()
            .filter_map(|(node, vote)| match vote {
                Some(Vote::Quarantined(quarantine)) => Some((node, quarantine)),
                _ => None,
            })
            .collect();
        if !quarantines.is_empty() && granted + denials.len() + quarantines.len() >= self.quorum() {
            return Loss::Quarantined(quarantines);
        }
        Loss::Failed(
            self.votes
                .iter()
                .flatten()
                .filter_map(|vote| match vote {
                    Vote::Failed(failure) => Some(failure),
                    _ => None,
                })
                .collect(),
        )
    }

    /// When enough nodes are out of quarantine for a majority, in microseconds from now.
    pub(crate) fn quarantine_left_us(&self, quarantines: &[(usize, &Quarantine)]) -> u64 {
        let others = self
            .votes
            .iter()
            .flatten()
            .filter(|vote| matches!(vote, Vote::Granted(_) | Vote::Denied(_)))
            .count();
        let wanted = self.quorum().saturating_sub(others).max(1);
        let mut left: Vec<_> = quarantines.iter().map(|(_, quarantine)| quarantine.left_us).collect();
        left.sort_unstable();
        left.get(wanted - 1).or(left.last()).copied().unwrap_or_default()
    }
}

fn denial(vote: &Vote) -> Option<&Denial> {
    match vote {
        Vote::Denied(denial) => Some(denial),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied(nonce: &str, expires_ms: u64) -> Vote {
        Vote::Denied(Denial { counter: 1, expires_ms: Some(expires_ms), nonce: nonce.to_owned() })
    }

    fn quarantined(left_us: u64) -> Vote {
        Vote::Quarantined(Quarantine { till_us: left_us, left_us, why: String::new() })
    }

    fn failed() -> Vote {
        Vote::Failed(BackendError::unavailable("down"))
    }

    fn tally(nodes: usize, votes: Vec<Vote>) -> Tally {
        let mut tally = Tally::new(nodes);
        for (node, vote) in votes.into_iter().enumerate() {
            tally.book(node, vote);
        }
        tally
    }

    #[test]
    fn a_majority_of_equal_tokens_wins_at_once() {
        assert_eq!(tally(1, vec![Vote::Granted(7)]).standing(), Standing::Won(7));
        assert_eq!(tally(3, vec![Vote::Granted(7), Vote::Granted(7)]).standing(), Standing::Won(7));
        let mixed = vec![Vote::Granted(9), Vote::Granted(7), Vote::Granted(7)];
        assert_eq!(tally(3, mixed).standing(), Standing::Won(7));
        assert_eq!(tally(5, vec![Vote::Granted(7), Vote::Granted(7)]).standing(), Standing::Open);
    }

    #[test]
    fn tokens_that_differ_are_put_to_a_ballot() {
        assert_eq!(tally(3, vec![Vote::Granted(7), Vote::Granted(8)]).standing(), Standing::Enough);
        let all = vec![Vote::Granted(7), Vote::Granted(8), failed()];
        assert_eq!(tally(3, all).standing(), Standing::Disagreed);
        let all = vec![Vote::Granted(7), Vote::Granted(8), Vote::Granted(9)];
        assert_eq!(tally(3, all).standing(), Standing::Disagreed);
    }

    #[test]
    fn without_a_majority_it_is_lost_before_all_have_answered() {
        assert_eq!(tally(3, vec![failed(), denied("a", 5)]).standing(), Standing::Lost);
        assert_eq!(tally(3, vec![failed(), Vote::Granted(1)]).standing(), Standing::Open);
        assert_eq!(tally(1, vec![denied("a", 5)]).standing(), Standing::Lost);
    }

    #[test]
    fn more_is_heard_while_it_may_tell_that_the_lock_is_held() {
        let one = tally(3, vec![failed(), denied("a", 5)]);
        assert!(one.may_tell_more(1));
        assert!(!one.may_tell_more(0));
        assert!(!tally(3, vec![denied("a", 5), denied("a", 5)]).may_tell_more(1), "that is known");
        assert!(!tally(5, vec![failed(), failed(), denied("a", 5)]).may_tell_more(1), "too few are left");
        assert!(tally(5, vec![failed(), quarantined(9), denied("a", 5)]).may_tell_more(2));
    }

    #[test]
    fn a_holder_is_told_from_a_split_vote() {
        let held = tally(3, vec![denied("a", 30), denied("a", 20), Vote::Granted(1)]);
        let Loss::Held(Some(end)) = held.loss() else { panic!("{:?}", held.loss()) };
        assert_eq!(end, Duration::from_millis(20));
        let held = tally(3, vec![denied("a", 30), denied("a", 20), failed()]);
        let Loss::Held(Some(end)) = held.loss() else { panic!("{:?}", held.loss()) };
        assert_eq!(end, Duration::from_millis(30), "two must come free");
        let split = tally(3, vec![denied("a", 30), denied("b", 20), Vote::Granted(1)]);
        assert!(matches!(split.loss(), Loss::Split(Some(_))));
        let lost_ballot = tally(3, vec![Vote::Granted(1), Vote::Granted(2), Vote::Granted(3)]);
        assert!(matches!(lost_ballot.loss(), Loss::Split(None)));
    }

    #[test]
    fn a_quarantine_is_told_when_it_is_what_a_majority_waits_for() {
        let waiting = tally(3, vec![quarantined(9), quarantined(5), Vote::Granted(1)]);
        let Loss::Quarantined(found) = waiting.loss() else { panic!("{:?}", waiting.loss()) };
        assert_eq!(waiting.quarantine_left_us(&found), 5, "one of the two is enough");
        let waiting = tally(3, vec![quarantined(9), quarantined(5), failed()]);
        let Loss::Quarantined(found) = waiting.loss() else { panic!("{:?}", waiting.loss()) };
        assert_eq!(waiting.quarantine_left_us(&found), 9);
        assert!(matches!(tally(3, vec![quarantined(9), failed(), failed()]).loss(), Loss::Failed(_)));
        // Somebody holds the lock on the nodes that grant.
        assert!(matches!(
            tally(3, vec![denied("a", 1), denied("a", 1), quarantined(9)]).loss(),
            Loss::Held(_)
        ));
    }
}
