//! What a person sees while dlock waits for a lock.

use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use dlock::{Clock, Holder, Lock, StoreError, SystemClock};
use tokio::runtime::Handle;

use crate::exit::say;

/// The time after which waiting is worth a word, and between two looks at the holder.
const INTERVAL: Duration = Duration::from_secs(1);

/// Shows the wait for `lock` until it is dropped: one line after a second, and on a terminal another that is kept up to
/// date and cleared at the end.
pub(crate) struct WaitDisplay {
    lock: Lock,
    store: String,
    /// Where the lock manager lives: its first use decides on that.
    runtime: Handle,
    drawn: bool,
}

impl WaitDisplay {
    pub(crate) fn new(lock: Lock, store: &str, runtime: Handle) -> Self {
        Self { lock, store: store.to_owned(), runtime, drawn: false }
    }

    /// Never returns.
    pub(crate) async fn show(&mut self) {
        let started = SystemClock.now();
        tokio::time::sleep(INTERVAL).await;
        let about = format!("waiting for lock {:?} in {}", self.lock.name().as_str(), self.store);
        if nested(&self.lock) {
            say("this command already runs under a lock of that name: in the same store it waits for itself");
        }
        if !io::stderr().is_terminal() {
            let why = look(&self.lock, &self.runtime).await;
            say(format_args!("{about}{why}"));
            std::future::pending::<()>().await;
        }
        say(about);
        loop {
            let waited = SystemClock.now().since(started);
            let why = look(&self.lock, &self.runtime).await;
            self.draw(&format!("waited {}{why}", seconds(waited)));
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Writes the line that is kept up to date, cut to the width of the terminal: one that wraps could not be cleared.
    fn draw(&mut self, line: &str) {
        self.drawn = true;
        let width = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let width = if width == 0 { 80 } else { width };
        let line: String = format!("dlock: {line}").chars().take(width - 1).collect();
        write!(io::stderr(), "\r\x1b[2K{line}").ok();
    }
}

impl Drop for WaitDisplay {
    fn drop(&mut self) {
        if self.drawn {
            write!(io::stderr(), "\r\x1b[2K").ok();
        }
    }
}

/// What keeps the lock from us: who holds it, or what is wrong with the store, as far as that can be told.
pub(crate) async fn look(lock: &Lock, runtime: &Handle) -> String {
    let asking = lock.clone();
    match runtime.spawn(async move { asking.holder().await }).await {
        Ok(Ok(holder)) => held_by(holder.as_ref()),
        Ok(Err(StoreError::Unavailable(error) | StoreError::Refused(error))) => format!(": {error}"),
        Ok(Err(_)) | Err(_) => String::new(),
    }
}

/// `, held by worker-7 since 2026-01-01T00:00:00Z`, or nothing.
fn held_by(holder: Option<&Holder>) -> String {
    let Some(holder) = holder else { return String::new() };
    // Somebody else wrote this text: it must not move the cursor.
    let owner: String = holder.owner.chars().filter(|c| !c.is_control()).collect();
    match holder.since() {
        Some(since) => format!(", held by {owner} since {}", humantime::format_rfc3339_seconds(since)),
        None => format!(", held by {owner}"),
    }
}

fn seconds(time: Duration) -> humantime::FormattedDuration {
    humantime::format_duration(Duration::from_secs(time.as_secs()))
}

/// Whether this process was itself started by `dlock run` with a lock of the same name.
fn nested(lock: &Lock) -> bool {
    std::env::var("DLOCK_NAME").is_ok_and(|name| name == lock.name().as_str())
}
