//! What PostgreSQL does that one would not expect, each with what goes wrong without the remedy.

use std::time::Duration;

use dlock_core::{ClaimReply, ErrorKind, Patience, ReleaseRequest, Released};
use test_servers::Server;

use dlock_postgres::PostgresBackend;
use dlock_postgres::sqlx::ConnectOptions as _;

use crate::place::{
    Look, Place, TTL, at, busy, chain, claim_ref, debt_of, grant_of, granted, options, postgres, queue,
    release, request, session, try_claim, try_paid, until,
};

/// A statement's snapshot is older than its lock: what was written in between must count.
#[tokio::test]
async fn a_debt_that_the_snapshot_does_not_show_is_settled() {
    let place = Place::new().await;
    let one = session(&place.backend(), TTL * 15).await.unwrap();
    granted(&*one, "a", 1).await;
    release(&*one, "a", 1).await;
    let (mut look, mut other) = (place.look().await, place.look().await);
    // The claim stops between its advisory lock and its row.
    look.run("BEGIN; SELECT FROM dlock.counters FOR UPDATE").await;
    let claiming = tokio::spawn({
        let one = one.clone();
        async move { one.claim(request("a", 2, Patience::Queue)).await }
    });
    until("it has the advisory lock", async || other.advisory_locks().await == 1).await;
    let key = place.key("a");
    other
        .run(format!("INSERT INTO dlock.holders (key, name, token, owed) VALUES ({key}, 'a', 7, 5000)"))
        .await;
    look.run("COMMIT").await;
    let grant = grant_of(claiming.await.unwrap().unwrap());
    assert_eq!(grant.owed, Duration::from_secs(5), "P1 broken: a debt was not seen");
}

/// A row comes before the commit, which may still fail.
#[tokio::test]
async fn a_grant_that_is_not_committed_is_none() {
    let place = Place::new().await;
    let one = place.session().await;
    let mut look = place.look().await;
    look.run(
        "CREATE FUNCTION public.no() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'the disk is full' USING ERRCODE = '53100'; END $$;
         CREATE CONSTRAINT TRIGGER no AFTER INSERT OR UPDATE ON dlock.holders
            DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.no()",
    )
    .await;
    let error = one.claim(request("a", 1, Patience::Queue)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("full"), "{error}");
    assert_eq!((look.rows().await, look.advisory_locks().await), (0, 0), "nothing stays locked");
    look.run("DROP TRIGGER no ON dlock.holders").await;
    granted(&*one, "a", 2).await;
}

