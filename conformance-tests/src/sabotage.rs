//! Backends that break one promise each: the tests of the tests.
//!
//! Each sabotage is a mistake that somebody made, or nearly made, in a real backend. A [`SabotagedFixture`] puts it
//! around the memory backend; the case that is named for it must then fail, and must pass without it.

use dlock_core::memory::{Expiry, LeaseScope, Waiting};

use crate::fixtures::MemoryFixture;

mod backend;
mod fixture;
mod redlock;
mod session;

pub use fixture::SabotagedFixture;

/// A mistake in a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Sabotage {
    /// None: the decorator alone, which must pass.
    None,
    /// A lease counts from the moment its answer arrived.
    LateStopwatch,
    /// A release removes whatever claim holds the lock.
    ReleaseWithoutNonce,
    /// A release says that it found the claim, whatever it found.
    ReleaseAlwaysDone,
    /// A release leaves something else behind.
    ReleaseLeavesResidue,
    /// A release leaves a record of the name, such as a counter.
    RecordPerName,
    /// A claim's token is that of the moment it was asked for, not of the moment it was granted.
    TokenOfTheAsking,
    /// A token is each client's own proposal.
    TokenOfTheClient,
    /// Tokens start again with each session.
    TokenOfTheSession,
    /// A claim's token is looked up when the answer has arrived: by then it may be that of a successor.
    TokenReadLater,
    /// What became of an unknown claim is always said to be: nothing.
    ResolveLies,
    /// A claim that was not answered in time is said to have failed for certain.
    TimeOutIsDefinite,
    /// The answer to a renewal is taken for that to whichever is waited for.
    LateRenewalBooked,
    /// A renewal says that it extended what is not there any more.
    BlindRenewal,
    /// Who gives up while settling drops the rest of the debt.
    DebtDropped,
    /// A grant says that nothing is owed.
    DebtIgnored,
    /// A try that finds the lock held stays in the queue.
    TryStaysInQueue,
    /// What happened between an answer and the wait that follows is missed.
    MissedWakeUp,
    /// Now and then a held lock is granted.
    ExclusionBroken,
    /// A new session of an owner is the earlier one.
    SessionContinues,
    /// The end of a session does nothing.
    CloseDoesNothing,
    /// Names that differ in case only are one lock.
    NamesAlias,
    /// Three nodes, of which a majority grants; the token is the greatest of their counters.
    MaximumOfCounters,
}

impl Sabotage {
    /// All of them, but for none.
    pub const ALL: [Self; 22] = [
        Self::LateStopwatch,
        Self::ReleaseWithoutNonce,
        Self::ReleaseAlwaysDone,
        Self::ReleaseLeavesResidue,
        Self::RecordPerName,
        Self::TokenOfTheAsking,
        Self::TokenOfTheClient,
        Self::TokenOfTheSession,
        Self::TokenReadLater,
        Self::ResolveLies,
        Self::TimeOutIsDefinite,
        Self::LateRenewalBooked,
        Self::BlindRenewal,
        Self::DebtDropped,
        Self::DebtIgnored,
        Self::TryStaysInQueue,
        Self::MissedWakeUp,
        Self::ExclusionBroken,
        Self::SessionContinues,
        Self::CloseDoesNothing,
        Self::NamesAlias,
        Self::MaximumOfCounters,
    ];

    /// The cases that are named for it: each must fail.
    pub const fn cases(self) -> &'static [&'static str] {
        match self {
            Self::None => &[],
            Self::LateStopwatch => &["loss_by_expiry_is_told_before_takeover"],
            Self::ReleaseWithoutNonce => &["release_spares_the_successor", "release_executed_late"],
            Self::ReleaseAlwaysDone => &["release_says_what_happened"],
            Self::ReleaseLeavesResidue => &["drop_releases", "tokens_rise"],
            Self::RecordPerName => &["used_names_leave_nothing"],
            Self::TokenOfTheAsking => &["tokens_of_waiters_rise"],
            Self::TokenOfTheClient => &["tokens_rise", "exclusion_between_managers"],
            Self::TokenOfTheSession => &["tokens_survive_reopening"],
            Self::TokenReadLater => &["tokens_of_slow_grants_are_their_own"],
            Self::ResolveLies => &["lost_reply_of_a_claim", "cancel_at_every_moment"],
            Self::TimeOutIsDefinite => &["claim_executed_late"],
            Self::LateRenewalBooked => &["late_renewal_is_not_booked_to_a_later_one"],
            Self::BlindRenewal => &["removal_by_hand_is_told"],
            Self::DebtDropped => {
                &["cancelled_settle_leaves_the_rest", "close_while_settling_leaves_the_rest"]
            }
            Self::DebtIgnored => &["crashed_holder_is_settled", "short_waiters_settle_together"],
            Self::TryStaysInQueue => &["busy_try_leaves_nothing"],
            Self::MissedWakeUp => &["no_wake_up_is_lost"],
            Self::ExclusionBroken => &["exclusion_between_managers", "try_tells_free_from_held"],
            Self::SessionContinues => &["two_managers_one_owner"],
            Self::CloseDoesNothing => &["close_leaves_nothing"],
            Self::NamesAlias => &["names_do_not_alias"],
            Self::MaximumOfCounters => &["tokens_rise"],
        }
    }

    /// The kind of store in which the mistake shows.
    fn store(self) -> MemoryFixture {
        match self {
            Self::DebtDropped | Self::DebtIgnored | Self::TokenReadLater => {
                MemoryFixture::new(LeaseScope::Session, Waiting::Poll, Expiry::Settled)
            }
            Self::ExclusionBroken | Self::BlindRenewal | Self::MaximumOfCounters => {
                MemoryFixture::new(LeaseScope::Claim, Waiting::Poll, Expiry::Proven)
            }
            _ => MemoryFixture::new(LeaseScope::Session, Waiting::Fifo, Expiry::Proven),
        }
    }

    /// Whether the mistake is on the client's side of the network, so that faults happen to what it sends; else it is
    /// part of what a request does at the store.
    const fn is_of_the_client(self) -> bool {
        !matches!(
            self,
            Self::ReleaseWithoutNonce
                | Self::ReleaseAlwaysDone
                | Self::ReleaseLeavesResidue
                | Self::NamesAlias
        )
    }
}
