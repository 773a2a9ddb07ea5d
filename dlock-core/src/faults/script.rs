//! What happens to which request.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;

use crate::error::ErrorKind;

/// A kind of request to a store, named after the method of [`Backend`](crate::Backend) or
/// [`Session`](crate::Session).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Op {
    /// Opens a session.
    Open,
    /// Asks for a lock.
    Claim,
    /// Waits for a change.
    Wait,
    /// Renews leases.
    Renew,
    /// Tells that a settle was served.
    Settled,
    /// Asks what became of a claim.
    Resolve,
    /// Gives a claim up.
    Release,
    /// Looks who holds.
    Observe,
    /// Ends a session.
    Close,
}

impl Op {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Open,
        Self::Claim,
        Self::Wait,
        Self::Renew,
        Self::Settled,
        Self::Resolve,
        Self::Release,
        Self::Observe,
        Self::Close,
    ];
}

/// What happens to one request.
///
/// A request that has been sent arrives, whether or not its caller still waits: dropping a future does not call back
/// what is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is carried to the store and answered.
    None,
    /// It arrives so much later, and is answered.
    Delay(Duration),
    /// It arrives at once, and the answer comes so much later.
    DelayReply(Duration),
    /// It never arrives; the answer is this error, at once. With [`ErrorKind::Unknown`] the caller cannot know that.
    Fail(ErrorKind),
    /// It is executed after this time (zero: before the answer); the answer is [`ErrorKind::Unknown`], at once.
    Unknown(Duration),
    /// It is executed, and never answered.
    DropReply,
    /// It is executed after this time, and never answered.
    ExecuteLate(Duration),
    /// It never arrives, and is never answered.
    BlackHole,
}

/// Says what happens on the way to a store; made by [`inject`](super::inject). Clones say it of the same way.
///
/// For each request the first of these decides that has something to say: [`black_hole`](Self::black_hole) and
/// [`fail_all`](Self::fail_all); what was ordered for the next requests of its kind, in the order in which it was
/// ordered; the hook [`on`](Self::on) its kind; the hook [`on_each`](Self::on_each); a standing
/// [`delay`](Self::delay).
#[derive(Clone)]
pub struct Faults(Arc<Controls>);

struct Controls {
    script: Mutex<Script>,
    /// Told when `frozen`, `every` or `endings` change.
    changed: Arc<Notify>,
    /// Requests that were stopped by a freeze and have not arrived yet; later ones go behind them.
    stopped: AtomicU64,
}

#[derive(Default)]
struct Script {
    total: u64,
    counts: [u64; Op::ALL.len()],
    every: Option<Fault>,
    next: [VecDeque<(u64, Fault)>; Op::ALL.len()],
    hooks: [Option<Hook>; Op::ALL.len()],
    hook: Option<Arc<dyn Fn(Op, u64) -> Fault + Send + Sync>>,
    standing: [Option<Fault>; Op::ALL.len()],
    frozen: bool,
    endings: u64,
}

type Hook = Arc<dyn Fn(u64) -> Fault + Send + Sync>;

impl Faults {
    pub(super) fn new() -> Self {
        Self(Arc::new(Controls {
            script: Mutex::default(),
            changed: Arc::default(),
            stopped: AtomicU64::new(0),
        }))
    }

    /// From now on each request of this kind arrives so much later; zero ends it.
    pub fn delay(&self, op: Op, by: Duration) {
        self.script().standing[op as usize] = (!by.is_zero()).then_some(Fault::Delay(by));
    }

    /// From now on each answer to a request of this kind comes so much later; zero ends it.
    pub fn delay_reply(&self, op: Op, by: Duration) {
        self.script().standing[op as usize] = (!by.is_zero()).then_some(Fault::DelayReply(by));
    }

    /// The next `n` requests of this kind never arrive and get this error.
    pub fn fail_next(&self, op: Op, n: u64, kind: ErrorKind) {
        self.next_of(op, n, Fault::Fail(kind));
    }

    /// The next `n` requests of this kind are executed and never answered, so core's time-out makes them unknown.
    pub fn drop_reply_next(&self, op: Op, n: u64) {
        self.next_of(op, n, Fault::DropReply);
    }

    /// The next `n` requests of this kind are executed, and the answer is [`ErrorKind::Unknown`].
    pub fn unknown_next(&self, op: Op, n: u64) {
        self.next_of(op, n, Fault::Unknown(Duration::ZERO));
    }

    /// The next `n` requests of this kind are never answered, and executed `after` that time, whoever still waits.
    pub fn execute_late(&self, op: Op, n: u64, after: Duration) {
        self.next_of(op, n, Fault::ExecuteLate(after));
    }

