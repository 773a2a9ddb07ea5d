//! Where things live in ZooKeeper, and who is before whom.

use dlock_core::{ClaimId, LockName};

/// The nodes below one prefix. The layout is public; the crate's documentation describes it.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    chroot: String,
    prefix: String,
}

/// What stands before the number in the names of nodes that contend for a lock: those of Curator, Go and this crate, and
/// those of kazoo. Other children of a lock's node are none of its business.
const CONTENDERS: [&str; 2] = ["-lock-", "__lock__"];

impl Layout {
    pub(crate) fn new(chroot: &str, prefix: &str) -> Self {
        Self { chroot: trimmed(chroot), prefix: trimmed(prefix) }
    }

    pub(crate) fn with_prefix(&self, prefix: &str) -> Self {
        Self { prefix: trimmed(prefix), ..self.clone() }
    }

    pub(crate) fn with_chroot(&self, chroot: &str) -> Self {
        Self { chroot: trimmed(chroot), ..self.clone() }
    }

    /// Says what is wrong with the paths.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.prefix.is_empty() {
            return Err(
                "the prefix is empty: name the node below which the locks are, as in prefix=dlock".into()
            );
        }
        if self.chroot.is_empty() && self.prefix.split('/').next() == Some("zookeeper") {
            return Err("the node /zookeeper is ZooKeeper's own: take another prefix".into());
        }
        for (what, path) in [("chroot", &self.chroot), ("prefix", &self.prefix)] {
            // Those that the servers refuse.
            let illegal =
                |c: char| c.is_control() || matches!(c, '\u{e000}'..='\u{f8ff}' | '\u{fff0}'..='\u{ffff}');
            if path.contains(illegal) {
                return Err(format!(
                    "the {what} has a character that ZooKeeper does not allow: leave it out"
                ));
            }
            let mut parts = path.split('/').filter(|_| !path.is_empty());
            if let Some(part) = parts.find(|part| matches!(*part, "" | "." | "..")) {
                let shown = if part.is_empty() { "an empty part" } else { part };
                return Err(format!(
                    "the {what} has {shown} in it: write names with single slashes between them"
                ));
            }
        }
        Ok(())
    }

    /// The node that stands for the root; none if it is the root.
    pub(crate) fn chroot(&self) -> Option<String> {
        (!self.chroot.is_empty()).then(|| format!("/{}", self.chroot))
    }

    /// The node below which the claims of a lock are.
    pub(crate) fn lock(&self, name: &LockName) -> String {
        format!("{}/{}", self.base(), name.encoded())
    }

    /// The node of a claim, but for the number that the server adds.
    pub(crate) fn claim(&self, name: &LockName, id: ClaimId) -> String {
        format!("{}/{}", self.lock(name), stem(id))
    }

    /// The node that stands for a session. No name encodes to a leading dot.
    pub(crate) fn session(&self, session: i64) -> String {
        format!("{}/.session/{session:x}", self.base())
    }

    /// The nodes that must be there before a session's is made, in the order in which they are made.
    pub(crate) fn parents(&self) -> Vec<String> {
        let mut path = self.chroot().unwrap_or_default();
        let parts = self.prefix.split('/').chain([".session"]);
        parts
            .map(|part| {
                path.push('/');
                path.push_str(part);
                path.clone()
            })
            .collect()
    }

    fn base(&self) -> String {
        [&self.chroot, &self.prefix].iter().filter(|part| !part.is_empty()).fold(
            String::new(),
            |mut base, part| {
                base.push('/');
                base.push_str(part);
                base
            },
        )
    }
}

/// How the name of a claim's node begins: as Curator's, whose protected nodes carry an id of the client's.
fn stem(id: ClaimId) -> String {
    format!("_c_{id}-lock-")
}

/// Where a claim stands among the children of its lock's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    First,
    /// Behind this one.
    Behind(String),
    /// It is not there.
    Absent,
    /// The numbers tell nothing any more: these are its rivals, in no order.
    Unordered(Vec<String>),
}

/// Where the node of this name stands.
///
/// The server numbers the children that a node has had with 32 bits. When it has come to the greatest number, it gives
/// that, or the least one, to all that follow.
pub(crate) fn place(children: &[String], own: &str) -> Place {
    if !children.iter().any(|child| child == own) {
        return Place::Absent;
    }
    let contenders = contenders(children);
    let number = contenders.iter().find(|(_, child)| *child == own).map(|(number, _)| *number);
    let number = number.filter(|_| !contenders.iter().any(|(number, _)| is_worn(*number)));
    let Some(number) = number else {
        let rivals = contenders.into_iter().map(|(_, child)| child.clone()).filter(|child| child != own);
        return Place::Unordered(rivals.collect());
    };
    let ahead = contenders.iter().filter(|(rival, _)| *rival < number).max();
    ahead.map_or(Place::First, |(_, child)| Place::Behind((*child).clone()))
}

