//! Each fault against the memory store, on a paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::backend::{ClaimId, Grant, Patience};
use crate::clock::TestClock;
use crate::error::ErrorKind;
use crate::lease::LossReason;
use crate::manager::LockManager;
use crate::memory::{MemoryBackend, MemoryStore};

const TTL: Duration = Duration::from_secs(10);
const SECOND: Duration = Duration::from_secs(1);

struct Rig {
    store: MemoryStore,
    session: Arc<dyn Session>,
    faults: Faults,
}

async fn rig() -> Rig {
    let store = MemoryStore::new();
    let (backend, faults) = inject(MemoryBackend::new(&store));
    let options = OpenOptions::new(TTL, "owner", SECOND, Arc::new(TestClock::new()));
    Rig { store, session: backend.open(options).await.unwrap().session, faults }
}

fn fresh(name: &str) -> ClaimRef {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let id = ClaimId::from_bits(u128::from(LAST.fetch_add(1, Ordering::Relaxed)));
    ClaimRef { id, name: LockName::new(name).unwrap() }
}

impl Rig {
    async fn claim(&self, claim: &ClaimRef) -> Result<ClaimReply, BackendError> {
        self.session.claim(ClaimRequest::new(claim.clone(), Patience::Queue, Holder::now("owner"))).await
    }

    async fn hold(&self) -> (ClaimRef, Grant) {
        let claim = fresh("a");
        match self.claim(&claim).await {
            Ok(ClaimReply::Granted(grant)) => (claim, grant),
            other => panic!("{other:?}"),
        }
    }

    /// Whether the store holds the name, however it got there.
    fn is_taken(&self, name: &str) -> bool {
        self.store.holder_of(name).is_some()
    }
}

/// Whether an answer comes within a second.
async fn answers(request: impl Future) -> bool {
    timeout(SECOND, request).await.is_ok()
}

