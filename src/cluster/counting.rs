//! The numbers' way out and back: batches, the lease, totals read again, lapsed nodes reaped.

use std::{
    collections::HashSet,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::{sync::mpsc, time::Instant};

use super::{
    Shared, pause,
    store::{Batch, Card, Flushed, Incarnation, Lane, Leased, Opened, Stamp},
    view::{Frozen, NO_OPENING, Place, Taken},
};
use crate::hub::{ConnectionId, RoomId};

/// Shortest time between two batches.
const FLUSH: Duration = Duration::from_millis(50);
/// Time between two renewals of the lease.
const RENEW: Duration = Duration::from_millis(500);
/// A lease call without an answer for so long is made again on another connection. One that is lost
/// takes 2.5 s to fail, and with the half second before it that is all that a lease lasts.
const HEDGE: Duration = Duration::from_secs(1);
/// Longest time between two tries.
const RETRY: Duration = Duration::from_millis(300);
/// Most rooms in a batch.
const ROOMS: usize = 500;
/// Most identities in a batch: 16 ms of Redis in one script, where 500 take 4 (measured with 7.0). A
/// node of 15,000 readers whose answers come 2 s late tells everything in 16 s, with 500 in a minute.
const MOVES: usize = 2_000;
/// Most claims in a batch.
const CLAIMS: usize = 1_000;
/// Rooms in one page of totals.
const PAGE: usize = 500;
/// Bookings taken off a lapsed node in one script.
const REAP: u32 = 2_000;
/// A change of whether numbers are partial is told to the rooms within this time.
const SPREAD_MS: u64 = 2_000;

/// Whether there was anything to tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Something,
    Nothing,
}

impl Shared {
    fn card(&self, synced: bool, unheard: bool) -> Card {
        Card {
            name: self.name.clone(),
            process: Some(self.process),
            since_ms: self.since_ms,
            connections: u64::from(self.hub.totals().own.connections),
            synced,
            unheard,
        }
    }

    /// Tells the others this node's part of every room that changes, for ever.
    pub(super) async fn tell(self: Arc<Self>) {
        let mut lane = self.redis.lane();
        let mut frozen = None;
        let mut announce_at = None;
        loop {
            let waiting = {
                let view = self.view.lock();
                view.resync || view.telling
            };
            let untold = !self.blocks.lock().is_empty() || self.hub.has_parts();
            if !waiting && frozen.is_none() && !untold && announce_at.is_none() {
                tokio::select! {
                    () = self.hub.shared() => {}
                    () = self.retell.notified() => {}
                }
            }
            let begun = Instant::now();
            let told = self
                .tell_once(&mut lane, &mut frozen, &mut announce_at)
                .await;
            let Some(told) = told else {
                pause(RETRY).await;
                continue;
            };
            let pace = async {
                // While everything is told at once, what is left may wait for something to be read.
                if told == Told::Nothing || !self.view.lock().telling {
                    tokio::time::sleep_until(begun + FLUSH).await;
                }
            };
            let announce = announce_at.unwrap_or(begun + FLUSH);
            tokio::select! {
                () = pace => {}
                () = tokio::time::sleep_until(announce) => {}
            }
            if announce_at.is_some_and(|at| at <= Instant::now()) {
                self.announce(&mut lane, &mut announce_at).await;
                tokio::time::sleep_until(begun + FLUSH).await;
            }
        }
    }

    async fn announce(&self, lane: &mut Lane, announce_at: &mut Option<Instant>) {
        let stamp = self.view.lock().stamp();
        // One that fails is made up for by the next lease or batch of any node.
        let answer = self.called("announce", lane.announce(stamp).await);
        let wait = answer.and_then(|answer| self.done(answer)).flatten();
        *announce_at = wait.map(|wait| Instant::now() + wait);
    }

