//! What a backend promises, and on what that rests.

use std::fmt;
use std::time::Duration;

/// The greatest TTL on any store: a day.
const LONGEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// What a backend guarantees, as configured; the README's table shows the same.
///
/// Built by backends with [`Guarantees::new`] and the setters.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Guarantees {
    /// The backend's name: `memory`, `sqlite`, `etcd`, ...
    pub backend: &'static str,
    /// What mutual exclusion (P1) rests on.
    pub exclusion: Basis,
    /// What rising tokens (P2) rest on.
    pub tokens: Basis,
    /// The order in which waiters of different processes are served.
    pub fairness: Fairness,
    /// The smallest TTL that makes sense.
    pub min_ttl: Duration,
    /// The greatest TTL for which the promises hold.
    pub max_ttl: Duration,
    /// A crashed or frozen holder is replaced within so many TTLs, plus
    /// [`takeover_extra`](Self::takeover_extra) (P4).
    pub takeover_ttls: u32,
    /// The constant of the takeover bound.
    pub takeover_extra: Duration,
    /// What else one should know, one sentence each.
    pub notes: Vec<String>,
}

impl Guarantees {
    /// The strongest grade: everything holds under the named assumptions. Lower it with the setters.
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            exclusion: Basis::Holds,
            tokens: Basis::Holds,
            fairness: Fairness::Process,
            min_ttl: Duration::from_millis(50),
            max_ttl: LONGEST_TTL,
            takeover_ttls: 1,
            takeover_extra: Duration::ZERO,
            notes: Vec::new(),
        }
    }

    /// Sets what exclusion rests on.
    #[must_use]
    pub fn exclusion(mut self, basis: Basis) -> Self {
        self.exclusion = basis;
        self
    }

    /// Sets what tokens rest on.
    #[must_use]
    pub fn tokens(mut self, basis: Basis) -> Self {
        self.tokens = basis;
        self
    }

    /// Sets the order of waiters.
    #[must_use]
    pub fn fairness(mut self, fairness: Fairness) -> Self {
        self.fairness = fairness;
        self
    }

    /// Sets the smallest TTL.
    #[must_use]
    pub fn min_ttl(mut self, ttl: Duration) -> Self {
        self.min_ttl = ttl;
        self
    }

    /// Sets the greatest TTL, where that is less than a day.
    #[must_use]
    pub fn max_ttl(mut self, ttl: Duration) -> Self {
        self.max_ttl = ttl.min(LONGEST_TTL);
        self
    }

    /// Sets the takeover bound: so many TTLs, plus a constant.
    #[must_use]
    pub fn takeover(mut self, ttls: u32, extra: Duration) -> Self {
        self.takeover_ttls = ttls;
        self.takeover_extra = extra;
        self
    }

    /// The longest until a holder that crashed or froze with a lease of `ttl` is replaced, while the store is up.
    pub fn takeover_bound(&self, ttl: Duration) -> Duration {
        ttl.saturating_mul(self.takeover_ttls).saturating_add(self.takeover_extra)
    }

    /// Adds a sentence.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

/// What a promise rests on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Basis {
    /// Holds under the assumptions that every backend names (A1 to A3).
    Holds,
    /// Holds if something more is true, which the text says.
    If(String),
    /// Does not hold, for the reason that the text says.
    No(String),
}

impl fmt::Display for Basis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds => f.write_str("yes"),
            Self::If(what) => write!(f, "yes, if {what}"),
            Self::No(why) => write!(f, "no: {why}"),
        }
    }
}

/// The order in which waiters are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fairness {
    /// First come, first served over all processes.
    Global,
    /// First come, first served inside a process; none promised between processes.
    Process,
}

impl fmt::Display for Fairness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Global => "first come, first served",
            Self::Process => "first come, first served inside a process",
        })
    }
}
