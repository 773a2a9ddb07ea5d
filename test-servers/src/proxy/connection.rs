//! One connection through a proxy.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::Then;
use super::counts::Counts;
use super::rules::{Accept, Link, Rules};
use crate::meter::Meter;

/// Bytes that are read at once.
const CHUNK: usize = 16 * 1024;
/// Chunks that are under way in one direction before the sender is held up.
const UNDER_WAY: usize = 64;

pub(super) struct Connection {
    pub(super) generation: u64,
    pub(super) meter: Box<dyn Meter>,
    pub(super) rules: watch::Receiver<Rules>,
    pub(super) arm: watch::Sender<Rules>,
    pub(super) counts: Arc<watch::Sender<Counts>>,
}

/// What came from one side: bytes, or the end of them. It is handed on in order, and an end as late as bytes are.
enum Parcel {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// The connection is to be reset on both sides.
struct Broken;

/// Serves a client until both directions have ended, or the connection is reset.
pub(super) async fn serve(connection: Connection, mut client: TcpStream) {
    let mut rules = connection.rules.clone();
    let generation = connection.generation;
    let mut server = None;
    let service = async {
        let target = {
            let mut rules = connection.rules.clone();
            let rules = rules.wait_for(|rules| rules.accept != Accept::Hang).await.map_err(|_| Broken)?;
            rules.target
        };
        let server = server.insert(TcpStream::connect(target).await.map_err(|_| Broken)?);
        drop(client.set_nodelay(true));
        drop(server.set_nodelay(true));
        both_ways(connection, &mut client, server).await
    };
    let is_over = |rules: &Rules| rules.closed || rules.reset_before > generation;
    let reset = tokio::select! {
        biased;
        _ = rules.wait_for(|rules| is_over(rules) || rules.abandoned_before > generation) => true,
        end = service => end.is_err(),
    };
    let is_abandoned = rules.borrow().abandoned_before > generation && !is_over(&rules.borrow());
    if reset && is_abandoned {
        drop(client.set_zero_linger());
        if let Some(server) = server {
            tokio::spawn(keep_silent(server, rules, generation));
        }
    } else if reset {
        // Without time to linger, closing sends a reset.
        drop(client.set_zero_linger());
        if let Some(server) = server {
            drop(server.set_zero_linger());
        }
    }
}

/// Keeps the server's side of a connection whose client is gone, until it is to be reset.
async fn keep_silent(server: TcpStream, mut rules: watch::Receiver<Rules>, generation: u64) {
    drop(rules.wait_for(|rules| rules.closed || rules.reset_before > generation).await);
    drop(server.set_zero_linger());
}

async fn both_ways(
    connection: Connection,
    client: &mut TcpStream,
    server: &mut TcpStream,
) -> Result<(), Broken> {
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let (up, up_out) = mpsc::channel(UNDER_WAY);
    let (down, down_out) = mpsc::channel(UNDER_WAY);
    let talk = Mutex::new(Talk { meter: connection.meter, asked: false, victim: None });
    let common = Common { arm: &connection.arm, counts: &connection.counts, talk: &talk };
    let upward = Writer { way: Way::ToServer, rules: connection.rules.clone(), common };
    let downward = Writer { way: Way::ToClient, rules: connection.rules, common };
    tokio::try_join!(
        read(from_client, up),
        read(from_server, down),
        upward.hand_on(up_out, to_server),
        downward.hand_on(down_out, to_client),
    )
    .map(drop)
}

/// Reads until the end, with the time of arrival.
async fn read(mut from: ReadHalf<'_>, out: mpsc::Sender<(Instant, Parcel)>) -> Result<(), Broken> {
    loop {
        let mut bytes = Vec::with_capacity(CHUNK);
        let parcel = match from.read_buf(&mut bytes).await {
            Ok(0) => Parcel::End,
            Ok(_) => Parcel::Bytes(bytes),
            Err(_) => Parcel::Reset,
        };
        let last = !matches!(parcel, Parcel::Bytes(_));
        if out.send((Instant::now(), parcel)).await.is_err() || last {
            return Ok(());
        }
    }
}

/// What both directions of a connection know.
struct Talk {
    meter: Box<dyn Meter>,
    /// The client has asked since it was last answered.
    asked: bool,
    /// The reply is to be dropped.
    victim: Option<Then>,
}

#[derive(Clone, Copy)]
struct Common<'a> {
    arm: &'a watch::Sender<Rules>,
    counts: &'a watch::Sender<Counts>,
    talk: &'a Mutex<Talk>,
}