/// Those among which the first child is: one, unless the numbers tell nothing any more.
pub(crate) fn first(children: &[String]) -> Vec<String> {
    let contenders = contenders(children);
    if contenders.iter().any(|(number, _)| is_worn(*number)) {
        return contenders.into_iter().map(|(_, child)| child.clone()).collect();
    }
    contenders.into_iter().min().map(|(_, child)| child.clone()).into_iter().collect()
}

fn contenders(children: &[String]) -> Vec<(i32, &String)> {
    children.iter().filter_map(|child| Some((sequence(child)?, child))).collect()
}

/// Others may have got this number too.
fn is_worn(number: i32) -> bool {
    number < 0 || number == i32::MAX
}

/// The child that was made for this claim.
pub(crate) fn find(children: &[String], id: ClaimId) -> Option<&String> {
    let stem = stem(id);
    children.iter().find(|child| child.starts_with(&stem))
}

/// The number in the name of a contender; none if it is not one.
fn sequence(child: &str) -> Option<i32> {
    let digits =
        CONTENDERS.iter().filter_map(|mark| child.rsplit_once(mark)).map(|(_, digits)| digits).next()?;
    // Ten characters, the sign among them, and more where the number needs them.
    if digits.len() >= 10 { digits.parse().ok() } else { None }
}

fn trimmed(path: &str) -> String {
    path.trim_matches('/').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: ClaimId = ClaimId::from_bits(10);

    fn list(children: &[&str]) -> Vec<String> {
        children.iter().map(|child| (*child).to_owned()).collect()
    }

    #[test]
    fn the_layout_is_that_of_the_recipe() {
        let name = LockName::new("orders/42").unwrap();
        let layout = Layout::new("/apps/shop", "locks/");
        assert_eq!(
            layout.claim(&name, ID),
            "/apps/shop/locks/orders%2F42/_c_0000000000000000000000000000000a-lock-"
        );
        assert_eq!(layout.session(0x1000_0000_0001), "/apps/shop/locks/.session/100000000001");
        assert_eq!(layout.session(-1), "/apps/shop/locks/.session/ffffffffffffffff");
        assert_eq!(layout.parents(), ["/apps/shop/locks", "/apps/shop/locks/.session"]);
        assert_eq!(Layout::new("", "a/b").parents(), ["/a", "/a/b", "/a/b/.session"]);
    }

    #[test]
    fn no_lock_lives_where_the_sessions_do() {
        let layout = Layout::new("", "dlock");
        for name in [".session", ".session/1", "..session"] {
            assert!(!layout.lock(&LockName::new(name).unwrap()).contains("/."));
        }
    }

    #[test]
    fn contenders_of_every_recipe_stand_in_one_line() {
        let children = list(&[
            "9f__lock__0000000003",
            "_c_2-lock-0000000002",
            "_c_4-lock-0000000004",
            "latch-0000000001",
            "9f__rlock__0000000001",
            "_c_5-lock-5",
        ]);
        assert_eq!(place(&children, "_c_4-lock-0000000004"), Place::Behind("9f__lock__0000000003".into()));
        assert_eq!(place(&children, "9f__lock__0000000003"), Place::Behind("_c_2-lock-0000000002".into()));
        assert_eq!(place(&children, "_c_2-lock-0000000002"), Place::First);
        assert_eq!(place(&children, "_c_9-lock-0000000009"), Place::Absent);
        assert_eq!(first(&children), ["_c_2-lock-0000000002"]);
        assert!(first(&list(&["x"])).is_empty());
    }

    #[test]
    fn numbers_at_their_end_decide_nothing() {
        let children = list(&["a-lock-2147483646", "b-lock-2147483647", "c-lock--2147483648", "x"]);
        let rivals = list(&["a-lock-2147483646", "c-lock--2147483648"]);
        assert_eq!(place(&children, "b-lock-2147483647"), Place::Unordered(rivals));
        assert_eq!(first(&children).len(), 3);
        assert_eq!(place(&children[..1], "a-lock-2147483646"), Place::First);
        assert_eq!(place(&children[1..2], "b-lock-2147483647"), Place::Unordered(Vec::new()));
    }

    #[test]
    fn a_claim_is_known_by_its_id() {
        let children =
            list(&["_c_00-lock-0000000001", "_c_0000000000000000000000000000000a-lock-0000000002"]);
        assert_eq!(find(&children, ID), Some(&children[1]));
        assert_eq!(find(&children, ClaimId::from_bits(0xa0)), None);
    }
}
