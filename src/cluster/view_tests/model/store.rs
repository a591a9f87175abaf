//! The store of the model, as the scripts are documented: epochs and leases. Of every state that its
//! numbers were in a copy is kept.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::super::epoch;
use crate::{
    cluster::{
        store::{Claim, Epoch, Incarnation, Stamp, Total},
        view::Place,
    },
    hub::Fingerprint,
};

/// What one incarnation has in one room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) connections: u32,
    pub(super) unidentified: u32,
    pub(super) names: BTreeSet<Fingerprint>,
}

pub(super) type Entries = BTreeMap<Place, Entry>;

/// All numbers at one moment.
pub(super) type State = BTreeMap<Incarnation, Entries>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lease {
    Runs,
    Lapsed,
    GivenUp,
}

/// One incarnation of a process.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) process: usize,
    /// Grows with every incarnation.
    pub(super) order: usize,
    pub(super) lease: Lease,
    pub(super) synced: bool,
    pub(super) batch: u64,
    pub(super) first_claim: u64,
}

/// The epoch in force, where it is not the caller's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Turn {
    pub(super) epoch: Epoch,
    pub(super) version: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Applied { first_claim: u64 },
    Resync,
}

#[derive(Debug)]
pub(super) struct Leased {
    pub(super) held: bool,
    pub(super) version: u64,
    pub(super) applied: u64,
    pub(super) nodes: usize,
    pub(super) synced: usize,
    pub(super) lapsed: Vec<Incarnation>,
}

/// Who calls: a process, its incarnation, and what that resyncs from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) stamp: Stamp,
    pub(super) process: usize,
    pub(super) me: Incarnation,
    pub(super) older: Option<Incarnation>,
}

#[derive(Debug)]
pub(super) struct Page {
    /// The place after which the next page begins.
    pub(super) cursor: Option<Place>,
    pub(super) version: u64,
    pub(super) applied: u64,
    pub(super) rooms: Vec<(String, Total)>,
    /// The state that it is of.
    pub(super) at: usize,
}

#[derive(Debug, Default)]
pub(super) struct Store {
    pub(super) epoch: Option<Epoch>,
    pub(super) epochs: u64,
    pub(super) version: u64,
    pub(super) lives: BTreeMap<Incarnation, Life>,
    pub(super) born: usize,
    pub(super) entries: State,
    pub(super) changed: BTreeSet<Place>,
    pub(super) flushed: BTreeSet<Incarnation>,
    pub(super) claims: Vec<Claim>,
    pub(super) claims_told: usize,
    pub(super) states: Vec<State>,
    /// From which state on entries of an incarnation were taken off.
    pub(super) reaped: BTreeMap<Incarnation, usize>,
}

impl Store {
    /// Forgets everything: whoever calls next finds an empty Redis.
    pub(super) fn empty(&mut self) {
        *self = Self {
            epochs: self.epochs,
            born: self.born,
            states: std::mem::take(&mut self.states),
            reaped: std::mem::take(&mut self.reaped),
            ..Self::default()
        };
        self.states.push(State::new());
    }

    pub(super) fn enter(&mut self, stamp: Stamp) -> Result<(), Turn> {
        let set_back = self.epoch == stamp.epoch && self.version < stamp.version;
        if self.epoch.is_none() || set_back {
            self.empty();
            self.epochs += 1;
            self.epoch = Some(epoch(self.epochs));
        }
        match self.epoch {
            Some(epoch) if self.epoch != stamp.epoch => Err(Turn {
                epoch,
                version: self.version,
            }),
            _ => Ok(()),
        }
    }

    /// Which state it is in now.
    pub(super) fn at(&self) -> usize {
        self.states.len() - 1
    }

    pub(super) fn note(&mut self) {
        for entries in self.entries.values_mut() {
            entries.retain(|_, entry| *entry != Entry::default());
        }
        self.states.push(self.entries.clone());
    }

    pub(super) fn states(&self) -> &[State] {
        &self.states
    }

    /// Makes or renews a lease.
    pub(super) fn lease(&mut self, who: Caller, new: bool, synced: bool) -> Result<Leased, Turn> {
        self.enter(who.stamp)?;
        if new {
            self.born += 1;
            let life = Life {
                process: who.process,
                order: self.born,
                lease: Lease::Runs,
                synced: false,
                batch: 0,
                first_claim: 0,
            };
            self.lives.insert(who.me, life);
        }
        let life = self.lives.get_mut(&who.me);
        let life = life.filter(|life| life.lease == Lease::Runs);
        let held = life.is_some();
        if let Some(life) = life {
            life.synced |= synced;
            let older = who.older.and_then(|older| self.lives.get_mut(&older));
            if let Some(older) = older.filter(|older| older.lease == Lease::Lapsed) {
                older.lease = Lease::Runs;
            }
        }
        let runs = self
            .lives
            .iter()
            .filter(|(_, life)| life.lease == Lease::Runs);
        // A process that resyncs is there twice, and counts as the newer one of the two.
        let mut newest: BTreeMap<usize, &Life> = BTreeMap::new();
        for (_, life) in runs.filter(|(id, _)| Some(**id) != who.older) {
            let known = newest.entry(life.process).or_insert(life);
            if known.order < life.order {
                *known = life;
            }
        }
        let lapsed = self
            .lives
            .iter()
            .filter(|(_, life)| life.lease != Lease::Runs);
        Ok(Leased {
            held,
            version: self.version,
            applied: self.lives.get(&who.me).map_or(0, |life| life.batch),
            nodes: newest.len(),
            synced: newest.values().filter(|life| life.synced).count(),
            lapsed: lapsed.map(|(id, _)| *id).collect(),
        })
    }

    /// Lets all leases of a process lapse.
    pub(super) fn lapse(&mut self, process: usize) {
        for life in self.lives.values_mut() {
            if life.process == process && life.lease == Lease::Runs {
                life.lease = Lease::Lapsed;
            }
        }
    }

    /// Lets all leases but these lapse.
    pub(super) fn lapse_others(&mut self, renewed: &BTreeSet<Incarnation>) {
        for (id, life) in &mut self.lives {
            if life.lease == Lease::Runs && !renewed.contains(id) {
                life.lease = Lease::Lapsed;
            }
        }
    }
}

/// Which state each announcement is of.
pub(super) type Moments = HashMap<(Epoch, u64), usize>;
