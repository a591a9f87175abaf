//! The last 24 hours of one room: three hours by the minute, the rest in coarser blocks.
//!
//! Only stretches in which somebody was there are stored, so a page that is read now and then
//! costs little. There is no clock in here: `now` is an argument, in milliseconds of Unix time,
//! and one that runs backwards stands still until it is where it was.

use std::collections::VecDeque;

use super::step::{Level, Step, Tally};

/// Milliseconds of a minute.
pub(super) const MINUTE_MS: u64 = 60_000;
/// How far back the history goes, in minutes.
pub(super) const DAY: u32 = 24 * 60;
/// Finished minutes that are at least kept one by one: three hours.
const FINE: u32 = 180;
/// Minutes of a block. They become one together, so up to `FINE + BLOCK` are kept one by one.
const BLOCK: u32 = 20;
/// Elements by which a list grows; doubling would waste up to half of it.
const GROWTH: usize = 8;

/// A finished minute: 28 bytes.
#[derive(Debug, Clone, Copy)]
struct Minute {
    /// Minutes of Unix time.
    at: u32,
    step: Step,
}

/// A finished block: 32 bytes.
#[derive(Debug, Clone, Copy)]
struct Block {
    /// Minutes of Unix time at which it begins.
    at: u32,
    /// Minutes of it in which somebody was there.
    busy: u8,
    /// Minutes from its begin to the first one with the most viewers.
    peak: u8,
    /// Its numbers; the means are sums of those of its minutes.
    step: Step,
}

/// A stretch of a room's past.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// When it begins, in minutes of Unix time.
    pub at: u32,
    /// How long it is, in minutes.
    pub minutes: u32,
    /// False for the running minute, whose numbers are those so far.
    pub complete: bool,
    /// The first minute with the most viewers, in minutes of Unix time.
    pub peak: u32,
    /// Its numbers.
    pub step: Step,
}

/// One room's past. At most 8 KB with its name, see the test.
#[derive(Debug)]
pub(super) struct Ring {
    /// What was before is not known, in milliseconds of Unix time.
    from_ms: u64,
    minutes: VecDeque<Minute>,
    blocks: VecDeque<Block>,
    /// The running minute and its numbers so far.
    running: u32,
    tally: Tally,
    /// The numbers since `at_ms`.
    level: Level,
    at_ms: u64,
    /// Viewer-minutes of all that is kept.
    busy: f32,
}

impl Ring {
    /// One of a room in which nobody was from `from_ms` on, up to `now_ms`.
    pub(super) fn new(from_ms: u64, now_ms: u64) -> Self {
        let mut ring = Self {
            from_ms,
            minutes: VecDeque::new(),
            blocks: VecDeque::new(),
            running: minute(from_ms),
            tally: Tally::default(),
            level: Level::default(),
            at_ms: from_ms,
            busy: 0.0,
        };
        ring.advance(now_ms);
        ring
    }

    /// Notes that the numbers are these from now on.
    pub(super) fn note(&mut self, level: Level, now_ms: u64) {
        self.advance(now_ms);
        self.level = level;
    }

    /// Finishes all minutes that are over.
    pub(super) fn advance(&mut self, now_ms: u64) {
        // Almost always within the minute: the way of every join, kept short.
        if now_ms < (u64::from(self.running) + 1) * MINUTE_MS {
            if now_ms > self.at_ms {
                self.tally.add(self.level, now_ms - self.at_ms);
                self.at_ms = now_ms;
            }
            return;
        }
        let oldest_ms = now_ms.saturating_sub((u64::from(DAY) + u64::from(BLOCK)) * MINUTE_MS);
        while self.at_ms < now_ms {
            let end_ms = (u64::from(self.running) + 1) * MINUTE_MS;
            let until_ms = end_ms.min(now_ms);
            self.tally.add(self.level, until_ms - self.at_ms);
            self.at_ms = until_ms;
            if until_ms < end_ms {
                break;
            }
            self.finish();
            // What nobody saw, or nobody can ask for any more, need not be gone through.
            let skip_to_ms = if self.level.is_zero() {
                now_ms
            } else {
                oldest_ms
            };
            if skip_to_ms > self.at_ms {
                self.running = self.running.max(minute(skip_to_ms));
                self.at_ms = self.at_ms.max(u64::from(self.running) * MINUTE_MS);
            }
        }
        self.age();
    }

