//! What one request of a session says to the server, and what its answer means. Runs in the task that owns the connection.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dlock_core::{
    BackendError, Busy, ClaimId, ClaimReply, ClaimRequest, Clock, Debt, DebtId, FencingToken, Grant, Holder,
    Lease, LockName, Mode, OpenOptions, Patience, ReleaseRequest, Released, Renewal, Renewed, SpentClaims,
    Timestamp,
};
use sqlx::AssertSqlSafe;
use sqlx::postgres::{PgConnection, PgRow};

use crate::answer::{Answer, Row};
use crate::connection::{Plan, Process, Ready, duration, millis, shown_as};
use crate::epoch::Epoch;
use crate::error::{Failure, Place, another_epoch, gone, of_statement, pooled, shows_pooler};
use crate::query::Query;
use crate::signals::{Armed, Signals};
use crate::sweep::{BATCH, Sweep};

/// How soon a waiter asks again at the latest where nobody will notify it: the lock is held by other means than dlock, or
/// passed from hand to hand at the moment of asking.
pub(crate) const POLL: Duration = Duration::from_millis(100);

/// So many locks are given back in one statement at the end of a session.
const LEAVING: usize = 200;

/// How long the process that a pooler has taken away may take to be ended.
const PARTING: Duration = Duration::from_secs(2);

/// A claim that this session holds at the server.
#[derive(Debug)]
struct Held {
    claim: ClaimId,
    name: LockName,
    token: i64,
    /// What it owed when it was granted is paid at this moment.
    paid_at: Timestamp,
    /// The row says that it owed more than our own lease.
    row_owes_more: bool,
}

/// The session at the server.
pub(crate) struct Store {
    connection: PgConnection,
    plan: Arc<Plan>,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    sid: String,
    /// The server process that knows the session.
    process: Process,
    block: i64,
    /// What is owed from before the epoch is paid at this moment of the own clock; none once it is.
    epoch_paid_at: Option<Timestamp>,
    /// By key and not by name: two names may have one key, and advisory locks of one session stack.
    held: HashMap<i64, Held>,
    /// Claims of which was said that they are not at the server; a request for one that comes later is too late.
    spent: SpentClaims,
    sweep: Sweep,
    signals: Arc<Signals>,
}

impl Store {
    pub(crate) fn new(ready: Ready, plan: Arc<Plan>, options: OpenOptions, signals: Arc<Signals>) -> Self {
        let Ready { connection, sid, process, epoch, .. } = ready;
        let Epoch { block, paid_at: epoch_paid_at, .. } = epoch;
        let OpenOptions { ttl, clock, .. } = options;
        let sweep = Sweep::new(ttl, clock.now());
        let (held, spent) = (HashMap::new(), SpentClaims::default());
        Self { connection, plan, ttl, clock, sid, process, block, epoch_paid_at, held, spent, sweep, signals }
    }

