//! What locks cost, counted on the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Client, Fixture, Setup};
use dlock_core::LockManager;
use dlock_zk::ZkBackend;
use test_servers::{Counts, Direction, Protocol, Proxy};

use crate::setting::{end, got, queue_up, soon, until, watches};

/// A client over a proxy, without renewals and pings in between: with a long lease, for servers whose tick is said to be
/// long.
async fn quiet(fx: &ZkFixture) -> (Client, Proxy) {
    let proxy = Proxy::speaking(Protocol::ZooKeeper, fx.members()[0].addr()).await.unwrap();
    let backend = ZkBackend::builder([proxy.addr().to_string()]).tick(Duration::from_secs(40)).build();
    let setup = Setup::new().ttl(Duration::from_secs(300)).request_timeout(Duration::from_secs(20));
    let client = setup.client(fx.profile(), backend);
    client.locks.open().await.unwrap();
    (client, proxy)
}

/// The requests that something costs, by their names, once all of them are in; `last` is sent behind the answer, and not
/// waited for.
async fn cost_of<T>(proxy: &Proxy, last: Option<&str>, work: impl Future<Output = T>) -> (T, Counts) {
    proxy.reset_counts();
    let done = soon("it is answered", work).await;
    if let Some(last) = last.map(str::to_owned) {
        proxy.counted(move |counts| counts.request(&last) > 0).await.unwrap();
    }
    (done, proxy.counts())
}

