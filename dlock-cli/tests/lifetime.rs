//! The lock covers the command: mutual exclusion, and what happens when the lock, dlock or the command goes first.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use std::time::Duration;

use dlock::{Clock, SystemClock};
use rustix::process::Signal;
use sandbox::{Sandbox, is_alive, is_stopped, signal_to, until, uptime};

/// Ignores what may be ignored, in itself and in two children, and writes its process ids.
const STUBBORN: &str = "trap '' TERM INT HUP; \
    (trap '' TERM; while :; do cat /proc/uptime >> beats; sleep 0.01; done) & \
    sh -c \"trap '' TERM; sleep 300\" & \
    echo $$ > pid; while :; do sleep 300; done";

#[test]
fn no_update_is_lost_and_tokens_rise() {
    const PROCESSES: usize = 8;
    const ROUNDS: usize = 50;
    let sandbox = Sandbox::new();
    std::fs::write(sandbox.path("n"), "0\n").unwrap();
    // The file is empty for a moment, so that a second writer would do the greatest harm.
    let update = "n=$(cat n); : > n; echo $((n + 1)) > n; echo $DLOCK_TOKEN >> tokens";
    let workers: Vec<_> = (0..PROCESSES)
        .map(|_| {
            let script = format!(
                "for i in $(seq {ROUNDS}); do '{}' run lock -- sh -c '{update}' || exit; done",
                env!("CARGO_BIN_EXE_dlock")
            );
            let mut command = std::process::Command::new("sh");
            sandbox.prepare(&mut command);
            sandbox.start(command.args(["-c", &script]))
        })
        .collect();
    for worker in workers {
        assert_eq!(worker.ends().code(), 0);
    }
    assert_eq!(sandbox.read("n"), format!("{}\n", PROCESSES * ROUNDS));
    let tokens: Vec<u64> = sandbox.lines("tokens").iter().map(|token| token.parse().unwrap()).collect();
    assert_eq!(tokens.len(), PROCESSES * ROUNDS);
    assert!(tokens.is_sorted_by(|a, b| a < b), "{tokens:?}");
}

#[test]
fn a_killed_holder_is_replaced_and_its_command_is_gone() {
    const TTL: Duration = Duration::from_secs(6);
    let sandbox = Sandbox::new();
    let holder = sandbox.run(&["--ttl", "6s"], STUBBORN);
    let pid = sandbox.wait_for_pid("pid");
    let successor = sandbox.run(
        &["--ttl", "6s"],
        &format!("if kill -0 {pid} 2>/dev/null; then echo there; else echo gone; fi > first; cat /proc/uptime > since"),
    );
    successor.says("waiting for lock");
    let killed = SystemClock.now();
    holder.signal(Signal::KILL);
    assert_eq!(successor.ends().code(), 0);
    let took = SystemClock.now().since(killed);
    assert!(took < TTL * 2, "more than one lease, and what a busy machine adds: {took:?}");
    assert_eq!(sandbox.read("first"), "gone\n");
    let last = uptime(sandbox.lines("beats").last().unwrap());
    assert!(last <= uptime(&sandbox.read("since")), "the first command worked on");
    drop(holder);
}

#[test]
fn a_command_that_ends_takes_its_group_along() {
    let sandbox = Sandbox::new();
    let script = "sleep 300 & (trap 'echo asked > asked; exit' TERM; touch ready; while :; do sleep 0.01; done) & \
         while [ ! -e ready ]; do sleep 0.01; done; exit 7";
    let finished = sandbox.run(&[], script).ends();
    finished.expect(7, "");
    // What the shell says of its own children is its affair.
    assert!(!finished.complaints().iter().any(|line| line.contains("dlock")), "{finished:?}");
    assert_eq!(sandbox.read("asked"), "asked\n", "TERM comes before KILL");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
}

#[test]
fn what_ignores_term_is_killed_after_the_command() {
    let sandbox = Sandbox::new();
    let script = "(trap '' TERM; touch ready; while :; do sleep 300; done) & \
         while [ ! -e ready ]; do sleep 0.01; done; exit 7";
    let finished = sandbox.run(&["--ttl", "3s", "--grace", "200ms"], script).ends();
    finished.expect(7, "were killed");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
}

