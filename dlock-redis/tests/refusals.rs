//! What is wrong with an address, a password, a server or its data is said clearly, loses nothing, and shows no secret.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::{AcquireError, LockManager, ReleaseRequest, Released, StoreError};
use support::{
    Flavour, SOON, backend, chain, claim, granted, manager, own, request, servers, session, settle, settled,
    until,
};
use test_servers::{Certs, Proxy, Redis, Server};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

const TTL: Duration = Duration::from_secs(10);
const SECRET: &str = "s3cret-word";

/// The command of the README that makes a user, with the password of these tests.
fn acl() -> Vec<String> {
    let mut commands =
        include_str!("../README.md").lines().filter(|line| line.starts_with("ACL SETUSER dlock "));
    let (Some(command), None) = (commands.next(), commands.next()) else {
        panic!("the README says once how to make a user");
    };
    let words = command.split(' ').map(|word| word.replace(">PASSWORD", &format!(">{SECRET}")));
    words.collect()
}

/// Makes the user that the README tells an administrator to make, and takes or gives what `then` says.
async fn make_user(server: &Server, then: &[&str]) {
    let rules = acl();
    let words: Vec<_> = rules.iter().map(String::as_str).chain(then.iter().copied()).collect();
    server.exec(&words).await.unwrap();
}

/// Opens a session that must be refused, and returns why.
async fn refused(url: &str) -> String {
    let locks = manager(backend(url), TTL);
    let error = locks.open().await.expect_err("it is refused");
    assert!(matches!(error, StoreError::Refused(_)), "{url}: {}", chain(&error));
    let text = chain(&error);
    assert!(!text.contains(SECRET) && !format!("{error:?}{locks:?}").contains(SECRET), "{text}");
    text
}

/// Asks for a lock that must be refused, and returns why.
async fn not_granted(locks: &LockManager) -> String {
    let error = locks.lock("x").unwrap().acquire_timeout(SOON).await.expect_err("it is refused");
    assert!(matches!(error, AcquireError::Refused { .. }), "{}", chain(&error));
    chain(&error)
}

#[tokio::test]
async fn wrong_credentials_are_named_without_showing_them() {
    let server = own(Redis::v8().password("right")).await;
    let at = server.addr();
    for url in [
        format!("redis://{at}"),
        format!("redis://:{SECRET}@{at}"),
        format!("redis://somebody:{SECRET}@{at}"),
        format!("redis+redlock://:{SECRET}@{at},127.0.0.1:1,127.0.0.2:1"),
    ] {
        let locks = manager(backend(&url), TTL);
        let error = locks.open().await.unwrap_err();
        let text = chain(&error);
        assert!(text.contains("does not accept the user and password"), "{text}");
        assert!(!text.contains(SECRET) && !format!("{error:?}{locks:?}").contains(SECRET), "{text}");
    }
    let right = manager(backend(&format!("redis://:right@{at}/3?restart_delay=0&client_name=shop")), TTL);
    drop(right.lock("x").unwrap().acquire().await.unwrap());
    assert!(server.exec(&["CLIENT", "LIST"]).await.unwrap().contains("name=shop"));
}

#[tokio::test]
async fn what_is_no_redis_is_not_taken_for_one() {
    assert!(
        chain(&manager(backend("redis://127.0.0.1:1"), TTL).open().await.unwrap_err())
            .contains("nothing listens")
    );
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 1024];
            if stream.read(&mut request).await.is_ok() {
                // A server that repeats what it was sent, as some do in errors.
                let sent = String::from_utf8_lossy(&request).replace(['\r', '\n', '\0'], " ");
                drop(stream.write_all(format!("-ERR unknown command {sent}\r\n").as_bytes()).await);
            }
        }
    });
    let error = manager(backend(&format!("redis://bob:{SECRET}@{at}")), TTL).open().await.unwrap_err();
    assert!(!chain(&error).contains(SECRET) && !format!("{error:?}").contains(SECRET), "{}", chain(&error));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    let text = refused(&format!("redis://{at}")).await;
    assert!(text.contains("no Redis or Valkey server"), "{text}");
}

#[tokio::test]
async fn a_wrong_database_is_named() {
    let servers = servers(Flavour::Redis8, 1).await;
    let text = refused(&format!("redis://{}/99", servers[0].addr())).await;
    assert!(text.contains("has no database 99"), "{text}");
}

