#![doc = include_str!("../README.md")]

mod backend;
mod clock;
mod driver;
mod error;
pub mod faults;
mod guarantees;
mod guard;
mod hold;
mod holder;
mod keeper;
mod lease;
mod lock;
mod manager;
pub mod memory;
mod metrics;
mod name;
mod queue;
mod shared;
mod spent;
mod token;
mod url;
mod watchlist;

pub use backend::*;
pub use clock::*;
pub use error::*;
pub use guarantees::*;
pub use guard::{LockGuard, ReleaseOutcome};
pub use holder::Holder;
pub use lease::{Lease, LossReason, margin};
pub use lock::Lock;
pub use manager::*;
pub use metrics::Metrics;
pub use name::*;
pub use spent::SpentClaims;
pub use token::*;
pub use url::*;
