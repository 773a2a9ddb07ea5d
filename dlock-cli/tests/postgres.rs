//! The command on PostgreSQL: preparing a database, what `locate` prints, and the settings that PostgreSQL users expect.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod sandbox;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use sandbox::Sandbox;
use test_servers::{Postgres, Server};
use tokio::runtime::Runtime;

const PASSWORD: &str = "s3cret";

/// A server that asks for a password, and a role with few rights.
fn postgres(runtime: &Runtime) -> Server {
    runtime.block_on(async {
        let server =
            Server::start(Postgres::v17().password(PASSWORD)).await.unwrap_or_else(|error| panic!("{error}"));
        let sql = format!("CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'");
        server.exec(&["-c", &sql]).await.unwrap();
        server
    })
}

#[test]
fn a_role_without_rights_gets_the_sql_for_an_administrator() {
    let runtime = Runtime::new().unwrap();
    let server = postgres(&runtime);
    let sandbox = Sandbox::new();
    let url = format!("postgres://app:{PASSWORD}@{}/postgres?ttl=2s", server.addr());
    let refused = sandbox.dlock_ends(&["init", "--url", &url]);
    assert_ne!(refused.code(), 0);
    // A message, the SQL, and which store it is about.
    let sql = refused
        .stderr
        .split("\n\n")
        .filter(|part| !part.contains("dlock: ") && !part.contains("the store is"));
    let sql = sql.collect::<Vec<_>>().join("\n");
    assert!(
        sql.contains("CREATE UNLOGGED TABLE") && !refused.stderr.contains(PASSWORD),
        "{}",
        refused.stderr
    );
    // It is what is missing.
    runtime.block_on(server.exec(&["-c", &sql])).unwrap();
    sandbox.dlock_ends(&["init", "--url", &url]).expect(0, "is ready for role \"app\"");
    sandbox.dlock_ends(&["run", "--url", &url, "job", "--", "true"]).expect(0, "");
}

#[test]
fn what_is_located_is_the_key_of_an_advisory_lock() {
    let runtime = Runtime::new().unwrap();
    let server = postgres(&runtime);
    let sandbox = Sandbox::new();
    let url = format!("postgres://postgres:{PASSWORD}@{}/postgres?ttl=2s", server.addr());
    let located = sandbox.dlock_ends(&["locate", "--url", &url, "orders/42"]);
    located.expect(0, "psql -h");
    let key = located.stdout.trim();
    let run = |wait: &str, command: &[&str]| {
        sandbox.dlock_ends(&[&["run", "--url", &url, wait, "orders/42", "--"], command].concat())
    };
    run("--wait=30s", &["true"]).expect(0, "");
    // Psql holds it until it is ended.
    let hold = format!("SELECT pg_advisory_lock({key}) IS NULL, pg_sleep(600)");
    std::thread::scope(|scope| {
        let tool = scope.spawn(|| runtime.block_on(server.exec(&["-c", &hold])));
        sandbox::until(&"psql holds it", || (run("--no-wait", &["true"]).code() == 75).then_some(()));
        let end = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'";
        runtime.block_on(server.exec(&["-c", end])).unwrap();
        assert!(tool.join().unwrap().is_err(), "it was ended while it held the lock");
    });
    // And the other way round.
    let script = "touch held; while [ ! -e done ]; do sleep 0.02; done";
    let arguments = ["run", "--url", &url, "orders/42", "--", "sh", "-c", script];
    let holder = sandbox.start(&mut sandbox.dlock(&arguments));
    sandbox::until(&"it holds", || sandbox.path("held").exists().then_some(()));
    let try_it = format!("SELECT pg_try_advisory_lock({key})");
    assert_eq!(runtime.block_on(server.exec(&["-c", &try_it])).unwrap().trim(), "f");
    fs::write(sandbox.path("done"), "").unwrap();
    holder.ends().expect(0, "");
    assert_eq!(runtime.block_on(server.exec(&["-c", &try_it])).unwrap().trim(), "t");
}

#[test]
fn what_a_url_leaves_out_comes_from_the_environment() {
    let runtime = Runtime::new().unwrap();
    let server = postgres(&runtime);
    let sandbox = Sandbox::new();
    let (ip, port) = (server.addr().ip().to_string(), server.addr().port().to_string());
    let run = |url: &str, set: &[(&str, &str)]| {
        let mut command = sandbox.dlock(&["run", "--url", url, "job", "--", "true"]);
        for name in ["PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGDATABASE", "PGSSLMODE"] {
            command.env_remove(name);
        }
        // No ~/.pgpass of whoever runs this.
        command.env("HOME", sandbox.path(".")).envs(set.iter().copied());
        sandbox.start(&mut command).ends()
    };
    let place =
        [("PGHOST", ip.as_str()), ("PGPORT", &port), ("PGUSER", "postgres"), ("PGDATABASE", "postgres")];
    let with = |more: (&'static str, String)| {
        let mut all = place.map(|(name, value)| (name, value.to_owned())).to_vec();
        all.push(more);
        all
    };
    let set = |all: &[(&'static str, String)]| {
        let all: Vec<_> = all.iter().map(|(name, value)| (*name, value.as_str())).collect();
        run("postgres:?ttl=2s", &all)
    };
    set(&with(("PGPASSWORD", PASSWORD.to_owned()))).expect(0, "");
    assert_ne!(set(&with(("PGPASSWORD", "wrong".to_owned()))).code(), 0);

    let file = sandbox.path("passwords");
    fs::write(&file, format!("{ip}:{port}:*:postgres:{PASSWORD}\n")).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let file = file.display().to_string();
    set(&with(("PGPASSFILE", file.clone()))).expect(0, "");
    // What the URL says counts.
    let url = format!("postgres://postgres@{}/postgres?ttl=2s", server.addr());
    run(&url, &[("PGPASSFILE", &file), ("PGHOST", "127.0.0.1"), ("PGPORT", "1")]).expect(0, "");
    fs::write(sandbox.path(".pgpass"), format!("{ip}:{port}:*:postgres:{PASSWORD}\n")).unwrap();
    fs::set_permissions(sandbox.path(".pgpass"), fs::Permissions::from_mode(0o600)).unwrap();
    run(&url, &[]).expect(0, "");
}
