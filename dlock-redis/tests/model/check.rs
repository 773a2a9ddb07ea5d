//! What is checked of every acquisition.

use std::fmt;

use crate::server::{NAMES, Token};

/// Acquisitions of one name whose tokens are remembered. Walks are shorter.
const REMEMBERED: usize = 48;

/// A promise that was broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// P1: both hold a lock for certain.
    TwoHold { first: usize, second: usize },
    /// P2: the token is no greater than that of an acquisition that was complete before this one began.
    NotGreater { token: Token, before: Token },
    /// P2: somebody had the token already.
    Twice { token: Token },
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TwoHold { first, second } => {
                write!(f, "client {first} and client {second} hold the lock at the same time")
            }
            Self::NotGreater { token, before } => {
                write!(f, "token {token}, although {before} was complete before its claim began")
            }
            Self::Twice { token } => write!(f, "token {token} a second time"),
        }
    }
}

/// The tokens that were given, by name.
#[derive(Clone, Debug)]
pub(crate) struct Tokens {
    given: [[Token; REMEMBERED]; NAMES],
    count: [usize; NAMES],
    greatest: [Token; NAMES],
}

impl Tokens {
    pub(crate) fn new() -> Self {
        Self { given: [[0; REMEMBERED]; NAMES], count: [0; NAMES], greatest: [0; NAMES] }
    }

    /// Those that were given, in their order.
    pub(crate) fn given(&self, name: usize) -> &[Token] {
        &self.given[name][..self.count[name]]
    }

    /// The greatest so far.
    pub(crate) fn greatest(&self, name: usize) -> Token {
        self.greatest[name]
    }

    /// Books an acquisition that is complete; `before` is the greatest token when its claim began.
    pub(crate) fn book(&mut self, name: usize, token: Token, before: Token) -> Result<(), Broken> {
        let count = self.count[name];
        if self.given(name).contains(&token) {
            return Err(Broken::Twice { token });
        }
        if count > 0 && before > 0 && token <= before {
            return Err(Broken::NotGreater { token, before });
        }
        if count < REMEMBERED {
            self.given[name][count] = token;
            self.count[name] += 1;
        }
        self.greatest[name] = self.greatest[name].max(token);
        Ok(())
    }
}