/// Errors free no advisory lock of a session.
#[tokio::test]
async fn a_definite_error_leaves_nothing_locked() {
    let place = Place::new().await;
    let mut look = place.look().await;
    granted(&*place.session().await, "first", 9).await;
    look.run(format!(
        "CREATE ROLE {0} LOGIN; GRANT USAGE ON SCHEMA dlock TO {0};
         GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dlock TO {0}",
        place.database
    ))
    .await;
    // The superuser's sessions are beyond refusal, so this one's are of the role, as SET ROLE makes them.
    let options = place.options().options([("role", place.database.as_str())]);
    let one = session(&PostgresBackend::new(options), TTL).await.unwrap();
    granted(&*one, "held", 1).await;
    look.run(format!("REVOKE INSERT ON dlock.holders FROM {}", place.database)).await;
    let locked = look.advisory_locks().await;
    let error = one.claim(request("a", 2, Patience::Queue)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("GRANT SELECT, INSERT"), "{error}");
    assert_eq!(look.advisory_locks().await, locked, "nothing stays locked");

    // A table that somebody has locked: told in time, and not executed.
    look.run(format!(
        "GRANT INSERT ON dlock.holders TO {}; BEGIN; LOCK TABLE dlock.counters",
        place.database
    ))
    .await;
    let error = one.claim(request("a", 3, Patience::Queue)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", chain(&error));
    look.run("ROLLBACK").await;
    assert_eq!(look.advisory_locks().await, locked, "nothing stays locked");
    // Nor does a release that is refused keep the lock.
    look.run(format!("REVOKE DELETE ON dlock.holders FROM {}", place.database)).await;
    release(&*one, "held", 1).await;
    assert_eq!(look.advisory_locks().await, locked - 1);
    assert!(granted(&*place.session().await, "held", 4).await.owed > Duration::ZERO, "its row stayed");
}

/// With `synchronous_commit` on, a transaction that writes unlogged tables only waits for a standby now and then.
#[tokio::test]
async fn a_standby_that_does_not_answer_holds_nobody_up() {
    let server = Server::start(postgres().config("track_commit_timestamp = on")).await.unwrap();
    let one = session(&PostgresBackend::new(options(&server, "postgres")), TTL * 15).await.unwrap();
    let mut look = Look(options(&server, "postgres").connect().await.unwrap());
    look.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    look.run("SELECT pg_reload_conf()").await;
    until("it is in force", async || {
        look.holds("SELECT current_setting('synchronous_standby_names') = 'nobody'").await
    })
    .await;
    let locking = async {
        for number in 0..1500 {
            granted(&*one, "a", number).await;
            release(&*one, "a", number).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(120), locking).await.expect("nobody waits for the standby");
    look.run("ALTER SYSTEM RESET synchronous_standby_names").await;
    look.run("SELECT pg_reload_conf()").await;
}

/// All transactions of a server that notify are committed one after the other, those of other databases among them.
#[tokio::test]
async fn a_notification_that_cannot_be_committed_costs_no_session() {
    let server = Server::start(postgres()).await.unwrap();
    let backend = PostgresBackend::new(options(&server, "postgres"));
    let ttl = Duration::from_secs(6);
    let (one, other) = (session(&backend, ttl).await.unwrap(), session(&backend, ttl).await.unwrap());
    granted(&*one, "a", 1).await;
    granted(&*one, "kept", 2).await;
    busy(queue(&*other, "a", 3).await);
    let mut look = Look(options(&server, "postgres").connect().await.unwrap());
    look.run("CREATE DATABASE elsewhere").await;
    look.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'").await;
    look.run("SELECT pg_reload_conf()").await;
    let mut hanging =
        Look(options(&server, "elsewhere").application_name("hanging").connect().await.unwrap());
    until("it is in force", async || {
        hanging.holds("SELECT current_setting('synchronous_standby_names') = 'nobody'").await
    })
    .await;
    let hanging = tokio::spawn(async move {
        hanging.run("BEGIN; CREATE TABLE t (); SELECT pg_notify('elsewhere', ''); COMMIT").await;
    });
    until("it waits for the standby", async || {
        look.holds(
            "SELECT count(*) > 0 FROM pg_stat_activity WHERE application_name = 'hanging' AND wait_event = 'SyncRep'",
        )
        .await
    })
    .await;
    let contending = tokio::spawn(async move {
        let claimed = other.claim(request("a", 4, Patience::Queue)).await;
        (other, claimed)
    });
    assert_eq!(release(&*one, "a", 1).await, Released::Done);
    // Whatever the contender met, its session goes on, and so does that of the holder.
    let (other, _) = contending.await.unwrap();
    for (session, kept) in [(&one, vec![claim_ref("kept", 2)]), (&other, Vec::new())] {
        let renewed = session.renew(&kept).await.unwrap();
        assert!(renewed.claims.is_empty(), "{renewed:?}");
    }
    look.run("ALTER SYSTEM RESET synchronous_standby_names").await;
    look.run("SELECT pg_reload_conf()").await;
    hanging.await.unwrap();
    // What could not be removed is settled.
    release(&*other, "a", 4).await;
    assert!(granted(&*one, "a", 5).await.owed <= ttl);
}

/// Tries that reset a debt, or take it along, would never be granted.
#[tokio::test]
async fn tries_leave_a_debt_as_it_is() {
    let place = Place::new().await;
    let holder = place.session().await;
    granted(&*holder, "a", 1).await;
    drop(holder);
    let mut look = place.look().await;
    until("the connection is closed", async || look.advisory_locks().await == 0).await;
    let one = place.session().await;
    let row = "SELECT token # owed FROM dlock.holders";
    let before = look.number(row).await;
    let first = debt_of(try_claim(&*one, "a", 2).await);
    for number in 3..10 {
        assert_eq!(debt_of(try_claim(&*one, "a", number).await), first);
        assert_eq!(look.advisory_locks().await, 0);
    }
    assert_eq!(look.number(row).await, before);
    // One that was watched for so long is not settled again; a debt that was met since is another one.
    let ClaimReply::Granted(grant) = try_paid(&*one, "a", 10, first.id).await else { panic!("it is paid") };
    assert_eq!(grant.owed, Duration::ZERO);
    drop(one);
    until("the connection is closed", async || look.advisory_locks().await == 0).await;
    let other = place.session().await;
    assert_ne!(debt_of(try_paid(&*other, "a", 11, first.id).await).id, first.id);
    busy(try_claim(&*other, "a", 12).await);
}

/// A margin on what is written back would add up: with enough waiters that give up a debt would be paid never.
#[tokio::test]
async fn the_rest_of_a_debt_is_written_back_as_it_is() {
    let place = Place::new().await;
    let holder = place.session().await;
    granted(&*holder, "a", 1).await;
    drop(holder);
    let mut look = place.look().await;
    until("the connection is closed", async || look.advisory_locks().await == 0).await;
    let mut owed = TTL;
    for number in 2..40 {
        // Another session each time: none that remembers.
        let session = place.session().await;
        assert_eq!(granted(&*session, "a", number).await.owed, owed);
        owed -= Duration::from_millis(50);
        let given_up = ReleaseRequest::new(claim_ref("a", number)).unpaid(owed);
        assert_eq!(session.release(given_up).await.unwrap(), Released::Done);
        assert_eq!(look.advisory_locks().await, 0);
        session.close(Vec::new()).await.unwrap();
    }
    assert_eq!(look.number("SELECT owed FROM dlock.holders").await, 100);
}

/// Text that does not fit the database's encoding is refused.
#[tokio::test]
async fn every_name_works_in_every_encoding() {
    let place = Place::new().await;
    for encoding in ["LATIN1", "SQL_ASCII"] {
        let database = crate::place::database_name();
        let create = format!("CREATE DATABASE {database} ENCODING '{encoding}' TEMPLATE template0");
        place.server.exec(&["-c", &create]).await.unwrap();
        let one = session(&PostgresBackend::new(at(place.server.addr(), &database)), TTL).await.unwrap();
        for (number, name) in ["orders/42", "é", "🔒", "日本語"].into_iter().enumerate() {
            let id = u128::try_from(number).unwrap();
            granted(&*one, name, id).await;
            release(&*one, name, id).await;
        }
        // The owner's name as well, also of whoever waits.
        let backend = PostgresBackend::new(at(place.server.addr(), &database));
        let locks = dlock_core::LockManager::builder(backend).ttl(TTL).owner("日本語 🔒").build().unwrap();
        let lock = locks.lock("a").unwrap();
        granted(&*one, "a", 9).await;
        let waiting = tokio::spawn({
            let lock = lock.clone();
            async move { lock.acquire().await.unwrap() }
        });
        let mut look = Look(at(place.server.addr(), &database).connect().await.unwrap());
        let listens = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND application_name = '??? ?'";
        until("it listens", async || look.number(listens).await == 2).await;
        release(&*one, "a", 9).await;
        let guard = waiting.await.unwrap();
        assert_eq!(lock.holder().await.unwrap().unwrap().owner, "日本語 🔒");
        guard.release().await.unwrap();
        locks.close().await.unwrap();
    }
}

/// A publication of all tables lets no table without a key be updated.
#[tokio::test]
async fn a_publication_of_all_tables_is_in_nobodys_way() {
    let place = Place::new().await;
    granted(&*place.session().await, "a", 1).await;
    place.look().await.run("CREATE PUBLICATION everything FOR ALL TABLES").await;
    let longer = session(&place.backend(), TTL * 2).await.unwrap();
    granted(&*longer, "b", 1).await;
}

/// Advisory locks of a server's table of locks run out.
#[tokio::test]
async fn a_full_table_of_locks_is_told() {
    let config = postgres().config("max_locks_per_transaction = 10").config("max_connections = 20");
    let server = Server::start(config.config("max_wal_senders = 0")).await.unwrap();
    let one =
        session(&PostgresBackend::new(options(&server, "postgres")), Duration::from_secs(30)).await.unwrap();
    let mut held = 0;
    let error = loop {
        match one.claim(request(&format!("many/{held}"), held, Patience::Queue)).await {
            Ok(_) => held += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::Refused);
    assert!(error.to_string().contains("max_locks_per_transaction"), "{}", chain(&error));
    assert!(held > 100, "{held}");
    one.renew(&[]).await.unwrap();
    // What is given back can be had again, also if no lock was left for the statement itself.
    for number in 0..held {
        assert_eq!(release(&*one, &format!("many/{number}"), number).await, dlock_core::Released::Done);
    }
    granted(&*one, "again", 1).await;
}

/// A statement outside of a transaction is the only thing after which an idle session is ended.
#[tokio::test]
async fn a_client_that_says_no_more_is_ended_by_the_server() {
    let place = Place::new().await;
    let one = place.session().await;
    granted(&*one, "a", 1).await;
    let mut look = place.look().await;
    // Nobody renews it, as if the process were frozen.
    until("the lock is free", async || look.advisory_locks().await == 0).await;
    assert_eq!(one.renew(&[]).await.unwrap_err().kind(), ErrorKind::SessionGone);
    assert_eq!(granted(&*place.session().await, "a", 2).await.owed, TTL);
}

/// The server would wait for the rest of a request, or to be rid of an answer, for a quarter of an hour.
#[tokio::test]
async fn the_server_gives_up_a_silent_connection_within_the_lease() {
    let place = Place::new().await;
    session(&place.backend(), TTL).await.unwrap();
    let mut look = place.look().await;
    // Only the session itself can tell its settings, and does when it writes.
    look.run(
        "CREATE TABLE public.told (name text, setting text);
         CREATE FUNCTION public.tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             INSERT INTO public.told SELECT name, setting FROM pg_settings; RETURN NULL;
         END $$;
         CREATE TRIGGER tell AFTER INSERT ON dlock.holders FOR EACH ROW EXECUTE FUNCTION public.tell()",
    )
    .await;
    granted(&*session(&place.backend(), Duration::from_secs(40)).await.unwrap(), "a", 1).await;
    for (name, setting) in [
        ("tcp_user_timeout", "40000"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "10"),
        ("tcp_keepalives_count", "3"),
        ("idle_session_timeout", "40000"),
        ("idle_in_transaction_session_timeout", "40000"),
        ("synchronous_commit", "off"),
    ] {
        let told = look.text(format!("SELECT setting FROM public.told WHERE name = '{name}'")).await;
        assert_eq!(told, setting, "{name}");
        let own = look.text(format!("SELECT setting FROM pg_settings WHERE name = '{name}'")).await;
        assert_ne!(own, setting, "{name} is so anyway, which shows nothing");
    }
}

/// Counters are updated in place, which takes room on their pages; rows of holders come and go, and need none.
#[tokio::test]
async fn tables_leave_as_much_room_as_is_used() {
    let place = Place::new().await;
    place.session().await;
    let mut look = place.look().await;
    // Neither are they shortened, which locks them, and cleaned up as soon as it pays.
    let both = "{autovacuum_analyze_threshold=1000000000,autovacuum_vacuum_scale_factor=0,\
        autovacuum_vacuum_threshold=2000";
    for (table, options) in [
        ("counters", format!("{both},fillfactor=10,vacuum_truncate=off}}")),
        ("holders", format!("{both},vacuum_truncate=off}}")),
    ] {
        let found = format!(
            "SELECT ARRAY(SELECT unnest(reloptions) ORDER BY 1)::text FROM pg_class
              WHERE oid = 'dlock.{table}'::regclass"
        );
        assert_eq!(look.text(found).await, options, "{table}");
    }
}

/// A table that survives a crash, or one that does not, in the other's place.
#[tokio::test]
async fn tables_of_the_wrong_kind_are_refused() {
    let place = Place::new().await;
    granted(&*place.session().await, "a", 1).await;
    let mut look = place.look().await;
    for (table, wrong, right) in [("counters", "LOGGED", "UNLOGGED"), ("meta", "UNLOGGED", "LOGGED")] {
        look.run(format!("ALTER TABLE dlock.{table} SET {wrong}")).await;
        let error = session(&place.backend(), TTL).await.unwrap_err();
        assert!(error.to_string().contains(&format!("SET {right}")), "{error}");
        look.run(format!("ALTER TABLE dlock.{table} SET {right}")).await;
    }
    session(&place.backend(), TTL).await.unwrap();
}

/// A role may be kept from asking where the server is. Every start of the server is a place of its own then.
#[tokio::test]
async fn a_role_that_may_not_ask_where_the_server_is_can_lock() {
    let place = Place::new().await;
    let mut look = place.look().await;
    look.run(format!(
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE {0} LOGIN;
         GRANT CREATE ON DATABASE {0} TO {0}",
        place.database
    ))
    .await;
    let backend = PostgresBackend::new(place.options().options([("role", place.database.as_str())]));
    let mut last = 0;
    for round in 0..2 {
        let one = session(&backend, TTL).await.unwrap();
        let token = granted(&*one, "a", round).await.token.get();
        assert!(token > last, "P2 broken: {token} after {last}");
        last = token;
        place.server.kill().await.unwrap();
        place.server.start_again().await.unwrap();
    }
    let mut look = place.look().await;
    assert!(look.holds("SELECT origin LIKE 'start %/0/%' FROM dlock.meta").await);
}

/// Two names for one place would be two epochs, of which each ends the other's sessions.
#[tokio::test]
async fn roles_with_many_and_with_few_rights_share_an_epoch() {
    let place = Place::new().await;
    let mut look = place.look().await;
    look.run(format!(
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE {0} LOGIN;
         GRANT CREATE ON DATABASE {0} TO {0}",
        place.database
    ))
    .await;
    let few = PostgresBackend::new(place.options().options([("role", place.database.as_str())]));
    let one = session(&few, TTL).await.unwrap();
    let first = granted(&*one, "a", 1).await.token.get();
    let many = place.session().await;
    granted(&*many, "b", 2).await;
    for (session, held) in [(&one, claim_ref("a", 1)), (&many, claim_ref("b", 2))] {
        let renewed = session.renew(&[held]).await.unwrap();
        assert!(renewed.claims.is_empty(), "{renewed:?}");
    }
    release(&*one, "a", 1).await;
    assert_eq!(granted(&*many, "a", 3).await.token.get() >> 32, first >> 32, "one epoch");
}

/// As above, where the one with many rights was first: its sessions end once, and say why.
#[tokio::test]
async fn a_role_with_few_rights_ends_the_epoch_of_others_once() {
    let place = Place::new().await;
    let many = place.session().await;
    granted(&*many, "a", 1).await;
    let mut look = place.look().await;
    look.run(format!(
        "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC; CREATE ROLE {0} LOGIN;
         GRANT USAGE ON SCHEMA dlock TO {0}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA dlock TO {0}",
        place.database
    ))
    .await;
    let few = PostgresBackend::new(place.options().options([("role", place.database.as_str())]));
    let one = session(&few, TTL).await.unwrap();
    let error = many.renew(&[claim_ref("a", 1)]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::SessionGone);
    assert!(error.to_string().contains("pg_control_system()"), "{error}");
    let many = place.session().await;
    for session in [&one, &many] {
        session.renew(&[]).await.unwrap();
    }
}
