//! A session's connection, while it is being opened: pooler, settings, schema, epoch.

use std::fmt;
use std::time::Duration;

use dlock_core::{BackendError, OpenOptions, Timestamp};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgRow};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _, Executor as _, Row as _};

use crate::epoch::Epoch;
use crate::error::{Place, of_connecting, of_opening, pooled_at_opening};
use crate::facts::{Facts, OLDEST, too_old};
use crate::key::Keyspace;
use crate::pooler::Second;
use crate::schema::{self, literal};
use crate::statements::Statements;

/// What a connection is opened with.
pub(crate) struct Plan {
    pub(crate) connect: PgConnectOptions,
    pub(crate) place: Place,
    pub(crate) statements: Statements,
    pub(crate) keys: Keyspace,
    pub(crate) may_create: bool,
    pub(crate) failover_settle: Duration,
}

impl fmt::Debug for Plan {
    /// Without the password, which the options of a connection would show.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plan").field("place", &self.place).field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// A connection that is ready to lock.
pub(crate) struct Ready {
    pub(crate) connection: PgConnection,
    /// The random setting by which the server process knows the session.
    pub(crate) sid: String,
    pub(crate) process: Process,
    pub(crate) epoch: Epoch,
    /// A reading of the clock from before the last request that the server counts as the start of the lease.
    pub(crate) since: Timestamp,
    /// What was made.
    pub(crate) created: bool,
}

/// A process of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// When it was started, in microseconds: numbers come again.
    pub(crate) started: i64,
}

/// Why a connection was not opened.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// There is no schema, and the role may not make one.
    MayNotCreate(BackendError),
    Failed(BackendError),
}

impl From<BackendError> for Unopened {
    fn from(error: BackendError) -> Self {
        Self::Failed(error)
    }
}

impl From<Unopened> for BackendError {
    fn from(unopened: Unopened) -> Self {
        match unopened {
            Unopened::MayNotCreate(error) | Unopened::Failed(error) => error,
        }
    }
}

/// Connects and makes the session.
pub(crate) async fn open(plan: &Plan, options: &OpenOptions) -> Result<Ready, Unopened> {
    let first = async {
        let mut opening = Opening::connect(plan, options).await?;
        let (facts, process) = opening.introduce().await?;
        Ok::<_, BackendError>((opening, facts, process))
    };
    let (first, second) = tokio::join!(first, Second::connect(plan));
    let ((mut opening, facts, process), second) = (first?, second?);
    // Nothing but its own mark was set so far. The process may be one that a pooler hands to others, who would get what is
    // set for this session.
    let second = second.expect_another_process(&opening.sid).await?;
    opening.set_up().await?;
    let rest = async {
        let (epoch, created) = opening.find(&facts).await?;
        opening.warm_up().await?;
        let since = options.clock.now();
        opening.finish().await?;
        let Opening { connection, sid, .. } = opening;
        Ok(Ready { connection, sid, process, epoch, since, created })
    };
    tokio::join!(rest, second.leave()).0
}

/// Finds the epoch, on a connection of its own, without a session: in one transaction, which leaves no setting behind in
/// whatever process a pooler lends.
pub(crate) async fn look_around(plan: &Plan, options: &OpenOptions) -> Result<Epoch, BackendError> {
    let mut opening = Opening::connect(plan, options).await?;
    let answer = millis(options.request_timeout).to_string();
    let mut text = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE; SELECT ".to_owned();
    for (name, value) in [
        ("application_name", shown_as(&options.owner).as_str()),
        ("search_path", SEARCH_PATH),
        ("synchronous_commit", "on"),
        ("lock_timeout", &answer),
        ("statement_timeout", &answer),
        ("idle_in_transaction_session_timeout", &answer),
    ] {
        text.extend(["set_config('", name, "', ", &literal(value), ", true), "]);
    }
    text.push_str(&Facts::columns(&plan.place.schema));
    let row = opening.raw(text).await?;
    let facts = Facts::read(&plan.place, &row)?;
    let (epoch, _) = opening.find(&facts).await?;
    // Durable, if it was begun just now, before anything rests on it.
    opening.connection.execute("COMMIT").await.map_err(|error| opening.failed(error))?;
    // It has done its work, and holds nothing.
    drop(opening.connection.close().await);
    Ok(epoch)
}

