//! A session that moves from server to server: one connection at a time, and another one when that ends.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use dlock_core::{BackendError, ClaimId, Clock, ErrorKind, SessionEvent};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use crate::connect::{Connector, Failure, Opening};
use crate::error::of_code;
use crate::link::{End, Link, Numbers, Rhythm};
use crate::own::Own;
use crate::wire::{Connect, Request, code};

/// The pause after none of the servers could be reached.
const PAUSE: Duration = Duration::from_millis(100);

/// A session at the ensemble. Dropping it ends the connection, and leaves the session to its time-out.
#[derive(Debug)]
pub(crate) struct Client {
    shared: Arc<Shared>,
    driver: AbortHandle,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<SessionEvent>>,
}

#[derive(Debug)]
struct Shared {
    connector: Connector,
    clock: Arc<dyn Clock>,
    rhythm: Rhythm,
    session: i64,
    password: Password,
    /// The time-out that was granted, in milliseconds.
    granted: i32,
    numbers: Arc<Numbers>,
    /// The newest change that the session has seen.
    zxid: AtomicI64,
    own: Arc<Own>,
    phase: watch::Sender<Phase>,
    /// How long a request waits for a connection.
    limit: Duration,
}

/// What makes a session somebody's. Never shown.
struct Password(Vec<u8>);

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password")
    }
}

#[derive(Clone, Debug)]
enum Phase {
    Up(Arc<Link>),
    /// So many rounds over all servers have failed; the last one so.
    Down(u64, Option<BackendError>),
    Over,
}

impl Client {
    /// Goes on with a session that was opened by `opening`.
    pub(crate) fn new(
        connector: Connector,
        opening: Opening,
        rhythm: Rhythm,
        clock: Arc<dyn Clock>,
        request_timeout: Duration,
    ) -> Self {
        let (events, receiver) = mpsc::unbounded_channel();
        let own = Arc::new(Own::new(events));
        let numbers = Arc::new(Numbers::default());
        let link = Link::new(&opening, Arc::clone(&clock), rhythm, Arc::clone(&numbers), Arc::clone(&own));
        let link = Arc::new(link);
        let shared = Arc::new(Shared {
            connector,
            clock,
            rhythm,
            session: opening.session.session,
            password: Password(opening.session.password.clone()),
            granted: opening.session.timeout,
            numbers,
            zxid: AtomicI64::new(0),
            own,
            phase: watch::Sender::new(Phase::Up(Arc::clone(&link))),
            limit: request_timeout / 2,
        });
        let driver = tokio::spawn(drive(Arc::clone(&shared), link, opening)).abort_handle();
        Self { shared, driver, events: tokio::sync::Mutex::new(receiver) }
    }

    /// The session's number.
    pub(crate) fn session(&self) -> i64 {
        self.shared.session
    }

    /// The time-out that was granted.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(u64::try_from(self.shared.granted).unwrap_or(0))
    }

    /// The present connection; waits for one, for a while.
    ///
    /// # Errors
    ///
    /// If there is none after half a request's time-out, or no server can be reached; nothing was sent.
    pub(crate) async fn link(&self) -> Result<Arc<Link>, BackendError> {
        let mut phase = self.shared.phase.subscribe();
        let start = phase.borrow().rounds();
        let settled = phase.wait_for(|phase| match phase {
            Phase::Up(_) | Phase::Over => true,
            Phase::Down(rounds, failure) => *rounds > start && failure.is_some(),
        });
        let limit = self.shared.limit;
        let settled =
            tokio::time::timeout(limit, settled).await.map(|settled| settled.map(|phase| phase.clone()));
        match settled {
            Ok(Ok(Phase::Up(link))) => Ok(link),
            Ok(Ok(Phase::Over) | Err(_)) => Err(over()),
            Ok(Ok(Phase::Down(_, Some(failure)))) => Err(failure),
            Ok(Ok(Phase::Down(_, None))) | Err(_) => {
                let failure = match &*self.shared.phase.borrow() {
                    Phase::Down(_, failure) => failure.clone(),
                    _ => None,
                };
                Err(failure.unwrap_or_else(|| {
                    BackendError::unavailable(format!(
                        "no server of ZooKeeper could be reached within {limit:?}"
                    ))
                }))
            }
        }
    }

    /// Has it told if the node of a held claim goes, now and on later connections.
    pub(crate) fn watch_own(&self, path: &str, id: ClaimId) {
        self.shared.own.insert(path.to_owned(), id);
        // After the insertion: either this finds the new connection, or that finds the node.
        let phase = self.shared.phase.borrow().clone();
        if let Phase::Up(link) = phase {
            link.watch_own(path);
        }
    }

    /// Whether a node of a held claim is there, as far as is known.
    pub(crate) fn has_own(&self, path: &str) -> bool {
        self.shared.own.has(path)
    }

    /// The node is about to be removed by ourselves.
    pub(crate) fn forget_own(&self, path: &str) {
        self.shared.own.forget(path);
    }

    /// What the servers have told unasked.
    ///
    /// # Cancel safety
    ///
    /// Cancel safe.
    pub(crate) async fn event(&self) -> SessionEvent {
        match self.events.lock().await.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Ends the session at the servers.
    pub(crate) async fn close(&self) -> Result<(), BackendError> {
        let answer = self.link().await?.ask(&Request::close()).await?;
        if answer.error == code::OK { Ok(()) } else { Err(of_code(answer.error, "the session", None)) }
    }

    /// Has the session connected no more once this is dropped.
    ///
    /// P6: whoever still has it in his hands then, a guard that is lost and not dropped, keeps nothing alive.
    pub(crate) fn end_when_dropped(&self) -> impl Drop {
        EndOnDrop(self)
    }

    fn end(&self) {
        self.driver.abort();
        self.shared.phase.send_replace(Phase::Over);
    }
}

