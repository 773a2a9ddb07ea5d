//! PgBouncer in between.

use std::collections::BTreeMap;

use dlock_core::{ErrorKind, LockName};
use dlock_postgres::PostgresBackend;
use dlock_postgres::sqlx::postgres::PgConnection;
use dlock_postgres::sqlx::{self, ConnectOptions as _, Connection as _, Executor as _, Row as _};
use test_servers::{PgBouncer, PoolMode, Server};

use crate::place::{
    Look, Place, TTL, at, busy, chain, claim_ref, granted, queue, relay, release, session, try_claim, until,
};

async fn pooler(place: &Place, mode: PoolMode, config: &[&str]) -> Server {
    let pooler = PgBouncer::before(place.server.addr(), mode);
    Server::start(config.iter().copied().fold(pooler, PgBouncer::config)).await.unwrap()
}

/// The settings that each process of a pool of two has for those who get it next.
async fn settings(pooler: &Server, place: &Place) -> BTreeMap<i32, String> {
    let mut neighbours: [PgConnection; 2] = [
        at(pooler.addr(), &place.database).connect().await.unwrap(),
        at(pooler.addr(), &place.database).connect().await.unwrap(),
    ];
    let mut found = BTreeMap::new();
    for neighbour in &mut neighbours {
        // Each keeps its process to itself.
        neighbour.execute("BEGIN").await.unwrap();
        let query = "SELECT pg_backend_pid() AS pid, coalesce(current_setting('dlock.session', true), '') ||
            (SELECT string_agg(name || '=' || setting, ', ' ORDER BY name) FROM pg_settings
              WHERE name NOT IN ('transaction_isolation', 'transaction_read_only')) AS settings";
        let row = sqlx::raw_sql(query).fetch_one(&mut *neighbour).await.unwrap();
        found.insert(row.get("pid"), row.get("settings"));
    }
    for mut neighbour in neighbours {
        neighbour.execute("COMMIT").await.unwrap();
        neighbour.close().await.unwrap();
    }
    assert_eq!(found.len(), 2);
    found
}

/// Every kind of pool that hands a connection's statements to several processes.
const SHARED: [(PoolMode, &[&str]); 4] = [
    (PoolMode::Transaction, &["max_prepared_statements = 0", "default_pool_size = 2"]),
    (PoolMode::Transaction, &["max_prepared_statements = 200", "default_pool_size = 2"]),
    (PoolMode::Transaction, &["server_round_robin = 1", "default_pool_size = 2"]),
    (PoolMode::Statement, &["default_pool_size = 2"]),
];

async fn refused(backend: &PostgresBackend) -> String {
    let error = session(backend, TTL).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused, "{}", chain(&error));
    assert!(error.to_string().contains("pool_mode=session"), "{}", chain(&error));
    chain(&error)
}

#[tokio::test]
async fn a_shared_pool_is_refused_every_time_with_an_explanation() {
    let place = Place::new().await;
    for (mode, config) in SHARED {
        let pooler = pooler(&place, mode, config).await;
        let backend = PostgresBackend::new(at(pooler.addr(), &place.database));
        for _ in 0..3 {
            refused(&backend).await;
        }
    }
    assert_eq!(place.look().await.advisory_locks().await, 0);
}

#[tokio::test]
async fn the_neighbours_in_a_pool_that_was_refused_find_their_settings_unchanged() {
    let place = Place::new().await;
    for config in ["max_prepared_statements = 0", "max_prepared_statements = 200"] {
        let pooler = pooler(&place, PoolMode::Transaction, &[config, "default_pool_size = 2"]).await;
        let before = settings(&pooler, &place).await;
        refused(&PostgresBackend::new(at(pooler.addr(), &place.database))).await;
        assert_eq!(settings(&pooler, &place).await, before, "{config}");
    }
}

#[tokio::test]
async fn a_pooler_with_the_servers_own_port_is_refused() {
    let place = Place::new().await;
    let pooler = pooler(&place, PoolMode::Transaction, &["max_prepared_statements = 0"]).await;
    let addr = relay(place.server.addr().port(), pooler.addr(), |bytes| bytes).await;
    refused(&PostgresBackend::new(at(addr, &place.database))).await;
}

