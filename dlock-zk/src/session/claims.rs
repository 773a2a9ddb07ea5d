//! The nodes of claims: how they are made and found, and which of them is first.

use std::sync::Arc;

use dlock_core::{
    BackendError, Busy, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Cookie, FencingToken, Grant, LockName,
};

use super::{ATTEMPTS, Ahead, Made, Node, SOON, ZkSession, in_the_way, name_of, unknown};
use crate::error::{only_read, session_node_gone};
use crate::layout::{self, Place};
use crate::link::Link;
use crate::wire::{Answer, Kind, Malformed, Request, Step, code};

/// So many names are remembered whose nodes are likely to be there.
const MOST_PARENTS: usize = 4096;

/// Where a claim stands.
#[derive(Debug)]
pub(super) enum Standing {
    First,
    Behind(Ahead),
    /// Its node is not there.
    Absent,
}

impl ZkSession {
    /// Makes the node of a claim, with the lock's node where that is not known to be there, and lists the contenders
    /// behind it: one round trip.
    pub(super) async fn place(
        &self,
        request: &ClaimRequest,
    ) -> Result<(Arc<Link>, Node, Answer), BackendError> {
        let claim = &request.claim;
        let lock = self.layout.lock(&claim.name);
        let path = self.layout.claim(&claim.name, claim.id);
        let data = request.holder.to_json().into_bytes();
        let mut was_sent = false;
        for _ in 0..ATTEMPTS {
            let link = self.client.link().await.map_err(|error| so_far(was_sent, error))?;
            let (version, parent_is_there) = {
                let state = self.state();
                if state.spent.contains(claim.id) {
                    return Err(BackendError::refused(
                        "the claim was found not to be at the store: its id is spent",
                    ));
                }
                (state.version, state.parents.contains(&claim.name))
            };
            // P6: a transaction that comes late, when `resolve` has changed the version, makes nothing.
            let check = Step::Check(&self.node, Some(version));
            let create = Step::Create(&path, &data, Kind::Sequential, self.access);
            let mut requests = vec![Request::multi(&[check.clone(), create]), Request::get_children(&lock)];
            if !parent_is_there {
                // A version that changed in between would leave a parent that never had a child.
                let parent = Step::Create(&lock, b"", Kind::Container, self.access);
                requests.insert(0, Request::multi(&[check, parent]));
            }
            let sent = link.send_all(&requests).map_err(|error| so_far(was_sent, error))?;
            was_sent = true;
            let mut sent = sent.into_iter();
            let parent = if parent_is_there { None } else { sent.next() };
            let parent = match parent {
                Some(parent) => Some(self.made(&parent.answer().await?, &lock)),
                None => None,
            };
            let (Some(create), Some(list)) = (sent.next(), sent.next()) else {
                unreachable!("both were sent")
            };
            let create = create.answer().await?;
            let created = self.made(&create, &path);
            if matches!((&created, &parent), (Err(_), Some(Ok(Made::Node(_))))) {
                remove_if_empty(&link, &lock);
            }
            match created? {
                Made::Node(made) if !made.starts_with(&path) => return Err(Malformed.into()),
                Made::Node(path) => {
                    self.remember_parent(&claim.name);
                    let node = Node { path, czxid: change(create.zxid)? };
                    self.state().placed.insert(claim.id, node.clone());
                    let list = list.answer().await?;
                    return Ok((link, node, list));
                }
                Made::Checked => return Err(Malformed.into()),
                Made::Failed(0, code::NO_NODE) => return Err(session_node_gone()),
                // Somebody asked what became of another claim.
                Made::Failed(0, code::BAD_VERSION) => self.look_at_version(&link).await.map_err(unknown)?,
                Made::Failed(_, code::NO_NODE) => {
                    self.state().parents.remove(&claim.name);
                    match parent {
                        // It was there, or is made anew.
                        None
                        | Some(Ok(Made::Node(_) | Made::Failed(1, code::NODE_EXISTS) | Made::Failed(0, _))) =>
                            {}
                        Some(Ok(Made::Failed(_, error))) => return Err(self.failed(error, &lock)),
                        Some(Ok(Made::Checked)) => return Err(Malformed.into()),
                        Some(Err(error)) => return Err(error),
                    }
                }
                Made::Failed(_, error) => {
                    if matches!(parent, Some(Ok(Made::Node(_)))) {
                        remove_if_empty(&link, &lock);
                    }
                    return Err(self.failed(error, &path));
                }
            }
        }
        // None of our own making may stay behind.
        if let Ok(link) = self.client.link().await {
            remove_if_empty(&link, &lock);
        }
        Err(in_the_way())
    }

    fn remember_parent(&self, name: &LockName) {
        let mut state = self.state();
        if state.parents.len() >= MOST_PARENTS {
            state.parents.clear();
        }
        state.parents.insert(name.clone());
    }

