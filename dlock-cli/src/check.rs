//! `dlock check`.

mod cases;

use std::io::{self, Write};
use std::time::Duration;

use dlock::{Basis, Clock, ErrorKind, Guarantees, LockManager, StoreError, SystemClock};
use serde::Serialize;
use tokio::runtime::Builder;

use crate::args;
use crate::exit::{CHECK_FAILED, Failure, print, say};
use crate::run::Exit;
use crate::store::Store;
use cases::{CASES, Case, Ground, Verdict};

/// The table as JSON.
#[derive(Serialize)]
struct Report {
    store: String,
    backend: &'static str,
    passed: bool,
    guarantees: Promises,
    ttl_ms: u64,
    cases: Vec<Row>,
}

/// What the store promises as it is configured.
#[derive(Serialize)]
struct Promises {
    exclusion: Grade,
    tokens: Grade,
    fairness: String,
    min_ttl_ms: u64,
    max_ttl_ms: u64,
    takeover_ttls: u32,
    takeover_extra_ms: u64,
    notes: Vec<String>,
}

/// Whether a promise holds, and what to know about that.
#[derive(Serialize)]
struct Grade {
    holds: bool,
    condition: Option<String>,
}

/// One case.
#[derive(Serialize)]
struct Row {
    case: &'static str,
    promise: &'static str,
    passed: bool,
    took_ms: u64,
    error: Option<String>,
}

/// Runs all cases and shows the results.
pub(crate) fn check(args: &args::Check) -> Result<Exit, Failure> {
    let store = Store::choose(&args.store)?;
    let locks = store.manager()?;
    store.make_folder()?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Failure::system("cannot start threads", &error))?;
    let report = runtime.block_on(async {
        // What is wrong with the store itself shows here, with its own exit code.
        locks
            .open()
            .await
            .map_err(|error| Failure::from(error).hint(&format!("the store is {}", store.shown())))?;
        ready(&locks).await.map_err(|failure| failure.hint(&format!("the store is {}", store.shown())))?;
        locks.close().await.ok();
        all_cases(&store, locks.guarantees(), args.json).await
    });
    runtime.shutdown_background();
    let report = report?;
    if args.json {
        print(&serde_json::to_string_pretty(&report).expect("strings and numbers always serialise"))?;
    }
    Ok(Exit::Code(if report.passed { 0 } else { CHECK_FAILED }))
}

/// Waits until the store grants locks, and says why it does not yet where it knows (a quarantine after a restart).
async fn ready(locks: &LockManager) -> Result<(), Failure> {
    let probe = locks.lock(format!("dlock-check-{}", std::process::id())).expect("the name is legal");
    match probe.holder().await {
        Err(StoreError::Unavailable(error)) if matches!(error.kind(), ErrorKind::NotReady { .. }) => {
            say(format_args!("waiting for the store to be ready: {error}"));
            drop(probe.acquire().await?.release().await);
            Ok(())
        }
        Err(error) => Err(error.into()),
        Ok(_) => Ok(()),
    }
}

async fn all_cases(store: &Store, guarantees: Guarantees, quiet: bool) -> Result<Report, Failure> {
    let connected = store.clone();
    let connect = move || connected.builder().map_err(|failure| failure.to_string());
    // The process and the moment: no other run has both.
    let unique = format!("{}-{:x}", std::process::id(), SystemClock.now().as_nanos());
    let ground = Ground::new(connect, &unique).map_err(|error| Failure::new(crate::exit::USAGE, error))?;
    let mut report = Report {
        store: store.shown().to_owned(),
        backend: guarantees.backend,
        passed: true,
        guarantees: promises(guarantees),
        ttl_ms: millis(ground.ttl),
        cases: Vec::new(),
    };
    if !quiet {
        show_head(&report);
    }
    for case in CASES {
        let started = SystemClock.now();
        let verdict = case.run(&ground).await;
        let row = row(*case, &verdict, SystemClock.now().since(started));
        report.passed &= row.passed;
        if !quiet {
            show_row(&row);
        }
        report.cases.push(row);
    }
    if !quiet {
        show_foot(&report);
    }
    Ok(report)
}

fn row(case: Case, verdict: &Verdict, took: Duration) -> Row {
    Row {
        case: case.name,
        promise: case.promise,
        passed: verdict.is_ok(),
        took_ms: millis(took),
        error: verdict.as_ref().err().map(ToString::to_string),
    }
}

fn promises(guarantees: Guarantees) -> Promises {
    let grade = |basis: Basis| match basis {
        Basis::Holds => Grade { holds: true, condition: None },
        Basis::If(condition) => Grade { holds: true, condition: Some(condition) },
        Basis::No(condition) => Grade { holds: false, condition: Some(condition) },
        // A basis that this version does not know is not a promise.
        other => Grade { holds: false, condition: Some(other.to_string()) },
    };
    Promises {
        exclusion: grade(guarantees.exclusion),
        tokens: grade(guarantees.tokens),
        fairness: guarantees.fairness.to_string(),
        min_ttl_ms: millis(guarantees.min_ttl),
        max_ttl_ms: millis(guarantees.max_ttl),
        takeover_ttls: guarantees.takeover_ttls,
        takeover_extra_ms: millis(guarantees.takeover_extra),
        notes: guarantees.notes,
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn show_head(report: &Report) {
    let promises = &report.guarantees;
    line("store", &report.store);
    line("backend", report.backend);
    line("mutual exclusion", &grade(&promises.exclusion));
    line("rising tokens", &grade(&promises.tokens));
    line("order of waiters", &promises.fairness);
    let ttl = |ms| humantime::format_duration(Duration::from_millis(ms));
    line("smallest and greatest ttl", &format!("{}, {}", ttl(promises.min_ttl_ms), ttl(promises.max_ttl_ms)));
    let extra = humantime::format_duration(Duration::from_millis(promises.takeover_extra_ms));
    let ttls = if promises.takeover_ttls == 1 {
        "the ttl".to_owned()
    } else {
        format!("{} ttls", promises.takeover_ttls)
    };
    line("a crashed holder is replaced within", &format!("{ttls} + {extra}"));
    for note in &promises.notes {
        line("note", note);
    }
    write(&format!("\n{:<34}  {:<7}  {:<6}  {:>7}\n", "case", "promise", "result", "time"));
}

fn grade(grade: &Grade) -> String {
    match (grade.holds, &grade.condition) {
        (true, None) => "yes".to_owned(),
        (true, Some(condition)) => format!("yes, if {condition}"),
        (false, condition) => format!("no: {}", condition.as_deref().unwrap_or_default()),
    }
}

fn show_row(row: &Row) {
    let result = if row.passed { "pass" } else { "FAIL" };
    let time = format!("{:.1} s", Duration::from_millis(row.took_ms).as_secs_f64());
    write(&format!("{:<34}  {:<7}  {result:<6}  {time:>7}\n", row.case.replace('_', " "), row.promise));
    if let Some(error) = &row.error {
        write(&format!("    {error}\n"));
    }
}

fn show_foot(report: &Report) {
    let failed = report.cases.iter().filter(|row| !row.passed).count();
    let count = report.cases.len();
    if failed == 0 {
        write(&format!("\nall {count} cases passed\n"));
    } else {
        write(&format!("\n{failed} of {count} cases failed: do not rely on this store until you know why\n"));
    }
}

fn line(what: &str, value: &str) {
    write(&format!("{what:<36}{value}\n"));
}

/// The table is for people, so it goes to stderr; stdout is for JSON.
fn write(text: &str) {
    io::stderr().write_all(text.as_bytes()).ok();
}
