//! The life of the server since its last crash, failover or restore.

use dlock_core::{BackendError, OpenOptions, Timestamp};
use sqlx::Row as _;
use sqlx::postgres::{PgConnection, PgRow};

use crate::connection::{Plan, duration, millis};
use crate::error::of_opening;

/// An epoch that is there.
#[derive(Clone, Debug)]
pub(crate) struct Epoch {
    /// Where the server is; see the statement that asks for it.
    pub(crate) origin: String,
    /// The upper half of tokens.
    pub(crate) block: i64,
    /// When what is owed from before is paid, on the own clock; none if nothing is.
    pub(crate) paid_at: Option<Timestamp>,
}

impl Epoch {
    /// Finds the epoch, or begins one. `may_ask_origin`: the role may call the functions that tell where the server is.
    pub(crate) async fn find(
        connection: &mut PgConnection,
        plan: &Plan,
        options: &OpenOptions,
        may_ask_origin: bool,
    ) -> Result<Self, BackendError> {
        let failed = |error| of_opening(&plan.place, error);
        let lease = millis(options.ttl);
        let statements = &plan.statements.epoch;
        let [strong, weak] = &statements.read;
        let mut read = if may_ask_origin { strong } else { weak };
        // Others may do the same at this moment, and each step may find that one of them was faster.
        for _ in 0..6 {
            let row: PgRow = sqlx::raw_sql(read.sql()).fetch_one(&mut *connection).await.map_err(failed)?;
            // Counted from the answer: whoever held before the epoch holds no longer than this from now on.
            let now = options.clock.now();
            let origin: String = row.try_get("here").map_err(failed)?;
            let was: Option<String> = row.try_get("origin").map_err(failed)?;
            if !is_start(&origin) && was.as_deref().is_some_and(is_start) {
                // Roles with few rights use this schema too: with two names for one place they would end each other's epochs.
                read = weak;
                continue;
            }
            let next = if let Some(max_lease) = row.try_get::<Option<i64>, _>("max_lease").map_err(failed)? {
                match row.try_get::<Option<i64>, _>("block").map_err(failed)? {
                    Some(block) if max_lease >= lease => {
                        let owed: i64 = row.try_get("owed").map_err(failed)?;
                        let paid_at = (owed > 0).then(|| now.plus(duration(owed)));
                        return Ok(Self { origin, block, paid_at });
                    }
                    Some(_) => sqlx::query(statements.raise.sql()).bind(lease),
                    None => {
                        let was = was.unwrap_or_default();
                        // Others whose last raise was lost may have had as long a lease as our own.
                        let settle = millis(plan.failover_settle.max(options.ttl));
                        sqlx::query(statements.begin.sql()).bind(origin).bind(was).bind(settle)
                    }
                }
            } else {
                sqlx::query(statements.first.sql()).bind(lease)
            };
            next.persistent(false).execute(&mut *connection).await.map_err(failed)?;
        }
        Err(BackendError::unavailable(format!(
            "the epoch of schema {:?} in database {} is being made by others again and again",
            plan.place.schema, plan.place.database
        )))
    }
}

/// Whether an origin is that of a role which may not ask where the server is.
fn is_start(origin: &str) -> bool {
    origin.starts_with("start ")
}
