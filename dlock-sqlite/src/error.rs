//! What SQLite's errors mean for a request, and what a person can do about them.

use std::path::Path;

use dlock_core::{BackendError, ErrorKind};
use rusqlite::{Error, ErrorCode};

/// How far a request had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its transaction was not committed, and never will be.
    Before,
    /// The commit itself failed.
    Commit,
}

/// The lock is held by another connection for now: the same call may work in a moment.
pub(crate) fn is_busy(error: &Error) -> bool {
    use ErrorCode::{DatabaseBusy, DatabaseLocked, FileLockingProtocolFailed};
    matches!(error.sqlite_error_code(), Some(DatabaseBusy | DatabaseLocked | FileLockingProtocolFailed))
}

/// Names the file, says what is known of the request and what to do.
pub(crate) fn of_sqlite(path: &Path, phase: Phase, error: Error) -> BackendError {
    let (kind, message) = classify(path, phase, error.sqlite_error_code());
    BackendError::new(kind, message).with_source(error)
}

fn classify(path: &Path, phase: Phase, code: Option<ErrorCode>) -> (ErrorKind, String) {
    let file = path.display();
    match code {
        // A full disk refuses to write a frame of the log, so that of the commit, the last, was not written.
        Some(ErrorCode::DiskFull) => (
            ErrorKind::Refused,
            format!(
                "no space is left for the lock file {file}: free some on its file system, or raise the quota"
            ),
        ),
        _ if phase == Phase::Commit => (
            ErrorKind::Unknown,
            format!(
                "the lock file {file} did not confirm a write: the disk may be failing, look at the system's log"
            ),
        ),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => (
            ErrorKind::Unavailable,
            format!(
                "the lock file {file} is being written by another process; one that is stopped in the middle of a \
                     write must go on, or be killed"
            ),
        ),
        Some(ErrorCode::SystemIoFailure) => (
            ErrorKind::Unavailable,
            format!(
                "the lock file {file} could not be read or written: the disk may be failing or its quota used up, \
                     look at the system's log"
            ),
        ),
        Some(ErrorCode::OutOfMemory) => {
            (ErrorKind::Unavailable, format!("no memory is left to work on the lock file {file}"))
        }
        Some(
            ErrorCode::ReadOnly | ErrorCode::PermissionDenied | ErrorCode::AuthorizationForStatementDenied,
        ) => (ErrorKind::Refused, not_writable(path)),
        Some(ErrorCode::CannotOpen) => (
            ErrorKind::Refused,
            format!(
                "the lock file {file}, or {file}-wal or {file}-shm beside it, cannot be opened or created: let this \
                     user write to the folder (chmod, chown), and see that open files are not at their limit"
            ),
        ),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => (
            ErrorKind::Refused,
            format!(
                "the lock file {file} is damaged or not an SQLite file: if it is the right path, stop the processes \
                     that use it and move it aside together with {file}-wal and {file}-shm; a new one is made then"
            ),
        ),
        _ => (
            ErrorKind::Refused,
            format!(
                "the lock file {file} is not as dlock made it: stop the processes that use it and move it aside \
                     together with {file}-wal and {file}-shm; a new one is made then"
            ),
        ),
    }
}

pub(crate) fn not_writable(path: &Path) -> String {
    let file = path.display();
    format!(
        "the lock file {file} cannot be written by this user: use chmod or chown on it, {file}-wal and {file}-shm, \
             or give a file elsewhere"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(phase: Phase, code: i32) -> ErrorKind {
        let error = Error::SqliteFailure(rusqlite::ffi::Error::new(code), None);
        let error = of_sqlite(Path::new("/x/locks.db"), phase, error);
        assert!(error.to_string().contains("/x/locks.db"), "{error}");
        error.kind()
    }

    #[test]
    fn what_failed_before_the_commit_is_certain() {
        use rusqlite::ffi;
        assert_eq!(kind(Phase::Before, ffi::SQLITE_BUSY), ErrorKind::Unavailable);
        assert_eq!(kind(Phase::Before, ffi::SQLITE_BUSY_RECOVERY), ErrorKind::Unavailable);
        assert_eq!(kind(Phase::Before, ffi::SQLITE_IOERR_READ), ErrorKind::Unavailable);
        for refused in [
            ffi::SQLITE_FULL,
            ffi::SQLITE_READONLY,
            ffi::SQLITE_READONLY_DIRECTORY,
            ffi::SQLITE_CANTOPEN,
            ffi::SQLITE_NOTADB,
            ffi::SQLITE_CORRUPT,
            ffi::SQLITE_PERM,
            ffi::SQLITE_ERROR,
        ] {
            assert_eq!(kind(Phase::Before, refused), ErrorKind::Refused, "{refused}");
        }
    }

    #[test]
    fn a_failed_commit_is_unknown_unless_the_disk_is_full() {
        use rusqlite::ffi;
        assert_eq!(kind(Phase::Commit, ffi::SQLITE_IOERR_FSYNC), ErrorKind::Unknown);
        assert_eq!(kind(Phase::Commit, ffi::SQLITE_BUSY), ErrorKind::Unknown);
        assert_eq!(kind(Phase::Commit, ffi::SQLITE_FULL), ErrorKind::Refused);
    }
}
