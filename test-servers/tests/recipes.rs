//! Other people's recipes for ZooKeeper exclude each other, as far as they say they do.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use test_servers::{Peer, Recipe, Server, ZooKeeper};

#[tokio::test]
async fn kazoo_and_curator_take_locks() {
    let zookeeper = Server::start(ZooKeeper::v3_9()).await.unwrap();
    for recipe in [Recipe::kazoo(&[zookeeper.addr()]), Recipe::curator(&[zookeeper.addr()])] {
        let program = Server::start(recipe).await.unwrap();
        let (one, other) = (Peer::of(&program).await.unwrap(), Peer::of(&program).await.unwrap());
        one.lock("/locks/orders").await.unwrap();
        assert!(!other.try_lock("/locks/orders").await.unwrap());
        one.unlock("/locks/orders").await.unwrap();
        assert!(other.try_lock("/locks/orders").await.unwrap());
        other.unlock("/locks/orders").await.unwrap();
    }
}
