//! An inventory whose table refuses the writes of a holder that was frozen and came back too late.
//!
//! ```sh
//! cargo run -p dlock-rs --features sqlite --example fenced_inventory -- sqlite:/tmp/locks.db
//! ```
//!
//! Two shops sell from one stock. Shop A takes the lock, reads the amount, and is frozen before it writes, as a process
//! is when its machine sleeps, swaps, or is moved. Its lease runs out, shop B gets the lock, and sells. When A wakes up
//! it holds a number that is no longer true, and no lock in the world can stop the write that it is about to send.
//! The table can: the write carries the token, and the same statement that writes compares it.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use dlock::{FencingToken, LockManager};
use rusqlite::Connection;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> ExitCode {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory:".to_owned());
    match run(&url) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("fenced_inventory: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(url: &str) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("shop.db");
    Inventory::create(&file)?;

    // A thread with a runtime of its own stands for a process. One that blocks is frozen: nothing in it goes on, not
    // even the renewal of its lease.
    let (tell_b, told_by_a) = channel();
    let (tell_a, told_by_b) = channel();
    let a = Shop { url, file: &file, tell: tell_b, told: told_by_b };
    let b = Shop { url, file: &file, tell: tell_a, told: told_by_a };
    let outcomes = thread::scope(|threads| {
        let (a, b) = (threads.spawn(move || a.sell_one()), threads.spawn(move || b.sell_thirty()));
        [("A", a.join()), ("B", b.join())]
    });
    for (shop, outcome) in outcomes {
        outcome.expect("no shop panics").map_err(|error| format!("shop {shop}: {error}"))?;
    }

    let left = Inventory::open(&file)?.amount()?;
    if left != 100 - 30 - 1 {
        return Err(format!("100 bolts, 30 sold by B and 1 by A: {left} cannot be left").into());
    }
    println!("100 bolts, 30 sold by B and 1 by A: {left} are left, nothing was lost");
    Ok(())
}

/// A process, and how it follows the story.
struct Shop<'a> {
    url: &'a str,
    file: &'a Path,
    tell: Sender<()>,
    told: Receiver<()>,
}

impl Shop<'_> {
    #[tokio::main(flavor = "current_thread")]
    async fn sell_one(self) -> Result<()> {
        let inventory = Inventory::open(self.file)?;
        let locks = connect(self.url, "shop A").await?;
        let lock = locks.lock("stock/bolt")?;

        let guard = lock.acquire().await?;
        let amount = inventory.amount()?;
        println!("A holds token {}, reads {amount}, and is frozen", guard.token());
        self.tell.send(())?;
        // This blocks the only thread there is, until B has sold.
        self.told.recv()?;

        println!("A wakes up, and is_held() says {}", guard.is_held());
        if guard.is_held() {
            return Err("A believes to hold a lock that B has had meanwhile".into());
        }
        // What if it had asked just before it was frozen? Then this is what it would do next.
        if inventory.set_amount(amount - 1, guard.token())? {
            return Err("the table took the write of a stale holder".into());
        }
        println!("A writes {} with token {}: refused, it is stale", amount - 1, guard.token());
        drop(guard);

        // The right way to go on is from the start.
        let guard = lock.acquire().await?;
        let amount = inventory.amount()?;
        if !inventory.set_amount(amount - 1, guard.token())? {
            return Err("the table refused the write of the holder".into());
        }
        println!("A holds token {}, reads {amount}, and writes {}", guard.token(), amount - 1);
        guard.release().await?;
        locks.close().await?;
        Ok(())
    }

    #[tokio::main(flavor = "current_thread")]
    async fn sell_thirty(self) -> Result<()> {
        let inventory = Inventory::open(self.file)?;
        let locks = connect(self.url, "shop B").await?;
        self.told.recv()?; // A is frozen

        println!("B waits for the lock");
        let guard = locks.lock("stock/bolt")?.acquire().await?;
        let amount = inventory.amount()?;
        if !inventory.set_amount(amount - 30, guard.token())? {
            return Err("the table refused the write of the holder".into());
        }
        println!("B holds token {}, reads {amount}, and writes {}", guard.token(), amount - 30);
        guard.release().await?;
        self.tell.send(())?;
        locks.close().await?;
        Ok(())
    }
}

/// A short lease, so that there is not much to wait for.
async fn connect(url: &str, owner: &str) -> Result<LockManager> {
    let builder = dlock::builder(url)?.owner(owner);
    let ttl = builder.guarantees().min_ttl.max(Duration::from_secs(1));
    let locks = builder.ttl(ttl).build()?;
    locks.open().await?;
    Ok(locks)
}

/// The table. It knows nothing of locks: a number that must not get smaller is all it needs.
struct Inventory(Connection);

impl Inventory {
    fn create(file: &Path) -> Result<()> {
        let inventory = Self::open(file)?;
        inventory.0.execute_batch(
            "CREATE TABLE stock (item TEXT PRIMARY KEY, amount INTEGER NOT NULL, fence INTEGER NOT NULL DEFAULT 0);
             INSERT INTO stock (item, amount) VALUES ('bolt', 100);",
        )?;
        Ok(())
    }

    fn open(file: &Path) -> Result<Self> {
        Ok(Self(Connection::open(file)?))
    }

    fn amount(&self) -> Result<i64> {
        Ok(self.0.query_row("SELECT amount FROM stock WHERE item = 'bolt'", (), |row| row.get(0))?)
    }

    /// False if a later holder has written: then nothing is changed.
    fn set_amount(&self, amount: i64, token: FencingToken) -> Result<bool> {
        let token = i64::try_from(token.get())?;
        let rows = self.0.execute(
            "UPDATE stock SET amount = ?1, fence = ?2 WHERE item = 'bolt' AND fence <= ?2",
            (amount, token),
        )?;
        Ok(rows == 1)
    }
}
