//! From a URL to a lock manager.

use dlock_core::{BackendUrl, LockManager, LockManagerBuilder, UrlError};

use crate::error::ConnectError;
use crate::schemes;

/// Connects to the store that a URL names.
///
/// The session is opened before this returns, so that a wrong address, path or password shows here. The
/// [tour](crate#connect) lists the URLs and their parameters.
///
/// # Cancel safety
///
/// Cancel safe: a session that was being opened is closed in the background.
///
/// # Errors
///
/// [`ConnectError`] says what is wrong and what to write instead. No error shows a password.
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let locks = dlock::connect("memory:?ttl=10s&owner=worker-7").await?;
/// let guard = locks.lock("orders/42")?.acquire().await?;
/// assert!(guard.is_held());
/// # Ok(()) }
/// ```
pub async fn connect(url: &str) -> Result<LockManager, ConnectError> {
    let (backend, builder) = read(url)?;
    let locks = builder.build()?;
    locks.open().await.map_err(|source| ConnectError::Store { backend, source })?;
    Ok(locks)
}

/// The settings of a manager for the store that a URL names, to which code can add more. No I/O.
///
/// The session is opened by [`LockManager::open`] or at first use.
///
/// # Errors
///
/// [`ConnectError`], but never [`ConnectError::Store`]; settings that do not fit the backend show in
/// [`build`](LockManagerBuilder::build).
///
/// # Examples
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let locks = dlock::builder("memory:?ttl=10s")?.max_hold(Duration::from_secs(60)).build()?;
/// locks.open().await?;
/// # Ok(()) }
/// ```
pub fn builder(url: &str) -> Result<LockManagerBuilder, ConnectError> {
    read(url).map(|(_, builder)| builder)
}

/// The backend's name, and the settings that the URL makes.
fn read(text: &str) -> Result<(&'static str, LockManagerBuilder), ConnectError> {
    // The scheme first: what is wrong with the rest is not the point if nobody here understands it.
    let found = text.split_once(':').map(|(scheme, _)| schemes::find(scheme)).transpose()?.flatten();
    let Some((entry, make)) = found else {
        let scheme = BackendUrl::parse(text)?.scheme().to_owned();
        return Err(schemes::unknown(scheme));
    };
    let mut url = BackendUrl::parse(text)?;
    let backend = make(&mut url)?;
    let mut builder = LockManager::builder_arc(backend);
    if let Some(ttl) = url.take_duration("ttl")? {
        builder = builder.ttl(ttl);
    }
    if let Some(owner) = url.take("owner") {
        builder = builder.owner(owner);
    }
    if let Some(timeout) = url.take_duration("request_timeout")? {
        builder = builder.request_timeout(timeout);
    }
    if let Some(time) = url.take_duration("give_up_after")? {
        builder = builder.give_up_after(time);
    }
    if let Some(longest) = url.take_duration("max_hold")? {
        if longest.is_zero() {
            return Err(UrlError::new(
                "parameter max_hold: no lock could be held for 0 s: leave it out for no limit",
            )
            .into());
        }
        builder = builder.max_hold(longest);
    }
    url.finish()?;
    Ok((entry.name, builder))
}
