//! What a seed stands for.

use std::time::Duration;

use dlock_core::memory::{Expiry, LeaseScope, Waiting};

use super::random::Random;

/// The frame of one schedule.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// What carries a lease.
    pub leases: LeaseScope,
    /// What becomes of a claim that is willing to wait.
    pub waiting: Waiting,
    /// What becomes of a lease that is not renewed.
    pub expiry: Expiry,
    /// Whether a release wakes those who were told `Busy`.
    pub notify: bool,
    /// Whether sessions are told of their end.
    pub events: bool,
    /// When to ask again after `Busy`.
    pub poll: Duration,
    /// The longest lease that the store grants.
    pub max_ttl: Duration,
    /// How fast the store's clock is, in parts per million.
    pub store_drift: i32,
    /// How many locks there are.
    pub names: u64,
    /// The managers.
    pub sites: Vec<SitePlan>,
}

/// One manager of a schedule.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SitePlan {
    /// The lease that is asked for.
    pub ttl: Duration,
    /// How long an answer may take.
    pub request_timeout: Duration,
    /// How fast its clock is, in parts per million.
    pub drift: i32,
    /// How many workers it has.
    pub workers: u64,
    /// How long a request, or its answer, is on its way at most.
    pub latency: Duration,
    /// How many of a hundred requests meet a fault.
    pub faults: u64,
    /// Whether it is cut off for ever at some time.
    pub dies: bool,
    /// Whether it is closed in the middle of everything.
    pub closes: bool,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        // With a store 0.4 % fast and a client 0.4 % slow a lease is 0.8 % short: the margin is 1 % (A1).
        let drift = |random: &mut Random| random.pick(&[0, 0, 100, -100, 4000, -4000]);
        let ttl = Duration::from_millis(random.pick(&[200, 1000, 10_000]));
        let faults = random.pick(&[0, 2, 10, 30]);
        let sites = (0..=random.below(3)).map(|_| SitePlan {
            ttl: ttl * u32::try_from(1 + random.below(3)).expect("a small number"),
            request_timeout: ttl / u32::try_from(1 + random.below(8)).expect("a small number"),
            drift: drift(&mut random),
            workers: 1 + random.below(3),
            latency: random.pick(&[Duration::ZERO, ttl / 50, ttl / 4]),
            faults,
            dies: random.percent(10),
            closes: random.percent(10),
        });
        let sites = sites.collect();
        Self {
            leases: random.pick(&[LeaseScope::Session, LeaseScope::Claim]),
            waiting: random.pick(&[Waiting::Fifo, Waiting::Poll]),
            expiry: random.pick(&[Expiry::Proven, Expiry::Settled, Expiry::Observed]),
            notify: random.percent(50),
            events: random.percent(50),
            poll: ttl / u32::try_from(2 + random.below(8)).expect("a small number"),
            max_ttl: if random.percent(20) { ttl } else { Duration::MAX },
            store_drift: drift(&mut random),
            names: 1 + random.below(2),
            sites,
        }
    }

    /// The longest lease that is granted.
    pub fn longest_ttl(&self) -> Duration {
        let asked = self.sites.iter().map(|site| site.ttl).max().unwrap_or_default();
        asked.min(self.max_ttl)
    }
}
