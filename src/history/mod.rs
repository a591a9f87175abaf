//! What the numbers were: per room and for the whole node, by the minute, for 24 hours.
//!
//! The hub notes every number here as it changes ([`Record`]), so a peak between two looks is not
//! lost; a join pays a hash lookup and two locks that are almost never waited for, 0.09 to 0.13 µs
//! as measured (0.4 µs where more rooms are busy than fit), and allocates nothing unless the room
//! is new here. Memory is bounded: [`MAX_ROOMS`] rooms of at most 8 KB, the least busy forgotten
//! first. It knows no HTTP, and the time only as it is told.
//!
//! A history begins with the process. Nodes that share their totals exchange finished minutes:
//! [`History::finished`] gives them out, [`History::merge`] takes them in.

mod ring;
mod step;

use std::{fmt, hash::RandomState, sync::Arc, time::Duration};

use hashbrown::HashMap;
use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::{
    ring::Span,
    step::{Range, Step},
};
use self::{
    ring::{MINUTE_MS, Ring, minute},
    step::Level,
};
use crate::hub::{Occupancy, Record, RoomId};

/// Rooms whose past is kept, at most: 32 MB where each is busy all day.
pub const MAX_ROOMS: usize = 4_096;
/// Rooms forgotten at once where there is no place for another, so that looking for the least
/// busy, some 100 µs, is shared by as many new ones.
const FORGET_AT_ONCE: usize = MAX_ROOMS / 8;
/// Rooms brought up to now before the lock is offered to others: some 20 µs.
const VISITED_AT_ONCE: usize = 64;
/// How far the time may be off before it is set again; less is left to the monotonic clock.
const CLOCK_SLACK_MS: u64 = 1_000;
/// Longest past that can be asked for, in minutes.
pub const LONGEST: u32 = ring::DAY;

/// The past of this node's rooms. A cheap handle; clones share one history.
#[derive(Clone)]
pub struct History(Arc<Mutex<State>>);

/// All of it changes together with the hub's numbers, under the hub's own lock; this one is for
/// those who look. Held for microseconds.
struct State {
    clock: Clock,
    began_ms: u64,
    node: Ring,
    rooms: HashMap<RoomId, Ring, RandomState>,
    most_rooms: usize,
    /// True once a room with a past was forgotten: from then on nobody knows what was before in a
    /// room that is not kept.
    forgetful: bool,
}

/// Unix time by the hub's clock.
#[derive(Debug, Clone, Copy)]
struct Clock {
    at: Instant,
    unix_ms: u64,
}

impl Clock {
    fn unix_ms(self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.at).as_millis();
        self.unix_ms
            .saturating_add(u64::try_from(since).unwrap_or(u64::MAX))
    }
}

/// What a room's numbers were.
#[derive(Debug, Clone, PartialEq)]
pub struct Past {
    /// Oldest first, without gaps; the running minute is the last one and always there.
    pub spans: Vec<Span>,
}

impl Past {
    /// Most viewers and the first minute of Unix time in which there were so many; `None` where
    /// nobody came.
    #[must_use]
    pub fn peak(&self) -> Option<(u32, u32)> {
        let highest = |best: Option<&Span>, span: &Span| {
            best.is_none_or(|best| span.step.viewers.max > best.step.viewers.max)
        };
        let mut best: Option<&Span> = None;
        for span in &self.spans {
            if highest(best, span) {
                best = Some(span);
            }
        }
        let best = best.filter(|span| span.step.viewers.max > 0)?;
        Some((best.step.viewers.max, best.peak))
    }
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "History({} rooms)", self.0.lock().rooms.len())
    }
}

