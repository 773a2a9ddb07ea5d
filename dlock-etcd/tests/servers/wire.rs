//! What the network can do: replies that are lost, bytes that come late, connections that break or go silent.

use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::{Client, Fixture, Setup};
use dlock_core::{AcquireError, LossReason, ReleaseOutcome};
use dlock_etcd::EtcdBackend;
use test_servers::{Direction, Proxy, Then};

use crate::setting::{end, got, queue_up, soon, spawn_acquire, until, within};

const TTL: Duration = Duration::from_secs(6);

fn setup() -> Setup {
    Setup::new().ttl(TTL).request_timeout(Duration::from_secs(1))
}

/// One member, a client that reaches it over a proxy, and one that does not.
async fn apart() -> (EtcdFixture, Proxy, Client, Client) {
    let fx = EtcdFixture::one().await;
    let proxy = Proxy::start(fx.members()[0].addr()).await.unwrap();
    let client = setup().client(fx.profile(), EtcdBackend::new([proxy.addr().to_string()]));
    client.locks.open().await.unwrap();
    let other = fx.client(setup()).await;
    (fx, proxy, client, other)
}

#[tokio::test]
async fn a_claim_whose_reply_is_lost_on_the_wire_is_found() {
    for then in [Then::Silence, Then::Cut] {
        let (fx, proxy, client, other) = apart().await;
        let contest = Contest::new(&fx, "lost");
        proxy.drop_next_reply(then);
        let guard =
            soon("it is found", contest.history.acquire("client", &contest.lock(&client))).await.unwrap();
        assert_eq!(client.locks.metrics().unknown, 1, "the reply was lost");
        assert_eq!(fx.claims().await.len(), 1, "it was found, and not asked for again");
        assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1");
        tokio::time::sleep(TTL * 3 / 2).await;
        assert!(contest.update(&guard).await, "a claim that was found is renewed");
        assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
        contest.history.assert_sound();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_claim_that_waits_keeps_its_place_when_its_reply_is_lost() {
    for then in [Then::Silence, Then::Cut] {
        let (fx, proxy, client, other) = apart().await;
        let guard = other.lock("lost").acquire().await.unwrap();
        proxy.drop_next_reply(then);
        let early = queue_up(&fx, &client.lock("lost"), 2).await;
        let late = queue_up(&fx, &fx.client(setup()).await.lock("lost"), 3).await;
        until("it is found", async || client.locks.metrics().unknown == 1).await;
        until("it watches", async || fx.operator().watches().await == 2).await;
        guard.release().await.unwrap();
        let guard = got(early).await;
        assert!(!late.is_finished(), "P1");
        guard.release().await.unwrap();
        got(late).await.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_release_whose_reply_is_lost_on_the_wire_releases() {
    for then in [Then::Silence, Then::Cut] {
        let (fx, proxy, client, other) = apart().await;
        let guard = client.lock("lost").acquire().await.unwrap();
        let waiting = queue_up(&fx, &other.lock("lost"), 2).await;
        proxy.drop_next_reply(then);
        let released = tokio::spawn(guard.release());
        let successor = within(Duration::from_secs(1), "it is free at once", got(waiting)).await;
        let released = soon("a release ends", released).await.unwrap();
        assert!(!matches!(released, Ok(ReleaseOutcome::AlreadyLost)), "it was held: {released:?}");
        tokio::time::sleep(TTL).await;
        assert!(successor.is_held(), "P7: a repeated release hit the successor");
        successor.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_renewal_whose_reply_is_lost_is_repeated() {
    for then in [Then::Silence, Then::Cut] {
        let (fx, proxy, client, _) = apart().await;
        let guard = client.lock("renewed").acquire().await.unwrap();
        for _ in 0..3 {
            let metrics = client.locks.metrics();
            proxy.drop_next_reply(then);
            until("a renewal fails", async || {
                client.locks.metrics().renewals_failed > metrics.renewals_failed
            })
            .await;
            let renewals = client.locks.metrics().renewals;
            until("it is repeated", async || client.locks.metrics().renewals > renewals).await;
            assert!(guard.is_held(), "a lock was lost with one reply");
        }
        guard.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn bytes_that_come_after_the_lease_revive_nothing() {
    for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
        let (fx, proxy, client, other) = apart().await;
        let contest = Contest::new(&fx, "cut-off");
        let guard = contest.history.acquire("client", &contest.lock(&client)).await.unwrap();
        let waiting = queue_up(&fx, &contest.lock(&other), 2).await;
        // A claim of the one that is cut off is under way as well.
        proxy.black_hole(direction);
        let late = spawn_acquire(&client.lock("late"));
        guard.crashed();
        let reason = within(TTL, "the loss is told in time", guard.lost()).await;
        assert_eq!(reason, LossReason::Expired);
        let successor = got(waiting).await;
        // Now everything that was held back arrives.
        proxy.pass().await.unwrap();
        tokio::time::sleep(TTL).await;
        assert!(successor.is_held() && !guard.is_held(), "P1: late bytes hit the successor");
        successor.release().await.unwrap();
        got(late).await.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_slow_network_is_slow_and_nothing_else() {
    let (fx, proxy, client, other) = apart().await;
    proxy.delay(Direction::Both, Duration::from_millis(150));
    let contest = Contest::new(&fx, "slow");
    contest.fight(&[client, other], 2, 5).await;
    end(&fx).await;
}

#[tokio::test]
async fn a_watch_that_breaks_is_set_again() {
    let (fx, proxy, client, other) = apart().await;
    let guard = other.lock("woken").acquire().await.unwrap();
    let waiting = queue_up(&fx, &client.lock("woken"), 2).await;
    for _ in 0..5 {
        until("the watch stands", async || fx.operator().watches().await == 1).await;
        let set = fx.operator().calls("Watch").await;
        proxy.reset_connections().await.unwrap();
        until("another watch is set", async || fx.operator().calls("Watch").await > set).await;
    }
    until("the watch stands", async || fx.operator().watches().await == 1).await;
    guard.release().await.unwrap();
    let guard = within(TTL / 3, "the handoff", got(waiting)).await;
    guard.release().await.unwrap();
    // Released while no watch stands.
    let guard = other.lock("woken").acquire().await.unwrap();
    let waiting = queue_up(&fx, &client.lock("woken"), 2).await;
    until("the watch stands", async || fx.operator().watches().await == 1).await;
    proxy.cut().await.unwrap();
    guard.release().await.unwrap();
    proxy.pass().await.unwrap();
    let guard = within(Duration::from_secs(2), "the handoff", got(waiting)).await;
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_member_that_goes_silent_is_left_by_those_who_wait() {
    let fx = EtcdFixture::one().await;
    let proxies = [
        Proxy::start(fx.members()[0].addr()).await.unwrap(),
        Proxy::start(fx.members()[0].addr()).await.unwrap(),
    ];
    let addresses: Vec<_> = proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
    let client = setup().client(fx.profile(), EtcdBackend::new(addresses));
    client.locks.open().await.unwrap();
    let other = fx.client(setup()).await;
    let guard = other.lock("silent").acquire().await.unwrap();
    let waiting = queue_up(&fx, &client.lock("silent"), 2).await;
    until("the watch stands", async || fx.operator().watches().await == 1).await;
    // The way that it uses, which is the one with more connections: the other was used to ask for the version only.
    let used = usize::from(proxies[1].counts().bytes_to_server > proxies[0].counts().bytes_to_server);
    proxies[used].black_hole(Direction::Both);
    // The next renewal finds that out, and the wait goes with it to the other way.
    tokio::time::sleep(TTL).await;
    guard.release().await.unwrap();
    let guard = within(TTL / 3, "the handoff", got(waiting)).await;
    assert_eq!(client.locks.metrics().sessions_opened, 1, "the session was kept");
    guard.release().await.unwrap();
    proxies[used].pass().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_quiet_connection_is_pinged_and_stays() {
    let fx = EtcdFixture::one().await;
    let proxy = Proxy::start(fx.members()[0].addr()).await.unwrap();
    // Renewals so rare that pings, every 6 s, come between them: a server ends connections that ping too often.
    let setup = Setup::new().ttl(Duration::from_secs(60)).request_timeout(Duration::from_secs(3));
    let client = setup.client(fx.profile(), EtcdBackend::new([proxy.addr().to_string()]));
    let guard = client.lock("quiet").acquire().await.unwrap();
    let renewed = async |count| client.locks.metrics().renewals >= count;
    until("a renewal, which leaves its call open", async || renewed(1).await).await;
    let connections = proxy.counts().connections;
    let sent = proxy.counts().bytes_to_server;
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert!(proxy.counts().bytes_to_server > sent, "a quiet connection is pinged");
    until("a renewal", async || renewed(2).await).await;
    assert_eq!(proxy.counts().connections, connections, "the server ended the connection");
    assert!(guard.is_held() && client.locks.metrics().renewals_failed == 0);
    guard.release().await.unwrap();
    end(&fx).await;
}

/// A waiter that gives up says nothing of the member: the connection, and the watches of other waiters, stay.
#[tokio::test]
async fn waiters_that_give_up_disturb_nobody() {
    let (fx, proxy, client, other) = apart().await;
    let guards = [other.lock("kept").acquire().await.unwrap(), other.lock("left").acquire().await.unwrap()];
    let waiting = queue_up(&fx, &client.lock("kept"), 2).await;
    until("the watch stands", async || fx.operator().watches().await == 1).await;
    let connections = proxy.counts().connections;
    // Dropped at whatever point of their watch and look.
    for after in 0..60 {
        let limit = Duration::from_micros(after * 100);
        let gave_up = client.lock("left").acquire_timeout(limit).await;
        // Whoever does not even wait for the store's first answer does not learn that the lock is held.
        let expected =
            matches!(gave_up, Err(AcquireError::Timeout { .. } | AcquireError::Unavailable { .. }));
        assert!(expected, "{gave_up:?}");
        assert!(client.locks.lock("kept").unwrap().holder().await.unwrap().is_some());
        let holder = client.lock("kept");
        drop(tokio::time::timeout(limit, holder.holder()).await);
    }
    assert_eq!(proxy.counts().connections, connections, "a member was left for nothing");
    let [kept, left] = guards;
    kept.release().await.unwrap();
    got(waiting).await.release().await.unwrap();
    left.release().await.unwrap();
    end(&fx).await;
}
