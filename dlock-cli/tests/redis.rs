//! On a real Redis server: preparing it, running under a lock, and waiting out the quarantine after a restart.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use sandbox::Sandbox;
use test_servers::{Redis, Server};
use tokio::runtime::Runtime;

/// A server, and a URL whose quarantine is short, and yet longer than a busy machine takes to start a process or two.
fn redis(runtime: &Runtime) -> (Server, String) {
    let kind = Redis::v8().config("appendonly yes").config("appendfsync always");
    let server = runtime.block_on(Server::start(kind)).unwrap_or_else(|error| panic!("{error}"));
    let url = format!("redis://{}?ttl=2s&restart_delay=12s", server.addr());
    (server, url)
}

#[test]
fn a_new_server_is_prepared_and_checked() {
    let runtime = Runtime::new().unwrap();
    let (server, url) = redis(&runtime);
    let sandbox = Sandbox::new();
    let finished = sandbox.dlock_ends(&["init", "--url", &url]);
    finished.expect(0, &format!("{} is marked as new", server.addr()));
    finished.expect(0, "is ready (redis)");
    sandbox.dlock_ends(&["init", "--url", &url]).expect(0, "had a mark already, which was left as it is");

    let located = sandbox.dlock_ends(&["locate", "--url", &url, "orders/42"]);
    located.expect(0, "redis-cli -h");
    assert_eq!(located.stdout, "dlock:lock:orders%2F42\n");

    let finished = sandbox.dlock_ends(&["check", "--url", &url]);
    finished.expect(0, "cases passed");
    finished.expect(0, "waiting for the store to be ready");
    assert!(!finished.stderr.contains("FAIL"), "{}", finished.stderr);
    let keys = runtime.block_on(server.exec(&["--scan", "--pattern", "dlock:lock:*"])).unwrap();
    assert_eq!(keys.trim(), "", "a check leaves no lock");
}

#[test]
fn a_restarted_server_is_waited_for_and_the_reason_is_told() {
    let runtime = Runtime::new().unwrap();
    let (server, url) = redis(&runtime);
    let sandbox = Sandbox::new();
    let run = |options: &[&str]| {
        let mut arguments = vec!["run", "--url", &url];
        arguments.extend(options);
        arguments.extend(["job", "--", "sh", "-c", "echo $DLOCK_TOKEN"]);
        sandbox.dlock_ends(&arguments)
    };
    sandbox.dlock_ends(&["init", "--url", &url]).expect(0, "");
    let first = run(&[]);
    first.expect(0, "");

    runtime.block_on(async {
        server.kill().await.unwrap();
        server.start_again().await.unwrap();
    });
    let refused = run(&["--no-wait"]);
    refused.expect(69, "grants no lock until 20");
    refused.expect(69, "restart_delay");
    let second = run(&[]);
    second.expect(0, "waiting for lock \"job\" in redis://");
    second.expect(0, "grants no lock until 20");
    let token = |stdout: &str| stdout.trim().parse::<u64>().unwrap();
    assert!(token(&second.stdout) > token(&first.stdout), "tokens rise over a restart");
}
