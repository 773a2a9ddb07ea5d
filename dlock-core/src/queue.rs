//! The local queue: who waits for which name in this process, and what stands at the store for it.
//!
//! It is a correctness part. An etcd lease, a Postgres session and a Redis owner would each grant one name twice to the
//! same session; here at most one claim of a name is at the store, and ten thousand local waiters cost one remote one.
//!
//! The claim belongs to the queue, not to the waiter at its head: it is given up only when nobody waits any more, and a
//! guard whose waiter went away goes to the next. A name has an entry only while somebody waits or holds.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};

use crate::backend::Patience;
use crate::clock::Timestamp;
use crate::driver;
use crate::error::{AcquireError, BackendError};
use crate::guard::ReleaseOutcome;
use crate::hold::{Hold, locked};
use crate::lease::LossReason;
use crate::metrics::count;
use crate::name::LockName;
use crate::shared::Shared;

/// The entries of all names in use.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    names: Mutex<Names>,
    /// Told when an entry goes while the manager is being closed.
    drained: Notify,
}

#[derive(Debug, Default)]
struct Names {
    entries: HashMap<LockName, Entry>,
    closed: bool,
    last_waiter: u64,
}

/// One name in use.
#[derive(Debug)]
struct Entry {
    stage: Stage,
    /// In the order of their ids.
    waiters: VecDeque<Waiter>,
    /// How many of them are tries, which are told at once that somebody else holds the lock.
    tries: usize,
    /// A driver runs for this name. There is one at most; it goes when the guard is out or nothing is left to do.
    driven: bool,
    /// Wakes the driver when a waiter has gone, or the manager closes.
    poke: Arc<Notify>,
    trouble: Option<Box<Trouble>>,
    /// When it was last known that somebody held the lock.
    heard: Timestamp,
}

/// What stands at the store for a name, as far as others than the driver need to know.
#[derive(Debug)]
enum Stage {
    /// Nothing known.
    Idle,
    /// The store has answered that somebody else is ahead, or our own grant is still being settled.
    Contended,
    /// A guard is out, or on its way to its waiter.
    Held(Arc<Hold>),
    /// A guard came back unused: for the next waiter.
    Returned(Arc<Hold>),
    /// A claim is to be given up.
    Leaving(Arc<Hold>, Option<ReleaseReply>),
}

/// Unbroken failure of the store for one name.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) since: Timestamp,
    pub(crate) error: BackendError,
    /// What became of an earlier request is not known.
    pub(crate) unresolved: bool,
}

pub(crate) type ReleaseReply = oneshot::Sender<Result<ReleaseOutcome, BackendError>>;

/// What a waiter is told: a guard, or that somebody else holds the lock, or why neither.
pub(crate) type Answer = Result<Option<Delivery>, AcquireError>;

#[derive(Debug)]
struct Waiter {
    id: u64,
    patience: Patience,
    since: Timestamp,
    reply: oneshot::Sender<Answer>,
}

/// A grant on its way to a waiter. Dropped on the way, it goes back to the queue and on to the next.
#[derive(Debug)]
pub(crate) struct Delivery {
    hold: Option<Arc<Hold>>,
    shared: Arc<Shared>,
}

impl Delivery {
    pub(crate) fn is_held(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.check(self.shared.now()).is_ok())
    }

    pub(crate) fn accept(mut self) -> Arc<Hold> {
        self.hold.take().expect("a delivery is accepted once")
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if let Some(hold) = self.hold.take() {
            self.shared.came_back(&hold);
        }
    }
}

/// A place in the local queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) answer: oneshot::Receiver<Answer>,
    pub(crate) since: Timestamp,
    name: LockName,
    id: u64,
    patience: Patience,
    shared: Arc<Shared>,
}

impl Place {
    /// Leaves the queue since the caller's time is over: the answer if it came in this very moment, else why there is
    /// none.
    pub(crate) fn out_of_time(&mut self) -> Answer {
        let waited = self.shared.now().since(self.since);
        let why = self.shared.leave(&self.name, self.id, |entry| self.why_not(entry, waited));
        self.answer.close();
        self.answer.try_recv().unwrap_or(Err(why))
    }
}

