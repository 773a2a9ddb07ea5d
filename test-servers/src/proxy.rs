//! A TCP proxy that breaks things on purpose and counts what passes.

mod connection;
mod counts;
mod listener;
mod rules;

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::{Error, Result};
use crate::hub;
use crate::meter::Protocol;
use crate::provider::Provider;
pub use counts::Counts;
use rules::{Accept, DropReply, Rules};

/// What is waited for takes no longer than this, or never happens.
const PATIENCE: Duration = Duration::from_secs(30);

/// One direction of the connections through a [`Proxy`], or both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the server.
    ToServer,
    /// From the server to clients.
    ToClient,
    /// Either way.
    Both,
}

/// What becomes of a connection whose reply was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// It stays open, and nothing more comes from the server.
    Silence,
    /// It is reset.
    Cut,
}

/// A listener on an address of its own that leads to a server.
///
/// It runs on a background runtime, so tests of any runtime flavour, also on a paused clock, can use it. When it is
/// dropped its connections are reset.
///
/// A change takes effect before the method that makes it returns; bytes that the kernel already has go their way.
pub struct Proxy {
    addr: SocketAddr,
    rules: watch::Sender<Rules>,
    counts: Arc<watch::Sender<Counts>>,
    status: watch::Receiver<listener::Status>,
}

