//! What is behind the hub's lock, and how streams get into it and change their rooms.
//!
//! Each step leaves every number equal to the streams that are open or lingering; what must be
//! woken for it is gathered in [`Wakes`] and woken after the lock is gone. How streams end is in
//! `ending.rs`, what they are told in `tell.rs` and `messages.rs`, what the outside asks in
//! `census.rs`.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    Bounds, Change, ChangeError, ConnectionId, ConnectionInfo, Entry, MAX_ORDERS, MAX_WATCHED,
    Opening, Order, Outlet, Patterns, Post, Reason, Record, RoomId, Turnover, Word,
    block::Blocks,
    connection::{Connection, Connections, Membership, Phase},
    log::Log,
    people::People,
    pulse::{Calendar, Due},
    room::{Beat, Rooms, Viewer},
    sharing::Sharing,
    wakes::Wakes,
};
#[derive(Debug)]
pub(super) struct State {
    pub(super) rooms: Rooms,
    pub(super) people: People,
    pub(super) connections: Connections,
    pub(super) log: Log,
    pub(super) blocks: Blocks,
    pub(super) calendar: Calendar,
    /// Connections without an identity that are joined to at least one room.
    pub(super) unidentified: u32,
    /// Those of them that were opened by ticket.
    pub(super) ticketed: u32,
    /// Connections that are in [`Phase::Lingering`].
    pub(super) lingering: u32,
    /// What is to be told to other nodes, where there are some.
    pub(super) sharing: Option<Box<Sharing>>,
    pub(super) turnover: Turnover,
    /// The ways to the shards, by their numbers.
    pub(super) posts: Vec<Arc<Post>>,
    pub(super) draining: bool,
    /// Who is told each change of a number.
    pub(super) record: Option<Arc<dyn Record>>,
}

