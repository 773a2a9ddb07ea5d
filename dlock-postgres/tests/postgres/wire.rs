//! Connections that are cut, go silent, or lose an answer; and how many messages it takes when nothing is wrong.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use dlock_core::{Clock as _, ErrorKind, LockManager, LossReason, Patience, Renewal, Resolution};
use dlock_postgres::PostgresBackend;
use dlock_postgres::sqlx::ConnectOptions as _;
use test_servers::{Direction, Protocol, Proxy, Server, Then};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::place::{
    Look, Place, TTL, Witnessed, at, busy, claim_ref, clock, granted, options, postgres, queue, release,
    request, session, try_claim, until, witness,
};

/// A way to the place that can be broken.
async fn way(place: &Place) -> (Proxy, PostgresBackend) {
    let proxy = Proxy::speaking(Protocol::Postgres, place.server.addr()).await.unwrap();
    let backend = PostgresBackend::new(at(proxy.addr(), &place.database));
    (proxy, backend)
}

#[tokio::test]
async fn each_request_is_one_round_trip() {
    let place = Place::new().await;
    let (proxy, backend) = way(&place).await;
    let (one, other) =
        (session(&backend, TTL * 5).await.unwrap(), session(&place.backend(), TTL * 5).await.unwrap());
    let statements = |proxy: &Proxy| {
        let counts = proxy.counts();
        let sent = |name: &str| counts.requests.get(name).copied().unwrap_or(0);
        assert_eq!(sent("Parse"), 0, "statements are prepared when the session is opened: {counts:?}");
        (sent("Execute"), sent("Sync"), counts.round_trips)
    };
    // The first renewal also looks for what others left.
    one.renew(&[]).await.unwrap();
    until("it has looked", async || {
        proxy.reset_counts();
        one.renew(&[]).await.unwrap();
        proxy.counts().requests.get("Execute") == Some(&1)
    })
    .await;
    for number in 0..100 {
        proxy.reset_counts();
        granted(&*one, &format!("held/{number}"), number).await;
        assert_eq!(statements(&proxy), (1, 1, 1), "acquire, free");
    }
    proxy.reset_counts();
    one.renew(&[]).await.unwrap();
    assert_eq!(statements(&proxy), (1, 1, 1), "a renewal, whatever is held");
    granted(&*other, "theirs", 200).await;
    proxy.reset_counts();
    busy(try_claim(&*one, "theirs", 201).await);
    assert_eq!(statements(&proxy), (1, 1, 1), "a try, busy");
    proxy.reset_counts();
    release(&*one, "held/1", 1).await;
    assert_eq!(statements(&proxy), (1, 1, 1), "a release");
}

#[tokio::test]
async fn nothing_waits_for_the_disk() {
    // The server writes by itself what nobody waits for, and not so often here that it could be taken for waiting.
    let server = Server::start(postgres().config("wal_writer_delay = 10s")).await.unwrap();
    let one = session(&PostgresBackend::new(options(&server, "postgres")), TTL * 5).await.unwrap();
    granted(&*one, "a", 1).await;
    release(&*one, "a", 1).await;
    let mut look = Look(options(&server, "postgres").connect().await.unwrap());
    let position = "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint";
    let syncs = "SELECT wal_sync FROM pg_stat_wal";
    let (before, synced) = (look.number(position).await, look.number(syncs).await);
    for number in 2..1002 {
        granted(&*one, "a", number).await;
        release(&*one, "a", number).await;
    }
    let written = look.number(position).await - before;
    // Two commit records each, of 34 bytes or so, which nobody waits for.
    assert!(written < 1000 * 2 * 120, "{written} bytes of log for 1000 acquisitions");
    // A process of the server has told what it did when it is gone.
    one.close(Vec::new()).await.unwrap();
    let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test:1'";
    until("it is gone", async || look.number(sessions).await == 0).await;
    let of_locks = look.number(syncs).await - synced;
    assert!(of_locks < 100, "the log was synced {of_locks} times for 1000 acquisitions");
    // What does wait is counted, one by one.
    look.run("SET synchronous_commit = on; CREATE TABLE public.waits (number bigint)").await;
    let synced = look.number(syncs).await;
    for number in 0..200 {
        look.run(format!("INSERT INTO public.waits VALUES ({number})")).await;
    }
    look.run("SELECT pg_stat_force_next_flush()").await;
    let of_writes = look.number(syncs).await - synced;
    assert!(
        of_writes >= 150,
        "the log was synced {of_writes} times for 200 commits: it does not show who waits"
    );
}

