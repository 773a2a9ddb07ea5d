//! What is wrong with an address, a role or a schema is said, with the way out; and PostgreSQL's own settings work.

use dlock_core::{Backend as _, BackendUrl, ErrorKind, LockManager};
use dlock_postgres::PostgresBackend;
use dlock_postgres::sqlx::ConnectOptions as _;
use test_servers::{Certs, Postgres, Server};

use crate::place::{
    Look, Place, TTL, chain, granted, open_options, options, postgres, relay, session, version,
};

fn backend(url: &str) -> PostgresBackend {
    let mut url = BackendUrl::parse(url).unwrap();
    let backend = PostgresBackend::from_url(&mut url).unwrap();
    url.finish().unwrap();
    backend
}

async fn error_of(url: &str) -> (ErrorKind, String) {
    let error = session(&backend(url), TTL).await.expect_err(url);
    let text = chain(&error);
    assert!(!text.contains("s3cret") && !format!("{error:?}").contains("s3cret"), "{text}");
    (error.kind(), text)
}

#[tokio::test]
async fn wrong_addresses_and_credentials_say_what_to_do() {
    let hba = ["host all app all scram-sha-256", "host all nobody all reject"];
    let server = hba.into_iter().fold(postgres(), Postgres::hba);
    let server = Server::start(server).await.unwrap();
    let sql = "CREATE ROLE app LOGIN PASSWORD 's3cret'; CREATE ROLE nobody LOGIN";
    server.exec(&["-c", sql]).await.unwrap();
    let addr = server.addr();
    for (url, kind, word) in [
        (format!("postgres://app:wrongs3cret@{addr}/postgres"), ErrorKind::Refused, "~/.pgpass"),
        (format!("postgres://nobody@{addr}/postgres"), ErrorKind::Refused, "pg_hba.conf"),
        (format!("postgres://unknown@{addr}/postgres"), ErrorKind::Refused, "pg_hba.conf"),
        (format!("postgres://app:s3cret@{addr}/nothere"), ErrorKind::Refused, "CREATE DATABASE"),
        (format!("postgres://app:s3cret@{addr}/postgres?sslmode=require"), ErrorKind::Refused, "ssl=on"),
        (
            "postgres://app:s3cret@127.0.0.1:1/postgres".to_owned(),
            ErrorKind::Unavailable,
            "cannot be reached",
        ),
        (format!("postgres://app:s3cret@{addr}/postgres"), ErrorKind::Refused, "dlock init"),
    ] {
        let (found, text) = error_of(&url).await;
        assert!(found == kind && text.contains(word), "{url}: {found:?} {text}");
    }
}

#[tokio::test]
async fn a_role_with_the_printed_rights_only_can_lock() {
    let place = Place::new().await;
    let (database, role) = (&place.database, format!("app_{}", place.database));
    let mut look = place.look().await;
    look.run(format!("CREATE ROLE {role} LOGIN")).await;
    let server = Server::start(postgres().hba("host all all all trust")).await.unwrap();
    let mut look = {
        drop(look);
        Look(options(&server, "postgres").connect().await.unwrap())
    };
    look.run(format!("CREATE ROLE {role} LOGIN")).await;
    look.run(format!("CREATE DATABASE {database}")).await;
    let mut look = Look(options(&server, database).connect().await.unwrap());
    let url = format!("postgres://{role}@{}/{database}?schema=My%20%22locks%22", server.addr());
    let app = backend(&url);
    let error = app.init(open_options(TTL)).await.unwrap_err();
    assert!(error.to_string().contains("CREATE UNLOGGED TABLE"), "it prints the SQL: {error}");
    assert!(error_of(&format!("{url}&create_schema=false")).await.1.contains("create_schema=false"));
    look.run(app.schema_sql()).await;
    let said = app.init(open_options(TTL)).await.unwrap();
    assert!(said[0].contains("is ready"), "{said:?}");
    granted(&*session(&backend(&format!("{url}&create_schema=false")), TTL).await.unwrap(), "a", 1).await;
    look.run(format!("REVOKE UPDATE ON \"My \"\"locks\"\"\".meta FROM {role}")).await;
    // A lease longer than any before must be written down.
    let error = session(&app, TTL * 10).await.unwrap_err();
    assert!(error.to_string().contains("GRANT SELECT, INSERT, UPDATE"), "{error}");
}

#[tokio::test]
async fn preparing_says_what_was_made() {
    let place = Place::new().await;
    let locks = LockManager::builder(place.backend()).ttl(TTL).build().unwrap();
    let said = locks.init().await.unwrap();
    assert!(said[0].starts_with("made schema \"dlock\""), "{said:?}");
    let said = locks.init().await.unwrap();
    assert!(said[0].contains("is ready"), "{said:?}");
}

#[tokio::test]
async fn schemas_and_prefixes_have_nothing_to_do_with_each_other() {
    let place = Place::new().await;
    let mut sessions = Vec::new();
    for (schema, prefix) in [
        ("dlock", ""),
        ("dlock", "shop/"),
        ("shop", ""),
        ("Shop's \"own\"", "shop/"),
        // Names that look like what is filled in.
        ("{epoch}", ""),
        ("{s} dlock. EXISTS dlock;", ""),
    ] {
        let backend = PostgresBackend::builder(place.options()).schema(schema).prefix(prefix).build();
        // Nobody renews them.
        let one = session(&backend, TTL * 30).await.unwrap();
        granted(&*one, "orders/42", 1).await;
        sessions.push(one);
    }
    assert_eq!(place.look().await.advisory_locks().await, 6);
}

