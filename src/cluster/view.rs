//! What this node knows of the others' numbers, and what they know of its own.
//!
//! Pure bookkeeping: every number that Redis tells contains this node's own share as it was at
//! some batch; the share is remembered per batch and taken off again, so what is shown is the
//! others' part and this node's own as it is now.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use smallvec::SmallVec;
use tokio::time::Instant;

use super::{
    clock::Clock,
    store::{Announcement, Claim, Epoch, Incarnation, LEASE_MS, RoomChange, SERVICE, Stamp, Total},
};
use crate::hub::{ConnectionId, Fingerprint, MEMBER, Occupancy, Part, RoomId};

/// How long numbers of an epoch before are held where the new one has not reached them.
pub(super) const HOLD: Duration = Duration::from_millis(1_500);
/// How long the number of an own claim is remembered: longer than clocks may differ.
const RECENT: Duration = Duration::from_mins(1);
/// Time between two looks for numbers that are older.
const SWEEP: Duration = Duration::from_secs(1);
/// How long a lease lasts.
const LEASE: Duration = Duration::from_millis(LEASE_MS);
/// Nothing acknowledged or heard for so long, and the others' numbers may be old.
pub(super) const SILENCE: Duration = Duration::from_millis(2_500);
/// What a node waits before it tells everything for the third time in a row, twice that before the
/// fourth, and so on.
const RESPITE: Duration = Duration::from_millis(500);
const LONGEST_RESPITE: Duration = Duration::from_secs(8);
/// How many of its own incarnations a node remembers.
const PAST: usize = 8;

/// A room, or the service as a whole.
pub(super) type Place = Option<RoomId>;

/// A connection opened by ticket, and when, in milliseconds of Unix time.
pub(super) type Opening = (ConnectionId, u64);

/// Stands for a claim that was taken back. No connection has this id.
pub(super) const NO_OPENING: Opening = (ConnectionId::from_bits(0), 0);

/// A connection that another node opened, when, in milliseconds of Unix time, and whether it was
/// told after this node's own opening, where that is known.
pub(super) type Taken = (ConnectionId, u64, Option<bool>);

/// What the hub is to be told.
pub(super) type News = Vec<(Place, Occupancy)>;

/// This node's part in a room's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Share {
    connections: u32,
    viewers: u32,
    members: u32,
}

/// What is known of one room.
#[derive(Debug, Default)]
struct Known {
    /// The announcement that the numbers are from.
    version: u64,
    others: Occupancy,
    /// This node's share as of each batch that said it, from the newest that is in the numbers on.
    sent: SmallVec<[(u64, Share); 1]>,
    /// Identities that this node has said it has here, and members among them.
    named: u32,
    members: u32,
    /// The batch before which this node's share in the numbers is not known.
    settled_at: u64,
}

impl Known {
    /// This node's share in numbers that hold its batches up to `applied`.
    fn share_in(&self, applied: u64) -> Share {
        let held = self.sent.iter().rfind(|(batch, _)| *batch <= applied);
        held.map_or_else(Share::default, |(_, share)| *share)
    }

    /// Forgets the shares that no announcement to come can hold any more.
    fn forget_before(&mut self, applied: u64) {
        let newest = self.sent.iter().rposition(|(batch, _)| *batch <= applied);
        self.sent.drain(..newest.unwrap_or(0));
    }

    /// True where forgetting all of it changes nothing, now that numbers hold this node's batches
    /// up to `applied`.
    fn is_blank(&self, applied: u64) -> bool {
        let nothing = self
            .sent
            .iter()
            .all(|(_, share)| *share == Share::default());
        let settled = self.settled_at <= applied && self.sent.len() < 2;
        self.others == Occupancy::default() && nothing && settled
    }
}

/// Numbers of the epoch before, shown where they are higher than those of the new one.
#[derive(Debug)]
struct Held {
    until: Instant,
    /// Nodes that were there.
    nodes: usize,
    others: HashMap<Place, Occupancy>,
}

