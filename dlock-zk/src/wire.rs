//! The part of ZooKeeper's client protocol that locks need.
//!
//! Records are written one field after the other, numbers with the highest byte first; texts and byte strings begin with
//! their length, lists with their number of items. Numbers of operations and errors are those of `ZooDefs.OpCode` and
//! `KeeperException.Code` of ZooKeeper 3.5 to 3.9.

mod request;

use dlock_core::BackendError;

pub(crate) use self::request::{Access, Connect, Kind, Request, Step};

pub(crate) mod code {
    //! What a server answers instead of a result.
    pub(crate) const OK: i32 = 0;
    pub(crate) const UNIMPLEMENTED: i32 = -6;
    pub(crate) const BAD_ARGUMENTS: i32 = -8;
    pub(crate) const NO_NODE: i32 = -101;
    pub(crate) const NO_AUTH: i32 = -102;
    pub(crate) const BAD_VERSION: i32 = -103;
    pub(crate) const NO_CHILDREN_FOR_EPHEMERALS: i32 = -108;
    pub(crate) const NODE_EXISTS: i32 = -110;
    pub(crate) const SESSION_EXPIRED: i32 = -112;
    pub(crate) const INVALID_ACL: i32 = -114;
    pub(crate) const AUTH_FAILED: i32 = -115;
    pub(crate) const SESSION_MOVED: i32 = -118;
    pub(crate) const NOT_READ_ONLY: i32 = -119;
    pub(crate) const EPHEMERAL_ON_LOCAL_SESSION: i32 = -120;
    pub(crate) const SASL_REQUIRED: i32 = -124;
    pub(crate) const QUOTA_EXCEEDED: i32 = -125;
    pub(crate) const THROTTLED: i32 = -127;
}

mod op {
    pub(super) const CREATE: i32 = 1;
    pub(super) const DELETE: i32 = 2;
    pub(super) const EXISTS: i32 = 3;
    pub(super) const GET_DATA: i32 = 4;
    pub(super) const SET_DATA: i32 = 5;
    pub(super) const GET_CHILDREN: i32 = 8;
    pub(super) const SYNC: i32 = 9;
    pub(super) const PING: i32 = 11;
    pub(super) const CHECK: i32 = 13;
    pub(super) const MULTI: i32 = 14;
    pub(super) const CREATE_2: i32 = 15;
    pub(super) const CREATE_CONTAINER: i32 = 19;
    pub(super) const AUTH: i32 = 100;
    pub(super) const SASL: i32 = 102;
    pub(super) const CLOSE: i32 = -11;
    pub(super) const ERROR: i32 = -1;
}

/// The number under which events come.
pub(crate) const EVENT_XID: i32 = -1;
/// The number of pings.
pub(crate) const PING_XID: i32 = -2;
/// The number of requests that say who we are.
pub(crate) const AUTH_XID: i32 = -4;

/// The first frame that a server sends.
#[derive(Clone)]
pub(crate) struct Connected {
    /// Milliseconds; zero if the session is over.
    pub(crate) timeout: i32,
    pub(crate) session: i64,
    pub(crate) password: Vec<u8>,
}

impl Connected {
    pub(crate) fn read(frame: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(frame);
        reader.int()?;
        // A flag about writing follows in some versions.
        Ok(Self { timeout: reader.int()?, session: reader.long()?, password: reader.bytes()?.to_vec() })
    }
}

/// What comes before every other answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) xid: i32,
    pub(crate) zxid: i64,
    pub(crate) error: i32,
}

impl Header {
    /// Reads it; what is left of the frame is the answer itself.
    pub(crate) fn read(frame: &[u8]) -> Result<(Self, &[u8]), Malformed> {
        let mut reader = Reader(frame);
        let header = Self { xid: reader.int()?, zxid: reader.long()?, error: reader.int()? };
        Ok((header, reader.0))
    }
}

/// A watch has fired.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) is_deletion: bool,
    pub(crate) path: String,
}

impl Event {
    pub(crate) fn read(body: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader(body);
        let kind = reader.int()?;
        reader.int()?;
        Ok(Self { is_deletion: kind == 2, path: reader.text()? })
    }
}

/// What a server knows of a node, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The change that made it.
    pub(crate) czxid: i64,
    pub(crate) version: i32,
    /// The session that it goes with.
    pub(crate) owner: i64,
}

