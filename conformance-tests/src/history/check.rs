//! The search for a broken promise.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::time::Duration;

use super::{AttemptId, Event, Moment, Seen};

/// What a sound history was made of; a test asserts that it is not empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Locks asked for.
    pub attempts: usize,
    /// Locks got.
    pub acquisitions: usize,
    /// Guards that were lost.
    pub losses: usize,
    /// Writes that the fenced resource took.
    pub writes_taken: usize,
    /// Writes that it refused.
    pub writes_refused: usize,
}

/// Every broken promise of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violations(pub Vec<Violation>);

/// One broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// P1: two guards of one name certainly held at the same time.
    Overlap {
        /// The earlier holder, until when it certainly held.
        earlier: Hold,
        /// The later holder, which got the lock before that.
        later: Hold,
    },
    /// P2: a token is not greater than that of an acquisition that was over before this one was asked for.
    TokenNotGreater {
        /// The earlier holder.
        earlier: Hold,
        /// The later holder.
        later: Hold,
    },
    /// P2: two acquisitions of one name have the same token.
    TokenRepeated {
        /// One of them.
        one: Hold,
        /// The other.
        other: Hold,
    },
    /// P3: a guard that was told to be lost said later that it holds.
    Revived {
        /// The guard.
        hold: Hold,
        /// When it was first told to be lost.
        lost: Moment,
    },
    /// P4: a crashed holder was not replaced in time.
    LateTakeover {
        /// The crashed holder.
        crashed: Hold,
        /// How long somebody waited for its lock.
        waited: Duration,
        /// How long that may take.
        bound: Duration,
    },
    /// Fencing: the resource took a write of a smaller token after one of a greater.
    WritesOutOfOrder {
        /// The write that was taken before.
        earlier: Hold,
        /// The write that was taken after, with the smaller token.
        later: Hold,
    },
    /// Fencing: the resource refused a write that began and ended while the writer certainly held.
    CertainWriteRefused {
        /// The writer.
        hold: Hold,
    },
    /// The record itself makes no sense: a guard without an acquisition, say.
    Nonsense {
        /// Which attempt.
        attempt: AttemptId,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// An acquisition, as far as messages need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Who.
    pub who: String,
    /// Which lock.
    pub name: String,
    /// The token.
    pub token: u64,
    /// When it was asked for.
    pub asked: Moment,
    /// When it was got.
    pub acquired: Moment,
    /// Until when it certainly held.
    pub certain_until: Moment,
}

/// All that was seen of one attempt.
struct Attempt {
    hold: Hold,
    got: bool,
    gave_up: Option<Moment>,
    /// The first moment at which it was told to be lost.
    lost: Option<Moment>,
    /// The last call of an `is_held()` that answered true.
    last_held: Option<Moment>,
    release_called: Option<Moment>,
    found_by_release: bool,
    crashed: Option<Moment>,
    writes: Vec<(Moment, Moment, Option<u64>)>,
}

pub(super) fn check(events: &[Event], takeover: Option<Duration>) -> Result<Summary, Violations> {
    let mut found = Vec::new();
    let attempts = gather(events, &mut found);
    let mut summary = Summary { attempts: attempts.len(), ..Summary::default() };
    let mut by_name: BTreeMap<&str, Vec<&Attempt>> = BTreeMap::new();
    for attempt in &attempts {
        summary.acquisitions += usize::from(attempt.got);
        summary.losses += usize::from(attempt.got && attempt.lost.is_some());
        by_name.entry(&attempt.hold.name).or_default().push(attempt);
    }
    for attempts in by_name.values() {
        let mut held: Vec<&Attempt> = attempts.iter().copied().filter(|attempt| attempt.got).collect();
        held.sort_by_key(|attempt| attempt.hold.acquired);
        overlaps(&held, &mut found);
        tokens(&held, &mut found);
        revivals(&held, &mut found);
        writes(&held, &mut found, &mut summary);
        if let Some(bound) = takeover {
            takeovers(attempts, &held, bound, &mut found);
        }
    }
    if found.is_empty() { Ok(summary) } else { Err(Violations(found)) }
}

