//! etcd does what every server kind must, alone and as a cluster.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use test_servers::Server;
use test_servers::{Certs, Etcd};
use tokio::time::{sleep, timeout};

/// How long an election may take; it only ends tests that fail.
const PATIENCE: Duration = Duration::from_secs(90);

#[tokio::test]
async fn one_node_survives_a_kill() {
    let server = Server::start(Etcd::v3_5()).await.unwrap();
    assert!(server.exec(&["version"]).await.unwrap().contains("3.5"));
    server.exec(&["put", "colour", "green"]).await.unwrap();
    server.kill().await.unwrap();
    server.exec(&["get", "colour", "--command-timeout=1s"]).await.unwrap_err();
    server.start_again().await.unwrap();
    assert_eq!(server.exec(&["get", "colour"]).await.unwrap(), "colour\ngreen");
    server.stop().await.unwrap();
    server.wipe().await.unwrap();
    server.start_again().await.unwrap();
    assert_eq!(server.exec(&["get", "colour"]).await.unwrap(), "");
}

#[tokio::test]
async fn flags_are_passed_on() {
    let server = Server::start(Etcd::v3_5().arg("--max-request-bytes=1000")).await.unwrap();
    let error = server.exec(&["put", "colour", &"g".repeat(2_000)]).await.unwrap_err().to_string();
    assert!(error.contains("too large"), "{error}");
}

#[tokio::test]
async fn tls_is_spoken_to_clients_with_a_certificate() {
    let certs = Certs::new(&[]).await.unwrap();
    let server = Server::start(Etcd::v3_5().tls(&certs)).await.unwrap();
    server.exec(&["put", "colour", "green"]).await.unwrap();
    let endpoint = format!("--endpoints=https://{}", server.addr());
    let bare = ["etcdctl", &endpoint, "--cacert=ca.pem", "--command-timeout=2s", "get", "colour"];
    server.run(bare.map(String::from).into()).await.unwrap_err();
}

#[tokio::test]
async fn a_cluster_bears_the_loss_of_its_leader() {
    let cluster = Etcd::v3_5().cluster(3).await.unwrap();
    cluster[0].exec(&["put", "colour", "green"]).await.unwrap();
    let led = async {
        loop {
            if let Some(leader) = cluster.leader().await {
                return leader;
            }
        }
    };
    let old = timeout(PATIENCE, led).await.unwrap();
    cluster[old].freeze().await.unwrap();
    let other = &cluster[(old + 1) % 3];
    let agreed = async {
        while other.exec(&["put", "colour", "blue"]).await.is_err() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, agreed).await.unwrap();
    cluster[old].thaw().await.unwrap();
    cluster[old].kill().await.unwrap();
    assert_ne!(cluster.leader().await, Some(old));
    cluster[old].start_again().await.unwrap();
    assert_eq!(cluster[old].exec(&["get", "colour"]).await.unwrap(), "colour\nblue");
}