struct EndOnDrop<'a>(&'a Client);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.end();
    }
}

impl Phase {
    fn rounds(&self) -> u64 {
        match self {
            Self::Down(rounds, _) => *rounds,
            Self::Up(_) | Self::Over => 0,
        }
    }
}

/// Keeps the session connected until it is over.
async fn drive(shared: Arc<Shared>, mut link: Arc<Link>, mut opening: Opening) {
    loop {
        let zxid = &shared.zxid;
        let start = shared.clock.now();
        let end = link
            .serve(opening.stream, |seen| {
                zxid.fetch_max(seen, Ordering::SeqCst);
            })
            .await;
        if end == End::Expired {
            break;
        }
        shared.phase.send_replace(Phase::Down(0, None));
        if shared.clock.now().since(start) < PAUSE {
            // It took us, and let us go at once: that is not asked for again at the speed of the network.
            shared.pause().await;
        }
        let Some(next) = shared.reconnect().await else { break };
        opening = next;
        tracing::debug!(server = %opening.address, "the session goes on by another connection");
        if opening.session.timeout < shared.granted {
            // P1: the leader counts that from now on, which may end before the deadline of guards that are out, and no beat
            // may come in time to tell them.
            tracing::warn!(server = %opening.address, "this server grants a shorter time-out than the session has: it ends");
            break;
        }
        link = Arc::new(shared.link(&opening));
        shared.phase.send_replace(Phase::Up(Arc::clone(&link)));
        for path in shared.own.paths() {
            link.watch_own(&path);
        }
    }
    shared.phase.send_replace(Phase::Over);
    shared.own.all_gone();
}

impl Shared {
    /// Another connection for the session; none if it is over.
    async fn reconnect(&self) -> Option<Opening> {
        for round in 1u64.. {
            if round.is_power_of_two() {
                self.connector.read_tls_files_again().await;
            }
            let request = Connect {
                last_zxid: self.zxid.load(Ordering::SeqCst),
                timeout: self.granted,
                session: self.session,
                password: &self.password.0,
            };
            match self.connector.connect(request).await {
                Ok(opening) => return Some(opening),
                Err(Failure::Expired) => return None,
                Err(Failure::Error(error)) => {
                    tracing::debug!(%error, "no server can be reached");
                    self.phase.send_replace(Phase::Down(round, Some(for_now(error))));
                }
            }
            self.pause().await;
        }
        None
    }

    async fn pause(&self) {
        tokio::time::sleep(PAUSE.mul_f64(rand::random_range(0.5..1.5))).await;
    }

    fn link(&self, opening: &Opening) -> Link {
        let (clock, numbers, own) =
            (Arc::clone(&self.clock), Arc::clone(&self.numbers), Arc::clone(&self.own));
        Link::new(opening, clock, self.rhythm, numbers, own)
    }
}

/// Servers took this session before: that they refuse it now is no answer to a request, and no reason to give up locks whose
/// lease still runs.
fn for_now(error: BackendError) -> BackendError {
    match error.kind() {
        ErrorKind::Refused => {
            BackendError::unavailable("no server takes the session's next connection").with_source(error)
        }
        _ => error,
    }
}

fn over() -> BackendError {
    BackendError::session_gone("ZooKeeper has ended the session: its time-out ran out, or somebody closed it")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_of_a_session_is_not_shown() {
        assert_eq!(format!("{:?}", Password(b"secret".to_vec())), "Password");
    }
}
