//! Lock names and their injective encoding.

use std::fmt;
use std::sync::Arc;

use crate::error::NameError;

/// The longest name in bytes.
pub const MAX_NAME_BYTES: usize = 512;

/// A validated lock name: 1 to 512 bytes of UTF-8 without control characters.
///
/// Every legal name works on every backend, and no two names share a lock. Cloning is cheap.
///
/// # Examples
///
/// ```
/// use dlock_core::LockName;
///
/// let name = LockName::new("orders/42")?;
/// assert_eq!(name.as_str(), "orders/42");
/// assert_eq!(name.encoded(), "orders%2F42");
/// assert!(LockName::new("").is_err());
/// assert!(LockName::new("tab\there").is_err());
/// # Ok::<(), dlock_core::NameError>(())
/// ```
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LockName(Arc<str>);

impl LockName {
    /// Validates a name.
    ///
    /// # Errors
    ///
    /// [`NameError`] says which rule the name breaks: empty, too long, or a control character and where it is.
    pub fn new(name: impl AsRef<str>) -> Result<Self, NameError> {
        let name = name.as_ref();
        if name.is_empty() {
            return Err(NameError::Empty);
        }
        if name.len() > MAX_NAME_BYTES {
            return Err(NameError::TooLong { bytes: name.len() });
        }
        if let Some((at, character)) = name.char_indices().find(|(_, c)| c.is_control()) {
            return Err(NameError::ControlCharacter { at, character });
        }
        Ok(Self(Arc::from(name)))
    }

    /// The name as it was given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in the alphabet `A-Za-z0-9_.-` and `%`, for stores whose keys are paths.
    ///
    /// A name of `A-Za-z0-9_.-` that does not start with a dot encodes to itself; every other byte becomes `%XX` in
    /// upper-case hexadecimal. Decoding is unique, so no two names alias. The longest result is three times the
    /// longest name: 1,536 bytes.
    ///
    /// The encoding is part of the public layout and never changes:
    ///
    /// ```
    /// # use dlock_core::LockName;
    /// # fn enc(s: &str) -> String { LockName::new(s).unwrap().encoded() }
    /// assert_eq!(enc("nightly-report_2.0"), "nightly-report_2.0");
    /// assert_eq!(enc("a/b"), "a%2Fb");
    /// assert_eq!(enc(".."), "%2E.");
    /// assert_eq!(enc("%2F"), "%252F");
    /// assert_eq!(enc("{x} y"), "%7Bx%7D%20y");
    /// assert_eq!(enc("é"), "%C3%A9");
    /// ```
    pub fn encoded(&self) -> String {
        const HEX: &[u8; 16] = b"0123456789ABCDEF";
        let mut out = String::with_capacity(self.0.len());
        for (at, byte) in self.0.bytes().enumerate() {
            let plain =
                byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') || (byte == b'.' && at > 0);
            if plain {
                out.push(char::from(byte));
            } else {
                out.push('%');
                out.push(char::from(HEX[usize::from(byte >> 4)]));
                out.push(char::from(HEX[usize::from(byte & 15)]));
            }
        }
        out
    }

    /// A stable 64-bit hash of the name (FNV-1a with a final mix), for stores that pick one of a fixed number of
    /// counters or need a numeric key.
    ///
    /// It is part of the public layout and never changes:
    ///
    /// ```
    /// # use dlock_core::LockName;
    /// assert_eq!(LockName::new("orders/42")?.stable_hash(), 0x16fa_3f7c_d228_8fef);
    /// assert_eq!(LockName::new("a")?.stable_hash(), 0x82a2_a958_a9be_ce5b);
    /// # Ok::<(), dlock_core::NameError>(())
    /// ```
    pub fn stable_hash(&self) -> u64 {
        let fnv = self.0.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // The finalizer of MurmurHash3 (fmix64): FNV-1a alone leaves the low bits of short names poorly mixed.
        let mut mixed = fnv;
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        mixed ^ (mixed >> 33)
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Quoted, as errors show it.
impl fmt::Debug for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl AsRef<str> for LockName {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for LockName {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        Self::new(name)
    }
}
