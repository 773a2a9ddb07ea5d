//! The terminal, lent to the command's process group while it runs.

use std::fs::File;
use std::io::{self, IsTerminal};

use nix::sys::signal::{SigSet, Signal};
use rustix::process::Pid;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr, tcsetpgrp};

use crate::group::own_group;

/// The controlling terminal, with what dlock must put back.
pub(crate) struct Terminal {
    tty: File,
    home: Pid,
    modes: Option<Termios>,
    lent: bool,
}

impl Terminal {
    /// The controlling terminal, if there is one.
    pub(crate) fn open() -> Option<Self> {
        let home = own_group()?;
        let tty = File::options().read(true).write(true).open("/dev/tty").ok()?;
        let modes = tcgetattr(&tty).ok();
        Some(Self { tty, home, modes, lent: false })
    }

    /// Whether dlock's own group is in the foreground.
    pub(crate) fn is_ours(&self) -> bool {
        self.is_of(self.home)
    }

    /// Whether `group` is in the foreground.
    pub(crate) fn is_of(&self, group: Pid) -> bool {
        tcgetpgrp(&self.tty) == Ok(group)
    }

    /// Whether the command was given the foreground.
    pub(crate) fn is_lent(&self) -> bool {
        self.lent
    }

    /// Lends the terminal to `group` before the command starts, if dlock alone uses it: it is in the foreground, and
    /// stdin and stdout are terminals. In a pipeline other commands of dlock's own group may need it (`dlock run x --
    /// make | less`); there it is lent when the command asks, that is, when the terminal stops it.
    pub(crate) fn lend_early(&mut self, group: Pid) {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            self.lend(group);
        }
    }

    /// Lends the terminal to `group` if it is ours to lend.
    pub(crate) fn lend(&mut self, group: Pid) -> bool {
        let lends = self.is_ours() && self.give(group);
        self.lent |= lends;
        lends
    }

    /// Takes the terminal back from `group`, and with `mend` sets its modes as they were: a command that was killed had
    /// no time to.
    pub(crate) fn take_back(&mut self, group: Pid, mend: bool) {
        if self.is_of(group) {
            self.give(self.home);
        }
        if mend
            && self.lent
            && let Some(modes) = &self.modes
        {
            without_stops(|| tcsetattr(&self.tty, OptionalActions::Drain, modes).is_ok());
        }
    }

    fn give(&self, group: Pid) -> bool {
        without_stops(|| tcsetpgrp(&self.tty, group).is_ok())
    }
}

/// Runs `act` with SIGTTOU blocked, which the terminal sends to a background process that touches it.
fn without_stops(act: impl FnOnce() -> bool) -> bool {
    let mut stops = SigSet::empty();
    stops.add(Signal::SIGTTOU);
    let before = stops.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
    let done = act();
    if let Ok(before) = before {
        before.thread_set_mask().ok();
    }
    done
}
