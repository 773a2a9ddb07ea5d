//! What the tests have in common: waiting with a deadline, and telling members apart.

use std::time::Duration;

use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::fixtures::etcd::Operator;
use conformance_tests::{Client, Fixture, Setup, nothing_is_left};
use dlock_core::{AcquireError, Lock, LockGuard};
use dlock_etcd::EtcdBackend;
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

/// Starts to wait for a lock, and waits until its claim is the `place`-th under that name.
pub(crate) async fn queue_up(
    fx: &EtcdFixture,
    lock: &Lock,
    place: usize,
) -> JoinHandle<Result<LockGuard, AcquireError>> {
    let waiting = spawn_acquire(lock);
    let prefix = format!("{}/", lock.locate().location);
    let claims = async || fx.claims().await.iter().filter(|claim| claim.key.starts_with(&prefix)).count();
    until("the claim stands in the queue", async || claims().await >= place).await;
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

/// A client of some members only.
pub(crate) fn client_of(fx: &EtcdFixture, setup: Setup, members: &[usize]) -> Client {
    let all = fx.addresses();
    let backend = EtcdBackend::new(members.iter().map(|at| all[*at].clone()));
    setup.client(fx.profile(), backend)
}

/// A client that knows the members by these addresses and is connected to this one, with its session open.
pub(crate) async fn client_on(
    fx: &EtcdFixture,
    setup: &Setup,
    addresses: &[String],
    member: usize,
) -> Client {
    let operator = Operator::of(&fx.members()[member..=member]);
    for _ in 0..100 {
        let client = setup.clone().client(fx.profile(), EtcdBackend::new(addresses.iter().cloned()));
        let before = operator.calls("LeaseGrant").await;
        client.locks.open().await.expect("the store answers");
        if operator.calls("LeaseGrant").await > before {
            return client;
        }
        client.locks.close().await.expect("the store answers");
    }
    panic!("of a hundred clients none went to member {member}");
}

/// Which member leads.
pub(crate) async fn leader(fx: &EtcdFixture) -> usize {
    soon("a member leads", async {
        loop {
            if let Some(leader) = fx.members().leader().await {
                return leader;
            }
        }
    })
    .await
}

/// Checks that nothing is left at the store while all clients are still there.
pub(crate) async fn end(fx: &EtcdFixture) {
    nothing_is_left(fx).await;
}
