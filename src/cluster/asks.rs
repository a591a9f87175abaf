//! What one node asks of the others about connections that it does not hold, and their answers.
//!
//! Nothing of a connection lies in Redis; whoever holds it answers. What comes in is checked like
//! any other input: a reply that makes no sense is no reply.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::minutes::WireStep;
use crate::hub::{
    ConnectionId, ConnectionInfo, Identity, Patterns, RoomId, RoomList, UserId, ViewerName,
};

/// What is asked. Names are valid by construction where they are made, and parsed again where
/// they are used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ask {
    /// What is known of a connection.
    Show {
        /// The connection's bits.
        connection: u128,
    },
    /// Connections in a room, by id, after one, at most so many.
    InRoom {
        /// The room; a personal one for a user's connections.
        room: String,
        /// The last connection of the page before.
        after: Option<u128>,
        /// How many at most.
        limit: u32,
    },
    /// Users who are here, whose personal room's name begins so.
    Personal {
        /// The beginning, `user:` included.
        prefix: String,
    },
    /// Of these users, those who are here.
    Users {
        /// Their personal rooms.
        rooms: Vec<String>,
    },
    /// Change the rooms of a connection.
    Change {
        /// The connection's bits.
        connection: u128,
        /// What to do.
        change: WireChange,
        /// With which rooms.
        rooms: Vec<String>,
    },
    /// Let a connection stay longer.
    Renew {
        /// The connection's bits.
        connection: u128,
        /// Until this second of Unix time.
        expires_unix: u64,
        /// With these patterns.
        grants: Option<Vec<String>>,
    },
    /// A client's goodbye.
    Goodbye {
        /// The connection's bits.
        connection: u128,
    },
    /// Throw a connection out.
    Kick {
        /// The connection's bits.
        connection: u128,
        /// For how many seconds it may not come back.
        block_secs: u64,
        /// The rooms in which whoever kicks may; `None` is everywhere.
        within: Option<Vec<String>>,
    },
    /// Throw all connections of a user out, or only say whether that is permitted.
    KickUser {
        /// The user's id.
        user: String,
        /// For how many seconds it may not come back.
        block_secs: u64,
        /// The rooms in which whoever kicks may; `None` is everywhere.
        within: Option<Vec<String>>,
        /// True where nobody is thrown out yet.
        only_ask: bool,
    },
}

/// [`crate::hub::Change`] on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum WireChange {
    /// Be counted.
    Join,
    /// No longer be counted.
    Leave,
    /// Be told.
    Watch,
    /// No longer be told.
    Unwatch,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// There is no such connection here.
    Unknown,
    /// It is done.
    Done,
    /// A connection as it is now.
    Connection(WireConnection),
    /// Connections by id, and whether more follow.
    Connections(Vec<WireConnection>, bool),
    /// Personal rooms with their connections here.
    Personal(Vec<(String, u32)>),
    /// It would be in more rooms than allowed.
    TooManyRooms,
    /// Its ticket would be too long.
    DoNotFit,
    /// Not permitted in this room.
    Forbidden(String),
}

/// [`ConnectionInfo`] on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireConnection {
    id: u128,
    user: Option<String>,
    viewer: Option<String>,
    since_ms: u64,
    expires_unix: u64,
    grants: Option<Vec<String>>,
    joined: Vec<String>,
    watching: Vec<String>,
}

impl WireConnection {
    /// Writes what is known of a connection, which ends at a second of Unix time.
    #[must_use]
    pub fn of(info: &ConnectionInfo, expires_unix: u64) -> Self {
        let names = |rooms: &[RoomId]| rooms.iter().map(ToString::to_string).collect();
        Self {
            id: info.id.to_bits(),
            user: info.identity.user().map(|user| user.as_str().to_owned()),
            viewer: info.identity.chosen().map(|name| name.as_str().to_owned()),
            since_ms: info.since_ms,
            expires_unix,
            grants: info.grants.as_ref().map(|grants| grants.iter().collect()),
            joined: names(&info.rooms.joined),
            watching: names(&info.rooms.watching),
        }
    }

    /// Reads it again; `end` makes a moment of a second of Unix time. `None` where it makes no
    /// sense.
    #[must_use]
    pub fn read(&self, end: impl FnOnce(u64) -> tokio::time::Instant) -> Option<ConnectionInfo> {
        let identity = match (&self.user, &self.viewer) {
            (Some(user), None) => Identity::Member(UserId::parse(user).ok()?),
            (None, Some(viewer)) => Identity::Chosen(ViewerName::parse(viewer).ok()?),
            (None, None) => Identity::Connection,
            (Some(_), Some(_)) => return None,
        };
        Some(ConnectionInfo {
            id: ConnectionId::from_bits(self.id),
            identity,
            since_ms: self.since_ms,
            expires: end(self.expires_unix),
            grants: match &self.grants {
                Some(texts) => Some(Arc::new(patterns(texts)?)),
                None => None,
            },
            rooms: RoomList {
                joined: rooms(&self.joined)?,
                watching: rooms(&self.watching)?,
            },
        })
    }
}

/// Reads names of rooms; `None` where one is none.
#[must_use]
pub fn rooms(names: &[String]) -> Option<Vec<RoomId>> {
    names.iter().map(|name| RoomId::parse(name).ok()).collect()
}

/// Reads patterns; `None` where they are none.
#[must_use]
pub fn patterns(texts: &[String]) -> Option<Patterns> {
    Patterns::parse(texts.iter().map(String::as_str)).ok()
}

/// What goes over a control channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Envelope {
    /// A question, to everybody.
    Ask {
        /// Who asks: the channel for the answer.
        from: u64,
        /// Which question of that node.
        id: u64,
        ask: Ask,
    },
    /// An answer, to whoever asked.
    Answer {
        /// Who answers.
        from: u64,
        /// To which question.
        id: u64,
        reply: Reply,
    },
    /// What some rooms were in a finished minute, to everybody.
    Minute {
        /// Who tells it.
        from: u64,
        /// Which one, of Unix time.
        at: u32,
        steps: Vec<WireStep>,
    },
}

impl Envelope {
    pub(super) fn write(&self) -> Vec<u8> {
        // Strings, numbers and lists of them always serialize.
        postcard::to_allocvec(self).unwrap_or_default()
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        postcard::from_bytes(bytes).ok()
    }
}
