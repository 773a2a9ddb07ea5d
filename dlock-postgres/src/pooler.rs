//! Finds poolers that hand each transaction to another process of the server, before anything is set or locked there.

use dlock_core::BackendError;
use sqlx::error::DatabaseError;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Row as _};

use crate::connection::{Plan, connect};
use crate::error::{of_opening, pooled_at_opening};
use crate::schema::literal;

/// A second connection, which keeps a process of the server to itself while the first one asks again. A pooler hands it
/// the process that the first one had, or the first one another one.
///
/// The address does not tell: a pooler may have any port, the server's own on another machine among them. What does not
/// show here shows later, since statements do nothing in a process that does not know the session.
pub(crate) struct Second<'a> {
    plan: &'a Plan,
    connection: PgConnection,
}

impl<'a> Second<'a> {
    /// Connects.
    pub(crate) async fn connect(plan: &'a Plan) -> Result<Self, BackendError> {
        Ok(Self { plan, connection: connect(plan).await? })
    }

    /// Begins a transaction, which lasts until [`leave`](Self::leave); an error if it is in the process that was marked
    /// with `sid`.
    pub(crate) async fn expect_another_process(mut self, sid: &str) -> Result<Self, BackendError> {
        let place = &self.plan.place;
        let text = format!(
            "BEGIN; SELECT coalesce(current_setting('dlock.session', true) = {}, false) AS marked",
            literal(sid)
        );
        let row = sqlx::raw_sql(AssertSqlSafe(text)).fetch_one(&mut self.connection).await;
        let row = match row {
            Ok(row) => row,
            // A pool of single statements allows no transaction.
            Err(error)
                if error.as_database_error().and_then(DatabaseError::code).as_deref() == Some("08P01") =>
            {
                return Err(pooled_at_opening(place).with_source(error));
            }
            Err(error) => return Err(of_opening(place, error)),
        };
        if row.try_get::<bool, _>("marked").map_err(|error| of_opening(place, error))? {
            // The next one to get the process finds it as it was.
            drop(self.connection.execute("RESET dlock.session").await);
            self.leave().await;
            return Err(pooled_at_opening(place));
        }
        Ok(self)
    }

    /// Ends the transaction and the connection. That it worked is of no importance.
    pub(crate) async fn leave(mut self) {
        // A pooler ends the process of a client that goes away inside a transaction.
        if self.connection.execute("COMMIT").await.is_ok() {
            drop(self.connection.close().await);
        }
    }
}
