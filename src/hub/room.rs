//! A room: who is in it, its numbers, its broadcast channel and its recent messages.

use std::{hash::BuildHasher, time::Duration};

use hashbrown::{HashMap, HashSet, HashTable};
use slab::Slab;
use smallvec::SmallVec;
use tokio::{sync::broadcast, time::Instant};

use super::{Fingerprint, Frame, MEMBER, RoomId, log::RoomLog};

/// The three honest numbers of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Occupancy {
    /// Distinct viewers: one however many tabs.
    pub viewers: u32,
    /// Streams joined to the room; watching ones are not among them.
    pub connections: u32,
    /// Distinct viewers known by a token.
    pub members: u32,
    /// True while other nodes' numbers are missing or may be old.
    pub partial: bool,
}

impl Occupancy {
    /// These numbers and others, that are of other viewers.
    pub(super) fn plus(self, others: Self) -> Self {
        Self {
            viewers: self.viewers.saturating_add(others.viewers),
            connections: self.connections.saturating_add(others.connections),
            members: self.members.saturating_add(others.members),
            partial: self.partial || others.partial,
        }
    }
}

/// A room of this process: its place and which room of that place it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RoomKey {
    pub(super) index: u32,
    pub(super) generation: u32,
}

#[cfg(test)]
impl RoomKey {
    pub(crate) fn of_test(index: u32, generation: u32) -> Self {
        Self { index, generation }
    }
}

/// What a stream is told of a room at one moment.
#[derive(Debug, Clone)]
pub struct Told {
    /// The room here.
    pub key: RoomKey,
    /// The room's name.
    pub room: RoomId,
    /// Its numbers.
    pub occupancy: Occupancy,
    /// Which state of the room this is; grows with each change. What is not newer is dropped.
    pub version: u64,
}

/// Longest time for which a viewer who went counts because another node may have it too. With Redis
/// near that ends with the next announcement, in less than 0.1 s; where it takes longer than this
/// the number misses those who have a tab on another node, since those who have none, by far most,
/// are not to be shown for longer.
pub(super) const LEAVING: Duration = Duration::from_secs(1);

/// Viewers who went, each with the batch that says so, once there is one, and when it went.
#[derive(Debug, Default)]
struct Leaving(HashMap<Fingerprint, (Option<u64>, Instant)>);

impl Leaving {
    fn occupancy(&self) -> Occupancy {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let members = self.0.keys().filter(|viewer| viewer[0] == MEMBER).count();
        Occupancy {
            viewers: count(self.0.len()),
            members: count(members),
            ..Occupancy::default()
        }
    }
}

/// When a room tells its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beat {
    /// Nothing to tell; the next change goes out at once, but not before this.
    Quiet(Option<Instant>),
    /// A change waits for its time, which the pulse's calendar knows.
    Waiting,
}

/// Shards telling a room's viewers its newest pulse.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pass {
    /// Shards that have not come to the end.
    pub(super) under_way: u8,
    /// When it began; a pass that takes longer than the longest gap holds nothing up.
    pub(super) since: Option<Instant>,
    /// Wall time of the slowest shard.
    pub(super) took: Duration,
    /// Once at its end: when the next one may begin.
    pub(super) next: Option<Instant>,
}

/// About 300 bytes, and 4 per connection, 9 to 18 per identified viewer.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) name: RoomId,
    pub(super) generation: u32,
    pub(super) watchers: u32,
    unidentified: u32,
    /// Those of the unidentified that were opened by ticket, whom other nodes know by a name.
    ticketed: u32,
    members: u32,
    /// What the other nodes add.
    others: Occupancy,
    /// Viewers who went, while it is not known whether another node has them too.
    leaving: Option<Box<Leaving>>,
    /// Identified viewers here, by their place among the people: how many connections each has.
    viewers: HashMap<u32, u32>,
    /// Connections joined, by their place. A membership knows its place in this list.
    pub(super) joined: Vec<u32>,
    /// Grows with every change of the numbers.
    pub(super) version: u64,
    /// What the last pulse told.
    told: Occupancy,
    /// True where a stream was given other numbers than the last pulse told, so that numbers
    /// that come back to those must be told again.
    diverged: bool,
    /// The version given to the last stream that opened here; `None` since somebody who watched
    /// went, who may have been that one.
    greeted: Option<u64>,
    pub(super) beat: Beat,
    /// Seats per shard, joined and watching ones, by the shard's number.
    seats: SmallVec<[u32; 2]>,
    /// Seats of streams with a task of their own.
    pub(super) tasks: u32,
    /// The pass that tells the newest pulse, where shards do.
    pub(super) pass: Pass,
    /// The newest pulse.
    pub(super) newest: Option<(u64, Frame)>,
    /// Wakes the streams with a task of their own; made with the first of them, dropped with the
    /// last.
    pub(super) channel: Option<broadcast::Sender<()>>,
    pub(super) log: Option<Box<RoomLog>>,
    /// The highest sequence of a message of this room that is no longer kept.
    pub(super) gone: u64,
    /// The same for a room of this name before this one, as far as can be told: the horizon when
    /// this one was opened.
    pub(super) born: u64,
}

