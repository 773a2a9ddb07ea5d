//! What has passed through a proxy.

use std::collections::BTreeMap;

/// What has passed through a [`Proxy`](super::Proxy).
///
/// Bytes count when they are handed on, so that what a client has been answered is in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Connections that were accepted.
    pub connections: u64,
    /// Bytes from clients to the server.
    pub bytes_to_server: u64,
    /// Bytes from the server to clients.
    pub bytes_to_client: u64,
    /// How often a client asked and was then answered, summed over the connections. A batch that is sent before its first
    /// reply comes is one; with a few milliseconds of [`delay`](super::Proxy::delay) to the client, a long batch certainly is.
    pub round_trips: u64,
    /// Requests by name, as the protocol has them.
    pub requests: BTreeMap<String, u64>,
    /// Replies that [`drop_next_reply`](super::Proxy::drop_next_reply) has dropped.
    pub replies_dropped: u64,
}

impl Counts {
    /// How many requests have this name.
    pub fn request(&self, name: &str) -> u64 {
        self.requests.get(name).copied().unwrap_or(0)
    }

    /// How many requests there were in all.
    pub fn all_requests(&self) -> u64 {
        self.requests.values().sum()
    }
}
