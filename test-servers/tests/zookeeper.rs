//! ZooKeeper does what every server kind must, alone and as an ensemble.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use test_servers::{Server, ZooKeeper};
use tokio::time::{sleep, timeout};

/// How long an ensemble may need that has several failed elections on a busy machine; it only ends tests that fail.
const PATIENCE: Duration = Duration::from_secs(120);

#[tokio::test]
async fn one_node_survives_a_kill() {
    let server = Server::start(ZooKeeper::v3_9()).await.unwrap();
    assert!(server.ask("srvr").await.unwrap().contains("version: 3.9."));
    server.exec(&["create", "/colour", "green"]).await.unwrap();
    server.kill().await.unwrap();
    server.ask("srvr").await.unwrap_err();
    server.start_again().await.unwrap();
    let answer = server.exec(&["get", "/colour"]).await.unwrap();
    assert!(answer.ends_with("green"), "{answer}");
    server.freeze().await.unwrap();
    server.ask("srvr").await.unwrap_err();
    server.thaw().await.unwrap();
    assert!(server.ask("srvr").await.unwrap().contains("Mode: standalone"));
    server.stop().await.unwrap();
    server.wipe().await.unwrap();
    server.start_again().await.unwrap();
    server.exec(&["get", "/colour"]).await.unwrap_err();
}

#[tokio::test]
async fn an_ensemble_bears_an_isolated_leader() {
    // A busy machine lets a member stand still for seconds, which is no reason for an election.
    let quick = ZooKeeper::v3_9().config("tickTime=200").config("initLimit=25").config("syncLimit=25");
    let cluster = quick.cluster(3).await.unwrap();
    let led = async {
        loop {
            if let Some(leader) = cluster.leader().await {
                return leader;
            }
        }
    };
    let old = timeout(PATIENCE, led).await.unwrap();
    cluster[old].exec(&["create", "/colour", "green"]).await.unwrap();
    cluster.isolate(old).await.unwrap();
    let agreed = async {
        loop {
            match cluster.leader().await {
                Some(new) if new != old => return new,
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    };
    let new = timeout(PATIENCE, agreed).await.unwrap();
    let deposed = async {
        while !cluster[old].ask("srvr").await.is_ok_and(|answer| !answer.contains("Mode: ")) {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, deposed).await.unwrap();
    cluster[new].exec(&["set", "/colour", "blue"]).await.unwrap();
    cluster.heal().await.unwrap();
    cluster[old].serves().await.unwrap();
    let followed =
        async { while !cluster[old].exec(&["get", "/colour"]).await.unwrap().ends_with("blue") {} };
    timeout(PATIENCE, followed).await.unwrap();
}