impl Proxy {
    /// Leads to a server that speaks anything. Counts connections, bytes and round trips.
    ///
    /// # Errors
    ///
    /// When no address is free.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::speaking(Protocol::Any, target).await
    }

    /// Leads to a server that speaks this protocol, in plain text. Counts its requests by name too.
    ///
    /// # Errors
    ///
    /// When no address is free.
    pub async fn speaking(protocol: Protocol, target: SocketAddr) -> Result<Self> {
        let run = Provider::this().await?.run();
        let addr = SocketAddr::new(run.ip().into(), run.port()?);
        let (rules, follow) = watch::channel(Rules::new(target));
        let counts = Arc::new(watch::Sender::new(Counts::default()));
        let (report, status) = watch::channel(listener::Status::default());
        hub::spawn(listener::run(listener::Listener {
            addr,
            protocol,
            rules: follow,
            arm: rules.clone(),
            counts: counts.clone(),
            report,
        }));
        let proxy = Self { addr, rules, counts, status };
        proxy.pass().await?;
        Ok(proxy)
    }

    /// The address for clients.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Makes everything normal again: held bytes go on, new connections are served, delays and limits are gone.
    ///
    /// # Errors
    ///
    /// When the address was taken by somebody else after [`cut`](Self::cut).
    pub async fn pass(&self) -> Result<()> {
        self.rules.send_modify(Rules::clear);
        self.until_listening(true).await
    }

    /// Resets all connections and refuses new ones, as a machine does on which the server does not run.
    ///
    /// # Errors
    ///
    /// None that is known of: that it takes 30 s.
    pub async fn cut(&self) -> Result<()> {
        self.rules.send_modify(|rules| rules.accept = Accept::Refuse);
        self.until_listening(false).await?;
        self.reset_connections().await
    }

    /// Accepts new connections and leaves them unserved; those that exist go on.
    pub fn hang(&self) {
        self.rules.send_modify(|rules| rules.accept = Accept::Hang);
    }

    /// Resets all connections, and goes on.
    ///
    /// # Errors
    ///
    /// None that is known of: that it takes 30 s.
    pub async fn reset_connections(&self) -> Result<()> {
        let mut generation = 0;
        self.rules.send_modify(|rules| generation = rules.reset());
        self.until(move |status| status.oldest.is_none_or(|oldest| oldest >= generation)).await
    }

    /// As [`cut`](Self::cut) for clients, while the server hears nothing of it: for it they have gone silent. As where a
    /// firewall answers one side in the name of the other.
    ///
    /// # Errors
    ///
    /// None that is known of: that it takes 30 s.
    pub async fn abandon(&self) -> Result<()> {
        self.rules.send_modify(|rules| rules.accept = Accept::Refuse);
        self.until_listening(false).await?;
        let mut generation = 0;
        self.rules.send_modify(|rules| generation = rules.abandon());
        self.until(move |status| status.oldest.is_none_or(|oldest| oldest >= generation)).await
    }

    /// Holds all bytes of a direction, the ends of connections too. After [`pass`](Self::pass) they go on, as on a
    /// network that was interrupted: late requests are executed late.
    pub fn black_hole(&self, direction: Direction) {
        self.rules.send_modify(|rules| rules.links(direction, |link| link.open = false));
    }

    /// Ends a [`black_hole`](Self::black_hole) in one direction; the rest stays as it is.
    pub fn flow(&self, direction: Direction) {
        self.rules.send_modify(|rules| rules.links(direction, |link| link.open = true));
    }

    /// Delivers all bytes of a direction that much later.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.rules.send_modify(|rules| rules.links(direction, |link| link.delay = delay));
    }

    /// Lets no more than that many bytes per second pass in a direction of each connection.
    pub fn limit(&self, direction: Direction, bytes_per_second: u32) {
        self.rules
            .send_modify(|rules| rules.links(direction, |link| link.limit = Some(bytes_per_second.max(1))));
    }

    /// Lets the next request of any connection reach the server, and drops the reply. What is on its way to that client
    /// already may be dropped with it.
    ///
    /// [`Counts::replies_dropped`] says when it has happened: the request is then executed.
    pub fn drop_next_reply(&self, then: Then) {
        self.rules.send_modify(|rules| rules.drop = Some(DropReply { request: None, then }));
    }

    /// The same for the next request that [`Counts::requests`] would count under this name.
    pub fn drop_next_reply_to(&self, request: &str, then: Then) {
        self.rules
            .send_modify(|rules| rules.drop = Some(DropReply { request: Some(request.to_owned()), then }));
    }

    /// Leads new connections to another server; those that exist stay.
    pub fn set_target(&self, target: SocketAddr) {
        self.rules.send_modify(|rules| rules.target = target);
    }

    /// What has passed since the start, or the last reset.
    pub fn counts(&self) -> Counts {
        self.counts.borrow().clone()
    }

    /// Begins to count anew.
    pub fn reset_counts(&self) {
        self.counts.send_replace(Counts::default());
    }

    /// Waits until the counts are so, and returns them.
    ///
    /// # Errors
    ///
    /// When they are not within 30 s; it says what they are.
    pub async fn counted(&self, mut wanted: impl FnMut(&Counts) -> bool + Send + 'static) -> Result<Counts> {
        let mut counts = self.counts.subscribe();
        hub::run(async move {
            let seen = timeout(PATIENCE, counts.wait_for(|counts| wanted(counts)))
                .await
                .map(|seen| seen.map(|c| c.clone()));
            match seen {
                Ok(Ok(seen)) => Ok(seen),
                _ => Err(Error::new(format!("not within {PATIENCE:?}: {:?}", *counts.borrow()))),
            }
        })
        .await
    }

    async fn until_listening(&self, wanted: bool) -> Result<()> {
        self.until(move |status| status.problem.is_some() || status.listening == wanted).await
    }

    async fn until(&self, wanted: impl Fn(&listener::Status) -> bool + Send + 'static) -> Result<()> {
        let mut status = self.status.clone();
        let addr = self.addr;
        hub::run(async move {
            let reached = timeout(PATIENCE, status.wait_for(wanted)).await.is_ok_and(|seen| seen.is_ok());
            match &status.borrow().problem {
                Some(problem) => Err(Error::new(format!("the proxy at {addr}: {problem}"))),
                None if reached => Ok(()),
                None => Err(Error::new(format!("the proxy at {addr} did not follow within {PATIENCE:?}"))),
            }
        })
        .await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.rules.send_modify(|rules| rules.closed = true);
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("addr", &self.addr)
            .field("rules", &*self.rules.borrow())
            .finish_non_exhaustive()
    }
}
