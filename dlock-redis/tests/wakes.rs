//! Who is woken by what, counted on the wire: those who wait ask again when it is worth it, and not because each other's
//! vain tries wake them.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::LockManager;
use support::{Flavour, SOON, backend, manager, servers, settle, until};
use test_servers::{Lease, Protocol, Proxy, Server};

const TTL: Duration = Duration::from_secs(3);

/// Three nodes, and doors to them that count.
struct Rig {
    servers: Lease<Vec<Server>>,
    doors: Vec<Proxy>,
}

impl Rig {
    async fn new() -> Self {
        let servers = servers(Flavour::Redis8, 5).await;
        let mut doors = Vec::new();
        for server in &servers[..3] {
            doors.push(Proxy::speaking(Protocol::Redis, server.addr()).await.unwrap());
        }
        let rig = Self { servers, doors };
        settle(&rig.servers[..3], &backend(&support::url(&rig.servers[..3], ""))).await;
        rig
    }

    /// One whose requests are counted.
    fn client(&self) -> LockManager {
        let addresses: Vec<_> = self.doors.iter().map(|door| door.addr().to_string()).collect();
        manager(backend(&format!("redis+redlock://{}", addresses.join(","))), TTL)
    }

    /// Waits until so many connections listen for a release of `x` at each node.
    async fn until_listening(&self, count: usize) {
        until("all who wait listen", async || {
            for server in &self.servers[..3] {
                let counted = server.exec(&["PUBSUB", "NUMSUB", "dlock:wake:x"]).await.unwrap();
                if counted.lines().last().and_then(|line| line.trim().parse().ok()) != Some(count) {
                    return false;
                }
            }
            true
        })
        .await;
    }

    /// The most calls of scripts that one node had.
    fn calls(&self) -> u64 {
        let calls = |door: &Proxy| door.counts().requests.get("EVALSHA").copied().unwrap_or_default();
        self.doors.iter().map(calls).max().unwrap()
    }
}

async fn a_node_that_lost_the_key_starts_no_storm(waiters: usize) {
    let rig = Rig::new().await;
    // Its own requests are not counted.
    let holder = manager(backend(&support::url(&rig.servers[..3], "")), TTL);
    let held = holder.lock("x").unwrap().acquire().await.unwrap();
    rig.servers[0].exec(&["DEL", "dlock:lock:x"]).await.unwrap();
    let clients: Vec<_> = (0..waiters).map(|_| rig.client()).collect();
    let waiting: Vec<_> = clients
        .iter()
        .map(|client| {
            let lock = client.lock("x").unwrap();
            tokio::spawn(async move { lock.acquire_timeout(SOON).await.unwrap().release().await.unwrap() })
        })
        .collect();
    rig.until_listening(waiters).await;
    rig.doors.iter().for_each(Proxy::reset_counts);
    let renewed = holder.metrics().renewals;
    until("two renewals", async || holder.metrics().renewals >= renewed + 2).await;
    // Each asks when the lease would be over, which takes a GRANT, and a RELEASE where that found no key.
    let (calls, most) = (rig.calls(), 8 * waiters as u64);
    assert!(calls <= most, "{calls} calls by {waiters} who wait");
    assert!(held.is_held());
    // They were not made deaf.
    held.release().await.unwrap();
    for waiting in waiting {
        waiting.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_who_waits_does_not_wake_itself() {
    a_node_that_lost_the_key_starts_no_storm(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_who_wait_do_not_wake_each_other() {
    a_node_that_lost_the_key_starts_no_storm(4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_contenders_ask_little_more_than_they_get() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 10;
    let rig = Rig::new().await;
    let clients: Vec<_> = (0..CLIENTS).map(|_| rig.client()).collect();
    for client in &clients {
        client.open().await.unwrap();
    }
    rig.doors.iter().for_each(Proxy::reset_counts);
    let tasks: Vec<_> = clients
        .iter()
        .map(|client| {
            let lock = client.lock("x").unwrap();
            tokio::spawn(async move {
                for _ in 0..ROUNDS {
                    lock.acquire_timeout(SOON).await.unwrap().release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let (calls, acquired) = (rig.calls(), (CLIENTS * ROUNDS) as u64);
    // A GRANT and a RELEASE for each, and what is asked in vain when all who wait hear of a release.
    assert!(calls < 10 * acquired, "{calls} calls of each node for {acquired} acquisitions");
}
