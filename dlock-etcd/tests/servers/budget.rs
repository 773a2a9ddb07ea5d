//! What locks cost, counted by the servers.

use std::time::Duration;

use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::fixtures::etcd::Operator;
use conformance_tests::{Fixture, Setup};
use dlock_core::{Clock, SystemClock};

use crate::setting::{end, got, queue_up, soon, until};

/// Requests by their kinds, as the members count them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    txns: u64,
    reads: u64,
    keep_alives: u64,
    looks: u64,
    watches: u64,
    others: u64,
}

impl Counts {
    async fn now(operator: &Operator) -> Self {
        let calls = async |method| operator.calls(method).await;
        Self {
            txns: calls("Txn").await,
            reads: calls("Range").await,
            keep_alives: operator.messages("LeaseKeepAlive").await,
            looks: calls("LeaseTimeToLive").await,
            watches: calls("Watch").await,
            others: calls("Put").await + calls("DeleteRange").await + calls("LeaseGrant").await,
        }
    }

    fn since(self, before: Self) -> Self {
        Self {
            txns: self.txns - before.txns,
            reads: self.reads - before.reads,
            keep_alives: self.keep_alives - before.keep_alives,
            looks: self.looks - before.looks,
            watches: self.watches - before.watches,
            others: self.others - before.others,
        }
    }
}

/// Without renewals in between.
fn quiet() -> Setup {
    Setup::new().ttl(Duration::from_secs(900)).request_timeout(Duration::from_secs(10))
}

#[tokio::test]
async fn an_acquisition_is_one_transaction_and_so_are_a_busy_try_and_a_release() {
    let fx = EtcdFixture::one().await;
    let operator = fx.operator();
    let (client, other) = (fx.client(quiet()).await, fx.client(quiet()).await);
    for client in [&client, &other] {
        client.locks.open().await.unwrap();
    }
    let one = Counts { txns: 1, ..Counts::default() };
    for tries in [false, true] {
        let before = Counts::now(&operator).await;
        let guard = if tries {
            client.lock("counted").try_acquire().await.unwrap().unwrap()
        } else {
            client.lock("counted").acquire().await.unwrap()
        };
        assert_eq!(Counts::now(&operator).await.since(before), one, "an acquisition of a free lock");

        let before = Counts::now(&operator).await;
        assert!(other.lock("counted").try_acquire().await.unwrap().is_none());
        assert_eq!(Counts::now(&operator).await.since(before), one, "a try of a held lock");

        let before = Counts::now(&operator).await;
        guard.release().await.unwrap();
        assert_eq!(Counts::now(&operator).await.since(before), one, "a release");
    }
    end(&fx).await;
}

#[tokio::test]
async fn a_handoff_is_a_delete_an_event_and_one_read() {
    let fx = EtcdFixture::one().await;
    let operator = fx.operator();
    let holder = fx.client(quiet()).await;
    let guard = holder.lock("counted").acquire().await.unwrap();
    let mut waiting = Vec::new();
    let mut clients = Vec::new();
    for place in 2..12 {
        let client = fx.client(quiet()).await;
        client.locks.open().await.unwrap();
        let before = Counts::now(&operator).await;
        waiting.push(queue_up(&fx, &client.lock("counted"), place).await);
        until("the watch stands", async || operator.watches().await + 1 == place as u64).await;
        until("it has looked", async || Counts::now(&operator).await.reads > before.reads).await;
        let cost = Counts::now(&operator).await.since(before);
        // The operator's own looks go through the gateway, which counts as a client as well.
        assert_eq!((cost.txns, cost.watches), (1, 1), "a claim that waits");
        clients.push(client);
    }
    let mut guard = guard;
    for waiter in waiting {
        let before = Counts::now(&operator).await;
        guard.release().await.unwrap();
        guard = got(waiter).await;
        let cost = Counts::now(&operator).await.since(before);
        assert_eq!(
            cost,
            Counts { txns: 1, reads: 1, ..Counts::default() },
            "a handoff to one of many waiters"
        );
    }
    guard.release().await.unwrap();
    end(&fx).await;
}

