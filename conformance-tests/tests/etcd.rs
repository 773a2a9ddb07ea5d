//! The suite over the etcd backend, with one member and with three.

use std::process::Command;
use std::time::Duration;

use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::patience::{soon, until};
use conformance_tests::worker::Crowd;
use conformance_tests::{Fixture, Setup, Time, conformance_suite, nothing_is_left, process_suite};

conformance_suite!(etcd, Time::Real, EtcdFixture::one().await);
process_suite!(etcd_processes, EtcdFixture::one().await.with_worker(env!("CARGO_BIN_EXE_lock-worker")));

conformance_suite!(etcd_cluster, Time::Real, EtcdFixture::three().await);
process_suite!(
    etcd_cluster_processes,
    EtcdFixture::three().await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);

/// Budget of a queue: who leaves it wakes the next one and nobody else.
#[tokio::test]
async fn a_thousand_waiters_in_ten_processes_are_no_herd() {
    const PROCESSES: usize = 10;
    let fx = EtcdFixture::one().await;
    let operator = fx.operator();
    // Nobody renews or gives up meanwhile.
    let holder = fx.client(Setup::new().ttl(Duration::from_secs(300))).await;
    let guard = holder.lock(Crowd::LOCK).acquire().await.expect("the lock is free");
    let worker = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lock-worker"));
        command.arg(format!("etcd://{}?ttl=300s", fx.addresses().join(",")));
        command
    };
    let mut crowd = Crowd::gather(fx.profile(), (0..PROCESSES).map(|_| worker())).await;
    let all_wait = until(fx.profile(), async || operator.watches().await == PROCESSES as u64);
    soon(fx.profile(), "all processes wait", all_wait).await;
    assert_eq!(fx.claims().await.len(), 1 + PROCESSES, "one claim for each process");
    let counts = async || {
        let mut counts = Vec::new();
        for method in ["Txn", "Range", "Watch", "Put", "DeleteRange", "LeaseGrant"] {
            counts.push(operator.calls(method).await);
        }
        counts
    };
    let before = counts().await;
    let turns = crowd.pass(guard).await;
    let cost: Vec<_> = counts().await.into_iter().zip(before).map(|(now, then)| now - then).collect();
    let [txns, reads, watches, others @ ..] = &cost[..] else { unreachable!("that many are counted") };
    // Each turn: a claim and a release; and if it waited, a watch with the look behind it, and the look when it is woken.
    assert!(
        *txns <= 2 * turns + 1 && *reads <= 2 * turns + 1 && *watches <= turns,
        "{cost:?} for {turns} turns"
    );
    assert_eq!(others, [0, 0, 0], "Put, DeleteRange, LeaseGrant");
    crowd.finish().await;
    nothing_is_left(&fx).await;
}
