//! Messages: one order for all nodes, the log in Redis. Each node reads it from end to end and
//! delivers to its own streams.
//!
//! No room has a stream of its own: every node has all messages of the last minutes at hand anyway,
//! and the entries of such streams alone made a publish three times as long a script (12.8 us beside
//! 4.2, Redis 7.0).
//!
//! What the log kept no longer when a node came to it is lost there, and the node's streams are told
//! so.
//!
//! While Redis is away a node delivers what is published to it to its own streams, and appends it
//! to the log later, where it recognises it and does not deliver it again.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    Cluster, Shared, pause,
    store::{Answer, Epoch, Lane, LogEntry, LogSpan, Publication, Published as Ordered},
    view::SILENCE,
};
use crate::{
    hub::{Conflict, Idempotency, Position, Published, RoomId},
    sse,
};

/// Longest wait of one read for a new message.
const BLOCK: Duration = Duration::from_secs(1);
/// Longest wait for what another node had already.
const REACH: Duration = Duration::from_secs(1);
/// Messages in one read.
const PAGE: usize = 200;
/// Longest time between two tries.
const RETRY: Duration = Duration::from_millis(300);
/// Most messages that wait for Redis to come back.
const QUEUED: usize = 1_000;
/// Most bytes of them.
const QUEUED_BYTES: usize = 4 << 20;
/// How long after a turn of the epoch others may say that there was more in the log before.
const SETTLED: Duration = Duration::from_secs(3);
/// Own messages heard from the log that are remembered, for a publication whose reply was lost.
const HEARD: usize = 4_096;
/// What stands before a publisher's own key.
const KEY: &str = "key:";
/// A position holds milliseconds of Unix time above so many bits.
const SEQUENCE_BITS: u32 = 20;

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Said {
    /// Where it stands.
    pub published: Published,
    /// True where so far only this node has it.
    pub partial: bool,
}