/// What goes out in one call, unchanged until it is acknowledged.
#[derive(Debug, Default)]
pub(super) struct Frozen {
    pub(super) number: u64,
    pub(super) rooms: Vec<RoomChange>,
    /// Streams opened here by ticket.
    pub(super) claims: Vec<Opening>,
    /// True where it is the last one of a resync.
    pub(super) done: bool,
}

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    epoch: Option<Epoch>,
    /// The highest announcement heard or read.
    version: u64,
    pub(super) me: Incarnation,
    /// What this node was before, while a resync takes its entries over.
    pub(super) older: Option<Incarnation>,
    past: VecDeque<Incarnation>,
    next_batch: u64,
    /// The newest own batch that was acknowledged.
    acknowledged: u64,
    /// When the batch was made that is not acknowledged.
    unheard_since: Option<Instant>,
    /// The newest own batch in the announced numbers.
    applied: u64,
    /// The version that the last lease's answer told.
    leased_version: u64,
    known: HashMap<Place, Known>,
    held: Option<Held>,
    /// Nodes that were there in the epoch before, and until when they may still come.
    awaited: Option<(usize, Instant)>,
    /// True where everything is to be told again under a new incarnation.
    pub(super) resync: bool,
    /// True until everything was told under this one.
    pub(super) telling: bool,
    /// How often that was begun since it last came to its end.
    begun: u32,
    /// True where totals and claims are to be read again, since some were missed.
    pub(super) reload: bool,
    /// True once all totals were read.
    loaded: bool,
    last_heard: Option<Instant>,
    /// When it was last heard that the own lease is renewed.
    leased_at: Option<Instant>,
    /// True where the own lease has lapsed, and the others may have taken off what is here.
    lapsed: bool,
    /// The newest claim that was heard or read, none before it missing.
    pub(super) claims_seen: u64,
    /// True once all claims of this epoch were read.
    pub(super) claims_read: bool,
    /// Own claims of the last seconds: with their number, once acknowledged, and since when.
    recent: HashMap<ConnectionId, (Option<u64>, Instant)>,
    /// When old ones of them were last forgotten.
    swept: Option<Instant>,
    /// The newest own claim that was acknowledged.
    numbered: u64,
    /// Redis' clock, by which claims are told.
    pub(super) clock: Clock,
    /// The newest announcement heard.
    heard: u64,
    /// The newest announcement that is missing, until it is known again which own batches are
    /// announced.
    missing: Option<u64>,
    /// True while totals are being read.
    reading: bool,
    /// True once all totals of this epoch were read.
    current: bool,
    /// Epochs before this one, newest first.
    past_epochs: VecDeque<Epoch>,
    /// True where all streams opened by ticket are to be claimed again.
    pub(super) claim_again: bool,
    /// Nodes seen in the lease's answer before, that had not told everything then.
    unsynced_since: Option<Instant>,
    nodes: usize,
    /// How many of them have told everything.
    synced: usize,
    /// True where all blocks of this node are to be told again.
    pub(super) block_again: bool,
}

impl View {
    pub(super) fn new(me: Incarnation) -> Self {
        Self {
            epoch: None,
            version: 0,
            me,
            older: None,
            past: VecDeque::new(),
            next_batch: 1,
            acknowledged: 0,
            unheard_since: None,
            applied: 0,
            leased_version: 0,
            known: HashMap::new(),
            held: None,
            awaited: None,
            resync: true,
            telling: true,
            begun: 0,
            reload: true,
            loaded: false,
            last_heard: None,
            leased_at: None,
            lapsed: false,
            claims_seen: 0,
            claims_read: false,
            recent: HashMap::new(),
            swept: None,
            numbered: 0,
            clock: Clock::default(),
            heard: 0,
            missing: None,
            reading: false,
            current: false,
            past_epochs: VecDeque::new(),
            claim_again: false,
            unsynced_since: None,
            nodes: 0,
            synced: 0,
            block_again: false,
        }
    }

    pub(super) fn stamp(&self) -> Stamp {
        Stamp {
            epoch: self.epoch,
            version: self.version,
        }
    }

    pub(super) fn epoch(&self) -> Option<Epoch> {
        self.epoch
    }

    /// Notes that something was acknowledged or heard.
    pub(super) fn alive(&mut self, now: Instant) {
        self.last_heard = Some(now);
    }

    /// True while Redis answers, as far as can be told.
    pub(super) fn is_near(&self, now: Instant) -> bool {
        self.last_heard
            .is_some_and(|heard| now.duration_since(heard) < SILENCE)
    }

    /// True where other nodes' numbers are missing or may be old.
    pub(super) fn is_partial(&self, now: Instant) -> bool {
        let waiting = self
            .unsynced_since
            .is_some_and(|since| now.duration_since(since) > HOLD);
        let awaited = self.awaited.is_some_and(|(nodes, until)| {
            self.held.is_none() && self.synced < nodes && now < until
        });
        let unleased = self.lapsed
            || self
                .leased_at
                .is_some_and(|at| now.duration_since(at) >= LEASE);
        let unheard = self.is_unheard(now);
        !self.loaded || waiting || awaited || unleased || unheard || !self.is_near(now)
    }

