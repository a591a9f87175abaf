//! Who of a shard's slots is in which room, and how far each round of telling them has come.
//!
//! A pass over a large room is interrupted so that others get their turn. While one is under way
//! a slot that leaves makes a hole in the room's list and one that joins stands behind the pass's
//! end, so that nobody is told twice and nobody is left out.

use std::collections::HashMap;

use slab::Slab;
use tokio::time::Instant;

use crate::hub::{Frame, RoomKey};

/// Marks a place that a slot left during a pass.
pub(super) const HOLE: u32 = u32::MAX;

/// A list of fewer places is never given back while anybody is in the room.
const KEPT: usize = 1_024;

/// A room of the shard: about 110 bytes, and 4 a slot.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) key: RoomKey,
    members: Vec<u32>,
    holes: usize,
    /// Passes under way here, during which the list does not move.
    passes: u32,
    /// A count that waits for its pass; a newer one takes its place.
    waiting: Option<(u64, Frame)>,
    /// True while the room stands in the queue of counts.
    queued: bool,
}

impl Room {
    /// How many slots are in it, or more while some of them leave.
    pub(super) fn readers(&self) -> usize {
        self.members.len()
    }

    /// Gives most of a list back from which most have gone.
    fn shrink(&mut self) {
        if self.members.capacity() > KEPT && self.members.len() < self.members.capacity() / 4 {
            self.members.shrink_to(self.members.capacity() / 2);
        }
    }
}

/// One round of telling a room's slots something.
#[derive(Debug)]
pub(super) struct Pass {
    pub(super) room: u32,
    pub(super) frame: Frame,
    /// The count's version, or the message's sequence.
    pub(super) number: u64,
    at: usize,
    end: usize,
    pub(super) began: Instant,
}

/// The rooms of a shard.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    slab: Slab<Room>,
    by_key: HashMap<RoomKey, u32>,
}

impl Rooms {
    pub(super) fn find(&self, key: RoomKey) -> Option<u32> {
        self.by_key.get(&key).copied()
    }

    pub(super) fn get(&self, room: u32) -> &Room {
        &self.slab[room as usize]
    }

    /// Puts a slot into a room; answers the room's place and the slot's place there.
    pub(super) fn enter(&mut self, key: RoomKey, slot: u32) -> (u32, u32) {
        let place = *self.by_key.entry(key).or_insert_with(|| {
            let room = Room {
                key,
                members: Vec::new(),
                holes: 0,
                passes: 0,
                waiting: None,
                queued: false,
            };
            u32::try_from(self.slab.insert(room)).unwrap_or(u32::MAX)
        });
        let members = &mut self.slab[place as usize].members;
        members.push(slot);
        (place, u32::try_from(members.len() - 1).unwrap_or(HOLE))
    }

    /// Takes a slot out of a room. Answers the slot that stands in its place now, if another does.
    #[must_use]
    pub(super) fn exit(&mut self, room: u32, at: u32) -> Option<u32> {
        let found = &mut self.slab[room as usize];
        if found.passes > 0 {
            found.members[at as usize] = HOLE;
            found.holes += 1;
            return None;
        }
        found.members.swap_remove(at as usize);
        found.shrink();
        let moved = found.members.get(at as usize).copied();
        self.forget_if_empty(room);
        moved
    }

    fn forget_if_empty(&mut self, place: u32) {
        let room = &self.slab[place as usize];
        if room.members.is_empty() && room.passes == 0 && !room.queued {
            self.by_key.remove(&room.key);
            self.slab.remove(place as usize);
            if self.slab.is_empty() {
                *self = Self::default();
            }
        }
    }

    /// Leaves a count to be told; true where the room is to be put into the queue for it. Answers
    /// with the version that it took the place of, if one still waited.
    pub(super) fn wait(&mut self, room: u32, version: u64, frame: Frame) -> (bool, Option<u64>) {
        let room = &mut self.slab[room as usize];
        let replaced = room.waiting.replace((version, frame));
        let queue = !std::mem::replace(&mut room.queued, true);
        (queue, replaced.map(|(version, _)| version))
    }

    /// Begins to tell the count that waits in a room whose turn it is.
    pub(super) fn begin_count(&mut self, room: u32, now: Instant) -> Option<Pass> {
        let found = &mut self.slab[room as usize];
        found.queued = false;
        let (version, frame) = found.waiting.take()?;
        Some(self.begin(room, version, frame, now))
    }

    /// Begins to tell everybody who is in the room now.
    pub(super) fn begin(&mut self, room: u32, number: u64, frame: Frame, now: Instant) -> Pass {
        let found = &mut self.slab[room as usize];
        found.passes += 1;
        Pass {
            room,
            frame,
            number,
            at: 0,
            end: found.members.len(),
            began: now,
        }
    }

