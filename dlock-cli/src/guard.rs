//! The guard: a second process of this program that ends the command's process group when dlock cannot.
//!
//! It is started before the command and leads the process group that the command then joins, so the group exists
//! before the command does. It holds the read end of a pipe; dlock alone holds the write end. When dlock dies, `kill -9`
//! included, the kernel closes the pipe and the guard kills the group, itself with it. Through the same pipe dlock tells
//! it until when the lock is certain, so that the group also ends in time while dlock is frozen and the guard is not.

use std::env;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dlock::{Clock, SystemClock, Timestamp};
use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, getpgrp, getpid, kill_process_group, setpgid};
use tokio::net::unix::pipe;

use crate::group::own_group;

/// The hidden verb under which this program becomes a guard.
const VERB: &str = "__guard";
/// How long a guard may take to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The guard is ready: no signal but KILL and STOP reaches it.
const READY: u8 = b'r';
/// The guard has left the group, which now holds the command's processes only.
const LEFT: u8 = b'l';
/// The guard kills the group because the time it was told has come.
const EXPIRED: u8 = b'k';

/// An order to the guard, eight bytes on the pipe. The clock counts alike in all processes of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Kill the group at this time unless another order comes first.
    KillAt(Timestamp),
    /// Leave the group, so that its emptiness can be seen, and watch it from outside.
    Leave,
}

impl Order {
    fn to_bytes(self) -> [u8; 8] {
        match self {
            Self::KillAt(at) => at.as_nanos().max(1),
            Self::Leave => 0,
        }
        .to_le_bytes()
    }

    fn from_bytes(bytes: [u8; 8]) -> Self {
        match u64::from_le_bytes(bytes) {
            0 => Self::Leave,
            at => Self::KillAt(Timestamp::from_nanos(at)),
        }
    }
}

/// A guard, as dlock sees it.
#[allow(clippy::struct_excessive_bools, reason = "some facts, each learnt by itself")]
pub(crate) struct Guard {
    /// Its process id, which is that of the group as well.
    pub(crate) id: Pid,
    /// It has not been reaped.
    pub(crate) lives: bool,
    /// There is a group that it can go to.
    pub(crate) can_leave: bool,
    /// It has left the group: the command's processes are alone in it.
    pub(crate) has_left: bool,
    /// It has killed the group since the time it was told had come.
    pub(crate) has_expired: bool,
    orders: Option<File>,
    kill_at: Option<Timestamp>,
    told_to_leave: bool,
    answers: Option<pipe::Receiver>,
}

