//! What PostgreSQL's errors mean for a request, and what a person can do about them.

use dlock_core::{BackendError, ErrorKind};
use sqlx::Error;
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgDatabaseError, PgSeverity};

/// Which server, database and role an error is about; never a password.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// `shop on db.example:5432`.
    pub(crate) database: String,
    pub(crate) role: String,
    pub(crate) schema: String,
}

/// What a failed statement leaves.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server said that the statement was not executed. The session goes on; an advisory lock that the statement took
    /// may still be held.
    Definite(BackendError),
    /// The connection is of no more use: the session is over, and with it all that it held.
    Over(BackendError),
}

impl Failure {
    /// The error that a request fails with.
    pub(crate) fn into_error(self) -> BackendError {
        match self {
            Self::Definite(error) | Self::Over(error) => error,
        }
    }
}

/// Whether an error shows that another server process answered than the one that statements were prepared in: a name of a
/// prepared statement is taken, or not known.
pub(crate) fn shows_pooler(error: &Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    matches!(code.as_deref(), Some("42P05" | "26000"))
}

/// What the failure of a statement means under a session.
pub(crate) fn of_statement(place: &Place, error: Error) -> Failure {
    if shows_pooler(&error) {
        return Failure::Over(pooled(place).with_source(error));
    }
    let (code, severity) = match &error {
        Error::Database(database) => {
            let severity = database.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::severity);
            (database.code().unwrap_or_default().into_owned(), severity)
        }
        // The connection, or what is understood of it, is broken: whatever the server still does ends with it.
        _ => return Failure::Over(gone(place, Some(error))),
    };
    if matches!(severity, Some(PgSeverity::Fatal | PgSeverity::Panic) | None) {
        return Failure::Over(gone(place, Some(error)));
    }
    let (kind, message) = classify(place, &code, &error);
    Failure::Definite(BackendError::new(kind, message).with_source(error))
}

/// The session is over at the server.
pub(crate) fn gone(place: &Place, cause: Option<Error>) -> BackendError {
    let error = BackendError::session_gone(format!(
        "the session at database {} is over: the server ended it, restarted, or cannot be reached",
        place.database
    ));
    match cause {
        Some(cause) => error.with_source(cause),
        None => error,
    }
}

/// A statement was answered by a server process which does not know the session.
pub(crate) fn pooled(place: &Place) -> BackendError {
    BackendError::session_gone(format!(
        "another server process answered for the session at {}",
        pooler(place)
    ))
}

/// The row of the epoch is another one, or gone, while the server has not crashed.
pub(crate) fn another_epoch(place: &Place) -> BackendError {
    BackendError::session_gone(format!(
        "the epoch of this session is over in schema {:?} of database {}: a role that may not call pg_control_system() or \
         pg_walfile_name() has used the schema for the first time, or the row was removed by hand",
        place.schema, place.database
    ))
}

/// As [`pooled`], found out before anything was locked.
pub(crate) fn pooled_at_opening(place: &Place) -> BackendError {
    BackendError::refused(format!(
        "statements of one connection reach several server processes at {}",
        pooler(place)
    ))
}

fn pooler(place: &Place) -> String {
    format!(
        "database {}: a pooler hands each transaction to another one, and advisory locks need one connection; connect to \
         the server directly, or to a pool with pool_mode=session and its usual server_reset_query",
        place.database
    )
}

/// What the failure of a statement means while a session is being opened.
pub(crate) fn of_opening(place: &Place, error: Error) -> BackendError {
    if shows_pooler(&error) {
        return pooled_at_opening(place).with_source(error);
    }
    match of_statement(place, error) {
        Failure::Definite(error) => error,
        // Nothing was locked yet, so nothing is unknown.
        Failure::Over(error) => BackendError::unavailable(format!(
            "the connection to database {} broke while the session was being opened",
            place.database
        ))
        .with_source(error),
    }
}

