//! The truth that nodes are measured by: who is in which room, by the test's own list, now and at
//! any moment before.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use crate::wire::Numbers;

/// Who a stream counts for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    /// Nobody but itself, by its connection.
    Itself(String),
    /// The name that the client chose.
    Viewer(String),
    /// The user of a token.
    Member(String),
}

/// The numbers of everything together, watching streams among the connections.
pub(crate) const SERVICE: &str = "*";

/// How long after a stream opened or ended others may still count or already miss it, at the
/// least: the test learns of both a little sooner or later than the node.
const BLUR: Duration = Duration::from_millis(500);

/// Every open stream, and what the numbers were at each change.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    rooms: BTreeMap<String, Room>,
}

#[derive(Debug, Default)]
struct Room {
    there: BTreeMap<Who, u64>,
    /// Streams that watch something and are in no room; in [`SERVICE`] alone.
    watching: u64,
    now: Numbers,
    before: Vec<(Instant, Numbers)>,
}

/// What a room's numbers were between two moments.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Bounds {
    pub(crate) least: Numbers,
    pub(crate) most: Numbers,
    /// How many streams opened.
    pub(crate) joins: u64,
}

impl Truth {
    /// A stream opened, in these rooms.
    pub(crate) fn enter(&mut self, who: &Who, rooms: &BTreeSet<String>) {
        self.change(who, rooms, |count| count + 1);
    }

    /// A stream that was opened ended.
    pub(crate) fn leave(&mut self, who: &Who, rooms: &BTreeSet<String>) {
        self.change(who, rooms, |count| count - 1);
    }

    fn change(&mut self, who: &Who, rooms: &BTreeSet<String>, by: impl Fn(u64) -> u64) {
        let now = Instant::now();
        for name in rooms.iter().map(String::as_str).chain([SERVICE]) {
            let room = self.rooms.entry(name.to_owned()).or_default();
            if rooms.is_empty() {
                room.watching = by(room.watching);
            } else {
                let count = room.there.entry(who.clone()).or_default();
                *count = by(*count);
                if *count == 0 {
                    room.there.remove(who);
                }
            }
            let members = room
                .there
                .keys()
                .filter(|who| matches!(who, Who::Member(_)));
            room.now = Numbers {
                viewers: room.there.len() as u64,
                connections: room.there.values().sum::<u64>() + room.watching,
                members: members.count() as u64,
            };
            room.before.push((now, room.now));
        }
    }

    /// A room's numbers.
    pub(crate) fn of(&self, room: &str) -> Numbers {
        self.rooms
            .get(room)
            .map(|room| room.now)
            .unwrap_or_default()
    }

    /// Rooms that anybody ever was in.
    pub(crate) fn rooms(&self) -> impl Iterator<Item = &str> {
        let names = self.rooms.keys().map(String::as_str);
        names.filter(|name| *name != SERVICE)
    }

    /// What a room's numbers were from so long before that moment on, and right after it.
    pub(crate) fn around(&self, room: &str, at: Instant, window: Duration) -> Bounds {
        let Some(room) = self.rooms.get(room) else {
            return Bounds::default();
        };
        let first = room.before.partition_point(|(then, _)| *then + window < at);
        let end = room.before.partition_point(|(then, _)| *then <= at + BLUR);
        // What held when the window began was said by the change before it.
        let held = first.checked_sub(1).map(|last| room.before[last].1);
        let held = held.unwrap_or_default();
        let within = &room.before[first..end.max(first)];
        let mut bounds = Bounds {
            least: held,
            most: held,
            joins: 0,
        };
        let mut last = held;
        for (_, numbers) in within {
            bounds.joins += u64::from(numbers.connections > last.connections);
            last = *numbers;
            bounds.least = bounds.least.with(*numbers, u64::min);
            bounds.most = bounds.most.with(*numbers, u64::max);
        }
        bounds
    }
}

#[tokio::test(start_paused = true)]
async fn the_truth_counts_each_reader_once_and_knows_what_was() {
    let mut truth = Truth::default();
    let rooms = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let member = Who::Member("7".to_owned());
    let viewer = Who::Viewer("7".to_owned());
    truth.enter(&member, &rooms(&["blog:1"]));
    truth.enter(&member, &rooms(&["blog:1", "blog:2"]));
    truth.enter(&viewer, &rooms(&["blog:1"]));
    truth.enter(&Who::Itself("c".to_owned()), &rooms(&[]));
    assert_eq!(truth.of("blog:1"), Numbers::new(2, 3, 1));
    assert_eq!(truth.of("blog:2"), Numbers::new(1, 1, 1));
    assert_eq!(truth.of(SERVICE), Numbers::new(2, 4, 1));
    assert_eq!(truth.rooms().collect::<Vec<_>>(), ["blog:1", "blog:2"]);

    tokio::time::advance(Duration::from_secs(10)).await;
    truth.leave(&viewer, &rooms(&["blog:1"]));
    truth.leave(&member, &rooms(&["blog:1"]));
    let now = Instant::now();
    let bounds = truth.around("blog:1", now, Duration::from_secs(5));
    assert_eq!(bounds.most, Numbers::new(2, 3, 1));
    assert_eq!(bounds.least, Numbers::new(1, 1, 1));
    assert_eq!(bounds.joins, 0);
    let all = truth.around("blog:1", now, Duration::from_secs(20));
    assert_eq!((all.least, all.joins), (Numbers::default(), 3));
    let before = truth.around(
        "blog:1",
        now - Duration::from_secs(6),
        Duration::from_secs(1),
    );
    assert_eq!((before.least, before.joins), (Numbers::new(2, 3, 1), 0));
    assert!(before.least.is_within(before.most));
    assert!(!before.most.is_within(bounds.least));
}
