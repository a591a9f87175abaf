//! One stream of a shard: its socket, its seats, and what did not fit its way out.

use std::{
    collections::VecDeque,
    io::{self, IoSlice, Read, Write},
    mem,
    net::Shutdown,
};

use bytes::Bytes;
use mio::net::TcpStream;
use smallvec::SmallVec;

use super::{Admission, wheel::Tick};
use crate::hub::{Cursor, Frame, Inbox, Registration};

/// Most bytes that a reader may send after its request in the whole life of a stream: 16 KiB.
/// They are thrown away, and one who sends more is no reader.
const MAX_INPUT: u32 = 16 << 10;
/// The same for one that has its last word: enough for whatever a client had on its way when it
/// was told, so that the close sends no RST, and not a flood that its shard would read for ever.
const MAX_LAST_INPUT: u32 = 1 << 20;

/// One room of a slot: 20 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// The room, by its place in the shard.
    pub(super) room: u32,
    /// The slot's place in the room's list.
    pub(super) at: u32,
    /// The version of the newest count it was given, its low half; see [`is_newer`].
    pub(super) version: u32,
    /// The sequence up to which messages are not for it, its low half; of no meaning where it only
    /// watches.
    pub(super) from: u32,
    /// True where it is joined, and so gets messages.
    pub(super) joined: bool,
}

/// True where `version` comes after the one with this low half. Two that meet are never 2^31
/// apart: that many changes of one room take days, and one count within them is missed by nobody.
pub(super) fn is_newer(version: u64, than: u32) -> bool {
    let ahead = low(version).wrapping_sub(than);
    ahead != 0 && ahead < 1 << 31
}

/// The low half.
pub(super) fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or_default()
}

/// The number with this low half that is next to `near`.
pub(super) fn whole(low_half: u32, near: u64) -> u64 {
    let ahead = low_half.wrapping_sub(low(near));
    if ahead < 1 << 31 {
        near + u64::from(ahead)
    } else {
        near.saturating_sub(u64::from(low(near).wrapping_sub(low_half)))
    }
}

/// An open stream: 144 bytes at the most.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) socket: TcpStream,
    pub(super) generation: u32,
    /// Its place in the hub, and those under the limits; none once it is closing.
    pub(super) holds: Option<Holds>,
    pub(super) places: SmallVec<[Place; 1]>,
    /// What makes it a slow or a closing one, if it is.
    pub(super) trouble: Option<Box<Trouble>>,
    /// Like [`Place::from`], of the personal room.
    pub(super) personal_from: u32,
    pub(super) last_write: Tick,
    pub(super) expires: Tick,
    /// When its entry in the wheel is due; any other entry is an old one.
    pub(super) check: Tick,
    input: u32,
    /// HTTP/1.1, and so in chunks.
    pub(super) chunked: bool,
    /// True once `expiring` was said of this end.
    pub(super) warned: bool,
}

/// What a stream holds of others; given back at its end.
#[derive(Debug)]
pub(super) struct Holds {
    pub(super) registration: Registration,
    pub(super) _admission: Admission,
}

/// What one slow or closing stream has more than the others.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    /// What is to be sent before anything else; frames shared with everybody.
    tail: VecDeque<Bytes>,
    /// Where it stopped keeping up, and the orders since.
    pub(super) behind: Option<Behind>,
    /// True once it got its last word.
    pub(super) closing: bool,
    /// True once that is sent and our side closed.
    shut: bool,
}

#[derive(Debug)]
pub(super) struct Behind {
    pub(super) cursor: Cursor,
    pub(super) inbox: Inbox,
    /// The sequence up to which it missed messages before it was opened, which no word brings.
    pub(super) owed: u64,
}

/// How a write went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sent {
    /// Everything is in the kernel's hands, or will be before anything else is.
    Taken,
    /// Nothing of it was taken.
    Refused,
    /// There is nobody to send to any more, and why.
    Gone(io::ErrorKind),
}

/// True for the end of a reader who vanished without a word, as the kernel finds it: nothing was
/// acknowledged any more, or a router said that there is no way.
pub(super) fn is_ghost(error: io::ErrorKind) -> bool {
    matches!(
        error,
        io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
    )
}

impl Slot {
    pub(super) fn new(socket: TcpStream, generation: u32, chunked: bool) -> Self {
        Self {
            socket,
            generation,
            holds: None,
            places: SmallVec::new(),
            trouble: None,
            personal_from: 0,
            last_write: 0,
            expires: 0,
            check: 0,
            input: 0,
            chunked,
            warned: false,
        }
    }

    /// The bytes of a frame for this stream.
    pub(super) fn bytes(&self, frame: &Frame) -> Bytes {
        if self.chunked {
            frame.chunk().clone()
        } else {
            frame.payload()
        }
    }