#[test]
fn the_longest_hold_stops_command_and_grandchildren() {
    let sandbox = Sandbox::new();
    let finished = sandbox.run(&["--ttl", "3s", "--max-hold", "1s"], STUBBORN).ends();
    finished.expect(70, "longest allowed hold");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
}

#[test]
fn a_command_that_heeds_term_may_clean_up() {
    let sandbox = Sandbox::new();
    let script = "trap 'echo cleaned > cleaned; exit 0' TERM; touch ready; while :; do sleep 0.01; done";
    let finished = sandbox.run(&["--ttl", "15s", "--grace", "4s", "--max-hold", "8s"], script).ends();
    finished.expect(70, "longest allowed hold");
    assert_eq!(sandbox.read("cleaned"), "cleaned\n");
}

#[test]
fn frozen_past_the_lease_it_kills_at_wake_up() {
    let mut sandbox = Sandbox::new();
    sandbox.leaves_rows = true;
    let holder = sandbox.run(&["--ttl", "2s"], STUBBORN);
    let pid = sandbox.wait_for_pid("pid");
    // As a frozen virtual machine: guard and dlock stand still.
    let guard = holder.guard();
    for frozen in [guard, holder.pid()] {
        signal_to(frozen, Signal::STOP);
        until(&"it stands still", || is_stopped(frozen).then_some(()));
    }
    // Nobody can stop the command now, and the lock passes on.
    let successor = sandbox.run(&["--ttl", "2s"], "true");
    successor.ends().expect(0, "");
    assert!(is_alive(pid));
    let woken = SystemClock.now();
    holder.signal(Signal::CONT);
    let finished = holder.ends();
    finished.expect(70, "the lease ran out");
    assert!(SystemClock.now().since(woken) < Duration::from_secs(5), "it did not wait for anything");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
}

#[test]
fn while_dlock_alone_is_frozen_its_guard_kills_in_time() {
    let sandbox = Sandbox::new();
    let holder = sandbox.run(&["--ttl", "2s"], STUBBORN);
    let pid = sandbox.wait_for_pid("pid");
    holder.signal(Signal::STOP);
    let successor = sandbox.run(&["--ttl", "2s"], "cat /proc/uptime > since");
    successor.ends().expect(0, "");
    assert!(!is_alive(pid));
    let last = uptime(sandbox.lines("beats").last().unwrap());
    assert!(last <= uptime(&sandbox.read("since")), "the first command worked on");
    holder.signal(Signal::CONT);
    holder.ends().expect(70, "was lost");
}

/// As above, at the earliest moment there is.
#[test]
fn a_command_whose_first_deed_freezes_dlock_is_killed_in_time() {
    let sandbox = Sandbox::new();
    let holder = sandbox.run(&["--ttl", "2s"], &format!("kill -STOP $PPID; {STUBBORN}"));
    let pid = sandbox.wait_for_pid("pid");
    sandbox.run(&["--ttl", "2s"], "cat /proc/uptime > since").ends().expect(0, "");
    until(&"the command is killed", || (!is_alive(pid)).then_some(()));
    let last = uptime(sandbox.lines("beats").last().unwrap());
    assert!(last <= uptime(&sandbox.read("since")), "the first command worked on");
    holder.signal(Signal::CONT);
    holder.ends().expect(70, "was lost");
}

#[test]
fn a_store_that_takes_no_renewals_ends_the_command_within_the_lease() {
    let mut sandbox = Sandbox::new();
    // Its release cannot be told to the store either.
    sandbox.leaves_rows = true;
    let holder = sandbox.run(&["--ttl", "2s"], STUBBORN);
    sandbox.wait_for_pid("pid");
    let database = sandbox.database();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    let expires: i64 =
        database.query_row("SELECT expires_ns FROM claim WHERE name = 'lock'", [], |row| row.get(0)).unwrap();
    holder.ends().expect(70, "the lease ran out");
    let last = uptime(sandbox.lines("beats").last().unwrap());
    #[allow(clippy::cast_precision_loss)]
    let expires = expires as f64 / 1e9;
    assert!(last <= expires, "beat at {last}, the lease ended at {expires}");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
    database.execute_batch("COMMIT").unwrap();
    // The lock passes on.
    sandbox.run(&["--ttl", "2s"], "true").ends().expect(0, "");
}

