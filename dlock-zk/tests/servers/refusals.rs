//! Servers that are not there, do not let us in, or grant something else: errors that say what to do.

use std::time::Duration;

use conformance_tests::fixtures::ZkFixture;
use conformance_tests::fixtures::zk::quick;
use dlock_core::{Backend, BackendUrl, LockManager, LossReason};
use dlock_zk::ZkBackend;
use test_servers::{Proxy, Redis, Server, ZooKeeper};

use crate::setting::{chain, renewed, soon, until, within};

const TICK: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_secs(3);

fn manager(backend: ZkBackend) -> LockManager {
    LockManager::builder(backend).ttl(TTL).request_timeout(Duration::from_secs(2)).build().unwrap()
}

/// The whole chain of an error that opening a session gives, in time.
pub(crate) async fn refused(backend: ZkBackend) -> String {
    let locks = manager(backend);
    let error = within(Duration::from_secs(6), "opening ends", locks.open()).await;
    chain(&error.expect_err("it cannot be opened"))
}

fn at<E: Into<String>>(addresses: impl IntoIterator<Item = E>) -> ZkBackend {
    ZkBackend::builder(addresses).tick(TICK).build()
}

#[tokio::test]
async fn addresses_where_nothing_answers() {
    let error = refused(at(["127.0.0.1:1"])).await;
    assert!(error.contains("ZooKeeper cannot be reached at 127.0.0.1:1"), "{error}");
    let error = refused(at(["127.0.0.1:1", "127.0.0.1:2"])).await;
    assert!(error.contains("127.0.0.1:1") && error.contains("127.0.0.1:2"), "{error}");
    let error = refused(at(["no-such-host.invalid"])).await;
    assert!(error.contains("no-such-host.invalid:2181"), "{error}");
    let error = refused(at(["two words"])).await;
    assert!(error.contains("two words"), "{error}");
    let error = refused(at(Vec::<String>::new())).await;
    assert!(error.contains("at least one"), "{error}");
    // A server of something else.
    let redis = Server::start(Redis::v8()).await.unwrap();
    let error = refused(at([redis.addr().to_string()])).await;
    assert!(error.contains(&redis.addr().to_string()), "{error}");
    // One that accepts and says nothing.
    let silent = Proxy::start(redis.addr()).await.unwrap();
    silent.hang();
    let error = refused(at([silent.addr().to_string()])).await;
    assert!(error.contains(&silent.addr().to_string()), "{error}");
}

#[tokio::test]
async fn a_lock_that_was_held_when_the_server_went_away_is_lost_in_time() {
    let server = Server::start(quick(TICK)).await.unwrap();
    let locks = manager(at([server.addr().to_string()]));
    let guard = locks.lock("gone").unwrap().acquire().await.unwrap();
    server.kill().await.unwrap();
    assert_eq!(within(TTL, "the loss is told", guard.lost()).await, LossReason::Expired);
    let error = within(Duration::from_secs(4), "a try ends", locks.lock("gone").unwrap().try_acquire()).await;
    assert!(chain(&error.unwrap_err()).contains("cannot be reached"), "it says what is wrong");
}

#[tokio::test]
async fn an_ensemble_that_is_down_is_told_and_found_again() {
    let fx = ZkFixture::three().await;
    let locks =
        LockManager::builder(fx.backend()).ttl(TTL).request_timeout(Duration::from_secs(2)).build().unwrap();
    for member in fx.members().iter() {
        member.kill().await.unwrap();
    }
    let error = within(Duration::from_secs(4), "a try ends", locks.lock("down").unwrap().try_acquire()).await;
    let error = chain(&error.unwrap_err());
    assert!(fx.addresses().iter().all(|address| error.contains(address)), "{error}");
    // One alone has no majority, and says so.
    fx.members()[0].start_unawaited().await.unwrap();
    until("it answers without serving", async || {
        fx.members()[0].ask("srvr").await.is_ok_and(|answer| answer.contains("not currently serving"))
    })
    .await;
    let error = chain(&locks.open().await.unwrap_err());
    assert!(error.contains("majority"), "{error}");
    for member in &fx.members()[1..] {
        member.start_unawaited().await.unwrap();
    }
    for member in fx.members().iter() {
        member.serves().await.unwrap();
    }
    soon("it goes on", locks.lock("down").unwrap().acquire()).await.unwrap().release().await.unwrap();
}

