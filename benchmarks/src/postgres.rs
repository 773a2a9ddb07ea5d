//! Locks in a PostgreSQL database on loopback, beside the server's own advisory lock without lease and token.

use dlock::{Clock, SystemClock};
use dlock_postgres::sqlx::{self, Connection as _, PgConnection};
use test_servers::{Postgres, Server};

use crate::figures::{Figures, LONG_ROUNDS, nanos};
use crate::servers::{self, HANDOFFS, LINED_UP, OPERATIONS};
use crate::setting::Setting;
use crate::table::{Unit, row, section};

const LOCK: &str = "SELECT pg_advisory_lock(42)";
const UNLOCK: &str = "SELECT pg_advisory_unlock(42)";

pub(crate) fn run() {
    Setting::MultiThread.run(async {
        section("POSTGRESQL");
        let server = Server::start(Postgres::v17()).await.unwrap_or_else(|error| panic!("{error}"));
        let url = format!("postgres://postgres@{}/postgres", server.addr());
        beside(&url).await;
        servers::measure(&url, "").await;
    });
}

async fn beside(url: &str) {
    let mut one = PgConnection::connect(url).await.expect("the server runs");
    let mut other = PgConnection::connect(url).await.expect("the server runs");
    let mut rounds = Vec::new();
    for _ in 0..LONG_ROUNDS {
        let start = SystemClock.now();
        for _ in 0..OPERATIONS {
            execute(&mut one, LOCK).await;
            execute(&mut one, UNLOCK).await;
        }
        rounds.push(nanos(SystemClock.now().since(start)) / f64::from(OPERATIONS));
    }
    row("sqlx, pg_advisory_lock and pg_advisory_unlock", Unit::Nanoseconds, Figures::of(rounds));

    let mut rounds = Vec::new();
    for _ in 0..HANDOFFS {
        execute(&mut one, LOCK).await;
        let waiter = tokio::spawn(async move {
            execute(&mut other, LOCK).await;
            let acquired = SystemClock.now();
            execute(&mut other, UNLOCK).await;
            (other, acquired)
        });
        tokio::time::sleep(LINED_UP).await;
        let released = SystemClock.now();
        execute(&mut one, UNLOCK).await;
        let acquired;
        (other, acquired) = waiter.await.expect("the waiter ends");
        rounds.push(nanos(acquired.since(released)));
    }
    row("sqlx, unlock to lock of another connection", Unit::Nanoseconds, Figures::of(rounds));
}

async fn execute(connection: &mut PgConnection, statement: &'static str) {
    sqlx::query(statement).execute(connection).await.expect("the server runs");
}
