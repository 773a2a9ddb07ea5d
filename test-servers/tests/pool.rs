//! Sets of servers are used again, but not those of a test that failed, and nothing outlives the test program.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use test_servers::{Pool, Redis, Server};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

fn new_set() -> test_servers::Work<'static, Server> {
    Box::pin(Server::start(Redis::v8()))
}

fn flush(server: &Server) -> test_servers::Work<'_, ()> {
    Box::pin(async { server.exec(&["FLUSHALL"]).await.map(drop) })
}

#[tokio::test]
async fn a_set_is_used_again_and_clean() {
    static POOL: Pool<Server> = Pool::new(new_set).reset(flush);
    let first = POOL.lease().await.unwrap();
    let addr = first.addr();
    first.exec(&["SET", "colour", "green"]).await.unwrap();
    let second = POOL.lease().await.unwrap();
    assert_ne!(second.addr(), addr, "a set was lent twice");
    drop(first);
    let again = POOL.lease().await.unwrap();
    assert_eq!(again.addr(), addr);
    assert_eq!(again.exec(&["GET", "colour"]).await.unwrap(), "");
}

#[tokio::test]
async fn a_set_outlives_the_runtime_that_started_it() {
    static POOL: Pool<Server> = Pool::new(new_set);
    let use_it = || {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let set = POOL.lease().await.unwrap();
            set.exec(&["PING"]).await.unwrap();
            set.addr()
        })
    };
    let addrs = tokio::task::spawn_blocking(move || (use_it(), use_it())).await.unwrap();
    assert_eq!(addrs.0, addrs.1);
}

#[tokio::test]
async fn a_dirty_set_and_that_of_a_failed_test_are_discarded() {
    static POOL: Pool<Server> = Pool::new(new_set);
    let set = POOL.lease().await.unwrap();
    let dirty = set.addr();
    set.mark_dirty();
    drop(set);
    let set = POOL.lease().await.unwrap();
    let failed = set.addr();
    assert_ne!(failed, dirty);
    let failing = tokio::spawn(async move {
        let _set = set;
        panic!("this test of a test fails on purpose");
    });
    failing.await.unwrap_err();
    assert_ne!(POOL.lease().await.unwrap().addr(), failed);
    for addr in [dirty, failed] {
        let gone = async {
            while TcpStream::connect(addr).await.is_ok() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(30), gone).await.unwrap();
    }
}

/// Where Docker answers, processes are what no other test here runs on.
#[tokio::test]
async fn servers_run_as_processes_too() {
    let program = Command::new(env::current_exe().unwrap())
        .args(["--exact", "a_set_is_used_again_and_clean", "nothing_outlives_a_killed_test_program"])
        .env("DLOCK_TEST_PROVIDER", "process")
        .output()
        .unwrap();
    let shown = String::from_utf8(program.stdout).unwrap();
    assert!(program.status.success() && shown.contains("2 passed"), "{shown}");
}

/// The name of the variable that makes the next test fail.
const FAILS: &str = "TEST_SERVERS_TO_FAIL";

#[tokio::test]
async fn the_logs_of_a_failed_test_are_shown() {
    static POOL: Pool<Server> = Pool::new(new_set);
    if env::var_os(FAILS).is_some() {
        let lent = POOL.lease().await.unwrap();
        let own = Server::start(Redis::v8()).await.unwrap();
        panic!("this test fails on purpose, with {} and {}", lent.site().name(), own.site().name());
    }
    let program = Command::new(env::current_exe().unwrap())
        .args(["--exact", "the_logs_of_a_failed_test_are_shown"])
        .env(FAILS, "yes")
        .output()
        .unwrap();
    let shown = String::from_utf8(program.stdout).unwrap();
    assert!(!program.status.success(), "{shown}");
    let (_, names) = shown.split_once("on purpose, with ").unwrap();
    for name in names.lines().next().unwrap().split(" and ") {
        let (_, log) = shown.split_once(&format!("the end of the log of {name}:")).expect(&shown);
        assert!(log.contains("Ready to accept connections"), "{shown}");
    }
}

/// The name of the variable that makes the next test a program that starts servers and waits for its end.
const ROLE: &str = "TEST_SERVERS_TO_BE_KILLED";

#[tokio::test]
async fn nothing_outlives_a_killed_test_program() {
    static POOL: Pool<Server> = Pool::new(new_set);
    if env::var_os(ROLE).is_some() {
        let running = Server::start(Redis::v8()).await.unwrap();
        let frozen = POOL.lease().await.unwrap();
        frozen.freeze().await.unwrap();
        let folder = running.site().folder().parent().unwrap();
        let pids = (running.pid().await.unwrap().unwrap(), frozen.pid().await.unwrap().unwrap());
        eprintln!("\nready {} {} {}", folder.display(), pids.0, pids.1);
        std::future::pending::<()>().await;
    }

    let mut program = Command::new(env::current_exe().unwrap())
        .args(["--exact", "nothing_outlives_a_killed_test_program", "--nocapture"])
        .env(ROLE, "yes")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(program.stderr.take().unwrap()).lines().map_while(Result::ok);
    let ready = lines.find(|line| line.starts_with("ready ")).unwrap();
    let words: Vec<_> = ready.split(' ').collect();
    let (folder, pids) = (Path::new(words[1]), &words[2..]);
    let exists = |pid: &&&str| {
        fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|name| name.contains("redis") || name.contains("ld-"))
    };
    assert_eq!(pids.iter().filter(exists).count(), 2);
    assert!(folder.is_dir());

    program.kill().unwrap();
    program.wait().unwrap();
    let gone = async {
        while folder.exists() || pids.iter().any(|pid| exists(&pid)) {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(30), gone).await.unwrap();
}
