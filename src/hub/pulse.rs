//! When what is due: a changed room's word to its viewers, and the end of a grace.
//!
//! The first change in a quiet room is due at once; what follows waits for the room's gap, so
//! that a storm of joins costs one frame per gap and not one per join.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use tokio::time::Instant;

use super::room::RoomKey;

/// Longest gap between two counts of a room, however many viewers it has.
pub(super) const LONGEST_GAP: Duration = Duration::from_secs(5);

/// What waking one stream with a task of its own costs: 12.6 µs of CPU an event, as measured
/// with 15,000 viewers of one room behind hyper.
const TASK_PASS: Duration = Duration::from_nanos(12_600);

/// Time from one pulse of a room to the next: the push interval, or twice the time that telling
/// everybody takes, at most [`LONGEST_GAP`].
pub(super) fn gap(interval: Duration, receivers: usize) -> Duration {
    let receivers = u32::try_from(receivers).unwrap_or(u32::MAX);
    let pass = TASK_PASS.saturating_mul(receivers);
    interval
        .max(2 * pass.min(LONGEST_GAP))
        .min(LONGEST_GAP.max(interval))
}

/// What can be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The room's numbers changed.
    Room(RoomKey),
    /// The grace of a broken stream ends: its place and serial.
    Linger(u32, u64),
}

/// What is due when, soonest first.
#[derive(Debug, Default)]
pub(super) struct Calendar(BinaryHeap<Reverse<(Instant, Due)>>);

impl Calendar {
    /// Notes what is due; true where nothing is due sooner.
    pub(super) fn add(&mut self, at: Instant, due: Due) -> bool {
        let first = self.next().is_none_or(|next| at < next);
        self.0.push(Reverse((at, due)));
        first
    }

    /// Takes the next thing that is due by `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.0.pop().map(|Reverse((_, due))| due)
    }

    /// When the next thing is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.peek().map(|Reverse((at, _))| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_interval_until_the_room_is_large() {
        let interval = Duration::from_millis(100);
        assert_eq!(gap(interval, 0), interval);
        assert_eq!(gap(interval, 3_000), interval);
        assert!(gap(interval, 15_000) > interval);
        assert!(gap(interval, 15_000) < Duration::from_secs(1));
        assert_eq!(gap(interval, 10_000_000), LONGEST_GAP);
        assert_eq!(gap(LONGEST_GAP * 2, 0), LONGEST_GAP * 2);
    }

    #[tokio::test(start_paused = true)]
    async fn the_calendar_gives_what_is_due_in_order() {
        let start = Instant::now();
        let mut calendar = Calendar::default();
        let later = start + Duration::from_secs(2);
        assert!(calendar.add(later, Due::Linger(2, 2)));
        assert!(calendar.add(start, Due::Linger(1, 1)));
        assert!(!calendar.add(later, Due::Linger(3, 3)));
        assert_eq!(calendar.take(start), Some(Due::Linger(1, 1)));
        assert_eq!(calendar.take(start), None);
        assert_eq!(calendar.next(), Some(later));
        assert_eq!(calendar.take(later), Some(Due::Linger(2, 2)));
    }
}
