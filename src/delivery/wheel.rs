//! When each slot of a shard is next looked at: for its heartbeat, its notice and its end.
//!
//! One entry a slot, 8 bytes, and no timer. The wheel turns as far as the `now` that it is handed.

/// A moment of a shard, in tenths of a second since its start; wraps after 13 years.
pub(super) type Tick = u32;

/// Ticks in a second.
pub(super) const TICKS_PER_SECOND: u32 = 10;
/// Ticks in one turn, 102 s. What is due later comes round once more.
const BUCKETS: u32 = 1_024;

/// A slot and which stream of it.
pub(super) type Entry = (u32, u32);

#[derive(Debug)]
pub(super) struct Wheel {
    buckets: Vec<Vec<Entry>>,
    /// The last tick that was looked at.
    at: Tick,
    entries: usize,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self {
            buckets: (0..BUCKETS).map(|_| Vec::new()).collect(),
            at: 0,
            entries: 0,
        }
    }

    /// Notes that a slot is to be looked at, at `tick` or as near to it as this turn has a bucket
    /// for; answers at which tick it will be.
    pub(super) fn add(&mut self, entry: Entry, tick: Tick) -> Tick {
        let tick = tick.clamp(self.at + 1, self.at + BUCKETS - 1);
        self.buckets[(tick % BUCKETS) as usize].push(entry);
        self.entries += 1;
        tick
    }

    /// Takes the entries of the next tick up to `now`, with that tick; `None` once all are taken.
    pub(super) fn turn(&mut self, now: Tick) -> Option<(Tick, Vec<Entry>)> {
        while self.at < now {
            self.at += 1;
            let entries = std::mem::take(&mut self.buckets[(self.at % BUCKETS) as usize]);
            if !entries.is_empty() {
                self.entries -= entries.len();
                return Some((self.at, entries));
            }
        }
        None
    }

    /// The next tick at which there are entries. Looks through up to a whole turn.
    pub(super) fn next(&self) -> Option<Tick> {
        let mut ticks = self.at + 1..self.at + BUCKETS;
        ticks.find(|tick| !self.buckets[(tick % BUCKETS) as usize].is_empty())
    }

    /// True where nothing is noted.
    pub(super) fn is_empty(&self) -> bool {
        self.entries == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_at_its_tick_and_not_before() {
        let mut wheel = Wheel::new();
        assert_eq!(wheel.add((1, 1), 5), 5);
        assert_eq!(wheel.next(), Some(5));
        assert_eq!(wheel.turn(4), None);
        assert_eq!(wheel.turn(9), Some((5, vec![(1, 1)])));
        assert!(wheel.is_empty());
        assert_eq!(wheel.next(), None);
        assert_eq!(wheel.turn(9), None);
    }

    #[test]
    fn what_is_past_comes_next_and_what_is_far_comes_within_a_turn() {
        let mut wheel = Wheel::new();
        assert_eq!(wheel.turn(100), None);
        assert_eq!(wheel.add((1, 1), 3), 101);
        assert_eq!(wheel.turn(200), Some((101, vec![(1, 1)])));
        let tick = wheel.add((2, 2), 1_000_000);
        assert_eq!(tick, 101 + BUCKETS - 1);
        assert_eq!(wheel.next(), Some(tick));
        assert_eq!(wheel.turn(5_000), Some((tick, vec![(2, 2)])));
    }
}
