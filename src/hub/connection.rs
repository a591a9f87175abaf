//! The hub's record of one stream, from its opening until its delivery has let go of it.

use std::sync::Arc;

use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;
use tokio::time::Instant;

use super::{ConnectionId, Patterns, outlet::Outlet, room::Viewer};

/// Marks a membership that only watches; a joined one has its place in the room's list here.
const WATCHING: u32 = u32::MAX;

/// One room of a connection: 8 bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Membership {
    pub(super) room: u32,
    pub(super) place: u32,
}

impl Membership {
    pub(super) fn watching(room: u32) -> Self {
        Self {
            room,
            place: WATCHING,
        }
    }

    pub(super) fn is_joined(self) -> bool {
        self.place != WATCHING
    }
}

/// Where a connection stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Counted, with an open stream.
    Open,
    /// Counted, its stream broken: until then it may come back.
    Lingering(Instant),
    /// Counted out; its delivery has not let go of it yet.
    Ended,
}

/// About 130 bytes with one or two rooms.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) id: ConnectionId,
    /// Which opening this is; a newer one of the same id has a higher one.
    pub(super) serial: u64,
    pub(super) phase: Phase,
    pub(super) viewer: Viewer,
    /// True where a ticket opened it, with which it may be opened on another node too.
    pub(super) by_ticket: bool,
    pub(super) memberships: SmallVec<[Membership; 2]>,
    /// When the stream began, in milliseconds of Unix time.
    pub(super) since_ms: u64,
    pub(super) expires: Instant,
    /// What the token let it join and read beyond what anybody may; for its next ticket.
    pub(super) grants: Option<Arc<Patterns>>,
    pub(super) outlet: Outlet,
}

impl Connection {
    pub(super) fn joined(&self) -> usize {
        self.memberships.iter().filter(|m| m.is_joined()).count()
    }

    pub(super) fn is_current(&self) -> bool {
        self.phase != Phase::Ended
    }
}

/// All records, found by place or, while they count, by id.
#[derive(Debug, Default)]
pub(super) struct Connections {
    slab: Slab<Connection>,
    by_id: HashTable<u32>,
}

impl Connections {
    pub(super) fn find(&self, id: ConnectionId) -> Option<u32> {
        self.by_id
            .find(hash(id), |&index| self.slab[index as usize].id == id)
            .copied()
    }

    pub(super) fn insert(&mut self, connection: Connection) -> u32 {
        let id = connection.id;
        let index = u32::try_from(self.slab.insert(connection)).unwrap_or(u32::MAX);
        let slab = &self.slab;
        self.by_id
            .insert_unique(hash(id), index, |&index| hash(slab[index as usize].id));
        index
    }

    /// Makes the record unknown by its id; it keeps its place.
    pub(super) fn retire(&mut self, index: u32) {
        let id = self.slab[index as usize].id;
        if let Ok(entry) = self.by_id.find_entry(hash(id), |&other| other == index) {
            entry.remove();
        }
    }

    pub(super) fn remove(&mut self, index: u32) -> Connection {
        let connection = self.slab.remove(index as usize);
        if self.slab.is_empty() {
            self.slab = Slab::new();
            self.by_id = HashTable::new();
        }
        connection
    }

    pub(super) fn at(&mut self, index: u32) -> &mut Connection {
        &mut self.slab[index as usize]
    }

    pub(super) fn get(&self, index: u32) -> &Connection {
        &self.slab[index as usize]
    }

    /// The record of that opening, unless it is gone.
    pub(super) fn of(&self, index: u32, serial: u64) -> Option<&Connection> {
        self.slab
            .get(index as usize)
            .filter(|connection| connection.serial == serial)
    }

    /// Places of the records that count.
    pub(super) fn current(&self) -> impl Iterator<Item = (u32, &Connection)> {
        self.slab
            .iter()
            .filter(|(_, connection)| connection.is_current())
            .map(|(index, connection)| (u32::try_from(index).unwrap_or(u32::MAX), connection))
    }

    /// Records that count.
    pub(super) fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Records whose delivery has not let go of them, ended ones included.
    pub(super) fn held(&self) -> usize {
        self.slab.len()
    }
}

/// Ids are random already, and nobody can choose one: tickets are signed.
fn hash(id: ConnectionId) -> u64 {
    let bits = id.to_bits();
    u64::try_from(bits & u128::from(u64::MAX)).unwrap_or_default()
}
