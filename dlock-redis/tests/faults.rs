//! Redlock while nodes refuse, freeze, swallow bytes or are slow: a minority costs nothing but its own time-out, a
//! majority costs the service and no more.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::{Clock, LockManager, ReleaseOutcome, SystemClock};
use dlock_redis::RedisBackend;
use support::{Flavour, SOON, backend, chain, manager, residue, servers, settle, until};
use test_servers::{Direction, Lease, Proxy, Server};

const TTL: Duration = Duration::from_secs(10);
const NODE_TIMEOUT: Duration = Duration::from_millis(250);

/// What is wrong with a node.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Refusing,
    Frozen,
    /// Requests do not arrive.
    Deaf,
    /// Answers do not arrive.
    Mute,
    /// Connections are taken, and nothing comes.
    Hanging,
    /// Each answer takes longer than the node is waited for.
    Slow,
}

const ALL: [Trouble; 6] =
    [Trouble::Refusing, Trouble::Frozen, Trouble::Deaf, Trouble::Mute, Trouble::Hanging, Trouble::Slow];

/// Nodes behind proxies.
struct Rig {
    servers: Lease<Vec<Server>>,
    proxies: Vec<Proxy>,
}

impl Rig {
    async fn new(nodes: usize) -> Self {
        let servers = servers(Flavour::Redis8, 5).await;
        let mut proxies = Vec::new();
        for server in &servers[..nodes] {
            proxies.push(Proxy::start(server.addr()).await.unwrap());
        }
        let rig = Self { servers, proxies };
        settle(&rig.servers[..nodes], &rig.backend()).await;
        rig
    }

    fn backend(&self) -> RedisBackend {
        let addresses: Vec<_> = self.proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
        let timeout = NODE_TIMEOUT.as_millis();
        backend(&format!("redis+redlock://{}?node_timeout={timeout}ms", addresses.join(",")))
    }

    /// Breaks the last `count` nodes.
    async fn damage(&self, count: usize, trouble: Trouble) {
        let nodes = self.proxies.len();
        for node in nodes - count..nodes {
            match trouble {
                Trouble::Refusing => self.proxies[node].cut().await.unwrap(),
                Trouble::Frozen => self.servers[node].freeze().await.unwrap(),
                Trouble::Deaf => self.proxies[node].black_hole(Direction::ToServer),
                Trouble::Mute => self.proxies[node].black_hole(Direction::ToClient),
                Trouble::Hanging => {
                    self.proxies[node].reset_connections().await.unwrap();
                    self.proxies[node].hang();
                }
                Trouble::Slow => self.proxies[node].delay(Direction::ToClient, NODE_TIMEOUT * 2),
            }
        }
    }

    async fn mend(&self, trouble: Trouble) {
        for (proxy, server) in self.proxies.iter().zip(self.servers.iter()) {
            if matches!(trouble, Trouble::Frozen) {
                server.thaw().await.unwrap();
            }
            proxy.pass().await.unwrap();
        }
    }
}

/// Acquires and releases, and says how long the slower of the two took.
async fn cycle(locks: &LockManager, name: &str) -> Duration {
    let lock = locks.lock(name).unwrap();
    let began = SystemClock.now();
    let guard = lock.acquire_timeout(SOON).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let acquired = SystemClock.now().since(began);
    assert!(lock.try_acquire().await.unwrap().is_none(), "granted twice");
    let began = SystemClock.now();
    assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
    acquired.max(SystemClock.now().since(began))
}

