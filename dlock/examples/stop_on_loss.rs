//! A worker that stops when it loses its lock, and another that goes on where it stopped.
//!
//! ```sh
//! cargo run -p dlock-rs --features sqlite --example stop_on_loss -- sqlite:/tmp/locks.db
//! ```
//!
//! A lock can be lost at any moment: the store is out of reach, the session is ended by an operator, the process was
//! frozen. Here it is `max_hold` that ends it, since that works with every store; the worker treats all alike. It wraps
//! its work in `run_until_lost`, which begins no step after the loss, and keeps its progress where the next can find it.

use std::error::Error;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock::{FencingToken, LockManager};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const ITEMS: u32 = 20;
const STEP: Duration = Duration::from_millis(50);
const LONGEST_HOLD: Duration = Duration::from_millis(400);

#[tokio::main]
async fn main() -> ExitCode {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    match run(&url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stop_on_loss: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(url: &str) -> Result<()> {
    let import = Arc::new(Import::default());
    let mut workers = Vec::new();
    for number in 1..=2 {
        let locks = dlock::connect(url).await?;
        workers.push(tokio::spawn(worker(number, locks, Arc::clone(&import))));
    }
    let mut losses = 0;
    for worker in workers {
        losses += worker.await??;
    }

    let imported = import.imported();
    if !imported.iter().copied().eq(1..=ITEMS) {
        return Err(format!("the items were not imported once each and in order: {imported:?}").into());
    }
    if losses == 0 {
        return Err("no lock was lost, although the work takes longer than the longest hold".into());
    }
    println!("{ITEMS} items, the lock lost {losses} times: each item was imported once, and in order");
    Ok(())
}

/// Works until all is imported; how often it lost the lock.
async fn worker(number: u32, locks: LockManager, import: Arc<Import>) -> Result<u32> {
    let lock = locks.lock("import")?.max_hold(LONGEST_HOLD);
    let mut losses = 0;
    loop {
        let guard = lock.acquire().await?;
        println!("worker {number} holds the lock with token {}", guard.token());
        match guard.run_until_lost(import.go_on(guard.token())).await {
            Ok(Outcome::Complete) => {
                println!("worker {number} finds that all is done");
                guard.release().await?;
                break;
            }
            Ok(Outcome::Refused) => println!("worker {number} stops: a later holder is at it"),
            Err(reason) => {
                losses += 1;
                println!("worker {number} stops: {reason}");
            }
        }
    }
    locks.close().await?;
    Ok(losses)
}

/// What has been imported: in a real program a table.
#[derive(Default)]
struct Import(Mutex<Progress>);

#[derive(Default)]
struct Progress {
    imported: Vec<u32>,
    /// The greatest token that was seen.
    fence: Option<FencingToken>,
}

enum Outcome {
    Complete,
    /// The token was not the greatest any more.
    Refused,
}

impl Import {
    /// Imports what is left. Dropped at an await, it leaves whole items only: the one that was being fetched is fetched
    /// again by the next.
    async fn go_on(&self, token: FencingToken) -> Outcome {
        while let Some(item) = self.next(token) {
            fetch(item).await;
            if !self.store(item, token) {
                return Outcome::Refused;
            }
        }
        Outcome::Complete
    }

    /// The next item, if there is one. From here on holders before this one are refused.
    fn next(&self, token: FencingToken) -> Option<u32> {
        self.progress(|progress| {
            progress.fence = progress.fence.max(Some(token));
            let next = progress.imported.last().copied().unwrap_or(0) + 1;
            (next <= ITEMS).then_some(next)
        })
    }

    /// Stores an item, unless a later holder has looked for one.
    fn store(&self, item: u32, token: FencingToken) -> bool {
        self.progress(|progress| {
            let ours = progress.fence == Some(token);
            if ours {
                progress.imported.push(item);
            }
            ours
        })
    }

    fn imported(&self) -> Vec<u32> {
        self.progress(|progress| progress.imported.clone())
    }

    fn progress<T>(&self, work: impl FnOnce(&mut Progress) -> T) -> T {
        work(&mut self.0.lock().expect("nobody panics while holding it"))
    }
}

async fn fetch(_item: u32) {
    tokio::time::sleep(STEP).await;
}