/// Connects, with nothing but what the URL says.
pub(crate) async fn connect(plan: &Plan) -> Result<PgConnection, BackendError> {
    plan.connect.connect().await.map_err(|error| of_connecting(&plan.place, error))
}

/// Whole milliseconds, rounded up.
pub(crate) fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(i64::MAX)
}

/// Milliseconds as the server has them.
pub(crate) fn duration(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// An owner's name as `application_name` can have it: the server shows no other letters anyway, and refuses those that its
/// database's encoding lacks.
pub(crate) fn shown_as(owner: &str) -> String {
    // The server cuts it there.
    let letters = owner.chars().take(63);
    letters.map(|c| if c == ' ' || c.is_ascii_graphic() { c } else { '?' }).collect()
}

const SEARCH_PATH: &str = "pg_catalog, pg_temp";

struct Opening<'a> {
    plan: &'a Plan,
    options: &'a OpenOptions,
    connection: PgConnection,
    sid: String,
}

impl<'a> Opening<'a> {
    async fn connect(plan: &'a Plan, options: &'a OpenOptions) -> Result<Self, BackendError> {
        let connection = connect(plan).await?;
        if let Some(version) = connection.server_version_num()
            && version < OLDEST
        {
            return Err(too_old(&plan.place, version));
        }
        let sid = format!("{:032x}", rand::random::<u128>());
        Ok(Self { plan, options, connection, sid })
    }

    /// Marks the server's process, and asks what is there.
    async fn introduce(&mut self) -> Result<(Facts, Process), BackendError> {
        let sid = literal(&self.sid);
        let facts = Facts::columns(&self.plan.place.schema);
        let text = format!(
            "SELECT set_config('dlock.session', {sid}, false), pg_backend_pid() AS pid,
                    (SELECT (extract(epoch FROM a.backend_start) * 1000000)::bigint
                       FROM pg_stat_activity a WHERE a.pid = pg_backend_pid()) AS started, {facts}"
        );
        let row = self.raw(text).await?;
        let facts = Facts::read(&self.plan.place, &row)?;
        let started = self.get::<Option<i64>>(&row, "started")?.unwrap_or_default();
        Ok((facts, Process { pid: self.get(&row, "pid")?, started }))
    }

    /// Makes what the session needs to be a lease, whatever the role, the database or the configuration say; but nothing in
    /// a process that does not know the session.
    async fn set_up(&mut self) -> Result<(), BackendError> {
        let ttl = millis(self.options.ttl);
        // Keep-alives have seconds. They free the locks of a machine that is gone while the server waits to write to it,
        // or for the rest of a request that it has sent in part.
        let keep_alive = (ttl / 4000).max(1).to_string();
        let (answer, lease) = (millis(self.options.request_timeout).to_string(), ttl.to_string());
        let mut text = "SELECT true AS known".to_owned();
        for (name, value) in [
            ("application_name", shown_as(&self.options.owner).as_str()),
            ("search_path", SEARCH_PATH),
            ("default_transaction_isolation", "read committed"),
            ("default_transaction_read_only", "off"),
            ("synchronous_commit", "on"),
            // The tables are small when the statements are planned, and not for ever.
            ("enable_seqscan", "off"),
            ("jit", "off"),
            ("lock_timeout", &answer),
            ("statement_timeout", &answer),
            ("idle_in_transaction_session_timeout", &lease),
            ("idle_session_timeout", &lease),
            ("tcp_user_timeout", &lease),
            ("tcp_keepalives_idle", &keep_alive),
            ("tcp_keepalives_interval", &keep_alive),
            ("tcp_keepalives_count", "3"),
        ] {
            text.extend([", set_config('", name, "', ", &literal(value), ", false)"]);
        }
        self.known(text).await.map(drop)
    }

    /// Finds the epoch, and makes the schema before that if it is missing; whether it did.
    async fn find(&mut self, facts: &Facts) -> Result<(Epoch, bool), Unopened> {
        let created = !facts.all_are_there;
        if created {
            self.make_schema().await?;
        }
        let Self { plan, options, connection, .. } = self;
        Ok((Epoch::find(connection, plan, options, facts.may_ask_origin).await?, created))
    }

