//! Redis and Valkey do what every server kind must.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use test_servers::{Certs, Redis, Sentinel, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn survives(kind: Redis, version: &str) {
    let server = Server::start(kind.durable()).await.unwrap();
    let info = server.exec(&["INFO", "server"]).await.unwrap();
    assert!(info.contains(version), "{info}");
    server.exec(&["SET", "colour", "green"]).await.unwrap();

    let (addr, pid) = (server.addr(), server.pid().await.unwrap());
    server.kill().await.unwrap();
    assert!(!server.is_running().await.unwrap());
    assert!(TcpStream::connect(addr).await.is_err());

    server.start_again().await.unwrap();
    assert_eq!(server.addr(), addr);
    assert_ne!(server.pid().await.unwrap(), pid);
    assert_eq!(server.exec(&["GET", "colour"]).await.unwrap(), "green");

    server.stop().await.unwrap();
    server.start_again().await.unwrap();
    assert_eq!(server.exec(&["GET", "colour"]).await.unwrap(), "green");

    server.stop().await.unwrap();
    server.wipe().await.unwrap();
    server.start_again().await.unwrap();
    assert_eq!(server.exec(&["GET", "colour"]).await.unwrap(), "");
}

#[tokio::test]
async fn redis_8_survives_a_kill() {
    survives(Redis::v8(), "redis_version:8.").await;
}

#[tokio::test]
async fn redis_7_survives_a_kill() {
    survives(Redis::v7(), "redis_version:7.").await;
}

#[tokio::test]
async fn valkey_survives_a_kill() {
    survives(Redis::valkey(), "valkey_version:8.").await;
}

async fn ping(stream: &mut TcpStream) -> String {
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    stream.read_exact(&mut answer).await.unwrap();
    String::from_utf8(answer.to_vec()).unwrap()
}

#[tokio::test]
async fn a_frozen_server_is_silent_and_goes_on() {
    let server = Server::start(Redis::v8()).await.unwrap();
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    assert_eq!(ping(&mut stream).await, "+PONG\r\n");

    server.freeze().await.unwrap();
    assert!(server.is_running().await.unwrap());
    stream.write_all(b"PING\r\n").await.unwrap();
    let mut answer = [0; 7];
    assert!(timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await.is_err());

    server.thaw().await.unwrap();
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"+PONG\r\n");

    // A frozen server can be killed as well as stopped.
    server.freeze().await.unwrap();
    server.kill().await.unwrap();
    assert!(!server.is_running().await.unwrap());
    server.start_again().await.unwrap();
    server.freeze().await.unwrap();
    server.stop().await.unwrap();
    server.start_again().await.unwrap();
}

#[tokio::test]
async fn a_password_is_asked_for_and_given() {
    let server = Server::start(Redis::v8().password("secret")).await.unwrap();
    let mut stream = TcpStream::connect(server.addr()).await.unwrap();
    assert_eq!(ping(&mut stream).await, "-NOAUTH");
    assert_eq!(server.exec(&["PING"]).await.unwrap(), "PONG");
    let error = server.exec(&["NO-SUCH-COMMAND"]).await.unwrap_err().to_string();
    assert!(error.contains("unknown command"), "{error}");
}

#[tokio::test]
async fn another_configuration_keeps_address_and_data() {
    let server = Server::start(Redis::v7().durable()).await.unwrap();
    server.exec(&["SET", "colour", "green"]).await.unwrap();
    assert!(server.start_again_as(Redis::v7()).await.is_err());
    server.stop().await.unwrap();
    server.start_again_as(Redis::v7().durable().config("maxmemory 10mb")).await.unwrap();
    assert_eq!(server.exec(&["GET", "colour"]).await.unwrap(), "green");
    assert_eq!(server.exec(&["CONFIG", "GET", "maxmemory"]).await.unwrap(), "maxmemory\n10485760");
}

#[tokio::test]
async fn a_server_that_does_not_start_says_why() {
    let error = Server::start(Redis::v8().config("no-such-directive yes")).await.unwrap_err().to_string();
    assert!(error.contains("has ended") && error.contains("no-such-directive"), "{error}");
}

#[tokio::test]
async fn a_sentinel_promotes_the_replica() {
    let primary = Server::start(Redis::v8()).await.unwrap();
    let replica = Server::start(Redis::v8().replica_of(primary.addr())).await.unwrap();
    let watch = |primary: &Server| {
        Sentinel::watching("main", primary.addr(), 1).config("sentinel down-after-milliseconds main 200")
    };
    let sentinel = Server::start(watch(&primary)).await.unwrap();
    let known = async {
        while !sentinel
            .exec(&["SENTINEL", "REPLICAS", "main"])
            .await
            .unwrap()
            .contains("master-link-status\nok")
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(90), known).await.unwrap();
    primary.kill().await.unwrap();
    let promoted = async {
        while !replica.exec(&["ROLE"]).await.unwrap().starts_with("master") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(90), promoted).await.unwrap();
}

#[tokio::test]
async fn cluster_mode_serves_a_key() {
    let server = Server::start(Redis::v8().cluster()).await.unwrap();
    server.exec(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await.unwrap();
    let has_slots = async {
        while server.exec(&["SET", "colour", "green"]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(90), has_slots).await.unwrap();
}

#[tokio::test]
async fn tls_is_spoken_to_clients_with_a_certificate() {
    let certs = Certs::new(&[]).await.unwrap();
    let server = Server::start(Redis::v8().tls(&certs)).await.unwrap();
    let port = server.addr().port().to_string();
    let ping = |client: bool| {
        let mut command: Vec<_> = ["redis-cli", "-e", "-h"].map(String::from).into();
        // The files of the test are not in the container, those in the server's folder are.
        command.extend([server.addr().ip().to_string(), "-p".into(), port.clone(), "--tls".into()]);
        command.extend(["--cacert", "ca.pem"].map(String::from));
        if client {
            command.extend(["--cert", "server.pem", "--key", "server-key.pem"].map(String::from));
        }
        command.push("PING".into());
        server.run(command)
    };
    assert_eq!(ping(true).await.unwrap(), "PONG");
    ping(false).await.unwrap_err();
    assert_eq!(server.exec(&["PING"]).await.unwrap(), "PONG");
}
