//! Drain: from the stop signal to the last stream's end.
//!
//! The listener stays open all the while, so that REST is answered and a reader who comes is told
//! when to come back. The ends are spread over the time, so that a node's readers do not all
//! arrive at the next one in the same instant.

use std::time::Duration;

use tokio::time::Instant;

use crate::hub::Hub;

/// Time between two rounds of ends.
const ROUND: Duration = Duration::from_millis(20);
/// The share of the time over which ends are spread; the rest is for what is slow to go.
const SPREAD: f64 = 0.8;

/// Ends all streams within `time`; true where the last one was gone before it was over.
///
/// Cancel safe: dropped, nobody more is ended; nobody is let in again.
pub async fn run(hub: &Hub, time: Duration) -> bool {
    hub.drain();
    let start = Instant::now();
    let deadline = start + time;
    let streams = hub.totals().held;
    let mut ended = 0;
    let mut rounds = tokio::time::interval(ROUND);
    while hub.totals().held > 0 {
        let now = rounds.tick().await;
        if now >= deadline {
            // With no time to spread the ends over, they are at least told.
            hub.shut(usize::MAX, now);
            return hub.totals().held == 0;
        }
        let due = due(streams, now - start, time.mul_f64(SPREAD));
        hub.shut(due.saturating_sub(ended), now);
        ended = due.max(ended);
    }
    true
}

/// How many of `streams` are to be ended by `elapsed`.
fn due(streams: usize, elapsed: Duration, spread: Duration) -> usize {
    if elapsed >= spread {
        // Everybody, those who slipped in at the last moment included.
        return usize::MAX;
    }
    let elapsed_ms = usize::try_from(elapsed.as_millis()).unwrap_or(usize::MAX);
    let spread_ms = usize::try_from(spread.as_millis()).unwrap_or(usize::MAX);
    streams.saturating_mul(elapsed_ms) / spread_ms.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_spread_evenly_and_in_the_end_spare_nobody() {
        let spread = Duration::from_secs(8);
        assert_eq!(due(1_000, Duration::ZERO, spread), 0);
        assert_eq!(due(1_000, Duration::from_secs(4), spread), 500);
        assert_eq!(due(1_000, spread, spread), usize::MAX);
        assert_eq!(due(1_000, Duration::ZERO, Duration::ZERO), usize::MAX);
    }
}
