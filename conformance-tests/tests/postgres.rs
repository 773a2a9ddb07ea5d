//! The suite over the PostgreSQL backend, on two versions of the server.

use conformance_tests::fixtures::{POSTGRES_15, POSTGRES_17, PostgresFixture};
use conformance_tests::{Time, conformance_suite, process_suite};

conformance_suite!(postgres_17, Time::Real, PostgresFixture::new(&POSTGRES_17).await);
conformance_suite!(postgres_15, Time::Real, PostgresFixture::new(&POSTGRES_15).await);
process_suite!(
    postgres_17_processes,
    PostgresFixture::new(&POSTGRES_17).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
process_suite!(
    postgres_15_processes,
    PostgresFixture::new(&POSTGRES_15).await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
