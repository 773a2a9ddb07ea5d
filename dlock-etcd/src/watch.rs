//! Waiting until a key is gone.

use std::time::Duration;

use dlock_core::BackendError;

use crate::client::{Client, Duplex};
use crate::layout::look_at;
use crate::wire::{WATCH, WatchCreateRequest, WatchFilter, WatchRequest, WatchRequestUnion, WatchResponse};

/// Over so much time waiters look whose member has gone.
const SPREAD: Duration = Duration::from_millis(100);

/// A key that was there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) key: Vec<u8>,
    pub(crate) created: i64,
}

/// Waits until a key that was seen is there no more.
///
/// The watch is from now on, and the key is read once it stands: a deletion before the watch is seen by the look, one
/// after it by the watch. (A watch from the revision of the answer that showed the key would need no look. But etcd puts
/// watches from the past among those it has yet to bring up to date, which it does every 100 ms only: its own lock hands
/// over so much later for it.)
///
/// # Cancel safety
///
/// Cancel safe: the next call sees a deletion that came in between. Dropping it ends the watch at the server.
pub(crate) async fn gone(client: &Client, seen: &Seen, limit: Duration) -> Result<(), BackendError> {
    let create = WatchCreateRequest { key: seen.key.clone(), filters: vec![WatchFilter::NoPut.into()] };
    let request = WatchRequest { request_union: Some(WatchRequestUnion::Create(create)) };
    let mut watch = within(client, limit, armed(client, request)).await?;
    let look = within(client, limit, client.look(look_at(seen.key.clone()))).await?;
    if !look.kvs.iter().any(|kv| kv.create_revision == seen.created) {
        return Ok(());
    }
    let number = watch.number();
    loop {
        tokio::select! {
            biased;
            answer = watch.next() => if said(&answer?)? {
                return Ok(());
            },
            // The member of this watch may be frozen or cut off, and tell nothing any more: look with another one. Not all
            // waiters of the session at once: that may be more than a store can bear which is slow.
            () = client.given_up(number) => {
                tokio::time::sleep(SPREAD.mul_f64(rand::random())).await;
                return Ok(());
            }
        }
    }
}

/// Bounds a question. Where its time is over the member owes an answer, and others ask another one.
async fn within<T>(
    client: &Client,
    limit: Duration,
    question: impl Future<Output = Result<T, BackendError>>,
) -> Result<T, BackendError> {
    let number = client.number();
    tokio::time::timeout(limit, question).await.unwrap_or_else(|_| {
        client.leave(number);
        Err(BackendError::unavailable(format!("no watch could be set within {limit:?}")))
    })
}

/// A watch that stands.
async fn armed(
    client: &Client,
    request: WatchRequest,
) -> Result<Duplex<WatchRequest, WatchResponse>, BackendError> {
    let mut watch: Duplex<WatchRequest, WatchResponse> = client.watch(WATCH, request).await?;
    loop {
        let answer = watch.answer().await?;
        said(&answer)?;
        if answer.created {
            return Ok(watch);
        }
    }
}

/// Whether an answer tells of a deletion.
fn said(answer: &WatchResponse) -> Result<bool, BackendError> {
    if answer.canceled || answer.compact_revision != 0 {
        // For a permission that is missing, an old token, a leader that is not there: the look that follows says which.
        let why = if answer.cancel_reason.is_empty() { "no reason given" } else { &answer.cancel_reason };
        return Err(BackendError::unavailable(format!("etcd ended a watch: {why}")));
    }
    Ok(!answer.events.is_empty())
}
