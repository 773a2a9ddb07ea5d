//! The statements of a session, with the name of the schema filled in.
//!
//! Every statement filters on a random setting that the session made when it was opened: behind a pooler, or after a
//! connection was replaced without a word, it touches nothing and returns no row. (The number of a server process may
//! come again.)

use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr as _, SqlStr};

use crate::schema::{literal, quote};

/// The statements over one schema.
#[derive(Debug)]
pub(crate) struct Statements {
    pub(crate) claim: Statement,
    pub(crate) release: Statement,
    pub(crate) unlock: Statement,
    pub(crate) settled: Statement,
    pub(crate) heartbeat: Statement,
    pub(crate) epoch_paid: Statement,
    pub(crate) observe: Statement,
    pub(crate) free: Statement,
    pub(crate) orphans: Statement,
    pub(crate) sweep: Statement,
    pub(crate) look: Statement,
    pub(crate) epoch: EpochStatements,
}

/// The statements with which a session finds or makes the epoch.
#[derive(Debug)]
pub(crate) struct EpochStatements {
    /// In two ways, the second for roles with few rights.
    pub(crate) read: [Statement; 2],
    pub(crate) first: Statement,
    pub(crate) begin: Statement,
    pub(crate) raise: Statement,
}

/// The text of one statement.
#[derive(Clone, Debug)]
pub(crate) struct Statement(Arc<str>);

impl Statement {
    /// A text in which `{s}` stands for the schema, and `{epoch}` for the name of a table in it, as a text.
    pub(crate) fn new(text: &str, schema: &str) -> Self {
        let schema = quote(schema);
        let epoch = literal(&format!("{schema}.epoch"));
        // Part by part, since a schema may have any name, and that of a place to be filled in as well.
        let parts: Vec<_> = text.split("{epoch}").map(|part| part.replace("{s}", &schema)).collect();
        Self(parts.join(&epoch).into())
    }

    /// The text as sqlx takes it.
    pub(crate) fn sql(&self) -> SqlStr {
        // Written below; only the quoted name of the schema is filled in.
        AssertSqlSafe(Arc::clone(&self.0)).into_sql_str()
    }
}

impl Statements {
    pub(crate) fn new(schema: &str) -> Self {
        let new = |text: &str| Statement::new(text, schema);
        Self {
            claim: new(CLAIM),
            release: new(RELEASE),
            unlock: new(UNLOCK),
            settled: new(SETTLED),
            heartbeat: new(HEARTBEAT),
            epoch_paid: new(EPOCH_PAID),
            observe: new(OBSERVE),
            free: new(FREE),
            orphans: new(ORPHANS),
            sweep: new(SWEEP),
            look: new(LOOK),
            epoch: EpochStatements {
                read: [ORIGIN, WEAK_ORIGIN].map(|origin| new(&READ_EPOCH.replace("{origin}", origin))),
                first: new(FIRST_META),
                begin: new(BEGIN_EPOCH),
                raise: new(RAISE_MAX_LEASE),
            },
        }
    }
}

