//! Certificates, users, and what a member says that does not let us in.

use std::time::Duration;

use conformance_tests::fixture::{Profile, Setup};
use conformance_tests::fixtures::etcd::Operator;
use dlock_core::{Backend, LockManager, LossReason, ReleaseOutcome};
use dlock_etcd::{EtcdBackend, Tls};
use test_servers::{Certs, Direction, Etcd, Proxy, Server};

use crate::setting::{soon, spawn_acquire, until, within};

const TTL: Duration = Duration::from_secs(5);

/// The whole chain of an error that opening a session gives.
async fn refused(backend: EtcdBackend) -> String {
    let locks = LockManager::builder(backend).ttl(TTL).build().unwrap();
    let error = soon("opening ends", locks.open()).await.expect_err("it cannot be opened");
    chain(&error)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    format!("{text} {error:?}")
}

fn at(server: &Server) -> String {
    server.addr().to_string()
}

/// One lock held by one and waited for by another, and handed over.
async fn works(backend: &EtcdBackend) {
    let [one, other] = [(); 2].map(|()| LockManager::builder(backend.clone()).ttl(TTL).build().unwrap());
    let guard = one.lock("secured").unwrap().acquire().await.unwrap();
    assert!(other.lock("secured").unwrap().try_acquire().await.unwrap().is_none());
    let waiting = spawn_acquire(&other.lock("secured").unwrap());
    tokio::time::sleep(TTL).await;
    assert!(guard.is_held() && !waiting.is_finished());
    guard.release().await.unwrap();
    soon("the handoff", waiting).await.unwrap().unwrap().release().await.unwrap();
    one.close().await.unwrap();
    other.close().await.unwrap();
}