/// Puts together what was seen of each attempt, whatever the order in which it was recorded.
fn gather(events: &[Event], found: &mut Vec<Violation>) -> Vec<Attempt> {
    let mut index: HashMap<AttemptId, usize> = HashMap::new();
    let mut attempts: Vec<Attempt> = Vec::new();
    for event in events {
        if let Seen::Asked { who, name } = &event.what {
            index.insert(event.attempt, attempts.len());
            attempts.push(Attempt {
                hold: Hold {
                    who: who.clone(),
                    name: name.clone(),
                    token: 0,
                    asked: event.at,
                    acquired: event.at,
                    certain_until: event.at,
                },
                got: false,
                gave_up: None,
                lost: None,
                last_held: None,
                release_called: None,
                found_by_release: false,
                crashed: None,
                writes: Vec::new(),
            });
        }
    }
    for event in events {
        let Some(attempt) = index.get(&event.attempt).and_then(|at| attempts.get_mut(*at)) else {
            found.push(Violation::Nonsense { attempt: event.attempt, what: "it was never asked for" });
            continue;
        };
        attempt.see(event);
    }
    for (id, at) in index {
        if let Some(attempt) = attempts.get_mut(at) {
            attempt.conclude(id, found);
        }
    }
    attempts
}

impl Attempt {
    fn see(&mut self, event: &Event) {
        let at = event.at;
        match &event.what {
            Seen::Asked { .. } | Seen::ReleaseUnknown => {}
            Seen::Acquired { token } => {
                self.got = true;
                self.hold.token = *token;
                self.hold.acquired = at;
            }
            Seen::GaveUp => self.gave_up = Some(at),
            Seen::Held(true) => self.last_held = self.last_held.max(Some(at)),
            Seen::Held(false) | Seen::Lost | Seen::AlreadyLost => {
                self.lost = Some(self.lost.map_or(at, |lost| lost.min(at)));
            }
            Seen::ReleaseCalled => self.release_called = Some(at),
            Seen::Released => self.found_by_release = true,
            Seen::Crashed => self.crashed = Some(at),
            Seen::Wrote { called, taken_as } => self.writes.push((*called, at, *taken_as)),
        }
    }

    fn conclude(&mut self, id: AttemptId, found: &mut Vec<Violation>) {
        let mut until = self.hold.acquired.max(self.last_held.unwrap_or(self.hold.acquired));
        if let (true, Some(called)) = (self.found_by_release, self.release_called) {
            until = until.max(called);
        }
        self.hold.certain_until = until;
        if !self.got && (self.last_held.is_some() || self.release_called.is_some() || !self.writes.is_empty())
        {
            found.push(Violation::Nonsense { attempt: id, what: "it was used but never acquired" });
        }
        if self.got && self.gave_up.is_some() {
            found.push(Violation::Nonsense { attempt: id, what: "it was both acquired and given up" });
        }
    }
}

/// P1. `held` is sorted by the moment of acquisition, so one look back at the longest hold so far is enough.
fn overlaps(held: &[&Attempt], found: &mut Vec<Violation>) {
    let mut longest: Option<&Attempt> = None;
    for attempt in held {
        if let Some(earlier) = longest {
            if attempt.hold.acquired.before(earlier.hold.certain_until) {
                found.push(Violation::Overlap { earlier: earlier.hold.clone(), later: attempt.hold.clone() });
            }
            if attempt.hold.certain_until < earlier.hold.certain_until {
                continue;
            }
        }
        longest = Some(attempt);
    }
}

/// P2. Goes through the acquisitions in the order in which they were asked for, keeping the greatest token of those
/// that had returned by then.
fn tokens(held: &[&Attempt], found: &mut Vec<Violation>) {
    let mut asked: Vec<&Attempt> = held.to_vec();
    asked.sort_by_key(|attempt| attempt.hold.asked);
    let mut returned = held.iter().copied().peekable();
    let mut greatest: Option<&Attempt> = None;
    for attempt in asked {
        while let Some(earlier) = returned.next_if(|earlier| earlier.hold.acquired.before(attempt.hold.asked))
        {
            if greatest.is_none_or(|greatest| greatest.hold.token < earlier.hold.token) {
                greatest = Some(earlier);
            }
        }
        if let Some(earlier) = greatest.filter(|earlier| earlier.hold.token > attempt.hold.token) {
            found.push(Violation::TokenNotGreater {
                earlier: earlier.hold.clone(),
                later: attempt.hold.clone(),
            });
        }
    }
    let mut sorted: Vec<&Attempt> = held.to_vec();
    sorted.sort_by_key(|attempt| (attempt.hold.token, attempt.hold.acquired));
    for pair in sorted.windows(2) {
        if pair[0].hold.token == pair[1].hold.token {
            found.push(Violation::TokenRepeated { one: pair[0].hold.clone(), other: pair[1].hold.clone() });
        }
    }
}