async fn a_minority_is_not_needed(nodes: usize) {
    let rig = Rig::new(nodes).await;
    for trouble in ALL {
        let locks = manager(rig.backend(), TTL);
        cycle(&locks, "before").await;
        rig.damage(nodes / 2, trouble).await;
        let mut took = Vec::new();
        for round in 0..20 {
            took.push(cycle(&locks, &format!("during {round}")).await);
        }
        took.sort_unstable();
        // A grant and a ballot, but for two at which a busy machine stood still.
        assert!(took[took.len() - 3] < NODE_TIMEOUT * 4, "{trouble:?}: {took:?}");
        let began = SystemClock.now();
        let late = manager(rig.backend(), TTL);
        late.open().await.unwrap_or_else(|error| panic!("{trouble:?}: {}", chain(&error)));
        let opened = SystemClock.now().since(began);
        assert!(opened < Duration::from_secs(5), "{trouble:?}: opened after {opened:?}");
        let mut first = cycle(&late, "during").await;
        for _ in 0..2 {
            first = first.min(cycle(&late, "during").await);
        }
        assert!(first < NODE_TIMEOUT * 4, "{trouble:?}: {first:?}");
        // A renewal while the minority is away.
        let guard = locks.lock("held").unwrap().acquire().await.unwrap();
        let renewed = locks.metrics().renewals;
        until("a renewal", async || locks.metrics().renewals > renewed).await;
        assert!(guard.is_held());
        rig.mend(trouble).await;
        cycle(&locks, "after").await;
        drop(guard);
        locks.close().await.unwrap();
        late.close().await.unwrap();
        until("nothing is left", async || {
            for server in &rig.servers[..nodes] {
                if !residue(server).await.is_empty() {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_is_not_needed() {
    a_minority_is_not_needed(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_are_not_needed() {
    a_minority_is_not_needed(5).await;
}

/// A lock that is held is no failure, however far apart the answers come of those nodes that can be used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lock_is_told_from_a_failure_by_the_slower_of_two_nodes() {
    let rig = Rig::new(3).await;
    let (holder, other) = (manager(rig.backend(), TTL), manager(rig.backend(), TTL));
    other.open().await.unwrap();
    let guard = holder.lock("held").unwrap().acquire().await.unwrap();
    rig.damage(1, Trouble::Refusing).await;
    rig.proxies[1].delay(Direction::ToClient, NODE_TIMEOUT / 3);
    let mut failures = Vec::new();
    for _ in 0..8 {
        match other.lock("held").unwrap().try_acquire().await {
            Ok(granted) => assert!(granted.is_none(), "granted twice"),
            Err(error) => failures.push(chain(&error)),
        }
    }
    // Even this node may be too late now and then, on a busy machine.
    assert!(failures.len() <= 2, "{failures:#?}");
    assert!(guard.is_held());
    rig.mend(Trouble::Refusing).await;
    guard.release().await.unwrap();
}

async fn a_majority_is_needed(nodes: usize) {
    let rig = Rig::new(nodes).await;
    let majority = nodes / 2 + 1;
    for trouble in ALL {
        let locks = manager(rig.backend(), TTL);
        cycle(&locks, "before").await;
        rig.damage(majority, trouble).await;
        let lock = locks.lock("during").unwrap();
        let began = SystemClock.now();
        let error = lock.acquire_timeout(Duration::from_secs(2)).await.unwrap_err();
        assert!(
            SystemClock.now().since(began) < Duration::from_secs(6),
            "{trouble:?}: {:?}",
            SystemClock.now().since(began)
        );
        assert!(!error.is_timeout(), "{trouble:?}: nobody holds it, yet {error}");
        let text = chain(&error);
        for node in &rig.proxies[nodes - majority..] {
            assert!(text.contains(&node.addr().to_string()), "{trouble:?}: {text}");
        }
        // On a busy machine one of the others may be late as well.
        let told = (majority..=nodes).any(|count| text.contains(&format!("{count} of {nodes} nodes")));
        assert!(told, "{trouble:?}: {text}");
        // One who waits all the time gets it when the nodes are back.
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire_timeout(SOON).await }
        });
        until("somebody waits", async || locks.metrics().waiting > 0).await;
        rig.mend(trouble).await;
        let guard = waiting.await.unwrap().unwrap_or_else(|error| panic!("{trouble:?}: {}", chain(&error)));
        assert!(guard.is_held());
        guard.release().await.unwrap();
        cycle(&locks, "after").await;
        locks.close().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_two_of_three_nothing_is_granted_until_they_are_back() {
    a_majority_is_needed(3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_three_of_five_nothing_is_granted_until_they_are_back() {
    a_majority_is_needed(5).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_lock_is_lost_in_time_when_the_majority_is_gone() {
    let rig = Rig::new(3).await;
    let ttl = Duration::from_secs(2);
    let locks = manager(rig.backend(), ttl);
    let guard = locks.lock("x").unwrap().acquire().await.unwrap();
    rig.damage(2, Trouble::Deaf).await;
    let began = SystemClock.now();
    loop {
        let now = SystemClock.now();
        if !guard.is_held() {
            break;
        }
        assert!(
            now.since(began) < ttl,
            "held {:?} after the last renewal that can have been",
            now.since(began)
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::timeout(SOON, guard.lost()).await.expect("it is told");
    rig.mend(Trouble::Deaf).await;
    cycle(&locks, "x").await;
}

/// How many scripts a server has run.
async fn scripts_run(server: &Server) -> u64 {
    let stats = server.exec(&["INFO", "commandstats"]).await.unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
    calls.map_or(0, |calls| calls.parse().unwrap())
}

/// A node that comes back after it has slept through a lock's life must not keep it from others.
async fn slept_through(hold: Duration) {
    // What is left expires after the test has failed.
    const LIMIT: Duration = Duration::from_secs(20);
    let rig = Rig::new(3).await;
    let locks = manager(rig.backend(), LIMIT + Duration::from_secs(10));
    cycle(&locks, "before").await;
    let before = scripts_run(&rig.servers[2]).await;
    rig.damage(1, Trouble::Frozen).await;
    for round in 0..5 {
        let guard = locks.lock(format!("during {round}")).unwrap().acquire_timeout(SOON).await.unwrap();
        let until = SystemClock.now().plus(hold);
        support::until("it was held for long enough", async || SystemClock.now() >= until).await;
        assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
    }
    rig.mend(Trouble::Frozen).await;
    // What was sent to it meanwhile is executed now, each grant with its release behind.
    until("it runs what it was sent", async || scripts_run(&rig.servers[2]).await > before).await;
    let empty = until("nothing is left", async || residue(&rig.servers[2]).await.is_empty());
    tokio::time::timeout(LIMIT, empty).await.expect("nothing is left on the node that slept");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_thaws_has_nothing_left_of_what_it_slept_through() {
    slept_through(Duration::ZERO).await;
}

/// The grant was given up on before the lock was released.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nor_of_what_was_held_for_longer_than_a_node_is_waited_for() {
    slept_through(NODE_TIMEOUT * 2).await;
}