    fn finish(&mut self) {
        let step = std::mem::take(&mut self.tally).step(self.level);
        let at = self.running;
        self.running += 1;
        // First, so that there never is one more than fits.
        self.age();
        if !step.is_idle() {
            self.busy += step.viewers.mean;
            make_room(&mut self.minutes);
            self.minutes.push_back(Minute { at, step });
        }
    }

    /// The first minute that is kept by itself; what is older is in blocks.
    fn fine_from(&self) -> u32 {
        block(self.running.saturating_sub(FINE))
    }

    /// Puts old minutes into blocks, and forgets old blocks.
    fn age(&mut self) {
        let oldest = self.running.saturating_sub(DAY);
        while let Some(block) = self.blocks.front()
            && block.at + BLOCK <= oldest
        {
            self.busy -= block.step.viewers.mean;
            self.blocks.pop_front();
        }
        let fine_from = self.fine_from();
        while let Some(minute) = self.minutes.front().copied()
            && minute.at < fine_from
        {
            self.minutes.pop_front();
            if block(minute.at) + BLOCK > oldest {
                self.put_away(minute);
            } else {
                self.busy -= minute.step.viewers.mean;
            }
        }
        if self.minutes.capacity() > self.minutes.len() + 3 * GROWTH {
            self.minutes.shrink_to(self.minutes.len() + GROWTH);
        }
    }

    fn put_away(&mut self, minute: Minute) {
        let at = block(minute.at);
        // At most BLOCK, which fits.
        let offset = u8::try_from(minute.at - at).unwrap_or(u8::MAX);
        let Some(block) = self.blocks.back_mut().filter(|block| block.at == at) else {
            make_room(&mut self.blocks);
            self.blocks.push_back(Block {
                at,
                busy: 1,
                peak: offset,
                step: minute.step,
            });
            return;
        };
        let (sum, step) = (&mut block.step, minute.step);
        if step.viewers.max > sum.viewers.max {
            block.peak = offset;
        }
        block.busy += 1;
        for (sum, range) in [
            (&mut sum.viewers, step.viewers),
            (&mut sum.connections, step.connections),
        ] {
            sum.min = sum.min.min(range.min);
            sum.mean += range.mean;
            sum.max = sum.max.max(range.max);
        }
    }

    /// Takes in what another node saw of a finished minute. False, and nothing done, where that
    /// minute is not over here, or no longer kept by itself.
    pub(super) fn merge(&mut self, at: u32, step: Step) -> bool {
        let kept_from = self.fine_from().max(minute(self.from_ms));
        if at >= self.running || at < kept_from {
            return false;
        }
        if step.is_idle() {
            return true;
        }
        match self.minutes.binary_search_by_key(&at, |minute| minute.at) {
            Ok(index) => {
                let known = &mut self.minutes[index].step;
                let merged = known.larger(step);
                self.busy += merged.viewers.mean - known.viewers.mean;
                *known = merged;
            }
            Err(index) => {
                self.busy += step.viewers.mean;
                make_room(&mut self.minutes);
                self.minutes.insert(index, Minute { at, step });
            }
        }
        true
    }

    /// What is known of a finished minute that is kept by itself.
    pub(super) fn minute(&self, at: u32) -> Step {
        self.minutes
            .binary_search_by_key(&at, |minute| minute.at)
            .map_or_else(|_| Step::default(), |index| self.minutes[index].step)
    }

    /// The past since the minute `since`, oldest first and without a gap; the running minute is
    /// the last. A block is whole, also where only its end was asked for.
    pub(super) fn spans(&self, since: u32) -> Vec<Span> {
        let oldest = self.running.saturating_sub(DAY - 1);
        let known_from = minute(self.from_ms);
        let since = since.max(oldest).max(known_from).min(self.running);
        let fine_from = self.fine_from();
        let mut spans = Vec::new();
        let mut blocks = self.blocks.iter().peekable();
        let mut at = block(since);
        while at < fine_from {
            while blocks.next_if(|block| block.at < at).is_some() {}
            let stored = blocks.next_if(|block| block.at == at);
            let begin = at.max(known_from);
            spans.push(self.block_span(begin, at + BLOCK - begin, stored));
            at += BLOCK;
        }
        let mut minutes = self.minutes.iter().peekable();
        for at in since.max(fine_from)..self.running {
            while minutes.next_if(|minute| minute.at < at).is_some() {}
            let stored = minutes.next_if(|minute| minute.at == at);
            spans.push(Span {
                at,
                minutes: 1,
                complete: true,
                peak: at,
                step: stored.map_or_else(Step::default, |minute| minute.step),
            });
        }
        spans.push(Span {
            at: self.running,
            minutes: 1,
            complete: false,
            peak: self.running,
            step: self.tally.step(self.level),
        });
        spans
    }

