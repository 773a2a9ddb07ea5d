//! What the rows of the lock file mean: grants, expiry, other clocks, renewal, release, and what is left behind.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use common::{Place, TTL, busy, claim, claim_ref, granted, request};
use dlock_core::{
    Backend as _, ClaimReply, Clock as _, ErrorKind, Lease, LockName, ReleaseRequest, Released, Renewal,
    Resolution, Session, SystemClock, Version,
};

fn release(name: &str, id: u128) -> ReleaseRequest {
    ReleaseRequest::new(claim_ref(name, id))
}

async fn renewal(session: &dyn Session, name: &str, id: u128) -> Renewal {
    session.renew(&[claim_ref(name, id)]).await.unwrap().claims[0].1
}

/// The end of a lease that starts now, as it is written.
fn expiry(place: &Place) -> i64 {
    i64::try_from(place.clock.now().plus(TTL).as_nanos()).unwrap()
}

/// Polls once, so that the request is sent.
fn start<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) {
    assert!(future.poll(&mut Context::from_waker(Waker::noop())).is_pending());
}

#[tokio::test]
async fn a_held_lock_is_one_row_and_a_free_one_is_none() {
    let place = Place::new();
    let session = place.session().await;
    assert_eq!(place.rows(), 0);
    let grant = granted(&*session, "orders/42", 0xabc).await;
    assert_eq!(grant.lease, Some(Lease::new(place.clock.now(), TTL)));
    assert_eq!(grant.owed, Duration::ZERO);
    let row: (String, String, i64, i64, i64, i64, String, String) = place
        .look()
        .query_row(
            "SELECT name, claim, token, version, lease_ms, expires_ns, clock, holder FROM claim",
            [],
            |row| row.try_into(),
        )
        .unwrap();
    let expected = (
        "orders/42".to_owned(),
        "00000000000000000000000000000abc".to_owned(),
        i64::try_from(grant.token.get()).unwrap(),
        1,
        10_000,
        expiry(&place),
        "this".to_owned(),
        r#"{"owner":"worker-7","since_ms":1767225600000}"#.to_owned(),
    );
    assert_eq!(row, expected);
    assert_eq!(session.release(release("orders/42", 0xabc)).await.unwrap(), Released::Done);
    assert_eq!(place.rows(), 0);
    assert_eq!(session.release(release("orders/42", 0xabc)).await.unwrap(), Released::NotFound);
}

#[tokio::test]
async fn a_held_lock_is_busy_for_every_session() {
    let place = Place::new();
    let (one, two) = (place.session().await, place.session().await);
    granted(&*one, "a", 1).await;
    for session in [&one, &two] {
        let busy = busy(claim(&**session, "a", 2).await);
        assert_eq!(busy.observed, None);
        assert_eq!(busy.debt, None);
        assert!((10..=30).contains(&busy.retry_after.as_millis()), "{busy:?}");
    }
    place.clock.advance(TTL.saturating_sub(Duration::from_millis(3)));
    assert_eq!(
        busy(claim(&*two, "a", 3).await).retry_after,
        Duration::from_millis(3),
        "no later than the lease ends"
    );
    granted(&*two, "b", 4).await;
}

#[tokio::test]
async fn names_and_prefixes_do_not_alias() {
    let place = Place::new();
    let session = place.session().await;
    let names = [
        "a",
        "A",
        "a ",
        "a/b",
        "a%2Fb",
        "..",
        "{x}",
        "'; DROP TABLE claim; --",
        "é",
        "e\u{301}",
        "🔒",
        "%",
        "_",
    ];
    for (id, name) in (1..).zip(names) {
        granted(&*session, name, id).await;
    }
    assert_eq!(place.rows(), i64::try_from(names.len()).unwrap());
    let prefixed = dlock_sqlite::SqliteBackend::builder(&place.path).prefix("shop/").clock_id("this").build();
    let other = prefixed.open(place.options()).await.unwrap().session;
    granted(&*other, "a", 100).await;
    assert!(other.observe(&LockName::new("A").unwrap()).await.unwrap().is_none());
}

