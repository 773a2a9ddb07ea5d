//! A guard is dead before anybody else can have its lock, whatever comes between the client and those who end its session;
//! and each rule for leases that is a little less careful than ours is caught by one of these tests.
//!
//! Default TTL and default tick. The clients stay on the side that is cut off, where a server goes on serving them.

mod phase;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use conformance_tests::fixtures::zk::Operator;
use dlock_core::{Lock, LockGuard, LockManager};
use dlock_zk::{LeaseRule, ZkBackend};
use test_servers::{Direction, Lease, Pool, Proxy, ZooKeeper, ZooKeeperCluster};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::{JoinHandle, JoinSet};

use self::phase::{EvenPing, TICK, set_pings};
use crate::setting::{leader_of, soon, until};

const TTL: Duration = Duration::from_secs(10);
/// So many sessions, whose beats are spread over the time between two.
const SESSIONS: usize = 40;

/// So many trials at a time: elections fail on a machine on which too many are held.
static AT_ONCE: Semaphore = Semaphore::const_new(3);

static ENSEMBLES: Pool<ZooKeeperCluster> = Pool::new(|| {
    let zookeeper = ZooKeeper::v3_9()
        .config(format!("tickTime={}", TICK.as_millis()))
        // Now and then one that was elected waits so many ticks in vain for those who have begun another round.
        .config("initLimit=2")
        .config("preAllocSize=1024")
        .property("zookeeper.forceSync=no")
        .property("zookeeper.fastleader.maxNotificationInterval=1000");
    Box::pin(zookeeper.cluster(3))
})
.reset(|ensemble| {
    Box::pin(async move {
        ensemble.heal().await?;
        for server in ensemble.iter() {
            server.serves().await?;
        }
        Operator::of(ensemble).clear().await;
        Ok(())
    })
});

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// What comes between a client and those who end its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    /// The clients' follower is cut off, just before the leader would have heard of them from it.
    CutFollower,
    /// The way from the clients to the follower is held up. When it opens, much is delivered at once; then the follower is
    /// cut off before it has told the leader.
    PausedWay,
    /// The follower is frozen, thaws, and is cut off.
    FrozenFollower,
    /// What the leader sends to the follower comes late; before it comes, nothing reaches the leader from there any more.
    SlowLink,
    /// The clients' leader is cut off, and everybody sees a reset.
    ResetLeader,
    /// The clients' leader is cut off, and nobody is told.
    SilentLeader,
    /// The clients' leader is cut off, and only the others are told.
    UnheardLeader,
    /// The same, and then the clients come to it again over new connections.
    UnheardLeaderAgain,
}

impl Trouble {
    fn is_with_the_leader(self) -> bool {
        use Trouble::{ResetLeader, SilentLeader, UnheardLeader, UnheardLeaderAgain};
        matches!(self, ResetLeader | SilentLeader | UnheardLeader | UnheardLeaderAgain)
    }

    /// Whether the clients ask for anything but their beats.
    fn has_traffic(self) -> bool {
        // There the last that the leader has heard must be old.
        self != Self::CutFollower
    }

    async fn strike(self, ensemble: &ZooKeeperCluster, member: usize, leader: usize, way: &Proxy) {
        let ping = EvenPing::next();
        match self {
            Self::CutFollower => {
                ping.after(ms(900)).await;
                ensemble.isolate_silently(member);
            }
            Self::PausedWay => {
                ping.before(ms(100)).await;
                way.black_hole(Direction::ToServer);
                // Before the clients leave a server that owes them an answer.
                ping.after(ms(2650)).await;
                way.pass().await.unwrap();
                // Before the next ping.
                ping.after(ms(2900)).await;
                ensemble.isolate_silently(member);
            }
            Self::FrozenFollower => {
                ping.after(ms(100)).await;
                ensemble[member].freeze().await.unwrap();
                ping.after(ms(2600)).await;
                ensemble[member].thaw().await.unwrap();
                tokio::time::sleep(ms(300)).await;
                ensemble.isolate_silently(member);
            }
            Self::SlowLink => {
                let link = ensemble.links(member, leader).next().expect("there is a link");
                ping.after(ms(50)).await;
                // Less than the beat's answer is waited for, and past the ping after the cut.
                link.delay(Direction::ToClient, ms(2000));
                ping.after(ms(2950)).await;
                link.black_hole(Direction::ToServer);
            }
            Self::ResetLeader => ensemble.isolate(member).await.unwrap(),
            Self::SilentLeader => ensemble.isolate_silently(member),
            Self::UnheardLeader => ensemble.isolate_unheard(member).await.unwrap(),
            Self::UnheardLeaderAgain => {
                ensemble.isolate_unheard(member).await.unwrap();
                tokio::time::sleep(ms(6000)).await;
                way.reset_connections().await.unwrap();
            }
        }
    }
}

