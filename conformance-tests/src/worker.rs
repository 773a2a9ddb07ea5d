//! Clients in processes of their own, which can be frozen and killed.
//!
//! A worker is a program that takes commands as lines of JSON on its standard input, acquires and releases locks, and
//! writes what it sees and its answers as lines of JSON to its standard output. Every backend of this repository is
//! served by `lock-worker`; for another one write a program of three lines around [`serve`], and return its command from
//! [`Fixture::worker`](crate::Fixture::worker).

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{Lock, LockManager, ReleaseOutcome, SystemClock};
use futures_util::future::try_join_all;
use serde::{Deserialize, Serialize};

use crate::history::{Event, History, Register, WatchedGuard};

mod crowd;
mod driver;
mod shop;

pub use crowd::Crowd;
pub use driver::Worker;
pub(crate) use shop::Shop;

/// What a worker is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Waits for a lock, for so many milliseconds at most.
    Acquire {
        /// The lock.
        name: String,
        /// How long.
        limit_ms: u64,
    },
    /// Tries for a lock.
    Try {
        /// The lock.
        name: String,
    },
    /// Releases a lock that it got.
    Release {
        /// The lock.
        name: String,
    },
    /// Asks a guard whether it holds, on a thread that no runtime serves.
    IsHeld {
        /// The lock.
        name: String,
    },
    /// Writes to a register in a file, with the token of a guard.
    Write {
        /// The lock.
        name: String,
        /// The register's file.
        register: PathBuf,
        /// What is written.
        value: u64,
    },
    /// Has tasks acquire and release a lock again and again, and raise the number in a register by one each time.
    Contend {
        /// The lock.
        name: String,
        /// The register's file.
        register: PathBuf,
        /// How many tasks, all at once.
        tasks: u64,
        /// How many times each.
        rounds: u64,
    },
    /// Closes the manager.
    Close,
}

/// What a worker answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It got the lock.
    Got {
        /// The token.
        token: u64,
    },
    /// It did not: others held it.
    NotGot,
    /// Whether the guard holds.
    Held(bool),
    /// Whether the write was taken.
    Wrote(bool),
    /// It is done.
    Done,
    /// The guard was lost before it was released.
    AlreadyLost,
    /// Something failed.
    Failed(String),
}

/// A line of a worker's output.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Event(Event),
    Answer(Answer),
}

/// The body of a worker program: connects to the store, then obeys until its standard input ends.
///
/// The first argument of the program is the process's number in the record.
///
/// # Panics
///
/// If it is not called as a worker.
pub fn serve<F>(connect: impl FnOnce() -> F) -> ExitCode
where
    F: Future<Output = Result<LockManager, String>>,
{
    let process = std::env::args().next_back().and_then(|number| number.parse().ok());
    let process = process.expect("the last argument of a worker is its number");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime can be made");
    let locks = match runtime.block_on(connect()) {
        Ok(locks) => locks,
        Err(error) => {
            say(&Line::Answer(Answer::Failed(error)));
            return ExitCode::FAILURE;
        }
    };
    let history = History::of_process(Arc::new(SystemClock), process);
    let mut worker = Obeying { who: format!("process-{process}"), history, locks, guards: HashMap::new() };
    say(&Line::Answer(Answer::Done));
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let order: Order = serde_json::from_str(&line).expect("orders are lines of JSON");
        let answer = match order {
            // No runtime, no task, no timer: the clock alone.
            Order::IsHeld { name } => worker.is_held(&name),
            Order::Write { name, register, value } => worker.write(&name, register, value),
            other => runtime.block_on(worker.obey(other)),
        };
        worker.say_events();
        say(&Line::Answer(answer));
    }
    ExitCode::SUCCESS
}

struct Obeying {
    who: String,
    history: History,
    locks: LockManager,
    guards: HashMap<String, WatchedGuard>,
}

impl Obeying {
    fn is_held(&self, name: &str) -> Answer {
        self.guards.get(name).map_or_else(|| not_got(name), |guard| Answer::Held(guard.is_held()))
    }

