//! A server: its data, its ids, its clock, and the scripts that run there.
//!
//! The scripts follow `src/*.lua` line by line. What differs is the grain: time is in ticks, and a token counts `GRAIN` to
//! the tick, as microseconds do in a second.

use crate::scenario::Figures;
use crate::variant::Variant;

/// Real time, or a server's clock, in ticks.
pub(crate) type Time = u32;
/// A fencing token.
pub(crate) type Token = u32;

/// Tokens in a tick. More than are drawn in a walk, as a server draws fewer than a million in a second.
pub(crate) const GRAIN: Token = 256;
/// Lock names, which share the counters.
pub(crate) const NAMES: usize = 2;

/// The lock's key; nobody's if the nonce is zero.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Key {
    pub(crate) nonce: u16,
    /// By the clock of the server that set it; a replica gets it as it is.
    pub(crate) expires: Time,
}

/// What a node remembers of its life.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Mark {
    pub(crate) par: u8,
    pub(crate) rid: u16,
    pub(crate) run: u16,
    pub(crate) promo: u16,
    pub(crate) fed: u16,
    pub(crate) till: Time,
}

/// What can be lost, or come back as it was.
#[derive(Clone, Copy, Debug, Default, Hash)]
pub(crate) struct Data {
    pub(crate) locks: [Key; NAMES],
    /// One, and another for clients with another number of counters.
    pub(crate) counters: [Token; 2],
    pub(crate) mark: Option<Mark>,
}

/// What a server is at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Role {
    Master,
    Replica,
    /// Was replaced, and goes on serving those who still reach it until this time.
    Old(Time),
}

/// A server, as `INFO` shows it.
#[derive(Clone, Copy, Debug, Hash)]
pub(crate) struct Server {
    pub(crate) data: Data,
    /// What a restart may find on the disk.
    pub(crate) saved: Data,
    pub(crate) role: Role,
    /// `run_id`.
    pub(crate) run: u16,
    /// `master_replid`.
    pub(crate) replid: u16,
    /// `master_replid2`; zero: none.
    pub(crate) replid2: u16,
    /// `total_net_repl_input_bytes`, counted by the piece.
    pub(crate) fed: u16,
    /// By how much the clock is ahead of real time.
    pub(crate) ahead: Time,
    /// The same at first.
    pub(crate) ahead_at_first: Time,
    /// When the process started.
    pub(crate) started: Time,
    /// Waits for a repair (variants only).
    pub(crate) blank: bool,
}

/// What a claim asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) nonce: u16,
    pub(crate) name: usize,
    /// Which of the counters.
    pub(crate) counter: usize,
    pub(crate) lease: Time,
    pub(crate) par: u8,
}

/// The answer to GRANT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Granted {
    Yes(Token),
    /// Held by somebody else; the counter.
    Denied(Token),
    /// In quarantine, used with other figures, or asked for too long a lease.
    Refused,
}

impl Server {
    pub(crate) fn new(ids: u16, ahead: Time) -> Self {
        Self {
            data: Data::default(),
            saved: Data::default(),
            role: Role::Master,
            run: ids,
            replid: ids,
            replid2: 0,
            fed: 0,
            ahead,
            ahead_at_first: ahead,
            started: 0,
            blank: false,
        }
    }

    pub(crate) fn clock(&self, now: Time) -> Time {
        now + self.ahead
    }

    pub(crate) fn serves(&self, now: Time) -> bool {
        match self.role {
            Role::Master => true,
            Role::Replica => false,
            Role::Old(until) => now < until,
        }
    }

    /// Whether the mark is of this life.
    fn knows(&self, mark: &Mark, variant: Variant) -> bool {
        if variant == Variant::RunIdAlone { mark.run == self.run } else { mark.rid == self.replid }
    }

    /// Whether the id changed only because an idle backlog was given up.
    fn is_the_same_after_all(&self, mark: &Mark, variant: Variant) -> bool {
        variant != Variant::RunIdAlone
            && mark.run == self.run
            && mark.promo == self.replid2
            && (variant == Variant::NotFed || mark.fed == self.fed)
    }

    /// Whether the quarantine of this life has begun and is over.
    pub(crate) fn is_ready(&self, now: Time, variant: Variant) -> bool {
        variant == Variant::NoMitigation
            || self
                .data
                .mark
                .is_some_and(|mark| self.knows(&mark, variant) && self.clock(now) >= mark.till && !self.blank)
    }

