#![doc = include_str!("../README.md")]

mod certs;
mod error;
mod etcd;
mod hub;
mod kind;
mod meter;
mod packages;
mod pgbouncer;
mod pool;
mod postgres;
mod provider;
mod proxy;
mod recipes;
mod redis;
mod run;
mod server;
mod site;
mod zookeeper;

pub use certs::Certs;
pub use error::{Error, Result};
pub use etcd::{Etcd, EtcdCluster};
pub use kind::{Kind, Launch, Probe, Software};
pub use meter::Protocol;
pub use pgbouncer::{PgBouncer, PoolMode};
pub use pool::{Lease, Pool, Work};
pub use postgres::Postgres;
pub use proxy::{Counts, Direction, Proxy, Then};
pub use recipes::{Peer, Recipe};
pub use redis::{Redis, Sentinel};
pub use server::Server;
pub use site::Site;
pub use zookeeper::{ZooKeeper, ZooKeeperCluster};
