//! What ZooKeeper's errors mean for a request, and what a person can do about them.

use std::error::Error as StdError;
use std::{fmt, io};

use dlock_core::{BackendError, ErrorKind};

use crate::wire::code;

/// Says what is known of a request about `path` that a server answered with an error, and what to do.
pub(crate) fn of_code(error: i32, path: &str, user: Option<&str>) -> BackendError {
    let who = user.map_or_else(|| "a client without a user".to_owned(), |user| format!("user {user:?}"));
    let (kind, message) = match error {
        code::SESSION_EXPIRED => (ErrorKind::SessionGone, "ZooKeeper has ended the session".to_owned()),
        code::SESSION_MOVED => {
            (ErrorKind::Unavailable, "the session goes on at another server, by an older connection".to_owned())
        }
        code::NOT_READ_ONLY => {
            (ErrorKind::Unavailable, "the server has no majority now, and can only be read from".to_owned())
        }
        code::THROTTLED => (ErrorKind::Unavailable, "ZooKeeper has more requests than it can serve".to_owned()),
        code::NO_AUTH => (
            ErrorKind::Refused,
            format!(
                "ZooKeeper does not let {who} do this at {path}: connect as the user who made that node, take another prefix, \
                 or have its owner open it with setAcl -R"
            ),
        ),
        code::INVALID_ACL => (
            ErrorKind::Refused,
            format!("ZooKeeper does not know who {who} is: see that it has the authentication provider that was asked for"),
        ),
        code::AUTH_FAILED | code::SASL_REQUIRED => (
            ErrorKind::Refused,
            "ZooKeeper asks for an authentication: write zk://USER:PASSWORD@HOST:PORT, with auth=sasl for SASL".to_owned(),
        ),
        code::UNIMPLEMENTED => (
            ErrorKind::Refused,
            "this ZooKeeper does not know what is asked of it: version 3.5.3 or newer is needed".to_owned(),
        ),
        code::EPHEMERAL_ON_LOCAL_SESSION => (
            ErrorKind::Refused,
            "this ZooKeeper opens local sessions, in which no lock can live: set localSessionsUpgradingEnabled=true, or \
             localSessionsEnabled=false"
                .to_owned(),
        ),
        code::BAD_ARGUMENTS => (ErrorKind::Refused, format!("ZooKeeper takes no such path as {path}")),
        code::NO_CHILDREN_FOR_EPHEMERALS => (
            ErrorKind::Refused,
            format!("the parent of {path} is an ephemeral node of somebody else's: take another prefix, or remove it"),
        ),
        code::QUOTA_EXCEEDED => {
            (ErrorKind::Refused, format!("the quota of ZooKeeper for {path} is used up: raise it, or take another prefix"))
        }
        // What it did before it failed is not known.
        other => (ErrorKind::Unknown, format!("ZooKeeper failed with the request at {path} (error {other})")),
    };
    BackendError::new(kind, message)
}

/// The node that stands for the session is gone.
pub(crate) fn session_node_gone() -> BackendError {
    BackendError::session_gone("the session's node is gone: its time-out ran out, or somebody removed it")
}

/// Says why no connection could be made, or none that is of use.
pub(crate) fn of_connecting(address: &str, error: io::Error) -> BackendError {
    let text = causes(&error);
    let says = |what: &str| text.contains(what);
    let message = if says("UnknownIssuer") || says("BadSignature") || says("SelfSigned") {
        format!(
            "the certificate of {address} is not signed by a known authority: give that with ca=FILE (PEM)"
        )
    } else if says("NotValidForName") || says("not valid for name") {
        format!(
            "the certificate of {address} is for another name: connect by a name that it has, or give one of them with \
             server_name=NAME"
        )
    } else if says("invalid peer certificate") {
        format!("the certificate of {address} is not valid: see the cause")
    } else if says("received fatal alert") {
        format!("no session with {address}: {NO_CLIENT_CERTIFICATE}")
    } else if says("corrupt message") || says("InvalidContentType") {
        format!(
            "the server at {address} does not speak TLS: write zk:// in place of zks://, or give its secure port"
        )
    } else {
        let message = if says("failed to lookup address") || says("dns error") {
            format!("no address is known for {address}: see that the name is right, and that of a host")
        } else if says("tls handshake eof") {
            format!(
                "the server at {address} closed the connection when TLS was to begin: if it speaks none, write zk:// in place \
                 of zks://"
            )
        } else {
            format!("ZooKeeper cannot be reached at {address}: see that it runs")
        };
        return BackendError::unavailable(message).with_source(error);
    };
    BackendError::refused(message).with_source(error)
}