    /// This happens to the next `n` requests of this kind.
    pub fn next_of(&self, op: Op, n: u64, fault: Fault) {
        if n > 0 {
            self.script().next[op as usize].push_back((n, fault));
        }
    }

    /// Asks `hook` about each request of this kind, with its number: the first is 1. In place of an earlier hook.
    ///
    /// A seeded generator in the hook gives random schedules that replay.
    pub fn on(&self, op: Op, hook: impl Fn(u64) -> Fault + Send + Sync + 'static) {
        self.script().hooks[op as usize] = Some(Arc::new(hook));
    }

    /// Asks `hook` about each request, with its number among all requests: the first is 1. In place of an earlier hook.
    pub fn on_each(&self, hook: impl Fn(Op, u64) -> Fault + Send + Sync + 'static) {
        self.script().hook = Some(Arc::new(hook));
    }

    /// Every request fails with this error and does not arrive; nothing is told either: the store is down.
    pub fn fail_all(&self, kind: ErrorKind) {
        self.change(|script| script.every = Some(Fault::Fail(kind)));
    }

    /// No request arrives, none is answered, nothing is told: the network is cut.
    pub fn black_hole(&self) {
        self.change(|script| script.every = Some(Fault::BlackHole));
    }

    /// The store stops: it answers nothing and tells nothing. What is sent to it meanwhile is executed at
    /// [`thaw`](Self::thaw), in the order in which it was sent, whoever still waits for the answers.
    pub fn freeze(&self) {
        self.change(|script| script.frozen = true);
    }

    /// The store goes on.
    pub fn thaw(&self) {
        self.change(|script| script.frozen = false);
    }

    /// Ends every fault that was asked for, standing, ordered, hooked or frozen. Requests that are on their way still
    /// arrive.
    pub fn heal(&self) {
        self.change(|script| {
            let Script { total, counts, endings, .. } = *script;
            *script = Script { total, counts, endings, ..Script::default() };
        });
    }

    /// Tells every open session that the store has ended it.
    pub fn end_session(&self) {
        self.change(|script| script.endings += 1);
    }

    /// How many requests of this kind were sent so far, whatever became of them.
    pub fn count(&self, op: Op) -> u64 {
        self.script().counts[op as usize]
    }

    /// Counts a request, and decides what happens to it.
    pub(super) fn next(&self, op: Op) -> Fault {
        let (hooks, standing, nth, total) = {
            let script = &mut *self.script();
            script.total += 1;
            script.counts[op as usize] += 1;
            if let Some(every) = script.every {
                return every;
            }
            let next = &mut script.next[op as usize];
            if let Some((left, fault)) = next.front_mut() {
                let fault = *fault;
                *left -= 1;
                if *left == 0 {
                    next.pop_front();
                }
                return fault;
            }
            let hooks = (script.hooks[op as usize].clone(), script.hook.clone());
            (hooks, script.standing[op as usize], script.counts[op as usize], script.total)
        };
        // A hook may use these controls, so it is called without the lock.
        let by_hook = hooks.0.map(|hook| hook(nth)).filter(|fault| *fault != Fault::None);
        let by_hook = by_hook.or_else(|| hooks.1.map(|hook| hook(op, total)));
        by_hook.filter(|fault| *fault != Fault::None).or(standing).unwrap_or(Fault::None)
    }

    pub(super) fn is_frozen(&self) -> bool {
        self.script().frozen
    }

    /// Nothing comes back from the store.
    pub(super) fn is_cut_off(&self) -> bool {
        let script = self.script();
        script.frozen || script.every.is_some()
    }

    /// A request cannot go straight to the store: it is frozen, or others are to arrive before.
    pub(super) fn is_congested(&self) -> bool {
        self.is_frozen() || self.0.stopped.load(Ordering::SeqCst) > 0
    }

    pub(super) fn endings(&self) -> u64 {
        self.script().endings
    }

    /// Completes with the next change after this call.
    pub(super) fn changed(&self) -> OwnedNotified {
        Arc::clone(&self.0.changed).notified_owned()
    }

    pub(super) fn queue_up(&self) -> Ticket {
        self.0.stopped.fetch_add(1, Ordering::SeqCst);
        Ticket(self.clone())
    }

    fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.script());
        self.0.changed.notify_waiters();
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let script = self.script();
        f.debug_struct("Faults")
            .field("every", &script.every)
            .field("frozen", &script.frozen)
            .field("requests", &script.total)
            .finish_non_exhaustive()
    }
}

/// A request that has been sent and has not arrived.
pub(super) struct Ticket(Faults);

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.0.stopped.fetch_sub(1, Ordering::SeqCst);
    }
}
