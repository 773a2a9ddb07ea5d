//! Round trips, counted on the wire, and what a great many names leave behind.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::{
    ClaimReply, Clock, LockGuard, ReleaseOutcome, ReleaseRequest, Released, Renewal, SystemClock,
};
use support::{
    Flavour, SOON, backend, claim, granted, manager, own, request, residue, servers, session, settle,
    settled, until,
};
use test_servers::{Counts, Direction, Protocol, Proxy, Redis, Server};

const TTL: Duration = Duration::from_secs(10);

/// Acquire 1, busy try 1, release 1, renewal of 1,000 locks 1 batch: on each node.
async fn budget(nodes: usize) {
    let servers = servers(Flavour::Redis8, 5).await;
    let mut proxies = Vec::new();
    for server in &servers[..nodes] {
        proxies.push(Proxy::speaking(Protocol::Redis, server.addr()).await.unwrap());
    }
    let addresses: Vec<_> = proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
    let scheme = if nodes == 1 { "redis" } else { "redis+redlock" };
    let backend = backend(&format!("{scheme}://{}", addresses.join(",")));
    settle(&servers[..nodes], &backend).await;
    let session = session(&backend, TTL).await;
    let reset = || proxies.iter().for_each(Proxy::reset_counts);
    // Whether each node was asked so much in one round trip, and no more.
    let asked = async |what: &str, scripts: u64| {
        let mut all = Vec::new();
        for proxy in &proxies {
            all.push(
                proxy
                    .counted(move |counts| counts.request("EVALSHA") >= scripts && counts.round_trips >= 1)
                    .await
                    .unwrap(),
            );
        }
        reset();
        let no_more = all.iter().all(|counts| {
            counts.requests.len() == 1 && counts.request("EVALSHA") == scripts && counts.round_trips == 1
        });
        if no_more { Ok(()) } else { Err(format!("{what}: {all:?}")) }
    };
    let mut excess = Vec::new();
    // Of several nodes one that is late to answer a claim, on a busy machine, is sent a release behind it.
    let most = if nodes == 1 { 1 } else { 4 };
    for _ in 0..most {
        reset();
        let held = claim("x");
        granted(&*session, &held).await;
        let acquired = asked("acquire", 1).await;
        assert!(matches!(session.claim(request(&claim("x"))).await.unwrap(), ClaimReply::Busy(_)));
        let tried = asked("busy try", 1).await;
        assert_eq!(session.release(ReleaseRequest::new(held)).await.unwrap(), Released::Done);
        let released = asked("release", 1).await;
        match acquired.and(tried).and(released) {
            Ok(()) => break,
            Err(more) => excess.push(more),
        }
    }
    assert!(excess.len() < most, "each time more was asked than the budget allows: {excess:#?}");
    let claims: Vec<_> = (0..1000).map(|number| claim(&format!("many/{number}"))).collect();
    for claim in &claims {
        granted(&*session, claim).await;
    }
    // A node that was not needed for the last majorities may lag behind. Its answers have 40 bytes each.
    for proxy in &proxies {
        proxy.counted(|counts| counts.bytes_to_client >= 40_000).await.unwrap();
    }
    // A batch of that size is read in pieces, of which the server answers the first at once. That it is one batch shows
    // when it is whole at the server before any answer gets through.
    let answered_when_whole = async |scripts: u64| {
        for proxy in &proxies {
            proxy.counted(move |counts| counts.requests.get("EVALSHA") >= Some(&scripts)).await.unwrap();
        }
        for proxy in &proxies {
            proxy.pass().await.unwrap();
        }
    };
    let hold_answers = || {
        reset();
        for proxy in &proxies {
            proxy.black_hole(Direction::ToClient);
        }
    };
    hold_answers();
    let (renewed, ()) = tokio::join!(session.renew(&claims), answered_when_whole(10));
    assert!(renewed.unwrap().claims.iter().all(|(_, renewal)| matches!(renewal, Renewal::Extended(_))));
    asked("renewal of 1,000", 10).await.unwrap();
    hold_answers();
    let leaving = claims.into_iter().map(ReleaseRequest::new).collect();
    let (closed, ()) = tokio::join!(session.close(leaving), answered_when_whole(10));
    closed.unwrap();
    asked("close with 1,000", 10).await.unwrap();
}

#[tokio::test]
async fn one_round_trip_each_on_one_node() {
    budget(1).await;
}

#[tokio::test]
async fn one_round_trip_each_on_three_nodes() {
    budget(3).await;
}

#[tokio::test]
async fn one_round_trip_each_on_five_nodes() {
    budget(5).await;
}

