//! Statements with their values bound.

use sqlx::Postgres;
use sqlx::postgres::PgArguments;

use crate::key::stripe;
use crate::statements::Statements;

/// A statement that is ready to be executed; it owns its values.
pub(crate) type Query = sqlx::query::Query<'static, Postgres, PgArguments>;

impl Statements {
    #[allow(clippy::too_many_arguments, reason = "they are the values of one statement")]
    pub(crate) fn claim(
        &self,
        sid: &str,
        key: i64,
        block: i64,
        name: &[u8],
        lease: i64,
        holder: &[u8],
        queue: bool,
        paid: i64,
        ready: bool,
    ) -> Query {
        sqlx::query(self.claim.sql())
            .bind(key)
            .bind(sid.to_owned())
            .bind(stripe(key))
            .bind(block)
            .bind(name.to_vec())
            .bind(lease)
            .bind(holder.to_vec())
            .bind(queue)
            .bind(paid)
            .bind(ready)
    }

    pub(crate) fn release(&self, sid: &str, keys: &[i64], tokens: &[i64], rests: &[i64]) -> Query {
        sqlx::query(self.release.sql())
            .bind(sid.to_owned())
            .bind(keys.to_vec())
            .bind(tokens.to_vec())
            .bind(rests.to_vec())
    }

    pub(crate) fn unlock(&self, sid: &str, key: i64, notify: bool) -> Query {
        sqlx::query(self.unlock.sql()).bind(key).bind(sid.to_owned()).bind(notify)
    }

    pub(crate) fn settled(&self, sid: &str, key: i64, token: i64, lease: i64) -> Query {
        sqlx::query(self.settled.sql()).bind(key).bind(token).bind(lease).bind(sid.to_owned())
    }

    pub(crate) fn heartbeat(&self, sid: &str, block: i64, keys: &[i64], tokens: &[i64]) -> Query {
        sqlx::query(self.heartbeat.sql())
            .bind(block)
            .bind(sid.to_owned())
            .bind(keys.to_vec())
            .bind(tokens.to_vec())
    }

    pub(crate) fn epoch_paid(&self, sid: &str, block: i64) -> Query {
        sqlx::query(self.epoch_paid.sql()).bind(block).bind(sid.to_owned())
    }

    pub(crate) fn observe(&self, key: i64) -> Query {
        sqlx::query(self.observe.sql()).bind(key)
    }

    pub(crate) fn free(&self, keys: Vec<i64>) -> Query {
        sqlx::query(self.free.sql()).bind(keys)
    }

    pub(crate) fn orphans(&self, known: Vec<i64>, most: usize) -> Query {
        sqlx::query(self.orphans.sql()).bind(known).bind(i64::try_from(most).unwrap_or(i64::MAX))
    }

    pub(crate) fn sweep(&self, sid: &str, keys: &[i64], tokens: &[i64]) -> Query {
        sqlx::query(self.sweep.sql()).bind(keys.to_vec()).bind(tokens.to_vec()).bind(sid.to_owned())
    }
}