    /// One try.
    pub(crate) async fn claim(&mut self, request: &ClaimRequest) -> Result<ClaimReply, Failure> {
        let Mode::Exclusive = request.mode else {
            let error = BackendError::refused("the PostgreSQL backend has exclusive locks only");
            return Err(Failure::Definite(error));
        };
        if self.spent.contains(request.claim.id) {
            let error = BackendError::unavailable("the request came when it had been given up already");
            return Err(Failure::Definite(error));
        }
        let plan = Arc::clone(&self.plan);
        let key = plan.keys.key(&request.claim.name);
        let queue = request.patience == Patience::Queue;
        // Before the try, so that no release after it is missed.
        let armed = queue.then(|| self.signals.arm(key));
        if let Some(held) = self.held.get(&key) {
            if held.name != request.claim.name {
                two_names(&plan.place, key, &held.name, &request.claim.name);
            }
            return Ok(busy(self.signals.patience(), armed));
        }
        let name = plan.keys.stored(&request.claim.name);
        let rest = self.epoch_rest();
        let paid = request.paid.map_or(-1, |DebtId(token)| token.cast_signed());
        let query = plan.statements.claim(
            &self.sid,
            key,
            self.block,
            &name,
            millis(self.ttl),
            request.holder.to_json().as_bytes(),
            queue,
            paid,
            queue || rest.is_zero(),
        );
        let row = match self.row(query).await {
            Ok(row) => Row { row: &row, place: &plan.place }.claim()?,
            Err(Failure::Definite(error)) => {
                // The advisory lock may have been taken, and no error gives it back.
                self.unlock(key, false).await?;
                return Err(Failure::Definite(error));
            }
            Err(over) => return Err(over),
        };
        match row {
            Answer::Held { marked, name: other } => {
                if other.is_some_and(|other| other != name) {
                    tracing::warn!(lock = %request.claim.name, key, "another name with the same key holds the lock");
                }
                Ok(busy(if marked { self.signals.patience() } else { POLL }, armed))
            }
            Answer::Granted { token, prev } => {
                let owed = duration(prev).max(rest);
                let held = Held {
                    claim: request.claim.id,
                    name: request.claim.name.clone(),
                    token,
                    paid_at: self.clock.now().plus(owed),
                    row_owes_more: prev > millis(self.ttl),
                };
                self.held.insert(key, held);
                Ok(ClaimReply::Granted(Grant::new(FencingToken::new(token.cast_unsigned())).owed(owed)))
            }
            Answer::GivenBack { unlocked, debt } => {
                if !unlocked {
                    // Whatever this is, it is not the server that we know.
                    return Err(Failure::Over(gone(&plan.place, None)));
                }
                let ClaimReply::Busy(answer) = busy(POLL, armed) else { unreachable!("made so") };
                // An epoch's own debt stands under a token that no claim has.
                let epoch = (self.block << 32, millis(rest));
                Ok(ClaimReply::Busy(match debt.or((!rest.is_zero()).then_some(epoch)) {
                    Some((token, owed)) => answer
                        .debt(Debt { id: DebtId(token.cast_unsigned()), owed: duration(owed).max(rest) }),
                    None => answer,
                }))
            }
        }
    }

    /// Whether this claim is held at the server. Requests are answered one after the other, so nothing is under way.
    fn holds(&self, request: &ReleaseRequest) -> Option<i64> {
        let key = self.plan.keys.key(&request.claim.name);
        self.held.get(&key).is_some_and(|held| held.claim == request.claim.id).then_some(key)
    }

    /// Gives up claims in one statement; what became of each.
    pub(crate) async fn release(&mut self, requests: &[ReleaseRequest]) -> Result<Vec<Released>, Failure> {
        let plan = Arc::clone(&self.plan);
        let (mut keys, mut tokens, mut rests) = (Vec::new(), Vec::new(), Vec::new());
        for request in requests {
            // P7: only what this very claim holds.
            let Some(key) = self.holds(request) else { continue };
            keys.push(key);
            tokens.push(self.held[&key].token);
            rests.push(millis(request.unpaid));
        }
        // Whose row was there, and is gone or has the rest of what is owed.
        let mut there = Vec::new();
        let mut refused = false;
        if !keys.is_empty() {
            match self.rows(plan.statements.release(&self.sid, &keys, &tokens, &rests)).await {
                Ok(rows) if rows.is_empty() => return Err(self.pooled(None).await),
                Ok(rows) => {
                    for row in &rows {
                        let row = Row { row, place: &plan.place };
                        let Some(key) = row.get::<Option<i64>>("key")? else { continue };
                        if row.get::<Option<bool>>("unlocked")? != Some(true) {
                            // Our row, and not our lock: whatever this is, it is not the server that we know.
                            return Err(Failure::Over(gone(&plan.place, None)));
                        }
                        there.push(key);
                    }
                }
                Err(Failure::Definite(error)) => {
                    tracing::warn!(%error, "locks are given back, but their rows stay for a while");
                    refused = true;
                }
                Err(over) => return Err(over),
            }
        }
        for ((key, token), rest) in keys.iter().zip(&tokens).zip(&rests) {
            if !there.contains(key) {
                // Removed by a hand; or refused for want of rights, space or locks, or at the commit, when the advisory lock
                // was given back and the row was not removed.
                if !self.unlock(*key, !refused).await? && !refused {
                    return Err(Failure::Over(gone(&plan.place, None)));
                }
            }
            self.held.remove(key);
            self.signals.ring(*key);
            if refused || *rest > 0 {
                self.sweep.expect(*key, *token, duration(*rest), self.clock.now());
            }
        }
        if refused {
            there.clone_from(&keys);
        }
        let outcome = |request: &ReleaseRequest| {
            let key = plan.keys.key(&request.claim.name);
            if there.contains(&key) { Released::Done } else { Released::NotFound }
        };
        Ok(requests.iter().map(outcome).collect())
    }