    /// The next slot of a pass, or `None` at its end.
    pub(super) fn next(&self, pass: &mut Pass) -> Option<u32> {
        let members = &self.slab[pass.room as usize].members;
        while pass.at < pass.end {
            let slot = members[pass.at];
            pass.at += 1;
            if slot != HOLE {
                return Some(slot);
            }
        }
        None
    }

    /// Ends a pass. Calls `moved` with each slot that stands in another place of the list now,
    /// from where to where.
    pub(super) fn end(&mut self, room: u32, mut moved: impl FnMut(u32, u32, u32)) {
        let found = &mut self.slab[room as usize];
        found.passes -= 1;
        if found.passes == 0 && found.holes > 0 {
            let mut to = 0;
            for from in 0..found.members.len() {
                let slot = found.members[from];
                if slot == HOLE {
                    continue;
                }
                if from != to {
                    found.members[to] = slot;
                    let place = |at: usize| u32::try_from(at).unwrap_or(HOLE);
                    moved(slot, place(from), place(to));
                }
                to += 1;
            }
            found.members.truncate(to);
            found.holes = 0;
            found.shrink();
        }
        self.forget_if_empty(room);
    }

    /// True where nobody is in any room.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Enter,
        Exit(usize),
        Tell,
        Go(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => Just(Step::Enter),
            3 => any::<usize>().prop_map(Step::Exit),
            1 => Just(Step::Tell),
            4 => (1usize..5).prop_map(Step::Go),
        ];
        proptest::collection::vec(step, 1..200)
    }

    proptest! {
        /// Slots come and go at every point of several passes at once. Each pass tells exactly
        /// those who were there when it began and have not left before their turn, once each.
        #[test]
        fn a_pass_tells_whoever_stays_once_and_nobody_else(steps in steps()) {
            let key = RoomKey::of_test(1, 1);
            let mut rooms = Rooms::default();
            let mut places: BTreeMap<u32, (u32, u32)> = BTreeMap::new();
            let mut passes: Vec<(Pass, BTreeSet<u32>)> = Vec::new();
            let mut fresh = 0;
            let now = Instant::now();
            let check = |rooms: &Rooms, places: &BTreeMap<u32, (u32, u32)>| {
                for (slot, (room, at)) in places {
                    assert_eq!(rooms.get(*room).members[*at as usize], *slot);
                }
            };
            for step in steps {
                match step {
                    Step::Enter => {
                        places.insert(fresh, rooms.enter(key, fresh));
                        fresh += 1;
                    }
                    Step::Exit(which) => {
                        let Some(&slot) = places.keys().nth(which % places.len().max(1)) else { continue };
                        let (room, at) = places.remove(&slot).unwrap();
                        if let Some(moved) = rooms.exit(room, at) {
                            places.insert(moved, (room, at));
                        }
                        for (_, due) in &mut passes {
                            due.remove(&slot);
                        }
                    }
                    Step::Tell => {
                        if let Some(room) = rooms.find(key) {
                            let pass = rooms.begin(room, 1, Frame::of(b"x"), now);
                            passes.push((pass, places.keys().copied().collect()));
                        }
                    }
                    Step::Go(many) => {
                        for _ in 0..many {
                            let Some((pass, due)) = passes.first_mut() else { break };
                            if let Some(slot) = rooms.next(pass) {
                                prop_assert!(due.remove(&slot), "{slot} is told without a reason");
                            } else {
                                prop_assert!(due.is_empty(), "{due:?} were left out");
                                let room = pass.room;
                                passes.remove(0);
                                rooms.end(room, |slot, from, to| {
                                    assert_eq!(places.insert(slot, (room, to)), Some((room, from)));
                                });
                            }
                        }
                    }
                }
                check(&rooms, &places);
            }
            for (mut pass, mut due) in passes {
                while let Some(slot) = rooms.next(&mut pass) {
                    prop_assert!(due.remove(&slot));
                }
                prop_assert!(due.is_empty());
                let room = pass.room;
                rooms.end(room, |slot, _, to| { places.insert(slot, (room, to)); });
            }
            check(&rooms, &places);
            for (slot, (room, _)) in places.clone() {
                let (_, at) = places.remove(&slot).unwrap();
                if let Some(moved) = rooms.exit(room, at) {
                    places.insert(moved, (room, at));
                }
            }
            prop_assert!(rooms.is_empty());
        }
    }

    #[test]
    fn a_newer_count_takes_the_place_of_the_one_that_waits() {
        let mut rooms = Rooms::default();
        let (room, _) = rooms.enter(RoomKey::of_test(1, 1), 7);
        assert_eq!(rooms.wait(room, 1, Frame::of(b"1")), (true, None));
        assert_eq!(rooms.wait(room, 2, Frame::of(b"2")), (false, Some(1)));
        let pass = rooms.begin_count(room, Instant::now()).unwrap();
        assert_eq!(pass.number, 2);
    }
}
