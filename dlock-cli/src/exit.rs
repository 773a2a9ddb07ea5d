//! Exit codes, in one place, and what is said before one of them is used.

use std::error::Error;
use std::fmt;
use std::process::ExitCode;

use dlock::{AcquireError, StoreError};
use rustix::process::{Signal, kill_current_process_group};

use crate::supervise::Interrupt;

/// A case of `dlock check` failed.
pub(crate) const CHECK_FAILED: u8 = 1;
/// The command line, a URL, a name or a setting is wrong (`EX_USAGE`).
pub(crate) const USAGE: u8 = 64;
/// The store could not be reached (`EX_UNAVAILABLE`).
pub(crate) const UNAVAILABLE: u8 = 69;
/// The lock was lost while the command ran, or the command could not be watched any more (`EX_SOFTWARE`).
pub(crate) const LOST: u8 = 70;
/// The system refused what dlock itself needs: a process, a pipe, a signal handler (`EX_OSERR`).
pub(crate) const SYSTEM: u8 = 71;
/// The lock was not acquired: others held it (`EX_TEMPFAIL`).
pub(crate) const NOT_ACQUIRED: u8 = 75;
/// The store refused: credentials, permissions, a file that is no lock store, a full disk (`EX_NOPERM`).
pub(crate) const REFUSED: u8 = 77;
/// The command was found but could not be executed, as in a shell.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command was not found, as in a shell.
pub(crate) const NOT_FOUND: u8 = 127;

/// The part of the help that lists the codes; kept beside them.
pub(crate) const HELP: &str = "\
Exit codes of `dlock run`:
  the command's own   the command ran to its end under the lock (128+N if signal N ended it)
  64   usage: an option, the URL, the name or a duration is wrong
  69   the store could not be reached
  70   the lock was lost while the command ran; the command was stopped
  71   the system refused dlock a process, a pipe or a signal handler
  75   not acquired: others held the lock (--no-wait, --wait)
  77   the store refused: permissions, credentials, a damaged file, a full disk
  126  the command could not be executed
  127  the command was not found
  128+N  signal N ended the wait for the lock
A command may use the same numbers. What dlock itself ends with it explains on stderr, in a line
that starts with dlock:";

/// The exit code for a process that signal `number` ended.
pub(crate) fn by_signal(number: i32) -> u8 {
    u8::try_from(128 + number).unwrap_or(u8::MAX)
}

/// Why dlock ends without, or in spite of, the command's own exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    pub(crate) fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A failure described by an error and everything that caused it.
    pub(crate) fn from_error(code: u8, error: &dyn Error) -> Self {
        Self::new(code, chain(error))
    }

    /// Something that the system would not do.
    pub(crate) fn system(what: &str, error: &dyn Error) -> Self {
        Self::new(SYSTEM, format!("{what}: {}", chain(error)))
    }

    /// The failure with a sentence on what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.message.push_str("\n  ");
        self.message.push_str(hint);
        self
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// Says it on stderr.
    pub(crate) fn report(self) -> ExitCode {
        say(&self);
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<AcquireError> for Failure {
    fn from(error: AcquireError) -> Self {
        let code = match &error {
            AcquireError::Timeout { .. } => NOT_ACQUIRED,
            AcquireError::Refused { .. } => REFUSED,
            AcquireError::Unavailable { .. } | AcquireError::Unresolved { .. } => UNAVAILABLE,
            _ => SYSTEM,
        };
        Self::from_error(code, &error)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Refused(_) => REFUSED,
            StoreError::Unavailable(_) => UNAVAILABLE,
            _ => SYSTEM,
        };
        Self::from_error(code, &error)
    }
}

/// An error and its causes, each after a colon.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// Tells a person something, in a line of its own on stderr.
///
/// Unlike `eprintln!` it does not panic where stderr is closed: the command's exit code matters more than the message.
pub(crate) fn say(message: impl fmt::Display) {
    use std::io::Write;
    writeln!(std::io::stderr(), "dlock: {message}").ok();
}

/// Prints a result on stdout. A reader that went away is no failure.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::system("cannot write to stdout", &error))
        }
        _ => Ok(()),
    }
}

/// Ends this process as an interrupt does, so that a shell script which waits for dlock stops too, as it would had it
/// run the command itself. The first process of a container cannot be ended so; it exits with 130.
pub(crate) fn by_interrupt(interrupt: Interrupt) -> ExitCode {
    const INT: Signal = Signal::INT;
    if interrupt == Interrupt::Command {
        // The script shares our group, which did not have the terminal, and has not heard of it.
        kill_current_process_group(INT).ok();
    }
    if std::process::id() != 1 {
        signal_hook::low_level::emulate_default_handler(INT.as_raw()).ok();
    }
    ExitCode::from(by_signal(INT.as_raw()))
}
