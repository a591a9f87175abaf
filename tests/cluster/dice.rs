//! Chance that comes again with its seed.

use std::time::Duration;

/// Numbers that look random (xorshift64).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    /// Small seeds are spread, since neighbouring ones begin alike.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// One of `0..sides`.
    pub(crate) fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from((self.0 >> 11) % sides as u64).expect("it is below a usize")
    }

    /// True once in so many throws; never for 0.
    pub(crate) fn is_one_in(&mut self, sides: usize) -> bool {
        sides > 0 && self.roll(sides) == 0
    }

    /// A time up to this, to the millisecond.
    pub(crate) fn up_to(&mut self, most: Duration) -> Duration {
        let most = usize::try_from(most.as_millis()).expect("tests are short");
        Duration::from_millis(self.roll(most + 1) as u64)
    }
}
