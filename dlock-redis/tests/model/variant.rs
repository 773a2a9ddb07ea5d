//! The algorithm, and the ways in which it could have been written wrong.

/// What is different from what dlock-redis does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nothing.
    Sound,

    // The mark.
    /// No mark, no quarantine.
    NoMitigation,
    /// The caller's figures are compared with those of the mark only after a mark of another life was rewritten.
    ComparedTooLate,
    /// `par` says nothing of W.
    MarkWithoutWait,
    /// `par` says nothing of D.
    MarkWithoutBucket,
    /// `par` says nothing of the number of counters.
    MarkWithoutStripes,
    /// A life is known by `run_id` only.
    RunIdAlone,
    /// A new `master_replid` is no new life if `run_id` and `master_replid2` are the same, whatever was fed meanwhile.
    NotFed,
    /// No mark, and up for longer than W: taken for a node that was never used.
    UptimeForFirstUse,
    /// A node in quarantine takes part in the agreement on a token.
    CommitInQuarantine,
    /// A node in quarantine renews, although it has taken over from a master that may still serve.
    RenewInQuarantine,

    // GRANT.
    /// The counter as it is, not one more.
    NoIncrement,
    /// A contender that is denied raises the counter all the same. Not unsound.
    BumpOnDenial,

    // COMMIT.
    /// No COMMIT: the greatest of the counters that a majority returned is the token.
    MaximumOfCounters,
    /// The lock may be anybody's, or nobody's.
    CommitWithoutNonce,
    /// The lock may be anybody's.
    CommitWithAnyKey,
    /// The nonce is compared, the counter is not. Not unsound while nothing is delivered twice and each name has a counter of
    /// its own.
    CommitByNonceOnly,
    /// GRANT returns the counter and leaves it; the greatest of a majority is committed wherever the counter is no greater.
    PureBallot,
    /// The same with one more than the greatest, committed wherever the counter is smaller. Not unsound.
    PureBallotAndOne,

    // The client.
    /// One node fewer than a majority is enough if they agree.
    QuorumLessOne,
    /// One node is enough.
    QuorumOfOne,
    /// The token is what the client proposed.
    OwnProposal,
    /// A renewal asks for more than was granted.
    RenewBeyondLease,
    /// A renewal makes the key anew where it is gone.
    RenewSetsAgain,

    // Instead of waiting W: what a wiped node has lost is read from others once all leases of its past are over.
    /// From a majority of nodes that have lost nothing. Not unsound as to tokens.
    RepairFromMajority,
    /// From one node fewer.
    RepairFromFewer,
    /// From a majority, whether or not these have lost their own.
    RepairFromUnmarked,
}

impl Variant {
    /// A node that has lost its data waits for a repair, not for W.
    pub(crate) fn repairs(self) -> bool {
        matches!(self, Self::RepairFromMajority | Self::RepairFromFewer | Self::RepairFromUnmarked)
    }

    pub(crate) fn is_ballot(self) -> bool {
        matches!(self, Self::PureBallot | Self::PureBallotAndOne)
    }
}
