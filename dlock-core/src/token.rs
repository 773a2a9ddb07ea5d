//! Fencing tokens.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A number that grows with every acquisition of one lock name.
///
/// Send it along with every write that the lock protects, and let the resource refuse a token smaller than the
/// greatest it has seen. Then a holder that was paused past its lease cannot undo the work of its successor, which no
/// lock alone can prevent (Martin Kleppmann, "How to do distributed locking", 2016).
///
/// Tokens of one name are unique and strictly increasing; they have gaps. Tokens of different names or of different
/// stores say nothing about each other. Serialises as a plain number.
///
/// # Examples
///
/// ```
/// use dlock_core::FencingToken;
///
/// let earlier = FencingToken::new(41);
/// let later = FencingToken::new(42);
/// assert!(earlier < later);
/// assert_eq!(later.to_string(), "42");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FencingToken(u64);

impl FencingToken {
    /// Wraps a number that a store handed out.
    pub const fn new(token: u64) -> Self {
        Self(token)
    }

    /// The number, to be stored with a write or compared in SQL.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl From<FencingToken> for u64 {
    fn from(token: FencingToken) -> u64 {
        token.0
    }
}
