//! Runs a command so that it, and every process of its group, is gone before the lock can pass on.

use std::io;
use std::os::unix::process::CommandExt;
use std::pin::pin;
use std::process::Command;
use std::time::Duration;

use dlock::{Clock, LockGuard, LossReason, SystemClock, Timestamp};
use rustix::process::{Pid, Signal};

use crate::alarm::Alarm;
use crate::exit::{Failure, NOT_EXECUTABLE, NOT_FOUND, say};
use crate::group::{Ended, Group};
use crate::signals::{Received, Signals};
use crate::terminal::Terminal;

/// How often the group is looked at while it is being stopped; the death of a child is seen at once besides.
const LOOK: Duration = Duration::from_millis(20);
/// How long the guard may take to leave the group; after so long, too, a kill that has not worked is remarked upon.
const PATIENCE: Duration = Duration::from_secs(2);

/// When a command is stopped, measured from the moment at which the lock stops being certain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// TERM is sent so long before.
    pub(crate) grace: Duration,
    /// The lease; a sixth of it is how often the guard is told of renewals.
    pub(crate) ttl: Duration,
}

impl Limits {
    /// KILL is sent so long before: time for the kernel to end the processes.
    fn last_moment(self) -> Duration {
        (self.ttl / 50).clamp(Duration::from_millis(20), Duration::from_millis(250)).min(self.ttl / 6)
    }
}

/// Why the command's group is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// The command ended while the lock was held.
    Ended(Ended),
    /// The lock was lost or about to be; the reason, where the lock itself gave one.
    Lost(Option<LossReason>),
    /// The guard process died, so nobody would have stopped the command had dlock died too.
    Unguarded,
}

/// What became of the command, once nothing of its group is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    pub(crate) cause: Cause,
    /// The command was ended by an interrupt from the terminal.
    pub(crate) interrupt: Option<Interrupt>,
}

/// Whom an interrupt from the terminal has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Interrupt {
    /// The command only, which had the terminal.
    Command,
    /// dlock and whoever shares its process group; the command by way of dlock.
    Everybody,
}

/// Runs `command` to its end, or to that of `lock`.
///
/// Returning early, also by an error, closes the guard's pipe, and with that ends whatever was started.
pub(crate) async fn supervise(
    mut command: Command,
    lock: &LockGuard,
    limits: Limits,
    signals: &mut Signals,
) -> Result<Outcome, Failure> {
    let alarm = Alarm::new().map_err(|error| Failure::system("cannot make a timer", &error))?;
    let mut group = Group::start().await?;
    let mut terminal = Terminal::open();
    if let Some(terminal) = &mut terminal {
        terminal.lend_early(group.id);
    }
    let name = command.get_program().to_string_lossy().into_owned();
    // P3: a lock that was lost while the guard started covers no command.
    let (now, valid_for) = (SystemClock.now(), lock.valid_for());
    if valid_for <= limits.last_moment() {
        end(group, &mut terminal, true).await;
        return Ok(Outcome { cause: Cause::Lost(None), interrupt: None });
    }
    // Before the command: dlock may be frozen as soon as that runs.
    group.guard.kill_at(now.plus(valid_for).minus(limits.last_moment()));
    match command.process_group(group.id.as_raw_nonzero().get()).spawn() {
        // The handle is dropped, which neither ends nor awaits the process: `Group::reap` does.
        Ok(child) => group.command = Some(Pid::from_child(&child)),
        Err(error) => {
            end(group, &mut terminal, false).await;
            return Err(cannot_start(&name, &error));
        }
    }
    let mut course =
        Course { lock, limits, group, terminal, phase: Phase::Running, cause: None, interrupts: 0 };
    let done = course.run(&alarm, signals).await;
    let Course { group, mut terminal, cause, interrupts, .. } = course;
    done.map_err(|error| Failure::system("cannot watch the command", &error))?;
    let cause = cause.unwrap_or(Cause::Unguarded);
    let by_interrupt = cause == Cause::Ended(Ended::Signal(Signal::INT.as_raw()));
    let mend = !matches!(cause, Cause::Ended(Ended::Code(_)));
    let lent = terminal.as_ref().is_some_and(Terminal::is_lent);
    end(group, &mut terminal, mend).await;
    let ours = terminal.as_ref().is_some_and(Terminal::is_ours);
    let interrupt = match (by_interrupt && ours, lent, interrupts) {
        (true, true, _) => Some(Interrupt::Command),
        (true, false, 1..) => Some(Interrupt::Everybody),
        _ => None,
    };
    Ok(Outcome { cause, interrupt })
}

