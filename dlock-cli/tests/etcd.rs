//! The command on etcd, whose own tool stands in the same queue.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use sandbox::Sandbox;
use test_servers::{Etcd, Server};

#[test]
fn every_verb_works_on_etcd() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let server = runtime.block_on(Server::start(Etcd::v3_5())).unwrap();
    let url = format!("etcd://{}?ttl=3s", server.addr());
    let sandbox = Sandbox::new();
    let dlock = |verb: &[&str], rest: &[&str]| sandbox.dlock_ends(&[verb, &["--url", &url], rest].concat());

    dlock(&["init"], &[]).expect(0, "");
    let token = |finished: sandbox::Finished| finished.stdout.trim().parse::<u64>().unwrap();
    let script = &["nightly", "--", "sh", "-c", "echo $DLOCK_TOKEN"];
    let first = token(dlock(&["run"], script));
    let second = token(dlock(&["run"], script));
    assert!(second > first, "tokens rise: {first}, {second}");

    let located = dlock(&["locate"], &["--json", "nightly"]);
    let located: serde_json::Value = serde_json::from_str(&located.stdout).unwrap();
    assert_eq!((&located["backend"], &located["location"]), (&"etcd".into(), &"dlock/nightly".into()));

    // What it prints is what etcd's own tool takes; that holds it here until it has had another lock.
    let gate = runtime.block_on(async {
        let locks = dlock::connect(&url).await.unwrap();
        locks.lock("gate").unwrap().acquire().await.unwrap()
    });
    let address = format!("--endpoints={}", server.addr());
    let hold = [
        "lock",
        "dlock/nightly",
        "--",
        "etcdctl",
        &address,
        "lock",
        "dlock/gate",
        "--",
        "etcdctl",
        "version",
    ];
    std::thread::scope(|scope| {
        let tool = scope.spawn(|| runtime.block_on(server.exec(&hold)).unwrap());
        let quick = &["--no-wait", "nightly", "--", "true"];
        sandbox::until(&"etcdctl holds it", || (dlock(&["run"], quick).code() == 75).then_some(()));
        runtime.block_on(gate.release()).unwrap();
        tool.join().unwrap();
        dlock(&["run"], quick).expect(0, "");
    });

    let checked = dlock(&["check"], &[]);
    checked.expect(0, "cases passed");
    assert!(!checked.stderr.contains("FAIL"), "{}", checked.stderr);
    let left = runtime.block_on(server.exec(&["get", "--prefix", "--keys-only", "dlock/"])).unwrap();
    assert!(left.trim().is_empty(), "the processes that ended left {left}");
}
