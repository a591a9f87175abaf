//! What finished minutes were, exchanged: a node that missed a part of one, since it was away from
//! Redis or came later, learns it from the others.
//!
//! All nodes follow the same totals and so mostly know the same. Each waits a moment of its own
//! after a minute's end and then tells only what it has not heard better by then: however many
//! nodes there are, a minute is told about once.

use std::{collections::HashMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use super::{Shared, asking::Mail, asks::Envelope, store::Channel};
use crate::{
    history::{History, Range, Step},
    hub::RoomId,
};

/// Shortest wait after a minute's end. Nodes whose clocks are behind by less have finished it too,
/// and take in what they hear; what comes sooner is passed over.
const SETTLE_MS: u64 = 2_000;
/// Longest one.
const SPREAD_MS: u64 = 8_000;
/// Most rooms in one message: some 15 KB with names as they are, 100 KB at the most.
const CHUNK: usize = 500;
/// A mean travels in thousandths.
const FRACTION: f32 = 1_000.0;
/// Means that differ by less, and by less than a hundredth, say the same: nodes hear of a change
/// some milliseconds apart.
const SAME: f32 = 0.05;

/// What a room, or, without a name, the service was in a minute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct WireStep {
    room: Option<String>,
    viewers: WireRange,
    connections: WireRange,
}

/// Least, mean in thousandths, most.
type WireRange = (u32, u64, u32);

/// This node's part in the exchange.
#[derive(Debug)]
pub(super) struct Minutes {
    history: History,
    /// Held while a chunk is compared, a fraction of a millisecond.
    untold: Mutex<Untold>,
}

/// What this node would tell of the last finished minute.
#[derive(Debug, Default)]
struct Untold {
    at: u32,
    steps: HashMap<Option<RoomId>, Step>,
}

impl Minutes {
    pub(super) fn new(history: History) -> Self {
        Self {
            history,
            untold: Mutex::default(),
        }
    }

    /// Notes what the last finished minute was; false where that was done before.
    fn begin(&self, now: Instant) -> bool {
        let (at, steps) = self.history.finished(now);
        let steps = steps.into_iter();
        let public = steps.filter(|(room, _)| !room.as_ref().is_some_and(RoomId::is_personal));
        let mut untold = self.untold.lock();
        if untold.at == at {
            return false;
        }
        *untold = Untold {
            at,
            steps: public.collect(),
        };
        true
    }

    /// What nobody else has told meanwhile, in messages of bounded size.
    fn tell(&self) -> Vec<(u32, Vec<WireStep>)> {
        let mut untold = self.untold.lock();
        let at = untold.at;
        let steps: Vec<WireStep> = untold
            .steps
            .drain()
            .map(|(room, step)| wire(room, step))
            .collect();
        drop(untold);
        let chunks = steps.chunks(CHUNK);
        chunks.map(|chunk| (at, chunk.to_vec())).collect()
    }

    /// Takes in what another node tells of a finished minute. What cannot be is passed over.
    pub(super) fn hear(&self, at: u32, steps: &[WireStep], now: Instant) {
        if steps.len() > CHUNK {
            tracing::warn!("passed over a minute of too many rooms");
            return;
        }
        for told in steps {
            let Some((room, step)) = read(told) else {
                tracing::warn!("passed over a room's minute that is none");
                continue;
            };
            // Not taken: a minute that is not over here, or is too long ago.
            if self.history.merge(at, room.as_ref(), step, now) {
                self.heard(at, &room, step);
            }
        }
    }

    /// Need not be told again.
    fn heard(&self, at: u32, room: &Option<RoomId>, step: Step) {
        let mut untold = self.untold.lock();
        if untold.at != at {
            return;
        }
        if let Some(own) = untold.steps.get(room)
            && says_all(step.viewers, own.viewers)
            && says_all(step.connections, own.connections)
        {
            untold.steps.remove(room);
        }
    }
}

