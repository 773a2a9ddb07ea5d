#![doc = include_str!("../README.md")]

mod answer;
mod connection;
mod epoch;
mod error;
mod facts;
mod fence;
mod key;
mod owner;
mod pooler;
mod query;
mod schema;
mod session;
mod settle;
mod signals;
mod statements;
mod store;
mod sweep;
mod transaction;
mod url;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dlock_core::{
    Backend, BackendError, BackendUrl, Basis, Fairness, Guarantees, Lease, Location, LockName, OpenOptions,
    Opened, UrlError, check_prefix,
};
use sqlx::postgres::PgConnectOptions;
use tokio::sync::watch;

pub use fence::{Fenced, FencedTable, FencedWrite, WriteToken};
/// The version of sqlx whose types this crate's functions take.
pub use sqlx;
pub use transaction::{TransactionLockError, TransactionLocks, TransactionToken};

use crate::connection::{Plan, Unopened};
use crate::error::Place;
use crate::key::{DEFAULT_SCHEMA, Keyspace};
use crate::owner::Owner;
use crate::session::PostgresSession;
use crate::signals::{LOOK, Signals};
use crate::statements::Statements;
use crate::store::{POLL, Store};

/// Locks in a PostgreSQL database.
///
/// Making one does no I/O: what is wrong with the server shows when the session is opened.
///
/// # Examples
///
/// The key of a lock never changes:
///
/// ```
/// use dlock_core::{Backend, LockName};
/// use dlock_postgres::PostgresBackend;
/// use dlock_postgres::sqlx::postgres::PgConnectOptions;
///
/// let options = PgConnectOptions::new_without_pgpass().host("db.example").database("shop");
/// let backend = PostgresBackend::new(options.clone());
/// assert_eq!(backend.locate(&LockName::new("orders/42")?).location, "1655705618346446831");
/// assert_eq!(backend.locate(&LockName::new("a")?).location, "-9033471704281723301");
///
/// let other = PostgresBackend::builder(options).schema("shop locks").prefix("orders/").build();
/// assert_eq!(other.locate(&LockName::new("42")?).location, "-852966579350013672");
/// # Ok::<(), dlock_core::NameError>(())
/// ```
#[derive(Clone)]
pub struct PostgresBackend {
    connect: PgConnectOptions,
    keys: Keyspace,
    may_create: bool,
    failover_settle: Duration,
}

impl PostgresBackend {
    /// Locks in the database that `options` name, in the schema `dlock`.
    pub fn new(options: PgConnectOptions) -> Self {
        Self::builder(options).build()
    }

    /// Locks in the database that `options` name, with settings.
    pub fn builder(options: PgConnectOptions) -> PostgresBackendBuilder {
        PostgresBackendBuilder(Self {
            // A pooler in front of the server would not know this one.
            connect: options.extra_float_digits(None),
            keys: Keyspace { schema: DEFAULT_SCHEMA.to_owned(), prefix: String::new() },
            may_create: true,
            failover_settle: Duration::from_secs(60),
        })
    }

    /// Reads `postgres://USER:PASSWORD@HOST:PORT/DATABASE` with the parameters of PostgreSQL's own URLs (`sslmode`,
    /// `sslrootcert`, `sslcert`, `sslkey`, `host`, `hostaddr`, `port`, `dbname`, `user`, `password`, `options`) and `schema`,
    /// `prefix`, `create_schema` and `failover_settle`. What is left out comes from the environment (`PGHOST`, `PGPASSWORD`, ...) and `~/.pgpass`.
    ///
    /// # Errors
    ///
    /// [`UrlError`] says what to write instead; it never shows a password.
    ///
    /// # Examples
    ///
    /// ```
    /// use dlock_core::BackendUrl;
    /// use dlock_postgres::PostgresBackend;
    ///
    /// let mut url = BackendUrl::parse("postgres://app@db.example/shop?sslmode=verify-full&schema=locks")?;
    /// let backend = PostgresBackend::from_url(&mut url)?;
    /// url.finish()?;
    /// # Ok::<(), dlock_core::UrlError>(())
    /// ```
    pub fn from_url(url: &mut BackendUrl) -> Result<Self, UrlError> {
        url::read(url)
    }

    /// The SQL that makes the schema, for a database administrator, with the grants that the backend's role needs.
    pub fn schema_sql(&self) -> String {
        let schema = &self.keys.schema;
        format!("{}\n{}", schema::make(schema), schema::grants(schema, self.connect.get_username()))
    }

    fn place(&self) -> Place {
        let role = self.connect.get_username().to_owned();
        let database = self.connect.get_database().unwrap_or(&role);
        let server = match self.connect.get_socket() {
            Some(socket) => socket.display().to_string(),
            None => format!("{}:{}", self.connect.get_host(), self.connect.get_port()),
        };
        Place { database: format!("{database} on {server}"), role, schema: self.keys.schema.clone() }
    }

    fn plan(&self) -> Result<Plan, BackendError> {
        check_prefix(&self.keys.prefix).map_err(|error| BackendError::refused(error.to_string()))?;
        url::check_schema(&self.keys.schema).map_err(|error| BackendError::refused(error.to_string()))?;
        Ok(Plan {
            connect: self.connect.clone(),
            place: self.place(),
            statements: Statements::new(&self.keys.schema),
            keys: self.keys.clone(),
            may_create: self.may_create,
            failover_settle: self.failover_settle,
        })
    }
}