#[test]
fn a_lock_that_is_removed_ends_the_command_at_once() {
    let sandbox = Sandbox::new();
    // Long, so that nothing here is the end of the lease.
    let holder = sandbox.run(&["--ttl", "15s", "--grace", "4s"], STUBBORN);
    sandbox.wait_for_pid("pid");
    let removed = SystemClock.now();
    assert_eq!(sandbox.database().execute("DELETE FROM claim", []).unwrap(), 1);
    holder.ends().expect(70, "removed from the store");
    let took = SystemClock.now().since(removed);
    assert!(took < Duration::from_secs(10), "told at the next renewal, killed without grace: {took:?}");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
}

#[test]
fn without_its_guard_the_command_is_stopped() {
    let sandbox = Sandbox::new();
    let holder = sandbox.run(&[], STUBBORN);
    sandbox.wait_for_pid("pid");
    signal_to(holder.guard(), Signal::KILL);
    holder.ends().expect(70, "guard process");
    assert_eq!(sandbox.processes(), Vec::<String>::new(), "before dlock ends");
}

#[test]
fn the_guard_outlives_what_the_group_is_sent() {
    let sandbox = Sandbox::new();
    let mut holder = sandbox.run(
        &[],
        "trap 'echo $((n = n + 1)) > got' TERM INT HUP QUIT USR1 USR2; echo $$ > pid; \
         while [ \"$(cat got 2>/dev/null)\" != 6 ]; do sleep 0.01; done; echo all > all; while :; do sleep 0.01; done",
    );
    sandbox.wait_for_pid("pid");
    let guard = holder.guard();
    for (count, signal) in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::USR1, Signal::USR2]
        .into_iter()
        .enumerate()
    {
        rustix::process::kill_process_group(rustix::process::Pid::from_raw(guard).unwrap(), signal).unwrap();
        until(&"the command has seen the signal", || {
            (sandbox.read("got") == format!("{}\n", count + 1)).then_some(())
        });
    }
    sandbox.wait_for("all");
    assert!(is_alive(guard) && holder.is_running());
    // It still does what it is for.
    holder.signal(Signal::KILL);
    sandbox.wait_for_silence();
    drop(holder);
    sandbox.run(&[], "true").ends().expect(0, "");
}

#[test]
fn what_is_left_behind_past_the_lease_counts_as_a_loss() {
    let mut sandbox = Sandbox::new();
    sandbox.leaves_rows = true;
    let script = "(trap '' TERM; echo $$ > pid; while :; do sleep 300; done) & \
         while [ ! -e pid ]; do sleep 0.01; done; touch ended; exit 0";
    let holder = sandbox.run(&["--ttl", "15s", "--grace", "4900ms"], script);
    until(&"the command has ended", || sandbox.path("ended").exists().then_some(()));
    // Before its grace is over.
    let guard = holder.guard();
    for frozen in [guard, holder.pid()] {
        signal_to(frozen, Signal::STOP);
        until(&"it stands still", || is_stopped(frozen).then_some(()));
    }
    sandbox.run(&[], "true").ends().expect(0, "");
    holder.signal(Signal::CONT);
    holder.ends().expect(70, "the lease ran out");
}

#[test]
fn a_release_that_the_store_does_not_confirm_changes_no_exit_code() {
    let mut sandbox = Sandbox::new();
    sandbox.leaves_rows = true;
    let script = "touch held; while [ ! -e end ]; do sleep 0.01; done; exit 3";
    let holder = sandbox.run(&["--ttl", "6s"], script);
    until(&"the lock is held", || sandbox.path("held").exists().then_some(()));
    let database = sandbox.database();
    database.execute_batch("BEGIN IMMEDIATE").unwrap();
    std::fs::write(sandbox.path("end"), "").unwrap();
    holder.ends().expect(3, "was not confirmed by the store");
    database.execute_batch("COMMIT").unwrap();
}
