//! A session: claims with leases of their own, on one group of nodes. No connection is a session's life: a node that was
//! away is connected to again by the next request.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, ClaimRef, ClaimReply, ClaimRequest, Cookie, Holder, LockName, Mode, ReleaseRequest,
    Released, Renewed, Resolution, Session,
};

use crate::claim::Tried;
use crate::error;
use crate::group::Group;
use crate::quarantine;
use crate::replies::LookReply;
use crate::scripts::{Call, LOOK};
use crate::wakes::{Channel, GRACE, News, Waiting, deaf};

/// How long a close waits for its channels to be unsubscribed: they are gone with the connections anyway.
const HUSH: Duration = Duration::from_secs(1);

/// The session that core sees.
#[derive(Debug)]
pub(crate) struct RedisSession(Arc<Group>);

impl RedisSession {
    pub(crate) fn new(group: Group) -> Self {
        Self(Arc::new(group))
    }
}

#[async_trait]
impl Session for RedisSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        match request.mode {
            Mode::Exclusive => self.0.claim(request).await,
            _ => Err(BackendError::refused("Redis knows exclusive locks only in this version")),
        }
    }

    async fn wait(&self, claim: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        let group = &self.0;
        let channel = group.keys.channel(&claim.name);
        let listener = Listener { waiting: group.wakes.join(&channel), group };
        let Some(heard) = cookie.get::<Tried>().and_then(|tried| tried.0.as_ref()) else {
            // A release since the try may have gone unheard: asked again, now that it would be heard.
            return group.arm(&listener.waiting).await;
        };
        match listener.waiting.listen(heard).await {
            News::Deaf => group.arm(&listener.waiting).await,
            News::Some => {
                // The holder, or a contender that lost. A moment for the other nodes to say so too, and at random, since
                // all who wait hear it.
                let moment = Duration::from_millis(rand::random_range(3..=20));
                drop(tokio::time::timeout(moment, listener.waiting.majority(heard)).await);
                Ok(())
            }
            News::Majority | News::None => Ok(()),
        }
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        self.0.renew(claims).await
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        self.0.resolve(claim).await
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        // Nothing is ever owed here, so `unpaid` is zero.
        self.0.release(&request.claim).await
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        self.0.observe(name).await
    }

    async fn close(&self, leaving: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        let claims: Vec<_> = leaving.into_iter().map(|request| request.claim).collect();
        let end = End(&self.0);
        self.0.closed.store(true, Ordering::SeqCst);
        let (outcome, ()) = tokio::join!(self.0.release_many(&claims), self.0.hush());
        drop(end);
        outcome
    }
}

/// Ends the connections when a close is over, also one that is given up.
struct End<'a>(&'a Group);

impl Drop for End<'_> {
    fn drop(&mut self) {
        for node in &self.0.nodes {
            node.close();
        }
    }
}

impl Group {
    /// Subscribes a channel where it is not, until a majority has it.
    async fn arm(&self, waiting: &Waiting<'_>) -> Result<(), BackendError> {
        self.check_open()?;
        if waiting.is_armed() {
            return Ok(());
        }
        let channel = Arc::clone(&waiting.channel);
        // Shared with the subscriptions that are not waited for below: until the last has its answer, nobody
        // unsubscribes the channel or makes it anew.
        let switch = Arc::new(Arc::clone(&channel.switch).lock_owned().await);
        let nodes: Vec<_> = channel.unarmed().into_iter().map(|node| Arc::clone(&self.nodes[node])).collect();
        let limit = self.limit;
        let to = Arc::clone(&channel);
        let mut round = self.ask(&nodes, self.pass(), move |node, _| {
            let (channel, switch) = (Arc::clone(&to), Arc::clone(&switch));
            async move {
                let outcome = node.subscribe(&channel, limit).await;
                drop(switch);
                outcome
            }
        });
        let mut failure = None;
        while !waiting.is_armed() {
            match round.next().await {
                Some((_, Ok(()))) => {}
                Some((_, Err(error))) => failure = Some(error),
                None => break,
            }
        }
        round.done();
        if waiting.is_armed() { Ok(()) } else { Err(deaf(failure)) }
    }

    /// Unsubscribes all channels: the servers notice the end of a connection a little later than a close ends.
    async fn hush(&self) {
        let channels = self.wakes.channels();
        if channels.is_empty() {
            return;
        }
        let limit = self.limit.min(HUSH);
        let quiet = self.nodes.iter().map(|node| node.hush(&channels, limit));
        futures_util::future::join_all(quiet).await;
    }

