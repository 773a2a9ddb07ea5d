//! What is sent.

use super::op;

const EPHEMERAL: i32 = 1;
const EPHEMERAL_SEQUENTIAL: i32 = 3;
const CONTAINER: i32 = 4;

const ANY_VERSION: i32 = -1;

/// What kind of node is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Goes with its session.
    Ephemeral,
    /// Goes with its session; the server adds ten digits to its name.
    Sequential,
    /// Goes some time after its last child.
    Container,
}

/// Who may do what with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Everybody may do everything.
    Open,
    /// The user of this connection may do everything, and, if so, everybody may read.
    Own { world_readable: bool },
}

/// One step of a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Step<'a> {
    /// The node is there, with this version unless it is none.
    Check(&'a str, Option<i32>),
    /// Makes a node.
    Create(&'a str, &'a [u8], Kind, Access),
}

/// A request: its type and its fields. They may be a password, and are not shown.
#[derive(Clone)]
pub(crate) struct Request {
    kind: i32,
    body: Vec<u8>,
}

impl Request {
    fn new(kind: i32) -> Self {
        Self { kind, body: Vec::new() }
    }

    /// Makes a node outside any transaction.
    pub(crate) fn create(path: &str, data: &[u8], kind: Kind, access: Access) -> Self {
        let number = if kind == Kind::Container { op::CREATE_CONTAINER } else { op::CREATE };
        let mut request = Self::new(number);
        put_create(&mut request.body, path, data, kind, access);
        request
    }

    /// Deletes a node, whatever its version.
    pub(crate) fn delete(path: &str) -> Self {
        let mut request = Self::new(op::DELETE);
        put_text(&mut request.body, path);
        put_int(&mut request.body, ANY_VERSION);
        request
    }

    /// Looks whether a node is there; with a watch, also for one that is not.
    pub(crate) fn exists(path: &str, watch: bool) -> Self {
        Self::look(op::EXISTS, path, watch)
    }

    /// Reads a node; a watch is set only if it is there.
    pub(crate) fn get_data(path: &str, watch: bool) -> Self {
        Self::look(op::GET_DATA, path, watch)
    }

    /// The names of a node's children.
    pub(crate) fn get_children(path: &str) -> Self {
        Self::look(op::GET_CHILDREN, path, false)
    }

    fn look(kind: i32, path: &str, watch: bool) -> Self {
        let mut request = Self::new(kind);
        put_text(&mut request.body, path);
        request.body.push(u8::from(watch));
        request
    }

    /// Writes a node, whatever its version, which rises.
    pub(crate) fn set_data(path: &str, data: &[u8]) -> Self {
        let mut request = Self::new(op::SET_DATA);
        put_text(&mut request.body, path);
        put_bytes(&mut request.body, data);
        put_int(&mut request.body, ANY_VERSION);
        request
    }

    /// Has the server catch up with its leader.
    pub(crate) fn sync(path: &str) -> Self {
        let mut request = Self::new(op::SYNC);
        put_text(&mut request.body, path);
        request
    }

