//! Servers that crash, restart, fail over and are restored: tokens go on rising, and leases from before are waited out.

use std::time::Duration;

use dlock_core::{Backend as _, ClaimReply, Clock as _, ErrorKind, Lease, LockManager, Patience, Timestamp};
use dlock_postgres::PostgresBackend;
use dlock_postgres::sqlx::{ConnectOptions as _, Executor as _};
use test_servers::{Direction, Proxy, Server};

use crate::place::{
    Look, Place, TTL, at, chain, clock, debt_of, grant_of, granted, open_options, options, postgres, release,
    request, session, try_claim, try_paid, until, until_within, witness,
};

/// What is known of the last grant: its token, and until when its holder may believe that it holds.
struct Last {
    token: u64,
    deadline: Timestamp,
}

/// Opens a session once the server lets it, claims, and checks the grant against the last one. True if it came while the
/// holder from before could still believe that it holds.
async fn claim_after(backend: &PostgresBackend, ttl: Duration, last: &mut Last) -> bool {
    let (mut session, mut lease) = opened(backend, ttl).await;
    let mut grant = None;
    until("it is granted", async || {
        if let Ok(ClaimReply::Granted(got)) = session.claim(request("crashing", 1, Patience::Queue)).await {
            grant = Some(got);
        } else {
            // The crash was not over yet, or had not yet begun.
            (session, lease) = opened(backend, ttl).await;
        }
        grant.is_some()
    })
    .await;
    let grant = grant.unwrap();
    let token = grant.token.get();
    assert!(token > last.token, "P2 broken: {token} after {}", last.token);
    assert!(token >> 32 > last.token >> 32, "the server did not crash");
    let now = clock().now();
    let handed_out = now.plus(grant.owed);
    let early = now < last.deadline;
    assert!(handed_out >= last.deadline, "P1 broken: granted before the lease from before the crash is over");
    // Whoever was granted now may believe so for a lease, from the moment at which it is handed out.
    *last = Last { token, deadline: lease.deadline() };
    // The session stays open; the crash ends it.
    std::mem::forget(session);
    early
}

