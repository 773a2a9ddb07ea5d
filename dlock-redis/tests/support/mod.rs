//! What the tests share: servers that are ready to grant, backends on them, and sessions without a manager.

#![allow(dead_code, reason = "no test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a failure here fails the test that called")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dlock_core::{
    Backend, BackendUrl, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Grant, Holder, LockManager, LockName,
    OpenOptions, Patience, Session, SystemClock,
};
use dlock_redis::RedisBackend;
use test_servers::{Lease, Pool, Redis, Server};

/// Waits for something with this deadline.
pub(crate) const SOON: Duration = Duration::from_secs(60);

type Nodes = Pool<Vec<Server>>;

static REDIS_8: Nodes =
    Pool::new(|| Box::pin(Server::start_all((0..5).map(|_| Redis::v8())))).reset(|set| Box::pin(empty(set)));
static REDIS_7: Nodes =
    Pool::new(|| Box::pin(Server::start_all((0..5).map(|_| Redis::v7())))).reset(|set| Box::pin(empty(set)));
static VALKEY: Nodes = Pool::new(|| Box::pin(Server::start_all((0..5).map(|_| Redis::valkey()))))
    .reset(|set| Box::pin(empty(set)));
static ONE: Nodes =
    Pool::new(|| Box::pin(Server::start_all([Redis::v8()]))).reset(|set| Box::pin(empty(set)));

/// Readies servers for the next test, whatever the last one left; fails where one has ended.
async fn empty(servers: &[Server]) -> Result<(), test_servers::Error> {
    for server in servers {
        server.thaw().await?;
        server.exec(&["FLUSHALL"]).await?;
    }
    Ok(())
}

/// Which server software.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Flavour {
    Redis8,
    Redis7,
    Valkey,
}

/// Empty running servers: one, or five of which a test uses some.
pub(crate) async fn servers(flavour: Flavour, count: usize) -> Lease<Vec<Server>> {
    let pool = match flavour {
        Flavour::Redis8 if count == 1 => &ONE,
        Flavour::Redis8 => &REDIS_8,
        Flavour::Redis7 => &REDIS_7,
        Flavour::Valkey => &VALKEY,
    };
    pool.lease().await.expect("servers")
}

/// A server of its own, which the test may break.
pub(crate) async fn own(kind: Redis) -> Server {
    Server::start(kind).await.expect("a server")
}

/// The URL for these servers.
pub(crate) fn url(servers: &[Server], parameters: &str) -> String {
    let addresses: Vec<_> = servers.iter().map(|server| server.addr().to_string()).collect();
    let scheme = if servers.len() == 1 { "redis" } else { "redis+redlock" };
    format!("{scheme}://{}?{parameters}", addresses.join(","))
}

pub(crate) fn backend(url: &str) -> RedisBackend {
    let mut url = BackendUrl::parse(url).unwrap();
    let backend = RedisBackend::from_url(&mut url).unwrap();
    url.finish().unwrap();
    backend
}

/// A backend with default settings on servers that have been in use for long: none is in quarantine.
pub(crate) async fn settled(servers: &[Server], parameters: &str) -> RedisBackend {
    let backend = backend(&url(servers, parameters));
    settle(servers, &backend).await;
    backend
}

/// Marks servers as if they had been in use for long.
pub(crate) async fn settle(servers: &[Server], backend: &RedisBackend) {
    backend.init(options(Duration::from_secs(1))).await.unwrap();
    for server in servers {
        server.exec(&["HSET", "dlock:mark", "till", "1"]).await.unwrap();
    }
}

pub(crate) fn options(ttl: Duration) -> OpenOptions {
    OpenOptions::new(ttl, "tester", Duration::from_secs(3), Arc::new(SystemClock))
}

pub(crate) fn manager(backend: RedisBackend, ttl: Duration) -> LockManager {
    LockManager::builder(backend).ttl(ttl).request_timeout(Duration::from_secs(3)).build().unwrap()
}

pub(crate) async fn session(backend: &RedisBackend, ttl: Duration) -> Arc<dyn Session> {
    backend.open(options(ttl)).await.unwrap().session
}

/// A fresh claim.
pub(crate) fn claim(name: &str) -> ClaimRef {
    static IDS: AtomicU64 = AtomicU64::new(1);
    let id = (u128::from(std::process::id()) << 64) | u128::from(IDS.fetch_add(1, Ordering::Relaxed));
    ClaimRef { id: ClaimId::from_bits(id), name: LockName::new(name).unwrap() }
}

pub(crate) fn request(claim: &ClaimRef) -> ClaimRequest {
    let holder = Holder::from_json(r#"{"owner":"tester","since_ms":1767225600000}"#);
    ClaimRequest::new(claim.clone(), Patience::Try, holder)
}

/// Asks once; the lock must be free.
pub(crate) async fn granted(session: &dyn Session, claim: &ClaimRef) -> Grant {
    match session.claim(request(claim)).await {
        Ok(ClaimReply::Granted(grant)) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Waits until something holds, with a deadline.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, condition: impl Fn() -> F) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(SOON, waiting).await.unwrap_or_else(|_| panic!("not within {SOON:?}: {what}"));
}

/// All keys that belong to a lock.
pub(crate) async fn residue(server: &Server) -> Vec<String> {
    let keys = server.exec(&["KEYS", "dlock:lock:*"]).await.unwrap();
    keys.lines().filter(|key| !key.is_empty()).map(str::to_owned).collect()
}