#[tokio::test]
async fn an_expired_lease_is_replaced_by_a_greater_token() {
    let place = Place::new();
    let (frozen, other) = (place.session().await, place.session().await);
    let first = granted(&*frozen, "a", 1).await;
    place.clock.advance(TTL.saturating_sub(Duration::from_nanos(1)));
    busy(claim(&*other, "a", 2).await);
    place.clock.advance(Duration::from_nanos(1));
    let second = granted(&*other, "a", 3).await;
    assert!(second.token > first.token);
    // The frozen holder wakes: nothing that it does touches the successor.
    assert_eq!(renewal(&*frozen, "a", 1).await, Renewal::Gone);
    assert_eq!(frozen.release(release("a", 1)).await.unwrap(), Released::NotFound);
    assert!(matches!(frozen.resolve(&claim_ref("a", 1)).await.unwrap(), Resolution::Absent));
    assert!(matches!(renewal(&*other, "a", 3).await, Renewal::Extended(_)));
}

#[tokio::test]
async fn renewal_moves_the_expiry_and_raises_the_version() {
    let place = Place::new();
    let session = place.session().await;
    granted(&*session, "a", 1).await;
    for round in 2..12 {
        place.clock.advance(TTL.saturating_sub(Duration::from_secs(1)));
        assert_eq!(renewal(&*session, "a", 1).await, Renewal::Extended(Lease::new(place.clock.now(), TTL)));
        let (version, expires): (i64, i64) = place
            .look()
            .query_row("SELECT version, expires_ns FROM claim", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .unwrap();
        assert_eq!((version, expires), (round, expiry(&place)));
    }
    place.look().execute("DELETE FROM claim", []).unwrap();
    assert_eq!(renewal(&*session, "a", 1).await, Renewal::Gone, "removed by hand");
    assert_eq!(place.rows(), 0, "a renewal makes nothing anew");
}

#[tokio::test]
async fn a_lease_that_is_over_is_not_revived() {
    let place = Place::new();
    let session = place.session().await;
    granted(&*session, "a", 1).await;
    place.clock.advance(TTL);
    assert_eq!(renewal(&*session, "a", 1).await, Renewal::Gone);
}

#[tokio::test]
async fn the_row_outlives_the_guard_when_the_write_lock_was_waited_for() {
    let place = Place::new();
    let session = place.session().await;
    let asked = place.clock.now();
    let blocker = place.blocker();
    let mut reply = pin!(session.claim(request("a", 1)));
    start(reply.as_mut());
    place.clock.advance(Duration::from_secs(2));
    drop(blocker);
    let ClaimReply::Granted(grant) = reply.await.unwrap() else { panic!("free") };
    assert_eq!(grant.lease, Some(Lease::new(asked, TTL)), "the guard counts from before the request");
    let expires: i64 = place.look().query_row("SELECT expires_ns FROM claim", [], |row| row.get(0)).unwrap();
    assert_eq!(expires, expiry(&place), "the row counts from the transaction");
}

#[tokio::test]
async fn a_row_of_another_boot_is_taken_only_by_comparing() {
    let place = Place::new();
    let (other, _) = place.other_boot().await;
    let session = place.session().await;
    let first = granted(&*other, "a", 1).await;
    let seen = busy(claim(&*session, "a", 2).await).observed.expect("its life cannot be told");
    assert_eq!(seen.lease, TTL);
    // Its clock says nothing here, however far ours moves.
    place.clock.advance(TTL * 1_000_000);
    assert_eq!(busy(claim(&*session, "a", 3).await).observed.unwrap(), seen);

    renewal(&*other, "a", 1).await;
    let mut take = request("a", 4);
    take.take_if_unchanged = Some(seen.version.clone());
    let renewed = busy(session.claim(take).await.unwrap()).observed.expect("it was renewed, so it lives");
    assert_ne!(renewed.version, seen.version);

    let mut take = request("a", 5);
    take.take_if_unchanged = Some(renewed.version);
    let ClaimReply::Granted(grant) = session.claim(take).await.unwrap() else { panic!("unchanged") };
    assert!(grant.token > first.token);
    assert_eq!(renewal(&*other, "a", 1).await, Renewal::Gone);
    assert_eq!(other.release(release("a", 1)).await.unwrap(), Released::NotFound);
}

#[tokio::test]
async fn versions_differ_between_claims() {
    let place = Place::new();
    let (other, _) = place.other_boot().await;
    let session = place.session().await;
    granted(&*other, "a", 1).await;
    let one = busy(claim(&*session, "a", 2).await).observed.unwrap().version;
    other.release(release("a", 1)).await.unwrap();
    granted(&*other, "a", 3).await;
    let two = busy(claim(&*session, "a", 4).await).observed.unwrap().version;
    assert_ne!(one, two, "both are renewed as often, that is never");
}

#[tokio::test]
async fn a_version_is_no_key_to_a_living_holder() {
    let place = Place::new();
    let (one, two) = (place.session().await, place.session().await);
    granted(&*one, "a", 1).await;
    let mut take = request("a", 2);
    take.take_if_unchanged = Some(Version::new(format!("{}.1", claim_ref("a", 1).id)));
    assert_eq!(busy(two.claim(take).await.unwrap()).observed, None);
}

#[tokio::test]
async fn a_row_from_beyond_the_clock_is_not_believed() {
    let place = Place::new();
    let session = place.session().await;
    granted(&*session, "a", 1).await;
    // As from a restored snapshot of the machine: the same boot, a later time.
    place.look().execute("UPDATE claim SET expires_ns = expires_ns + 1", []).unwrap();
    assert!(busy(claim(&*session, "a", 2).await).observed.is_some());
}

#[tokio::test]
async fn sessions_without_a_common_clock_observe_each_other() {
    let place = Place::new();
    let backend = dlock_sqlite::SqliteBackend::new(&place.path);
    let one = backend.open(place.options()).await.unwrap().session;
    let two = backend.open(place.options()).await.unwrap().session;
    granted(&*one, "a", 1).await;
    assert!(
        busy(claim(&*two, "a", 2).await).observed.is_some(),
        "a test's clock is not taken for the machine's"
    );
}

#[tokio::test]
async fn a_grant_that_nobody_takes_is_found_by_resolve() {
    let place = Place::new();
    let session = place.session().await;
    {
        let blocker = place.blocker();
        let mut reply = pin!(session.claim(request("a", 1)));
        start(reply.as_mut());
        drop(blocker);
        // Done after the claim, so the answer to that one lies there, and is dropped unread.
        assert!(session.observe(&LockName::new("a").unwrap()).await.unwrap().is_some());
    }
    assert!(matches!(session.resolve(&claim_ref("a", 1)).await.unwrap(), Resolution::Absent));
    assert_eq!(place.rows(), 0);
}

#[tokio::test]
async fn a_dropped_claim_leaves_nothing() {
    let place = Place::new();
    let session = place.session().await;
    let blocker = place.blocker();
    for id in 1..10 {
        let mut reply = pin!(session.claim(request("a", id)));
        start(reply.as_mut());
    }
    drop(blocker);
    // Done after all of them.
    assert!(session.observe(&LockName::new("a").unwrap()).await.unwrap().is_none());
    assert_eq!(place.rows(), 0);
}

#[tokio::test]
async fn resolve_spares_a_successor() {
    let place = Place::new();
    let (one, two) = (place.session().await, place.session().await);
    granted(&*one, "a", 1).await;
    assert!(matches!(two.resolve(&claim_ref("a", 2)).await.unwrap(), Resolution::Absent));
    assert!(matches!(renewal(&*one, "a", 1).await, Renewal::Extended(_)));
}

#[tokio::test]
async fn a_file_that_others_write_is_unavailable_and_waiters_still_look() {
    let place = Place::new();
    let mut options = place.options();
    options.request_timeout = Duration::from_millis(20);
    let session = place.backend().open(options).await.unwrap().session;
    granted(&*session, "held", 1).await;
    let blocker = place.blocker();
    let error = session.claim(request("free", 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("written by another process"), "{error}");
    assert_eq!(session.renew(&[claim_ref("held", 1)]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    // Those who would be told busy need no write lock.
    busy(claim(&*session, "held", 3).await);
    drop(blocker);
    granted(&*session, "free", 4).await;
}

#[tokio::test]
async fn close_leaves_nothing_and_lets_go_of_the_file() {
    let place = Place::new();
    let session = place.session().await;
    for id in 1..4 {
        granted(&*session, &id.to_string(), id).await;
    }
    session.close((1..4).map(|id| release(&id.to_string(), id)).collect()).await.unwrap();
    assert!(!place.folder.path().join("locks.db-wal").exists(), "the last connection removes the log");
    assert_eq!(place.rows(), 0);
    assert_eq!(session.claim(request("a", 9)).await.unwrap_err().kind(), ErrorKind::SessionGone);
}

#[tokio::test]
async fn a_dropped_session_lets_go_of_the_file() {
    let place = Place::new();
    let session = place.session().await;
    granted(&*session, "a", 1).await;
    drop(session);
    tokio::time::timeout(Duration::from_secs(10), async {
        while place.folder.path().join("locks.db-wal").exists() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(place.rows(), 1, "what was held expires by itself");
}

#[tokio::test]
async fn people_can_see_who_holds_a_lock() {
    let place = Place::new();
    let (session, name) = (place.session().await, LockName::new("a").unwrap());
    assert!(session.observe(&name).await.unwrap().is_none());
    granted(&*session, "a", 1).await;
    assert_eq!(session.observe(&name).await.unwrap().unwrap().owner, "worker-7");
    let (other, _) = place.other_boot().await;
    place.clock.advance(TTL);
    assert!(session.observe(&name).await.unwrap().is_none(), "its lease is over");
    assert!(other.observe(&name).await.unwrap().is_some(), "who cannot tell shows it");
}

#[tokio::test]
async fn a_file_that_is_taken_away_ends_the_session() {
    let place = Place::new();
    let session = place.session().await;
    // As if the file had been made an hour ago.
    place.look().execute("UPDATE counter SET last = last - 3600000000", []).unwrap();
    let before = granted(&*session, "a", 1).await;
    for file in ["locks.db", "locks.db-wal", "locks.db-shm"] {
        std::fs::remove_file(place.folder.path().join(file)).unwrap();
    }
    let error = session.renew(&[claim_ref("a", 1)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionGone);
    assert!(error.to_string().contains("removed or replaced"), "{error}");
    let new = place.session().await;
    let error = session.claim(request("b", 2)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionGone, "also when there is a new file");
    assert!(
        granted(&*new, "a", 3).await.token > before.token,
        "tokens of a new file start at the wall clock"
    );
    session.close(vec![release("a", 3)]).await.unwrap();
    assert_eq!(place.rows(), 1);
}

#[tokio::test]
async fn ten_thousand_claims_are_renewed_at_once() {
    let place = Place::new();
    let session = place.session().await;
    let claims: Vec<_> = (0..10_000).map(|id| claim_ref(&format!("order-{id}"), id)).collect();
    for claim in &claims {
        granted(&*session, claim.name.as_str(), claim.id.bits()).await;
    }
    let began = SystemClock.now();
    let answers = session.renew(&claims).await.unwrap().claims;
    let took = SystemClock.now().since(began);
    println!("10,000 claims renewed in {took:?}");
    assert!(answers.iter().all(|(_, renewal)| matches!(renewal, Renewal::Extended(_))));
    assert_eq!(answers.len(), claims.len());
    assert!(took < TTL / 3, "{took:?}");
    session.close(claims.into_iter().map(ReleaseRequest::new).collect()).await.unwrap();
    assert_eq!(place.rows(), 0);
}

#[tokio::test]
async fn what_crashed_holders_left_is_swept() {
    let place = Place::new();
    let crashed = place.session().await;
    for id in 0..50 {
        granted(&*crashed, &format!("once-{id}"), id).await;
    }
    let (before_reboot, _) = place.other_boot().await;
    granted(&*before_reboot, "dead", 100).await;
    granted(&*before_reboot, "alive", 101).await;
    place.clock.advance(TTL);
    let session = place.session().await;
    granted(&*session, "x", 200).await;
    assert_eq!(place.rows(), 3, "x and the two whose end cannot be told yet");
    for round in 0..4 {
        renewal(&*before_reboot, "alive", 101).await;
        place.clock.advance(TTL / 2);
        assert!(matches!(renewal(&*session, "x", 200).await, Renewal::Extended(_)), "round {round}");
    }
    let names: Vec<String> = place
        .look()
        .prepare("SELECT name FROM claim ORDER BY name")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(names, ["alive", "x"], "unchanged for its lease: dead; renewed meanwhile: alive");
}

#[tokio::test]
async fn names_used_once_leave_the_file_no_larger() {
    let place = Place::new();
    let session = place.session().await;
    granted(&*session, "first", 0).await;
    session.close(vec![release("first", 0)]).await.unwrap();
    let size = |place: &Place| std::fs::metadata(&place.path).unwrap().len();
    let before = size(&place);

    let session: Arc<dyn Session> = place.session().await;
    let mut log = 0;
    for batch in 0..20_u128 {
        let claims: Vec<_> =
            (0..1000).map(|n| claim_ref(&format!("order-{batch}-{n}"), batch * 1000 + n)).collect();
        for claim in &claims {
            granted(&*session, claim.name.as_str(), claim.id.bits()).await;
        }
        for claim in claims {
            session.release(ReleaseRequest::new(claim)).await.unwrap();
        }
        log = log.max(std::fs::metadata(place.folder.path().join("locks.db-wal")).unwrap().len());
    }
    assert!(log < 8 << 20, "the log is written back again and again: {log} bytes");
    session.close(Vec::new()).await.unwrap();
    assert_eq!(size(&place), before);
}
