//! Writes that a table itself refuses if their token is stale.

use dlock_core::FencingToken;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{AssertSqlSafe, Encode, Executor, Postgres, Row as _, Type};

use crate::transaction::TransactionToken;

/// A table with a column that keeps, for each row, the greatest token that wrote it.
///
/// The token is compared with the *written row itself* and set in it, in one statement, so that no stale holder's write
/// lands after a later one's. (To compare it with the lock's own row would not do: that row may belong to a later holder
/// already, or to nobody.) The column is a `bigint` that may be null.
///
/// # Examples
///
/// ```no_run
/// # async fn example(guard: dlock_core::LockGuard, connection: &mut sqlx::PgConnection) -> Result<(), sqlx::Error> {
/// use dlock_postgres::{Fenced, FencedTable};
///
/// // ALTER TABLE inventory ADD COLUMN fence bigint;
/// let inventory = FencedTable::new("inventory", "fence");
/// let outcome = inventory
///     .update("amount = amount - $2", "id = $3", guard.token())
///     .bind(5_i64)
///     .bind(42_i64)
///     .execute(connection)
///     .await?;
/// assert_ne!(outcome, Fenced::Stale, "somebody else held the lock since");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencedTable {
    table: String,
    column: String,
}

/// A token that a write is done under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteToken(i64);

impl From<FencingToken> for WriteToken {
    fn from(token: FencingToken) -> Self {
        Self(i64::try_from(token.get()).unwrap_or(i64::MAX))
    }
}

impl From<TransactionToken> for WriteToken {
    fn from(token: TransactionToken) -> Self {
        Self(i64::try_from(token.get()).unwrap_or(i64::MAX))
    }
}

/// What became of a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fenced {
    /// So many rows were written.
    Written(u64),
    /// Nothing was written: each row that was meant was written under a later token.
    Stale,
    /// Nothing was written: there is no such row.
    Missing,
}

impl FencedTable {
    /// A table and its column, as they stand in SQL: quote what needs quotes, and never take them from a user.
    pub fn new(table: impl Into<String>, column: impl Into<String>) -> Self {
        Self { table: table.into(), column: column.into() }
    }

    /// An UPDATE of the rows that meet `condition`. `$1` is the token; values are bound to `$2` and so on.
    ///
    /// Rows that a later token wrote stay as they are.
    pub fn update(&self, assignments: &str, condition: &str, token: impl Into<WriteToken>) -> FencedWrite {
        let Self { table, column } = self;
        let text = format!(
            "WITH written AS (\
                UPDATE {table} SET {assignments}, {column} = $1::bigint \
                 WHERE ({condition}) AND ({column} IS NULL OR {column} <= $1::bigint) RETURNING 1) \
             SELECT (SELECT count(*) FROM written) AS written, EXISTS (SELECT FROM {table} WHERE {condition}) AS there"
        );
        FencedWrite::new(text, token.into())
    }

    /// An INSERT of one row with these columns, or an UPDATE of all of them where a row with the same `key` is there,
    /// whose columns have a unique index. The values are bound in the order of `columns`.
    pub fn upsert(&self, columns: &[&str], key: &[&str], token: impl Into<WriteToken>) -> FencedWrite {
        let Self { table, column } = self;
        let values: Vec<_> = (0..columns.len()).map(|at| format!("${}", at + 2)).collect();
        let set: Vec<_> = columns.iter().map(|name| format!("{name} = excluded.{name}")).collect();
        let (columns, values, key, set) =
            (columns.join(", "), values.join(", "), key.join(", "), set.join(", "));
        let text = format!(
            "WITH written AS (\
                INSERT INTO {table} AS fenced ({columns}, {column}) VALUES ({values}, $1::bigint) \
                ON CONFLICT ({key}) DO UPDATE SET {set}, {column} = excluded.{column} \
                 WHERE fenced.{column} IS NULL OR fenced.{column} <= excluded.{column} RETURNING 1) \
             SELECT (SELECT count(*) FROM written) AS written, true AS there"
        );
        FencedWrite::new(text, token.into())
    }
}

/// One fenced write: bind its values, then execute it.
#[must_use = "nothing is written until it is executed"]
pub struct FencedWrite(sqlx::query::Query<'static, Postgres, PgArguments>);

impl FencedWrite {
    fn new(text: String, token: WriteToken) -> Self {
        Self(sqlx::query(AssertSqlSafe(text)).bind(token.0))
    }

    /// Binds the next value.
    pub fn bind<T>(self, value: T) -> Self
    where
        T: 'static + Encode<'static, Postgres> + Type<Postgres> + Send,
    {
        Self(self.0.bind(value))
    }

    /// Executes the write, in a transaction or not.
    ///
    /// # Errors
    ///
    /// Those of the statement.
    pub async fn execute<'c>(
        self,
        executor: impl Executor<'c, Database = Postgres>,
    ) -> Result<Fenced, sqlx::Error> {
        let row: PgRow = self.0.fetch_one(executor).await?;
        let written: i64 = row.try_get("written")?;
        Ok(match u64::try_from(written) {
            Ok(written) if written > 0 => Fenced::Written(written),
            _ if row.try_get("there")? => Fenced::Stale,
            _ => Fenced::Missing,
        })
    }
}

impl std::fmt::Debug for FencedWrite {
    /// Without the values.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FencedWrite").finish_non_exhaustive()
    }
}
