//! Requests that reach a frozen member, are given up, and are carried out when it thaws; and the numbers of requests, by which
//! a server tells them apart.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Fixture, Setup};
use dlock_core::ReleaseOutcome;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::setting::{client_of, client_on, end, leader_of, renewed, soon, until};

const TTL: Duration = Duration::from_secs(10);

fn setup() -> Setup {
    Setup::new().ttl(TTL).request_timeout(Duration::from_secs(1))
}

/// Waits until a thawed member has caught up: whatever it was sent while it was frozen has been carried out, or never will
/// be.
async fn caught_up(fx: &ZkFixture, member: usize) {
    fx.members()[member].serves().await.unwrap();
    let client = client_of(fx, setup(), &[member]).await;
    // What it passes on is in the order in which it came.
    soon("it serves", client.lock("caught-up").acquire()).await.unwrap().release().await.unwrap();
    client.locks.close().await.unwrap();
}

#[tokio::test]
async fn a_claim_that_is_carried_out_after_the_thaw_is_no_orphan() {
    let fx = ZkFixture::three().await;
    for tries in [false, true] {
        let member = (leader_of(fx.members()).await + 1) % 3;
        let (client, _ways) = client_on(&fx, setup(), member).await;
        let other = fx.client(setup()).await;
        let contest = Contest::new(&fx, "late-claim");
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
        let own = fx.claims().await;
        assert_eq!(own.len(), 1);
        fx.members()[member].thaw().await.unwrap();
        caught_up(&fx, member).await;
        assert_eq!(fx.claims().await, own, "P6: a late request made a claim that nobody knows of");
        assert!(contest.update(&guard).await);
        assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1");
        guard.release().await.unwrap();
        let guard =
            soon("it is free", contest.history.acquire("other", &contest.lock(&other))).await.unwrap();
        assert!(contest.update(&guard).await);
        guard.release().await.unwrap();
        contest.history.assert_sound();
        // While the session that might keep an orphan alive still lives.
        assert_eq!(client.locks.metrics().sessions_opened, 1);
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_deletion_that_is_carried_out_after_the_thaw_hits_nobody() {
    let fx = ZkFixture::three().await;
    let member = (leader_of(fx.members()).await + 1) % 3;
    let (client, _ways) = client_on(&fx, setup(), member).await;
    let other = fx.client(setup()).await;
    let contest = Contest::new(&fx, "late-delete");
    let lock = contest.lock(&client);
    let guard = contest.history.acquire("client", &lock).await.unwrap();
    fx.members()[member].freeze().await.unwrap();
    // Released through another member, or not known when the caller's time was over.
    let released = soon("a release ends", guard.release()).await;
    assert!(!matches!(released, Ok(ReleaseOutcome::AlreadyLost)), "it was held when it was released");
    let again = soon("it is free", contest.history.acquire("again", &lock)).await.unwrap();
    fx.members()[member].thaw().await.unwrap();
    caught_up(&fx, member).await;
    assert!(contest.update(&again).await, "P7: a late deletion ended the next hold");
    assert!(contest.lock(&other).try_acquire().await.unwrap().is_none(), "P1, P7");
    again.release().await.unwrap();
    contest.history.assert_sound();
    end(&fx).await;
}

/// The numbers of the requests on each connection to a server, as they pass on the way to it.
#[derive(Clone, Debug, Default)]
struct Numbers(Arc<Mutex<Vec<Vec<i32>>>>);

impl Numbers {
    /// Listens, and leads on to this server. What is asked for is cut with the channel.
    async fn lead_to(self, server: SocketAddr) -> (SocketAddr, tokio::sync::broadcast::Sender<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = listener.local_addr().unwrap();
        let (cut, _) = tokio::sync::broadcast::channel(1);
        let cuts = cut.clone();
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let connection = {
                    let mut numbers = self.0.lock().unwrap();
                    numbers.push(Vec::new());
                    numbers.len() - 1
                };
                let (numbers, mut cut) = (self.clone(), cuts.subscribe());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = cut.recv() => {}
                        _ = numbers.pass(connection, client, server) => {}
                    }
                });
            }
        });
        (here, cut)
    }

    async fn pass(&self, connection: usize, client: TcpStream, server: SocketAddr) -> std::io::Result<()> {
        let server = TcpStream::connect(server).await?;
        let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
            (client.into_split(), server.into_split());
        let up = async {
            for nth in 0.. {
                let mut frame = vec![0; from_client.read_u32().await? as usize];
                from_client.read_exact(&mut frame).await?;
                // The first one opens the session.
                if nth > 0 {
                    let number = i32::from_be_bytes(frame[..4].try_into().expect("four bytes"));
                    self.0.lock().unwrap()[connection].push(number);
                }
                to_server.write_u32(u32::try_from(frame.len()).expect("it was one")).await?;
                to_server.write_all(&frame).await?;
            }
            std::io::Result::Ok(())
        };
        let down = tokio::io::copy(&mut from_server, &mut to_client);
        tokio::try_join!(up, down).map(drop)
    }
}

#[tokio::test]
async fn requests_are_numbered_over_all_connections_of_a_session() {
    let fx = ZkFixture::one().await;
    let numbers = Numbers::default();
    let (address, cut) = numbers.clone().lead_to(fx.members()[0].addr()).await;
    let client = setup().client(fx.profile(), fx.backend_at([address.to_string()]));
    let guard = client.lock("numbered").acquire().await.unwrap();
    let connections = || numbers.0.lock().unwrap().len();
    for round in 1..4 {
        assert_eq!(connections(), round);
        // Nobody hears it where there is no connection.
        until("it is cut", async || cut.send(()).is_ok()).await;
        until("it comes again", async || connections() > round).await;
        renewed(&client.locks, 1).await;
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
    client.locks.close().await.unwrap();
    let seen = numbers.0.lock().unwrap().clone();
    // Pings and the like have numbers of their own.
    let seen: Vec<i32> = seen.into_iter().flatten().filter(|number| *number > 0).collect();
    assert!(seen.len() > 10 && seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    end(&fx).await;
}
