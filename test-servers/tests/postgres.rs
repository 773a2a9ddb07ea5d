//! PostgreSQL does what every server kind must.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use test_servers::{Certs, Postgres, Server};
use tokio::time::{sleep, timeout};

async fn query(server: &Server, sql: &str) -> String {
    server.exec(&["-c", sql]).await.unwrap()
}

async fn survives(kind: Postgres, version: &str) {
    let server = Server::start(kind).await.unwrap();
    assert!(query(&server, "SHOW server_version").await.starts_with(version));
    query(&server, "CREATE TABLE colours (name text); INSERT INTO colours VALUES ('green')").await;
    server.kill().await.unwrap();
    server.exec(&["-c", "SELECT 1"]).await.unwrap_err();
    server.start_again().await.unwrap();
    assert_eq!(query(&server, "SELECT * FROM colours").await, "green");
    server.stop().await.unwrap();
    assert!(server.log().await.contains("database system is shut down"));
    server.start_again().await.unwrap();
    assert_eq!(query(&server, "SELECT * FROM colours").await, "green");
    server.stop().await.unwrap();
    server.wipe().await.unwrap();
    server.start_again().await.unwrap();
    assert_eq!(query(&server, "SELECT count(*) FROM pg_tables WHERE tablename = 'colours'").await, "0");
}

#[tokio::test]
async fn postgres_17_survives_a_kill() {
    survives(Postgres::v17(), "17.").await;
}

#[tokio::test]
async fn postgres_15_survives_a_kill() {
    survives(Postgres::v15(), "15.").await;
}

#[tokio::test]
async fn all_processes_of_a_frozen_server_stand_still() {
    let server = Server::start(Postgres::v17()).await.unwrap();
    query(&server, "CREATE TABLE beats (at timestamptz)").await;
    // A backend that works on by itself.
    let beat = "DO $$ BEGIN LOOP INSERT INTO beats VALUES (clock_timestamp()); COMMIT; PERFORM pg_sleep(0.01); END LOOP; END $$";
    let args = ["-c", beat];
    let looping = server.exec(&args);
    let observed = async {
        while query(&server, "SELECT count(*) > 5 FROM beats").await != "t" {}
        server.freeze().await.unwrap();
        sleep(Duration::from_millis(1_500)).await;
        server.thaw().await.unwrap();
        let gap =
            "SELECT max(gap) > '1 s' FROM (SELECT at - lag(at) OVER (ORDER BY at) AS gap FROM beats) AS gaps";
        while query(&server, gap).await != "t" {}
        server.kill().await.unwrap();
    };
    let (looped, ()) =
        timeout(Duration::from_secs(60), async { tokio::join!(looping, observed) }).await.unwrap();
    looped.unwrap_err();
}

#[tokio::test]
async fn a_password_is_asked_for_and_tls_is_spoken() {
    let certs = Certs::new(&[]).await.unwrap();
    let server = Server::start(Postgres::v17().password("secret").tls(&certs)).await.unwrap();
    assert_eq!(query(&server, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await, "t");
    let addr = server.addr();
    let wrong = format!("host={} port={} user=postgres password=wrong", addr.ip(), addr.port());
    let error = server.run(vec!["psql".into(), wrong]).await.unwrap_err().to_string();
    assert!(error.contains("password authentication failed"), "{error}");
}

#[tokio::test]
async fn a_standby_follows_and_is_promoted() {
    let primary = Server::start(Postgres::v15()).await.unwrap();
    query(&primary, "CREATE TABLE colours (name text)").await;
    let standby = Server::start(Postgres::v15().standby_of(primary.addr())).await.unwrap();
    query(&primary, "INSERT INTO colours VALUES ('green')").await;
    let followed = async { while query(&standby, "SELECT * FROM colours").await != "green" {} };
    timeout(Duration::from_secs(30), followed).await.unwrap();
    primary.kill().await.unwrap();
    assert_eq!(query(&standby, "SELECT pg_promote()").await, "t");
    query(&standby, "INSERT INTO colours VALUES ('blue')").await;
}
