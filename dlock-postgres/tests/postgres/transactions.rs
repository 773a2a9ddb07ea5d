//! Locks inside a transaction, and writes that refuse stale tokens.

use std::time::Duration;

use dlock_core::{FencingToken, LockName, Released};
use dlock_postgres::sqlx::postgres::PgConnection;
use dlock_postgres::sqlx::{self, ConnectOptions as _, Connection as _};
use dlock_postgres::{Fenced, FencedTable, TransactionLockError, TransactionLocks};

use crate::place::{Look, Place, TTL, busy, granted, release, session, try_claim, until};

fn name(name: &str) -> LockName {
    LockName::new(name).unwrap()
}

#[tokio::test]
async fn a_lock_ends_with_its_transaction() {
    let place = Place::new().await;
    let locks = place.backend().transaction_locks();
    let one = place.session().await;
    for commits in [true, false] {
        let mut connection = place.options().connect().await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let last = granted(&*one, "a", 1).await.token;
        assert!(locks.try_lock(&mut transaction, &name("a")).await.unwrap().is_none(), "a guard holds it");
        release(&*one, "a", 1).await;
        let token = locks.lock(&mut transaction, &name("a")).await.unwrap();
        assert!(token.get() > last.get());
        busy(try_claim(&*one, "a", 2).await);
        if commits {
            transaction.commit().await.unwrap();
        } else {
            transaction.rollback().await.unwrap();
        }
        let next = granted(&*one, "a", 3).await;
        assert!(next.token.get() >= token.get(), "the next guard's writes are not refused");
        release(&*one, "a", 3).await;
    }
}

#[tokio::test]
async fn a_transaction_waits_for_what_is_owed() {
    let place = Place::new().await;
    let locks = place.backend().transaction_locks();
    let holder = place.session().await;
    let last = granted(&*holder, "a", 1).await.token;
    drop(holder);
    let mut look = place.look().await;
    until("the connection is closed", async || look.advisory_locks().await == 0).await;
    let mut connection = place.options().connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let began = tokio::time::Instant::now();
    let token = locks.lock(&mut transaction, &name("a")).await.unwrap();
    assert!(began.elapsed() >= TTL, "P1 broken: {:?}", began.elapsed());
    assert!(token.get() > last.get());
    // Nobody waits for it again, whatever becomes of the transaction.
    assert_eq!(look.rows().await, 0);
    transaction.rollback().await.unwrap();
    assert_eq!(granted(&*place.session().await, "a", 2).await.owed, Duration::ZERO);
}

/// A holder that is gone, whose lock is free and whose lease is owed; and a transaction.
async fn indebted(place: &Place, owed: Duration) -> (TransactionLocks, PgConnection, Look) {
    let locks = place.backend().transaction_locks();
    let holder = session(&place.backend(), owed).await.unwrap();
    granted(&*holder, "a", 1).await;
    drop(holder);
    let mut look = place.look().await;
    until("the connection is closed", async || look.advisory_locks().await == 0).await;
    let connection = place.options().application_name("transaction").connect().await.unwrap();
    (locks, connection, look)
}

/// A release frees the lock a moment before it is committed, and is no debt.
#[tokio::test]
async fn a_release_that_is_not_committed_yet_is_not_settled() {
    let place = Place::new().await;
    let ttl = Duration::from_secs(60);
    let holder = session(&place.backend(), ttl).await.unwrap();
    granted(&*holder, "a", 1).await;
    let mut look = place.look().await;
    look.run(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN PERFORM pg_sleep(4); RETURN NULL; END $$;
         CREATE CONSTRAINT TRIGGER slow AFTER DELETE ON dlock.holders
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.slow()",
    )
    .await;
    let releasing = tokio::spawn(async move { release(&*holder, "a", 1).await });
    until("the lock is free", async || look.advisory_locks().await == 0).await;
    assert_eq!(look.rows().await, 1, "and its row is there");
    let locks = place.backend().transaction_locks();
    let mut connection = place.options().connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let name = name("a");
    let locking = locks.lock(&mut transaction, &name);
    tokio::time::timeout(ttl / 2, locking).await.expect("it waits for no lease").unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(releasing.await.unwrap(), Released::Done);
}

#[tokio::test]
async fn a_transaction_that_ends_while_it_settles_has_no_lock() {
    let place = Place::new().await;
    let (locks, mut connection, mut look) = indebted(&place, TTL).await;
    let locking = tokio::spawn(async move {
        let mut transaction = connection.begin().await.unwrap();
        locks.lock(&mut transaction, &name("a")).await
    });
    until("it settles", async || look.advisory_locks().await == 1).await;
    let pid = look.pid_of("transaction").await;
    look.run(format!("SELECT pg_terminate_backend({pid})")).await;
    let error = locking.await.unwrap().unwrap_err();
    assert!(matches!(error, TransactionLockError::Statement { .. }), "{error}");
}

