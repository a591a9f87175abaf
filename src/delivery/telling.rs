//! Telling a shard's slots what they are due: counts first come, first served, newest wins; messages
//! and orders in the order in which the hub gave them, one after the other.

use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    fanout::Pass,
    shard::Shard,
    slot::{Sent, Slot, is_newer, low},
    words::{LookUp, Turn},
};
use crate::{
    hub::{Frame, MAX_ORDERS, Order, Reason, RoomKey, Seat, SlotId, Word},
    sse::Text,
};

/// Writes after which a pass lets others have their turn: some 6 ms.
const TURN: usize = 1_000;
/// Writes that catching up one slot stands for.
const LOOKED_UP: usize = 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Count,
    Message,
    /// Messages that did not wait: who is due one falls behind and is given it from the log.
    Lapsed,
}

impl Shard {
    /// Puts a word where it waits for its turn.
    pub(super) fn sort(&mut self, word: Word) {
        let (key, version, frame) = match word {
            Word::Count(key, version, frame) => (key, version, frame),
            Word::Order(id, order @ Order::End(..)) => return self.sort_end(id, order),
            Word::Message(key, ..) => {
                let readers = self.rooms.find(key);
                let readers = readers.map_or(0, |room| self.rooms.get(room).readers());
                return self.words.push(word, readers);
            }
            Word::Order(..) | Word::Personal(..) => return self.words.push(word, 1),
        };
        let Some(room) = self.rooms.find(key) else {
            // Whoever enters it is told the newest count then.
            self.hub.passed(key, Duration::ZERO, self.now);
            return;
        };
        let (queue, replaced) = self.rooms.wait(room, version, frame);
        if queue {
            self.counts.push_back(room);
        }
        if replaced.is_some() {
            self.way.stats.conflated();
        }
    }

    fn sort_end(&mut self, id: SlotId, order: Order) {
        let slot = self.slots.get(id.index as usize);
        let Some(slot) = slot.filter(|slot| slot.generation == id.generation) else {
            return;
        };
        let joined = slot.places.iter().filter(|place| place.joined);
        let rooms = joined.map(|place| self.rooms.get(place.room).key);
        let rooms: SmallVec<[RoomKey; 4]> = rooms.collect();
        self.words.push_end(id, order, &rooms);
    }

    /// Tells counts, messages and orders, for one turn.
    pub(super) fn work(&mut self) {
        let mut writes = 0;
        while writes < TURN {
            let before = writes;
            // Half a turn at the most, or a flood of messages would silence all counts.
            writes += self.work_on_words((TURN - writes).min(TURN / 2));
            writes += self.work_on_counts(TURN.saturating_sub(writes));
            if writes == before {
                break;
            }
        }
    }

    pub(super) fn work_on_words(&mut self, most: usize) -> usize {
        let mut writes = 0;
        while writes < most {
            if let Some((mut pass, kind)) = self.message.take() {
                let (told, over) = self.tell(&mut pass, most - writes, kind);
                writes += told;
                if over {
                    self.end_pass(&pass);
                } else {
                    self.message = Some((pass, kind));
                }
                continue;
            }
            if let Some(lapsed) = self.lapsed.take() {
                writes += 1;
                self.look_up(lapsed);
                continue;
            }
            let Some(turn) = self.words.pop() else {
                break;
            };
            writes += 1;
            match turn {
                Turn::Order(id, order) => self.obey(id, order),
                Turn::Message(key, sequence, frame) => {
                    self.take_turn(sequence);
                    if let Some(room) = self.rooms.find(key) {
                        let pass = self.rooms.begin(room, sequence, frame, self.now);
                        self.message = Some((pass, Kind::Message));
                    }
                }
                Turn::Personal(id, sequence, frame) => {
                    self.take_turn(sequence);
                    self.tell_personal(id, sequence, &frame);
                }
                Turn::Lapsed(lapsed) => {
                    self.take_turn(lapsed.until);
                    self.lapsed = Some(lapsed.into());
                }
            }
        }
        writes
    }

    /// Looks up the next of the messages that did not wait: of a room, or of one slot.
    fn look_up(&mut self, mut lapsed: LookUp) {
        let until = lapsed.until;
        if let Some(key) = lapsed.rooms.next() {
            if let Some(room) = self.rooms.find(key) {
                let pass = self.rooms.begin(room, until, Frame::of(&[]), self.now);
                self.message = Some((pass, Kind::Lapsed));
            }
        } else if let Some(id) = lapsed.slots.next() {
            let due = |slot: &mut Slot| is_newer(until, slot.personal_from);
            if self.slot(id).is_some_and(due) {
                self.fall_behind(id);
                self.go_on(id);
            }
        } else {
            return;
        }
        self.lapsed = Some(lapsed);
    }

    /// Notes the message whose turn it is.
    pub(super) fn take_turn(&mut self, sequence: u64) {
        self.told = sequence;
        self.head = self.head.max(sequence);
    }

    pub(super) fn work_on_counts(&mut self, most: usize) -> usize {
        let mut writes = 0;
        while writes < most {
            // By turns, so that neither a large room's rest nor small rooms wait for ever.
            self.rest_first = !self.rest_first;
            let rest = if self.rest_first || self.counts.is_empty() {
                self.passes.pop_front()
            } else {
                None
            };
            let next = rest.or_else(|| {
                let room = self.counts.pop_front()?;
                self.rooms.begin_count(room, self.now)
            });
            let Some(mut pass) = next else { break };
            let (told, over) = self.tell(&mut pass, most - writes, Kind::Count);
            // A pass in which nobody was due is work too.
            writes += told.max(1);
            if over {
                let key = self.rooms.get(pass.room).key;
                self.end_pass(&pass);
                let took = Instant::now().duration_since(pass.began);
                self.hub.passed(key, took, Instant::now());
            } else {
                self.passes.push_back(pass);
            }
        }
        writes
    }

