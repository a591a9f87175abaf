//! Messages: published, passed on, and replayed for whoever missed them.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Conflict, Cursor, Delivery, Entry, Frame, Idempotency, Opening, Outlet, Position, Published,
    Resume, RoomId, RoomKey, Seat, Word, cursor::Portion, state::State, wakes::Wakes,
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

    /// Tells every stream `reset` for its rooms, since messages up to `place` may have been missed.
    pub(super) fn miss(&mut self, place: u64, wakes: &mut Wakes) {
        let missed = self.log.miss(place);
        self.rooms.horizon = missed;
        let keys: Vec<RoomKey> = self.rooms.keys().collect();
        for key in keys {
            let Some(room) = self.rooms.of(key) else {
                continue;
            };
            room.gone = missed;
            for shard in room.shards() {
                // Looked up in the room's log, which has nothing but that it is gone.
                let word = Word::Message(key, missed, None);
                wakes.post(&self.posts[usize::from(shard)], word);
            }
            wakes.channels.extend(room.channel.clone());
        }
        for person in self.people.members_mut() {
            person.addressed = missed;
            for &connection in &person.connections {
                match &self.connections.get(connection).outlet {
                    Outlet::Inbox(inbox) => wakes.inboxes.push(Arc::clone(inbox)),
                    Outlet::Slot(shard, slot) => {
                        let word = Word::Personal(*slot, missed, None);
                        wakes.post(&self.posts[usize::from(*shard)], word);
                    }
                }
            }
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        hub::{ConnectionId, Hub, Identity, Inbox, Registration, Tempo, UserId},
        sse,
    };

    fn hub() -> Hub {
        let tempo = Tempo {
            push_interval: Duration::from_millis(100),
            leave_grace: Duration::ZERO,
        };
        Hub::new(Box::new(sse::Encoder), tempo)
    }

    fn room() -> RoomId {
        RoomId::parse("blog:1").unwrap()
    }

    fn open(hub: &Hub, resume: Resume) -> (Registration, Arc<Inbox>, Opening) {
        let now = Instant::now();
        let mut registration = hub.register(Entry {
            connection: ConnectionId::random(),
            identity: Identity::Member(UserId::parse("7").unwrap()),
            rooms: vec![room()],
            watching: Vec::new(),
            grants: None,
            expires: now + Duration::from_hours(1),
            since_ms: 0,
            resume,
            by_ticket: false,
        });
        let inbox = Inbox::new();
        let opening = registration.open(&inbox, now).unwrap();
        (registration, inbox, opening)
    }

    fn mark(key: &str, data: &str) -> Option<Idempotency> {
        Some(Idempotency::new(key, "message", data))
    }

    fn deliver(hub: &Hub, placed: u64, mark: Option<Idempotency>) {
        let encode = |id| sse::message("message", &room(), "1", id);
        hub.deliver(&room(), placed, mark, encode, Instant::now());
    }

    fn publish(hub: &Hub, mark: Option<Idempotency>) -> Result<Published, Conflict> {
        let encode = |id| sse::message("message", &room(), "1", id);
        hub.publish(&room(), mark, encode, Instant::now())
    }

    /// How many messages, and for which rooms `reset`.
    fn heard(due: &[Delivery]) -> (usize, Vec<String>) {
        let messages = due.iter().filter(|d| matches!(d, Delivery::Message(_)));
        let resets = due.iter().filter_map(|due| match due {
            Delivery::Reset(room) => Some(room.to_string()),
            _ => None,
        });
        (messages.count(), resets.collect())
    }

    #[test]
    fn of_what_may_be_missed_open_streams_and_those_who_come_back_are_told_once() {
        let hub = hub();
        hub.follow(9, 0);
        let (reader, inbox, opening) = open(&hub, Resume::Fresh);
        let mut cursor = opening.cursor;
        deliver(&hub, 5, None);
        let before = hub.position();
        let due = reader.collect(&mut cursor, &inbox);
        assert_eq!(heard(&due), (1, Vec::new()));
        hub.miss(8);
        let due = reader.collect(&mut cursor, &inbox);
        let both = ["blog:1", "user:7"].map(str::to_owned).to_vec();
        assert_eq!(heard(&due), (0, both.clone()));
        let (_later, _, opening) = open(&hub, Resume::After(before));
        let resets: Vec<String> = opening.resets.iter().map(ToString::to_string).collect();
        assert_eq!(resets, both);
        let (_later, _, opening) = open(&hub, Resume::After(hub.position()));
        assert_eq!(opening.resets, []);
        // What the room drops since does not let it forget.
        for placed in 10..200 {
            deliver(&hub, placed, None);
            let due = reader.collect(&mut cursor, &inbox);
            assert_eq!(heard(&due), (1, Vec::new()));
        }
    }

    #[test]
    fn one_who_is_behind_is_told_that_messages_may_be_missing_though_older_ones_go() {
        let hub = hub();
        hub.follow(9, 0);
        let (reader, inbox, opening) = open(&hub, Resume::Fresh);
        let mut cursor = opening.cursor;
        deliver(&hub, 1, None);
        hub.miss(2);
        for placed in 3..103 {
            deliver(&hub, placed, None);
        }
        let due = reader.collect(&mut cursor, &inbox);
        let both = ["blog:1", "user:7"].map(str::to_owned).to_vec();
        assert_eq!(heard(&due), (100, both));
    }

    #[test]
    fn a_key_holds_for_what_this_node_took_and_what_another_epoch_had() {
        let hub = hub();
        hub.follow(9, 0);
        let (reader, inbox, opening) = open(&hub, Resume::Fresh);
        let mut cursor = opening.cursor;
        let mut messages = || heard(&reader.collect(&mut cursor, &inbox)).0;
        deliver(&hub, 5, mark("a", "1"));
        assert_eq!(messages(), 1);
        let again = publish(&hub, mark("a", "1")).unwrap();
        let position = Position {
            epoch: 9,
            sequence: 5,
        };
        assert_eq!((again.position, again.duplicate), (position, true));
        assert_eq!(publish(&hub, mark("a", "2")), Err(Conflict));
        assert_eq!(messages(), 0);

        assert!(!publish(&hub, mark("b", "1")).unwrap().duplicate);
        assert_eq!(messages(), 1);
        deliver(&hub, 10, mark("b", "1"));
        assert_eq!((messages(), hub.position().sequence), (0, 10));
        // The key's time was over: so the log says, or there would be no second entry.
        deliver(&hub, 11, mark("a", "1"));
        assert_eq!(messages(), 1);
        // Another message won: it is what the key stands for from now on.
        deliver(&hub, 12, mark("b", "2"));
        assert_eq!(messages(), 1);
        assert_eq!(publish(&hub, mark("b", "1")), Err(Conflict));

        hub.follow(10, 12);
        deliver(&hub, 20, mark("a", "1"));
        assert_eq!((messages(), hub.position().sequence), (0, 20));
    }

    #[test]
    fn at_the_end_of_all_places_messages_go_on() {
        let hub = hub();
        hub.follow(9, 0);
        let (reader, inbox, opening) = open(&hub, Resume::Fresh);
        let mut cursor = opening.cursor;
        for _ in 0..3 {
            deliver(&hub, u64::MAX, None);
            assert!(!publish(&hub, None).unwrap().duplicate);
        }
        hub.miss(u64::MAX);
        let due = reader.collect(&mut cursor, &inbox);
        assert_eq!(heard(&due).1.len(), 2);
        assert_eq!(hub.position().sequence, u64::MAX);
    }
}