/// The server ended a connection before it had opened a session on it.
pub(crate) fn turned_away(address: &str, tls: bool) -> BackendError {
    let hint = if tls {
        "or it may ask for a client certificate: give cert=FILE and key=FILE"
    } else {
        "or it speaks TLS on this port: write zks:// in place of zk://"
    };
    BackendError::unavailable(format!(
        "the server at {address} opened no session: a majority of the ensemble must run and reach each other, and this machine \
         have fewer connections than maxClientCnxns allows; {hint}"
    ))
}

const NO_CLIENT_CERTIFICATE: &str = "it does not take this client's certificate, or asks for one: give cert=FILE and \
     key=FILE (PEM), signed by an authority that it trusts";

/// One error for all servers. Refused only if each refused: another one may come back and not refuse.
pub(crate) fn merged(failures: Vec<BackendError>) -> BackendError {
    let all_refused = failures.iter().all(|failure| failure.kind() == ErrorKind::Refused);
    let kind = if all_refused { ErrorKind::Refused } else { ErrorKind::Unavailable };
    let mut failures = failures.into_iter();
    let Some(first) = failures.next() else {
        return BackendError::refused("no address of ZooKeeper was given: give at least one, as HOST:PORT");
    };
    let rest: Vec<_> = failures.map(|failure| failure.to_string()).collect();
    if rest.is_empty() && first.kind() == kind {
        return first;
    }
    let message = [vec![first.to_string()], rest].concat().join("; ");
    let error = BackendError::new(kind, message);
    match first.source() {
        Some(cause) => error.with_source(Cause(causes(cause))),
        None => error,
    }
}

/// A chain of causes, as one text.
#[derive(Clone, Debug)]
struct Cause(String);

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

fn causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

/// A request that only reads changes nothing, whatever became of it.
pub(crate) fn only_read(error: BackendError) -> BackendError {
    if error.kind() == ErrorKind::Unknown {
        BackendError::unavailable(error.to_string()).with_source(error)
    } else {
        error
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_executed_is_unknown() {
        for error in [-1, -2, -3, -5, -7, -122, -4711] {
            assert_eq!(of_code(error, "/a", None).kind(), ErrorKind::Unknown, "{error}");
        }
        assert_eq!(of_code(code::SESSION_MOVED, "/a", None).kind(), ErrorKind::Unavailable);
        assert_eq!(of_code(code::SESSION_EXPIRED, "/a", None).kind(), ErrorKind::SessionGone);
    }

    #[test]
    fn what_a_person_must_mend_is_refused_with_the_way_out() {
        for (error, says) in [
            (code::NO_AUTH, "setAcl"),
            (code::AUTH_FAILED, "auth=sasl"),
            (code::UNIMPLEMENTED, "3.5.3"),
            (code::QUOTA_EXCEEDED, "prefix"),
        ] {
            let error = of_code(error, "/a", Some("me"));
            assert_eq!(error.kind(), ErrorKind::Refused);
            assert!(error.to_string().contains(says) && !error.to_string().ends_with('.'), "{error}");
        }
    }

    #[test]
    fn one_server_that_may_come_back_makes_it_no_refusal() {
        let (down, no) = (BackendError::unavailable("a is down"), BackendError::refused("b says no"));
        let both = merged(vec![down.clone(), no.clone()]);
        assert_eq!(
            (both.kind(), both.to_string().as_str()),
            (ErrorKind::Unavailable, "a is down; b says no")
        );
        assert_eq!(merged(vec![no.clone(), no]).kind(), ErrorKind::Refused);
        assert_eq!(merged(vec![down]).to_string(), "a is down");
        assert_eq!(merged(Vec::new()).kind(), ErrorKind::Refused);
    }
}
