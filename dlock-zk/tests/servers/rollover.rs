//! Sequence numbers at their end: the server counts the children of a node with 32 bits.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use conformance_tests::contest::Contest;
use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Fixture, Setup};
use test_servers::Server;

use crate::setting::{end, got, queue_up};

/// Tells the server, behind its back, that a node has had so many children: rewrites the entry of its log that made `child`.
async fn age(server: &Server, child: &str, children: i32) {
    server.kill().await.unwrap();
    let folder = server.site().folder().join("data/version-2");
    let logs = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let logs = logs.filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("log."));
    let aged = logs.filter(|log| age_in(log, child, children)).count();
    assert_eq!(aged, 1, "one entry of one log made {child}");
    server.start_again().await.unwrap();
}

fn age_in(log: &PathBuf, child: &str, children: i32) -> bool {
    let mut bytes = fs::read(log).unwrap();
    // A head, and entries: a checksum, a length, the transaction, an end mark.
    let mut at = 16;
    while at + 12 < bytes.len() {
        let length = u32::from_be_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        if length == 0 {
            break;
        }
        let entry = at + 12..at + 12 + length;
        if let Some(number) = children_in(&bytes[entry.clone()], child) {
            let number = entry.start + number;
            bytes[number..number + 4].copy_from_slice(&children.to_be_bytes());
            let checksum = u64::from(adler32(&bytes[entry]));
            bytes[at..at + 8].copy_from_slice(&checksum.to_be_bytes());
            fs::write(log, bytes).unwrap();
            return true;
        }
        at = entry.end + 1;
    }
    false
}

/// Where a transaction says how many children the parent has had, if it makes this child.
fn children_in(entry: &[u8], child: &str) -> Option<usize> {
    const HEAD: usize = 8 + 4 + 8 + 8 + 4;
    let number = |at: usize| Some(u32::from_be_bytes(entry.get(at..at + 4)?.try_into().ok()?) as usize);
    if number(HEAD - 4)? != 1 {
        return None;
    }
    let skip_bytes = |at: usize| Some(at + 4 + number(at)?);
    let path = HEAD + 4..skip_bytes(HEAD)?;
    if entry.get(path.clone())? != child.as_bytes() {
        return None;
    }
    let mut at = skip_bytes(path.end)?;
    let acl = number(at)?;
    at += 4;
    for _ in 0..acl {
        at = skip_bytes(skip_bytes(at + 4)?)?;
    }
    // Whether it is ephemeral comes first.
    Some(at + 1)
}

fn adler32(bytes: &[u8]) -> u32 {
    let (low, high) = bytes.iter().fold((1_u32, 0_u32), |(low, high), byte| {
        let low = (low + u32::from(*byte)) % 65_521;
        (low, (high + low) % 65_521)
    });
    high << 16 | low
}

#[tokio::test]
async fn locks_work_on_when_their_numbers_overflow() {
    let fx = ZkFixture::one().await;
    fx.mark_dirty();
    // It keeps the parent, and with it the number.
    let seed = fx.operator().create("/dlock/worn/seed", "").await;
    age(&fx.members()[0], &seed, i32::MAX - 8).await;
    // Nothing here waits for a lease to end.
    let setup = || Setup::new().ttl(Duration::from_secs(30)).request_timeout(Duration::from_secs(10));
    let clients = [fx.client(setup()).await, fx.client(setup()).await, fx.client(setup()).await];
    let contest = Contest::new(&fx, "worn");
    let mut guard = contest.lock(&clients[0]).acquire().await.unwrap();
    let first = fx.claims().await.into_iter().find(|node| node.session != 0).unwrap();
    let (_, number) = first.path.rsplit_once('-').unwrap();
    assert!(number.parse::<i32>().unwrap() > i32::MAX - 20, "the server has been aged: {}", first.path);
    // In the order of asking, across the end of the numbers.
    for round in 0..12 {
        // Whoever is last in one round holds in the next one.
        let [next, last] = [1, 2].map(|by| &clients[(round * 2 + by) % 3]);
        let next = queue_up(&fx, &contest.lock(next), 3).await;
        let last = queue_up(&fx, &contest.lock(last), 4).await;
        let before = guard.token();
        guard.release().await.unwrap();
        let second = got(next).await;
        assert!(!last.is_finished(), "P1, in round {round}: {:?}", fx.claims().await);
        assert!(second.token() > before, "P2");
        second.release().await.unwrap();
        guard = got(last).await;
    }
    guard.release().await.unwrap();
    contest.fight(&clients, 2, 10).await;
    assert!(fx.operator().delete(&seed).await);
    fx.operator().delete("/dlock/worn").await;
    end(&fx).await;
}