/// What is sent in part would keep the server waiting in a transaction, with the lock.
#[tokio::test(flavor = "multi_thread")]
async fn each_request_is_one_write() {
    let place = Place::new().await;
    let (addr, mut writes) = tap(place.server.addr()).await;
    let one = session(&PostgresBackend::new(at(addr, &place.database)), TTL * 15).await.unwrap();
    // The first renewal also looks for what others left, and the second one is answered after that.
    one.renew(&[]).await.unwrap();
    one.renew(&[]).await.unwrap();
    while writes.try_recv().is_ok() {}
    // Two writes may be read as one, when it is long until that is done, but not a hundred times.
    for number in 0..100 {
        granted(&*one, "a", number).await;
        release(&*one, "a", number).await;
        for what in ["a claim", "a release"] {
            let bytes = writes.try_recv().expect("it was sent");
            assert!(bytes[0] == b'B', "{what} is one write, from its Bind on: {bytes:?}");
            assert!(bytes.ends_with(b"S\0\0\0\x04"), "{what} is one write, with its Sync: {bytes:?}");
        }
        assert!(writes.try_recv().is_err(), "one write each");
    }
}

/// A way to a server that tells what it reads from clients, each read by itself.
async fn tap(server: SocketAddr) -> (SocketAddr, mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, told) = mpsc::unbounded_channel();
    drop(tokio::spawn(async move {
        loop {
            let (client, _) = listener.accept().await.unwrap();
            let server = TcpStream::connect(server).await.unwrap();
            let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
                (client.into_split(), server.into_split());
            drop(tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await }));
            let tell = tell.clone();
            drop(tokio::spawn(async move {
                let mut bytes = vec![0; 64 * 1024];
                loop {
                    let read = from_client.read(&mut bytes).await?;
                    if read == 0 {
                        return to_server.shutdown().await;
                    }
                    // A connection that only helped to open the session may still take its leave.
                    if bytes[..read] != *b"X\0\0\0\x04" {
                        drop(tell.send(bytes[..read].to_vec()));
                    }
                    to_server.write_all(&bytes[..read]).await?;
                }
            }));
        }
    }));
    (addr, told)
}

#[tokio::test]
async fn a_lost_answer_is_found_out_or_ends_the_session() {
    for then in [Then::Silence, Then::Cut] {
        let place = Place::new().await;
        let (proxy, backend) = way(&place).await;
        let locks = LockManager::builder(backend).ttl(TTL).owner("one").build().unwrap();
        locks.open().await.unwrap();
        let lock = locks.lock("a").unwrap();
        proxy.drop_next_reply(then);
        // The first claim is executed and not answered. What follows is a new session, which settles it.
        let guard = tokio::time::timeout(TTL * 10, lock.acquire()).await.expect("in time").unwrap();
        assert!(guard.is_held());
        let mut look = place.look().await;
        guard.release().await.unwrap();
        until("nothing is left", async || look.rows().await + look.advisory_locks().await == 0).await;
    }
}

