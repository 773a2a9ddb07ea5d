//! What ZooKeeper alone can do to its clients, on real servers: followers and leaders that are cut off while they go on
//! serving, members that die and freeze, other people's recipes in the same queue, counted requests, users and certificates.
//! The suite that every backend passes is in `conformance-tests/tests/zk.rs`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod budget;
mod hands;
mod interop;
mod late;
mod lease;
mod members;
mod refusals;
mod rollover;
mod security;
mod setting;
mod wire;
