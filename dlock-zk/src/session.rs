//! A session: the claims made under it, and what is asked of them.

mod claims;
mod start;

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    BackendError, Busy, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Cookie, ErrorKind, Holder, Lease,
    LockName, Mode, Patience, ReleaseRequest, Released, Renewal, Renewed, Resolution, Session, SessionEvent,
    SpentClaims, Timestamp,
};

use self::claims::{Standing, remove_if_empty};
use crate::client::Client;
use crate::error::{only_read, session_node_gone};
use crate::layout::{self, Layout};
use crate::lease::LeaseRule;
use crate::link::Link;
use crate::wire::{Access, Answer, Malformed, Request, Step, code};

/// When a waiter whose node is gone asks again.
const SOON: Duration = Duration::from_millis(20);
/// How often a claim is sent anew because somebody was in its way.
const ATTEMPTS: u32 = 20;

/// One session at ZooKeeper.
#[derive(Debug)]
pub(crate) struct ZkSession {
    client: Client,
    layout: Layout,
    access: Access,
    /// For messages.
    user: Option<String>,
    owner: String,
    /// The node that stands for the session.
    node: String,
    rule: LeaseRule,
    /// How long one answer may take.
    limit: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The version of the session's node that claims are conditional on.
    version: i32,
    /// The claims that are at the store.
    placed: HashMap<ClaimId, Node>,
    spent: SpentClaims,
    /// Claims whose deletion was sent and not answered: it may be carried out at any time.
    leaving: HashSet<ClaimId>,
    /// Locks whose node was there the last time.
    parents: HashSet<LockName>,
    /// From when on the session's time-out counts, for certain.
    certain: Option<Timestamp>,
}

/// The node of a claim.
#[derive(Clone, Debug)]
struct Node {
    path: String,
    /// The change that made it.
    czxid: u64,
}

/// The node ahead of a claim.
#[derive(Debug)]
struct Ahead(String);

/// What came of a transaction that makes a node.
#[derive(Debug)]
enum Made {
    Node(String),
    /// It was to make none.
    Checked,
    /// Certainly not carried out: the step that failed, and how.
    Failed(usize, i32),
}

/// What a session is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) layout: Layout,
    pub(crate) access: Access,
    pub(crate) user: Option<String>,
    pub(crate) owner: String,
    pub(crate) rule: LeaseRule,
    pub(crate) limit: Duration,
}

