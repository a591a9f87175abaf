//! The hub: who is in which room of this node, and what they are to be told.
//!
//! It knows no socket, no HTTP, no JSON and no token. Streams are opened through
//! [`Hub::register`] and counted exactly as long as the [`Registration`] lives; numbers are told
//! through [`Frame`]s that an [`Encode`] handed in makes, once per change.
//!
//! The order of things: a stream is counted in, then its rooms' counts are read, then they are
//! told; a stream is counted out, then its end is announced. All under one lock, since a stream's
//! rooms, its viewer and its connection change together; nothing awaits under it. With one lock
//! this node lets in 37,000 streams a second on two cores, load included (`cargo bench --bench load
//! -- joins`), so it was not divided.

mod block;
mod census;
mod connection;
mod cursor;
mod ending;
mod frame;
pub mod id;
mod log;
mod messages;
mod outlet;
pub mod pattern;
mod people;
mod pulse;
mod room;
mod sharing;
mod state;
mod tell;
mod terms;
mod wakes;

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, broadcast},
    time::Instant,
};

#[cfg(test)]
pub(crate) use self::sharing::Nameless;
pub(crate) use self::terms::Counts;
pub use self::{
    block::{Blocked, MOST_BLOCKS},
    cursor::{Cursor, Seat},
    frame::Frame,
    id::{ConnectionId, Identity, InvalidName, RoomId, UserId, ViewerName},
    log::{Conflict, Idempotency, Position, Published},
    outlet::{Inbox, MAX_ORDERS, Order, Outlet, Post, Reason, SlotId, WAITING_BYTES, Word},
    pattern::{InvalidPatterns, Patterns},
    room::{Occupancy, RoomKey, Told},
    sharing::{Fingerprint, Fingerprints, MEMBER, Part},
    terms::{
        Bounds, Change, ChangeError, ConnectionInfo, Delivery, Entry, Kick, KickError, Opening,
        Resume, RoomList, Standing, Totals, Turnover,
    },
};
use self::{state::State, wakes::Wakes};

/// Most rooms that one connection may watch, as the contract fixes it.
pub const MAX_WATCHED: usize = 100;

/// Rooms told in one go before the lock is offered to others.
const PULSE_BATCH: usize = 256;

/// Turns numbers into the bytes that a room's viewers are sent.
pub trait Encode: Send + Sync {
    /// The frame of a room's count.
    fn count(&self, room: &RoomId, occupancy: Occupancy) -> Frame;
}

/// Is told every number as it changes, in order and under the hub's lock, so it must be quick.
/// Within one step a number may change twice at the same `now`: only the last one was.
pub trait Record: fmt::Debug + Send + Sync {
    /// A room's numbers are these now; zero where it was vacated.
    fn note_room(&self, room: &RoomId, occupancy: Occupancy, now: Instant);

    /// The numbers of the whole node are these now.
    fn note_node(&self, occupancy: Occupancy, now: Instant);
}

/// The hub's own settings.
#[derive(Debug, Clone, Copy)]
pub struct Tempo {
    /// Shortest time between two counts of a room.
    pub push_interval: Duration,
    /// How long a connection whose stream broke still counts.
    pub leave_grace: Duration,
}

/// This node's rooms. A cheap handle; clones share one hub.
#[derive(Clone)]
pub struct Hub(Arc<Shared>);

struct Shared {
    /// One lock for all: a stream's rooms, its person and its connection change together or the
    /// numbers would be seen apart. Held for microseconds; never across an await.
    state: Mutex<State>,
    serials: AtomicU64,
    due: Notify,
    /// Woken when something is to be told to the other nodes.
    share: Notify,
    encode: Box<dyn Encode>,
    tempo: Tempo,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hub({:?})", self.totals())
    }
}

