//! The thread that owns a session's connection, and the jobs that it does in order.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread;

use dlock_core::BackendError;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::store::Store;

/// Takes the store and gives it back, or does not when it was the last job.
type Job = Box<dyn FnOnce(Store) -> Option<Store> + Send>;

/// Sends jobs to the thread that owns the connection. The thread ends when this is dropped, after the jobs that were
/// sent before; nobody waits for it.
#[derive(Debug)]
pub(crate) struct Owner(Sender<Job>);

/// What happens to a job whose caller went away before it began.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Abandoned {
    /// It is left out: nothing was asked of the store.
    Skip,
    /// It is done all the same.
    Do,
}

impl Owner {
    /// Starts a thread and opens the store there.
    pub(crate) async fn start(
        path: &Path,
        open: impl FnOnce() -> Result<Store, BackendError> + Send + 'static,
    ) -> Result<Self, BackendError> {
        let (jobs, inbox) = channel::<Job>();
        let (answer, opened) = oneshot::channel();
        // A test's clock reads the clock of the runtime, which may be paused, also on this thread.
        let runtime = Handle::try_current().ok();
        thread::Builder::new()
            .name("dlock-sqlite".to_owned())
            .spawn(move || {
                let _inside = runtime.as_ref().map(Handle::enter);
                let mut store = match open() {
                    Ok(store) => store,
                    Err(error) => return drop(answer.send(Err(error))),
                };
                if answer.send(Ok(())).is_err() {
                    return;
                }
                while let Ok(job) = inbox.recv() {
                    match job(store) {
                        Some(same) => store = same,
                        None => return,
                    }
                }
            })
            .map_err(|error| {
                BackendError::unavailable(format!(
                    "no thread could be started for the lock file {}",
                    path.display()
                ))
                .with_source(error)
            })?;
        match opened.await {
            Ok(result) => result.map(|()| Self(jobs)),
            Err(_) => Err(died(path)),
        }
    }

    /// Does a job on the owner's thread, after all that were sent before, and returns its answer.
    ///
    /// `undo` gets an answer that nobody is left to take.
    ///
    /// # Cancel safety
    ///
    /// A job that has begun is finished when the future is dropped; one that has not is skipped if `abandoned` says so.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        path: &Path,
        abandoned: Abandoned,
        work: impl FnOnce(&mut Store) -> Result<T, BackendError> + Send + 'static,
        undo: impl FnOnce(&mut Store, T) + Send + 'static,
    ) -> Result<T, BackendError> {
        self.ask(path, move |mut store, answer: oneshot::Sender<_>| {
            if abandoned == Abandoned::Skip && answer.is_closed() {
                return Some(store);
            }
            let result = work(&mut store);
            if let Err(Ok(unclaimed)) = answer.send(result) {
                undo(&mut store, unclaimed);
            }
            Some(store)
        })
        .await
    }

    /// Does the last job, closes the connection and ends the thread.
    pub(crate) async fn finish(
        &self,
        path: &Path,
        work: impl FnOnce(&mut Store) -> Result<(), BackendError> + Send + 'static,
    ) -> Result<(), BackendError> {
        self.ask(path, move |mut store, answer: oneshot::Sender<_>| {
            let result = work(&mut store);
            // The file is closed before the caller goes on, so it may then be removed.
            drop(store);
            drop(answer.send(result));
            None
        })
        .await
    }

    async fn ask<T: Send + 'static>(
        &self,
        path: &Path,
        job: impl FnOnce(Store, oneshot::Sender<Result<T, BackendError>>) -> Option<Store> + Send + 'static,
    ) -> Result<T, BackendError> {
        let (answer, answered) = oneshot::channel();
        let begun = Arc::new(AtomicBool::new(false));
        let mark = Arc::clone(&begun);
        let sent = self.0.send(Box::new(move |store| {
            mark.store(true, Ordering::SeqCst);
            job(store, answer)
        }));
        match sent.map(|()| answered) {
            Ok(answered) => match answered.await {
                Ok(result) => result,
                Err(_) if begun.load(Ordering::SeqCst) => Err(died(path)),
                // It was still in line when the thread ended.
                Err(_) => Err(closed(path)),
            },
            Err(_) => Err(closed(path)),
        }
    }
}

fn closed(path: &Path) -> BackendError {
    BackendError::session_gone(format!("the session on the lock file {} was closed", path.display()))
}

/// The thread panicked in the middle of a job, which is a defect.
fn died(path: &Path) -> BackendError {
    BackendError::unknown(format!(
        "the thread that owns the lock file {} ended without an answer",
        path.display()
    ))
}
