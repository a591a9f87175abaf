//! What waits for its turn on a shard: orders and messages, in the order in which the hub said them.
//!
//! Messages may come faster than a shard tells them, so no more than some of their frames wait
//! here. Of those beyond only their rooms are noted: when it is their turn the rooms' slots fall
//! behind and are given from the rooms' logs what those still have, or `reset`.

use std::collections::{HashSet, VecDeque, hash_set};

use crate::hub::{Frame, Order, RoomKey, SlotId, WAITING_BYTES, Word};

/// Most messages whose frames wait on a shard. Orders wait behind them, and a message is some
/// 7 µs for each of its readers.
const WAITING_MESSAGES: usize = 1_000;
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
    queue: VecDeque<Turn>,
    messages: usize,
    bytes: usize,
}

impl Words {
    /// Puts an order or a message at the end.
    pub(super) fn push(&mut self, word: Word) {
        match word {
            Word::Order(id, order) => self.queue.push_back(Turn::Order(id, order)),
            Word::Message(key, sequence, frame) => match self.admit(frame) {
                Some(frame) => self.queue.push_back(Turn::Message(key, sequence, frame)),
                None => self.lapse(sequence, |lapsed| {
                    lapsed.rooms.insert(key);
                }),
            },
            Word::Personal(id, sequence, frame) => match self.admit(frame) {
                Some(frame) => self.queue.push_back(Turn::Personal(id, sequence, frame)),
                None => self.lapse(sequence, |lapsed| {
                    lapsed.slots.insert(id);
                }),
            },
            // Waits in its room, where a newer one takes its place.
            Word::Count(..) => {}
        }
    }

    /// Answers the frame where it may wait. Behind messages that are to be looked up the next are
    /// looked up with them.
    fn admit(&mut self, frame: Option<Frame>) -> Option<Frame> {
        let frame = frame?;
        let full = self.messages >= WAITING_MESSAGES || self.bytes + frame.size() > WAITING_BYTES;
        if full || matches!(self.queue.back(), Some(Turn::Lapsed(_))) {
            return None;
        }
        self.messages += 1;
        self.bytes += frame.size();
        Some(frame)
    }

    /// Notes a message of this sequence among those to be looked up.
    fn lapse(&mut self, sequence: u64, note: impl FnOnce(&mut Lapsed)) {
        if let Some(Turn::Lapsed(lapsed)) = self.queue.back_mut() {
            lapsed.until = sequence;
            return note(lapsed);
        }
        let mut lapsed = Box::new(Lapsed {
            until: sequence,
            ..Lapsed::default()
        });
        note(&mut lapsed);
        self.queue.push_back(Turn::Lapsed(lapsed));
    }

    /// Takes the first.
    pub(super) fn pop(&mut self) -> Option<Turn> {
        let turn = self.queue.pop_front();
        match &turn {
            Some(Turn::Message(_, _, frame) | Turn::Personal(_, _, frame)) => {
                self.messages -= 1;
                self.bytes -= frame.size();
            }
            Some(Turn::Order(..) | Turn::Lapsed(_)) => {}
            None if self.queue.capacity() > KEPT => self.queue = VecDeque::new(),
            None => {}
        }
        turn
    }

    pub(super) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }
}

#[cfg(test)]
mod tests {
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
            words.push(message(
                1 + u32::try_from(sequence).unwrap() % 5,
                sequence,
                10,
            ));
        }
        assert!(words.queue.len() <= WAITING_MESSAGES + 1);
        let mut large = Words::default();
        for sequence in 0..10_000 {
            large.push(message(1, sequence, 64 << 10));
        }
        assert!(large.bytes <= WAITING_BYTES);
        assert!(large.queue.len() <= WAITING_BYTES / (64 << 10) + 1);
    }

    #[test]
    fn what_lapsed_comes_in_its_turn_and_orders_stay_between() {
        let mut words = Words::default();
        words.push(message(1, 1, 10));
        words.push(Word::Message(RoomKey::of_test(1, 1), 2, None));
        words.push(Word::Personal(slot(7), 3, None));
        // Small enough to wait, but what comes before it is looked up.
        words.push(message(2, 4, 10));
        words.push(order());
        words.push(Word::Message(RoomKey::of_test(1, 1), 5, None));
        words.push(order());
        words.push(message(1, 6, 10));
        let mut said = Vec::new();
        while let Some(turn) = words.pop() {
            said.push(match turn {
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
        assert_eq!(
            said,
            [
                "message 1",
                "2 rooms and 1 slots until 4",
                "order",
                "1 rooms and 0 slots until 5",
                "order",
                "message 6"
            ]
        );
        assert_eq!((words.messages, words.bytes), (0, 0));
    }
}
