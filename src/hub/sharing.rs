//! What nodes share: this node's part of every room, noted as it changes until somebody takes it
//! away, and what the other nodes add to it.
//!
//! The hub does not know how the parts travel. Without a cluster none of this is kept.

use std::collections::{HashMap, HashSet, VecDeque};

use tokio::time::Instant;

use super::{
    ConnectionId, Identity, Occupancy, Reason, RoomId,
    block::Blocked,
    connection::Phase,
    pulse::Due,
    room::{LEAVING, Viewer},
    state::State,
    wakes::Wakes,
};

/// A viewer as all nodes know it.
///
/// One byte says what kind it is (`m` a member, known by a token; `v` an id that the client chose; `c`
/// the connection itself), then come 96 bits: of a keyed hash of the name, or of the connection's
/// id, which is random.
pub type Fingerprint = [u8; 13];

/// First byte of the fingerprint of a viewer known by a token.
pub const MEMBER: u8 = b'm';

/// Makes the fingerprints, the same on every node and nobody else's to guess.
pub trait Fingerprints: Send + Sync {
    /// Of a named viewer; `None` for one that is known by its connection alone.
    fn identity(&self, identity: &Identity) -> Option<Fingerprint>;
}

/// The fingerprint of a connection that was opened by a ticket and so may be opened on another node.
fn of_connection(id: ConnectionId) -> Fingerprint {
    let mut fingerprint = [b'c'; 13];
    fingerprint[1..].copy_from_slice(&id.to_bits().to_be_bytes()[4..]);
    fingerprint
}

/// Knows nobody, for tests of what does not depend on who somebody is.
#[cfg(test)]
pub(crate) struct Nameless;

#[cfg(test)]
impl Fingerprints for Nameless {
    fn identity(&self, _: &Identity) -> Option<Fingerprint> {
        None
    }
}

/// This node's part of a room, and who of it came and went since the part was last taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The room; `None` for the service as a whole.
    pub room: Option<RoomId>,
    /// Connections of this node.
    pub connections: u32,
    /// Those of them that are viewers of their own and have no fingerprint.
    pub unidentified: u32,
    /// Viewers who came.
    pub came: Vec<Fingerprint>,
    /// Viewers who went.
    pub went: Vec<Fingerprint>,
    /// False where more of them wait for the next part of this room.
    pub whole: bool,
}

/// Streams that two nodes opened within so many milliseconds are told apart by the order of their
/// claims, and others by their age: the clocks of nodes are compared over the network.
const CLOSE_MS: u64 = 1_000;

/// Blocks that wait here for somebody to take them; past them all those in force are taken.
const MOST_BLOCKED: usize = 1_000;

#[derive(Debug, Default)]
struct Change {
    /// True where everybody in the room is to be said again.
    whole: bool,
    /// How often each viewer came more than it went.
    moves: HashMap<Fingerprint, i32>,
}

/// What is to be told to the other nodes.
pub(super) struct Sharing {
    fingerprints: Box<dyn Fingerprints>,
    changed: HashMap<Option<RoomId>, Change>,
    /// The changed rooms, longest waiting first.
    order: VecDeque<Option<RoomId>>,
    /// Connections opened by ticket, and still open, that no other node was told of.
    opened: HashSet<ConnectionId>,
    blocked: Vec<(Blocked, Instant)>,
    /// True where more were made than are kept here, so that all in force are to be told.
    blocked_many: bool,
    /// True while nothing is noted, since everything will be told again.
    paused: bool,
    /// What the others add to the service as a whole.
    pub(super) service: Occupancy,
}

impl std::fmt::Debug for Sharing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sharing({} changed)", self.order.len())
    }
}

impl Sharing {
    fn note(&mut self, room: Option<RoomId>, moved: Option<(Fingerprint, bool)>) {
        if self.paused {
            return;
        }
        let change = match self.changed.get_mut(&room) {
            Some(change) => change,
            None => {
                self.order.push_back(room.clone());
                self.changed.entry(room).or_default()
            }
        };
        if let (Some((viewer, came)), false) = (moved, change.whole) {
            let net = change.moves.entry(viewer).or_default();
            *net += if came { 1 } else { -1 };
            if *net == 0 {
                change.moves.remove(&viewer);
            }
        }
    }