#[tokio::test(start_paused = true)]
async fn nothing_happens_unless_it_is_asked_for() {
    let rig = rig().await;
    let (claim, _) = rig.hold().await;
    assert_eq!(rig.session.release(ReleaseRequest::new(claim)).await.unwrap(), Released::Done);
    assert_eq!((rig.faults.count(Op::Claim), rig.faults.count(Op::Release)), (1, 1));
    assert_eq!(rig.faults.count(Op::Open), 1);
    assert_eq!(rig.store.requests().total(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_delayed_request_arrives_although_nobody_waits() {
    let rig = rig().await;
    rig.faults.delay(Op::Claim, 2 * SECOND);
    assert!(!answers(rig.claim(&fresh("a"))).await);
    assert!(!rig.is_taken("a"));
    sleep(2 * SECOND).await;
    assert!(rig.is_taken("a"));
    rig.faults.delay(Op::Claim, Duration::ZERO);
    rig.claim(&fresh("b")).await.unwrap();
    rig.faults.delay_reply(Op::Claim, 2 * SECOND);
    let start = Instant::now();
    rig.claim(&fresh("c")).await.unwrap();
    assert_eq!(start.elapsed(), 2 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn orders_are_served_in_turn() {
    let rig = rig().await;
    rig.faults.fail_next(Op::Claim, 2, ErrorKind::Unavailable);
    rig.faults.fail_next(Op::Claim, 1, ErrorKind::Refused);
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(rig.claim(&fresh("a")).await.unwrap_err().kind());
    }
    assert_eq!(kinds, [ErrorKind::Unavailable, ErrorKind::Unavailable, ErrorKind::Refused]);
    assert!(!rig.is_taken("a"));
    rig.hold().await;
}

#[tokio::test(start_paused = true)]
async fn lost_replies_and_late_requests() {
    let rig = rig().await;
    rig.faults.drop_reply_next(Op::Claim, 1);
    assert!(!answers(rig.claim(&fresh("a"))).await);
    assert!(rig.is_taken("a"));

    rig.faults.unknown_next(Op::Claim, 1);
    assert_eq!(rig.claim(&fresh("b")).await.unwrap_err().kind(), ErrorKind::Unknown);
    assert!(rig.is_taken("b"));

    rig.faults.execute_late(Op::Claim, 1, 3 * SECOND);
    assert!(!answers(rig.claim(&fresh("c"))).await);
    assert!(!rig.is_taken("c"));
    sleep(3 * SECOND).await;
    assert!(rig.is_taken("c"));

    // What was resolved as absent stays absent, however late the request comes.
    let late = fresh("d");
    rig.faults.execute_late(Op::Claim, 1, 3 * SECOND);
    assert!(!answers(rig.claim(&late)).await);
    assert!(matches!(rig.session.resolve(&late).await, Ok(Resolution::Absent)));
    sleep(3 * SECOND).await;
    assert!(!rig.is_taken("d"));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_down() {
    let rig = rig().await;
    rig.faults.fail_all(ErrorKind::Unavailable);
    assert_eq!(rig.claim(&fresh("a")).await.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(rig.session.renew(&[]).await.unwrap_err().kind(), ErrorKind::Unavailable);
    rig.faults.heal();
    rig.hold().await;
}

#[tokio::test(start_paused = true)]
async fn a_network_that_is_cut() {
    let rig = rig().await;
    rig.faults.black_hole();
    let late = fresh("a");
    assert!(!answers(rig.claim(&late)).await);
    rig.faults.heal();
    sleep(SECOND).await;
    assert!(!rig.is_taken("a"));
    rig.claim(&late).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_frozen_server_does_in_order_what_it_was_sent() {
    let rig = rig().await;
    let (held, _) = rig.hold().await;
    rig.faults.freeze();
    let (one, two) = (fresh("a"), fresh("a"));
    let release = ReleaseRequest::new(held.clone());
    assert!(!answers(rig.claim(&one)).await);
    assert!(!answers(rig.session.release(release)).await);
    assert!(!answers(rig.claim(&two)).await);
    assert_eq!(rig.store.requests().claim, 1);
    rig.faults.thaw();
    // Sent after the thaw, executed after what was sent before.
    assert!(matches!(rig.claim(&two).await, Ok(ClaimReply::Waiting(_))));
    assert!(matches!(rig.claim(&one).await, Ok(ClaimReply::Granted(_))));
}

#[tokio::test(start_paused = true)]
async fn an_answer_under_way_waits_for_the_thaw() {
    let rig = rig().await;
    rig.faults.delay_reply(Op::Claim, SECOND / 2);
    let claim = fresh("a");
    let (answered, ()) = tokio::join!(answers(rig.claim(&claim)), async { rig.faults.freeze() });
    assert!(!answered);
    assert!(rig.is_taken("a"));
}

#[tokio::test(start_paused = true)]
async fn events_and_wake_ups_stop_while_frozen() {
    let rig = rig().await;
    let (held, _) = rig.hold().await;
    let waiting = fresh("a");
    let Ok(ClaimReply::Waiting(cookie)) = rig.claim(&waiting).await else { panic!() };
    rig.faults.freeze();
    rig.store.remove_claim("a");
    assert!(!answers(rig.session.wait(&waiting, &cookie)).await);
    assert!(!answers(rig.session.event()).await);
    rig.faults.thaw();
    assert_eq!(rig.session.event().await, SessionEvent::Removed(held.id));
    rig.session.wait(&waiting, &cookie).await.unwrap();

    rig.faults.end_session();
    assert_eq!(rig.session.event().await, SessionEvent::Gone);
    assert!(!answers(rig.session.event()).await, "told once");
}

#[tokio::test(start_paused = true)]
async fn hooks_decide_by_number() {
    let rig = rig().await;
    rig.faults.on(Op::Claim, |nth| if nth == 2 { Fault::Fail(ErrorKind::Refused) } else { Fault::None });
    rig.faults.on_each(|op, _| if op == Op::Observe { Fault::BlackHole } else { Fault::None });
    rig.claim(&fresh("a")).await.unwrap();
    assert_eq!(rig.claim(&fresh("a")).await.unwrap_err().kind(), ErrorKind::Refused);
    rig.claim(&fresh("a")).await.unwrap();
    assert!(!answers(rig.session.observe(&fresh("a").name)).await);
    rig.faults.heal();
    assert!(answers(rig.session.observe(&fresh("a").name)).await);
}

#[tokio::test(start_paused = true)]
async fn a_manager_over_faults() {
    let (backend, faults) = inject(MemoryBackend::new(&MemoryStore::new()));
    let clock = TestClock::new();
    let locks = LockManager::builder(backend).clock(Arc::new(clock.clone())).build().unwrap();
    let lock = locks.lock("a").unwrap();
    faults.drop_reply_next(Op::Claim, 1);
    let first = lock.acquire().await.unwrap();
    assert_eq!(faults.count(Op::Resolve), 1);
    faults.end_session();
    assert_eq!(first.lost().await, LossReason::SessionEnded);
    let second = lock.acquire().await.unwrap();
    faults.black_hole();
    assert_eq!(second.lost().await, LossReason::Expired);
    faults.heal();
    let third = lock.acquire().await.unwrap();
    clock.jump(TTL);
    assert!(!third.is_held());
    drop((first, second, third));
    locks.close().await.unwrap();
}
