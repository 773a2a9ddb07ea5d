//! A database of a test's own on a real server, and a look behind the sessions' back.

use std::error::Error;
use std::fmt::Display;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dlock_core::{
    Backend as _, BackendError, Busy, ClaimId, ClaimRef, ClaimReply, ClaimRequest, Clock, Debt, DebtId,
    Grant, Holder, LockGuard, LockManager, LockName, OpenOptions, Patience, ReleaseRequest, Released,
    Session, SystemClock, Timestamp,
};
use dlock_postgres::PostgresBackend;
use dlock_postgres::sqlx::postgres::{PgConnectOptions, PgConnection};
use dlock_postgres::sqlx::{self, AssertSqlSafe, ConnectOptions as _, Executor as _, Row as _};
use test_servers::{Lease, Pool, Postgres, Server};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const TTL: Duration = Duration::from_secs(2);

/// A server of the version that the test program is for: this suite is compiled for each.
pub(crate) fn postgres() -> Postgres {
    match version() {
        17 => Postgres::v17(),
        15 => Postgres::v15(),
        other => panic!("version {other} is none of test-servers'"),
    }
}

pub(crate) fn version() -> i64 {
    match env!("CARGO_CRATE_NAME") {
        "postgres" => 17,
        "postgres_15" => 15,
        other => panic!("{other} is for no version of the server"),
    }
}

/// Servers that tests share one after the other.
static SERVERS: Pool<Server> = Pool::new(|| Box::pin(async { Server::start(postgres()).await }));

/// A fresh database.
pub(crate) struct Place {
    pub(crate) server: Lease<Server>,
    pub(crate) database: String,
}

impl Place {
    pub(crate) async fn new() -> Self {
        let server = SERVERS.lease().await.unwrap_or_else(|error| panic!("{error}"));
        let database = database_name();
        server.exec(&["-c", &format!("CREATE DATABASE {database}")]).await.unwrap();
        Self { server, database }
    }

    pub(crate) fn options(&self) -> PgConnectOptions {
        options(&self.server, &self.database)
    }

    pub(crate) fn backend(&self) -> PostgresBackend {
        PostgresBackend::new(self.options())
    }

    pub(crate) async fn session(&self) -> Arc<dyn Session> {
        session(&self.backend(), TTL).await.unwrap()
    }

    pub(crate) fn manager(&self, owner: &str) -> LockManager {
        LockManager::builder(self.backend()).ttl(TTL).owner(owner).build().unwrap()
    }

    pub(crate) fn key(&self, name: &str) -> i64 {
        let location = self.backend().locate(&LockName::new(name).unwrap());
        location.location.parse().unwrap()
    }

    pub(crate) async fn look(&self) -> Look {
        Look(self.options().connect().await.unwrap())
    }
}

pub(crate) fn database_name() -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    format!("place_{}", NUMBER.fetch_add(1, Ordering::SeqCst))
}

/// How the superuser connects.
pub(crate) fn options(server: &Server, database: &str) -> PgConnectOptions {
    at(server.addr(), database)
}

pub(crate) fn at(addr: SocketAddr, database: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .host(&addr.ip().to_string())
        .port(addr.port())
        .username("postgres")
        .database(database)
        // A pooler would not know it.
        .extra_float_digits(None)
}

pub(crate) async fn session(
    backend: &PostgresBackend,
    ttl: Duration,
) -> Result<Arc<dyn Session>, BackendError> {
    Ok(backend.open(open_options(ttl)).await?.session)
}

pub(crate) fn open_options(ttl: Duration) -> OpenOptions {
    OpenOptions::new(ttl, "test:1", Duration::from_secs(3), Arc::new(SystemClock))
}

/// A connection of the operator's.
pub(crate) struct Look(pub(crate) PgConnection);

impl Look {
    pub(crate) async fn run(&mut self, text: impl Display) {
        self.0.execute(AssertSqlSafe(text.to_string())).await.unwrap();
    }

    /// The first column of the first row, which is a number.
    pub(crate) async fn number(&mut self, text: impl Display) -> i64 {
        let query = sqlx::query(AssertSqlSafe(text.to_string()));
        query.fetch_one(&mut self.0).await.unwrap().get(0)
    }

    /// The first column of the first row, which is true or false.
    pub(crate) async fn holds(&mut self, text: impl Display) -> bool {
        let query = sqlx::query(AssertSqlSafe(text.to_string()));
        query.fetch_one(&mut self.0).await.unwrap().get(0)
    }

    /// The first column of the first row, which is text.
    pub(crate) async fn text(&mut self, text: impl Display) -> String {
        let query = sqlx::query(AssertSqlSafe(text.to_string()));
        query.fetch_one(&mut self.0).await.unwrap().get(0)
    }