/// Takes the terminal back and ends what there is of the group.
async fn end(mut group: Group, terminal: &mut Option<Terminal>, mend: bool) {
    if let Some(terminal) = terminal {
        terminal.take_back(group.id, mend);
    }
    group.end().await;
}

fn cannot_start(name: &str, error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::new(NOT_FOUND, format!("{name}: command not found"))
            .hint("look at $PATH and the spelling; a script also needs the interpreter of its first line"),
        _ => Failure::new(NOT_EXECUTABLE, format!("{name}: cannot be executed: {error}"))
            .hint("chmod +x makes a script executable; its first line names the interpreter"),
    }
}

/// What is being done with the group.
#[derive(Clone, Copy, Debug)]
enum Phase {
    /// The command runs.
    Running,
    /// The command has ended; the guard leaves the group so that the rest of it can be seen.
    Looking { until: Timestamp },
    /// TERM was sent. There is no way back, whatever renewals say.
    Stopping { kill_at: Timestamp },
    /// KILL was sent.
    Killed { since: Timestamp, remarked: bool },
}

/// The supervision of one command.
struct Course<'a> {
    lock: &'a LockGuard,
    limits: Limits,
    group: Group,
    terminal: Option<Terminal>,
    phase: Phase,
    cause: Option<Cause>,
    interrupts: usize,
}

