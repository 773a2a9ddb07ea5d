//! The world of one schedule: store, managers, record.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::faults::{self, Fault, Faults};
use dlock_core::memory::{Expiry, MemoryBackend, MemoryStore};
use dlock_core::{ErrorKind, LockManager, ReleaseOutcome, TestClock};
use tokio::time::{sleep, timeout};

use super::plan::{Plan, SitePlan};
use super::random::Random;
use super::{Tally, chaos, worker};
use crate::history::{AttemptId, Event, History, Register, Summary, WatchedGuard};

/// Longer than any schedule takes, in simulated time, unless something hangs.
const FOR_EVER: Duration = Duration::from_secs(60 * 60);

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) store: MemoryStore,
    pub(super) store_clock: TestClock,
    /// True time: the clock of the record.
    pub(super) true_clock: TestClock,
    pub(super) history: History,
    pub(super) sites: Vec<Site>,
    pub(super) registers: Vec<Register>,
    /// Every guard that somebody still has.
    guards: Mutex<BTreeMap<AttemptId, Arc<WatchedGuard>>>,
    tally: Mutex<Tally>,
    /// The first thing that should never happen.
    wrong: Mutex<Option<String>>,
}

pub(super) struct Site {
    pub(super) plan: SitePlan,
    pub(super) owner: String,
    pub(super) locks: LockManager,
    pub(super) faults: Faults,
    pub(super) clock: TestClock,
    /// Cut off for ever, or closed.
    pub(super) over: AtomicBool,
    noise: Mutex<Random>,
}

pub(super) async fn play(seed: u64, plan: &Plan) -> Result<(Summary, Tally, Vec<Event>), String> {
    let mut random = Random::new(seed).fork();
    let world = Arc::new(World::new(plan, &mut random));
    let schedule = timeout(FOR_EVER, schedule(Arc::clone(&world), random));
    schedule.await.map_err(|_| format!("somebody still waits after an hour: {:?}", world.store.residue()))?;
    let wrong = lock(&world.wrong).take();
    if let Some(wrong) = wrong {
        return Err(wrong);
    }
    let summary = world.history.check().map_err(|violations| violations.to_string())?;
    world.aftermath().await?;
    let summary_after = world.history.check().map_err(|violations| violations.to_string())?;
    let tally = world.final_tally(&summary_after);
    Ok((summary, tally, world.history.events()))
}

async fn schedule(world: Arc<World>, mut random: Random) {
    let (mut workers, mut chaos) = (Vec::new(), Vec::new());
    for (at, site) in world.sites.iter().enumerate() {
        for number in 0..site.plan.workers {
            let who = format!("{} {number}", site.owner);
            workers.push(tokio::spawn(worker::work(Arc::clone(&world), at, who, random.fork())));
        }
        chaos.push(tokio::spawn(chaos::at_site(Arc::clone(&world), at, random.fork())));
    }
    chaos.push(tokio::spawn(chaos::everywhere(Arc::clone(&world), random.fork())));
    for worker in workers {
        if worker.await.is_err() {
            world.wrong("a worker panicked".to_owned());
        }
    }
    for chaos in chaos {
        chaos.abort();
        drop(chaos.await);
    }
}

impl World {
    fn new(plan: &Plan, random: &mut Random) -> Self {
        let store_clock = TestClock::with_drift(plan.store_drift);
        let store = MemoryStore::builder()
            .leases(plan.leases)
            .waiting(plan.waiting)
            .expiry(plan.expiry)
            .notify(plan.notify)
            .events(plan.events)
            .poll(plan.poll)
            .max_ttl(plan.max_ttl)
            .clock(Arc::new(store_clock.clone()))
            .build();
        let true_clock = TestClock::new();
        let sites = plan.sites.iter().enumerate();
        Self {
            sites: sites.map(|(at, plan)| Site::new(at, plan, &store, random)).collect(),
            plan: plan.clone(),
            store,
            store_clock,
            history: History::new(Arc::new(true_clock.clone())),
            true_clock,
            registers: (0..plan.names).map(|_| Register::in_memory()).collect(),
            guards: Mutex::default(),
            tally: Mutex::default(),
            wrong: Mutex::default(),
        }
    }

    /// Notes what should never happen.
    pub(super) fn wrong(&self, what: String) {
        lock(&self.wrong).get_or_insert(what);
    }

    pub(super) fn tally(&self, what: &'static str) {
        lock(&self.tally).add(what, 1);
    }

    /// An error of the library, which may happen where there are faults; a panic behind it may not.
    pub(super) fn failed(&self, what: &'static str, error: &dyn Error) {
        self.tally(what);
        let mut cause = Some(error);
        while let Some(error) = cause {
            if error.to_string().contains("panicked") {
                self.wrong(error.to_string());
            }
            cause = error.source();
        }
    }

    /// Takes a new guard on record, and asks every other of its name whether it holds: P1 says that none does.
    pub(super) fn acquired(&self, guard: WatchedGuard) -> Arc<WatchedGuard> {
        let guard = Arc::new(guard);
        let mut guards = lock(&self.guards);
        guards.values().filter(|other| other.guard().name() == guard.guard().name()).for_each(|other| {
            other.is_held();
        });
        guards.insert(guard.attempt(), Arc::clone(&guard));
        guard
    }

