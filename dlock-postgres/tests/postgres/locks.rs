//! Locks, rows and notifications of one server that is well.

use std::time::Duration;

use dlock_core::{
    Clock as _, ErrorKind, LockManager, Patience, ReleaseRequest, Released, Renewal, Resolution,
};
use dlock_postgres::sqlx::postgres::{PgListener, PgPoolOptions};
use test_servers::Server;

use crate::place::{
    Look, Place, TTL, busy, claim_ref, clock, grant_of, granted, options, postgres, queue, release, request,
    session, try_claim, until,
};

/// Two names with one FNV-1a hash, and so with one key.
const TWINS: [&str; 2] = ["7mohtcOFVz", "c1E51sSEyx"];

#[tokio::test]
async fn plain_advisory_locks_exclude_us_and_we_them() {
    let place = Place::new().await;
    let locks = place.manager("one");
    let lock = locks.lock("orders/42").unwrap();
    let (key, mut look) = (place.key("orders/42"), place.look().await);
    let guard = lock.acquire().await.unwrap();
    assert!(!look.holds(format!("SELECT pg_try_advisory_lock({key})")).await, "we hold it");
    guard.release().await.unwrap();
    assert!(look.holds(format!("SELECT pg_try_advisory_lock({key})")).await, "we gave it back");
    assert!(lock.try_acquire().await.unwrap().is_none(), "somebody else holds it");
    let holder = lock.holder().await.unwrap().expect("somebody holds it");
    assert!(holder.owner.starts_with("process "), "{holder:?}");
    let waiting = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire().await }
    });
    until("it waits", async || locks.metrics().waiting == 1).await;
    look.run(format!("SELECT pg_advisory_unlock({key})")).await;
    let guard = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap().unwrap();
    assert!(guard.is_held());
    locks.close().await.unwrap();
}

#[tokio::test]
async fn two_names_with_one_key_exclude_each_other_and_nothing_else() {
    let place = Place::new().await;
    assert_eq!(place.key(TWINS[0]), place.key(TWINS[1]));
    let (one, other) = (place.session().await, place.session().await);
    let first = granted(&*one, TWINS[0], 1).await;
    // In the same session the server would say yes, since advisory locks stack.
    busy(queue(&*one, TWINS[1], 2).await);
    busy(queue(&*other, TWINS[1], 3).await);
    assert_eq!(release(&*one, TWINS[1], 2).await, Released::NotFound, "P7");
    let waiter = busy(queue(&*one, TWINS[1], 4).await);
    assert_eq!(release(&*one, TWINS[0], 1).await, Released::Done);
    // Nobody else tells a session of its own release.
    let claim = claim_ref(TWINS[1], 4);
    let woken = one.wait(&claim, &waiter.cookie);
    tokio::time::timeout(Duration::from_secs(5), woken).await.expect("it is told").unwrap();
    let second = granted(&*one, TWINS[1], 5).await;
    assert!(second.token > first.token);
    release(&*one, TWINS[1], 5).await;
    assert_eq!(place.look().await.advisory_locks().await, 0);
}

#[tokio::test]
async fn a_release_wakes_the_waiters_and_nobody_else() {
    let place = Place::new().await;
    let (one, other) = (place.session().await, place.session().await);
    let mut look = place.look().await;
    granted(&*one, "a", 1).await;
    let first = busy(queue(&*other, "a", 2).await);
    // The first wait of a session ends when it listens.
    other.wait(&claim_ref("a", 2), &first.cookie).await.unwrap();
    let second = busy(queue(&*other, "a", 3).await);
    assert!(second.retry_after >= TTL / 4, "who is notified polls slowly: {:?}", second.retry_after);
    release(&*one, "a", 1).await;
    let claim = claim_ref("a", 3);
    let woken = other.wait(&claim, &second.cookie);
    tokio::time::timeout(Duration::from_secs(10), woken).await.expect("it is notified").unwrap();
    // The same cookie again: the wake-up is not lost.
    other.wait(&claim_ref("a", 3), &second.cookie).await.unwrap();
    // Nobody waits: nothing is sent. Messages come in order, so the first one to come would be that.
    let pool = PgPoolOptions::new().max_connections(1).connect_with(place.options()).await.unwrap();
    let mut listener = PgListener::connect_with(&pool).await.unwrap();
    listener.listen("dlock").await.unwrap();
    granted(&*one, "b", 4).await;
    release(&*one, "b", 4).await;
    look.run("NOTIFY dlock, 'end'").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "end");
    granted(&*one, "c", 5).await;
    busy(queue(&*other, "c", 6).await);
    release(&*one, "c", 5).await;
    assert_eq!(listener.recv().await.unwrap().payload(), place.key("c").to_string(), "somebody waits");
}

