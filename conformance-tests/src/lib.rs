#![doc = include_str!("../README.md")]

mod case;
pub mod cases;
pub mod contest;
pub mod fixture;
pub mod fixtures;
pub mod history;
pub mod patience;
pub mod sabotage;
pub mod simulation;
pub mod worker;

pub use case::{Case, RunCase, cases, nothing_is_left, process_cases, run, test};
pub use fixture::{Client, ClientClock, Fixture, Profile, Setup, Time};
