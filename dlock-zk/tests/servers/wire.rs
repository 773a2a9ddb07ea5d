//! What the network can do: replies that are lost, bytes that come late, connections that break or go silent.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Client, Fixture, Setup};
use dlock_core::{LossReason, ReleaseOutcome};
use test_servers::{Direction, Proxy, Then};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::setting::{
    client_over_proxy, end, got, queue_up, renewed, soon, spawn_acquire, until, watches, within,
};

const TTL: Duration = Duration::from_secs(6);

fn setup() -> Setup {
    Setup::new().ttl(TTL).request_timeout(Duration::from_secs(1))
}

/// One server, a client that reaches it over a proxy, and one that does not.
async fn apart() -> (ZkFixture, Proxy, Client, Client) {
    let fx = ZkFixture::one().await;
    let (client, proxy) = client_over_proxy(&fx, setup(), 0).await;
    let other = fx.client(setup()).await;
    (fx, proxy, client, other)
}

/// Drops the reply to what the client asks next that is no ping.
fn drop_reply(proxy: &Proxy, to: &str, then: Then) {
    proxy.reset_counts();
    proxy.drop_next_reply_to(to, then);
}

#[tokio::test]
async fn a_claim_is_found_whose_reply_is_lost_at_any_step() {
    for then in [Then::Silence, Then::Cut] {
        for request in ["multi", "getChildren", "getData"] {
            let (fx, proxy, client, other) = apart().await;
            let contest = Contest::new(&fx, "lost");
            drop_reply(&proxy, request, then);
            let guard =
                soon("it is found", contest.history.acquire("client", &contest.lock(&client))).await.unwrap();
            proxy.counted(|counts| counts.replies_dropped > 0).await.unwrap();
            assert_eq!(fx.claims().await.len(), 1, "it was found, and not asked for again: {request}");
            assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1");
            renewed(&client.locks, 4).await;
            assert!(contest.update(&guard).await, "a claim that was found is renewed: {request}, {then:?}");
            assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
            contest.history.assert_sound();
            end(&fx).await;
        }
    }
}

/// A way to a server on which connections end in the middle of a burst of replies.
struct Steps {
    address: SocketAddr,
    /// How many replies still pass, and what comes then.
    left: Arc<Mutex<Option<(usize, Then)>>>,
}

impl Steps {
    async fn to(server: SocketAddr) -> Self {
        let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let steps = Self { address: door.local_addr().unwrap(), left: Arc::default() };
        let left = Arc::clone(&steps.left);
        tokio::spawn(async move {
            while let Ok((client, _)) = door.accept().await {
                let Ok(server) = TcpStream::connect(server).await else { continue };
                let left = Arc::clone(&left);
                tokio::spawn(async move {
                    let (mut from_client, to_client) = client.into_split();
                    let (from_server, mut to_server) = server.into_split();
                    tokio::select! {
                        _ = tokio::io::copy(&mut from_client, &mut to_server) => {}
                        () = replies(from_server, to_client, &left) => {}
                    }
                });
            }
        });
        steps
    }

    fn pass_only(&self, replies: usize, then: Then) {
        *self.left.lock().unwrap() = Some((replies, then));
    }

    fn has_dropped(&self) -> bool {
        self.left.lock().unwrap().is_none()
    }
}

