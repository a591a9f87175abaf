//! How far one stream with a task of its own has been told.

use smallvec::SmallVec;

use super::{RoomId, RoomKey, Told};

/// One room of the stream.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) key: RoomKey,
    name: RoomId,
    pub(super) joined: bool,
    /// The newest count it was given.
    pub(super) version: u64,
    /// Messages up to here are not for it: it came later, or has had them.
    pub(super) from: u64,
}

impl Seat {
    pub(super) fn new(told: &Told, joined: bool, from: u64) -> Self {
        Self {
            key: told.key,
            name: told.room.clone(),
            joined,
            version: told.version,
            from,
        }
    }
}

/// The stream's rooms, each with what it was told, and its position among the messages.
#[derive(Debug)]
pub struct Cursor {
    seats: SmallVec<[Seat; 1]>,
    pub(super) personal: Option<RoomId>,
    pub(super) sequence: u64,
}

impl Cursor {
    pub(super) fn new(sequence: u64, personal: Option<RoomId>) -> Self {
        Self {
            seats: SmallVec::new(),
            personal,
            sequence,
        }
    }

    pub(super) fn sit(&mut self, seat: Seat) {
        self.stand(seat.key);
        self.seats.push(seat);
    }

    pub(super) fn stand(&mut self, key: RoomKey) {
        self.seats.retain(|seat| seat.key != key);
    }

    pub(super) fn seats_mut(&mut self) -> impl Iterator<Item = &mut Seat> {
        self.seats.iter_mut()
    }

    /// The rooms whose messages the stream gets.
    pub(super) fn message_rooms(&self) -> impl Iterator<Item = &RoomId> {
        let joined = self.seats.iter().filter(|seat| seat.joined);
        joined.map(|seat| &seat.name).chain(&self.personal)
    }

    /// The rooms whose news the stream listens for.
    pub fn keys(&self) -> impl Iterator<Item = RoomKey> + '_ {
        self.seats.iter().map(|seat| seat.key)
    }
}
