//! Waiting for things to happen, with deadlines that only end cases that fail; and stopping things half-way.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::fixture::Profile;

/// Waits for something that must happen.
///
/// # Panics
///
/// If it does not happen within the profile's patience.
pub async fn soon<T>(profile: &Profile, what: &str, future: impl Future<Output = T>) -> T {
    within(profile, profile.patience(), what, future).await
}

/// Waits for something that must happen within a bound, to which the profile's slack is added.
///
/// # Panics
///
/// If it does not happen in time.
pub async fn within<T>(profile: &Profile, bound: Duration, what: &str, future: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(bound + profile.slack(), future).await;
    ended.unwrap_or_else(|_| panic!("{what}: not within {bound:?} on {}", profile.backend))
}

/// Waits until a condition holds. Give it a deadline with [`soon`] or [`within`].
pub async fn until(profile: &Profile, mut condition: impl AsyncFnMut() -> bool) {
    while !condition().await {
        tokio::time::sleep(profile.moment()).await;
    }
}

/// Polls a future once, from the current task.
pub async fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    std::future::poll_fn(|context| Poll::Ready(Pin::new(&mut *future).poll(context))).await
}

/// Polls a future, and drops it once it was polled `polls` times without an end. Its output if it had one.
pub async fn cancelled_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    CancelledAfter { left: polls, future: Box::pin(future) }.await
}

struct CancelledAfter<F> {
    left: usize,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for CancelledAfter<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        self.left -= 1;
        match self.future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if self.left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}
