//! The task that owns a session's connection, and the requests that it executes in order.
//!
//! A statement that was sent is never cancelled: it would go on at the server, and its answer would be read by the next
//! one. Whoever asked may go away; the answer is then dropped with its own channel, never booked to a later request. Only
//! the end of the session interrupts a statement, by closing the connection.

use std::future::Future;

use dlock_core::{
    BackendError, ClaimRef, ClaimReply, ClaimRequest, Holder, LockName, ReleaseRequest, Released, Renewed,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::{Failure, Place, gone};
use crate::store::Store;

type Reply<T> = oneshot::Sender<Result<T, BackendError>>;

/// A request and the way back.
enum Request {
    Claim(Box<ClaimRequest>, Reply<ClaimReply>),
    Release(ReleaseRequest, Reply<Released>),
    Remove(ClaimRef, Reply<()>),
    Settled(ClaimRef, Reply<()>),
    Observe(LockName, Reply<Option<Holder>>),
    Close(Vec<ReleaseRequest>, Reply<()>),
}

/// The way to the task. The connection is closed when this is dropped.
#[derive(Debug)]
pub(crate) struct Owner {
    requests: mpsc::UnboundedSender<Request>,
    /// Renewals overtake the others, so that a crowd of claims does not cost the session.
    renewals: mpsc::UnboundedSender<Reply<Renewed>>,
    over: watch::Sender<bool>,
    place: Place,
}

impl Owner {
    /// Starts the task. `over` is set when the session is over, and ends it when it is set.
    pub(crate) fn start(store: Store, place: Place, over: watch::Sender<bool>) -> Self {
        let (requests, mut inbox) = mpsc::unbounded_channel();
        let (renewals, mut renewals_due) = mpsc::unbounded_channel();
        let ended = over.clone();
        drop(tokio::spawn(async move {
            let mut told = ended.subscribe();
            tokio::select! {
                biased;
                _ = told.wait_for(|over| *over) => {}
                () = serve(store, &mut inbox, &mut renewals_due) => {}
            }
            // Before the requests that are left, whose answers say so, are dropped.
            ended.send_replace(true);
        }));
        Self { requests, renewals, over, place }
    }

    pub(crate) async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        self.ask(|reply| Request::Claim(Box::new(request), reply)).await
    }

    pub(crate) async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        self.ask(|reply| Request::Release(request, reply)).await
    }

    pub(crate) async fn remove(&self, claim: ClaimRef) -> Result<(), BackendError> {
        self.ask(|reply| Request::Remove(claim, reply)).await
    }

    pub(crate) async fn settled(&self, claim: ClaimRef) -> Result<(), BackendError> {
        self.ask(|reply| Request::Settled(claim, reply)).await
    }

    pub(crate) async fn observe(&self, name: LockName) -> Result<Option<Holder>, BackendError> {
        self.ask(|reply| Request::Observe(name, reply)).await
    }

    pub(crate) async fn renew(&self) -> Result<Renewed, BackendError> {
        let (reply, answer) = oneshot::channel();
        // A task that is gone drops the request, which the answer shows.
        self.renewals.send(reply).ok();
        self.answer(answer).await
    }

    /// The last request. Whether or not it is answered, and also if this future is dropped, the connection is closed.
    pub(crate) async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        let _end = EndOnDrop(&self.over);
        self.ask(|reply| Request::Close(leaving, reply)).await
    }

    /// Resolves when the session is over.
    pub(crate) async fn ended(&self) {
        // The sender is here, so this does not fail.
        self.over.subscribe().wait_for(|over| *over).await.ok();
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, BackendError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).ok();
        self.answer(answer).await
    }

    async fn answer<T>(&self, answer: oneshot::Receiver<Result<T, BackendError>>) -> Result<T, BackendError> {
        match answer.await {
            Ok(result) => result,
            // The connection is closed, and the server ends what it carried.
            Err(_) => Err(gone(&self.place, None)),
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.over.send_replace(true);
    }
}

struct EndOnDrop<'a>(&'a watch::Sender<bool>);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// Executes requests until the session is over.
async fn serve(
    mut store: Store,
    requests: &mut mpsc::UnboundedReceiver<Request>,
    renewals: &mut mpsc::UnboundedReceiver<Reply<Renewed>>,
) {
    loop {
        let goes_on = tokio::select! {
            biased;
            renewal = renewals.recv() => match renewal {
                None => return,
                Some(reply) => renew(&mut store, reply).await,
            },
            request = requests.recv() => match request {
                None => return,
                Some(Request::Close(leaving, reply)) => return close(store, &leaving, reply).await,
                Some(request) => execute(&mut store, request).await,
            },
        };
        if !goes_on {
            return;
        }
    }
}

/// False if the session is over.
async fn renew(store: &mut Store, reply: Reply<Renewed>) -> bool {
    // Of no use to anybody any more.
    if reply.is_closed() {
        return true;
    }
    let goes_on = answer(reply, store.renew()).await;
    goes_on
        && match store.tidy().await {
            Ok(()) => true,
            Err(Failure::Definite(error)) => {
                tracing::debug!(%error, "what crashed holders left was not removed");
                true
            }
            Err(Failure::Over(error)) => over(&error),
        }
}

/// False if the session is over.
async fn execute(store: &mut Store, request: Request) -> bool {
    match request {
        Request::Claim(_, reply) if reply.is_closed() => true,
        Request::Claim(request, reply) => claim(store, *request, reply).await,
        Request::Release(request, reply) => {
            answer(reply, async {
                let released = store.release(std::slice::from_ref(&request)).await?;
                Ok(released.first().copied().unwrap_or(Released::NotFound))
            })
            .await
        }
        Request::Remove(claim, reply) => answer(reply, store.remove(&claim)).await,
        Request::Settled(claim, reply) => answer(reply, store.settled(&claim)).await,
        Request::Observe(name, reply) => answer(reply, store.observe(&name)).await,
        Request::Close(..) => unreachable!("the caller takes it"),
    }
}

async fn claim(store: &mut Store, request: ClaimRequest, reply: Reply<ClaimReply>) -> bool {
    match store.claim(&request).await {
        Ok(answer) => match reply.send(Ok(answer)) {
            // P6: a grant that nobody waits for any more goes at once.
            Err(Ok(ClaimReply::Granted(_))) => match store.remove(&request.claim).await {
                Ok(()) | Err(Failure::Definite(_)) => true,
                Err(Failure::Over(error)) => over(&error),
            },
            _ => true,
        },
        Err(Failure::Definite(error)) => {
            reply.send(Err(error)).ok();
            true
        }
        Err(Failure::Over(error)) => {
            over(&error);
            reply.send(Err(error)).ok();
            false
        }
    }
}

async fn answer<T>(reply: Reply<T>, work: impl Future<Output = Result<T, Failure>>) -> bool {
    let result = work.await;
    let goes_on = match &result {
        Err(Failure::Over(error)) => over(error),
        _ => true,
    };
    // Whoever went away needs no answer.
    reply.send(result.map_err(Failure::into_error)).ok();
    goes_on
}

async fn close(store: Store, leaving: &[ReleaseRequest], reply: Reply<()>) {
    let result = store.close(leaving).await;
    reply.send(result.map_err(Failure::into_error)).ok();
}

fn over(error: &BackendError) -> bool {
    let cause = std::error::Error::source(error).map(ToString::to_string);
    tracing::debug!(%error, cause, "the session is over");
    false
}
