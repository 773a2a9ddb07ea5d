//! What the command sees, and what dlock ends with.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;
use sandbox::{Sandbox, until};

#[test]
fn exit_codes_pass_through() {
    let sandbox = Sandbox::new();
    for code in [0, 1, 2, 64, 70, 75, 126, 127, 128, 255] {
        let finished = sandbox.run(&[], &format!("exit {code}")).ends();
        assert_eq!(finished.code(), code);
        assert_eq!(
            finished.complaints(),
            Vec::<&str>::new(),
            "dlock says nothing when nothing is to be said"
        );
    }
}

#[test]
fn a_signal_that_ends_the_command_is_128_more() {
    let sandbox = Sandbox::new();
    for (name, code) in [("TERM", 143), ("INT", 130), ("KILL", 137), ("USR1", 138)] {
        assert_eq!(sandbox.run(&[], &format!("kill -{name} $$")).ends().code(), code, "{name}");
    }
}

#[test]
fn signals_are_passed_on() {
    let sandbox = Sandbox::new();
    for (signal, name, code) in [
        (Signal::TERM, "TERM", 143),
        (Signal::INT, "INT", 130),
        (Signal::HUP, "HUP", 129),
        (Signal::QUIT, "QUIT", 131),
        (Signal::USR1, "USR1", 138),
        (Signal::USR2, "USR2", 140),
    ] {
        // One command heeds the signal, one does not know of it.
        let heeds =
            format!("trap 'echo {name} >> seen; exit 9' {name}; touch ready; while :; do sleep 0.01; done");
        for (script, code) in [(heeds.as_str(), 9), ("touch ready; exec sleep 300", code)] {
            let running = sandbox.run(&[], script);
            until(&"the command runs", || fs::remove_file(sandbox.path("ready")).ok());
            running.signal(signal);
            assert_eq!(running.ends().code(), code, "{name}");
        }
    }
    assert_eq!(sandbox.lines("seen"), ["TERM", "INT", "HUP", "QUIT", "USR1", "USR2"]);
}

#[test]
fn a_stopped_command_hears_of_the_end() {
    let sandbox = Sandbox::new();
    let running = sandbox.run(&[], "echo $$ > pid; exec sleep 300");
    let pid = sandbox.wait_for_pid("pid");
    sandbox::signal_to(pid, Signal::STOP);
    until(&"it is stopped", || sandbox::is_stopped(pid).then_some(()));
    running.signal(Signal::TERM);
    assert_eq!(running.ends().code(), 143);
}

#[test]
fn dlock_cannot_be_suspended() {
    let sandbox = Sandbox::new();
    let running = sandbox.run(&[], "echo $$ > pid; exec sleep 300");
    sandbox.wait_for_pid("pid");
    running.signal(Signal::TSTP);
    running.says("not suspended");
    running.signal(Signal::TERM);
    assert_eq!(running.ends().code(), 143);
}

#[test]
fn an_ignored_signal_stays_ignored() {
    let sandbox = Sandbox::new();
    let mut command = std::process::Command::new("sh");
    sandbox.prepare(&mut command);
    // As nohup does it.
    let script = format!(
        "trap '' HUP; exec '{}' run lock -- sh -c 'touch ready; while [ ! -e end ]; do sleep 0.01; done'",
        env!("CARGO_BIN_EXE_dlock")
    );
    let mut running = sandbox.start(command.args(["-c", &script]));
    until(&"the command runs", || sandbox.path("ready").exists().then_some(()));
    running.signal(Signal::HUP);
    assert!(running.is_running());
    fs::write(sandbox.path("end"), "").unwrap();
    assert_eq!(running.ends().code(), 0);
}