#[tokio::test]
async fn foreign_values_at_our_keys_are_left_alone() {
    let servers = servers(Flavour::Redis8, 1).await;
    let server = &servers[0];
    let locks = manager(settled(&servers, "").await, TTL);
    server.exec(&["RPUSH", "dlock:lock:x", "theirs"]).await.unwrap();
    let text = not_granted(&locks).await;
    assert!(text.contains("dlock:lock:x") && text.contains("did not write"), "{text}");
    assert_eq!(server.exec(&["LRANGE", "dlock:lock:x", "0", "-1"]).await.unwrap().trim(), "theirs");
    server.exec(&["DEL", "dlock:lock:x"]).await.unwrap();
    let session = session(&settled(&servers, "").await, TTL).await;
    granted(&*session, &claim("probe")).await;
    let keys = server.exec(&["KEYS", "dlock:fence:*"]).await.unwrap();
    let probe = keys.trim();
    server.exec(&["SET", probe, "text"]).await.unwrap();
    server.exec(&["DEL", "dlock:lock:probe"]).await.unwrap();
    let error = session.claim(request(&claim("probe"))).await.unwrap_err();
    assert!(error.to_string().contains(probe), "{error}");
    // The mark.
    server.exec(&["DEL", "dlock:mark"]).await.unwrap();
    server.exec(&["SET", "dlock:mark", "text"]).await.unwrap();
    let text = not_granted(&locks).await;
    assert!(text.contains("another type") && text.contains("dlock:mark"), "{text}");
}

/// The stock recipe: `SET key value NX PX`, and a release that compares.
#[tokio::test]
async fn a_client_of_the_stock_recipe_excludes_us_and_we_it() {
    let servers = servers(Flavour::Redis8, 1).await;
    let server = &servers[0];
    let locks = manager(settled(&servers, "").await, TTL);
    let lock = locks.lock("x").unwrap();
    locks.open().await.unwrap();
    server.exec(&["SET", "dlock:lock:x", "their-token", "NX", "PX", "8000"]).await.unwrap();
    assert!(lock.try_acquire().await.unwrap().is_none());
    assert_eq!(lock.holder().await.unwrap().unwrap().owner, "their-token");
    let guard = lock.acquire_timeout(SOON).await.unwrap();
    let theirs = server.exec(&["SET", "dlock:lock:x", "their-token", "NX", "PX", "1500"]).await.unwrap();
    assert_eq!(theirs.trim(), "", "not set");
    guard.release().await.unwrap();
    // A key that never expires is held until somebody deletes it.
    server.exec(&["SET", "dlock:lock:x", "for ever"]).await.unwrap();
    assert!(lock.acquire_timeout(Duration::from_secs(2)).await.unwrap_err().is_timeout());
}

#[tokio::test]
async fn a_replica_names_its_master() {
    let master = own(Redis::v8()).await;
    let replica = own(Redis::v8().replica_of(master.addr())).await;
    until("it is a replica", async || {
        replica.exec(&["INFO", "replication"]).await.unwrap().contains("master_link_status:up")
    })
    .await;
    let text = refused(&format!("redis://{}", replica.addr())).await;
    assert!(text.contains(&format!("is a replica of {}", master.addr())), "{text}");
}

#[tokio::test]
async fn a_cluster_is_refused() {
    let server = own(Redis::v8().cluster()).await;
    let text = refused(&format!("redis://{}", server.addr())).await;
    assert!(text.contains("Redis Cluster") && text.contains("redis+redlock://"), "{text}");
}

#[tokio::test]
async fn out_of_memory_grants_nothing_and_keeps_what_is_held() {
    let server = own(Redis::v8().config("maxmemory-policy noeviction")).await;
    let locks = manager(settled(std::slice::from_ref(&server), "").await, TTL);
    let held = locks.lock("held").unwrap().acquire().await.unwrap();
    server.exec(&["CONFIG", "SET", "maxmemory", "1"]).await.unwrap();
    let text = not_granted(&locks).await;
    assert!(text.contains("out of memory"), "{text}");
    assert!(held.is_held());
    held.release().await.unwrap();
    server.exec(&["CONFIG", "SET", "maxmemory", "0"]).await.unwrap();
    drop(locks.lock("x").unwrap().acquire().await.unwrap());
}

#[tokio::test]
async fn two_addresses_of_one_server_are_not_two_nodes() {
    let servers = servers(Flavour::Redis8, 5).await;
    let door = Proxy::start(servers[0].addr()).await.unwrap();
    let second = Proxy::start(servers[1].addr()).await.unwrap();
    let (a, b) = (servers[0].addr(), second.addr());
    let text = refused(&format!("redis+redlock://{a},{b},{}", door.addr())).await;
    assert!(text.contains("one server"), "{text}");
    // Also when the second address is found out later only.
    let door = Proxy::start(servers[2].addr()).await.unwrap();
    let url = format!("redis+redlock://{a},{b},{}?restart_delay=0", door.addr());
    let locks = manager(backend(&url), TTL);
    drop(locks.lock("x").unwrap().acquire().await.unwrap());
    door.set_target(servers[0].addr());
    door.reset_connections().await.unwrap();
    let other =
        manager(backend(&format!("redis+redlock://{a},{b},{}?restart_delay=0", servers[2].addr())), TTL);
    for round in 0..3 {
        drop(other.lock(format!("y{round}")).unwrap().acquire().await.unwrap());
        drop(locks.lock(format!("z{round}")).unwrap().acquire_timeout(SOON).await.unwrap());
    }
    // The twin gets no vote: what is left with the second one away is one server.
    second.cut().await.unwrap();
    let text = chain(&locks.lock("last").unwrap().try_acquire().await.unwrap_err());
    assert!(text.contains("2 of 3 nodes") && text.contains("the same server as node 1"), "{text}");
    assert_eq!(servers[0].exec(&["KEYS", "dlock:lock:last"]).await.unwrap().trim(), "");
}