    /// Removes what an unanswered request may have left, and leaves what it owes. All requests before this one have been
    /// answered here, and one that comes later is turned away, so that nothing is left is proof.
    pub(crate) async fn remove(&mut self, claim: &dlock_core::ClaimRef) -> Result<(), Failure> {
        self.spent.insert(claim.id);
        let request = ReleaseRequest::new(claim.clone());
        let Some(key) = self.holds(&request) else { return Ok(()) };
        let unpaid = self.held[&key].paid_at.since(self.clock.now());
        self.release(&[request.unpaid(unpaid)]).await.map(drop)
    }

    /// A settle was served: the next one need settle no more than our own lease.
    pub(crate) async fn settled(&mut self, claim: &dlock_core::ClaimRef) -> Result<(), Failure> {
        let Some(key) = self.holds(&ReleaseRequest::new(claim.clone())) else { return Ok(()) };
        let held = self.held.get_mut(&key).expect("it is held");
        let token = held.token;
        held.paid_at = Timestamp::from_nanos(0);
        if !std::mem::take(&mut held.row_owes_more) {
            return Ok(());
        }
        let plan = Arc::clone(&self.plan);
        self.rows(plan.statements.settled(&self.sid, key, token, millis(self.ttl))).await.map(drop)
    }

    /// Renews the session, and tells which claims are gone.
    pub(crate) async fn renew(&mut self) -> Result<Renewed, Failure> {
        let plan = Arc::clone(&self.plan);
        let (keys, tokens): (Vec<_>, Vec<_>) = self.held.iter().map(|(key, held)| (*key, held.token)).unzip();
        let since = self.clock.now();
        let row = self.row(plan.statements.heartbeat(&self.sid, self.block, &keys, &tokens)).await?;
        let row = Row { row: &row, place: &plan.place };
        match row.get::<Option<i64>>("owed")? {
            Some(0) => self.epoch_paid_at = None,
            Some(_) => {}
            None => return Err(Failure::Over(another_epoch(&plan.place))),
        }
        let mut renewed = Renewed::session(Renewal::Extended(Lease::new(since, self.ttl)));
        for key in row.get::<Vec<i64>>("gone")? {
            if let Some(held) = self.held.get(&key) {
                renewed = renewed.gone(held.claim);
            }
        }
        Ok(renewed)
    }

    /// What is to be done now and then, and nobody waits for.
    pub(crate) async fn tidy(&mut self) -> Result<(), Failure> {
        let plan = Arc::clone(&self.plan);
        let now = self.clock.now();
        if self.epoch_paid_at.is_some_and(|paid_at| paid_at <= now) {
            self.rows(plan.statements.epoch_paid(&self.sid, self.block)).await?;
            self.epoch_paid_at = None;
        }
        let (keys, tokens) = self.sweep.due(now);
        if !keys.is_empty() {
            self.rows(plan.statements.sweep(&self.sid, &keys, &tokens)).await?;
        }
        if !self.sweep.is_time_to_look(now) {
            return Ok(());
        }
        loop {
            let rows = self.rows(plan.statements.orphans(self.sweep.known(), BATCH)).await?;
            let now = self.clock.now();
            for row in &rows {
                let row = Row { row, place: &plan.place };
                self.sweep.expect(row.get("key")?, row.get("token")?, duration(row.get("owed")?), now);
            }
            // A full batch is not all there is.
            if !self.sweep.goes_on(rows.len()) {
                return Ok(());
            }
        }
    }

