//! The tests of `postgres`, all of them, on PostgreSQL 15.

#[path = "../postgres/main.rs"]
mod suite;

// Where the tests expect it.
use suite::place;
