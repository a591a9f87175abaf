//! Recent messages: one order over the whole node, a bounded ring per room.
//!
//! A position is never given twice, and what is no longer kept is remembered by the highest
//! position that it had, so that a reader who comes back is given everything or told `reset`.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::time::Instant;

use super::{Frame, RoomKey, room::Rooms};

/// How long a message and its idempotency key are kept.
pub(super) const KEEP: Duration = Duration::from_secs(5 * 60);
/// Most messages kept in one room.
pub(super) const ROOM_MESSAGES: usize = 100;
/// Most bytes of messages kept in one room.
pub(super) const ROOM_BYTES: usize = 1 << 20;
/// Most bytes of messages kept on one node, with what keeping them costs beside. Past it the oldest
/// go, and their idempotency keys with them.
pub(super) const NODE_BYTES: usize = 64 << 20;
/// Most idempotency keys kept in one room; past it the oldest is forgotten early.
pub(super) const ROOM_KEYS: usize = 10_000;
/// What keeping a message costs beside its bytes, in a room that many messages share.
const OVERHEAD: usize = 96;
/// What a room costs that is kept for its messages alone: measured, 878 bytes with one message.
const ROOM_OVERHEAD: usize = 700;
/// What keeping an idempotency key costs beside twice its bytes.
const KEY_OVERHEAD: usize = 130;

/// A place in the order of all messages; 0 is before the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Which log: drawn at random when it starts, so that ids of another one are told apart.
    pub epoch: u64,
    /// How many messages came up to here.
    pub sequence: u64,
}

impl Position {
    /// Reads an event id as this service writes it: `{epoch}.{sequence}`, hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (epoch, sequence) = text.split_once('.')?;
        let hex = |digits: &str| {
            let plain = (1..=16).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(digits, 16).ok())?
        };
        Some(Self {
            epoch: hex(epoch)?,
            sequence: hex(sequence)?,
        })
    }
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:x}.{:x}", self.epoch, self.sequence)
    }
}

/// Marks one publication, so that its retry is recognised: the key and a digest of what was said.
#[derive(Debug, Clone)]
pub struct Idempotency {
    /// The publisher's key.
    pub key: Box<str>,
    /// SHA-256 of event name and data.
    pub digest: [u8; 32],
}

impl Idempotency {
    /// Marks what is published under this key.
    #[must_use]
    pub fn new(key: &str, event: &str, data: &str) -> Self {
        // No event name holds a line break, so the two cannot run into each other.
        let said = format!("{event}\n{data}");
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest(&SHA256, said.as_bytes()).as_ref());
        Self {
            key: key.into(),
            digest: bytes,
        }
    }
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Published {
    /// Where it stands in the log.
    pub position: Position,
    /// True where it stood there before and was not sent again.
    pub duplicate: bool,
}

/// The key was used for something else within five minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the idempotency key was used for another message in this room")]
pub struct Conflict;

#[derive(Debug)]
pub(super) struct Message {
    pub(super) sequence: u64,
    pub(super) frame: Frame,
}

impl Message {
    fn cost(&self) -> usize {
        self.frame.size() + OVERHEAD
    }
}

/// A room's own part of the log.
#[derive(Debug, Default)]
pub(super) struct RoomLog {
    ring: VecDeque<Message>,
    bytes: usize,
    keys: HashMap<Box<str>, ([u8; 32], Position)>,
    /// The keys by age, oldest first.
    aging: VecDeque<(u64, Box<str>)>,
}

impl RoomLog {
    /// The messages after `sequence`, oldest first.
    pub(super) fn after(&self, sequence: u64) -> impl Iterator<Item = &Message> {
        let first = self
            .ring
            .partition_point(|message| message.sequence <= sequence);
        self.ring.range(first..)
    }