/// Asks for a lock, once. What the columns of its only row mean:
///
/// - no row: another server process answered; the session is over;
/// - `got` false: somebody holds it. `marked`: the release will be notified;
/// - `got` true, `token`: granted, with `prev` to be settled;
/// - `got` true, no `token`: a try met a debt, which is (`seen_token`, `seen_owed`), or may not be granted yet
///   (`ready` is false); the lock is free again.
///
/// The statement's snapshot is older than its lock. So what a grant depends on is copied by SET from the row that ON
/// CONFLICT locks; a sub-select would read the past. What `o` shows is of the past, and nothing depends on it but hints.
///
/// `$1` key, `$2` session, `$3` stripe, `$4` block, `$5` name, `$6` lease, `$7` holder, `$8` queue: false for a try,
/// `$9` the token of a debt that was watched for as long as it is owed or -1, `$10` ready.
const CLAIM: &str = "\
WITH l AS MATERIALIZED (
  SELECT pg_try_advisory_lock($1::bigint) AS got WHERE current_setting('dlock.session', true) = $2::text
), c AS (
  INSERT INTO {s}.counters AS c (stripe, token)
  SELECT $3::int, ($4::bigint << 32) + 1 FROM l WHERE got AND $10::boolean
  ON CONFLICT (stripe) DO UPDATE SET token = greatest(c.token, $4::bigint << 32) + 1
  RETURNING token
), h AS (
  INSERT INTO {s}.holders AS h (key, name, token, owed, holder)
  SELECT $1::bigint, $5::bytea, token, $6::bigint, $7::bytea FROM c
  ON CONFLICT (key) DO UPDATE SET name = excluded.name, token = excluded.token, holder = excluded.holder,
     prev = CASE WHEN h.token = $9::bigint THEN 0 ELSE h.owed END,
     owed = CASE WHEN h.token = $9::bigint THEN excluded.owed ELSE greatest(h.owed, excluded.owed) END
   WHERE $8::boolean OR h.token = $9::bigint
  RETURNING token, prev
), w AS (
  UPDATE {s}.holders SET waiting = true FROM l
   WHERE NOT l.got AND $8::boolean AND holders.key = $1::bigint AND NOT waiting RETURNING 1
)
SELECT l.got, h.token, h.prev,
       CASE WHEN l.got AND h.token IS NULL THEN pg_advisory_unlock($1::bigint) END AS unlocked,
       o.token AS seen_token, o.owed AS seen_owed, o.name AS seen_name,
       coalesce(o.waiting, false) OR EXISTS (SELECT FROM w) AS marked
  FROM l LEFT JOIN h ON true LEFT JOIN {s}.holders o ON h.token IS NULL AND o.key = $1::bigint";

/// Gives up claims: the row of each goes, or stays with the rest of what is owed, and whoever waits is notified. One row
/// for each claim that was there; one with a null key if there was none; no row: another server process answered.
///
/// `$1` session, `$2` keys, `$3` tokens, `$4` rests in milliseconds.
const RELEASE: &str = "\
WITH s AS MATERIALIZED (SELECT 1 WHERE current_setting('dlock.session', true) = $1::text),
r AS MATERIALIZED (
  SELECT r.* FROM unnest($2::bigint[], $3::bigint[], $4::bigint[]) AS r (key, token, rest), s
), d AS (
  DELETE FROM {s}.holders h USING r WHERE r.rest = 0 AND h.key = r.key AND h.token = r.token
  RETURNING h.key, h.waiting
), u AS (
  UPDATE {s}.holders h SET owed = r.rest, prev = 0 FROM r
   WHERE r.rest > 0 AND h.key = r.key AND h.token = r.token
  RETURNING h.key, h.waiting
)
SELECT x.key, pg_advisory_unlock(x.key) AS unlocked,
       CASE WHEN x.waiting THEN pg_notify('dlock', x.key::text) END AS notified
  FROM s LEFT JOIN (SELECT * FROM d UNION ALL SELECT * FROM u) x ON true";

/// Gives an advisory lock back where its row was not written, or is gone. `$1` key, `$2` session, `$3` notify: all
/// transactions of the server that do so are committed one after the other, and where that failed it would fail again.
const UNLOCK: &str = "\
SELECT pg_advisory_unlock($1::bigint) AS unlocked,
       CASE WHEN $3::boolean THEN pg_notify('dlock', $1::text) END AS notified
 WHERE current_setting('dlock.session', true) = $2::text";

/// A settle was served: what the next one would have to settle is our own lease. `$1` key, `$2` token, `$3` lease,
/// `$4` session.
const SETTLED: &str = "\
UPDATE {s}.holders SET owed = $3::bigint, prev = 0
 WHERE key = $1::bigint AND token = $2::bigint AND current_setting('dlock.session', true) = $4::text";