    /// True where what goes out has not been acknowledged for so long that others show this node's
    /// numbers as they were, whatever else Redis answers.
    pub(super) fn is_unheard(&self, now: Instant) -> bool {
        self.unheard_since
            .is_some_and(|since| now.duration_since(since) >= LEASE)
    }

    /// Notes what became of the own lease by an answer that came then: with answers two seconds
    /// late the lease is kept, though it is old news.
    pub(super) fn leased(&mut self, held: bool, answered: Instant) {
        self.lapsed = !held;
        if held {
            self.leased_at = Some(answered);
        }
    }

    /// Notes who else is leased, as the lease's answer says.
    pub(super) fn nodes(&mut self, nodes: usize, synced: usize, version: u64, now: Instant) {
        self.nodes = nodes;
        self.synced = synced;
        self.unsynced_since = if nodes == synced {
            None
        } else {
            self.unsynced_since.or(Some(now))
        };
        // What was announced before the last lease was renewed has had the time to come.
        if self.version < self.leased_version {
            self.reload = true;
        }
        self.leased_version = version;
    }

    /// Turns to another epoch: an empty Redis, one restored, or the first one met. Numbers of the
    /// others are held until they are told again.
    pub(super) fn turn(&mut self, epoch: Epoch, version: u64, now: Instant) {
        if self.epoch == Some(epoch) {
            return;
        }
        let before = self.epoch.replace(epoch);
        self.recent.clear();
        self.clock.forget(now);
        self.past_epochs.retain(|past| *past != epoch);
        if let Some(before) = before {
            self.past_epochs.push_front(before);
            self.past_epochs.truncate(PAST);
        }
        self.version = version;
        self.heard = version;
        self.missing = None;
        self.current = false;
        self.claim_again = before.is_some();
        self.resync = true;
        self.reload = true;
        self.older = None;
        self.claims_seen = 0;
        self.numbered = 0;
        self.claims_read = false;
        self.next_batch = 1;
        self.acknowledged = 0;
        self.applied = 0;
        self.leased_version = 0;
        self.block_again = true;
        if before.is_none() {
            return;
        }
        let mut others: HashMap<Place, Occupancy> = self
            .known
            .iter()
            .filter(|(_, known)| known.others != Occupancy::default())
            .map(|(place, known)| (place.clone(), known.others))
            .collect();
        if let Some(held) = self.held.take() {
            for (place, before) in held.others {
                let now = others.entry(place).or_default();
                *now = higher(*now, before);
            }
        }
        self.synced = 0;
        // Where this node has a share, the new numbers say nothing before it is in them: a viewer
        // who is on another node too would be counted twice.
        let shared = |known: &Known| {
            known
                .sent
                .last()
                .is_some_and(|(_, s)| *s != Share::default())
        };
        self.known
            .retain(|_, known| shared(known) || known.settled_at == u64::MAX);
        for known in self.known.values_mut() {
            *known = Known {
                settled_at: u64::MAX,
                ..Known::default()
            };
        }
        self.awaited = Some((self.nodes, now + LEASE));
        self.held = Some(Held {
            until: now + HOLD,
            nodes: self.nodes,
            others,
        });
    }

    /// Lets go of the numbers of the epoch before once all nodes have told theirs, or at the end
    /// of the hold.
    pub(super) fn let_go(&mut self, now: Instant) -> News {
        let over = |held: &Held| {
            let read = self.current && !self.reload && !self.reading;
            now >= held.until || (self.synced >= held.nodes && read)
        };
        if !self.held.as_ref().is_some_and(over) {
            return News::new();
        }
        let held = self.held.take();
        let held = held.into_iter().flat_map(|held| held.others);
        held.map(|(place, before)| {
            let others = match self.known.get_mut(&place) {
                // Nothing better is known until this node's own share is in the totals.
                Some(known) if known.settled_at > self.applied => {
                    known.others = before;
                    before
                }
                Some(known) => known.others,
                None => Occupancy::default(),
            };
            (place, others)
        })
        .collect()
    }

    pub(super) fn is_holding(&self) -> bool {
        self.held.is_some()
    }

