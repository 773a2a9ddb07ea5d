//! Nodes at which a claim that is held may yet be granted, and is then released again.
//!
//! A claim is won by the answers of a majority. A GRANT that a frozen node has not answered by then runs when the node
//! thaws, perhaps after the lock was released for good, and would keep others from it for a whole lease. So a RELEASE
//! follows it on the same connection. A renewal that comes between the two must not be counted: the key that it extends
//! is about to go.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use dlock_core::{ClaimId, ClaimRef};

use crate::wakes::locked;

/// By claim, the nodes that do not count.
#[derive(Debug, Default)]
pub(crate) struct Strays(Mutex<HashMap<ClaimId, Vec<usize>>>);

impl Strays {
    /// To be called before the claim is renewed for the first time.
    pub(crate) fn add(&self, claim: ClaimId, nodes: &[usize]) {
        if !nodes.is_empty() {
            locked(&self.0).insert(claim, nodes.to_vec());
        }
    }

    /// The node has answered: either the grant, which then stays, or the release behind it on the same connection.
    pub(crate) fn settled(&self, claim: ClaimId, node: usize) {
        let mut strays = locked(&self.0);
        if let Some(nodes) = strays.get_mut(&claim) {
            nodes.retain(|&other| other != node);
            if nodes.is_empty() {
                strays.remove(&claim);
            }
        }
    }

    /// The claim is renewed no more.
    pub(crate) fn forget(&self, claims: &[ClaimRef]) {
        let mut strays = locked(&self.0);
        for claim in claims {
            strays.remove(&claim.id);
        }
    }

    /// By position in `claims`, the nodes that do not count. To be called before a renewal is sent: what is settled
    /// while it is under way may have been settled behind it.
    pub(crate) fn of(&self, claims: &[ClaimRef]) -> HashSet<(usize, usize)> {
        let strays = locked(&self.0);
        if strays.is_empty() {
            return HashSet::new();
        }
        let nodes = |(at, claim): (usize, &ClaimRef)| {
            strays.get(&claim.id).into_iter().flatten().map(move |node| (at, *node)).collect::<Vec<_>>()
        };
        claims.iter().enumerate().flat_map(nodes).collect()
    }
}

#[cfg(test)]
mod tests {
    use dlock_core::LockName;

    use super::*;

    #[test]
    fn a_node_does_not_count_until_it_has_answered() {
        let claim = |bits| ClaimRef { id: ClaimId::from_bits(bits), name: LockName::new("x").unwrap() };
        let (one, other) = (claim(1), claim(2));
        let strays = Strays::default();
        strays.add(other.id, &[0, 2]);
        let both = [one.clone(), other.clone()];
        assert_eq!(strays.of(&both), HashSet::from([(1, 0), (1, 2)]));
        strays.settled(other.id, 0);
        strays.settled(one.id, 0);
        assert_eq!(strays.of(&both), HashSet::from([(1, 2)]));
        strays.forget(&both);
        assert!(strays.of(&both).is_empty() && locked(&strays.0).is_empty());
    }
}
