//! Members that die, freeze, are cut off, or were never there; no majority; restarts; clients that move between them.

use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Client, Fixture, Setup};
use dlock_core::{AcquireError, LossReason};
use test_servers::Server;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::setting::{
    client_of, client_on, client_over_proxy, end, got, leader_of, queue_up, renewed, soon, spawn_acquire,
    until, watches, within,
};

/// Long enough for an election on a busy machine, with one that fails before it, and two renewals that fail on a member which
/// is down.
const TTL: Duration = Duration::from_secs(15);

fn setup() -> Setup {
    Setup::new().ttl(TTL).request_timeout(Duration::from_secs(2))
}

#[tokio::test]
async fn one_member_that_is_down_from_the_start_is_passed_over() {
    let fx = ZkFixture::three().await;
    for down in [0, 2] {
        fx.members()[down].kill().await.unwrap();
        // Whichever they try first.
        for _ in 0..6 {
            let client = fx.client(setup()).await;
            let guard = soon("a member is up", client.lock("down").acquire()).await.unwrap();
            guard.release().await.unwrap();
            client.locks.close().await.unwrap();
        }
        fx.members()[down].start_again().await.unwrap();
    }
    end(&fx).await;
}

#[tokio::test]
async fn a_killed_leader_costs_no_lock_and_no_place() {
    // Now and then an election needs several rounds, of which each that fails costs five seconds.
    let setup = || setup().ttl(TTL * 2);
    let fx = ZkFixture::three().await;
    for _ in 0..2 {
        let contest = Contest::new(&fx, "fought");
        let led = leader_of(fx.members()).await;
        let ((holder, _ways), (waiter, _more)) =
            (client_on(&fx, setup(), led).await, client_on(&fx, setup(), led).await);
        let guard = holder.lock("held").acquire().await.unwrap();
        let waiting = queue_up(&fx, &waiter.lock("held"), 2).await;
        let fighters: Vec<Client> = vec![fx.client(setup()).await, fx.client(setup()).await];
        let fight = tokio::spawn({
            let contest = contest.clone();
            async move { contest.fight(&fighters, 2, 50).await }
        });
        fx.members()[led].kill().await.unwrap();
        // The fight goes on under the next leader, and nobody there loses a guard.
        soon("the fight ends", fight).await.unwrap();
        assert!(guard.is_held(), "a lock was lost with a leader");
        // Only a session that lives is renewed.
        renewed(&holder.locks, 2).await;
        renewed(&waiter.locks, 1).await;
        assert!(guard.is_held() && !waiting.is_finished(), "a lock was lost with a leader");
        guard.release().await.unwrap();
        got(waiting).await.release().await.unwrap();
        for client in [&holder, &waiter] {
            assert_eq!(client.locks.metrics().sessions_opened, 1, "the session was kept");
        }
        fx.members()[led].start_again().await.unwrap();
    }
    end(&fx).await;
}