impl Hub {
    /// Makes an empty hub. [`Hub::run`] must run for anybody to be told anything.
    #[must_use]
    pub fn new(encode: Box<dyn Encode>, tempo: Tempo) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State::new(rand::random::<u64>() >> 16)),
            serials: AtomicU64::new(0),
            due: Notify::new(),
            share: Notify::new(),
            encode,
            tempo,
        }))
    }

    /// Runs one step under the lock and wakes whom it concerns after.
    fn step<T>(&self, step: impl FnOnce(&mut State, &mut Wakes) -> T) -> T {
        let mut wakes = Wakes::default();
        let result = step(&mut self.0.state.lock(), &mut wakes);
        if wakes.pulse {
            self.0.due.notify_one();
        }
        if wakes.share {
            self.0.share.notify_one();
        }
        wakes.fire();
        result
    }

    /// Tells the rooms' viewers what is due, for ever.
    ///
    /// Cancel safe: dropped, nothing is lost, and another run goes on from there.
    pub async fn run(&self) {
        loop {
            let next = self.pulse(Instant::now());
            let sleep = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {}
                () = self.0.due.notified() => {}
            }
        }
    }

    /// Does everything that is due by `now`; answers when the next thing is.
    #[must_use]
    pub fn pulse(&self, now: Instant) -> Option<Instant> {
        let shared = &self.0;
        let interval = shared.tempo.push_interval;
        while self
            .step(|state, wakes| state.pulse(&*shared.encode, interval, PULSE_BATCH, now, wakes))
        {
        }
        shared.state.lock().next_due(now)
    }

    /// Prepares to let a stream in. Nothing is counted before [`Registration::open`].
    #[must_use]
    pub fn register(&self, entry: Entry) -> Registration {
        Registration {
            hub: self.clone(),
            serial: self.0.serials.fetch_add(1, Ordering::Relaxed),
            phase: Phase::Pending(Box::new(entry)),
        }
    }

    /// Changes the rooms of an open stream: all as asked, or nothing. `bounds` are asked before
    /// anything changes.
    ///
    /// # Errors
    ///
    /// When no open stream has this connection, or the new set of rooms is out of bounds.
    pub fn change(
        &self,
        connection: ConnectionId,
        change: Change,
        rooms: &[RoomId],
        bounds: Bounds<'_>,
        now: Instant,
    ) -> Result<ConnectionInfo, ChangeError> {
        self.step(|state, wakes| state.change(connection, change, rooms, bounds, now, wakes))
    }

    /// Lets an open stream last until `expires`, with new grants; `None` where there is none.
    #[must_use]
    pub fn renew(
        &self,
        connection: ConnectionId,
        expires: Instant,
        grants: Option<Arc<Patterns>>,
    ) -> Option<ConnectionInfo> {
        self.step(|state, wakes| state.renew(connection, expires, grants, wakes))
    }

    /// Ends a stream by its client's own wish, a lingering one included, if there is one.
    pub fn goodbye(&self, connection: ConnectionId, now: Instant) {
        self.step(|state, wakes| state.goodbye(connection, now, wakes));
    }

    /// Throws a connection out, and keeps it and its viewer out for a while.
    ///
    /// # Errors
    ///
    /// When there is no such connection, or it is in a room that is not permitted.
    pub fn kick(
        &self,
        connection: ConnectionId,
        kick: Kick<'_>,
        now: Instant,
    ) -> Result<(), KickError> {
        self.step(|state, wakes| state.kick(connection, kick, now, wakes))
    }

    /// Throws all connections of a user out, and keeps the user out for a while, here or not.
    ///
    /// # Errors
    ///
    /// When one of the connections is in a room that is not permitted; then none is thrown out.
    pub fn kick_user(&self, user: &UserId, kick: Kick<'_>, now: Instant) -> Result<(), KickError> {
        self.step(|state, wakes| state.kick_user(user, kick, now, wakes))
    }

    /// How much longer this connection or viewer is refused, if at all.
    #[must_use]
    pub fn blocked(
        &self,
        connection: ConnectionId,
        identity: &Identity,
        now: Instant,
    ) -> Option<Duration> {
        self.0.state.lock().blocked(connection, identity, now)
    }

    /// What speaks for and against opening this connection's stream now.
    #[must_use]
    pub fn standing(
        &self,
        connection: ConnectionId,
        identity: &Identity,
        now: Instant,
    ) -> Standing {
        let state = self.0.state.lock();
        Standing {
            blocked: state.blocked(connection, identity, now),
            is_draining: state.is_draining(),
            is_open: state.is_open(connection),
        }
    }

    /// Sends a message to everybody in a room, or to all connections of a user by the personal
    /// room's name, and keeps it for those who come back. `encode` is called once, under the
    /// hub's lock, unless the message is a duplicate.
    ///
    /// # Errors
    ///
    /// When the idempotency key was used for another message within five minutes.
    pub fn publish(
        &self,
        room: &RoomId,
        mark: Option<Idempotency>,
        encode: impl FnOnce(Position) -> Frame,
        now: Instant,
    ) -> Result<Published, Conflict> {
        self.step(|state, wakes| state.publish(room, mark, encode, now, wakes))
    }

    /// Sends a message that stands at `placed` in the order that all nodes share, as
    /// [`Hub::publish`] does; what `mark` says that this node sent before its time counts as with
    /// [`Hub::realign`]. `at` is when it was said.
    pub fn deliver(
        &self,
        room: &RoomId,
        placed: u64,
        mark: Option<Idempotency>,
        encode: impl FnOnce(Position) -> Frame,
        at: Instant,
    ) {
        self.step(|state, wakes| state.deliver(room, placed, mark, encode, at, wakes));
    }

    /// The position up to which this node has everything.
    #[must_use]
    pub fn position(&self) -> Position {
        self.0.state.lock().log.position()
    }

    /// Notes that a message which this node delivered before its time stands at `place` in the
    /// order that all share. Who comes back with a position before it may have heard others in
    /// another order, and is told that something may be lost.
    pub fn realign(&self, place: u64) {
        self.0.state.lock().log.realign(place);
    }

    /// Notes that messages up to `place` in the order that all share may never have come here:
    /// every stream is told `reset` for its rooms, and so is who comes back with a position before.
    pub fn miss(&self, place: u64) {
        self.step(|state, wakes| state.miss(place, wakes));
    }

    /// From now on messages are placed by the order `epoch`, of which this node knows what comes
    /// after `from`.
    pub fn follow(&self, epoch: u64, from: u64) {
        self.0.state.lock().log.follow(epoch, from);
    }

    /// From now on what changes is noted for the other nodes, until it is taken by
    /// [`Hub::take_parts`]. Comes before the first stream.
    pub fn share(&self, fingerprints: Box<dyn Fingerprints>) {
        self.0.state.lock().share(fingerprints);
    }

    /// Waits until something is to be told to the other nodes.
    ///
    /// Cancel safe.
    pub async fn shared(&self) {
        self.0.share.notified().await;
    }

    /// True where something waits to be told to the other nodes.
    #[must_use]
    pub fn has_parts(&self) -> bool {
        self.0.state.lock().has_parts()
    }

    /// Takes this node's parts of at most `most_rooms` changed rooms, with at most `most_moves`
    /// viewers that came or went, to be told by this batch; what does not fit waits for the next
    /// call.
    #[must_use]
    pub fn take_parts(&self, most_rooms: usize, most_moves: usize, batch: u64) -> Vec<Part> {
        let mut state = self.0.state.lock();
        state.take_parts(most_rooms, most_moves, batch)
    }

    /// Takes at most `most` connections that are open here by a ticket and that no other node was
    /// told of: no other one may hold them any more. With when they were opened, in milliseconds
    /// of Unix time.
    #[must_use]
    pub fn take_opened(&self, most: usize) -> Vec<(ConnectionId, u64)> {
        self.0.state.lock().take_opened(most)
    }

    /// Which of these connections still have the stream here that was opened then, in milliseconds
    /// of Unix time: one that has ended or broken is no stream any more.
    #[must_use]
    pub fn are_open(&self, openings: &[(ConnectionId, u64)]) -> Vec<bool> {
        let state = self.0.state.lock();
        let open = |(id, since_ms): &(ConnectionId, u64)| state.is_open_since(*id, *since_ms);
        openings.iter().map(open).collect()
    }

    /// Has these connections, or all that a ticket opened, told to the other nodes again.
    pub fn claim_again(&self, these: Option<&[ConnectionId]>) {
        self.step(|state, wakes| state.claim_again(these, wakes));
    }

    /// From now on nothing is noted for the other nodes until [`Hub::share_all`].
    pub fn stop_sharing(&self) {
        self.0.state.lock().stop_sharing();
    }

    /// Takes the blocks made here since they were last taken.
    #[must_use]
    pub fn take_blocks(&self) -> Vec<(Blocked, Instant)> {
        self.0.state.lock().take_blocks()
    }

    /// Has everything told again, as to somebody who knows nothing; of `and_these` even where
    /// nothing is left.
    pub fn share_all(&self, and_these: impl IntoIterator<Item = Option<RoomId>>, now: Instant) {
        let mut and_these = and_these.into_iter();
        self.step(|state, wakes| state.share_all(&mut and_these, now, wakes));
    }

    /// Sets what the other nodes add to these rooms, by totals that hold this node's batches up to
    /// `applied`; `None` is the service as a whole.
    pub fn set_elsewhere(&self, news: &[(Option<RoomId>, Occupancy)], applied: u64, now: Instant) {
        self.step(|state, wakes| state.set_elsewhere(news, applied, now, wakes));
    }

    /// From now on numbers say whether those of other nodes are missing. Each room tells it when
    /// `spread` of its number says.
    pub fn set_partial(&self, partial: bool, spread: &dyn Fn(usize) -> Duration, now: Instant) {
        self.step(|state, wakes| state.set_partial(partial, spread, now, wakes));
    }

    /// Ends this node's stream of a connection that another node opened later than this one did,
    /// at `since_ms`, in milliseconds of Unix time. Of two that are closer than a second the one
    /// is later that was told later: `after_ours`, where that is known.
    pub fn opened_elsewhere(
        &self,
        connection: ConnectionId,
        since_ms: u64,
        after_ours: Option<bool>,
        now: Instant,
    ) {
        self.step(|state, wakes| {
            state.opened_elsewhere(connection, since_ms, after_ours, now, wakes);
        });
    }

    /// Keeps somebody out until then, as another node said.
    pub fn block(&self, whom: Blocked, until: Instant, now: Instant) {
        self.0.state.lock().blocks.add(whom, until, now);
    }

    /// Everybody who is kept out, with the end of it.
    #[must_use]
    pub fn blocks(&self) -> Vec<(Blocked, Instant)> {
        let state = self.0.state.lock();
        let all = state.blocks.all();
        all.map(|(whom, until)| (whom.clone(), until)).collect()
    }

    /// Whether all connections of a user here may be thrown out.
    ///
    /// # Errors
    ///
    /// When one of them is in a room that is not permitted.
    pub fn may_kick_user(
        &self,
        user: &UserId,
        permitted: &dyn Fn(&RoomId) -> bool,
    ) -> Result<(), KickError> {
        self.0.state.lock().may_kick_user(user, permitted)
    }

    /// A room's numbers now; zero where nobody is.
    #[must_use]
    pub fn occupancy(&self, room: &RoomId) -> Occupancy {
        self.0.state.lock().occupancy(room)
    }

    /// From now on every change of a number is told to `record`.
    pub fn record_to(&self, record: Arc<dyn Record>) {
        self.0.state.lock().record = Some(record);
    }

    /// A room's numbers now, which the record is told too: it may have had no place for them.
    #[must_use]
    pub fn recorded_occupancy(&self, room: &RoomId, now: Instant) -> Occupancy {
        let state = self.0.state.lock();
        let occupancy = state.occupancy(room);
        if let Some(record) = &state.record {
            record.note_room(room, occupancy, now);
        }
        occupancy
    }

    /// The occupied rooms that are wanted, in no order: personal ones alone, or all others.
    #[must_use]
    pub fn occupied(
        &self,
        personal: bool,
        wanted: &dyn Fn(&RoomId) -> bool,
    ) -> Vec<(RoomId, Occupancy)> {
        self.0.state.lock().occupied(personal, wanted)
    }

    /// The numbers of the whole node.
    #[must_use]
    pub fn totals(&self) -> Totals {
        self.0.state.lock().totals()
    }

    /// True where this connection has an open stream.
    #[must_use]
    pub fn is_open(&self, connection: ConnectionId) -> bool {
        self.0.state.lock().is_open(connection)
    }

    /// What is known of a connection, if it counts.
    #[must_use]
    pub fn connection(&self, connection: ConnectionId) -> Option<ConnectionInfo> {
        self.0.state.lock().connection(connection)
    }

    /// Connections in a room, or of a user by the personal room's name: those after `after`, by
    /// id, at most `limit`; and whether more follow.
    #[must_use]
    pub fn connections_in(
        &self,
        room: &RoomId,
        after: Option<ConnectionId>,
        limit: usize,
    ) -> (Vec<ConnectionInfo>, bool) {
        self.0.state.lock().connections_in(room, after, limit)
    }

    /// Adds a shard, which is told what concerns its slots by `post`; answers its number for
    /// [`Outlet::Slot`].
    #[must_use]
    pub fn attach(&self, post: Arc<Post>) -> u8 {
        self.0.state.lock().attach(post)
    }

    /// A room's numbers for one stream that enters it now; `None` where it is gone.
    #[must_use]
    pub fn tell(&self, room: RoomKey) -> Option<Told> {
        self.0.state.lock().tell(room)
    }

    /// Notes that a shard came to the end of telling its viewers a room's newest count, which
    /// took it `took` of wall time.
    pub fn passed(&self, room: RoomKey, took: Duration, now: Instant) {
        let interval = self.0.tempo.push_interval;
        self.0.state.lock().passed(room, took, interval, now);
    }

    /// From now on nobody is let in.
    pub fn drain(&self) {
        self.0.state.lock().drain();
    }

    /// True once [`Hub::drain`] was called.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.state.lock().is_draining()
    }

    /// Ends up to `most` streams because the node goes down.
    pub fn shut(&self, most: usize, now: Instant) {
        self.step(|state, wakes| state.shut(most, now, wakes));
    }
}

