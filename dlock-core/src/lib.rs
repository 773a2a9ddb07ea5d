//! Core of dlock.

mod backend;
mod clock;
mod error;
mod guarantees;
mod holder;
mod lease;
mod name;
mod token;
mod url;

pub use backend::*;
pub use clock::*;
pub use error::*;
pub use guarantees::*;
pub use holder::*;
pub use lease::*;
pub use name::*;
pub use token::*;
pub use url::*;
