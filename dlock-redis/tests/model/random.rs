//! Where decisions come from: a small generator whose walks replay from their seed.

/// A generator of the kind "splitmix64" (Steele, Lea, Flood 2014): one addition and two multiplications a number.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `count`, which is small.
    pub(crate) fn below(&mut self, count: u32) -> u32 {
        let high = self.next() >> 32;
        u32::try_from((high * u64::from(count)) >> 32).expect("it is below a u32")
    }

    /// The same, for an index.
    pub(crate) fn index(&mut self, count: usize) -> usize {
        let count = u32::try_from(count).expect("arrays of the model are small");
        usize::try_from(self.below(count)).expect("usize is no smaller than u32")
    }

    /// Once in `count` times.
    pub(crate) fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == 0
    }
}
