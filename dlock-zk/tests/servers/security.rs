//! Users, the nodes that are theirs, and certificates.

use std::time::Duration;

use conformance_tests::fixtures::zk::{Operator, quick};
use dlock_core::LockManager;
use dlock_zk::{Tls, ZkBackend, ZkBackendBuilder};
use test_servers::{Certs, Proxy, Server};

use crate::refusals::refused;
use crate::setting::{chain, renewed, soon, spawn_acquire, until};

const TICK: Duration = Duration::from_millis(100);
const TTL: Duration = Duration::from_secs(5);

fn at(server: &Server) -> ZkBackendBuilder {
    ZkBackend::builder([server.addr().to_string()]).tick(TICK)
}

fn manager(backend: &ZkBackend) -> LockManager {
    LockManager::builder(backend.clone()).ttl(TTL).request_timeout(Duration::from_secs(2)).build().unwrap()
}

/// One lock held by one and waited for by another, and handed over.
async fn works(backend: &ZkBackend) {
    let (one, other) = (manager(backend), manager(backend));
    let guard = one.lock("secured").unwrap().acquire().await.unwrap();
    assert!(other.lock("secured").unwrap().try_acquire().await.unwrap().is_none());
    let waiting = spawn_acquire(&other.lock("secured").unwrap());
    renewed(&one, 4).await;
    assert!(guard.is_held() && !waiting.is_finished());
    guard.release().await.unwrap();
    soon("the handoff", waiting).await.unwrap().unwrap().release().await.unwrap();
    one.close().await.unwrap();
    other.close().await.unwrap();
}

/// Who may do what with each node that a held lock has.
async fn rights(server: &Server, backend: &ZkBackend, user: &str) -> Vec<Vec<String>> {
    let members = std::slice::from_ref(server);
    let operator = Operator::of(members).as_user("digest", user);
    // What was left empty goes at any moment.
    until("nothing is left from before", async || operator.nodes().await.is_empty()).await;
    let locks = manager(backend);
    let guard = locks.lock("shown").unwrap().acquire().await.unwrap();
    let mut rights = Vec::new();
    for node in operator.nodes().await {
        let mut acl = operator.acl(&node.path).await;
        acl.sort();
        rights.push(acl);
    }
    assert!(rights.len() >= 5, "the prefix, the sessions, one of them, the lock, the claim");
    guard.release().await.unwrap();
    locks.close().await.unwrap();
    until("nothing is left", async || operator.nodes().await.is_empty()).await;
    rights
}

#[tokio::test]
async fn what_a_user_makes_is_the_users_own() {
    let server = Server::start(quick(TICK)).await.unwrap();
    let shop = at(&server).digest("shop", "s3cret").build();
    works(&shop).await;
    for acl in rights(&server, &shop, "shop:s3cret").await {
        assert!(acl.len() == 1 && acl[0].starts_with("digest:shop:") && acl[0].ends_with(":31"), "{acl:?}");
    }
    let shown = at(&server).digest("shop", "s3cret").world_readable(true).build();
    for acl in rights(&server, &shown, "shop:s3cret").await {
        assert!(acl.len() == 2 && acl[0].starts_with("digest:shop:"), "{acl:?}");
        assert_eq!(acl[1], "world:anyone:1");
    }
    for acl in rights(&server, &at(&server).build(), "nobody:nothing").await {
        assert_eq!(acl, ["world:anyone:31"]);
    }
}

#[tokio::test]
async fn nodes_of_another_user_are_refused_with_the_way_out() {
    let server = Server::start(quick(TICK)).await.unwrap();
    let owner = manager(&at(&server).digest("shop", "s3cret").build());
    let guard = owner.lock("theirs").unwrap().acquire().await.unwrap();
    for stranger in [at(&server).build(), at(&server).digest("thief", "hunter2").build()] {
        let error = refused(stranger).await;
        assert!(error.contains("/dlock") && error.contains("does not let"), "{error}");
        assert!(!error.contains("hunter2") && !error.contains("s3cret"), "{error}");
    }
    // Below a prefix that is open to all, a lock may be another user's.
    let open = manager(&at(&server).prefix("open").build());
    open.open().await.unwrap();
    let mine = manager(&at(&server).prefix("open").digest("shop", "s3cret").build());
    let held = mine.lock("theirs").unwrap().acquire().await.unwrap();
    let tried = soon("a try ends", open.lock("theirs").unwrap().try_acquire()).await;
    let error = chain(&tried.unwrap_err());
    assert!(error.contains("/open/theirs") && error.contains("does not let"), "{error}");
    // And others are not.
    open.lock("free").unwrap().try_acquire().await.unwrap().unwrap().release().await.unwrap();
    assert!(held.is_held() && guard.is_held());
    held.release().await.unwrap();
    guard.release().await.unwrap();
}

