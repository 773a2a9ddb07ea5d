//! The injected clock, which counts the time a machine sleeps.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A reading of a [`Clock`]: nanoseconds since a fixed, arbitrary moment. Readings of different clocks do not compare.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(u64);

impl Timestamp {
    /// A reading from its nanoseconds.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's zero.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// This moment plus `duration`; stays at the end of time where the sum would overflow.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }

    /// This moment less `duration`; stays at zero where the difference would be negative.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }

    /// The time from `earlier` to this moment; zero if `earlier` is later.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The only source of time of the library.
///
/// To be correct, `now` never goes back and counts the time a machine spends suspended: a lease runs out at the store
/// while the machine of its holder sleeps.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Reads the clock.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine: `CLOCK_BOOTTIME` on Linux, which counts suspend and cannot be set.
///
/// `std::time::Instant` on Linux stops while a machine sleeps, so a guard built on it would still answer "held" after
/// a night with the lid closed. On Apple systems `CLOCK_MONOTONIC` counts sleep; elsewhere `Instant` serves.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[cfg(unix)]
        {
            #[cfg(any(target_os = "linux", target_os = "android"))]
            const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Boottime;
            #[cfg(not(any(target_os = "linux", target_os = "android")))]
            const CLOCK: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
            let time = rustix::time::clock_gettime(CLOCK);
            let whole = u64::try_from(time.tv_sec).unwrap_or(0).saturating_mul(1_000_000_000);
            Timestamp(whole.saturating_add(u64::try_from(time.tv_nsec).unwrap_or(0)))
        }
        #[cfg(not(unix))]
        {
            use std::sync::OnceLock;
            use std::time::Instant;
            static ZERO: OnceLock<Instant> = OnceLock::new();
            // An hour, so that readings can be moved back a little.
            #[allow(clippy::disallowed_methods)]
            let elapsed = ZERO.get_or_init(Instant::now).elapsed();
            Timestamp(3_600_000_000_000 + nanos(elapsed))
        }
    }
}

/// A clock for tests: it follows tokio's clock, also a paused one, and can jump and drift.
///
/// Clones share the jumps. Give each simulated machine its own.
///
/// # Examples
///
/// ```
/// use std::time::Duration;
/// use dlock_core::{Clock, TestClock};
///
/// let clock = TestClock::new();
/// let before = clock.now();
/// clock.jump(Duration::from_secs(60)); // the process was frozen, or the machine slept: no timer fired meanwhile
/// assert!(clock.now().since(before) >= Duration::from_secs(60));
/// ```
#[derive(Clone, Debug)]
pub struct TestClock(Arc<TestTime>);

#[derive(Debug)]
struct TestTime {
    zero: tokio::time::Instant,
    jumped: AtomicU64,
    parts_per_million: i64,
}

impl TestClock {
    /// A clock that reads one hour now and runs at the rate of tokio's.
    pub fn new() -> Self {
        Self::with_drift(0)
    }

    /// A clock that runs faster than tokio's by so many parts per million, or slower if negative.
    pub fn with_drift(parts_per_million: i32) -> Self {
        Self(Arc::new(TestTime {
            zero: tokio::time::Instant::now(),
            jumped: AtomicU64::new(0),
            parts_per_million: i64::from(parts_per_million),
        }))
    }

    /// Moves the clock forward at once, without any timer firing: what a frozen process or a sleeping machine sees.
    pub fn jump(&self, by: Duration) {
        self.0.jumped.fetch_add(nanos(by), Ordering::SeqCst);
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        const START: u64 = 3_600_000_000_000;
        let elapsed = nanos(self.0.zero.elapsed());
        let drift = i128::from(elapsed) * i128::from(self.0.parts_per_million) / 1_000_000;
        let drifted = u64::try_from(i128::from(elapsed) + drift).unwrap_or(0);
        Timestamp(START.saturating_add(drifted).saturating_add(self.0.jumped.load(Ordering::SeqCst)))
    }
}

/// Sleeps until `clock` reads `moment` or later.
///
/// Tokio's timers stop while a machine sleeps and the injected clock does not, so the sleep is cut into slices and
/// the clock read after each: after a suspend the sleeper is late by at most one slice. What must not be late reads
/// the clock itself and does not rely on this.
pub async fn sleep_until(clock: &dyn Clock, moment: Timestamp) {
    const SLICE: Duration = Duration::from_secs(30);
    loop {
        let left = moment.since(clock.now());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(SLICE)).await;
    }
}