impl Place {
    /// Why a caller whose time is over got nothing.
    fn why_not(&self, entry: Option<&Entry>, waited: Duration) -> AcquireError {
        let name = self.name.clone();
        let Some(entry) = entry else { return AcquireError::NoRuntime { name } };
        if let Some(trouble) = &entry.trouble {
            return trouble.told(name, waited);
        }
        let taken = match &entry.stage {
            Stage::Contended | Stage::Held(_) | Stage::Returned(_) => true,
            // Between two answers: others held it if one that came meanwhile said so.
            Stage::Idle | Stage::Leaving(..) => entry.heard >= self.since,
        };
        // A try is told `None` by an answer of the store to a request that was made after it came, or nothing.
        if taken && self.patience == Patience::Queue {
            AcquireError::Timeout { name, waited }
        } else {
            let source = BackendError::unavailable("the store has not answered yet");
            AcquireError::Unavailable { name, waited, source }
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.leave(&self.name, self.id, |_| ());
        self.answer.close();
        // A delivery that arrived goes back to the queue when it is dropped here.
        drop(self.answer.try_recv());
    }
}

/// What a driver is to do next.
#[derive(Debug)]
pub(crate) enum Step {
    Stop,
    Claim,
    Deliver(Arc<Hold>),
    GiveUp(Arc<Hold>, Option<ReleaseReply>),
}

/// What the waiters of a name ask of the store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Demand {
    pub(crate) patience: Patience,
    /// The last waiter that was there when the request was made: an answer says nothing to those who came later.
    pub(crate) upto: u64,
}

impl Entry {
    fn new() -> Self {
        Self {
            stage: Stage::Idle,
            waiters: VecDeque::new(),
            tries: 0,
            driven: false,
            poke: Arc::new(Notify::new()),
            trouble: None,
            heard: Timestamp::from_nanos(0),
        }
    }

    fn push(&mut self, waiter: Waiter) {
        self.tries += usize::from(waiter.is_try());
        self.waiters.push_back(waiter);
    }

    fn pop(&mut self) -> Option<Waiter> {
        let waiter = self.waiters.pop_front()?;
        self.tries -= usize::from(waiter.is_try());
        Some(waiter)
    }

    fn remove(&mut self, id: u64) -> Option<Waiter> {
        let at = self.waiters.binary_search_by_key(&id, |waiter| waiter.id).ok()?;
        let waiter = self.waiters.remove(at)?;
        self.tries -= usize::from(waiter.is_try());
        Some(waiter)
    }

    fn take(&mut self, mut which: impl FnMut(&Waiter) -> bool) -> Vec<Waiter> {
        let (taken, kept): (VecDeque<_>, _) = self.waiters.drain(..).partition(|waiter| which(waiter));
        self.waiters = kept;
        self.tries = self.waiters.iter().filter(|waiter| waiter.is_try()).count();
        taken.into()
    }

    fn take_tries(&mut self, upto: u64) -> Vec<Waiter> {
        if self.tries == 0 { Vec::new() } else { self.take(|waiter| waiter.is_try() && waiter.id <= upto) }
    }

    fn has_queued(&self) -> bool {
        self.waiters.len() > self.tries
    }
}

impl Trouble {
    /// The error for somebody who has waited for so long.
    fn told(&self, name: LockName, waited: Duration) -> AcquireError {
        let source = self.error.clone();
        if self.unresolved {
            AcquireError::Unresolved { name, waited, source }
        } else {
            AcquireError::Unavailable { name, waited, source }
        }
    }
}

impl Waiter {
    fn is_try(&self) -> bool {
        self.patience == Patience::Try
    }
}

/// Sends answers outside the lock: a waker may run anything.
fn answer_all(waiters: Vec<Waiter>, answer: impl Fn(&Waiter) -> Answer) {
    for waiter in waiters {
        let answer = answer(&waiter);
        drop(waiter.reply.send(answer));
    }
}

