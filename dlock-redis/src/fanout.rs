//! One request to all nodes at once, and what becomes of those that are still under way when the outcome is clear.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use dlock_core::BackendError;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::runtime::Handle;

use crate::connect::Link;
use crate::node::Node;
use crate::wakes::locked;

type Pending<T> = Pin<Box<dyn Future<Output = (usize, Result<T, BackendError>)> + Send>>;

/// A request on its way to several nodes.
///
/// When the outcome is clear, what was sent is awaited in the background, so that a node which is a little slower keeps
/// its connection, and what was not sent never will be. When it is dropped before, nobody waits for the answers any more,
/// and the connections on which they are due are doubted.
pub(crate) struct Fanout<T: Send + 'static> {
    pending: FuturesUnordered<Pending<T>>,
    pass: Arc<Pass>,
    runtime: Handle,
    clear: bool,
}

/// What the requests of one fan-out may do, and how far they have come.
#[derive(Debug)]
pub(crate) struct Pass {
    closed: AtomicBool,
    /// By node.
    progress: Mutex<Vec<Progress>>,
}

#[derive(Clone, Debug)]
enum Progress {
    Unsent,
    /// To be sent on this connection, so that it comes behind what was sent there before.
    Behind(Arc<Link>),
    Sent(Arc<Link>),
    Answered,
}

impl<T: Send + 'static> Fanout<T> {
    /// Asks every node; the requests are sent when the answers are first waited for.
    pub(crate) fn new<F>(
        nodes: &[Arc<Node>],
        runtime: &Handle,
        pass: Pass,
        ask: impl Fn(Arc<Node>, Arc<Pass>) -> F,
    ) -> Self
    where
        F: Future<Output = Result<T, BackendError>> + Send + 'static,
    {
        let pass = Arc::new(pass);
        let pending: FuturesUnordered<Pending<T>> = FuturesUnordered::new();
        for node in nodes {
            let (index, answer) = (node.index, ask(Arc::clone(node), Arc::clone(&pass)));
            pending.push(Box::pin(async move { (index, answer.await) }));
        }
        Self { pending, pass, runtime: runtime.clone(), clear: false }
    }

    /// The next answer, with the index of its node; none if all have answered.
    pub(crate) async fn next(&mut self) -> Option<(usize, Result<T, BackendError>)> {
        self.pending.next().await
    }

    /// How far the requests have come.
    pub(crate) fn pass(&self) -> &Arc<Pass> {
        &self.pass
    }

    /// The outcome is clear without what is still under way.
    pub(crate) fn done(mut self) {
        self.clear = true;
    }
}

impl<T: Send + 'static> Drop for Fanout<T> {
    fn drop(&mut self) {
        self.pass.close();
        if self.pending.is_empty() {
            return;
        }
        if !self.clear {
            for (_, link) in self.pass.unanswered() {
                link.doubt();
            }
        }
        let mut pending = std::mem::take(&mut self.pending);
        // Each ends within its own limit.
        self.runtime.spawn(async move { while pending.next().await.is_some() {} });
    }
}

impl Pass {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { closed: AtomicBool::new(false), progress: Mutex::new(vec![Progress::Unsent; nodes]) }
    }

    /// For requests that are to come behind those of `earlier` where these are not answered yet.
    pub(crate) fn behind(earlier: &Self) -> Self {
        let progress = locked(&earlier.progress);
        let next = progress.iter().map(|progress| match progress {
            Progress::Sent(link) if !link.is_closed() => Progress::Behind(Arc::clone(link)),
            _ => Progress::Unsent,
        });
        Self { closed: AtomicBool::new(false), progress: Mutex::new(next.collect()) }
    }

    /// The connection on which a node's request is to be sent; none if any will do.
    pub(crate) fn link(&self, node: usize) -> Option<Arc<Link>> {
        match &locked(&self.progress)[node] {
            Progress::Behind(link) => Some(Arc::clone(link)),
            _ => None,
        }
    }

    /// Books that a request is sent now. False if it must not be, since nobody waits for it any more.
    pub(crate) fn sends(&self, node: usize, link: &Arc<Link>) -> bool {
        let mut progress = locked(&self.progress);
        if self.closed.load(Ordering::SeqCst) {
            return false;
        }
        progress[node] = Progress::Sent(Arc::clone(link));
        true
    }

    pub(crate) fn answered(&self, node: usize) {
        locked(&self.progress)[node] = Progress::Answered;
    }

    /// Whether a node's request was sent, answered or not.
    pub(crate) fn was_sent(&self, node: usize) -> bool {
        matches!(locked(&self.progress)[node], Progress::Sent(_) | Progress::Answered)
    }

    /// The nodes whose requests were sent and not answered, with the connections they were sent on.
    pub(crate) fn unanswered(&self) -> Vec<(usize, Arc<Link>)> {
        let progress = locked(&self.progress);
        progress
            .iter()
            .enumerate()
            .filter_map(|(node, progress)| match progress {
                Progress::Sent(link) => Some((node, Arc::clone(link))),
                _ => None,
            })
            .collect()
    }

    /// Lets nothing more be sent.
    pub(crate) fn close(&self) {
        let _progress = locked(&self.progress);
        self.closed.store(true, Ordering::SeqCst);
    }
}
