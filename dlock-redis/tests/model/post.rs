//! The messages under way between clients and nodes.

use crate::random::Random;
use crate::server::{Granted, Token};

/// Messages under way at most; more are lost.
const UNDER_WAY: usize = 40;

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Text {
    Grant(Token),
    Commit(Token),
    Renew(u8),
    Release,
    Granted(Granted),
    Committed(bool),
    Renewed(u8, bool),
}

/// A message between a client and a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Message {
    pub(crate) client: usize,
    pub(crate) node: usize,
    pub(crate) name: usize,
    pub(crate) nonce: u16,
    pub(crate) text: Text,
    /// Overtaken by most others.
    pub(crate) slow: bool,
}

/// The messages under way, oldest first.
#[derive(Clone, Debug)]
pub(crate) struct Post {
    messages: [Message; UNDER_WAY],
    count: usize,
}

impl Post {
    pub(crate) fn new() -> Self {
        let nothing = Message { client: 0, node: 0, name: 0, nonce: 0, text: Text::Release, slow: false };
        Self { messages: [nothing; UNDER_WAY], count: 0 }
    }

    pub(crate) fn send(&mut self, message: Message) {
        if self.count < UNDER_WAY {
            self.messages[self.count] = message;
            self.count += 1;
        }
    }

    pub(crate) fn get(&self, at: usize) -> Message {
        self.messages[at]
    }

    /// All of them.
    pub(crate) fn all(&self) -> &[Message] {
        &self.messages[..self.count]
    }

    /// Any message, more often one of the newest.
    pub(crate) fn any(&self, random: &mut Random) -> Option<usize> {
        match self.count {
            0 => None,
            count if random.one_in(3) => Some(random.index(count)),
            count => Some(count - 1 - random.index(count.min(6))),
        }
    }

    /// The oldest that is of this kind.
    pub(crate) fn oldest(&self, is: impl Fn(&Message) -> bool) -> Option<usize> {
        self.all().iter().position(is)
    }

    pub(crate) fn remove(&mut self, at: usize) {
        self.messages.copy_within(at + 1..self.count, at);
        self.count -= 1;
    }
}