#[tokio::test]
async fn sasl_users_need_a_password() {
    let server = Server::start(quick(TICK).sasl(&[("shop", "s3cret"), ("other", "else")])).await.unwrap();
    let shop = at(&server).sasl("shop", "s3cret").build();
    works(&shop).await;
    let locks = manager(&shop);
    let guard = locks.lock("theirs").unwrap().acquire().await.unwrap();
    for (backend, says) in [
        (at(&server).sasl("shop", "hunter2").build(), "shop"),
        (at(&server).sasl("nobody", "hunter2").build(), "nobody"),
        (at(&server).sasl("other", "else").build(), "does not let"),
        (at(&server).build(), "does not let"),
    ] {
        let error = refused(backend).await;
        assert!(error.contains(says), "{says}: {error}");
        assert!(!error.contains("hunter2") && !error.contains("s3cret"), "{error}");
    }
    assert!(guard.is_held());
    guard.release().await.unwrap();
    // A server that knows no SASL.
    let plain = Server::start(quick(TICK)).await.unwrap();
    let error = refused(at(&plain).sasl("shop", "s3cret").build()).await;
    assert!(error.contains("SASL") && !error.contains("s3cret"), "{error}");
}

#[tokio::test]
async fn a_server_that_asks_for_authentication_says_so() {
    let server = Server::start(
        quick(TICK)
            .sasl(&[("shop", "s3cret")])
            .config("enforce.auth.enabled=true")
            .config("enforce.auth.schemes=sasl"),
    )
    .await
    .unwrap();
    works(&at(&server).sasl("shop", "s3cret").build()).await;
    let error = refused(at(&server).build()).await;
    assert!(error.contains("zk://USER:PASSWORD@"), "{error}");
}

#[tokio::test]
async fn tls_with_an_own_authority_and_a_client_certificate() {
    let certs = Certs::new(&[]).await.unwrap();
    let strangers = Certs::new(&[]).await.unwrap();
    let server = Server::start(quick(TICK).tls(&certs)).await.unwrap();
    let secure = server.site().addr(3).to_string();
    let with = |tls: Tls| ZkBackend::builder([secure.clone()]).tick(TICK).tls(tls).build();
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
        (with(known().ca_file("/nowhere/ca.pem")), "/nowhere/ca.pem"),
        (with(known().ca_file(certs.path("client-key.pem"))), "PEM"),
        (ZkBackend::builder([secure.clone()]).tick(TICK).build(), "zks://"),
        (at(&server).tls(known().ca_file(certs.path("ca.pem"))).build(), "zk://"),
    ] {
        let error = refused(backend).await;
        assert!(error.contains(says), "{says}: {error}");
        assert!(!error.contains("PRIVATE KEY"), "{error}");
    }
}

/// Certificates are renewed while a session lives: what the files hold is found at the next connection.
#[tokio::test]
async fn tls_files_that_change_are_read_by_the_session_that_lives() {
    let (certs, strangers) = (Certs::new(&[]).await.unwrap(), Certs::new(&[]).await.unwrap());
    let server = Server::start(quick(TICK).tls(&certs)).await.unwrap();
    let way = Proxy::start(server.site().addr(3)).await.unwrap();
    // What the client reads is laid there from one of the authorities.
    let files = Certs::new(&[]).await.unwrap();
    let lay = |from: &Certs| {
        for file in ["ca.pem", "client.pem", "client-key.pem"] {
            std::fs::write(files.path(file), from.pem(file)).unwrap();
        }
    };
    lay(&certs);
    let tls = Tls::new()
        .ca_file(files.path("ca.pem"))
        .identity_files(files.path("client.pem"), files.path("client-key.pem"));
    let backend = ZkBackend::builder([way.addr().to_string()]).tick(TICK).tls(tls).build();
    let locks = LockManager::builder(backend).ttl(Duration::from_secs(20)).build().unwrap();
    let guard = locks.lock("rotated").unwrap().acquire().await.unwrap();

    // Files that are half written, or gone, are no reason to forget the old ones.
    std::fs::write(files.path("client.pem"), "").unwrap();
    std::fs::remove_file(files.path("ca.pem")).unwrap();
    way.reset_connections().await.unwrap();
    renewed(&locks, 2).await;

    lay(&strangers);
    way.reset_counts();
    way.reset_connections().await.unwrap();
    // One that is taken is the only one.
    until("this server is not trusted any more", async || way.counts().connections >= 3).await;

    lay(&certs);
    renewed(&locks, 2).await;
    assert!(guard.is_held(), "a lock was lost with a certificate");
    guard.release().await.unwrap();
    locks.close().await.unwrap();
}
