//! How a proxy is to treat its connections now.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Direction, Then};

#[derive(Clone, Debug)]
pub(super) struct Rules {
    pub(super) target: SocketAddr,
    pub(super) accept: Accept,
    /// That of connections which are accepted now.
    pub(super) generation: u64,
    /// Connections of earlier generations are to be reset.
    pub(super) reset_before: u64,
    /// Connections of earlier generations are to be reset on the client's side only.
    pub(super) abandoned_before: u64,
    pub(super) to_server: Link,
    pub(super) to_client: Link,
    /// Taken by the connection that it hits.
    pub(super) drop: Option<DropReply>,
    /// The proxy is gone.
    pub(super) closed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accept {
    Serve,
    Refuse,
    Hang,
}

/// One direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) open: bool,
    pub(super) delay: Duration,
    /// Bytes per second.
    pub(super) limit: Option<u32>,
}

#[derive(Clone, Debug)]
pub(super) struct DropReply {
    /// The name that the meter gives the request, or any.
    pub(super) request: Option<String>,
    pub(super) then: Then,
}

impl DropReply {
    pub(super) fn hits(&self, requests: &[String]) -> bool {
        self.request.as_ref().is_none_or(|request| requests.contains(request))
    }
}

impl Rules {
    pub(super) fn new(target: SocketAddr) -> Self {
        let (accept, link) = (Accept::Serve, Link::NORMAL);
        Self {
            target,
            accept,
            generation: 0,
            reset_before: 0,
            abandoned_before: 0,
            to_server: link,
            to_client: link,
            drop: None,
            closed: false,
        }
    }

    /// Resets all connections that there are.
    pub(super) fn reset(&mut self) -> u64 {
        self.generation += 1;
        self.reset_before = self.generation;
        self.generation
    }

    /// Resets all connections that there are on the client's side.
    pub(super) fn abandon(&mut self) -> u64 {
        self.generation += 1;
        self.abandoned_before = self.generation;
        self.generation
    }

    pub(super) fn clear(&mut self) {
        let Self { target, generation, reset_before, abandoned_before, .. } = *self;
        // What was abandoned ends for the server too.
        let reset_before = reset_before.max(abandoned_before);
        *self = Self { generation, reset_before, abandoned_before, ..Self::new(target) };
    }

    pub(super) fn links(&mut self, direction: Direction, change: impl Fn(&mut Link)) {
        if direction != Direction::ToClient {
            change(&mut self.to_server);
        }
        if direction != Direction::ToServer {
            change(&mut self.to_client);
        }
    }
}

impl Link {
    const NORMAL: Self = Self { open: true, delay: Duration::ZERO, limit: None };
}
