//! The ordinary life of locks, on one node and on three and five, on each kind of server.

#![allow(clippy::unwrap_used, reason = "a failure here fails the test")]

mod support;

use std::time::Duration;

use dlock_core::{ClaimReply, ReleaseRequest, Released, Renewal, Resolution};
use support::{Flavour, claim, granted, request, residue, servers, session, settled};

const TTL: Duration = Duration::from_secs(10);

async fn life_of_a_lock(flavour: Flavour, nodes: usize) {
    let servers = servers(flavour, nodes).await;
    let servers = &servers[..nodes];
    let backend = settled(servers, "").await;
    let (one, other) = (session(&backend, TTL).await, session(&backend, TTL).await);

    let first = claim("orders/42");
    let grant = granted(&*one, &first).await;
    let second = claim("orders/42");
    let ClaimReply::Busy(busy) = other.claim(request(&second)).await.unwrap() else {
        panic!("granted twice")
    };
    assert!(
        busy.retry_after > Duration::from_secs(9) && busy.retry_after < Duration::from_secs(11),
        "{busy:?}"
    );
    let holder = other.observe(&first.name).await.unwrap().expect("somebody holds it");
    assert_eq!((holder.owner.as_str(), holder.since_ms), ("tester", 1_767_225_600_000));

    let renewed = one.renew(&[first.clone(), second.clone()]).await.unwrap();
    assert!(
        matches!(renewed.claims[0], (id, Renewal::Extended(lease)) if id == first.id && lease.ttl == TTL)
    );
    assert_eq!(renewed.claims[1], (second.id, Renewal::Gone));

    // Only our own claim is released.
    assert_eq!(other.release(ReleaseRequest::new(second.clone())).await.unwrap(), Released::NotFound);
    assert!(other.observe(&first.name).await.unwrap().is_some());
    assert_eq!(one.release(ReleaseRequest::new(first.clone())).await.unwrap(), Released::Done);
    assert_eq!(one.release(ReleaseRequest::new(first.clone())).await.unwrap(), Released::NotFound);
    assert_eq!(one.renew(std::slice::from_ref(&first)).await.unwrap().claims, [(first.id, Renewal::Gone)]);
    assert!(other.observe(&first.name).await.unwrap().is_none());

    let third = claim("orders/42");
    let next = granted(&*other, &third).await;
    assert!(next.token > grant.token, "{:?} after {:?}", next.token, grant.token);
    assert!(matches!(other.resolve(&third).await.unwrap(), Resolution::Absent));
    let (fourth, fifth) = (claim("orders/42"), claim("x"));
    granted(&*one, &fourth).await;
    granted(&*one, &fifth).await;
    one.close(vec![ReleaseRequest::new(fourth), ReleaseRequest::new(fifth)]).await.unwrap();
    other.close(Vec::new()).await.unwrap();
    for server in servers {
        assert_eq!(residue(server).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn life_of_a_lock_on_one_node() {
    life_of_a_lock(Flavour::Redis8, 1).await;
    life_of_a_lock(Flavour::Redis7, 1).await;
    life_of_a_lock(Flavour::Valkey, 1).await;
}

#[tokio::test]
async fn life_of_a_lock_on_three_nodes() {
    life_of_a_lock(Flavour::Redis8, 3).await;
    life_of_a_lock(Flavour::Redis7, 3).await;
    life_of_a_lock(Flavour::Valkey, 3).await;
}

#[tokio::test]
async fn life_of_a_lock_on_five_nodes() {
    life_of_a_lock(Flavour::Redis8, 5).await;
}
