//! The command on ZooKeeper, whose own tool shows what it made.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use sandbox::Sandbox;
use test_servers::{Server, ZooKeeper};

#[test]
fn every_verb_works_on_zookeeper() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let kind = ZooKeeper::v3_9().config("tickTime=200").config("maxSessionTimeout=60000");
    // So that empty nodes stay for a look at them.
    let kind = kind.property("znode.container.checkIntervalMs=3600000");
    let server = runtime.block_on(Server::start(kind)).unwrap();
    let url = format!("zk://{}?ttl=3s&tick=200ms", server.addr());
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
    assert_eq!((&located["backend"], &located["location"]), (&"zk".into(), &"/dlock/nightly".into()));

    // What it prints is what ZooKeeper's own tool takes: a node made by hand in the layout of the recipe is respected.
    let zk = |command: &[&str]| runtime.block_on(server.exec(command)).unwrap();
    zk(&["create", "/dlock/nightly/by-hand-lock-0000000000"]);
    let quick = &["--no-wait", "nightly", "--", "true"];
    assert_eq!(dlock(&["run"], quick).code(), 75);
    zk(&["delete", "/dlock/nightly/by-hand-lock-0000000000"]);
    dlock(&["run"], quick).expect(0, "");

    let checked = dlock(&["check"], &[]);
    checked.expect(0, "cases passed");
    assert!(!checked.stderr.contains("FAIL"), "{}", checked.stderr);
    let sessions = zk(&["ls", "/dlock/.session"]);
    assert!(sessions.trim().ends_with("[]"), "the processes that ended left {sessions}");
}
