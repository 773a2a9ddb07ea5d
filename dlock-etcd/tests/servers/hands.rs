//! What an operator's hand does behind the client's back.

use std::time::Duration;

use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::{Fixture, Setup};
use dlock_core::LossReason;

use crate::setting::{end, got, queue_up, soon, until, within};

/// What the hands do is seen at a renewal at the latest. A lease that runs out on a busy machine would be lost otherwise.
const TTL: Duration = Duration::from_secs(9);

fn setup() -> Setup {
    Setup::new().ttl(TTL)
}

#[tokio::test]
async fn a_revoked_lease_is_told_to_holders_and_costs_waiters_their_place_only() {
    let fx = EtcdFixture::one().await;
    let (holder, loser, last) =
        (fx.client(setup()).await, fx.client(setup()).await, fx.client(setup()).await);
    let guard = holder.lock("revoked").acquire().await.unwrap();
    let kept = loser.lock("other").acquire().await.unwrap();
    let early = queue_up(&fx, &loser.lock("revoked"), 2).await;
    let late = queue_up(&fx, &last.lock("revoked"), 3).await;
    fx.end_session(&loser).await;
    let reason = within(TTL, "the end of the lease is told", kept.lost()).await;
    assert_eq!(reason, LossReason::SessionEnded);
    // It waits again, under a new lease, behind the other one.
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
async fn a_waiter_whose_key_is_deleted_asks_again() {
    let fx = EtcdFixture::one().await;
    let (holder, waiter) = (fx.client(setup()).await, fx.client(setup()).await);
    let guard = holder.lock("deleted").acquire().await.unwrap();
    let waiting = queue_up(&fx, &waiter.lock("deleted"), 2).await;
    let key = fx.claims().await.pop().unwrap().key;
    assert_eq!(fx.operator().delete(&key).await, 1);
    // Woken by the release, it finds itself without a claim, and makes another one.
    guard.release().await.unwrap();
    let guard = got(waiting).await;
    assert_ne!(fx.claims().await[0].key, key);
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_key_that_was_deleted_and_put_again_is_not_ours() {
    let fx = EtcdFixture::one().await;
    let client = fx.client(setup()).await;
    let guard = client.lock("forged").acquire().await.unwrap();
    let key = fx.claims().await.pop().unwrap().key;
    assert_eq!(fx.operator().delete(&key).await, 1);
    fx.operator().put(&key, "").await;
    assert_eq!(within(TTL, "the loss is told", guard.lost()).await, LossReason::Removed);
    drop(guard);
    // P7: neither the loser's release nor its session's end touches what is not its own.
    client.locks.close().await.unwrap();
    assert_eq!(fx.operator().delete(&key).await, 1, "a key of somebody else was deleted");
    end(&fx).await;
}

#[tokio::test]
async fn a_session_key_that_is_deleted_ends_the_session() {
    let fx = EtcdFixture::one().await;
    let client = fx.client(setup()).await;
    let guard = client.lock("held").acquire().await.unwrap();
    let session =
        fx.operator().keys().await.into_iter().find(|entry| entry.key.contains("/.session/")).unwrap();
    assert_eq!(fx.operator().delete(&session.key).await, 1);
    // The next claim cannot be told from one that is executed late, so it goes under another session.
    let next = soon("the client goes on", client.lock("next").acquire()).await.unwrap();
    assert!(!guard.is_held() && next.is_held());
    next.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn compaction_while_waiting_changes_nothing() {
    let fx = EtcdFixture::one().await;
    let (holder, waiter) = (fx.client(setup()).await, fx.client(setup()).await);
    let guard = holder.lock("compacted").acquire().await.unwrap();
    let waiting = queue_up(&fx, &waiter.lock("compacted"), 2).await;
    for _ in 0..5 {
        fx.operator().put("elsewhere", "x").await;
        fx.operator().compact().await;
    }
    assert_eq!(fx.operator().delete("elsewhere").await, 1);
    guard.release().await.unwrap();
    let guard = within(TTL / 3, "the handoff", got(waiting)).await;
    fx.operator().compact().await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    end(&fx).await;
}

#[tokio::test]
async fn a_key_of_somebody_else_under_the_name_is_a_holder() {
    let fx = EtcdFixture::one().await;
    let client = fx.client(setup()).await;
    fx.operator().put("dlock/foreign/anything", "").await;
    assert!(client.lock("foreign").try_acquire().await.unwrap().is_none());
    let shown = client.lock("foreign").holder().await.unwrap().unwrap();
    assert_eq!(shown.owner, "lease 0");
    // Names that begin alike are others.
    let guard = client.lock("foreig").try_acquire().await.unwrap().unwrap();
    let waiting = queue_up(&fx, &client.lock("foreign"), 2).await;
    assert_eq!(fx.operator().delete("dlock/foreign/anything").await, 1);
    got(waiting).await.release().await.unwrap();
    guard.release().await.unwrap();
    end(&fx).await;
}