/// Clients that hold a lock each on one member, and rivals elsewhere that wait for these locks.
struct Trial {
    _turn: SemaphorePermit<'static>,
    ensemble: Lease<ZooKeeperCluster>,
    leader: usize,
    /// Where the clients are.
    member: usize,
    way: Proxy,
    holders: Vec<(LockManager, Arc<LockGuard>)>,
    rivals: Vec<LockManager>,
    waiting: Vec<JoinHandle<Finding>>,
}

/// What a rival finds when it has got the lock.
struct Finding {
    name: String,
    /// For how long the former holder's guard still claims to hold.
    overlap: Option<Duration>,
}

impl fmt::Debug for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name, self.overlap)
    }
}

impl Trial {
    async fn begin(rule: LeaseRule, trouble: Trouble) -> Self {
        let turn = AT_ONCE.acquire().await.unwrap();
        let ensemble = ENSEMBLES.lease().await.unwrap();
        let leader = leader_of(&ensemble).await;
        set_pings(&ensemble, leader).await;
        let member = if trouble.is_with_the_leader() { leader } else { (leader + 1) % 3 };
        let way = Proxy::start(ensemble[member].addr()).await.unwrap();
        let backend = ZkBackend::builder([way.addr().to_string()]).tick(TICK).lease_rule(rule).build();
        let mut opening = JoinSet::new();
        for number in 0..SESSIONS {
            let locks = LockManager::builder(backend.clone())
                .ttl(TTL)
                .request_timeout(TTL / 2)
                .seed(number as u64)
                .build()
                .unwrap();
            opening.spawn(async move {
                let share =
                    u32::try_from(number).expect("few") * (TTL / 3) / u32::try_from(SESSIONS).expect("few");
                tokio::time::sleep(share).await;
                let guard = locks.lock(format!("held-{number}")).unwrap().acquire().await.unwrap();
                (locks, Arc::new(guard))
            });
        }
        let holders = soon("all hold", opening.join_all()).await;
        let mut trial =
            Self { _turn: turn, ensemble, leader, member, way, holders, rivals: vec![], waiting: vec![] };
        trial.let_rivals_wait().await;
        trial
    }

    async fn let_rivals_wait(&mut self) {
        let others: Vec<_> =
            (0..3).filter(|at| *at != self.member).map(|at| self.ensemble[at].addr()).collect();
        for (number, (_, guard)) in self.holders.iter().enumerate() {
            if number % 10 == 0 {
                let backend = ZkBackend::builder(others.iter().map(ToString::to_string)).tick(TICK).build();
                // They outlive the change of leaders.
                self.rivals.push(
                    LockManager::builder(backend).ttl(TTL * 3).give_up_after(TTL * 18).build().unwrap(),
                );
            }
            let rival = self.rivals.last().expect("the first has made one");
            let (guard, lock): (_, Lock) = (Arc::clone(guard), rival.lock(guard.name().as_str()).unwrap());
            self.waiting.push(tokio::spawn(async move {
                let won = lock.acquire().await.unwrap();
                // At this very moment, before anything else is done.
                let overlap = guard.is_held().then(|| guard.valid_for());
                won.release().await.unwrap();
                Finding { name: lock.name().to_string(), overlap }
            }));
        }
        let operator = Operator::of(&self.ensemble);
        until("all rivals wait", async || {
            let nodes = operator.nodes().await;
            nodes.iter().filter(|node| node.path.contains("/held-") && node.session != 0).count()
                == SESSIONS * 2
        })
        .await;
    }

    /// Reads now and then, which a server answers that is cut off.
    fn make_traffic(&self) -> Traffic {
        let mut tasks = JoinSet::new();
        for (locks, guard) in &self.holders {
            let lock = locks.lock(guard.name().as_str()).unwrap();
            tasks.spawn(async move {
                loop {
                    tokio::time::sleep(ms(100)).await;
                    // Each on its own: those that are not answered keep none waiting.
                    let lock = lock.clone();
                    tokio::spawn(async move { drop(lock.holder().await) });
                }
            });
        }
        Traffic { _tasks: tasks }
    }