fn requests(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
    of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

#[tokio::test]
async fn an_acquisition_is_one_round_trip_and_so_is_a_release() {
    let fx = ZkFixture::one().await;
    let ((client, proxy), (other, other_proxy)) = (quiet(&fx).await, quiet(&fx).await);
    // Another one holds the name's parent, which would go away when it is empty.
    fx.operator().create("/dlock/counted/keeper", "").await;
    for known in [&client, &other] {
        known.lock("counted").acquire().await.unwrap().release().await.unwrap();
    }
    // A batch is one round trip only if it is sent before its first answer.
    proxy.delay(Direction::ToClient, Duration::from_millis(20));
    for tries in [false, true] {
        let lock = client.lock("counted");
        let acquired = async {
            if tries { lock.try_acquire().await.unwrap().unwrap() } else { lock.acquire().await.unwrap() }
        };
        let (guard, cost) = cost_of(&proxy, Some("getData"), acquired).await;
        // The look at the own node, which sets a watch for the hand that deletes it, comes behind.
        let expected = requests(&[("multi", 1), ("getChildren", 1), ("getData", 1)]);
        assert_eq!(normal(&cost), expected, "an acquisition of a free lock");
        until("the watch stands", async || watches(&fx).await == 1).await;
        assert!(proxy.counts().round_trips <= 2, "{:?}", proxy.counts());

        let (tried, cost) = cost_of(&other_proxy, None, other.lock("counted").try_acquire()).await;
        assert!(tried.unwrap().is_none());
        let expected = requests(&[("multi", 1), ("getChildren", 1), ("delete", 1)]);
        assert_eq!(normal(&cost), expected, "a try of a held lock");
        assert!(cost.round_trips <= 2, "{cost:?}");

        let (released, cost) = cost_of(&proxy, None, guard.release()).await;
        released.unwrap();
        assert_eq!((normal(&cost), cost.round_trips), (requests(&[("delete", 1)]), 1), "a release");
    }
    assert!(fx.operator().delete("/dlock/counted/keeper").await);
    fx.operator().delete("/dlock/counted").await;
    // A new name needs a parent, in the same round trip.
    let (guard, cost) = cost_of(&proxy, Some("getData"), client.lock("new").acquire()).await;
    let guard = guard.unwrap();
    let creating = cost.request("multi") + cost.request("createContainer");
    assert_eq!((creating, cost.request("getChildren") + cost.request("getChildren2")), (2, 1), "{cost:?}");
    until("the watch stands", async || watches(&fx).await == 1).await;
    assert!(proxy.counts().round_trips <= 2, "{:?}", proxy.counts());
    guard.release().await.unwrap();
    end(&fx).await;
}

/// Requests without pings, and with both ways to list as one.
fn normal(counts: &Counts) -> BTreeMap<String, u64> {
    let mut requests = counts.requests.clone();
    requests.remove("ping");
    if let Some(lists) = requests.remove("getChildren2") {
        *requests.entry("getChildren".to_owned()).or_default() += lists;
    }
    requests
}

#[tokio::test]
async fn a_handoff_is_a_delete_an_event_and_one_look() {
    let fx = ZkFixture::one().await;
    let (holder, holder_proxy) = quiet(&fx).await;
    let mut guard = holder.lock("counted").acquire().await.unwrap();
    let mut waiting = Vec::new();
    for place in 2..12 {
        let (client, proxy) = quiet(&fx).await;
        let waiter = queue_up(&fx, &client.lock("counted"), place).await;
        until("the watch stands", async || watches(&fx).await == place).await;
        assert!(proxy.counts().request("multi") <= 4, "a claim that waits: {:?}", proxy.counts());
        waiting.push((client, proxy, waiter));
    }
    let mut holders = vec![holder];
    let mut held_through = holder_proxy;
    while !waiting.is_empty() {
        let (client, proxy, waiter) = waiting.remove(0);
        for counted in waiting.iter().map(|(_, proxy, _)| proxy).chain([&proxy, &held_through]) {
            counted.reset_counts();
        }
        guard.release().await.unwrap();
        guard = got(waiter).await;
        until("the watch on the own node stands", async || watches(&fx).await == 1 + waiting.len()).await;
        assert_eq!(normal(&held_through.counts()), requests(&[("delete", 1)]), "the release");
        let cost = normal(&proxy.counts());
        let expected = requests(&[("getChildren", 1), ("getData", 1)]);
        assert_eq!(cost, expected, "the next holder looks once, and sets a watch behind that");
        for (_, proxy, _) in &waiting {
            assert_eq!(normal(&proxy.counts()), requests(&[]), "one who is not next was woken");
        }
        held_through = proxy;
        holders.push(client);
    }
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_thousand_held_locks_are_renewed_by_one_write_and_one_sync() {
    let fx = ZkFixture::one().await;
    let proxy = Proxy::speaking(Protocol::ZooKeeper, fx.members()[0].addr()).await.unwrap();
    let setup = Setup::new().ttl(Duration::from_secs(6));
    let client = setup.client(fx.profile(), fx.backend_at([proxy.addr().to_string()]));
    let mut guards = Vec::new();
    for number in 0..1000 {
        guards.push(client.lock(&format!("held-{number}")).acquire().await.unwrap());
    }
    let renewals = client.locks.metrics().renewals;
    until("a renewal ends", async || client.locks.metrics().renewals > renewals).await;
    proxy.reset_counts();
    let renewals = client.locks.metrics().renewals;
    until("renewals go on", async || client.locks.metrics().renewals >= renewals + 4).await;
    let (cost, rounds) = (proxy.counts(), client.locks.metrics().renewals - renewals);
    for name in ["multi", "sync"] {
        let count = cost.request(name);
        // One more may be under way.
        assert!((rounds..=rounds + 1).contains(&count), "{rounds} renewals of a thousand locks: {cost:?}");
    }
    let others: BTreeMap<_, _> =
        normal(&cost).into_iter().filter(|(name, _)| !["multi", "sync"].contains(&name.as_str())).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(guards.iter().all(dlock_core::LockGuard::is_held));
    client.locks.close().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_closed_manager_leaves_no_session_and_an_idle_store_no_node() {
    let fx = ZkFixture::one().await;
    until("no session is left of others", async || fx.operator().sessions().await.is_empty()).await;
    let locks = three_managers(&fx).await;
    assert_eq!(fx.operator().sessions().await.len(), locks.len());
    for (number, manager) in locks.iter().enumerate() {
        let guard = manager.lock(format!("left/{number}")).unwrap().acquire().await.unwrap();
        // Released, dropped, or held to the end.
        match number {
            0 => drop(guard.release().await.unwrap()),
            1 => drop(guard),
            _ => std::mem::forget(guard),
        }
        manager.close().await.unwrap();
        assert_eq!(fx.operator().sessions().await.len(), locks.len() - number - 1, "P6: a session is left");
    }
    // Containers: the prefix, that of the sessions, those of the names.
    until("nothing is left", async || fx.operator().nodes().await.is_empty()).await;
}

async fn three_managers(fx: &ZkFixture) -> Vec<LockManager> {
    let mut managers = Vec::new();
    for _ in 0..3 {
        let manager = LockManager::builder(fx.backend()).ttl(fx.profile().ttl * 10).build().unwrap();
        manager.open().await.unwrap();
        managers.push(manager);
    }
    managers
}