impl History {
    /// Begins a history in which nobody is anywhere: `now` is `unix_ms`, in milliseconds of Unix
    /// time.
    #[must_use]
    pub fn begin(now: Instant, unix_ms: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            clock: Clock { at: now, unix_ms },
            began_ms: unix_ms,
            node: Ring::new(unix_ms, unix_ms),
            rooms: HashMap::default(),
            most_rooms: MAX_ROOMS,
            forgetful: false,
        })))
    }

    /// What a room's numbers were in the last so many minutes, 1 to [`LONGEST`], the running one
    /// included. Zeros for a room that nobody was in.
    #[must_use]
    pub fn room(&self, room: &RoomId, minutes: u32, now: Instant) -> Past {
        let mut state = self.0.lock();
        let now_ms = state.clock.unix_ms(now);
        let mut blank = state.blank(now_ms);
        let ring = state.rooms.get_mut(room).unwrap_or(&mut blank);
        past(ring, minutes, now_ms)
    }

    /// The same for the whole node.
    #[must_use]
    pub fn node(&self, minutes: u32, now: Instant) -> Past {
        let mut state = self.0.lock();
        let now_ms = state.clock.unix_ms(now);
        past(&mut state.node, minutes, now_ms)
    }

    /// The last finished minute of Unix time, and what is known of it here: of each room in which
    /// somebody was, and, without a name, of the node.
    #[must_use]
    pub fn finished(&self, now: Instant) -> (u32, Vec<(Option<RoomId>, Step)>) {
        let (at, node) = {
            let mut state = self.0.lock();
            let now_ms = state.clock.unix_ms(now);
            let at = minute(now_ms).saturating_sub(1);
            state.node.advance(now_ms);
            (at, state.node.minute(at))
        };
        let mut steps = Vec::new();
        if !node.is_idle() {
            steps.push((None, node));
        }
        self.visit(now, |name, ring| {
            let step = ring.minute(at);
            if !step.is_idle() {
                steps.push((Some(name.clone()), step));
            }
            true
        });
        (at, steps)
    }

    /// How long the running minute of Unix time goes on.
    #[must_use]
    pub fn minute_left(&self, now: Instant) -> Duration {
        let now_ms = self.0.lock().clock.unix_ms(now);
        Duration::from_millis(MINUTE_MS - now_ms % MINUTE_MS)
    }

    /// Takes in what another node saw of a finished minute of Unix time: of a room, or, without a
    /// name, of the service. Each number becomes the larger one, see [`Step::larger`]. False
    /// where it was not taken: that minute is not over here, and may be offered again, or it is
    /// too long ago.
    #[must_use]
    pub fn merge(&self, at: u32, room: Option<&RoomId>, step: Step, now: Instant) -> bool {
        let mut state = self.0.lock();
        let now_ms = state.clock.unix_ms(now);
        if step.is_idle() {
            return at < minute(now_ms);
        }
        let ring = match room {
            Some(room) if !state.rooms.contains_key(room) => {
                // Tried before it takes a place, which may be that of rooms with a past.
                let mut ring = state.blank(now_ms);
                let taken = ring.merge(at, step);
                if taken {
                    state.make_place();
                    state.rooms.insert(room.clone(), ring);
                }
                return taken;
            }
            Some(room) => state.obtain(room, now_ms),
            None => &mut state.node,
        };
        ring.advance(now_ms);
        ring.merge(at, step)
    }

    /// Says again what time it is; taken where it is off by more than a second, as after a
    /// suspension or a step of the system's clock.
    pub fn set_clock(&self, now: Instant, unix_ms: u64) {
        let mut state = self.0.lock();
        if state.clock.unix_ms(now).abs_diff(unix_ms) > CLOCK_SLACK_MS {
            state.clock = Clock { at: now, unix_ms };
        }
    }

    /// Brings all rooms up to now and forgets those in which nobody was for 24 hours.
    pub fn tidy(&self, now: Instant) {
        self.visit(now, |_, ring| !ring.is_blank());
        let rooms = &mut self.0.lock().rooms;
        if rooms.capacity() > 64 && rooms.len() < rooms.capacity() / 4 {
            rooms.shrink_to_fit();
        }
    }

    /// Brings each room up to now and shows it; false forgets it. A few at a time, so that the
    /// hub, which notes its numbers under its own lock, never waits long.
    fn visit(&self, now: Instant, mut keep: impl FnMut(&RoomId, &Ring) -> bool) {
        let names: Vec<RoomId> = self.0.lock().rooms.keys().cloned().collect();
        for some in names.chunks(VISITED_AT_ONCE) {
            let mut state = self.0.lock();
            let now_ms = state.clock.unix_ms(now);
            for name in some {
                let Some(ring) = state.rooms.get_mut(name) else {
                    continue;
                };
                ring.advance(now_ms);
                if !keep(name, ring) {
                    state.rooms.remove(name);
                }
            }
        }
    }

    /// Keeps the time and tidies up every minute, for ever. `unix_ms` is the system's clock.
    ///
    /// Cancel safe.
    pub async fn run(&self, unix_ms: impl Fn() -> u64) {
        loop {
            tokio::time::sleep(Duration::from_millis(MINUTE_MS)).await;
            let now = Instant::now();
            self.set_clock(now, unix_ms());
            self.tidy(now);
        }
    }

    /// Rooms whose past is kept.
    #[must_use]
    pub fn rooms(&self) -> usize {
        self.0.lock().rooms.len()
    }
}

