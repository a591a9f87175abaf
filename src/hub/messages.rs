//! Messages: published, passed on, and replayed for whoever missed them.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Conflict, Cursor, Delivery, Entry, Frame, Idempotency, Opening, Outlet, Position, Published,
    Resume, RoomId, Seat, Word, cursor::Portion, state::State, wakes::Wakes,
};
impl State {
    /// What a new stream is told first: counts read after it was counted in, then what it missed.
    pub(super) fn opening(&mut self, index: u32, entry: &Entry) -> Opening {
        let head = self.log.head;
        let personal = entry.identity.user().map(RoomId::personal);
        let memberships = self.connections.get(index).memberships.clone();
        let mut counts = Vec::with_capacity(memberships.len());
        let missed_from = match entry.resume {
            Resume::After(position) => self.log.locate(position),
            Resume::Unknown | Resume::Fresh => None,
        };
        let mut seats: SmallVec<[Seat; 2]> = SmallVec::new();
        for membership in memberships {
            let room = self.rooms.at(membership.room);
            let told = room.greet(membership.room);
            // What is no longer kept is said to be lost here, and not again by the cursor.
            let from = missed_from.map_or(head, |from| from.max(room.gone));
            seats.push(Seat::new(&told, membership.is_joined(), from));
            counts.push(told);
        }
        let names = || entry.rooms.iter().chain(&personal);
        let resets = match (entry.resume, missed_from) {
            (Resume::Fresh, _) => Vec::new(),
            (Resume::After(_), Some(sequence)) => self.lost(names(), sequence),
            (Resume::After(_) | Resume::Unknown, _) => names().cloned().collect(),
        };
        let personal = personal.map(|name| {
            let from = missed_from.map(|from| from.max(self.personal_gone(&name)));
            (name, from.unwrap_or(head))
        });
        let mut cursor = Cursor::new(seats, personal);
        let mut missed = Vec::new();
        let whole = missed_from.is_none()
            || self.hear(&mut cursor, head, &mut Portion::default(), &mut missed);
        let messages: Vec<Frame> = missed
            .into_iter()
            .filter_map(|delivery| match delivery {
                Delivery::Message(frame) => Some(frame),
                _ => None,
            })
            .collect();
        let starts_at = match entry.resume {
            Resume::After(position) if !messages.is_empty() => position,
            Resume::After(_) | Resume::Unknown | Resume::Fresh => self.log.position(),
        };
        Opening {
            starts_at,
            counts,
            resets,
            messages,
            owed: (!whole).then_some(head),
            cursor,
        }
    }

