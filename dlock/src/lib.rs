#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod connect;
mod error;
mod schemes;

pub use connect::{builder, connect};
#[doc(inline)]
pub use dlock_core::*;
/// The SQLite backend, for settings that a URL does not have.
#[cfg(feature = "sqlite")]
#[doc(no_inline)]
pub use dlock_sqlite as sqlite;
pub use error::ConnectError;