    /// True where others were told of this viewer, and will be told that it went.
    fn tells_that_it_went(&self, room: &Option<RoomId>, viewer: &Fingerprint) -> bool {
        let change = self.changed.get(room);
        change
            .and_then(|change| change.moves.get(viewer))
            .is_some_and(|net| *net < 0)
    }

    fn note_whole(&mut self, room: &Option<RoomId>) {
        self.note(room.clone(), None);
        if let Some(change) = self.changed.get_mut(room) {
            change.whole = true;
            change.moves = HashMap::new();
        }
    }

    pub(super) fn note_block(&mut self, whom: Blocked, until: Instant) {
        if self.blocked.len() >= MOST_BLOCKED {
            self.blocked = Vec::new();
            self.blocked_many = true;
        }
        if !self.blocked_many {
            self.blocked.push((whom, until));
        }
    }

    pub(super) fn note_opened(&mut self, connection: ConnectionId) {
        self.opened.insert(connection);
    }

    pub(super) fn note_closed(&mut self, connection: ConnectionId) {
        self.opened.remove(&connection);
    }
}

impl State {
    /// From now on what changes is noted for the other nodes.
    pub(super) fn share(&mut self, fingerprints: Box<dyn Fingerprints>) {
        self.sharing = Some(Box::new(Sharing {
            fingerprints,
            changed: HashMap::new(),
            order: VecDeque::new(),
            opened: HashSet::new(),
            blocked: Vec::new(),
            blocked_many: false,
            paused: false,
            service: Occupancy::default(),
        }));
    }

    fn fingerprint(&self, sharing: &Sharing, connection: u32) -> Option<Fingerprint> {
        let connection = self.connections.get(connection);
        match connection.viewer {
            Viewer::Connection => None,
            Viewer::Ticketed => Some(of_connection(connection.id)),
            Viewer::Person { place, .. } => {
                let person = self.people.get(place);
                person.fingerprint(&*sharing.fingerprints)
            }
        }
    }

    /// Notes that a room's numbers changed by this connection, whose viewer came or went by it
    /// where `moved` says so; `None` is the service as a whole.
    pub(super) fn note_share(
        &mut self,
        room: Option<u32>,
        connection: u32,
        moved: Option<bool>,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(mut sharing) = self.sharing.take() else {
            return;
        };
        let moved = moved.and_then(|came| Some((self.fingerprint(&sharing, connection)?, came)));
        let name = room.map(|room| self.rooms.get(room).name.clone());
        sharing.note(name.clone(), moved);
        if let (Some(room), Some((viewer, came))) = (room, moved) {
            let index = room;
            let room = self.rooms.at(index);
            if came {
                room.came(&viewer);
            } else if sharing.tells_that_it_went(&name, &viewer) && room.went(viewer, now) {
                let due = Due::Leaving(room.key(index));
                wakes.pulse |= self.calendar.add(now + LEAVING, due);
            }
        }
        self.sharing = Some(sharing);
        wakes.share = true;
    }

    /// Everything is to be told again, as to somebody who knows nothing, and that of these rooms
    /// too where nothing is left.
    pub(super) fn share_all(
        &mut self,
        and_these: &mut dyn Iterator<Item = Option<RoomId>>,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let keys: Vec<_> = self.rooms.keys().collect();
        for key in keys {
            if self.rooms.at(key.index).settle(None) {
                self.touch(key.index, now, wakes);
            }
        }
        wakes.share = true;
        let Some(mut sharing) = self.sharing.take() else {
            return;
        };
        sharing.changed.clear();
        sharing.order.clear();
        sharing.paused = false;
        sharing.note_whole(&None);
        for room in self.rooms.iter().filter(|room| !room.joined.is_empty()) {
            sharing.note_whole(&Some(room.name.clone()));
        }
        for room in and_these {
            sharing.note_whole(&room);
        }
        self.sharing = Some(sharing);
    }