    pub(crate) async fn observe(&mut self, name: &LockName) -> Result<Option<Holder>, Failure> {
        let plan = Arc::clone(&self.plan);
        let key = plan.keys.key(name);
        let rows = self.rows(plan.statements.observe(key)).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let row = Row { row, place: &plan.place };
        let application: Option<String> = row.get("application_name")?;
        if let Some(bytes) = row.get::<Option<Vec<u8>>>("holder")? {
            let holder = Holder::from_json(&String::from_utf8_lossy(&bytes));
            // The row may be a dead holder's, and the lock be taken by other means than dlock since.
            if application.as_deref().is_none_or(|name| shown_as(&holder.owner) == name) {
                return Ok(Some(holder));
            }
        }
        let text = match application {
            Some(name) if !name.is_empty() => name,
            _ => format!("process {} of the server", row.get::<i32>("pid")?),
        };
        Ok(Some(Holder::from_json(&text)))
    }

    /// Gives up what is left, and ends the session. The server ends its process a moment later.
    pub(crate) async fn close(mut self, leaving: &[ReleaseRequest]) -> Result<(), Failure> {
        // Each statement has a time-out, after which it has removed no row.
        for some in leaving.chunks(LEAVING) {
            self.release(some).await?;
        }
        let place = self.plan.place.clone();
        sqlx::Connection::close(self.connection).await.map_err(|error| of_statement(&place, error))
    }

    /// Gives an advisory lock back that has no row, or none that counts. False if it was not held.
    async fn unlock(&mut self, key: i64, notify: bool) -> Result<bool, Failure> {
        let plan = Arc::clone(&self.plan);
        match self.row(plan.statements.unlock(&self.sid, key, notify)).await {
            Ok(row) => Row { row: &row, place: &plan.place }.get("unlocked"),
            // Whether it is held is not known, and the end of the session settles it.
            Err(failure) => Err(Failure::Over(failure.into_error())),
        }
    }

    /// What is still owed from before the epoch.
    fn epoch_rest(&self) -> Duration {
        self.epoch_paid_at.map_or(Duration::ZERO, |paid_at| paid_at.since(self.clock.now()))
    }

    /// Executes a statement whose answer has a row wherever the session is known.
    async fn row(&mut self, query: Query) -> Result<PgRow, Failure> {
        // A grant counts only when the whole statement has ended: the row precedes the commit. This reads to the end.
        match query.fetch_optional(&mut self.connection).await {
            Ok(Some(row)) => Ok(row),
            Ok(None) => Err(self.pooled(None).await),
            Err(error) => Err(self.failed(error).await),
        }
    }

    async fn rows(&mut self, query: Query) -> Result<Vec<PgRow>, Failure> {
        match query.fetch_all(&mut self.connection).await {
            Ok(rows) => Ok(rows),
            Err(error) => Err(self.failed(error).await),
        }
    }

    async fn failed(&mut self, error: sqlx::Error) -> Failure {
        if shows_pooler(&error) {
            self.pooled(Some(error)).await
        } else {
            of_statement(&self.plan.place, error)
        }
    }

    /// Another server process answered. The one that holds our locks is with a pooler, which never ends it while others
    /// use it: so it is ended here, lest what it holds stays locked.
    async fn pooled(&mut self, cause: Option<sqlx::Error>) -> Failure {
        let Process { pid, started } = self.process;
        let text = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
              WHERE pid = {pid} AND (extract(epoch FROM backend_start) * 1000000)::bigint = {started}"
        );
        let ending = sqlx::raw_sql(AssertSqlSafe(text)).fetch_optional(&mut self.connection);
        match tokio::time::timeout(PARTING, ending).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::warn!(%error, pid, "a process of the server may keep locks"),
            Err(_) => tracing::warn!(pid, "a process of the server may keep locks"),
        }
        let error = pooled(&self.plan.place);
        Failure::Over(match cause {
            Some(cause) => error.with_source(cause),
            None => error,
        })
    }
}

fn busy(retry_after: Duration, armed: Option<Armed>) -> ClaimReply {
    let busy = Busy::retry_after(retry_after);
    ClaimReply::Busy(match armed {
        Some(armed) => busy.cookie(dlock_core::Cookie::new(armed)),
        None => busy,
    })
}

fn two_names(place: &Place, key: i64, one: &LockName, other: &LockName) {
    tracing::warn!(%one, %other, key, database = %place.database, "two names have the same key and exclude each other");
}
