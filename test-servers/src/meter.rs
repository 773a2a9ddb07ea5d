//! Finds the requests in a stream of bytes.

mod frames;
mod http2;
mod postgres;
mod resp;
mod zookeeper;

use std::fmt;

/// What a [`Proxy`](crate::Proxy) counts as a request, and what it calls it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// Unknown: bytes are all there is.
    Any,
    /// Redis and Valkey: commands by name, in capital letters.
    Redis,
    /// gRPC, thus etcd: calls as `HEADERS`, and `DATA` for each frame of messages from the client, which also tells
    /// requests on a long-lived stream.
    Http2,
    /// ZooKeeper: operations, as `create` and `multi`; `connect`.
    ZooKeeper,
    /// PostgreSQL: messages of clients by their names in its documentation, as `Query` and `Execute`.
    Postgres,
}

impl Protocol {
    pub(crate) fn meter(self) -> Box<dyn Meter> {
        match self {
            Self::Any => Box::new(Any),
            Self::Redis => Box::new(resp::Resp::default()),
            Self::Http2 => Box::new(http2::Http2::default()),
            Self::ZooKeeper => Box::new(frames::Cutter::new(zookeeper::ZooKeeper::default())),
            Self::Postgres => Box::new(frames::Cutter::new(postgres::Postgres::default())),
        }
    }
}

/// Follows one connection. Bytes come as they were read, cut anywhere.
pub(crate) trait Meter: Send + fmt::Debug {
    /// Adds the names of the requests that these bytes have begun. Says whether the client asks anything by them.
    fn to_server(&mut self, bytes: &[u8], requests: &mut Vec<String>) -> bool;

    /// Says whether these bytes may answer anything.
    fn to_client(&mut self, bytes: &[u8]) -> bool {
        let _ = bytes;
        true
    }
}

#[derive(Debug)]
struct Any;

impl Meter for Any {
    fn to_server(&mut self, _: &[u8], _: &mut Vec<String>) -> bool {
        true
    }
}
