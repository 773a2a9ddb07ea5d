//! The command line. Its doc comments are the help, shown to people as they stand.

#![allow(clippy::doc_markdown)]

use std::ffi::OsString;
use std::fmt::Write;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::exit;

/// Runs commands under a distributed lock.
///
/// Whoever names the same lock at the same store waits for the other: shells, cron jobs, and programs that use the dlock
/// library. The store is an SQLite file of your own unless a URL names another.
#[derive(Debug, Parser)]
#[command(name = "dlock", version, max_term_width = 100, after_long_help = stores())]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) verb: Verb,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    Run(Run),
    Locate(Locate),
    Init(Init),
    Check(Check),
    /// Print the manual page
    #[command(hide = true)]
    Man,
}

/// Which store.
#[derive(Debug, Args)]
pub(crate) struct Store {
    /// The store, as in sqlite:/var/lib/locks.db [default: a file of your own]
    ///
    /// Without it, and without $DLOCK_URL, the locks live in an SQLite file of your own, good for all processes of this
    /// user on this machine: .local/state/dlock/locks.db in the home that the passwd database gives ($HOME is not
    /// asked, so that cron jobs, sudo and shells meet in one file).
    #[arg(long, env = "DLOCK_URL", hide_env_values = true, value_name = "URL")]
    pub(crate) url: Option<String>,
}

/// Run a command under a lock
///
/// Waits until it holds the lock NAME, runs the command, releases the lock and ends with the command's exit code. The
/// command gets DLOCK_NAME, DLOCK_TOKEN and DLOCK_OWNER. DLOCK_TOKEN is a number that grows with every holder: send it
/// along with writes, and let the resource refuse a smaller one.
///
/// The lock covers the command's whole process group. When the command ends, what it left running in the background is
/// ended too (TERM, then KILL after --grace) before the lock is released. What moves to a group of its own is not
/// covered: a daemon, setsid, the jobs of an interactive shell. Nor is what runs as another user (sudo within the
/// command), which dlock may not signal: run dlock itself under sudo instead.
///
/// The lock is a lease, which dlock renews. When it cannot (the store is out of reach, somebody removed the lock, or
/// --max-hold is over), the group gets TERM --grace before the lease ends, and KILL just before it ends, so that it is
/// gone before the lock can pass to somebody else. If dlock is killed, even by kill -9, the group dies with it; while
/// dlock is frozen, a small guard process keeps the time; and where the whole machine was frozen past the lease, the
/// group is killed the moment it wakes up.
///
/// INT, TERM, HUP, QUIT, USR1 and USR2 are passed on to the group. On a terminal the command may be interactive; it
/// cannot be suspended (Ctrl-Z), since a suspended holder loses its lock.
#[derive(Debug, Args)]
#[command(after_help = RUN_SHORT, after_long_help = run_long_help())]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) store: Store,

    /// The lease: how long a crashed holder blocks others [default: 10s, or the ttl in the URL]
    ///
    /// Renewed every third of it. A store that is out of reach for two thirds of it costs the lock.
    #[arg(long, value_name = "DURATION", value_parser = dlock::parse_duration)]
    pub(crate) ttl: Option<Duration>,

    /// Wait so long for the lock and no longer, then end with 75 [default: for ever]
    #[arg(long, value_name = "DURATION", value_parser = dlock::parse_duration, conflicts_with = "no_wait")]
    pub(crate) wait: Option<Duration>,

    /// Do not wait for a living holder: end with 75
    ///
    /// What a crashed holder left is waited out all the same, for one lease at most, and stderr says so: a job that
    /// never waits would otherwise never run again after a crash.
    #[arg(long)]
    pub(crate) no_wait: bool,

    /// Time between TERM and the end of the lease [default: a sixth of the ttl, at most 5s]
    ///
    /// Must be below a third of the ttl. It is also how long background processes may take to end after the command.
    #[arg(long, value_name = "DURATION", value_parser = dlock::parse_duration)]
    pub(crate) grace: Option<Duration>,

    /// Who holds the lock, for people who look [default: HOST:PID]
    #[arg(long, value_name = "TEXT")]
    pub(crate) owner: Option<String>,

    /// Stop the command if it has held the lock so long, and end with 70 [default: no limit]
    #[arg(long, value_name = "DURATION", value_parser = dlock::parse_duration)]
    pub(crate) max_hold: Option<Duration>,

    /// The lock: 1 to 512 bytes of UTF-8 without control characters, as in nightly-report or orders/42
    pub(crate) name: String,

    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// Say where a lock lives in the store
