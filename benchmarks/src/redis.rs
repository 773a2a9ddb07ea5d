//! Acquire, release and handoff on Redis servers on loopback, beside a bare client and a peer in the same run.
//!
//! The servers keep nothing on disk, so that what is measured is the client and the round trips. The peer is
//! [`rslock`](https://docs.rs/rslock), Redlock without tokens, renewal or loss detection.

use std::time::Duration;

use dlock::{Clock, SystemClock};
use redis::Script;
use redis::aio::MultiplexedConnection;
use test_servers::{Redis, Server};

use crate::figures::{Figures, LONG_ROUNDS, nanos};
use crate::servers::{self, HANDOFFS, LINED_UP, OPERATIONS};
use crate::setting::Setting;
use crate::table::{Unit, row, section};

const TTL: Duration = Duration::from_secs(10);

pub(crate) fn run() {
    Setting::MultiThread.run(async {
        for nodes in [1, 3, 5] {
            let servers = Server::start_all((0..nodes).map(|_| Redis::v8())).await;
            measure(&servers.unwrap_or_else(|error| panic!("{error}"))).await;
        }
    });
}

async fn measure(servers: &[Server]) {
    let addresses: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    let urls: Vec<_> = addresses.iter().map(|address| format!("redis://{address}")).collect();
    let (title, scheme) = match servers.len() {
        1 => ("REDIS, one node".to_owned(), "redis"),
        nodes => (format!("REDLOCK, {nodes} nodes"), "redis+redlock"),
    };
    section(&title);
    if let [only] = &*urls {
        let client = redis::Client::open(&**only).expect("an address is a URL");
        let bare = Bare(client.get_multiplexed_async_connection().await.expect("the server runs"));
        let figures = Figures::timed(LONG_ROUNDS, || set_and_delete(bare.clone())).await;
        row("redis-rs, SET NX PX and a script that compares and deletes", Unit::Nanoseconds, figures);
    }
    let peer = rslock::LockManager::new(urls);
    let figures = Figures::timed(LONG_ROUNDS, || lock_and_unlock(peer.clone())).await;
    row("rslock, lock and unlock", Unit::Nanoseconds, figures);

    let mut handoffs = Vec::new();
    for _ in 0..HANDOFFS / 10 {
        handoffs.push(peers_handoff(&peer).await);
    }
    row("rslock, unlock to lock of another task (it polls)", Unit::Nanoseconds, Figures::of(handoffs));
    servers::measure(&format!("{scheme}://{}", addresses.join(",")), "below 3 ms").await;
}

/// What is left of a lock without tokens, quarantine, renewal and waiting.
#[derive(Clone)]
struct Bare(MultiplexedConnection);

async fn set_and_delete(Bare(mut connection): Bare) -> u32 {
    let release =
        Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end");
    let mut set = redis::cmd("SET");
    set.arg(&["bare", "nonce", "NX", "PX", "10000"]);
    for _ in 0..OPERATIONS {
        let () = set.query_async(&mut connection).await.expect("the server runs");
        let _: usize =
            release.key("bare").arg("nonce").invoke_async(&mut connection).await.expect("the server runs");
    }
    OPERATIONS
}

async fn lock_and_unlock(peer: rslock::LockManager) -> u32 {
    for _ in 0..OPERATIONS {
        let lock = peer.lock("rslock", TTL).await.expect("the lock is free");
        peer.unlock(&lock).await;
    }
    OPERATIONS
}

async fn peers_handoff(peer: &rslock::LockManager) -> f64 {
    let lock = peer.lock("rslock", TTL).await.expect("the lock is free");
    let waiting = peer.clone();
    let waiter = tokio::spawn(async move {
        let lock = waiting.acquire_no_guard("rslock", TTL).await.expect("the servers run");
        let acquired = SystemClock.now();
        waiting.unlock(&lock).await;
        acquired
    });
    tokio::time::sleep(LINED_UP).await;
    let released = SystemClock.now();
    peer.unlock(&lock).await;
    nanos(waiter.await.expect("the waiter ends").since(released))
}