    /// The incarnation whose entries a resync would take over: the last one that told something in
    /// this epoch.
    pub(super) fn predecessor(&self) -> Option<Incarnation> {
        (self.next_batch > 1).then_some(self.me).or(self.older)
    }

    /// The incarnation before that one, where it was not yet taken over as a whole: nobody will, and
    /// what is left of it is for whoever is told to take off.
    pub(super) fn abandoned(&self) -> Option<Incarnation> {
        let predecessor = self.predecessor();
        self.older.filter(|older| Some(*older) != predecessor)
    }

    /// How long to wait before everything is told anew: not at all, but longer each time where that
    /// broke off again and again, since what it costs Redis is what it breaks off for.
    pub(super) fn respite(&self) -> Option<Duration> {
        let times = self.begun.checked_sub(2)?;
        Some((RESPITE * 2_u32.pow(times.min(8))).min(LONGEST_RESPITE))
    }

    /// Begins to tell everything under a new incarnation; answers the places of which something
    /// was told before.
    pub(super) fn begin(&mut self, me: Incarnation) -> Vec<Place> {
        self.older = self.predecessor();
        let settled_at = self.older.map_or(0, |_| u64::MAX);
        self.past.push_front(self.me);
        self.past.truncate(PAST);
        self.me = me;
        self.next_batch = 1;
        self.acknowledged = 0;
        self.applied = 0;
        self.resync = false;
        self.telling = true;
        self.begun = self.begun.saturating_add(1);
        // Those that were not acknowledged are made again where the stream is still open.
        self.recent.retain(|_, (number, _)| number.is_some());
        let mut places = Vec::new();
        for (place, known) in &mut self.known {
            let unsettled = known.settled_at == u64::MAX;
            if !known.sent.is_empty() || unsettled {
                known.settled_at = settled_at.max(if unsettled { u64::MAX } else { 0 });
                known.sent.clear();
                known.named = 0;
                known.members = 0;
                places.push(place.clone());
            }
        }
        places
    }

    /// Forgets own claims that are old. Once a second: in a storm a minute's are many, and a batch
    /// goes out every 50 ms.
    fn forget_claims(&mut self, now: Instant) {
        let is_swept = |at: Instant| now.duration_since(at) < SWEEP;
        if self.swept.is_some_and(is_swept) {
            return;
        }
        self.swept = Some(now);
        let young = |since: Instant| now.duration_since(since) < RECENT;
        self.recent
            .retain(|_, (number, since)| number.is_none() || young(*since));
    }

    /// Puts what changed into the next batch, which stays as it is until it is acknowledged.
    pub(super) fn freeze(&mut self, parts: Vec<Part>, claims: Vec<Opening>, done: bool) -> Frozen {
        let number = self.next_batch;
        self.next_batch += 1;
        let now = Instant::now();
        self.forget_claims(now);
        // One that was dropped is told again by this one.
        self.unheard_since.get_or_insert(now);
        let waiting = claims.iter().map(|(id, _)| (*id, (None, now)));
        self.recent.extend(waiting);
        let mut rooms = Vec::with_capacity(parts.len());
        for part in parts {
            self.note_share(number, &part);
            rooms.push(RoomChange {
                room: name(&part.room),
                connections: part.connections,
                unidentified: part.unidentified,
                add: part.came,
                remove: part.went,
            });
        }
        Frozen {
            number,
            rooms,
            claims,
            done: done && self.telling,
        }
    }

    /// Notes this node's share in a room as a batch says it.
    fn note_share(&mut self, number: u64, part: &Part) {
        let known = self.known.entry(part.room.clone()).or_default();
        let of = |list: &[Fingerprint]| {
            let members = list.iter().filter(|name| name[0] == MEMBER).count();
            (number_of(list.len()), number_of(members))
        };
        let ((came, members_came), (went, members_went)) = (of(&part.came), of(&part.went));
        known.named = (known.named + came).saturating_sub(went);
        known.members = (known.members + members_came).saturating_sub(members_went);
        if known.settled_at == u64::MAX && part.whole {
            known.settled_at = number;
        }
        let share = Share {
            connections: part.connections,
            viewers: part.unidentified + known.named,
            members: known.members,
        };
        // Where nothing changed nothing may be announced, and what is noted would stay for ever.
        if known.sent.last().is_none_or(|(_, last)| *last != share) {
            known.sent.push((number, share));
        }
        if !self.reading && known.is_blank(self.applied) {
            self.known.remove(&part.room);
        }
    }

