//! The cases: functions over lock managers, safe on a server in use.
//!
//! Each takes locks under names of its own, which nobody else uses, and leaves nothing behind. They ask the store for
//! what it promises and cannot break it on purpose: faults, restarts and cut networks are the business of the
//! conformance suite, which owns its servers.

use std::error::Error;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock::{
    AcquireError, Clock, FencingToken, Lock, LockGuard, LockManager, LockManagerBuilder, ReleaseOutcome,
    SystemClock,
};
use tokio::task::JoinSet;
use tokio::time::timeout;

/// What a case found wrong.
pub(crate) type Verdict = Result<(), Broken>;

/// A promise that was broken, or an error on the way, in words.
#[derive(Debug)]
pub(crate) struct Broken(String);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<E: Error> From<E> for Broken {
    fn from(error: E) -> Self {
        Self(crate::exit::chain(&error))
    }
}

/// A case and what it shows.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// The promise that it checks, as the library's documentation numbers them.
    pub(crate) promise: &'static str,
    run: for<'a> fn(&'a Ground) -> Pin<Box<dyn Future<Output = Verdict> + 'a>>,
}

macro_rules! cases {
    ($($promise:literal $name:ident)*) => {
        &[$(Case { name: stringify!($name), promise: $promise, run: |ground| Box::pin($name(ground)) }),*]
    };
}

/// All cases, in the order in which they are run.
pub(crate) const CASES: &[Case] = cases! {
    "P1" one_holder_among_two_managers
    "P1" names_are_independent
    "P1" renewed_beyond_the_ttl
    "P2" tokens_rise
    "P4" a_holder_that_stops_is_replaced
    "P5" release_says_what_happened
    "P6" a_busy_try_changes_nothing
    "P6" a_timeout_ends_a_wait
    "P6" a_dropped_wait_leaves_nothing
    "P6" a_dropped_guard_releases
    "" a_waiter_is_served
};

impl Case {
    /// Runs the case; true to the promise, or what is wrong.
    pub(crate) async fn run(&self, ground: &Ground) -> Verdict {
        let limit = ground.patience() * 4;
        let verdict = timeout(limit, (self.run)(ground)).await;
        ground.clear().await;
        verdict.unwrap_or_else(|_| Err(Broken(format!("no end after {limit:?}"))))
    }
}

/// Where cases are run: a store, names of one's own in it, and the managers that were made.
pub(crate) struct Ground {
    connect: Box<dyn Fn() -> Result<LockManagerBuilder, String> + Send + Sync>,
    /// What all names start with.
    prefix: String,
    pub(crate) ttl: Duration,
    /// The promised bound for the replacement of a holder that crashed.
    takeover: Duration,
    managers: Mutex<Vec<LockManager>>,
    next: AtomicU64,
}

/// A condition that must hold.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(Broken(format!($($message)+)));
        }
    };
}

impl Ground {
    /// A ground over the store that `connect` leads to. `unique` keeps its names apart from those of other runs.
    pub(crate) fn new(
        connect: impl Fn() -> Result<LockManagerBuilder, String> + Send + Sync + 'static,
        unique: &str,
    ) -> Result<Self, String> {
        let guarantees = connect()?.guarantees();
        // Short, so that leases end soon, but not so short that a server far away or a busy machine loses them.
        let ttl = guarantees.min_ttl.max(Duration::from_secs(3).min(guarantees.max_ttl));
        Ok(Self {
            connect: Box::new(connect),
            prefix: format!("dlock-check-{unique}"),
            ttl,
            takeover: guarantees.takeover_bound(ttl),
            managers: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Longer than anything takes that works at all, on a busy server far away.
    fn patience(&self) -> Duration {
        Duration::from_secs(10) + self.takeover * 2
    }

    fn settings(&self) -> Result<LockManagerBuilder, Broken> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let builder = (self.connect)().map_err(Broken)?;
        Ok(builder.ttl(self.ttl).owner(format!("{}/{number}", self.prefix)))
    }

    fn manager(&self) -> Result<LockManager, Broken> {
        let manager = self.settings()?.build()?;
        self.managers.lock().unwrap_or_else(PoisonError::into_inner).push(manager.clone());
        Ok(manager)
    }

    /// One lock as two managers see it.
    fn lock_of_two(&self, name: &str) -> Result<(Lock, Lock), Broken> {
        let name = self.name(name);
        Ok((self.manager()?.lock(&name)?, self.manager()?.lock(&name)?))
    }

    fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.prefix)
    }