impl State {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            rooms: Rooms::default(),
            people: People::default(),
            connections: Connections::default(),
            log: Log::new(epoch),
            blocks: Blocks::default(),
            calendar: Calendar::default(),
            unidentified: 0,
            ticketed: 0,
            lingering: 0,
            sharing: None,
            turnover: Turnover::default(),
            posts: Vec::new(),
            draining: false,
            record: None,
        }
    }

    /// Adds a shard; answers its number.
    pub(super) fn attach(&mut self, post: Arc<Post>) -> u8 {
        self.posts.push(post);
        u8::try_from(self.posts.len() - 1).unwrap_or(u8::MAX)
    }

    pub(super) fn order(&self, connection: u32, order: Order, wakes: &mut Wakes) {
        match &self.connections.get(connection).outlet {
            Outlet::Inbox(inbox) => {
                inbox.push(order);
                wakes.inboxes.push(Arc::clone(inbox));
            }
            Outlet::Slot(shard, slot) => {
                wakes.post(&self.posts[usize::from(*shard)], Word::Order(*slot, order));
            }
        }
    }

    /// Notes in a room that a connection takes or gives up a seat there.
    pub(super) fn seat(&mut self, connection: u32, room: u32, taken: bool) {
        let room = self.rooms.at(room);
        match self.connections.get(connection).outlet {
            Outlet::Slot(shard, _) => room.seat(shard, taken),
            Outlet::Inbox(_) if taken => room.tasks += 1,
            Outlet::Inbox(_) => {
                room.tasks -= 1;
                if room.tasks == 0 {
                    room.channel = None;
                    room.newest = None;
                }
            }
        }
    }

    pub(super) fn open(
        &mut self,
        entry: &Entry,
        serial: u64,
        outlet: Outlet,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<(u32, Opening), Reason> {
        if self.draining {
            return Err(Reason::Shutdown);
        }
        let blocked = self
            .blocks
            .remaining(entry.connection, &entry.identity, now);
        if blocked.is_some() {
            return Err(Reason::Kicked);
        }
        let older = self.connections.find(entry.connection);
        if older.is_some_and(|older| self.connections.get(older).serial > serial) {
            return Err(Reason::Replaced);
        }
        if let Some(older) = older {
            self.connections.retire(older);
        }
        self.turnover.opened += 1;
        let index = self.connections.insert(Connection {
            id: entry.connection,
            serial,
            phase: Phase::Open,
            viewer: Viewer::Connection,
            by_ticket: entry.by_ticket,
            memberships: SmallVec::new(),
            since_ms: entry.since_ms,
            expires: entry.expires,
            grants: entry.grants.clone(),
            outlet,
        });
        let viewer = match self.people.arrive(&entry.identity, index) {
            Viewer::Connection if entry.by_ticket => Viewer::Ticketed,
            viewer => viewer,
        };
        self.connections.at(index).viewer = viewer;
        let member = matches!(viewer, Viewer::Person { member: true, .. });
        let came = (member && self.people.is_alone(viewer)).then_some(true);
        self.note_share(None, index, came, now, wakes);
        if let Outlet::Inbox(_) = self.connections.get(index).outlet {
            let due = Due::Task(index, serial);
            wakes.pulse |= self.calendar.add(entry.expires, due);
        }
        for room in &entry.rooms {
            self.enter(index, room, now, wakes);
        }
        for room in &entry.watching {
            self.observe(index, room);
        }
        // Only now does the older stream go, so that nobody who reads in between sees a dip, and
        // a room that both are in is never vacated.
        if let Some(older) = older {
            self.count_out(older, Reason::Replaced, now, wakes);
        }
        // After the older stream's end, which takes back what others were to be told of it.
        if entry.by_ticket
            && let Some(sharing) = &mut self.sharing
        {
            sharing.note_opened(entry.connection);
        }
        if older.is_none() {
            self.return_of_the_lost(index, now, wakes);
        }
        self.record_node(now);
        Ok((index, self.opening(index, entry)))
    }

    /// Drops the longest lingering connection of a person who is back in one of its rooms with a
    /// new one. Only that: any other lost tab may still come back, by its ticket to its own place.
    pub(super) fn return_of_the_lost(&mut self, index: u32, now: Instant, wakes: &mut Wakes) {
        if self.lingering == 0 {
            // Most services have no grace, and somebody may have thousands of streams.
            return;
        }
        let back = self.connections.get(index);
        let Viewer::Person { place, .. } = back.viewer else {
            return;
        };
        let rooms: SmallVec<[u32; 4]> = joined_rooms(back).collect();
        let lost = self
            .people
            .get(place)
            .connections
            .iter()
            .filter_map(|&other| {
                let connection = self.connections.get(other);
                let Phase::Lingering(until) = connection.phase else {
                    return None;
                };
                let shared = joined_rooms(connection).any(|room| rooms.contains(&room));
                shared.then_some((until, other))
            })
            .min();
        if let Some((_, other)) = lost {
            self.count_out(other, Reason::Replaced, now, wakes);
        }
    }

    pub(super) fn enter(&mut self, index: u32, name: &RoomId, now: Instant, wakes: &mut Wakes) {
        let room_index = self.rooms.obtain(name);
        let connection = self.connections.at(index);
        let viewer = connection.viewer;
        let first_room = connection.joined() == 0;
        let room = self.rooms.at(room_index);
        let was_empty = room.joined.is_empty();
        let (place, came) = room.enter(index, viewer);
        connection.memberships.push(Membership {
            room: room_index,
            place,
        });
        self.rooms.occupied += u32::from(was_empty);
        self.seat(index, room_index, true);
        let counts_now = match viewer {
            Viewer::Connection | Viewer::Ticketed => {
                self.unidentified += u32::from(first_room);
                self.ticketed += u32::from(first_room && viewer == Viewer::Ticketed);
                first_room
            }
            Viewer::Person { place, member } => self.people.note(place, member, true),
        };
        self.note_share(Some(room_index), index, came.then_some(true), now, wakes);
        if counts_now {
            self.note_share(None, index, Some(true), now, wakes);
        }
        self.touch(room_index, now, wakes);
    }

    pub(super) fn observe(&mut self, index: u32, name: &RoomId) {
        let room = self.rooms.obtain(name);
        self.rooms.at(room).watchers += 1;
        let connection = self.connections.at(index);
        connection.memberships.push(Membership::watching(room));
        self.seat(index, room, true);
    }

    /// Takes a connection out of one of its rooms, joined or watched.
    pub(super) fn part(
        &mut self,
        index: u32,
        membership: Membership,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let connection = self.connections.at(index);
        let viewer = connection.viewer;
        connection
            .memberships
            .retain(|other| other.room != membership.room);
        let last_joined = connection.joined() == 0;
        self.seat(index, membership.room, false);
        let room = self.rooms.at(membership.room);
        if !membership.is_joined() {
            room.unwatch();
            self.rooms.vacate(membership.room);
            return;
        }
        let (moved, went) = room.exit(membership.place, viewer);
        if room.joined.is_empty() {
            self.rooms.occupied -= 1;
        }
        if let Some(moved) = moved {
            let memberships = &mut self.connections.at(moved).memberships;
            for other in memberships.iter_mut() {
                if other.room == membership.room {
                    other.place = membership.place;
                }
            }
        }
        let counted_until_now = match viewer {
            Viewer::Connection | Viewer::Ticketed => {
                self.unidentified -= u32::from(last_joined);
                self.ticketed -= u32::from(last_joined && viewer == Viewer::Ticketed);
                last_joined
            }
            Viewer::Person { place, member } => self.people.note(place, member, false),
        };
        self.note_share(
            Some(membership.room),
            index,
            went.then_some(false),
            now,
            wakes,
        );
        if counted_until_now {
            self.note_share(None, index, Some(false), now, wakes);
        }
        self.touch(membership.room, now, wakes);
        self.rooms.vacate(membership.room);
    }

    /// Notes that the numbers of the whole node may have changed.
    pub(super) fn record_node(&self, now: Instant) {
        if let Some(record) = &self.record {
            record.note_node(self.total(), now);
        }
    }

    /// Notes that a room's numbers changed, so that it has something to tell.
    pub(super) fn touch(&mut self, index: u32, now: Instant, wakes: &mut Wakes) {
        let room = self.rooms.at(index);
        if let Some(record) = &self.record {
            record.note_room(&room.name, room.occupancy(), now);
        }
        let Beat::Quiet(ready) = room.beat else {
            self.turnover.conflated += 1;
            return;
        };
        if !room.has_audience() {
            return;
        }
        room.beat = Beat::Waiting;
        let at = ready.map_or(now, |ready| ready.max(now));
        let due = Due::Room(room.key(index));
        wakes.pulse |= self.calendar.add(at, due);
    }

    /// Joins or leaves rooms on an open stream: all of them or none.
    pub(super) fn change(
        &mut self,
        id: ConnectionId,
        change: Change,
        names: &[RoomId],
        bounds: Bounds<'_>,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<ConnectionInfo, ChangeError> {
        let index = self.open_connection(id).ok_or(ChangeError::Unknown)?;
        if let Outlet::Inbox(inbox) = &self.connections.get(index).outlet
            && inbox.len() > MAX_ORDERS
        {
            self.count_out(index, Reason::Slow, now, wakes);
            return Err(ChangeError::Unknown);
        }
        let before = self.connections.get(index);
        let membership = |state: &Self, name: &RoomId| {
            let room = state.rooms.find(name)?;
            let connection = state.connections.get(index);
            connection
                .memberships
                .iter()
                .copied()
                .find(|m| m.room == room)
        };
        let (joined, watching) = (before.joined(), before.memberships.len() - before.joined());
        let mut to_do: SmallVec<[(&RoomId, Option<Membership>); 4]> = SmallVec::new();
        for name in names {
            let now_there = membership(self, name);
            let needed = match change {
                Change::Join => now_there.is_none_or(|m| !m.is_joined()),
                Change::Watch => now_there.is_none(),
                Change::Leave => now_there.is_some_and(Membership::is_joined),
                Change::Unwatch => now_there.is_some_and(|m| !m.is_joined()),
            };
            if needed && !name.is_personal() {
                to_do.push((name, now_there));
            }
        }
        let too_many = match change {
            Change::Join => joined + to_do.len() > bounds.most_joined,
            Change::Watch => watching + to_do.len() > MAX_WATCHED,
            Change::Leave | Change::Unwatch => false,
        };
        if too_many {
            return Err(ChangeError::TooManyRooms);
        }
        let mut after = self.info(index);
        for (name, _) in &to_do {
            after.rooms.change(change, name);
        }
        if !(bounds.fits)(&after) {
            return Err(ChangeError::DoNotFit);
        }
        for (name, now_there) in to_do {
            if let Some(membership) = now_there {
                let key = self.rooms.get(membership.room).key(membership.room);
                let order = match change {
                    Change::Leave => Order::Left(key, name.clone(), self.log.head),
                    Change::Join | Change::Watch | Change::Unwatch => Order::Unwatched(key),
                };
                self.order(index, order, wakes);
                self.part(index, membership, now, wakes);
            }
            match change {
                Change::Join => self.enter(index, name, now, wakes),
                Change::Watch => self.observe(index, name),
                Change::Leave | Change::Unwatch => continue,
            }
            if let Some(room) = self.rooms.find(name) {
                let key = self.rooms.get(room).key(room);
                let order = match change {
                    Change::Join => Order::Joined(key, name.clone(), self.log.head),
                    Change::Watch | Change::Leave | Change::Unwatch => {
                        Order::Watching(key, name.clone())
                    }
                };
                self.order(index, order, wakes);
            }
        }
        self.record_node(now);
        Ok(self.info(index))
    }

    /// Lets an open stream last until `expires`, with new grants.
    pub(super) fn renew(
        &mut self,
        id: ConnectionId,
        expires: Instant,
        grants: Option<Arc<Patterns>>,
        wakes: &mut Wakes,
    ) -> Option<ConnectionInfo> {
        let index = self.open_connection(id)?;
        let connection = self.connections.at(index);
        let before = std::mem::replace(&mut connection.expires, expires);
        connection.grants = grants;
        let serial = connection.serial;
        if let Outlet::Inbox(_) = connection.outlet {
            let due = Due::Task(index, serial);
            self.calendar.remove(before, due);
            wakes.pulse |= self.calendar.add(expires, due);
        }
        self.order(index, Order::Expires(expires), wakes);
        Some(self.info(index))
    }

    pub(super) fn open_connection(&self, id: ConnectionId) -> Option<u32> {
        let index = self.connections.find(id)?;
        (self.connections.get(index).phase == Phase::Open).then_some(index)
    }
}

fn joined_rooms(connection: &Connection) -> impl Iterator<Item = u32> + '_ {
    connection
        .memberships
        .iter()
        .filter(|m| m.is_joined())
        .map(|m| m.room)
}