/// A look at what is waited for finds a release too, within a second; who is told of it need not look.
#[tokio::test(flavor = "multi_thread")]
async fn who_waits_is_told_of_a_release_before_it_looks() {
    let place = Place::new().await;
    let manager = |owner| LockManager::builder(place.backend()).ttl(TTL * 15).owner(owner).build().unwrap();
    let (holder, waiter) = (manager("holder"), manager("waiter"));
    let (held, wanted) = (holder.lock("a").unwrap(), waiter.lock("a").unwrap());
    let mut look = place.look().await;
    let mut took = Vec::new();
    // Always the same one waits: right after one of its looks, when the next is a whole second away.
    for _ in 0..21 {
        let guard = held.acquire().await.unwrap();
        let waiting = tokio::spawn({
            let lock = wanted.clone();
            async move {
                let guard = lock.acquire().await.unwrap();
                (clock().now(), guard)
            }
        });
        until("it waits", async || look.holds("SELECT waiting FROM dlock.holders").await).await;
        let released = clock().now();
        guard.release().await.unwrap();
        let (got, guard) = waiting.await.unwrap();
        took.push(got.since(released));
        guard.release().await.unwrap();
    }
    took.sort_unstable();
    // Now and then a busy machine is slow, but not every other time.
    assert!(took[took.len() / 2] < Duration::from_millis(300), "they look instead of being told: {took:?}");
}

#[tokio::test]
async fn a_connection_carries_thousands_of_locks_and_waiters() {
    let place = Place::new().await;
    // So much takes a busy machine longer than a lease of two seconds bears.
    let manager = |owner| LockManager::builder(place.backend()).ttl(TTL * 5).owner(owner).build().unwrap();
    let (holder, waiter) = (manager("holder"), manager("waiter"));
    let mut guards = Vec::new();
    for number in 0..2000 {
        guards.push(holder.lock(format!("many/{number}")).unwrap().acquire().await.unwrap());
    }
    let mut waiting = Vec::new();
    for number in 0..1000 {
        let lock = waiter.lock(format!("many/{number}")).unwrap();
        waiting.push(tokio::spawn(async move { lock.acquire().await }));
    }
    until("all wait", async || waiter.metrics().waiting == 1000).await;
    let mut look = place.look().await;
    // Renewed while all that goes on.
    let renewals = holder.metrics().renewals;
    until("renewed", async || holder.metrics().renewals > renewals + 1).await;
    // All that the server has, whatever they call themselves, but the operator's own.
    let connections =
        "FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend'
        AND pid <> pg_backend_pid()";
    let most = format!(
        "SELECT max(n) FROM (SELECT count(*) AS n {connections} GROUP BY application_name = 'holder') x"
    );
    let most = look.number(most).await;
    assert!(most <= 2, "{most} connections of one manager");
    let all = look.number(format!("SELECT count(*) {connections}")).await;
    assert!(all <= 3, "{all} connections: nobody of the holder's waits, so it need not listen");
    assert!(guards.iter().all(dlock_core::LockGuard::is_held));
    holder.close().await.unwrap();
    for task in waiting {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("woken").unwrap().map(drop).unwrap();
    }
    waiter.close().await.unwrap();
    until("no lock is left", async || look.advisory_locks().await == 0).await;
    until("no row is left", async || look.rows().await == 0).await;
}

