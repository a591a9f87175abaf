//! Who is here by name: each identified viewer once, with its open connections.
//!
//! A user's personal room costs nothing of its own: this list serves.

use std::{cell::OnceCell, hash::BuildHasher};

use hashbrown::HashTable;
use slab::Slab;
use smallvec::SmallVec;

use super::{Fingerprint, Identity, UserId, room::Viewer, sharing::Fingerprints};

/// About 110 bytes and the name.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) identity: Identity,
    /// Connections counted for this person, by their place.
    pub(super) connections: SmallVec<[u32; 2]>,
    /// Joined rooms over all connections.
    pub(super) joined: u32,
    /// Sequence of the newest message to the personal room since the first connection.
    pub(super) addressed: u64,
    /// Made when first asked for: a keyed hash of each of thousands, when everything is to be told
    /// again, would hold up who joins.
    fingerprint: OnceCell<Option<Fingerprint>>,
}

impl Person {
    /// What other nodes know this person by.
    pub(super) fn fingerprint(&self, made_by: &dyn Fingerprints) -> Option<Fingerprint> {
        let made = || made_by.identity(&self.identity);
        *self.fingerprint.get_or_init(made)
    }

    /// True where the person is one of the service's viewers: in a room, and a member always is.
    pub(super) fn counts(&self) -> bool {
        self.joined > 0 || matches!(self.identity, Identity::Member(_))
    }
}

/// The identified viewers of this node.
#[derive(Debug, Default)]
pub(super) struct People {
    slab: Slab<Person>,
    by_identity: HashTable<u32>,
    hasher: std::hash::RandomState,
    /// People known by a token.
    pub(super) members: u32,
    /// People in at least one room; a member is always in the personal one.
    pub(super) in_rooms: u32,
}

impl People {
    pub(super) fn find(&self, identity: &Identity) -> Option<u32> {
        let hash = self.hasher.hash_one(identity);
        self.by_identity
            .find(hash, |&place| {
                self.slab[place as usize].identity == *identity
            })
            .copied()
    }

    pub(super) fn find_user(&self, user: &UserId) -> Option<&Person> {
        self.find(&Identity::Member(user.clone()))
            .map(|place| &self.slab[place as usize])
    }

    pub(super) fn address(&mut self, user: &UserId, sequence: u64) -> Option<&Person> {
        let place = self.find(&Identity::Member(user.clone()))?;
        let person = &mut self.slab[place as usize];
        person.addressed = sequence;
        Some(person)
    }

    /// Adds a connection to its person, who is made known by it where new.
    pub(super) fn arrive(&mut self, identity: &Identity, connection: u32) -> Viewer {
        let member = match identity {
            Identity::Connection => return Viewer::Connection,
            Identity::Chosen(_) => false,
            Identity::Member(_) => true,
        };
        let place = match self.find(identity) {
            Some(place) => place,
            None => self.insert(identity, member),
        };
        let person = &mut self.slab[place as usize];
        person.connections.push(connection);
        Viewer::Person { place, member }
    }

    fn insert(&mut self, identity: &Identity, member: bool) -> u32 {
        let person = Person {
            identity: identity.clone(),
            connections: SmallVec::new(),
            joined: 0,
            addressed: 0,
            fingerprint: OnceCell::new(),
        };
        let place = u32::try_from(self.slab.insert(person)).unwrap_or(u32::MAX);
        let hash = self.hasher.hash_one(identity);
        let (slab, hasher) = (&self.slab, &self.hasher);
        self.by_identity.insert_unique(hash, place, |&place| {
            hasher.hash_one(&slab[place as usize].identity)
        });
        self.members += u32::from(member);
        self.in_rooms += u32::from(member);
        place
    }

    /// True where this connection is its person's only one.
    pub(super) fn is_alone(&self, viewer: Viewer) -> bool {
        match viewer {
            Viewer::Person { place, .. } => self.slab[place as usize].connections.len() == 1,
            Viewer::Connection | Viewer::Ticketed => true,
        }
    }

    /// Takes a connection from its person, who is forgotten with the last.
    pub(super) fn depart(&mut self, viewer: Viewer, connection: u32) {
        let Viewer::Person { place, member } = viewer else {
            return;
        };
        let person = &mut self.slab[place as usize];
        person.connections.retain(|other| *other != connection);
        if !person.connections.is_empty() {
            return;
        }
        let hash = self.hasher.hash_one(&person.identity);
        if let Ok(entry) = self.by_identity.find_entry(hash, |&other| other == place) {
            entry.remove();
        }
        self.slab.remove(place as usize);
        self.members -= u32::from(member);
        self.in_rooms -= u32::from(member);
        if self.slab.is_empty() {
            self.slab = Slab::new();
            self.by_identity = HashTable::new();
        }
    }

    /// Notes that a connection of this person joined a room, or left one; true where the person
    /// counts by it who did not before, or no longer.
    pub(super) fn note(&mut self, place: u32, member: bool, joined: bool) -> bool {
        let person = &mut self.slab[place as usize];
        let before = person.joined > 0;
        person.joined = if joined {
            person.joined + 1
        } else {
            person.joined.saturating_sub(1)
        };
        let after = person.joined > 0;
        let turned = !member && before != after;
        if turned {
            self.in_rooms = if after {
                self.in_rooms + 1
            } else {
                self.in_rooms - 1
            };
        }
        turned
    }

    /// Those known by a token, who have a personal room.
    pub(super) fn members_mut(&mut self) -> impl Iterator<Item = &mut Person> {
        let people = self.slab.iter_mut().map(|(_, person)| person);
        people.filter(|person| matches!(person.identity, Identity::Member(_)))
    }

    pub(super) fn get(&self, place: u32) -> &Person {
        &self.slab[place as usize]
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Person> {
        self.slab.iter().map(|(_, person)| person)
    }
}
