//! What can happen in one step, and how likely it is.

use crate::random::Random;

/// One kind of step; whom it befalls is drawn in the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A tick passes.
    Tick,
    /// Time passes until something that depends on it is due, or nearly.
    Jump,
    /// A client that has nothing begins to claim.
    Claim,
    /// A message arrives: at a node, which answers, or at a client.
    Deliver,
    /// The same, and it will arrive once more.
    Repeat,
    /// A message is lost.
    Lose,
    /// The link between a client and a node is cut, or mended: what is under way there waits.
    Cut,
    /// A client that waits for more grants waits no longer.
    Agree,
    /// A client drops its claim, with releases or without.
    GiveUp,
    /// A client asks for its lease to be renewed.
    Renew,
    /// A client releases its lock.
    Release,

    /// A node restarts with nothing.
    Wipe,
    /// A node restarts with what it saved.
    Restore,
    /// A node restarts with all it had.
    Restart,
    /// A node saves what it has.
    Save,
    /// A node is flushed.
    Flush,
    /// The replica of a node gets all that it misses.
    Replicate,
    /// The replica of a node takes over.
    Promote,
    /// What was replaced at a node becomes the replica.
    Follow,
    /// A master without replicas gives up its backlog, and its ids with it.
    Backlog,
    /// A server's clock is stepped.
    Step,
    /// A node that has lost its data is repaired (variants only).
    Repair,
}

/// What goes on without any failure.
pub(crate) const WORK: &[(Event, u32)] = &[
    (Event::Deliver, 700),
    (Event::Tick, 40),
    (Event::Jump, 24),
    (Event::Claim, 64),
    (Event::Agree, 40),
    (Event::GiveUp, 16),
    (Event::Renew, 24),
    (Event::Release, 16),
];
/// What a network does.
pub(crate) const NETWORK: &[(Event, u32)] = &[(Event::Lose, 24), (Event::Cut, 12)];
/// What a client does that sends again what was not answered.
pub(crate) const TWICE: &[(Event, u32)] = &[(Event::Repeat, 32)];
/// What befalls a server's data.
pub(crate) const LOSSES: &[(Event, u32)] =
    &[(Event::Wipe, 2), (Event::Restore, 2), (Event::Restart, 1), (Event::Save, 4), (Event::Flush, 1)];
/// The same where its mark is never lost.
pub(crate) const RESTORES: &[(Event, u32)] = &[(Event::Restore, 4), (Event::Restart, 1), (Event::Save, 4)];
/// What befalls a master and its replica.
pub(crate) const FAILOVERS: &[(Event, u32)] =
    &[(Event::Replicate, 16), (Event::Promote, 4), (Event::Follow, 12), (Event::Backlog, 3)];
/// What befalls clocks.
pub(crate) const STEPS: &[(Event, u32)] = &[(Event::Step, 12)];
/// What the variants do that repair nodes.
pub(crate) const REPAIRS: &[(Event, u32)] = &[(Event::Repair, 16), (Event::Wipe, 4)];

const SLOTS: usize = 1024;
/// Events in the numbers in which they are to come.
#[derive(Debug)]
pub(crate) struct Lots([Event; SLOTS]);

impl Lots {
    pub(crate) fn new(events: &[&[(Event, u32)]]) -> Self {
        let all = || events.iter().copied().flatten().copied();
        let total: u32 = all().map(|(_, weight)| weight).sum();
        let index = |sum: u32| usize::try_from(sum).expect("usize is no smaller than u32");
        let mut slots = [Event::Deliver; SLOTS];
        let (mut at, mut sum) = (0, 0);
        for (event, weight) in all() {
            sum += weight;
            let end = index(sum) * SLOTS / index(total);
            slots[at..end].fill(event);
            at = end;
        }
        Self(slots)
    }

    pub(crate) fn draw(&self, random: &mut Random) -> Event {
        self.0[random.index(SLOTS)]
    }
}
