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
    pub(super) owed: bool,
}

impl Cursor {
    /// A cursor of these rooms; `personal` with the sequence up to which it was told.
    #[must_use]
    pub fn new(seats: impl IntoIterator<Item = Seat>, personal: Option<(RoomId, u64)>) -> Self {
        Self {
            seats: seats.into_iter().collect(),
            personal,
            heard: 0,
            owed: false,
        }
    }

    pub(super) fn sit(&mut self, seat: Seat) {
        self.stand(seat.key);
        self.seats.push(seat);
    }

    pub(super) fn stand(&mut self, key: RoomKey) {
        self.seats.retain(|seat| seat.key != key);
    }

    /// Notes that everything up to `sequence` was given out.
    pub(super) fn hear(&mut self, sequence: u64) {
        for seat in self.seats.iter_mut().filter(|seat| seat.joined) {
            seat.from = seat.from.max(sequence);
        }
        if let Some((_, from)) = &mut self.personal {
            *from = sequence.max(*from);
        }
        self.heard = sequence;
    }

    pub(super) fn seats_mut(&mut self) -> impl Iterator<Item = &mut Seat> {
        self.seats.iter_mut()
    }

    /// The stream's rooms.
    pub fn seats(&self) -> impl Iterator<Item = &Seat> {
        self.seats.iter()
    }

    /// True where the last call gave a portion of what is due and not all of it.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.owed
    }

    /// The sequence up to which the personal room was told; 0 without one.
    #[must_use]
    pub fn personal_from(&self) -> u64 {
        self.personal.as_ref().map_or(0, |(_, from)| *from)
    }
}

/// Most bytes of messages that a stream is given at a time; a single one may be larger. Whoever
/// reads slowly holds no more of them than this, however far it is behind.
const PORTION_BYTES: usize = 128 << 10;

/// What one stream is still given now.
#[derive(Debug)]
pub(super) struct Portion {
    left: usize,
}

impl Default for Portion {
    fn default() -> Self {
        Self {
            left: PORTION_BYTES,
        }
    }
}

impl Portion {
    /// Takes a message where it fits, and the first in any case; after one that does not fit none
    /// does.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.left || self.left == PORTION_BYTES;
        self.left = if fits {
            self.left.saturating_sub(bytes)
        } else {
            0
        };
        fits
    }
}
