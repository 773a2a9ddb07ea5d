//! The suite over the memory backend, as each kind of store.

use conformance_tests::fixtures::MemoryFixture;
use conformance_tests::{Time, conformance_suite};
use dlock_core::memory::{Expiry, LeaseScope, Waiting};

conformance_suite!(
    like_etcd,
    Time::Simulated,
    MemoryFixture::new(LeaseScope::Session, Waiting::Fifo, Expiry::Proven)
);
conformance_suite!(
    like_redis,
    Time::Simulated,
    MemoryFixture::new(LeaseScope::Claim, Waiting::Poll, Expiry::Proven)
);
conformance_suite!(
    like_postgres,
    Time::Simulated,
    MemoryFixture::new(LeaseScope::Session, Waiting::Poll, Expiry::Settled)
);
conformance_suite!(
    like_dynamodb,
    Time::Simulated,
    MemoryFixture::new(LeaseScope::Claim, Waiting::Poll, Expiry::Observed)
);
conformance_suite!(real_time, Time::Real, MemoryFixture::real());
