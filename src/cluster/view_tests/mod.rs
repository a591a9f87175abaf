//! What a node knows of the others' numbers, tried without Redis: one rule per test, and a model of
//! several nodes on one store.

mod claims;
mod epochs;
mod gaps;
mod memory;
mod model;
mod partial;
mod resync;
mod shares;

use std::collections::HashSet;

use tokio::time::Instant;

use super::{
    store::{Announcement, Claim, Epoch, Incarnation, SERVICE, Total},
    view::{HOLD, News, Opening, Place, Taken, View},
};
use crate::hub::{ConnectionId, Fingerprint, MEMBER, Occupancy, Part, RoomId};

fn incarnation(number: u64) -> Incarnation {
    Incarnation::from_bits(number).expect("not 0")
}

fn epoch(number: u64) -> Epoch {
    Epoch::from_bits(number).expect("not 0")
}

/// A room, or with `*` the service.
fn place(name: &str) -> Place {
    (name != SERVICE).then(|| RoomId::parse(name).expect("a room"))
}

fn member(number: u8) -> Fingerprint {
    let mut fingerprint = [number; 13];
    fingerprint[0] = MEMBER;
    fingerprint
}

fn viewer(number: u8) -> Fingerprint {
    let mut fingerprint = [number; 13];
    fingerprint[0] = b'v';
    fingerprint
}

/// A room's part of so many unidentified connections, and nobody else.
fn part(room: &str, connections: u32) -> Part {
    Part {
        room: place(room),
        connections,
        unidentified: connections,
        came: Vec::new(),
        went: Vec::new(),
        whole: true,
    }
}

/// The same with connections of viewers who came.
fn part_of(room: &str, came: &[Fingerprint]) -> Part {
    Part {
        connections: u32::try_from(came.len()).expect("a few"),
        unidentified: 0,
        came: came.to_vec(),
        ..part(room, 0)
    }
}

/// So many unidentified connections on all nodes.
fn total(connections: u32) -> Total {
    Total {
        connections,
        viewers: connections,
        members: 0,
    }
}

/// So many unidentified connections elsewhere.
fn others(connections: u32) -> Occupancy {
    Occupancy {
        connections,
        viewers: connections,
        ..Occupancy::default()
    }
}

/// What the hub is told of one room.
fn told(room: &str, connections: u32) -> News {
    vec![(place(room), others(connections))]
}

/// A view and what happens to it. Nothing moves but by what a test does.
struct Node {
    view: View,
    now: Instant,
}

impl Node {
    /// Before anything was heard of Redis.
    fn new() -> Self {
        Self {
            view: View::new(incarnation(1)),
            now: Instant::now(),
        }
    }

    /// A node that has met epoch 1 at version 0, told everything as incarnation 2 in its batch 1,
    /// and read that nobody is anywhere.
    fn ready() -> Self {
        let mut node = Self::new();
        node.view.turn(epoch(1), 0, node.now);
        node.view.begin(incarnation(2));
        node.tell_last(Vec::new());
        node.read(0, 1, &[]);
        node.view.nodes(1, 1, 0, node.now);
        node.view.alive(node.now);
        node
    }

    /// Sends a batch that is acknowledged; answers its number.
    fn tell(&mut self, parts: Vec<Part>) -> u64 {
        let frozen = self.view.freeze(parts, Vec::new(), false);
        self.view.acknowledge(&frozen, 0);
        frozen.number
    }

    /// The same where nothing more waits.
    fn tell_last(&mut self, parts: Vec<Part>) -> u64 {
        let frozen = self.view.freeze(parts, Vec::new(), true);
        self.view.acknowledge(&frozen, 0);
        frozen.number
    }

    fn announcement(&self, version: u64, applied: Option<u64>) -> Announcement {
        Announcement {
            epoch: self.view.epoch().unwrap_or(epoch(1)),
            version,
            applied: applied
                .map(|batch| (self.view.me, batch))
                .into_iter()
                .collect(),
            claims: Vec::new(),
            rooms: Vec::new(),
        }
    }

    /// Hears that rooms have these totals, with this node's batches up to `applied` in them where
    /// the announcement says so.
    fn hear(&mut self, version: u64, applied: Option<u64>, rooms: &[(&str, Total)]) -> News {
        let mut announcement = self.announcement(version, applied);
        announcement.rooms = named(rooms);
        self.view.hear(&announcement, self.now).0
    }

    /// Reads one page of totals.
    fn page(&mut self, version: u64, applied: u64, rooms: &[(&str, Total)]) -> News {
        self.view.read(&named(rooms), version, applied)
    }

    /// Ends a reading in which these rooms were seen.
    fn end_reading(&mut self, version: u64, applied: u64, seen: &[&str]) -> News {
        let seen: HashSet<Place> = seen.iter().map(|room| place(room)).collect();
        let news = self.view.read_all(version, applied, &seen);
        self.view.loaded();
        news
    }

    /// Reads all totals at once.
    fn read(&mut self, version: u64, applied: u64, rooms: &[(&str, Total)]) -> News {
        self.view.begin_reading();
        let mut news = self.page(version, applied, rooms);
        let seen: Vec<&str> = rooms.iter().map(|(room, _)| *room).collect();
        news.extend(self.end_reading(version, applied, &seen));
        news
    }

    /// Opens streams by ticket in a batch whose first claim gets this number.
    fn claim(&mut self, openings: Vec<Opening>, first: u64) {
        let frozen = self.view.freeze(Vec::new(), openings, false);
        self.view.acknowledge(&frozen, first);
    }

    /// Hears these claims.
    fn hear_claims(&mut self, version: u64, claims: &[Claim]) -> Vec<Taken> {
        let mut announcement = self.announcement(version, None);
        announcement.claims = claims.to_vec();
        self.view.hear(&announcement, self.now).1
    }
}

fn named(rooms: &[(&str, Total)]) -> Vec<(String, Total)> {
    let rooms = rooms.iter();
    rooms
        .map(|(room, total)| ((*room).to_owned(), *total))
        .collect()
}

fn connection(number: u128) -> ConnectionId {
    ConnectionId::from_bits(number)
}

/// The word of a node that a connection's stream is its own since `since_ms` of Redis' time.
fn claim(number: u64, connection: u128, since_ms: u64, holder: u64) -> Claim {
    let mut opened = [0; 24];
    opened[..16].copy_from_slice(&connection.to_be_bytes());
    opened[16..].copy_from_slice(&since_ms.to_be_bytes());
    Claim {
        number,
        connection: opened,
        holder: incarnation(holder),
    }
}