/// Addresses may move: what a node was does not count once its connection is gone.
#[tokio::test]
async fn nodes_that_swap_their_addresses_are_nodes_still() {
    let servers = servers(Flavour::Redis8, 5).await;
    let mut doors = Vec::new();
    for server in &servers[..3] {
        doors.push(Proxy::start(server.addr()).await.unwrap());
    }
    let addresses: Vec<_> = doors.iter().map(|door| door.addr().to_string()).collect();
    let locks = manager(backend(&format!("redis+redlock://{}?restart_delay=0", addresses.join(","))), TTL);
    drop(locks.lock("x").unwrap().acquire().await.unwrap());
    doors[0].set_target(servers[1].addr());
    doors[1].set_target(servers[0].addr());
    for door in &doors[..2] {
        door.reset_connections().await.unwrap();
    }
    // Both are needed.
    doors[2].cut().await.unwrap();
    until("the two are known by their new addresses", async || {
        locks.lock("y").unwrap().try_acquire().await.is_ok_and(|guard| guard.is_some())
    })
    .await;
}

#[tokio::test]
async fn settings_that_differ_are_shown_and_change_nothing() {
    let servers = servers(Flavour::Redis8, 1).await;
    let locks = manager(settled(&servers, "").await, TTL);
    let held = locks.lock("held").unwrap().acquire().await.unwrap();
    let mark = servers[0].exec(&["HGETALL", "dlock:mark"]).await.unwrap();
    for parameters in ["restart_delay=40s", "clock_skew=400ms", "restart_delay=0"] {
        let other = manager(backend(&support::url(&servers, parameters)), TTL);
        let text = not_granted(&other).await;
        assert!(text.contains("1:35000:1:1000:500:1024") && text.contains("dlock init"), "{text}");
        let error = other.init().await.unwrap_err();
        assert!(chain(&error).contains("1:35000:1:1000:500:1024"), "{}", chain(&error));
    }
    assert_eq!(servers[0].exec(&["HGETALL", "dlock:mark"]).await.unwrap(), mark);
    assert!(held.is_held());
}

#[tokio::test]
async fn a_limited_user_is_enough() {
    for flavour in [Redis::v8(), Redis::v7(), Redis::valkey()] {
        let server = own(flavour).await;
        make_user(&server, &[]).await;
        let ours = backend(&format!("redis://dlock:{SECRET}@{}", server.addr()));
        let (one, other) = (manager(ours.clone(), TTL), manager(ours.clone(), TTL));
        settle(std::slice::from_ref(&server), &ours).await;
        let guard = one.lock("x").unwrap().acquire().await.unwrap();
        let lock = other.lock("x").unwrap();
        let waiting = tokio::spawn(async move { lock.acquire_timeout(SOON).await });
        until("the other has subscribed", async || {
            server.exec(&["PUBSUB", "NUMSUB", "dlock:wake:x"]).await.unwrap().contains('1')
        })
        .await;
        guard.release().await.unwrap();
        waiting.await.unwrap().unwrap().release().await.unwrap();
        assert!(one.lock("x").unwrap().holder().await.unwrap().is_none());
        one.close().await.unwrap();
        other.close().await.unwrap();
        assert_eq!(server.exec(&["ACL", "LOG"]).await.unwrap().trim(), "", "nothing was denied");
    }
}

