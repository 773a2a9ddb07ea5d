//! What etcd's errors mean for a request, and what a person can do about them.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use dlock_core::{BackendError, ErrorKind};
use tonic::{Code, Status};

/// What a failed call says of the way to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The server answered: whatever it said, the way is good.
    Answered,
    /// The server answered that it can do nothing now (it knows of no leader, it only learns): the request was not
    /// executed, and another member may do better.
    AskAnother,
    /// The request was never sent.
    NotSent,
    /// The token of the user is no longer good: the request was not executed.
    TokenIsOld,
    /// The connection broke or the server stopped: nobody knows.
    Broken,
}

/// Reads a status. Those that the client itself makes of a broken connection carry their cause; the server's have none.
pub(crate) fn verdict(status: &Status) -> Verdict {
    if StdError::source(status).is_some() {
        return if was_not_connected(status) { Verdict::NotSent } else { Verdict::Broken };
    }
    let says = |text: &str| status.message().contains(text);
    match status.code() {
        // Told before the request is taken: by the check for a leader that every request asks for, by a learner, by a
        // member that has too much to do.
        Code::Unavailable
            if says("no leader") || says("not supported for learner") || says("not capable") =>
        {
            Verdict::AskAnother
        }
        Code::Unauthenticated if says("invalid auth token") => Verdict::TokenIsOld,
        Code::InvalidArgument if says("revision of auth store is old") => Verdict::TokenIsOld,
        Code::Unavailable if says("server stopped") || says("server is stopping") => Verdict::Broken,
        // The gRPC layer of a server that shuts down.
        Code::Cancelled | Code::Internal | Code::Unknown if !says("etcdserver:") => Verdict::Broken,
        _ => Verdict::Answered,
    }
}