    pub(super) fn is_closing(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.closing)
    }

    /// True once our side is closed.
    pub(super) fn is_shut(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.shut)
    }

    /// Closes our side; true the first time.
    pub(super) fn shut(&mut self) -> bool {
        let trouble = self.trouble.get_or_insert_default();
        if mem::replace(&mut trouble.shut, true) {
            return false;
        }
        // Fails where the peer has reset it already; its event is on the way.
        let _ = self.socket.shutdown(Shutdown::Write);
        true
    }

    /// Sends a frame, where nothing older waits. Copies nothing and allocates nothing unless the
    /// kernel takes a part of it.
    pub(super) fn send(&mut self, frame: &Frame, now: Tick) -> Sent {
        if self.trouble.is_some() {
            return Sent::Refused;
        }
        // A stream in chunks, as nearly all are, needs no slice of its own.
        let payload;
        let bytes = if self.chunked {
            frame.chunk()
        } else {
            payload = frame.payload();
            &payload
        };
        match again(|| (&self.socket).write(bytes)) {
            Ok(sent) if sent == bytes.len() => {
                self.last_write = now;
                Sent::Taken
            }
            Ok(sent) => {
                self.last_write = now;
                let rest = bytes.slice(sent..);
                self.queue(rest);
                // Until the kernel says that it is full, it does not say when it has room again.
                match self.flush(now) {
                    Ok(true) => self.trouble = None,
                    Ok(false) => {}
                    Err(error) => return Sent::Gone(error.kind()),
                }
                Sent::Taken
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Refused,
            Err(error) => Sent::Gone(error.kind()),
        }
    }

    /// Sends its first words, before which there are none; what the kernel does not take waits.
    ///
    /// # Errors
    ///
    /// When there is nobody to send to any more.
    pub(super) fn send_first(&mut self, words: Vec<u8>, now: Tick) -> io::Result<()> {
        let sent = match again(|| (&self.socket).write(&words)) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        self.last_write = now;
        if sent < words.len() {
            self.queue(Bytes::from(words).slice(sent..));
        }
        Ok(())
    }

    /// Adds to what is sent before anything else.
    pub(super) fn queue(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.trouble.get_or_insert_default().tail.push_back(bytes);
        }
    }

    /// Sends what waits; true once nothing does.
    ///
    /// # Errors
    ///
    /// When there is nobody to send to any more.
    pub(super) fn flush(&mut self, now: Tick) -> io::Result<bool> {
        let Some(trouble) = &mut self.trouble else {
            return Ok(true);
        };
        while !trouble.tail.is_empty() {
            let sent = {
                let slices: SmallVec<[IoSlice<'_>; 16]> = trouble
                    .tail
                    .iter()
                    .take(16)
                    .map(|bytes| IoSlice::new(bytes))
                    .collect();
                match again(|| (&self.socket).write_vectored(&slices)) {
                    Ok(sent) => sent,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                    Err(error) => return Err(error),
                }
            };
            self.last_write = now;
            trouble.advance(sent);
        }
        Ok(true)
    }

    /// Reads and throws away what the peer sends.
    ///
    /// # Errors
    ///
    /// When the peer is gone, or sent too much.
    pub(super) fn swallow(&mut self) -> io::Result<()> {
        let most = if self.is_closing() {
            MAX_LAST_INPUT
        } else {
            MAX_INPUT
        };
        let mut waste = [0; 4096];
        loop {
            match self.socket.read(&mut waste) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(bytes) => {
                    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                    self.input = self.input.saturating_add(bytes);
                    if self.input > most {
                        return Err(io::ErrorKind::InvalidData.into());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Trouble {
    fn advance(&mut self, mut sent: usize) {
        while let Some(first) = self.tail.front_mut() {
            if sent < first.len() {
                *first = first.slice(sent..);
                return;
            }
            sent -= first.len();
            self.tail.pop_front();
        }
    }
}

/// Tries until no signal interrupts: the kernel tells a full socket once only.
fn again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_low_half_is_enough_near_by(number in any::<u64>(), distance in 1u64..1 << 31) {
            let later = number.saturating_add(distance);
            prop_assume!(later > number);
            prop_assert!(is_newer(later, low(number)));
            prop_assert!(!is_newer(number, low(later)));
            prop_assert!(!is_newer(number, low(number)));
            prop_assert_eq!(whole(low(later), number), later);
            prop_assert_eq!(whole(low(number), later), number);
        }
    }

    #[test]
    fn a_slot_stays_small() {
        assert!(size_of::<Slot>() <= 144, "{}", size_of::<Slot>());
        assert_eq!(size_of::<Place>(), 20);
    }
}