impl Shared {
    /// Tells the others what each minute was, for ever.
    pub(super) async fn tell_minutes(self: Arc<Self>) {
        let Some(minutes) = &self.minutes else {
            return;
        };
        loop {
            // A millisecond more, so that the minute is over when it is looked at.
            sleep(minutes.history.minute_left(Instant::now()) + Duration::from_millis(1)).await;
            if !minutes.begin(Instant::now()) {
                continue;
            }
            let wait = rand::random_range(SETTLE_MS..=SPREAD_MS);
            sleep(Duration::from_millis(wait)).await;
            let told = minutes.tell();
            if !self.view.lock().is_near(Instant::now()) {
                // Nobody would hear it, and questions would have to wait for it.
                continue;
            }
            for (at, steps) in told {
                let from = self.process.bits();
                let envelope = Envelope::Minute { from, at, steps };
                // The error says that the process ends.
                let _ = self.mail.send(Mail::new(Channel::Everybody, &envelope));
            }
        }
    }
}

/// True where what was told leaves nothing of `own` to be told.
fn says_all(told: Range, own: Range) -> bool {
    let slack = SAME.max(own.mean / 100.0);
    told.min >= own.min && told.max >= own.max && told.mean + slack >= own.mean
}

fn wire(room: Option<RoomId>, step: Step) -> WireStep {
    let range = |range: Range| {
        let mean = f64::from(range.mean) * f64::from(FRACTION);
        (range.min, mean.round() as u64, range.max)
    };
    WireStep {
        room: room.map(|room| room.to_string()),
        viewers: range(step.viewers),
        connections: range(step.connections),
    }
}

