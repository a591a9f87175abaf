//! Messages: published, passed on, and replayed for whoever missed them.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Conflict, Cursor, Delivery, Entry, Frame, Idempotency, Opening, Outlet, Position, Published,
    Resume, RoomId, Seat, Word, state::State, wakes::Wakes,
};
impl State {
    /// What a new stream is told first: counts read after it was counted in, then what it missed.
    pub(super) fn opening(&mut self, index: u32, entry: &Entry) -> Opening {
        let head = self.log.head;
        let personal = entry.identity.user().map(RoomId::personal);
        let memberships = self.connections.get(index).memberships.clone();
        let mut counts = Vec::with_capacity(memberships.len());
        let mut seats: SmallVec<[Seat; 2]> = SmallVec::new();
        for membership in memberships {
            let told = self.rooms.at(membership.room).greet(membership.room);
            seats.push(Seat::new(&told, membership.is_joined(), head));
            counts.push(told);
        }
        let names = || entry.rooms.iter().chain(&personal);
        let (resets, messages) = match entry.resume {
            Resume::Fresh => (Vec::new(), Vec::new()),
            Resume::After(position)
                if position.epoch == self.log.epoch && position.sequence <= head =>
            {
                self.missed(names(), position.sequence)
            }
            Resume::After(_) | Resume::Unknown => (names().cloned().collect(), Vec::new()),
        };
        let starts_at = match entry.resume {
            Resume::After(position) if !messages.is_empty() => position,
            Resume::After(_) | Resume::Unknown | Resume::Fresh => self.log.position(head),
        };
        Opening {
            starts_at,
            counts,
            resets,
            messages,
            cursor: Cursor::new(seats, personal.map(|name| (name, head))),
        }
    }

    /// What the rooms of a returning stream were sent after `sequence`, and those of which some
    /// may be lost.
    pub(super) fn missed<'a>(
        &self,
        names: impl Iterator<Item = &'a RoomId>,
        sequence: u64,
    ) -> (Vec<RoomId>, Vec<Frame>) {
        let mut resets = Vec::new();
        let mut kept = Vec::new();
        for name in names {
            let Some(room) = self.rooms.find(name).map(|index| self.rooms.get(index)) else {
                if sequence < self.rooms.horizon {
                    resets.push(name.clone());
                }
                continue;
            };
            if sequence < room.gone.max(room.born) {
                resets.push(name.clone());
            }
            if let Some(log) = &room.log {
                kept.extend(log.after(sequence).map(|m| (m.sequence, m.frame.clone())));
            }
        }
        kept.sort_unstable_by_key(|(sequence, _)| *sequence);
        (resets, kept.into_iter().map(|(_, frame)| frame).collect())
    }

    /// The messages up to `until` that the cursor has not had, of all rooms in one order.
    pub(super) fn hear(&mut self, cursor: &mut Cursor, until: u64, due: &mut Vec<Delivery>) {
        if cursor.heard >= until {
            return;
        }
        cursor.heard = until;
        let mut messages: SmallVec<[(u64, Frame); 4]> = SmallVec::new();
        for seat in cursor.seats_mut().filter(|seat| seat.joined) {
            let Some(room) = self.rooms.of(seat.key) else {
                continue;
            };
            if seat.from < room.gone.min(until) {
                due.push(Delivery::Reset(room.name.clone()));
            }
            if let Some(log) = &room.log {
                messages.extend(log.between(seat.from, until));
            }
            seat.from = seat.from.max(until);
        }
        self.hear_personal(cursor, until, &mut messages, due);
        messages.sort_unstable_by_key(|(sequence, _)| *sequence);
        due.extend(
            messages
                .into_iter()
                .map(|(_, frame)| Delivery::Message(frame)),
        );
    }

    fn hear_personal(
        &self,
        cursor: &mut Cursor,
        until: u64,
        messages: &mut SmallVec<[(u64, Frame); 4]>,
        due: &mut Vec<Delivery>,
    ) {
        let Some((name, from)) = &mut cursor.personal else {
            return;
        };
        let room = self.rooms.find(name).map(|index| self.rooms.get(index));
        let addressed = || {
            let user = name.user()?;
            self.people.find_user(&user).map(|person| person.addressed)
        };
        let gone = match room {
            Some(room) => room.gone,
            None => addressed().unwrap_or(0),
        };
        if *from < gone.min(until) {
            due.push(Delivery::Reset(name.clone()));
        }
        if let Some(log) = room.and_then(|room| room.log.as_ref()) {
            messages.extend(log.between(*from, until));
        }
        *from = until.max(*from);
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
        let published = self.log.append(&mut self.rooms, index, mark, encode, now)?;
        wakes.pulse |= quiet;
        if !published.duplicate {
            self.pass_on(index, name, published.position.sequence, wakes);
        }
        Ok(published)
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