    /// Unsubscribes a channel unless somebody waits for it.
    async fn retire(&self, channel: &Arc<Channel>) {
        let _switch = channel.switch.lock().await;
        let Some(armed) = channel.disarm_all_if_unused() else { return };
        for (node, link) in self.nodes.iter().zip(armed) {
            if let Some(link) = link {
                node.unsubscribe(channel, link, self.limit).await;
            }
        }
        self.wakes.retire(channel);
    }

    /// Who holds a lock on a majority of nodes.
    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        self.check_open()?;
        let call = Arc::new(vec![Call {
            keys: vec![self.keys.lock(name), self.keys.mark()],
            args: vec![self.figures.wait.clone()],
            claims: 1,
        }]);
        let limit = self.limit;
        let mut round = self.ask(&self.nodes, self.pass(), move |node, pass| {
            let call = Arc::clone(&call);
            async move {
                let answer = node.run(&LOOK, &call, limit, &pass).await?.remove(0)?;
                LookReply::read(&answer).ok_or_else(|| error::strange_answer(&node))
            }
        });
        let mut found: Vec<(usize, LookReply)> = Vec::new();
        let mut failures = Vec::new();
        while let Some((node, answer)) = round.next().await {
            match answer {
                Ok(look) => found.push((node, look)),
                Err(failure) => failures.push((node, failure)),
            }
            let pending = self.nodes.len() - found.len() - failures.len();
            let most = found.iter().filter_map(|(_, look)| holders(&found, look)).max().unwrap_or(0);
            if most >= self.quorum() || (found.len() >= self.quorum() && most + pending < self.quorum()) {
                break;
            }
        }
        round.done();
        if found.len() < self.quorum() {
            return Err(self.failure(&failures));
        }
        let held = found.iter().find(|(_, look)| holders(&found, look) >= Some(self.quorum()));
        if let Some(value) = held.and_then(|(_, look)| look.value.as_deref()) {
            return Ok(Some(holder(value)));
        }
        let waiting: Vec<_> =
            found.iter().filter_map(|(node, look)| Some((*node, look.quarantine.as_ref()?))).collect();
        if found.len() - waiting.len() < self.quorum() && !waiting.is_empty() {
            let mut left: Vec<_> = waiting.iter().map(|(_, quarantine)| quarantine.left_us).collect();
            left.sort_unstable();
            let wanted = self.quorum() - (found.len() - waiting.len());
            let left =
                Duration::from_micros(left.get(wanted - 1).or(left.last()).copied().unwrap_or_default());
            let named = waiting.into_iter().map(|(node, quarantine)| (&*self.nodes[node], quarantine));
            return Err(quarantine::error(named, left));
        }
        Ok(None)
    }
}

/// At how many nodes the same claim holds the lock as in `look`; none if nobody does there.
fn holders(found: &[(usize, LookReply)], look: &LookReply) -> Option<usize> {
    let value = look.value.as_deref()?;
    Some(found.iter().filter(|(_, other)| other.value.as_deref() == Some(value)).count())
}

/// Who a key's value names. Ours is a claim's id, a space, and JSON; whatever else somebody wrote is shown as it is.
fn holder(value: &str) -> Holder {
    match value.split_once(' ') {
        Some((id, json)) if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Holder::from_json(json)
        }
        _ => Holder::from_json(value),
    }
}

/// One who waits; the last to leave has the channel looked after.
struct Listener<'a> {
    waiting: Waiting<'a>,
    group: &'a Arc<Group>,
}

impl Drop for Listener<'_> {
    fn drop(&mut self) {
        if !self.waiting.needs_a_watch() {
            return;
        }
        // The session may be over by then.
        let group = Arc::downgrade(self.group);
        let channel = Arc::clone(&self.waiting.channel);
        self.group.runtime.spawn(async move {
            tokio::time::sleep(GRACE).await;
            if let Some(group) = group.upgrade() {
                group.retire(&channel).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::holder;

    #[test]
    fn the_value_of_a_key_names_its_holder() {
        let ours = r#"0123456789abcdef0123456789abcdef {"owner":"worker 7","since_ms":5}"#;
        assert_eq!(holder(ours).owner, "worker 7");
        assert_eq!(holder("9f8e-random").owner, "9f8e-random");
        assert_eq!(holder("two words").owner, "two words");
        assert_eq!(holder(&"x".repeat(1000)).owner.len(), 256);
    }
}
