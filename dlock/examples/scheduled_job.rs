//! A job that must run once in each time slot, although several workers are started for it.
//!
//! ```sh
//! cargo run -p dlock-rs --features sqlite --example scheduled_job -- sqlite:/tmp/jobs.db
//! ```
//!
//! Every worker tries the lock of the slot, and who does not get it goes home: somebody else is at it. The lock alone
//! does not make it once, since a worker that comes late finds the lock free again. So whoever holds it looks whether
//! the slot is done, and leaves a record, which takes the fencing token along: of two workers that both believe to
//! hold the lock of a slot, the earlier one's result does not count.
//!
//! A lock for each slot costs nothing that stays: once it is released the store knows of it no more.

use std::collections::BTreeMap;
use std::error::Error;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use dlock::{FencingToken, LockManager};

const WORKERS: u32 = 4;
const SLOTS: u32 = 6;
const SLOT: Duration = Duration::from_millis(250);

#[tokio::main]
async fn main() -> ExitCode {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    match run(&url).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scheduled_job: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(url: &str) -> Result<(), Box<dyn Error + Send + Sync>> {
    let journal = Arc::new(Journal::default());
    let mut workers = Vec::new();
    for number in 1..=WORKERS {
        // A manager for each worker, as if they were on machines of their own.
        let locks = dlock::connect(url).await?;
        workers.push(tokio::spawn(worker(number, locks, Arc::clone(&journal))));
    }
    for worker in workers {
        worker.await??;
    }

    for slot in 1..=SLOTS {
        let times = journal.times_done(slot);
        if times != 1 {
            return Err(format!("slot {slot} was done {times} times").into());
        }
    }
    println!("{SLOTS} slots, {WORKERS} workers: each slot was done once");
    Ok(())
}

async fn worker(
    number: u32,
    locks: LockManager,
    journal: Arc<Journal>,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let night = std::process::id(); // stands for the date
    let mut clock = tokio::time::interval(SLOT);
    for slot in 1..=SLOTS {
        clock.tick().await;

        let lock = locks.lock(format!("nightly-report/{night}/{slot}"))?;
        let Some(guard) = lock.try_acquire().await? else {
            println!("slot {slot}: worker {number} skips it, another one is at it");
            continue;
        };
        if !journal.begin(slot, guard.token()) {
            println!("slot {slot}: worker {number} came late, it is done");
            continue; // dropping the guard releases the lock
        }
        println!("slot {slot}: worker {number} works, with token {}", guard.token());
        match guard.run_until_lost(write_report()).await {
            Ok(()) if journal.finish(slot, guard.token()) => {}
            Ok(()) => println!("slot {slot}: worker {number} was too slow, and another one has taken over"),
            Err(reason) => println!("slot {slot}: worker {number} stopped: {reason}"),
        }
        guard.release().await?;
    }
    locks.close().await?;
    Ok(())
}

/// The work itself.
async fn write_report() {
    tokio::time::sleep(SLOT / 5).await;
}

/// What was done: in a real program a table with a row for each slot.
#[derive(Default)]
struct Journal(Mutex<BTreeMap<u32, Row>>);

#[derive(Default)]
struct Row {
    /// The greatest token that was seen.
    fence: Option<FencingToken>,
    times_done: u32,
}

impl Journal {
    /// Whether the slot is still to be done by the holder of this token.
    fn begin(&self, slot: u32, token: FencingToken) -> bool {
        self.with_row(slot, |row| {
            let wanted = row.times_done == 0 && row.fence < Some(token);
            if wanted {
                row.fence = Some(token);
            }
            wanted
        })
    }

    /// Marks the slot as done, unless somebody with a greater token has begun it meanwhile.
    fn finish(&self, slot: u32, token: FencingToken) -> bool {
        self.with_row(slot, |row| {
            let ours = row.fence == Some(token);
            row.times_done += u32::from(ours);
            ours
        })
    }

    fn times_done(&self, slot: u32) -> u32 {
        self.with_row(slot, |row| row.times_done)
    }

    fn with_row<T>(&self, slot: u32, work: impl FnOnce(&mut Row) -> T) -> T {
        work(self.0.lock().expect("nobody panics while holding it").entry(slot).or_default())
    }
}
