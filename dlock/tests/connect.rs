//! `connect` and `builder`: what works, and what each mistake is told.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use dlock::{ConnectError, LockName};

/// The error and its causes in one line, as a command line shows them.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

async fn error(url: &str) -> ConnectError {
    dlock::connect(url).await.expect_err(url)
}

/// Connecting fails with each of `parts` in the message.
async fn told(url: &str, parts: &[&str]) {
    let error = error(url).await;
    let text = chain(&error);
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in {text:?} for {url}");
    }
}

#[tokio::test]
async fn memory_is_one_store_for_each_name() {
    let one = dlock::connect("memory:").await.unwrap();
    let same = dlock::connect("memory:?owner=other").await.unwrap();
    let other = dlock::connect("memory:elsewhere").await.unwrap();
    let guard = one.lock("a").unwrap().acquire().await.unwrap();
    assert!(same.lock("a").unwrap().try_acquire().await.unwrap().is_none());
    assert!(other.lock("a").unwrap().try_acquire().await.unwrap().is_some());
    guard.release().await.unwrap();
    assert!(same.lock("a").unwrap().try_acquire().await.unwrap().is_some());
}

#[tokio::test]
async fn common_parameters_reach_the_manager() {
    let url =
        "memory:params?ttl=20s&owner=worker-7&prefix=shop/&request_timeout=1s&give_up_after=5s&max_hold=2s";
    let locks = dlock::connect(url).await.unwrap();
    assert_eq!(locks.ttl(), Duration::from_secs(20));
    assert_eq!(locks.owner(), "worker-7");
    let name = LockName::new("a").unwrap();
    assert!(locks.locate(&name).location.contains("shop/a"));
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    assert!(guard.valid_for() <= Duration::from_secs(2));
    assert_eq!(locks.lock("a").unwrap().holder().await.unwrap().unwrap().owner, "worker-7");
}

#[tokio::test]
async fn code_can_add_to_a_url() {
    let locks = dlock::builder("memory:added?ttl=20s").unwrap().owner("code").build().unwrap();
    assert_eq!((locks.ttl(), locks.owner()), (Duration::from_secs(20), "code"));
}

#[tokio::test]
async fn mistakes_are_told_with_what_to_write() {
    told("", &["scheme"]).await;
    told("/var/lib/locks.db", &["scheme", "sqlite:/var/lib/locks.db"]).await;
    told(
        "sqllite:locks.db",
        &["\"sqllite\"", "did you mean \"sqlite\"?", "memory:, sqlite:, etcd:, zk:, postgres:, redis:"],
    )
    .await;
    told("http://localhost", &["\"http\"", "memory:, sqlite:, etcd:, zk:, postgres:, redis:"]).await;
    told("localhost:2379", &["\"localhost\""]).await;
    told(
        "memory:?tll=10s",
        &["unknown parameter \"tll\"", "give_up_after, max_hold, owner, prefix, request_timeout, ttl"],
    )
    .await;
    told("memory:?ttl=10", &["parameter ttl", "10s"]).await;
    told("memory:?ttl=1ms", &["ttl of 1ms", "at least 10ms"]).await;
    told("memory:?ttl=100h", &["at most"]).await;
    told("memory:?ttl", &["no value"]).await;
    told("memory:?ttl=1s&ttl=2s", &["twice"]).await;
    told("memory:?owner=", &["owner"]).await;
    told("memory:?prefix=a%0Ab", &["prefix", "control"]).await;
    told("memory:?max_hold=0s", &["max_hold"]).await;
    told("memory:?request_timeout=0s", &["request_timeout"]).await;
    assert!(matches!(error("sqllite:x").await, ConnectError::UnknownScheme { nearest: Some("sqlite"), .. }));
    assert!(matches!(error("memory:?ttl=1ms").await, ConnectError::Config(_)));
    assert!(!error("memory:?ttl=1ms").await.is_transient());
}

