//! What waits for its turn on a shard: orders and messages, in the order in which the hub said them.
//!
//! Messages may come faster than a shard tells them, so no more than some of their frames wait
//! here. Of those beyond only their rooms are noted: when it is their turn the rooms' slots fall
//! behind and are given from the rooms' logs what those still have, or `reset`.
//!
//! The end of a slot overtakes what is for others.

use std::collections::{HashSet, VecDeque, hash_set};

use crate::hub::{Frame, Order, RoomKey, SlotId, WAITING_BYTES, Word};

/// Most messages whose frames wait on a shard.
const WAITING_MESSAGES: usize = 1_000;
/// Most writes that they stand for, one for each reader of each message. Orders and other rooms'
/// messages wait behind them, and a write is some 7 µs: 140 ms.
const WAITING_WRITES: usize = 20_000;
/// So many messages wait however many readers they have: looking one up costs a reader more than
/// being told it, and pays only where it is given several at a time.
const FEW: usize = 2;
/// In a queue of more turns no end overtakes any: finding its place would cost more.
const OVERTAKEN: usize = 2 * WAITING_MESSAGES;
/// A queue of more than so many places is given back once it is empty.
const KEPT: usize = 1_024;

/// Something whose turn it is.
#[derive(Debug)]
pub(super) enum Turn {
    /// To one slot.
    Order(SlotId, Order),
    /// To everybody who joined the room.
    Message(RoomKey, u64, Frame),
    /// To one slot's personal room.
    Personal(SlotId, u64, Frame),
    /// Messages whose frames did not wait.
    Lapsed(Box<Lapsed>),
}

/// Where there are messages to be looked up, and up to which sequence. No order came between
/// them, so that whoever is in the rooms now is in them for all of these messages.
#[derive(Debug, Default)]
pub(super) struct Lapsed {
    pub(super) rooms: HashSet<RoomKey>,
    /// Those with messages in their personal rooms.
    pub(super) slots: HashSet<SlotId>,
    pub(super) until: u64,
}

/// The same, being looked up.
#[derive(Debug)]
pub(super) struct LookUp {
    pub(super) rooms: hash_set::IntoIter<RoomKey>,
    pub(super) slots: hash_set::IntoIter<SlotId>,
    pub(super) until: u64,
}

impl From<Box<Lapsed>> for LookUp {
    fn from(lapsed: Box<Lapsed>) -> Self {
        Self {
            rooms: lapsed.rooms.into_iter(),
            slots: lapsed.slots.into_iter(),
            until: lapsed.until,
        }
    }
}

/// The queue.
#[derive(Debug, Default)]
pub(super) struct Words {
    /// With the writes that each stands for, where its frame waits.
    queue: VecDeque<(Turn, usize)>,
    messages: usize,
    lapses: usize,
    writes: usize,
    bytes: usize,
}

impl Words {
    /// Puts an order at the end, or a message to so many readers.
    pub(super) fn push(&mut self, word: Word, readers: usize) {
        match word {
            Word::Order(id, order) => self.queue.push_back((Turn::Order(id, order), 0)),
            Word::Message(key, sequence, frame) => match self.admit(frame, readers) {
                Some(frame) => {
                    let turn = Turn::Message(key, sequence, frame);
                    self.queue.push_back((turn, readers));
                }
                None => self.lapse(sequence, |lapsed| {
                    lapsed.rooms.insert(key);
                }),
            },
            Word::Personal(id, sequence, frame) => match self.admit(frame, 1) {
                Some(frame) => {
                    let turn = Turn::Personal(id, sequence, frame);
                    self.queue.push_back((turn, 1));
                }
                None => self.lapse(sequence, |lapsed| {
                    lapsed.slots.insert(id);
                }),
            },
            // Waits in its room, where a newer one takes its place.
            Word::Count(..) => {}
        }
    }

    /// Puts the end of a slot in these rooms behind the last of what it is still due, and before
    /// everything that is for others.
    pub(super) fn push_end(&mut self, id: SlotId, order: Order, rooms: &[RoomKey]) {
        let mut at = self.queue.len();
        if self.messages + self.lapses > 0 {
            at = self.place_of_end(id, rooms);
        }
        self.queue.insert(at, (Turn::Order(id, order), 0));
    }

    fn place_of_end(&self, id: SlotId, rooms: &[RoomKey]) -> usize {
        let end = self.queue.len();
        if end > OVERTAKEN {
            return end;
        }
        let mut place = 0;
        for (at, (turn, _)) in self.queue.iter().enumerate() {
            let concerned = match turn {
                // What it is due of a room that it enters with it comes later.
                Turn::Order(other, _) if *other == id => return end,
                Turn::Order(..) => false,
                Turn::Message(key, ..) => rooms.contains(key),
                Turn::Personal(other, ..) => *other == id,
                Turn::Lapsed(lapsed) => {
                    lapsed.slots.contains(&id) || rooms.iter().any(|key| lapsed.rooms.contains(key))
                }
            };
            if concerned {
                place = at + 1;
            }
        }
        place
    }

    /// Answers the frame where it may wait. Behind messages that are to be looked up the next are
    /// looked up with them.
    fn admit(&mut self, frame: Option<Frame>, readers: usize) -> Option<Frame> {
        let frame = frame?;
        let full = self.messages >= WAITING_MESSAGES
            || self.bytes + frame.size() > WAITING_BYTES
            || (self.messages >= FEW && self.writes + readers > WAITING_WRITES);
        if full || self.queue.back().is_some_and(|(turn, _)| is_lapsed(turn)) {
            return None;
        }
        self.messages += 1;
        self.writes += readers;
        self.bytes += frame.size();
        Some(frame)
    }