impl Said {
    /// What became of a message where there is one node.
    #[must_use]
    pub fn alone(published: Published) -> Self {
        Self {
            published,
            partial: false,
        }
    }
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsaid {
    /// The idempotency key was used for something else.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Redis is away and too much waits for it already.
    #[error(transparent)]
    Overloaded(#[from] Overloaded),
}

/// Redis is away and too much waits for it already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many messages wait for Redis to come back")]
pub struct Overloaded;

/// One message on its way to the log.
#[derive(Debug, Clone)]
struct Outgoing {
    room: RoomId,
    event: String,
    data: String,
    once: String,
    digest: [u8; 32],
    number: u64,
}

/// What this node publishes.
#[derive(Default)]
pub(super) struct Outbox {
    own: Mutex<Own>,
    /// One call at a time; taken for a call to Redis.
    lane: tokio::sync::Mutex<Option<Lane>>,
    queued: Notify,
}

/// Own messages: what the log brings back of them must not be delivered twice.
#[derive(Default)]
struct Own {
    numbers: u64,
    /// Delivered here already, not yet heard from the log.
    delivered: HashSet<u64>,
    /// The highest position that a message of this node was given, and in which epoch.
    placed: Option<(Epoch, u64)>,
    /// Heard from the log, newest last.
    heard: VecDeque<(u64, Position)>,
    /// To be appended when Redis is back, oldest first.
    queue: VecDeque<Outgoing>,
    bytes: usize,
}

/// How far this node has read the log.
#[derive(Debug, Clone, Copy)]
struct Following {
    epoch: Epoch,
    upto: u64,
    /// The last entry that there was at the beginning.
    goal: u64,
    /// When all that there was had last been read; none where it is not known.
    whole_at: Option<Instant>,
    before: Option<Before>,
}

/// How far this node had read the log of the epoch before, while others may yet say that there was
/// more: what was not read of it is gone with it.
#[derive(Debug, Clone, Copy)]
struct Before {
    epoch: Epoch,
    upto: u64,
    /// When the others are asked next, and last.
    next: Instant,
    last: Instant,
}

impl Following {
    /// True where nothing that was not read can have been cut off the log since.
    fn is_close(&self, now: Instant) -> bool {
        self.whole_at
            .is_some_and(|at| now.duration_since(at) < SILENCE)
    }
}

impl Own {
    /// Notes that the message which waited for longest has its place in the log, or gets none.
    fn appended(&mut self, ordered: Ordered) {
        let Some(message) = self.queue.pop_front() else {
            return;
        };
        self.bytes -= message.data.len();
        let is_news = matches!(
            ordered,
            Ordered::Ordered {
                duplicate: false,
                ..
            }
        );
        // Where the key was used elsewhere nothing of this number comes back. Without a key it is
        // this very message that was in the log, and it does.
        if !is_news && message.once.starts_with(KEY) {
            self.delivered.remove(&message.number);
        }
    }
}

impl Cluster {
    /// Waits until this node has everything up to a position that another one gave out, a second
    /// at the most: whoever comes back here must not be told again what it was told there.
    pub async fn reach(&self, position: Position) {
        let reached = async {
            loop {
                let here = self.0.hub.position();
                if here.epoch != position.epoch || here.sequence >= position.sequence {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Where it does not come, its reader is told that it may have missed something.
        let _ = tokio::time::timeout(REACH, reached).await;
    }

    /// Publishes to everybody in a room on every node; `data` is one line of JSON. Answers once
    /// the message has its place in the order, or, with Redis away, once this node has it.
    ///
    /// # Errors
    ///
    /// When the idempotency key was used for another message, or too much waits for Redis.
    pub async fn publish(
        &self,
        room: &RoomId,
        event: &str,
        data: &str,
        mark: Option<Idempotency>,
    ) -> Result<Said, Unsaid> {
        let shared = &self.0;
        let number = {
            let mut own = shared.outbox.own.lock();
            own.numbers += 1;
            own.numbers
        };
        let message = Outgoing {
            room: room.clone(),
            event: event.to_owned(),
            data: data.to_owned(),
            once: match &mark {
                Some(mark) => format!("{KEY}{}", mark.key),
                // A call whose reply was lost is made again, and must be known again.
                None => format!("from:{}:{number}", shared.process),
            },
            digest: mark.as_ref().map_or([0; 32], |mark| mark.digest),
            number,
        };
        let waits = !shared.outbox.own.lock().queue.is_empty();
        let near = shared.view.lock().is_near(Instant::now());
        if near && !waits {
            let mut lane = shared.outbox.lane.lock().await;
            let lane = lane.get_or_insert_with(|| shared.redis.lane());
            for _ in 0..2 {
                // Another one may have found out meanwhile.
                let waits = !shared.outbox.own.lock().queue.is_empty();
                if waits || !shared.view.lock().is_near(Instant::now()) {
                    break;
                }
                if let Some((epoch, ordered)) = shared.append(lane, &message).await {
                    return match ordered {
                        Ordered::Ordered {
                            position,
                            duplicate,
                        } => Ok(Said {
                            published: Published {
                                position: Position {
                                    epoch: epoch.bits(),
                                    sequence: position,
                                },
                                duplicate,
                            },
                            partial: false,
                        }),
                        Ordered::Conflict => Err(Conflict.into()),
                    };
                }
            }
        }
        shared.say_here(message, mark)
    }
}

impl Shared {
    /// Appends a message to the log, once however often it is tried.
    async fn append(&self, lane: &mut Lane, message: &Outgoing) -> Option<(Epoch, Ordered)> {
        let origin = format!("{}:{}", self.process, message.number);
        for _ in 0..2 {
            let stamp = self.view.lock().stamp();
            let epoch = stamp.epoch?;
            let publication = Publication {
                room: message.room.as_str(),
                event: &message.event,
                data: message.data.as_bytes(),
                once: &message.once,
                digest: message.digest,
                floor: self.hub.position().sequence,
                origin: &origin,
            };
            let answer = lane.publish(stamp, &publication).await;
            match self.called("publish", answer)? {
                Answer::Done(ordered) => {
                    if let Ordered::Ordered { position, .. } = ordered {
                        let mut own = self.outbox.own.lock();
                        let before = own.placed.filter(|(of, _)| *of == epoch);
                        let highest = before.map_or(position, |(_, before)| before.max(position));
                        own.placed = Some((epoch, highest));
                    }
                    return Some((epoch, ordered));
                }
                Answer::Epoch { epoch, version } => self.turn(epoch, version),
            }
        }
        None
    }

    /// Delivers a message to this node's own streams and keeps it for the log.
    fn say_here(&self, message: Outgoing, mark: Option<Idempotency>) -> Result<Said, Unsaid> {
        let mut own = self.outbox.own.lock();
        let heard = own.heard.iter().find(|(n, _)| *n == message.number);
        if let Some((_, position)) = heard {
            // The call was done after all, and only its reply was lost.
            return Ok(Said {
                published: Published {
                    position: *position,
                    duplicate: false,
                },
                partial: false,
            });
        }
        let bytes = message.data.len();
        if own.queue.len() >= QUEUED || own.bytes + bytes > QUEUED_BYTES {
            return Err(Overloaded.into());
        }
        let encode = |id| sse::message(&message.event, &message.room, &message.data, id);
        let now = Instant::now();
        let published = self.hub.publish(&message.room, mark, encode, now)?;
        if !published.duplicate {
            own.delivered.insert(message.number);
            own.bytes += bytes;
            own.queue.push_back(message);
            self.outbox.queued.notify_one();
        }
        Ok(Said {
            published,
            partial: true,
        })
    }

    /// Appends what waited for Redis, in its order, for ever.
    pub(super) async fn append_later(self: Arc<Self>) {
        loop {
            let next = self.outbox.own.lock().queue.front().cloned();
            let Some(message) = next else {
                self.outbox.queued.notified().await;
                continue;
            };
            let appended = {
                let mut lane = self.outbox.lane.lock().await;
                let lane = lane.get_or_insert_with(|| self.redis.lane());
                self.append(lane, &message).await
            };
            let Some((_, ordered)) = appended else {
                pause(RETRY).await;
                continue;
            };
            match ordered {
                Ordered::Ordered { duplicate, .. } if duplicate => {
                    tracing::debug!(room = %message.room, "a message was in the log already");
                }
                Ordered::Ordered { .. } => {}
                Ordered::Conflict => {
                    tracing::warn!(room = %message.room, "while Redis was away an idempotency key was used for two messages: this node's is not passed on");
                }
            }
            self.outbox.own.lock().appended(ordered);
        }
    }

    /// Reads the log and delivers what it says, for ever.
    pub(super) async fn follow_log(self: Arc<Self>) {
        let mut lane = self.redis.lane();
        let started = Instant::now();
        let mut following: Option<Following> = None;
        let mut was_stuck = false;
        loop {
            let mut turned = std::pin::pin!(self.turned.notified());
            // From here on no turn goes unnoticed.
            turned.as_mut().enable();
            let Some(epoch) = self.view.lock().epoch() else {
                turned.await;
                continue;
            };
            if following.is_none_or(|following| following.epoch != epoch) {
                let begun = self.begin_log(&mut lane, epoch, following, started).await;
                following = begun.or(following);
            }
            let Some(now) = following.as_mut().filter(|now| now.epoch == epoch) else {
                pause(RETRY).await;
                continue;
            };
            if now.upto >= now.goal {
                self.caught_up.store(true, Ordering::Relaxed);
            }
            let page = lane.read_log(epoch, now.upto, PAGE, BLOCK).await;
            let Some(page) = self.called("read_log", page) else {
                now.whole_at = None;
                pause(RETRY).await;
                continue;
            };
            if !now.is_close(Instant::now()) {
                now.whole_at = None;
                // A reading does not say what was cut off before it came.
                let Some(span) = self.log_span(&mut lane, epoch, now.before).await else {
                    pause(RETRY).await;
                    continue;
                };
                if span.cut > now.upto {
                    self.missed(span.cut);
                }
            }
            for entry in &page.entries {
                self.heard(epoch, entry);
            }
            now.upto = page.upto;
            now.whole_at = (page.entries.len() < PAGE).then(Instant::now);
            if now.whole_at.is_some() {
                // Of what there was at the beginning, nothing is left that was not read.
                now.goal = now.upto;
            }
            if let Some(before) = now.before {
                now.before = self.ask_about(before, &mut lane, epoch).await;
            }
            if page.stuck {
                if !was_stuck {
                    tracing::warn!("passed over an entry of the log whose id is no position");
                }
                pause(RETRY).await;
            }
            was_stuck = page.stuck;
        }
    }

    /// Begins with the log of an epoch, as far as it is kept, where another one was followed
    /// `before`.
    async fn begin_log(
        &self,
        lane: &mut Lane,
        epoch: Epoch,
        before: Option<Following>,
        started: Instant,
    ) -> Option<Following> {
        let now = Instant::now();
        // Where two epochs went by so quickly, what the first one had will not be known.
        let is_unsettled = before.is_some_and(|before| before.before.is_some());
        let before = before.map(|before| Before {
            epoch: before.epoch,
            upto: before.upto,
            next: now,
            last: now + SETTLED,
        });
        let span = self.log_span(lane, epoch, before).await?;
        // Who is here before Redis was first met would take what the log kept for new.
        let is_late = before.is_none() && self.hub.totals().own.connections > 0;
        let from = if is_late {
            span.last.max(span.cut)
        } else {
            span.cut
        };
        self.hub.follow(epoch.bits(), from);
        let is_cut = from > 0 && said_at(from) > started;
        let is_missed = before.is_some_and(|before| span.was > before.upto);
        if is_cut || is_unsettled || is_missed {
            self.missed(from);
        }
        Some(Following {
            epoch,
            upto: from,
            goal: span.last,
            whole_at: Some(now),
            before: before.filter(|_| !is_missed),
        })
    }

    /// Asks the others whether the log before had more, where it is time; answers how to go on.
    async fn ask_about(&self, before: Before, lane: &mut Lane, epoch: Epoch) -> Option<Before> {
        let now = Instant::now();
        if now < before.next {
            return Some(before);
        }
        let Some(span) = self.log_span(lane, epoch, Some(before)).await else {
            return Some(before);
        };
        if span.was > before.upto {
            self.missed(span.cut);
            return None;
        }
        let next = now + SETTLED / 4;
        (now < before.last).then_some(Before { next, ..before })
    }

    /// What the log of this epoch holds, while it is the one in force.
    async fn log_span(
        &self,
        lane: &mut Lane,
        epoch: Epoch,
        before: Option<Before>,
    ) -> Option<LogSpan> {
        let stamp = self.view.lock().stamp();
        let placed = self.outbox.own.lock().placed;
        let before = before.map(|before| {
            let placed = placed.filter(|(of, _)| *of == before.epoch);
            let known = placed.map_or(0, |(_, position)| position);
            (before.epoch, known.max(before.upto))
        });
        let span = lane.log_span(stamp, before).await;
        let span = self.done(self.called("log_span", span)?)?;
        (stamp.epoch == Some(epoch)).then_some(span)
    }

    /// Tells this node's streams that messages up to this position may be missing.
    fn missed(&self, upto: u64) {
        tracing::warn!(
            "messages of other nodes may have been missed: all streams are told to load anew"
        );
        self.hub.miss(upto);
    }

    fn heard(&self, epoch: Epoch, entry: &LogEntry) {
        let Some((room, data)) = read(entry) else {
            tracing::warn!(
                position = entry.position,
                "passed over a message that is none"
            );
            return;
        };
        let own_number = entry
            .origin
            .strip_prefix(&self.process.to_string())
            .and_then(|rest| rest.strip_prefix(':')?.parse::<u64>().ok());
        let mut own = self.outbox.own.lock();
        if let Some(number) = own_number {
            if own.delivered.remove(&number) {
                self.hub.realign(entry.position);
                return;
            }
            let position = Position {
                epoch: epoch.bits(),
                sequence: entry.position,
            };
            own.heard.push_back((number, position));
            if own.heard.len() > HEARD {
                own.heard.pop_front();
            }
        }
        let key = entry.once.strip_prefix(KEY);
        let mark = key.map(|key| Idempotency::new(key, &entry.event, data));
        let encode = |id| sse::message(&entry.event, &room, data, id);
        let at = said_at(entry.position);
        self.hub.deliver(&room, entry.position, mark, encode, at);
    }
}

/// The room and the data of an entry that this service may have written.
fn read(entry: &LogEntry) -> Option<(RoomId, &str)> {
    let room = RoomId::parse(&entry.room).ok()?;
    let data = std::str::from_utf8(&entry.data).ok()?;
    let plain = |text: &str| !text.is_empty() && !text.contains(['\n', '\r']);
    (plain(data) && plain(&entry.event)).then_some((room, data))
}

/// When a message was said, by its position; now where that cannot be.
fn said_at(position: u64) -> Instant {
    let now = Instant::now();
    let said = Duration::from_millis(position >> SEQUENCE_BITS);
    let unix = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    let age = unix.saturating_sub(said);
    now.checked_sub(age).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordered(duplicate: bool) -> Ordered {
        Ordered::Ordered {
            position: 1,
            duplicate,
        }
    }

    #[test]
    fn a_number_is_remembered_only_where_the_log_brings_it_back() {
        for (once, fate, comes_back) in [
            ("key:k", ordered(false), true),
            ("key:k", ordered(true), false),
            ("key:k", Ordered::Conflict, false),
            // Its own entry, the reply to which was lost.
            ("from:1:7", ordered(true), true),
        ] {
            let message = Outgoing {
                room: RoomId::parse("blog:1").unwrap(),
                event: "message".to_owned(),
                data: "1".to_owned(),
                once: once.to_owned(),
                digest: [0; 32],
                number: 7,
            };
            let mut own = Own {
                delivered: HashSet::from([7]),
                bytes: 1,
                ..Own::default()
            };
            own.queue.push_back(message);
            own.appended(fate);
            assert_eq!(own.delivered.contains(&7), comes_back, "{once} {fate:?}");
            assert_eq!((own.queue.len(), own.bytes), (0, 0));
        }
    }
}
