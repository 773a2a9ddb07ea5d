//! The backend on real servers: what is PostgreSQL's own, beside the conformance suite.
//!
//! All of it runs on PostgreSQL 17, and by way of `postgres_15` on 15 too; see [`place::postgres`].

#![allow(clippy::unwrap_used, clippy::similar_names, reason = "tests, which look at locks")]

mod crashes;
mod inputs;
mod locks;
pub(crate) mod place;
mod poolers;
mod transactions;
mod traps;
mod wire;