impl Room {
    fn new(name: RoomId, generation: u32, born: u64) -> Self {
        Self {
            name,
            generation,
            watchers: 0,
            unidentified: 0,
            ticketed: 0,
            members: 0,
            others: Occupancy::default(),
            leaving: None,
            viewers: HashMap::new(),
            joined: Vec::new(),
            version: 0,
            told: Occupancy::default(),
            diverged: false,
            greeted: None,
            beat: Beat::Quiet(None),
            seats: SmallVec::new(),
            tasks: 0,
            pass: Pass::default(),
            newest: None,
            channel: None,
            log: None,
            gone: 0,
            born,
        }
    }

    pub(super) fn occupancy(&self) -> Occupancy {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let own = Occupancy {
            viewers: count(self.viewers.len()).saturating_add(self.unidentified),
            connections: count(self.joined.len()),
            members: self.members,
            partial: false,
        };
        let leaving = self.leaving.as_deref().map(Leaving::occupancy);
        own.plus(leaving.unwrap_or_default()).plus(self.others)
    }

    /// Connections of this node, and those of them that are viewers of their own and that no
    /// other node knows by a name.
    pub(super) fn own_part(&self) -> (u32, u32) {
        let connections = u32::try_from(self.joined.len()).unwrap_or(u32::MAX);
        (connections, self.unidentified - self.ticketed)
    }