    /// The guard, to be released or dropped.
    pub(super) fn give_up(&self, guard: Arc<WatchedGuard>) -> WatchedGuard {
        lock(&self.guards).remove(&guard.attempt());
        Arc::into_inner(guard).expect("a guard is on record once, and its worker has it")
    }

    /// All faults are over: the locks work, and when all is closed nothing is left.
    async fn aftermath(&self) -> Result<(), String> {
        let longest = self.plan.longest_ttl();
        let living = || self.sites.iter().filter(|site| !site.over.load(Ordering::SeqCst));
        for site in living() {
            site.faults.heal();
        }
        // What is still on its way arrives: no fault reaches into what follows.
        sleep(self.sites.iter().map(|site| site.plan.ttl * 3).max().unwrap_or_default()).await;
        for site in living() {
            for name in 0..self.plan.names {
                let lock = site.locks.lock(format!("lock {name}")).map_err(|error| error.to_string())?;
                let bound = longest * 8 + Duration::from_secs(30);
                let asked = self.history.acquire(&site.owner, &lock);
                let acquired = timeout(bound, asked).await.map_err(|_| {
                    format!(
                        "lock {name} is still out of reach {bound:?} after the last fault: {:?}",
                        self.store.residue()
                    )
                })?;
                let guard = acquired.map_err(|error| format!("lock {name} cannot be acquired: {error}"))?;
                guard.is_held();
                let released = guard.release().await;
                if !matches!(released, Ok(ReleaseOutcome::Released)) {
                    return Err(format!("the release without faults gave {released:?}"));
                }
            }
        }
        for site in &self.sites {
            let closed = site.locks.close().await;
            if let (Err(error), false) = (closed, site.over.load(Ordering::SeqCst)) {
                return Err(format!("the close without faults gave {error:?}"));
            }
        }
        // A store that ends nothing keeps what was executed late; whoever wants the lock takes it over.
        if self.plan.expiry != Expiry::Observed {
            for _ in 0..10 {
                if self.store.residue().is_empty() {
                    return Ok(());
                }
                sleep(longest).await;
            }
            return Err(format!("something is left for ever: {:?}", self.store.residue()));
        }
        Ok(())
    }

    fn final_tally(&self, summary: &Summary) -> Tally {
        let mut tally = lock(&self.tally).clone();
        tally.add("acquired", summary.acquisitions as u64);
        tally.add("stale writes refused", summary.writes_refused as u64);
        for site in &self.sites {
            let metrics = site.locks.metrics();
            tally.add("expired", metrics.lost_expired);
            tally.add("session ended", metrics.lost_session_ended);
            tally.add("removed", metrics.lost_removed);
            tally.add("max_hold", metrics.lost_max_hold);
            tally.add("unknown", metrics.unknown);
            tally.add("settled", metrics.settles);
            tally.add("renewals failed", metrics.renewals_failed);
            tally.add("sessions", metrics.sessions_opened);
        }
        tally
    }
}

impl Site {
    fn new(at: usize, plan: &SitePlan, store: &MemoryStore, random: &mut Random) -> Self {
        let (backend, faults) = faults::inject(MemoryBackend::new(store));
        let clock = TestClock::with_drift(plan.drift);
        let owner = format!("site {at}");
        let locks = LockManager::builder(backend)
            .ttl(plan.ttl)
            .request_timeout(plan.request_timeout)
            .give_up_after(plan.ttl * 4)
            .owner(&owner)
            .clock(Arc::new(clock.clone()))
            .seed(random.next())
            .build()
            .expect("the plan's settings are legal");
        let (over, noise) = (AtomicBool::new(false), Mutex::new(random.fork()));
        Self { plan: plan.clone(), owner, locks, faults, clock, over, noise }
    }

    /// Ends every fault but the noise of single requests, which goes on.
    pub(super) fn calm_down(self: &Site, world: &Arc<World>) {
        self.faults.heal();
        let at = world.sites.iter().position(|site| site.owner == self.owner).unwrap_or_default();
        let world = Arc::downgrade(world);
        self.faults.on_each(move |_, _| {
            let Some(world) = world.upgrade() else { return Fault::None };
            world.sites[at].noise()
        });
    }

    fn noise(&self) -> Fault {
        let random = &mut *lock(&self.noise);
        if !random.percent(self.plan.faults) {
            let time = random.upto(self.plan.latency);
            return if random.percent(50) { Fault::Delay(time) } else { Fault::DelayReply(time) };
        }
        let time = random.upto(self.plan.ttl * 2);
        match random.below(20) {
            0..4 => Fault::Delay(time),
            4..7 => Fault::DelayReply(time),
            7..9 => Fault::DropReply,
            9..12 => Fault::ExecuteLate(time),
            12 => Fault::BlackHole,
            13..15 => Fault::Unknown(time),
            15 => Fault::Unknown(Duration::ZERO),
            16 => Fault::Fail(ErrorKind::Unknown),
            17 => Fault::Fail(ErrorKind::NotReady { retry_after: time }),
            18 if random.percent(20) => Fault::Fail(ErrorKind::SessionGone),
            18 if random.percent(20) => Fault::Fail(ErrorKind::Refused),
            _ => Fault::Fail(ErrorKind::Unavailable),
        }
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