#[tokio::test]
async fn a_chroot_must_be_there_and_is_kept_to() {
    let fx = ZkFixture::one().await;
    let address = fx.addresses()[0].clone();
    let url = |path: &str| {
        let mut url = BackendUrl::parse(&format!("zk://{address}{path}?tick=100ms")).unwrap();
        let backend = ZkBackend::from_url(&mut url).unwrap();
        url.finish().unwrap();
        backend
    };
    let error = refused(url("/apps/shop")).await;
    assert!(error.contains("/apps/shop") && error.contains("create"), "{error}");
    fx.operator().create("/apps/shop", "").await;
    let (inside, outside) = (manager(url("/apps/shop")), manager(url("")));
    let guard = inside.lock("a").unwrap().acquire().await.unwrap();
    let paths: Vec<_> = fx.operator().nodes().await.into_iter().map(|node| node.path).collect();
    assert!(paths.iter().any(|path| path.starts_with("/apps/shop/dlock/a/_c_")), "{paths:?}");
    assert!(!paths.iter().any(|path| path.starts_with("/dlock/a")), "{paths:?}");
    // Another store, for all that locks know.
    outside.lock("a").unwrap().try_acquire().await.unwrap().unwrap().release().await.unwrap();
    let shown = inside.locate(&dlock_core::LockName::new("a").unwrap());
    assert_eq!(shown.location, "/apps/shop/dlock/a");
    guard.release().await.unwrap();
    inside.close().await.unwrap();
    outside.close().await.unwrap();
    // Gone while it is in use.
    let inside = manager(url("/apps/shop"));
    inside.open().await.unwrap();
    inside.close().await.unwrap();
    until("the containers are gone", async || {
        fx.operator().nodes().await.iter().all(|node| !node.path.starts_with("/apps/shop/"))
    })
    .await;
    assert!(fx.operator().delete("/apps/shop").await && fx.operator().delete("/apps").await);
    let error = refused(url("/apps/shop")).await;
    assert!(error.contains("/apps/shop"), "{error}");
}

#[tokio::test]
async fn a_prefix_may_have_several_levels() {
    let fx = ZkFixture::one().await;
    let backend = ZkBackend::builder(fx.addresses()).tick(TICK).prefix("teams/shop/locks").build();
    let locks = manager(backend.clone());
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    let nodes = fx.operator().nodes().await;
    assert!(nodes.iter().any(|node| node.path.starts_with("/teams/shop/locks/a/_c_")), "{nodes:?}");
    guard.release().await.unwrap();
    locks.close().await.unwrap();
    until("nothing is left", async || fx.operator().nodes().await.is_empty()).await;
}

#[tokio::test]
async fn a_lease_that_the_server_grants_otherwise_is_visible() {
    let server = Server::start(
        ZooKeeper::v3_9()
            .config("tickTime=100")
            .config("minSessionTimeout=2000")
            .config("maxSessionTimeout=5000"),
    )
    .await
    .unwrap();
    let backend = at([server.addr().to_string()]);
    for (asked, granted) in [(1000, 2000), (3000, 3000), (60_000, 5000)] {
        let locks = LockManager::builder(backend.clone()).ttl(Duration::from_millis(asked)).build().unwrap();
        let guard = locks.lock("granted").unwrap().acquire().await.unwrap();
        let granted = Duration::from_millis(granted);
        // On a machine that was busy for a second with the first renewal only.
        until("it is valid for what was granted", async || {
            let left = guard.valid_for();
            assert!(left <= granted, "valid for {left:?} where {granted:?} was granted");
            left > granted / 2
        })
        .await;
        // It is renewed as that, too.
        renewed(&locks, 4).await;
        assert!(guard.is_held() && guard.valid_for() <= granted);
        guard.release().await.unwrap();
    }
}

#[tokio::test]
async fn a_lease_that_another_server_makes_shorter_is_the_shorter_one() {
    let with = |longest: u32| {
        ZooKeeper::v3_9()
            .config("tickTime=100")
            .config(format!("maxSessionTimeout={longest}"))
            .property("zookeeper.forceSync=no")
    };
    let server = Server::start(with(20_000)).await.unwrap();
    let locks =
        LockManager::builder(at([server.addr().to_string()])).ttl(Duration::from_secs(20)).build().unwrap();
    let guard = locks.lock("shrunk").unwrap().acquire().await.unwrap();
    assert!(guard.valid_for() > Duration::from_secs(10));
    server.stop().await.unwrap();
    server.start_again_as(with(2000)).await.unwrap();
    // Known to the server as a shorter one, the session may end before the guard's deadline: it is given up at once.
    let reason = within(Duration::from_secs(5), "the loss is told", guard.lost()).await;
    assert_eq!(reason, LossReason::SessionEnded);
    let guard = soon("it goes on", locks.lock("shrunk").unwrap().acquire()).await.unwrap();
    assert!(guard.valid_for() <= Duration::from_secs(2));
    renewed(&locks, 4).await;
    assert!(guard.is_held() && guard.valid_for() <= Duration::from_secs(2));
    guard.release().await.unwrap();
    locks.close().await.unwrap();
}

#[tokio::test]
async fn a_lease_too_short_for_the_tick_is_refused_with_the_way_out() {
    let server = Server::start(quick(TICK)).await.unwrap();
    let slow = ZkBackend::builder([server.addr().to_string()]).build();
    assert_eq!(slow.guarantees().min_ttl, Duration::from_secs(7));
    let refused = LockManager::builder(slow.clone()).ttl(Duration::from_secs(3)).build();
    match refused {
        Err(error) => assert!(chain(&error).contains('7'), "{error}"),
        Ok(locks) => {
            let error = chain(&locks.open().await.unwrap_err());
            assert!(error.contains("7s") && error.contains("tick"), "{error}");
        }
    }
    // The server grants less than the tick needs that the client was told of.
    let stingy = Server::start(ZooKeeper::v3_9().config("tickTime=100")).await.unwrap();
    let backend = ZkBackend::builder([stingy.addr().to_string()]).build();
    let locks = LockManager::builder(backend).ttl(Duration::from_secs(10)).build().unwrap();
    let error = chain(&locks.open().await.unwrap_err());
    assert!(error.contains("grants") && error.contains("maxSessionTimeout"), "{error}");
}
