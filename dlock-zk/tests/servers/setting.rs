//! What the tests have in common: waiting with a deadline, and clients in chosen places.

use std::time::Duration;

use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Client, Fixture, Setup, nothing_is_left};
use dlock_core::{AcquireError, Lock, LockGuard, LockManager, StoreError};
use test_servers::{Protocol, Proxy, ZooKeeperCluster};
use tokio::task::JoinHandle;

/// How long anything that must happen may take; it only ends tests that fail.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for something that must happen.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    within(PATIENCE, what, future).await
}

/// Waits for something that must happen within a bound.
pub(crate) async fn within<T>(bound: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(bound, future).await.unwrap_or_else(|_| panic!("{what}: not within {bound:?}"))
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Starts to wait for a lock, and waits until its claim is the `place`-th at the store.
pub(crate) async fn queue_up(
    fx: &ZkFixture,
    lock: &Lock,
    place: usize,
) -> JoinHandle<Result<LockGuard, AcquireError>> {
    let waiting = spawn_acquire(lock);
    until("the claim stands in the queue", async || fx.claims().await.len() >= place).await;
    waiting
}

pub(crate) fn spawn_acquire(lock: &Lock) -> JoinHandle<Result<LockGuard, AcquireError>> {
    let lock = lock.clone();
    tokio::spawn(async move { lock.acquire().await })
}

/// The guard that a waiting task got.
pub(crate) async fn got(waiting: JoinHandle<Result<LockGuard, AcquireError>>) -> LockGuard {
    soon("the waiter gets the lock", waiting)
        .await
        .expect("the task does not panic")
        .expect("the store answers")
}

/// Opens a client's session. A member that thaws or starts joins the others first, and opens no session until then.
async fn opened(client: &Client) {
    until("the member serves", async || match client.locks.open().await {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
            false
        }
    })
    .await;
}

/// A client of some members only, with its session open.
pub(crate) async fn client_of(fx: &ZkFixture, setup: Setup, members: &[usize]) -> Client {
    let all = fx.addresses();
    let client = setup.client(fx.profile(), fx.backend_at(members.iter().map(|at| all[*at].clone())));
    opened(&client).await;
    client
}

/// A client whose way to a member leads over a proxy that counts what it asks, with its session open.
pub(crate) async fn client_over_proxy(fx: &ZkFixture, setup: Setup, member: usize) -> (Client, Proxy) {
    let proxy = Proxy::speaking(Protocol::ZooKeeper, fx.members()[member].addr()).await.unwrap();
    let client = setup.client(fx.profile(), fx.backend_at([proxy.addr().to_string()]));
    opened(&client).await;
    (client, proxy)
}

/// A client whose connection leads to this member over the first proxy, and later ones to any other over the rest.
pub(crate) async fn client_on(fx: &ZkFixture, setup: Setup, member: usize) -> (Client, Vec<Proxy>) {
    let mut ways = Vec::new();
    for at in [member, (member + 1) % 3, (member + 2) % 3] {
        ways.push(Proxy::start(fx.members()[at].addr()).await.unwrap());
    }
    for way in &ways[1..] {
        way.cut().await.unwrap();
    }
    let client = setup.client(fx.profile(), fx.backend_at(ways.iter().map(|way| way.addr().to_string())));
    opened(&client).await;
    for way in &ways[1..] {
        way.pass().await.unwrap();
    }
    (client, ways)
}

/// Waits until a session was renewed so many times more: four times are longer than a lease.
pub(crate) async fn renewed(locks: &LockManager, times: u64) {
    let renewals = locks.metrics().renewals;
    until("renewals go on", async || locks.metrics().renewals >= renewals + times).await;
}

/// Which member leads.
pub(crate) async fn leader_of(members: &ZooKeeperCluster) -> usize {
    soon("a member leads", async {
        loop {
            if let Some(leader) = members.leader().await {
                return leader;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
}

/// How many watches there are on claims.
pub(crate) async fn watches(fx: &ZkFixture) -> usize {
    fx.operator()
        .watches()
        .await
        .iter()
        .filter(|(path, _)| path.contains("-lock-"))
        .map(|(_, count)| count)
        .sum()
}

/// Checks that nothing is left at the store while all clients are still there.
pub(crate) async fn end(fx: &ZkFixture) {
    nothing_is_left(fx).await;
}

/// The whole chain of an error, as people and as developers see it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    format!("{text} {error:?}")
}