    /// Takes the parts of at most `most_rooms` changed rooms, with at most `most_moves` viewers, to
    /// be told by this batch; the rest waits.
    pub(super) fn take_parts(
        &mut self,
        most_rooms: usize,
        most_moves: usize,
        batch: u64,
    ) -> Vec<Part> {
        let Some(mut sharing) = self.sharing.take() else {
            return Vec::new();
        };
        let mut parts = Vec::new();
        let mut left = most_moves;
        while parts.len() < most_rooms && left > 0 {
            let Some(room) = sharing.order.pop_front() else {
                break;
            };
            let change = sharing.changed.remove(&room).unwrap_or_default();
            let moves = if change.whole {
                self.everybody(&sharing, room.as_ref())
            } else {
                let moves = change.moves.into_iter();
                moves.map(|(viewer, net)| (viewer, net > 0)).collect()
            };
            let mut net = moves;
            let rest = net.split_off(left.min(net.len()));
            let whole = rest.is_empty();
            let index = room.as_ref().and_then(|name| self.rooms.find(name));
            if let Some(index) = index {
                let waiting = rest.iter().map(|(viewer, _)| *viewer).collect();
                self.rooms.at(index).told(&waiting, batch);
            }
            if !rest.is_empty() {
                sharing.order.push_front(room.clone());
                let change = Change {
                    whole: false,
                    moves: rest
                        .into_iter()
                        .map(|(viewer, came)| (viewer, if came { 1 } else { -1 }))
                        .collect(),
                };
                sharing.changed.insert(room.clone(), change);
            }
            left -= net.len();
            let (connections, unidentified) = self.own_part(room.as_ref());
            let of = |came: bool| {
                net.iter()
                    .filter(move |m| m.1 == came)
                    .map(|m| m.0)
                    .collect()
            };
            parts.push(Part {
                connections,
                unidentified,
                came: of(true),
                went: of(false),
                room,
                whole,
            });
        }
        self.sharing = Some(sharing);
        parts
    }

    /// True where something waits to be taken.
    pub(super) fn has_parts(&self) -> bool {
        self.sharing.as_ref().is_some_and(|sharing| {
            let blocked = sharing.blocked_many || !sharing.blocked.is_empty();
            !sharing.order.is_empty() || !sharing.opened.is_empty() || blocked
        })
    }

    fn own_part(&self, room: Option<&RoomId>) -> (u32, u32) {
        let Some(name) = room else {
            let connections = u32::try_from(self.connections.count()).unwrap_or(u32::MAX);
            return (connections, self.unidentified - self.ticketed);
        };
        let index = self.rooms.find(name);
        index.map_or((0, 0), |index| self.rooms.get(index).own_part())
    }

    fn everybody(&self, sharing: &Sharing, room: Option<&RoomId>) -> Vec<(Fingerprint, bool)> {
        let of = |index: u32| Some((self.fingerprint(sharing, index)?, true));
        match room {
            None => {
                let people = self.people.iter().filter(|person| person.counts());
                let named = people.filter_map(|p| p.fingerprint(&*sharing.fingerprints));
                let ticketed = self.connections.current().filter(|(_, connection)| {
                    connection.viewer == Viewer::Ticketed && connection.joined() > 0
                });
                let ticketed = ticketed.filter_map(|(index, _)| of(index));
                named
                    .map(|fingerprint| (fingerprint, true))
                    .chain(ticketed)
                    .collect()
            }
            Some(name) => {
                let Some(index) = self.rooms.find(name) else {
                    return Vec::new();
                };
                let room = self.rooms.get(index);
                let people = room.people().filter_map(|place| {
                    let person = self.people.get(place);
                    person.fingerprint(&*sharing.fingerprints)
                });
                let ticketed = room.joined.iter().copied().filter(|&index| {
                    room.has_ticketed() && self.connections.get(index).viewer == Viewer::Ticketed
                });
                people
                    .map(|fingerprint| (fingerprint, true))
                    .chain(ticketed.filter_map(of))
                    .collect()
            }
        }
    }

    /// Takes at most `most` connections that are open here by a ticket and that no other node was
    /// told of, with when they were opened, in milliseconds of Unix time.
    pub(super) fn take_opened(&mut self, most: usize) -> Vec<(ConnectionId, u64)> {
        let Some(sharing) = &mut self.sharing else {
            return Vec::new();
        };
        let some: Vec<ConnectionId> = sharing.opened.iter().copied().take(most).collect();
        for id in &some {
            sharing.opened.remove(id);
        }
        let since = |id: ConnectionId| {
            let index = self.connections.find(id)?;
            Some((id, self.connections.get(index).since_ms))
        };
        some.into_iter().filter_map(since).collect()
    }

