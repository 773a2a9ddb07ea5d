//! The suite over the ZooKeeper backend, with one server and with an ensemble of three.

use std::process::Command;
use std::time::Duration;

use conformance_tests::fixtures::ZkFixture;
use conformance_tests::patience::{soon, until};
use conformance_tests::worker::Crowd;
use conformance_tests::{Fixture, Setup, Time, conformance_suite, nothing_is_left, process_suite};
use test_servers::{Protocol, Proxy};

conformance_suite!(zk, Time::Real, ZkFixture::one().await);
process_suite!(zk_processes, ZkFixture::one().await.with_worker(env!("CARGO_BIN_EXE_lock-worker")));

conformance_suite!(zk_ensemble, Time::Real, ZkFixture::three().await);
process_suite!(
    zk_ensemble_processes,
    ZkFixture::three().await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);

/// Budget of a queue: who leaves it wakes the next one and nobody else.
#[tokio::test]
async fn a_thousand_waiters_in_ten_processes_are_no_herd() {
    const PROCESSES: usize = 10;
    let fx = ZkFixture::one().await;
    // Nobody renews or gives up meanwhile.
    let holder = fx.client(Setup::new().ttl(Duration::from_secs(300))).await;
    let guard = holder.lock(Crowd::LOCK).acquire().await.expect("the lock is free");
    let mut proxies = Vec::new();
    for _ in 0..PROCESSES {
        let proxy = Proxy::speaking(Protocol::ZooKeeper, fx.members()[0].addr()).await;
        proxies.push(proxy.expect("a proxy can be started"));
    }
    let worker = |proxy: &Proxy| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lock-worker"));
        command.arg(format!("zk://{}?ttl=300s&tick=40s", proxy.addr()));
        command
    };
    let mut crowd = Crowd::gather(fx.profile(), proxies.iter().map(worker)).await;
    let watches = async || {
        let watches = fx.operator().watches().await.into_iter();
        watches.filter(|(path, _)| path.contains("-lock-")).map(|(_, count)| count).sum::<usize>()
    };
    // Each watches the node ahead of its own; the holder watches its own.
    let all_wait = until(fx.profile(), async || watches().await == PROCESSES + 1);
    soon(fx.profile(), "all processes wait", all_wait).await;
    assert_eq!(fx.claims().await.len(), 1 + PROCESSES, "one claim for each process");
    for proxy in &proxies {
        proxy.reset_counts();
    }
    let turns = crowd.pass(guard).await;
    let counts: Vec<_> = proxies.iter().map(Proxy::counts).collect();
    let count = |names: &[&str]| -> u64 {
        counts.iter().map(|counts| names.iter().map(|name| counts.request(name)).sum::<u64>()).sum()
    };
    // Each turn: a claim with its list, and a release. If it waited, a watch on the node ahead, and a look when it is woken.
    // Behind the grant a watch on the own node.
    let lists = ["getChildren", "getChildren2"];
    assert!(count(&["multi"]) <= turns && count(&["delete"]) <= turns, "{counts:?}");
    assert!(count(&lists) <= 2 * turns && count(&["getData"]) <= 2 * turns, "{counts:?}");
    let expected = ["multi", "delete", "getChildren", "getChildren2", "getData", "ping"];
    for counts in &counts {
        assert!(counts.requests.keys().all(|name| expected.contains(&name.as_str())), "{counts:?}");
    }
    crowd.finish().await;
    nothing_is_left(&fx).await;
}