/// One stream's place in the hub. Counted from [`Registration::open`] on exactly as long as this
/// value lives, unless the hub ends it before.
#[derive(Debug)]
pub struct Registration {
    hub: Hub,
    serial: u64,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Pending(Box<Entry>),
    Open(u32),
    Refused,
}

impl Registration {
    /// Counts the stream in; its orders go to `outlet`. Answers what it is told first.
    ///
    /// # Errors
    ///
    /// The reason why the stream ends at once: replaced by a newer one, kicked, or shutdown.
    ///
    /// # Panics
    ///
    /// Never on a first call; a second one is refused as replaced.
    pub fn open(&mut self, outlet: impl Into<Outlet>, now: Instant) -> Result<Opening, Reason> {
        let Phase::Pending(entry) = std::mem::replace(&mut self.phase, Phase::Refused) else {
            return Err(Reason::Replaced);
        };
        let (index, opening) = self
            .hub
            .step(|state, wakes| state.open(&entry, self.serial, outlet.into(), now, wakes))?;
        self.phase = Phase::Open(index);
        Ok(opening)
    }

    /// What the stream is due since the last call, counts at the pace of the pulse. Messages come in
    /// portions of 128 KiB; [`Cursor::is_owed`] says whether there is more.
    pub fn collect(&self, cursor: &mut Cursor, inbox: &Inbox) -> Vec<Delivery> {
        self.hub
            .0
            .state
            .lock()
            .collect(cursor, inbox, Counts::Pulsed)
    }