    fn block_span(&self, begin: u32, minutes: u32, stored: Option<&Block>) -> Span {
        let mut span = Span {
            at: begin,
            minutes,
            complete: true,
            peak: begin,
            step: Step::default(),
        };
        let Some(block) = stored else {
            return span;
        };
        span.peak = block.at + u32::from(block.peak);
        span.step = block.step;
        for range in [&mut span.step.viewers, &mut span.step.connections] {
            range.mean /= minutes as f32;
            if u32::from(block.busy) < minutes {
                range.min = 0;
            }
        }
        span
    }

    /// How busy the room was and is: viewer-minutes of all that is kept, and the viewers now.
    pub(super) fn busy(&self) -> f32 {
        self.busy + self.level.viewers as f32
    }

    /// True where there is nothing to remember: nobody is there, and nobody was for 24 hours.
    pub(super) fn is_blank(&self) -> bool {
        self.level.is_zero()
            && self.minutes.is_empty()
            && self.blocks.is_empty()
            && self.tally.step(self.level).is_idle()
    }

    /// Bytes on the heap.
    #[cfg(test)]
    fn heap_bytes(&self) -> usize {
        self.minutes.capacity() * size_of::<Minute>() + self.blocks.capacity() * size_of::<Block>()
    }
}

/// The minute of Unix time in which a moment is; 8,000 years of them fit.
pub(super) fn minute(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / MINUTE_MS).unwrap_or(u32::MAX)
}

/// The begin of the block in which a minute is.
fn block(minute: u32) -> u32 {
    minute - minute % BLOCK
}