/// For the users' side: handles, guards and waiting futures.
impl Shared {
    /// Joins the queue of a name; none if a try can be answered "somebody holds it" at once.
    pub(crate) fn join(
        self: &Arc<Self>,
        name: &LockName,
        patience: Patience,
    ) -> Result<Option<Place>, AcquireError> {
        // Its timers are needed here, and a runtime that the manager was first used in.
        if Handle::try_current().is_err() || self.runtime().is_none() {
            return Err(AcquireError::NoRuntime { name: name.clone() });
        }
        let now = self.now();
        let mut guard = locked(&self.queues.names);
        let names = &mut *guard;
        if names.closed {
            return Err(AcquireError::Closed { name: name.clone() });
        }
        let entry = names.entries.entry(name.clone()).or_insert_with(Entry::new);
        let taken = match &entry.stage {
            // With nobody waiting in earnest the answer belongs to the past.
            Stage::Contended => entry.has_queued(),
            Stage::Held(hold) => {
                if hold.check(now).is_ok() {
                    true
                } else {
                    // Nobody has noticed yet: the lock is free for those who wait here.
                    self.count_loss(hold);
                    entry.stage = Stage::Leaving(Arc::clone(hold), None);
                    false
                }
            }
            Stage::Idle | Stage::Returned(_) | Stage::Leaving(..) => false,
        };
        if taken && patience == Patience::Try {
            return Ok(None);
        }
        let (reply, answer) = oneshot::channel();
        names.last_waiter += 1;
        let id = names.last_waiter;
        entry.push(Waiter { id, patience, since: now, reply });
        let start = !entry.driven && !matches!(entry.stage, Stage::Held(_));
        entry.driven |= start;
        drop(guard);
        if start {
            self.run(driver::drive(Arc::clone(self), name.clone()));
        }
        Ok(Some(Place { answer, since: now, name: name.clone(), id, patience, shared: Arc::clone(self) }))
    }

    /// Takes a waiter out of the queue, and looks at the entry under the same lock: without the waiter its driver may
    /// remove it at any moment.
    fn leave<T>(&self, name: &LockName, id: u64, look: impl FnOnce(Option<&Entry>) -> T) -> T {
        let mut names = locked(&self.queues.names);
        let entry = names.entries.get_mut(name);
        let seen = look(entry.as_deref());
        let waiter = entry.and_then(|entry| {
            let waiter = entry.remove(id)?;
            entry.poke.notify_one();
            Some(waiter)
        });
        drop(names);
        drop(waiter);
        seen
    }

    /// Releases a guard: it dies here, and the store is told by the driver. False if it was lost before.
    ///
    /// The reply is sent when the store has confirmed; who waits for it has the request started on the spot. A drop only
    /// spawns: it may happen anywhere, in a runtime that shuts down and in a panic too.
    pub(crate) fn release(self: &Arc<Self>, hold: &Arc<Hold>, reply: Option<ReleaseReply>) -> bool {
        let inline = reply.is_some();
        let mut was_held = false;
        // Dead before it leaves the stage, under one lock: nobody can take the release for a loss.
        let start = self.leave_stage(hold, |hold| {
            was_held = hold.check(self.now()).is_ok() && hold.lose(LossReason::Closed);
            Stage::Leaving(hold, reply.filter(|_| was_held))
        });
        match (was_held, start) {
            (true, _) => count(&self.counters.released),
            // Nobody had noticed the loss yet.
            (false, Some(_)) => self.count_loss(hold),
            (false, None) => drop(hold.lose(LossReason::Closed)),
        }
        self.start(start, hold, inline);
        was_held
    }

    /// Takes a guard back that nobody accepted.
    fn came_back(self: &Arc<Self>, hold: &Arc<Hold>) {
        let start = self.leave_stage(hold, Stage::Returned);
        self.start(start, hold, false);
    }

