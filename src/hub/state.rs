//! What is behind the hub's lock: rooms, people, connections, messages, blocks and the calendar.
//!
//! Each step leaves every number equal to the streams that are open or lingering; what must be
//! woken for it is gathered in [`Wakes`] and woken after the lock is gone.

use std::{sync::Arc, time::Duration};

use smallvec::SmallVec;
use tokio::{sync::broadcast, time::Instant};

use super::{
    Bounds, Change, ChangeError, Conflict, ConnectionId, ConnectionInfo, Counts, Delivery, Encode,
    Entry, Frame, Idempotency, Identity, Inbox, Kick, KickError, MAX_WATCHED, Occupancy, Opening,
    Order, Outlet, Patterns, Position, Post, Published, Reason, Resume, RoomId, RoomKey,
    Rooms as RoomNames, Told, Totals, Turnover, UserId, Word,
    block::Blocks,
    connection::{Connection, Connections, Membership, Phase},
    cursor::{Cursor, Seat},
    log::Log,
    people::People,
    pulse::{Calendar, Due, LONGEST_GAP, gap, task_pass},
    room::{Beat, Pass, Rooms, Viewer},
};

/// Who is to be woken once the lock is gone.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    inboxes: SmallVec<[Arc<Inbox>; 2]>,
    channels: SmallVec<[broadcast::Sender<()>; 2]>,
    posts: SmallVec<[Arc<Post>; 2]>,
    pub(super) pulse: bool,
}

impl Wakes {
    fn post(&mut self, post: &Arc<Post>, word: Word) {
        post.push(word);
        if !self.posts.iter().any(|other| Arc::ptr_eq(other, post)) {
            self.posts.push(Arc::clone(post));
        }
    }

    /// Wakes them.
    pub(super) fn fire(self) {
        for inbox in self.inboxes {
            inbox.wake();
        }
        for post in self.posts {
            post.wake();
        }
        for channel in self.channels {
            // An error says that the last receiver has just gone: nobody is left to wake.
            let _ = channel.send(());
        }
    }
}

