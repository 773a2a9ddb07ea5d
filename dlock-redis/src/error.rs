//! What the failures of a node mean, in words that name the node and say what to do.
//!
//! Core asks one thing of an error: whether the request was certainly not executed. A server that answers with an error
//! has executed nothing that counts (the scripts write the lock last); a connection that ends without an answer leaves
//! it open. Texts of servers are shown where they cannot hold a secret: not while a connection is being set up, since an
//! unknown server may repeat the password it was sent.

use std::fmt::Display;
use std::time::Duration;

use dlock_core::{BackendError, ErrorKind};
use redis::{RedisError, ServerError};

/// What a user who may do all that dlock does is given; the README says the same.
pub(crate) const ACL_RULE: &str = "-@all +eval +evalsha +get +set +pttl +pexpire +del +publish +subscribe \
                                   +unsubscribe +hmget +hset +time +info";

/// The server answered a request with an error: certainly not executed.
pub(crate) fn of_server(node: &impl Display, pattern: &str, error: &ServerError) -> BackendError {
    let details = shortened(error.details().unwrap_or_default());
    let code = error.code();
    // Errors of commands inside a script carry their own code in the text on some versions.
    let denied = code == "NOPERM" || details.contains("ACL failure") || details.contains("NOPERM");
    let refused = |text: String| BackendError::refused(text);
    let unavailable = |text: String| BackendError::unavailable(text);
    match code {
        _ if denied => refused(format!(
            "the user may not do at {node} what dlock does ({details}): as an administrator, ACL SETUSER NAME \
             {ACL_RULE} ~{pattern} &{pattern}"
        )),
        "NOAUTH" | "WRONGPASS" => refused(wrong_credentials(node)),
        "OOM" => refused(format!(
            "{node} is out of memory (maxmemory) and stores no new lock: give it more; locks that are held stay held"
        )),
        "WRONGTYPE" => refused(format!(
            "a key of dlock at {node} holds another type of value: see what TYPE {} says, or use another prefix",
            pattern.replace('*', "mark")
        )),
        "MISCONF" => refused(format!(
            "{node} takes no writes since it cannot save to its disk: look at its log and its disk ({details})"
        )),
        "CLUSTERDOWN" | "MOVED" | "ASK" | "CROSSSLOT" | "TRYAGAIN" => cluster(node),
        "LOADING" => unavailable(format!("{node} is loading its data")),
        "BUSY" | "UNKILLABLE" => {
            unavailable(format!("{node} is busy with a script of somebody else: SCRIPT KILL ends it"))
        }
        "READONLY" | "MASTERDOWN" => unavailable(format!("{node} is a replica and takes no writes")),
        "NOREPLICAS" => unavailable(format!(
            "{node} has fewer replicas than its min-replicas-to-write asks for, and takes no writes until they are back"
        )),
        _ => unavailable(format!("{node} answered with an error ({code} {details})")),
    }
}

/// A connection failed after a request was handed to it: the request may have been executed, or may still be.
pub(crate) fn of_connection(node: &impl Display, error: &RedisError) -> BackendError {
    BackendError::unknown(format!("the connection to {node} ended before the answer came"))
        .with_source(cause(error))
}

/// A request was not answered in time.
pub(crate) fn no_answer(node: &impl Display, limit: Duration) -> BackendError {
    BackendError::unknown(format!("{node} did not answer within {limit:?}"))
}

/// An answer that none of the scripts gives.
pub(crate) fn strange_answer(node: &impl Display) -> BackendError {
    BackendError::refused(format!(
        "{node} gave an answer that dlock does not understand: is it a Redis or Valkey server, without a proxy in between?"
    ))
}

/// INFO at the node lacks a field without which another life of its data cannot be told.
pub(crate) fn blind(node: &impl Display, field: &str) -> BackendError {
    BackendError::refused(format!(
        "{node} does not tell its {field} in INFO, so dlock cannot know when it has lost data: use a Redis or Valkey \
         server, or restart_delay=0s, which promises nothing over a loss of data"
    ))
}

/// No connection was made in time: nothing was sent.
pub(crate) fn no_connection(node: &impl Display, limit: Duration, tls: bool) -> BackendError {
    let hint = if tls {
        "; a server that does not speak TLS keeps silent, and then redis instead of rediss is right"
    } else {
        ""
    };
    BackendError::unavailable(format!("{node} took no connection within {limit:?}{hint}"))
}

/// A request that was never sent, since its claim was decided or given up before.
pub(crate) fn not_sent(node: &impl Display) -> BackendError {
    BackendError::unavailable(format!("the connection to {node} was not ready in time"))
}