impl Guard {
    /// Starts a guard as the leader of a new process group, and waits until nothing but KILL can harm it.
    pub(crate) async fn start() -> io::Result<Self> {
        // The link leads to the running program even if its file has been replaced or removed since.
        let link = Path::new("/proc/self/exe");
        let program = if link.exists() { link.to_path_buf() } else { env::current_exe()? };
        let home = own_group();
        // Nothing of the user's is kept open, and no folder kept busy. The ends that stay here are not inherited by the
        // command: std opens pipes close-on-exec.
        let mut child = Command::new(program)
            .arg0("dlock")
            .process_group(0)
            .args([VERB, &home.map_or(0, |home| home.as_raw_nonzero().get()).to_string()])
            .env_remove("DLOCK_URL")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let (orders, answers) = (child.stdin.take(), child.stdout.take());
        let orders = OwnedFd::from(orders.expect("stdin was asked to be a pipe"));
        // A guard that is frozen does not read, and dlock must not wait for it.
        rustix::io::ioctl_fionbio(&orders, true)?;
        let answers = answers.expect("stdout was asked to be a pipe").into();
        let answers = pipe::Receiver::from_owned_fd(answers)?;
        let mut ready = [0];
        let answered = tokio::time::timeout(PATIENCE, async {
            loop {
                answers.readable().await?;
                match answers.try_read(&mut ready) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    read => return read,
                }
            }
        });
        match answered.await {
            Ok(Ok(1)) if ready == [READY] => {}
            Ok(Err(error)) => return Err(error),
            _ => {
                child.kill().ok();
                return Err(io::Error::other("it did not answer"));
            }
        }
        Ok(Self {
            id: Pid::from_child(&child),
            lives: true,
            can_leave: home.is_some(),
            has_left: false,
            has_expired: false,
            orders: Some(File::from(orders)),
            kill_at: None,
            told_to_leave: false,
            answers: Some(answers),
        })
    }

    /// Has the guard kill the group at a time, unless it is told another before.
    pub(crate) fn kill_at(&mut self, at: Timestamp) {
        const ALIKE: Duration = Duration::from_millis(1);
        let known = self.kill_at.is_some_and(|known| at.since(known).max(known.since(at)) < ALIKE);
        if !known && self.order(Order::KillAt(at)) {
            self.kill_at = Some(at);
        }
    }

    /// Has the guard leave the group. To be repeated until it [has left](Self::has_left).
    pub(crate) fn leave(&mut self) {
        self.told_to_leave = self.told_to_leave || !self.can_leave || self.order(Order::Leave);
    }

    /// Whether the order was taken. The pipe of a guard that is frozen fills up, but not before hours.
    fn order(&mut self, order: Order) -> bool {
        self.orders
            .as_mut()
            .is_some_and(|orders| orders.write(&order.to_bytes()).is_ok_and(|count| count == 8))
    }

    /// Waits until there is something to hear.
    pub(crate) async fn speaks(&self) {
        match &self.answers {
            // An error shows again when it is heard.
            Some(answers) => answers.readable().await.unwrap_or_default(),
            None => std::future::pending().await,
        }
    }

    /// Takes note of what the guard has said.
    pub(crate) fn hear(&mut self) {
        let mut said = [0; 16];
        while let Some(answers) = &self.answers {
            match answers.try_read(&mut said) {
                Ok(count @ 1..) => {
                    self.has_left |= said[..count].contains(&LEFT);
                    self.has_expired |= said[..count].contains(&EXPIRED);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Ok(_) | Err(_) => self.answers = None,
            }
        }
    }

    /// Closes the guard's pipe: it kills the group, if there is one, and ends.
    pub(crate) fn dismiss(&mut self) {
        self.orders = None;
    }
}

/// Whether this process was started to be a guard: dlock's process group if so.
pub(crate) fn called() -> Option<i32> {
    let mut arguments = env::args_os().skip(1);
    (arguments.next()? == VERB).then(|| arguments.next()?.to_str()?.parse().ok())?
}

/// The guard's whole life. `home` is the process group of dlock, or zero.
pub(crate) fn run(home: i32) {
    // A blocked signal stays pending: neither those forwarded to the group nor a terminal's stop signals act here.
    let blocked = SigSet::all().thread_block();
    let group = getpgrp();
    if group != getpid() {
        return; // started by hand: this group is somebody else's
    }
    if blocked.is_ok() && answer(READY).is_ok() {
        watch(Pid::from_raw(home));
    }
    kill_process_group(group, Signal::KILL).ok();
}

/// Returns when the group is to be killed.
fn watch(home: Option<Pid>) {
    // A file and not `io::stdin`, whose buffer `poll` does not see.
    let Ok(mut orders) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else { return };
    let mut kill_at: Option<Timestamp> = None;
    loop {
        let left = kill_at.map(|at| at.since(SystemClock.now()));
        if left == Some(Duration::ZERO) {
            answer(EXPIRED).ok();
            return;
        }
        let timeout = left.map(|left| Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(&orders, PollFlags::IN)];
        match poll(&mut fds, timeout.as_ref()) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => {
                let mut order = [0; 8];
                if orders.read_exact(&mut order).is_err() {
                    return; // dlock is gone
                }
                match Order::from_bytes(order) {
                    Order::KillAt(at) => kill_at = Some(at),
                    Order::Leave => {
                        if setpgid(None, home).is_ok() {
                            answer(LEFT).ok();
                        }
                    }
                }
            }
            Err(_) => return,
        }
    }
}

fn answer(byte: u8) -> io::Result<()> {
    let mut stdout = io::stdout();
    stdout.write_all(&[byte])?;
    stdout.flush()
}