#[tokio::test]
async fn a_schema_that_many_make_at_once_is_made_once() {
    let place = Place::new().await;
    let opening: Vec<_> = (0..8)
        .map(|_| {
            let backend = place.backend();
            tokio::spawn(async move { session(&backend, TTL).await })
        })
        .collect();
    for opened in opening {
        opened.await.unwrap().unwrap();
    }
    assert_eq!(place.look().await.number("SELECT count(*) FROM dlock.epoch").await, 1);
}

#[tokio::test]
async fn tls_is_as_sslmode_says() {
    let certs = Certs::new(&[]).await.unwrap();
    let server = postgres().tls(&certs).hba("hostssl all app all trust").hba("host all app all reject");
    let server = Server::start(server).await.unwrap();
    server.exec(&["-c", "CREATE ROLE app LOGIN SUPERUSER"]).await.unwrap();
    let folder = server.site().folder();
    let ca = folder.join("ca.pem").display().to_string();
    let addr = server.addr();
    for (parameters, works) in [
        ("sslmode=prefer".to_owned(), true),
        ("sslmode=require".to_owned(), true),
        ("sslmode=disable".to_owned(), false),
        (format!("sslmode=verify-ca&sslrootcert={ca}"), true),
        ("sslmode=verify-ca".to_owned(), false),
        (format!("sslmode=verify-full&sslrootcert={ca}"), true),
    ] {
        let url = format!("postgres://app@{addr}/postgres?{parameters}");
        match session(&backend(&url), TTL).await {
            Ok(_) => assert!(works, "{url}"),
            Err(error) => {
                assert!(!works, "{url}: {}", chain(&error));
                assert_eq!(error.kind(), ErrorKind::Refused, "{url}: {}", chain(&error));
            }
        }
    }
}

#[tokio::test]
async fn the_owner_is_shown_to_administrators() {
    let place = Place::new().await;
    let locks = place.manager("worker-7");
    let guard = locks.lock("a").unwrap().acquire().await.unwrap();
    let mut look = place.look().await;
    assert!(look.pid_of("worker-7").await > 0);
    drop(guard);
}

#[tokio::test]
async fn a_certificate_lets_its_own_role_in_and_no_other() {
    let certs = Certs::new(&[]).await.unwrap();
    let lines =
        ["hostssl all client,other all trust clientcert=verify-full", "host all client,other all reject"];
    let server = Server::start(lines.into_iter().fold(postgres().tls(&certs), Postgres::hba)).await.unwrap();
    let roles = "CREATE ROLE client LOGIN SUPERUSER; CREATE ROLE other LOGIN SUPERUSER";
    server.exec(&["-c", roles]).await.unwrap();
    let addr = server.addr();
    let file = |name: &str| certs.path(name).display().to_string();
    let ca = format!("sslmode=verify-full&sslrootcert={}", file("ca.pem"));
    let own = format!("{ca}&sslcert={}&sslkey={}", file("client.pem"), file("client-key.pem"));
    let one = session(&backend(&format!("postgres://client@{addr}/postgres?{own}")), TTL).await.unwrap();
    granted(&*one, "a", 1).await;
    for (role, parameters) in [("client", &ca), ("other", &own)] {
        let (kind, text) = error_of(&format!("postgres://{role}@{addr}/postgres?{parameters}")).await;
        assert_eq!(kind, ErrorKind::Refused, "{role}: {text}");
    }
}

#[tokio::test]
async fn a_server_with_another_name_than_its_certificate_says_is_refused() {
    let certs = Certs::new(&[]).await.unwrap();
    let server = Server::start(postgres().tls(&certs)).await.unwrap();
    let ca = certs.path("ca.pem").display().to_string();
    // The same server under an address that is not in the certificate.
    let addr = relay(0, server.addr(), |bytes| bytes).await;
    let url = |mode: &str| format!("postgres://postgres@{addr}/postgres?sslmode={mode}&sslrootcert={ca}");
    granted(&*session(&backend(&url("verify-ca")), TTL).await.unwrap(), "a", 1).await;
    let (kind, text) = error_of(&url("verify-full")).await;
    assert!(kind == ErrorKind::Refused && text.contains("certificate"), "{kind:?} {text}");
}

#[tokio::test]
async fn a_server_that_is_too_old_is_refused() {
    let place = Place::new().await;
    // It says of itself that it is older.
    let addr = relay(0, place.server.addr(), |bytes| {
        let text = format!("server_version\0{}", version());
        let at = bytes
            .windows(text.len())
            .position(|found| found == text.as_bytes())
            .expect("it tells its version");
        let mut older = bytes;
        older[at + text.len() - 1] = b'3';
        older
    })
    .await;
    let (kind, text) =
        error_of(&format!("postgres://postgres@{addr}/{}?sslmode=disable", place.database)).await;
    assert_eq!(kind, ErrorKind::Refused, "{text}");
    assert!(text.contains("PostgreSQL 13") && text.contains("14 or newer"), "{text}");
}