/// Setting up the connection failed after the network's part was done: nothing of ours was executed.
pub(crate) fn of_setup(node: &impl Display, db: i64, named: bool, error: &RedisError) -> BackendError {
    let details = error.detail().unwrap_or_default();
    match error.code() {
        Some("WRONGPASS" | "NOAUTH") => BackendError::refused(wrong_credentials(node)),
        Some("NOPERM") if named => BackendError::refused(format!(
            "the user may not set the client's name at {node}: leave the parameter client_name out, or allow \
             +client|setname"
        )),
        Some("NOPERM") => BackendError::refused(format!(
            "the user may not select database {db} at {node}: allow +select, or use database 0"
        )),
        Some("LOADING") => BackendError::unavailable(format!("{node} is loading its data")),
        Some("DENIED") => BackendError::refused(format!(
            "{node} is in protected mode and takes connections from its own machine only: set a password or `bind` there"
        )),
        Some("ERR") if details.contains("max number of clients") => {
            BackendError::unavailable(format!("{node} has as many clients as it takes (maxclients)"))
        }
        Some("ERR") if details.contains("DB index") || details.contains("invalid DB") => {
            BackendError::refused(format!(
                "{node} has no database {db}: by default there are 16, from 0 to 15; write another number after the \
                 last / of the URL"
            ))
        }
        Some("ERR") if details.contains("HELLO") || details.contains("NOPROTO") => too_old(node),
        Some("NOPROTO") => too_old(node),
        // Its text may repeat what it was sent, the password included.
        Some(code) if code.chars().all(|c| c.is_ascii_uppercase()) && code.len() < 20 => {
            BackendError::unavailable(format!("{node} refused the connection ({code})"))
        }
        // With TLS 1.3 this comes after the handshake.
        _ if error.is_io_error() && error.to_string().contains("fatal alert") => {
            tls_refused(node, cause(error))
        }
        _ if error.is_io_error() => {
            BackendError::unavailable(format!("the connection to {node} ended while it was being set up"))
                .with_source(cause(error))
        }
        _ => BackendError::refused(format!("what listens at {node} is no Redis or Valkey server")),
    }
}

/// The network's part of a connection failed: nothing was sent.
pub(crate) fn of_network(node: &impl Display, error: std::io::Error) -> BackendError {
    let message = match error.kind() {
        std::io::ErrorKind::ConnectionRefused => format!("nothing listens at {node}"),
        _ => format!("{node} cannot be reached"),
    };
    BackendError::unavailable(message).with_source(error)
}

/// The server ended a TLS connection, saying why.
pub(crate) fn tls_refused(node: &impl Display, cause: std::io::Error) -> BackendError {
    BackendError::refused(format!(
        "{node} ended the TLS connection: it may want a client certificate (parameters cert and key), or another one"
    ))
    .with_source(cause)
}

/// What happened to a connection. redis-rs says it twice, in the error and in its source.
fn cause(error: &RedisError) -> std::io::Error {
    std::io::Error::other(error.to_string())
}

pub(crate) fn too_old(node: &impl Display) -> BackendError {
    BackendError::refused(format!("{node} is too old: dlock needs Redis 7 or Valkey 7.2, or newer"))
}

pub(crate) fn cluster(node: &impl Display) -> BackendError {
    BackendError::refused(format!(
        "{node} is part of a Redis Cluster, which dlock does not use: give it a server of its own, or several with \
         redis+redlock://"
    ))
}

pub(crate) fn replica(node: &impl Display, master: &str) -> BackendError {
    BackendError::refused(format!(
        "{node} is a replica of {master}: write that address, or name the Sentinels with redis+sentinel://"
    ))
}

fn wrong_credentials(node: &impl Display) -> String {
    format!(
        "{node} does not accept the user and password: write redis://USER:PASSWORD@HOST, or redis://:PASSWORD@HOST \
         without a user, with special characters percent-encoded"
    )
}

/// Several failures of one request, as one error: what `kind` says is known of the whole.
pub(crate) fn of_nodes(kind: ErrorKind, of: usize, failures: &[&BackendError]) -> BackendError {
    let count = failures.len();
    let each: Vec<_> = failures.iter().map(|failure| failure_text(failure)).collect();
    BackendError::new(kind, format!("{count} of {of} nodes cannot be used: {}", each.join("; ")))
}

/// Sentinels name several masters, and none of them can be used.
pub(crate) fn of_masters(node: &impl Display, failures: &[BackendError]) -> BackendError {
    let all_refused = failures.iter().all(|failure| matches!(failure.kind(), ErrorKind::Refused));
    let kind = if all_refused { ErrorKind::Refused } else { ErrorKind::Unavailable };
    let each: Vec<_> = failures.iter().map(failure_text).collect();
    BackendError::new(
        kind,
        format!("the Sentinels differ about {node}, and none is right: {}", each.join("; ")),
    )
}

/// A failure and its causes in one line.
fn failure_text(failure: &BackendError) -> String {
    let mut text = failure.to_string();
    let mut cause = std::error::Error::source(failure);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn shortened(text: &str) -> String {
    // Scripts add where they failed, which is of no use to users.
    let text = text.split(" script: ").next().unwrap_or(text);
    text.chars().take(200).collect()
}