    /// How many advisory locks are held in this database.
    pub(crate) async fn advisory_locks(&mut self) -> i64 {
        self.number(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .await
    }

    pub(crate) async fn rows(&mut self) -> i64 {
        self.number("SELECT count(*) FROM dlock.holders").await
    }

    /// The server process of the sessions that tests open by hand.
    pub(crate) async fn pid_of(&mut self, owner: &str) -> i32 {
        let pid = self
            .number(format!(
                "SELECT pid::bigint FROM pg_stat_activity WHERE datname = current_database()
                    AND application_name = '{owner}' ORDER BY backend_start DESC LIMIT 1"
            ))
            .await;
        i32::try_from(pid).unwrap()
    }
}

/// Waits for a condition with a deadline.
pub(crate) async fn until(what: &str, condition: impl AsyncFnMut() -> bool) {
    until_within(Duration::from_secs(30), what, condition).await;
}

pub(crate) async fn until_within(limit: Duration, what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    assert!(tokio::time::timeout(limit, waiting).await.is_ok(), "never: {what}");
}

pub(crate) fn claim_ref(name: &str, id: u128) -> ClaimRef {
    ClaimRef { id: ClaimId::from_bits(id), name: LockName::new(name).unwrap() }
}

pub(crate) fn request(name: &str, id: u128, patience: Patience) -> ClaimRequest {
    let holder = Holder::from_json(r#"{"owner":"worker-7","since_ms":1767225600000}"#);
    ClaimRequest::new(claim_ref(name, id), patience, holder)
}

pub(crate) async fn queue(session: &dyn Session, name: &str, id: u128) -> ClaimReply {
    session.claim(request(name, id, Patience::Queue)).await.unwrap()
}

pub(crate) async fn try_claim(session: &dyn Session, name: &str, id: u128) -> ClaimReply {
    session.claim(request(name, id, Patience::Try)).await.unwrap()
}

/// A try that says that a debt was watched for as long as it is owed.
pub(crate) async fn try_paid(session: &dyn Session, name: &str, id: u128, paid: DebtId) -> ClaimReply {
    let mut request = request(name, id, Patience::Try);
    request.paid = Some(paid);
    session.claim(request).await.unwrap()
}

pub(crate) async fn granted(session: &dyn Session, name: &str, id: u128) -> Grant {
    grant_of(queue(session, name, id).await)
}

pub(crate) fn grant_of(reply: ClaimReply) -> Grant {
    match reply {
        ClaimReply::Granted(grant) => grant,
        other => panic!("not granted: {other:?}"),
    }
}

pub(crate) fn busy(reply: ClaimReply) -> Busy {
    match reply {
        ClaimReply::Busy(busy) => busy,
        other => panic!("not busy: {other:?}"),
    }
}

pub(crate) fn debt_of(reply: ClaimReply) -> Debt {
    busy(reply).debt.expect("a debt")
}

pub(crate) async fn release(session: &dyn Session, name: &str, id: u128) -> Released {
    session.release(ReleaseRequest::new(claim_ref(name, id))).await.unwrap()
}

/// The error and its causes in one line, as a command line shows them.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

pub(crate) fn clock() -> impl Clock {
    SystemClock
}

/// What one saw who looked at a guard until it was lost.
#[derive(Debug)]
pub(crate) struct Witnessed {
    /// The last moment before a look that found it held.
    pub(crate) held: Timestamp,
    /// The moment behind the look that found it lost.
    pub(crate) lost: Timestamp,
}

/// Looks at a guard until it is lost.
pub(crate) fn witness(guard: LockGuard) -> tokio::task::JoinHandle<Witnessed> {
    tokio::spawn(async move {
        let mut held = Timestamp::from_nanos(0);
        loop {
            let now = clock().now();
            if !guard.is_held() {
                return Witnessed { held, lost: clock().now() };
            }
            held = now;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

/// Another machine, as far as addresses tell, with this port, or any if it is 0. What the server says first goes through
/// `change`. It ends with the runtime of the test.
pub(crate) async fn relay(port: u16, server: SocketAddr, change: fn(Vec<u8>) -> Vec<u8>) -> SocketAddr {
    let listener =
        TcpListener::bind(SocketAddr::from((Ipv4Addr::new(127, 254, 254, 254), port))).await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(tokio::spawn(async move {
        loop {
            let (mut client, _) = listener.accept().await.unwrap();
            let mut server = TcpStream::connect(server).await.unwrap();
            drop(tokio::spawn(async move {
                let mut bytes = vec![0; 16 * 1024];
                let asked = client.read(&mut bytes).await?;
                server.write_all(&bytes[..asked]).await?;
                let answered = server.read(&mut bytes).await?;
                bytes.truncate(answered);
                client.write_all(&change(bytes)).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            }));
        }
    }));
    addr
}

#[tokio::test]
async fn servers_have_the_version_that_the_tests_are_for() {
    let number =
        Place::new().await.look().await.number("SELECT current_setting('server_version_num')::bigint").await;
    assert_eq!(number / 10000, version());
}
