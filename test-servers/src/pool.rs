//! Running servers that tests use one after the other.

use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::error::Result;

/// A future that a pool runs.
pub type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Sets of running servers, each used by one test at a time, and by many over the life of the test program.
///
/// A set is started when none is idle. It stays for the next test unless the test panicked or marked it dirty. The
/// sets that are left when the test program ends are removed then, although a `static` is never dropped.
///
/// ```
/// use test_servers::{Pool, Redis, Server};
///
/// static NODES: Pool<Vec<Server>> =
///     Pool::new(|| Box::pin(Server::start_all((0..5).map(|_| Redis::v8()))))
///         .reset(|nodes| Box::pin(async move {
///             for node in nodes {
///                 node.thaw().await?;
///                 node.exec(&["FLUSHALL"]).await?;
///             }
///             Ok(())
///         }));
/// ```
pub struct Pool<T: 'static> {
    start: fn() -> Work<'static, T>,
    reset: Option<fn(&T) -> Work<'_, ()>>,
    idle: Mutex<Vec<T>>,
}

impl<T: Send + Sync> Pool<T> {
    /// An empty pool, whose sets are made by this function.
    pub const fn new(start: fn() -> Work<'static, T>) -> Self {
        Self { start, reset: None, idle: Mutex::new(Vec::new()) }
    }

    /// Cleans a set before its next use. A set that cannot be cleaned is discarded.
    ///
    /// A test that returns an error does not panic, and gives back its set as it is, with servers that are frozen or have
    /// ended: this is where to put that right, or to fail.
    pub const fn reset(mut self, reset: fn(&T) -> Work<'_, ()>) -> Self {
        self.reset = Some(reset);
        self
    }

    /// Lends a set; starts one if none is idle.
    ///
    /// # Errors
    ///
    /// When a new set could not be started.
    pub async fn lease(&'static self) -> Result<Lease<T>> {
        while let Some(set) = self.take() {
            let clean = match self.reset {
                Some(reset) => reset(&set).await.is_ok(),
                None => true,
            };
            if clean {
                return Ok(self.lend(set));
            }
        }
        Ok(self.lend((self.start)().await?))
    }

    fn take(&self) -> Option<T> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }

    fn lend(&'static self, set: T) -> Lease<T> {
        Lease { pool: self, set: Some(set), dirty: AtomicBool::new(false) }
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// A set of servers that one test uses alone, given back when it is dropped.
#[must_use = "the set is given back as soon as this is dropped"]
pub struct Lease<T: 'static> {
    pool: &'static Pool<T>,
    set: Option<T>,
    dirty: AtomicBool,
}

impl<T> Lease<T> {
    /// Says that the set is not to be used again.
    pub fn mark_dirty(&self) {
        self.dirty.store(true, Ordering::Relaxed);
    }
}

impl<T> Deref for Lease<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.set.as_ref().expect("it is taken by drop only")
    }
}

impl<T: fmt::Debug> fmt::Debug for Lease<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.set).finish()
    }
}

impl<T> Drop for Lease<T> {
    fn drop(&mut self) {
        // A test that failed may have left the servers in any state.
        if thread::panicking() || self.dirty.load(Ordering::Relaxed) {
            return;
        }
        if let Some(set) = self.set.take() {
            self.pool.idle.lock().unwrap_or_else(PoisonError::into_inner).push(set);
        }
    }
}