    /// Takes back what a batch that is not acknowledged claims of streams that are not open any
    /// more: a newer one elsewhere would end for it. The claims keep their numbers, and say nothing.
    pub(super) fn take_back(&mut self, frozen: &mut Frozen, open: &[bool]) {
        let claims = frozen.claims.iter_mut().zip(open);
        for (claim, _) in claims.filter(|(_, open)| !**open) {
            self.recent.remove(&claim.0);
            *claim = NO_OPENING;
        }
    }

    /// Takes back a batch that says nothing.
    pub(super) fn unused(&mut self, frozen: &Frozen) {
        if frozen.number + 1 == self.next_batch {
            self.next_batch = frozen.number;
        }
        self.unheard_since = None;
    }

    /// The newest batch that was acknowledged; 0 before the first.
    pub(super) fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The number of the next batch.
    pub(super) fn next_batch(&self) -> u64 {
        self.next_batch
    }

    /// This node's newest batch in the announced numbers.
    pub(super) fn applied(&self) -> u64 {
        self.applied
    }

    /// Notes that a batch is in Redis.
    pub(super) fn acknowledge(&mut self, frozen: &Frozen, first_claim: u64) {
        for (number, (id, _)) in (first_claim..).zip(&frozen.claims) {
            self.numbered = number;
            if let Some((claim, _)) = self.recent.get_mut(id) {
                *claim = Some(number);
            }
        }
        self.acknowledged = frozen.number;
        self.unheard_since = None;
        if frozen.done {
            self.older = None;
            self.telling = false;
            self.begun = 0;
            // Whatever was announced while shares were not settled is looked at again.
            self.reload = true;
        }
    }

    /// Takes in an announcement; answers what the hub is to be told, and the streams that others
    /// opened.
    pub(super) fn hear(&mut self, announcement: &Announcement, now: Instant) -> (News, Vec<Taken>) {
        let nothing = (News::new(), Vec::new());
        if self.epoch.is_none() || self.past_epochs.contains(&announcement.epoch) {
            return nothing;
        }
        self.turn(announcement.epoch, announcement.version, now);
        let taken = self.claimed(&announcement.claims);
        if announcement.version <= self.heard {
            // Late or twice: what it says was read or is read again.
            self.reload |= announcement.version < self.heard;
            return (nothing.0, taken);
        }
        if announcement.version > self.heard + 1 {
            self.missing = Some(announcement.version - 1);
            self.reload = true;
        }
        self.heard = announcement.version;
        self.version = self.version.max(announcement.version);
        let listed = announcement.applied.iter().find(|(who, _)| *who == self.me);
        if let Some((_, batch)) = listed {
            self.applied = self.applied.max(*batch);
        } else if self.missing.is_some() {
            // Which of this node's batches these totals hold was said by one that is missing.
            self.reload = true;
            return (nothing.0, taken);
        }
        let applied = self.applied;
        let rooms = announcement.rooms.iter();
        let news = rooms
            .filter_map(|(room, total)| {
                self.learn(room, *total, announcement.version, applied, true)
            })
            .collect();
        (news, taken)
    }

    /// Takes in claims; answers the streams that others opened.
    pub(super) fn claimed(&mut self, claims: &[Claim]) -> Vec<Taken> {
        let mut taken = Vec::new();
        for claim in claims {
            match claim.number.checked_sub(self.claims_seen) {
                Some(1) => self.claims_seen = claim.number,
                // Some between are missing, and are read.
                Some(2..) => self.reload = true,
                Some(0) | None => {}
            }
            if claim.holder == self.me {
                self.note_claim(claim);
            } else if !self.past.contains(&claim.holder) {
                taken.push(self.read_claim(claim));
            }
        }
        taken
    }

    /// The same for a page of claims as read, which lacks none but those that are not kept.
    pub(super) fn read_claims(&mut self, claims: &[Claim]) -> Vec<Taken> {
        if let Some(first) = claims.first() {
            self.claims_seen = self.claims_seen.max(first.number.saturating_sub(1));
        }
        self.claimed(claims)
    }

    /// Notes the number of an own claim that is heard before its batch is acknowledged: what
    /// follows it came after it.
    fn note_claim(&mut self, claim: &Claim) {
        let (id, _) = opened(claim);
        if claim.number > self.numbered
            && let Some((number, _)) = self.recent.get_mut(&id)
        {
            *number = Some(claim.number);
        }
    }

