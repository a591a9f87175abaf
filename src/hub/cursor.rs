//! How far one stream has been told.

use smallvec::SmallVec;

use super::{RoomId, RoomKey, Told};

/// One room of a stream.
#[derive(Debug, Clone, Copy)]
pub struct Seat {
    /// The room.
    pub key: RoomKey,
    /// True where it is joined, and so gets its messages too.
    pub joined: bool,
    /// The newest count it was given.
    pub version: u64,
    /// Messages up to this sequence are not for it: it came later, or has had them.
    pub from: u64,
}

impl Seat {
    pub(super) fn new(told: &Told, joined: bool, from: u64) -> Self {
        Self {
            key: told.key,
            joined,
            version: told.version,
            from,
        }
    }
}

/// The stream's rooms, each with what it was told, and the same for its personal room.
#[derive(Debug)]
pub struct Cursor {
    seats: SmallVec<[Seat; 1]>,
    pub(super) personal: Option<(RoomId, u64)>,
    /// Everything up to this sequence was looked through.
    pub(super) heard: u64,
}

impl Cursor {
    /// A cursor of these rooms; `personal` with the sequence up to which it was told.
    #[must_use]
    pub fn new(seats: impl IntoIterator<Item = Seat>, personal: Option<(RoomId, u64)>) -> Self {
        Self {
            seats: seats.into_iter().collect(),
            personal,
            heard: 0,
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

    /// The stream's rooms.
    pub fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter()
    }

    /// The sequence up to which the personal room was told; 0 without one.
    #[must_use]
    pub fn personal_from(&self) -> u64 {
        self.personal.as_ref().map_or(0, |(_, from)| *from)
    }
}