/// Passes the server's frames on until it is told to stop; returns when the connection is to end.
async fn replies(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, left: &Mutex<Option<(usize, Then)>>) {
    let mut is_first = true;
    loop {
        let Ok(length) = from.read_u32().await else { return };
        let mut frame = vec![0; usize::try_from(length).unwrap()];
        if from.read_exact(&mut frame).await.is_err() {
            return;
        }
        // The answer to the connection has no number; those of pings and events are negative.
        let answers =
            !std::mem::take(&mut is_first) && i32::from_be_bytes(frame[..4].try_into().unwrap()) > 0;
        let then = answers.then(|| {
            let mut left = left.lock().unwrap();
            match &mut *left {
                Some((0, _)) => left.take().map(|(_, then)| then),
                Some((count, _)) => {
                    *count -= 1;
                    None
                }
                None => None,
            }
        });
        match then.flatten() {
            None => {}
            Some(Then::Cut) => return,
            Some(_) => std::future::pending().await,
        }
        if to.write_u32(length).await.is_err() || to.write_all(&frame).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_claim_is_found_whichever_of_its_replies_is_the_first_to_be_lost() {
    // Of a name that nobody has used: the lock's node, the claim's node, the list.
    for passed in 0..3 {
        for then in [Then::Silence, Then::Cut] {
            let fx = ZkFixture::one().await;
            let way = Steps::to(fx.members()[0].addr()).await;
            // No renewal gets in between.
            let setup = setup().ttl(TTL * 5);
            let client = setup.clone().client(fx.profile(), fx.backend_at([way.address.to_string()]));
            client.locks.open().await.unwrap();
            let other = fx.client(setup).await;
            let contest = Contest::new(&fx, "steps");
            way.pass_only(passed, then);
            let guard =
                soon("it is found", contest.history.acquire("client", &contest.lock(&client))).await.unwrap();
            assert!(way.has_dropped(), "all {passed} replies came");
            assert_eq!(fx.claims().await.len(), 1, "it was found, and not asked for again: after {passed}");
            assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1");
            assert!(contest.update(&guard).await);
            assert_eq!(guard.release().await.unwrap(), ReleaseOutcome::Released);
            contest.history.assert_sound();
            end(&fx).await;
        }
    }
}

#[tokio::test]
async fn a_token_is_the_transaction_that_made_the_node() {
    let (fx, proxy, client, other) = apart().await;
    let made = async |nth: usize| fx.claims().await[nth].created.unsigned_abs();
    // Granted at once, found after the reply was lost, and got after a wait.
    let guard = other.lock("token").acquire().await.unwrap();
    assert_eq!(guard.token().get(), made(0).await);
    guard.release().await.unwrap();
    drop_reply(&proxy, "multi", Then::Silence);
    let guard = soon("it is found", client.lock("token").acquire()).await.unwrap();
    assert_eq!((client.locks.metrics().unknown, guard.token().get()), (1, made(0).await));
    let waiting = queue_up(&fx, &other.lock("token"), 2).await;
    let next = made(1).await;
    assert!(next > guard.token().get());
    guard.release().await.unwrap();
    let guard = got(waiting).await;
    assert_eq!(guard.token().get(), next);
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_try_whose_reply_is_lost_at_any_step_leaves_nothing() {
    for then in [Then::Silence, Then::Cut] {
        for request in ["multi", "getChildren", "delete"] {
            let (fx, proxy, client, other) = apart().await;
            let guard = other.lock("lost").acquire().await.unwrap();
            drop_reply(&proxy, request, then);
            // An error, or the truth.
            let tried = soon("a try ends", client.lock("lost").try_acquire()).await;
            assert!(!matches!(tried, Ok(Some(_))), "P1: {tried:?}");
            until("its claim is gone", async || fx.claims().await.len() == 1).await;
            assert!(guard.is_held());
            guard.release().await.unwrap();
            let taken = soon("it is free", client.lock("lost").acquire()).await.unwrap();
            taken.release().await.unwrap();
            end(&fx).await;
        }
    }
}

#[tokio::test]
async fn a_claim_that_waits_keeps_its_place_when_its_reply_is_lost() {
    for then in [Then::Silence, Then::Cut] {
        for request in ["multi", "getChildren", "getData"] {
            let (fx, proxy, client, other) = apart().await;
            let guard = other.lock("lost").acquire().await.unwrap();
            drop_reply(&proxy, request, then);
            let early = queue_up(&fx, &client.lock("lost"), 2).await;
            let late = queue_up(&fx, &fx.client(setup()).await.lock("lost"), 3).await;
            proxy.counted(|counts| counts.replies_dropped > 0).await.unwrap();
            until("it watches", async || watches(&fx).await == 3).await;
            guard.release().await.unwrap();
            let guard = got(early).await;
            assert!(!late.is_finished(), "P1");
            guard.release().await.unwrap();
            got(late).await.release().await.unwrap();
            end(&fx).await;
        }
    }
}

#[tokio::test]
async fn a_look_whose_reply_is_lost_after_waiting_is_repeated() {
    for then in [Then::Silence, Then::Cut] {
        let (fx, proxy, client, other) = apart().await;
        let guard = other.lock("woken").acquire().await.unwrap();
        let waiting = queue_up(&fx, &client.lock("woken"), 2).await;
        until("it watches", async || watches(&fx).await == 2).await;
        drop_reply(&proxy, "getChildren", then);
        guard.release().await.unwrap();
        let guard = got(waiting).await;
        assert_eq!(fx.claims().await.len(), 1);
        renewed(&client.locks, 4).await;
        assert!(guard.is_held());
        guard.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_release_whose_reply_is_lost_on_the_wire_releases() {
    for then in [Then::Silence, Then::Cut] {
        let (fx, proxy, client, other) = apart().await;
        let guard = client.lock("lost").acquire().await.unwrap();
        let waiting = queue_up(&fx, &other.lock("lost"), 2).await;
        drop_reply(&proxy, "delete", then);
        let released = tokio::spawn(guard.release());
        let successor = within(Duration::from_secs(1), "it is free at once", got(waiting)).await;
        let released = soon("a release ends", released).await.unwrap();
        assert!(!matches!(released, Ok(ReleaseOutcome::AlreadyLost)), "it was held: {released:?}");
        renewed(&other.locks, 4).await;
        assert!(successor.is_held(), "P7: a repeated release hit the successor");
        successor.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_renewal_whose_reply_is_lost_is_repeated() {
    for then in [Then::Silence, Then::Cut] {
        for request in ["multi", "sync"] {
            let (fx, proxy, client, _) = apart().await;
            let guard = client.lock("renewed").acquire().await.unwrap();
            for _ in 0..2 {
                let metrics = client.locks.metrics();
                drop_reply(&proxy, request, then);
                until("a renewal fails", async || {
                    client.locks.metrics().renewals_failed > metrics.renewals_failed
                })
                .await;
                let renewals = client.locks.metrics().renewals;
                until("it is repeated", async || client.locks.metrics().renewals > renewals + 1).await;
                assert!(guard.is_held(), "a lock was lost with one reply to {request}, {then:?}");
            }
            assert_eq!(client.locks.metrics().sessions_opened, 1, "the session was kept");
            guard.release().await.unwrap();
            end(&fx).await;
        }
    }
}

#[tokio::test]
async fn a_session_whose_opening_is_not_answered_is_opened_again() {
    for then in [Then::Silence, Then::Cut] {
        for request in ["connect", "multi", "create", "createContainer"] {
            let fx = ZkFixture::one().await;
            let proxy =
                Proxy::speaking(test_servers::Protocol::ZooKeeper, fx.members()[0].addr()).await.unwrap();
            drop_reply(&proxy, request, then);
            let client = setup().client(fx.profile(), fx.backend_at([proxy.addr().to_string()]));
            let guard = soon("it opens in the end", client.lock("opened").acquire()).await.unwrap();
            assert!(guard.is_held());
            assert!(proxy.counts().replies_dropped > 0, "nothing was lost of {request}");
            guard.release().await.unwrap();
            client.locks.close().await.unwrap();
            // What the first try opened ends by itself.
            until("no session is left", async || fx.operator().sessions().await.is_empty()).await;
            end(&fx).await;
        }
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
        renewed(&other.locks, 4).await;
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
async fn a_slow_network_under_traffic_costs_no_lock() {
    let (fx, proxy, client, _) = apart().await;
    proxy.delay(Direction::Both, Duration::from_millis(120));
    let guard = soon("it is got", client.lock("busy").acquire()).await.unwrap();
    let traffic = tokio::spawn({
        let lock = client.lock("busy");
        async move {
            loop {
                let lock = lock.clone();
                tokio::spawn(async move { drop(lock.holder().await) });
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
    });
    let start = client.locks.metrics().renewals;
    until("it was renewed often", async || {
        assert!(guard.is_held(), "a lock was lost though every renewal was answered");
        client.locks.metrics().renewals >= start + 8
    })
    .await;
    // What was answered a tick before counts, not the opening of the connection.
    assert!(guard.valid_for() > TTL / 4, "valid for {:?}", guard.valid_for());
    traffic.abort();
    proxy.pass().await.unwrap();
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_watch_that_breaks_is_set_again() {
    let (fx, proxy, client, other) = apart().await;
    let guard = other.lock("woken").acquire().await.unwrap();
    let waiting = queue_up(&fx, &client.lock("woken"), 2).await;
    for _ in 0..5 {
        // Ours, and that of the holder on its own node.
        until("the watch stands", async || watches(&fx).await == 2).await;
        let before = proxy.counts().connections;
        proxy.reset_connections().await.unwrap();
        until("it connects again", async || proxy.counts().connections > before).await;
    }
    until("the watch stands", async || watches(&fx).await == 2).await;
    guard.release().await.unwrap();
    let guard = within(TTL / 3, "the handoff", got(waiting)).await;
    guard.release().await.unwrap();
    // Released while no watch stands.
    let guard = other.lock("woken").acquire().await.unwrap();
    let waiting = queue_up(&fx, &client.lock("woken"), 2).await;
    until("the watch stands", async || watches(&fx).await == 2).await;
    proxy.cut().await.unwrap();
    guard.release().await.unwrap();
    proxy.pass().await.unwrap();
    let guard = within(Duration::from_secs(2), "the handoff", got(waiting)).await;
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_held_lock_stays_watched_over_new_connections() {
    let (fx, proxy, client, _) = apart().await;
    let guard = client.lock("watched").acquire().await.unwrap();
    until("the watch stands", async || watches(&fx).await == 1).await;
    proxy.reset_connections().await.unwrap();
    fx.remove("watched").await;
    assert_eq!(within(TTL, "the loss is told", guard.lost()).await, LossReason::Removed);
    drop(guard);
    // And where the deletion comes while there is no connection.
    let guard = client.lock("watched").acquire().await.unwrap();
    until("the watch stands", async || watches(&fx).await == 1).await;
    proxy.cut().await.unwrap();
    fx.remove("watched").await;
    proxy.pass().await.unwrap();
    assert_eq!(within(TTL, "the loss is told", guard.lost()).await, LossReason::Removed);
    drop(guard);
    end(&fx).await;
}

#[tokio::test]
async fn while_there_is_no_connection_nothing_piles_up() {
    let (fx, proxy, client, _) = apart().await;
    let guard = client.lock("held").acquire().await.unwrap();
    proxy.cut().await.unwrap();
    let mut tries = Vec::new();
    for number in 0..200 {
        let lock = client.lock(&format!("piled/{number}"));
        tries.push(tokio::spawn(async move { lock.try_acquire().await }));
    }
    for tried in tries {
        let ended = within(Duration::from_secs(10), "a try ends", tried).await.unwrap();
        assert!(ended.is_err(), "there is no connection");
    }
    proxy.reset_counts();
    proxy.pass().await.unwrap();
    soon("it goes on", client.lock("after").acquire()).await.unwrap().release().await.unwrap();
    // What nobody waits for any more is not sent, but for what proves that it was not executed.
    assert!(proxy.counts().request("multi") < 100, "{:?}", proxy.counts());
    drop(guard);
    end(&fx).await;
}
