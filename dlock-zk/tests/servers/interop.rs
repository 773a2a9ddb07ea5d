//! The same lock with other people's recipes, in one queue.

use std::time::Duration;

use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Fixture, Setup};
use dlock_core::{Backend, LockName};
use test_servers::{Peer, Recipe, Server};
use tokio::task::JoinHandle;

use crate::setting::{end, got, queue_up, soon, until};

async fn peers(recipe: Recipe) -> (Server, [Peer; 2]) {
    let program = Server::start(recipe).await.unwrap();
    let peers = [Peer::of(&program).await.unwrap(), Peer::of(&program).await.unwrap()];
    // Those that have not connected yet would do so in the middle.
    for peer in &peers {
        assert!(peer.try_lock("/warm").await.unwrap());
        peer.unlock("/warm").await.unwrap();
    }
    (program, peers)
}

fn lock(peer: Peer, path: &str) -> JoinHandle<Peer> {
    let path = path.to_owned();
    tokio::spawn(async move {
        peer.lock(&path).await.unwrap();
        peer
    })
}

/// On a busy machine other programs take their time.
fn patient() -> Setup {
    Setup::new().ttl(Duration::from_secs(60))
}

async fn stand_in_one_queue(recipe: fn(&ZkFixture) -> Recipe) {
    let fx = ZkFixture::one().await;
    let (program, [peer, other_peer]) = peers(recipe(&fx)).await;
    let (client, other) = (fx.client(patient()).await, fx.client(patient()).await);
    for name in ["orders", "a/b %2F🔒"] {
        let path = fx.backend().locate(&LockName::new(name).unwrap()).location;
        // It holds: we are told so, and queue behind it; it behind us, and we behind that.
        peer.lock(&path).await.unwrap();
        assert!(client.lock(name).try_acquire().await.unwrap().is_none(), "P1: the recipe holds it");
        assert!(client.lock(name).holder().await.unwrap().is_some(), "somebody holds it");
        let first = queue_up(&fx, &client.lock(name), 2).await;
        let behind = lock(Peer::of(&program).await.unwrap(), &path);
        until("the recipe waits", async || fx.claims().await.len() == 3).await;
        let last = queue_up(&fx, &other.lock(name), 4).await;
        assert!(!first.is_finished() && !behind.is_finished() && !last.is_finished());

        peer.unlock(&path).await.unwrap();
        let guard = got(first).await;
        assert!(!behind.is_finished() && !last.is_finished(), "P1: two hold a lock");
        assert!(!other_peer.try_lock(&path).await.unwrap(), "P1: the recipe got a lock that dlock holds");
        assert!(guard.is_held());
        guard.release().await.unwrap();

        let behind = soon("the recipe gets it", behind).await.unwrap();
        assert!(!last.is_finished(), "P1: dlock got a lock that the recipe holds");
        behind.unlock(&path).await.unwrap();
        let guard = got(last).await;
        assert!(!other_peer.try_lock(&path).await.unwrap(), "P1: the recipe got a lock that dlock holds");
        guard.release().await.unwrap();

        // A try right after the other has given it back, both ways.
        for _ in 0..10 {
            assert!(peer.try_lock(&path).await.unwrap(), "dlock has given it back");
            peer.unlock(&path).await.unwrap();
            let guard = client.lock(name).try_acquire().await.unwrap();
            guard.expect("the recipe has given it back").release().await.unwrap();
        }
        // A recipe may make the parent a node that stays.
        fx.operator().delete(&path).await;
    }
    fx.operator().delete("/warm").await;
    end(&fx).await;
}

#[tokio::test]
async fn curator_and_dlock_stand_in_one_queue() {
    stand_in_one_queue(|fx| Recipe::curator(&fx.members().addrs())).await;
}

#[tokio::test]
async fn kazoo_and_dlock_stand_in_one_queue() {
    stand_in_one_queue(|fx| Recipe::kazoo(&fx.members().addrs())).await;
}

#[tokio::test]
async fn what_is_located_is_what_the_command_line_of_the_server_shows() {
    let fx = ZkFixture::one().await;
    let client = fx.client(patient()).await;
    let name = LockName::new("a/b %2F🔒").unwrap();
    let location = client.locks.locate(&name);
    assert_eq!(location.location, "/dlock/a%2Fb%20%252F%F0%9F%94%92");
    let guard = client.lock(name.as_str()).acquire().await.unwrap();
    let shown = fx.members()[0].exec(&["ls", &location.location]).await.unwrap();
    let (_, child) = shown.rsplit_once('[').expect("a list");
    let child = child.trim().trim_end_matches(']');
    assert!(child.starts_with("_c_") && child.contains("-lock-"), "{shown}");
    let shown = fx.members()[0].exec(&["get", &format!("{}/{child}", location.location)]).await.unwrap();
    assert!(shown.contains(client.locks.owner()), "{shown}");
    guard.release().await.unwrap();
    end(&fx).await;
}