    /// Sends one batch, the one before again where it was not acknowledged; answers whether there
    /// was anything to send. `None` where Redis did not take it.
    async fn tell_once(
        &self,
        lane: &mut Lane,
        frozen: &mut Option<Frozen>,
        announce_at: &mut Option<Instant>,
    ) -> Option<Told> {
        if self.view.lock().epoch().is_none() {
            let (epoch, version) = self.called("connect", lane.connect().await)?;
            self.turn(epoch, version);
        }
        if self.view.lock().resync {
            if let Some(dropped) = frozen.take() {
                let again: Vec<ConnectionId> = dropped.claims.iter().map(|(id, _)| *id).collect();
                self.hub.claim_again(Some(&again));
            }
            let respite = self.view.lock().respite();
            if let Some(respite) = respite {
                pause(respite).await;
            }
            self.begin(lane).await?;
        }
        let batch = match frozen.take() {
            Some(batch) => batch,
            None => self.freeze(),
        };
        let batch = frozen.insert(batch);
        if batch.rooms.is_empty() && batch.claims.is_empty() && !batch.done {
            self.view.lock().unused(batch);
            *frozen = None;
            self.send_blocks(lane).await?;
            return Some(Told::Nothing);
        }
        let (stamp, me, older, claims) = {
            let mut view = self.view.lock();
            view.take_back(batch, &self.hub.are_open(&batch.claims));
            let opened = |(id, since_ms): &(ConnectionId, u64)| {
                let mut opened = [0; 24];
                if (*id, *since_ms) == NO_OPENING {
                    return opened;
                }
                opened[..16].copy_from_slice(&id.to_bits().to_be_bytes());
                opened[16..].copy_from_slice(&view.clock.there(*since_ms).to_be_bytes());
                opened
            };
            let claims: Vec<Opened> = batch.claims.iter().map(opened).collect();
            (view.stamp(), view.me, view.older, claims)
        };
        let sent = Batch {
            incarnation: me,
            older,
            number: batch.number,
            rooms: &batch.rooms,
            claims: &claims,
            done: batch.done,
        };
        let answer = self.called("flush", lane.flush(stamp, &sent).await)?;
        match self.done(answer) {
            Some(Flushed::Applied {
                claims_from,
                announce_in,
            }) => {
                let mut view = self.view.lock();
                if view.stamp().epoch == stamp.epoch && view.me == me {
                    view.acknowledge(batch, claims_from);
                }
                if view.reload {
                    self.reread.notify_one();
                }
                *announce_at = announce_in.map(|wait| Instant::now() + wait);
            }
            Some(Flushed::Resync) => {
                tracing::warn!("this node's lease or a batch was lost: telling all numbers anew");
                self.view.lock().resync = true;
                // Its claims are made again when the resync begins.
                return Some(Told::Something);
            }
            // Another epoch is in force, and the view has turned to it.
            None => {}
        }
        *frozen = None;
        self.send_blocks(lane).await?;
        Some(Told::Something)
    }

    fn freeze(&self) -> Frozen {
        let mut view = self.view.lock();
        // A claim says when, by a clock that has to be known; and a stream that somebody else has
        // opened later is not claimed again.
        let claims = if view.clock.is_known() && view.claims_read {
            if std::mem::take(&mut view.claim_again) {
                self.hub.claim_again(None);
            }
            self.hub.take_opened(CLAIMS)
        } else {
            Vec::new()
        };
        let parts = self.hub.take_parts(ROOMS, MOVES, view.next_batch());
        self.take_blocks();
        let done = !self.hub.has_parts();
        view.freeze(parts, claims, done)
    }

    /// Takes a fresh incarnation, under which everything is told again.
    async fn begin(&self, lane: &mut Lane) -> Option<()> {
        let me = Incarnation::random();
        let (stamp, older, abandoned) = {
            let view = self.view.lock();
            (view.stamp(), view.predecessor(), view.abandoned())
        };
        if let Some(abandoned) = abandoned {
            let released = lane.release(stamp, abandoned).await;
            self.done(self.called("release", released)?)?;
        }
        let card = self.card(false, false);
        let asked = Instant::now();
        let answer = lane.lease(stamp, me, older, &card, true).await;
        let answer = self.called("lease", answer)?;
        let leased = self.done(answer)?;
        let (took, unix_ms) = (asked.elapsed(), unix_ms());
        self.resyncs
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut view = self.view.lock();
        if view.stamp().epoch != stamp.epoch {
            return None;
        }
        let places = view.begin(me);
        view.leased(true, Instant::now());
        view.clock
            .compare(leased.now_ms, unix_ms, took, Instant::now());
        self.hub.share_all(places, Instant::now());
        Some(())
    }

