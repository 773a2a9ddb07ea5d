//! The suite over the ZooKeeper backend, with one server and with an ensemble of three.

use conformance_tests::fixtures::ZkFixture;
use conformance_tests::{Time, conformance_suite, process_suite};

conformance_suite!(zk, Time::Real, ZkFixture::one().await);
process_suite!(zk_processes, ZkFixture::one().await.with_worker(env!("CARGO_BIN_EXE_lock-worker")));

conformance_suite!(zk_ensemble, Time::Real, ZkFixture::three().await);
process_suite!(
    zk_ensemble_processes,
    ZkFixture::three().await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
