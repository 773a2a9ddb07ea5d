//! Where a moment lies between two pings of the leader, and between two moments at which it ends sessions.
//!
//! By how much a wrong rule is wrong depends on both, by up to a tick and a half. So that a test shows it every time, the
//! leader is made to ping at chosen moments.

use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};
use test_servers::ZooKeeperCluster;

/// The servers' tick. A leader pings twice a tick, and ends sessions at whole multiples of it on the machine's clock.
pub(super) const TICK: Duration = Duration::from_secs(2);
/// An even ping comes so long before a multiple of the tick: a session heard of then lives for its time-out and this.
const BEFORE_MULTIPLE: Duration = Duration::from_millis(200);
/// How exact it is.
const EXACT: Duration = Duration::from_millis(60);

/// The clock of the servers: they count by the machine's time since its start.
fn clock() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs().try_into().expect("below a second"))
}

/// The first even ping after a moment.
fn even_ping_after(moment: Duration) -> Duration {
    let ticks = (moment + BEFORE_MULTIPLE).as_nanos() / TICK.as_nanos() + 1;
    let ticks = u32::try_from(ticks).expect("the machine has not run for 272 years");
    (TICK * ticks).saturating_sub(BEFORE_MULTIPLE)
}

async fn sleep_until(moment: Duration) {
    tokio::time::sleep(moment.saturating_sub(clock())).await;
}

/// An even ping, from which moments are counted.
#[derive(Clone, Copy, Debug)]
pub(super) struct EvenPing(Duration);

impl EvenPing {
    /// The next one which is not about to come.
    pub(super) fn next() -> Self {
        Self(even_ping_after(clock() + TICK / 4))
    }

    /// Waits until so long before it.
    pub(super) async fn before(self, time: Duration) {
        sleep_until(self.0.saturating_sub(time)).await;
    }

    /// Waits until so long after it.
    pub(super) async fn after(self, time: Duration) {
        sleep_until(self.0 + time).await;
    }
}

/// Makes the leader ping at even pings, and halfway between them. Nobody may use the ensemble meanwhile.
pub(super) async fn set_pings(ensemble: &ZooKeeperCluster, leader: usize) {
    let follower = (leader + 1) % 3;
    let pid = ensemble[leader].pid().await.unwrap().expect("it runs");
    let pid = Pid::from_raw(pid.cast_signed()).expect("a process");
    let link = ensemble.links(follower, leader).next().expect("there is a link between any two");
    for _ in 0..40 {
        // It slept until its next ping when it was stopped, and is late when it goes on: it pings at once, and counts the next
        // from then.
        kill_process(pid, Signal::STOP).unwrap();
        sleep_until(even_ping_after(clock() + TICK * 2 / 3)).await;
        kill_process(pid, Signal::CONT).unwrap();
        // What it owes at once has come before the next ping.
        tokio::time::sleep(TICK / 4).await;
        let before = link.counts().bytes_to_client;
        link.counted(move |counts| counts.bytes_to_client > before).await.unwrap();
        let odd = clock() + BEFORE_MULTIPLE + TICK / 2;
        let off =
            Duration::from_nanos(u64::try_from(odd.as_nanos() % TICK.as_nanos()).expect("below a tick"));
        if off < EXACT || TICK.saturating_sub(off) < EXACT {
            return;
        }
    }
    panic!("the leader does not ping when it should");
}
