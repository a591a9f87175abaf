//! A shard: one thread, one epoll, and the streams that live on it.
//!
//! It takes new streams and the hub's words from its queues, watches its sockets, and tells its
//! slots what they are due: counts first come, first served, newest wins; messages and orders in
//! the order in which the hub gave them, one after the other.
//!
//! Invariant: nothing here panics whatever a peer sends or does. Indexes come from this shard's
//! own lists only, and a word for a slot that is gone is for nobody.

use std::{collections::VecDeque, io, sync::Arc, time::Duration};

use bytes::Bytes;
use mio::{Events, Interest, Poll, Token, net::TcpStream};
use slab::Slab;
use tokio::time::Instant;

use super::{
    EXPIRY_NOTICE, Subscription,
    fanout::{Pass, Rooms},
    shards::{Arrival, Way},
    slot::{Behind, Holds, Place, Sent, Slot, is_newer, low, whole},
    wheel::{TICKS_PER_SECOND, Tick, Wheel},
};
use crate::{
    hub::{
        Cursor, Delivery, Frame, Hub, Inbox, MAX_ORDERS, Order, Outlet, Reason, RoomKey, Seat,
        SlotId, Told, Word,
    },
    sse::{self, Text},
};

/// The token of the waker; slots have theirs by place, and there are never that many.
pub(super) const WAKER: Token = Token(usize::MAX);
/// Writes after which a pass lets others have their turn: some 6 ms.
const TURN: usize = 1_000;
/// The last chunk of a body (RFC 9112, section 7.1).
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
/// How long a stream that has its last word is still listened to, so that the close sends no RST.
const LINGER: Duration = Duration::from_secs(1);
/// Length of a tick.
const TICK: Duration = Duration::from_millis(1_000 / TICKS_PER_SECOND as u64);

