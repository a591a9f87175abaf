//! The numbers in the store of the model: batches in, announcements and totals out, lapsed
//! incarnations reaped.

use std::collections::{BTreeMap, BTreeSet};

use super::super::place as named_place;
use super::store::{Caller, Entries, Entry, Fate, Lease, Page, State, Store, Turn};
use crate::cluster::{
    store::{Announcement, Claim, Incarnation, Opened, Total},
    view::{Frozen, Place},
};
use crate::hub::{Fingerprint, MEMBER, Occupancy};

impl Store {
    /// Applies a batch, once however often it is sent.
    pub(super) fn flush(
        &mut self,
        who: Caller,
        batch: &Frozen,
        claims: &[Opened],
    ) -> Result<Fate, Turn> {
        self.enter(who.stamp)?;
        let Some(life) = self.lives.get_mut(&who.me) else {
            return Ok(Fate::Resync);
        };
        if life.lease != Lease::Runs {
            return Ok(Fate::Resync);
        } else if batch.number == life.batch {
            let first_claim = life.first_claim;
            return Ok(Fate::Applied { first_claim });
        } else if batch.number != life.batch + 1 {
            return Ok(Fate::Resync);
        }
        life.batch = batch.number;
        life.synced |= batch.done;
        let first_claim = self.claims.len() as u64 + 1;
        life.first_claim = first_claim;
        for (number, connection) in (first_claim..).zip(claims) {
            self.claims.push(Claim {
                number,
                connection: *connection,
                holder: who.me,
            });
        }
        let mut mine = self.entries.remove(&who.me).unwrap_or_default();
        let mut none = Entries::new();
        let older = who.older.and_then(|older| self.entries.get_mut(&older));
        let older = older.unwrap_or(&mut none);
        for room in &batch.rooms {
            let place = named_place(&room.room);
            let entry = mine.entry(place.clone()).or_default();
            let before = older.entry(place.clone()).or_default();
            let had = (
                entry.connections + std::mem::take(&mut before.connections),
                entry.unidentified + std::mem::take(&mut before.unidentified),
            );
            (entry.connections, entry.unidentified) = (room.connections, room.unidentified);
            let mut touched = had != (room.connections, room.unidentified);
            for name in &room.add {
                // One that the older one had is moved, and nothing changes.
                touched |= entry.names.insert(*name) && !before.names.remove(name);
            }
            for name in &room.remove {
                touched |= entry.names.remove(name) || before.names.remove(name);
            }
            if touched {
                self.changed.insert(place);
            }
        }
        self.entries.insert(who.me, mine);
        self.flushed.insert(who.me);
        if batch.done
            && let Some(older) = who.older.and_then(|id| self.lives.get_mut(&id))
        {
            older.lease = Lease::GivenUp;
        }
        self.note();
        Ok(Fate::Applied { first_claim })
    }

    /// Announces what is pending, of the changed rooms at most this many.
    pub(super) fn announce(&mut self, most: usize) -> Option<Announcement> {
        let epoch = self.epoch?;
        let told = self.claims_told == self.claims.len();
        if told && self.changed.is_empty() && self.flushed.is_empty() {
            return None;
        }
        self.version += 1;
        let state = self.states.last()?;
        let flushed = std::mem::take(&mut self.flushed).into_iter();
        let some: Vec<Place> = self.changed.iter().take(most).cloned().collect();
        for place in &some {
            self.changed.remove(place);
        }
        let claims = self.claims[self.claims_told..].to_vec();
        self.claims_told = self.claims.len();
        let name = |place: &Place| place.as_ref().map_or("*".to_owned(), ToString::to_string);
        Some(Announcement {
            epoch,
            version: self.version,
            applied: flushed
                .filter_map(|id| Some((id, self.lives.get(&id)?.batch)))
                .collect(),
            claims,
            rooms: some
                .iter()
                .map(|place| (name(place), total(state, place)))
                .collect(),
        })
    }

    /// Reads the totals of some places after this one.
    pub(super) fn totals(
        &mut self,
        who: Caller,
        after: Option<&Place>,
        count: usize,
    ) -> Result<Page, Turn> {
        self.enter(who.stamp)?;
        if self.states.is_empty() {
            self.note();
        }
        let places: BTreeSet<&Place> = self.entries.values().flat_map(BTreeMap::keys).collect();
        let rest = places
            .into_iter()
            .filter(|place| after.is_none_or(|after| *place > after));
        let rest: Vec<&Place> = rest.collect();
        let page = &rest[..rest.len().min(count)];
        let name = |place: &Place| place.as_ref().map_or("*".to_owned(), ToString::to_string);
        Ok(Page {
            cursor: page
                .last()
                .filter(|_| rest.len() > count)
                .map(|last| (*last).clone()),
            version: self.version,
            applied: self.lives.get(&who.me).map_or(0, |life| life.batch),
            rooms: page
                .iter()
                .map(|place| (name(place), total(&self.entries, place)))
                .collect(),
            at: self.at(),
        })
    }

    /// Takes up to so many names and rooms of a lapsed incarnation off the totals.
    pub(super) fn reap(
        &mut self,
        who: Caller,
        lapsed: Incarnation,
        steps: usize,
    ) -> Result<(), Turn> {
        self.enter(who.stamp)?;
        if self
            .lives
            .get(&lapsed)
            .is_none_or(|life| life.lease == Lease::Runs)
        {
            return Ok(());
        }
        let mut left = steps;
        let entries = self.entries.entry(lapsed).or_default();
        for (place, entry) in entries.iter_mut() {
            while left > 0 && entry.names.pop_first().is_some() {
                left -= 1;
                self.changed.insert(place.clone());
            }
            if left > 0 && entry.names.is_empty() {
                left -= 1;
                *entry = Entry::default();
                self.changed.insert(place.clone());
            }
        }
        self.note();
        self.reaped.entry(lapsed).or_insert(self.states.len() - 1);
        if self.entries.get(&lapsed).is_none_or(BTreeMap::is_empty) {
            self.entries.remove(&lapsed);
            self.lives.remove(&lapsed);
            self.flushed.remove(&lapsed);
        }
        Ok(())
    }
}

/// All nodes' numbers of one place in a state.
pub(super) fn total(state: &State, place: &Place) -> Total {
    let entries = || state.values().filter_map(|entries| entries.get(place));
    let names: BTreeSet<Fingerprint> = entries().flat_map(|e| e.names.iter().copied()).collect();
    let alone: u32 = entries().map(|entry| entry.unidentified).sum();
    Total {
        connections: entries().map(|entry| entry.connections).sum(),
        viewers: alone + names.len() as u32,
        members: names.iter().filter(|name| name[0] == MEMBER).count() as u32,
    }
}

/// What a place's total is without one incarnation's share in it.
pub(super) fn without(state: &State, place: &Place, me: Incarnation) -> Occupancy {
    let all = total(state, place);
    let own = state
        .get(&me)
        .and_then(|entries| entries.get(place))
        .cloned()
        .unwrap_or_default();
    let members = own.names.iter().filter(|name| name[0] == MEMBER).count();
    Occupancy {
        connections: all.connections - own.connections,
        viewers: all.viewers - own.unidentified - own.names.len() as u32,
        members: all.members - members as u32,
        partial: false,
    }
}
