//! Accepts connections, or refuses them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::{Shutdown, shutdown};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::connection::{self, Connection};
use super::counts::Counts;
use super::rules::{Accept, Rules};
use crate::meter::Protocol;

pub(super) struct Listener {
    pub(super) addr: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) rules: watch::Receiver<Rules>,
    /// To take the order to drop a reply.
    pub(super) arm: watch::Sender<Rules>,
    pub(super) counts: Arc<watch::Sender<Counts>>,
    pub(super) report: watch::Sender<Status>,
}

/// What the proxy waits for when it has changed the rules.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) listening: bool,
    pub(super) problem: Option<String>,
    /// The generation of the oldest connection.
    pub(super) oldest: Option<u64>,
}

/// Serves until the proxy is gone.
pub(super) async fn run(mut listener: Listener) {
    let mut socket: Option<TcpListener> = None;
    let mut connections: JoinSet<u64> = JoinSet::new();
    let mut generations: BTreeMap<u64, usize> = BTreeMap::new();
    loop {
        let (accept, closed) = {
            let rules = listener.rules.borrow_and_update();
            (rules.accept, rules.closed)
        };
        if closed {
            // Dropping the set would end connections without a reset.
            stop_listening(socket);
            while connections.join_next().await.is_some() {}
            return;
        }
        let listens = accept != Accept::Refuse;
        if socket.is_some() != listens {
            stop_listening(socket.take());
            let mut problem = None;
            if listens {
                match TcpListener::bind(listener.addr).await {
                    Ok(bound) => socket = Some(bound),
                    Err(error) => problem = Some(error.to_string()),
                }
            }
            listener.report.send_modify(|status| {
                status.listening = socket.is_some();
                status.problem = problem;
            });
        }
        let accepted = async {
            match &socket {
                Some(socket) => socket.accept().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            changed = listener.rules.changed() => if changed.is_err() { return },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Ok(generation) = ended
                    && let Some(count) = generations.get_mut(&generation)
                {
                    *count -= 1;
                    if *count == 0 {
                        generations.remove(&generation);
                    }
                }
            }
            accepted = accepted => {
                let Ok((client, _)) = accepted else {
                    // That one is gone, or files are short for a moment: asked again, a little later.
                    sleep(Duration::from_millis(10)).await;
                    continue;
                };
                let generation = listener.rules.borrow().generation;
                *generations.entry(generation).or_default() += 1;
                listener.counts.send_modify(|counts| counts.connections += 1);
                let connection = Connection {
                    generation,
                    meter: listener.protocol.meter(),
                    rules: listener.rules.clone(),
                    arm: listener.arm.clone(),
                    counts: listener.counts.clone(),
                };
                connections.spawn(async move {
                    connection::serve(connection, client).await;
                    generation
                });
            }
        }
        let oldest = generations.keys().next().copied();
        listener.report.send_if_modified(|status| std::mem::replace(&mut status.oldest, oldest) != oldest);
    }
}

/// Also resets what waits to be accepted.
fn stop_listening(socket: Option<TcpListener>) {
    if let Some(socket) = socket {
        // Closing it would not do: a process that is being started just now has a copy, and would go on listening.
        shutdown(&socket, Shutdown::Both).ok();
    }
}