    /// Makes the schema.
    async fn make_schema(&mut self) -> Result<(), Unopened> {
        let Place { schema, database, role } = self.plan.place.clone();
        let schema = schema.as_str();
        if !self.plan.may_create {
            return Err(Unopened::MayNotCreate(BackendError::refused(format!(
                "database {database} has no schema {schema:?} for locks, and this client may not make it \
                 (create_schema=false): run `dlock init`"
            ))));
        }
        // One at a time: IF NOT EXISTS is no help against somebody who makes the same at this moment. The text is one
        // transaction.
        let key = self.plan.keys.schema_key();
        let text = format!("SELECT pg_advisory_xact_lock({key});\n{}", schema::make(schema));
        let made = self.connection.execute(AssertSqlSafe(text)).await;
        if let Err(error) = made {
            let lacks_rights =
                error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("42501");
            if lacks_rights {
                let error = BackendError::refused(format!(
                    "role {role:?} may not make schema {schema:?} in database {database}: GRANT CREATE ON DATABASE to it, \
                     or have the owner of the database run what `dlock init` prints"
                ))
                .with_source(error);
                return Err(Unopened::MayNotCreate(error));
            }
            return Err(self.failed(error).into());
        }
        let row = self.raw(format!("SELECT {}", Facts::columns(schema))).await?;
        if Facts::read(&self.plan.place, &row)?.all_are_there {
            return Ok(());
        }
        let error = format!(
            "the tables of schema {schema:?} were not made in database {database}, without an error: is this PostgreSQL?"
        );
        Err(BackendError::refused(error).into())
    }

    /// Prepares the statements, so that each acquisition is one round trip from the first on.
    async fn warm_up(&mut self) -> Result<(), BackendError> {
        let Statements { claim, release, heartbeat, .. } = &self.plan.statements;
        for statement in [claim, release, heartbeat] {
            let prepared = (&mut self.connection).prepare(statement.sql()).await.map(drop);
            prepared.map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// From here on only unlogged tables are written: never wait for a disk or a standby. And a statement that waits must
    /// not use up the time in which the session is to be renewed.
    async fn finish(&mut self) -> Result<(), BackendError> {
        let longest = millis(self.options.request_timeout.min(self.options.ttl / 3) * 3 / 4).max(10);
        let row = self
            .known(format!(
                "SELECT set_config('synchronous_commit', 'off', false),
                        set_config('statement_timeout', '{longest}', false),
                        set_config('lock_timeout', '{longest}', false),
                        EXISTS (SELECT FROM pg_prepared_statements WHERE name LIKE 'PGBOUNCER%') AS renamed"
            ))
            .await?;
        // Prepared statements that have other names than they were given are those of a pool of transactions.
        if self.get(&row, "renamed")? { Err(pooled_at_opening(&self.plan.place)) } else { Ok(()) }
    }

    /// The only row of a SELECT, which is not executed in a process that does not know the session.
    async fn known(&mut self, select: String) -> Result<PgRow, BackendError> {
        let sid = literal(&self.sid);
        let text = format!("{select} WHERE current_setting('dlock.session', true) = {sid}");
        let row = sqlx::raw_sql(AssertSqlSafe(text)).fetch_optional(&mut self.connection).await;
        row.map_err(|error| self.failed(error))?.ok_or_else(|| pooled_at_opening(&self.plan.place))
    }

    /// The last row, in one round trip.
    async fn raw(&mut self, text: String) -> Result<PgRow, BackendError> {
        let query = sqlx::raw_sql(AssertSqlSafe(text));
        query.fetch_one(&mut self.connection).await.map_err(|error| self.failed(error))
    }

    fn get<'r, T>(&self, row: &'r PgRow, column: &str) -> Result<T, BackendError>
    where
        T: sqlx::Decode<'r, sqlx::Postgres> + sqlx::Type<sqlx::Postgres>,
    {
        row.try_get(column).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: sqlx::Error) -> BackendError {
        of_opening(&self.plan.place, error)
    }
}
