//! What an operator's hand does behind the client's back.

use std::sync::Arc;
use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Fixture, Setup};
use dlock_core::LossReason;

use crate::setting::{end, got, queue_up, soon, until, within};

/// What the hands do is seen at a renewal at the latest. A lease that runs out on a busy machine would be lost otherwise.
const TTL: Duration = Duration::from_secs(9);

fn setup() -> Setup {
    Setup::new().ttl(TTL)
}

#[tokio::test]
async fn a_session_that_the_server_ends_is_told_to_holders_and_costs_waiters_their_place_only() {
    let fx = ZkFixture::one().await;
    let (holder, loser, last) =
        (fx.client(setup()).await, fx.client(setup()).await, fx.client(setup()).await);
    let guard = holder.lock("ended").acquire().await.unwrap();
    let kept = loser.lock("other").acquire().await.unwrap();
    let early = queue_up(&fx, &loser.lock("ended"), 3).await;
    let late = queue_up(&fx, &last.lock("ended"), 4).await;
    fx.end_session(&loser).await;
    let reason = within(TTL, "the end of the session is told", kept.lost()).await;
    assert_eq!(reason, LossReason::SessionEnded);
    // It waits again, under a new session, behind the other one.
    until("the waiter claims again", async || fx.claims().await.len() == 3).await;
    assert!(guard.is_held(), "the end of one session ended another");
    guard.release().await.unwrap();
    let guard = got(late).await;
    assert!(!early.is_finished(), "P1: a lost place was kept");
    guard.release().await.unwrap();
    got(early).await.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_session_that_ran_out_is_another_one_afterwards() {
    let fx = ZkFixture::one().await;
    let client = fx.client(Setup::new()).await;
    let guard = client.lock("frozen").acquire().await.unwrap();
    let session = fx.claims().await[0].session;
    client.faults.black_hole();
    assert_eq!(soon("the loss is told", guard.lost()).await, LossReason::Expired);
    client.faults.heal();
    let guard = soon("the client goes on", client.lock("frozen").acquire()).await.unwrap();
    assert_ne!(fx.claims().await.last().unwrap().session, session, "a dead session was used again");
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_waiter_whose_node_is_deleted_asks_again() {
    let fx = ZkFixture::one().await;
    let (holder, waiter) = (fx.client(setup()).await, fx.client(setup()).await);
    let guard = holder.lock("deleted").acquire().await.unwrap();
    let waiting = queue_up(&fx, &waiter.lock("deleted"), 2).await;
    let node = fx.claims().await.pop().unwrap().path;
    assert!(fx.operator().delete(&node).await);
    // Woken by the release, it finds itself without a claim, and makes another one.
    guard.release().await.unwrap();
    let guard = got(waiting).await;
    assert_ne!(fx.claims().await[0].path, node);
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_node_that_was_deleted_is_told_at_once() {
    let fx = ZkFixture::one().await;
    // No renewal comes before long.
    let client = fx.client(Setup::new().ttl(Duration::from_secs(60))).await;
    let guard = client.lock("watched").acquire().await.unwrap();
    until("the watch stands", async || crate::setting::watches(&fx).await == 1).await;
    fx.remove("watched").await;
    assert_eq!(within(Duration::from_secs(2), "the loss is told", guard.lost()).await, LossReason::Removed);
    drop(guard);
    end(&fx).await;
}

#[tokio::test]
async fn a_node_that_was_deleted_and_made_again_is_not_ours() {
    let fx = ZkFixture::one().await;
    let client = fx.client(setup()).await;
    let guard = client.lock("forged").acquire().await.unwrap();
    let node = fx.claims().await.pop().unwrap().path;
    assert!(fx.operator().delete(&node).await);
    fx.operator().create(&node, "").await;
    assert_eq!(within(TTL, "the loss is told", guard.lost()).await, LossReason::Removed);
    drop(guard);
    client.locks.close().await.unwrap();
    fx.operator().delete(&node).await;
    fx.operator().delete("/dlock/forged").await;
    end(&fx).await;
}

#[tokio::test]
async fn a_session_node_that_is_deleted_ends_the_session() {
    let fx = ZkFixture::one().await;
    let client = fx.client(setup()).await;
    let guard = client.lock("held").acquire().await.unwrap();
    let nodes = fx.operator().nodes().await;
    let own = nodes.iter().find(|node| node.path.starts_with("/dlock/.session/")).unwrap();
    assert!(fx.operator().delete(&own.path).await);
    // No beat can be proved any more, nor a claim be told from one that is executed late.
    let next = soon("the client goes on", client.lock("next").acquire()).await.unwrap();
    assert!(!guard.is_held() && next.is_held());
    next.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn what_others_put_below_a_lock_is_a_contender_or_nothing() {
    let fx = ZkFixture::one().await;
    let client = fx.client(setup()).await;
    let operator = fx.operator();
    for (name, is_contender) in [
        ("_c_0123-lock-0000000000", true),
        ("lock-0000000000", false),
        ("0123__lock__0000000000", true),
        ("lease", false),
        ("notes-locked", false),
        ("_c_0123-lock-", false),
        ("x-lock-12y", false),
        ("", false),
    ] {
        let node = format!("/dlock/foreign/{}", if name.is_empty() { "-lock-" } else { name });
        operator.create(&node, "somebody").await;
        let tried = client.lock("foreign").try_acquire().await.unwrap();
        assert_eq!(tried.is_none(), is_contender, "{node}");
        if is_contender {
            let shown = client.lock("foreign").holder().await.unwrap();
            assert!(shown.is_some(), "somebody holds it: {node}");
            let waiting = queue_up(&fx, &client.lock("foreign"), 2).await;
            assert!(operator.delete(&node).await);
            got(waiting).await.release().await.unwrap();
        } else {
            tried.unwrap().release().await.unwrap();
            assert!(operator.delete(&node).await);
        }
    }
    // It was made by hand, as a node that does not go away.
    operator.delete("/dlock/foreign").await;
    end(&fx).await;
}

#[tokio::test]
async fn parents_that_are_removed_between_operations_are_made_again() {
    let fx = Arc::new(ZkFixture::one().await);
    let clients = [fx.client(setup()).await, fx.client(setup()).await];
    let contest = Contest::new(&*fx, "swept");
    let sweeper = tokio::spawn({
        let fx = Arc::clone(&fx);
        async move {
            let operator = fx.operator();
            loop {
                operator.delete("/dlock/swept").await;
                operator.delete("/dlock").await;
                tokio::task::yield_now().await;
            }
        }
    });
    contest.fight(&clients, 2, 50).await;
    sweeper.abort();
    // With nobody else about, the parent is gone before each.
    for tries in [true, false].repeat(10) {
        fx.operator().delete("/dlock/swept").await;
        let lock = contest.lock(&clients[0]);
        let guard =
            if tries { lock.try_acquire().await.unwrap().unwrap() } else { lock.acquire().await.unwrap() };
        guard.release().await.unwrap();
    }
    end(&fx).await;
}
