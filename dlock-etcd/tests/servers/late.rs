//! Requests that reach a frozen member, time out, and are carried out when it thaws.

use std::net::SocketAddr;
use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::fixtures::etcd::Operator;
use conformance_tests::{Client, Fixture, Setup};
use dlock_core::ReleaseOutcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

use crate::setting::{client_of, client_on, end, leader, soon, spawn_acquire, until};

const TTL: Duration = Duration::from_secs(8);

fn setup() -> Setup {
    Setup::new().ttl(TTL).request_timeout(Duration::from_secs(1))
}

/// A client on a member that is frozen next and does not lead, by a way on which nothing takes a request back.
async fn client_on_a_follower(fx: &EtcdFixture) -> (Client, usize) {
    let follower = (leader(fx).await + 1) % 3;
    let mut addresses = fx.addresses();
    addresses[follower] = no_taking_back(fx.members()[follower].addr()).await.to_string();
    (client_on(fx, &setup(), &addresses, follower).await, follower)
}

/// A way to a member that keeps back what cancels a request: resets of streams, and the end of the connection. So a request
/// is carried out that nobody waits for any more, as one is whose client sits behind a network that has failed.
async fn no_taking_back(member: SocketAddr) -> SocketAddr {
    let door = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = door.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = door.accept().await {
            let Ok(server) = TcpStream::connect(member).await else { continue };
            let ((from_client, mut to_client), (mut from_server, to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move {
                let to_server = requests(from_client, to_server).await;
                // Open as long as the test runs.
                std::future::pending::<()>().await;
                drop(to_server);
            });
            tokio::spawn(async move {
                tokio::io::copy(&mut from_server, &mut to_client).await.ok();
                // The client is gone; what it is sent is read all the same.
                tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await.ok();
            });
        }
    });
    address
}

/// Passes on the frames of HTTP/2 but those that take something back, until the client sends no more.
async fn requests(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) -> OwnedWriteHalf {
    const PREFACE: usize = 24;
    const HEADER: usize = 9;
    const RST_STREAM: u8 = 3;
    const GOAWAY: u8 = 7;
    let mut frame = vec![0; PREFACE];
    let mut is_passed_on = true;
    loop {
        if from.read_exact(&mut frame).await.is_err() || (is_passed_on && to.write_all(&frame).await.is_err())
        {
            return to;
        }
        let mut header = [0; HEADER];
        if from.read_exact(&mut header).await.is_err() {
            return to;
        }
        let length = u32::from_be_bytes([0, header[0], header[1], header[2]]);
        is_passed_on = !matches!(header[3], RST_STREAM | GOAWAY);
        frame = vec![0; usize::try_from(length).unwrap()];
        if is_passed_on && to.write_all(&header).await.is_err() {
            return to;
        }
    }
}

/// Waits until a thawed member has caught up: whatever it was sent while it was frozen has been carried out, or never
/// will be.
async fn caught_up(fx: &EtcdFixture, member: usize) {
    let client = client_of(fx, setup(), &[member]);
    soon("the thawed member serves", client.locks.open()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    soon("the thawed member serves", client.locks.close()).await.unwrap();
}

#[tokio::test]
async fn a_put_that_is_applied_after_the_thaw_is_no_orphan() {
    let fx = EtcdFixture::three().await;
    for tries in [false, true] {
        let (client, member) = client_on_a_follower(&fx).await;
        let other = fx.client(setup()).await;
        let contest = Contest::new(&fx, "late-put");
        let frozen = Operator::of(&fx.members()[member..=member]);
        let before = frozen.carried_out("Txn").await;
        fx.members()[member].freeze().await.unwrap();
        // Sent to the frozen member, unanswered, resolved by another one, and asked for again there.
        let lock = contest.lock(&client);
        let guard = if tries {
            // A try is an error while its claim is not resolved; then another one gets it.
            soon("a try gets it in the end", async {
                loop {
                    match contest.history.try_acquire("client", &lock).await {
                        Ok(Some(guard)) => return guard,
                        Ok(None) => panic!("a try met its own claim"),
                        Err(error) => assert!(error.is_transient(), "{error:?}"),
                    }
                }
            })
            .await
        } else {
            soon("another member answers", contest.history.acquire("client", &lock)).await.unwrap()
        };
        assert!(client.locks.metrics().unknown >= 1, "the first request was not answered");
        assert_eq!(fx.claims().await.len(), 1);
        let own = fx.claims().await;
        fx.members()[member].thaw().await.unwrap();
        until("the late put is carried out", async || frozen.carried_out("Txn").await > before).await;
        caught_up(&fx, member).await;
        assert_eq!(fx.claims().await, own, "P6: a late put made a claim that nobody knows of");
        assert!(contest.update(&guard).await);
        assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1");
        guard.release().await.unwrap();
        let guard =
            soon("it is free", contest.history.acquire("other", &contest.lock(&other))).await.unwrap();
        assert!(contest.update(&guard).await);
        guard.release().await.unwrap();
        contest.history.assert_sound();
        // While the session that might keep an orphan alive still lives.
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_delete_that_is_applied_after_the_thaw_hits_nobody() {
    let fx = EtcdFixture::three().await;
    let (client, member) = client_on_a_follower(&fx).await;
    let other = fx.client(setup()).await;
    let contest = Contest::new(&fx, "late-delete");
    let lock = contest.lock(&client);
    let guard = contest.history.acquire("client", &lock).await.unwrap();
    let frozen = Operator::of(&fx.members()[member..=member]);
    let before = frozen.carried_out("Txn").await;
    fx.members()[member].freeze().await.unwrap();
    // Released through another member, or not known when the caller's time was over.
    let released = soon("a release ends", guard.release()).await;
    assert!(!matches!(released, Ok(ReleaseOutcome::AlreadyLost)), "it was held when it was released");
    let again = soon("it is free", contest.history.acquire("again", &lock)).await.unwrap();
    fx.members()[member].thaw().await.unwrap();
    until("the late delete is carried out", async || frozen.carried_out("Txn").await > before).await;
    caught_up(&fx, member).await;
    assert!(contest.update(&again).await, "P7: a late delete ended the next hold");
    assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1, P7");
    again.release().await.unwrap();
    contest.history.assert_sound();
    end(&fx).await;
}

#[tokio::test]
async fn what_a_client_asked_of_its_only_member_while_that_was_frozen_leaves_nothing() {
    let fx = EtcdFixture::three().await;
    let member = (leader(&fx).await + 1) % 3;
    let client = client_of(&fx, setup(), &[member]);
    let other = fx.client(setup()).await;
    let contest = Contest::new(&fx, "cut-off");
    let held = client.lock("held").acquire().await.unwrap();
    fx.members()[member].freeze().await.unwrap();
    let waiting = spawn_acquire(&contest.lock(&client));
    // Its session is over before the member goes on, and with it whatever was asked under it.
    soon("the loss is told", held.lost()).await;
    until("the lease ran out", async || fx.claims().await.is_empty()).await;
    let guard = soon("others go on", contest.history.acquire("other", &contest.lock(&other))).await.unwrap();
    fx.members()[member].thaw().await.unwrap();
    caught_up(&fx, member).await;
    assert!(contest.update(&guard).await, "P1: a claim of an ended session got in the way");
    until("it waits under a new session", async || fx.claims().await.len() == 2).await;
    assert!(!waiting.is_finished(), "P1: a held lock was granted");
    guard.release().await.unwrap();
    crate::setting::got(waiting).await.release().await.unwrap();
    contest.history.assert_sound();
    end(&fx).await;
}
