//! When what is due: a changed room's word to its viewers, and the end of a grace.
//!
//! The first change in a quiet room is due at once; what follows waits for the room's gap, so
//! that a storm of joins costs one frame per gap and not one per join.

use std::{collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use super::room::RoomKey;

/// Longest gap between two counts of a room, however many viewers it has.
pub(super) const LONGEST_GAP: Duration = Duration::from_secs(5);

/// What waking one stream with a task of its own costs: 12.6 µs of CPU an event, as measured
/// with 15,000 viewers of one room behind hyper.
const TASK_PASS: Duration = Duration::from_nanos(12_600);

/// Time from the end of one pass over a room to the begin of the next: the push interval, or
/// twice the time that the pass took, at most [`LONGEST_GAP`]. So a slow machine slows the counts
/// and not itself.
pub(super) fn gap(interval: Duration, pass: Duration) -> Duration {
    interval
        .max(2 * pass.min(LONGEST_GAP))
        .min(LONGEST_GAP.max(interval))
}

/// What telling so many streams with a task of their own takes.
pub(super) fn task_pass(streams: u32) -> Duration {
    TASK_PASS.saturating_mul(streams)
}

/// What can be due.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    /// The room's numbers changed.
    Room(RoomKey),
    /// Viewers who went have counted for long enough.
    Leaving(RoomKey),
    /// The room says from now on whether other nodes' numbers are missing.
    Partial(RoomKey),
    /// The grace of a broken stream ends: its place and serial.
    Linger(u32, u64),
    /// A stream with a task of its own comes to its end: its place and serial. There is one for each
    /// that is open, at the moment when it expires.
    Task(u32, u64),
}

/// What is due when, soonest first. As large as what is due now: what comes to nothing is removed.
#[derive(Debug, Default)]
pub(super) struct Calendar(BTreeSet<(Instant, Due)>);

impl Calendar {
    /// Notes what is due; true where nothing is due sooner.
    pub(super) fn add(&mut self, at: Instant, due: Due) -> bool {
        let first = self.next().is_none_or(|next| at < next);
        self.0.insert((at, due));
        first
    }

    /// Takes the next thing that is due by `now`.
    pub(super) fn take(&mut self, now: Instant) -> Option<Due> {
        if self.next()? > now {
            return None;
        }
        self.0.pop_first().map(|(_, due)| due)
    }

    /// Removes what was noted for that moment, if it is still there.
    pub(super) fn remove(&mut self, at: Instant, due: Due) {
        self.0.remove(&(at, due));
    }

    /// How many things are due.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// When the next thing is due.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gap_is_the_interval_until_the_room_is_large() {
        let interval = Duration::from_millis(100);
        let gap_of = |streams| gap(interval, task_pass(streams));
        assert_eq!(gap_of(0), interval);
        assert_eq!(gap_of(3_000), interval);
        assert!(gap_of(15_000) > interval);
        assert!(gap_of(15_000) < Duration::from_secs(1));
        assert_eq!(gap_of(10_000_000), LONGEST_GAP);
        assert_eq!(gap(LONGEST_GAP * 2, Duration::ZERO), LONGEST_GAP * 2);
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
