//! Members that die, freeze, or were never there; no majority; restarts.

use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::{Client, Fixture, Setup};
use dlock_core::{AcquireError, LossReason};

use crate::setting::{client_of, client_on, end, got, leader, queue_up, soon, spawn_acquire, until, within};

/// Long enough for an election on a busy machine, and two renewals that fail on a member which is down.
const TTL: Duration = Duration::from_secs(6);

fn setup() -> Setup {
    Setup::new().ttl(TTL).request_timeout(Duration::from_secs(2))
}

#[tokio::test]
async fn one_member_that_is_down_from_the_start_is_passed_over() {
    let fx = EtcdFixture::three().await;
    fx.mark_dirty();
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
async fn a_session_opens_while_a_member_is_frozen() {
    let fx = EtcdFixture::three().await;
    let led = leader(&fx).await;
    for at in [(led + 1) % 3, (led + 2) % 3] {
        fx.members()[at].freeze().await.unwrap();
        // Whichever they try first: it takes connections, and says nothing.
        for _ in 0..6 {
            let client = fx.client(setup().request_timeout(Duration::from_secs(3))).await;
            soon("a member answers", client.locks.open()).await.unwrap();
            client.lock("opened").acquire().await.unwrap().release().await.unwrap();
            client.locks.close().await.unwrap();
        }
        fx.members()[at].thaw().await.unwrap();
    }
    end(&fx).await;
}

#[tokio::test]
async fn a_killed_leader_costs_no_lock_and_no_place() {
    // An election can take a third of this on a busy machine.
    let ttl = Duration::from_secs(10);
    let setup = || setup().ttl(ttl);
    let fx = EtcdFixture::three().await;
    for _ in 0..2 {
        let contest = Contest::new(&fx, "fought");
        let led = leader(&fx).await;
        let (holder, waiter) = (
            client_on(&fx, &setup(), &fx.addresses(), led).await,
            client_on(&fx, &setup(), &fx.addresses(), led).await,
        );
        let guard = holder.lock("held").acquire().await.unwrap();
        let waiting = queue_up(&fx, &waiter.lock("held"), 2).await;
        let fighters: Vec<Client> = vec![fx.client(setup()).await, fx.client(setup()).await];
        let fight = tokio::spawn({
            let contest = contest.clone();
            async move { contest.fight(&fighters, 2, 100).await }
        });
        fx.members()[led].kill().await.unwrap();
        // The fight goes on under the next leader, and nobody there loses a guard.
        soon("the fight ends", fight).await.unwrap();
        assert!(guard.is_held(), "a lock was lost with a leader");
        tokio::time::sleep(ttl).await;
        assert!(guard.is_held() && !waiting.is_finished(), "a lock was lost with a leader");
        guard.release().await.unwrap();
        got(waiting).await.release().await.unwrap();
        fx.members()[led].start_again().await.unwrap();
    }
    end(&fx).await;
}

#[tokio::test]
async fn a_frozen_member_costs_no_lock_and_no_place() {
    // Long enough for elections with more than one round, where the one that freezes leads.
    let ttl = TTL * 2;
    let setup = || setup().ttl(ttl);
    let fx = EtcdFixture::three().await;
    for at in [0, 1, 2, leader(&fx).await] {
        // On the member that is going to freeze, and on any.
        let on_it = [
            client_on(&fx, &setup(), &fx.addresses(), at).await,
            client_on(&fx, &setup(), &fx.addresses(), at).await,
        ];
        let other = fx.client(setup()).await;
        let guard = on_it[0].lock("held").acquire().await.unwrap();
        let waiting =
            [queue_up(&fx, &on_it[1].lock("held"), 2).await, queue_up(&fx, &other.lock("held"), 3).await];
        fx.members()[at].freeze().await.unwrap();
        tokio::time::sleep(ttl * 5 / 4).await;
        assert!(guard.is_held(), "a lock was lost with one member of three");
        let [first, second] = waiting;
        assert!(!first.is_finished() && !second.is_finished(), "P1: a held lock was granted");
        guard.release().await.unwrap();
        let next = within(ttl, "the place is kept", got(first)).await;
        assert!(!second.is_finished(), "P1: a held lock was granted");
        next.release().await.unwrap();
        got(second).await.release().await.unwrap();
        fx.members()[at].thaw().await.unwrap();
        end(&fx).await;
    }
}

#[tokio::test]
async fn without_a_majority_nothing_is_granted_and_losses_are_told() {
    let fx = EtcdFixture::three().await;
    for frozen in [false, true] {
        let client = fx.client(setup().give_up_after(TTL * 4)).await;
        let other = client_of(&fx, setup(), &[0]);
        other.locks.open().await.unwrap();
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
    let fx = EtcdFixture::three().await;
    // Longer than the restart takes.
    let patient = || Setup::new().ttl(Duration::from_secs(20)).request_timeout(Duration::from_secs(2));
    let (holder, waiter) = (fx.client(patient()).await, fx.client(patient()).await);
    let guard = holder.lock("held").acquire().await.unwrap();
    let waiting = queue_up(&fx, &waiter.lock("held"), 2).await;
    fx.restart().await;
    let renewed = holder.locks.metrics().renewals;
    until("renewals go on", async || holder.locks.metrics().renewals > renewed).await;
    assert!(guard.is_held() && !waiting.is_finished(), "a lock was lost in a restart shorter than its lease");
    guard.release().await.unwrap();
    got(waiting).await.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_client_whose_clock_jumps_knows_its_losses_first() {
    let fx = EtcdFixture::three().await;
    let (client, other) = (fx.client(setup()).await, fx.client(setup()).await);
    let guard = client.lock("jump").acquire().await.unwrap();
    let waiting = queue_up(&fx, &other.lock("jump"), 2).await;
    // A part of a lease is not the end of it: the next renewal is due at once.
    client.clock.jump(TTL / 3);
    let renewed = client.locks.metrics().renewals;
    until("it is renewed", async || client.locks.metrics().renewals > renewed).await;
    assert!(guard.is_held() && !waiting.is_finished());
    // A whole one is, whatever the store thinks.
    client.clock.jump(TTL);
    assert!(!guard.is_held());
    assert_eq!(soon("the loss is told", guard.lost()).await, LossReason::Expired);
    got(waiting).await.release().await.unwrap();
    end(&fx).await;
}