#[test]
fn the_command_gets_name_token_and_owner() {
    let sandbox = Sandbox::new();
    let arguments = [
        "run",
        "--owner",
        "night shift",
        "a/b c",
        "--",
        "sh",
        "-c",
        "echo $DLOCK_NAME; echo $DLOCK_OWNER; echo $DLOCK_TOKEN",
    ];
    let finished = sandbox.dlock_ends(&arguments);
    finished.expect(0, "");
    let lines: Vec<_> = finished.stdout.lines().collect();
    assert_eq!(lines[..2], ["a/b c", "night shift"]);
    let token: u64 = lines[2].parse().unwrap();
    let later = sandbox.dlock_ends(&["run", "a/b c", "--", "sh", "-c", "echo $DLOCK_TOKEN"]);
    assert!(later.stdout.trim().parse::<u64>().unwrap() > token);
}

#[test]
fn the_command_inherits_three_descriptors_and_no_more() {
    let sandbox = Sandbox::new();
    let finished = sandbox.run(&[], "for fd in /proc/$$/fd/*; do echo ${fd##*/}; done").ends();
    finished.expect(0, "");
    let descriptors: Vec<_> = finished.stdout.lines().filter(|fd| ["0", "1", "2"].contains(fd)).collect();
    assert_eq!(descriptors, ["0", "1", "2"]);
    // What the test program itself was given is passed on, as any program does; nothing of dlock's is.
    let own: Vec<_> = finished.stdout.lines().filter(|fd| !descriptors.contains(fd)).collect();
    let targets = sandbox.run(&[], "ls -l /proc/$$/fd").ends().stdout;
    assert!(!targets.contains("locks.db") && !targets.contains("anon_inode"), "{own:?} {targets}");
}

#[test]
fn stdin_reaches_the_command() {
    let sandbox = Sandbox::new();
    fs::write(sandbox.path("input"), "one\ntwo\n").unwrap();
    let mut command = sandbox.dlock(&["run", "lock", "--", "cat"]);
    command.stdin(fs::File::open(sandbox.path("input")).unwrap());
    assert_eq!(sandbox.start(&mut command).ends().stdout, "one\ntwo\n");
}

#[test]
fn a_command_that_cannot_start_is_told_as_a_shell_does() {
    let sandbox = Sandbox::new();
    sandbox.dlock_ends(&["run", "lock", "--", "no-such-command"]).expect(127, "command not found");
    fs::write(sandbox.path("plain"), "echo\n").unwrap();
    fs::set_permissions(sandbox.path("plain"), fs::Permissions::from_mode(0o644)).unwrap();
    sandbox.dlock_ends(&["run", "lock", "--", "./plain"]).expect(126, "cannot be executed");
    // The lock is free again.
    sandbox.dlock_ends(&["run", "--no-wait", "lock", "--", "true"]).expect(0, "");
}

#[test]
fn a_lock_may_be_taken_under_another() {
    let sandbox = Sandbox::new();
    let script = format!("'{}' run inner -- sh -c 'echo $DLOCK_NAME'", env!("CARGO_BIN_EXE_dlock"));
    let finished = sandbox.run(&[], &script).ends();
    finished.expect(0, "");
    assert_eq!(finished.stdout, "inner\n");
}

#[test]
fn it_may_be_the_first_process_of_a_container() {
    let sandbox = Sandbox::new();
    // With the process group of whoever made the namespace, which has no name inside, and with one of its own.
    for prefix in [&[][..], &["setsid", "--wait"]] {
        let mut command = std::process::Command::new("unshare");
        sandbox.prepare(&mut command);
        command.args(["--pid", "--fork", "--mount-proc"]).args(prefix).arg(env!("CARGO_BIN_EXE_dlock"));
        command.args(["run", "lock", "--", "sh", "-c", "sleep 300 & exit 7"]);
        let finished = sandbox.start(&mut command).ends();
        if finished.stderr.contains("unshare failed") {
            eprintln!("not run, as this user may not make a PID namespace: {}", finished.stderr);
            return;
        }
        finished.expect(7, "");
    }
}