pub(super) struct Shard {
    poll: Poll,
    way: Arc<Way>,
    number: u8,
    hub: Hub,
    slots: Slab<Slot>,
    rooms: Rooms,
    wheel: Wheel,
    /// Orders and messages that wait for the message before them.
    words: VecDeque<Word>,
    /// Rooms with a count to tell.
    counts: VecDeque<u32>,
    /// Counts being told, interrupted.
    passes: VecDeque<Pass>,
    /// Whose turn it is: the rest of an interrupted pass, or a count not begun.
    rest_first: bool,
    /// The message being told.
    message: Option<Pass>,
    /// Streams that got their last word, with the end of their linger.
    closing: VecDeque<(Instant, SlotId)>,
    generations: u32,
    /// The highest sequence that the hub has told of.
    head: u64,
    /// The sequence of the newest message whose turn came here. Those after it are still to come,
    /// for slow slots too, and behind the orders that were given before them.
    told: u64,
    start: Instant,
    now: Instant,
    ping: Frame,
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
            words: VecDeque::new(),
            counts: VecDeque::new(),
            passes: VecDeque::new(),
            rest_first: false,
            message: None,
            closing: VecDeque::new(),
            generations: 0,
            head: 0,
            told: 0,
            start,
            now: start,
            ping: Frame::of(sse::PING.as_bytes()),
        }
    }

    /// Runs until the way is closed; then drops every stream.
    pub(super) fn run(mut self) {
        let mut events = Events::with_capacity(1_024);
        let mut words = Vec::new();
        while !self.way.is_closed() {
            if let Err(error) = self.poll.poll(&mut events, self.patience())
                && error.kind() != io::ErrorKind::Interrupted
            {
                tracing::error!(%error, "a shard cannot wait for its sockets");
                std::thread::sleep(TICK);
            }
            self.now = Instant::now();
            self.turn();
            for event in &events {
                if event.token() != WAKER {
                    self.on_event(event);
                }
            }
            self.way.post.take(&mut words);
            for word in words.drain(..) {
                self.sort(word);
            }
            for arrival in self.way.arrivals() {
                self.adopt(arrival);
            }
            self.work();
            self.end_lingers();
        }
    }

    /// How long there is nothing to do.
    fn patience(&self) -> Option<Duration> {
        let busy = !self.counts.is_empty()
            || !self.passes.is_empty()
            || self.message.is_some()
            || !self.words.is_empty();
        if busy {
            Some(Duration::ZERO)
        } else if self.wheel.is_empty() && self.closing.is_empty() {
            None
        } else {
            Some(TICK)
        }
    }

    fn tick(&self) -> Tick {
        tick_of(self.start, self.now)
    }

    fn slot(&mut self, id: SlotId) -> Option<&mut Slot> {
        let slot = self.slots.get_mut(id.index as usize);
        slot.filter(|slot| slot.generation == id.generation)
    }

    // ---- opening ----

    /// Opens a stream: counted in, put into its rooms, then told everything in one write.
    fn adopt(&mut self, arrival: Arrival) {
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
        if socket.set_nonblocking(true).is_err() {
            return;
        }
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
        if registered.is_err() {
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
                slot.queue(head.into());
                slot.expires = tick_of(self.start, expires);
                slot.last_write = tick_of(self.start, self.now);
                self.way.stats.opened(self.now.duration_since(began));
                for seat in opening.cursor.seats() {
                    self.head = self.head.max(seat.from);
                    self.sit(id, seat);
                }
                self.head = self.head.max(opening.cursor.personal_from());
                self.go_on(id);
                self.look_at(id);
            }
        }
    }

    fn sit(&mut self, id: SlotId, seat: &Seat) {
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
    fn stand(&mut self, id: SlotId, key: RoomKey) {
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

    fn exit(&mut self, place: Place) {
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

    // ---- ending ----

    /// Drops a stream whose peer is gone; counted out with its registration.
    fn drop_slot(&mut self, id: SlotId) {
        if self.slot(id).is_none() {
            return;
        }
        let slot = self.slots.remove(id.index as usize);
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

    /// Says the last word and closes our side. The stream counts no more from here on.
    fn last_word(&mut self, id: SlotId, text: Option<&Text>) {
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
        self.closing.push_back((self.now + LINGER, id));
        self.go_on(id);
    }

    fn end_lingers(&mut self) {
        while let Some((until, id)) = self.closing.front().copied()
            && until <= self.now
        {
            self.closing.pop_front();
            self.drop_slot(id);
        }
    }

    // ---- the peer ----

    fn on_event(&mut self, event: &mio::event::Event) {
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
        if event.is_error() {
            let error = slot.socket.take_error();
            let timed_out = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
            if error.is_ok_and(|error| error.as_ref().is_some_and(timed_out)) {
                self.way.stats.ghost();
            }
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

    /// Sends what waits for a slot; then, where it was behind, what it is due since.
    fn go_on(&mut self, id: SlotId) {
        let tick = self.tick();
        loop {
            let Some(slot) = self.slot(id) else { return };
            match slot.flush(tick) {
                Err(_) => return self.drop_slot(id),
                Ok(false) => return,
                Ok(true) => {}
            }
            let Some(trouble) = &mut slot.trouble else {
                return;
            };
            if trouble.closing {
                let socket = &slot.socket;
                // Fails where the peer has reset it already; its event is on the way.
                let _ = socket.shutdown(std::net::Shutdown::Write);
                return;
            }
            let Some(behind) = trouble.behind.take() else {
                slot.trouble = None;
                return;
            };
            if !self.catch_up(id, behind) {
                return;
            }
        }
    }

    // ---- slow readers ----

    /// Notes where a slot stopped keeping up.
    fn fall_behind(&mut self, id: SlotId) {
        let head = self.head;
        let keys = |room| self.rooms.get(room).key;
        let Some(slot) = self.slots.get(id.index as usize) else {
            return;
        };
        if slot
            .trouble
            .as_ref()
            .is_some_and(|t| t.closing || t.behind.is_some())
        {
            return;
        }
        let Some(holds) = &slot.holds else { return };
        let seats = slot.places.iter().map(|place| Seat {
            key: keys(place.room),
            joined: place.joined,
            version: u64::from(place.version),
            from: whole(place.from, head),
        });
        let personal = holds.registration.personal();
        let personal = personal.map(|name| (name, whole(slot.personal_from, head)));
        let behind = Behind {
            cursor: Cursor::new(seats, personal),
            inbox: Inbox::default(),
        };
        if let Some(slot) = self.slot(id) {
            slot.trouble.get_or_insert_default().behind = Some(behind);
            self.way.stats.fell_behind();
        }
    }

    /// Gives a slot what it is due since it fell behind; true where there is something to send.
    fn catch_up(&mut self, id: SlotId, mut behind: Behind) -> bool {
        let told = self.told;
        let Some(slot) = self.slot(id) else {
            return false;
        };
        let Some(holds) = &slot.holds else {
            return false;
        };
        let due = holds
            .registration
            .catch_up(&mut behind.cursor, &behind.inbox, told);
        if due.is_empty() {
            self.keep_up(id, &behind);
            return false;
        }
        for delivery in due {
            let mut text = Text::default();
            match delivery {
                Delivery::Joined(room, told) => {
                    text.joined(&room);
                    self.sit_told(id, told, true, &mut text);
                }
                Delivery::Watching(_, told) => self.sit_told(id, told, false, &mut text),
                Delivery::Left(key, room) => {
                    self.stand(id, key);
                    text.left(&room);
                }
                Delivery::Unwatched(key) => self.stand(id, key),
                Delivery::Told(told) => text.count(&told.room, told.occupancy),
                Delivery::Count(frame) | Delivery::Message(frame) => {
                    if let Some(slot) = self.slot(id) {
                        let bytes = slot.bytes(&frame);
                        slot.queue(bytes);
                    }
                }
                Delivery::Reset(room) => text.reset(&room),
                // Neither goes through a slow slot's inbox.
                Delivery::Expires(_) | Delivery::End(_) => {}
            }
            self.queue_text(id, &text);
        }
        if let Some(slot) = self.slot(id) {
            slot.trouble.get_or_insert_default().behind = Some(behind);
        }
        true
    }

    fn sit_told(&mut self, id: SlotId, told: Option<Told>, joined: bool, text: &mut Text) {
        let Some(told) = told else { return };
        self.stand(id, told.key);
        let seat = Seat {
            key: told.key,
            joined,
            version: told.version,
            // The cursor knows better and says so once the slot keeps up again.
            from: self.head,
        };
        self.sit(id, &seat);
        text.count(&told.room, told.occupancy);
    }

    fn queue_text(&mut self, id: SlotId, text: &Text) {
        if text.is_empty() {
            return;
        }
        if let Some(slot) = self.slot(id) {
            let bytes = slot.bytes(&Frame::of(text.as_bytes()));
            slot.queue(bytes);
        }
    }

    /// Takes what a slot was told meanwhile over into its places.
    fn keep_up(&mut self, id: SlotId, behind: &Behind) {
        for seat in behind.cursor.seats() {
            self.head = self.head.max(seat.from);
            let room = self.rooms.find(seat.key);
            let Some(slot) = self.slot(id) else { return };
            for place in &mut slot.places {
                if Some(place.room) == room {
                    place.version = low(seat.version);
                    place.from = low(seat.from);
                }
            }
        }
        let Some(slot) = self.slot(id) else { return };
        slot.personal_from = low(behind.cursor.personal_from());
        slot.trouble = None;
        self.way.stats.caught_up();
    }

    // ---- words ----

    /// Puts a word where it waits for its turn.
    fn sort(&mut self, word: Word) {
        let Word::Count(key, version, frame) = word else {
            self.words.push_back(word);
            return;
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

    /// Tells counts, messages and orders, for one turn.
    fn work(&mut self) {
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

    fn work_on_words(&mut self, most: usize) -> usize {
        let mut writes = 0;
        while writes < most {
            if let Some(mut pass) = self.message.take() {
                let (told, over) = self.tell(&mut pass, most - writes, Kind::Message);
                writes += told;
                if over {
                    self.end_pass(&pass);
                } else {
                    self.message = Some(pass);
                }
                continue;
            }
            let Some(word) = self.words.pop_front() else {
                break;
            };
            writes += 1;
            match word {
                Word::Order(id, order) => self.obey(id, order),
                Word::Message(key, sequence, frame) => {
                    self.take_turn(sequence);
                    if let Some(room) = self.rooms.find(key) {
                        let pass = self.rooms.begin(room, sequence, frame, self.now);
                        self.message = Some(pass);
                    }
                }
                Word::Personal(id, sequence, frame) => {
                    self.take_turn(sequence);
                    self.tell_personal(id, sequence, &frame);
                }
                Word::Count(..) => {}
            }
        }
        writes
    }

    /// Notes the message whose turn it is.
    fn take_turn(&mut self, sequence: u64) {
        self.told = sequence;
        self.head = self.head.max(sequence);
    }

    fn work_on_counts(&mut self, most: usize) -> usize {
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
                Kind::Message => place.joined && is_newer(pass.number, place.from),
            };
            if !due {
                continue;
            }
            let known = *place;
            match kind {
                Kind::Count => place.version = low(pass.number),
                Kind::Message => place.from = low(pass.number),
            }
            told += 1;
            let id = SlotId {
                index,
                generation: slot.generation,
            };
            match slot.send(&pass.frame, tick) {
                Sent::Taken => self.way.stats.frame(pass.frame.size()),
                Sent::Gone => self.drop_slot(id),
                Sent::Refused => {
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

    fn end_pass(&mut self, pass: &Pass) {
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

    fn tell_personal(&mut self, id: SlotId, sequence: u64, frame: &Frame) {
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
            Sent::Gone => self.drop_slot(id),
            Sent::Refused => self.fall_behind(id),
        }
    }

    /// Does what the hub ordered for one slot.
    fn obey(&mut self, id: SlotId, order: Order) {
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
    fn enter(&mut self, id: SlotId, key: RoomKey, from: Option<u64>, text: &mut Text) {
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
    fn say(&mut self, id: SlotId, text: &Text) {
        if text.is_empty() {
            return;
        }
        self.queue_text(id, text);
        self.go_on(id);
    }

    /// Ends a slot that lets its orders pile up. Comes back as an order.
    fn give_up(&mut self, id: SlotId) {
        if let Some(holds) = self.slot(id).and_then(|slot| slot.holds.as_ref()) {
            holds.registration.end(Reason::Slow, Instant::now());
        }
    }

    fn finish(&mut self, id: SlotId, reason: Reason) {
        let mut text = Text::default();
        text.closed(reason);
        self.last_word(id, Some(&text));
    }

    // ---- time ----

    fn expires(&mut self, id: SlotId, at: Instant) {
        let expires = tick_of(self.start, at);
        let Some(slot) = self.slot(id) else { return };
        slot.expires = expires;
        slot.warned = false;
        self.look_at(id);
    }

    /// Looks at the slots whose time it is.
    fn turn(&mut self) {
        let now = self.tick();
        while let Some((tick, entries)) = self.wheel.turn(now) {
            for (index, generation) in entries {
                let id = SlotId { index, generation };
                if self.slot(id).is_some_and(|slot| slot.check == tick) {
                    self.look_at(id);
                }
            }
        }
    }

    /// Ends, warns or pings a slot, as is due.
    fn look_at(&mut self, id: SlotId) {
        let now = self.tick();
        let heartbeat = self.heartbeat();
        let ping = self.ping.clone();
        let Some(slot) = self.slot(id) else { return };
        if slot.is_closing() {
            return;
        }
        if now >= slot.expires {
            if let Some(holds) = &slot.holds {
                // Comes back as an order.
                holds.registration.end(Reason::Expired, Instant::now());
            }
            return;
        }
        let left = slot.expires - now;
        if !slot.warned && left <= notice_ticks() {
            slot.warned = true;
            let mut text = Text::default();
            text.expiring(TICK * left);
            self.say(id, &text);
        } else if now.saturating_sub(slot.last_write) >= heartbeat && slot.trouble.is_none() {
            match slot.send(&ping, now) {
                Sent::Taken => {}
                Sent::Refused => self.fall_behind(id),
                Sent::Gone => return self.drop_slot(id),
            }
        }
        self.set_check(id);
    }

    fn heartbeat(&self) -> Tick {
        let ticks = self.way.heartbeat.as_millis() / TICK.as_millis();
        Tick::try_from(ticks).unwrap_or(Tick::MAX).max(1)
    }

    /// Notes when a slot is to be looked at next.
    fn set_check(&mut self, id: SlotId) {
        let (now, heartbeat) = (self.tick(), self.heartbeat());
        let Some(slot) = self.slot(id) else { return };
        let mut next = slot.last_write.saturating_add(heartbeat).min(slot.expires);
        if !slot.warned {
            next = next.min(slot.expires.saturating_sub(notice_ticks()));
        }
        if next <= now {
            // A slot in trouble, whose heartbeat can do nothing for it.
            next = now + TICKS_PER_SECOND;
        }
        let check = self.wheel.add((id.index, id.generation), next);
        if let Some(slot) = self.slot(id) {
            slot.check = check;
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Message,
}

fn tick_of(start: Instant, at: Instant) -> Tick {
    let ticks = at.duration_since(start).as_millis() / TICK.as_millis();
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}

fn notice_ticks() -> Tick {
    let ticks = EXPIRY_NOTICE.as_millis() / TICK.as_millis();
    Tick::try_from(ticks).unwrap_or(Tick::MAX)
}

fn append(bytes: &mut Vec<u8>, chunked: bool, text: &[u8]) {
    let frame = Frame::of(text);
    let part: Bytes = if chunked {
        frame.chunk().clone()
    } else {
        frame.payload()
    };
    bytes.extend_from_slice(&part);
}
