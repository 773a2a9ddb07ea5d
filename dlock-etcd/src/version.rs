//! Which versions of etcd keep a lease that is over from being renewed.

use std::collections::BTreeMap;
use std::fmt;

use dlock_core::Basis;

/// What is wrong with older versions: issue 15247 of etcd, mended by a check that the member still leads before it
/// renews or revokes a lease.
const FLAW: &str = "a leader that was frozen can renew a lease there that is already over";
/// The first versions without it, per minor version.
const MENDED: &str = "3.4.31, 3.5.13 or newer";

/// A version of etcd, such as 3.5.16.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// Reads `3.5.16`, also with an appendix as in `3.6.0-rc.1`. A release candidate counts as its release.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.split(['-', '+']).next()?;
        let mut parts = text.split('.').map(|part| part.parse().ok());
        let version = Self { major: parts.next()??, minor: parts.next()??, patch: parts.next()?? };
        parts.next().is_none().then_some(version)
    }

    fn is_mended(self) -> bool {
        match (self.major, self.minor) {
            (3, 4) => self.patch >= 31,
            (3, 5) => self.patch >= 13,
            _ => (self.major, self.minor) > (3, 5),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// The versions of the members, by address, as far as they have told.
#[derive(Debug, Default)]
pub(crate) struct Versions(BTreeMap<String, Version>);

impl Versions {
    pub(crate) fn note(&mut self, address: &str, version: Version) {
        self.0.insert(address.to_owned(), version);
    }

    /// What exclusion rests on with these `members`: any of them may come to lead.
    pub(crate) fn exclusion(&self, members: &[String]) -> Basis {
        let old = self.0.iter().find(|(_, version)| !version.is_mended());
        if let Some((address, version)) = old {
            return Basis::No(format!("{address} is etcd {version}, and {FLAW}: upgrade to {MENDED}"));
        }
        if members.iter().all(|address| self.0.contains_key(address)) {
            Basis::Holds
        } else {
            Basis::If(format!("every member of etcd is {MENDED}: {FLAW} in older ones"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_that_renew_what_is_over_are_known() {
        for (text, mended) in [
            ("3.3.27", false),
            ("3.4.23", false),
            ("3.4.30", false),
            ("3.4.31", true),
            ("3.5.0", false),
            ("3.5.12", false),
            ("3.5.13", true),
            ("3.5.16", true),
            ("3.6.0-rc.1", true),
            ("3.6.4", true),
            ("4.0.0", true),
            ("2.3.8", false),
        ] {
            assert_eq!(Version::parse(text).unwrap().is_mended(), mended, "{text}");
        }
        for text in ["", "3", "3.5", "3.5.x", "3.5.1.2", "three"] {
            assert_eq!(Version::parse(text), None, "{text}");
        }
    }

    #[test]
    fn one_old_member_is_enough() {
        let members = ["a:1".to_owned(), "b:1".to_owned()];
        let mut versions = Versions::default();
        assert!(matches!(versions.exclusion(&members), Basis::If(_)));
        versions.note("a:1", Version::parse("3.5.16").unwrap());
        assert!(matches!(versions.exclusion(&members), Basis::If(_)));
        versions.note("b:1", Version::parse("3.5.16").unwrap());
        assert_eq!(versions.exclusion(&members), Basis::Holds);
        versions.note("b:1", Version::parse("3.4.23").unwrap());
        let Basis::No(why) = versions.exclusion(&members) else { panic!("an old member is there") };
        assert!(why.contains("b:1 is etcd 3.4.23") && why.contains("3.5.13"), "{why}");
    }
}