#[tokio::test]
async fn tls_with_an_own_authority_and_a_client_certificate() {
    let certs = Certs::new(&[]).await.unwrap();
    let strangers = Certs::new(&[]).await.unwrap();
    let server = Server::start(Etcd::v3_5().tls(&certs)).await.unwrap();
    let with = |tls: Tls| EtcdBackend::builder([at(&server)]).tls(tls).build();
    let known = || Tls::new().identity_files(certs.path("client.pem"), certs.path("client-key.pem"));

    works(&with(known().ca_file(certs.path("ca.pem")))).await;
    works(&with(
        Tls::new()
            .ca_pem(certs.pem("ca.pem"))
            .identity_pem(certs.pem("client.pem"), certs.pem("client-key.pem"))
            .server_name("localhost"),
    ))
    .await;

    for (backend, says) in [
        (with(known().ca_file(strangers.path("ca.pem"))), "ca=FILE"),
        (with(known()), "ca=FILE"),
        (with(known().ca_file(certs.path("ca.pem")).server_name("elsewhere")), "server_name=NAME"),
        (with(Tls::new().ca_file(certs.path("ca.pem"))), "cert=FILE and key=FILE"),
        (
            with(
                Tls::new()
                    .ca_file(certs.path("ca.pem"))
                    .identity_files(strangers.path("client.pem"), strangers.path("client-key.pem")),
            ),
            "cert=FILE and key=FILE",
        ),
        (with(known().ca_file("/nowhere/ca.pem")), "ca=/nowhere/ca.pem cannot be read"),
        (with(known().ca_file(certs.path("client-key.pem"))), "PEM"),
        (EtcdBackend::new([at(&server)]), "etcds://"),
    ] {
        let error = refused(backend).await;
        assert!(error.contains(says), "{says}: {error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
    }
}

#[tokio::test]
async fn tls_to_a_server_without_it_says_so() {
    let server = Server::start(Etcd::v3_5()).await.unwrap();
    let error = refused(EtcdBackend::builder([at(&server)]).tls(Tls::new()).build()).await;
    assert!(error.contains("write etcd:// in place of etcds://"), "{error}");
}

/// A server that asks for a user.
async fn guarded() -> Server {
    let server = with_users().await;
    server.exec(&["auth", "enable"]).await.unwrap();
    server
}

/// A server that knows root, app with rights on `dlock/`, and guest without any; and asks for none yet.
async fn with_users() -> Server {
    let server = Server::start(
        Etcd::v3_5()
            .arg("--heartbeat-interval=10")
            .arg("--election-timeout=100")
            // Tokens that nobody uses for a second are forgotten.
            .arg("--auth-token-ttl=1"),
    )
    .await
    .unwrap();
    for command in [
        &["user", "add", "root:top"][..],
        &["user", "add", "app:s3cret"],
        &["user", "add", "guest:guest"],
        &["role", "add", "locks"],
        &["role", "grant-permission", "locks", "--prefix=true", "readwrite", "dlock/"],
        &["user", "grant-role", "app", "locks"],
        &["user", "grant-role", "root", "root"],
    ] {
        server.exec(command).await.unwrap();
    }
    server
}

fn user(server: &Server, name: &str, password: &str) -> EtcdBackend {
    EtcdBackend::builder([at(server)]).user(name, password).build()
}

#[tokio::test]
async fn users_need_a_password_and_rights_on_the_prefix() {
    let server = guarded().await;
    works(&user(&server, "app", "s3cret")).await;
    for (backend, says) in [
        (EtcdBackend::new([at(&server)]), "etcd://USER:PASSWORD@"),
        (user(&server, "app", "hunter2"), "does not know user \"app\" with this password"),
        (user(&server, "nobody", "hunter2"), "does not know user \"nobody\""),
        (user(&server, "guest", "guest"), "grant its role readwrite"),
        (
            EtcdBackend::builder([at(&server)]).user("app", "s3cret").prefix("elsewhere/").build(),
            "grant its role readwrite",
        ),
    ] {
        let error = refused(backend).await;
        assert!(error.contains(says), "{says}: {error}");
        assert!(!error.contains("hunter2") && !error.contains("s3cret"), "{error}");
    }
    // Nor does a session that could not be opened leave its lease behind.
    let root = "--user=root:top";
    let left = server.exec(&["lease", "list", root]).await.unwrap();
    assert!(left.contains("found 0 leases"), "{left}");
    let left = server.exec(&["get", "--prefix", "--keys-only", "dlock/", root]).await.unwrap();
    assert!(left.trim().is_empty(), "{left}");
}

#[tokio::test]
async fn a_user_that_nobody_asks_for_costs_no_request() {
    let server = with_users().await;
    let locks = LockManager::builder(user(&server, "app", "s3cret")).ttl(TTL).build().unwrap();
    let guard = locks.lock("held").unwrap().acquire().await.unwrap();
    let operator = Operator::of(std::slice::from_ref(&server));
    let before = operator.calls("Authenticate").await;
    for _ in 0..10 {
        locks.lock("free").unwrap().acquire().await.unwrap().release().await.unwrap();
    }
    assert_eq!(operator.calls("Authenticate").await, before);
    // From now on the server asks.
    server.exec(&["auth", "enable"]).await.unwrap();
    let renewals = locks.metrics().renewals;
    until("renewals go on", async || locks.metrics().renewals >= renewals + 2).await;
    assert!(guard.is_held(), "a lock was lost when authentication was enabled");
    guard.release().await.unwrap();
    locks.lock("free").unwrap().acquire().await.unwrap().release().await.unwrap();
    assert!(operator.calls("Authenticate").await > before);
}

#[tokio::test]
async fn a_token_that_expires_is_asked_for_again() {
    let server = guarded().await;
    let backend = user(&server, "app", "s3cret");
    let [one, other] = [(); 2].map(|()| {
        // Renewals are further apart than tokens live.
        LockManager::builder(backend.clone()).ttl(Duration::from_secs(9)).build().unwrap()
    });
    let guard = one.lock("token").unwrap().acquire().await.unwrap();
    let waiting = spawn_acquire(&other.lock("token").unwrap());
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(one.lock("another").unwrap().try_acquire().await.unwrap().is_some());
    let renewals = one.metrics().renewals;
    until("a renewal", async || one.metrics().renewals > renewals).await;
    // A server that is started again knows no tokens, and no watches.
    server.kill().await.unwrap();
    server.start_again().await.unwrap();
    let renewals = one.metrics().renewals;
    until("renewals go on", async || one.metrics().renewals > renewals).await;
    assert!(guard.is_held() && !waiting.is_finished());
    guard.release().await.unwrap();
    let guard = soon("the handoff", waiting).await.unwrap().unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn rights_that_are_taken_away_are_told() {
    let server = guarded().await;
    let locks = LockManager::builder(user(&server, "app", "s3cret")).ttl(TTL).build().unwrap();
    let guard = locks.lock("held").unwrap().acquire().await.unwrap();
    let revoke = ["role", "revoke-permission", "locks", "--prefix=true", "dlock/", "--user=root:top"];
    server.exec(&revoke).await.unwrap();
    let error = soon("a try ends", locks.lock("free").unwrap().try_acquire()).await.unwrap_err();
    let error = chain(&error);
    assert!(error.contains("grant its role readwrite"), "{error}");
    // The lease itself needs no rights; its claim cannot be given back any more, and goes with it.
    assert!(guard.is_held());
    assert!(guard.release().await.is_err());
}

#[tokio::test]
async fn a_lease_shorter_than_the_server_allows_is_longer_and_visible() {
    let etcd = Etcd::v3_5().arg("--heartbeat-interval=200").arg("--election-timeout=2000");
    let server = Server::start(etcd).await.unwrap();
    let backend = EtcdBackend::new([at(&server)]);
    let locks = LockManager::builder(backend.clone()).ttl(Duration::from_secs(1)).build().unwrap();
    let guard = locks.lock("granted").unwrap().acquire().await.unwrap();
    let left = guard.valid_for();
    assert!(left > Duration::from_secs(2) && left <= Duration::from_secs(3), "valid for {left:?}");
    assert!(LockManager::builder(backend.clone()).ttl(Duration::from_millis(900)).build().is_err());
    // Parts of a second are rounded up.
    let locks = LockManager::builder(backend).ttl(Duration::from_millis(3500)).build().unwrap();
    let guard = locks.lock("rounded").unwrap().acquire().await.unwrap();
    assert!(guard.valid_for() > Duration::from_millis(3500));
}

#[tokio::test]
async fn an_old_version_is_told() {
    let old = Server::start(Etcd::v3_4()).await.unwrap();
    let new = Server::start(Etcd::v3_5()).await.unwrap();
    let backend = EtcdBackend::new([at(&old)]);
    assert!(backend.guarantees().exclusion.to_string().contains("yes, if every member"));
    works(&backend).await;
    let told = backend.guarantees().exclusion.to_string();
    assert!(told.starts_with("no: ") && told.contains("is etcd 3.4.") && told.contains("upgrade"), "{told}");
    let backend = EtcdBackend::new([at(&new)]);
    works(&backend).await;
    assert_eq!(backend.guarantees().exclusion.to_string(), "yes");
}

#[tokio::test]
async fn a_full_database_refuses_new_locks_and_keeps_those_that_are_held() {
    let server = Server::start(Etcd::v3_5().arg("--quota-backend-bytes=1048576")).await.unwrap();
    let locks = LockManager::builder(EtcdBackend::new([at(&server)])).ttl(TTL * 3).build().unwrap();
    let guard = locks.lock("held").unwrap().acquire().await.unwrap();
    let filling = "x".repeat(100_000);
    until("the database is full", async || {
        server
            .exec(&["put", "filling", &filling])
            .await
            .is_err_and(|error| error.to_string().contains("space"))
    })
    .await;
    let error = soon("a try ends", locks.lock("free").unwrap().try_acquire()).await.unwrap_err();
    assert!(chain(&error).contains("etcdctl alarm disarm"), "{error:?}");
    let renewals = locks.metrics().renewals;
    until("renewals go on", async || locks.metrics().renewals > renewals + 3).await;
    assert!(guard.is_held(), "a lock was lost since the database is full");
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_full_database_costs_no_session_when_an_answer_is_lost() {
    let server = Server::start(Etcd::v3_5().arg("--quota-backend-bytes=1048576")).await.unwrap();
    let way = Proxy::start(server.addr()).await.unwrap();
    let locks = LockManager::builder(EtcdBackend::new([way.addr().to_string()]))
        .ttl(Duration::from_secs(9))
        .request_timeout(Duration::from_secs(1))
        .build()
        .unwrap();
    let kept = locks.lock("kept").unwrap().acquire().await.unwrap();
    let released = locks.lock("released").unwrap().acquire().await.unwrap();
    let filling = "x".repeat(100_000);
    until("the database is full", async || {
        server
            .exec(&["put", "filling", &filling])
            .await
            .is_err_and(|error| error.to_string().contains("space"))
    })
    .await;
    way.black_hole(Direction::ToClient);
    let releasing = tokio::spawn(released.release());
    until("the answer is missed", async || locks.metrics().unknown > 0).await;
    way.pass().await.unwrap();
    assert_eq!(soon("the release is proved", releasing).await.unwrap().unwrap(), ReleaseOutcome::Released);
    let renewals = locks.metrics().renewals;
    until("renewals go on", async || locks.metrics().renewals > renewals).await;
    assert!(kept.is_held(), "a lock was lost since an answer was");
    assert_eq!(locks.metrics().sessions_opened, 1);
    kept.release().await.unwrap();
}

#[tokio::test]
async fn a_member_without_a_majority_is_passed_over() {
    let broken = Etcd::v3_5().arg("--unsafe-no-fsync").cluster(3).await.unwrap();
    let sound = Server::start(Etcd::v3_5()).await.unwrap();
    broken[1].kill().await.unwrap();
    broken[2].kill().await.unwrap();
    // Whichever is tried first.
    for _ in 0..6 {
        let backend = EtcdBackend::new([at(&broken[0]), at(&sound)]);
        let setup = Setup::new().ttl(TTL).request_timeout(Duration::from_secs(3));
        let client = setup.client(&Profile::real(backend.guarantees(), TTL), backend);
        let guard =
            within(Duration::from_secs(20), "another member serves", client.lock("found").acquire()).await;
        guard.unwrap().release().await.unwrap();
        client.locks.close().await.unwrap();
    }
    // Alone it says what is missing.
    until("it knows of no leader", async || {
        refused(EtcdBackend::new([at(&broken[0])])).await.contains("a majority of its members")
    })
    .await;
}

#[tokio::test]
async fn addresses_where_nothing_answers() {
    let error = refused(EtcdBackend::new(["127.0.0.1:1"])).await;
    assert!(error.contains("etcd cannot be reached at 127.0.0.1:1"), "{error}");
    let error = refused(EtcdBackend::new(["127.0.0.1:1", "127.0.0.1:2"])).await;
    assert!(error.contains("127.0.0.1:1") && error.contains("127.0.0.1:2"), "{error}");
    let error = refused(EtcdBackend::new(["no-such-host.invalid"])).await;
    assert!(error.contains("no-such-host.invalid:2379"), "{error}");
    let error = refused(EtcdBackend::new(["two words"])).await;
    assert!(error.contains("write HOST:PORT"), "{error}");
    let error = refused(EtcdBackend::new(Vec::<String>::new())).await;
    assert!(error.contains("at least one"), "{error}");
    // A server of something else.
    let server = Server::start(Etcd::v3_5()).await.unwrap();
    let error = refused(EtcdBackend::new([server.site().addr(2).to_string()])).await;
    assert!(error.contains("if it speaks TLS"), "{error}");
    // A lock that was held when the server went away is lost in time.
    let locks = LockManager::builder(EtcdBackend::new([at(&server)])).ttl(TTL).build().unwrap();
    let guard = locks.lock("gone").unwrap().acquire().await.unwrap();
    server.kill().await.unwrap();
    assert_eq!(within(TTL, "the loss is told", guard.lost()).await, LossReason::Expired);
}