/// Reads what another node told; `None` where it makes no sense.
fn read(told: &WireStep) -> Option<(Option<RoomId>, Step)> {
    let room = match &told.room {
        Some(name) => Some(
            RoomId::parse(name)
                .ok()
                .filter(|room| !room.is_personal())?,
        ),
        None => None,
    };
    let range = |(min, mean, max): WireRange| {
        let mean = mean as f32 / FRACTION;
        // Rounded in between, so a little beside is still within.
        let within = min <= max && mean >= min as f32 * 0.999 && mean <= max as f32 * 1.001;
        within.then_some(Range { min, mean, max })
    };
    let step = Step {
        viewers: range(told.viewers)?,
        connections: range(told.connections)?,
    };
    // Every viewer has a stream.
    (step.viewers.max <= step.connections.max).then_some((room, step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{Hub, Occupancy, Record, Tempo},
        sse::Encoder,
    };

    /// A moment at the begin of a minute.
    const T0: u64 = 1_700_006_400_000;
    const MINUTE: Duration = Duration::from_secs(60);

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    fn node(now: Instant) -> Minutes {
        Minutes::new(History::begin(now, T0))
    }

    fn note(node: &Minutes, name: &str, number: u32, now: Instant) {
        let occupancy = Occupancy {
            viewers: number,
            connections: number,
            ..Occupancy::default()
        };
        Record::note_room(&node.history, &room(name), occupancy, now);
    }

    /// Most viewers of the minute that ended last.
    fn most(node: &Minutes, name: &str, now: Instant) -> u32 {
        let past = node.history.room(&room(name), 2, now);
        past.spans[0].step.viewers.max
    }

    /// What a node tells, the other takes in.
    fn exchange(from: &Minutes, to: &Minutes, now: Instant) -> usize {
        let told = from.tell();
        for (at, steps) in &told {
            to.hear(*at, steps, now);
        }
        told.iter().map(|(_, steps)| steps.len()).sum()
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_learns_what_it_missed_of_a_minute_and_tells_only_what_the_other_missed() {
        let start = Instant::now();
        let (a, b) = (node(start), node(start));
        for node in [&a, &b] {
            note(node, "blog:both", 5, start);
        }
        note(&a, "blog:a", 3, start);
        note(&b, "blog:b", 7, start);
        // The same change, heard some milliseconds apart.
        note(&a, "blog:both", 6, start + MINUTE / 2);
        note(
            &b,
            "blog:both",
            6,
            start + MINUTE / 2 + Duration::from_millis(40),
        );
        let now = start + MINUTE + Duration::from_secs(2);
        assert!(a.begin(now) && b.begin(now));
        assert_eq!(exchange(&a, &b, now), 2);
        assert_eq!(exchange(&b, &a, now), 1, "blog:both was told already");
        for node in [&a, &b] {
            for (name, number) in [("blog:both", 6), ("blog:a", 3), ("blog:b", 7)] {
                assert_eq!(most(node, name, now), number, "{name}");
            }
            assert!(!node.begin(now), "a minute is told once");
            assert_eq!(node.tell(), []);
        }
        assert!(a.begin(now + MINUTE));
    }

    #[tokio::test(start_paused = true)]
    async fn the_most_and_the_least_are_told_where_only_the_mean_was() {
        let start = Instant::now();
        let (a, b) = (node(start), node(start));
        note(&a, "blog:1", 4, start);
        note(&b, "blog:1", 4, start);
        // Somebody came and went, and only one node saw it.
        note(&b, "blog:1", 5, start + MINUTE / 2);
        note(
            &b,
            "blog:1",
            4,
            start + MINUTE / 2 + Duration::from_millis(100),
        );
        let now = start + MINUTE + Duration::from_secs(2);
        assert!(a.begin(now) && b.begin(now));
        exchange(&a, &b, now);
        assert_eq!(exchange(&b, &a, now), 1);
        assert_eq!(most(&a, "blog:1", now), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn a_room_that_nobody_here_is_in_is_followed_and_left_with_the_last_one_elsewhere() {
        let start = Instant::now();
        let tempo = Tempo {
            push_interval: Duration::from_millis(100),
            leave_grace: Duration::ZERO,
        };
        let (hub, node) = (Hub::new(Box::new(Encoder), tempo), node(start));
        hub.record_to(Arc::new(node.history.clone()));
        let others = |number| {
            let occupancy = Occupancy {
                viewers: number,
                connections: number,
                ..Occupancy::default()
            };
            [(Some(room("blog:1")), occupancy)]
        };
        hub.set_elsewhere(&others(3), 0, start + Duration::from_secs(1));
        hub.set_elsewhere(&others(0), 0, start + Duration::from_secs(20));
        let past = node.history.room(&room("blog:1"), 3, start + MINUTE * 2);
        let most: Vec<u32> = past.spans.iter().map(|s| s.step.viewers.max).collect();
        assert_eq!(most, [3, 0, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_rooms_go_out_in_messages_of_bounded_size() {
        let start = Instant::now();
        let (a, b) = (node(start), node(start));
        for n in 0..1_201 {
            note(&a, &format!("blog:{n}"), 1, start);
        }
        note(&a, "user:7", 1, start);
        let now = start + MINUTE + Duration::from_secs(2);
        assert!(a.begin(now));
        let told = a.tell();
        let sizes: Vec<usize> = told.iter().map(|(_, steps)| steps.len()).collect();
        assert_eq!(sizes, [500, 500, 201], "personal rooms stay here");
        for (at, steps) in told {
            let from = 1;
            let bytes = Envelope::Minute { from, at, steps }.write();
            assert!(bytes.len() < 100_000);
            let Some(Envelope::Minute { at, steps, .. }) = Envelope::read(&bytes) else {
                panic!("it is read as it was written");
            };
            b.hear(at, &steps, now);
        }
        assert_eq!(b.history.rooms(), 1_201);
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_is_passed_over() {
        let start = Instant::now();
        let node = node(start);
        let now = start + MINUTE + Duration::from_secs(2);
        let at = u32::try_from(T0 / 60_000).unwrap();
        let told = |name: &str, viewers, connections| WireStep {
            room: Some(name.to_owned()),
            viewers,
            connections,
        };
        let sound = told("blog:1", (1, 2_000, 3), (1, 2_000, 3));
        node.hear(at + 1, std::slice::from_ref(&sound), now);
        node.hear(at + 9_999, std::slice::from_ref(&sound), now);
        node.hear(0, std::slice::from_ref(&sound), now);
        node.hear(u32::MAX, std::slice::from_ref(&sound), now);
        node.hear(at, &vec![sound.clone(); CHUNK + 1], now);
        let nonsense = [
            told("no room", (1, 2_000, 3), (1, 2_000, 3)),
            told("user:7", (1, 1_000, 1), (1, 1_000, 1)),
            told("blog:1", (4, 2_000, 3), (1, 2_000, 3)),
            told("blog:1", (1, 4_000, 3), (1, 2_000, 3)),
            told("blog:1", (1, u64::MAX, 3), (1, 2_000, 3)),
            told("blog:1", (2, 1_000, 3), (2, 2_000, 3)),
            told("blog:1", (1, 2_000, 3), (1, 2_000, 2)),
        ];
        node.hear(at, &nonsense, now);
        assert_eq!(most(&node, "blog:1", now), 0);
        assert_eq!(most(&node, "user:7", now), 0);
        node.hear(at, &[sound], now);
        assert_eq!(most(&node, "blog:1", now), 3);
    }
}
