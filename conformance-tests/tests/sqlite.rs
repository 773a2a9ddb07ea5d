//! The suite over the SQLite backend.

use conformance_tests::fixtures::SqliteFixture;
use conformance_tests::{Time, conformance_suite};

conformance_suite!(sqlite, Time::Real, SqliteFixture::new());