    /// The rooms of a returning stream of whose messages after `sequence` some may be lost.
    fn lost<'a>(&self, names: impl Iterator<Item = &'a RoomId>, sequence: u64) -> Vec<RoomId> {
        let lost = |name: &&RoomId| match self.rooms.find(name) {
            Some(index) => {
                let room = self.rooms.get(index);
                sequence < room.gone.max(room.born)
            }
            None => sequence < self.rooms.horizon,
        };
        names.filter(lost).cloned().collect()
    }

    /// The messages up to `until` that the cursor has not had, of all rooms in one order, as far
    /// as the portion goes; true where it went all the way.
    pub(super) fn hear(
        &mut self,
        cursor: &mut Cursor,
        until: u64,
        portion: &mut Portion,
        due: &mut Vec<Delivery>,
    ) -> bool {
        if cursor.heard >= until {
            return true;
        }
        let mut messages: SmallVec<[(u64, Frame); 4]> = SmallVec::new();
        for seat in cursor.seats_mut().filter(|seat| seat.joined) {
            let Some(room) = self.rooms.of(seat.key) else {
                continue;
            };
            if seat.from < room.gone.min(until) {
                due.push(Delivery::Reset(room.name.clone()));
                seat.from = room.gone.min(until);
            }
            if let Some(log) = &room.log {
                messages.extend(log.between(seat.from, until));
            }
        }
        if let Some((name, from)) = &mut cursor.personal {
            let gone = self.personal_gone(name);
            if *from < gone.min(until) {
                due.push(Delivery::Reset(name.clone()));
                *from = gone.min(until);
            }
            let room = self.rooms.find(name).map(|index| self.rooms.get(index));
            if let Some(log) = room.and_then(|room| room.log.as_ref()) {
                messages.extend(log.between(*from, until));
            }
        }
        messages.sort_unstable_by_key(|(sequence, _)| *sequence);
        let mut heard = None;
        for (sequence, frame) in messages {
            if !portion.take(frame.size()) {
                if let Some(heard) = heard {
                    cursor.hear(heard);
                }
                return false;
            }
            heard = Some(sequence);
            due.push(Delivery::Message(frame));
        }
        cursor.hear(until);
        true
    }

    /// The highest sequence of a message to a personal room that is no longer kept.
    fn personal_gone(&self, name: &RoomId) -> u64 {
        if let Some(index) = self.rooms.find(name) {
            return self.rooms.get(index).gone;
        }
        let person = name.user().and_then(|user| self.people.find_user(&user));
        person.map_or(0, |person| person.addressed)
    }

    pub(super) fn publish(
        &mut self,
        name: &RoomId,
        mark: Option<Idempotency>,
        encode: impl FnOnce(Position) -> Frame,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<Published, Conflict> {
        self.log.expire(&mut self.rooms, now);
        let index = match self.rooms.find(name) {
            Some(index) => index,
            None => self.obtain_for_messages(name),
        };
        let quiet = self.log.bytes() == 0;
        let placed = None;
        let log = &mut self.log;
        let published = log.append(&mut self.rooms, index, mark, placed, encode, now)?;
        wakes.pulse |= quiet;
        if !published.duplicate {
            self.pass_on(index, name, self.log.head, wakes);
        }
        Ok(published)
    }

    /// Appends a message that the cluster's order placed, and hands it to whom it is for, unless
    /// they have had it.
    pub(super) fn deliver(
        &mut self,
        name: &RoomId,
        placed: u64,
        mark: Option<Idempotency>,
        encode: impl FnOnce(Position) -> Frame,
        at: Instant,
        wakes: &mut Wakes,
    ) {
        let index = match self.rooms.find(name) {
            Some(index) => index,
            None => self.obtain_for_messages(name),
        };
        wakes.pulse |= self.log.bytes() == 0;
        let log = &mut self.log;
        let appended = log.append(&mut self.rooms, index, mark, Some(placed), encode, at);
        match appended {
            Ok(published) if !published.duplicate => {
                self.pass_on(index, name, self.log.head, wakes);
            }
            Ok(_) | Err(Conflict) => self.log.realign(placed),
        }
    }

    /// Opens a room for its first message. What a personal room of this name kept before is gone
    /// with that one, and a stream of its person may not have had it yet.
    fn obtain_for_messages(&mut self, name: &RoomId) -> u32 {
        let index = self.rooms.obtain(name);
        let person = name.user().and_then(|user| self.people.find_user(&user));
        self.rooms.at(index).gone = person.map_or(0, |person| person.addressed);
        index
    }

    /// Hands a message that was just appended to whom it is for.
    pub(super) fn pass_on(&mut self, index: u32, name: &RoomId, sequence: u64, wakes: &mut Wakes) {
        let room = self.rooms.get(index);
        let Some(message) = room.log.as_ref().and_then(|log| log.newest()) else {
            return;
        };
        let Some(user) = name.user() else {
            let key = room.key(index);
            for shard in room.shards() {
                let word = Word::Message(key, sequence, Some(message.clone()));
                wakes.post(&self.posts[usize::from(shard)], word);
            }
            wakes.channels.extend(room.channel.clone());
            return;
        };
        let person = self.people.address(&user, sequence);
        for &connection in person.map_or(&[][..], |person| &person.connections) {
            match &self.connections.get(connection).outlet {
                Outlet::Inbox(inbox) => wakes.inboxes.push(Arc::clone(inbox)),
                Outlet::Slot(shard, slot) => {
                    let word = Word::Personal(*slot, sequence, Some(message.clone()));
                    wakes.post(&self.posts[usize::from(*shard)], word);
                }
            }
        }
    }
}
