//! `dlock run`.

use std::process::Command;
use std::time::Duration;

use dlock::{Clock, Lock, LockGuard, LockManager, LossReason, ReleaseOutcome, SystemClock};
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinSet;

use crate::args;
use crate::exit::{Failure, LOST, NOT_ACQUIRED, USAGE, by_signal, say};
use crate::signals::Signals;
use crate::store::Store;
use crate::supervise::{Cause, Interrupt, Limits, Outcome, supervise};
use crate::wait_display::{WaitDisplay, look};

/// How dlock is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Code(u8),
    /// As the command did, by an interrupt from the terminal.
    Interrupted(Interrupt),
}

/// Runs a command under a lock.
pub(crate) fn run(args: args::Run) -> Result<Exit, Failure> {
    let no_runtime = |error: std::io::Error| Failure::system("cannot start threads", &error);
    // Two runtimes: the one that watches the command has nothing else to do, whatever the store client is busy with.
    let locking = Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("dlock-store")
        .enable_all()
        .build()
        .map_err(no_runtime)?;
    let watching = Builder::new_current_thread().enable_all().build().map_err(no_runtime)?;
    let end = watching.block_on(run_here(args, locking.handle().clone()));
    // A store that hangs in a blocking call keeps nobody waiting.
    locking.shutdown_background();
    end
}

async fn run_here(args: args::Run, runtime: Handle) -> Result<Exit, Failure> {
    let mut signals = Signals::install().map_err(|error| Failure::system("cannot handle signals", &error))?;
    let store = Store::choose(&args.store)?;
    let locks = manager(&args, &store)?;
    if locks.guarantees().backend == "memory" {
        return Err(Failure::new(
            USAGE,
            "a lock in memory excludes nobody but this process, which runs one command",
        )
        .hint("say which store to use: --url sqlite:/path/locks.db, or DLOCK_URL"));
    }
    store.make_folder()?;
    let limits = limits(&args, locks.ttl())?;
    let mut lock = locks.lock(&args.name).map_err(|error| Failure::from_error(USAGE, &error))?;
    if let Some(longest) = args.max_hold {
        lock = lock.max_hold(longest);
    }

    let patience = match (args.no_wait, args.wait) {
        (true, _) => Patience::Try,
        (false, Some(longest)) => Patience::Within(longest),
        (false, None) => Patience::Endless,
    };
    let mut display = WaitDisplay::new(lock.clone(), store.shown(), runtime.clone());
    let acquired = tokio::select! {
        biased;
        signal = signals.next_to_end() => Err(Exit::Code(by_signal(signal.as_raw()))),
        guard = acquire(&lock, patience, &runtime) => Ok(guard),
        () = display.show() => unreachable!("it shows until it is dropped"),
    };
    drop(display);
    let guard = match acquired {
        Ok(Ok(guard)) => guard,
        Ok(Err(failure)) => {
            let failure = explain(failure, &lock, &store, &runtime).await;
            leave(&locks, &mut signals).await;
            return Err(failure);
        }
        Err(exit) => {
            leave(&locks, &mut signals).await;
            return Ok(exit);
        }
    };

    let acquired_at = SystemClock.now();
    let outcome = supervise(command(&args, &locks, &guard), &guard, limits, &mut signals).await;
    // The lock itself says so only once its end has come, and the command may have ended on TERM before that.
    let is_over = args.max_hold.is_some_and(|longest| {
        let held = SystemClock.now().since(acquired_at);
        held + limits.grace + Duration::from_millis(100) >= longest
    });
    let loss = guard.loss().or(is_over.then_some(LossReason::MaxHold));
    // Nothing of the command is left, so the lock may pass on.
    match guard.release().await {
        Ok(ReleaseOutcome::Released | ReleaseOutcome::AlreadyLost | _) => leave(&locks, &mut signals).await,
        Err(error) => say(error),
    }
    end(outcome?, &args.name, loss)
}

/// What dlock ends with after the command.
fn end(outcome: Outcome, name: &str, loss: Option<LossReason>) -> Result<Exit, Failure> {
    match outcome.cause {
        Cause::Ended(ended) => Ok(match outcome.interrupt {
            Some(interrupt) => Exit::Interrupted(interrupt),
            None => Exit::Code(ended.exit_code()),
        }),
        Cause::Lost(reason) => {
            let reason = reason.or(loss).unwrap_or(LossReason::Expired);
            Err(Failure::new(LOST, format!("lock {name:?} was lost: {reason}; the command was stopped")))
        }
        Cause::Unguarded => Err(Failure::new(
            LOST,
            format!("the guard process of lock {name:?} was killed by somebody, so the command was stopped"),
        )),
    }
}

