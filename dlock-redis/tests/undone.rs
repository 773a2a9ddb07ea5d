//! Requests whose answers fail to come at the worst moment: nothing is left behind, and a failure is not told as
//! contention.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::{Backend as _, ClaimReply, ErrorKind, ReleaseRequest};
use support::{
    Flavour, backend, claim, granted, options, request, residue, servers, session, settle, settled, until,
};
use test_servers::{Direction, Lease, Protocol, Proxy, Server};

/// Longer than anything here is waited for: what is left behind does not expire in time to be overlooked.
const TTL: Duration = Duration::from_secs(30);

/// Nodes, and doors to them that count.
struct Rig {
    servers: Lease<Vec<Server>>,
    doors: Vec<Proxy>,
}

impl Rig {
    async fn new(nodes: usize) -> Self {
        let servers = servers(Flavour::Redis8, 5).await;
        let mut doors = Vec::new();
        for server in &servers[..nodes] {
            doors.push(Proxy::speaking(Protocol::Redis, server.addr()).await.unwrap());
        }
        let rig = Self { servers, doors };
        settle(rig.nodes(), &backend(&support::url(rig.nodes(), ""))).await;
        rig
    }

    fn nodes(&self) -> &[Server] {
        &self.servers[..self.doors.len()]
    }

    /// The URL that leads through the doors.
    fn url(&self) -> String {
        let addresses: Vec<_> = self.doors.iter().map(|door| door.addr().to_string()).collect();
        match &*addresses {
            [one] => format!("redis://{one}"),
            _ => format!("redis+redlock://{}?node_timeout=1s", addresses.join(",")),
        }
    }

    async fn nothing_is_left(&self) {
        until("nothing is left", async || {
            for server in self.nodes() {
                if !residue(server).await.is_empty() {
                    return false;
                }
            }
            true
        })
        .await;
    }
}

/// Waits until a script was called so often through a door.
async fn called(door: &Proxy, times: u64) {
    door.counted(move |counts| counts.requests.get("EVALSHA") >= Some(&times)).await.unwrap();
}

/// Has the counter of a claim's name be ahead of every clock, at each node by another distance.
async fn set_counters_apart(rig: &Rig, name: &str) {
    let session = session(&settled(rig.nodes(), "").await, TTL).await;
    let first = claim(name);
    let token = granted(&*session, &first).await.token.get();
    session.release(ReleaseRequest::new(first)).await.unwrap();
    let counter = rig.servers[0].exec(&["KEYS", "dlock:fence:*"]).await.unwrap();
    for (node, server) in rig.nodes().iter().enumerate() {
        let ahead = token + 3_600_000_000 * (node as u64 + 1);
        server.exec(&["SET", counter.trim(), &ahead.to_string()]).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ballot_that_fails_is_a_failure_and_no_contention() {
    let rig = Rig::new(3).await;
    set_counters_apart(&rig, "x").await;
    let session = session(&backend(&rig.url()), TTL).await;
    for door in &rig.doors {
        door.reset_counts();
        door.black_hole(Direction::ToClient);
    }
    let contender = tokio::spawn({
        let session = session.clone();
        async move { session.claim(request(&claim("x"))).await }
    });
    // All have granted, and differ; of what comes next nothing arrives.
    for door in &rig.doors {
        called(door, 1).await;
        door.black_hole(Direction::ToServer);
    }
    rig.doors.iter().for_each(|door| door.flow(Direction::ToClient));
    let error = contender.await.unwrap().expect_err("nobody else wants the lock");
    assert!(matches!(error.kind(), ErrorKind::Unknown), "{error:?}");
    assert!(error.to_string().contains("did not answer"), "{error}");
    for door in &rig.doors {
        door.pass().await.unwrap();
    }
    rig.nothing_is_left().await;
    granted(&*session, &claim("x")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_for_nothing_is_taken_back_again_if_the_first_time_fails() {
    let rig = Rig::new(3).await;
    let holder = session(&backend(&support::url(rig.nodes(), "")), TTL).await;
    let held = claim("x");
    granted(&*holder, &held).await;
    let key = "dlock:lock:x";
    rig.servers[0].exec(&["DEL", key]).await.unwrap();
    let session = session(&backend(&rig.url()), TTL).await;
    for door in &rig.doors[1..] {
        door.black_hole(Direction::ToClient);
    }
    rig.doors.iter().for_each(Proxy::reset_counts);
    let contender = tokio::spawn({
        let session = session.clone();
        async move { session.claim(request(&claim("x"))).await }
    });
    // The first has granted, and takes no release.
    rig.doors[0].counted(|counts| counts.round_trips >= 1).await.unwrap();
    rig.doors[0].black_hole(Direction::ToServer);
    rig.doors[1..].iter().for_each(|door| door.flow(Direction::ToClient));
    assert!(matches!(contender.await.unwrap(), Ok(ClaimReply::Busy(_))));
    rig.doors[0].reset_connections().await.unwrap();
    rig.doors[0].pass().await.unwrap();
    until("it was taken back", async || rig.servers[0].exec(&["EXISTS", key]).await.unwrap().trim() == "0")
        .await;
    holder.release(ReleaseRequest::new(held)).await.unwrap();
    rig.nothing_is_left().await;
}

/// A node that has forgotten the scripts is sent them again, but no grant of a claim that was given up meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_is_not_sent_again_behind_its_release() {
    let rig = Rig::new(1).await;
    let (server, door) = (&rig.servers[0], &rig.doors[0]);
    let session = backend(&rig.url()).open(options(TTL)).await.unwrap().session;
    for round in 0..5 {
        server.exec(&["SCRIPT", "FLUSH"]).await.unwrap();
        door.reset_counts();
        door.black_hole(Direction::ToClient);
        let given_up = tokio::spawn({
            let session = session.clone();
            async move { session.claim(request(&claim("x"))).await.map(drop) }
        });
        called(door, 1).await;
        given_up.abort();
        assert!(given_up.await.unwrap_err().is_cancelled());
        // The release is on its way too; neither script is known.
        called(door, 2).await;
        door.flow(Direction::ToClient);
        called(door, 3).await;
        // On a connection of its own, which takes some round trips: what was to be sent again is sent before.
        assert!(session.observe(&claim("x").name).await.unwrap().is_none());
        let counts = door.counts();
        assert_eq!(counts.requests["EVALSHA"], 4, "round {round}: GRANT, RELEASE twice, LOOK");
        rig.nothing_is_left().await;
    }
}
