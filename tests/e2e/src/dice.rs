//! Numbers for tests that try many orders of things: seeded, so that a run that failed can be run again. Pure.

/// A sequence of numbers that is the same in every run.
pub struct Dice(u64);

impl Dice {
    /// Begins the sequence of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Below `bound`.
    pub fn roll(&mut self, bound: usize) -> usize {
        // Knuth's constants; the low bits are poor.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // 31 bits fit any usize.
        usize::try_from(self.0 >> 33).unwrap_or_default() % bound
    }
}
