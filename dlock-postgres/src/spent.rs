//! Claims that are given up for good.

use std::collections::{HashSet, VecDeque};

use dlock_core::ClaimId;

/// How many are remembered.
const CAPACITY: usize = 10_000;

/// The claims of which was said last that they are not at the server.
#[derive(Default)]
pub(crate) struct Spent {
    ids: HashSet<ClaimId>,
    order: VecDeque<ClaimId>,
}

impl Spent {
    pub(crate) fn contains(&self, id: ClaimId) -> bool {
        self.ids.contains(&id)
    }

    pub(crate) fn insert(&mut self, id: ClaimId) {
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
        let mut spent = Spent::default();
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