#[tokio::test]
async fn a_missing_permission_is_named() {
    let server = own(Redis::v8()).await;
    let url = format!("redis://dlock:{SECRET}@{}?restart_delay=0", server.addr());
    for (without, part) in [
        ("-evalsha", "evalsha"),
        ("-eval", "eval"),
        ("-info", "info"),
        ("-set", "set"),
        ("resetkeys", "~dlock:*"),
    ] {
        make_user(&server, &[without]).await;
        let locks = manager(backend(&url), TTL);
        let text = match locks.open().await {
            Err(error) => chain(&error),
            Ok(()) => not_granted(&locks).await,
        };
        assert!(text.contains(part) && text.contains("ACL SETUSER"), "{without}: {text}");
        assert!(!text.contains(SECRET), "{text}");
    }
    // Without the right to publish or to subscribe, the poll remains.
    make_user(&server, &["-publish", "-subscribe"]).await;
    let (one, other) = (manager(backend(&url), Duration::from_secs(1)), manager(backend(&url), TTL));
    let guard = one.lock("x").unwrap().acquire().await.unwrap();
    let lock = other.lock("x").unwrap();
    let waiting = tokio::spawn(async move { lock.acquire_timeout(SOON).await });
    until("the other waits", async || other.metrics().waiting > 0).await;
    guard.release().await.unwrap();
    drop(waiting.await.unwrap().unwrap());
}

#[tokio::test]
async fn tls_with_and_without_what_it_needs() {
    let certs = Certs::new(&[]).await.unwrap();
    let server = own(Redis::v8().tls(&certs)).await;
    let at = server.addr();
    let file = |name: &str| certs.path(name).display().to_string();
    let full = format!(
        "rediss://{at}?restart_delay=0&ca={}&cert={}&key={}",
        file("ca.pem"),
        file("client.pem"),
        file("client-key.pem")
    );
    let locks = manager(backend(&full), TTL);
    locks.lock("x").unwrap().acquire().await.unwrap().release().await.unwrap();
    let text =
        refused(&format!("rediss://{at}?cert={}&key={}", file("client.pem"), file("client-key.pem"))).await;
    assert!(text.contains("is not trusted") && text.contains("parameter ca"), "{text}");
    let text = refused(&format!("rediss://{at}?ca={}", file("ca.pem"))).await;
    assert!(text.contains("may want a client certificate"), "{text}");
    let text = refused(&format!("rediss://{at}?ca={}", file("client-key.pem"))).await;
    assert!(text.contains("no certificate"), "{text}");
    // Plain text to a TLS port, and TLS to a plain one.
    let error = manager(backend(&format!("redis://{at}")), TTL).open().await.unwrap_err();
    assert!(chain(&error).contains(&at.to_string()), "{}", chain(&error));
    let plain = servers(Flavour::Redis8, 1).await;
    let url = format!("rediss://{}?ca={}", plain[0].addr(), file("ca.pem"));
    let error = manager(backend(&url), TTL).open().await.unwrap_err();
    assert!(chain(&error).contains("does not speak TLS"), "{}", chain(&error));
}

#[tokio::test]
async fn a_lost_script_is_sent_again() {
    let servers = servers(Flavour::Redis8, 1).await;
    let session = session(&settled(&servers, "").await, TTL).await;
    for round in 0..3 {
        let claim = claim(&format!("x{round}"));
        servers[0].exec(&["SCRIPT", "FLUSH"]).await.unwrap();
        granted(&*session, &claim).await;
        servers[0].exec(&["SCRIPT", "FLUSH"]).await.unwrap();
        assert!(session.observe(&claim.name).await.unwrap().is_some());
        assert_eq!(session.release(ReleaseRequest::new(claim)).await.unwrap(), Released::Done);
    }
}

/// A mark whose end somebody has set far beyond every calendar.
#[tokio::test]
async fn an_odd_mark_is_told_and_survived() {
    let servers = servers(Flavour::Redis8, 1).await;
    let locks = manager(settled(&servers, "").await, TTL);
    let lock = locks.lock("x").unwrap();
    for till in ["1000000000000000000", "1e18", "nan", "inf"] {
        servers[0].exec(&["HSET", "dlock:mark", "till", till]).await.unwrap();
        // Who only looks is told what the next grant will find.
        let looked = chain(&lock.holder().await.unwrap_err());
        let tried = chain(&lock.try_acquire().await.unwrap_err());
        for text in [looked, tried] {
            assert!(text.contains("grants no lock until 20") && text.contains("(in 35 s)"), "{till}: {text}");
        }
    }
}

/// What Redis 6 says to what a session begins with; there is no package of it to run.
#[tokio::test]
async fn a_server_that_is_too_old_is_named() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (from, mut to) = stream.into_split();
            let mut lines = tokio::io::BufReader::new(from).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let reply: &[u8] = match line.as_str() {
                    "HELLO" => b"%2\r\n+server\r\n+redis\r\n+version\r\n+6.2.14\r\n",
                    "INFO" => b"-ERR syntax error\r\n",
                    "EVAL" => b"+loaded\r\n",
                    _ => continue,
                };
                if to.write_all(reply).await.is_err() {
                    break;
                }
            }
        }
    });
    let text = refused(&format!("redis://{at}")).await;
    assert!(text.contains("too old") && text.contains('7'), "{text}");
}
