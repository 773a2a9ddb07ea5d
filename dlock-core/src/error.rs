//! Errors: of names, of stores, and of each user-facing operation.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::name::{LockName, MAX_NAME_BYTES};

/// Why a string is not a legal lock name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name is empty.
    #[error("a lock name has at least one byte; this one is empty")]
    Empty,
    /// The name is longer than 512 bytes.
    #[error(
        "a lock name has at most {MAX_NAME_BYTES} bytes of UTF-8; this one has {bytes}: shorten or hash it"
    )]
    TooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// The name has a control character.
    #[error("a lock name has no control characters; this one has {character:?} at byte {at}: leave it out")]
    ControlCharacter {
        /// Its byte offset.
        at: usize,
        /// The character.
        character: char,
    },
}

/// Why a lock manager could not be built: a setting that no store could honour.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

/// What is known of a request that failed. It decides what core does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request was certainly not executed and never will be; asking again may work (connection refused, busy).
    Unavailable,
    /// No answer: the request may have been executed, or may still be.
    Unknown,
    /// The session is over at the store, and with it every claim it carried. The request was not executed.
    SessionGone,
    /// The store said no, and will again: credentials, permissions, a full disk, a foreign value at our key.
    Refused,
    /// The store cannot grant yet, and knows when it can (a quarantine after a restart). Not executed.
    NotReady {
        /// How long to wait before asking again.
        retry_after: Duration,
    },
}

/// A failed request to a store: what is known of it, in words that say what to do, and the cause.
#[derive(Clone)]
pub struct BackendError {
    kind: ErrorKind,
    message: String,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl BackendError {
    /// An error with a message: lower case, no full stop, says what to do, never a secret.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// [`ErrorKind::Unavailable`] with a message.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unavailable, message)
    }

    /// [`ErrorKind::Unknown`] with a message.
    pub fn unknown(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Unknown, message)
    }

    /// [`ErrorKind::SessionGone`] with a message.
    pub fn session_gone(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::SessionGone, message)
    }

    /// [`ErrorKind::Refused`] with a message.
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Refused, message)
    }

    /// [`ErrorKind::NotReady`] with a message that says why, and until when.
    pub fn not_ready(retry_after: Duration, message: impl Into<String>) -> Self {
        Self::new(ErrorKind::NotReady { retry_after }, message)
    }

    /// The store was silent for the whole time-out.
    pub(crate) fn no_answer(limit: Duration) -> Self {
        Self::unknown(format!("the store did not answer within {limit:?}"))
    }

    /// Adds the cause, which the message does not repeat.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// What is known of the request.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Debug for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendError")
            .field("kind", &self.kind)
            .field("message", &self.message)
            .field("source", &self.source)
            .finish()
    }
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for BackendError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Why a lock was not acquired.
///
/// That somebody else holds it is not among the reasons of [`try_acquire`](crate::Lock::try_acquire), which answers
/// `None`, and is [`Timeout`](Self::Timeout) of [`acquire_timeout`](crate::Lock::acquire_timeout).
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError {
    /// Somebody else held the lock for the whole time.
    #[error("lock {name:?} was held by others for the {waited:.1?} that this caller would wait")]
    Timeout {
        /// The lock.
        name: LockName,
        /// How long the caller waited.
        waited: Duration,
    },
    /// The lock manager was closed before the lock was granted.
    #[error(
        "the lock manager was closed before lock {name:?} was granted: open a new one with connect or build"
    )]
    Closed {
        /// The lock.
        name: LockName,
    },
    /// The store could not be reached, or was not ready, for the whole time.
    #[error("the store could not grant lock {name:?} for {waited:.1?}; it was asked again and again")]
    Unavailable {
        /// The lock.
        name: LockName,
        /// How long the caller waited.
        waited: Duration,
        /// The last failure.
        source: BackendError,
    },
    /// The store refused; asking again will not help until somebody changes something.
    #[error("the store refused lock {name:?}")]
    Refused {
        /// The lock.
        name: LockName,
        /// What it said.
        source: BackendError,
    },
    /// An earlier request for this lock was never answered and the store has not yet told what became of it.
    #[error(
        "what became of an earlier request for lock {name:?} was not known after {waited:.1?}: the store did not answer; \
         ask again once it does"
    )]
    Unresolved {
        /// The lock.
        name: LockName,
        /// How long the caller waited.
        waited: Duration,
        /// The last failure.
        source: BackendError,
    },
    /// The tokio runtime that serves this manager is gone, or there is none here.
    #[error(
        "lock {name:?} needs a running tokio runtime with time enabled: call from one, and keep the runtime in which \
         the manager was first used"
    )]
    NoRuntime {
        /// The lock.
        name: LockName,
    },
}

impl AcquireError {
    /// The lock that was asked for.
    pub fn name(&self) -> &LockName {
        match self {
            Self::Timeout { name, .. }
            | Self::Closed { name }
            | Self::Unavailable { name, .. }
            | Self::Refused { name, .. }
            | Self::Unresolved { name, .. }
            | Self::NoRuntime { name } => name,
        }
    }

    /// Somebody else held the lock: not a failure of the store.
    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::Timeout { .. })
    }

    /// The same call may work later without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Timeout { .. } | Self::Unavailable { .. } | Self::Unresolved { .. })
    }
}

/// Why a session could not be opened or a look at the store failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store could not be reached in time.
    #[error("the store could not be reached")]
    Unavailable(#[source] BackendError),
    /// The store refused.
    #[error("the store refused")]
    Refused(#[source] BackendError),
    /// The lock manager was closed.
    #[error("the lock manager was closed: open a new one with connect or build")]
    Closed,
    /// There is no tokio runtime here.
    #[error("this needs a running tokio runtime with time enabled: call it from one")]
    NoRuntime,
}

impl From<BackendError> for StoreError {
    fn from(error: BackendError) -> Self {
        match error.kind() {
            ErrorKind::Refused => Self::Refused(error),
            _ => Self::Unavailable(error),
        }
    }
}

/// The store did not confirm a release in time. The guard is dead all the same, and the claim ends by itself.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the release of lock {name:?} was not confirmed by the store; the guard is dead, and the claim expires by itself \
     within {expires_within:?}"
)]
pub struct ReleaseError {
    pub(crate) name: LockName,
    pub(crate) expires_within: Duration,
    #[source]
    pub(crate) source: Option<BackendError>,
}

impl ReleaseError {
    /// The lock whose release was not confirmed.
    pub fn name(&self) -> &LockName {
        &self.name
    }

    /// The longest the store may go on counting the lock as held.
    pub fn expires_within(&self) -> Duration {
        self.expires_within
    }
}

/// The store did not confirm the end of the session in time. Every guard is dead all the same, and what is left at the
/// store expires by itself.
#[derive(Clone, Debug, thiserror::Error)]
#[error(
    "the store did not confirm that the session ended; what it holds expires by itself within {expires_within:?}"
)]
pub struct CloseError {
    pub(crate) expires_within: Duration,
    #[source]
    pub(crate) source: Option<BackendError>,
}

impl CloseError {
    /// The longest the store may go on counting this manager's locks as held.
    pub fn expires_within(&self) -> Duration {
        self.expires_within
    }
}