    /// Notes that a hold is lost, and lets those behind it have their turn.
    pub(crate) fn lost(self: &Arc<Self>, hold: &Arc<Hold>) {
        let start = self.leave_stage(hold, |hold| Stage::Leaving(hold, None));
        if start.is_some() {
            self.count_loss(hold);
        }
        self.start(start, hold, false);
    }

    fn count_loss(&self, hold: &Hold) {
        if let Err(reason) = hold.check(self.now()) {
            self.counters.lost(reason);
            tracing::warn!(lock = %hold.claim.name, token = %hold.token, %reason, "lock lost");
        }
    }

    /// Starts a driver if [`leave_stage`](Self::leave_stage) says that one is needed.
    fn start(self: &Arc<Self>, start: Option<bool>, hold: &Hold, inline: bool) {
        if start == Some(true) {
            let task = driver::drive(Arc::clone(self), hold.claim.name.clone());
            if inline { self.run(task) } else { self.spawn(task) }
        }
    }

    /// Moves a name on from the stage in which `hold` is out, and tells whether a driver must be started. None if that
    /// guard is not the one that is out: it was lost and the name went on without it.
    fn leave_stage(&self, hold: &Arc<Hold>, next: impl FnOnce(Arc<Hold>) -> Stage) -> Option<bool> {
        let mut names = locked(&self.queues.names);
        let entry = names.entries.get_mut(&hold.claim.name)?;
        if !matches!(&entry.stage, Stage::Held(out) if out.claim.id == hold.claim.id) {
            return None;
        }
        entry.stage = next(Arc::clone(hold));
        Some(!std::mem::replace(&mut entry.driven, true))
    }

    /// Guards out and tasks waiting.
    pub(crate) fn population(&self) -> (u64, u64) {
        let names = locked(&self.queues.names);
        let now = self.now();
        names.entries.values().fold((0, 0), |(held, waiting), entry| {
            let out = matches!(&entry.stage, Stage::Held(hold) if hold.check(now).is_ok());
            (held + u64::from(out), waiting + entry.waiters.len() as u64)
        })
    }

    /// Turns every waiter away and kills every guard; later callers are turned away too. Needs no runtime.
    pub(crate) fn shut(&self) {
        let mut turned_away = Vec::new();
        let mut out = Vec::new();
        {
            let mut names = locked(&self.queues.names);
            names.closed = true;
            names.entries.retain(|name, entry| {
                turned_away.extend(entry.take(|_| true).into_iter().map(|waiter| (name.clone(), waiter)));
                entry.poke.notify_one();
                if let Stage::Held(hold) = &entry.stage {
                    out.push(Arc::clone(hold));
                    // A driver that is just delivering finds the entry gone and stops.
                    return false;
                }
                true
            });
        }
        for hold in &out {
            // Guards die locally before anything is sent; the session's last request names what was out.
            if hold.lose(LossReason::Closed) {
                self.counters.lost(LossReason::Closed);
            }
        }
        // The map has no order; a simulation needs one.
        turned_away.sort_by_key(|(_, waiter)| waiter.id);
        for (name, waiter) in turned_away {
            drop(waiter.reply.send(Err(AcquireError::Closed { name })));
        }
    }

    /// Waits until no driver runs any more, after [`shut`](Self::shut).
    pub(crate) async fn drained(&self) {
        loop {
            let mut drained = std::pin::pin!(self.queues.drained.notified());
            drained.as_mut().enable();
            if locked(&self.queues.names).entries.is_empty() {
                return;
            }
            drained.await;
        }
    }

    /// Why the store fails for a name, if it does.
    pub(crate) fn last_failure(&self, name: &LockName) -> Option<BackendError> {
        let names = locked(&self.queues.names);
        names.entries.get(name)?.trouble.as_ref().map(|trouble| trouble.error.clone())
    }

    pub(crate) fn is_closed(&self) -> bool {
        locked(&self.queues.names).closed
    }
}