#[tokio::test]
async fn an_abandoned_claim_leaves_nothing_and_costs_nobody_anything() {
    let place = Place::new().await;
    let one = place.session().await;
    let mut look = place.look().await;
    granted(&*one, "first", 1).await;
    // The operator keeps the row's table from being written for a moment.
    look.run("BEGIN; LOCK TABLE dlock.holders IN EXCLUSIVE MODE").await;
    let asked = tokio::time::timeout(Duration::from_millis(50), one.claim(request("a", 2, Patience::Queue)));
    assert!(asked.await.is_err(), "it cannot be answered");
    let (also, then) = (one.renew(&[]), async { look.run("ROLLBACK").await });
    let (renewed, ()) = tokio::join!(also, then);
    assert!(matches!(renewed.unwrap().session, Some(Renewal::Extended(_))), "the answer is its own");
    assert!(matches!(one.resolve(&claim_ref("a", 2)).await.unwrap(), Resolution::Absent));
    assert_eq!((look.rows().await, look.advisory_locks().await), (1, 1));
    granted(&*place.session().await, "a", 3).await;
}

#[tokio::test]
async fn a_row_removed_by_hand_is_told_and_the_lock_is_given_back() {
    let place = Place::new().await;
    let one = place.session().await;
    let mut look = place.look().await;
    granted(&*one, "a", 1).await;
    granted(&*one, "kept", 2).await;
    look.run("DELETE FROM dlock.holders WHERE name = 'a'").await;
    busy(try_claim(&*place.session().await, "a", 3).await);
    let renewed = one.renew(&[claim_ref("a", 1), claim_ref("kept", 2)]).await.unwrap();
    assert_eq!(renewed.claims, [(claim_ref("a", 1).id, Renewal::Gone)]);
    assert_eq!(release(&*one, "a", 1).await, Released::NotFound);
    assert_eq!(look.advisory_locks().await, 1, "the advisory lock is given back all the same");
}

#[tokio::test]
async fn who_ends_badly_leaves_a_debt_and_who_ends_well_none() {
    let place = Place::new().await;
    let (one, other) = (place.session().await, place.session().await);
    granted(&*one, "a", 1).await;
    let mut look = place.look().await;
    look.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'test:1' AND pid IN
        (SELECT pid FROM pg_locks WHERE locktype = 'advisory')",
    )
    .await;
    until("the lock is free", async || look.advisory_locks().await == 0).await;
    let error = one.renew(&[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionGone, "{error:?}");
    one.event().await;
    assert_eq!(one.claim(request("b", 9, Patience::Queue)).await.unwrap_err().kind(), ErrorKind::SessionGone);
    let grant = granted(&*other, "a", 2).await;
    assert_eq!(grant.owed, TTL);
    // Given up half-way, it leaves the rest and no more.
    other.release(ReleaseRequest::new(claim_ref("a", 2)).unpaid(TTL / 2)).await.unwrap();
    assert_eq!(granted(&*other, "a", 3).await.owed, TTL / 2);
    other.settled(&claim_ref("a", 3)).await.unwrap();
    release(&*other, "a", 3).await;
    assert_eq!(granted(&*other, "a", 4).await.owed, Duration::ZERO);
    assert_eq!(grant_of(queue(&*other, "b", 5).await).owed, Duration::ZERO);
}

#[tokio::test]
async fn what_a_crashed_holder_left_goes_when_its_lease_is_over() {
    let place = Place::new().await;
    let one = place.session().await;
    granted(&*one, "a", 1).await;
    drop(one);
    let mut look = place.look().await;
    until("the connection is closed", async || look.advisory_locks().await == 0).await;
    assert_eq!(look.rows().await, 1);
    // Nobody ever asks for the name again.
    let other = session(&place.backend(), TTL * 15).await.unwrap();
    until("the row goes", async || {
        other.renew(&[]).await.unwrap();
        look.rows().await == 0
    })
    .await;
}

#[tokio::test]
async fn many_names_leave_the_tables_as_small_as_they_were() {
    let place = Place::new().await;
    let one = session(&place.backend(), TTL * 15).await.unwrap();
    let mut look = place.look().await;
    let size = "SELECT sum(pg_total_relation_size(c.oid))::bigint FROM pg_class c
        WHERE relnamespace = 'dlock'::regnamespace AND relkind = 'r'";
    let mut sizes = Vec::new();
    for round in 0..3_u128 {
        for number in 0..4000_u128 {
            let name = format!("used/{round}/{number}");
            granted(&*one, &name, number).await;
            release(&*one, &name, number).await;
        }
        // What the server does by itself every minute.
        look.run("VACUUM dlock.counters, dlock.holders, dlock.epoch, dlock.meta").await;
        sizes.push(look.number(size).await);
    }
    assert_eq!(look.rows().await, 0);
    assert!(look.number("SELECT count(*) FROM dlock.counters").await <= 1024);
    assert!(sizes[2] <= sizes[1] + sizes[1] / 10, "the tables grow with the names: {sizes:?}");
}

