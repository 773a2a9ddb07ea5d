//! What was seen of locks, and whether the promises held.
//!
//! A [`History`] is the record of a test: when each acquisition was asked for and got, when its guard still said that
//! it holds, when a loss was told, when it was released, and which fenced writes a resource took. Every moment comes
//! from one clock, so the records of several processes of one machine can be put together. [`History::check`] then
//! looks for a broken promise in `O(n log n)`:
//!
//! - **P1**: the *certain hold* of a guard lasts from the return of its acquisition to the *call* of the last
//!   `is_held()` that answered true (or of the release that found the claim still there). Two certain holds of one
//!   name never overlap. By the call and not the return: what a guard says while the caller is frozen between call
//!   and return, it says of the moment of the call.
//! - **P2**: a token is greater than that of every acquisition of the name that had returned before this one was
//!   asked for, and no two acquisitions of one name share one.
//! - **P3**: what was told to be lost is never held again.
//! - **P4**: the holder of a crashed one's lock comes within a bound.
//! - **Fencing**: the resource took writes in the order of their tokens, and refused none of a certain holder.
//!
//! What is unknown stays unknown: an acquisition without an end may or may not have got the lock, and nothing is
//! concluded from it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock_core::{Clock, Timestamp};
use serde::{Deserialize, Serialize};

mod check;
mod guard;
mod register;

pub use check::{Summary, Violation, Violations};
pub use guard::{Asking, WatchedGuard};
pub use register::Register;

/// The record of a test. Clones share it.
#[derive(Clone)]
pub struct History(Arc<Inner>);

struct Inner {
    clock: Arc<dyn Clock>,
    process: u32,
    sequence: AtomicU64,
    attempts: AtomicU64,
    events: Mutex<Vec<Event>>,
}

/// When something was seen: the clock's reading and, among equal readings of one process, the order.
///
/// A paused clock gives many things one reading; the sequence number tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Moment {
    /// The clock's reading.
    pub nanos: u64,
    /// The process that took it.
    pub process: u32,
    /// The order inside that process.
    pub sequence: u64,
}

impl Moment {
    /// Whether this moment was certainly before the other; equal readings of two processes are not.
    pub fn before(self, other: Self) -> bool {
        self.nanos < other.nanos
            || (self.nanos == other.nanos && self.process == other.process && self.sequence < other.sequence)
    }

    /// The time from `earlier` to this moment.
    pub fn since(self, earlier: Self) -> Duration {
        Timestamp::from_nanos(self.nanos).since(Timestamp::from_nanos(earlier.nanos))
    }
}

/// One attempt to acquire a lock, over all processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AttemptId {
    /// The process that made it.
    pub process: u32,
    /// Its number there.
    pub number: u64,
}

/// One thing that was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it was seen.
    pub at: Moment,
    /// Of which attempt.
    pub attempt: AttemptId,
    /// What was seen.
    pub what: Seen,
}

/// What can be seen of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Seen {
    /// The lock is asked for.
    Asked {
        /// Who asks.
        who: String,
        /// The lock's name.
        name: String,
    },
    /// The lock was got.
    Acquired {
        /// Its fencing token.
        token: u64,
    },
    /// The lock was not got: held by others, an error, or the caller went away.
    GaveUp,
    /// The guard was asked whether it holds, at the moment of the call.
    Held(bool),
    /// The loss was told.
    Lost,
    /// The release was called.
    ReleaseCalled,
    /// The release found the claim and removed it.
    Released,
    /// The release found the guard lost.
    AlreadyLost,
    /// What became of the release is not known.
    ReleaseUnknown,
    /// The holder was cut off for ever, or killed.
    Crashed,
    /// A write to the fenced resource returned.
    Wrote {
        /// When it was called.
        called: Moment,
        /// Its number among the writes that the resource took; none if it was refused.
        taken_as: Option<u64>,
    },
}

impl History {
    /// An empty record whose moments are read from `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self::of_process(clock, 0)
    }

    /// An empty record of one of several processes; the records are put together by [`add`](Self::add).
    pub fn of_process(clock: Arc<dyn Clock>, process: u32) -> Self {
        Self(Arc::new(Inner {
            clock,
            process,
            sequence: AtomicU64::new(0),
            attempts: AtomicU64::new(0),
            events: Mutex::new(Vec::new()),
        }))
    }

    /// This moment.
    pub fn now(&self) -> Moment {
        Moment {
            nanos: self.0.clock.now().as_nanos(),
            process: self.0.process,
            sequence: self.0.sequence.fetch_add(1, Ordering::SeqCst),
        }
    }

    /// Records that `who` asks for the lock `name`, from now on.
    pub fn ask(&self, who: impl Into<String>, name: impl Into<String>) -> Asking {
        let attempt =
            AttemptId { process: self.0.process, number: self.0.attempts.fetch_add(1, Ordering::SeqCst) };
        self.see(attempt, Seen::Asked { who: who.into(), name: name.into() });
        Asking::new(self.clone(), attempt)
    }

    /// Records what is seen of an attempt now.
    pub fn see(&self, attempt: AttemptId, what: Seen) {
        self.see_at(self.now(), attempt, what);
    }

    /// Records what was seen of an attempt at an earlier moment.
    pub fn see_at(&self, at: Moment, attempt: AttemptId, what: Seen) {
        self.add([Event { at, attempt, what }]);
    }

    /// Adds what another process saw.
    pub fn add(&self, events: impl IntoIterator<Item = Event>) {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner).extend(events);
    }

    /// All that was seen so far, in the order in which it was recorded.
    pub fn events(&self) -> Vec<Event> {
        self.0.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes out all that was seen so far; a worker process hands it to its driver this way.
    pub fn drain(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.events.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Looks for a broken promise other than a late takeover.
    ///
    /// # Errors
    ///
    /// [`Violations`] lists every broken promise that was found, with who, when and which tokens.
    pub fn check(&self) -> Result<Summary, Violations> {
        check::check(&self.events(), None)
    }

    /// As [`check`](Self::check), and every crashed holder must be replaced within `bound`.
    ///
    /// # Errors
    ///
    /// As [`check`](Self::check).
    pub fn check_with_takeover(&self, bound: Duration) -> Result<Summary, Violations> {
        check::check(&self.events(), Some(bound))
    }

    /// As [`check`](Self::check), for a test: panics with the broken promises.
    ///
    /// # Panics
    ///
    /// If a promise was broken.
    pub fn assert_sound(&self) -> Summary {
        self.check().unwrap_or_else(|violations| panic!("{violations}"))
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("History").field("process", &self.0.process).finish_non_exhaustive()
    }
}
