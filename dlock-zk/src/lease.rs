//! From when on a session is certain to live for its time-out.
//!
//! A session lives at the leader, which counts its time-out from when it was last *touched*. Another server notes which
//! sessions it has heard of, and tells the leader in its answers to the leader's pings, two in each tick. So that a server
//! answers a request proves little: one that is cut off from its leader goes on answering reads and pings for many ticks,
//! while the leader, or its successor, lets the session run out. A write that is passed on touches nothing either.
//!
//! What proves it is a chain on two streams that keep their order. Be *j* a request that was answered at least one tick
//! before a write was sent on the same connection. The leader has sent a ping in that tick, and after it the outcome of the
//! write. When the server answers the write, it has answered that ping, and told of *j*; and when it answers the `sync` sent
//! after that, the leader has heard it, since the question came behind it. That the leader was the one whom a majority
//! follows, the write shows. So the session lives for its time-out, counted from a moment after *j* was sent.

use std::collections::VecDeque;
use std::time::Duration;

use dlock_core::Timestamp;

/// How it is decided from when on a session's time-out counts. All but the default are wrong, each in its own way; tests
/// show that they are.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LeaseRule {
    /// From the newest request that was answered a tick before an answered write was sent, followed by an answered `sync`.
    #[default]
    Proved,
    /// From the answered write itself.
    FromWrite,
    /// From an answered read.
    PingOrRead,
    /// As `Proved`, from the newest request that was *sent* a tick before.
    BySendTime,
    /// As `Proved`, and a session that moved to another connection is certain at once.
    SelfCertified,
    /// As `Proved`, but for the `sync`.
    WithoutSync,
}

/// The least TTL for servers of this tick. Renewals come every third of it, and each is good for a TTL less a tick and a
/// half: what is left bears that a renewal is late.
pub(crate) fn least_ttl(tick: Duration) -> Duration {
    tick.saturating_mul(7) / 2
}

/// How long a connection is silent before it sends a ping: renewals count from the newest request of a tick before.
pub(crate) fn ping_interval(tick: Duration) -> Duration {
    tick / 2
}

/// How long an answer may be overdue before the session moves to another server: half of what a beat leaves of the TTL when
/// a ping behind it is the first request that is not answered, so that as much is left to move and to send another beat.
pub(crate) fn patience(ttl: Duration, tick: Duration) -> Duration {
    ttl.saturating_sub(tick * 2) / 2
}

/// The requests of one connection that were answered, as far as they matter for renewals.
#[derive(Debug)]
pub(crate) struct History {
    tick: Duration,
    rule: LeaseRule,
    answered: VecDeque<Exchange>,
}

#[derive(Clone, Copy, Debug)]
struct Exchange {
    /// Read before it was sent.
    sent: Timestamp,
    /// Read after the answer came.
    answered: Timestamp,
}

impl History {
    /// The history of a new connection.
    pub(crate) fn new(tick: Duration, rule: LeaseRule) -> Self {
        Self { tick, rule, answered: VecDeque::new() }
    }

    /// Notes that a request was answered. One that was sent soon after the last one noted is left out, which is on the
    /// safe side.
    pub(crate) fn answered(&mut self, sent: Timestamp, answered: Timestamp) {
        if self.answered.back().is_some_and(|last| sent < last.sent.plus(self.tick / 16)) {
            return;
        }
        self.answered.push_back(Exchange { sent, answered });
        // Writes to come are later than now: where the second counts for them, the first does not matter.
        while self.answered.get(1).is_some_and(|second| second.answered.plus(self.tick) <= answered) {
            self.answered.pop_front();
        }
    }

    /// From when on the session's time-out counts if a write that is sent now, at `write`, and a `sync` behind its answer are
    /// answered, on a connection opened at `opened`. That opening counts too, since the leader itself touched the session for
    /// it. `waiting` is when the requests were sent that are not answered yet.
    ///
    /// To be asked when the write is sent: what is noted later pushes out what counts for it.
    pub(crate) fn proved(
        &self,
        opened: Timestamp,
        write: Timestamp,
        waiting: impl Iterator<Item = Timestamp>,
    ) -> Timestamp {
        if matches!(self.rule, LeaseRule::FromWrite | LeaseRule::PingOrRead) {
            return write;
        }
        let early = |moment: Timestamp| moment.plus(self.tick) <= write;
        let newest = if self.rule == LeaseRule::BySendTime {
            let sent = self.answered.iter().map(|exchange| exchange.sent).chain(waiting);
            sent.filter(|sent| early(*sent)).max()
        } else {
            let answered = self.answered.iter().rev();
            answered.clone().find(|exchange| early(exchange.answered)).map(|exchange| exchange.sent)
        };
        newest.map_or(opened, |sent| sent.max(opened))
    }
}

#[cfg(test)]
mod tests {
    use std::iter::{empty, once};

    use super::*;

    const TICK: Duration = Duration::from_millis(160);

    fn at(millis: u64) -> Timestamp {
        Timestamp::from_nanos(1_000_000_000 + millis * 1_000_000)
    }

    fn history(rule: LeaseRule) -> History {
        let mut history = History::new(TICK, rule);
        history.answered(at(100), at(110));
        history.answered(at(200), at(390));
        history.answered(at(300), at(395));
        history
    }

    #[test]
    fn what_counts_was_answered_a_tick_before() {
        let history = history(LeaseRule::Proved);
        assert_eq!(
            history.proved(at(0), at(269), empty()),
            at(0),
            "nothing was answered early enough: the opening"
        );
        assert_eq!(history.proved(at(0), at(270), empty()), at(100));
        assert_eq!(history.proved(at(0), at(549), empty()), at(100));
        assert_eq!(history.proved(at(0), at(550), empty()), at(200));
        assert_eq!(history.proved(at(0), at(900), empty()), at(300));
    }

    #[test]
    fn the_other_rules_count_from_later() {
        assert_eq!(history(LeaseRule::FromWrite).proved(at(0), at(400), empty()), at(400));
        assert_eq!(history(LeaseRule::BySendTime).proved(at(0), at(400), empty()), at(200));
        assert_eq!(history(LeaseRule::BySendTime).proved(at(0), at(400), once(at(230))), at(230));
        assert_eq!(history(LeaseRule::Proved).proved(at(0), at(400), once(at(230))), at(100));
    }

    #[test]
    fn a_history_stays_small_however_late_answers_are() {
        for late in [1, 100, 1_000] {
            let mut history = History::new(TICK, LeaseRule::Proved);
            for millis in 0..10_000 {
                history.answered(at(millis), at(millis + late));
            }
            assert!(history.answered.len() <= 18, "{}", history.answered.len());
            // Sent behind the last answer, as every write to come.
            let write = 10_000 + late;
            let proved = history.proved(at(0), at(write), empty());
            assert!(proved <= at(10_000 - 160) && proved > at(10_000 - 160 - 12), "{late}: {proved:?}");
        }
    }
}