    /// The identified viewers of this node, by their place among the people.
    pub(super) fn people(&self) -> impl Iterator<Item = u32> + '_ {
        self.viewers.keys().copied()
    }

    pub(super) fn has_ticketed(&self) -> bool {
        self.ticketed > 0
    }

    pub(super) fn set_partial(&mut self, partial: bool) {
        self.others.partial = partial;
        // What Redis will say of them is not to be waited for.
        self.leaving = None;
        self.version += 1;
    }

    /// Notes that a viewer came whom other nodes know by a name.
    pub(super) fn came(&mut self, viewer: &Fingerprint) {
        if let Some(leaving) = &mut self.leaving {
            leaving.0.remove(viewer);
        }
    }

    /// Notes that a viewer went whom other nodes know by a name, and who may be on one of them
    /// too: it counts until Redis has added that up, or the number would dip and rise again for
    /// whoever has two tabs on two nodes. True where it is the first of those who wait so.
    pub(super) fn went(&mut self, viewer: Fingerprint, now: Instant) -> bool {
        if self.others.viewers == 0 || self.others.partial {
            return false;
        }
        let leaving = self.leaving.get_or_insert_default();
        leaving.0.insert(viewer, (None, now));
        leaving.0.len() == 1
    }

    /// Forgets those who have waited for longest; true where some went, and whether others wait.
    pub(super) fn forget_leaving(&mut self, now: Instant) -> (bool, bool) {
        let Some(leaving) = &mut self.leaving else {
            return (false, false);
        };
        let before = leaving.0.len();
        leaving
            .0
            .retain(|_, (_, since)| now.duration_since(*since) < LEAVING);
        let changed = leaving.0.len() < before;
        let waiting = !leaving.0.is_empty();
        if !waiting {
            self.leaving = None;
        }
        self.version += u64::from(changed);
        (changed, waiting)
    }

    /// Notes that a batch says who went: everybody who did, but for those who wait for the next.
    pub(super) fn told(&mut self, waiting: &HashSet<Fingerprint>, batch: u64) {
        if let Some(leaving) = &mut self.leaving {
            let untold = leaving.0.iter_mut().filter(|(_, (told, _))| told.is_none());
            for (viewer, (told, _)) in untold {
                if !waiting.contains(viewer) {
                    *told = Some(batch);
                }
            }
        }
    }

    /// Forgets those who went and whose going is in the totals, which hold this node's batches up
    /// to this one; all of them without. True where there were some.
    pub(super) fn settle(&mut self, applied: Option<u64>) -> bool {
        let Some(leaving) = &mut self.leaving else {
            return false;
        };
        let before = leaving.0.len();
        let waits =
            |told: &Option<u64>| applied.is_some_and(|applied| told.is_none_or(|b| b > applied));
        leaving.0.retain(|_, (told, _)| waits(told));
        let changed = leaving.0.len() < before;
        if leaving.0.is_empty() {
            self.leaving = None;
        }
        self.version += u64::from(changed);
        changed
    }

    /// Puts a connection into the room; answers its place in the list, and whether its viewer
    /// came with it.
    pub(super) fn enter(&mut self, connection: u32, viewer: Viewer) -> (u32, bool) {
        let mut came = true;
        match viewer {
            Viewer::Connection => self.unidentified += 1,
            Viewer::Ticketed => {
                self.unidentified += 1;
                self.ticketed += 1;
            }
            Viewer::Person { place, member } => {
                let tabs = self.viewers.entry(place).or_insert(0);
                *tabs += 1;
                came = *tabs == 1;
                self.members += u32::from(came && member);
            }
        }
        self.joined.push(connection);
        self.version += 1;
        let place = u32::try_from(self.joined.len() - 1).unwrap_or(u32::MAX);
        (place, came)
    }

    /// Takes out the connection at `place`; answers the connection that stands there now, and
    /// whether the viewer went with it.
    pub(super) fn exit(&mut self, place: u32, viewer: Viewer) -> (Option<u32>, bool) {
        let mut went = true;
        match viewer {
            Viewer::Connection => self.unidentified -= 1,
            Viewer::Ticketed => {
                self.unidentified -= 1;
                self.ticketed -= 1;
            }
            Viewer::Person { place, member } => {
                went = false;
                if let Some(tabs) = self.viewers.get_mut(&place) {
                    *tabs -= 1;
                    if *tabs == 0 {
                        went = true;
                        self.viewers.remove(&place);
                        self.members -= u32::from(member);
                    }
                }
            }
        }
        self.joined.swap_remove(place as usize);
        self.version += 1;
        if self.joined.is_empty() {
            self.viewers = HashMap::new();
            self.joined = Vec::new();
        }
        (self.joined.get(place as usize).copied(), went)
    }

    /// The numbers now, as given to a stream that has just come in.
    pub(super) fn greet(&mut self, index: u32) -> Told {
        self.greeted = Some(self.version);
        self.tell(index)
    }

    /// Takes out one who watched.
    pub(super) fn unwatch(&mut self) {
        self.watchers -= 1;
        self.greeted = None;
    }

    /// The numbers now, as given to one stream outside the pulse.
    pub(super) fn tell(&mut self, index: u32) -> Told {
        let occupancy = self.occupancy();
        self.diverged |= occupancy != self.told;
        Told {
            key: self.key(index),
            room: self.name.clone(),
            occupancy,
            version: self.version,
        }
    }

    /// The numbers where the pulse has something new to tell, marked as told.
    pub(super) fn pulse(&mut self) -> Option<Occupancy> {
        let occupancy = self.occupancy();
        // Whoever is alone and was greeted with this very state knows it already.
        let audience = self.joined.len() + self.watchers as usize;
        let known = audience == 1 && self.greeted == Some(self.version);
        let news = self.diverged || occupancy != self.told;
        self.told = occupancy;
        self.diverged = false;
        (news && audience > 0 && !known).then_some(occupancy)
    }

    pub(super) fn has_audience(&self) -> bool {
        self.watchers > 0 || !self.joined.is_empty()
    }

    /// Notes a seat of a shard, taken or given up.
    pub(super) fn seat(&mut self, shard: u8, taken: bool) {
        let shard = usize::from(shard);
        if self.seats.len() <= shard {
            self.seats.resize(shard + 1, 0);
        }
        if taken {
            self.seats[shard] += 1;
        } else {
            self.seats[shard] -= 1;
        }
    }

    /// The shards that have seats here.
    pub(super) fn shards(&self) -> impl Iterator<Item = u8> + use<> {
        let seats = self.seats.clone();
        (0..)
            .zip(seats)
            .filter(|(_, seats)| *seats > 0)
            .map(|(shard, _)| shard)
    }

    pub(super) fn key(&self, index: u32) -> RoomKey {
        RoomKey {
            index,
            generation: self.generation,
        }
    }
}