/// How long to wait for the lock.
#[derive(Clone, Copy, Debug)]
enum Patience {
    Try,
    Within(Duration),
    Endless,
}

async fn acquire(lock: &Lock, patience: Patience, runtime: &Handle) -> Result<LockGuard, Failure> {
    let lock = lock.clone();
    // A manager is served by the runtime in which it is first used. Dropping the set drops the attempt.
    let mut attempt = JoinSet::new();
    let attempting = async move {
        match patience {
            Patience::Try => try_acquire(&lock).await,
            Patience::Within(longest) => Ok(lock.acquire_timeout(longest).await?),
            Patience::Endless => Ok(lock.acquire().await?),
        }
    };
    attempt.spawn_on(attempting, runtime);
    match attempt.join_next().await {
        Some(Ok(result)) => result,
        Some(Err(error)) => Err(Failure::system("the attempt to acquire the lock broke off", &error)),
        None => unreachable!("one task was spawned"),
    }
}

/// Takes the lock if it is in nobody's living hands, waiting out what a crashed holder left.
async fn try_acquire(lock: &Lock) -> Result<LockGuard, Failure> {
    /// More than the rounding of a timer.
    const SLACK: Duration = Duration::from_secs(1);
    let busy = || Failure::new(NOT_ACQUIRED, "held by others");
    let mut until = None;
    loop {
        if let Some(guard) = lock.try_acquire().await? {
            return Ok(guard);
        }
        let Some(settles_in) = lock.settles_in() else { return Err(busy()) };
        let now = SystemClock.now();
        match until {
            None => {
                say(format_args!(
                    "a holder of lock {:?} left without releasing it, or holds it from another boot or container; \
                     unless it stirs, the lock is free in {settles_in:.1?}: waiting for that",
                    lock.name().as_str()
                ));
                until = Some(now.plus(settles_in).plus(SLACK));
            }
            // Somebody took or renewed it meanwhile, and the count began anew.
            Some(until) if until < now.plus(settles_in) => return Err(busy()),
            Some(_) => {}
        }
        dlock::sleep_until(&SystemClock, now.plus(settles_in)).await;
    }
}

/// Says who was in the way, or which store it is that failed.
async fn explain(failure: Failure, lock: &Lock, store: &Store, runtime: &Handle) -> Failure {
    if failure.code() != NOT_ACQUIRED {
        return failure.hint(&format!("the store is {}", store.shown()));
    }
    let why = look(lock, runtime).await;
    let name = lock.name().as_str();
    Failure::new(NOT_ACQUIRED, format!("lock {name:?} was not acquired{why}"))
}

fn manager(args: &args::Run, store: &Store) -> Result<LockManager, Failure> {
    let mut builder = store.builder()?;
    if let Some(ttl) = args.ttl {
        builder = builder.ttl(ttl);
    }
    if let Some(owner) = &args.owner {
        builder = builder.owner(owner);
    }
    builder.build().map_err(|error| Failure::from_error(USAGE, &error))
}

fn limits(args: &args::Run, ttl: Duration) -> Result<Limits, Failure> {
    const LONGEST_DEFAULT: Duration = Duration::from_secs(5);
    let grace = args.grace.unwrap_or_else(|| LONGEST_DEFAULT.min(ttl / 6));
    if grace >= ttl / 3 {
        return Err(Failure::new(
            USAGE,
            format!(
                "a grace of {grace:?} is too long for a ttl of {ttl:?}: it must be below a third of it, as renewals \
                     come every third; set at most {:?}, or a longer ttl",
                ttl / 4
            ),
        ));
    }
    if let Some(longest) = args.max_hold.filter(|longest| *longest <= grace) {
        return Err(Failure::new(
            USAGE,
            format!(
                "a max-hold of {longest:?} leaves no time for the command: it gets TERM {grace:?} before the end; \
                     set more than that, or a shorter grace"
            ),
        ));
    }
    Ok(Limits { grace, ttl })
}

fn command(args: &args::Run, locks: &LockManager, guard: &LockGuard) -> Command {
    let (program, arguments) = args.command.split_first().expect("the parser asks for one word at least");
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("DLOCK_NAME", guard.name().as_str())
        .env("DLOCK_TOKEN", guard.token().to_string())
        .env("DLOCK_OWNER", locks.owner());
    command
}

/// Closes the manager, so that nothing is left in the store. Another signal cuts it short: what is left then ends by
/// itself within a lease.
async fn leave(locks: &LockManager, signals: &mut Signals) {
    tokio::select! {
        biased;
        closed = locks.close() => {
            if let Err(error) = closed {
                say(error);
            }
        }
        _ = signals.next_to_end() => {}
    }
}
