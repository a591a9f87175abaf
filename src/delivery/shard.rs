//! A shard: one epoll, and the streams that live on it.
//!
//! It goes in rounds, on a thread of its own, or as a task (`task.rs`): it takes new streams and the hub's words from its queues, watches its sockets, and opens and
//! ends its slots. What they are told is in `telling.rs`, what becomes of those who do not keep up
//! in `slow.rs`, and what they are due by the clock in `timing.rs`.
//!
//! Invariant: nothing here panics whatever a peer sends or does. Indexes come from this shard's
//! own lists only, and a word for a slot that is gone is for nobody.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use slab::Slab;
use tokio::time::Instant;

use super::{
    Subscription,
    fanout::{Pass, Rooms},
    shards::{Arrival, Way},
    slot::{Holds, Place, Slot, is_ghost, low},
    telling::Kind,
    timing::{TICK, tick_after, tick_of},
    wheel::{Entry, Tick, Wheel},
    words::{LookUp, Words},
};
use crate::{
    hub::{Frame, Hub, Outlet, Reason, RoomKey, Seat, SlotId, Word},
    sse::{self, Text},
};

/// The token of the waker; slots have theirs by place, and there are never that many.
pub(super) const WAKER: Token = Token(usize::MAX);
/// Most events that are taken at a time.
pub(super) const EVENTS: usize = 1_024;
/// The last chunk of a body (RFC 9112, section 7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// Most bytes of a chunk's framing: its size, CRLF, and CRLF behind it.
const FRAMING: usize = 16 + 2 + 2;
/// How long a stream whose last word is on its way is still listened to, so that the close sends no
/// RST.
const LINGER: Duration = Duration::from_secs(1);
/// Shortest time between two complaints in the log.
const COMPLAINTS: Duration = Duration::from_secs(10);
/// An empty queue of fewer places is kept.
const KEPT: usize = 1_024;
/// How long a reader may take to make room for the last word: as long as the kernel grants one
/// that shut its window.
const LAST_WORD: Duration = Duration::from_secs(20);

pub(super) struct Shard {
    pub(super) poll: Poll,
    pub(super) way: Arc<Way>,
    pub(super) number: u8,
    pub(super) hub: Hub,
    pub(super) slots: Slab<Slot>,
    pub(super) rooms: Rooms,
    pub(super) wheel: Wheel,
    /// Slots of a tick that are still to be looked at.
    pub(super) due: (Tick, Vec<Entry>),
    /// Room for the words of one round, empty between two.
    taken: Vec<Word>,
    /// Orders and messages that wait for the message before them.
    pub(super) words: Words,
    /// Messages being looked up.
    pub(super) lapsed: Option<LookUp>,
    /// Rooms with a count to tell.
    pub(super) counts: VecDeque<u32>,
    /// Counts being told, interrupted.
    pub(super) passes: VecDeque<Pass>,
    /// Whose turn it is: the rest of an interrupted pass, or a count not begun.
    pub(super) rest_first: bool,
    /// The message being told, or looked up.
    pub(super) message: Option<(Pass, Kind)>,
    /// Streams whose last word waits behind what they have not read, with the end of the wait.
    closing: VecDeque<(Instant, SlotId)>,
    /// Streams whose last word is in the kernel's hands, with the end of their linger.
    lingering: VecDeque<(Instant, SlotId)>,
    pub(super) generations: u32,
    /// When it was last said in the log that a socket could not be watched.
    complained: Option<Instant>,
    /// The highest sequence that the hub has told of.
    pub(super) head: u64,
    /// The sequence of the newest message whose turn came here. Those after it are still to come,
    /// for slow slots too, and behind the orders that were given before them.
    pub(super) told: u64,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) ping: Frame,
}

impl Shard {
    pub(super) fn new(poll: Poll, way: Arc<Way>, number: u8, hub: Hub) -> Self {
        let start = Instant::now();
        Self {
            poll,
            way,
            number,
            hub,
            slots: Slab::new(),
            rooms: Rooms::default(),
            wheel: Wheel::new(),
            due: (0, Vec::new()),
            taken: Vec::new(),
            words: Words::default(),
            lapsed: None,
            counts: VecDeque::new(),
            passes: VecDeque::new(),
            rest_first: false,
            message: None,
            closing: VecDeque::new(),
            lingering: VecDeque::new(),
            generations: 0,
            complained: None,
            head: 0,
            told: 0,
            start,
            now: start,
            ping: Frame::of(sse::PING.as_bytes()),
        }
    }

