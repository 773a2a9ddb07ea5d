//! What a world consists of and what may happen in it.

use crate::event::Event;
use crate::server::Time;
use crate::variant::Variant;

/// Clients at most.
pub(crate) const CLIENTS: usize = 3;
/// Nodes at most.
pub(crate) const NODES: usize = 5;

/// What the scripts are told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    /// W.
    pub(crate) wait: Time,
    /// D.
    pub(crate) bucket: Time,
    /// e.
    pub(crate) skew: Time,
    /// For how long an old master may go on serving.
    pub(crate) lag: Time,
    /// The lease of each client.
    pub(crate) leases: [Time; CLIENTS],
    /// What W must exceed a lease by.
    pub(crate) reserve: Time,
    /// Nothing is renewed in quarantine.
    pub(crate) careful: bool,
}

impl Figures {
    /// W as small as it may be.
    pub(crate) const fn tight(bucket: Time, skew: Time, lag: Time, leases: [Time; CLIENTS]) -> Self {
        let figures = Self { wait: 0, bucket, skew, lag, leases, reserve: 0, careful: false };
        let reserve = figures.start_delay() + lag;
        Self { wait: figures.longest() + reserve, reserve, ..figures }
    }

    pub(crate) const fn careful(self) -> Self {
        Self { careful: true, ..self }
    }

    /// How long a node waits that is known to be new.
    pub(crate) const fn start_delay(&self) -> Time {
        3 * self.bucket + 2 * self.skew
    }

    pub(crate) const fn longest(&self) -> Time {
        let mut longest = 0;
        let mut client = 0;
        while client < CLIENTS {
            if self.leases[client] > longest {
                longest = self.leases[client];
            }
            client += 1;
        }
        longest
    }
}

/// What the last client says differently from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Odd {
    Nothing,
    Wait(Time),
    Bucket(Time),
    Stripes,
}

/// What is promised, and so checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Promise {
    /// P1 and P2.
    Both,
    /// P1.
    Exclusion,
    /// P2, and no clock of a client is trusted: it may think its lease valid for ever.
    Tokens,
}

/// What the clocks of clients show, and so what they propose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proposals {
    Anything,
    /// Clocks that stand long ago: one more than was seen, or nothing. Counters then decide, and are often alike.
    Counters,
}

/// What the clocks of servers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clocks {
    /// They differ by the skew at most, and are not stepped; those of a node's replicas are the node's.
    Steady,
    /// The same, but replicas have clocks of their own.
    SteadyEach,
    /// As before, and in quarantine they are stepped by D at most.
    SteppedInQuarantine,
    /// They differ by the skew at most, and are stepped forward within it.
    SteppedForward,
    /// They show anything at any time.
    Wild,
}

/// What a world begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prologue {
    None,
    HeldAtTwo,
    AgreeingLate,
    RenewedAtTwo,
}

/// A world, and how likely what is in it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    pub(crate) nodes: usize,
    pub(crate) clients: usize,
    pub(crate) names: usize,
    /// Every node has a replica.
    pub(crate) replicas: bool,
    pub(crate) figures: Figures,
    pub(crate) odd: Odd,
    pub(crate) promise: Promise,
    pub(crate) clocks: Clocks,
    pub(crate) proposals: Proposals,
    pub(crate) prologue: Prologue,
    /// How many steps until the next world.
    pub(crate) steps: u32,
    /// Events, and how often each is tried.
    pub(crate) events: &'static [&'static [(Event, u32)]],
}

impl Scenario {
    pub(crate) fn quorum(&self, variant: Variant) -> usize {
        match variant {
            Variant::QuorumOfOne => 1,
            _ => self.nodes / 2 + 1,
        }
    }

    /// By how much the slowest clock is ahead of real time.
    pub(crate) fn base(&self) -> Time {
        if self.clocks == Clocks::SteppedInQuarantine { self.figures.bucket } else { 0 }
    }

    fn is_odd(&self, client: usize) -> bool {
        client + 1 == self.clients && self.odd != Odd::Nothing
    }

    /// What a client tells the scripts.
    pub(crate) fn figures(&self, client: usize) -> Figures {
        let mut figures = self.figures;
        if self.is_odd(client) {
            match self.odd {
                Odd::Wait(wait) => figures.wait = wait,
                Odd::Bucket(bucket) => figures.bucket = bucket,
                Odd::Nothing | Odd::Stripes => {}
            }
        }
        figures
    }

    /// Which of the counters a client takes for every name.
    pub(crate) fn counter(&self, client: usize) -> usize {
        usize::from(self.is_odd(client) && self.odd == Odd::Stripes)
    }

    /// What a client says that all must agree on.
    pub(crate) fn par(&self, client: usize, variant: Variant) -> u8 {
        let told = match self.odd {
            Odd::Nothing => false,
            Odd::Wait(_) => variant != Variant::MarkWithoutWait,
            Odd::Bucket(_) => variant != Variant::MarkWithoutBucket,
            Odd::Stripes => variant != Variant::MarkWithoutStripes,
        };
        1 + u8::from(told && self.is_odd(client))
    }

    /// The lease that a client asks to be renewed for.
    pub(crate) fn renewed_lease(&self, client: usize, variant: Variant) -> Time {
        let lease = self.figures.leases[client];
        if variant == Variant::RenewBeyondLease { lease * 4 } else { lease }
    }

    /// Whether a client that is late notices.
    pub(crate) fn clients_have_clocks(&self) -> bool {
        self.promise != Promise::Tokens
    }
}