    /// Tells the next slots of a pass; answers to how many, and whether it is over.
    fn tell(&mut self, pass: &mut Pass, most: usize, kind: Kind) -> (usize, bool) {
        let tick = self.tick();
        let mut told = 0;
        while told < most {
            let Some(index) = self.rooms.next(pass) else {
                return (told, true);
            };
            let Some(slot) = self.slots.get_mut(index as usize) else {
                continue;
            };
            let found = slot.places.iter_mut().find(|place| place.room == pass.room);
            let Some(place) = found else { continue };
            let due = match kind {
                Kind::Count => is_newer(pass.number, place.version),
                Kind::Message | Kind::Lapsed => place.joined && is_newer(pass.number, place.from),
            };
            if !due {
                continue;
            }
            let known = *place;
            let id = SlotId {
                index,
                generation: slot.generation,
            };
            match kind {
                Kind::Count => place.version = low(pass.number),
                Kind::Message => place.from = low(pass.number),
                Kind::Lapsed => {
                    told += LOOKED_UP;
                    self.fall_behind(id);
                    self.go_on(id);
                    continue;
                }
            }
            told += 1;
            match slot.send(&pass.frame, tick) {
                Sent::Taken => self.way.stats.frame(pass.frame.size()),
                Sent::Gone(error) => self.lose(id, error),
                Sent::Refused => {
                    if kind == Kind::Count {
                        self.way.stats.conflated();
                    }
                    let place = slot.places.iter_mut().find(|place| place.room == pass.room);
                    if let Some(place) = place {
                        *place = known;
                    }
                    self.fall_behind(id);
                }
            }
        }
        (told, false)
    }

    pub(super) fn end_pass(&mut self, pass: &Pass) {
        let slots = &mut self.slots;
        self.rooms.end(pass.room, |slot, _, to| {
            if let Some(slot) = slots.get_mut(slot as usize) {
                for place in &mut slot.places {
                    if place.room == pass.room {
                        place.at = to;
                    }
                }
            }
        });
    }

    pub(super) fn tell_personal(&mut self, id: SlotId, sequence: u64, frame: &Frame) {
        let tick = self.tick();
        let Some(slot) = self.slot(id) else { return };
        if !is_newer(sequence, slot.personal_from) {
            return;
        }
        match slot.send(frame, tick) {
            Sent::Taken => {
                slot.personal_from = low(sequence);
                self.way.stats.frame(frame.size());
            }
            Sent::Gone(error) => self.lose(id, error),
            Sent::Refused => self.fall_behind(id),
        }
    }

    /// Does what the hub ordered for one slot.
    pub(super) fn obey(&mut self, id: SlotId, order: Order) {
        match order {
            Order::End(reason, _) => return self.finish(id, reason),
            Order::Expires(at) => return self.expires(id, at),
            Order::Joined(..) | Order::Left(..) | Order::Watching(..) | Order::Unwatched(_) => {}
        }
        let Some(slot) = self.slot(id) else { return };
        if slot.is_closing() {
            return;
        }
        if slot.trouble.is_some() {
            // Falls behind with the places as they are; the order changes them in its turn.
            self.fall_behind(id);
            let trouble = self.slot(id).and_then(|slot| slot.trouble.as_mut());
            if let Some(behind) = trouble.and_then(|trouble| trouble.behind.as_mut()) {
                behind.inbox.push(order);
                if behind.inbox.len() > MAX_ORDERS {
                    self.give_up(id);
                }
            }
            return;
        }
        let mut text = Text::default();
        match order {
            Order::Joined(key, room, from) => {
                text.joined(&room);
                self.enter(id, key, Some(from), &mut text);
            }
            Order::Watching(key, _) => self.enter(id, key, None, &mut text),
            Order::Left(key, room, _) => {
                self.stand(id, key);
                text.left(&room);
            }
            Order::Unwatched(key) => self.stand(id, key),
            Order::Expires(_) | Order::End(..) => {}
        }
        self.say(id, &text);
    }

    /// Puts a slot into a room, joined from a sequence on or watching; only then is the count
    /// read, so that none is missed in between.
    pub(super) fn enter(&mut self, id: SlotId, key: RoomKey, from: Option<u64>, text: &mut Text) {
        self.stand(id, key);
        let mut seat = Seat {
            key,
            joined: from.is_some(),
            version: 0,
            from: from.unwrap_or_default(),
        };
        let Some(told) = self.hub.tell(key) else {
            return;
        };
        seat.version = told.version;
        self.sit(id, &seat);
        text.count(&told.room, told.occupancy);
    }

    /// Sends a slot something of its own.
    pub(super) fn say(&mut self, id: SlotId, text: &Text) {
        if text.is_empty() {
            return;
        }
        self.queue_text(id, text);
        self.go_on(id);
    }

    pub(super) fn finish(&mut self, id: SlotId, reason: Reason) {
        let mut text = Text::default();
        text.closed(reason);
        self.last_word(id, Some(&text));
    }
}
