//! What became of claims and releases that were never answered.

use std::sync::{Mutex, MutexGuard, PoisonError};

use dlock_core::{BackendError, ClaimRef};
use tokio::sync::oneshot;

use crate::client::Client;
use crate::layout::{SessionKeys, look_at, range};
use crate::wire::{KeyValue, Op, RangeRequest, TxnResponse, txn};

/// So many claims are asked about at once: two ranges each, and 128 operations in a transaction (`--max-txn-ops`).
const BATCH: usize = 60;

/// Asks about all claims that are unknown in one transaction, one transaction at a time.
///
/// The transaction puts the session key. Each claim is conditional on the revision of that key, so a claim sent before and
/// executed after it fails: what the transaction does not find will never be there.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    flight: tokio::sync::Mutex<()>,
    questions: Mutex<Questions>,
}

#[derive(Debug, Default)]
struct Questions {
    open: Vec<Question>,
    last: u64,
}

#[derive(Debug)]
struct Question {
    /// A claim may be asked about again while the transaction for an earlier question is under way.
    number: u64,
    claim: ClaimRef,
    reply: oneshot::Sender<Found>,
}

/// What a transaction found of one claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// The revision at which it looked: from now on that of the session key.
    pub(crate) revision: i64,
    /// When the claim's key was made; none if there is no such key, and never will be.
    pub(crate) created: Option<i64>,
    /// The claim is first in line.
    pub(crate) is_first: bool,
}

impl Resolver {
    /// Finds out what became of a claim.
    ///
    /// `moved` is told the new revision of the session key before anybody else learns what was found.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe: a transaction that is under way for others is taken over by them.
    pub(crate) async fn resolve(
        &self,
        client: &Client,
        keys: &SessionKeys,
        claim: &ClaimRef,
        moved: impl Fn(i64),
    ) -> Result<Found, BackendError> {
        let mut answer = self.ask(claim.clone());
        let _one = self.flight.lock().await;
        loop {
            // A transaction that began after the question was put has answered it.
            if let Ok(found) = answer.try_recv() {
                return Ok(found);
            }
            let batch = self.batch();
            let mut ops = vec![Op::Put(keys.put_session())];
            for (_, claim) in &batch {
                let first = keys.layout.first(&claim.name);
                ops.push(range(RangeRequest { keys_only: true, ..first }));
                ops.push(range(look_at(keys.claim(claim))));
            }
            // Unanswered, it is repeated for those who still ask.
            let done = client.call(txn(Vec::new(), ops, Vec::new())).await?;
            moved(done.revision());
            for (at, (number, claim)) in batch.iter().enumerate() {
                self.answer(*number, found(&done, at, &keys.claim(claim)));
            }
        }
    }

    fn ask(&self, claim: ClaimRef) -> oneshot::Receiver<Found> {
        let (reply, answer) = oneshot::channel();
        let mut questions = self.questions();
        questions.last += 1;
        let number = questions.last;
        questions.open.push(Question { number, claim, reply });
        answer
    }

    /// The claims that are asked about next, with the numbers of the questions.
    fn batch(&self) -> Vec<(u64, ClaimRef)> {
        let mut questions = self.questions();
        questions.open.retain(|question| !question.reply.is_closed());
        questions.open.iter().take(BATCH).map(|question| (question.number, question.claim.clone())).collect()
    }

    fn answer(&self, number: u64, found: Found) {
        let mut questions = self.questions();
        if let Some(at) = questions.open.iter().position(|question| question.number == number) {
            // Whoever no longer asks needs no answer.
            questions.open.remove(at).reply.send(found).ok();
        }
    }

    fn questions(&self) -> MutexGuard<'_, Questions> {
        self.questions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found(done: &TxnResponse, at: usize, key: &[u8]) -> Found {
    let (first, own) = (done.found(1 + at * 2).first(), done.found(2 + at * 2).first());
    let made = |kv: &KeyValue| kv.create_revision;
    Found {
        revision: done.revision(),
        created: own.map(made),
        is_first: first.is_some_and(|first| first.key == key),
    }
}
