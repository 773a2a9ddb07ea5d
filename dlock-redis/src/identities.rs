//! Which server each node is, so that one with two addresses does not vote twice.

use std::sync::{Mutex, OnceLock};

use crate::wakes::locked;

/// Which server each node turned out to be, for as long as a connection to it lasts: addresses may move.
#[derive(Debug)]
pub(crate) struct Identities {
    known: Mutex<Vec<Option<Known>>>,
    twins: OnceLock<(usize, usize)>,
}

#[derive(Debug)]
struct Known {
    run_id: String,
    /// The connection on which it said so.
    link: u64,
}

impl Identities {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { known: Mutex::new((0..nodes).map(|_| None).collect()), twins: OnceLock::new() }
    }

    /// Two nodes that turned out to be one server.
    pub(crate) fn twins(&self) -> Option<(usize, usize)> {
        self.twins.get().copied()
    }

    /// Books what a node said. Returns the other node that is the same server.
    pub(crate) fn book(&self, node: usize, run_id: &str, link: u64) -> Option<usize> {
        let mut known = locked(&self.known);
        let is_same = |known: &Option<Known>| known.as_ref().is_some_and(|known| known.run_id == run_id);
        let twin = (0..known.len()).find(|&other| other != node && is_same(&known[other]));
        match twin {
            Some(twin) => {
                self.twins.get_or_init(|| (twin, node));
            }
            None => known[node] = Some(Known { run_id: run_id.to_owned(), link }),
        }
        twin
    }

    /// A connection is gone, and with it what is known of what was at its other end.
    pub(crate) fn forget(&self, node: usize, link: u64) {
        locked(&self.known)[node].take_if(|known| known.link == link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_one_node_for_as_long_as_it_is_connected() {
        let identities = Identities::new(3);
        assert_eq!(identities.book(0, "a", 1), None);
        assert_eq!(identities.book(1, "b", 2), None);
        assert_eq!(identities.book(2, "a", 3), Some(0));
        assert_eq!(identities.twins(), Some((0, 2)));
        // An older connection ends when there is a newer one.
        assert_eq!(identities.book(0, "a", 4), None);
        identities.forget(0, 1);
        assert_eq!(identities.book(2, "a", 5), Some(0));
        identities.forget(0, 4);
        identities.forget(1, 2);
        assert_eq!(identities.book(0, "b", 6), None);
        assert_eq!(identities.book(1, "a", 7), None);
    }
}
