//! Locks that are taken inside a transaction of the caller's own, and end with it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dlock_core::{BackendError, Clock, LockName, OpenOptions, SystemClock, Timestamp, sleep_until};
use sqlx::{Postgres, Row as _, Transaction};

use crate::PostgresBackend;
use crate::connection::{self, Plan, duration};
use crate::epoch::Epoch;
use crate::settle::{Debt, View};

/// How long one answer may take while the epoch is looked for.
const ANSWER: Duration = Duration::from_secs(3);

/// How often a transaction that settles shows that it lives.
const STEP: Duration = Duration::from_secs(1);
/// The first of these looks comes sooner: what seemed to be owed may have been a release that was not committed yet.
const FIRST_STEP: Duration = Duration::from_millis(10);

/// Locks of a [`PostgresBackend`] as part of transactions: released by commit or rollback, and by nothing else.
///
/// A lock that is taken so excludes those that lock managers hold, and is excluded by them. It needs no lease: the
/// server ends it together with the writes of its transaction. It is the best lock there is for work that is done in one
/// transaction of this database, and of no use for anything else.
///
/// # Examples
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use dlock_core::LockName;
/// use dlock_postgres::PostgresBackend;
/// use dlock_postgres::sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
///
/// let options: PgConnectOptions = "postgres://app@db.example/shop".parse()?;
/// let locks = PostgresBackend::new(options.clone()).transaction_locks();
///
/// let mut connection = PgConnection::connect_with(&options).await?;
/// let mut transaction = connection.begin().await?;
/// locks.lock(&mut transaction, &LockName::new("orders/42")?).await?;
/// // ... statements of this transaction ...
/// transaction.commit().await?; // and the lock is free
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct TransactionLocks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    plan: Result<Plan, BackendError>,
    clock: Arc<dyn Clock>,
    /// Where transactions are expected to find themselves.
    epoch: Mutex<Option<Epoch>>,
}

/// The token of a lock that is held by a transaction. Valid inside that transaction only: it is not written anywhere but
/// by the transaction's own fenced writes, so one that is rolled back, and the next one, may have the same.
///
/// It is greater than the token of every guard that held the lock before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TransactionToken(u64);

impl TransactionToken {
    /// The number, for comparisons in SQL.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for TransactionToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a transaction did not get a lock. After a [`Statement`](Self::Statement) it can only be rolled back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransactionLockError {
    /// The transaction sees one state of the database for as long as it lasts, from before the lock was taken.
    #[error(
        "lock {name:?} is of no use at isolation level {isolation}, at which statements see the time before the lock was \
         taken: use READ COMMITTED"
    )]
    Isolation {
        /// The lock.
        name: LockName,
        /// The level.
        isolation: String,
    },
    /// The transaction is at another server or database than the backend.
    #[error("lock {name:?} was asked for in a transaction of another database than that of the locks")]
    AnotherDatabase {
        /// The lock.
        name: LockName,
    },
    /// A statement of the transaction failed.
    #[error("the statements of lock {name:?} failed in the transaction")]
    Statement {
        /// The lock.
        name: LockName,
        /// What the server said.
        source: sqlx::Error,
    },
    /// The store could not be prepared, on a connection of its own.
    #[error("the schema of the locks cannot be used for lock {name:?}")]
    Store {
        /// The lock.
        name: LockName,
        /// What is wrong, and what to do.
        source: BackendError,
    },
}

impl PostgresBackend {
    /// The same locks, taken inside transactions. No I/O.
    pub fn transaction_locks(&self) -> TransactionLocks {
        TransactionLocks(Arc::new(Inner {
            plan: self.plan(),
            clock: Arc::new(SystemClock),
            epoch: Mutex::default(),
        }))
    }
}

impl TransactionLocks {
    /// Takes a lock for the rest of the transaction, and waits for it; the server's `lock_timeout` bounds the wait.
    ///
    /// What an earlier holder that did not leave cleanly may still believe is waited out, inside the transaction. The first
    /// call, and one that has waited for that, open and close a connection of their own. A transaction that has the lock already gets it once more.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future does not give the lock back: roll the transaction back.
    ///
    /// # Errors
    ///
    /// [`TransactionLockError`].
    pub async fn lock(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        name: &LockName,
    ) -> Result<TransactionToken, TransactionLockError> {
        let token = self.take(transaction, name, "SELECT true AS got FROM pg_advisory_xact_lock($1)").await?;
        Ok(token.expect("the server waits until it is got"))
    }

    /// As [`lock`](Self::lock), or none if somebody holds the lock. Also waits out what is owed, while nobody holds it.
    ///
    /// # Cancel safety
    ///
    /// As for [`lock`](Self::lock).
    ///
    /// # Errors
    ///
    /// [`TransactionLockError`].
    pub async fn try_lock(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        name: &LockName,
    ) -> Result<Option<TransactionToken>, TransactionLockError> {
        self.take(transaction, name, "SELECT pg_try_advisory_xact_lock($1) AS got").await
    }