/// Renews the session, and tells what is still owed from before the epoch, which is null if that is over, and which rows were
/// removed by a hand. No row: another server process answered. `$1` block, `$2` session, `$3` keys, `$4` tokens.
const HEARTBEAT: &str = "\
SELECT e.owed, ARRAY(
    SELECT r.key FROM unnest($3::bigint[], $4::bigint[]) AS r (key, token)
     WHERE NOT EXISTS (SELECT FROM {s}.holders h WHERE h.key = r.key AND h.token = r.token)) AS gone
  FROM (SELECT WHERE current_setting('dlock.session', true) = $2::text) s LEFT JOIN {s}.epoch e ON e.block = $1::bigint";

/// What was owed from before the epoch has passed. `$1` block, `$2` session.
const EPOCH_PAID: &str = "\
UPDATE {s}.epoch SET owed = 0
 WHERE block = $1::bigint AND owed > 0 AND current_setting('dlock.session', true) = $2::text";

/// Who has the advisory lock: what the row says, and the name that the connection gave itself. `$1` key.
const OBSERVE: &str = "\
SELECT h.holder, a.application_name, p.pid
  FROM pg_locks p LEFT JOIN {s}.holders h ON h.key = $1::bigint LEFT JOIN pg_stat_activity a ON a.pid = p.pid
 WHERE p.locktype = 'advisory' AND p.objsubid = 1 AND p.granted
   AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())
   AND p.classid = (($1::bigint >> 32) & 4294967295)::oid AND p.objid = ($1::bigint & 4294967295)::oid
 LIMIT 1";

/// Those of the keys that nobody has. `$1` keys.
const FREE: &str = "\
SELECT r.key FROM unnest($1::bigint[]) AS r (key) WHERE NOT EXISTS (
  SELECT FROM pg_locks p WHERE p.locktype = 'advisory' AND p.objsubid = 1 AND p.granted
     AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND (p.classid::bigint << 32 | p.objid::bigint) = r.key)";

/// Rows whose holder's session is over, other than those that are known. `$1` their keys, `$2` how many at most.
const ORPHANS: &str = "\
SELECT h.key, h.token, h.owed FROM {s}.holders h WHERE NOT EXISTS (
  SELECT FROM pg_locks p WHERE p.locktype = 'advisory' AND p.objsubid = 1 AND p.granted
     AND p.database = (SELECT oid FROM pg_database WHERE datname = current_database())
     AND (p.classid::bigint << 32 | p.objid::bigint) = h.key)
   AND NOT EXISTS (SELECT FROM unnest($1::bigint[]) AS k (key) WHERE k.key = h.key) LIMIT $2::bigint";

/// Removes such rows once what they owe has passed; the token proves that nobody came in between. `$1` keys, `$2` tokens,
/// `$3` session.
///
/// Several sessions may do this at once: in the order of keys, and without a row that somebody else has locked, they do not
/// wait for each other.
const SWEEP: &str = "\
WITH r AS MATERIALIZED (
  SELECT h.key, h.token FROM {s}.holders h JOIN unnest($1::bigint[], $2::bigint[]) AS r (key, token)
      ON h.key = r.key AND h.token = r.token
   WHERE current_setting('dlock.session', true) = $3::text ORDER BY h.key FOR UPDATE OF h SKIP LOCKED
)
DELETE FROM {s}.holders h USING r WHERE h.key = r.key AND h.token = r.token";

/// What a transaction that has the advisory lock must know; `block` is null where there is no epoch of this origin. `$1`
/// key, `$2` stripe, `$3` origin.
const LOOK: &str = "\
SELECT e.block, e.owed AS epoch_owed, c.token AS last, h.token AS seen, h.owed
  FROM (SELECT 1) one LEFT JOIN {s}.epoch e ON e.origin = $3::text LEFT JOIN {s}.counters c ON c.stripe = $2::int
  LEFT JOIN {s}.holders h ON h.key = $1::bigint";

