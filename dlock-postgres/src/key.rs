//! The 64-bit keys of locks.

use dlock_core::LockName;

/// How many counters there are for all tokens.
pub(crate) const STRIPES: i64 = 1024;

/// The schema whose name is no part of the keys.
pub(crate) const DEFAULT_SCHEMA: &str = "dlock";

/// Turns names into keys of advisory locks, which are one space for a whole database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Keyspace {
    pub(crate) schema: String,
    pub(crate) prefix: String,
}

impl Keyspace {
    /// The key of a lock: the hash of prefix and name, as [`LockName::stable_hash`] makes it, read as a signed number.
    /// A schema other than the default one stands in front, ended by a zero byte, which no name contains.
    ///
    /// Part of the public layout; it never changes.
    pub(crate) fn key(&self, name: &LockName) -> i64 {
        let schema = match self.schema.as_str() {
            DEFAULT_SCHEMA => None,
            other => Some(other),
        };
        let schema = schema.into_iter().flat_map(|schema| schema.bytes().chain([0]));
        stable_hash(schema.chain(self.prefix.bytes()).chain(name.as_str().bytes())).cast_signed()
    }

    /// The key under which the schema is made.
    pub(crate) fn schema_key(&self) -> i64 {
        stable_hash(self.schema.bytes().chain([0])).cast_signed()
    }

    /// The name as it stands in the table of holders.
    pub(crate) fn stored(&self, name: &LockName) -> Vec<u8> {
        [self.prefix.as_bytes(), name.as_str().as_bytes()].concat()
    }
}

/// Which counter makes the tokens of a key.
pub(crate) fn stripe(key: i64) -> i32 {
    i32::try_from(key.rem_euclid(STRIPES)).expect("a small number")
}

/// FNV-1a and the finalizer of `MurmurHash3` (fmix64).
fn stable_hash(bytes: impl Iterator<Item = u8>) -> u64 {
    let fnv = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut mixed = fnv;
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    mixed = (mixed ^ (mixed >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    mixed ^ (mixed >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(schema: &str, prefix: &str, name: &str) -> i64 {
        let space = Keyspace { schema: schema.to_owned(), prefix: prefix.to_owned() };
        space.key(&LockName::new(name).unwrap())
    }

    #[test]
    fn the_key_is_the_hash_of_the_name() {
        for name in ["a", "orders/42", "🔒 é", ".."] {
            let hash = LockName::new(name).unwrap().stable_hash();
            assert_eq!(key("dlock", "", name), hash.cast_signed(), "{name}");
        }
        assert_eq!(key("dlock", "orders/", "42"), key("dlock", "", "orders/42"));
    }

    #[test]
    fn schemas_and_prefixes_do_not_collide() {
        let keys = [
            key("dlock", "", "orders/42"),
            key("shop", "", "orders/42"),
            key("dlock", "shop/", "orders/42"),
            key("shop", "shop/", "orders/42"),
        ];
        for (one, left) in keys.iter().enumerate() {
            for right in &keys[one + 1..] {
                assert_ne!(left, right);
            }
        }
    }

    #[test]
    fn stripes_are_few_and_not_negative() {
        for key in [0, -1, 1023, 1024, i64::MIN, i64::MAX] {
            assert!((0..1024).contains(&stripe(key)), "{key}");
        }
    }
}