    /// Runs on a thread until the way is closed; then drops every stream.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.way.is_closed() {
            if let Err(error) = self.poll.poll(&mut events, self.patience())
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a shard cannot wait for its sockets");
                std::thread::sleep(TICK);
            }
            self.round(&events, Instant::now());
        }
    }

    /// Does what is due: by the clock, by what sockets and hub say, and for whoever arrived.
    pub(super) fn round(&mut self, events: &Events, now: Instant) {
        self.now = now;
        self.turn();
        for event in events {
            if event.token() != WAKER {
                self.on_event(event);
            }
        }
        let mut words = std::mem::take(&mut self.taken);
        self.way.post.take(&mut words);
        for word in words.drain(..) {
            self.sort(word);
        }
        self.taken = words;
        for arrival in self.way.arrivals() {
            self.adopt(arrival);
        }
        self.work();
        self.end_lingers();
        self.way.stats.hold(self.slots.len());
    }

    /// How long there is nothing to do.
    pub(super) fn patience(&self) -> Option<Duration> {
        let busy = !self.counts.is_empty()
            || !self.passes.is_empty()
            || self.message.is_some()
            || self.lapsed.is_some()
            || !self.words.is_empty()
            || !self.due.1.is_empty();
        if busy {
            Some(Duration::ZERO)
        } else if self.wheel.is_empty() && !self.has_endings() {
            None
        } else {
            Some(TICK)
        }
    }

    /// True while streams that have their last word are not gone.
    pub(super) fn has_endings(&self) -> bool {
        !self.closing.is_empty() || !self.lingering.is_empty()
    }

    pub(super) fn tick(&self) -> Tick {
        tick_of(self.start, self.now)
    }

    pub(super) fn slot(&mut self, id: SlotId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index as usize);
        slot.filter(|slot| slot.generation == id.generation)
    }

    /// Opens a stream: counted in, put into its rooms, then told everything in one write.
    pub(super) fn adopt(&mut self, arrival: Arrival) {
        let Arrival {
            socket,
            mut head,
            subscription,
            chunked,
            began,
        } = arrival;
        let Subscription {
            mut registration,
            welcome,
            expires,
            heartbeat,
            admission,
        } = subscription;
        self.generations = self.generations.wrapping_add(1);
        let generation = self.generations;
        let entry = self.slots.vacant_entry();
        let Ok(index) = u32::try_from(entry.key()) else {
            return;
        };
        let id = SlotId { index, generation };
        let mut socket = TcpStream::from_std(socket);
        let interest = Interest::READABLE | Interest::WRITABLE;
        let registered =
            self.poll
                .registry()
                .register(&mut socket, Token(index as usize), interest);
        if let Err(error) = registered {
            self.refuse(&socket, head, chunked, &error);
            return;
        }
        let slot = entry.insert(Slot::new(socket, generation, chunked));
        match registration.open(Outlet::Slot(self.number, id), self.now) {
            Err(reason) => {
                let mut text = Text::default();
                text.closed(reason);
                append(&mut head, chunked, text.as_bytes());
                slot.queue(head.into());
                drop((registration, admission));
                self.last_word(id, None);
            }
            Ok(opening) => {
                slot.holds = Some(Holds {
                    registration,
                    _admission: admission,
                });
                slot.personal_from = low(opening.cursor.personal_from());
                let words = welcome.first_words(&opening, expires, heartbeat, self.now);
                append(&mut head, chunked, &words);
                slot.expires = tick_after(self.start, expires);
                slot.last_write = tick_of(self.start, self.now);
                self.way.stats.opened(self.now.duration_since(began));
                for seat in opening.cursor.seats() {
                    self.head = self.head.max(seat.from);
                    self.sit(id, seat);
                }
                self.head = self.head.max(opening.cursor.personal_from());
                if let Some(until) = opening.owed {
                    self.head = self.head.max(until);
                    self.owe(id, until);
                }
                self.begin(id, head);
                self.look_at(id);
            }
        }
    }

    /// Sends a slot its first words.
    fn begin(&mut self, id: SlotId, words: Vec<u8>) {
        let tick = self.tick();
        let Some(slot) = self.slot(id) else { return };
        match slot.send_first(words, tick) {
            Ok(()) => self.go_on(id),
            Err(error) => self.lose(id, error.kind()),
        }
    }

    pub(super) fn sit(&mut self, id: SlotId, seat: &Seat) {
        let (room, at) = self.rooms.enter(seat.key, id.index);
        let place = Place {
            room,
            at,
            version: low(seat.version),
            from: low(seat.from),
            joined: seat.joined,
        };
        if let Some(slot) = self.slot(id) {
            slot.places.push(place);
        }
    }

    /// Takes a slot out of a room, if it is there.
    pub(super) fn stand(&mut self, id: SlotId, key: RoomKey) {
        let Some(room) = self.rooms.find(key) else {
            return;
        };
        let Some(slot) = self.slot(id) else { return };
        let found = slot.places.iter().position(|place| place.room == room);
        if let Some(found) = found {
            let place = slot.places.remove(found);
            self.exit(place);
        }
    }

    pub(super) fn exit(&mut self, place: Place) {
        let Some(moved) = self.rooms.exit(place.room, place.at) else {
            return;
        };
        if let Some(slot) = self.slots.get_mut(moved as usize) {
            for other in &mut slot.places {
                if other.room == place.room {
                    other.at = place.at;
                }
            }
        }
    }

    /// Drops a stream whose peer is gone, as a call on its socket or the kernel by itself said.
    pub(super) fn lose(&mut self, id: SlotId, error: io::ErrorKind) {
        if is_ghost(error) {
            self.way.stats.ghost();
        }
        self.drop_slot(id);
    }

    /// Drops a stream whose peer is gone; counted out with its registration.
    pub(super) fn drop_slot(&mut self, id: SlotId) {
        if self.slot(id).is_none() {
            return;
        }
        let slot = self.slots.remove(id.index as usize);
        if self.slots.is_empty() {
            // Generations go on, so that a word for an older slot is for nobody still.
            self.slots = Slab::new();
        }
        for place in &slot.places {
            self.exit(*place);
        }
        if slot
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.behind.is_some())
        {
            self.way.stats.caught_up();
        }
    }

    /// Turns away a stream whose socket cannot be watched: it would never be found to have ended.
    fn refuse(
        &mut self,
        mut socket: &TcpStream,
        mut head: Vec<u8>,
        chunked: bool,
        why: &io::Error,
    ) {
        append(&mut head, chunked, &sse::refusal(Reason::Overloaded));
        if chunked {
            head.extend_from_slice(LAST_CHUNK);
        }
        // A new socket has room for so little; where it fails the reader comes back by itself.
        let _ = socket.write(&head);
        self.way.stats.unwatched();
        let quiet = self
            .complained
            .is_some_and(|at| self.now.duration_since(at) < COMPLAINTS);
        if !quiet {
            self.complained = Some(self.now);
            tracing::error!(error = %why, "streams are refused: their sockets cannot be watched");
        }
    }

    /// Says the last word and closes our side. The stream counts no more from here on.
    pub(super) fn last_word(&mut self, id: SlotId, text: Option<&Text>) {
        let Some(slot) = self.slot(id) else { return };
        if slot.is_closing() {
            return;
        }
        let mut bytes = Vec::new();
        if let Some(text) = text {
            append(&mut bytes, slot.chunked, text.as_bytes());
        }
        if slot.chunked {
            bytes.extend_from_slice(LAST_CHUNK);
        }
        slot.queue(bytes.into());
        slot.holds = None;
        let places = std::mem::take(&mut slot.places);
        let trouble = slot.trouble.get_or_insert_default();
        trouble.closing = true;
        let was_behind = trouble.behind.take().is_some();
        for place in places {
            self.exit(place);
        }
        if was_behind {
            self.way.stats.caught_up();
        }
        self.go_on(id);
        if self.slot(id).is_some_and(|slot| !slot.is_shut()) {
            self.closing.push_back((self.now + LAST_WORD, id));
        }
    }

    /// Closes our side of a stream whose last word is sent.
    pub(super) fn shut(&mut self, id: SlotId) {
        let until = self.now + LINGER;
        if self.slot(id).is_some_and(Slot::shut) {
            self.lingering.push_back((until, id));
        }
    }

    pub(super) fn end_lingers(&mut self) {
        while let Some(id) = first_over(&mut self.closing, self.now)
            .or_else(|| first_over(&mut self.lingering, self.now))
        {
            self.drop_slot(id);
        }
        shrink(&mut self.closing);
        shrink(&mut self.lingering);
        shrink(&mut self.counts);
        shrink(&mut self.passes);
    }

    pub(super) fn on_event(&mut self, event: &mio::event::Event) {
        let index = event.token().0;
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let Ok(place) = u32::try_from(index) else {
            return;
        };
        let id = SlotId {
            index: place,
            generation: slot.generation,
        };
        // Whatever a read would still say: a peer that closed its side is a reader no more.
        let mut gone = event.is_error() || event.is_read_closed() || event.is_write_closed();
        if event.is_error()
            && let Ok(Some(error)) = slot.socket.take_error()
        {
            return self.lose(id, error.kind());
        }
        if !gone && event.is_readable() {
            gone = slot.swallow().is_err();
        }
        if gone {
            self.drop_slot(id);
        } else if event.is_writable() && slot.trouble.is_some() {
            self.go_on(id);
        }
    }
}

/// Adds what is not empty to a response, framed as [`Frame::of`] does.
fn append(bytes: &mut Vec<u8>, chunked: bool, text: &[u8]) {
    if chunked {
        bytes.reserve(text.len() + FRAMING);
        // Writing to a Vec cannot fail.
        let _ = write!(bytes, "{:x}\r\n", text.len());
        bytes.extend_from_slice(text);
        bytes.extend_from_slice(b"\r\n");
    } else {
        bytes.extend_from_slice(text);
    }
}

/// Gives an empty queue's room back where a burst left much.
fn shrink<T>(queue: &mut VecDeque<T>) {
    if queue.is_empty() && queue.capacity() > KEPT {
        *queue = VecDeque::new();
    }
}

/// Takes the first whose time is over.
fn first_over(ends: &mut VecDeque<(Instant, SlotId)>, now: Instant) -> Option<SlotId> {
    ends.pop_front_if(|(until, _)| *until <= now)
        .map(|(_, id)| id)
}