    /// Where a claim's node stands.
    pub(super) async fn standing(
        &self,
        link: &Link,
        claim: &ClaimRef,
        node: &Node,
        list: &Answer,
    ) -> Result<Standing, BackendError> {
        let lock = self.layout.lock(&claim.name);
        let children = match list.error {
            code::OK => list.children()?,
            code::NO_NODE => return Ok(Standing::Absent),
            error => return Err(self.failed(error, &lock)),
        };
        Ok(match layout::place(&children, name_of(&node.path)) {
            Place::First => Standing::First,
            Place::Behind(ahead) => Standing::Behind(Ahead(format!("{lock}/{ahead}"))),
            Place::Absent => Standing::Absent,
            Place::Unordered(rivals) => {
                let ages = self.ages(link, &lock, rivals).await?;
                let ahead = ages.into_iter().filter(|(czxid, _)| *czxid < node.czxid).max();
                ahead.map_or(Standing::First, |(_, ahead)| Standing::Behind(Ahead(ahead)))
            }
        })
    }

    /// The changes that made these children of a lock's node, with their paths; without those that are gone.
    pub(super) async fn ages(
        &self,
        link: &Link,
        lock: &str,
        children: Vec<String>,
    ) -> Result<Vec<(u64, String)>, BackendError> {
        let sent = children.into_iter().map(|child| {
            let path = format!("{lock}/{child}");
            link.send(&Request::exists(&path, false)).map(|sent| (path, sent))
        });
        let mut ages = Vec::new();
        for (path, sent) in sent.collect::<Result<Vec<_>, _>>()? {
            let answer = sent.answer().await?;
            match answer.error {
                code::OK => ages.push((change(answer.stat()?.czxid)?, path)),
                code::NO_NODE => {}
                error => return Err(self.failed(error, &path)),
            }
        }
        Ok(ages)
    }

    /// Looks how far a claim has come that stands in the queue.
    pub(super) async fn look(&self, claim: &ClaimRef, node: &Node) -> Result<ClaimReply, BackendError> {
        let lock = self.layout.lock(&claim.name);
        let link = self.client.link().await?;
        let list = link.ask(&Request::get_children(&lock)).await.map_err(only_read)?;
        Ok(match self.standing(&link, claim, node, &list).await.map_err(only_read)? {
            Standing::First => ClaimReply::Granted(self.granted(claim.id, node)),
            Standing::Behind(ahead) => ClaimReply::Waiting(Cookie::new(ahead)),
            Standing::Absent => {
                // Somebody removed it, and with it our place.
                self.state().placed.remove(&claim.id);
                ClaimReply::Busy(Busy::retry_after(SOON))
            }
        })
    }

    /// The node of a claim that was found in a list; none if it is not this session's, or gone.
    pub(super) async fn found(
        &self,
        link: &Link,
        claim: &ClaimRef,
        path: String,
    ) -> Result<Option<Node>, BackendError> {
        let placed = self.state().placed.get(&claim.id).cloned();
        if let Some(node) = placed {
            return Ok(Some(node));
        }
        let look = link.ask(&Request::exists(&path, false)).await?;
        match look.error {
            code::OK => {
                let stat = look.stat()?;
                if stat.owner != self.client.session() {
                    return Ok(None);
                }
                let node = Node { path, czxid: change(stat.czxid)? };
                self.state().placed.insert(claim.id, node.clone());
                Ok(Some(node))
            }
            code::NO_NODE => Ok(None),
            error => Err(self.failed(error, &path)),
        }
    }

    pub(super) fn granted(&self, id: ClaimId, node: &Node) -> Grant {
        self.client.watch_own(&node.path, id);
        // Claims are granted in the order in which their nodes were made, and later changes have greater numbers (P2).
        Grant::new(FencingToken::new(node.czxid))
    }

    /// Looks which version the session's node has.
    pub(super) async fn look_at_version(&self, link: &Link) -> Result<(), BackendError> {
        let answer = link.ask(&Request::exists(&self.node, false)).await.map_err(only_read)?;
        match answer.error {
            code::OK => {
                self.version_is(answer.stat()?.version);
                Ok(())
            }
            code::NO_NODE => Err(session_node_gone()),
            error => Err(only_read(self.failed(error, &self.node))),
        }
    }
}

/// The number of a change: they are numbered from 1.
fn change(zxid: i64) -> Result<u64, Malformed> {
    u64::try_from(zxid).ok().filter(|zxid| *zxid > 0).ok_or(Malformed)
}

/// Once something was sent, the lock's node may be of our own making, and `resolve` is to see that it does not stay.
fn so_far(was_sent: bool, error: BackendError) -> BackendError {
    if was_sent { unknown(error) } else { error }
}

/// Nobody waits for the answer: it fails if there is a child.
pub(super) fn remove_if_empty(link: &Link, lock: &str) {
    drop(link.send(&Request::delete(lock)));
}