#[tokio::test]
async fn a_lost_answer_to_a_release_gives_the_lock_back() {
    for then in [Then::Silence, Then::Cut] {
        let place = Place::new().await;
        let (proxy, backend) = way(&place).await;
        let locks = LockManager::builder(backend).ttl(TTL).owner("one").build().unwrap();
        let guard = locks.lock("a").unwrap().acquire().await.unwrap();
        proxy.drop_next_reply(then);
        drop(
            tokio::time::timeout(TTL * 3, guard.release())
                .await
                .expect("it is answered one way or the other"),
        );
        let other = place.manager("other");
        let guard = tokio::time::timeout(TTL * 4, other.lock("a").unwrap().acquire()).await.expect("in time");
        assert!(guard.unwrap().is_held());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_connection_is_given_up_before_its_lock_passes_on() {
    for direction in [Direction::ToServer, Direction::ToClient, Direction::Both] {
        let place = Place::new().await;
        let (proxy, backend) = way(&place).await;
        let locks = LockManager::builder(backend).ttl(TTL).owner("one").build().unwrap();
        let guard = locks.lock("a").unwrap().acquire().await.unwrap();
        let other = place.manager("other");
        let waiting = tokio::spawn({
            let lock = other.lock("a").unwrap();
            async move {
                let guard = lock.acquire().await.unwrap();
                (guard, clock().now())
            }
        });
        until("it waits", async || other.metrics().waiting == 1).await;
        proxy.black_hole(direction);
        let (token, deadline) = (guard.token(), clock().now().plus(guard.valid_for()));
        let held = witness(guard);
        let bound = TTL * 4 + Duration::from_secs(3);
        let (next, granted_at) = tokio::time::timeout(bound, waiting).await.expect("P4: replaced").unwrap();
        let Witnessed { held, lost } = held.await.unwrap();
        // It lives to its deadline, which no answer moved on.
        assert!(lost >= deadline, "told too early: {:?}", deadline.since(lost));
        assert!(held < granted_at, "P1 broken: held {:?} into the next grant", held.since(granted_at));
        assert!(next.token() > token);
        // What was held up goes on, and harms nobody.
        proxy.pass().await.unwrap();
        assert!(locks.lock("a").unwrap().try_acquire().await.is_ok_and(|got| got.is_none()), "P1 broken");
        assert!(next.is_held());
    }
}

#[tokio::test]
async fn a_cut_connection_is_told_at_the_next_request() {
    let place = Place::new().await;
    let (proxy, backend) = way(&place).await;
    let one = session(&backend, TTL).await.unwrap();
    granted(&*one, "a", 1).await;
    proxy.reset_connections().await.unwrap();
    assert_eq!(one.renew(&[]).await.unwrap_err().kind(), ErrorKind::SessionGone);
    one.event().await;
    assert_eq!(one.resolve(&claim_ref("a", 1)).await.unwrap_err().kind(), ErrorKind::SessionGone);
    let mut look = place.look().await;
    until("the server frees it", async || look.advisory_locks().await == 0).await;
    assert_eq!(granted(&*place.session().await, "a", 2).await.owed, TTL);
}

#[tokio::test]
async fn a_slow_answer_belongs_to_its_own_request() {
    let place = Place::new().await;
    let (proxy, backend) = way(&place).await;
    let one = session(&backend, TTL * 5).await.unwrap();
    proxy.delay(Direction::ToClient, Duration::from_secs(1));
    let asked = tokio::time::timeout(Duration::from_millis(50), one.claim(request("a", 1, Patience::Queue)));
    assert!(asked.await.is_err(), "it is slow");
    // The answer to the claim comes first; it is not taken for this one's.
    let renewed = one.renew(&[]).await.unwrap();
    assert!(
        matches!(renewed.session, Some(Renewal::Extended(_))) && renewed.claims.is_empty(),
        "{renewed:?}"
    );
    assert!(matches!(one.resolve(&claim_ref("a", 1)).await.unwrap(), Resolution::Absent));
    proxy.pass().await.unwrap();
    granted(&*place.session().await, "a", 2).await;
}

#[tokio::test]
async fn a_session_that_cannot_be_closed_is_dropped() {
    let place = Place::new().await;
    let (proxy, backend) = way(&place).await;
    let one = session(&backend, TTL).await.unwrap();
    granted(&*one, "a", 1).await;
    proxy.black_hole(Direction::Both);
    let closing = one.close(vec![dlock_core::ReleaseRequest::new(claim_ref("a", 1))]);
    assert!(tokio::time::timeout(Duration::from_millis(100), closing).await.is_err(), "nobody answers");
    // Its guards may live on and keep the session, but not the connection.
    tokio::time::timeout(Duration::from_secs(5), one.event()).await.expect("it is over");
    let mut look = place.look().await;
    until("the server frees it", async || look.advisory_locks().await == 0).await;
}

#[tokio::test]
async fn a_frozen_server_loses_the_lock_and_keeps_no_orphan() {
    let place = Place::new().await;
    let locks = place.manager("one");
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    place.server.freeze().await.unwrap();
    assert_eq!(tokio::time::timeout(TTL * 2, guard.lost()).await.expect("told"), LossReason::Expired);
    place.server.thaw().await.unwrap();
    let again =
        tokio::time::timeout(TTL * 5, locks.lock("a").unwrap().acquire()).await.expect("in time").unwrap();
    assert!(again.token() > guard.token());
    again.release().await.unwrap();
    let mut look = place.look().await;
    until("nothing is left", async || look.rows().await + look.advisory_locks().await == 0).await;
}

/// The connection that listens; the session's own is told by its lock.
async fn end_listener(place: &Place) {
    let mut look = place.look().await;
    let end = "SELECT count(pg_terminate_backend(pid, 10000)) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'waiter' AND pid NOT IN
              (SELECT pid FROM pg_locks WHERE locktype = 'advisory')";
    assert_eq!(look.number(end).await, 1);
}

#[tokio::test]
async fn who_is_not_notified_any_more_asks_again() {
    let place = Place::new().await;
    let (proxy, backend) = way(&place).await;
    let options = dlock_core::OpenOptions::new(
        TTL * 15,
        "waiter",
        Duration::from_secs(3),
        std::sync::Arc::new(dlock_core::SystemClock),
    );
    let one = dlock_core::Backend::open(&backend, options).await.unwrap().session;
    granted(&*one, "mine", 1).await;
    let holder = session(&place.backend(), TTL * 15).await.unwrap();
    granted(&*holder, "a", 2).await;
    let first = busy(queue(&*one, "a", 3).await);
    one.wait(&claim_ref("a", 3), &first.cookie).await.unwrap();
    let second = busy(queue(&*one, "a", 4).await);
    assert!(second.retry_after > TTL, "it counts on being notified: {:?}", second.retry_after);
    // It cannot listen anew.
    proxy.hang();
    end_listener(&place).await;
    let claim = claim_ref("a", 4);
    let woken = one.wait(&claim, &second.cookie);
    tokio::time::timeout(Duration::from_secs(10), woken).await.expect("it is told").unwrap();
}

#[tokio::test]
async fn a_session_that_ends_on_a_silent_network_leaves_no_task() {
    let place = Place::new().await;
    let (proxy, backend) = way(&place).await;
    let holder = session(&place.backend(), TTL * 15).await.unwrap();
    granted(&*holder, "a", 1).await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let before = tasks();
    let one = session(&backend, TTL * 5).await.unwrap();
    let waiter = busy(queue(&*one, "a", 2).await);
    one.wait(&claim_ref("a", 2), &waiter.cookie).await.unwrap();
    assert!(tasks() > before, "it listens");
    proxy.black_hole(Direction::Both);
    drop(one);
    until("they end", async || tasks() <= before).await;
}

/// Renewals wait for a table that somebody has locked.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_heartbeat_loses_the_lock_in_time_and_nothing_else() {
    let place = Place::new().await;
    let locks = place.manager("one");
    let lock = locks.lock("a").unwrap();
    let guard = lock.acquire().await.unwrap();
    let mut look = place.look().await;
    look.run("BEGIN; LOCK TABLE dlock.epoch").await;
    let (token, deadline) = (guard.token(), clock().now().plus(guard.valid_for()));
    let held = tokio::time::timeout(TTL * 3, witness(guard)).await.expect("told").unwrap().held;
    assert!(held < deadline.plus(TTL / 3), "held for {:?} past the deadline", held.since(deadline));
    look.run("ROLLBACK").await;
    let again = tokio::time::timeout(TTL * 5, lock.acquire()).await.expect("in time").unwrap();
    assert!(again.token() > token);
    again.release().await.unwrap();
    until("nothing is left", async || look.rows().await + look.advisory_locks().await == 0).await;
}
