//! The store against the session trait, on a paused clock.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::*;
use crate::backend::*;
use crate::clock::{Clock, TestClock};
use crate::error::{BackendError, ErrorKind};
use crate::holder::Holder;
use crate::name::LockName;
use crate::url::BackendUrl;

const TTL: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

fn name() -> LockName {
    LockName::new("orders/42").unwrap()
}

fn fresh() -> ClaimRef {
    static LAST: AtomicU64 = AtomicU64::new(0);
    ClaimRef { id: ClaimId::from_bits(u128::from(LAST.fetch_add(1, Ordering::Relaxed))), name: name() }
}

async fn open(store: &MemoryStore, owner: &str) -> Opened {
    open_by(store, owner, &TestClock::new()).await
}

async fn open_by(store: &MemoryStore, owner: &str, clock: &TestClock) -> Opened {
    let options = OpenOptions::new(TTL, owner, SECOND, Arc::new(clock.clone()));
    MemoryBackend::new(store).open(options).await.unwrap()
}

fn request(claim: &ClaimRef, patience: Patience) -> ClaimRequest {
    ClaimRequest::new(claim.clone(), patience, Holder::now(&format!("{}", claim.id.bits())))
}

/// A claim with a fresh id.
async fn ask(of: &Opened, patience: Patience) -> (ClaimRef, ClaimReply) {
    let claim = fresh();
    let reply = of.session.claim(request(&claim, patience)).await.unwrap();
    (claim, reply)
}

async fn hold(of: &Opened) -> (ClaimRef, Grant) {
    let (claim, reply) = ask(of, Patience::Try).await;
    (claim, granted(reply))
}

async fn look(of: &Opened, claim: &ClaimRef) -> ClaimReply {
    of.session.claim(request(claim, Patience::Queue)).await.unwrap()
}

async fn release(of: &Opened, claim: &ClaimRef) -> Released {
    of.session.release(ReleaseRequest::new(claim.clone())).await.unwrap()
}

