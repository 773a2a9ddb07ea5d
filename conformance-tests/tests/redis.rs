//! The suite over the Redis backend: one node of each server, and Redlock. And how soon a release reaches a waiter in
//! another process.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use conformance_tests::fixtures::{RedisFixture, RedisServers};
use conformance_tests::history::{History, Seen};
use conformance_tests::worker::{Answer, Order, Worker};
use conformance_tests::{Profile, Time, conformance_suite, process_suite};
use dlock_core::{Backend, SystemClock};
use dlock_redis::RedisBackend;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use test_servers::{Redis, Server};

conformance_suite!(redis_8, Time::Real, RedisFixture::start(RedisServers::Redis8).await);
conformance_suite!(redis_7, Time::Real, RedisFixture::start(RedisServers::Redis7).await);
conformance_suite!(valkey_8, Time::Real, RedisFixture::start(RedisServers::Valkey).await);
conformance_suite!(redlock_3, Time::Real, RedisFixture::start(RedisServers::Redlock3).await);
conformance_suite!(redlock_5, Time::Real, RedisFixture::start(RedisServers::Redlock5).await);
process_suite!(
    redis_8_processes,
    RedisFixture::start(RedisServers::Redis8).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
process_suite!(
    redis_7_processes,
    RedisFixture::start(RedisServers::Redis7).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
process_suite!(
    valkey_8_processes,
    RedisFixture::start(RedisServers::Valkey).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
process_suite!(
    redlock_3_processes,
    RedisFixture::start(RedisServers::Redlock3).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
process_suite!(
    redlock_5_processes,
    RedisFixture::start(RedisServers::Redlock5).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);

/// Servers that two worker processes hand a lock to and fro on. Nothing is synced, and no case runs here.
struct Handoffs {
    _servers: Vec<Server>,
    /// Of the operator's, one to each: what it asks must not take as long as a channel stays subscribed.
    connections: Vec<MultiplexedConnection>,
    url: String,
    profile: Profile,
}

impl Handoffs {
    async fn on(nodes: usize) -> Self {
        let servers = Server::start_all((0..nodes).map(|_| Redis::v8())).await.expect("servers");
        let hosts: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
        let (scheme, backend) = match &hosts[..] {
            [host] => ("redis", RedisBackend::builder(host).build()),
            _ => ("redis+redlock", RedisBackend::redlock(&hosts).build()),
        };
        // Nobody renews in so short a time, and one who polls instead of listening would take very long.
        let url = format!("{scheme}://{}?restart_delay=0&ttl=60s", hosts.join(","));
        let guarantees = backend.expect("the addresses are legal").guarantees();
        let profile = Profile::real(guarantees, Duration::from_secs(60));
        // The crate's own limits are shorter than a busy machine may take.
        let limits = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(profile.patience()))
            .set_response_timeout(Some(profile.patience()));
        let mut connections = Vec::new();
        for host in &hosts {
            let client = redis::Client::open(format!("redis://{host}")).expect("an address is a URL");
            let connection = client.get_multiplexed_async_connection_with_config(&limits).await;
            connections.push(connection.expect("the server runs"));
        }
        Self { _servers: servers, connections, url, profile }
    }

    async fn worker(&self, history: &History, process: u32) -> Worker {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lock-worker"));
        command.arg(&self.url);
        Worker::run(command, &self.profile, history, process).await
    }

    /// How many scripts each server has run.
    async fn scripts_run(&self) -> Vec<u64> {
        let mut run = Vec::new();
        for connection in &self.connections {
            let mut connection = connection.clone();
            let stats = redis::cmd("INFO").arg("commandstats").query_async(&mut connection).await;
            let stats: String = stats.expect("the server runs");
            let calls =
                stats.lines().find_map(|line| line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next());
            run.push(calls.map_or(0, |calls| calls.parse().expect("a number")));
        }
        run
    }

    /// Waits until a majority of the servers has run that many scripts since: once they have answered, nothing more is
    /// sent to the others.
    async fn asked(&self, before: &[u64], times: u64) {
        let asked = async {
            loop {
                let now = self.scripts_run().await;
                let ran = now.iter().zip(before).filter(|(now, then)| *now - *then >= times).count();
                if ran > before.len() / 2 {
                    return;
                }
            }
        };
        tokio::time::timeout(self.profile.patience(), asked).await.expect("the waiter asks");
    }
}

/// Two processes hand a lock to and fro. Half of the times from the call of the release in one to the return of the
/// acquisition in the other, on the clock of the machine, which all its processes share, are below `median`.
///
/// On a machine that is busy with other things many a message is late, and only for that reason is it enough if this is
/// so of some ten handoffs in a row. Without messages every one would take half a minute.
async fn reaches(nodes: usize, median: Duration) {
    const ROW: usize = 10;
    const MOST: usize = 250;
    let place = Handoffs::on(nodes).await;
    let history = History::of_process(Arc::new(SystemClock), 0);
    let mut workers = [place.worker(&history, 1).await, place.worker(&history, 2).await];
    workers[0].acquire("x").await;
    let mut took = Vec::new();
    for round in 0..MOST {
        let [one, other] = &mut workers;
        let (holder, waiter) = if round % 2 == 0 { (one, other) } else { (other, one) };
        // Each is refused first and then subscribes, which is not counted here, and asks once more. Later it is
        // subscribed already.
        let is_first = round < 2;
        let before = place.scripts_run().await;
        waiter.order(Order::Acquire { name: "x".to_owned(), limit_ms: 60_000 }).await;
        place.asked(&before, if is_first { 2 } else { 1 }).await;
        history.drain();
        assert_eq!(holder.ask(Order::Release { name: "x".to_owned() }).await, Answer::Done);
        let got = tokio::time::timeout(Duration::from_secs(15), waiter.answer()).await;
        let got = got.expect("no message came: only the poll is left");
        assert!(matches!(got, Some(Answer::Got { .. })), "{got:?}");
        let events = history.drain();
        let at = |wanted: fn(&Seen) -> bool| {
            events.iter().find(|event| wanted(&event.what)).expect("it was seen").at
        };
        let released = at(|what| matches!(what, Seen::ReleaseCalled));
        let acquired = at(|what| matches!(what, Seen::Acquired { .. }));
        if !is_first {
            took.push(acquired.since(released));
        }
        let mut row = took[took.len().saturating_sub(ROW)..].to_vec();
        row.sort_unstable();
        if row.len() == ROW && row[ROW / 2] < median {
            return;
        }
    }
    panic!("on {nodes} nodes p50 was never below {median:?}: {took:?}");
}

#[tokio::test]
async fn a_release_reaches_another_process_by_message() {
    reaches(1, Duration::from_millis(3)).await;
}

#[tokio::test]
async fn a_release_on_redlock_reaches_another_process_by_message() {
    reaches(3, Duration::from_millis(6)).await;
}