#[tokio::test]
async fn a_transaction_that_must_not_be_idle_settles_all_the_same() {
    let place = Place::new().await;
    let (locks, mut connection, mut look) = indebted(&place, TTL * 4).await;
    let mut transaction = connection.begin().await.unwrap();
    let set = "SET LOCAL idle_in_transaction_session_timeout = '4s'";
    sqlx::query(set).execute(&mut *transaction).await.unwrap();
    locks.lock(&mut transaction, &name("a")).await.unwrap();
    assert_eq!(look.advisory_locks().await, 1);
    transaction.commit().await.unwrap();
}

#[tokio::test]
async fn a_debt_that_cannot_be_written_off_fails_no_lock() {
    let place = Place::new().await;
    let (locks, mut connection, mut look) = indebted(&place, TTL).await;
    // What it needs a connection of its own for at first is done.
    let mut transaction = connection.begin().await.unwrap();
    locks.lock(&mut transaction, &name("other")).await.unwrap();
    let allow = async |may: bool| {
        let sql = format!("ALTER DATABASE {} ALLOW_CONNECTIONS {may}", place.database);
        place.server.exec(&["-c", &sql]).await.unwrap();
    };
    allow(false).await;
    locks.lock(&mut transaction, &name("a")).await.unwrap();
    assert_eq!(look.rows().await, 1, "it stays written down");
    transaction.commit().await.unwrap();
    allow(true).await;
}

#[tokio::test]
async fn a_transaction_adds_no_lease_to_those_that_a_crash_settles() {
    let place = Place::new().await;
    let locks = place.backend().transaction_locks();
    let mut connection = place.options().connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    locks.lock(&mut transaction, &name("a")).await.unwrap();
    transaction.commit().await.unwrap();
    place.session().await;
    let longest = place.look().await.number("SELECT max_lease FROM dlock.meta").await;
    assert_eq!(u128::try_from(longest).unwrap(), TTL.as_millis());
}

#[tokio::test]
async fn transactions_and_guards_wait_for_each_other() {
    let place = Place::new().await;
    let (locks, manager) = (place.backend().transaction_locks(), place.manager("one"));
    let lock = manager.lock("a").unwrap();
    let guard = lock.acquire().await.unwrap();
    let (held, mut look) = (guard.token(), place.look().await);
    let (may_commit, commit) = tokio::sync::oneshot::channel();
    let mut connection = place.options().connect().await.unwrap();
    let transacting = tokio::spawn(async move {
        let mut transaction = connection.begin().await.unwrap();
        let token = locks.lock(&mut transaction, &name("a")).await.unwrap();
        commit.await.unwrap();
        transaction.commit().await.unwrap();
        token
    });
    let waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("the transaction waits", async || look.number(waits).await == 1).await;
    assert!(guard.is_held());
    guard.release().await.unwrap();
    let got =
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    until("the transaction has it", async || look.number(got).await == 1 && look.number(waits).await == 0)
        .await;
    let waiting = tokio::spawn(async move { lock.acquire().await });
    until("the guard waits", async || manager.metrics().waiting == 1).await;
    assert!(!waiting.is_finished());
    may_commit.send(()).unwrap();
    let in_transaction = transacting.await.unwrap();
    assert!(in_transaction.get() > held.get());
    let guard = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap().unwrap();
    assert!(guard.token().get() >= in_transaction.get());
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_transaction_of_another_database_is_refused() {
    let (place, other) = (Place::new().await, Place::new().await);
    let locks = place.backend().transaction_locks();
    // With tables of the same names.
    other.session().await;
    let mut connection = other.options().connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let error = locks.lock(&mut transaction, &name("a")).await.unwrap_err();
    assert!(matches!(error, TransactionLockError::AnotherDatabase { .. }), "{error}");
}

#[tokio::test]
async fn a_transaction_after_a_crash_waits_for_the_longest_lease() {
    let place = Place::new().await;
    let locks = place.backend().transaction_locks();
    let mut connection = place.options().connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let before = locks.lock(&mut transaction, &name("a")).await.unwrap();
    drop(transaction);
    drop(connection);
    place.look().await.run("UPDATE dlock.meta SET max_lease = 2000").await;
    place.server.kill().await.unwrap();
    place.server.start_again().await.unwrap();
    let mut connection = place.options().connect().await.unwrap();
    let mut transaction = connection.begin().await.unwrap();
    let began = tokio::time::Instant::now();
    let token = locks.lock(&mut transaction, &name("a")).await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(1500), "P1 broken: {:?}", began.elapsed());
    assert!(token > before);
    assert_eq!(place.look().await.number("SELECT owed FROM dlock.epoch").await, 0, "nobody waits again");
}

#[tokio::test]
async fn a_transaction_that_sees_the_past_is_refused() {
    let place = Place::new().await;
    let locks = place.backend().transaction_locks();
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let mut connection = place.options().connect().await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let set = sqlx::AssertSqlSafe(format!("SET TRANSACTION ISOLATION LEVEL {level}"));
        sqlx::query(set).execute(&mut *transaction).await.unwrap();
        let error = locks.lock(&mut transaction, &name("a")).await.unwrap_err();
        assert!(matches!(error, TransactionLockError::Isolation { .. }), "{error}");
    }
}