    /// What the stream is due since it fell behind: counts as they are now, messages up to the
    /// sequence `until`, in portions too. Of the versions in `cursor` only the low 32 bits are looked at.
    pub fn catch_up(&self, cursor: &mut Cursor, inbox: &Inbox, until: u64) -> Vec<Delivery> {
        let counts = Counts::Now(until);
        self.hub.0.state.lock().collect(cursor, inbox, counts)
    }

    /// The personal room of the stream's user, while it counts.
    #[must_use]
    pub fn personal(&self) -> Option<RoomId> {
        let Phase::Open(index) = self.phase else {
            return None;
        };
        self.hub.0.state.lock().personal(index, self.serial)
    }

    /// A receiver that is told whenever the room has something new; `None` where it is gone.
    #[must_use]
    pub fn listen(&self, room: RoomKey) -> Option<broadcast::Receiver<()>> {
        self.hub.0.state.lock().listen(room)
    }

    /// Counts the stream out at once, for a reason of its own.
    pub fn end(&self, reason: Reason, now: Instant) {
        if let Phase::Open(index) = self.phase {
            self.hub
                .step(|state, wakes| state.end(index, self.serial, reason, now, wakes));
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Phase::Open(index) = self.phase {
            let grace = self.hub.0.tempo.leave_grace;
            let now = Instant::now();
            self.hub
                .step(|state, wakes| state.release(index, self.serial, grace, now, wakes));
        }
    }
}