    /// Notes a message of this sequence among those to be looked up.
    fn lapse(&mut self, sequence: u64, note: impl FnOnce(&mut Lapsed)) {
        if let Some((Turn::Lapsed(lapsed), _)) = self.queue.back_mut() {
            lapsed.until = sequence;
            return note(lapsed);
        }
        let mut lapsed = Box::new(Lapsed {
            until: sequence,
            ..Lapsed::default()
        });
        note(&mut lapsed);
        self.queue.push_back((Turn::Lapsed(lapsed), 0));
        self.lapses += 1;
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Turn> {
        let Some((turn, writes)) = self.queue.pop_front() else {
            if self.queue.capacity() > KEPT {
                self.queue = VecDeque::new();
            }
            return None;
        };
        match &turn {
            Turn::Message(_, _, frame) | Turn::Personal(_, _, frame) => {
                self.messages -= 1;
                self.writes -= writes;
                self.bytes -= frame.size();
            }
            Turn::Lapsed(_) => self.lapses -= 1,
            Turn::Order(..) => {}
        }
        Some(turn)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

fn is_lapsed(turn: &Turn) -> bool {
    matches!(turn, Turn::Lapsed(_))
}

#[cfg(test)]
mod tests {
    use crate::hub::Reason;

    use super::*;

    fn message(room: u32, sequence: u64, bytes: usize) -> Word {
        let frame = Frame::of(&vec![b'x'; bytes]);
        Word::Message(RoomKey::of_test(room, 1), sequence, Some(frame))
    }

    fn slot(index: u32) -> SlotId {
        SlotId {
            index,
            generation: 1,
        }
    }

    fn order() -> Word {
        Word::Order(slot(1), Order::Unwatched(RoomKey::of_test(1, 1)))
    }

    #[test]
    fn a_flood_of_any_size_waits_in_bounded_room() {
        let mut words = Words::default();
        for sequence in 0..100_000 {
            let room = 1 + u32::try_from(sequence).unwrap() % 5;
            words.push(message(room, sequence, 10), 1);
        }
        assert!(words.queue.len() <= WAITING_MESSAGES + 1);
        let mut large = Words::default();
        for sequence in 0..10_000 {
            large.push(message(1, sequence, 64 << 10), 1);
        }
        assert!(large.bytes <= WAITING_BYTES);
        assert!(large.queue.len() <= WAITING_BYTES / (64 << 10) + 1);
    }

    #[test]
    fn what_lapsed_comes_in_its_turn_and_orders_stay_between() {
        let mut words = Words::default();
        words.push(message(1, 1, 10), 1);
        words.push(Word::Message(RoomKey::of_test(1, 1), 2, None), 1);
        words.push(Word::Personal(slot(7), 3, None), 1);
        // Small enough to wait, but what comes before it is looked up.
        words.push(message(2, 4, 10), 1);
        words.push(order(), 0);
        words.push(Word::Message(RoomKey::of_test(1, 1), 5, None), 1);
        words.push(order(), 0);
        words.push(message(1, 6, 10), 1);
        assert_eq!(
            said(&mut words),
            [
                "message 1",
                "2 rooms and 1 slots until 4",
                "order",
                "1 rooms and 0 slots until 5",
                "order",
                "message 6"
            ]
        );
        assert_eq!((words.messages, words.lapses), (0, 0));
        assert_eq!((words.writes, words.bytes), (0, 0));
    }

    fn said(words: &mut Words) -> Vec<String> {
        let mut said = Vec::new();
        while let Some(turn) = words.pop() {
            said.push(match turn {
                Turn::Order(_, Order::End(..)) => "end".to_owned(),
                Turn::Order(..) => "order".to_owned(),
                Turn::Message(_, sequence, _) => format!("message {sequence}"),
                Turn::Personal(_, sequence, _) => format!("personal {sequence}"),
                Turn::Lapsed(lapsed) => format!(
                    "{} rooms and {} slots until {}",
                    lapsed.rooms.len(),
                    lapsed.slots.len(),
                    lapsed.until
                ),
            });
        }
        said
    }

    #[test]
    fn messages_to_many_wait_as_long_as_they_are_told_soon() {
        let mut words = Words::default();
        for sequence in 0..1_000 {
            words.push(message(1, sequence, 10), 3_000);
        }
        assert_eq!((words.messages, words.lapses), (6, 1));
        let mut larger = Words::default();
        for sequence in 0..1_000 {
            larger.push(message(1, sequence, 10), 30_000);
        }
        assert_eq!((larger.messages, larger.lapses), (FEW, 1));
    }

    #[test]
    fn an_end_overtakes_what_is_for_others_and_nothing_of_its_own() {
        let rooms = [RoomKey::of_test(1, 1)];
        let end = || Order::End(Reason::Kicked, 9);
        let mut words = Words::default();
        words.push(message(2, 1, 10), 1);
        words.push(message(1, 2, 10), 1);
        words.push(message(2, 3, 10), 1);
        words.push(Word::Personal(slot(8), 4, None), 1);
        words.push_end(slot(7), end(), &rooms);
        words.push_end(slot(8), end(), &[]);
        words.push_end(slot(9), end(), &[]);
        assert_eq!(
            said(&mut words),
            [
                "end",
                "message 1",
                "message 2",
                "end",
                "message 3",
                "0 rooms and 1 slots until 4",
                "end",
            ]
        );
        words.push(message(2, 1, 10), 1);
        words.push(order(), 0);
        words.push(message(2, 2, 10), 1);
        words.push_end(slot(1), end(), &[]);
        assert_eq!(said(&mut words), ["message 1", "order", "message 2", "end"]);
    }
}
