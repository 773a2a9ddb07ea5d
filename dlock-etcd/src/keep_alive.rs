//! Renewals of one lease, each with its own answer.

use std::sync::{Mutex, PoisonError};

use dlock_core::BackendError;

use crate::client::{Client, Duplex};
use crate::wire::{KEEP_ALIVE, LeaseKeepAliveRequest, LeaseKeepAliveResponse};

type Stream = Duplex<LeaseKeepAliveRequest, LeaseKeepAliveResponse>;

/// A call that stays open, on which requests and answers alternate.
///
/// Answers carry no number, so a call on which one is overdue is never used again: its late answer would be taken for
/// that of a later request, and a lease believed in that nobody renewed (P1).
#[derive(Debug, Default)]
pub(crate) struct KeepAlive(Mutex<Option<Stream>>);

impl KeepAlive {
    /// Renews the lease once. How many seconds it lasts from now on; zero if it is over.
    ///
    /// # Cancel safety
    ///
    /// Dropped half-way the call goes with it, and the next renewal opens another.
    pub(crate) async fn renew(&self, client: &Client, lease: i64) -> Result<i64, BackendError> {
        let request = LeaseKeepAliveRequest { id: lease };
        let open = self.idle().take();
        let mut stream = match open {
            // On a connection that others have given up it might only time out.
            Some(stream) if stream.number() == client.number() && stream.send(request.clone()).await => {
                stream
            }
            _ => client.duplex(KEEP_ALIVE, request).await?,
        };
        let answer = stream.answer().await?;
        *self.idle() = Some(stream);
        Ok(answer.ttl)
    }

    /// Ends the call.
    pub(crate) fn end(&self) {
        drop(self.idle().take());
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Option<Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