///
/// Prints the key, path or number under which the store keeps the lock, ready to paste into the store's own tool, and
/// on stderr a command of that tool that shows it. Asks the store nothing.
#[derive(Debug, Args)]
#[command(after_help = LOCATE_HELP)]
pub(crate) struct Locate {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Print {"backend", "name", "location"} instead
    #[arg(long)]
    pub(crate) json: bool,

    /// The lock
    pub(crate) name: String,
}

/// Prepare a store for its first lock
///
/// Opens the store and creates what it needs (an SQLite file, tables), as the first use would. On Redis it also declares
/// servers without dlock's mark to be new, so that they grant locks after 4 s and not after the restart_delay (35 s unless
/// set): never run it on a Redis server that has lost its data, leases from before may still run. Running it again changes
/// nothing.
#[derive(Debug, Args)]
#[command(after_help = INIT_HELP)]
pub(crate) struct Init {
    #[command(flatten)]
    pub(crate) store: Store,
}

/// Test a store and print what it guarantees
///
/// Runs the conformance cases that are safe on a server in use: each takes locks under throw-away names that start with
/// dlock-check, and leaves nothing behind. Prints a table of the guarantees and the results. Takes some seconds.
#[derive(Debug, Args)]
#[command(after_help = CHECK_HELP)]
pub(crate) struct Check {
    #[command(flatten)]
    pub(crate) store: Store,

    /// Print the table as JSON on stdout instead
    #[arg(long)]
    pub(crate) json: bool,
}

/// The stores of this build, and how to begin.
fn stores() -> String {
    let forms: Vec<_> =
        dlock::url_forms().filter(|form| form.is_available && form.backend != "memory").collect();
    let width = forms.iter().map(|form| form.url.len()).max().unwrap_or_default();
    let mut text = "Stores, by URL:\n".to_owned();
    for form in forms {
        let default = if form.backend == "SQLite" { " (the default)" } else { "" };
        // Text takes whatever is written to it.
        writeln!(text, "  {:width$}  {}{default}", form.url, form.leads_to).ok();
    }
    text.push_str(
        "
Parameters of every URL: ttl, prefix, owner, request_timeout, give_up_after, max_hold,
as in sqlite:/var/lib/locks.db?ttl=30s. An unknown one is answered with all that there are.

Try it in two terminals:
  dlock run demo -- sh -c 'echo token $DLOCK_TOKEN; sleep 5'

`dlock help run` tells the rest.",
    );
    text
}

const RUN_SHORT: &str = "`dlock run --help` explains what happens when the lock is lost, and the exit codes.";

const RUN_EXAMPLES: &str = "\
Examples:
  A report that must not run twice at once, on one machine:
    dlock run nightly-report -- ./report.sh

  A cron job that is left out while the one before still runs:
    0 3 * * *  dlock run --no-wait nightly-report -- /opt/report.sh

  Programs that share a lock file of their own:
    dlock run --url sqlite:/var/lib/shop/locks.db orders/42 -- ./ship 42

  Wait for half a minute at most, then do something else:
    dlock run --wait 30s deploy -- make deploy; [ $? -ne 75 ] || echo busy

  Shell syntax under the lock:
    dlock run counter -- sh -c 'n=$(cat n); echo $((n + 1)) > n'

Environment:
  DLOCK_URL    the store, where --url is not given

";

fn run_long_help() -> String {
    format!("{RUN_EXAMPLES}{}", exit::HELP)
}

const LOCATE_HELP: &str = "\
Examples:
  dlock locate orders/42
  dlock locate --json --url sqlite:/var/lib/shop/locks.db orders/42

Exit codes: 0, or 64 if the URL or the name is wrong.";

const INIT_HELP: &str = "\
Example:
  dlock init --url sqlite:/var/lib/shop/locks.db

Exit codes: 0, 64 (the URL is wrong), 69 (the store could not be reached), 77 (it refused).";

const CHECK_HELP: &str = "\
Example:
  dlock check --url sqlite:/var/lib/shop/locks.db

Exit codes: 0 (all cases passed), 1 (a case failed), 64 (the URL is wrong), 69 (the store could not be reached),
77 (it refused).";