/// A second round trip when the counters differ, so that the nodes cannot agree on the proposal, to those only that lag
/// behind the greatest; after it they agree again.
///
/// A minority refuses, so that all the others are needed. Else it would depend on which are the first to answer.
async fn disagreement(nodes: usize) {
    // Which counter is that of the name, and what it is about, shows on a server of its own.
    let other = servers(Flavour::Redis8, 1).await;
    let first = session(&settled(&other, "").await, TTL).await;
    let before = granted(&*first, &claim("x")).await.token.get();
    let counter = other[0].exec(&["KEYS", "dlock:fence:*"]).await.unwrap();
    let servers = servers(Flavour::Redis8, 5).await;
    let servers = &servers[..nodes];
    settled(servers, "").await;
    for (node, server) in servers.iter().enumerate() {
        let ahead = before + 3_600_000_000 * (node as u64 + 1);
        server.exec(&["SET", counter.trim(), &ahead.to_string()]).await.unwrap();
    }
    let mut proxies = Vec::new();
    for server in servers {
        proxies.push(Proxy::speaking(Protocol::Redis, server.addr()).await.unwrap());
    }
    let majority = nodes / 2 + 1;
    for proxy in &proxies[majority..] {
        proxy.cut().await.unwrap();
    }
    // This session has not seen the counters: its proposal is below all of them.
    let addresses: Vec<_> = proxies.iter().map(|proxy| proxy.addr().to_string()).collect();
    let late = support::backend(&format!("redis+redlock://{}", addresses.join(",")));
    let fresh = session(&late, TTL).await;
    let reset = || proxies.iter().for_each(Proxy::reset_counts);
    let costs = async |what: &str, node: usize, scripts: u64| {
        let wanted = move |counts: &Counts| counts.round_trips >= scripts;
        let counts = proxies[node].counted(wanted).await.unwrap();
        assert_eq!(counts.all_requests(), scripts, "{what}, node {node}: {counts:?}");
        assert_eq!(counts.request("EVALSHA"), scripts, "{what}, node {node}: {counts:?}");
        assert_eq!(counts.round_trips, scripts, "{what}, node {node}: {counts:?}");
    };
    reset();
    let second = claim("x");
    let token = granted(&*fresh, &second).await.token.get();
    for node in 0..majority {
        costs("they disagree", node, if node == majority - 1 { 1 } else { 2 }).await;
    }
    assert_eq!(token, before + 3_600_000_000 * majority as u64 + 1, "the greatest of those that were asked");
    for server in &servers[..majority] {
        let value: u64 = server.exec(&["GET", counter.trim()]).await.unwrap().trim().parse().unwrap();
        assert_eq!(value, token, "a majority has the token");
    }
    fresh.release(ReleaseRequest::new(second)).await.unwrap();
    for node in 0..majority {
        let behind = if node == majority - 1 { 2 } else { 3 };
        costs("released", node, behind).await;
    }
    reset();
    let third = claim("x");
    assert_eq!(granted(&*fresh, &third).await.token.get(), token + 1);
    for node in 0..majority {
        costs("they agree", node, 1).await;
    }
    fresh.release(ReleaseRequest::new(third)).await.unwrap();
}

#[tokio::test]
async fn three_nodes_that_disagree_take_a_second_round_trip() {
    disagreement(3).await;
}

#[tokio::test]
async fn five_nodes_that_disagree_take_a_second_round_trip() {
    disagreement(5).await;
}