/// For the driver of a name.
impl Shared {
    pub(crate) fn next_step(&self, name: &LockName) -> Step {
        let mut names = locked(&self.queues.names);
        let closed = names.closed;
        let Some(entry) = names.entries.get_mut(name) else { return Step::Stop };
        match std::mem::replace(&mut entry.stage, Stage::Idle) {
            Stage::Held(hold) => {
                entry.stage = Stage::Held(hold);
                entry.driven = false;
                Step::Stop
            }
            Stage::Returned(hold) => Step::Deliver(hold),
            Stage::Leaving(hold, reply) => Step::GiveUp(hold, reply),
            Stage::Idle | Stage::Contended if entry.waiters.is_empty() => {
                names.entries.remove(name);
                drop(names);
                if closed {
                    self.queues.drained.notify_waiters();
                }
                Step::Stop
            }
            stage @ (Stage::Idle | Stage::Contended) => {
                // Contended stays until the store says otherwise, so that a try need not wait for the next answer.
                entry.stage = stage;
                Step::Claim
            }
        }
    }

    /// What those who wait ask for; none if nobody does any more.
    pub(crate) fn demand(&self, name: &LockName) -> Option<Demand> {
        let names = locked(&self.queues.names);
        let entry = names.entries.get(name)?;
        let upto = entry.waiters.back()?.id;
        let patience = if entry.has_queued() { Patience::Queue } else { Patience::Try };
        Some(Demand { patience, upto })
    }

    /// True if somebody waits who would wait on: not only tries.
    pub(crate) fn has_queued(&self, name: &LockName) -> bool {
        locked(&self.queues.names).entries.get(name).is_some_and(Entry::has_queued)
    }

    /// What wakes the driver of a name.
    pub(crate) fn poke_of(&self, name: &LockName) -> Arc<Notify> {
        locked(&self.queues.names).entries.get(name).map(|entry| Arc::clone(&entry.poke)).unwrap_or_default()
    }

    /// Books an answer that somebody else is ahead: tries up to `upto` are told. True if a try that came later is left,
    /// to whom the answer says nothing.
    pub(crate) fn contended(&self, name: &LockName, upto: u64) -> bool {
        let now = self.now();
        let mut names = locked(&self.queues.names);
        let Some(entry) = names.entries.get_mut(name) else { return false };
        entry.trouble = None;
        entry.stage = Stage::Contended;
        entry.heard = now;
        let told = entry.take_tries(upto);
        let left = entry.tries > 0;
        drop(names);
        answer_all(told, |_| Ok(None));
        left
    }

    /// Books that the store answered.
    pub(crate) fn answered(&self, name: &LockName) {
        if let Some(entry) = locked(&self.queues.names).entries.get_mut(name) {
            entry.trouble = None;
        }
    }

    /// Books that it is known what became of a request. Whether the store is well the next answer tells.
    pub(crate) fn resolved(&self, name: &LockName) {
        let mut names = locked(&self.queues.names);
        if let Some(trouble) = names.entries.get_mut(name).and_then(|entry| entry.trouble.as_mut()) {
            trouble.unresolved = false;
        }
    }

    /// Books that the store failed, and turns away those whose time is over.
    pub(crate) fn failed(&self, name: &LockName, error: &BackendError, unresolved: bool) {
        let now = self.now();
        let mut names = locked(&self.queues.names);
        let Some(entry) = names.entries.get_mut(name) else { return };
        entry.stage = Stage::Idle;
        let since = entry.trouble.as_ref().map_or(now, |trouble| trouble.since);
        let trouble = Trouble { since, error: error.clone(), unresolved };
        entry.trouble = Some(Box::new(trouble.clone()));
        let given_up = entry.take(|waiter| {
            !waiter.is_try() && now.since(since.max(waiter.since)) >= self.options.give_up_after
        });
        drop(names);
        answer_all(given_up, |waiter| Err(trouble.told(name.clone(), now.since(waiter.since))));
    }

    /// Turns away all who wait now, since asking again would not help.
    pub(crate) fn refused(&self, name: &LockName, error: &BackendError) {
        self.turn_away(name, |_| true, |name, _| AcquireError::Refused { name, source: error.clone() });
    }

