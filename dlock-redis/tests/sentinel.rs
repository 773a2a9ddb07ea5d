//! A master that Sentinels know, and what a failover to a stale replica costs.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::{Clock, SystemClock};
use support::{SOON, backend, chain, manager, own, until};
use test_servers::{Proxy, Redis, Sentinel, Server};

const SETTINGS: &str = "restart_delay=17s&clock_skew=0ms";
const TTL: Duration = Duration::from_secs(2);

async fn replication(server: &Server, wanted: &str) -> bool {
    server.exec(&["INFO", "replication"]).await.is_ok_and(|info| info.contains(wanted))
}

#[tokio::test]
async fn a_failover_to_a_replica_that_never_saw_the_lock_keeps_both_promises() {
    let master = own(Redis::v8()).await;
    let link = Proxy::start(master.addr()).await.unwrap();
    let replica = own(Redis::v8().replica_of(link.addr())).await;
    until("the replica is in step", async || replication(&replica, "master_link_status:up").await).await;
    // They find the replica by asking the master, which knows it by the address that it announces.
    let sentinels = Server::start_all((0..3).map(|_| {
        Sentinel::watching("mine", master.addr(), 2)
            .config("sentinel resolve-hostnames no")
            .config("sentinel down-after-milliseconds mine 4000")
    }))
    .await
    .unwrap();
    for sentinel in &sentinels {
        until("the Sentinels know each other and the replica", async || {
            let known = sentinel.exec(&["SENTINEL", "MASTER", "mine"]).await.unwrap();
            let after = |field: &str| {
                let mut lines = known.lines().map(str::trim);
                lines.find(|line| *line == field).and_then(|_| lines.next().map(str::to_owned))
            };
            after("num-slaves").as_deref() == Some("1")
                && after("num-other-sentinels").as_deref() == Some("2")
        })
        .await;
    }
    let addresses: Vec<_> = sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
    let url = format!("redis+sentinel://{}/mine?{SETTINGS}", addresses.join(","));
    let (one, other) = (manager(backend(&url), TTL), manager(backend(&url), TTL));
    assert_eq!(one.guarantees().max_ttl, TTL);
    assert!(one.init().await.unwrap()[0].contains("marked as new"));
    let lock = one.lock("x").unwrap();
    let held = lock.acquire_timeout(SOON).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(held.is_held());
    // One Sentinel is not needed.
    sentinels[0].kill().await.unwrap();
    let late = manager(backend(&url), TTL);
    late.open().await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let token = held.token();
    held.release().await.unwrap();
    until("the replica has seen the mark", async || {
        replica.exec(&["EXISTS", "dlock:mark"]).await.unwrap().trim() == "1"
    })
    .await;
    // The lock that is held next is never seen by the replica.
    link.black_hole(test_servers::Direction::ToClient);
    let held = lock.acquire_timeout(SOON).await.unwrap();
    assert!(held.token() > token);
    let token = held.token();
    master.kill().await.unwrap();
    let killed = SystemClock.now();
    until("the replica was promoted", async || replication(&replica, "role:master").await).await;
    let lock = other.lock("x").unwrap();
    let told = tokio::time::timeout(SOON, async {
        loop {
            match lock.try_acquire().await {
                Err(error) if chain(&error).contains("grants no lock until") => return chain(&error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(granted) => panic!("{granted:?}"),
            }
        }
    })
    .await
    .expect("the new master says why it waits");
    assert!(told.contains("took over from another master"), "{told}");
    let next = lock.acquire_timeout(Duration::from_secs(40)).await.unwrap();
    assert!(!held.is_held(), "two holders");
    assert!(next.token() > token, "{} after {token}", next.token());
    assert!(
        SystemClock.now().since(killed) > Duration::from_secs(17),
        "{:?}",
        SystemClock.now().since(killed)
    );
}

/// The master's replication id changes twice, and yet it has lost nothing.
#[tokio::test]
async fn a_lock_outlives_the_coming_and_going_of_a_first_replica() {
    let master = own(Redis::v8().config("repl-backlog-ttl 1")).await;
    // Nobody is to be promoted because a busy machine stands still.
    let sentinel = Sentinel::watching("mine", master.addr(), 1);
    let sentinel = sentinel.config("sentinel down-after-milliseconds mine 60000");
    let sentinel = Server::start(sentinel).await.unwrap();
    let url = format!("redis+sentinel://{}/mine?restart_delay=30s&clock_skew=0ms", sentinel.addr());
    let locks = manager(backend(&url), TTL * 3);
    locks.init().await.unwrap();
    let held = locks.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
    let id = async || {
        let info = master.exec(&["INFO", "replication"]).await.unwrap();
        info.lines().find(|line| line.starts_with("master_replid:")).unwrap().to_owned()
    };
    let renewed = async || {
        let before = locks.metrics().renewals;
        until("it was renewed or lost", async || !held.is_held() || locks.metrics().renewals > before + 1)
            .await;
        assert!(held.is_held(), "lost under the id {}", id().await);
    };
    let first = id().await;
    let replica = own(Redis::v8().replica_of(master.addr())).await;
    until("a replica has come", async || replication(&replica, "master_link_status:up").await).await;
    let second = id().await;
    assert_ne!(first, second);
    renewed().await;
    // It is no candidate for a promotion then: the master runs.
    replica.kill().await.unwrap();
    until("the idle backlog is given up", async || id().await != second).await;
    renewed().await;
    held.release().await.unwrap();
}

/// Sentinels of yesterday stand first: one knows an address where nobody listens, one an address that gives no answer, and
/// one the master of before, which is a replica now.
#[tokio::test]
async fn stale_sentinels_do_not_cut_anybody_off() {
    let master = own(Redis::v8()).await;
    let before = own(Redis::v8().replica_of(master.addr())).await;
    until("it is a replica", async || replication(&before, "master_link_status:up").await).await;
    let silent = Proxy::start(master.addr()).await.unwrap();
    silent.hang();
    let gone = Proxy::start(master.addr()).await.unwrap();
    gone.cut().await.unwrap();
    let watched = [gone.addr(), silent.addr(), before.addr(), master.addr()];
    // Too few of them to do anything about it.
    let sentinels = Server::start_all(watched.map(|at| Sentinel::watching("mine", at, 9))).await.unwrap();
    let at: Vec<_> = sentinels.iter().map(|sentinel| sentinel.addr().to_string()).collect();
    for stale in [&at[..1], &at[1..2], &at[2..3], &at[..3]] {
        let hosts = format!("{},{}", stale.join(","), at[3]);
        let locks = manager(backend(&format!("redis+sentinel://{hosts}/mine?restart_delay=0")), TTL);
        let guard = locks.lock("x").unwrap().acquire_timeout(SOON).await;
        guard.unwrap_or_else(|error| panic!("{hosts}: {}", chain(&error))).release().await.unwrap();
    }
    // Where none is right, each is named.
    let locks = manager(backend(&format!("redis+sentinel://{}/mine", at[..3].join(","))), TTL);
    let text = chain(&locks.open().await.unwrap_err());
    for address in &watched[..3] {
        assert!(text.contains(&address.to_string()), "{text}");
    }
}

#[tokio::test]
async fn a_service_that_no_sentinel_knows_is_named() {
    let master = own(Redis::v8()).await;
    let sentinel = Server::start(Sentinel::watching("mine", master.addr(), 1)).await.unwrap();
    let locks = manager(backend(&format!("redis+sentinel://{}/yours", sentinel.addr())), TTL);
    let text = chain(&locks.open().await.unwrap_err());
    assert!(text.contains("watches no master \"yours\""), "{text}");
    let locks = manager(backend(&format!("redis+sentinel://{}/mine", master.addr())), TTL);
    let text = chain(&locks.open().await.unwrap_err());
    assert!(text.contains("is no Sentinel"), "{text}");
}
