#![doc = include_str!("../README.md")]

mod error;
mod file;
mod identity;
mod owner;
mod session;
mod store;
mod sweep;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Backend, BackendError, BackendUrl, Fairness, Guarantees, Location, LockName, OpenOptions, Opened,
    UrlError, check_prefix,
};

use crate::owner::Owner;
use crate::session::SqliteSession;
use crate::store::{POLL, Settings, Store};

/// Locks in an SQLite file, for the processes of one machine.
///
/// Making one does no I/O: what is wrong with the file shows when the session is opened.
///
/// # Examples
///
/// ```
/// use dlock_core::{Backend, LockName};
/// use dlock_sqlite::SqliteBackend;
///
/// let backend = SqliteBackend::new("/var/lib/shop/locks.db");
/// let location = backend.locate(&LockName::new("orders/42")?);
/// assert_eq!(location.location, "/var/lib/shop/locks.db#orders/42");
/// assert_eq!(
///     location.inspect.unwrap(),
///     r#"sqlite3 /var/lib/shop/locks.db "SELECT * FROM claim WHERE name = 'orders/42'""#,
/// );
/// # Ok::<(), dlock_core::NameError>(())
/// ```
#[derive(Clone, Debug)]
pub struct SqliteBackend {
    path: PathBuf,
    prefix: String,
    clock_id: Option<String>,
}

impl SqliteBackend {
    /// Locks in the file at `path`, which is made when it is missing; its folder must exist.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self::builder(path).build()
    }

    /// Locks in the file at `path`, with settings.
    pub fn builder(path: impl AsRef<Path>) -> SqliteBackendBuilder {
        let given = path.as_ref();
        // A session may be opened again after the process changed its folder.
        let absolute = if file::names_no_file(given) { None } else { std::path::absolute(given).ok() };
        let path = absolute.unwrap_or_else(|| given.to_owned());
        SqliteBackendBuilder(Self { path, prefix: String::new(), clock_id: None })
    }

    /// Reads `sqlite:PATH`, percent-decoded, and the parameter `prefix`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what to write instead: the path is missing, is `:memory:`, starts with `~`, or the prefix is
    /// not legal.
    ///
    /// # Examples
    ///
    /// ```
    /// use dlock_core::BackendUrl;
    /// use dlock_sqlite::SqliteBackend;
    ///
    /// let mut url = BackendUrl::parse("sqlite:///var/lib/shop/locks.db?prefix=shop/")?;
    /// let backend = SqliteBackend::from_url(&mut url)?;
    /// url.finish()?;
    /// # Ok::<(), dlock_core::UrlError>(())
    /// ```
    pub fn from_url(url: &mut BackendUrl) -> Result<Self, UrlError> {
        let path = url.decoded_rest()?;
        if path.is_empty() {
            return Err(UrlError::new(
                "the URL names no file: write sqlite:PATH, as in sqlite:/var/lib/locks.db",
            ));
        }
        if path.starts_with(":memory:") {
            return Err(UrlError::new(file::NOT_IN_MEMORY));
        }
        if path == "~" || path.starts_with("~/") {
            return Err(UrlError::new(
                "nothing replaces the ~ in a URL by the home folder: write the whole path, as in sqlite:$HOME/locks.db \
                 in a shell",
            ));
        }
        let prefix = url.take("prefix").unwrap_or_default();
        check_prefix(&prefix)?;
        Ok(Self::builder(path).prefix(prefix).build())
    }

    /// The file, as an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Settings of a [`SqliteBackend`].
#[derive(Clone, Debug)]
pub struct SqliteBackendBuilder(SqliteBackend);

impl SqliteBackendBuilder {
    /// Puts `prefix` in front of every name in the file, so that applications that share it do not share locks. None
    /// by default.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.prefix = prefix.into();
        self
    }

    /// Names the clock that sessions are opened with, for tests that bring their own: rows are judged by their expiry
    /// between sessions of one clock id only.
    ///
    /// By default it is found out: the boot clock of this machine, where that is the clock which the session was
    /// opened with; else each session is alone, and takes a dead holder's lock once it has seen it unchanged for its
    /// lease. Give sessions that share a test clock one id, and never give one id to two clocks.
    pub fn clock_id(mut self, id: impl Into<String>) -> Self {
        self.0.clock_id = Some(id.into());
        self
    }

    /// The backend. No I/O.
    pub fn build(self) -> SqliteBackend {
        self.0
    }
}

#[async_trait]
impl Backend for SqliteBackend {
    fn guarantees(&self) -> Guarantees {
        Guarantees::new("sqlite")
            .fairness(Fairness::Process)
            .min_ttl(Duration::from_millis(100))
            .takeover(1, POLL * 5)
            .note("the processes of one machine, on a local file system; no network file systems")
            .note("a process that is frozen in the middle of a write keeps every other one waiting until it goes on")
            .note("the lock of a holder from before a reboot, or in another time namespace, is taken once it was seen \
                   unchanged for its lease")
    }

    fn locate(&self, name: &LockName) -> Location {
        let key = format!("{}{name}", self.prefix);
        let path = self.path.to_string_lossy();
        let query = format!("SELECT * FROM claim WHERE name = '{}'", key.replace('\'', "''"));
        Location::new("sqlite", format!("{path}#{key}")).inspect(format!(
            "sqlite3 {} {}",
            shell_word(&path),
            shell_word(&query)
        ))
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        check_prefix(&self.prefix).map_err(|error| BackendError::refused(error.to_string()))?;
        let settings = Settings {
            path: self.path.clone(),
            prefix: self.prefix.clone(),
            ttl: options.ttl,
            request_timeout: options.request_timeout,
            clock_id: self.clock_id.clone().unwrap_or_else(|| identity::of_clock(&*options.clock)),
            clock: Arc::clone(&options.clock),
        };
        let owner = Owner::start(&self.path, move || Store::open(settings)).await?;
        let session = SqliteSession::new(owner, options.clock, self.path.clone());
        Ok(Opened::with_claim_leases(Arc::new(session), options.ttl))
    }
}

/// Quotes a word for a POSIX shell, in the form that is easiest to read.
fn shell_word(text: &str) -> String {
    let plain =
        |c: char| c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '%' | '@' | '+' | ',');
    let special = |c: char| matches!(c, '"' | '$' | '`' | '\\' | '!');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else if !text.contains(special) {
        format!("\"{text}\"")
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::shell_word;

    #[test]
    fn words_are_quoted_for_a_shell() {
        assert_eq!(shell_word("/var/lib/locks.db"), "/var/lib/locks.db");
        assert_eq!(shell_word("it's here"), "\"it's here\"");
        assert_eq!(shell_word("'$HOME'"), r"''\''$HOME'\'''");
    }
}