    /// Waits until each rival has got its lock; those who found the former holder's guard alive.
    async fn end(mut self) -> Vec<Finding> {
        let mut overlaps = Vec::new();
        for rival in std::mem::take(&mut self.waiting) {
            let found = tokio::time::timeout(Duration::from_secs(180), rival).await;
            let found = found.expect("the session is ended by the others").unwrap();
            if found.overlap.is_some() {
                overlaps.push(found);
            }
        }
        assert!(
            self.holders
                .iter()
                .all(|(_, guard)| overlaps.iter().any(|found| found.name == guard.name().as_str())
                    || !guard.is_held())
        );
        self.ensemble.heal().await.unwrap();
        for rival in &self.rivals {
            soon("a close ends", rival.close()).await.unwrap();
        }
        overlaps
    }
}

/// Reads until it is dropped.
struct Traffic {
    _tasks: JoinSet<()>,
}

/// What rivals find who get the locks of clients that trouble has struck, under a rule for leases.
async fn overlaps(rule: LeaseRule, trouble: Trouble) -> Vec<Finding> {
    let trial = Trial::begin(rule, trouble).await;
    let traffic = trouble.has_traffic().then(|| trial.make_traffic());
    // Each has had a beat.
    tokio::time::sleep(TTL / 3).await;
    assert!(trial.holders.iter().all(|(_, guard)| guard.is_held()), "a lock was lost before trouble struck");
    trouble.strike(&trial.ensemble, trial.member, trial.leader, &trial.way).await;
    let overlaps = trial.end().await;
    drop(traffic);
    overlaps
}

async fn holds(trouble: Trouble) {
    let overlaps = overlaps(LeaseRule::Proved, trouble).await;
    assert!(overlaps.is_empty(), "P1 broken: two held these locks: {overlaps:?}");
}

/// How long the others take to elect a leader is theirs to say, and a slow one covers up a wrong rule: there are several trials.
async fn is_caught(rule: LeaseRule, trouble: Trouble) {
    for _ in 0..15 {
        let overlaps = overlaps(rule, trouble).await;
        eprintln!("{rule:?}: {overlaps:?}");
        if !overlaps.is_empty() {
            return;
        }
    }
    panic!("{rule:?} is wrong, and {trouble:?} did not show it");
}

#[tokio::test]
async fn a_follower_that_is_cut_off_keeps_no_guard_alive() {
    holds(Trouble::CutFollower).await;
}

#[tokio::test]
async fn a_way_that_delivers_late_and_at_once_keeps_no_guard_alive() {
    holds(Trouble::PausedWay).await;
}

#[tokio::test]
async fn a_follower_that_was_frozen_and_is_cut_off_keeps_no_guard_alive() {
    holds(Trouble::FrozenFollower).await;
}

#[tokio::test]
async fn a_slow_link_that_is_cut_keeps_no_guard_alive() {
    holds(Trouble::SlowLink).await;
}

#[tokio::test]
async fn a_leader_that_is_reset_keeps_no_guard_alive() {
    holds(Trouble::ResetLeader).await;
}

#[tokio::test]
async fn a_leader_that_goes_silent_keeps_no_guard_alive() {
    holds(Trouble::SilentLeader).await;
}

#[tokio::test]
async fn a_leader_that_does_not_know_keeps_no_guard_alive() {
    holds(Trouble::UnheardLeader).await;
}

#[tokio::test]
async fn a_leader_that_does_not_know_and_lets_clients_in_again_keeps_no_guard_alive() {
    holds(Trouble::UnheardLeaderAgain).await;
}

#[tokio::test]
async fn a_deadline_from_the_write_itself_is_caught() {
    is_caught(LeaseRule::FromWrite, Trouble::CutFollower).await;
}

#[tokio::test]
async fn a_beat_that_only_reads_is_caught() {
    is_caught(LeaseRule::PingOrRead, Trouble::CutFollower).await;
}

#[tokio::test]
async fn a_choice_by_the_time_of_sending_is_caught() {
    is_caught(LeaseRule::BySendTime, Trouble::PausedWay).await;
}

#[tokio::test]
async fn a_move_that_certifies_itself_is_caught() {
    is_caught(LeaseRule::SelfCertified, Trouble::UnheardLeaderAgain).await;
}

#[tokio::test]
async fn a_beat_without_a_sync_is_caught() {
    is_caught(LeaseRule::WithoutSync, Trouble::SlowLink).await;
}