#[tokio::test]
async fn locks_in_transactions_work_in_a_shared_pool_and_leave_nothing_there() {
    let place = Place::new().await;
    // It says nothing while the pooler starts.
    let one = session(&place.backend(), TTL * 30).await.unwrap();
    let pooler =
        pooler(&place, PoolMode::Transaction, &["max_prepared_statements = 0", "default_pool_size = 2"])
            .await;
    let before = settings(&pooler, &place).await;
    let locks = PostgresBackend::new(at(pooler.addr(), &place.database)).transaction_locks();
    let mut connection = at(pooler.addr(), &place.database).connect().await.unwrap();
    for number in 0..3 {
        let mut transaction = connection.begin().await.unwrap();
        locks.lock(&mut transaction, &LockName::new("a").unwrap()).await.unwrap();
        busy(try_claim(&*one, "a", number).await);
        transaction.commit().await.unwrap();
    }
    connection.close().await.unwrap();
    assert_eq!(settings(&pooler, &place).await, before);
}

/// What a session set up and locked is in a process that somebody else has now.
#[tokio::test]
async fn a_session_whose_process_is_lent_to_others_ends_and_its_locks_with_it() {
    let place = Place::new().await;
    let config = ["admin_users = postgres", "max_prepared_statements = 0"];
    let pooler = pooler(&place, PoolMode::Session, &config).await;
    let one = session(&PostgresBackend::new(at(pooler.addr(), &place.database)), TTL * 30).await.unwrap();
    granted(&*one, "a", 1).await;
    // A renewal is followed by some tidying now and then; when it is over, the next one is answered.
    one.renew(&[]).await.unwrap();
    one.observe(&LockName::new("a").unwrap()).await.unwrap();
    let mut console = at(pooler.addr(), "pgbouncer").connect().await.unwrap();
    console.execute("SET pool_mode = 'transaction'").await.unwrap();
    // The pooler takes the process away at the end of a statement, and a neighbour gets it.
    one.renew(&[]).await.unwrap();
    let mut neighbour = Look(at(pooler.addr(), &place.database).connect().await.unwrap());
    let ours = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()";
    neighbour.0.execute("BEGIN").await.unwrap();
    let held = sqlx::raw_sql(ours).fetch_one(&mut neighbour.0).await.unwrap();
    assert_eq!(held.get::<i64, _>(0), 1, "it is the process of the session");
    let error = one.renew(&[]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionGone, "{}", chain(&error));
    assert!(error.to_string().contains("pool_mode=session"), "{}", chain(&error));
    let mut look = place.look().await;
    until("no orphan is left", async || look.advisory_locks().await == 0).await;
}

/// Without its reset query, a pool of sessions hands on what was prepared.
#[tokio::test]
async fn what_an_earlier_session_prepared_is_explained() {
    let place = Place::new().await;
    let pooler = pooler(&place, PoolMode::Session, &["server_reset_query =", "default_pool_size = 2"]).await;
    let backend = PostgresBackend::new(at(pooler.addr(), &place.database));
    let mut explained = false;
    // Either of the two processes may be the next one's.
    for _ in 0..3 {
        match session(&backend, TTL * 5).await {
            Ok(one) => one.close(Vec::new()).await.unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Refused, "{}", chain(&error));
                assert!(error.to_string().contains("server_reset_query"), "{}", chain(&error));
                explained = true;
            }
        }
    }
    assert!(explained, "nothing was prepared twice");
}

#[tokio::test]
async fn a_pool_of_sessions_works() {
    let place = Place::new().await;
    let pooler = pooler(&place, PoolMode::Session, &[]).await;
    let backend = PostgresBackend::new(at(pooler.addr(), &place.database));
    let (one, other) = (session(&backend, TTL).await.unwrap(), place.session().await);
    let first = granted(&*one, "a", 1).await;
    let waiter = busy(queue(&*other, "a", 2).await);
    other.wait(&claim_ref("a", 2), &waiter.cookie).await.unwrap();
    release(&*one, "a", 1).await;
    assert!(granted(&*other, "a", 3).await.token > first.token);
    granted(&*one, "b", 4).await;
    // The pooler keeps the server's process for the next one, and takes everything back.
    drop(one);
    let mut look = place.look().await;
    until("the lock is free", async || look.advisory_locks().await == 1).await;
    granted(&*session(&backend, TTL).await.unwrap(), "b", 5).await;
}