fn granted(reply: ClaimReply) -> Grant {
    match reply {
        ClaimReply::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

fn waiting(reply: ClaimReply) -> Cookie {
    match reply {
        ClaimReply::Waiting(cookie) => cookie,
        other => panic!("not waiting: {other:?}"),
    }
}

fn busy(reply: ClaimReply) -> Busy {
    match reply {
        ClaimReply::Busy(busy) => busy,
        other => panic!("not busy: {other:?}"),
    }
}

fn kind<T: std::fmt::Debug>(answer: Result<T, BackendError>) -> ErrorKind {
    answer.unwrap_err().kind()
}

fn is_ready(future: impl Future) -> bool {
    matches!(pin!(future).poll(&mut Context::from_waker(Waker::noop())), Poll::Ready(_))
}

#[tokio::test(start_paused = true)]
async fn one_holder_and_a_queue_in_order() {
    let store = MemoryStore::new();
    let (a, b, c) = (open(&store, "a").await, open(&store, "b").await, open(&store, "c").await);
    let (first, one) = hold(&a).await;
    busy(ask(&b, Patience::Try).await.1);
    busy(ask(&a, Patience::Try).await.1); // the same session is somebody else, too
    let (second, reply) = ask(&b, Patience::Queue).await;
    let cookie = waiting(reply);
    let (third, reply) = ask(&c, Patience::Queue).await;
    waiting(reply);
    waiting(look(&b, &second).await);
    assert!(!is_ready(b.session.wait(&second, &cookie)));

    assert_eq!(release(&a, &first).await, Released::Done);
    assert_eq!(release(&a, &first).await, Released::NotFound);
    b.session.wait(&second, &cookie).await.unwrap();
    let two = granted(look(&b, &second).await);
    waiting(look(&c, &third).await);
    assert_eq!(granted(look(&b, &second).await).token, two.token, "a look changes nothing");
    release(&b, &second).await;
    let three = granted(look(&c, &third).await);
    assert!(one.token < two.token && two.token < three.token);
    assert_eq!(store.len(), 1);
    release(&c, &third).await;
    assert!(store.is_empty());
    assert_eq!(store.residue(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_waiter_leaves_the_queue() {
    let store = MemoryStore::new();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    let (held, _) = hold(&a).await;
    let (gives_up, _) = ask(&b, Patience::Queue).await;
    let (stays, _) = ask(&b, Patience::Queue).await;
    assert_eq!(release(&b, &gives_up).await, Released::Done);
    release(&a, &held).await;
    granted(look(&b, &stays).await);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_wakes_when_the_session_of_the_holder_runs_out() {
    let store = MemoryStore::new();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    let start = tokio::time::Instant::now();
    let (held, one) = hold(&a).await;
    tokio::time::sleep(4 * SECOND).await;
    let renewed = a.session.renew(&[]).await.unwrap();
    assert!(matches!(renewed.session, Some(Renewal::Extended(lease)) if lease.ttl == TTL));
    b.session.renew(&[]).await.unwrap();
    let (claim, reply) = ask(&b, Patience::Queue).await;
    let cookie = waiting(reply);
    let renewing = async {
        loop {
            tokio::time::sleep(3 * SECOND).await;
            b.session.renew(&[]).await.unwrap();
        }
    };
    tokio::select! {
        answer = b.session.wait(&claim, &cookie) => answer.unwrap(),
        () = renewing => {}
    }
    assert_eq!(start.elapsed().as_secs(), 14, "ten seconds after the renewal");
    assert!(granted(look(&b, &claim).await).token > one.token);
    assert_eq!(a.session.event().await, SessionEvent::Gone);
    assert_eq!(a.session.renew(&[]).await.unwrap().session, Some(Renewal::Gone));
    assert_eq!(kind(a.session.claim(request(&fresh(), Patience::Try)).await), ErrorKind::SessionGone);
    assert_eq!(kind(a.session.release(ReleaseRequest::new(held)).await), ErrorKind::SessionGone);
    assert_eq!(store.len(), 1, "the late release spared the successor");
}

#[tokio::test(start_paused = true)]
async fn leases_end_by_the_clock_of_the_store() {
    let clock = TestClock::new();
    let store = MemoryStore::builder().clock(Arc::new(clock.clone())).build();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    hold(&a).await;
    tokio::time::sleep(9 * SECOND).await;
    b.session.renew(&[]).await.unwrap();
    busy(ask(&b, Patience::Try).await.1);
    clock.jump(SECOND);
    hold(&b).await;
    assert_eq!(store.sessions(), [(2, "b".to_owned())]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_per_claim() {
    let store = MemoryStore::builder().leases(LeaseScope::Claim).build();
    let clock = TestClock::new();
    let (a, b) = (open_by(&store, "a", &clock).await, open(&store, "b").await);
    assert_eq!((a.lease, a.ttl), (None, TTL));
    let (held, grant) = hold(&a).await;
    assert_eq!(grant.lease.map(|lease| (lease.since, lease.ttl)), Some((clock.now(), TTL)));
    tokio::time::sleep(4 * SECOND).await;
    let answered = busy(ask(&b, Patience::Queue).await.1);
    assert_eq!(answered.retry_after, 6 * SECOND, "waiters are woken, and sleep until the lease ends at most");
    let other = fresh();
    let renewed = a.session.renew(&[held.clone(), other.clone()]).await.unwrap();
    assert_eq!(renewed.session, None);
    let [(one, Renewal::Extended(lease)), (two, Renewal::Gone)] = renewed.claims[..] else {
        panic!("{renewed:?}")
    };
    assert_eq!((one, two, lease.since), (held.id, other.id, clock.now()));
    tokio::time::sleep(9 * SECOND).await;
    busy(ask(&b, Patience::Try).await.1);
    tokio::time::sleep(SECOND).await;
    let (successor, _) = hold(&b).await;
    assert_eq!(release(&a, &held).await, Released::NotFound);
    assert_eq!(release(&b, &successor).await, Released::Done);
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_poll_misses_no_release() {
    let store = MemoryStore::builder().waiting(Waiting::Poll).build();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    let (held, _) = hold(&a).await;
    let (claim, reply) = ask(&b, Patience::Queue).await;
    let cookie = busy(reply).cookie;
    assert!(!is_ready(b.session.wait(&claim, &cookie)));
    let waits = b.session.wait(&claim, &cookie);
    let mut waits = pin!(waits);
    assert!(!is_ready(waits.as_mut()));
    release(&a, &held).await;
    hold(&a).await; // somebody else was faster, which is news all the same
    assert!(is_ready(waits));
    assert!(is_ready(b.session.wait(&claim, &cookie)), "released between the answer and the wait");
}

#[tokio::test(start_paused = true)]
async fn a_store_without_notifications_is_asked_again() {
    let poll = Duration::from_millis(50);
    let store = MemoryStore::builder().waiting(Waiting::Poll).notify(false).poll(poll).build();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    let (held, _) = hold(&a).await;
    let (claim, reply) = ask(&b, Patience::Queue).await;
    let busy = busy(reply);
    assert_eq!(busy.retry_after, poll);
    release(&a, &held).await;
    assert!(!is_ready(b.session.wait(&claim, &busy.cookie)));
}

fn settled_store() -> MemoryStore {
    MemoryStore::builder().waiting(Waiting::Poll).expiry(Expiry::Settled).build()
}

#[tokio::test(start_paused = true)]
async fn a_crash_leaves_a_debt_that_is_settled() {
    let store = settled_store();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    let (_, one) = hold(&a).await;
    assert_eq!(store.expire_session("a"), 1);
    assert_eq!(a.session.event().await, SessionEvent::Gone);

    // A try leaves the debt as it was.
    let met = busy(ask(&b, Patience::Try).await.1).debt.unwrap();
    assert_eq!(met, Debt { id: DebtId(one.token.get()), owed: TTL });
    assert_eq!(busy(ask(&b, Patience::Try).await.1).debt, Some(met.clone()));

    // Given up while it settles: the rest stays, under another name.
    let (claim, reply) = ask(&b, Patience::Queue).await;
    assert_eq!(granted(reply).owed, TTL);
    let rest = 4 * SECOND;
    let answer = b.session.release(ReleaseRequest::new(claim).unpaid(rest)).await.unwrap();
    assert_eq!(answer, Released::Done);
    let left = busy(ask(&b, Patience::Try).await.1).debt.unwrap();
    assert_eq!(left.owed, rest);
    assert_ne!(left.id, met.id);

    // Paid by who watched that very debt.
    let mut old = request(&fresh(), Patience::Try);
    old.paid = Some(met.id);
    assert_eq!(busy(b.session.claim(old).await.unwrap()).debt, Some(left.clone()));
    let mut paid = request(&fresh(), Patience::Try);
    paid.paid = Some(left.id);
    let claim = paid.claim.clone();
    assert_eq!(granted(b.session.claim(paid).await.unwrap()).owed, Duration::ZERO);
    release(&b, &claim).await;
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_debt_is_the_greater_of_what_was_inherited_and_the_own_lease() {
    let store = settled_store();
    let clock: Arc<dyn Clock> = Arc::new(TestClock::new());
    let a = MemoryBackend::new(&store).open(OpenOptions::new(3 * TTL, "a", SECOND, clock)).await.unwrap();
    let b = open(&store, "b").await;
    hold(&a).await;
    store.expire_session("a");
    let (claim, reply) = ask(&b, Patience::Queue).await;
    assert_eq!(granted(reply).owed, 3 * TTL);
    drop(b); // the connection breaks while it settles
    assert_eq!(store.residue(), ["orders/42: a debt of 30s left by token 2"]);
    let c = open(&store, "c").await;
    assert_eq!(release(&c, &claim).await, Released::NotFound);
    let (claim, _) = ask(&c, Patience::Queue).await;
    c.session.settled(&claim).await.unwrap();
    drop(c);
    assert_eq!(store.residue(), ["orders/42: a debt of 10s left by token 3"]);

    tokio::time::sleep(2 * TTL).await;
    assert_eq!(store.len(), 1);
    tokio::time::sleep(SECOND).await;
    assert!(store.is_empty(), "the store has proved it by its own clock, twice over");
}

#[tokio::test(start_paused = true)]
async fn a_queue_inherits_a_debt() {
    let store = MemoryStore::builder().expiry(Expiry::Settled).build();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    hold(&a).await;
    let (claim, reply) = ask(&b, Patience::Queue).await;
    waiting(reply);
    store.expire_session("a");
    assert_eq!(granted(look(&b, &claim).await).owed, TTL);
    b.session.settled(&claim).await.unwrap();
    assert_eq!(granted(look(&b, &claim).await).owed, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn first_in_line_unawares_and_withdrawn_leaves_the_debt() {
    let store = MemoryStore::builder().expiry(Expiry::Settled).build();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    hold(&a).await;
    let (claim, reply) = ask(&b, Patience::Queue).await;
    waiting(reply);
    store.expire_session("a");
    assert_eq!(release(&b, &claim).await, Released::Done);
    assert_eq!(store.residue(), ["orders/42: a debt of 10s left by token 2"]);
}

#[tokio::test(start_paused = true)]
async fn what_expires_by_itself_nowhere_is_taken_by_comparison() {
    for leases in [LeaseScope::Claim, LeaseScope::Session] {
        let store = MemoryStore::builder().leases(leases).expiry(Expiry::Observed).build();
        let (a, b) = (open(&store, "a").await, open(&store, "b").await);
        let (held, one) = hold(&a).await;
        let before = busy(ask(&b, Patience::Queue).await.1).observed.unwrap();
        assert_eq!(before.lease, TTL);
        a.session.renew(std::slice::from_ref(&held)).await.unwrap();
        let mut take = request(&fresh(), Patience::Try);
        take.take_if_unchanged = Some(before.version.clone());
        let seen = busy(b.session.claim(take).await.unwrap()).observed.unwrap();
        assert_ne!(seen.version, before.version, "a renewal changes the version");

        drop(a);
        tokio::time::sleep(10 * TTL).await;
        let mut take = request(&fresh(), Patience::Try);
        take.take_if_unchanged = Some(seen.version.clone());
        let taken = take.claim.clone();
        assert!(granted(b.session.claim(take).await.unwrap()).token > one.token);
        assert_eq!(release(&b, &held).await, Released::NotFound);
        assert_eq!(release(&b, &taken).await, Released::Done);
        assert!(store.is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_absence_holds() {
    let store = MemoryStore::new();
    let a = open(&store, "a").await;
    let late = fresh();
    assert!(matches!(a.session.resolve(&late).await, Ok(Resolution::Absent)));
    assert_eq!(kind(a.session.claim(request(&late, Patience::Queue)).await), ErrorKind::Refused);
    let late = fresh();
    assert_eq!(release(&a, &late).await, Released::NotFound);
    assert_eq!(kind(a.session.claim(request(&late, Patience::Queue)).await), ErrorKind::Refused);

    // Found, and then released: a second request of the same claim may still be on the way.
    let (held, grant) = hold(&a).await;
    let Resolution::Granted(found) = a.session.resolve(&held).await.unwrap() else { panic!() };
    assert_eq!(found.token, grant.token);
    release(&a, &held).await;
    assert_eq!(kind(a.session.claim(request(&held, Patience::Queue)).await), ErrorKind::Refused);
    assert!(store.is_empty());
}

#[tokio::test(start_paused = true)]
async fn waiting_claims_resolve_too() {
    let store = MemoryStore::new();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    hold(&a).await;
    let (claim, _) = ask(&b, Patience::Queue).await;
    let Resolution::Waiting(cookie) = b.session.resolve(&claim).await.unwrap() else { panic!() };
    assert!(!is_ready(b.session.wait(&claim, &cookie)));
}

#[tokio::test(start_paused = true)]
async fn a_removal_by_hand_is_told() {
    for events in [true, false] {
        let store = MemoryStore::builder().events(events).build();
        let (a, b) = (open(&store, "a").await, open(&store, "b").await);
        assert!(!store.remove_claim(name()));
        let (held, _) = hold(&a).await;
        let (next, _) = ask(&b, Patience::Queue).await;
        assert!(store.remove_claim(name()));
        assert_eq!(is_ready(a.session.event()), events);
        let renewed = a.session.renew(std::slice::from_ref(&held)).await.unwrap();
        assert!(matches!(renewed.session, Some(Renewal::Extended(_))));
        assert_eq!(renewed.claims, [(held.id, Renewal::Gone)]);
        granted(look(&b, &next).await);
        assert_eq!(store.holder_of("orders/42").unwrap().owner, next.id.bits().to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_forgets() {
    let store = MemoryStore::new();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    let (_, one) = hold(&a).await;
    let (claim, reply) = ask(&b, Patience::Queue).await;
    let cookie = waiting(reply);
    let mut waits = pin!(b.session.wait(&claim, &cookie));
    assert!(!is_ready(waits.as_mut()));
    store.forget();
    assert!(is_ready(waits));
    assert_eq!(kind(b.session.resolve(&claim).await), ErrorKind::SessionGone);
    let c = open(&store, "c").await;
    let (_, two) = hold(&c).await;
    assert!(two.token > one.token);
    store.forget_tokens_too();
    let d = open(&store, "d").await;
    assert_eq!(hold(&d).await.1.token.get(), 1);
}

#[tokio::test(start_paused = true)]
async fn closing_leaves_nothing_but_what_is_owed() {
    for leases in [LeaseScope::Session, LeaseScope::Claim] {
        let store = MemoryStore::builder().leases(leases).build();
        let a = open(&store, "a").await;
        let (held, _) = hold(&a).await;
        let other = ClaimRef { id: fresh().id, name: LockName::new("other").unwrap() };
        granted(look(&a, &other).await);
        a.session.close(vec![ReleaseRequest::new(held)]).await.unwrap();
        assert!(store.is_empty() && store.sessions().is_empty());
    }
    let store = settled_store();
    let (a, b) = (open(&store, "a").await, open(&store, "b").await);
    hold(&a).await;
    store.expire_session("a");
    let (claim, _) = ask(&b, Patience::Queue).await;
    b.session.close(vec![ReleaseRequest::new(claim).unpaid(SECOND)]).await.unwrap();
    assert_eq!(store.residue(), ["orders/42: a debt of 1s left by token 2"]);
}

#[tokio::test(start_paused = true)]
async fn prefixes_keep_applications_apart_and_show_in_the_location() {
    let mut url = BackendUrl::parse("memory:apart?prefix=a/").unwrap();
    let one = MemoryBackend::from_url(&mut url).unwrap();
    url.finish().unwrap();
    let two = MemoryBackend::named("apart");
    assert_eq!(one.locate(&name()).location, "a/orders/42");
    let options = || OpenOptions::new(TTL, "o", SECOND, Arc::new(TestClock::new()));
    let (a, b) = (one.open(options()).await.unwrap(), two.open(options()).await.unwrap());
    hold(&a).await;
    hold(&b).await;
    assert_eq!(two.store().len(), 2);
    assert!(MemoryStore::named("apart").holder_of("a/orders/42").is_some());
    assert!(MemoryStore::named("").is_empty());
    assert!(MemoryBackend::from_url(&mut BackendUrl::parse("memory:?prefix=%00").unwrap()).is_err());
}

#[tokio::test(start_paused = true)]
async fn requests_are_counted() {
    let store = MemoryStore::new();
    let a = open(&store, "a").await;
    let (held, _) = hold(&a).await;
    assert!(a.session.observe(&name()).await.unwrap().is_some());
    release(&a, &held).await;
    assert!(a.session.observe(&name()).await.unwrap().is_none());
    let requests = store.requests();
    assert_eq!((requests.open, requests.claim, requests.release, requests.observe), (1, 1, 1, 2));
    assert_eq!(requests.total(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_store_may_grant_less_than_was_asked_for() {
    let store = MemoryStore::builder().max_ttl(SECOND).build();
    let a = open(&store, "a").await;
    assert_eq!((a.ttl, a.lease.map(|lease| lease.ttl)), (SECOND, Some(SECOND)));
}
