//! The same lock with etcd's own tool, in one queue.

use std::sync::Arc;
use std::time::Duration;

use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::{Fixture, Setup};
use dlock_core::{Backend, LockName};
use tokio::task::JoinHandle;

use crate::setting::{end, got, queue_up, until};

/// With a lease that bears a tool which is slow to start.
fn setup() -> Setup {
    Setup::new().ttl(Duration::from_secs(60)).request_timeout(Duration::from_secs(10))
}

/// `etcdctl lock`, which holds the lock `orders` until it gets, and gives back, the lock `gate`.
fn etcdctl_lock(fx: &Arc<EtcdFixture>, gate: &'static str) -> JoinHandle<test_servers::Result<String>> {
    let fx = Arc::clone(fx);
    tokio::spawn(async move {
        let address = format!("--endpoints={}", fx.addresses()[0]);
        let place = |name| fx.backend().locate(&LockName::new(name).unwrap()).location;
        let (orders, gate) = (place("orders"), place(gate));
        // Behind the dashes the tool reads no flags of its own.
        let hold = ["lock", &orders, "--", "etcdctl", &address, "lock", &gate, "--", "etcdctl", "version"];
        fx.members()[0].exec(&hold).await
    })
}

async fn claims_of(fx: &EtcdFixture, prefix: &str) -> usize {
    fx.claims().await.iter().filter(|claim| claim.key.starts_with(prefix)).count()
}

#[tokio::test]
async fn etcdctl_and_dlock_stand_in_one_queue() {
    let fx = Arc::new(EtcdFixture::one().await);
    let (keeper, first, last) =
        (fx.client(setup()).await, fx.client(setup()).await, fx.client(setup()).await);
    let gates =
        [keeper.lock("gate-1").acquire().await.unwrap(), keeper.lock("gate-2").acquire().await.unwrap()];
    let [first_gate, second_gate] = gates;

    // The tool holds: we are told so, see who it is, and queue behind it.
    let tool = etcdctl_lock(&fx, "gate-1");
    until("the tool holds", async || claims_of(&fx, "dlock/gate-1/").await == 2).await;
    assert!(first.lock("orders").try_acquire().await.unwrap().is_none(), "P1: etcdctl holds it");
    assert!(first.lock("orders").holder().await.unwrap().unwrap().owner.starts_with("lease "));
    let waiting = queue_up(&fx, &first.lock("orders"), 2).await;

    // The tool behind us, and we behind that.
    let behind = etcdctl_lock(&fx, "gate-2");
    until("the tool waits", async || claims_of(&fx, "dlock/orders/").await == 3).await;
    let latest = queue_up(&fx, &last.lock("orders"), 4).await;

    assert!(!waiting.is_finished() && !tool.is_finished());
    first_gate.release().await.unwrap();
    let guard = got(waiting).await;
    tool.await.unwrap().expect("etcdctl had the lock and gave it back");
    assert_eq!(claims_of(&fx, "dlock/gate-2/").await, 1, "P1: etcdctl got a lock that dlock holds");
    assert!(guard.is_held() && !behind.is_finished() && !latest.is_finished());

    guard.release().await.unwrap();
    until("the tool holds", async || claims_of(&fx, "dlock/gate-2/").await == 2).await;
    assert!(!latest.is_finished(), "P1: dlock got a lock that etcdctl holds");
    second_gate.release().await.unwrap();
    let guard = got(latest).await;
    behind.await.unwrap().expect("etcdctl had the lock and gave it back");
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn names_that_need_encoding_meet_too() {
    let fx = EtcdFixture::one().await;
    let client = fx.client(setup()).await;
    let name = LockName::new("a/b %2F🔒").unwrap();
    let location = client.locks.locate(&name);
    assert_eq!(location.location, "dlock/a%2Fb%20%252F%F0%9F%94%92");
    let guard = client.lock(name.as_str()).acquire().await.unwrap();
    // What `dlock locate` prints shows the holder.
    let shown = fx.members()[0].exec(&["get", "--prefix", &format!("{}/", location.location)]).await.unwrap();
    assert!(shown.contains(client.locks.owner()), "{shown}");
    guard.release().await.unwrap();
    let free = fx.members()[0].exec(&["lock", &location.location, "etcdctl", "version"]).await.unwrap();
    assert!(free.contains("etcdctl version"), "{free}");
    end(&fx).await;
}
