//! How a node of the model hears announcements and reads totals, and what may be shown at any time.

use std::collections::HashSet;

use tokio::time::Instant;

use super::super::place as named_place;
use super::node::{Common, Node};
use super::numbers::without;
use super::store::Page;
use crate::cluster::{
    store::{Epoch, Incarnation},
    view::{News, Place, Taken},
};

/// A reading of all totals.
#[derive(Debug)]
pub(super) struct Reading {
    epoch: Option<Epoch>,
    me: Incarnation,
    cursor: Option<Place>,
    page: Option<Page>,
    first: Option<(u64, u64, usize)>,
    seen: HashSet<Place>,
}

impl Node {
    /// Hears the next announcement.
    pub(super) fn hear(&mut self, common: &Common, now: Instant) {
        let Some(announcement) = self.inbox.pop_front() else {
            return;
        };
        let at = common.moments[&(announcement.epoch, announcement.version)];
        let before = self.view.epoch();
        self.view.alive(now);
        let (news, taken) = self.view.hear(&announcement, now);
        if self.view.epoch() != before {
            self.as_of.clear();
        }
        self.check(common, &news, at);
        self.take(&news);
        self.give_up(&taken);
    }

    /// One step of reading all totals, where that is due.
    pub(super) fn reread(&mut self, common: &mut Common, now: Instant) {
        let Some(mut reading) = self.reading.take() else {
            if self.view.reload && self.view.epoch().is_some() {
                self.view.begin_reading();
                self.reading = Some(Reading {
                    epoch: self.view.epoch(),
                    me: self.view.me,
                    cursor: None,
                    page: None,
                    first: None,
                    seen: HashSet::new(),
                });
            }
            return;
        };
        let Some(page) = reading.page.take() else {
            let mut caller = self.caller(None);
            caller.me = reading.me;
            match common.store.totals(caller, reading.cursor.as_ref(), 2) {
                Ok(page) => {
                    reading.page = Some(page);
                    self.reading = Some(reading);
                }
                Err(turn) => {
                    self.turn(turn, now);
                    self.view.reload = true;
                }
            }
            return;
        };
        if self.view.epoch() != reading.epoch || self.view.me != reading.me {
            self.view.reload = true;
            return;
        }
        self.view.alive(now);
        let (version, applied, _) =
            *reading
                .first
                .get_or_insert((page.version, page.applied, page.at));
        let places = page.rooms.iter().map(|(name, _)| named_place(name));
        reading.seen.extend(places);
        let news = self.view.read(&page.rooms, page.version, page.applied);
        self.check(common, &news, page.at);
        self.take(&news);
        if page.cursor.is_some() {
            reading.cursor = page.cursor;
            self.reading = Some(reading);
            return;
        }
        let news = self.view.read_all(version, applied, &reading.seen);
        self.take(&news);
        let after = usize::try_from(self.view.claims_seen).expect("a few");
        let after = after.min(common.store.claims.len());
        let taken = self.view.read_claims(&common.store.claims[after..]);
        self.give_up(&taken);
        self.view.loaded();
    }

    /// What goes by the clock.
    pub(super) fn watch_over(&mut self, now: Instant) {
        if self.view.is_holding() {
            let news = self.view.let_go(now);
            self.take(&news);
        }
        if !self.view.is_near(now) && self.view.epoch().is_some() && !self.view.resync {
            self.view.resync = true;
            self.paused = true;
            self.changed.clear();
        }
    }

    fn take(&mut self, news: &News) {
        self.elsewhere.extend(news.iter().cloned());
    }

    /// Every number told is that of one moment: the total then, less this node's share in it
    /// then. What is told later is of a later moment; and nothing that is on its way from one
    /// incarnation to the next counts as somebody else's.
    fn check(&mut self, common: &Common, news: &News, at: usize) {
        let reaped = common.store.reaped.get(&self.view.me);
        // Whoever was taken for dead learns of it a moment later.
        if self.view.is_holding() || reaped.is_some_and(|from| *from <= at) {
            return;
        }
        let state = &common.store.states()[at];
        for (place, others) in news {
            assert_eq!(*others, without(state, place, self.view.me), "{place:?}");
            let before = self.as_of.insert(place.clone(), at);
            assert!(
                before.is_none_or(|before| before <= at),
                "{place:?} went back"
            );
            let older = self
                .view
                .older
                .and_then(|older| state.get(&older)?.get(place));
            let waits = older.map_or(0, |entry| entry.connections);
            assert_eq!(waits, 0, "{place:?} is shown twice");
        }
    }

    /// Ends streams that others opened later, as the hub does.
    fn give_up(&mut self, taken: &[Taken]) {
        for (id, since, after) in taken {
            if let Some(ours) = self.streams.get(id)
                && !self.untold.contains(id)
                && after.unwrap_or(ours < since)
            {
                self.streams.remove(id);
            }
        }
    }
}
