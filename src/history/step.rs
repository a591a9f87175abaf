//! The numbers of one stretch of time: least, mean and most.

use crate::hub::Occupancy;

/// One number over a stretch of time: 12 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Range {
    /// The least.
    pub min: u32,
    /// The mean, each number weighted by how long it stood.
    pub mean: f32,
    /// The most.
    pub max: u32,
}

/// What a room's numbers were over a stretch of time: 24 bytes. Zeros where nobody was there.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Step {
    /// Distinct viewers.
    pub viewers: Range,
    /// Streams.
    pub connections: Range,
}

impl Range {
    fn larger(self, other: Self) -> Self {
        Self {
            min: self.min.max(other.min),
            mean: self.mean.max(other.mean),
            max: self.max.max(other.max),
        }
    }
}

impl Step {
    /// True where nobody was there.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.viewers.max == 0 && self.connections.max == 0
    }

    /// What two nodes make of the same stretch: the larger of each number.
    ///
    /// All nodes show the same total while they follow a room, and one that does not follow it
    /// takes it for empty; so what differs is too small, never too large. In any order, and any
    /// number of times, the outcome is the same.
    #[must_use]
    pub fn larger(self, other: Self) -> Self {
        Self {
            viewers: self.viewers.larger(other.viewers),
            connections: self.connections.larger(other.connections),
        }
    }
}

/// Numbers as they stand at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Level {
    pub(super) viewers: u32,
    pub(super) connections: u32,
}

impl Level {
    pub(super) fn is_zero(self) -> bool {
        self == Self::default()
    }
}

impl From<Occupancy> for Level {
    fn from(occupancy: Occupancy) -> Self {
        Self {
            viewers: occupancy.viewers,
            connections: occupancy.connections,
        }
    }
}

/// A step in the making. A number counts for the milliseconds that it stood, so one that was
/// replaced within the same millisecond, as while a stream takes the place of another, never was.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tally {
    viewers: Sum,
    connections: Sum,
    stood_ms: u64,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    min: u32,
    max: u32,
    /// Of number times milliseconds.
    area: u64,
}

impl Tally {
    /// Adds that the numbers were these for so many milliseconds.
    pub(super) fn add(&mut self, level: Level, stood_ms: u64) {
        let first = self.stood_ms == 0;
        self.stood_ms += stood_ms;
        self.viewers.add(level.viewers, stood_ms, first);
        self.connections.add(level.connections, stood_ms, first);
    }

    /// The step; where no time went by, what the numbers are now.
    pub(super) fn step(&self, now: Level) -> Step {
        let range = |sum: &Sum, now: u32| {
            if self.stood_ms == 0 {
                return Range {
                    min: now,
                    mean: now as f32,
                    max: now,
                };
            }
            Range {
                min: sum.min,
                mean: (sum.area as f64 / self.stood_ms as f64) as f32,
                max: sum.max,
            }
        };
        Step {
            viewers: range(&self.viewers, now.viewers),
            connections: range(&self.connections, now.connections),
        }
    }
}

impl Sum {
    fn add(&mut self, number: u32, stood_ms: u64, first: bool) {
        self.min = if first { number } else { self.min.min(number) };
        self.max = self.max.max(number);
        self.area += u64::from(number) * stood_ms;
    }
}
