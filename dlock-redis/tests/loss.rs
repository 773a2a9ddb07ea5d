//! What a loss of data costs: a restart without persistence, a promoted replica, a promotion there and back, a flush.
//! Nobody gets the lock before the lease of the one who held it is over, and tokens go on rising.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use dlock_core::{
    AcquireError, ClaimReply, ClaimRequest, Clock, Holder, LockGuard, LockManager, Patience, ReleaseOutcome,
    SystemClock,
};
use dlock_redis::RedisBackend;
use support::{
    Flavour, SOON, backend, chain, claim, manager, own, residue, servers, session, settle, settled, until,
};
use test_servers::{Proxy, Redis, Server};

/// The longest that the restart delay of these tests allows.
const TTL: Duration = Duration::from_secs(2);
/// A restart delay of 3 D + 2 e and the TTL.
const SETTINGS: &str = "restart_delay=5s&clock_skew=0ms";

/// Two clients at one address that leads to wherever the test says.
struct Pair {
    holder: LockManager,
    other: LockManager,
}

impl Pair {
    fn new(address: &str, settings: &str, ttl: Duration) -> Self {
        let url = format!("redis://{address}?{settings}");
        Self { holder: manager(backend(&url), ttl), other: manager(backend(&url), ttl) }
    }

    /// Has the store lose its data, in whatever way, while a lock is held.
    async fn bears<F: Future<Output = ()>>(&self, lose: impl FnOnce() -> F) {
        let held = self.holder.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
        let lost_at = SystemClock.now();
        lose().await;
        // Who only tries is told why not, until when, and what to do.
        let lock = self.other.lock("x").unwrap();
        let refusal = tokio::time::timeout(SOON, async {
            loop {
                // While the server comes back, connections are refused.
                match lock.try_acquire().await {
                    Err(error) if chain(&error).contains("grants no lock until") => return chain(&error),
                    Err(AcquireError::Unavailable { .. } | AcquireError::Unresolved { .. }) => {}
                    Ok(None) => panic!("nobody holds it any more"),
                    other => panic!("{other:?}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the quarantine is told");
        for part in ["grants no lock until 20", "(in ", "restart_delay"] {
            assert!(refusal.contains(part), "{refusal}");
        }
        let next = lock.acquire_timeout(SOON).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
        assert!(!held.is_held(), "two holders");
        assert!(next.token() > held.token(), "{} after {}", next.token(), held.token());
        assert!(SystemClock.now().since(lost_at) >= TTL, "granted while the lease before may run");
        next.release().await.unwrap();
    }
}

async fn fresh(kind: Redis) -> Server {
    let server = own(kind).await;
    let locks = manager(backend(&format!("redis://{}?{SETTINGS}", server.addr())), TTL);
    assert_eq!(
        locks.init().await.unwrap(),
        [format!("{} is marked as new and grants locks in 3 s", server.addr())]
    );
    server
}

async fn killed_without_persistence(kind: Redis) {
    let server = fresh(kind).await;
    let pair = Pair::new(&server.addr().to_string(), SETTINGS, TTL);
    pair.bears(async || {
        server.kill().await.unwrap();
        server.start_again().await.unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_server_killed_without_persistence_waits() {
    tokio::join!(
        killed_without_persistence(Redis::v8()),
        killed_without_persistence(Redis::v7()),
        killed_without_persistence(Redis::valkey())
    );
}

#[tokio::test]
async fn a_flushed_server_waits() {
    let server = fresh(Redis::v8()).await;
    let pair = Pair::new(&server.addr().to_string(), SETTINGS, TTL);
    pair.bears(async || {
        server.exec(&["FLUSHALL"]).await.unwrap();
    })
    .await;
}

/// A master, and a replica that has seen nothing since its link was cut.
async fn master_and_stale_replica(kind: &Redis) -> (Server, Server, Proxy) {
    replicated(fresh(kind.clone()).await, kind).await
}

async fn replicated(master: Server, kind: &Redis) -> (Server, Server, Proxy) {
    let link = Proxy::start(master.addr()).await.unwrap();
    let replica = own(kind.clone().replica_of(link.addr())).await;
    until("the replica is in step", async || {
        replica.exec(&["INFO", "replication"]).await.unwrap().contains("master_link_status:up")
    })
    .await;
    (master, replica, link)
}

async fn promote(server: &Server) {
    server.exec(&["REPLICAOF", "NO", "ONE"]).await.unwrap();
}

async fn demote(server: &Server, master: &Server) {
    let (ip, port) = (master.addr().ip().to_string(), master.addr().port().to_string());
    server.exec(&["REPLICAOF", &ip, &port]).await.unwrap();
    until("it has the other's data", async || {
        server.exec(&["INFO", "replication"]).await.unwrap().contains("master_link_status:up")
    })
    .await;
}

async fn promoted_replica(kind: Redis) {
    let (master, replica, link) = master_and_stale_replica(&kind).await;
    let door = Proxy::start(master.addr()).await.unwrap();
    let pair = Pair::new(&door.addr().to_string(), SETTINGS, TTL);
    until("the quarantine of the new server is over", async || {
        pair.other.lock("y").unwrap().try_acquire().await.is_ok_and(|guard| guard.is_some())
    })
    .await;
    link.cut().await.unwrap();
    pair.bears(async || {
        master.kill().await.unwrap();
        promote(&replica).await;
        door.set_target(replica.addr());
    })
    .await;
}

#[tokio::test]
async fn a_promoted_replica_that_never_saw_the_lock_waits() {
    tokio::join!(
        promoted_replica(Redis::v8()),
        promoted_replica(Redis::v7()),
        promoted_replica(Redis::valkey())
    );
}

async fn there_and_back(kind: Redis) {
    let (master, replica, link) = master_and_stale_replica(&kind).await;
    let pair = Pair::new(&master.addr().to_string(), SETTINGS, TTL);
    until("the quarantine of the new server is over", async || {
        pair.other.lock("y").unwrap().try_acquire().await.is_ok_and(|guard| guard.is_some())
    })
    .await;
    link.cut().await.unwrap();
    pair.bears(async || {
        // The run id is the same again in the end, and the data is the replica's.
        promote(&replica).await;
        demote(&master, &replica).await;
        promote(&master).await;
    })
    .await;
}

#[tokio::test]
async fn a_promotion_there_and_back_is_noticed() {
    tokio::join!(there_and_back(Redis::v8()), there_and_back(Redis::v7()), there_and_back(Redis::valkey()));
}

#[tokio::test]
async fn a_restart_with_all_data_kept_waits_too_and_keeps_the_lock() {
    let server = own(Redis::v8().durable()).await;
    settled(std::slice::from_ref(&server), "").await;
    let pair = Pair::new(&server.addr().to_string(), "", Duration::from_secs(30));
    let held = pair.holder.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
    let error = tokio::time::timeout(SOON, async {
        loop {
            match pair.other.lock("y").unwrap().try_acquire().await {
                Err(error) if chain(&error).contains("grants no lock") => return chain(&error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(other) => panic!("{other:?}"),
            }
        }
    })
    .await
    .unwrap();
    assert!(error.contains("was restarted"), "{error}");
    assert!(held.is_held(), "it was renewed through the restart");
    assert!(held.release().await.is_ok());
}

/// What `restart_delay=0` gives up, so that nobody can say that he was not shown: two hold the lock, each for sure.
async fn two_hold<F: Future<Output = ()>>(address: SocketAddr, lose: impl FnOnce() -> F) {
    let pair = Pair::new(&address.to_string(), "restart_delay=0", Duration::from_secs(30));
    let held = pair.holder.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
    lose().await;
    // Long before the lease of the first is over.
    let next = pair.other.lock("x").unwrap().acquire_timeout(SOON).await.expect("it grants at once");
    assert!(held.is_held() && next.is_held());
    assert!(pair.other.guarantees().exclusion.to_string().contains("restart_delay is 0"));
    // The one who lost it is told at his next renewal.
    tokio::time::timeout(SOON, held.lost()).await.expect("a renewal tells");
    assert!(next.is_held());
}

/// The other thing that it gives up. Two claims, one before the loss and one after it; whether the second got a token
/// that is no greater than the first's.
///
/// The first is of a client whose clock is ahead as far as a server believes it, the second of one whose clock is behind,
/// so that only the counter, which is lost, would keep the order. The floor by the server's clock does so after two
/// to three seconds.
async fn token_falls<F: Future<Output = ()>>(
    server: &Server,
    address: SocketAddr,
    lose: impl FnOnce() -> F,
) -> bool {
    let url = format!("redis://{address}?restart_delay=0");
    let drawn = async |since_ms: u64| {
        let session = session(&backend(&url), Duration::from_secs(30)).await;
        let holder = Holder::from_json(&format!(r#"{{"owner":"tester","since_ms":{since_ms}}}"#));
        let asked = ClaimRequest::new(claim("x"), Patience::Try, holder);
        match session.claim(asked).await.unwrap() {
            ClaimReply::Granted(grant) => grant.token,
            other => panic!("not granted: {other:?}"),
        }
    };
    let time = server.exec(&["TIME"]).await.unwrap();
    let seconds: u64 = time.lines().next().unwrap().trim().parse().unwrap();
    let micros: u64 = time.lines().nth(1).unwrap().trim().parse().unwrap();
    let first = drawn(seconds * 1000 + micros / 1000 + 900).await;
    lose().await;
    drawn(0).await <= first
}

/// A machine that is busy may take longer for a loss than the floor needs, so it is enough that it happens once.
async fn shown<F: Future<Output = bool>>(what: &str, falls: impl Fn() -> F) {
    for _ in 0..10 {
        if falls().await {
            return;
        }
    }
    panic!("tokens rose over {what} each time");
}

async fn restarted(server: &Server) {
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
}

async fn flush(server: &Server) {
    server.exec(&["FLUSHALL"]).await.unwrap();
}

#[tokio::test]
async fn without_a_restart_delay_a_flush_makes_two_holders_and_tokens_fall() {
    let server = own(Redis::v8()).await;
    two_hold(server.addr(), || flush(&server)).await;
    shown("a flush", async || {
        flush(&server).await;
        token_falls(&server, server.addr(), || flush(&server)).await
    })
    .await;
}

#[tokio::test]
async fn without_a_restart_delay_a_kill_without_persistence_makes_two_holders_and_tokens_fall() {
    let server = own(Redis::v8()).await;
    two_hold(server.addr(), || restarted(&server)).await;
    shown("a kill", async || {
        restarted(&server).await;
        token_falls(&server, server.addr(), || restarted(&server)).await
    })
    .await;
}

/// A master, a replica whose link to it is cut, and a door to whichever serves.
struct Apart {
    master: Server,
    replica: Server,
    door: Proxy,
    _link: Proxy,
}

impl Apart {
    async fn new() -> Self {
        let (master, replica, link) = replicated(own(Redis::v8()).await, &Redis::v8()).await;
        let door = Proxy::start(master.addr()).await.unwrap();
        link.cut().await.unwrap();
        Self { master, replica, door, _link: link }
    }

    async fn fail_over(&self) {
        self.master.kill().await.unwrap();
        promote(&self.replica).await;
        self.door.set_target(self.replica.addr());
    }
}

#[tokio::test]
async fn without_a_restart_delay_a_stale_replica_makes_two_holders_and_tokens_fall() {
    let apart = Apart::new().await;
    two_hold(apart.door.addr(), || apart.fail_over()).await;
    shown("a promotion", async || {
        let apart = Apart::new().await;
        token_falls(&apart.master, apart.door.addr(), || apart.fail_over()).await
    })
    .await;
}

/// Redlock nodes that keep nothing on disk, each behind a door, in three parts: the first know of a lock, the second are
/// going to be killed, and the last was away when the lock was granted. The second and the last are a majority.
struct Minority {
    servers: Vec<Server>,
    doors: Vec<Proxy>,
    quorum: usize,
}

/// Long enough that a slow machine restarts nodes in it.
const LONG_TTL: Duration = Duration::from_secs(6);

impl Minority {
    async fn new(nodes: usize) -> Self {
        let servers = Server::start_all((0..nodes).map(|_| Redis::v8())).await.unwrap();
        let mut doors = Vec::new();
        for server in &servers {
            doors.push(Proxy::start(server.addr()).await.unwrap());
        }
        let rig = Self { servers, doors, quorum: nodes / 2 + 1 };
        settle(&rig.servers, &rig.backend()).await;
        rig
    }

    fn backend(&self) -> RedisBackend {
        let addresses: Vec<_> = self.doors.iter().map(|door| door.addr().to_string()).collect();
        backend(&format!(
            "redis+redlock://{}?restart_delay=9s&clock_skew=0ms&node_timeout=1s",
            addresses.join(",")
        ))
    }

    fn client(&self) -> LockManager {
        manager(self.backend(), LONG_TTL)
    }

    /// Those that are not killed and were not away.
    fn keepers(&self) -> Range<usize> {
        0..self.quorum - 1
    }

    fn killed(&self) -> Range<usize> {
        self.quorum - 1..self.servers.len() - 1
    }

    fn away(&self) -> &Proxy {
        &self.doors[self.servers.len() - 1]
    }

    /// Takes the lock while one is away. All others have it then.
    async fn take(&self, locks: &LockManager) -> LockGuard {
        self.away().cut().await.unwrap();
        let held = locks.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
        until("all others have granted", async || {
            for server in &self.servers[..self.servers.len() - 1] {
                if residue(server).await.is_empty() {
                    return false;
                }
            }
            true
        })
        .await;
        assert_eq!(residue(&self.servers[self.servers.len() - 1]).await, Vec::<String>::new());
        held
    }

    /// The one that was away is back, and the others come back with nothing.
    async fn lose(&self) {
        for node in self.killed() {
            self.servers[node].kill().await.unwrap();
        }
        for node in self.killed() {
            self.servers[node].start_again().await.unwrap();
            assert_eq!(self.servers[node].exec(&["DBSIZE"]).await.unwrap().trim(), "0", "it came back empty");
        }
        self.away().pass().await.unwrap();
    }

    /// Whether all nodes that were killed have begun to wait: those that somebody has asked.
    async fn are_waiting(&self) -> bool {
        let mut all = true;
        for node in self.killed() {
            let why = self.servers[node].exec(&["HGET", "dlock:mark", "why"]).await.unwrap();
            match why.trim() {
                "unmarked" => {}
                "" => all = false,
                other => panic!("node {node} waits since it is {other}"),
            }
        }
        all
    }
}

/// With those that never had it, nodes that have lost a lock are a majority.
async fn killed_nodes_hand_out_no_held_lock(nodes: usize) {
    let rig = Minority::new(nodes).await;
    let (one, other) = (rig.client(), rig.client());
    let held = rig.take(&one).await;
    rig.lose().await;
    let lock = other.lock("x").unwrap();
    let mut have_waited = false;
    let next = tokio::time::timeout(SOON, async {
        loop {
            match lock.try_acquire().await {
                Ok(Some(next)) => return next,
                // Denied by some, and while they come back the others grant nothing or are not there.
                Ok(None) => {}
                Err(error) => assert!(!matches!(error, AcquireError::Closed { .. }), "{}", chain(&error)),
            }
            if held.is_held() {
                have_waited |= rig.are_waiting().await;
            }
        }
    })
    .await
    .expect("it comes free");
    assert!(!held.is_held(), "two holders");
    assert!(have_waited, "the nodes that came back empty have granted at once");
    assert!(next.token() > held.token(), "{} after {}", next.token(), held.token());
    next.release().await.unwrap();
}

#[tokio::test]
async fn redlock_nodes_killed_without_persistence_hand_out_no_held_lock() {
    tokio::join!(killed_nodes_hand_out_no_held_lock(3), killed_nodes_hand_out_no_held_lock(5));
}

/// The lock is free, and those that know its last token are away.
async fn killed_nodes_hand_out_no_used_token(nodes: usize) {
    let rig = Minority::new(nodes).await;
    let (one, other) = (rig.client(), rig.client());
    let held = rig.take(&one).await;
    let used = held.token();
    assert_eq!(held.release().await.unwrap(), ReleaseOutcome::Released);
    rig.lose().await;
    for node in rig.keepers() {
        rig.doors[node].cut().await.unwrap();
    }
    let began = SystemClock.now();
    let lock = other.lock("x").unwrap();
    // Who only tries is told why not.
    let refusal = tokio::time::timeout(SOON, async {
        loop {
            match lock.try_acquire().await {
                Err(error) if chain(&error).contains("grants no lock until") => return chain(&error),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(other) => panic!("without those that know the last token: {other:?}"),
            }
        }
    })
    .await
    .expect("the quarantine is told");
    assert!(refusal.contains("restart_delay"), "{refusal}");
    assert!(rig.are_waiting().await);
    let next = lock.acquire_timeout(SOON).await.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert!(next.token() > used, "{} after {used}", next.token());
    assert!(SystemClock.now().since(began) >= LONG_TTL, "granted while leases from before may run");
}

#[tokio::test]
async fn redlock_nodes_killed_without_persistence_hand_out_no_used_token() {
    tokio::join!(killed_nodes_hand_out_no_used_token(3), killed_nodes_hand_out_no_used_token(5));
}

/// On Redlock a minority may lose everything and come back at once.
#[tokio::test]
async fn a_wiped_node_of_three_hands_out_neither_a_held_lock_nor_a_used_token() {
    let servers = servers(Flavour::Redis8, 5).await;
    let url = support::url(&servers[..3], SETTINGS);
    let (one, other) = (manager(backend(&url), TTL), manager(backend(&url), TTL));
    one.init().await.unwrap();
    // So that it has its connections.
    drop(other.lock("y").unwrap().acquire_timeout(SOON).await.unwrap());
    let key = "dlock:lock:x";
    let mut attempts = 0;
    let held = loop {
        let held = one.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
        let mut have = 0;
        for server in &servers[..3] {
            have += usize::from(server.exec(&["EXISTS", key]).await.unwrap().trim() == "1");
        }
        if have == 3 {
            break held;
        }
        // A node that was slow is left out.
        attempts += 1;
        assert!(attempts < 50, "all three nodes never grant");
        held.release().await.unwrap();
    };
    // One node was away when the lock was granted, in effect: it has lost it. Another is wiped now.
    servers[2].exec(&["DEL", key]).await.unwrap();
    servers[1].exec(&["FLUSHALL"]).await.unwrap();
    // A majority is free, or wiped. Without the mark it would grant.
    let lock = other.lock("x").unwrap();
    let next = match lock.try_acquire().await {
        // The holder may have learnt of its loss by now.
        Ok(Some(next)) => next,
        Ok(None) => lock.acquire_timeout(SOON).await.unwrap(),
        Err(error) => {
            assert!(chain(&error).contains("grants no lock until"), "{}", chain(&error));
            lock.acquire_timeout(SOON).await.unwrap()
        }
    };
    assert!(!held.is_held(), "two holders");
    assert!(next.token() > held.token());
}

/// `dlock init` before the first use, and not.
#[tokio::test]
async fn a_new_server_waits_unless_it_is_known_to_be_new() {
    // Longer than a busy machine takes for a first use that does not wait.
    const DELAY: Duration = Duration::from_secs(12);
    const SETTINGS: &str = "restart_delay=12s&clock_skew=0ms";
    let servers = servers(Flavour::Redis8, 5).await;
    let known = manager(backend(&support::url(&servers[..1], SETTINGS)), TTL);
    let began = SystemClock.now();
    assert!(known.init().await.unwrap()[0].contains("marked as new"));
    assert!(known.init().await.unwrap()[0].contains("had a mark already"));
    drop(known.lock("x").unwrap().acquire_timeout(SOON).await.unwrap());
    assert!(SystemClock.now().since(began) < DELAY, "{:?}", SystemClock.now().since(began));
    let began = SystemClock.now();
    let unknown = manager(backend(&support::url(&servers[1..2], SETTINGS)), TTL);
    let error = unknown.lock("x").unwrap().try_acquire().await.unwrap_err();
    assert!(chain(&error).contains("dlock init"), "{}", chain(&error));
    // Whoever looks is told the same.
    let lock = unknown.lock("x").unwrap();
    assert!(chain(&lock.holder().await.unwrap_err()).contains("dlock init"));
    drop(lock.acquire_timeout(SOON).await.unwrap());
    assert!(SystemClock.now().since(began) >= DELAY, "{:?}", SystemClock.now().since(began));
}