    fn read_claim(&self, claim: &Claim) -> Taken {
        let (id, since) = opened(claim);
        let since = self.clock.here(since);
        // One that is neither acknowledged nor heard yet will be told after this one.
        let ours = self.recent.get(&id);
        let after = ours.map(|(ours, _)| ours.is_some_and(|ours| ours < claim.number));
        (id, since, after)
    }

    /// Takes in totals as read at `version`, with this node's batches up to `applied` in them.
    pub(super) fn read(&mut self, rooms: &[(String, Total)], version: u64, applied: u64) -> News {
        let rooms = rooms.iter();
        rooms
            .filter_map(|(room, total)| self.learn(room, *total, version, applied, false))
            .collect()
    }

    /// Notes that a reading of all totals begins.
    pub(super) fn begin_reading(&mut self) {
        self.reload = false;
        self.reading = true;
    }

    /// Notes that totals, claims and blocks were all read.
    pub(super) fn loaded(&mut self) {
        self.loaded = true;
    }

    /// Ends a reading of all totals that began at `version`, with this node's batches up to
    /// `applied` in them: whatever room was not in it has nobody elsewhere.
    pub(super) fn read_all(
        &mut self,
        version: u64,
        applied: u64,
        seen: &std::collections::HashSet<Place>,
    ) -> News {
        let mut news = News::new();
        for (place, known) in &mut self.known {
            let gone = known.others != Occupancy::default()
                && known.version <= version
                && known.settled_at <= applied
                && !seen.contains(place);
            if gone {
                known.others = Occupancy::default();
                known.version = version;
                news.push((place.clone(), known.others));
            }
        }
        self.known.retain(|_, known| {
            known.forget_before(applied);
            !known.is_blank(applied)
        });
        self.version = self.version.max(version);
        self.applied = self.applied.max(applied);
        self.heard = self.heard.max(version);
        // One that was found missing since the reading began may say more than was read.
        self.missing = self.missing.filter(|missing| *missing > version);
        self.reading = false;
        self.current = true;
        self.shown(news)
    }

    fn learn(
        &mut self,
        room: &str,
        total: Total,
        version: u64,
        applied: u64,
        announced: bool,
    ) -> Option<(Place, Occupancy)> {
        let place = match room {
            SERVICE => None,
            // What is no room's name is nobody's: somebody else wrote it.
            name => Some(RoomId::parse(name).ok()?),
        };
        let known = self.known.entry(place.clone()).or_default();
        // A reading at a version may hold more than the announcement of that version.
        let newer = if announced {
            version > known.version
        } else {
            version >= known.version
        };
        if !newer || known.settled_at > applied {
            return None;
        }
        known.version = version;
        let own = known.share_in(applied);
        if announced {
            known.forget_before(applied);
        }
        let others = Occupancy {
            viewers: total.viewers.saturating_sub(own.viewers),
            connections: total.connections.saturating_sub(own.connections),
            members: total.members.saturating_sub(own.members),
            partial: false,
        };
        known.others = others;
        // A page on its way may be older, and must find that something newer is known.
        if !self.reading && known.is_blank(applied) {
            self.known.remove(&place);
        }
        // Told though it is what was known: what this node waits for may be in it now.
        self.shown(vec![(place, others)]).pop()
    }

    /// Of how many places and of how many own claims something is kept.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> (usize, usize) {
        (self.known.len(), self.recent.len())
    }

    /// What is shown in the place of these numbers while those of an epoch before are held.
    fn shown(&self, mut news: News) -> News {
        if let Some(held) = &self.held {
            for (place, others) in &mut news {
                if let Some(before) = held.others.get(place) {
                    *others = higher(*others, *before);
                }
            }
        }
        news
    }
}

/// Which connection a claim is of, and when its stream was opened, in milliseconds of Redis' time.
fn opened(claim: &Claim) -> Opening {
    let (id, since) = claim.connection.split_at(16);
    let id = id.try_into().map(u128::from_be_bytes).unwrap_or_default();
    let since = since.try_into().map(u64::from_be_bytes).unwrap_or_default();
    (ConnectionId::from_bits(id), since)
}

fn higher(one: Occupancy, other: Occupancy) -> Occupancy {
    Occupancy {
        viewers: one.viewers.max(other.viewers),
        connections: one.connections.max(other.connections),
        members: one.members.max(other.members),
        partial: false,
    }
}

fn name(place: &Place) -> String {
    place
        .as_ref()
        .map_or_else(|| SERVICE.to_owned(), ToString::to_string)
}

fn number_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