    /// Keeps the lease, whatever else is held up.
    pub(super) async fn lease(self: Arc<Self>) {
        let mut lane = self.redis.lane();
        let mut ticks = tokio::time::interval(RENEW);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let (stamp, me, older, (synced, unheard), acknowledged) = {
                let view = self.view.lock();
                let acknowledged = view.acknowledged();
                let told = (!view.telling, view.is_unheard(Instant::now()));
                (view.stamp(), view.me, view.older, told, acknowledged)
            };
            if stamp.epoch.is_none() {
                continue;
            }
            let card = self.card(synced, unheard);
            let asked = Instant::now();
            let mut other = self.redis.lane();
            let hedge = async {
                tokio::time::sleep(HEDGE).await;
                other.lease(stamp, me, older, &card, false).await
            };
            let first = lane.lease(stamp, me, older, &card, false);
            let answer = first_of(first, hedge, asked + HEDGE).await;
            let Some(leased) = self
                .called("lease", answer)
                .and_then(|answer| self.done(answer))
            else {
                continue;
            };
            self.leased(leased, stamp, me, acknowledged, asked);
        }
    }

    /// Takes in what became of a lease asked for then.
    fn leased(
        &self,
        leased: Leased,
        stamp: Stamp,
        me: Incarnation,
        acknowledged: u64,
        asked: Instant,
    ) {
        let now = Instant::now();
        for incarnation in leased.lapsed {
            // The error says that the process ends.
            let _ = self.lapsed.send(incarnation);
        }
        // A node that resyncs is there twice, and counts as the newer one of the two.
        let mut nodes = leased.nodes;
        nodes.sort_by(|a, b| {
            let of = |node: &super::store::Node| (node.card.name.clone(), node.card.since_ms);
            of(a).cmp(&of(b)).then(a.lag_ms.cmp(&b.lag_ms))
        });
        nodes.dedup_by_key(|node| (node.card.name.clone(), node.card.since_ms));
        let mut view = self.view.lock();
        if view.stamp().epoch != stamp.epoch {
            return;
        }
        view.clock
            .compare(leased.now_ms, unix_ms(), asked.elapsed(), now);
        if view.me == me {
            view.leased(leased.held, now);
        }
        let older = view.older;
        nodes.retain(|node| Some(node.incarnation) != older);
        let synced = nodes.iter().filter(|node| node.card.synced).count();
        view.nodes(nodes.len(), synced, leased.version, now);
        // A Redis that knows less than it acknowledged was set back.
        let lost = !leased.held || leased.applied < acknowledged;
        if lost && view.me == me && !view.resync {
            tracing::warn!("this node's lease or numbers were lost: telling all anew");
            view.resync = true;
            self.retell.notify_one();
        }
        if view.reload {
            self.reread.notify_one();
        }
        drop(view);
        *self.nodes.lock() = (nodes, Some(now));
    }

    /// Reads all totals and claims whenever some may have been missed.
    pub(super) async fn reread(self: Arc<Self>) {
        let mut lane = self.redis.lane();
        loop {
            let due = {
                let view = self.view.lock();
                view.reload && view.epoch().is_some()
            };
            if !due {
                self.reread.notified().await;
                continue;
            }
            self.view.lock().begin_reading();
            if self.read_totals(&mut lane).await.is_none() {
                self.view.lock().reload = true;
                pause(RETRY).await;
            }
        }
    }

    async fn read_totals(&self, lane: &mut Lane) -> Option<()> {
        let mut cursor = 0;
        let mut first = None;
        let mut seen: HashSet<Place> = HashSet::new();
        let (epoch, me) = {
            let view = self.view.lock();
            (view.epoch(), view.me)
        };
        loop {
            let stamp = self.view.lock().stamp();
            let answer = lane.totals(stamp, me, cursor, PAGE).await;
            let page = self.done(self.called("totals", answer)?)?;
            let mut view = self.view.lock();
            // Versions of one epoch and batches of one incarnation say nothing of another's, also
            // where it began between two pages.
            if view.epoch() != epoch || view.me != me {
                return None;
            }
            let (version, applied) = *first.get_or_insert((page.version, page.applied));
            seen.extend(page.rooms.iter().map(|(name, _)| RoomId::parse(name).ok()));
            let news = view.read(&page.rooms, page.version, page.applied);
            self.hub.set_elsewhere(&news, page.applied, Instant::now());
            cursor = page.cursor;
            if cursor == 0 {
                let news = view.read_all(version, applied, &seen);
                self.hub.set_elsewhere(&news, applied, Instant::now());
                break;
            }
        }
        self.read_claims(lane).await?;
        self.read_blocks(lane).await?;
        self.view.lock().loaded();
        Some(())
    }

    async fn read_claims(&self, lane: &mut Lane) -> Option<()> {
        loop {
            let (stamp, after) = {
                let view = self.view.lock();
                if !view.clock.is_known() {
                    return None;
                }
                (view.stamp(), view.claims_seen)
            };
            let answer = lane.claims_after(stamp, after, CLAIMS).await;
            let claims = self.done(self.called("claims", answer)?)?;
            if claims.is_empty() {
                let mut view = self.view.lock();
                if view.epoch() != stamp.epoch {
                    return None;
                }
                if !std::mem::replace(&mut view.claims_read, true) {
                    // Own ones have waited for that.
                    self.retell.notify_one();
                }
                return Some(());
            }
            let taken = self.view.lock().read_claims(&claims);
            self.give_up(&taken);
        }
    }

    /// Ends this node's streams of connections that another node opened later.
    pub(super) fn give_up(&self, taken: &[Taken]) {
        for (connection, since_ms, after_ours) in taken {
            let now = Instant::now();
            let hub = &self.hub;
            hub.opened_elsewhere(*connection, *since_ms, *after_ours, now);
        }
    }

    /// Takes the numbers of nodes whose lease lapsed off the totals, in small steps, beside
    /// whoever else was told.
    ///
    /// Every lease's answer names all of them again. So what was told meanwhile is forgotten: as a
    /// queue it grew faster than it was worked off, and a lapsed node waited behind minutes of
    /// repetitions.
    pub(super) async fn reap(self: Arc<Self>, mut lapsed: mpsc::UnboundedReceiver<Incarnation>) {
        let mut lane = self.redis.lane();
        while let Some(first) = lapsed.recv().await {
            pause(Duration::from_millis(100)).await;
            // In no order, so that nodes begin with different ones.
            let mut due = HashSet::from([first]);
            while let Ok(other) = lapsed.try_recv() {
                due.insert(other);
            }
            for incarnation in due {
                self.reap_one(&mut lane, incarnation).await;
            }
            while lapsed.try_recv().is_ok() {}
        }
    }

    async fn reap_one(&self, lane: &mut Lane, incarnation: Incarnation) {
        loop {
            let stamp = self.view.lock().stamp();
            let answer = lane.reap(stamp, incarnation, REAP).await;
            let more = self
                .called("reap", answer)
                .and_then(|answer| self.done(answer));
            if more.is_some() {
                let answer = lane.announce(stamp).await;
                let _ = self.called("announce", answer);
            }
            if more != Some(true) {
                return;
            }
        }
    }

    /// Tells the hub when others' numbers go missing or are back, and lets go of held ones.
    pub(super) async fn watch_over(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut shown = true;
        loop {
            ticks.tick().await;
            let now = Instant::now();
            let mut view = self.view.lock();
            if view.is_holding() {
                let news = view.let_go(now);
                self.hub.set_elsewhere(&news, view.applied(), now);
            }
            let partial = view.is_partial(now);
            if !view.is_near(now) && view.epoch().is_some() && !view.resync {
                // Its lease ends before anybody can be told: everything will be told again.
                view.resync = true;
                self.hub.stop_sharing();
                // Nothing else may ever change here and wake whoever tells it.
                self.retell.notify_one();
            }
            drop(view);
            if partial != shown {
                shown = partial;
                tracing::info!(partial, "other nodes' numbers");
                let spread = |_| Duration::from_millis(rand::random_range(0..SPREAD_MS));
                self.hub.set_partial(partial, &spread, now);
            }
        }
    }
}

/// The answer of whichever call has one first. Where the first fails before the second one has begun,
/// that is not waited for.
async fn first_of<T, E>(
    first: impl Future<Output = Result<T, E>>,
    second: impl Future<Output = Result<T, E>>,
    begins: Instant,
) -> Result<T, E> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    tokio::select! {
        biased;
        answer = &mut first => {
            if answer.is_ok() || Instant::now() < begins {
                return answer;
            }
            second.await
        }
        answer = &mut second => {
            if answer.is_ok() {
                return answer;
            }
            first.await
        }
    }
}

/// This node's clock, in milliseconds of Unix time.
fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
