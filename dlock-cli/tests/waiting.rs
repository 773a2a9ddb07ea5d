//! Waiting for the lock, and not waiting for it.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use std::time::Duration;

use dlock::{Clock, SystemClock};
use rustix::process::Signal;
use sandbox::{Running, Sandbox, until};

/// Holds the lock until a file named `end` appears.
fn holder(sandbox: &Sandbox) -> Running {
    let script = "touch held; while [ ! -e end ]; do sleep 0.01; done";
    let running = sandbox.run(&["--owner", "first"], script);
    until(&"the lock is held", || sandbox.path("held").exists().then_some(()));
    running
}

fn release(sandbox: &Sandbox, holder: Running) {
    std::fs::write(sandbox.path("end"), "").unwrap();
    holder.ends().expect(0, "");
}

#[test]
fn it_waits_and_says_for_whom() {
    let sandbox = Sandbox::new();
    let first = holder(&sandbox);
    let second = sandbox.run(&[], "echo mine");
    second.says("waiting for lock \"lock\" in sqlite:");
    second.says(", held by first since 20");
    release(&sandbox, first);
    let finished = second.ends();
    finished.expect(0, "");
    assert_eq!(finished.stdout, "mine\n");
    assert_eq!(finished.stderr.lines().count(), 1, "one line where stderr is no terminal");
}

#[test]
fn no_wait_ends_at_once() {
    let sandbox = Sandbox::new();
    let first = holder(&sandbox);
    let started = SystemClock.now();
    let finished = sandbox.run(&["--no-wait"], "echo never").ends();
    finished.expect(75, "lock \"lock\" was not acquired, held by first since");
    assert_eq!(finished.stdout, "");
    assert!(SystemClock.now().since(started) < Duration::from_secs(5));
    release(&sandbox, first);
    sandbox.run(&["--no-wait"], "true").ends().expect(0, "");
}

#[test]
fn wait_ends_in_time() {
    let sandbox = Sandbox::new();
    let first = holder(&sandbox);
    for (wait, least) in [("0s", 0), ("3s", 3000)] {
        let started = SystemClock.now();
        sandbox.run(&["--wait", wait], "echo never").ends().expect(75, "not acquired, held by first");
        assert!(SystemClock.now().since(started) >= Duration::from_millis(least));
    }
    release(&sandbox, first);
    sandbox.run(&["--wait", "30s"], "true").ends().expect(0, "");
}

#[test]
fn a_signal_ends_the_wait() {
    let sandbox = Sandbox::new();
    let first = holder(&sandbox);
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129), (Signal::QUIT, 131)] {
        let second = sandbox.run(&[], "echo never");
        second.says("waiting");
        // Those that end no wait.
        second.signal(Signal::USR1);
        second.signal(Signal::USR2);
        let sent = SystemClock.now();
        second.signal(signal);
        let finished = second.ends();
        assert_eq!(finished.code(), code);
        assert!(SystemClock.now().since(sent) < Duration::from_secs(5));
        assert_eq!(finished.stdout, "");
    }
    assert_eq!(sandbox.rows(), 1, "the holder's only");
    release(&sandbox, first);
}

#[test]
fn a_lock_of_the_same_name_around_it_is_remarked_upon() {
    let sandbox = Sandbox::new();
    let script = format!("exec '{}' run --wait 4s lock -- true", env!("CARGO_BIN_EXE_dlock"));
    sandbox.run(&[], &script).ends().expect(75, "waits for itself");
}

/// Puts a row there as a holder leaves it whose machine was switched off.
fn row_of_another_boot(sandbox: &Sandbox, lease_ms: u32) {
    sandbox.run(&[], "true").ends().expect(0, "");
    sandbox
        .database()
        .execute(
            "INSERT INTO claim (name, claim, token, version, lease_ms, expires_ns, clock, holder) \
             VALUES ('lock', '0123456789abcdef0123456789abcdef', 1, 1, ?1, 1, 'another boot', \
             '{\"owner\":\"past\",\"since_ms\":1}')",
            [lease_ms],
        )
        .unwrap();
}

#[test]
fn no_wait_waits_out_what_a_dead_holder_left() {
    let sandbox = Sandbox::new();
    row_of_another_boot(&sandbox, 1500);
    let started = SystemClock.now();
    let finished = sandbox.run(&["--no-wait"], "echo mine").ends();
    finished.expect(0, "waiting for that");
    assert_eq!(finished.stdout, "mine\n");
    assert!(SystemClock.now().since(started) >= Duration::from_millis(1500));
}

#[test]
fn no_wait_gives_way_to_a_holder_that_stirs() {
    let mut sandbox = Sandbox::new();
    sandbox.leaves_rows = true;
    row_of_another_boot(&sandbox, 10_000);
    let second = sandbox.run(&["--no-wait"], "echo never");
    second.says("waiting for that");
    sandbox.database().execute("UPDATE claim SET version = version + 1", []).unwrap();
    let finished = second.ends();
    finished.expect(75, "not acquired, held by past");
    assert_eq!(finished.stdout, "");
}
