//! Messages about releases: who waits for which channel, what is subscribed where, and what was heard.
//!
//! A channel is subscribed at its first wait, and stays so for a second after the last. A wait ends when a message
//! came after the try before it was sent. Messages are hints: whoever hears none asks again when the holder's lease would
//! be over.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dlock_core::BackendError;
use tokio::sync::Notify;

/// A channel stays subscribed for so long after nobody waits for it.
pub(crate) const GRACE: Duration = Duration::from_secs(1);

/// The channels of a session.
#[derive(Debug)]
pub(crate) struct Wakes {
    nodes: usize,
    quorum: usize,
    channels: Mutex<HashMap<String, Arc<Channel>>>,
}

/// One channel, on all nodes.
#[derive(Debug)]
pub(crate) struct Channel {
    pub(crate) name: String,
    ears: Mutex<Ears>,
    changed: Notify,
    /// Held while the channel is being subscribed or unsubscribed anywhere, so that the two never overtake each other.
    pub(crate) switch: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Debug)]
struct Ears {
    /// For each node the connection on which the channel is subscribed.
    armed: Vec<Option<u64>>,
    /// For each node how many messages were heard.
    heard: Vec<u64>,
    waiters: usize,
    /// Votes in a row that nobody won.
    splits: u32,
    /// A task will look whether the channel is still needed.
    watched: bool,
    /// Not in the map any more.
    retired: bool,
}

/// What was heard when a try was sent.
#[derive(Debug)]
pub(crate) struct Heard {
    channel: Arc<Channel>,
    counts: Vec<u64>,
}

/// What a waiter finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    /// Nothing yet.
    None,
    /// Messages from fewer nodes than a majority.
    Some,
    /// Messages from a majority.
    Majority,
    /// Too few subscriptions are alive to be sure of hearing a release.
    Deaf,
}

/// Somebody waits for a channel while this lives.
#[derive(Debug)]
pub(crate) struct Waiting<'a> {
    wakes: &'a Wakes,
    pub(crate) channel: Arc<Channel>,
}

impl Wakes {
    pub(crate) fn new(nodes: usize) -> Self {
        Self { nodes, quorum: nodes / 2 + 1, channels: Mutex::default() }
    }

    /// What has been heard so far, to be taken before a try is sent; none unless a release after it would be heard.
    pub(crate) fn heard(&self, name: &str) -> Option<Heard> {
        let channel = Arc::clone(locked(&self.channels).get(name)?);
        let counts = {
            let ears = locked(&channel.ears);
            (ears.count() >= self.quorum).then(|| ears.heard.clone())?
        };
        Some(Heard { channel, counts })
    }

    /// Begins to wait for a channel.
    pub(crate) fn join(&self, name: &str) -> Waiting<'_> {
        let mut channels = locked(&self.channels);
        let channel = channels.entry(name.to_owned()).or_insert_with(|| {
            Arc::new(Channel {
                name: name.to_owned(),
                ears: Mutex::new(Ears {
                    armed: vec![None; self.nodes],
                    heard: vec![0; self.nodes],
                    waiters: 0,
                    splits: 0,
                    watched: false,
                    retired: false,
                }),
                changed: Notify::new(),
                switch: Arc::default(),
            })
        });
        locked(&channel.ears).waiters += 1;
        Waiting { wakes: self, channel: Arc::clone(channel) }
    }

    /// A message came.
    pub(crate) fn message(&self, node: usize, channel: &str) {
        let Some(channel) = locked(&self.channels).get(channel).cloned() else { return };
        locked(&channel.ears).heard[node] += 1;
        channel.changed.notify_waiters();
    }

    /// All channels that are subscribed, or about to be.
    pub(crate) fn channels(&self) -> Vec<String> {
        locked(&self.channels).keys().cloned().collect()
    }

    /// A connection is gone, and what was subscribed on it.
    pub(crate) fn lost(&self, node: usize, link: u64) {
        let channels: Vec<_> = locked(&self.channels).values().cloned().collect();
        for channel in channels {
            channel.disarm(node, link);
        }
    }

    /// Takes the channel out if nobody waits for it. To be called with its switch held, once it is unsubscribed.
    pub(crate) fn retire(&self, channel: &Arc<Channel>) {
        let mut channels = locked(&self.channels);
        let mut ears = locked(&channel.ears);
        if ears.waiters == 0 && !ears.retired {
            ears.retired = true;
            channels.remove(&channel.name);
        }
    }

    /// How long a contender pauses after a vote that nobody won: at random, so that one comes first the next time, and
    /// longer each time.
    pub(crate) fn pause_after_split(&self, name: &str) -> Duration {
        let splits = match locked(&self.channels).get(name) {
            Some(channel) => {
                let mut ears = locked(&channel.ears);
                ears.splits = (ears.splits + 1).min(6);
                ears.splits
            }
            None => 0,
        };
        let most = 16_u64 << splits;
        Duration::from_millis(rand::random_range(most / 4..=most))
    }

    /// The last vote had a clear outcome.
    pub(crate) fn no_split(&self, name: &str) {
        if let Some(channel) = locked(&self.channels).get(name) {
            locked(&channel.ears).splits = 0;
        }
    }
}

