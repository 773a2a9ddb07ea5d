//! Opening the lock file: what it must be, how it is made, and whether it is still there.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dlock_core::{BackendError, Clock};
use rusqlite::{Connection, MAIN_DB, OpenFlags};

use crate::error::{Phase, is_busy, not_writable, of_sqlite};

/// `DLOK`, in the header of each file that is ours.
const APPLICATION_ID: i64 = 0x444c_4f4b;
/// The layout that this version writes and reads.
const LAYOUT: i64 = 1;
const SCHEMA: &str = include_str!("schema.sql");

pub(crate) const NOT_IN_MEMORY: &str = "SQLite in memory cannot be shared, not even inside this process: write memory: \
                                        (or memory:NAME) for locks inside one process, sqlite:PATH for those of one machine";

/// How long a connection waits, before it is told that the file is busy.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// For one attempt.
    pub(crate) busy: Duration,
    /// For opening in all.
    pub(crate) open: Duration,
}

/// The file as it was opened.
#[derive(Debug)]
pub(crate) struct LockFile {
    path: PathBuf,
    id: Option<FileId>,
}

impl LockFile {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Checks that the path still leads to the file that is open. Otherwise newcomers lock in another file, and every
    /// claim in ours is worth nothing.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        if self.id == file_id(&self.path) {
            return Ok(());
        }
        Err(BackendError::session_gone(format!(
            "the lock file {} was removed or replaced while it was in use: leave it in place",
            self.path.display()
        )))
    }
}

/// True for what SQLite would not take as a file's name.
pub(crate) fn names_no_file(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.as_os_str().as_encoded_bytes().starts_with(b":memory:")
}

/// Opens the file, which is made when it is missing.
pub(crate) fn open(
    path: &Path,
    patience: Patience,
    clock: &dyn Clock,
) -> Result<(Connection, LockFile), BackendError> {
    check_place(path)?;
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let before = |error| of_sqlite(path, Phase::Before, error);
    let connection = Connection::open_with_flags(path, flags).map_err(before)?;
    connection.busy_timeout(patience.busy).map_err(before)?;
    if connection.is_readonly(MAIN_DB).map_err(before)? {
        return Err(BackendError::refused(not_writable(path)));
    }
    prepare(&connection, path, patience, clock)?;
    let file = LockFile { path: path.to_owned(), id: file_id(path) };
    Ok((connection, file))
}

/// Tells what is wrong with the path in better words than SQLite's.
fn check_place(path: &Path) -> Result<(), BackendError> {
    if names_no_file(path) {
        let message =
            if path.as_os_str().is_empty() { "the path of the lock file is empty" } else { NOT_IN_MEMORY };
        return Err(BackendError::refused(message));
    }
    let file = path.display();
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let place = match std::fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(BackendError::refused(format!(
                "{file} is a folder: name a file in it, as in {}",
                path.join("locks.db").display()
            )));
        }
        Ok(found) if !found.is_file() => {
            return Err(BackendError::refused(format!(
                "{file} is not a regular file: give the lock file another path"
            )));
        }
        Ok(_) => path,
        Err(error) => {
            check_folder(path, folder, error)?;
            folder
        }
    };
    refuse_network(path, place)
}

/// The file could not be looked at; that is fine if it is only missing from its folder.
fn check_folder(path: &Path, folder: &Path, error: io::Error) -> Result<(), BackendError> {
    let file = path.display();
    let message = match std::fs::metadata(folder) {
        Ok(found) if found.is_dir() => match error.kind() {
            io::ErrorKind::NotFound => return Ok(()),
            _ => format!("the lock file {file} cannot be reached"),
        },
        Ok(_) => format!("the lock file {file} cannot be made: {} is not a folder", folder.display()),
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => {
            format!("the folder of the lock file {file} does not exist: mkdir -p {}", folder.display())
        }
        Err(_) => {
            format!("the folder {} of the lock file {file} cannot be reached by this user", folder.display())
        }
    };
    Err(BackendError::refused(message).with_source(error))
}

/// Brings the connection and the file into the state that every session expects.
///
/// Several processes may do this to a new file at once. SQLite does not wait where waiting could be a deadlock, as in
/// the switch to write-ahead logging, so a busy file is tried again here.
fn prepare(
    connection: &Connection,
    path: &Path,
    patience: Patience,
    clock: &dyn Clock,
) -> Result<(), BackendError> {
    const PAUSE: Duration = Duration::from_millis(10);
    let end = clock.now().plus(patience.open);
    let mut pauses = patience.open.as_nanos() / PAUSE.as_nanos();
    loop {
        match try_prepare(connection, path) {
            Err(Trouble::Sqlite(error)) if is_busy(&error) && pauses > 0 && clock.now() < end => {
                pauses -= 1;
                // The thread is the session's own, no runtime's.
                #[allow(clippy::disallowed_methods)]
                std::thread::sleep(PAUSE);
            }
            Ok(()) => return Ok(()),
            Err(Trouble::Sqlite(error)) => return Err(of_sqlite(path, Phase::Before, error)),
            Err(Trouble::Told(error)) => return Err(error),
        }
    }
}

enum Trouble {
    Sqlite(rusqlite::Error),
    Told(BackendError),
}

