//! A node of the model: who is here, what of it the others were told, and a view of them.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    super::{connection, incarnation},
    hearing::Reading,
    store::{Caller, Fate, Moments, Store, Turn},
};
use crate::{
    cluster::{
        store::{Announcement, Incarnation, Stamp},
        view::{Frozen, Place, View},
    },
    hub::{ConnectionId, Fingerprint, MEMBER, Occupancy, Part},
};

/// An answer on its way.
#[derive(Debug)]
pub(super) enum Answer {
    Leased(Stamp, Incarnation),
    Flushed(Stamp, Incarnation, Fate),
}

/// What is shared by all nodes of a model.
#[derive(Debug, Default)]
pub(super) struct Common {
    pub(super) store: Store,
    pub(super) moments: Moments,
    /// Names handed out to incarnations.
    pub(super) names: u64,
}

impl Common {
    pub(super) fn fresh(&mut self) -> Incarnation {
        self.names += 1;
        incarnation(self.names)
    }
}

pub(super) struct Node {
    pub(super) process: usize,
    pub(super) view: View,
    /// Everybody here, by room.
    pub(super) here: BTreeMap<Place, Vec<Option<Fingerprint>>>,
    pub(super) told: BTreeMap<Place, BTreeSet<Fingerprint>>,
    pub(super) changed: BTreeSet<Place>,
    pub(super) paused: bool,
    /// Streams opened here by ticket, and when.
    pub(super) streams: BTreeMap<ConnectionId, u64>,
    pub(super) untold: BTreeSet<ConnectionId>,
    /// What the hub was told of the others, and of which state that is.
    pub(super) elsewhere: BTreeMap<Place, Occupancy>,
    pub(super) as_of: BTreeMap<Place, usize>,
    pub(super) inbox: VecDeque<Announcement>,
    pub(super) frozen: Option<Frozen>,
    pub(super) answer: Option<Answer>,
    pub(super) reading: Option<Reading>,
    pub(super) lapsed: BTreeSet<Incarnation>,
}

impl Node {
    pub(super) fn new(process: usize, common: &mut Common) -> Self {
        Self {
            process,
            view: View::new(common.fresh()),
            here: BTreeMap::new(),
            told: BTreeMap::new(),
            changed: BTreeSet::new(),
            paused: false,
            streams: BTreeMap::new(),
            untold: BTreeSet::new(),
            elsewhere: BTreeMap::new(),
            as_of: BTreeMap::new(),
            inbox: VecDeque::new(),
            frozen: None,
            answer: None,
            reading: None,
            lapsed: BTreeSet::new(),
        }
    }

    pub(super) fn process(&self) -> usize {
        self.process
    }

    /// The incarnations whose leases it renews or has just made.
    pub(super) fn leases(&self) -> impl Iterator<Item = Incarnation> {
        let made = match self.answer {
            Some(Answer::Leased(_, me)) => Some(me),
            _ => None,
        };
        [Some(self.view.me), self.view.older, made]
            .into_iter()
            .flatten()
    }

    pub(super) fn caller(&self, older: Option<Incarnation>) -> Caller {
        Caller {
            stamp: self.view.stamp(),
            process: self.process,
            me: self.view.me,
            older,
        }
    }

    pub(super) fn turn(&mut self, turn: Turn, now: Instant) {
        if self.view.epoch() != Some(turn.epoch) {
            self.as_of.clear();
        }
        self.view.turn(turn.epoch, turn.version, now);
    }

    pub(super) fn change(&mut self, room: Place) {
        if !self.paused {
            self.changed.insert(room);
            self.changed.insert(None);
        }
    }

    pub(super) fn open(&mut self, stream: ConnectionId, since: u64) {
        self.streams.insert(stream, since);
        self.untold.insert(stream);
    }

    /// Everybody in a place; without one, on the node.
    fn everybody(&self, place: &Place) -> Vec<Option<Fingerprint>> {
        match place {
            None => self.here.values().flatten().copied().collect(),
            some => self.here.get(some).cloned().unwrap_or_default(),
        }
    }

    pub(super) fn own(&self, place: &Place) -> (Occupancy, BTreeSet<Fingerprint>) {
        let all = self.everybody(place);
        let names: BTreeSet<Fingerprint> = all.iter().flatten().copied().collect();
        let alone = all.iter().filter(|name| name.is_none()).count();
        let own = Occupancy {
            connections: all.len() as u32,
            viewers: (alone + names.len()) as u32,
            members: names.iter().filter(|name| name[0] == MEMBER).count() as u32,
            partial: false,
        };
        (own, names)
    }

    pub(super) fn take_parts(&mut self, most_rooms: usize, most_names: usize) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut left = most_names;
        while parts.len() < most_rooms && left > 0 {
            let Some(place) = self.changed.pop_first() else {
                break;
            };
            let (own, names) = self.own(&place);
            let told = self.told.entry(place.clone()).or_default();
            let came: Vec<Fingerprint> = names.difference(told).copied().collect();
            let went: Vec<Fingerprint> = told.difference(&names).copied().collect();
            let whole = came.len() + went.len() <= left;
            let came: Vec<Fingerprint> = came.into_iter().take(left).collect();
            left -= came.len();
            let went: Vec<Fingerprint> = went.into_iter().take(left).collect();
            left -= went.len();
            told.extend(&came);
            told.retain(|name| !went.contains(name));
            if !whole {
                self.changed.insert(place.clone());
            }
            parts.push(Part {
                room: place,
                connections: own.connections,
                unidentified: own.viewers - names.len() as u32,
                came,
                went,
                whole,
            });
        }
        parts
    }

    pub(super) fn freeze(&mut self) -> Frozen {
        if std::mem::take(&mut self.view.claim_again) {
            self.untold.extend(self.streams.keys());
        }
        let claims = std::mem::take(&mut self.untold).into_iter();
        let claims = claims.filter_map(|id| Some((id, *self.streams.get(&id)?)));
        let claims = claims.collect();
        let parts = self.take_parts(2, 2);
        let done = self.changed.is_empty();
        self.view.freeze(parts, claims, done)
    }

    /// True where nothing is on its way or waits.
    pub(super) fn is_quiet(&self) -> bool {
        let view = &self.view;
        let told = !view.resync && !view.telling && self.frozen.is_none();
        let read = !view.reload && self.reading.is_none() && self.inbox.is_empty();
        let done = self.changed.is_empty() && self.untold.is_empty() && self.lapsed.is_empty();
        told && read && done && !view.is_holding()
    }
}

/// A moment of the model.
pub(super) fn moment(start: Instant, ms: u64) -> Instant {
    start + Duration::from_millis(ms)
}

pub(super) fn stream(number: u8) -> ConnectionId {
    connection(number.into())
}