impl Ears {
    /// At how many nodes the channel is subscribed.
    fn count(&self) -> usize {
        self.armed.iter().flatten().count()
    }
}

impl Channel {
    /// The channel is subscribed at a node, on this connection.
    pub(crate) fn arm(&self, node: usize, link: u64) {
        locked(&self.ears).armed[node] = Some(link);
    }

    pub(crate) fn disarm(&self, node: usize, link: u64) {
        let mut ears = locked(&self.ears);
        if ears.armed[node] == Some(link) {
            ears.armed[node] = None;
            drop(ears);
            self.changed.notify_waiters();
        }
    }

    /// Forgets where the channel is subscribed and returns it, unless somebody waits. Ends the watch.
    pub(crate) fn disarm_all_if_unused(&self) -> Option<Vec<Option<u64>>> {
        let mut ears = locked(&self.ears);
        ears.watched = false;
        let none = vec![None; ears.armed.len()];
        (ears.waiters == 0).then(|| std::mem::replace(&mut ears.armed, none))
    }

    /// The nodes at which the channel is not subscribed.
    pub(crate) fn unarmed(&self) -> Vec<usize> {
        let ears = locked(&self.ears);
        (0..ears.armed.len()).filter(|&node| ears.armed[node].is_none()).collect()
    }
}

impl Waiting<'_> {
    /// What there is to hear since `heard`.
    pub(crate) fn news(&self, heard: &Heard) -> News {
        let ears = locked(&self.channel.ears);
        let same = Arc::ptr_eq(&self.channel, &heard.channel);
        let fresh = ears.heard.iter().zip(&heard.counts).filter(|(now, then)| now > then).count();
        if !same {
            News::Deaf
        } else if fresh >= self.wakes.quorum {
            News::Majority
        } else if fresh > 0 {
            News::Some
        } else if ears.count() < self.wakes.quorum {
            News::Deaf
        } else {
            News::None
        }
    }

    /// Waits until there is something to hear.
    pub(crate) async fn listen(&self, heard: &Heard) -> News {
        loop {
            let mut changed = std::pin::pin!(self.channel.changed.notified());
            // Before the look, so that what happens between the two is not missed.
            changed.as_mut().enable();
            match self.news(heard) {
                News::None => changed.await,
                news => return news,
            }
        }
    }

    /// Waits until a majority was heard.
    pub(crate) async fn majority(&self, heard: &Heard) {
        loop {
            let mut changed = std::pin::pin!(self.channel.changed.notified());
            changed.as_mut().enable();
            if self.news(heard) == News::Majority {
                return;
            }
            changed.await;
        }
    }

    /// Whether the channel is subscribed at a majority.
    pub(crate) fn is_armed(&self) -> bool {
        locked(&self.channel.ears).count() >= self.wakes.quorum
    }

    /// Whether nobody else waits and no task is there yet to look later whether anybody does. If so, the caller starts it.
    pub(crate) fn needs_a_watch(&self) -> bool {
        let mut ears = locked(&self.channel.ears);
        let needed = ears.waiters == 1 && !ears.watched;
        ears.watched |= needed;
        needed
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        locked(&self.channel.ears).waiters -= 1;
    }
}

/// No code panics while it holds one of these locks, so what a poisoned one guards is whole.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waiting is not possible, and why; the poll remains.
pub(crate) fn deaf(cause: Option<BackendError>) -> BackendError {
    cause.unwrap_or_else(|| BackendError::unavailable("too few nodes took a subscription"))
}