    async fn take(
        &self,
        transaction: &mut Transaction<'_, Postgres>,
        name: &LockName,
        ask: &'static str,
    ) -> Result<Option<TransactionToken>, TransactionLockError> {
        let failed = |source| TransactionLockError::Statement { name: name.clone(), source };
        let store = |source| TransactionLockError::Store { name: name.clone(), source };
        let plan = self.0.plan.as_ref().map_err(|error| store(error.clone()))?;
        let query = once(
            "SELECT current_setting('transaction_isolation') AS isolation,
                    (SELECT s.setting::bigint FROM pg_catalog.pg_settings s
                      WHERE s.name = 'idle_in_transaction_session_timeout') AS patience",
        );
        let row = query.fetch_one(&mut **transaction).await.map_err(failed)?;
        let isolation: String = row.try_get("isolation").map_err(failed)?;
        if isolation != "read committed" {
            return Err(TransactionLockError::Isolation { name: name.clone(), isolation });
        }
        let patience = duration(row.try_get("patience").map_err(failed)?);
        // Before anything is locked, so that nobody waits for this connection.
        let mut epoch = self.epoch(plan, None).await.map_err(store)?;
        let key = plan.keys.key(name);
        let row = once(ask).bind(key).fetch_one(&mut **transaction).await.map_err(failed)?;
        if !row.try_get::<bool, _>("got").map_err(failed)? {
            return Ok(None);
        }
        // A statement of its own: its snapshot is later than the lock, which is what makes it see the last holder's token.
        let mut view = View::of(transaction, plan, key, &epoch).await.map_err(failed)?;
        if view.block.is_none() {
            // The server crashed or failed over since, and nobody has begun its epoch.
            epoch = self.epoch(plan, Some(&epoch)).await.map_err(store)?;
            view = View::of(transaction, plan, key, &epoch).await.map_err(failed)?;
        }
        let elsewhere = || TransactionLockError::AnotherDatabase { name: name.clone() };
        let block = view.block.ok_or_else(elsewhere)?;
        let now = self.0.clock.now();
        let epoch_paid_at = self.paid_at(&epoch, block, view.epoch_owed, now);
        // P1: whoever held it last and did not leave cleanly may believe so for this long.
        let mut settle_until = now.plus(duration(view.owed)).max(epoch_paid_at);
        if settle_until > now {
            let debt = Debt { key, seen: view.seen, epoch: (view.epoch_owed > 0).then_some(block) };
            // The server may end a transaction that says nothing for a while, and the lock with it.
            let longest = if patience.is_zero() { STEP } else { STEP.min(patience / 2) };
            let mut step = FIRST_STEP.min(longest);
            loop {
                let now = self.0.clock.now();
                if now >= settle_until {
                    break;
                }
                sleep_until(&*self.0.clock, settle_until.min(now.plus(step))).await;
                step = (step * 2).min(longest);
                view = View::of(transaction, plan, key, &epoch).await.map_err(failed)?;
                if view.seen != debt.seen {
                    // The lock is ours, so the row is gone because its holder had left cleanly, or because it was waited out by
                    // somebody else. A release frees the lock a moment before its row is seen to be gone.
                    settle_until = epoch_paid_at;
                }
            }
            debt.pay(plan, longest).await;
            // After all that took time: what is handed out is held.
            view = View::of(transaction, plan, key, &epoch).await.map_err(failed)?;
        }
        let token = view.last.max(view.block.ok_or_else(elsewhere)? << 32) + 1;
        Ok(Some(TransactionToken(token.cast_unsigned())))
    }

    /// The epoch that is known, or another one than `stale`.
    async fn epoch(&self, plan: &Plan, stale: Option<&Epoch>) -> Result<Epoch, BackendError> {
        let known = self.known().clone();
        if let Some(known) = known
            && stale.is_none()
        {
            return Ok(known);
        }
        // The shortest there is: a transaction has no lease, so none is to be settled for it after a crash.
        let clock = Arc::clone(&self.0.clock);
        let options = OpenOptions::new(Duration::from_millis(1), "dlock transaction", ANSWER, clock);
        let opening = tokio::time::timeout(ANSWER * 3, connection::look_around(plan, &options)).await;
        let epoch = opening.map_err(|_| {
            BackendError::unavailable(format!("database {} does not answer", plan.place.database))
        })??;
        *self.known() = Some(epoch.clone());
        Ok(epoch)
    }

    /// When what is owed from before an epoch is paid, counted from when its block was first seen.
    fn paid_at(&self, epoch: &Epoch, block: i64, owed: i64, now: Timestamp) -> Timestamp {
        let mut known = self.known();
        if owed == 0 {
            return now;
        }
        if epoch.block == block {
            return epoch.paid_at.unwrap_or(now);
        }
        let paid_at = now.plus(duration(owed));
        *known = Some(Epoch { block, paid_at: Some(paid_at), origin: epoch.origin.clone() });
        paid_at
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Option<Epoch>> {
        self.0.epoch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A statement that leaves nothing prepared behind: the connection may be one that a pooler lends for a transaction.
fn once(text: &'static str) -> sqlx::query::Query<'static, Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(text).persistent(false)
}