/// A watch from a revision that has passed is served every 100 ms only; ours never is one.
#[tokio::test]
async fn a_handoff_waits_for_no_round_of_the_server() {
    const HANDOFFS: usize = 31;
    let fx = EtcdFixture::one().await;
    let operator = fx.operator();
    let (one, other) = (fx.client(quiet()).await, fx.client(quiet()).await);
    // Meanwhile revisions pass.
    let busy = fx.client(quiet()).await;
    let busy = tokio::spawn(async move {
        loop {
            busy.lock("busy").acquire().await.expect("it is free").release().await.expect("etcd answers");
        }
    });
    let mut medians = Vec::new();
    // Of a handoff that waits for a round half take more than 50 ms. A busy machine may spoil some of ours.
    while medians.last().is_none_or(|median| *median > Duration::from_millis(25)) {
        assert!(medians.len() < 5, "half of the handoffs take longer than {medians:?}");
        let mut took = Vec::new();
        for _ in 0..HANDOFFS {
            let guard = one.lock("quick").acquire().await.unwrap();
            let lock = other.lock("quick");
            let waiting = tokio::spawn(async move {
                let guard = lock.acquire().await.expect("etcd answers");
                let got = SystemClock.now();
                guard.release().await.expect("etcd answers");
                got
            });
            until("it waits", async || operator.watches().await == 1).await;
            let released = SystemClock.now();
            guard.release().await.unwrap();
            took.push(soon("the waiter gets it", waiting).await.unwrap().since(released));
        }
        took.sort();
        medians.push(took[HANDOFFS / 2]);
    }
    busy.abort();
    drop(busy.await);
    end(&fx).await;
}

#[tokio::test]
async fn a_closed_manager_leaves_no_lease_and_no_key() {
    let fx = EtcdFixture::one().await;
    let operator = fx.operator();
    let mut clients = Vec::new();
    for _ in 0..3 {
        let client = fx.client(quiet()).await;
        client.locks.open().await.unwrap();
        clients.push(client);
    }
    assert_eq!(operator.leases().await.len(), clients.len());
    for (number, client) in clients.iter().enumerate() {
        let guard = client.lock(&format!("left-{number}")).acquire().await.unwrap();
        // Released, dropped, or held to the end.
        match number {
            0 => drop(guard.release().await.unwrap()),
            1 => drop(guard),
            _ => std::mem::forget(guard),
        }
        client.locks.close().await.unwrap();
        assert_eq!(operator.leases().await.len(), clients.len() - number - 1, "P6: a lease is left");
    }
    assert_eq!(operator.keys().await, [], "P6");
    assert_eq!(operator.watches().await, 0, "P6");
}

#[tokio::test]
async fn a_thousand_held_locks_are_renewed_by_one_keep_alive_and_one_look() {
    let fx = EtcdFixture::one().await;
    let operator = fx.operator();
    let client = fx.client(Setup::new().ttl(Duration::from_secs(6))).await;
    let mut guards = Vec::new();
    for number in 0..1000 {
        guards.push(client.lock(&format!("held-{number}")).acquire().await.unwrap());
    }
    let renewals = client.locks.metrics().renewals;
    until("a renewal ends", async || client.locks.metrics().renewals > renewals).await;
    let (before, renewals) = (Counts::now(&operator).await, client.locks.metrics().renewals);
    until("renewals go on", async || client.locks.metrics().renewals >= renewals + 4).await;
    let (cost, rounds) =
        (Counts::now(&operator).await.since(before), client.locks.metrics().renewals - renewals);
    // One more may be under way.
    for count in [cost.keep_alives, cost.looks] {
        assert!((rounds..=rounds + 1).contains(&count), "{rounds} renewals of a thousand locks: {cost:?}");
    }
    assert_eq!((cost.txns, cost.reads, cost.watches), (0, 0, 0), "{cost:?}");
    assert!(guards.iter().all(dlock_core::LockGuard::is_held));
    client.locks.close().await.unwrap();
    end(&fx).await;
}