#[tokio::test]
async fn a_crowd_of_crashed_holders_is_cleared_away_at_once() {
    let place = Place::new().await;
    let one = session(&place.backend(), TTL * 30).await.unwrap();
    let mut look = place.look().await;
    look.run(
        "INSERT INTO dlock.holders (key, name, token, owed)
         SELECT n, convert_to('crowd/' || n, 'UTF8'), n, 1 FROM generate_series(1, 1200) n",
    )
    .await;
    // A row that somebody has locked holds nobody up.
    look.run("BEGIN; SELECT FROM dlock.holders WHERE key = 7 FOR UPDATE").await;
    // One renewal looks, and one that comes later removes.
    one.renew(&[]).await.unwrap();
    until("they are gone", async || {
        one.renew(&[]).await.unwrap();
        look.rows().await == 1
    })
    .await;
    look.run("COMMIT").await;
    assert_eq!(look.number("SELECT key FROM dlock.holders").await, 7);
}

#[tokio::test]
async fn who_holds_a_lock_is_not_a_holder_that_is_gone() {
    let place = Place::new().await;
    let one = place.manager("dead");
    let lock = one.lock("a").unwrap();
    let guard = lock.acquire().await.unwrap();
    assert_eq!(lock.holder().await.unwrap().unwrap().owner, "dead");
    let mut look = place.look().await;
    let pid = look.pid_of("dead").await;
    let key = place.key("a");
    look.run(format!("SELECT pg_terminate_backend({pid}, 10000)")).await;
    drop(guard);
    look.run("SET application_name = 'by hand'").await;
    assert!(look.holds(format!("SELECT pg_try_advisory_lock({key})")).await);
    assert_eq!(look.rows().await, 1, "the row of the one that is gone is still there");
    let other = place.manager("other");
    let holder = other.lock("a").unwrap().holder().await.unwrap().unwrap();
    assert_eq!(holder.owner, "by hand");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_names_are_cleaned_up_by_the_server_itself() {
    const SESSIONS: u128 = 4;
    let server = Server::start(postgres().config("autovacuum_naptime = 1s")).await.unwrap();
    let backend = dlock_postgres::PostgresBackend::new(options(&server, "postgres"));
    let mut look =
        Look(dlock_postgres::sqlx::ConnectOptions::connect(&options(&server, "postgres")).await.unwrap());
    let mut sizes = Vec::new();
    // After a first use that gives the tables their size.
    for names in [20_000, 100_000] {
        let using: Vec<_> = (0..SESSIONS)
            .map(|part| {
                let backend = backend.clone();
                tokio::spawn(async move {
                    let one = session(&backend, TTL * 15).await.unwrap();
                    for number in 0..names / SESSIONS {
                        let name = format!("once/{names}/{part}/{number}");
                        granted(&*one, &name, number).await;
                        release(&*one, &name, number).await;
                    }
                })
            })
            .collect();
        for part in using {
            part.await.unwrap();
        }
        // Nobody but the server's own process cleans up.
        let dead =
            "SELECT coalesce(sum(n_dead_tup), 0)::bigint FROM pg_stat_user_tables WHERE schemaname = 'dlock'";
        until("it is cleaned up", async || look.number(dead).await < 5000).await;
        let size = "SELECT sum(pg_total_relation_size(oid))::bigint FROM pg_class
            WHERE relnamespace = 'dlock'::regnamespace AND relkind = 'r'";
        sizes.push(look.number(size).await);
    }
    assert_eq!(look.rows().await, 0);
    assert!(sizes[1] <= sizes[0] + sizes[0] / 2, "the tables grow with the names: {sizes:?}");
}
