//! On a terminal: the command may be interactive, and a person sees what dlock waits for.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use sandbox::{Sandbox, until};

/// A process that has a terminal of its own, as a login shell has.
struct Session {
    child: Child,
    terminal: File,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Session {
    fn start(sandbox: &Sandbox, command: &[&str]) -> Self {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let side = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let mut setsid = Command::new("setsid");
        sandbox.prepare(&mut setsid);
        setsid.arg("--ctty").args(command);
        setsid.stdin(side.try_clone().unwrap()).stdout(side.try_clone().unwrap()).stderr(side);
        let child = setsid.spawn().unwrap();
        let terminal = File::from(terminal);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, shared) = (terminal.try_clone().unwrap(), Arc::clone(&seen));
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                shared.lock().unwrap().extend(&bytes[..count]);
            }
        });
        Self { child, terminal, seen }
    }

    fn types(&mut self, text: &str) {
        self.terminal.write_all(text.as_bytes()).unwrap();
    }

    fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    fn shows(&self, text: &str) {
        until(&|| format!("{text:?} on the screen {:?}", self.screen()), || {
            self.screen().contains(text).then_some(())
        });
    }

    #[track_caller]
    fn ends(&mut self) -> ExitStatus {
        until(&"the process ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

const DLOCK: &str = env!("CARGO_BIN_EXE_dlock");

#[test]
fn the_command_reads_what_is_typed() {
    let sandbox = Sandbox::new();
    let mut session = Session::start(
        &sandbox,
        &[DLOCK, "run", "lock", "--", "sh", "-c", "echo ready; read line; echo got:$line"],
    );
    session.shows("ready");
    session.types("hello\n");
    session.shows("got:hello");
    assert_eq!(session.ends().code(), Some(0));
}

#[test]
fn in_a_pipeline_the_command_gets_the_terminal_when_it_asks() {
    let sandbox = Sandbox::new();
    let script = format!("'{DLOCK}' run lock -- sh -c 'echo ready; read line; echo got:$line' | cat");
    let mut session = Session::start(&sandbox, &["sh", "-c", &script]);
    session.shows("ready");
    session.types("hello\n");
    session.shows("got:hello");
    assert_eq!(session.ends().code(), Some(0));
}

#[test]
fn the_terminal_comes_back() {
    let sandbox = Sandbox::new();
    for command in ["true", "sh -c 'kill -9 $$'", "no-such-command"] {
        let script = format!("'{DLOCK}' run lock -- {command}; echo ready; read line; echo got:$line");
        let mut session = Session::start(&sandbox, &["sh", "-c", &script]);
        session.shows("ready");
        session.types("hello\n");
        session.shows("got:hello");
        assert_eq!(session.ends().code(), Some(0));
    }
}

#[test]
fn an_interrupt_reaches_the_command() {
    let sandbox = Sandbox::new();
    let heeds = "trap 'echo caught; exit 5' INT; echo ready; while :; do sleep 0.01; done";
    let mut session = Session::start(&sandbox, &[DLOCK, "run", "lock", "--", "sh", "-c", heeds]);
    session.shows("ready");
    session.types("\x03");
    session.shows("caught");
    assert_eq!(session.ends().code(), Some(5));
}

#[test]
fn an_interrupt_stops_the_script_around_dlock() {
    let sandbox = Sandbox::new();
    for pipe in ["", " | cat"] {
        let script = format!("'{DLOCK}' run lock -- sh -c 'echo ready; exec sleep 300'{pipe}; echo went on");
        // bash, since not every shell goes by how its command ended.
        let mut session = Session::start(&sandbox, &["bash", "-c", &script]);
        session.shows("ready");
        session.types("\x03");
        assert_eq!(session.ends().signal(), Some(2), "{}", session.screen());
        assert!(!session.screen().contains("went on"));
        sandbox.wait_for_silence();
    }
}

#[test]
fn suspending_is_refused() {
    let sandbox = Sandbox::new();
    let mut session = Session::start(
        &sandbox,
        &[DLOCK, "run", "lock", "--", "sh", "-c", "echo ready; read line; echo got:$line"],
    );
    session.shows("ready");
    session.types("\x1a");
    session.shows("not suspended");
    session.types("hello\n");
    session.shows("got:hello");
    assert_eq!(session.ends().code(), Some(0));
}

#[test]
fn a_person_sees_who_holds_the_lock_and_the_time_pass() {
    let sandbox = Sandbox::new();
    let holder = sandbox.run(&["--owner", "first"], "touch held; while [ ! -e end ]; do sleep 0.01; done");
    until(&"the lock is held", || sandbox.path("held").exists().then_some(()));
    let mut session = Session::start(&sandbox, &[DLOCK, "run", "lock", "--", "echo", "mine"]);
    session.shows("waiting for lock \"lock\" in sqlite:");
    session.shows("held by first since 20");
    // A busy machine may miss some.
    until(&"the time passes", || {
        let screen = session.screen();
        let shown = (1..60).filter(|seconds| screen.contains(&format!("waited {seconds}s"))).count();
        (shown > 1).then_some(())
    });
    std::fs::write(sandbox.path("end"), "").unwrap();
    session.shows("mine\r\n");
    assert_eq!(session.ends().code(), Some(0));
    let screen = session.screen();
    let (before, after) = screen.rsplit_once("\r\x1b[2K").unwrap();
    assert_eq!(before.matches('\n').count(), 1, "one line is kept up to date: {screen:?}");
    assert_eq!(after, "mine\r\n");
    holder.ends().expect(0, "");
}
