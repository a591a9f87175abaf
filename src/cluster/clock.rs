//! What time it is in Redis, by which nodes tell each other when a stream was opened.

use std::time::Duration;

use tokio::time::Instant;

/// An answer that took less tells the time: it is off by half of that at the most, and two nodes
/// together by less than what openings have to be apart to be told by their age.
const QUICK: Duration = Duration::from_millis(500);
/// Where no answer is so quick, any will do after this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// Redis' clock, as far as this node knows it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// By how many milliseconds it is ahead of this node's.
    ahead_ms: i64,
    /// Since when it is another one that was not compared yet.
    unknown_since: Option<Instant>,
}

impl Clock {
    /// It may be another one from now on: that of a new epoch.
    pub(super) fn forget(&mut self, now: Instant) {
        self.unknown_since = Some(now);
    }

    /// False where what it says is not to be trusted.
    pub(super) fn is_known(&self) -> bool {
        self.unknown_since.is_none()
    }

    /// Takes in the time in Redis, in milliseconds since 1970, as told by an answer that took so
    /// long and came at `unix_ms` by this node's clock.
    pub(super) fn compare(&mut self, redis_ms: u64, unix_ms: u64, took: Duration, now: Instant) {
        let waits = |since: Instant| now.duration_since(since) >= PATIENCE;
        if took >= QUICK && !self.unknown_since.is_some_and(waits) {
            return;
        }
        let half_way = i128::try_from(took.as_millis() / 2).unwrap_or_default();
        let ahead = i128::from(redis_ms) + half_way - i128::from(unix_ms);
        self.ahead_ms = i64::try_from(ahead).unwrap_or_default();
        self.unknown_since = None;
    }

    /// The time in Redis at a moment of this node's clock, both in milliseconds since 1970.
    pub(super) fn there(&self, unix_ms: u64) -> u64 {
        unix_ms.saturating_add_signed(self.ahead_ms)
    }

    /// The moment of this node's clock at a time in Redis, both in milliseconds since 1970.
    pub(super) fn here(&self, redis_ms: u64) -> u64 {
        redis_ms.saturating_add_signed(self.ahead_ms.saturating_neg())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn an_answer_that_was_late_does_not_set_the_clock() {
        let now = Instant::now();
        let mut clock = Clock::default();
        clock.compare(HOUR + 10, 30, ms(40), now);
        assert_eq!(
            (clock.there(100), clock.here(HOUR + 100)),
            (HOUR + 100, 100)
        );
        // Redis said so two seconds ago, or just now: nobody knows.
        clock.compare(HOUR + 1_000, 3_000, ms(2_000), now);
        assert_eq!(clock.there(100), HOUR + 100);
    }

    #[test]
    fn the_clock_of_a_new_epoch_is_unknown_until_it_was_compared() {
        let now = Instant::now();
        let mut clock = Clock::default();
        clock.compare(1_000, 1_000, ms(0), now);
        clock.forget(now);
        assert!(!clock.is_known());
        clock.compare(HOUR + 1_000, 2_000, ms(1_000), now + ms(1_000));
        assert!(!clock.is_known());
        clock.compare(HOUR + 1_100, 1_100, ms(2), now + ms(1_100));
        assert!(clock.is_known());
        assert_eq!(clock.there(0), HOUR + 1);
    }

    #[test]
    fn where_every_answer_is_late_the_clock_is_set_all_the_same_in_the_end() {
        let now = Instant::now();
        let mut clock = Clock::default();
        clock.forget(now);
        clock.compare(HOUR, 1_000, ms(1_000), now + ms(2_900));
        assert!(!clock.is_known());
        clock.compare(HOUR, 1_000, ms(1_000), now + ms(3_000));
        assert!(clock.is_known());
        assert_eq!(clock.there(500), HOUR);
    }

    #[test]
    fn no_time_makes_it_overflow() {
        let now = Instant::now();
        let mut clock = Clock::default();
        for (redis, unix) in [(u64::MAX, 0), (0, u64::MAX), (u64::MAX, u64::MAX)] {
            clock.compare(redis, unix, ms(1), now);
            let _ = (clock.there(u64::MAX), clock.here(0));
        }
    }
}
