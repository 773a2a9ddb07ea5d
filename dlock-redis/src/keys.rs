//! What dlock calls its keys and channels.

use dlock_core::LockName;

/// How many counters there are. Names share them by a stable hash, so their number does not grow with the names.
pub(crate) const STRIPES: u64 = 1024;

/// The keys of one prefix.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
}

impl Keys {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// The key that holds the lock.
    pub(crate) fn lock(&self, name: &LockName) -> String {
        format!("{}lock:{}", self.prefix, name.encoded())
    }

    /// The counter that the lock's tokens are drawn from.
    pub(crate) fn counter(&self, name: &LockName) -> String {
        format!("{}fence:{}", self.prefix, stripe(name))
    }

    /// The mark of a node.
    pub(crate) fn mark(&self) -> String {
        format!("{}mark", self.prefix)
    }

    /// The channel on which a release is told.
    pub(crate) fn channel(&self, name: &LockName) -> String {
        format!("{}wake:{}", self.prefix, name.encoded())
    }

    /// The pattern that all keys and channels fit, for an ACL rule.
    pub(crate) fn pattern(&self) -> String {
        format!("{}*", self.prefix)
    }
}

/// Which of the [`STRIPES`] counters is a name's.
pub(crate) fn stripe(name: &LockName) -> usize {
    usize::try_from(name.stable_hash() % STRIPES).expect("a remainder below 1024 fits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_pinned() {
        let keys = Keys::new("dlock:");
        let name = LockName::new("orders/42").unwrap();
        assert_eq!(keys.lock(&name), "dlock:lock:orders%2F42");
        assert_eq!(keys.counter(&name), "dlock:fence:1007");
        assert_eq!(keys.mark(), "dlock:mark");
        assert_eq!(keys.channel(&name), "dlock:wake:orders%2F42");
        assert_eq!(keys.pattern(), "dlock:*");
    }
}
