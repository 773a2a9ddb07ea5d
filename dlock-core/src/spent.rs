//! Claims that are given up for good.

use std::collections::{HashSet, VecDeque};

use crate::backend::ClaimId;

/// How many are remembered.
const CAPACITY: usize = 10_000;

/// For backends: the claims that somebody asked about last after they were not answered.
///
/// No further request may be sent for one of these, or the proof that nothing of it is at the store would not hold. The last
/// 10,000 are remembered, so that a session which lives for long does not grow by each answer that was lost; core does not
/// use an id again that was found absent.
#[derive(Debug, Default)]
pub struct SpentClaims {
    ids: HashSet<ClaimId>,
    order: VecDeque<ClaimId>,
}

impl SpentClaims {
    /// Whether this one is remembered.
    pub fn contains(&self, id: ClaimId) -> bool {
        self.ids.contains(&id)
    }

    /// Remembers one, in place of the oldest if there are too many.
    pub fn insert(&mut self, id: ClaimId) {
        if !self.ids.insert(id) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let mut spent = SpentClaims::default();
        let id = |number: usize| ClaimId::from_bits(number as u128);
        for number in 0..=CAPACITY {
            spent.insert(id(number));
            spent.insert(id(number));
        }
        assert!(!spent.contains(id(0)));
        assert!((1..=CAPACITY).all(|number| spent.contains(id(number))));
        assert_eq!(spent.ids.len(), spent.order.len());
    }
}