/// Where we are: system identifier / timeline / oid of the database / oid of the table of the epoch. It tells a crash (the
/// same) from a failover (another timeline), and from a copy of the database, a restored dump or an upgrade, which may carry
/// the row of an epoch along.
///
/// The timeline in the checkpoint is the old one just after a promotion, so it is taken from the log's position.
const ORIGIN: &str = "\
(SELECT system_identifier FROM pg_control_system())::text || '/'
  || ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int || '/'
  || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || to_regclass({epoch})::oid";

/// As [`ORIGIN`] where the role may not ask for these: every start of the server is a place of its own.
const WEAK_ORIGIN: &str = "\
'start ' || extract(epoch FROM pg_postmaster_start_time())::text || '/0/'
  || (SELECT oid FROM pg_database WHERE datname = current_database()) || '/' || to_regclass({epoch})::oid";

/// Where we are, and what is there. `block` is null where there is no epoch of this origin, `max_lease` where the schema was
/// never used.
const READ_EPOCH: &str = "\
WITH o AS MATERIALIZED (SELECT {origin} AS here)
SELECT o.here, e.block, e.owed, m.max_lease, m.origin
  FROM o LEFT JOIN {s}.meta m ON true LEFT JOIN {s}.epoch e ON e.origin = o.here";

/// The first use of a schema. `$1` lease.
const FIRST_META: &str = "\
INSERT INTO {s}.meta (block, max_lease, raised)
SELECT minute, $1::bigint, minute FROM (SELECT floor(extract(epoch FROM clock_timestamp()) / 60)::bigint) AS t (minute)
ON CONFLICT DO NOTHING";

/// Begins an epoch, durably: `$1` origin, `$2` the origin that was read, `$3` what is settled at least where the last raise
/// of `max_lease` may not have come along.
///
/// Blocks rise by one and the minutes since they were raised last, and by a day of minutes for each change of timeline or place, so
/// that a raise that was lost with an old primary is not repeated. Nor is a first one: where nothing is known of an earlier
/// use, each timeline counts as one that used the schema. Nor is that of an earlier restore of the same dump, which knows as
/// little: by the minutes, and not up to the present one, since a block may be days ahead.
const BEGIN_EPOCH: &str = "\
WITH t AS MATERIALIZED (
  SELECT floor(extract(epoch FROM clock_timestamp()) / 60)::bigint AS minute
), m AS (
  UPDATE {s}.meta SET
    block = block + 1 + greatest(0, minute - raised)
          + CASE WHEN origin = $1::text THEN 0
                 WHEN origin = '' THEN 1440 * abs(split_part($1::text, '/', 2)::bigint - 1)
                 WHEN split_part(origin, '/', 1) = split_part($1::text, '/', 1)
                 THEN 1440 * greatest(1, split_part($1::text, '/', 2)::bigint - split_part(origin, '/', 2)::bigint)
                 ELSE 1440 END,
    raised = greatest(raised, minute), origin = $1::text
    FROM t WHERE origin = $2::text AND NOT EXISTS (SELECT FROM {s}.epoch e WHERE e.origin = $1::text)
  RETURNING block, CASE WHEN $2::text = $1::text THEN max_lease
                        WHEN $2::text = '' AND split_part($1::text, '/', 2) = '1' THEN 0
                        ELSE greatest(max_lease, $3::bigint) END AS owed)
INSERT INTO {s}.epoch AS e (block, owed, origin) SELECT block, owed, $1::text FROM m
ON CONFLICT (one) DO UPDATE SET block = excluded.block, owed = excluded.owed, origin = excluded.origin
 WHERE e.origin <> excluded.origin";

/// A lease longer than any before. `$1` lease.
const RAISE_MAX_LEASE: &str = "UPDATE {s}.meta SET max_lease = $1::bigint WHERE max_lease < $1::bigint";
