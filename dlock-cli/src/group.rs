//! The process group of the command: who is in it, and how they end.

use std::fs;
use std::time::Duration;

use dlock::{Clock, SystemClock};
use rustix::io::Errno;
use rustix::process::{
    Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, test_kill_process_group, wait,
};

use crate::exit::{Failure, by_signal};
use crate::guard::Guard;

/// How long the guard may take to end, once nobody needs it.
const PATIENCE: Duration = Duration::from_secs(2);

/// The process group of dlock itself. None where it cannot be named: the group is older than the PID namespace that
/// dlock is the first process of.
pub(crate) fn own_group() -> Option<Pid> {
    // Not by rustix, which takes a group for granted.
    Pid::from_raw(nix::unistd::getpgrp().as_raw())
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(u8),
    Signal(i32),
}

impl Ended {
    fn from_status(status: WaitStatus) -> Option<Self> {
        let code = |code: i32| Self::Code(u8::try_from(code & 0xff).unwrap_or(u8::MAX));
        status.exit_status().map(code).or(status.terminating_signal().map(Self::Signal))
    }

    /// The exit code by which a shell would show it.
    pub(crate) fn exit_code(self) -> u8 {
        match self {
            Self::Code(code) => code,
            Self::Signal(number) => by_signal(number),
        }
    }
}

/// The process group of the command, and the guard that leads it.
pub(crate) struct Group {
    /// The guard's process id. It names the group for as long as the guard is not reaped, whoever is left in it.
    pub(crate) id: Pid,
    pub(crate) guard: Guard,
    pub(crate) command: Option<Pid>,
    /// How the command ended.
    pub(crate) ended: Option<Ended>,
    /// The command was stopped since it needs a terminal that is not ours to give.
    pub(crate) wants_terminal: bool,
}

impl Group {
    /// Makes the group, with the guard in it and nobody else.
    pub(crate) async fn start() -> Result<Self, Failure> {
        // Orphans of the group become our children, and their end is seen at once. Elsewhere it is looked for.
        #[cfg(target_os = "linux")]
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).ok();
        let guard = Guard::start().await.map_err(|error| {
            Failure::system(
                "cannot start the guard process, which ends the command if dlock is killed",
                &error,
            )
            .hint("it is dlock itself, started again by way of /proc/self/exe")
        })?;
        Ok(Self { id: guard.id, guard, command: None, ended: None, wants_terminal: false })
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // No such process: there is nobody to tell. Not permitted: whoever is left runs as another user.
        kill_process_group(self.id, signal).ok();
    }

    /// Takes note of all children that have ended. The signal, if the command was stopped by one.
    pub(crate) fn reap(&mut self) -> Option<i32> {
        let mut stopped = None;
        loop {
            match wait(WaitOptions::NOHANG | WaitOptions::UNTRACED) {
                Ok(Some((pid, status))) => {
                    let ended = Ended::from_status(status);
                    if Some(pid) == self.command {
                        stopped = status.stopping_signal();
                        self.ended = self.ended.or(ended);
                    } else if pid == self.id && ended.is_some() {
                        self.guard.lives = false;
                    }
                }
                Err(Errno::INTR) => {}
                Ok(None) | Err(_) => return stopped,
            }
        }
    }

    /// Whether the command's processes can be told from the guard, so that [`is_empty`](Self::is_empty) means them.
    pub(crate) fn is_clear(&self) -> bool {
        self.guard.has_left || !self.guard.can_leave
    }

    /// Whether nobody is left in the group but a guard that cannot leave it.
    pub(crate) fn is_empty(&self) -> bool {
        test_kill_process_group(self.id) == Err(Errno::SRCH) || (!self.guard.can_leave && self.is_dead())
    }

    /// Whether the group is left with dead processes that their parents have not noticed, and perhaps the guard.
    pub(crate) fn is_dead(&self) -> bool {
        let group = self.id.as_raw_nonzero().to_string();
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        processes.flatten().filter(|process| process.file_name().to_str() != Some(&group)).all(|process| {
            let stat = fs::read_to_string(process.path().join("stat")).unwrap_or_default();
            // "pid (name) state ppid pgrp ...", and the name may hold anything.
            let mut fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields).split(' ');
            let (state, member) = (fields.next(), fields.nth(1));
            member != Some(&group) || matches!(state, Some("Z" | "X"))
        })
    }

    /// Ends what there is of the group, and the guard.
    pub(crate) async fn end(&mut self) {
        // The guard reads the end of its pipe, kills the group if there is one, and goes.
        self.guard.dismiss();
        let started = SystemClock.now();
        loop {
            self.reap();
            if !self.guard.lives {
                return;
            }
            if SystemClock.now().since(started) >= PATIENCE {
                kill_process(self.id, Signal::KILL).ok();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}
