//! How a node of the model tells its numbers and keeps its lease. A call and its answer are steps of
//! their own, between which anything may happen.

use tokio::time::Instant;

use super::node::{Answer, Common, Node};
use super::store::{Caller, Fate};
use crate::cluster::{
    store::{Incarnation, Opened, Stamp},
    view::Frozen,
};
use crate::hub::ConnectionId;

impl Node {
    /// One step of telling; the answer to a call may be lost, the call having done its work.
    pub(super) fn tell(&mut self, common: &mut Common, lost: bool, now: Instant) {
        match self.answer.take() {
            Some(Answer::Leased(stamp, me)) => {
                self.view.alive(now);
                if self.view.stamp().epoch == stamp.epoch {
                    self.begin(me);
                }
                return;
            }
            Some(Answer::Flushed(stamp, me, fate)) => {
                self.view.alive(now);
                self.flushed(stamp, me, fate);
                return;
            }
            None => {}
        }
        if self.view.resync && self.view.epoch().is_some() {
            if let Some(dropped) = self.frozen.take() {
                let open = dropped.claims.iter().map(|(id, _)| *id);
                self.untold
                    .extend(open.filter(|id| self.streams.contains_key(id)));
            }
            let me = common.fresh();
            let caller = Caller {
                me,
                ..self.caller(self.view.predecessor())
            };
            match common.store.lease(caller, true, false) {
                Ok(_) if lost => {}
                Ok(_) => self.answer = Some(Answer::Leased(caller.stamp, me)),
                Err(turn) => self.turn(turn, now),
            }
            return;
        }
        let batch = match self.frozen.take() {
            Some(batch) => batch,
            None if self.view.epoch().is_none() => Frozen::default(),
            None => self.freeze(),
        };
        let connects = self.view.epoch().is_none();
        if !connects && batch.rooms.is_empty() && batch.claims.is_empty() && !batch.done {
            self.view.unused(&batch);
            return;
        }
        let caller = self.caller(self.view.older);
        let opened = |(id, since): &(ConnectionId, u64)| {
            let mut opened: Opened = [0; 24];
            opened[..16].copy_from_slice(&id.to_bits().to_be_bytes());
            opened[16..].copy_from_slice(&since.to_be_bytes());
            opened
        };
        let claims: Vec<Opened> = batch.claims.iter().map(opened).collect();
        match common.store.flush(caller, &batch, &claims) {
            Ok(fate) => {
                self.frozen = Some(batch);
                if !lost {
                    self.answer = Some(Answer::Flushed(caller.stamp, caller.me, fate));
                }
            }
            Err(turn) => self.turn(turn, now),
        }
    }

    fn begin(&mut self, me: Incarnation) {
        let places = self.view.begin(me);
        self.told.clear();
        self.paused = false;
        self.changed = places.into_iter().collect();
        self.changed.insert(None);
        let occupied = self.here.iter().filter(|(_, all)| !all.is_empty());
        self.changed
            .extend(occupied.map(|(place, _)| place.clone()));
    }

    fn flushed(&mut self, stamp: Stamp, me: Incarnation, fate: Fate) {
        let Some(batch) = self.frozen.take() else {
            return;
        };
        match fate {
            Fate::Applied { first_claim } => {
                if self.view.stamp().epoch == stamp.epoch && self.view.me == me {
                    self.view.acknowledge(&batch, first_claim);
                }
            }
            Fate::Resync => {
                self.view.resync = true;
                self.frozen = Some(batch);
            }
        }
    }

    /// Renews the lease.
    pub(super) fn lease(&mut self, common: &mut Common, now: Instant) {
        if self.view.epoch().is_none() {
            return;
        }
        let caller = self.caller(self.view.older);
        match common.store.lease(caller, false, !self.view.telling) {
            Ok(leased) => {
                self.view.alive(now);
                self.lapsed.extend(leased.lapsed);
                self.view
                    .nodes(leased.nodes, leased.synced, leased.version, now);
                let lost = !leased.held || leased.applied < self.view.acknowledged();
                self.view.resync |= lost;
            }
            Err(turn) => self.turn(turn, now),
        }
    }

    /// Reaps a part of somebody lapsed.
    pub(super) fn reap(&mut self, common: &mut Common, now: Instant) {
        if let Some(lapsed) = self.lapsed.pop_first()
            && let Err(turn) = common.store.reap(self.caller(None), lapsed, 2)
        {
            self.turn(turn, now);
        }
    }
}