#[derive(Debug)]
pub(super) struct State {
    rooms: Rooms,
    people: People,
    connections: Connections,
    log: Log,
    blocks: Blocks,
    calendar: Calendar,
    /// Connections without an identity that are joined to at least one room.
    unidentified: u32,
    turnover: Turnover,
    /// The ways to the shards, by their numbers.
    posts: Vec<Arc<Post>>,
    draining: bool,
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
            turnover: Turnover::default(),
            posts: Vec::new(),
            draining: false,
        }
    }

    /// Adds a shard; answers its number.
    pub(super) fn attach(&mut self, post: Arc<Post>) -> u8 {
        self.posts.push(post);
        u8::try_from(self.posts.len() - 1).unwrap_or(u8::MAX)
    }

    fn order(&self, connection: u32, order: Order, wakes: &mut Wakes) {
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
    fn seat(&mut self, connection: u32, room: u32, taken: bool) {
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

    // ---- opening and ending ----

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
            memberships: SmallVec::new(),
            since_ms: entry.since_ms,
            expires: entry.expires,
            grants: entry.grants.clone(),
            outlet,
        });
        self.connections.at(index).viewer = self.people.arrive(&entry.identity, index);
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
        self.return_of_the_lost(index, now, wakes);
        Ok((index, self.opening(index, entry)))
    }

    /// Drops the lingering connections of a person who is back in one of their rooms.
    fn return_of_the_lost(&mut self, index: u32, now: Instant, wakes: &mut Wakes) {
        let back = self.connections.get(index);
        let Viewer::Person { place, .. } = back.viewer else {
            return;
        };
        let rooms: SmallVec<[u32; 4]> = joined_rooms(back).collect();
        let lost: SmallVec<[u32; 2]> = self
            .people
            .get(place)
            .connections
            .iter()
            .copied()
            .filter(|&other| {
                let other = self.connections.get(other);
                matches!(other.phase, Phase::Lingering(_))
                    && joined_rooms(other).any(|room| rooms.contains(&room))
            })
            .collect();
        for other in lost {
            self.count_out(other, Reason::Replaced, now, wakes);
        }
    }

    /// What a new stream is told first: counts read after it was counted in, then what it missed.
    fn opening(&mut self, index: u32, entry: &Entry) -> Opening {
        let head = self.log.head;
        let personal = entry.identity.user().map(RoomId::personal);
        let memberships = self.connections.get(index).memberships.clone();
        let mut counts = Vec::with_capacity(memberships.len());
        let mut seats: SmallVec<[Seat; 2]> = SmallVec::new();
        for membership in memberships {
            let told = self.rooms.at(membership.room).tell(membership.room);
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
    fn missed<'a>(
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

    /// Counts a connection out at once. Its record stays, without rooms, until its delivery lets
    /// go; a lingering one has none and goes too.
    fn count_out(&mut self, index: u32, reason: Reason, now: Instant, wakes: &mut Wakes) {
        while let Some(membership) = self.connections.get(index).memberships.last().copied() {
            self.part(index, membership, now, wakes);
        }
        self.connections.retire(index);
        let connection = self.connections.at(index);
        let phase = std::mem::replace(&mut connection.phase, Phase::Ended);
        self.people.depart(connection.viewer, index);
        match phase {
            Phase::Open => {
                self.turnover.ended[reason as usize] += 1;
                self.order(index, Order::End(reason), wakes);
            }
            Phase::Lingering(_) => {
                self.connections.remove(index);
            }
            Phase::Ended => {}
        }
    }

    /// Ends an open stream for a reason of its own.
    pub(super) fn end(
        &mut self,
        index: u32,
        serial: u64,
        reason: Reason,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let current = self.connections.of(index, serial);
        if current.is_some_and(|connection| connection.phase == Phase::Open) {
            self.count_out(index, reason, now, wakes);
        }
    }

    /// Lets go of a record whose stream is gone. One that still counted broke, and lingers for
    /// the grace.
    pub(super) fn release(
        &mut self,
        index: u32,
        serial: u64,
        grace: Duration,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(connection) = self.connections.of(index, serial) else {
            return;
        };
        if connection.phase == Phase::Open {
            self.turnover.broken += 1;
        }
        match connection.phase {
            Phase::Open if !grace.is_zero() && !self.draining => {
                let until = now + grace;
                self.connections.at(index).phase = Phase::Lingering(until);
                wakes.pulse |= self.calendar.add(until, Due::Linger(index, serial));
            }
            Phase::Open => {
                // As if it lingered for no time: told to nobody, and gone with its record.
                self.connections.at(index).phase = Phase::Lingering(now);
                self.count_out(index, Reason::Left, now, wakes);
            }
            Phase::Ended => {
                self.connections.remove(index);
            }
            Phase::Lingering(_) => {}
        }
    }

    // ---- rooms of a connection ----

    fn enter(&mut self, index: u32, name: &RoomId, now: Instant, wakes: &mut Wakes) {
        let room_index = self.rooms.obtain(name);
        let connection = self.connections.at(index);
        let viewer = connection.viewer;
        if viewer == Viewer::Connection && connection.joined() == 0 {
            self.unidentified += 1;
        }
        let room = self.rooms.at(room_index);
        let was_empty = room.joined.is_empty();
        let place = room.enter(index, viewer);
        connection.memberships.push(Membership {
            room: room_index,
            place,
        });
        self.rooms.occupied += u32::from(was_empty);
        self.seat(index, room_index, true);
        if let Viewer::Person { place, member } = viewer {
            self.people.note(place, member, true);
        }
        self.touch(room_index, now, wakes);
    }

    fn observe(&mut self, index: u32, name: &RoomId) {
        let room = self.rooms.obtain(name);
        self.rooms.at(room).watchers += 1;
        let connection = self.connections.at(index);
        connection.memberships.push(Membership::watching(room));
        self.seat(index, room, true);
    }

    /// Takes a connection out of one of its rooms, joined or watched.
    fn part(&mut self, index: u32, membership: Membership, now: Instant, wakes: &mut Wakes) {
        let connection = self.connections.at(index);
        let viewer = connection.viewer;
        connection
            .memberships
            .retain(|other| other.room != membership.room);
        let last_joined = connection.joined() == 0;
        self.seat(index, membership.room, false);
        let room = self.rooms.at(membership.room);
        if !membership.is_joined() {
            room.watchers -= 1;
            self.rooms.vacate(membership.room);
            return;
        }
        let moved = room.exit(membership.place, viewer);
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
        match viewer {
            Viewer::Connection => self.unidentified -= u32::from(last_joined),
            Viewer::Person { place, member } => self.people.note(place, member, false),
        }
        self.touch(membership.room, now, wakes);
        self.rooms.vacate(membership.room);
    }

    /// Notes that a room has something to tell.
    fn touch(&mut self, index: u32, now: Instant, wakes: &mut Wakes) {
        let room = self.rooms.at(index);
        let Beat::Quiet(ready) = room.beat else {
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
                    Change::Leave => Order::Left(key, name.clone()),
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
        connection.expires = expires;
        connection.grants = grants;
        self.order(index, Order::Expires(expires), wakes);
        Some(self.info(index))
    }

    fn open_connection(&self, id: ConnectionId) -> Option<u32> {
        let index = self.connections.find(id)?;
        (self.connections.get(index).phase == Phase::Open).then_some(index)
    }

    // ---- goodbyes, kicks, blocks, drain ----

    /// Ends a connection by its own wish.
    pub(super) fn goodbye(&mut self, id: ConnectionId, now: Instant, wakes: &mut Wakes) {
        if let Some(index) = self.connections.find(id) {
            self.count_out(index, Reason::Left, now, wakes);
        }
    }

    pub(super) fn kick(
        &mut self,
        id: ConnectionId,
        kick: Kick<'_>,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<(), KickError> {
        let index = self.connections.find(id).ok_or(KickError::Unknown)?;
        self.may_kick(index, kick.permitted)?;
        let identity = self.identity(self.connections.get(index)).clone();
        self.blocks.expire(now);
        self.blocks.connection(id, now + kick.block, now);
        self.blocks.identity(&identity, now + kick.block, now);
        self.count_out(index, Reason::Kicked, now, wakes);
        Ok(())
    }

    pub(super) fn kick_user(
        &mut self,
        user: &UserId,
        kick: Kick<'_>,
        now: Instant,
        wakes: &mut Wakes,
    ) -> Result<(), KickError> {
        let connections: Vec<u32> = self
            .people
            .find_user(user)
            .map(|person| person.connections.to_vec())
            .unwrap_or_default();
        for &index in &connections {
            self.may_kick(index, kick.permitted)?;
        }
        let identity = Identity::Member(user.clone());
        self.blocks.expire(now);
        self.blocks.identity(&identity, now + kick.block, now);
        for index in connections {
            let id = self.connections.get(index).id;
            self.blocks.connection(id, now + kick.block, now);
            self.count_out(index, Reason::Kicked, now, wakes);
        }
        Ok(())
    }

    fn may_kick(&self, index: u32, permitted: &dyn Fn(&RoomId) -> bool) -> Result<(), KickError> {
        let connection = self.connections.get(index);
        let refused = connection
            .memberships
            .iter()
            .map(|m| &self.rooms.get(m.room).name)
            .find(|name| !permitted(name));
        refused.map_or(Ok(()), |name| Err(KickError::Forbidden(name.clone())))
    }

    pub(super) fn blocked(
        &self,
        id: ConnectionId,
        identity: &Identity,
        now: Instant,
    ) -> Option<Duration> {
        self.blocks.remaining(id, identity, now)
    }

    /// From now on nobody is let in.
    pub(super) fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining
    }

    /// Ends up to `most` streams because the node goes down.
    pub(super) fn shut(&mut self, most: usize, now: Instant, wakes: &mut Wakes) {
        let some: Vec<u32> = self
            .connections
            .current()
            .map(|(index, _)| index)
            .take(most)
            .collect();
        for index in some {
            self.count_out(index, Reason::Shutdown, now, wakes);
        }
    }

    // ---- what streams are told ----

    /// Does what is due by `now`, at most `most` things; true where more is due.
    pub(super) fn pulse(
        &mut self,
        encode: &dyn Encode,
        interval: Duration,
        most: usize,
        now: Instant,
        wakes: &mut Wakes,
    ) -> bool {
        for _ in 0..most {
            let Some(due) = self.calendar.take(now) else {
                return false;
            };
            match due {
                Due::Room(key) => self.speak(key, encode, interval, now, wakes),
                Due::Linger(index, serial) => {
                    let lingering = self
                        .connections
                        .of(index, serial)
                        .is_some_and(|c| matches!(c.phase, Phase::Lingering(_)));
                    if lingering {
                        self.count_out(index, Reason::Left, now, wakes);
                    }
                }
            }
        }
        true
    }

    fn speak(
        &mut self,
        key: RoomKey,
        encode: &dyn Encode,
        interval: Duration,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(room) = self.rooms.of(key) else {
            return;
        };
        if let Some(since) = room.pass.since
            && now.duration_since(since) < LONGEST_GAP
        {
            // The pass before is not at its end: what it will tell may be this change.
            self.calendar.add(now + interval, Due::Room(key));
            return;
        }
        if let Some(next) = room.pass.next
            && now < next
        {
            self.calendar.add(next, Due::Room(key));
            return;
        }
        let pass = room.pass.took.max(task_pass(room.tasks));
        room.beat = Beat::Quiet(Some(now + gap(interval, pass)));
        room.pass = Pass::default();
        let Some(occupancy) = room.pulse() else {
            return;
        };
        let frame = encode.count(&room.name, occupancy);
        for shard in room.shards() {
            room.pass.under_way += 1;
            room.pass.since = Some(now);
            let word = Word::Count(key, room.version, frame.clone());
            wakes.post(&self.posts[usize::from(shard)], word);
        }
        if room.tasks > 0 {
            room.newest = Some((room.version, frame));
            wakes.channels.extend(room.channel.clone());
        }
    }

    /// Notes that a shard told all its viewers of a room the newest pulse, which took it `took`.
    pub(super) fn passed(
        &mut self,
        key: RoomKey,
        took: Duration,
        interval: Duration,
        now: Instant,
    ) {
        let Some(room) = self.rooms.of(key) else {
            return;
        };
        room.pass.under_way = room.pass.under_way.saturating_sub(1);
        room.pass.took = room.pass.took.max(took);
        if room.pass.under_way > 0 {
            return;
        }
        room.pass.since = None;
        let next = now + gap(interval, room.pass.took);
        room.pass.next = Some(next);
        if let Beat::Quiet(_) = room.beat {
            room.beat = Beat::Quiet(Some(next));
        }
    }

    /// When the next thing is due: on the calendar, or the oldest message's end.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Instant> {
        let aged = self.log.expire(&mut self.rooms, now);
        [self.calendar.next(), aged].into_iter().flatten().min()
    }

    /// A receiver of the room's channel, unless the room is gone or nobody is left to listen.
    pub(super) fn listen(&mut self, key: RoomKey) -> Option<broadcast::Receiver<()>> {
        let room = self.rooms.of(key).filter(|room| room.tasks > 0)?;
        let channel = room
            .channel
            .get_or_insert_with(|| broadcast::Sender::new(2));
        Some(channel.subscribe())
    }

    /// What a stream with a task of its own is due: orders, newer counts, newer messages.
    pub(super) fn collect(
        &mut self,
        cursor: &mut Cursor,
        inbox: &Inbox,
        counts: Counts,
    ) -> Vec<Delivery> {
        let mut due = Vec::new();
        while let Some(order) = inbox.pop() {
            match order {
                Order::Joined(key, room, from) => {
                    let told = self.sit(cursor, key, true, from);
                    due.push(Delivery::Joined(room, told));
                }
                Order::Watching(key, room) => {
                    let told = self.sit(cursor, key, false, 0);
                    due.push(Delivery::Watching(room, told));
                }
                Order::Left(key, room) => {
                    self.hear(cursor, Some(key), &mut due);
                    cursor.stand(key);
                    due.push(Delivery::Left(key, room));
                }
                Order::Unwatched(key) => {
                    cursor.stand(key);
                    due.push(Delivery::Unwatched(key));
                }
                Order::Expires(at) => due.push(Delivery::Expires(at)),
                Order::End(reason) => {
                    self.hear(cursor, None, &mut due);
                    due.push(Delivery::End(reason));
                    return due;
                }
            }
        }
        for seat in cursor.seats_mut() {
            if counts == Counts::Now {
                let room = self.rooms.of(seat.key);
                let changed = room.filter(|room| low(room.version) != low(seat.version));
                if let Some(room) = changed {
                    let told = room.tell(seat.key.index);
                    seat.version = told.version;
                    due.push(Delivery::Told(told));
                }
                continue;
            }
            let newest = self
                .rooms
                .of(seat.key)
                .and_then(|room| room.newest.as_ref());
            if let Some((version, frame)) = newest
                && *version > seat.version
            {
                seat.version = *version;
                due.push(Delivery::Count(frame.clone()));
            }
        }
        self.hear(cursor, None, &mut due);
        due
    }

    fn sit(&mut self, cursor: &mut Cursor, key: RoomKey, joined: bool, from: u64) -> Option<Told> {
        let told = self.tell(key)?;
        cursor.sit(Seat::new(&told, joined, from));
        // Some may have come since the order was given.
        cursor.heard = cursor.heard.min(from);
        Some(told)
    }

    /// A room's numbers as given to one stream outside the pulse; `None` where it is gone.
    pub(super) fn tell(&mut self, key: RoomKey) -> Option<Told> {
        self.rooms.of(key).map(|room| room.tell(key.index))
    }

    /// The messages that the cursor has not had: of one room that is being left, or of all.
    fn hear(&mut self, cursor: &mut Cursor, only: Option<RoomKey>, due: &mut Vec<Delivery>) {
        let head = self.log.head;
        if cursor.heard == head {
            return;
        }
        let mut messages: SmallVec<[(u64, Frame); 4]> = SmallVec::new();
        for seat in cursor.seats_mut().filter(|seat| seat.joined) {
            if only.is_some_and(|only| only != seat.key) {
                continue;
            }
            let Some(room) = self.rooms.of(seat.key) else {
                continue;
            };
            if seat.from < room.gone {
                due.push(Delivery::Reset(room.name.clone()));
            }
            if let Some(log) = &room.log {
                messages.extend(log.after(seat.from).map(|m| (m.sequence, m.frame.clone())));
            }
            seat.from = head;
        }
        if only.is_none() {
            self.hear_personal(cursor, &mut messages, due);
            cursor.heard = head;
        }
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
        if *from < gone {
            due.push(Delivery::Reset(name.clone()));
        }
        if let Some(log) = room.and_then(|room| room.log.as_ref()) {
            messages.extend(log.after(*from).map(|m| (m.sequence, m.frame.clone())));
        }
        *from = self.log.head;
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
        let index = self.rooms.obtain(name);
        let quiet = self.log.bytes() == 0;
        let published = self.log.append(&mut self.rooms, index, mark, encode, now)?;
        wakes.pulse |= quiet;
        if !published.duplicate {
            self.pass_on(index, name, published.position.sequence, wakes);
        }
        Ok(published)
    }

    /// Hands a message that was just appended to whom it is for.
    fn pass_on(&mut self, index: u32, name: &RoomId, sequence: u64, wakes: &mut Wakes) {
        let room = self.rooms.get(index);
        let Some(message) = room.log.as_ref().and_then(|log| log.newest()) else {
            return;
        };
        let Some(user) = name.user() else {
            let key = room.key(index);
            for shard in room.shards() {
                let word = Word::Message(key, sequence, message.clone());
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
                    let word = Word::Personal(*slot, sequence, message.clone());
                    wakes.post(&self.posts[usize::from(*shard)], word);
                }
            }
        }
    }

    // ---- what the outside asks ----

    pub(super) fn occupancy(&self, name: &RoomId) -> Occupancy {
        if let Some(user) = name.user() {
            return self
                .people
                .find_user(&user)
                .map_or_else(Occupancy::default, |person| {
                    personal_occupancy(person.connections.len())
                });
        }
        self.rooms
            .find(name)
            .map_or_else(Occupancy::default, |index| {
                self.rooms.get(index).occupancy()
            })
    }

    pub(super) fn occupied(
        &self,
        personal: bool,
        wanted: &dyn Fn(&RoomId) -> bool,
    ) -> Vec<(RoomId, Occupancy)> {
        if personal {
            return self
                .people
                .iter()
                .filter_map(|person| {
                    let name = RoomId::personal(person.identity.user()?);
                    wanted(&name).then(|| (name, personal_occupancy(person.connections.len())))
                })
                .collect();
        }
        self.rooms
            .iter()
            .filter(|room| !room.joined.is_empty() && wanted(&room.name))
            .map(|room| (room.name.clone(), room.occupancy()))
            .collect()
    }

    pub(super) fn totals(&self) -> Totals {
        let connections = u32::try_from(self.connections.count()).unwrap_or(u32::MAX);
        Totals {
            occupancy: Occupancy {
                viewers: self.people.in_rooms + self.unidentified,
                connections,
                members: self.people.members,
            },
            rooms: self.rooms.occupied,
            held: self.connections.held(),
            kept_rooms: self.rooms.len(),
            turnover: self.turnover,
        }
    }

    pub(super) fn counts(&self, id: ConnectionId) -> bool {
        self.connections.find(id).is_some()
    }

    pub(super) fn connection(&self, id: ConnectionId) -> Option<ConnectionInfo> {
        self.connections.find(id).map(|index| self.info(index))
    }

    /// Connections in a room after `after`, by id, at most `limit`; true where more follow.
    pub(super) fn connections_in(
        &self,
        name: &RoomId,
        after: Option<ConnectionId>,
        limit: usize,
    ) -> (Vec<ConnectionInfo>, bool) {
        let indexes: &[u32] = match name.user() {
            Some(user) => self
                .people
                .find_user(&user)
                .map_or(&[], |person| &person.connections),
            None => self
                .rooms
                .find(name)
                .map_or(&[], |index| &self.rooms.get(index).joined),
        };
        let mut found: Vec<(ConnectionId, u32)> = indexes
            .iter()
            .map(|&index| (self.connections.get(index).id, index))
            .filter(|(id, _)| after.is_none_or(|after| *id > after))
            .collect();
        let more = found.len() > limit;
        if more {
            found.select_nth_unstable(limit);
            found.truncate(limit);
        }
        found.sort_unstable();
        let page = found.into_iter().map(|(_, index)| self.info(index));
        (page.collect(), more)
    }

    fn info(&self, index: u32) -> ConnectionInfo {
        let connection = self.connections.get(index);
        let names = |joined: bool| {
            connection
                .memberships
                .iter()
                .filter(|m| m.is_joined() == joined)
                .map(|m| self.rooms.get(m.room).name.clone())
                .collect()
        };
        ConnectionInfo {
            id: connection.id,
            identity: self.identity(connection).clone(),
            since_ms: connection.since_ms,
            expires: connection.expires,
            grants: connection.grants.clone(),
            rooms: RoomNames {
                joined: names(true),
                watching: names(false),
            },
        }
    }

    pub(super) fn personal(&self, index: u32, serial: u64) -> Option<RoomId> {
        let connection = self.connections.of(index, serial)?;
        let current = connection.is_current().then_some(connection)?;
        self.identity(current).user().map(RoomId::personal)
    }

    fn identity(&self, connection: &Connection) -> &Identity {
        match connection.viewer {
            Viewer::Connection => &Identity::Connection,
            Viewer::Person { place, .. } => &self.people.get(place).identity,
        }
    }
}

/// The low half of a version, which is all that a slot keeps of it.
fn low(version: u64) -> u64 {
    version & u64::from(u32::MAX)
}

fn joined_rooms(connection: &Connection) -> impl Iterator<Item = u32> + '_ {
    connection
        .memberships
        .iter()
        .filter(|m| m.is_joined())
        .map(|m| m.room)
}

fn personal_occupancy(connections: usize) -> Occupancy {
    let connections = u32::try_from(connections).unwrap_or(u32::MAX);
    Occupancy {
        viewers: u32::from(connections > 0),
        connections,
        members: u32::from(connections > 0),
    }
}
