//! The conformance suite of dlock: what every backend must do, as cases that run on any of them.
//!
//! Write a [`Fixture`] for your backend, and one line gives you a test for each [case](cases()):
//!
//! ```ignore
//! // tests/conformance.rs
//! use conformance_tests::{Time, conformance_suite};
//!
//! conformance_suite!(my_backend, Time::Real, MyFixture::start().await);
//! ```
//!
//! The fixture is made anew for each case. It gives independent clients, the operator's hand at the store, and a
//! [`Profile`] that says what may be expected; [`fixtures`] has those of this repository as examples. What happens to
//! requests on their way is the same for all backends: each client has [`Faults`](dlock_core::faults::Faults) of its
//! own. After each case the runner checks that nothing is left at the store.
//!
//! Cases that contend write down what they see in a [`History`](history::History), which is then searched for broken
//! promises. So does the [`simulation`], which plays random schedules of faults over the memory backend.

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
