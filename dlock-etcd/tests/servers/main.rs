//! What etcd alone can do to its clients, on real servers: members that die, freeze and lose each other, etcd's own tool in
//! the same queue, counted requests, certificates and users. The suite that every backend passes is in
//! `conformance-tests/tests/etcd.rs`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod budget;
mod hands;
mod interop;
mod late;
mod members;
mod security;
mod setting;
mod wire;
