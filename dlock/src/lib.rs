#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod connect;
mod error;
mod schemes;

pub use connect::{builder, connect};
#[doc(inline)]
pub use dlock_core::*;
/// The etcd backend, for settings that a URL does not have.
#[cfg(feature = "etcd")]
#[doc(no_inline)]
pub use dlock_etcd as etcd;
/// The PostgreSQL backend, for settings that a URL does not have, locks inside a transaction, and fenced writes.
#[cfg(feature = "postgres")]
#[doc(no_inline)]
pub use dlock_postgres as postgres;
/// The Redis backend, for settings that a URL does not have.
#[cfg(feature = "redis")]
#[doc(no_inline)]
pub use dlock_redis as redis;
/// The SQLite backend, for settings that a URL does not have.
#[cfg(feature = "sqlite")]
#[doc(no_inline)]
pub use dlock_sqlite as sqlite;
/// The ZooKeeper backend, for settings that a URL does not have.
#[cfg(feature = "zk")]
#[doc(no_inline)]
pub use dlock_zk as zk;
pub use error::ConnectError;
pub use schemes::{UrlForm, url_forms};
