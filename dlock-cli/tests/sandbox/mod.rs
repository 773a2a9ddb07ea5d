//! A folder with a lock file of its own, and `dlock` processes that are watched and cleaned up.

#![allow(dead_code)] // each test program uses a part of it

use std::fs;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Once};
use std::time::Duration;

use dlock::{Clock, SystemClock};
use rusqlite::Connection;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Long enough for anything that happens at all, on a machine that does much else.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Gives programs that are started from here the default for every signal that these tests send.
///
/// What started the tests may have had some ignored (a background job of a shell, `nohup`, many a CI), and that is
/// inherited. A handler is not; one for a signal that was ignored anyway changes nothing here.
fn heed_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        for signal in
            [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM, Signal::USR1, Signal::USR2, Signal::TSTP]
        {
            let number = signal.as_raw();
            if ignored & (1 << (number - 1)) != 0 {
                signal_hook::flag::register(number, Arc::new(AtomicBool::new(false))).unwrap();
            }
        }
    });
}

/// A folder for one test. When it is dropped nothing of the processes may be left, and no lock either.
pub(crate) struct Sandbox {
    folder: TempDir,
    /// A holder was killed on purpose, so its row ends by itself.
    pub(crate) leaves_rows: bool,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        heed_signals();
        // In memory where that can be had: a busy disk may take as long as a lease.
        let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new());
        Self { folder: folder.unwrap(), leaves_rows: false }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn url(&self) -> String {
        format!("sqlite:{}", self.path("locks.db").display())
    }

    pub(crate) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        self.read(name).lines().map(str::to_owned).collect()
    }

    /// `dlock` with arguments, in the folder, on the lock file.
    pub(crate) fn dlock(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dlock"));
        self.prepare(&mut command);
        command.args(arguments);
        command
    }

    /// Sets what every process of this sandbox is known by, and where it works.
    pub(crate) fn prepare(&self, command: &mut Command) {
        command
            .current_dir(self.folder.path())
            .env("DLOCK_URL", self.url())
            .env("DLOCK_SANDBOX", self.folder.path())
            .env_remove("DLOCK_NAME")
            .stdin(Stdio::null());
    }

    /// Starts `dlock run [options] lock -- sh -c script`.
    pub(crate) fn run(&self, options: &[&str], script: &str) -> Running {
        let mut arguments = vec!["run"];
        arguments.extend(options);
        arguments.extend(["lock", "--", "sh", "-c", script]);
        self.start(&mut self.dlock(&arguments))
    }

    /// Starts a command, its output going to files.
    pub(crate) fn start(&self, command: &mut Command) -> Running {
        // Files, as a pipe is not at its end before the last process that has it is gone.
        let output =
            tempfile::Builder::new().prefix("output-").tempdir_in(self.folder.path()).unwrap().keep();
        let file = |name: &str| {
            fs::File::options().append(true).create(true).mode(0o600).open(output.join(name)).unwrap()
        };
        let child = command.stdout(file("out")).stderr(file("err")).spawn().unwrap();
        Running { child, output, status: None }
    }

    /// Runs `dlock` to its end.
    pub(crate) fn dlock_ends(&self, arguments: &[&str]) -> Finished {
        self.start(&mut self.dlock(arguments)).ends()
    }

    /// The lock file, as an operator opens it.
    pub(crate) fn database(&self) -> Connection {
        let connection = Connection::open(self.path("locks.db")).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection
    }

    /// The number of locks that are held according to the file.
    pub(crate) fn rows(&self) -> u32 {
        if !self.path("locks.db").exists() {
            return 0;
        }
        self.database().query_row("SELECT count(*) FROM claim", [], |row| row.get(0)).unwrap()
    }

    /// The command lines of all living processes of this sandbox, guards included.
    pub(crate) fn processes(&self) -> Vec<String> {
        let mark = format!("DLOCK_SANDBOX={}", self.folder.path().display());
        let has_mark = |process: &Path| {
            fs::read(process.join("environ"))
                .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|v| v == mark.as_bytes()))
        };
        let line = |process: &Path| fs::read_to_string(process.join("cmdline")).ok();
        let processes = fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
        processes.filter(|process| has_mark(process)).filter_map(|process| line(&process)).collect()
    }

    /// Waits until a file has some text in it.
    pub(crate) fn wait_for(&self, name: &str) -> String {
        until(&|| format!("{name} is written"), || Some(self.read(name)).filter(|text| !text.is_empty()))
    }

    /// Waits until a file holds a whole line with a process id.
    pub(crate) fn wait_for_pid(&self, name: &str) -> i32 {
        until(&|| format!("{name} holds a process id"), || {
            self.read(name).strip_suffix('\n').map(|pid| pid.trim().parse().unwrap())
        })
    }

    /// Waits until no process of this sandbox is left.
    pub(crate) fn wait_for_silence(&self) {
        until(&|| format!("no process is left of {:?}", self.processes()), || {
            self.processes().is_empty().then_some(())
        });
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        self.wait_for_silence();
        let rows = if self.path("not-a-lock-file").exists() { 0 } else { self.rows() };
        assert!(self.leaves_rows || rows == 0, "{rows} locks are left in the store");
    }
}