#[tokio::test]
async fn a_frozen_member_costs_no_lock_and_no_place() {
    let fx = ZkFixture::three().await;
    for at in [0, 1, 2] {
        let ((holder, _ways), (waiter, _more)) =
            (client_on(&fx, setup(), at).await, client_on(&fx, setup(), at).await);
        let other = fx.client(setup()).await;
        let guard = holder.lock("held").acquire().await.unwrap();
        let waiting =
            [queue_up(&fx, &waiter.lock("held"), 2).await, queue_up(&fx, &other.lock("held"), 3).await];
        fx.members()[at].freeze().await.unwrap();
        renewed(&holder.locks, 3).await;
        assert!(guard.is_held(), "a lock was lost with one member of three");
        let [first, second] = waiting;
        assert!(!first.is_finished() && !second.is_finished(), "P1: a held lock was granted");
        guard.release().await.unwrap();
        let next = within(TTL, "the place is kept", got(first)).await;
        assert!(!second.is_finished(), "P1: a held lock was granted");
        next.release().await.unwrap();
        got(second).await.release().await.unwrap();
        fx.members()[at].thaw().await.unwrap();
        fx.members()[at].serves().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_partitioned_follower_is_left_without_a_loss() {
    let fx = ZkFixture::three().await;
    let leader = leader_of(fx.members()).await;
    let follower = (leader + 1) % 3;
    for silent in [true, false] {
        let ((holder, _ways), (waiter, _more)) =
            (client_on(&fx, setup(), follower).await, client_on(&fx, setup(), follower).await);
        let guard = holder.lock("held").acquire().await.unwrap();
        let waiting = queue_up(&fx, &waiter.lock("held"), 2).await;
        if silent {
            fx.members().isolate_silently(follower);
        } else {
            fx.members().isolate(follower).await.unwrap();
        }
        renewed(&holder.locks, 3).await;
        assert!(guard.is_held() && !waiting.is_finished(), "a lock was lost with one member of three");
        guard.release().await.unwrap();
        let guard = within(TTL, "the place is kept", got(waiting)).await;
        fx.members().heal().await.unwrap();
        fx.members()[follower].serves().await.unwrap();
        assert!(guard.is_held());
        guard.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn connections_that_move_keep_locks_and_places() {
    let fx = ZkFixture::three().await;
    let ((holder, holder_way), (waiter, waiter_way)) =
        (client_over_proxy(&fx, setup(), 0).await, client_over_proxy(&fx, setup(), 0).await);
    let guard = holder.lock("moved").acquire().await.unwrap();
    let waiting = queue_up(&fx, &waiter.lock("moved"), 2).await;
    let late = queue_up(&fx, &fx.client(setup()).await.lock("moved"), 3).await;
    for round in 1..7 {
        // Each watches one node: its own, or that ahead.
        until("the watches stand", async || watches(&fx).await == 3).await;
        for way in [&holder_way, &waiter_way] {
            way.set_target(fx.members()[round % 3].addr());
            way.reset_connections().await.unwrap();
        }
        let renewed = holder.locks.metrics().renewals;
        until("it is renewed there", async || holder.locks.metrics().renewals > renewed).await;
        assert!(guard.is_held() && !waiting.is_finished() && !late.is_finished());
    }
    assert_eq!(holder.locks.metrics().sessions_opened, 1, "the session was kept");
    // A release while the waiter moves is not missed.
    until("the watches stand", async || watches(&fx).await == 3).await;
    waiter_way.cut().await.unwrap();
    guard.release().await.unwrap();
    waiter_way.pass().await.unwrap();
    let guard = within(Duration::from_secs(3), "the handoff", got(waiting)).await;
    assert!(!late.is_finished());
    guard.release().await.unwrap();
    got(late).await.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn without_a_majority_nothing_is_granted_and_losses_are_told() {
    let fx = ZkFixture::three().await;
    for frozen in [false, true] {
        let client = fx.client(setup().give_up_after(TTL * 4)).await;
        let other = client_of(&fx, setup(), &[0]).await;
        let guard = client.lock("held").acquire().await.unwrap();
        for member in &fx.members()[1..] {
            if frozen {
                member.freeze().await.unwrap();
            } else {
                member.kill().await.unwrap();
            }
        }
        let tried = within(TTL, "a try ends", other.lock("free").try_acquire()).await;
        assert!(
            matches!(tried, Err(AcquireError::Unavailable { .. } | AcquireError::Unresolved { .. })),
            "a member without a majority knows nothing: {tried:?}"
        );
        let reason = within(TTL * 2, "the loss is told", guard.lost()).await;
        assert_eq!(reason, LossReason::Expired);
        let waiting = spawn_acquire(&client.lock("held"));
        for member in &fx.members()[1..] {
            if frozen {
                member.thaw().await.unwrap();
            } else {
                member.start_unawaited().await.unwrap();
            }
        }
        for member in fx.members().iter() {
            member.serves().await.unwrap();
        }
        got(waiting).await.release().await.unwrap();
        soon("the other goes on", other.lock("free").acquire()).await.unwrap().release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_restart_of_all_members_costs_no_lock_and_no_place() {
    for fx in [ZkFixture::one().await, ZkFixture::three().await] {
        // Longer than the restart takes.
        let patient = || Setup::new().ttl(Duration::from_secs(30)).request_timeout(Duration::from_secs(2));
        let (holder, waiter) = (fx.client(patient()).await, fx.client(patient()).await);
        let guard = holder.lock("held").acquire().await.unwrap();
        let waiting = queue_up(&fx, &waiter.lock("held"), 2).await;
        fx.restart().await;
        let renewed = holder.locks.metrics().renewals;
        until("renewals go on", async || holder.locks.metrics().renewals > renewed).await;
        assert!(
            guard.is_held() && !waiting.is_finished(),
            "a lock was lost in a restart shorter than its lease"
        );
        guard.release().await.unwrap();
        got(waiting).await.release().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn a_server_that_freezes_for_less_than_the_lease_costs_nothing() {
    let fx = ZkFixture::one().await;
    let setup = || Setup::new().ttl(Duration::from_secs(12)).request_timeout(Duration::from_secs(1));
    let (holder, waiter) = (fx.client(setup()).await, fx.client(setup()).await);
    let server: &Server = &fx.members()[0];
    for _ in 0..3 {
        let guard = holder.lock("held").acquire().await.unwrap();
        let waiting = queue_up(&fx, &waiter.lock("held"), 2).await;
        // Just renewed, there are two thirds of the lease left for it.
        let renewed = holder.locks.metrics().renewals;
        until("it is renewed", async || holder.locks.metrics().renewals > renewed).await;
        server.freeze().await.unwrap();
        tokio::time::sleep(Duration::from_millis(2500)).await;
        server.thaw().await.unwrap();
        let renewed = holder.locks.metrics().renewals;
        until("renewals go on", async || holder.locks.metrics().renewals > renewed).await;
        assert!(
            guard.is_held() && !waiting.is_finished(),
            "a lock was lost in a pause shorter than its lease"
        );
        guard.release().await.unwrap();
        got(waiting).await.release().await.unwrap();
        assert_eq!(holder.locks.metrics().sessions_opened, 1, "the session was kept");
    }
    end(&fx).await;
}

#[tokio::test]
async fn a_client_whose_clock_jumps_knows_its_losses_first() {
    let fx = ZkFixture::three().await;
    let (client, other) = (fx.client(Setup::new()).await, fx.client(Setup::new()).await);
    let guard = client.lock("jump").acquire().await.unwrap();
    let waiting = queue_up(&fx, &other.lock("jump"), 2).await;
    let renewed = client.locks.metrics().renewals;
    until("it is renewed", async || client.locks.metrics().renewals > renewed).await;
    // A whole lease is its end, whatever the store thinks.
    client.clock.jump(fx.profile().ttl);
    assert!(!guard.is_held());
    assert_eq!(soon("the loss is told", guard.lost()).await, LossReason::Expired);
    got(waiting).await.release().await.unwrap();
    end(&fx).await;
}

/// What answers at the session's next connections is no ZooKeeper for a while. The lease runs on, and so do its locks.
#[tokio::test]
async fn a_refusal_while_the_session_moves_costs_no_lock_and_no_place() {
    let fx = ZkFixture::one().await;
    let other = fx.client(setup()).await;
    let (client, way) = client_over_proxy(&fx, setup(), 0).await;
    let guard = client.lock("held").acquire().await.unwrap();
    let theirs = other.lock("wanted").acquire().await.unwrap();
    let waiting = queue_up(&fx, &client.lock("wanted"), 3).await;
    let foreign = TcpListener::bind("127.0.0.1:0").await.unwrap();
    way.set_target(foreign.local_addr().unwrap());
    way.cut().await.unwrap();
    way.pass().await.unwrap();
    for _ in 0..5 {
        let (mut connection, _) = soon("the client connects again", foreign.accept()).await.unwrap();
        connection.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.ok();
        connection.shutdown().await.ok();
        // Until it has been read.
        connection.read_to_end(&mut Vec::new()).await.ok();
    }
    way.set_target(fx.members()[0].addr());
    drop(foreign);
    renewed(&client.locks, 4).await;
    assert!(guard.is_held() && !waiting.is_finished(), "a lock was lost by a refusal");
    assert_eq!(client.locks.metrics().sessions_opened, 1, "the session was kept");
    guard.release().await.unwrap();
    theirs.release().await.unwrap();
    got(waiting).await.release().await.unwrap();
    end(&fx).await;
}