impl Course<'_> {
    /// Returns when the command and all of its group are gone.
    async fn run(&mut self, alarm: &Alarm, signals: &mut Signals) -> io::Result<()> {
        let mut loss = pin!(self.lock.lost());
        let mut is_lost = false;
        loop {
            // P3: the lease is looked at before anything else, so that a dlock that was frozen past it kills first.
            // The clock first: were dlock frozen between the two lines, the sum of both would only be too early.
            let now = SystemClock.now();
            let left = self.lock.valid_for();
            if left <= self.limits.last_moment() {
                self.lose(left);
                self.kill(now);
            }
            self.group.guard.hear();
            if let Some(stopped) = self.group.reap() {
                self.command_stopped(stopped);
            }
            if self.advance(now, left) {
                return Ok(());
            }
            let wake = self.next_look(now, left);
            tokio::select! {
                biased;
                reason = &mut loss, if !is_lost => {
                    is_lost = true;
                    self.lose(Duration::ZERO);
                    // The lock may pass on right now.
                    self.kill(SystemClock.now());
                    if self.cause == Some(Cause::Lost(None)) {
                        self.cause = Some(Cause::Lost(Some(reason)));
                    }
                }
                due = alarm.at(wake) => due?,
                received = signals.next() => self.received(received),
                () = self.group.guard.speaks() => {}
            }
        }
    }

    /// Takes the next step; true when all is over.
    fn advance(&mut self, now: Timestamp, left: Duration) -> bool {
        let last_moment = self.limits.last_moment();
        let ended = self.group.ended;
        if !self.group.guard.lives && !matches!(self.phase, Phase::Killed { .. }) {
            self.cause.get_or_insert(match ended {
                _ if self.group.guard.has_expired => Cause::Lost(None),
                Some(ended) => Cause::Ended(ended),
                None => Cause::Unguarded,
            });
            self.kill(now);
        }
        match self.phase {
            Phase::Running => {
                if let Some(ended) = ended {
                    self.cause.get_or_insert(Cause::Ended(ended));
                    self.phase = Phase::Looking { until: now.plus(PATIENCE.min(left)) };
                } else if left <= self.limits.grace {
                    say(format_args!("the lock ends in {left:.1?}: the command is being stopped"));
                    self.cause.get_or_insert(Cause::Lost(None));
                    self.stop(now.plus(left).minus(last_moment));
                }
            }
            Phase::Looking { until } => {
                if self.group.is_clear() && self.group.is_empty() {
                    return true;
                }
                if self.group.is_clear() || until <= now {
                    self.stop(now.plus(self.limits.grace.min(left.saturating_sub(last_moment))));
                }
            }
            Phase::Stopping { kill_at } => {
                if ended.is_some() && self.group.is_empty() {
                    return true;
                }
                if kill_at <= now {
                    if self.group.is_clear() && matches!(self.cause, Some(Cause::Ended(_))) {
                        say("processes that the command left behind did not end on TERM and were killed");
                    }
                    self.kill(now);
                }
            }
            Phase::Killed { since, remarked } => {
                if ended.is_some() && self.group.is_empty() {
                    return true;
                }
                if now.since(since) >= PATIENCE {
                    if ended.is_some() && self.group.is_dead() {
                        return true;
                    }
                    if !remarked {
                        say(
                            "processes of the command cannot be killed: they run as another user, or are stuck in the \
                             kernel; dlock waits for them",
                        );
                        self.phase = Phase::Killed { since, remarked: true };
                    }
                }
            }
        }
        if matches!(self.phase, Phase::Looking { .. } | Phase::Stopping { .. }) {
            self.group.guard.leave();
        }
        // While dlock is frozen the guard is not, so it knows how long the lock is certain.
        match (self.phase, self.cause) {
            (Phase::Killed { .. }, _) => {}
            (Phase::Stopping { kill_at }, Some(Cause::Lost(_))) => self.group.guard.kill_at(kill_at),
            _ => self.group.guard.kill_at(now.plus(left).minus(last_moment)),
        }
        false
    }

    /// When to look again if nothing happens.
    fn next_look(&self, now: Timestamp, left: Duration) -> Timestamp {
        match self.phase {
            Phase::Running => now.plus(left.saturating_sub(self.limits.grace).min(self.limits.ttl / 6)),
            Phase::Looking { .. } if self.group.is_clear() => now,
            Phase::Looking { until } => until.min(now.plus(left.saturating_sub(self.limits.last_moment()))),
            Phase::Stopping { kill_at } => kill_at.min(now.plus(LOOK)),
            Phase::Killed { .. } => now.plus(LOOK),
        }
    }

    /// Notes that the lock ends before the group does. What the command left behind when it ended has its time; but if
    /// that is over, the lock did not cover all of the group.
    fn lose(&mut self, left: Duration) {
        let ended = matches!(self.cause, Some(Cause::Ended(_)));
        let killed = matches!(self.phase, Phase::Killed { .. });
        if self.cause.is_none() || (ended && !killed && left.is_zero()) {
            self.cause = Some(Cause::Lost(None));
        }
    }

    /// Asks all processes of the group to end; a stopped one is continued, or it could not.
    fn stop(&mut self, kill_at: Timestamp) {
        self.group.signal(Signal::TERM);
        self.group.signal(Signal::CONT);
        self.phase = Phase::Stopping { kill_at };
    }

    fn kill(&mut self, now: Timestamp) {
        self.group.signal(Signal::KILL);
        if !matches!(self.phase, Phase::Killed { .. }) {
            self.phase = Phase::Killed { since: now, remarked: false };
        }
    }

    fn received(&mut self, received: Received) {
        match received {
            Received::Child => {}
            Received::Forward(signal) => {
                self.group.signal(signal);
                if signal == Signal::TERM || signal == Signal::HUP {
                    self.group.signal(Signal::CONT);
                }
                self.interrupts += usize::from(signal == Signal::INT);
            }
            Received::Continued => {
                if self.group.wants_terminal
                    && let Some(terminal) = &mut self.terminal
                {
                    self.group.wants_terminal = !terminal.lend(self.group.id);
                }
                self.group.signal(Signal::CONT);
            }
            Received::Suspend => {
                say("not suspended: a lock is renewed by running; the command goes on");
            }
        }
    }

    /// The command was stopped by `signal`, not ended.
    fn command_stopped(&mut self, signal: i32) {
        let Some(terminal) = &mut self.terminal else { return };
        if signal == Signal::TTIN.as_raw() || signal == Signal::TTOU.as_raw() {
            if terminal.is_of(self.group.id) || terminal.lend(self.group.id) {
                self.group.signal(Signal::CONT);
            } else {
                self.group.wants_terminal = true;
                say("the command waits for the terminal: bring dlock to the foreground (fg)");
            }
        } else if signal == Signal::TSTP.as_raw() && terminal.is_of(self.group.id) {
            // The shell waits for dlock, which does not stop, so nobody could bring the command back.
            self.group.signal(Signal::CONT);
            say("not suspended: the command goes on while it holds the lock");
        }
    }
}