impl Record for History {
    fn note_room(&self, room: &RoomId, occupancy: Occupancy, now: Instant) {
        // Nobody may ask for it, and every member's would take a place.
        if room.is_personal() {
            return;
        }
        let mut state = self.0.lock();
        let now_ms = state.clock.unix_ms(now);
        let level = Level::from(occupancy);
        if let Some(ring) = state.rooms.get_mut(room) {
            ring.note(level, now_ms);
        } else if !level.is_zero() {
            state.obtain(room, now_ms).note(level, now_ms);
        }
    }

    fn note_node(&self, occupancy: Occupancy, now: Instant) {
        let mut state = self.0.lock();
        let now_ms = state.clock.unix_ms(now);
        state.node.note(Level::from(occupancy), now_ms);
    }
}

fn past(ring: &mut Ring, minutes: u32, now_ms: u64) -> Past {
    ring.advance(now_ms);
    let since = (minute(now_ms) + 1).saturating_sub(minutes);
    Past {
        spans: ring.spans(since),
    }
}

impl State {
    /// The past of a room that is not kept: nobody was there, as far as that is known.
    fn blank(&self, now_ms: u64) -> Ring {
        let from_ms = if self.forgetful {
            now_ms
        } else {
            self.began_ms.min(now_ms)
        };
        Ring::new(from_ms, now_ms)
    }

    fn obtain(&mut self, room: &RoomId, now_ms: u64) -> &mut Ring {
        if !self.rooms.contains_key(room) {
            self.make_place();
        }
        let blank = self.blank(now_ms);
        self.rooms.entry(room.clone()).or_insert(blank)
    }

    fn make_place(&mut self) {
        if self.rooms.len() >= self.most_rooms {
            self.forget();
        }
    }