    /// The messages after one sequence up to another.
    pub(super) fn between(
        &self,
        after: u64,
        until: u64,
    ) -> impl Iterator<Item = (u64, Frame)> + '_ {
        self.after(after)
            .take_while(move |message| message.sequence <= until)
            .map(|message| (message.sequence, message.frame.clone()))
    }

    /// The newest message.
    pub(super) fn newest(&self) -> Option<&Frame> {
        self.ring.back().map(|message| &message.frame)
    }

    /// Answers the place of the key's message, if the key is known.
    fn recall(&self, mark: &Idempotency) -> Option<Result<Position, Conflict>> {
        self.keys.get(&mark.key).map(|(digest, position)| {
            if *digest == mark.digest {
                Ok(*position)
            } else {
                Err(Conflict)
            }
        })
    }

    /// Notes a key; answers what it costs, and what the one costs that made room for it or that
    /// was noted for another message.
    fn remember(&mut self, mark: Idempotency, sequence: u64, position: Position) -> (usize, usize) {
        let mut freed = 0;
        if self.keys.remove(&mark.key).is_some() {
            self.aging.retain(|(_, key)| *key != mark.key);
            freed = key_cost(&mark.key);
        } else if self.aging.len() == ROOM_KEYS
            && let Some((_, oldest)) = self.aging.pop_front()
        {
            self.keys.remove(&oldest);
            freed = key_cost(&oldest);
        }
        let cost = key_cost(&mark.key);
        self.aging.push_back((sequence, mark.key.clone()));
        self.keys.insert(mark.key, (mark.digest, position));
        (cost, freed)
    }

    /// Drops the oldest message; answers its sequence and cost.
    fn pop(&mut self) -> Option<(u64, usize)> {
        let message = self.ring.pop_front()?;
        self.bytes -= message.cost();
        Some((message.sequence, message.cost()))
    }

    /// Forgets the keys up to `sequence`; answers what they cost.
    fn forget_keys(&mut self, sequence: u64) -> usize {
        let mut freed = 0;
        while let Some((age, _)) = self.aging.front()
            && *age <= sequence
        {
            if let Some((_, key)) = self.aging.pop_front() {
                self.keys.remove(&key);
                freed += key_cost(&key);
            }
        }
        freed
    }

    fn is_empty(&self) -> bool {
        self.ring.is_empty() && self.keys.is_empty()
    }
}

/// A key stands in the map and in the order of ages.
fn key_cost(key: &str) -> usize {
    2 * key.len() + KEY_OVERHEAD
}

/// Where recent messages stand in an order that is not this node's own.
#[derive(Debug)]
struct Places {
    /// Place and sequence of each, both growing.
    recent: VecDeque<(u64, u64)>,
    /// The highest place that is not among them any more.
    before: u64,
}

/// Most places remembered: 1 MiB.
const PLACES: usize = 65_536;

impl Places {
    fn note(&mut self, place: u64, sequence: u64) {
        if self.recent.len() == PLACES
            && let Some((place, _)) = self.recent.pop_front()
        {
            self.before = place;
        }
        self.recent.push_back((place, sequence));
    }

    fn locate(&self, place: u64, head: u64) -> Option<u64> {
        if place < self.before {
            return None;
        }
        let next = self.recent.partition_point(|(other, _)| *other <= place);
        let after = self.recent.get(next).map(|(_, sequence)| sequence - 1);
        Some(after.unwrap_or(head))
    }
}

/// The order of all messages.
#[derive(Debug)]
pub(super) struct Log {
    /// Whose order the positions are of: this node's own, or the cluster's.
    pub(super) epoch: u64,
    /// The epoch of positions that this node gave by itself.
    own: u64,
    /// Where the newest message stands in the order of `epoch`: as `head`, where this node is alone.
    place: u64,
    /// The places of recent messages, where the order is the cluster's.
    places: Option<Places>,
    pub(super) head: u64,
    bytes: usize,
    /// Every message of the last [`KEEP`] by age, those that their room dropped since included.
    ages: VecDeque<Age>,
    /// How many of them, from the front, were dropped early for want of room on the node.
    dropped: usize,
    /// Length of `ages` at which it is next cleared of what says nothing any more.
    compact_at: usize,
}

/// Fewest entries in the list of ages that are worth clearing.
const COMPACT_FROM: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Age {
    at: Instant,
    sequence: u64,
    room: RoomKey,
}

