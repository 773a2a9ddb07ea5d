//! What the scripts answer, taken apart.

use redis::Value;

/// An answer of GRANT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum GrantReply {
    /// The lock is this claim's at the node, with this token drawn.
    Granted(u64),
    /// Somebody holds the lock at the node.
    Denied(Denial),
    /// The node grants nothing for now.
    Quarantined(Quarantine),
    /// The deployment is used with other figures.
    Mismatch(String),
    /// The node is a replica of this master.
    Replica(String),
    /// The lease is too long for the restart delay.
    LeaseTooLong,
    /// This key does not hold what dlock would write there.
    Damaged(String),
    /// Tokens would exceed 2^53.
    OutOfRange,
    /// INFO at the node lacks this field, without which a loss of data would go unnoticed.
    Blind(String),
}

/// Who holds a lock at one node, as its script said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Denial {
    /// The counter of the lock, for the next proposal.
    pub(crate) counter: u64,
    /// What is left of the holder's lease, in milliseconds; none if its key never expires.
    pub(crate) expires_ms: Option<u64>,
    /// The first 32 characters of what the key holds.
    pub(crate) nonce: String,
}

/// How long a node grants nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Quarantine {
    /// Its end, in microseconds of the node's clock.
    pub(crate) till_us: u64,
    /// How long that is from now, in microseconds.
    pub(crate) left_us: u64,
    /// Why, as the mark says.
    pub(crate) why: String,
}

/// An answer of COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CommitReply {
    /// The node has the token.
    Ok,
    /// The lock is no longer this claim's at the node.
    Lost,
    /// Somebody drew a greater token.
    Stale,
}

/// An answer of LOOK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LookReply {
    /// What the lock's key holds; none if there is no such key.
    pub(crate) value: Option<String>,
    /// Whether the node grants nothing for now.
    pub(crate) quarantine: Option<Quarantine>,
}

/// An answer of INIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum InitReply {
    New,
    /// There is a mark already; the node grants nothing for so many microseconds still.
    Marked(u64),
    Mismatch(String),
    Replica(String),
    Blind(String),
}

impl GrantReply {
    pub(crate) fn read(value: &Value) -> Option<Self> {
        let parts = array(value)?;
        let at = |index: usize| parts.get(index);
        Some(match text(at(0)?)?.as_str() {
            "GRANTED" => Self::Granted(number(at(1)?)?),
            "DENIED" => Self::Denied(Denial {
                counter: number(at(1)?)?,
                // -1: the key never expires; -2: it expired between two commands of the script, which cannot be.
                expires_ms: number(at(2)?),
                nonce: text(at(3)?)?,
            }),
            "QUARANTINED" => Self::Quarantined(quarantine(parts.get(1..)?)?),
            "MISMATCH" => Self::Mismatch(text(at(1)?)?),
            "REPLICA" => Self::Replica(text(at(1)?)?),
            "TTL" => Self::LeaseTooLong,
            "DAMAGED" => Self::Damaged(text(at(1)?)?),
            "RANGE" => Self::OutOfRange,
            "BLIND" => Self::Blind(text(at(1)?)?),
            _ => return None,
        })
    }
}

impl CommitReply {
    pub(crate) fn read(value: &Value) -> Option<Self> {
        Some(match text(array(value)?.first()?)?.as_str() {
            "OK" => Self::Ok,
            "LOST" => Self::Lost,
            "STALE" => Self::Stale,
            _ => return None,
        })
    }
}

impl LookReply {
    pub(crate) fn read(value: &Value) -> Option<Self> {
        let parts = array(value)?;
        let held = text(parts.first()?)?;
        let quarantine = match text(parts.get(2)?)?.as_str() {
            "QUARANTINED" => Some(quarantine(parts.get(3..)?)?),
            _ => None,
        };
        Some(Self { value: (!held.is_empty()).then_some(held), quarantine })
    }
}

impl InitReply {
    pub(crate) fn read(value: &Value) -> Option<Self> {
        let parts = array(value)?;
        Some(match text(parts.first()?)?.as_str() {
            "NEW" => Self::New,
            "MARKED" => Self::Marked(number(parts.get(1)?)?),
            "MISMATCH" => Self::Mismatch(text(parts.get(1)?)?),
            "REPLICA" => Self::Replica(text(parts.get(1)?)?),
            "BLIND" => Self::Blind(text(parts.get(1)?)?),
            _ => return None,
        })
    }
}

/// An answer of RENEW or RELEASE: for each key whether something was done.
pub(crate) fn flags(value: &Value) -> Option<Vec<bool>> {
    array(value)?.iter().map(|flag| number(flag).map(|flag| flag == 1)).collect()
}

/// An answer of RENEW from a node that renews nothing.
pub(crate) enum NotRenewed {
    /// For now.
    Quarantined,
    /// It is a replica of this master.
    Replica(String),
}

impl NotRenewed {
    pub(crate) fn read(value: &Value) -> Option<Self> {
        let parts = array(value)?;
        Some(match text(parts.first()?)?.as_str() {
            "QUARANTINED" => Self::Quarantined,
            "REPLICA" => Self::Replica(text(parts.get(1)?)?),
            _ => return None,
        })
    }
}

/// Text, whatever form the server chose for it.
pub(crate) fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        Value::Okay => Some("OK".to_owned()),
        _ => None,
    }
}

fn array(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(parts) => Some(parts),
        _ => None,
    }
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}

fn quarantine(parts: &[Value]) -> Option<Quarantine> {
    let [till, left, why, ..] = parts else { return None };
    Some(Quarantine { till_us: number(till)?, left_us: number(left)?, why: text(why)? })
}