fn make_room<T>(list: &mut VecDeque<T>) {
    if list.len() == list.capacity() {
        list.reserve_exact(GROWTH);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::history::step::Range;

    /// A moment at the begin of a block, and of a day.
    const T0: u64 = 1_700_006_400_000;

    fn level(viewers: u32) -> Level {
        Level {
            viewers,
            connections: 2 * viewers,
        }
    }

    fn ring(from_ms: u64) -> Ring {
        Ring::new(from_ms, from_ms)
    }

    fn last(ring: &Ring, back: usize) -> Range {
        let spans = ring.spans(0);
        spans[spans.len() - 1 - back].step.viewers
    }

    #[test]
    fn a_minute_has_its_least_its_mean_by_time_and_its_most() {
        let mut ring = ring(T0);
        ring.note(level(4), T0);
        ring.note(level(10), T0 + 15_000);
        ring.note(level(2), T0 + 30_000);
        ring.advance(T0 + MINUTE_MS);
        let expected = Range {
            min: 2,
            mean: (4.0 * 15.0 + 10.0 * 15.0 + 2.0 * 30.0) / 60.0,
            max: 10,
        };
        assert_eq!(last(&ring, 1), expected);
        let connections = ring.minute(minute(T0)).connections;
        assert_eq!((connections.min, connections.max), (4, 20));
        assert!((connections.mean - 2.0 * expected.mean).abs() < 1e-4);
    }

    #[test]
    fn a_peak_of_one_millisecond_is_kept_and_one_of_no_time_is_not() {
        let mut ring = ring(T0);
        ring.note(level(1), T0);
        ring.note(level(7), T0 + 1_000);
        ring.note(level(1), T0 + 1_001);
        ring.note(level(9), T0 + 2_000);
        ring.note(level(1), T0 + 2_000);
        ring.advance(T0 + 3_000);
        assert_eq!(last(&ring, 0).max, 7);
    }

    #[test]
    fn the_first_minute_counts_from_its_begin_in_the_middle() {
        let mut ring = ring(T0 + 50_000);
        ring.note(level(6), T0 + 50_000);
        ring.advance(T0 + MINUTE_MS + 1);
        assert_eq!(
            last(&ring, 1),
            Range {
                min: 6,
                mean: 6.0,
                max: 6
            }
        );
    }

    #[test]
    fn numbers_that_do_not_change_are_in_every_minute() {
        let mut ring = ring(T0);
        ring.note(level(3), T0);
        ring.advance(T0 + 30 * MINUTE_MS);
        let spans = ring.spans(0);
        assert_eq!(spans.len(), 31);
        let steady = Range {
            min: 3,
            mean: 3.0,
            max: 3,
        };
        assert!(spans.iter().all(|span| span.step.viewers == steady));
    }

    #[test]
    fn what_was_is_kept_when_everybody_left_and_gone_after_a_day() {
        let mut ring = ring(T0);
        ring.note(level(3), T0);
        ring.note(level(0), T0 + 30_000);
        for hours in [1_u64, 2, 4, 12, 23] {
            ring.advance(T0 + hours * 60 * MINUTE_MS);
            let spans = ring.spans(0);
            let peak = spans
                .iter()
                .max_by_key(|span| span.step.viewers.max)
                .unwrap();
            assert_eq!((peak.step.viewers.max, peak.peak), (3, minute(T0)));
            assert!(!ring.is_blank());
            let seen: u32 = spans.iter().map(|span| span.minutes).sum();
            assert_eq!(u64::from(seen), hours * 60 + 1, "there is no gap");
        }
        assert_eq!(ring.spans(0)[0].step.viewers.min, 0);
        assert!((ring.spans(0)[0].step.viewers.mean - 1.5 / 20.0).abs() < 1e-6);
        ring.advance(T0 + 25 * 60 * MINUTE_MS);
        assert!(ring.is_blank());
        assert!(ring.busy().abs() < 1e-3);
    }

    #[test]
    fn three_hours_are_kept_by_the_minute_and_the_day_in_blocks() {
        let mut ring = ring(T0);
        ring.note(level(5), T0);
        ring.advance(T0 + 30 * 60 * MINUTE_MS + 7 * MINUTE_MS);
        let spans = ring.spans(0);
        let (blocks, minutes): (Vec<Span>, Vec<Span>) =
            spans.iter().copied().partition(|span| span.minutes > 1);
        assert!(
            minutes.len() > 180 && minutes.len() <= 201,
            "{}",
            minutes.len()
        );
        assert!(
            blocks
                .iter()
                .all(|block| block.minutes == 20 && block.at % 20 == 0)
        );
        let covered: u32 = spans.iter().map(|span| span.minutes).sum();
        assert!((1_440..1_460).contains(&covered), "{covered}");
        assert!(
            spans
                .windows(2)
                .all(|two| two[0].at + two[0].minutes == two[1].at)
        );
        assert!(spans.iter().all(|span| span.step.viewers
            == Range {
                min: 5,
                mean: 5.0,
                max: 5
            }));
        assert_eq!(spans.iter().filter(|span| !span.complete).count(), 1);
    }

    #[test]
    fn a_window_starts_where_it_was_asked_to_or_with_the_block_there() {
        let mut ring = ring(T0);
        ring.advance(T0 + 10 * 60 * MINUTE_MS);
        let now = minute(T0) + 600;
        assert_eq!(ring.spans(now).len(), 1);
        assert_eq!(ring.spans(now - 59).len(), 60);
        assert_eq!(ring.spans(minute(T0) + 45)[0].at, minute(T0) + 40);
        assert_eq!(
            ring.spans(now + 5).len(),
            1,
            "the running minute is always there"
        );
    }

    #[test]
    fn nothing_is_said_about_the_time_before_the_begin() {
        let begin = T0 + 7 * MINUTE_MS + 30_000;
        let mut ring = ring(begin);
        ring.note(level(1), begin);
        ring.advance(begin + 5 * 60 * MINUTE_MS);
        let first = ring.spans(0)[0];
        assert_eq!((first.at, first.minutes), (minute(T0) + 7, 13));
        assert_eq!(
            first.step.viewers,
            Range {
                min: 1,
                mean: 1.0,
                max: 1
            }
        );
    }

    #[test]
    fn a_clock_that_is_set_back_stands_still() {
        let mut ring = ring(T0);
        ring.note(level(1), T0 + 90_000);
        ring.note(level(2), T0 + 10_000);
        ring.advance(T0 + 120_000);
        assert_eq!(
            last(&ring, 1),
            Range {
                min: 0,
                mean: 1.0,
                max: 2
            }
        );
    }

    #[test]
    fn a_gap_of_days_is_stepped_over() {
        let mut ring = ring(T0);
        ring.note(level(4), T0);
        ring.advance(T0 + 400 * 24 * 60 * MINUTE_MS);
        let spans = ring.spans(0);
        assert!(
            spans.iter().all(|span| span.step.viewers.min == 4),
            "{:?}",
            spans[0]
        );
        assert!((1_440..1_460).contains(&spans.iter().map(|span| span.minutes).sum::<u32>()));
    }

    #[test]
    fn what_another_node_saw_is_taken_in_where_the_minute_is_over() {
        let mut ring = ring(T0);
        ring.note(level(2), T0);
        ring.note(level(0), T0 + 30_000);
        ring.advance(T0 + 5 * MINUTE_MS);
        let seen = |number: u32| {
            let range = Range {
                min: number,
                mean: number as f32,
                max: number,
            };
            Step {
                viewers: range,
                connections: range,
            }
        };
        let at = minute(T0);
        assert!(ring.merge(at, seen(1)));
        assert_eq!(
            ring.minute(at).viewers,
            Range {
                min: 1,
                mean: 1.0,
                max: 2
            }
        );
        assert!(ring.merge(at, seen(1)), "twice is as once");
        assert_eq!(
            ring.minute(at).viewers,
            Range {
                min: 1,
                mean: 1.0,
                max: 2
            }
        );
        assert!(ring.merge(at + 3, seen(8)), "nobody was here then");
        assert!(ring.merge(at + 1, seen(6)), "nor then");
        let most: Vec<u32> = ring
            .spans(0)
            .iter()
            .map(|span| span.step.viewers.max)
            .collect();
        assert_eq!(most, [2, 6, 0, 8, 0, 0]);
        assert!(!ring.merge(at + 5, seen(9)), "not over here");
        assert!(!ring.merge(at - 1, seen(9)), "before the begin");
        ring.advance(T0 + 10 * 60 * MINUTE_MS);
        assert!(!ring.merge(at, seen(9)), "too long ago");
    }

    #[test]
    fn a_room_that_is_busy_all_day_takes_at_most_8_kb_with_its_longest_name() {
        let mut ring = ring(T0);
        let mut most = 0;
        for change in 0..2 * 24 * 60_u64 {
            let number = u32::try_from(change % 7 + 1).unwrap();
            ring.note(level(number), T0 + change * MINUTE_MS);
            most = most.max(ring.heap_bytes());
        }
        let name = 16 + 32 + 1 + 128;
        // A hash table of seven eighths at most, with its control byte, is half empty at worst.
        let entry = 2 * (size_of::<(crate::hub::RoomId, Ring)>() + 1);
        assert!(most + name + entry <= 8 << 10, "{most} + {name} + {entry}");
    }

    proptest! {
        /// Against a plain list of the numbers at every second.
        #[test]
        fn every_minute_is_as_counted_by_the_second(
            changes in prop::collection::vec((0_u64..40 * 60, 0_u32..50), 1..80)
        ) {
            let mut changes = changes;
            changes.sort_by_key(|(second, _)| *second);
            let mut ring = ring(T0);
            let mut seconds = vec![0_u32; 40 * 60];
            for (second, number) in &changes {
                ring.note(level(*number), T0 + second * 1_000);
                let start = usize::try_from(*second).unwrap();
                seconds[start..].fill(*number);
            }
            ring.advance(T0 + 40 * MINUTE_MS);
            let spans = ring.spans(0);
            for (span, minute) in spans.iter().zip(seconds.chunks(60)) {
                let sum: u32 = minute.iter().sum();
                let range = span.step.viewers;
                prop_assert_eq!(range.min, *minute.iter().min().unwrap());
                prop_assert_eq!(range.max, *minute.iter().max().unwrap());
                prop_assert!((range.mean - sum as f32 / 60.0).abs() < 1e-3);
            }
        }
    }
}
