//! A resource that refuses stale tokens.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::FlockOperation;

/// A number that only writes with a token not smaller than the greatest one seen may change.
///
/// In memory for the tasks of one process, or in a file for several. The file is guarded by `flock`, which no lock
/// under test has a part in.
#[derive(Clone, Debug)]
pub struct Register(Place);

#[derive(Clone, Debug)]
enum Place {
    Memory(Arc<Mutex<Content>>),
    File(PathBuf),
}

/// What a register holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The greatest token seen.
    pub token: u64,
    /// The value last written.
    pub value: u64,
    /// How many writes were taken.
    pub writes: u64,
}

impl Register {
    /// A register in memory.
    pub fn in_memory() -> Self {
        Self(Place::Memory(Arc::default()))
    }

    /// A register in a file, which is made at the first use.
    pub fn in_file(path: impl Into<PathBuf>) -> Self {
        Self(Place::File(path.into()))
    }

    /// What it holds now.
    ///
    /// # Panics
    ///
    /// If its file cannot be read.
    pub fn read(&self) -> Content {
        self.change(|_| None)
    }

    /// Writes `value` unless a greater token than `token` was seen. The number of the write if it was taken.
    ///
    /// # Panics
    ///
    /// If its file cannot be written.
    pub fn write(&self, token: u64, value: u64) -> Option<u64> {
        let mut taken_as = None;
        self.change(|content| {
            if token < content.token {
                return None;
            }
            taken_as = Some(content.writes);
            Some(Content { token, value, writes: content.writes + 1 })
        });
        taken_as
    }

    fn change(&self, with: impl FnOnce(Content) -> Option<Content>) -> Content {
        match &self.0 {
            Place::Memory(content) => {
                let mut content = content.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(new) = with(*content) {
                    *content = new;
                }
                *content
            }
            Place::File(path) => change_file(path, with)
                .unwrap_or_else(|error| panic!("cannot use the register {}: {error}", path.display())),
        }
    }
}

fn change_file(path: &PathBuf, with: impl FnOnce(Content) -> Option<Content>) -> io::Result<Content> {
    use std::io::{Read, Seek, Write};
    let mut file =
        std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let content = Content::parse(&text);
    let Some(new) = with(content) else { return Ok(content) };
    let text = format!("{} {} {}\n", new.token, new.value, new.writes);
    // A longer line never becomes a shorter one: no number of it ever shrinks but the value, so cut what is left.
    file.rewind()?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)?;
    Ok(new)
}

impl Content {
    fn parse(text: &str) -> Self {
        let mut numbers = text.split_ascii_whitespace().map(|number| number.parse().unwrap_or(0));
        let mut next = || numbers.next().unwrap_or(0);
        Self { token: next(), value: next(), writes: next() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_a_stale_token() {
        let folder = tempfile::tempdir().unwrap();
        for register in [Register::in_memory(), Register::in_file(folder.path().join("register"))] {
            assert_eq!(register.write(5, 1000), Some(0));
            assert_eq!(register.write(5, 7), Some(1));
            assert_eq!(register.write(4, 9), None);
            assert_eq!(register.write(6, 8), Some(2));
            assert_eq!(register.read(), Content { token: 6, value: 8, writes: 3 });
        }
    }
}