#[tokio::test]
async fn stale_writes_are_refused_by_the_row_itself() {
    let place = Place::new().await;
    let mut connection = place.options().connect().await.unwrap();
    let make = "CREATE TABLE stock (id bigint PRIMARY KEY, amount bigint NOT NULL, fence bigint)";
    sqlx::query(make).execute(&mut connection).await.unwrap();
    let stock = FencedTable::new("stock", "fence");
    let taken = stock.clone();
    let put = |token: u64, id: i64, amount: i64| {
        stock.upsert(&["id", "amount"], &["id"], FencingToken::new(token)).bind(id).bind(amount)
    };
    let take = move |token: u64, id: i64| {
        taken.update("amount = amount - $2", "id = $3", FencingToken::new(token)).bind(1_i64).bind(id)
    };
    assert_eq!(put(7, 1, 10).execute(&mut connection).await.unwrap(), Fenced::Written(1));
    assert_eq!(take(9, 1).execute(&mut connection).await.unwrap(), Fenced::Written(1));
    assert_eq!(take(8, 1).execute(&mut connection).await.unwrap(), Fenced::Stale);
    assert_eq!(
        take(9, 1).execute(&mut connection).await.unwrap(),
        Fenced::Written(1),
        "the holder's own again"
    );
    assert_eq!(put(8, 1, 99).execute(&mut connection).await.unwrap(), Fenced::Stale);
    assert_eq!(take(8, 2).execute(&mut connection).await.unwrap(), Fenced::Missing);
    let row: (i64, i64) =
        sqlx::query_as("SELECT amount, fence FROM stock").fetch_one(&mut connection).await.unwrap();
    assert_eq!(row, (8, 9));

    // A stale write that began before a later holder's and waits for it is refused all the same.
    let mut other = place.options().connect().await.unwrap();
    let mut transaction = other.begin().await.unwrap();
    assert_eq!(take(20, 1).execute(&mut *transaction).await.unwrap(), Fenced::Written(1));
    let stale = tokio::spawn(async move { take(19, 1).execute(&mut connection).await });
    let mut look = place.look().await;
    let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    until("it waits", async || look.number(waits).await > 0).await;
    transaction.commit().await.unwrap();
    assert_eq!(stale.await.unwrap().unwrap(), Fenced::Stale);
}

#[tokio::test]
async fn a_row_that_no_token_wrote_yet_takes_any() {
    let place = Place::new().await;
    let mut connection = place.options().connect().await.unwrap();
    let make = "CREATE TABLE stock (id bigint PRIMARY KEY, amount bigint NOT NULL, fence bigint);
        INSERT INTO stock VALUES (1, 10, NULL), (2, 10, NULL)";
    sqlx::raw_sql(make).execute(&mut connection).await.unwrap();
    let stock = FencedTable::new("stock", "fence");
    let token = FencingToken::new(7);
    let update = stock.update("amount = $2", "id = $3", token).bind(1_i64).bind(1_i64);
    assert_eq!(update.execute(&mut connection).await.unwrap(), Fenced::Written(1));
    let upsert = stock.upsert(&["id", "amount"], &["id"], token).bind(2_i64).bind(2_i64);
    assert_eq!(upsert.execute(&mut connection).await.unwrap(), Fenced::Written(1));
    let row: (i64, i64) = sqlx::query_as("SELECT sum(amount)::bigint, min(fence) FROM stock")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(row, (3, 7));
}

#[tokio::test]
async fn of_those_who_write_a_new_row_at_once_the_latest_token_stays() {
    let place = Place::new().await;
    let mut connection = place.options().connect().await.unwrap();
    let make = "CREATE TABLE stock (id bigint PRIMARY KEY, amount bigint NOT NULL, fence bigint)";
    sqlx::query(make).execute(&mut connection).await.unwrap();
    let put = |token: u64| {
        let stock = FencedTable::new("stock", "fence");
        let amount = i64::try_from(token).unwrap();
        stock.upsert(&["id", "amount"], &["id"], FencingToken::new(token)).bind(1_i64).bind(amount)
    };
    // The row of the first is not there for anybody else until it is committed, and all of them insert it.
    let mut transaction = connection.begin().await.unwrap();
    assert_eq!(put(20).execute(&mut *transaction).await.unwrap(), Fenced::Written(1));
    let mut writing = Vec::new();
    for token in [19, 22, 18, 21] {
        let mut connection = place.options().connect().await.unwrap();
        let write = put(token);
        writing.push((token, tokio::spawn(async move { write.execute(&mut connection).await })));
    }
    let mut look = place.look().await;
    let waits = "SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted";
    until("all wait", async || look.number(waits).await == 4).await;
    transaction.commit().await.unwrap();
    for (token, write) in writing {
        let outcome = write.await.unwrap().unwrap();
        // 21 is written or stale, depending on which of the two came first.
        assert!(token == 21 || (outcome == Fenced::Written(1)) == (token == 22), "{token}: {outcome:?}");
    }
    let row: (i64, i64) =
        sqlx::query_as("SELECT amount, fence FROM stock").fetch_one(&mut connection).await.unwrap();
    assert_eq!(row, (22, 22));
}
