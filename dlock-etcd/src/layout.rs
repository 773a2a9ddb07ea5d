//! Where things live in etcd, and the requests that are made of it.

use dlock_core::{ClaimId, ClaimRef, LockName};

use crate::wire::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, Op, PutRequest, RangeRequest, SortOrder,
    SortTarget, TargetUnion,
};

/// The keys under one prefix. The layout is public; the crate's documentation describes it.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    prefix: String,
}

impl Layout {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into() }
    }

    /// What `etcdctl lock` takes as the lock's name: the prefix of all claims, without the slash after it.
    pub(crate) fn lock(&self, name: &LockName) -> String {
        format!("{}{}", self.prefix, name.encoded())
    }

    /// The prefix of the keys of all claims of a lock.
    fn claims(&self, name: &LockName) -> Vec<u8> {
        format!("{}/", self.lock(name)).into_bytes()
    }

    /// The key of one claim. The recipe of etcd ends it with the lease; the id makes it a fresh one for each claim.
    pub(crate) fn claim(&self, name: &LockName, lease: i64, id: ClaimId) -> Vec<u8> {
        format!("{}/{lease:x}-{id}", self.lock(name)).into_bytes()
    }

    /// The key of a session. No name encodes to a leading dot.
    pub(crate) fn session(&self, lease: i64) -> Vec<u8> {
        format!("{}.session/{lease:x}", self.prefix).into_bytes()
    }

    /// The claim that came first, with its value.
    pub(crate) fn first(&self, name: &LockName) -> RangeRequest {
        let key = self.claims(name);
        RangeRequest {
            range_end: end_of(&key),
            key,
            limit: 1,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..RangeRequest::default()
        }
    }

    /// The claims that came last, the latest first, as keys; only those made up to a revision unless it is zero.
    pub(crate) fn latest(&self, name: &LockName, limit: i64, upto: i64) -> RangeRequest {
        RangeRequest {
            limit,
            sort_order: SortOrder::Descend.into(),
            keys_only: true,
            max_create_revision: upto,
            ..self.first(name)
        }
    }

    /// True if nobody has a claim of this lock. A comparison over a range holds if it holds for each key of it, and over
    /// an empty one etcd compares a key that was never made, whose revision is zero.
    pub(crate) fn is_free(&self, name: &LockName) -> Compare {
        let key = self.claims(name);
        Compare { range_end: end_of(&key), ..created_at(key, 0) }
    }
}

/// The keys of a session, and what is asked about them.
#[derive(Clone, Debug)]
pub(crate) struct SessionKeys {
    pub(crate) layout: Layout,
    pub(crate) lease: i64,
    pub(crate) owner: String,
}

impl SessionKeys {
    /// The key of a claim of this session.
    pub(crate) fn claim(&self, claim: &ClaimRef) -> Vec<u8> {
        self.layout.claim(&claim.name, self.lease, claim.id)
    }

    pub(crate) fn session(&self) -> Vec<u8> {
        self.layout.session(self.lease)
    }

    /// Puts the session key. Always with the lease: without it the key would stay for ever, and it fails when the lease
    /// is over.
    pub(crate) fn put_session(&self) -> PutRequest {
        PutRequest { key: self.session(), value: self.owner.clone().into_bytes(), lease: self.lease }
    }

    /// True if the session key was put at this revision and not since.
    pub(crate) fn session_is_at(&self, revision: i64) -> Compare {
        Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Mod.into(),
            key: self.session(),
            target_union: Some(TargetUnion::ModRevision(revision)),
            range_end: Vec::new(),
        }
    }
}

/// True if the key was made at this revision; zero if it is not there.
pub(crate) fn created_at(key: Vec<u8>, revision: i64) -> Compare {
    Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Create.into(),
        key,
        target_union: Some(TargetUnion::CreateRevision(revision)),
        range_end: Vec::new(),
    }
}

/// Looks whether a key is there, and since when.
pub(crate) fn look_at(key: Vec<u8>) -> RangeRequest {
    RangeRequest { key, keys_only: true, ..RangeRequest::default() }
}

pub(crate) fn range(range: RangeRequest) -> Op {
    Op::Range(range)
}

pub(crate) fn delete(key: Vec<u8>) -> Op {
    Op::Delete(DeleteRangeRequest { key })
}

/// The end of the range of all keys that begin with `prefix`, which ends with a slash.
fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_recipe() {
        let name = LockName::new("orders/42").unwrap();
        let layout = Layout::new("dlock/");
        assert_eq!(layout.lock(&name), "dlock/orders%2F42");
        let key = layout.claim(&name, 0x694d_9c40, ClaimId::from_bits(10));
        assert_eq!(key, b"dlock/orders%2F42/694d9c40-0000000000000000000000000000000a");
        assert_eq!(layout.session(0x694d_9c40), b"dlock/.session/694d9c40");
        let first = layout.first(&name);
        assert_eq!(
            (&*first.key, &*first.range_end),
            (&b"dlock/orders%2F42/"[..], &b"dlock/orders%2F420"[..])
        );
    }

    #[test]
    fn no_lock_lives_where_the_sessions_do() {
        let layout = Layout::new("");
        for name in [".session", ".session/1", "..session"] {
            assert!(!layout.lock(&LockName::new(name).unwrap()).starts_with('.'));
        }
    }
}