impl Log {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            own: epoch,
            place: 0,
            places: None,
            head: 0,
            bytes: 0,
            ages: VecDeque::new(),
            dropped: 0,
            compact_at: COMPACT_FROM,
        }
    }

    /// The position up to which this node has everything.
    pub(super) fn position(&self) -> Position {
        Position {
            epoch: self.epoch,
            sequence: self.place,
        }
    }

    /// The sequence here of the newest message up to a position; `None` where the position is of
    /// another log, was not reached yet, or is too old to say.
    pub(super) fn locate(&self, position: Position) -> Option<u64> {
        let known = position.epoch == self.epoch || position.epoch == self.own;
        if !known || position.sequence > self.place {
            return None;
        }
        match &self.places {
            Some(places) => places.locate(position.sequence, self.head),
            None => Some(position.sequence),
        }
    }

    /// From now on messages are placed by another order, of which everything after `from` comes.
    pub(super) fn follow(&mut self, epoch: u64, from: u64) {
        self.epoch = epoch;
        self.place = self.place.max(from);
        self.places.get_or_insert_with(|| Places {
            recent: VecDeque::new(),
            before: from,
        });
    }

    /// Lets no position before `place` be located any more.
    pub(super) fn realign(&mut self, place: u64) {
        self.place = self.place.max(place);
        if let Some(places) = &mut self.places {
            places.recent.clear();
            places.before = self.place;
        }
    }

    /// Notes that messages up to `place` may never have come; answers the sequence that stands for
    /// them.
    pub(super) fn miss(&mut self, place: u64) -> u64 {
        self.head += 1;
        self.realign(place.max(self.place.saturating_add(1)));
        self.head
    }

    /// Bytes kept, on the whole node.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Appends a message to the room at `index`, unless its mark says that it stands there: where
    /// the cluster's order placed it, or else next in this node's own.
    ///
    /// In the cluster's order it was judged already by what stands there: only what this node took
    /// by itself, or heard in another epoch, is the same message again; and there is no conflict.
    pub(super) fn append(
        &mut self,
        rooms: &mut Rooms,
        index: u32,
        mark: Option<Idempotency>,
        placed: Option<u64>,
        encode: impl FnOnce(Position) -> Frame,
        now: Instant,
    ) -> Result<Published, Conflict> {
        let epoch = placed.map_or(self.own, |_| self.epoch);
        let room = rooms.at(index);
        let log = room.log.get_or_insert_with(|| {
            self.bytes += ROOM_OVERHEAD;
            Box::default()
        });
        if let Some(known) = mark.as_ref().and_then(|mark| log.recall(mark)) {
            let is_news = match known {
                Ok(position) => position.epoch == epoch,
                Err(Conflict) => true,
            };
            if placed.is_none() || !is_news {
                return known.map(|position| Published {
                    position,
                    duplicate: true,
                });
            }
        }
        self.head += 1;
        self.place = placed.unwrap_or_default().max(self.place.saturating_add(1));
        let sequence = self.head;
        let position = Position {
            epoch,
            sequence: self.place,
        };
        if let Some(places) = &mut self.places {
            places.note(self.place, sequence);
        }
        let message = Message {
            sequence,
            frame: encode(position),
        };
        if let Some(mark) = mark {
            let (cost, freed) = log.remember(mark, sequence, position);
            self.bytes = self.bytes + cost - freed;
        }
        log.bytes += message.cost();
        self.bytes += message.cost();
        log.ring.push_back(message);
        while log.ring.len() > ROOM_MESSAGES || (log.bytes > ROOM_BYTES && log.ring.len() > 1) {
            let Some((gone, cost)) = log.pop() else { break };
            room.gone = room.gone.max(gone);
            self.bytes -= cost;
        }
        let key = room.key(index);
        self.ages.push_back(Age {
            at: now,
            sequence,
            room: key,
        });
        while self.bytes > NODE_BYTES && self.dropped < self.ages.len() {
            let Age { sequence, room, .. } = self.ages[self.dropped];
            self.drop_message(rooms, room, sequence);
            self.dropped += 1;
        }
        self.compact(rooms);
        Ok(Published {
            position,
            duplicate: false,
        })
    }

    /// Drops messages and keys older than [`KEEP`]; answers when the next one is due.
    pub(super) fn expire(&mut self, rooms: &mut Rooms, now: Instant) -> Option<Instant> {
        while let Some(age) = self.ages.front() {
            if now.duration_since(age.at) < KEEP {
                return Some(age.at + KEEP);
            }
            let (sequence, room) = (age.sequence, age.room);
            self.drop_message(rooms, room, sequence);
            self.ages.pop_front();
            self.dropped = self.dropped.saturating_sub(1);
        }
        self.dropped = 0;
        self.ages = VecDeque::new();
        None
    }

    /// Drops a room's messages and keys up to `sequence`.
    fn drop_message(&mut self, rooms: &mut Rooms, key: RoomKey, sequence: u64) {
        let Some(room) = rooms.of(key) else { return };
        let Some(log) = &mut room.log else { return };
        if log.ring.front().is_some_and(|m| m.sequence <= sequence)
            && let Some((gone, cost)) = log.pop()
        {
            room.gone = room.gone.max(gone);
            self.bytes -= cost;
        }
        self.bytes -= log.forget_keys(sequence);
        if log.is_empty() {
            self.bytes -= ROOM_OVERHEAD;
            room.log = None;
            rooms.vacate(key.index);
        }
    }

    /// Keeps the list of ages within twice of what is kept, however fast rooms drop their
    /// messages: entries whose message and key are gone say nothing.
    fn compact(&mut self, rooms: &mut Rooms) {
        if self.ages.len() < self.compact_at {
            return;
        }
        self.ages.retain(|age| {
            rooms
                .of(age.room)
                .and_then(|room| room.log.as_ref())
                .is_some_and(|log| {
                    let message = log.ring.front().is_some_and(|m| m.sequence <= age.sequence);
                    let key = log
                        .aging
                        .binary_search_by_key(&age.sequence, |(s, _)| *s)
                        .is_ok();
                    message || key
                })
        });
        self.dropped = 0;
        self.compact_at = (2 * self.ages.len()).max(COMPACT_FROM);
    }
}
