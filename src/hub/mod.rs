//! The hub: who is in which room of this node, and what they are to be told.
//!
//! It knows no socket, no HTTP, no JSON and no token. Streams are opened through
//! [`Hub::register`] and counted exactly as long as the [`Registration`] lives; numbers are told
//! through [`Frame`]s that an [`Encode`] handed in makes, once per change.
//!
//! The order of things: a stream is counted in, then its rooms' counts are read, then they are
//! told; a stream is counted out, then its end is announced. All under one lock, which a join
//! holds for about a microsecond (`cargo bench --bench hub`), and nothing awaits under it.

mod block;
mod connection;
mod cursor;
mod frame;
pub mod id;
mod log;
mod outlet;
pub mod pattern;
mod people;
mod pulse;
mod room;
mod state;

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

use self::state::{State, Wakes};
pub use self::{
    cursor::{Cursor, Seat},
    frame::Frame,
    id::{ConnectionId, Identity, InvalidName, RoomId, UserId, ViewerName},
    log::{Conflict, Idempotency, Position, Published},
    outlet::{Inbox, Order, Outlet, Post, Reason, SlotId, Word},
    pattern::{InvalidPatterns, Patterns},
    room::{Occupancy, RoomKey, Told},
};

/// Most rooms that one connection may watch, as the contract fixes it.
pub const MAX_WATCHED: usize = 100;

/// Rooms told in one go before the lock is offered to others.
const PULSE_BATCH: usize = 256;

/// Turns numbers into the bytes that a room's viewers are sent.
pub trait Encode: Send + Sync {
    /// The frame of a room's count.
    fn count(&self, room: &RoomId, occupancy: Occupancy) -> Frame;
}

/// The hub's own settings.
#[derive(Debug, Clone, Copy)]
pub struct Tempo {
    /// Shortest time between two counts of a room.
    pub push_interval: Duration,
    /// How long a connection whose stream broke still counts.
    pub leave_grace: Duration,
}

/// Which counts a stream is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Those of the last pulse.
    Pulsed,
    /// Those of this moment.
    Now,
}

/// Where a returning stream left off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// It is new.
    Fresh,
    /// It has had everything up to here.
    After(Position),
    /// It was somewhere that this service does not know.
    Unknown,
}

/// A stream that wants to be let in.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id; an open stream of the same id is replaced.
    pub connection: ConnectionId,
    /// Who is counted.
    pub identity: Identity,
    /// Rooms to join, without the personal one; no room twice.
    pub rooms: Vec<RoomId>,
    /// Rooms to watch; none that is joined too.
    pub watching: Vec<RoomId>,
    /// What the token grants, where it says so; kept for tickets to come.
    pub grants: Option<Arc<Patterns>>,
    /// When the stream ends.
    pub expires: Instant,
    /// Now, in milliseconds of Unix time.
    pub since_ms: u64,
    /// What it has had before.
    pub resume: Resume,
}

/// What a stream is told when it opens.
#[derive(Debug)]
pub struct Opening {
    /// The position at which the stream starts.
    pub starts_at: Position,
    /// The rooms' counts, joined ones first, each in the order asked; the stream is in them.
    pub counts: Vec<Told>,
    /// Rooms of which messages may be lost.
    pub resets: Vec<RoomId>,
    /// What the stream missed, in order.
    pub messages: Vec<Frame>,
    /// To be handed to [`Registration::collect`].
    pub cursor: Cursor,
}

/// One thing that a stream is due.
#[derive(Debug)]
pub enum Delivery {
    /// It joined a room, whose count follows unless it is out again.
    Joined(RoomId, Option<Told>),
    /// It left a room.
    Left(RoomKey, RoomId),
    /// It watches a room, whose count follows unless that is over again.
    Watching(RoomId, Option<Told>),
    /// It no longer watches a room.
    Unwatched(RoomKey),
    /// A room's newest count, as the pulse told it.
    Count(Frame),
    /// A room's count as it is now, for a stream that did not keep up.
    Told(Told),
    /// A message.
    Message(Frame),
    /// Messages of the room may be lost.
    Reset(RoomId),
    /// It may stay until then.
    Expires(Instant),
    /// It is over.
    End(Reason),
}

/// The rooms of a connection, the personal one aside.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rooms {
    /// Joined, in the order of joining.
    pub joined: Vec<RoomId>,
    /// Watched, in the order of watching.
    pub watching: Vec<RoomId>,
}