async fn opened(
    backend: &PostgresBackend,
    ttl: Duration,
) -> (std::sync::Arc<dyn dlock_core::Session>, Lease) {
    let mut opened = None;
    until("the server is back", async || {
        match backend.open(open_options(ttl)).await {
            Ok(session) => opened = Some(session),
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::SessionGone),
                "{}",
                chain(&error)
            ),
        }
        opened.is_some()
    })
    .await;
    let opened = opened.unwrap();
    (opened.session, opened.lease.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_crashes_repeat_no_token_and_cut_no_lease_short() {
    let server = Server::start(postgres()).await.unwrap();
    let backend = PostgresBackend::new(options(&server, "postgres"));
    let mut last = Last { token: 0, deadline: Timestamp::from_nanos(0) };
    let mut early = 0;
    for round in 0..200 {
        early +=
            u32::from(claim_after(&backend, Duration::from_millis(500 + round % 7 * 100), &mut last).await);
        if round % 20 == 19 {
            server.kill().await.unwrap();
            server.start_again().await.unwrap();
        } else {
            // The server ends all others and recovers when one of its processes is killed.
            let mut connection = options(&server, "postgres").connect().await.unwrap();
            let kill = "COPY (SELECT 1) TO PROGRAM 'kill -9 $PPID'";
            drop(connection.execute(kill).await);
        }
    }
    assert!(early >= 20, "only {early} grants came so early that something was to be settled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_from_before_a_crash_is_waited_for() {
    let place = Place::new().await;
    // It does not hear of the crash, and believes to its deadline.
    let proxy = Proxy::start(place.server.addr()).await.unwrap();
    let backend = PostgresBackend::new(at(proxy.addr(), &place.database));
    let holder = LockManager::builder(backend).ttl(TTL * 10).build().unwrap();
    let guard = holder.lock("a").unwrap().acquire().await.unwrap();
    proxy.black_hole(Direction::Both);
    // Its children tell their clients, and nothing is written.
    let quit = "COPY (SELECT 1) TO PROGRAM 'read pid < postmaster.pid; kill -QUIT $pid'";
    drop(place.server.exec(&["-c", quit]).await);
    until("it ends", async || !place.server.is_running().await.unwrap()).await;
    place.server.start_again().await.unwrap();
    assert!(guard.is_held(), "the server was back too late to show anything");
    let (token, held) = (guard.token(), witness(guard));
    let next = place.manager("next").lock("a").unwrap().acquire().await.unwrap();
    let granted_at = clock().now();
    let held = held.await.unwrap().held;
    assert!(held < granted_at, "P1 broken: held {:?} into the next grant", held.since(granted_at));
    assert!(next.token() > token, "P2 broken");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_from_before_a_restart_is_waited_for_and_others_are_not() {
    let place = Place::new().await;
    let holder = place.manager("holder");
    let guard = holder.lock("a").unwrap().acquire().await.unwrap();
    place.server.stop().await.unwrap();
    place.server.start_again().await.unwrap();
    let one = place.session().await;
    // A clean restart keeps the rows, so only the lock that was held is owed for.
    assert_eq!(granted(&*one, "b", 1).await.owed, Duration::ZERO);
    let next = granted(&*one, "a", 2).await;
    assert_eq!(next.owed, TTL);
    assert!(next.token > guard.token(), "P2 broken: {} after {}", next.token, guard.token());
}

/// What begins an epoch is durable before a token of it is known, whatever the role's settings say.
#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_waits_for_no_disk_repeats_no_token_either() {
    // What is not waited for is written after ten seconds, which it never gets.
    let server = Server::start(postgres().config("wal_writer_delay = 10s")).await.unwrap();
    server.exec(&["-c", "ALTER ROLE postgres SET synchronous_commit = off"]).await.unwrap();
    let backend = PostgresBackend::new(options(&server, "postgres"));
    let mut last = 0;
    for round in 1..=4 {
        let one = session(&backend, TTL * round).await.unwrap();
        let token = granted(&*one, "a", 1).await.token.get();
        server.kill().await.unwrap();
        assert!(token > last, "P2 broken: {token} after {last}");
        last = token;
        server.start_again().await.unwrap();
        let mut look = Look(options(&server, "postgres").connect().await.unwrap());
        let longest = look.number("SELECT max_lease FROM dlock.meta").await;
        assert_eq!(u128::try_from(longest).unwrap(), (TTL * round).as_millis(), "the raise was lost");
    }
}

#[tokio::test]
async fn tries_after_a_crash_are_told_what_is_owed_and_granted_in_the_end() {
    let place = Place::new().await;
    granted(&*place.session().await, "a", 1).await;
    place.server.kill().await.unwrap();
    place.server.start_again().await.unwrap();
    let one = place.session().await;
    let debt = debt_of(try_claim(&*one, "a", 2).await);
    assert!(debt.owed > Duration::ZERO && debt.owed <= TTL, "{debt:?}");
    assert_eq!(debt_of(try_claim(&*one, "b", 3).await).id, debt.id, "every lock is owed for");
    let mut look = place.look().await;
    assert_eq!((look.rows().await, look.advisory_locks().await), (0, 0), "tries leave nothing");
    until("the debt is paid", async || {
        one.renew(&[]).await.unwrap();
        matches!(try_paid(&*one, "a", 4, debt.id).await, dlock_core::ClaimReply::Granted(_))
    })
    .await;
    one.renew(&[]).await.unwrap();
    // Who comes later is told that it is.
    assert_eq!(grant_of(try_claim(&*place.session().await, "b", 5).await).owed, Duration::ZERO);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_missed_the_last_raises_repeats_no_token_and_cuts_no_lease_short() {
    let primary = Server::start(postgres()).await.unwrap();
    let backend = PostgresBackend::new(options(&primary, "postgres"));
    let short = session(&backend, Duration::from_millis(500)).await.unwrap();
    let first = granted(&*short, "a", 1).await;
    let replica = Server::start(postgres().standby_of(primary.addr())).await.unwrap();
    let behind = PostgresBackend::builder(options(&replica, "postgres"));
    // Nobody waits that long, and so long starting the replica may take.
    let long = Duration::from_secs(60);
    let behind = behind.failover_settle(long).build();

    // A standby has the tables and advisory locks of its own, and its sessions outlive its promotion.
    let refused = session(&behind, TTL).await.unwrap_err();
    assert!(refused.to_string().contains("standby"), "{refused}");

    // The replica sees no more of it: two raises of the block, and one of the longest lease.
    replica.stop().await.unwrap();
    let mut last = Last { token: first.token.get(), deadline: Timestamp::from_nanos(0) };
    for _ in 0..2 {
        primary.kill().await.unwrap();
        primary.start_again().await.unwrap();
        claim_after(&backend, long, &mut last).await;
    }
    primary.kill().await.unwrap();
    replica.start_again().await.unwrap();
    replica.exec(&["-c", "SELECT pg_promote()"]).await.unwrap();
    let early = claim_after(&behind, TTL, &mut last).await;
    assert!(early, "the replica was there too late to show anything");
}

#[tokio::test]
async fn a_restored_dump_repeats_no_token() {
    let place = Place::new().await;
    let one = place.session().await;
    let mut last = granted(&*one, "a", 1).await.token;
    for number in 2..50 {
        release(&*one, "a", number - 1).await;
        last = granted(&*one, "a", number).await.token;
    }
    let file = place.server.site().folder().join("dump").display().to_string();
    let (ip, port) = (place.server.addr().ip().to_string(), place.server.addr().port().to_string());
    let run = async |program: &str, args: &[&str]| {
        let fixed = [program, "-h", &ip, "-p", &port, "-U", "postgres"];
        let command = fixed.iter().chain(args).map(ToString::to_string).collect();
        place.server.run(command).await.unwrap();
    };
    run("pg_dump", &["-Fc", "-f", &file, &place.database]).await;
    let restored = crate::place::database_name();
    place.server.exec(&["-c", &format!("CREATE DATABASE {restored}")]).await.unwrap();
    run("pg_restore", &["-d", &restored, &file]).await;
    let mut look = Look(at(place.server.addr(), &restored).connect().await.unwrap());
    assert_eq!(look.rows().await, 1, "a dump carries unlogged rows along");
    let backend = PostgresBackend::builder(at(place.server.addr(), &restored));
    let opening = clock().now();
    let other = session(&backend.failover_settle(TTL).build(), TTL).await.unwrap();
    let grant = granted(&*other, "a", 1).await;
    assert!(grant.token > last, "P2 broken");
    let since = clock().now().since(opening);
    assert!(grant.owed + since >= TTL, "the holder from before may believe so: {:?}", grant.owed);
}

#[tokio::test]
async fn a_longer_lease_is_known_to_those_after_a_crash() {
    let place = Place::new().await;
    place.session().await;
    let long = session(&place.backend(), Duration::from_secs(20)).await.unwrap();
    granted(&*long, "a", 1).await;
    place.server.kill().await.unwrap();
    place.server.start_again().await.unwrap();
    let owed = granted(&*place.session().await, "b", 1).await.owed;
    assert!(owed > Duration::from_secs(10) && owed <= Duration::from_secs(20), "{owed:?}");
    let locks = LockManager::builder(place.backend()).ttl(TTL).build().unwrap();
    let lock = locks.lock("c").unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none());
    assert!(lock.settles_in().unwrap() > Duration::from_secs(10), "a try is told for how long");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_use_that_no_replica_saw_is_not_repeated() {
    let primary = Server::start(postgres()).await.unwrap();
    let replica = Server::start(postgres().standby_of(primary.addr())).await.unwrap();
    replica.stop().await.unwrap();
    let one = session(&PostgresBackend::new(options(&primary, "postgres")), TTL).await.unwrap();
    let first = granted(&*one, "a", 1).await.token;
    primary.kill().await.unwrap();
    replica.start_again().await.unwrap();
    replica.exec(&["-c", "SELECT pg_promote()"]).await.unwrap();
    let behind = PostgresBackend::builder(options(&replica, "postgres")).failover_settle(TTL).build();
    let opening = clock().now();
    let other = session(&behind, TTL).await.unwrap();
    let next = granted(&*other, "a", 1).await;
    assert!(next.token > first, "P2 broken: {} after {first}", next.token);
    assert!(next.owed + clock().now().since(opening) >= TTL, "P1 broken: {:?}", next.owed);
}

#[tokio::test]
async fn a_copy_of_the_database_is_a_place_of_its_own() {
    let place = Place::new().await;
    let one = place.session().await;
    let last = granted(&*one, "a", 1).await.token;
    one.close(Vec::new()).await.unwrap();
    let copy = crate::place::database_name();
    let mut look = Look(at(place.server.addr(), "postgres").connect().await.unwrap());
    let connections = format!("SELECT count(*) FROM pg_stat_activity WHERE datname = '{}'", place.database);
    until("nobody is there", async || look.number(&connections).await == 0).await;
    look.run(format!("CREATE DATABASE {copy} TEMPLATE {}", place.database)).await;
    // It settles its own lease at least, whatever was set.
    let backend = PostgresBackend::builder(at(place.server.addr(), &copy)).failover_settle(Duration::ZERO);
    let other = session(&backend.build(), TTL * 2).await.unwrap();
    let grant = granted(&*other, "a", 1).await;
    assert!(grant.token.get() >> 32 > last.get() >> 32, "P2 broken: {} after {last}", grant.token);
    let mut look = Look(at(place.server.addr(), &copy).connect().await.unwrap());
    assert_eq!(
        u128::try_from(look.number("SELECT owed FROM dlock.epoch").await).unwrap(),
        (TTL * 2).as_millis()
    );
}

/// What the README says is to be run after a restore.
const AFTER_A_RESTORE: &str = "UPDATE dlock.meta SET origin = 'restored'; DELETE FROM dlock.epoch;";

#[tokio::test]
async fn two_restores_of_one_dump_repeat_no_token() {
    assert!(include_str!("../../README.md").contains(AFTER_A_RESTORE));
    let place = Place::new().await;
    let one = place.session().await;
    let mut last = granted(&*one, "a", 1).await.token;
    one.close(vec![dlock_core::ReleaseRequest::new(crate::place::claim_ref("a", 1))]).await.unwrap();
    let file = place.server.site().folder().join("dump").display().to_string();
    let run = async |program: &str, args: &[&str]| {
        let (ip, port) = (place.server.addr().ip().to_string(), place.server.addr().port().to_string());
        let fixed = [program, "-h", &ip, "-p", &port, "-U", "postgres"];
        place.server.run(fixed.iter().chain(args).map(ToString::to_string).collect()).await.unwrap();
    };
    run("pg_dump", &["-Fc", "-f", &file, &place.database]).await;
    let mut look = place.look().await;
    for round in 0..2 {
        // Into the very tables, which tells nobody that it was done.
        look.run("TRUNCATE dlock.meta, dlock.epoch, dlock.counters, dlock.holders").await;
        run("pg_restore", &["--data-only", "-d", &place.database, &file]).await;
        look.run(AFTER_A_RESTORE).await;
        let one = session(&place.backend(), TTL * 15).await.unwrap();
        let grant = granted(&*one, "a", 1).await;
        assert!(grant.token > last, "P2 broken: {} after {last}", grant.token);
        assert!(grant.owed > Duration::from_secs(50), "leases from before are settled: {:?}", grant.owed);
        last = grant.token;
        if round == 1 {
            break;
        }
        // Nothing is done under the token before it is handed out, and so long the next restore is away.
        let handed_out = clock().now().plus(grant.owed);
        until_within(Duration::from_secs(90), "it is handed out", async || {
            one.renew(&[]).await.unwrap();
            clock().now() >= handed_out
        })
        .await;
        one.close(Vec::new()).await.unwrap();
    }
}
