//! What a transaction that has a lock must wait out, and how that is written off.

use std::time::Duration;

use dlock_core::BackendError;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, Postgres, Row as _, Transaction};

use crate::connection::{self, Plan, millis};
use crate::epoch::Epoch;
use crate::error::of_opening;
use crate::key::stripe;
use crate::schema;

/// What a transaction sees that has the advisory lock.
pub(crate) struct View {
    /// None where there is no epoch of the expected origin.
    pub(crate) block: Option<i64>,
    pub(crate) epoch_owed: i64,
    /// The last token of the counter.
    pub(crate) last: i64,
    /// The token of a holder that did not leave cleanly.
    pub(crate) seen: Option<i64>,
    /// What that one left.
    pub(crate) owed: i64,
}

impl View {
    pub(crate) async fn of(
        transaction: &mut Transaction<'_, Postgres>,
        plan: &Plan,
        key: i64,
        epoch: &Epoch,
    ) -> Result<Self, sqlx::Error> {
        let query = sqlx::query(plan.statements.look.sql()).persistent(false);
        let query = query.bind(key).bind(stripe(key)).bind(epoch.origin.clone());
        let row = query.fetch_one(&mut **transaction).await?;
        let or_zero =
            |column: &str| Ok::<_, sqlx::Error>(row.try_get::<Option<i64>, _>(column)?.unwrap_or(0));
        Ok(Self {
            block: row.try_get("block")?,
            epoch_owed: or_zero("epoch_owed")?,
            last: or_zero("last")?,
            seen: row.try_get("seen")?,
            owed: or_zero("owed")?,
        })
    }
}

/// What was waited out.
pub(crate) struct Debt {
    pub(crate) key: i64,
    /// The token of the row that stood for it.
    pub(crate) seen: Option<i64>,
    /// The block of the epoch that owed.
    pub(crate) epoch: Option<i64>,
}

impl Debt {
    /// Writes down that it need not be waited out again, also if the transaction is rolled back. So it is done on a
    /// connection of its own, and if that fails, or takes longer than `limit`, the next one waits again.
    pub(crate) async fn pay(&self, plan: &Plan, limit: Duration) {
        let schema = schema::quote(&plan.place.schema);
        let answer = millis(limit);
        // One transaction, which leaves nothing behind in a process that a pooler lends.
        let mut text = vec![format!(
            "SELECT set_config('synchronous_commit', 'off', true), set_config('statement_timeout', '{answer}', true)"
        )];
        let key = self.key;
        if let Some(token) = self.seen {
            // The token proves that nobody came in between.
            text.push(format!("DELETE FROM {schema}.holders WHERE key = {key} AND token = {token}"));
        }
        if let Some(block) = self.epoch {
            text.push(format!("UPDATE {schema}.epoch SET owed = 0 WHERE block = {block} AND owed > 0"));
        }
        let paying = async {
            let mut connection = connection::connect(plan).await?;
            let paid = connection.execute(AssertSqlSafe(text.join("; "))).await;
            paid.map_err(|error| of_opening(&plan.place, error))?;
            drop(connection.close().await);
            Ok::<_, BackendError>(())
        };
        match tokio::time::timeout(limit, paying).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "what was waited out stays written down as owed"),
            Err(_) => tracing::debug!("what was waited out stays written down as owed"),
        }
    }
}