    async fn acquire(&self, lock: &Lock) -> Result<LockGuard, Broken> {
        Ok(lock.acquire_timeout(self.patience()).await?)
    }

    /// Closes what the last case opened.
    async fn clear(&self) {
        let managers = std::mem::take(&mut *self.managers.lock().unwrap_or_else(PoisonError::into_inner));
        for manager in managers {
            // What could not be closed ends by itself within a lease; the case has been judged.
            manager.close().await.ok();
        }
    }
}

async fn one_holder_among_two_managers(ground: &Ground) -> Verdict {
    const TASKS: usize = 3;
    const ROUNDS: usize = 5;
    let (one, other) = ground.lock_of_two("contended")?;
    let inside = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for lock in [one, other].iter().flat_map(|lock| std::iter::repeat_n(lock.clone(), TASKS)) {
        let (inside, patience) = (Arc::clone(&inside), ground.patience());
        tasks.spawn(async move {
            for _ in 0..ROUNDS {
                let guard = lock.acquire_timeout(patience).await?;
                let others = inside.fetch_add(1, Ordering::SeqCst);
                // Gives the others every chance.
                tokio::time::sleep(Duration::from_millis(2)).await;
                let held = guard.is_held();
                inside.fetch_sub(1, Ordering::SeqCst);
                ensure!(others == 0 || !held, "two guards of one name were held at the same time");
                guard.release().await?;
            }
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.map_err(Broken::from)??;
    }
    Ok(())
}

async fn names_are_independent(ground: &Ground) -> Verdict {
    let manager = ground.manager()?;
    let mut guards = Vec::new();
    for name in ["a", "a/b", "a%2Fb", "a b", "{a}", "..", "a.b", "A", "é", "🔒"] {
        let guard = manager.lock(ground.name(name))?.try_acquire().await?;
        let Some(guard) = guard else {
            return Err(Broken(format!("{name:?} is the same lock as one before")));
        };
        guards.push(guard);
    }
    for guard in guards {
        ensure!(guard.is_held(), "{} was lost", guard.name());
        guard.release().await?;
    }
    Ok(())
}

async fn renewed_beyond_the_ttl(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("long")?;
    let guard = ground.acquire(&one).await?;
    let lost = timeout(ground.ttl * 5 / 2, guard.lost()).await;
    if let Ok(reason) = lost {
        return Err(Broken(format!("a lock was not renewed: {reason}")));
    }
    ensure!(other.try_acquire().await?.is_none(), "a renewed lock was given to another manager");
    ensure!(guard.release().await? == ReleaseOutcome::Released, "a renewed lock was lost before its release");
    Ok(())
}

async fn tokens_rise(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("tokens")?;
    let mut last: Option<FencingToken> = None;
    for round in 0..12 {
        // Sometimes the same manager again, sometimes the other, at last a new one.
        let lock = match round {
            10.. => ground.manager()?.lock(ground.name("tokens"))?,
            _ if round % 3 == 0 => other.clone(),
            _ => one.clone(),
        };
        let guard = ground.acquire(&lock).await?;
        let token = guard.token();
        ensure!(last.is_none_or(|last| last < token), "token {token} came after {last:?}");
        last = Some(token);
        guard.release().await?;
    }
    Ok(())
}

async fn a_holder_that_stops_is_replaced(ground: &Ground) -> Verdict {
    let name = ground.name("stopped");
    let settings = ground.settings()?;
    // The holder's runtime ends while it holds the lock: nobody renews it, and nobody releases it.
    let (send, receive) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let held = hold_and_stop(settings, &name);
        send.send(held).ok();
    });
    let held = receive.await??;
    let stopped = SystemClock.now();
    let other = ground.manager()?.lock(ground.name("stopped"))?;
    let guard = ground.acquire(&other).await?;
    let took = SystemClock.now().since(stopped);
    ensure!(!held.is_held(), "the lock passed on while its holder was still sure of it");
    ensure!(guard.token() > held.token(), "token {} came after {}", guard.token(), held.token());
    guard.release().await?;
    let bound = ground.takeover + Duration::from_secs(1);
    ensure!(took <= bound, "it took {took:.1?}; {:.1?} was promised", ground.takeover);
    Ok(())
}

