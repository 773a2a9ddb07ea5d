//! The suite over the etcd backend, with one member and with three.

use conformance_tests::fixtures::EtcdFixture;
use conformance_tests::{Time, conformance_suite, process_suite};

conformance_suite!(etcd, Time::Real, EtcdFixture::one().await);
process_suite!(etcd_processes, EtcdFixture::one().await.with_worker(env!("CARGO_BIN_EXE_lock-worker")));

conformance_suite!(etcd_cluster, Time::Real, EtcdFixture::three().await);
process_suite!(
    etcd_cluster_processes,
    EtcdFixture::three().await.with_worker(env!("CARGO_BIN_EXE_lock-worker"))
);