/// A process that was started. Killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    output: PathBuf,
    status: Option<ExitStatus>,
}

impl Running {
    pub(crate) fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    #[track_caller]
    pub(crate) fn signal(&self, signal: Signal) {
        signal_to(self.pid(), signal);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        if self.status.is_none() {
            self.status = self.child.try_wait().unwrap();
        }
        self.status.is_none()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(self.output.join("err")).unwrap()
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(self.output.join("out")).unwrap()
    }

    /// The process id of its guard.
    pub(crate) fn guard(&self) -> i32 {
        let is_guard = |pid: &i32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).nth(1) == Some(b"__guard")
        };
        until(&"the guard runs", || children(self.pid()).into_iter().find(is_guard))
    }

    /// Waits until it says something on stderr.
    #[track_caller]
    pub(crate) fn says(&self, text: &str) {
        until(&|| format!("it says {text:?}, it has said {:?}", self.stderr()), || {
            self.stderr().contains(text).then_some(())
        });
    }

    /// Waits until it ends by itself.
    #[track_caller]
    pub(crate) fn ends(mut self) -> Finished {
        let status = until(&"the process ends", || {
            self.is_running();
            self.status
        });
        Finished { status, stdout: self.stdout(), stderr: self.stderr() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_running() {
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

/// A process that has ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Finished {
    /// Its exit code; fails if a signal ended it.
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| panic!("it was ended by a signal: {self:?}"))
    }

    #[track_caller]
    pub(crate) fn expect(&self, code: i32, message: &str) {
        assert_eq!(self.code(), code, "{self:?}");
        assert!(self.stderr.contains(message), "{message:?} is not in {:?}", self.stderr);
    }

    /// What was said but for dlock's waiting, which a busy machine may make longer than dlock says nothing about.
    pub(crate) fn complaints(&self) -> Vec<&str> {
        self.stderr.lines().filter(|line| !line.contains("waiting for lock")).collect()
    }
}

/// Says what is waited for; asked only when the wait was in vain.
pub(crate) trait Goal {
    fn describe(&self) -> String;
}

impl Goal for &str {
    fn describe(&self) -> String {
        (*self).to_owned()
    }
}

impl<F: Fn() -> String> Goal for F {
    fn describe(&self) -> String {
        self()
    }
}

/// Looks again and again until there is an answer.
#[track_caller]
pub(crate) fn until<T>(goal: &impl Goal, mut look: impl FnMut() -> Option<T>) -> T {
    let started = SystemClock.now();
    loop {
        if let Some(answer) = look() {
            return answer;
        }
        assert!(SystemClock.now().since(started) < PATIENCE, "in vain: {}", goal.describe());
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

pub(crate) fn signal_to(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether a process lives: it exists and is not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    state(pid).is_some_and(|state| state != 'Z')
}

/// Whether a process was stopped by a signal.
pub(crate) fn is_stopped(pid: i32) -> bool {
    state(pid) == Some('T')
}

fn state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?.1.chars().next()
}

fn children(pid: i32) -> Vec<i32> {
    let tasks = match fs::read_dir(format!("/proc/{pid}/task")) {
        Ok(tasks) => tasks,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("{error}"),
    };
    tasks
        .flatten()
        .flat_map(|task| {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            children.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<i32>>()
        })
        .collect()
}

/// Seconds on the machine's boot clock, as `/proc/uptime` tells them to a script.
pub(crate) fn uptime(text: &str) -> f64 {
    text.split_whitespace().next().unwrap().parse().unwrap()
}