impl fmt::Debug for PostgresBackend {
    /// Without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresBackend")
            .field("place", &self.place())
            .field("prefix", &self.keys.prefix)
            .finish_non_exhaustive()
    }
}

/// Settings of a [`PostgresBackend`].
#[derive(Clone, Debug)]
pub struct PostgresBackendBuilder(PostgresBackend);

impl PostgresBackendBuilder {
    /// Names the schema of the tables; `dlock` by default. Locks of different schemas have nothing to do with each other.
    pub fn schema(mut self, schema: impl Into<String>) -> Self {
        self.0.keys.schema = schema.into();
        self
    }

    /// Puts `prefix` in front of every name, so that applications that share a schema do not share locks. None by
    /// default.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.0.keys.prefix = prefix.into();
        self
    }

    /// Whether to make the schema when it is missing; true by default, and needs the right to create one then.
    pub fn create_schema(mut self, may: bool) -> Self {
        self.0.may_create = may;
        self
    }

    /// What is settled at least after a failover, a restore or an upgrade; 60 s by default.
    ///
    /// Leases from before are waited out. How long the longest was is in the database, but the last time that it was raised
    /// may not have reached the replica which took over. Set it to the longest TTL in use where that is more. Who begins
    /// after a failover settles its own TTL at least, so with zero all must have the same one.
    pub fn failover_settle(mut self, time: Duration) -> Self {
        self.0.failover_settle = time;
        self
    }

    /// The backend. No I/O.
    pub fn build(self) -> PostgresBackend {
        self.0
    }
}

#[async_trait]
impl Backend for PostgresBackend {
    fn guarantees(&self) -> Guarantees {
        let exclusion = if self.failover_settle.is_zero() {
            Basis::If("no TTL was raised shortly before a failover, since failover_settle is 0".to_owned())
        } else {
            Basis::Holds
        };
        Guarantees::new("postgres")
            .exclusion(exclusion)
            .fairness(Fairness::Process)
            .min_ttl(Duration::from_millis(500))
            // A frozen holder is freed after its lease, which a look finds, and is settled for another one.
            .takeover(2, LOOK + POLL * 2)
            .note("after a crash of the server, the longest lease that was ever granted is settled first")
            .note(format!(
                "after a failover, {:?} or that if it is longer; the old primary must be stopped",
                self.failover_settle
            ))
            .note("a backward step of the server's clock delays the end of a frozen holder's session by as much")
    }

    fn locate(&self, name: &LockName) -> Location {
        let key = self.keys.key(name);
        let schema = schema::quote(&self.keys.schema);
        let query = format!(
            "SELECT *, convert_from(name, 'UTF8'), convert_from(holder, 'UTF8') FROM {schema}.holders WHERE key = {key}"
        );
        let mut command = "psql".to_owned();
        let host = self.connect.get_socket().map(|socket| socket.display().to_string());
        let host = host.unwrap_or_else(|| self.connect.get_host().to_owned());
        let database = self.connect.get_database().unwrap_or(self.connect.get_username());
        for (option, value) in [
            ("-h", host),
            ("-p", self.connect.get_port().to_string()),
            ("-U", self.connect.get_username().to_owned()),
            ("-d", database.to_owned()),
            ("-xc", query),
        ] {
            command.extend([" ", option, " ", &shell_word(&value)]);
        }
        Location::new("postgres", key.to_string()).inspect(command)
    }

    async fn open(&self, options: OpenOptions) -> Result<Opened, BackendError> {
        let plan = Arc::new(self.plan()?);
        let ready = connection::open(&plan, &options).await?;
        let lease = Lease::new(ready.since, options.ttl);
        let (over, ended) = watch::channel(false);
        let signals = Signals::new(Arc::clone(&plan), &options, ended);
        let store = Store::new(ready, Arc::clone(&plan), options, Arc::clone(&signals));
        let owner = Owner::start(store, plan.place.clone(), over);
        Ok(Opened::with_session_lease(Arc::new(PostgresSession::new(owner, signals)), lease))
    }

    async fn init(&self, options: OpenOptions) -> Result<Vec<String>, BackendError> {
        let mut plan = self.plan()?;
        // Who calls this wants it made.
        plan.may_create = true;
        let ready = connection::open(&plan, &options).await.map_err(|unopened| match unopened {
            Unopened::MayNotCreate(error) => {
                BackendError::refused(format!("{error}:\n\n{}", self.schema_sql()))
            }
            Unopened::Failed(error) => error,
        })?;
        let database = &plan.place.database;
        let schema = &self.keys.schema;
        let sentence = if ready.created {
            format!("made schema {schema:?} with its four tables in database {database}")
        } else {
            format!("schema {schema:?} in database {database} is ready for role {:?}", plan.place.role)
        };
        // It has done its work, and holds nothing.
        drop(sqlx::Connection::close(ready.connection).await);
        Ok(vec![sentence])
    }
}

/// Quotes a word for a POSIX shell, if it needs it.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | ':' | '@' | '+');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}