/// How a connection counts in a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Viewer {
    /// As a viewer of its own.
    Connection,
    /// The same, opened by a ticket: another node may have it open too.
    Ticketed,
    /// As one with all connections of this person.
    Person { place: u32, member: bool },
}

/// The rooms of this node, found by name or by place.
#[derive(Debug, Default)]
pub(super) struct Rooms {
    slab: Slab<Room>,
    by_name: HashTable<u32>,
    hasher: std::hash::RandomState,
    generations: u32,
    /// Rooms with at least one joined connection.
    pub(super) occupied: u32,
    /// The highest position of a message that was in a room which is gone.
    pub(super) horizon: u64,
    /// What the other nodes add to their rooms, those that nobody here is in among them.
    elsewhere: HashMap<RoomId, Occupancy>,
    /// True while other nodes' numbers are missing.
    pub(super) partial: bool,
}

impl Rooms {
    pub(super) fn find(&self, name: &RoomId) -> Option<u32> {
        let hash = self.hasher.hash_one(name);
        self.by_name
            .find(hash, |&index| self.slab[index as usize].name == *name)
            .copied()
    }

    /// Finds the room or opens it.
    pub(super) fn obtain(&mut self, name: &RoomId) -> u32 {
        if let Some(index) = self.find(name) {
            return index;
        }
        self.generations = self.generations.wrapping_add(1);
        let mut room = Room::new(name.clone(), self.generations, self.horizon);
        room.others = self.elsewhere(name);
        let index = u32::try_from(self.slab.insert(room)).unwrap_or(u32::MAX);
        let hash = self.hasher.hash_one(name);
        let (slab, hasher) = (&self.slab, &self.hasher);
        self.by_name.insert_unique(hash, index, |&index| {
            hasher.hash_one(&slab[index as usize].name)
        });
        index
    }

    /// Forgets the room if nothing holds it: neither viewer, watcher nor kept message.
    pub(super) fn vacate(&mut self, index: u32) {
        let room = &self.slab[index as usize];
        if room.has_audience() || room.log.is_some() {
            return;
        }
        let hash = self.hasher.hash_one(&room.name);
        if let Ok(entry) = self.by_name.find_entry(hash, |&other| other == index) {
            entry.remove();
        }
        let room = self.slab.remove(index as usize);
        self.horizon = self.horizon.max(room.gone);
        if self.slab.is_empty() {
            self.slab = Slab::new();
            self.by_name = HashTable::new();
        }
    }

    /// What the other nodes add to a room.
    pub(super) fn elsewhere(&self, name: &RoomId) -> Occupancy {
        Occupancy {
            partial: self.partial,
            ..self.elsewhere.get(name).copied().unwrap_or_default()
        }
    }

    /// Rooms that other nodes have somebody in, with what they add.
    pub(super) fn all_elsewhere(&self) -> impl Iterator<Item = (&RoomId, Occupancy)> {
        let partial = self.partial;
        let all = self.elsewhere.iter();
        all.map(move |(name, others)| (name, Occupancy { partial, ..*others }))
    }

    /// Sets what the other nodes add to a room; answers the room where it is here and differs.
    pub(super) fn set_elsewhere(
        &mut self,
        name: &RoomId,
        others: Occupancy,
        applied: u64,
    ) -> Option<u32> {
        if others == Occupancy::default() {
            self.elsewhere.remove(name);
        } else if let Some(known) = self.elsewhere.get_mut(name) {
            *known = others;
        } else {
            self.elsewhere.insert(name.clone(), others);
        }
        let index = self.find(name)?;
        let room = self.at(index);
        let others = Occupancy {
            partial: room.others.partial,
            ..others
        };
        let settled = room.settle(Some(applied));
        if room.others == others {
            return settled.then_some(index);
        }
        room.others = others;
        room.version += 1;
        Some(index)
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = RoomKey> + '_ {
        let key =
            |(index, room): (usize, &Room)| room.key(u32::try_from(index).unwrap_or(u32::MAX));
        self.slab.iter().map(key)
    }

    pub(super) fn at(&mut self, index: u32) -> &mut Room {
        &mut self.slab[index as usize]
    }

    pub(super) fn get(&self, index: u32) -> &Room {
        &self.slab[index as usize]
    }

    /// The room of this key, unless it is gone.
    pub(super) fn of(&mut self, key: RoomKey) -> Option<&mut Room> {
        self.slab
            .get_mut(key.index as usize)
            .filter(|room| room.generation == key.generation)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Room> {
        self.slab.iter().map(|(_, room)| room)
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }
}