#[tokio::test]
async fn names_used_once_leave_the_counters_and_the_mark() {
    let servers = servers(Flavour::Redis8, 1).await;
    let locks = manager(settled(&servers, "").await, TTL);
    let tasks: Vec<_> = (0..50)
        .map(|task| {
            let locks = locks.clone();
            tokio::spawn(async move {
                for number in 0..2000 {
                    let lock = locks.lock(format!("order/{task}/{number}")).unwrap();
                    lock.acquire().await.unwrap().release().await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    // Some that were waited for as well.
    let other = manager(support::backend(&support::url(&servers, "")), TTL);
    for number in 0..20 {
        let name = format!("wanted/{number}");
        let held = locks.lock(&*name).unwrap().acquire().await.unwrap();
        let waiting = tokio::spawn({
            let lock = other.lock(&*name).unwrap();
            async move { lock.acquire_timeout(SOON).await.unwrap().release().await.unwrap() }
        });
        let channel = format!("dlock:wake:{name}").replace('/', "%2F");
        until("it is listened for", async || {
            servers[0].exec(&["PUBSUB", "CHANNELS"]).await.unwrap().lines().any(|line| line.trim() == channel)
        })
        .await;
        held.release().await.unwrap();
        waiting.await.unwrap();
    }
    until("nobody listens any more", async || {
        servers[0].exec(&["PUBSUB", "CHANNELS"]).await.unwrap().trim().is_empty()
    })
    .await;
    assert_eq!(residue(&servers[0]).await, Vec::<String>::new());
    let keys: usize = servers[0].exec(&["DBSIZE"]).await.unwrap().trim().parse().unwrap();
    assert_eq!(keys, 1025, "1024 counters and the mark");
}

/// One who waits asks again when the holder's lease, as it was at the last look, would be over: `lose` has the lock come
/// free and tells nobody. A holder without `+publish` holds it, and renews.
async fn without_a_message(lose: impl AsyncFnOnce(&Server, LockGuard)) {
    const LEASE: Duration = Duration::from_secs(3);
    /// What a busy machine adds. Without the poll it would take for ever, or the lease that the waiter asks for.
    const SLACK: Duration = Duration::from_secs(8);
    const FAR: Duration = Duration::from_secs(31);
    let server = own(Redis::v8()).await;
    let rules = ["ACL", "SETUSER", "mute", "on", ">word", "~*", "&*", "+@all", "-publish"];
    server.exec(&rules).await.unwrap();
    settled(std::slice::from_ref(&server), "").await;
    let holder = manager(support::backend(&format!("redis://mute:word@{}", server.addr())), LEASE);
    let held = holder.lock("x").unwrap().acquire_timeout(SOON).await.unwrap();
    let door = Proxy::speaking(Protocol::Redis, server.addr()).await.unwrap();
    let other = manager(support::backend(&format!("redis://{}", door.addr())), FAR);
    let lock = other.lock("x").unwrap();
    let waiter = tokio::spawn(async move { lock.acquire_timeout(FAR).await });
    // It asks, subscribes, and asks once more.
    until("the waiter listens", async || {
        server.exec(&["PUBSUB", "NUMSUB", "dlock:wake:x"]).await.unwrap().trim().ends_with('1')
    })
    .await;
    door.counted(|counts| counts.request("EVALSHA") >= 2).await.unwrap();
    // Whoever waits only for a lease that nobody renews would be done by then, or soon after.
    let renewed = holder.metrics().renewals;
    until("the holder renews for longer than a lease", async || holder.metrics().renewals >= renewed + 4)
        .await;
    assert!(held.is_held() && !waiter.is_finished());
    let began = SystemClock.now();
    lose(&server, held).await;
    let took = tokio::time::timeout(LEASE + SLACK, waiter).await;
    let guard = took.expect("it asks again").unwrap().unwrap();
    let took = SystemClock.now().since(began);
    assert!(took < LEASE + SLACK, "{took:?}");
    guard.release().await.unwrap();
}

#[tokio::test]
async fn a_release_that_may_not_be_told_costs_no_more_than_the_poll() {
    without_a_message(async |server: &Server, held: LockGuard| {
        assert_eq!(held.release().await.unwrap(), ReleaseOutcome::Released);
        let denied = server.exec(&["ACL", "LOG"]).await.unwrap();
        assert!(denied.contains("publish"), "the message was sent: {denied}");
    })
    .await;
}

/// As by a client of the stock recipe, who tells nobody.
#[tokio::test]
async fn a_key_that_is_deleted_costs_no_more_than_the_poll() {
    without_a_message(async |server: &Server, held: LockGuard| {
        assert_eq!(server.exec(&["DEL", "dlock:lock:x"]).await.unwrap().trim(), "1");
        tokio::time::timeout(SOON, held.lost()).await.expect("its next renewal tells");
    })
    .await;
}

#[tokio::test]
async fn channels_are_unsubscribed_when_nobody_waits() {
    let servers = servers(Flavour::Redis8, 1).await;
    let backend = settled(&servers, "").await;
    let (one, other) = (manager(backend.clone(), TTL), manager(backend, TTL));
    let held = one.lock("x").unwrap().acquire().await.unwrap();
    let lock = other.lock("x").unwrap();
    other.open().await.unwrap();
    let channels = async || servers[0].exec(&["PUBSUB", "CHANNELS"]).await.unwrap();
    let waiter = tokio::spawn({
        let lock = lock.clone();
        async move { lock.acquire_timeout(Duration::from_secs(4)).await.map(drop) }
    });
    until("it is subscribed", async || channels().await.trim() == "dlock:wake:x").await;
    assert!(waiter.await.unwrap().unwrap_err().is_timeout());
    until("it is unsubscribed", async || channels().await.trim().is_empty()).await;
    // And again.
    let waiter = tokio::spawn(async move { lock.acquire_timeout(SOON).await.unwrap() });
    until("it is subscribed", async || channels().await.trim() == "dlock:wake:x").await;
    held.release().await.unwrap();
    drop(waiter.await.unwrap());
}