    /// Turns away the tries, since the store can grant only later; those who wait on do, and it is no failure.
    pub(crate) fn not_ready(&self, name: &LockName, error: &BackendError) {
        self.turn_away(name, Waiter::is_try, |name, waited| AcquireError::Unavailable {
            name,
            waited,
            source: error.clone(),
        });
        let since = self.now();
        if let Some(entry) = locked(&self.queues.names).entries.get_mut(name) {
            entry.trouble = Some(Box::new(Trouble { since, error: error.clone(), unresolved: false }));
        }
    }

    fn turn_away(
        &self,
        name: &LockName,
        which: impl FnMut(&Waiter) -> bool,
        error: impl Fn(LockName, Duration) -> AcquireError,
    ) {
        let now = self.now();
        let mut names = locked(&self.queues.names);
        let Some(entry) = names.entries.get_mut(name) else { return };
        entry.stage = Stage::Idle;
        let away = entry.take(which);
        drop(names);
        answer_all(away, |waiter| Err(error(name.clone(), now.since(waiter.since))));
    }

    /// Hands a grant to the first who waits. Gives it back if nobody does.
    pub(crate) fn deliver(self: &Arc<Self>, hold: Arc<Hold>) -> Result<(), Arc<Hold>> {
        let name = &hold.claim.name;
        let mut delivery = Delivery { hold: Some(Arc::clone(&hold)), shared: Arc::clone(self) };
        loop {
            let mut names = locked(&self.queues.names);
            // Under the lock under which losses are booked: a loss is either seen here, or finds the guard out.
            let now = self.now();
            let entry = names.entries.get_mut(name).filter(|_| hold.check(now).is_ok());
            let Some((entry, first)) = entry.and_then(|entry| entry.pop().map(|first| (entry, first))) else {
                delivery.hold = None;
                return Err(hold);
            };
            entry.stage = Stage::Held(Arc::clone(&hold));
            entry.heard = now;
            drop(names);
            if let Err(Ok(Some(bounced))) = first.reply.send(Ok(Some(delivery))) {
                delivery = bounced;
            } else {
                self.tell_tries(name);
                return Ok(());
            }
            // The waiter went away; take the hold back before anybody else is asked. A close in between has it.
            let mut names = locked(&self.queues.names);
            match names.entries.get_mut(name) {
                Some(entry) if matches!(&entry.stage, Stage::Held(out) if out.claim.id == hold.claim.id) => {
                    entry.stage = Stage::Idle;
                }
                _ => {
                    delivery.hold = None;
                    return Ok(());
                }
            }
        }
    }

    /// Tells tries that were queued behind a grant that it is taken, unless it is free again by now.
    fn tell_tries(&self, name: &LockName) {
        let mut names = locked(&self.queues.names);
        let Some(entry) = names.entries.get_mut(name) else { return };
        if matches!(entry.stage, Stage::Held(_)) {
            let tries = entry.take_tries(u64::MAX);
            drop(names);
            answer_all(tries, |_| Ok(None));
        }
    }

    /// Cleans up after a driver that did not end by itself: its runtime is gone, or a backend panicked.
    pub(crate) fn driver_died(self: &Arc<Self>, name: &LockName, panicked: bool) {
        let now = self.now();
        let mut names = locked(&self.queues.names);
        let entry = names.entries.remove(name);
        drop(names);
        if panicked {
            // What became of the request nobody can tell, so the session ends, and with it whatever it left.
            self.end_current_session();
        }
        answer_all(entry.map(|mut entry| entry.take(|_| true)).unwrap_or_default(), |waiter| {
            let (name, waited) = (name.clone(), now.since(waiter.since));
            if panicked {
                let source =
                    BackendError::unavailable("the backend panicked, which is a bug: please report it");
                Err(AcquireError::Unavailable { name, waited, source })
            } else {
                Err(AcquireError::NoRuntime { name })
            }
        });
        self.queues.drained.notify_waiters();
    }
}