#[tokio::test]
async fn no_error_shows_a_password() {
    for url in [
        "postgres://user:hunter2@h/db",
        "postgres://user:?hunter2@h/db",
        "redis://:hunter2@h?ttl=1",
        "etcd://user:hunter2@h?ttl",
        "zk://user:hunter2@h/chroot?ttl",
        "postgers://user:hunter2@h",
        "postgers://user:hunter2@h?ttl=%FF",
        "user/hunter2@h:5432",
        "memory:hunter2?ttl=1",
    ] {
        let error = error(url).await;
        let shown = format!("{} {error:?}", chain(&error));
        assert!(!shown.contains("hunter2"), "{url}: {shown}");
    }
}

#[cfg(not(feature = "postgres"))]
#[tokio::test]
async fn postgresql_names_its_feature() {
    for url in ["postgres://u@h/db", "POSTGRESQL://u@h/db"] {
        told(url, &["PostgreSQL", "features = [\"postgres\"]"]).await;
    }
}

#[cfg(feature = "postgres")]
#[tokio::test]
async fn postgresql_urls_are_read() {
    told("postgres://u:hunter2@h1,h2/db", &["one host"]).await;
    told("POSTGRESQL://u@h/db?ttll=1s", &["ttll", "sslmode"]).await;
    let error = error("postgres://u:hunter2@127.0.0.1:1/db").await;
    assert!(error.is_transient(), "{}", chain(&error));
    assert!(chain(&error).contains("db on 127.0.0.1:1"), "{}", chain(&error));
}

#[cfg(not(feature = "redis"))]
#[tokio::test]
async fn redis_names_its_feature() {
    told("redis://h", &["without the Redis backend", r#"features = ["redis"]"#]).await;
}

#[cfg(not(feature = "sqlite"))]
#[tokio::test]
async fn sqlite_names_its_feature() {
    told(
        "sqlite:locks.db",
        &["without the SQLite backend", r#"package = "dlock-rs""#, r#"features = ["sqlite"]"#],
    )
    .await;
}

#[cfg(feature = "sqlite")]
mod sqlite {
    use super::*;

    #[tokio::test]
    async fn managers_share_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}/locks.db?ttl=10s&prefix=shop/", folder.path().display());
        let (one, two) = (dlock::connect(&url).await.unwrap(), dlock::connect(&url).await.unwrap());
        let guard = one.lock("orders/42").unwrap().acquire().await.unwrap();
        let lock = two.lock("orders/42").unwrap();
        assert!(lock.try_acquire().await.unwrap().is_none());
        assert_eq!(lock.holder().await.unwrap().unwrap().owner, one.owner());
        let token = guard.token();
        let (next, released) = tokio::join!(lock.acquire(), guard.release());
        released.unwrap();
        assert!(next.unwrap().token() > token);
        one.close().await.unwrap();
        two.close().await.unwrap();
    }

    #[tokio::test]
    async fn mistakes_show_at_once() {
        told("sqlite:", &["sqlite:PATH"]).await;
        told("sqlite::memory:", &["memory:NAME"]).await;
        told("sqlite:/no/such/folder/locks.db", &["SQLite store", "refused", "mkdir -p /no/such/folder"])
            .await;
        told("sqlite:locks.db?ttl=1ms", &["at least 100ms"]).await;
        told("sqlite:locks.db?mode=ro", &["unknown parameter \"mode\" for sqlite", "prefix"]).await;
        assert!(!std::path::Path::new("locks.db").exists(), "nothing was opened");
    }
}

#[cfg(not(feature = "etcd"))]
#[tokio::test]
async fn etcd_names_its_feature() {
    told("etcd://h", &["without the etcd backend", r#"features = ["etcd"]"#]).await;
}

#[cfg(feature = "etcd")]
#[tokio::test]
async fn urls_of_etcd_are_checked_before_anything_is_sent() {
    told("etcd://h?prefx=x", &[r#""prefx""#, "known are", "prefix"]).await;
    told("etcd://h?ca=/ca.pem", &["etcds://"]).await;
    told("etcd://h?ttl=500ms", &["ttl", "at least 1s"]).await;
    let down = error("etcd://127.0.0.1:1?request_timeout=1s").await;
    assert!(down.is_transient(), "{down}");
    assert!(chain(&down).contains("127.0.0.1:1"), "{}", chain(&down));
}