impl Rooms {
    /// These rooms after a change that is due.
    fn change(&mut self, change: Change, room: &RoomId) {
        self.watching.retain(|other| other != room);
        match change {
            Change::Join => self.joined.push(room.clone()),
            Change::Leave => self.joined.retain(|other| other != room),
            Change::Watch => self.watching.push(room.clone()),
            Change::Unwatch => {}
        }
    }
}

/// What is known of an open connection.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnectionId,
    /// Who it counts for.
    pub identity: Identity,
    /// When its stream began, in milliseconds of Unix time.
    pub since_ms: u64,
    /// When its stream ends.
    pub expires: Instant,
    /// What its token grants, where it says so.
    pub grants: Option<Arc<Patterns>>,
    /// Its rooms.
    pub rooms: Rooms,
}

/// The numbers of the whole node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Viewers distinct over all rooms, personal ones included; every connection, watching ones
    /// too; members.
    pub occupancy: Occupancy,
    /// Rooms with at least one viewer, personal ones aside.
    pub rooms: u32,
    /// Streams whose delivery has not let go of them, ended ones included.
    pub held: usize,
    /// Rooms in memory: occupied, watched, or with kept messages.
    pub kept_rooms: usize,
    /// Streams opened and ended since the start.
    pub turnover: Turnover,
}

/// Streams opened and ended since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turnover {
    /// Opened.
    pub opened: u64,
    /// Ended, by [`Reason`] in the order of [`Reason::ALL`].
    pub ended: [u64; Reason::ALL.len()],
    /// Broken off by the network or the reader, without a goodbye.
    pub broken: u64,
}

/// What to do with rooms on an open stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Be counted in them; a watched one is joined instead.
    Join,
    /// No longer be counted in them.
    Leave,
    /// Be told their counts; a joined one stays joined.
    Watch,
    /// No longer be told their counts, where only watched.
    Unwatch,
}

/// Why rooms were not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// No open stream has this connection.
    #[error("no open stream has this connection")]
    Unknown,
    /// It would be in more rooms than allowed.
    #[error("more rooms than a connection may have")]
    TooManyRooms,
    /// Whoever asked found that the new set of rooms does not fit.
    #[error("the rooms do not fit")]
    DoNotFit,
}

/// What the rooms of a connection must stay within.
#[derive(Clone, Copy)]
pub struct Bounds<'a> {
    /// Most joined rooms, the personal one aside; watched ones are bounded by [`MAX_WATCHED`].
    pub most_joined: usize,
    /// Whether the connection may be what it would become.
    pub fits: &'a dyn Fn(&ConnectionInfo) -> bool,
}

impl fmt::Debug for Bounds<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bounds {{ most_joined: {} }}", self.most_joined)
    }
}

/// How somebody is thrown out.
#[derive(Clone, Copy)]
pub struct Kick<'a> {
    /// How long the connection and its viewer are refused; zero for not at all.
    pub block: Duration,
    /// Whether whoever kicks may do so in this room.
    pub permitted: &'a dyn Fn(&RoomId) -> bool,
}

impl fmt::Debug for Kick<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kick {{ block: {:?} }}", self.block)
    }
}

/// Why nobody was thrown out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KickError {
    /// There is no such connection.
    #[error("no open stream has this connection")]
    Unknown,
    /// It is in a room where whoever kicks may not.
    #[error("the connection is in {0}")]
    Forbidden(RoomId),
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

    /// A room's numbers now; zero where nobody is.
    #[must_use]
    pub fn occupancy(&self, room: &RoomId) -> Occupancy {
        self.0.state.lock().occupancy(room)
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

    /// True where this connection counts, its stream open or lingering.
    #[must_use]
    pub fn counts(&self, connection: ConnectionId) -> bool {
        self.0.state.lock().counts(connection)
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

    /// What the stream is due since the last call, counts at the pace of the pulse.
    pub fn collect(&self, cursor: &mut Cursor, inbox: &Inbox) -> Vec<Delivery> {
        self.hub
            .0
            .state
            .lock()
            .collect(cursor, inbox, Counts::Pulsed)
    }

    /// What the stream is due since it fell behind, counts as they are now. Of the versions in
    /// `cursor` only the low 32 bits are looked at.
    pub fn catch_up(&self, cursor: &mut Cursor, inbox: &Inbox) -> Vec<Delivery> {
        self.hub.0.state.lock().collect(cursor, inbox, Counts::Now)
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