    /// True where the stream that this connection opened then is still open here.
    pub(super) fn is_open_since(&self, id: ConnectionId, since_ms: u64) -> bool {
        let found = self.connections.find(id);
        let connection = found.map(|index| self.connections.get(index));
        connection.is_some_and(|it| it.phase == Phase::Open && it.since_ms == since_ms)
    }

    /// These connections, or all that a ticket opened, are to be told again, where still open.
    pub(super) fn claim_again(&mut self, these: Option<&[ConnectionId]>, wakes: &mut Wakes) {
        let Some(sharing) = &mut self.sharing else {
            return;
        };
        match these {
            Some(these) => {
                let open = these
                    .iter()
                    .filter(|id| self.connections.find(**id).is_some());
                sharing.opened.extend(open);
            }
            None => {
                let current = self.connections.current().map(|(_, connection)| connection);
                let by_ticket = current.filter(|connection| connection.by_ticket);
                sharing
                    .opened
                    .extend(by_ticket.map(|connection| connection.id));
            }
        }
        wakes.share = true;
    }

    /// Takes the blocks made here since they were last taken.
    pub(super) fn take_blocks(&mut self) -> Vec<(Blocked, Instant)> {
        let Some(sharing) = &mut self.sharing else {
            return Vec::new();
        };
        let some = std::mem::take(&mut sharing.blocked);
        if std::mem::take(&mut sharing.blocked_many) {
            let all = self.blocks.all();
            return all.map(|(whom, until)| (whom.clone(), until)).collect();
        }
        some
    }

    /// Sets what the other nodes add to these rooms, by totals that hold this node's batches up
    /// to `applied`.
    pub(super) fn set_elsewhere(
        &mut self,
        news: &[(Option<RoomId>, Occupancy)],
        applied: u64,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        for (room, others) in news {
            let Some(name) = room else {
                if let Some(sharing) = &mut self.sharing {
                    sharing.service = *others;
                }
                self.record_node(now);
                continue;
            };
            if let Some(index) = self.rooms.set_elsewhere(name, *others, applied) {
                self.touch(index, now, wakes);
            } else if let Some(record) = &self.record
                && self.rooms.find(name).is_none()
            {
                // Nobody here is in it, and its past is this node's to tell all the same.
                record.note_room(name, self.occupancy(name), now);
            }
        }
    }

    /// Ends this node's stream of a connection that another node opened later, in milliseconds of
    /// Unix time. Where the two are closer than clocks can tell, `after_ours` says whether it was
    /// told after this node's, where that is known.
    pub(super) fn opened_elsewhere(
        &mut self,
        id: ConnectionId,
        since_ms: u64,
        after_ours: Option<bool>,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        let Some(index) = self.connections.find(id) else {
            return;
        };
        let ours = self.connections.get(index);
        let untold = |sharing: &Sharing| sharing.opened.contains(&id);
        let later = if !ours.by_ticket {
            // It was born here, so whoever has its ticket came later.
            true
        } else if ours.since_ms.abs_diff(since_ms) > CLOSE_MS {
            ours.since_ms < since_ms
        } else if self.sharing.as_deref().is_some_and(untold) {
            false
        } else {
            after_ours.unwrap_or(ours.since_ms < since_ms)
        };
        if later {
            self.count_out(index, Reason::Replaced, now, wakes);
        }
    }

    /// From now on nothing is noted until everything is told again: nobody can be told, and what
    /// piles up would know no bound.
    pub(super) fn stop_sharing(&mut self) {
        if let Some(sharing) = &mut self.sharing {
            sharing.paused = true;
            sharing.changed = HashMap::new();
            sharing.order = VecDeque::new();
        }
    }

    /// From now on numbers say whether other nodes' are missing. Rooms tell it in their own time,
    /// the `n`th of them after `spread(n)`.
    pub(super) fn set_partial(
        &mut self,
        partial: bool,
        spread: &dyn Fn(usize) -> std::time::Duration,
        now: Instant,
        wakes: &mut Wakes,
    ) {
        if self.rooms.partial == partial {
            return;
        }
        self.rooms.partial = partial;
        let keys: Vec<_> = self.rooms.keys().collect();
        for (n, key) in keys.into_iter().enumerate() {
            wakes.pulse |= self.calendar.add(now + spread(n), Due::Partial(key));
        }
    }
}
