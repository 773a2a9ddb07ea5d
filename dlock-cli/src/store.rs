//! Which store: the URL, what of it may be shown, and the manager over it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use dlock::{LockManager, LockManagerBuilder};
use nix::unistd::{Uid, User};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::args;
use crate::exit::{Failure, REFUSED, SYSTEM, USAGE};

/// What a path in a URL must not hold as it is.
const PATH: &AsciiSet = &CONTROLS.add(b'%').add(b'?').add(b'#');

/// A store that was chosen.
#[derive(Clone)]
pub(crate) struct Store {
    url: String,
    shown: String,
    /// A folder of the user's that may not be there yet.
    folder: Option<PathBuf>,
}

impl Store {
    /// The store of `--url`, of `$DLOCK_URL`, or else the user's own file.
    pub(crate) fn choose(args: &args::Store) -> Result<Self, Failure> {
        if let Some(url) = args.url.as_deref().filter(|url| !url.is_empty()) {
            return Ok(Self { url: url.to_owned(), shown: without_secrets(url), folder: None });
        }
        let user = User::from_uid(Uid::effective()).ok().flatten().ok_or_else(|| {
            Failure::new(
                SYSTEM,
                "the passwd database does not know this user, so there is no home for the lock file",
            )
            .hint("say which store to use: --url sqlite:/path/locks.db, or DLOCK_URL")
        })?;
        let folder = user.dir.join(".local/state/dlock");
        let file = folder.join("locks.db");
        let file = file.to_str().ok_or_else(|| {
            Failure::new(USAGE, format!("the path {} is not UTF-8", file.display()))
                .hint("say which store to use: --url sqlite:/path/locks.db, or DLOCK_URL")
        })?;
        let url = format!("sqlite:{}", utf8_percent_encode(file, PATH));
        Ok(Self { url, shown: file.to_owned(), folder: Some(folder) })
    }

    /// Makes the folder of the user's own file, for commands that are about to open it.
    pub(crate) fn make_folder(&self) -> Result<(), Failure> {
        let Some(folder) = &self.folder else { return Ok(()) };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|error| {
            Failure::new(REFUSED, format!("cannot make the folder {}: {error}", folder.display()))
                .hint("say which store to use: --url sqlite:/path/locks.db, or DLOCK_URL")
        })
    }

    /// The store for people: without user names, passwords and parameters.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// The settings of a manager over this store.
    pub(crate) fn builder(&self) -> Result<LockManagerBuilder, Failure> {
        dlock::builder(&self.url).map_err(|error| {
            Failure::from_error(USAGE, &error).hint("`dlock --help` lists the URLs of all stores")
        })
    }

    /// A manager over this store, with the settings of the URL.
    pub(crate) fn manager(&self) -> Result<LockManager, Failure> {
        self.builder()?.build().map_err(|error| Failure::from_error(USAGE, &error))
    }
}

/// The scheme and the hosts of a URL, or the path of a file: nothing that could be a secret. Where the URL cannot be
/// taken apart for certain, the scheme alone.
fn without_secrets(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once(':') else { return "the given URL".to_owned() };
    if !scheme.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.')) {
        return "the given URL".to_owned();
    }
    let plain = rest.split_once('?').map_or(rest, |(plain, _)| plain);
    if matches!(scheme, "sqlite" | "memory") {
        return format!("{scheme}:{plain}");
    }
    let hosts = plain.strip_prefix("//").unwrap_or(plain);
    let hosts = hosts.split_once('/').map_or(hosts, |(hosts, _)| hosts);
    let mut shown = Vec::new();
    let mut ats = 0;
    for host in hosts.split(',') {
        let (user, host) = host.rsplit_once('@').map_or((None, host), |(user, host)| (Some(user), host));
        ats += usize::from(user.is_some());
        let is_host = host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.:[]".contains(c));
        let port = host.rsplit_once(':').map_or("0", |(_, port)| port);
        if !is_host || !(port.ends_with(']') || port.chars().all(|c| c.is_ascii_digit())) {
            return format!("{scheme}:");
        }
        shown.push(host);
    }
    // An @ elsewhere: a password may hold what ends the hosts, and then these are not hosts.
    if url.matches('@').count() != ats {
        return format!("{scheme}:");
    }
    format!("{scheme}://{}", shown.join(","))
}

#[cfg(test)]
mod tests {
    use super::without_secrets;

    #[test]
    fn hosts_are_shown_and_secrets_are_not() {
        let cases = [
            ("etcd://h1:2379,h2:2379?ttl=10s", "etcd://h1:2379,h2:2379"),
            ("postgres://user:secret@db.example:5432/app", "postgres://db.example:5432"),
            ("redis://:secret@h:6379/0?owner=x", "redis://h:6379"),
            ("redis+redlock://u:secret@h1:1,u:secret@h2:2", "redis+redlock://h1:1,h2:2"),
            ("redis://[::1]:6379/0", "redis://[::1]:6379"),
            ("sqlite:/var/lib/locks.db?ttl=3s", "sqlite:/var/lib/locks.db"),
            ("zk://h:2181/chroot", "zk://h:2181"),
            ("nonsense", "the given URL"),
            ("sec ret:x", "the given URL"),
        ];
        for (url, shown) in cases {
            assert_eq!(without_secrets(url), shown, "{url}");
        }
    }

    #[test]
    fn a_password_that_looks_like_something_else_is_not_shown() {
        let urls = [
            "postgres://u:sec/ret@h/db",
            "postgres://u:1234/secret@h/db",
            "postgres://u:secret?x@h/db",
            "postgres://u:sec,ret@h/db",
            "postgres://u:12,34/secret@h/db",
            "postgres://h/db?password=p@secret",
            "redis://secret",
        ];
        for url in &urls[..6] {
            let shown = without_secrets(url);
            assert!(
                !shown.contains("sec") && !shown.contains("1234") && !shown.contains("34"),
                "{url}: {shown}"
            );
        }
        assert_eq!(without_secrets(urls[6]), "redis://secret", "a host is not a secret");
    }
}