    fn write(&self, name: &str, register: PathBuf, value: u64) -> Answer {
        let Some(guard) = self.guards.get(name) else { return not_got(name) };
        Answer::Wrote(guard.write(&Register::in_file(register), value))
    }

    async fn obey(&mut self, order: Order) -> Answer {
        match order {
            Order::Acquire { name, limit_ms } => self.acquire(name, Duration::from_millis(limit_ms)).await,
            Order::Try { name } => {
                let tried = match self.locks.lock(&name) {
                    Ok(lock) => self.history.try_acquire(&self.who, &lock).await,
                    Err(error) => return failed(&error),
                };
                match tried {
                    Ok(Some(guard)) => self.keep(name, guard),
                    Ok(None) => Answer::NotGot,
                    Err(error) => failed(&error),
                }
            }
            Order::Release { name } => {
                let Some(guard) = self.guards.remove(&name) else { return not_got(&name) };
                match guard.release().await {
                    Ok(ReleaseOutcome::Released) => Answer::Done,
                    Ok(_) => Answer::AlreadyLost,
                    Err(error) => failed(&error),
                }
            }
            Order::Contend { name, register, tasks, rounds } => {
                self.contend(&name, &Register::in_file(register), tasks, rounds).await
            }
            Order::Close => self.locks.close().await.map_or_else(|error| failed(&error), |()| Answer::Done),
            Order::IsHeld { .. } | Order::Write { .. } => unreachable!("these need no runtime"),
        }
    }

    async fn acquire(&mut self, name: String, limit: Duration) -> Answer {
        let lock = match self.locks.lock(&name) {
            Ok(lock) => lock,
            Err(error) => return failed(&error),
        };
        match self.history.acquire_timeout(&self.who, &lock, limit).await {
            Ok(guard) => self.keep(name, guard),
            Err(error) if error.is_timeout() => Answer::NotGot,
            Err(error) => failed(&error),
        }
    }

    fn keep(&mut self, name: String, guard: WatchedGuard) -> Answer {
        let token = guard.token().get();
        self.guards.insert(name, guard);
        Answer::Got { token }
    }

    async fn contend(&self, name: &str, register: &Register, tasks: u64, rounds: u64) -> Answer {
        let lock = match self.locks.lock(name) {
            Ok(lock) => lock,
            Err(error) => return failed(&error),
        };
        let tasks =
            (0..tasks).map(|task| self.take_turns(format!("{}/{task}", self.who), &lock, register, rounds));
        match try_join_all(tasks).await {
            Ok(_) => Answer::Done,
            Err(failure) => failure,
        }
    }

    async fn take_turns(
        &self,
        who: String,
        lock: &Lock,
        register: &Register,
        rounds: u64,
    ) -> Result<(), Answer> {
        for _ in 0..rounds {
            let guard = self.history.acquire(&who, lock).await.map_err(|error| failed(&error))?;
            // What is seen goes out at once: the process may be killed before the next line.
            self.say_events();
            let before = register.read();
            tokio::task::yield_now().await;
            if !guard.write(register, before.value + 1) || !guard.is_held() {
                return Err(Answer::Failed(format!("a guard with token {} was lost", guard.token())));
            }
            self.say_events();
            guard.release().await.map_err(|error| failed(&error))?;
            self.say_events();
        }
        Ok(())
    }

    fn say_events(&self) {
        for event in self.history.drain() {
            say(&Line::Event(event));
        }
    }
}

fn not_got(name: &str) -> Answer {
    Answer::Failed(format!("{name:?} was never acquired here"))
}

fn failed(error: &dyn std::error::Error) -> Answer {
    Answer::Failed(format!("{error}: {error:?}"))
}

fn say(line: &Line) {
    let mut text = serde_json::to_string(line).expect("plain data always serialises");
    text.push('\n');
    let mut out = std::io::stdout().lock();
    // Whoever does not listen any more needs no answer.
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}
