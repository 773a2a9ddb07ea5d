//! The fixtures of the backends of this repository.

mod memory;
mod sqlite;

pub use memory::MemoryFixture;
pub use sqlite::SqliteFixture;
