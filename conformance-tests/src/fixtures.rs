//! The fixtures of the backends of this repository.

pub mod etcd;
mod memory;
mod postgres;
mod redis;
mod sqlite;
pub mod zk;

pub use self::redis::{RedisFixture, RedisServers};
pub use etcd::EtcdFixture;
pub use memory::MemoryFixture;
pub use postgres::{POSTGRES_15, POSTGRES_17, PostgresFixture};
pub use sqlite::SqliteFixture;
pub use zk::ZkFixture;