impl ZkSession {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { client, layout, access, user, owner, rule, limit } = parts;
        let node = layout.session(client.session());
        Self { client, layout, access, user, owner, node, rule, limit, state: Mutex::default() }
    }

    fn failed(&self, error: i32, path: &str) -> BackendError {
        crate::error::of_code(error, path, self.user.as_deref())
    }

    /// What came of a transaction.
    fn made(&self, answer: &Answer, path: &str) -> Result<Made, BackendError> {
        if answer.error != code::OK {
            return Err(self.failed(answer.error, path));
        }
        Ok(match answer.steps()? {
            Ok(Some(path)) => Made::Node(path),
            Ok(None) => Made::Checked,
            Err((step, error)) => Made::Failed(step, error),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the version of the session's node.
    fn version_is(&self, version: i32) {
        let mut state = self.state();
        // Answers may overtake each other.
        state.version = state.version.max(version);
    }

    /// Deletes the node of a claim. False if it was not there.
    async fn delete(&self, id: ClaimId, path: &str) -> Result<bool, BackendError> {
        self.client.forget_own(path);
        let link = self.client.link().await?;
        self.state().leaving.insert(id);
        let answer = link.ask(&Request::delete(path)).await?;
        match answer.error {
            code::OK | code::NO_NODE => {
                self.forget(id);
                Ok(answer.error == code::OK)
            }
            error => Err(self.failed(error, path)),
        }
    }

    /// A claim is not at the store any more.
    fn forget(&self, id: ClaimId) {
        let node = {
            let mut state = self.state();
            state.leaving.remove(&id);
            state.placed.remove(&id)
        };
        if let Some(node) = node {
            self.client.forget_own(&node.path);
        }
    }

    /// Which of these claims, all granted, somebody else has removed.
    fn removed(&self, claims: &[ClaimRef]) -> Vec<ClaimId> {
        let state = self.state();
        let is_there = |id| state.placed.get(&id).is_some_and(|node| self.client.has_own(&node.path));
        claims.iter().map(|claim| claim.id).filter(|id| !is_there(*id)).collect()
    }

    /// From when on the session's time-out counts, by a beat on this connection.
    async fn beat(&self, link: &Link) -> Result<Timestamp, BackendError> {
        if self.rule == LeaseRule::PingOrRead {
            let read = link.send(&Request::exists(&self.node, false))?;
            let since = read.since;
            return read.answer().await.map(|_| since);
        }
        let (write, proved) = link.send_beat(&Request::multi(&[Step::Check(&self.node, None)]))?;
        match self.made(&write.answer().await?, &self.node)? {
            Made::Failed(_, code::NO_NODE) => return Err(session_node_gone()),
            Made::Failed(_, error) => return Err(self.failed(error, &self.node)),
            Made::Node(_) => return Err(Malformed.into()),
            Made::Checked => {}
        }
        if self.rule != LeaseRule::WithoutSync {
            // Not before the write is answered: what it proves lies between the two.
            let answer = link.ask(&Request::sync(&self.node)).await?;
            if answer.error != code::OK {
                return Err(self.failed(answer.error, &self.node));
            }
        }
        Ok(proved)
    }
}

#[async_trait]
impl Session for ZkSession {
    async fn claim(&self, request: ClaimRequest) -> Result<ClaimReply, BackendError> {
        let Mode::Exclusive = request.mode else {
            return Err(BackendError::refused("ZooKeeper knows no such mode of a lock in this version"));
        };
        let claim = &request.claim;
        let placed = self.state().placed.get(&claim.id).cloned();
        if let Some(node) = placed {
            return self.look(claim, &node).await;
        }
        let (link, node, list) = self.place(&request).await?;
        // From here on the claim is at the store, and goes from it before anything definite is answered.
        let standing = match self.standing(&link, claim, &node, &list).await {
            Ok(standing) => standing,
            Err(error) => {
                self.delete(claim.id, &node.path).await.map_err(unknown)?;
                return Err(error);
            }
        };
        match (standing, request.patience) {
            (Standing::First, _) => Ok(ClaimReply::Granted(self.granted(claim.id, &node))),
            (Standing::Behind(ahead), Patience::Queue) => Ok(ClaimReply::Waiting(Cookie::new(ahead))),
            (Standing::Behind(ahead), Patience::Try) => {
                self.delete(claim.id, &node.path).await.map_err(unknown)?;
                Ok(ClaimReply::Busy(Busy::retry_after(self.limit).cookie(Cookie::new(ahead))))
            }
            (Standing::Absent, _) => {
                self.state().placed.remove(&claim.id);
                Ok(ClaimReply::Busy(Busy::retry_after(SOON)))
            }
        }
    }

    async fn wait(&self, _: &ClaimRef, cookie: &Cookie) -> Result<(), BackendError> {
        // Nobody is known to be ahead, so nothing tells when to ask again but the time.
        let Some(Ahead(path)) = cookie.get::<Ahead>() else { return std::future::pending().await };
        let link = self.client.link().await?;
        let watch = link.watch(path);
        // Unlike `exists` it leaves no watch on a node that is not there.
        let mut error = link.ask(&Request::get_data(path, true)).await.map_err(only_read)?.error;
        if error == code::NO_AUTH {
            error = link.ask(&Request::exists(path, true)).await.map_err(only_read)?.error;
        }
        match error {
            code::OK => watch.fired().await,
            code::NO_NODE => {}
            error => return Err(only_read(self.failed(error, path))),
        }
        Ok(())
    }

    async fn renew(&self, claims: &[ClaimRef]) -> Result<Renewed, BackendError> {
        // Each has been told of when it was removed, and perhaps before core knew that it was granted.
        let gone = self.removed(claims);
        let link = self.client.link().await?;
        link.keep();
        let before = self.state().certain;
        let since =
            if self.rule == LeaseRule::SelfCertified && before.is_some_and(|before| before < link.opened()) {
                link.opened()
            } else {
                self.beat(&link).await?
            };
        let since = {
            let mut state = self.state();
            let since = state.certain.map_or(since, |before| before.max(since));
            state.certain = Some(since);
            since
        };
        let renewed = Renewed::session(Renewal::Extended(Lease::new(since, self.client.timeout())));
        Ok(gone.into_iter().fold(renewed, Renewed::gone))
    }

    async fn resolve(&self, claim: &ClaimRef) -> Result<Resolution, BackendError> {
        // Before the write is sent: from here on nothing of this claim is.
        self.state().spent.insert(claim.id);
        let lock = self.layout.lock(&claim.name);
        let link = self.client.link().await?;
        // A claim is conditional on the version of the session's node: one that is carried out after this write, by
        // whatever server, makes nothing. One before it is in the list, which this connection shows as of the write or later.
        let fence = link.send(&Request::set_data(&self.node, self.owner.as_bytes()))?;
        let list = link.send(&Request::get_children(&lock)).map_err(unknown)?;
        let fence = fence.answer().await?;
        match fence.error {
            code::OK => self.version_is(fence.stat()?.version),
            code::NO_NODE => return Err(session_node_gone()),
            error => return Err(self.failed(error, &self.node)),
        }
        let list = list.answer().await?;
        let children = match list.error {
            code::OK => list.children()?,
            code::NO_NODE => Vec::new(),
            error => return Err(self.failed(error, &lock)),
        };
        if children.is_empty() && list.error == code::OK {
            // It may be of our own making, and ZooKeeper removes none that never had a child.
            remove_if_empty(&link, &lock);
        }
        let found = match layout::find(&children, claim.id) {
            Some(child) => self.found(&link, claim, format!("{lock}/{child}")).await?,
            None => None,
        };
        let Some(node) = found else {
            self.forget(claim.id);
            return Ok(Resolution::Absent);
        };
        if self.state().leaving.contains(&claim.id) {
            // P1: what was once to be deleted is never handed out.
            self.delete(claim.id, &node.path).await?;
            return Ok(Resolution::Absent);
        }
        Ok(match self.standing(&link, claim, &node, &list).await? {
            Standing::First => Resolution::Granted(self.granted(claim.id, &node)),
            Standing::Behind(ahead) => Resolution::Waiting(Cookie::new(ahead)),
            Standing::Absent => Resolution::Absent,
        })
    }

    async fn release(&self, request: ReleaseRequest) -> Result<Released, BackendError> {
        // Nothing is ever owed here, so `unpaid` is zero.
        let id = request.claim.id;
        let placed = self.state().placed.get(&id).cloned();
        // P7: the server has numbered the node for this claim, and numbers no other so.
        let Some(node) = placed else { return Ok(Released::NotFound) };
        Ok(if self.delete(id, &node.path).await? { Released::Done } else { Released::NotFound })
    }

    async fn event(&self) -> SessionEvent {
        self.client.event().await
    }

    async fn observe(&self, name: &LockName) -> Result<Option<Holder>, BackendError> {
        let lock = self.layout.lock(name);
        let link = self.client.link().await?;
        let list = link.ask(&Request::get_children(&lock)).await.map_err(only_read)?;
        let first = match list.error {
            code::OK => layout::first(&list.children()?),
            code::NO_NODE => return Ok(None),
            error => return Err(only_read(self.failed(error, &lock))),
        };
        let path = match &*first {
            [] => return Ok(None),
            [first] => format!("{lock}/{first}"),
            _ => match self.ages(&link, &lock, first).await.map_err(only_read)?.into_iter().min() {
                Some((_, path)) => path,
                None => return Ok(None),
            },
        };
        let data = link.ask(&Request::get_data(&path, false)).await.map_err(only_read)?;
        match data.error {
            code::OK => Ok(Some(holder(&path, &data.data()?.0))),
            // It has just been released.
            code::NO_NODE => Ok(None),
            code::NO_AUTH => Ok(Some(holder(&path, b""))),
            error => Err(only_read(self.failed(error, &path))),
        }
    }

    async fn close(&self, _: Vec<ReleaseRequest>) -> Result<(), BackendError> {
        let _end = self.client.end_when_dropped();
        // The server removes every node that goes with the session, those of the claims that leave among them.
        match self.client.close().await {
            // Asked again: either the session is over by now, or the request was not carried out.
            Err(error) if error.kind() == ErrorKind::Unknown => self.client.close().await,
            closed => closed,
        }
    }
}

fn name_of(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Who made a node. Those of other tools may say nothing, and are shown by their names.
fn holder(path: &str, data: &[u8]) -> Holder {
    if data.is_empty() {
        return Holder::from_json(&format!("node {}", name_of(path)));
    }
    Holder::from_json(&String::from_utf8_lossy(data))
}

/// Something of it is at the store.
fn unknown(error: BackendError) -> BackendError {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Refused => {
            BackendError::unknown(error.to_string()).with_source(error)
        }
        _ => error,
    }
}

fn in_the_way() -> BackendError {
    BackendError::unavailable(
        "the nodes that a claim needs were changed again and again while it was made: removed, or by other claims whose \
         requests were not answered",
    )
}