    /// Forgets the rooms with the fewest viewer-minutes in 24 hours, as of when each was brought up
    /// to now, which [`History::run`] does every minute.
    fn forget(&mut self) {
        let mut ranks: Vec<f32> = self.rooms.values().map(Ring::busy).collect();
        let number = FORGET_AT_ONCE.min(self.most_rooms / 8).max(1);
        let (less, bound, _) = ranks.select_nth_unstable_by(number - 1, f32::total_cmp);
        // Among those that are as busy as the bound, chance decides.
        let mut as_busy = 1 + less.iter().filter(|busy| **busy == *bound).count();
        let bound = *bound;
        self.rooms.retain(|_, ring| {
            let goes = ring.busy() < bound || (as_busy > 0 && ring.busy() == bound);
            as_busy -= usize::from(goes && ring.busy() == bound);
            !goes
        });
        self.forgetful = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A moment at the begin of a minute.
    const T0: u64 = 1_700_006_400_000;
    const MINUTE: Duration = Duration::from_secs(60);

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    fn viewers(viewers: u32) -> Occupancy {
        Occupancy {
            viewers,
            connections: viewers,
            members: 0,
            partial: false,
        }
    }

    fn step(number: u32) -> Step {
        let range = Range {
            min: number,
            mean: number as f32,
            max: number,
        };
        Step {
            viewers: range,
            connections: range,
        }
    }

    fn most(past: &Past) -> Vec<u32> {
        past.spans
            .iter()
            .map(|span| span.step.viewers.max)
            .collect()
    }

    /// A history that began at [`T0`], with places for so many rooms.
    fn history(most_rooms: usize) -> (History, Instant) {
        let now = Instant::now();
        let history = History::begin(now, T0);
        history.0.lock().most_rooms = most_rooms;
        (history, now)
    }

    #[tokio::test(start_paused = true)]
    async fn rooms_and_the_node_are_noted_apart() {
        let (history, start) = history(8);
        let blog = room("blog:1");
        Record::note_room(&history, &blog, viewers(2), start);
        Record::note_room(&history, &room("user:7"), viewers(1), start);
        Record::note_node(&history, viewers(9), start);
        let now = start + MINUTE + Duration::from_secs(1);
        assert_eq!(most(&history.room(&blog, 60, now)), [2, 2]);
        assert_eq!(most(&history.node(60, now)), [9, 9]);
        assert_eq!(most(&history.room(&room("blog:2"), 60, now)), [0, 0]);
        assert_eq!(
            history.rooms(),
            1,
            "neither a look nor a personal room takes a place"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_peak_is_the_first_of_the_highest_and_none_where_nobody_came() {
        let (history, start) = history(8);
        let blog = room("blog:1");
        assert_eq!(history.room(&blog, 60, start).peak(), None);
        for (minute, number) in [(1, 3), (2, 5), (3, 1), (4, 5), (5, 0)] {
            Record::note_room(&history, &blog, viewers(number), start + MINUTE * minute);
        }
        let past = history.room(&blog, 60, start + MINUTE * 6);
        assert_eq!(past.peak(), Some((5, minute(T0) + 2)));
        let past = history.room(&blog, 60, start + MINUTE * 60 * 20);
        assert_eq!(past.peak(), None, "it is not within the last hour");
        let past = history.room(&blog, LONGEST, start + MINUTE * 60 * 20);
        assert_eq!(
            past.peak(),
            Some((5, minute(T0) + 2)),
            "to the minute, of a block"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_busy_are_forgotten_first_and_nothing_is_claimed_of_them() {
        let (history, start) = history(16);
        let rooms: Vec<RoomId> = (1..=16).map(|n| room(&format!("blog:{n}"))).collect();
        for (number, room) in (1..).zip(&rooms) {
            Record::note_room(&history, room, viewers(number), start);
        }
        let later = start + MINUTE * 10;
        assert_eq!(history.room(&rooms[0], 60, later).spans.len(), 11);
        history.tidy(later);
        Record::note_room(&history, &room("blog:new"), viewers(1), later);
        assert_eq!(history.rooms(), 15, "two made place for one");
        for forgotten in &rooms[..2] {
            assert_eq!(history.room(forgotten, 60, later).spans.len(), 1);
        }
        assert_eq!(most(&history.room(&rooms[2], 60, later)), [3; 11]);
        let new = history.room(&room("blog:new"), 60, later);
        assert_eq!(most(&new), [1], "what was before is not known");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_room_in_its_first_minute_is_not_the_least_busy() {
        let (history, start) = history(8);
        Record::note_room(&history, &room("blog:new"), viewers(100), start);
        for n in 1..=20 {
            let now = start + Duration::from_secs(n);
            Record::note_room(&history, &room(&format!("blog:{n}")), viewers(1), now);
        }
        assert!(history.rooms() <= 8);
        let past = history.room(&room("blog:new"), 60, start + MINUTE);
        assert_eq!(most(&past), [100, 100]);
    }

    #[tokio::test(start_paused = true)]
    async fn rooms_are_forgotten_when_nobody_was_there_for_a_day() {
        let (history, start) = history(4);
        for n in 1..=4 {
            let room = room(&format!("blog:{n}"));
            Record::note_room(&history, &room, viewers(1), start);
            let stayed = MINUTE * if n == 4 { 60 * 24 } else { 1 };
            Record::note_room(&history, &room, viewers(0), start + stayed);
        }
        let now = start + MINUTE * 60 * 26;
        history.tidy(now);
        assert_eq!(history.rooms(), 1);
        Record::note_room(&history, &room("blog:5"), viewers(1), now);
        assert_eq!(history.rooms(), 2);
        let past = history.room(&room("blog:5"), 60, now);
        assert_eq!(
            past.spans.len(),
            60,
            "nothing was forgotten that anybody asked for"
        );
        history.tidy(now + MINUTE * 60 * 24);
        assert_eq!(history.rooms(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_minute_was_is_given_out_and_taken_in() {
        let (here, start) = history(8);
        let (there, _) = history(8);
        let (blog, other) = (room("blog:1"), room("blog:2"));
        Record::note_room(&here, &blog, viewers(3), start);
        Record::note_room(&there, &blog, viewers(2), start);
        Record::note_room(&there, &other, viewers(7), start);
        Record::note_node(&there, viewers(9), start);
        Record::note_room(&there, &other, viewers(0), start + MINUTE / 2);
        let now = start + MINUTE + Duration::from_millis(1);
        let (at, mut steps) = there.finished(now);
        assert_eq!(at, minute(T0));
        steps.sort_by(|(a, _), (b, _)| a.cmp(b));
        let names: Vec<Option<&RoomId>> = steps.iter().map(|(name, _)| name.as_ref()).collect();
        assert_eq!(names, [None, Some(&blog), Some(&other)]);
        for (name, step) in &steps {
            assert!(here.merge(at, name.as_ref(), *step, now));
        }
        assert_eq!(most(&here.room(&blog, 60, now)), [3, 3]);
        assert_eq!(most(&here.room(&other, 60, now)), [7, 0]);
        assert_eq!(most(&here.node(60, now)), [9, 0]);
        let (_, later) = there.finished(now + MINUTE);
        assert!(!later.iter().any(|(name, _)| name.as_ref() == Some(&other)));
        assert!(
            !here.merge(at + 1, Some(&blog), step(9), now),
            "it is not over"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_minute_that_is_not_taken_costs_no_room_its_past() {
        let (history, start) = history(8);
        for n in 1..=8 {
            Record::note_room(&history, &room(&format!("blog:{n}")), viewers(n), start);
        }
        let now = start + MINUTE;
        let elsewhere = room("blog:elsewhere");
        for refused in [minute(T0) - 1, minute(T0) + 1] {
            assert!(!history.merge(refused, Some(&elsewhere), step(9), now));
        }
        assert_eq!(history.rooms(), 8);
        for n in 1..=8 {
            let past = history.room(&room(&format!("blog:{n}")), 60, now);
            assert_eq!(most(&past), [n, n]);
        }
        assert!(history.merge(minute(T0), Some(&elsewhere), step(9), now));
        assert_eq!(history.rooms(), 8, "one made place");
        assert_eq!(most(&history.room(&elsewhere, 60, now)), [9, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_is_set_again_where_it_is_off() {
        let (history, start) = history(8);
        history.set_clock(start, T0 + 900);
        assert_eq!(history.node(60, start).spans.len(), 1);
        history.set_clock(start, T0 + 10 * MINUTE_MS);
        assert_eq!(history.node(60, start).spans.len(), 11);
    }
}
