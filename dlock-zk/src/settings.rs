//! What a backend was told.

use std::fmt;
use std::time::Duration;

use crate::layout::Layout;
use crate::lease::LeaseRule;
use crate::tls::Tls;
use crate::{DEFAULT_PREFIX, DEFAULT_TICK};

/// Everything that the builder or a URL sets.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `host:port` each.
    pub(crate) endpoints: Vec<String>,
    pub(crate) layout: Layout,
    /// No server has a greater `tickTime`.
    pub(crate) tick: Duration,
    pub(crate) authentication: Option<Authentication>,
    pub(crate) world_readable: bool,
    pub(crate) tls: Option<Tls>,
    pub(crate) rule: LeaseRule,
}

impl Settings {
    pub(crate) fn new(endpoints: Vec<String>) -> Self {
        Self {
            endpoints,
            layout: Layout::new("", DEFAULT_PREFIX),
            tick: DEFAULT_TICK,
            authentication: None,
            world_readable: false,
            tls: None,
            rule: LeaseRule::default(),
        }
    }
}

/// Whether servers may have this `tickTime`.
pub(crate) fn check_tick(tick: Duration) -> Result<(), String> {
    const HOUR: Duration = Duration::from_secs(60 * 60);
    if (Duration::from_millis(1)..=HOUR).contains(&tick) {
        Ok(())
    } else {
        Err(format!(
            "{tick:?} cannot be the tickTime of a server: give theirs, 1 ms to an hour, as in tick=2s"
        ))
    }
}

/// How a connection says who we are.
#[derive(Clone, Debug)]
pub(crate) enum Authentication {
    /// An `auth` packet of scheme `digest`.
    Digest(Secret),
    /// SASL with mechanism DIGEST-MD5.
    Sasl(Secret),
}

/// A user and its password, which is never shown.
#[derive(Clone)]
pub(crate) struct Secret {
    pub(crate) user: String,
    pub(crate) password: String,
}

impl Secret {
    pub(crate) fn new(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self { user: user.into(), password: password.into() }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("user", &self.user).finish_non_exhaustive()
    }
}