impl From<rusqlite::Error> for Trouble {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

fn try_prepare(connection: &Connection, path: &Path) -> Result<(), Trouble> {
    let is_new = is_new(connection, path)?;
    // Pages that are free again are given back, so that many locks held once do not leave a large file. Only a file
    // that is still empty takes this; SQLite ignores it otherwise.
    connection.pragma_update(None, "auto_vacuum", "FULL")?;
    let mode: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    if mode != "wal" {
        return Err(Trouble::Told(BackendError::refused(format!(
            "the file system of {} has no shared memory for SQLite's write-ahead log: give a file on a local disk",
            path.display()
        ))));
    }
    // A token must survive a power failure: each commit is on the disk before it is answered.
    connection.pragma_update(None, "synchronous", "FULL")?;
    // macOS flushes to the disk itself only when asked so; elsewhere these two change nothing.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "checkpoint_fullfsync", true)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "trusted_schema", false)?;
    if is_new {
        connection.execute_batch("BEGIN IMMEDIATE")?;
        let created = create(connection, path);
        if created.is_err() && !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK")?;
        }
        created?;
    }
    Ok(())
}

/// Creates the tables, unless another process was faster.
fn create(connection: &Connection, path: &Path) -> Result<(), Trouble> {
    if is_new(connection, path)? {
        connection.execute_batch(SCHEMA)?;
    }
    connection.execute_batch("COMMIT")?;
    Ok(())
}

/// True for an empty file, false for one that is ours; any other is refused, and has not been touched.
fn is_new(connection: &Connection, path: &Path) -> Result<bool, Trouble> {
    // One statement, so that it sees one state of the file.
    let (application, layout, objects): (i64, i64, i64) = connection.query_row(
        "SELECT (SELECT application_id FROM pragma_application_id),
                (SELECT user_version FROM pragma_user_version),
                (SELECT count(*) FROM sqlite_schema)",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    let file = path.display();
    let message = match (application, layout) {
        (0, 0) if objects == 0 => return Ok(true),
        (APPLICATION_ID, LAYOUT) => return Ok(false),
        (APPLICATION_ID, newer) if newer > LAYOUT => format!(
            "the lock file {file} was made by a newer version of dlock (layout {newer}, this one knows {LAYOUT}): update \
             this program"
        ),
        (APPLICATION_ID, other) => format!(
            "the lock file {file} has layout {other}, which no version of dlock makes: stop the processes that use it and \
             move it aside"
        ),
        _ => format!("{file} is a database of another application: give dlock a file of its own"),
    };
    Err(Trouble::Told(BackendError::refused(message)))
}

/// What tells a file from another at the same path.
#[derive(Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

#[cfg(unix)]
fn file_id(path: &Path) -> Option<FileId> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata(path).ok().map(|found| FileId { device: found.dev(), inode: found.ino() })
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn file_id(_: &Path) -> Option<FileId> {
    None
}

/// File systems of several machines, by the numbers of Linux' statfs(2): SQLite's shared memory does not reach over
/// machines, and their file locks do not always. Processes on two of them would both get the lock.
#[cfg(target_os = "linux")]
const NETWORK: [(i64, &str); 16] = [
    (0x6969, "NFS"),
    (0x517b, "SMB"),
    (0xff53_4d42, "CIFS"),
    (0xfe53_4d42, "SMB"),
    (0x564c, "NCP"),
    (0x5346_414f, "AFS"),
    (0x6b41_4653, "AFS"),
    (0x7375_7245, "Coda"),
    (0x0102_1997, "9P"),
    (0x00c3_6400, "Ceph"),
    (0x0bd0_0bd0, "Lustre"),
    (0x1983_0326, "BeeGFS"),
    (0x4750_4653, "GPFS"),
    (0x0116_1970, "GFS2"),
    (0x7461_636f, "OCFS2"),
    (0x786f_4256, "a VirtualBox shared folder"),
];

#[cfg(target_os = "linux")]
fn refuse_network(path: &Path, place: &Path) -> Result<(), BackendError> {
    const FUSE: i64 = 0x6573_5546;
    // A file system that does not say what it is will be judged by what SQLite can do on it.
    let Ok(found) = rustix::fs::statfs(place) else { return Ok(()) };
    // The field's type differs between targets; the numbers are of 32 bits.
    #[allow(clippy::useless_conversion)]
    let kind = i64::try_from(found.f_type).unwrap_or(0) & 0xffff_ffff;
    if kind == FUSE {
        tracing::warn!(
            path = %path.display(),
            "the lock file is on a FUSE file system: if other machines reach it as well, locks do not exclude them"
        );
    }
    let Some((_, name)) = NETWORK.iter().find(|(number, _)| *number == kind) else { return Ok(()) };
    Err(BackendError::refused(format!(
        "the lock file {} is on {name}, which other machines share, and SQLite's locks do not reach over machines: give a \
         file on a local disk, or use a server (etcd, zk, postgres, redis)",
        path.display()
    )))
}

#[cfg(not(target_os = "linux"))]
fn refuse_network(_: &Path, _: &Path) -> Result<(), BackendError> {
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_readme_shows_the_schema() {
        assert!(include_str!("../README.md").contains(super::SCHEMA), "copy schema.sql into README.md");
    }
}