/// Acquires a lock and stops everything that would renew it.
fn hold_and_stop(settings: LockManagerBuilder, name: &str) -> Result<LockGuard, Broken> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let guard =
        runtime.block_on(async { settings.build()?.lock(name)?.acquire().await.map_err(Broken::from) })?;
    runtime.shutdown_background();
    Ok(guard)
}

async fn release_says_what_happened(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("released")?;
    let guard = ground.acquire(&one).await?;
    ensure!(
        guard.release().await? == ReleaseOutcome::Released,
        "a held lock was released as one already lost"
    );
    let short = one.max_hold(Duration::from_millis(1));
    let guard = ground.acquire(&short).await?;
    guard.lost().await;
    ensure!(
        guard.release().await? == ReleaseOutcome::AlreadyLost,
        "a lost lock was released as one that was held"
    );
    ground.acquire(&other).await?.release().await?;
    Ok(())
}

async fn a_busy_try_changes_nothing(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("busy")?;
    let guard = ground.acquire(&one).await?;
    for _ in 0..3 {
        ensure!(other.try_acquire().await?.is_none(), "a held lock was given to a second manager");
    }
    ensure!(guard.is_held(), "a try by somebody else took the lock away");
    guard.release().await?;
    let guard = other.try_acquire().await?;
    ensure!(guard.is_some(), "a free lock was not given to one who tried");
    Ok(())
}

async fn a_timeout_ends_a_wait(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("timeout")?;
    let guard = ground.acquire(&one).await?;
    // Opens its session, which is no part of the wait.
    ensure!(other.try_acquire().await?.is_none(), "a held lock was given to a second manager");
    let longest = Duration::from_secs(1);
    let started = SystemClock.now();
    match other.acquire_timeout(longest).await {
        Err(AcquireError::Timeout { .. }) => {}
        Err(error) => return Err(error.into()),
        Ok(_) => return Err(Broken("a held lock was given to a second manager".to_owned())),
    }
    ensure!(SystemClock.now().since(started) >= longest, "the wait was cut short");
    guard.release().await?;
    // The withdrawal may still be on its way.
    let third = ground.manager()?.lock(ground.name("timeout"))?;
    let guard = ground.acquire(&third).await?;
    ensure!(
        guard.release().await? == ReleaseOutcome::Released,
        "the wait that was given up took the lock away"
    );
    Ok(())
}

async fn a_dropped_wait_leaves_nothing(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("dropped")?;
    let guard = ground.acquire(&one).await?;
    for pause in [0, 1, 20, 100] {
        let waited = timeout(Duration::from_millis(pause), other.acquire()).await;
        ensure!(waited.is_err(), "a held lock was given to a second manager");
    }
    guard.release().await?;
    // The withdrawal may still be on its way.
    let third = ground.manager()?.lock(ground.name("dropped"))?;
    let guard = ground.acquire(&third).await?;
    ensure!(guard.release().await? == ReleaseOutcome::Released, "somebody else took the lock away");
    Ok(())
}

async fn a_dropped_guard_releases(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("guard")?;
    let guard = ground.acquire(&one).await?;
    // Opens its session, which is no part of what is measured.
    ensure!(other.try_acquire().await?.is_none(), "a held lock was given to a second manager");
    drop(guard);
    let dropped = SystemClock.now();
    let guard = ground.acquire(&other).await?;
    let took = SystemClock.now().since(dropped);
    guard.release().await?;
    // Not by its lease, which would have been renewed, nor by its end.
    ensure!(took < ground.ttl, "it took {took:.1?}, as long as a lease");
    Ok(())
}

async fn a_waiter_is_served(ground: &Ground) -> Verdict {
    let (one, other) = ground.lock_of_two("served")?;
    for _ in 0..3 {
        let guard = ground.acquire(&one).await?;
        let (lock, patience) = (other.clone(), ground.patience());
        let waiter = tokio::spawn(async move { lock.acquire_timeout(patience).await });
        // Long enough for the wait to have reached the store.
        tokio::time::sleep(Duration::from_millis(100)).await;
        ensure!(!waiter.is_finished(), "a held lock was given to a second manager");
        guard.release().await?;
        waiter.await??.release().await?;
    }
    Ok(())
}