/// P3.
fn revivals(held: &[&Attempt], found: &mut Vec<Violation>) {
    for attempt in held {
        if let (Some(lost), Some(held)) = (attempt.lost, attempt.last_held)
            && lost.before(held)
        {
            found.push(Violation::Revived { hold: attempt.hold.clone(), lost });
        }
    }
}

/// Fencing.
fn writes(held: &[&Attempt], found: &mut Vec<Violation>, summary: &mut Summary) {
    let mut taken: Vec<(u64, &Attempt)> = Vec::new();
    for attempt in held {
        for (called, returned, taken_as) in &attempt.writes {
            let certain =
                !called.before(attempt.hold.acquired) && !attempt.hold.certain_until.before(*returned);
            match taken_as {
                Some(number) => taken.push((*number, attempt)),
                None if certain => {
                    found.push(Violation::CertainWriteRefused { hold: attempt.hold.clone() });
                }
                None => summary.writes_refused += 1,
            }
        }
    }
    summary.writes_taken += taken.len();
    taken.sort_by_key(|(number, _)| *number);
    for pair in taken.windows(2) {
        if pair[1].1.hold.token < pair[0].1.hold.token {
            found.push(Violation::WritesOutOfOrder {
                earlier: pair[0].1.hold.clone(),
                later: pair[1].1.hold.clone(),
            });
        }
    }
}

/// P4. The first acquisition after a crash comes within `bound` of the crash, or of its own asking if that was later;
/// where there is none, nobody waited for longer than that.
fn takeovers(attempts: &[&Attempt], held: &[&Attempt], bound: Duration, found: &mut Vec<Violation>) {
    for (at, crashed) in held.iter().enumerate() {
        let Some(crash) = crashed.crashed else { continue };
        let next = held.partition_point(|attempt| !crash.before(attempt.hold.acquired));
        if next != at + 1 {
            // It had been replaced before it crashed.
            continue;
        }
        let waited = match held.get(next) {
            Some(next) => next.hold.acquired.since(crash.max(next.hold.asked)),
            None => attempts
                .iter()
                .filter_map(|attempt| Some(attempt.gave_up?.since(crash.max(attempt.hold.asked))))
                .max()
                .unwrap_or_default(),
        };
        if waited > bound {
            found.push(Violation::LateTakeover { crashed: crashed.hold.clone(), waited, bound });
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { who, name, token, asked, acquired, certain_until } = self;
        let (asked, acquired, until) = (Shown(*asked), Shown(*acquired), Shown(*certain_until));
        write!(f, "{who} ({name:?}, token {token}, asked {asked}, got {acquired}, certain until {until})")
    }
}

/// A moment in seconds.
struct Shown(Moment);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}", Duration::from_nanos(self.0.nanos), self.0.sequence)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { earlier, later } => {
                write!(f, "P1 broken: {later} got the lock while {earlier} certainly held it")
            }
            Self::TokenNotGreater { earlier, later } => {
                write!(f, "P2 broken: the token of {later} is not greater than that of {earlier}")
            }
            Self::TokenRepeated { one, other } => {
                write!(f, "P2 broken: {one} and {other} have the same token")
            }
            Self::Revived { hold, lost } => {
                write!(f, "P3 broken: {hold} was told to be lost at {}, and held again after", Shown(*lost))
            }
            Self::LateTakeover { crashed, waited, bound } => write!(
                f,
                "P4 broken: {crashed} crashed and somebody waited {waited:?} for its lock, more than {bound:?}"
            ),
            Self::WritesOutOfOrder { earlier, later } => {
                write!(f, "fencing broken: a write of {later} was taken after one of {earlier}")
            }
            Self::CertainWriteRefused { hold } => {
                write!(f, "fencing broken: a write of {hold} was refused while it certainly held")
            }
            Self::Nonsense { attempt, what } => write!(f, "the record of {attempt:?} makes no sense: {what}"),
        }
    }
}

impl fmt::Display for Violations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 10;
        for violation in self.0.iter().take(SHOWN) {
            writeln!(f, "{violation}")?;
        }
        if self.0.len() > SHOWN {
            writeln!(f, "... and {} more", self.0.len() - SHOWN)?;
        }
        Ok(())
    }
}

impl std::error::Error for Violations {}

#[cfg(test)]
mod tests;