fn was_not_connected(error: &(dyn StdError + 'static)) -> bool {
    let mut source = Some(error);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Says what is known of a request that the server at `endpoint` answered with a status, and what to do.
pub(crate) fn of_status(
    endpoint: &str,
    user: Option<&str>,
    verdict: Verdict,
    status: &Status,
) -> BackendError {
    let (kind, message) = classify(endpoint, user, verdict, status);
    BackendError::new(kind, message).with_source(Cause::of(status))
}

fn classify(endpoint: &str, user: Option<&str>, verdict: Verdict, status: &Status) -> (ErrorKind, String) {
    let says = |text: &str| status.message().contains(text);
    let who = user.map_or_else(|| "a client without a user".to_owned(), |user| format!("user {user:?}"));
    match (verdict, status.code()) {
        (Verdict::NotSent | Verdict::AskAnother, _) => (
            ErrorKind::Unavailable,
            if says("no leader") {
                format!(
                    "etcd at {endpoint} has no leader now: a majority of its members must run and reach each other"
                )
            } else {
                format!("etcd at {endpoint} cannot serve now")
            },
        ),
        (Verdict::TokenIsOld, _) => {
            (ErrorKind::Unavailable, format!("etcd at {endpoint} no longer takes the token of {who}"))
        }
        (Verdict::Broken, _) => {
            (ErrorKind::Unknown, format!("the connection to etcd at {endpoint} broke before an answer came"))
        }
        (_, Code::NotFound) if says("lease not found") => (
            ErrorKind::SessionGone,
            "etcd has no lease of this session any more: it ran out or was revoked".into(),
        ),
        (_, Code::PermissionDenied) => (
            ErrorKind::Refused,
            format!(
                "etcd at {endpoint} does not let {who} do this: grant its role readwrite on the prefix of the locks, as in \
                 etcdctl role grant-permission ROLE --prefix=true readwrite dlock/"
            ),
        ),
        (_, Code::InvalidArgument) if says("user name is empty") => (
            ErrorKind::Refused,
            format!(
                "etcd at {endpoint} asks for a user: write etcd://USER:PASSWORD@HOST:PORT, or give user and password"
            ),
        ),
        (_, Code::InvalidArgument) if says("authentication failed") => (
            ErrorKind::Refused,
            format!("etcd at {endpoint} does not know {who} with this password: correct one of them"),
        ),
        (_, Code::InvalidArgument) if says("request is too large") => (
            ErrorKind::Refused,
            format!("etcd at {endpoint} takes no request as large as this: use a shorter name"),
        ),
        (_, Code::ResourceExhausted) if says("database space exceeded") => (
            ErrorKind::Refused,
            format!(
                "the database of etcd at {endpoint} is full: compact and defragment it, then clear the alarm with etcdctl \
                 alarm disarm"
            ),
        ),
        (_, Code::ResourceExhausted) if says("too many requests") => {
            (ErrorKind::Unavailable, format!("etcd at {endpoint} has more requests than it can serve"))
        }
        (_, Code::Unimplemented) => (
            ErrorKind::Refused,
            format!(
                "the server at {endpoint} does not speak the protocol of etcd 3.4 or newer: see that it is etcd"
            ),
        ),
        // Proposed, and not known to be committed; or cancelled on the way.
        (_, Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Aborted) => {
            (ErrorKind::Unknown, format!("etcd at {endpoint} did not confirm the request"))
        }
        (_, Code::Internal | Code::Unknown) => {
            (ErrorKind::Unknown, format!("etcd at {endpoint} failed with the request: look at its log"))
        }
        _ => (ErrorKind::Refused, format!("etcd at {endpoint} refused the request")),
    }
}

/// Says why no connection could be made.
pub(crate) fn of_connecting(endpoint: &str, error: &(dyn StdError + 'static)) -> BackendError {
    let cause = Cause::of(error);
    let says = |text: &str| cause.0.contains(text);
    let refused = |message: String| BackendError::refused(message).with_source(cause.clone());
    if says("UnknownIssuer") || says("BadSignature") || says("SelfSigned") {
        return refused(format!(
            "the certificate of etcd at {endpoint} is not signed by a known authority: give that with ca=FILE (PEM)"
        ));
    }
    if says("NotValidForName") || says("not valid for name") {
        return refused(format!(
            "the certificate of etcd at {endpoint} is for another name: connect by a name that it has, or give one of them \
             with server_name=NAME"
        ));
    }
    if says("invalid peer certificate") {
        return refused(format!("the certificate of etcd at {endpoint} is not valid: see the cause"));
    }
    if says("received fatal alert") {
        return refused(format!("no session with etcd at {endpoint}: {NO_CLIENT_CERTIFICATE}"));
    }
    if says("corrupt message") || says("InvalidContentType") {
        return refused(format!(
            "the server at {endpoint} does not speak TLS: write etcd:// in place of etcds://"
        ));
    }
    if says("tls handshake eof") {
        let message = format!(
            "the server at {endpoint} closed the connection when TLS was to begin: if it speaks none, write etcd:// in place \
             of etcds://"
        );
        return BackendError::unavailable(message).with_source(cause);
    }
    if says("failed to lookup address") || says("dns error") {
        let message =
            format!("no address is known for {endpoint}: see that the name is right, and that of a host");
        return BackendError::unavailable(message).with_source(cause);
    }
    BackendError::unavailable(format!("etcd cannot be reached at {endpoint}: see that it runs"))
        .with_source(cause)
}

/// The first request of a client failed without an answer: often the other side speaks something else.
pub(crate) fn of_first_request(tls: bool, error: BackendError) -> BackendError {
    let cause = error.source().map(Cause::of).unwrap_or_default();
    if cause.0.contains("received fatal alert") {
        return BackendError::refused(format!("{error}: {NO_CLIENT_CERTIFICATE}")).with_source(cause);
    }
    if error.kind() != ErrorKind::Unknown {
        return error;
    }
    let hint = if tls {
        // An alert about certificates is often lost behind the end of the connection.
        "it may ask for a client certificate, or not take this one: give cert=FILE and key=FILE (PEM), signed by an \
         authority that it trusts"
    } else {
        "if it speaks TLS, write etcds:// in place of etcd://"
    };
    BackendError::unavailable(format!("{error}: {hint}")).with_source(cause)
}

const NO_CLIENT_CERTIFICATE: &str = "it does not take this client's certificate, or asks for one: give cert=FILE and \
     key=FILE (PEM), signed by an authority that it trusts";

/// A chain of causes as one text, in which no cause repeats the one before. The errors of the gRPC library themselves are
/// not kept: they cannot be cloned, and show headers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cause(Arc<str>);

impl Cause {
    pub(crate) fn of(error: &(dyn StdError + 'static)) -> Self {
        let mut text = error.downcast_ref::<Status>().map_or_else(
            || error.to_string(),
            |status| match status.message() {
                "" => format!("{:?}", status.code()),
                message => message.to_owned(),
            },
        );
        let mut source = error.source();
        while let Some(error) = source {
            let next = error.to_string();
            if !text.contains(&next) {
                text.push_str(": ");
                text.push_str(&next);
            }
            source = error.source();
        }
        Self(text.into())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for Cause {}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(code: Code, message: &str) -> ErrorKind {
        let status = Status::new(code, message);
        let error = of_status("h:2379", None, verdict(&status), &status);
        assert!(!error.to_string().ends_with('.'), "{error}");
        error.kind()
    }

    #[test]
    fn what_may_have_been_executed_is_unknown() {
        for message in [
            "etcdserver: request timed out",
            "etcdserver: request timed out, possibly due to previous leader failure",
            "etcdserver: request timed out, possibly due to connection lost",
            "etcdserver: leader changed",
            "etcdserver: server stopped",
        ] {
            assert_eq!(kind(Code::Unavailable, message), ErrorKind::Unknown, "{message}");
        }
        assert_eq!(kind(Code::Unknown, "etcdserver: something new"), ErrorKind::Unknown);
        assert_eq!(kind(Code::Internal, "stream terminated by RST_STREAM"), ErrorKind::Unknown);
    }

    #[test]
    fn what_was_not_executed_is_not_unknown() {
        assert_eq!(kind(Code::Unavailable, "etcdserver: no leader"), ErrorKind::Unavailable);
        assert_eq!(kind(Code::ResourceExhausted, "etcdserver: too many requests"), ErrorKind::Unavailable);
        assert_eq!(kind(Code::NotFound, "etcdserver: requested lease not found"), ErrorKind::SessionGone);
        for (code, message) in [
            (Code::PermissionDenied, "etcdserver: permission denied"),
            (Code::InvalidArgument, "etcdserver: user name is empty"),
            (Code::InvalidArgument, "etcdserver: authentication failed, invalid user ID or password"),
            (Code::ResourceExhausted, "etcdserver: mvcc: database space exceeded"),
            (Code::Unimplemented, "unknown service etcdserverpb.KV"),
        ] {
            assert_eq!(kind(code, message), ErrorKind::Refused, "{message}");
        }
    }
}
