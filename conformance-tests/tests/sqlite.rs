//! The suite over the SQLite backend.

use conformance_tests::fixtures::SqliteFixture;
use conformance_tests::{Time, conformance_suite, process_suite};

conformance_suite!(sqlite, Time::Real, SqliteFixture::new());
process_suite!(sqlite_processes, SqliteFixture::new().with_worker(env!("CARGO_BIN_EXE_lock-worker")));