/// What it means that no connection could be made.
pub(crate) fn of_connecting(place: &Place, error: Error) -> BackendError {
    let Place { database, role, .. } = place;
    let (kind, message) = match &error {
        Error::Database(cause) => {
            let code = cause.code().unwrap_or_default().into_owned();
            match code.as_str() {
                "28P01" => (
                    ErrorKind::Refused,
                    format!(
                        "the password of role {role:?} was not accepted by database {database}: put the right one into \
                         the URL, PGPASSWORD or ~/.pgpass"
                    ),
                ),
                "28000" => (
                    ErrorKind::Refused,
                    format!(
                        "role {role:?} may not connect to database {database}: the role must exist and have LOGIN, and \
                         pg_hba.conf must let it in from here (with sslmode=require if it asks for TLS)"
                    ),
                ),
                "3D000" => (
                    ErrorKind::Refused,
                    format!(
                        "database {database} does not exist: make it with CREATE DATABASE, or name another one"
                    ),
                ),
                "42501" => (
                    ErrorKind::Refused,
                    format!(
                        "role {role:?} may not connect to database {database}: GRANT CONNECT ON DATABASE to it"
                    ),
                ),
                "53300" => (
                    ErrorKind::Unavailable,
                    format!(
                        "database {database} has no connection left: raise max_connections, or the limit of the role or \
                         database"
                    ),
                ),
                "57P03" => (
                    ErrorKind::Unavailable,
                    format!("the server of database {database} is starting or stopping"),
                ),
                "08P01" => (
                    ErrorKind::Refused,
                    format!(
                        "the server or pooler of database {database} does not take the start of the connection; a \
                         pooler may need ignore_startup_parameters, or not know the database"
                    ),
                ),
                _ => (ErrorKind::Unavailable, format!("database {database} did not accept the connection")),
            }
        }
        Error::Tls(_) => (
            ErrorKind::Refused,
            format!(
                "no TLS connection to database {database}: sslmode=require needs a server with ssl=on; verify-ca and \
                 verify-full need its authority's certificate in sslrootcert, and the latter the name in it"
            ),
        ),
        Error::Configuration(_) => (
            ErrorKind::Refused,
            format!("the connection to database {database} cannot be set up as configured"),
        ),
        // A certificate file that cannot be read, and a certificate that does not fit, come as errors of I/O.
        Error::Io(cause) if cause.kind() == std::io::ErrorKind::InvalidData => (
            ErrorKind::Refused,
            format!(
                "no TLS connection to database {database}: a certificate is not accepted; see sslrootcert, sslcert and \
                 sslkey"
            ),
        ),
        _ => (ErrorKind::Unavailable, format!("database {database} cannot be reached")),
    };
    BackendError::new(kind, message).with_source(error)
}

fn classify(place: &Place, code: &str, error: &Error) -> (ErrorKind, String) {
    let Place { database, role, schema } = place;
    match code {
        "53200" if text_of(error).contains("max_locks_per_transaction") => (
            ErrorKind::Refused,
            format!(
                "the server's table of locks is full: raise max_locks_per_transaction (all sessions of the server share \
                 max_locks_per_transaction * max_connections locks), or hold fewer locks in database {database}"
            ),
        ),
        "53100" => (
            ErrorKind::Refused,
            format!("the disk of the server of database {database} is full: free some space there"),
        ),
        "42501" => (
            ErrorKind::Refused,
            format!(
                "role {role:?} lacks rights in database {database}: as the owner run {}",
                crate::schema::grants(schema, role).trim_end().replace('\n', " ")
            ),
        ),
        "3F000" | "42P01" | "42703" => (
            ErrorKind::Refused,
            format!(
                "the tables of schema {schema:?} in database {database} are missing or not as dlock made them: run \
                 `dlock init`, or let it make them anew with DROP SCHEMA when nobody uses them"
            ),
        ),
        "25006" => (
            ErrorKind::Refused,
            format!(
                "database {database} is read-only: connect to the primary, or end default_transaction_read_only"
            ),
        ),
        // A lock or a statement that took too long, a deadlock, a conflict: not executed.
        "55P03" | "57014" | "40P01" | "40001" => (
            ErrorKind::Unavailable,
            format!(
                "database {database} was too slow, or a table of schema {schema:?} is locked by somebody (DDL, VACUUM \
                 FULL, LOCK TABLE)"
            ),
        ),
        _ if code.starts_with("53") || code.starts_with("57") || code.starts_with("58") => (
            ErrorKind::Unavailable,
            format!("the server of database {database} could not execute a statement; see its log"),
        ),
        _ => (ErrorKind::Refused, format!("database {database} refused a statement; see the server's log")),
    }
}

/// Message and hint of the server.
fn text_of(error: &Error) -> String {
    let hint = error
        .as_database_error()
        .and_then(|cause| cause.try_downcast_ref::<PgDatabaseError>())
        .and_then(PgDatabaseError::hint)
        .unwrap_or_default();
    format!("{error} {hint}")
}