/// What to do with bytes that are due.
enum Verdict {
    Pass,
    Swallow,
    Break,
}

impl Common<'_> {
    fn asks(&self, bytes: &[u8]) -> Verdict {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let mut requests = Vec::new();
        let asks = talk.meter.to_server(bytes, &mut requests);
        talk.asked |= asks;
        self.arm.send_if_modified(|rules| {
            // At most one connection takes it, before the server sees the request.
            if let Some(drop) = rules.drop.take_if(|drop| asks && drop.hits(&requests)) {
                talk.victim = Some(drop.then);
            }
            false
        });
        self.counts.send_modify(|counts| {
            counts.bytes_to_server += bytes.len() as u64;
            for request in requests {
                *counts.requests.entry(request).or_default() += 1;
            }
        });
        Verdict::Pass
    }

    fn answers(&self, bytes: &[u8]) -> Verdict {
        let mut talk = self.talk.lock().unwrap_or_else(PoisonError::into_inner);
        let answered = talk.meter.to_client(bytes) && std::mem::take(&mut talk.asked);
        self.counts.send_modify(|counts| {
            if talk.victim.is_none() {
                counts.bytes_to_client += bytes.len() as u64;
                counts.round_trips += u64::from(answered);
            } else {
                // With silence more is swallowed later; the reply was dropped once.
                counts.replies_dropped += u64::from(answered);
            }
        });
        match talk.victim {
            None => Verdict::Pass,
            Some(Then::Cut) if answered => Verdict::Break,
            Some(_) => Verdict::Swallow,
        }
    }
}

#[derive(Clone, Copy)]
enum Way {
    ToServer,
    ToClient,
}

struct Writer<'a> {
    way: Way,
    rules: watch::Receiver<Rules>,
    common: Common<'a>,
}

impl Writer<'_> {
    fn link(&self) -> Link {
        let rules = self.rules.borrow();
        match self.way {
            Way::ToServer => rules.to_server,
            Way::ToClient => rules.to_client,
        }
    }

    /// Hands on what is due. A writer whose side has gone reads on: the other side is not to notice before it should.
    async fn hand_on(
        mut self,
        mut parcels: mpsc::Receiver<(Instant, Parcel)>,
        mut to: WriteHalf<'_>,
    ) -> Result<(), Broken> {
        while let Some((arrived, parcel)) = parcels.recv().await {
            self.until_due(arrived).await;
            match parcel {
                Parcel::Bytes(bytes) => match self.inspect(&bytes) {
                    Verdict::Pass => drop(self.pass(&bytes, &mut to).await),
                    Verdict::Swallow => {}
                    Verdict::Break => return Err(Broken),
                },
                Parcel::End => drop(to.shutdown().await),
                Parcel::Reset => return Err(Broken),
            }
        }
        Ok(())
    }

    fn inspect(&self, bytes: &[u8]) -> Verdict {
        match self.way {
            Way::ToServer => self.common.asks(bytes),
            Way::ToClient => self.common.answers(bytes),
        }
    }

    /// Waits until the direction is open and the delay is over, as both are at that time.
    async fn until_due(&mut self, arrived: Instant) {
        loop {
            self.rules.mark_unchanged();
            let link = self.link();
            let due = arrived + link.delay;
            if link.open && due <= Instant::now() {
                return;
            }
            let delay_is_over = async {
                if link.open {
                    sleep_until(due).await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                () = delay_is_over => {}
                // Without rules the proxy is gone, and the connection is being reset.
                changed = self.rules.changed() => if changed.is_err() { std::future::pending().await },
            }
        }
    }

    async fn pass(&self, bytes: &[u8], to: &mut WriteHalf<'_>) -> io::Result<()> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let Some(limit) = self.link().limit else {
                return to.write_all(rest).await;
            };
            // Fifty pieces per second are smooth enough.
            let (piece, later) = rest.split_at(rest.len().min((limit / 50).max(1) as usize));
            to.write_all(piece).await?;
            sleep(Duration::from_secs(1) * u32::try_from(piece.len()).unwrap_or(u32::MAX) / limit).await;
            rest = later;
        }
        Ok(())
    }
}
