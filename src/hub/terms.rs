//! The words in which the hub is spoken to and in which it answers.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    ConnectionId, Cursor, Frame, Identity, Occupancy, Patterns, Position, Reason, RoomId, RoomKey,
    Told,
};

/// How a connection stands at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// How much longer it or its viewer is refused, if at all.
    pub blocked: Option<Duration>,
    /// True where nobody is let in any more.
    pub is_draining: bool,
    /// True where it has an open stream, whose place a new one takes.
    pub is_open: bool,
}

/// Which counts a stream is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counts {
    /// Those of the last pulse.
    Pulsed,
    /// Those of this moment, and messages up to this sequence only: what comes after is on its way
    /// through the shard, behind the orders that were given before it.
    Now(u64),
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
    /// True where a ticket opens it that was issued before, so that it may be open on another node.
    pub by_ticket: bool,
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
    /// What the stream missed, in order, as far as one portion goes.
    pub messages: Vec<Frame>,
    /// Where that was not all: the sequence up to which it missed more, which the cursor gives.
    pub owed: Option<u64>,
    /// To be handed to [`super::Registration::collect`].
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
pub struct RoomList {
    /// Joined, in the order of joining.
    pub joined: Vec<RoomId>,
    /// Watched, in the order of watching.
    pub watching: Vec<RoomId>,
}

impl RoomList {
    /// These rooms after a change that is due.
    pub(super) fn change(&mut self, change: Change, room: &RoomId) {
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
    pub rooms: RoomList,
}

/// The numbers of the whole service, and of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// Viewers distinct over all rooms, personal ones included; every connection, watching ones
    /// too; members.
    pub occupancy: Occupancy,
    /// The same of this node alone.
    pub own: Occupancy,
    /// Rooms with at least one viewer, personal ones aside.
    pub rooms: u32,
    /// Streams whose delivery has not let go of them, ended ones included.
    pub held: usize,
    /// Rooms in memory: occupied, watched, or with kept messages.
    pub kept_rooms: usize,
    /// Streams opened and ended since the start.
    pub turnover: Turnover,
}

/// Streams opened and ended since the start, and counts that were never told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Turnover {
    /// Counts of rooms that a newer one replaced before any viewer was told.
    pub conflated: u64,
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
    /// Most joined rooms, the personal one aside; watched ones are bounded by `MAX_WATCHED`.
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
    /// True for whoever may kick in any room, and so block a connection that is between two
    /// streams and whose rooms nobody knows.
    pub everywhere: bool,
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