/// The answer to a request that the server took.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    /// The newest change that the server had made when it answered; for a write that it made, the write's own.
    pub(crate) zxid: i64,
    /// See [`code`].
    pub(crate) error: i32,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    /// The answer to [`Request::exists`] and [`Request::set_data`].
    pub(crate) fn stat(&self) -> Result<Stat, Malformed> {
        Reader(&self.body).stat()
    }

    /// The answer to [`Request::get_data`].
    pub(crate) fn data(&self) -> Result<(Vec<u8>, Stat), Malformed> {
        let mut reader = Reader(&self.body);
        Ok((reader.bytes()?.to_vec(), reader.stat()?))
    }

    /// The answer to [`Request::get_children`].
    pub(crate) fn children(&self) -> Result<Vec<String>, Malformed> {
        let mut reader = Reader(&self.body);
        let count = match reader.int()? {
            -1 => 0,
            count => usize::try_from(count).map_err(|_| Malformed)?,
        };
        (0..count).map(|_| reader.text()).collect()
    }

    /// The answer to [`Request::sasl`].
    pub(crate) fn token(&self) -> Result<Vec<u8>, Malformed> {
        Ok(Reader(&self.body).bytes()?.to_vec())
    }

    /// The answer to [`Request::multi`]: the path of the last node that was made, or which step failed, and how.
    pub(crate) fn steps(&self) -> Result<Result<Option<String>, (usize, i32)>, Malformed> {
        let mut reader = Reader(&self.body);
        let mut made = None;
        for step in 0.. {
            let kind = reader.int()?;
            let done = reader.byte()? != 0;
            reader.int()?;
            if done {
                break;
            }
            match kind {
                op::CHECK | op::DELETE => {}
                op::CREATE => made = Some(reader.text()?),
                op::CREATE_2 | op::CREATE_CONTAINER => {
                    made = Some(reader.text()?);
                    reader.stat()?;
                }
                op::SET_DATA => drop(reader.stat()?),
                op::ERROR => match reader.int()? {
                    // A step before the one that failed.
                    code::OK => {}
                    error => return Ok(Err((step, error))),
                },
                _ => return Err(Malformed),
            }
        }
        Ok(Ok(made))
    }
}

/// The server sent something that this client does not understand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed;

impl From<Malformed> for BackendError {
    fn from(Malformed: Malformed) -> Self {
        Self::unknown("the server's answer is not that of a ZooKeeper: see what listens at this address")
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn int(&mut self) -> Result<i32, Malformed> {
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(i32::from_be_bytes(bytes))
    }

    fn long(&mut self) -> Result<i64, Malformed> {
        let bytes = self.take(8)?.try_into().map_err(|_| Malformed)?;
        Ok(i64::from_be_bytes(bytes))
    }

    /// Those that are not there count as empty.
    fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        match self.int()? {
            -1 => Ok(&[]),
            length => self.take(usize::try_from(length).map_err(|_| Malformed)?),
        }
    }

    fn text(&mut self) -> Result<String, Malformed> {
        Ok(String::from_utf8_lossy(self.bytes()?).into_owned())
    }

    fn stat(&mut self) -> Result<Stat, Malformed> {
        let czxid = self.long()?;
        self.take(8 + 8 + 8)?;
        let version = self.int()?;
        self.take(4 + 4)?;
        let owner = self.long()?;
        self.take(4 + 4 + 8)?;
        Ok(Stat { czxid, version, owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_transaction_tells_its_step() {
        let error =
            |code: i32| [&[255, 255, 255, 255, 0][..], &code.to_be_bytes(), &code.to_be_bytes()].concat();
        let end = vec![255, 255, 255, 255, 1, 255, 255, 255, 255];
        let answer = |parts: &[Vec<u8>]| Answer { zxid: 0, error: 0, body: parts.concat() };
        let failed = answer(&[error(0), error(code::NO_NODE), error(-2), end.clone()]);
        assert_eq!(failed.steps(), Ok(Err((1, code::NO_NODE))));
        let check = vec![0, 0, 0, 13, 0, 0, 0, 0, 0];
        let create = vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, b'/', b'a'];
        assert_eq!(answer(&[check.clone(), create, end]).steps(), Ok(Ok(Some("/a".into()))));
        assert_eq!(answer(&[check]).steps(), Err(Malformed), "cut short");
    }

    #[test]
    fn nothing_that_a_server_sends_is_trusted() {
        for body in
            [&[][..], &[0; 3], &[127, 255, 255, 255], &[255, 255, 255, 254], &[0, 0, 0, 1, 0, 0, 0, 9, b'x']]
        {
            let answer = Answer { zxid: 0, error: 0, body: body.to_vec() };
            assert!(
                answer.data().is_err() && answer.children().is_err() && answer.stat().is_err(),
                "{body:?}"
            );
            assert!(
                Header::read(body).is_err() && Connected::read(body).is_err() && Event::read(body).is_err()
            );
        }
    }
}