    /// A transaction: all steps, or none.
    pub(crate) fn multi(steps: &[Step<'_>]) -> Self {
        let mut request = Self::new(op::MULTI);
        let body = &mut request.body;
        for step in steps {
            match step {
                Step::Check(path, version) => {
                    put_multi_header(body, op::CHECK, false);
                    put_text(body, path);
                    put_int(body, version.unwrap_or(ANY_VERSION));
                }
                Step::Create(path, data, kind, access) => {
                    let number = if *kind == Kind::Container { op::CREATE_CONTAINER } else { op::CREATE };
                    put_multi_header(body, number, false);
                    put_create(body, path, data, *kind, *access);
                }
            }
        }
        put_multi_header(body, op::ERROR, true);
        request
    }

    pub(crate) fn ping() -> Self {
        Self::new(op::PING)
    }

    /// Ends the session.
    pub(crate) fn close() -> Self {
        Self::new(op::CLOSE)
    }

    /// Says who we are, by scheme `digest`.
    pub(crate) fn auth_digest(user: &str, password: &str) -> Self {
        let mut request = Self::new(op::AUTH);
        put_int(&mut request.body, 0);
        put_text(&mut request.body, "digest");
        put_bytes(&mut request.body, format!("{user}:{password}").as_bytes());
        request
    }

    /// One step of an authentication by SASL.
    pub(crate) fn sasl(token: &[u8]) -> Self {
        let mut request = Self::new(op::SASL);
        put_bytes(&mut request.body, token);
        request
    }

    /// Writes it as a frame with this number.
    pub(crate) fn frame(&self, xid: i32, out: &mut Vec<u8>) {
        put_length(out, self.body.len() + 8);
        put_int(out, xid);
        put_int(out, self.kind);
        out.extend_from_slice(&self.body);
    }
}

/// The first frame of a connection.
#[derive(Clone, Copy)]
pub(crate) struct Connect<'a> {
    /// The newest change that this session has seen: a server that has not seen it turns us away.
    pub(crate) last_zxid: i64,
    /// Milliseconds.
    pub(crate) timeout: i32,
    /// The session that goes on; zero for a new one.
    pub(crate) session: i64,
    pub(crate) password: &'a [u8],
}

impl Connect<'_> {
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut body = Vec::new();
        put_int(&mut body, 0);
        put_long(&mut body, self.last_zxid);
        put_int(&mut body, self.timeout);
        put_long(&mut body, self.session);
        put_bytes(&mut body, self.password);
        // A server without a majority is of no use.
        body.push(0);
        let mut frame = Vec::new();
        put_length(&mut frame, body.len());
        frame.extend_from_slice(&body);
        frame
    }
}

fn put_int(out: &mut Vec<u8>, number: i32) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_long(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(&number.to_be_bytes());
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    put_int(out, i32::try_from(length).expect("names, owners and passwords are short"));
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_length(out, bytes.len());
    out.extend_from_slice(bytes);
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_bytes(out, text.as_bytes());
}

fn put_multi_header(out: &mut Vec<u8>, kind: i32, done: bool) {
    put_int(out, kind);
    out.push(u8::from(done));
    put_int(out, -1);
}

fn put_create(out: &mut Vec<u8>, path: &str, data: &[u8], kind: Kind, access: Access) {
    put_text(out, path);
    put_bytes(out, data);
    put_access(out, access);
    put_int(
        out,
        match kind {
            Kind::Ephemeral => EPHEMERAL,
            Kind::Sequential => EPHEMERAL_SEQUENTIAL,
            Kind::Container => CONTAINER,
        },
    );
}

fn put_access(out: &mut Vec<u8>, access: Access) {
    const READ: i32 = 1;
    const ALL: i32 = 31;
    let rows: &[(i32, &str, &str)] = match access {
        Access::Open => &[(ALL, "world", "anyone")],
        Access::Own { world_readable: false } => &[(ALL, "auth", "")],
        Access::Own { world_readable: true } => &[(ALL, "auth", ""), (READ, "world", "anyone")],
    };
    put_length(out, rows.len());
    for (permissions, scheme, id) in rows {
        put_int(out, *permissions);
        put_text(out, scheme);
        put_text(out, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_those_of_the_protocol() {
        let mut out = Vec::new();
        Request::get_data("/a", true).frame(7, &mut out);
        assert_eq!(out, [0, 0, 0, 15, 0, 0, 0, 7, 0, 0, 0, 4, 0, 0, 0, 2, b'/', b'a', 1]);
        let connect = Connect { last_zxid: 1, timeout: 2, session: 3, password: &[] }.frame();
        assert_eq!(connect.len(), 4 + 4 + 8 + 4 + 8 + 4 + 1);
        let body = Request::multi(&[Step::Check("/a", None)]).body;
        let check = [&[0, 0, 0, 13, 0, 255, 255, 255, 255, 0, 0, 0, 2, b'/', b'a', 255, 255, 255, 255][..]];
        let end = &[255, 255, 255, 255, 1, 255, 255, 255, 255][..];
        assert_eq!(body, [check[0], end].concat());
    }
}