    /// A mark of this life.
    pub(crate) fn mark(&self, par: u8, till: Time) -> Mark {
        Mark { par, rid: self.replid, run: self.run, promo: self.replid2, fed: self.fed, till }
    }

    /// The key, unless it has expired.
    fn held(&self, name: usize, now: Time) -> u16 {
        let key = self.data.locks[name];
        if self.clock(now) < key.expires { key.nonce } else { 0 }
    }

    /// `grant.lua`.
    pub(crate) fn grant(
        &mut self,
        now: Time,
        claim: &Claim,
        proposal: Token,
        figures: &Figures,
        variant: Variant,
    ) -> Granted {
        let clock = self.clock(now);
        if figures.wait > 0 && claim.lease + figures.reserve > figures.wait {
            return Granted::Refused;
        }
        if variant != Variant::NoMitigation && !self.check_mark(clock, claim.par, figures, variant) {
            return Granted::Refused;
        }
        let counter = self.data.counters[claim.counter];
        if self.held(claim.name, now) != 0 {
            if variant == Variant::BumpOnDenial {
                self.data.counters[claim.counter] = counter + 1;
            }
            return Granted::Denied(counter);
        }
        let key = Key { nonce: claim.nonce, expires: clock + claim.lease };
        if variant.is_ballot() {
            self.data.locks[claim.name] = key;
            return Granted::Yes(counter);
        }
        let proposal = if proposal > (clock + figures.bucket) * GRAIN { 0 } else { proposal };
        // A node that is repaired needs no floor.
        let floor =
            if variant.repairs() { 0 } else { (clock - clock % figures.bucket - figures.bucket) * GRAIN };
        let next = if variant == Variant::NoIncrement { counter } else { counter + 1 };
        let token = next.max(proposal).max(floor);
        self.data.counters[claim.counter] = token;
        self.data.locks[claim.name] = key;
        Granted::Yes(token)
    }

    /// The part of GRANT before it looks at the lock. Whether to go on.
    fn check_mark(&mut self, clock: Time, par: u8, figures: &Figures, variant: Variant) -> bool {
        let mut mark = match self.data.mark {
            Some(mark) if mark.par != par && variant != Variant::ComparedTooLate => return false,
            Some(mark) if self.knows(&mark, variant) => mark,
            Some(mark) if self.is_the_same_after_all(&mark, variant) => Mark { rid: self.replid, ..mark },
            None if variant == Variant::UptimeForFirstUse && clock >= self.started + figures.wait => {
                self.mark(par, clock)
            }
            _ if variant.repairs() => {
                self.blank = true;
                self.mark(par, clock + figures.longest() + 2 * figures.skew)
            }
            _ => self.mark(par, clock + figures.wait),
        };
        if mark.par != par {
            return false;
        }
        // The clock was stepped back.
        mark.till = mark.till.min(clock + figures.wait);
        self.data.mark = Some(mark);
        clock >= mark.till && !self.blank
    }

    /// `commit.lua`.
    pub(crate) fn commit(&mut self, now: Time, claim: &Claim, token: Token, variant: Variant) -> bool {
        let held = self.held(claim.name, now);
        let own = match variant {
            Variant::CommitWithoutNonce => true,
            Variant::CommitWithAnyKey => held != 0,
            _ => held == claim.nonce,
        };
        if !own || (variant != Variant::CommitInQuarantine && !self.is_ready(now, variant)) {
            return false;
        }
        let counter = self.data.counters[claim.counter];
        let agrees = match variant {
            Variant::CommitByNonceOnly => true,
            Variant::PureBallotAndOne => counter < token,
            _ => counter <= token,
        };
        if agrees {
            self.data.counters[claim.counter] = token;
        }
        agrees
    }

    /// `renew.lua`.
    pub(crate) fn renew(&mut self, now: Time, claim: &Claim, figures: &Figures, variant: Variant) -> bool {
        let careful = figures.careful && variant != Variant::RenewInQuarantine;
        if careful && !self.is_ready(now, variant) {
            return false;
        }
        let held = self.held(claim.name, now);
        let again = variant == Variant::RenewSetsAgain && held == 0;
        if held == claim.nonce || again {
            self.data.locks[claim.name] = Key { nonce: claim.nonce, expires: self.clock(now) + claim.lease };
        }
        held == claim.nonce || again
    }

    /// `release.lua`.
    pub(crate) fn release(&mut self, claim: &Claim) {
        if self.data.locks[claim.name].nonce == claim.nonce {
            self.data.locks[claim.name] = Key::default();
        }
    }
}
