//! A small random generator whose numbers never change with a version of something.

use std::time::Duration;

/// `SplitMix64` (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Another generator, whose numbers have nothing to do with those that follow here.
    pub(super) fn fork(&mut self) -> Self {
        Self(self.next())
    }

    /// Less than `limit`.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True in so many of a hundred cases.
    pub(super) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of several.
    pub(super) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// An index into so many things.
    pub(super) fn index(&mut self, of: usize) -> usize {
        usize::try_from(self.below(of as u64)).expect("less than an index is an index")
    }

    /// Up to `most`, in microseconds; half of the time short.
    pub(super) fn upto(&mut self, most: Duration) -> Duration {
        let most = if self.percent(50) { most / 8 } else { most };
        let micros = u64::try_from(most.as_micros()).expect("a schedule is short").max(1);
        Duration::from_micros(self.below(micros))
    }
}
