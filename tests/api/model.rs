//! The hub against a plain list of live connections: random steps, and after each of them every
//! number that the hub gives out is counted anew from the list.
//!
//! Streams are read as the delivery reads them, only when they were woken, so that a wake which
//! the hub forgets shows as a stream that never hears the truth.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    fmt,
    sync::Arc,
    task::Waker,
    time::Duration,
};

use livecount::hub::{
    Bounds, Change, ChangeError, ConnectionId, Cursor, Delivery, Encode, Entry, Fingerprint,
    Fingerprints, Frame, Hub, Idempotency, Identity, Inbox, Kick, KickError, MEMBER, Occupancy,
    Opening, Position, Reason, Registration, Resume, RoomId, RoomKey, RoomList, Tempo, Told,
    Turnover, UserId, ViewerName,
};
use proptest::{prelude::*, test_runner::TestCaseResult};
use tokio::{
    sync::broadcast::{self, error::TryRecvError},
    time::Instant,
};

/// How long a message is kept, from the contract.
const KEPT: Duration = Duration::from_secs(5 * 60);
/// Most messages kept in one room, from the contract.
const KEPT_IN_ROOM: usize = 100;
/// Rooms a connection may join here; few, so that the limit is met.
const MOST_JOINED: usize = 3;

const ROOMS: [&str; 5] = ["blog:1", "blog:2", "match:1", "match:2", "lesson:1"];
const USERS: [&str; 2] = ["7", "8"];
const CONNECTIONS: u8 = 7;

// ---- steps ----

#[derive(Debug, Clone)]
enum Step {
    /// A stream is announced and let in at once.
    Open(Asking),
    /// A stream is announced.
    Announce(Asking),
    /// One that was announced is let in, perhaps after a newer one.
    LetIn(u8),
    /// A stream's delivery is gone.
    Break(Which),
    /// A stream's delivery ends it.
    End(Which, Reason),
    /// A stream reads what it was woken for.
    Read(Which),
    Goodbye(u8),
    Kick(u8, Throw),
    KickUser(usize, Throw),
    Change {
        connection: u8,
        change: Change,
        rooms: Vec<usize>,
        personal: bool,
        fits: bool,
    },
    Renew(u8, u64),
    Publish {
        to: Address,
        key: Option<(u8, u8)>,
        times: usize,
    },
    Wait(u64),
    /// Everything that is due is done and read.
    Settle,
    Drain,
    Shut(usize),
}

/// A stream: the newest of a connection, or the oldest that its delivery has not let go of.
#[derive(Debug, Clone, Copy)]
struct Which {
    connection: u8,
    newest: bool,
}

#[derive(Debug, Clone)]
struct Asking {
    connection: u8,
    identity: Who,
    /// Each room, with whether it is joined or watched.
    rooms: Vec<(usize, bool)>,
    resume: Back,
}

#[derive(Debug, Clone, Copy)]
enum Who {
    Nobody,
    Chosen(usize),
    Member(usize),
}

#[derive(Debug, Clone, Copy)]
enum Back {
    Fresh,
    /// With all but so many of the newest messages.
    Behind(u64),
    /// With an id of another log.
    Foreign,
    Unknown,
}

#[derive(Debug, Clone, Copy)]
struct Throw {
    block: u64,
    /// A room where whoever kicks may not.
    forbidden: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
enum Address {
    Room(usize),
    User(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let connection = 0..CONNECTIONS;
    let ends = prop_oneof![Just(Reason::Expired), Just(Reason::Slow)];
    let waits = prop_oneof![
        6 => Just(0),
        4 => 1..200_u64,
        3 => 200..3_000_u64,
        1 => Just(61_000),
        1 => Just(301_000),
    ];
    prop_oneof![
        20 => asking().prop_map(Step::Open),
        4 => asking().prop_map(Step::Announce),
        4 => connection.clone().prop_map(Step::LetIn),
        8 => which().prop_map(Step::Break),
        2 => (which(), ends).prop_map(|(which, reason)| Step::End(which, reason)),
        14 => which().prop_map(Step::Read),
        3 => connection.clone().prop_map(Step::Goodbye),
        2 => (connection.clone(), throw()).prop_map(|(whom, throw)| Step::Kick(whom, throw)),
        1 => (0..USERS.len(), throw()).prop_map(|(whom, throw)| Step::KickUser(whom, throw)),
        16 => change(),
        2 => (connection, 1..1_000_u64).prop_map(|(whom, secs)| Step::Renew(whom, secs)),
        8 => publish(),
        14 => waits.prop_map(Step::Wait),
        2 => Just(Step::Settle),
    ]
}

fn which() -> impl Strategy<Value = Which> {
    let newest = proptest::bool::weighted(0.7);
    (0..CONNECTIONS, newest).prop_map(|(connection, newest)| Which { connection, newest })
}

fn asking() -> impl Strategy<Value = Asking> {
    let identity = prop_oneof![
        2 => Just(Who::Nobody),
        2 => (0..USERS.len()).prop_map(Who::Chosen),
        3 => (0..USERS.len()).prop_map(Who::Member),
    ];
    let resume = prop_oneof![
        4 => Just(Back::Fresh),
        3 => (0..12_u64).prop_map(Back::Behind),
        1 => Just(Back::Behind(150)),
        1 => Just(Back::Foreign),
        1 => Just(Back::Unknown),
    ];
    let joined = proptest::array::uniform4(any::<bool>());
    (0..CONNECTIONS, identity, some_rooms(0..4), joined, resume).prop_map(
        |(connection, identity, rooms, joined, resume)| Asking {
            connection,
            identity,
            rooms: rooms.into_iter().zip(joined).collect(),
            resume,
        },
    )
}

/// Some rooms in some order, each once.
fn some_rooms(number: std::ops::Range<usize>) -> impl Strategy<Value = Vec<usize>> {
    let all: Vec<usize> = (0..ROOMS.len()).collect();
    (Just(all).prop_shuffle(), number).prop_map(|(mut rooms, number)| {
        rooms.truncate(number);
        rooms
    })
}

fn throw() -> impl Strategy<Value = Throw> {
    let forbidden = proptest::option::weighted(0.3, 0..ROOMS.len());
    (prop_oneof![Just(0), 1..90_u64], forbidden)
        .prop_map(|(block, forbidden)| Throw { block, forbidden })
}

fn change() -> impl Strategy<Value = Step> {
    let change = prop_oneof![
        Just(Change::Join),
        Just(Change::Leave),
        Just(Change::Watch),
        Just(Change::Unwatch),
    ];
    let fits = proptest::bool::weighted(0.9);
    let personal = proptest::bool::weighted(0.1);
    (0..CONNECTIONS, change, some_rooms(1..4), personal, fits).prop_map(
        |(connection, change, rooms, personal, fits)| Step::Change {
            connection,
            change,
            rooms,
            personal,
            fits,
        },
    )
}

fn publish() -> impl Strategy<Value = Step> {
    let to = prop_oneof![
        3 => (0..ROOMS.len()).prop_map(Address::Room),
        1 => (0..USERS.len()).prop_map(Address::User),
    ];
    let key = proptest::option::weighted(0.3, (0..2_u8, 0..2_u8));
    let times = prop_oneof![12 => Just(1_usize), 1 => Just(KEPT_IN_ROOM + 5)];
    (to, key, times).prop_map(|(to, key, times)| Step::Publish { to, key, times })
}

/// One step a line.
struct Steps(Vec<Step>);

impl fmt::Debug for Steps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|step| write!(f, "\n{step:?}"))
    }
}

/// A drain is the end of everything, so that it comes after all else if at all.
fn steps() -> impl Strategy<Value = Steps> {
    let going_down =
        (0..4_usize, proptest::collection::vec(step(), 0..25)).prop_map(|(most, on)| {
            let mut steps = vec![Step::Drain];
            steps.extend(on);
            steps.push(Step::Shut(most));
            steps
        });
    let end = prop_oneof![Just(Vec::new()), going_down];
    (proptest::collection::vec(step(), 1..250), end).prop_map(|(mut steps, end)| {
        steps.extend(end);
        Steps(steps)
    })
}

// ---- the plain list ----

/// One connection that counts.
#[derive(Debug, Clone)]
struct Live {
    id: ConnectionId,
    serial: usize,
    identity: Identity,
    rooms: RoomList,
    expires: Instant,
    since_ms: u64,
    /// Until when it counts without a stream.
    lingers: Option<Instant>,
}

impl Live {
    fn is_in(&self, room: &RoomId) -> bool {
        self.rooms.joined.contains(room) || self.own_room().as_ref() == Some(room)
    }

    fn own_room(&self) -> Option<RoomId> {
        self.identity.user().map(RoomId::personal)
    }

    fn memberships(&self) -> impl Iterator<Item = &RoomId> {
        self.rooms.joined.iter().chain(&self.rooms.watching)
    }
}

/// Who somebody counts as.
fn viewer(live: &Live) -> String {
    match &live.identity {
        Identity::Connection => format!("connection {:?}", live.id),
        named => format!("{named:?}"),
    }
}

fn tally<'a>(connections: impl Iterator<Item = &'a Live>) -> Occupancy {
    let (mut viewers, mut members) = (BTreeSet::new(), BTreeSet::new());
    let mut number = 0;
    for live in connections {
        number += 1;
        viewers.insert(viewer(live));
        members.extend(live.identity.user().cloned());
    }
    let count = |n: usize| u32::try_from(n).expect("few");
    Occupancy {
        viewers: count(viewers.len()),
        connections: number,
        members: count(members.len()),
        partial: false,
    }
}

#[derive(Debug)]
struct Message {
    sequence: u64,
    room: RoomId,
    at: Instant,
}

#[derive(Debug)]
struct Marked {
    room: RoomId,
    key: String,
    digest: [u8; 32],
    sequence: u64,
    at: Instant,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum Blocked {
    Connection(ConnectionId),
    Identity(Identity),
}

/// What a stream must hear of itself, in this order.
#[derive(Debug, Clone, PartialEq)]
enum Word {
    Joined(RoomId),
    /// With the position of the newest message at that time.
    Left(RoomId, u64),
    Watching(RoomId),
    Unwatched(RoomId),
    Expires(Instant),
    End(Reason),
}

/// A room as one stream knows it.
#[derive(Debug)]
struct Known {
    joined: bool,
    count: Option<Occupancy>,
    /// The moment whose numbers it knows.
    moment: usize,
}

/// One stream that was let in, until its delivery is gone.
#[derive(Debug)]
struct Stream {
    id: ConnectionId,
    serial: usize,
    own_room: Option<RoomId>,
    registration: Registration,
    inbox: Arc<Inbox>,
    cursor: Cursor,
    channels: HashMap<RoomKey, broadcast::Receiver<()>>,
    behind: bool,
    known: BTreeMap<RoomId, Known>,
    /// What it is due of itself.
    words: VecDeque<Word>,
    /// Messages that it is due, by sequence.
    due: VecDeque<(u64, RoomId)>,
    heard: u64,
    over: bool,
}

impl Stream {
    fn listen(&mut self, key: RoomKey) {
        if let Some(receiver) = self.registration.listen(key) {
            self.channels.insert(key, receiver);
            self.behind = true;
        }
    }

    fn was_woken(&mut self) -> bool {
        let mut woken = std::mem::take(&mut self.behind);
        woken |= self.inbox.poll_news(Waker::noop());
        for channel in self.channels.values_mut() {
            while let Ok(()) | Err(TryRecvError::Lagged(_)) = channel.try_recv() {
                woken = true;
            }
        }
        woken
    }
}

/// Writes what a test can read back.
#[derive(Debug)]
struct Plain;

impl Encode for Plain {
    fn count(&self, room: &RoomId, occupancy: Occupancy) -> Frame {
        let Occupancy {
            viewers,
            connections,
            members,
            partial: _,
        } = occupancy;
        Frame::of(format!("{room} {viewers} {connections} {members}").as_bytes())
    }
}

/// Names that tell every viewer from every other.
#[derive(Debug)]
struct Names;

impl Fingerprints for Names {
    fn identity(&self, identity: &Identity) -> Option<Fingerprint> {
        match identity {
            Identity::Connection => None,
            Identity::Chosen(name) => Some(fingerprint(b'v', name.as_str().as_bytes())),
            Identity::Member(user) => Some(fingerprint(MEMBER, user.as_str().as_bytes())),
        }
    }
}

fn fingerprint(kind: u8, name: &[u8]) -> Fingerprint {
    let mut bytes = [0; 13];
    bytes[0] = kind;
    bytes[1..=name.len()].copy_from_slice(name);
    bytes
}

/// What another node knows of this one's part of a room, by what it was told alone.
#[derive(Debug, Default, Clone)]
struct Mirrored {
    connections: u32,
    unidentified: u32,
    named: BTreeSet<Fingerprint>,
}

impl Mirrored {
    fn occupancy(&self) -> Occupancy {
        let count = |n: usize| u32::try_from(n).expect("few");
        let members = self.named.iter().filter(|name| name[0] == MEMBER).count();
        Occupancy {
            viewers: self.unidentified + count(self.named.len()),
            connections: self.connections,
            members: count(members),
            partial: false,
        }
    }
}

fn read_frame(frame: &Frame) -> (RoomId, Vec<u64>) {
    let payload = frame.payload();
    let text = std::str::from_utf8(&payload).expect("frames are text");
    let mut words = text.split(' ');
    let room = RoomId::parse(words.next().expect("a room")).expect("a room");
    let numbers = words.map(|word| word.parse().expect("a number"));
    (room, numbers.collect())
}

struct Model {
    hub: Hub,
    grace: Duration,
    serials: usize,
    live: Vec<Live>,
    announced: Vec<(usize, Entry, Registration)>,
    streams: Vec<Stream>,
    messages: Vec<Message>,
    marks: Vec<Marked>,
    blocks: HashMap<Blocked, Instant>,
    turnover: Turnover,
    draining: bool,
    epoch: Option<u64>,
    /// What each room's numbers were, with the moment from which on.
    history: BTreeMap<RoomId, Vec<(usize, Occupancy)>>,
    moment: usize,
    /// Rooms that were never empty since somebody was told this key.
    keys: BTreeMap<RoomId, RoomKey>,
    /// What the hub told of its rooms for other nodes; `None` is the service as a whole.
    mirror: BTreeMap<Option<RoomId>, Mirrored>,
}

fn room(index: usize) -> RoomId {
    RoomId::parse(ROOMS[index]).expect("a room")
}

fn user(index: usize) -> UserId {
    UserId::parse(USERS[index]).expect("a user")
}

fn connection(index: u8) -> ConnectionId {
    ConnectionId::from_bits(u128::from(index))
}

impl Model {
    fn new(grace: Duration) -> Self {
        let tempo = Tempo {
            push_interval: Duration::from_millis(100),
            leave_grace: grace,
        };
        let hub = Hub::new(Box::new(Plain), tempo);
        hub.share(Box::new(Names));
        Self {
            hub,
            grace,
            serials: 0,
            live: Vec::new(),
            announced: Vec::new(),
            streams: Vec::new(),
            messages: Vec::new(),
            marks: Vec::new(),
            blocks: HashMap::new(),
            turnover: Turnover::default(),
            draining: false,
            epoch: None,
            history: (0..ROOMS.len())
                .map(|index| (room(index), vec![(0, Occupancy::default())]))
                .collect(),
            moment: 0,
            keys: BTreeMap::new(),
            mirror: BTreeMap::new(),
        }
    }

    /// Takes what the hub has to tell other nodes, in small bites, and holds it against the list.
    fn check_mirror(&mut self) -> TestCaseResult {
        loop {
            let parts = self.hub.take_parts(2, 3, 1);
            if parts.is_empty() {
                break;
            }
            for part in parts {
                let mirrored = self.mirror.entry(part.room).or_default();
                mirrored.connections = part.connections;
                mirrored.unidentified = part.unidentified;
                for name in part.went {
                    prop_assert!(mirrored.named.remove(&name), "went without having come");
                }
                for name in part.came {
                    prop_assert!(mirrored.named.insert(name), "came twice");
                }
            }
        }
        let told = |room: Option<RoomId>| {
            let mirrored = self.mirror.get(&room).cloned().unwrap_or_default();
            mirrored.occupancy()
        };
        for index in 0..ROOMS.len() {
            let room = room(index);
            prop_assert_eq!(told(Some(room.clone())), self.occupancy(&room), "{}", room);
        }
        prop_assert_eq!(told(None), self.hub.totals().own, "the whole");
        Ok(())
    }

    async fn take(&mut self, step: Step) -> TestCaseResult {
        match step {
            Step::Open(asking) => {
                let (serial, entry, registration) = self.register(&asking);
                self.let_in(serial, &entry, registration)?;
            }
            Step::Announce(asking) => {
                let announced = self.register(&asking);
                self.announced.push(announced);
            }
            Step::LetIn(index) => {
                let of = |entry: &Entry| entry.connection == connection(index);
                let which = self.announced.iter().position(|(_, entry, _)| of(entry));
                if let Some(which) = which {
                    let (serial, entry, registration) = self.announced.remove(which);
                    self.let_in(serial, &entry, registration)?;
                }
            }
            Step::Break(which) => {
                if let Some(which) = self.stream(which) {
                    self.cut(which);
                }
            }
            Step::End(which, reason) => {
                if let Some(which) = self.stream(which) {
                    let stream = &self.streams[which];
                    stream.registration.end(reason, Instant::now());
                    let serial = stream.serial;
                    // A stream that says that its time is over before it is was renewed meanwhile.
                    let over =
                        |live: &Live| reason != Reason::Expired || live.expires <= Instant::now();
                    let at = self.live.iter().position(|live| live.serial == serial);
                    if let Some(at) = at.filter(|&at| over(&self.live[at])) {
                        self.count_out(at, reason);
                    }
                }
            }
            Step::Read(which) => {
                if let Some(which) = self.stream(which) {
                    self.read(which)?;
                }
            }
            Step::Goodbye(index) => {
                let at = self.position(connection(index));
                self.hub.goodbye(connection(index), Instant::now());
                if let Some(at) = at {
                    self.count_out(at, Reason::Left);
                }
            }
            Step::Kick(index, throw) => self.kick(connection(index), throw)?,
            Step::KickUser(index, throw) => self.kick_user(&user(index), throw)?,
            Step::Change {
                connection: index,
                change,
                rooms,
                personal,
                fits,
            } => {
                let mut names: Vec<RoomId> = rooms.into_iter().map(room).collect();
                if personal {
                    names.push(RoomId::personal(&user(0)));
                }
                self.change(connection(index), change, &names, fits)?;
            }
            Step::Renew(index, secs) => self.renew(connection(index), secs)?,
            Step::Publish { to, key, times } => {
                let to = match to {
                    Address::Room(index) => room(index),
                    Address::User(index) => RoomId::personal(&user(index)),
                };
                for _ in 0..times {
                    self.publish(&to, key)?;
                }
            }
            Step::Wait(millis) => self.wait(Duration::from_millis(millis)).await,
            Step::Settle => self.settle().await?,
            Step::Drain => {
                self.hub.drain();
                self.draining = true;
            }
            Step::Shut(most) => self.shut(most)?,
        }
        self.moment += 1;
        self.note_history();
        if self.moment.is_multiple_of(16) {
            // As to somebody who knows nothing.
            let known = std::mem::take(&mut self.mirror);
            self.hub.share_all(known.into_keys(), Instant::now());
        }
        if self.moment.is_multiple_of(3) {
            self.check_mirror()?;
        }
        self.check()
    }

    // ---- what the steps do, to the hub and to the list ----

    fn register(&mut self, asking: &Asking) -> (usize, Entry, Registration) {
        let identity = match asking.identity {
            Who::Nobody => Identity::Connection,
            Who::Chosen(index) => {
                Identity::Chosen(ViewerName::parse(USERS[index]).expect("a viewer"))
            }
            Who::Member(index) => Identity::Member(user(index)),
        };
        let rooms = |joined: bool| {
            let of_kind = asking.rooms.iter().filter(|(_, j)| *j == joined);
            of_kind.map(|(index, _)| room(*index)).collect()
        };
        let epoch = self.epoch.unwrap_or_default();
        let resume = match asking.resume {
            Back::Fresh => Resume::Fresh,
            Back::Unknown => Resume::Unknown,
            Back::Foreign => Resume::After(Position {
                epoch: epoch ^ 1,
                sequence: 0,
            }),
            Back::Behind(number) => Resume::After(Position {
                epoch,
                sequence: self.newest().saturating_sub(number),
            }),
        };
        self.serials += 1;
        let entry = Entry {
            connection: connection(asking.connection),
            identity,
            rooms: rooms(true),
            watching: rooms(false),
            grants: None,
            expires: Instant::now() + Duration::from_secs(3_600),
            since_ms: u64::try_from(self.serials).expect("few"),
            resume,
            by_ticket: self.serials.is_multiple_of(2),
        };
        let registration = self.hub.register(entry.clone());
        (self.serials, entry, registration)
    }

    fn let_in(
        &mut self,
        serial: usize,
        entry: &Entry,
        mut registration: Registration,
    ) -> TestCaseResult {
        let now = Instant::now();
        let older = self.position(entry.connection);
        let refused = if self.draining {
            Some(Reason::Shutdown)
        } else if self.blocked(entry.connection, &entry.identity).is_some() {
            Some(Reason::Kicked)
        } else if older.is_some_and(|older| self.live[older].serial > serial) {
            Some(Reason::Replaced)
        } else {
            None
        };
        let inbox = Inbox::new();
        let opened = registration.open(&inbox, now);
        prop_assert_eq!(opened.as_ref().err().copied(), refused);
        let Ok(opening) = opened else {
            return Ok(());
        };
        self.turnover.opened += 1;
        if let Some(older) = older {
            self.count_out(older, Reason::Replaced);
        }
        let live = Live {
            id: entry.connection,
            serial,
            identity: entry.identity.clone(),
            rooms: RoomList {
                joined: entry.rooms.clone(),
                watching: entry.watching.clone(),
            },
            expires: entry.expires,
            since_ms: entry.since_ms,
            lingers: None,
        };
        // One who is back in one of the rooms with a new connection takes the place of the one
        // that was lost first.
        if older.is_none() && live.identity != Identity::Connection {
            let lost = |other: &Live| {
                let shared = other.rooms.joined.iter().any(|room| live.is_in(room));
                let until = other.lingers?;
                (other.identity == live.identity && shared).then_some(until)
            };
            let first = self.live.iter().filter_map(lost).min();
            let lost_first: Vec<ConnectionId> = self
                .live
                .iter()
                .filter(|other| first.is_some() && lost(other) == first)
                .map(|other| other.id)
                .collect();
            // Of those lost at the same moment, any one.
            let (gone, _): (Vec<_>, Vec<_>) = lost_first
                .into_iter()
                .partition(|id| self.hub.connection(*id).is_none());
            prop_assert_eq!(gone.len(), usize::from(first.is_some()), "one is gone");
            self.live.retain(|other| !gone.contains(&other.id));
        }
        let own_room = live.own_room();
        self.live.push(live);
        self.check_opening(entry, &opening)?;
        let known = opening.counts.iter().map(|told| {
            let known = Known {
                joined: entry.rooms.contains(&told.room),
                count: Some(told.occupancy),
                moment: self.moment + 1,
            };
            (told.room.clone(), known)
        });
        let known = known.collect();
        let keys: Vec<RoomKey> = opening.cursor.seats().map(|seat| seat.key).collect();
        let mut stream = Stream {
            id: entry.connection,
            serial,
            own_room,
            registration,
            inbox,
            cursor: opening.cursor,
            channels: HashMap::new(),
            behind: true,
            known,
            words: VecDeque::new(),
            due: VecDeque::new(),
            heard: self.newest(),
            over: false,
        };
        for key in keys {
            stream.listen(key);
        }
        self.streams.push(stream);
        Ok(())
    }

    fn check_opening(&mut self, entry: &Entry, opening: &Opening) -> TestCaseResult {
        let asked: Vec<&RoomId> = entry.rooms.iter().chain(&entry.watching).collect();
        let told: Vec<&RoomId> = opening.counts.iter().map(|told| &told.room).collect();
        prop_assert_eq!(told, asked, "one count per room, in the order asked");
        for told in &opening.counts {
            prop_assert_eq!(
                told.occupancy,
                self.occupancy(&told.room),
                "the first count"
            );
            self.check_key(told)?;
        }
        let epoch = *self.epoch.get_or_insert(opening.starts_at.epoch);
        let own_room = entry.identity.user().map(RoomId::personal);
        let hears: Vec<&RoomId> = entry.rooms.iter().chain(&own_room).collect();
        let after = match entry.resume {
            Resume::Fresh => {
                prop_assert!(opening.resets.is_empty() && opening.messages.is_empty());
                prop_assert_eq!(opening.starts_at.sequence, self.newest());
                return Ok(());
            }
            Resume::After(position)
                if position.epoch == epoch && position.sequence <= self.newest() =>
            {
                position.sequence
            }
            Resume::After(_) | Resume::Unknown => {
                let resets: Vec<&RoomId> = opening.resets.iter().collect();
                prop_assert_eq!(resets, hears, "anything may be lost");
                prop_assert!(opening.messages.is_empty());
                return Ok(());
            }
        };
        let missed = self.messages.iter().filter(|message| {
            message.sequence > after && hears.contains(&&message.room) && self.is_kept(message)
        });
        let missed: Vec<u64> = missed.map(|message| message.sequence).collect();
        let given: Vec<u64> = opening
            .messages
            .iter()
            .map(|m| read_frame(m).1[0])
            .collect();
        prop_assert_eq!(&given, &missed, "what was missed, in order");
        let starts_at = if missed.is_empty() {
            self.newest()
        } else {
            after
        };
        prop_assert_eq!(opening.starts_at.sequence, starts_at);
        let lost: Vec<&Message> = self
            .messages
            .iter()
            .filter(|message| message.sequence > after && !self.is_kept(message))
            .collect();
        for message in &lost {
            let concerned = hears.contains(&&message.room);
            prop_assert!(
                !concerned || opening.resets.contains(&message.room),
                "a loss in {} is told",
                message.room
            );
        }
        prop_assert!(
            !lost.is_empty() || opening.resets.is_empty(),
            "no reset where nothing was lost anywhere"
        );
        Ok(())
    }

    /// A room that somebody was in all the time stays the same room, also where the last one in
    /// it is replaced.
    fn check_key(&mut self, told: &Told) -> TestCaseResult {
        let known = *self.keys.entry(told.room.clone()).or_insert(told.key);
        prop_assert_eq!(known, told.key, "{} was never empty", told.room);
        Ok(())
    }

    /// A stream's delivery is gone.
    fn cut(&mut self, which: usize) {
        let stream = self.streams.remove(which);
        let serial = stream.serial;
        drop(stream);
        let Some(at) = self.live.iter().position(|live| live.serial == serial) else {
            return;
        };
        self.turnover.broken += 1;
        if self.grace.is_zero() || self.draining {
            self.live.remove(at);
        } else {
            self.live[at].lingers = Some(Instant::now() + self.grace);
        }
    }

    /// Takes a connection from the list; its stream, where it has one, is to hear why.
    fn count_out(&mut self, at: usize, reason: Reason) {
        let live = self.live.remove(at);
        if live.lingers.is_some() {
            return;
        }
        let place = Reason::ALL.iter().position(|other| *other == reason);
        self.turnover.ended[place.expect("a reason")] += 1;
        self.say(live.serial, Word::End(reason));
    }

    fn say(&mut self, serial: usize, word: Word) {
        let stream = self.streams.iter_mut().find(|s| s.serial == serial);
        let words = &mut stream.expect("an open connection has a stream").words;
        // Of two renewals that wait one behind the other the newer is told.
        if let (Some(Word::Expires(waiting)), Word::Expires(at)) = (words.back_mut(), &word) {
            *waiting = *at;
            return;
        }
        words.push_back(word);
    }

    fn kick(&mut self, id: ConnectionId, throw: Throw) -> TestCaseResult {
        let now = Instant::now();
        let forbidden = throw.forbidden.map(room);
        let permitted = |room: &RoomId| Some(room) != forbidden.as_ref();
        let block = Duration::from_secs(throw.block);
        let kick = Kick {
            block,
            everywhere: forbidden.is_none(),
            permitted: &permitted,
        };
        let kicked = self.hub.kick(id, kick, now);
        let Some(at) = self.position(id) else {
            prop_assert_eq!(kicked, Err(KickError::Unknown));
            if forbidden.is_none() {
                self.block(Blocked::Connection(id), now + block);
            }
            return Ok(());
        };
        if let Some(refused) = self.live[at].memberships().find(|room| !permitted(room)) {
            prop_assert_eq!(kicked, Err(KickError::Forbidden(refused.clone())));
            return Ok(());
        }
        prop_assert_eq!(kicked, Ok(()));
        let identity = self.live[at].identity.clone();
        self.block(Blocked::Connection(id), now + block);
        if identity != Identity::Connection {
            self.block(Blocked::Identity(identity), now + block);
        }
        self.count_out(at, Reason::Kicked);
        Ok(())
    }

    fn kick_user(&mut self, user: &UserId, throw: Throw) -> TestCaseResult {
        let now = Instant::now();
        let forbidden = throw.forbidden.map(room);
        let permitted = |room: &RoomId| Some(room) != forbidden.as_ref();
        let block = Duration::from_secs(throw.block);
        let kick = Kick {
            block,
            everywhere: forbidden.is_none(),
            permitted: &permitted,
        };
        let kicked = self.hub.kick_user(user, kick, now);
        let own = |live: &Live| live.identity.user() == Some(user);
        let refused = self.live.iter().filter(|live| own(live)).any(|live| {
            let mut memberships = live.memberships();
            memberships.any(|room| !permitted(room))
        });
        if refused {
            let forbidden = forbidden.expect("something refused");
            prop_assert_eq!(kicked, Err(KickError::Forbidden(forbidden)));
            return Ok(());
        }
        prop_assert_eq!(kicked, Ok(()));
        self.block(
            Blocked::Identity(Identity::Member(user.clone())),
            now + block,
        );
        while let Some(at) = self.live.iter().position(own) {
            self.block(Blocked::Connection(self.live[at].id), now + block);
            self.count_out(at, Reason::Kicked);
        }
        Ok(())
    }

    fn block(&mut self, whom: Blocked, until: Instant) {
        let end = self.blocks.entry(whom).or_insert(until);
        *end = (*end).max(until);
    }

    fn change(
        &mut self,
        id: ConnectionId,
        change: Change,
        names: &[RoomId],
        fits: bool,
    ) -> TestCaseResult {
        let asked = std::cell::RefCell::new(None);
        let bounds = Bounds {
            most_joined: MOST_JOINED,
            fits: &|info| {
                asked.replace(Some(info.rooms.clone()));
                fits
            },
        };
        let changed = self.hub.change(id, change, names, bounds, Instant::now());
        let at = self.position(id);
        let Some(at) = at.filter(|&at| self.live[at].lingers.is_none()) else {
            prop_assert_eq!(changed.err(), Some(ChangeError::Unknown));
            return Ok(());
        };
        let mut after = self.live[at].rooms.clone();
        let mut words = Vec::new();
        for room in names.iter().filter(|room| !room.is_personal()) {
            let joined = after.joined.contains(room);
            let watching = after.watching.contains(room);
            match change {
                Change::Join if !joined => {
                    if watching {
                        after.watching.retain(|other| other != room);
                        words.push(Word::Unwatched(room.clone()));
                        // Where nobody else is there, the room is empty in between.
                        self.keys.remove(room);
                    }
                    after.joined.push(room.clone());
                    words.push(Word::Joined(room.clone()));
                }
                Change::Leave if joined => {
                    after.joined.retain(|other| other != room);
                    words.push(Word::Left(room.clone(), self.newest()));
                }
                Change::Watch if !joined && !watching => {
                    after.watching.push(room.clone());
                    words.push(Word::Watching(room.clone()));
                }
                Change::Unwatch if watching => {
                    after.watching.retain(|other| other != room);
                    words.push(Word::Unwatched(room.clone()));
                }
                Change::Join | Change::Leave | Change::Watch | Change::Unwatch => {}
            }
        }
        if change == Change::Join && after.joined.len() > MOST_JOINED {
            prop_assert_eq!(changed.err(), Some(ChangeError::TooManyRooms));
            return Ok(());
        }
        let asked = asked.take();
        prop_assert_eq!(asked.as_ref(), Some(&after), "what has to fit");
        if !fits {
            prop_assert_eq!(changed.err(), Some(ChangeError::DoNotFit));
            return Ok(());
        }
        prop_assert_eq!(&changed.expect("it fits").rooms, &after);
        self.live[at].rooms = after;
        let serial = self.live[at].serial;
        for word in words {
            self.say(serial, word);
        }
        Ok(())
    }

    fn renew(&mut self, id: ConnectionId, secs: u64) -> TestCaseResult {
        let expires = Instant::now() + Duration::from_secs(secs);
        let renewed = self.hub.renew(id, expires, None);
        let at = self.position(id);
        let at = at.filter(|&at| self.live[at].lingers.is_none());
        prop_assert_eq!(renewed.map(|info| info.expires), at.map(|_| expires));
        if let Some(at) = at {
            self.live[at].expires = expires;
            self.say(self.live[at].serial, Word::Expires(expires));
        }
        Ok(())
    }

    fn publish(&mut self, to: &RoomId, key: Option<(u8, u8)>) -> TestCaseResult {
        let now = Instant::now();
        let mark = key.map(|(key, content)| Idempotency {
            key: format!("key {key}").into(),
            digest: [content; 32],
        });
        let known = mark.as_ref().and_then(|mark| {
            let fresh = |marked: &&Marked| now.duration_since(marked.at) < KEPT;
            let same = |marked: &&Marked| marked.room == *to && *marked.key == *mark.key;
            let known = self.marks.iter().filter(fresh).find(same)?;
            Some((known.sequence, known.digest == mark.digest))
        });
        let mut encoded = false;
        let encode = |position: Position| {
            encoded = true;
            Frame::of(format!("{to} {}", position.sequence).as_bytes())
        };
        let published = self.hub.publish(to, mark.clone(), encode, now);
        prop_assert_eq!(encoded, known.is_none(), "a duplicate is not encoded");
        let sequence = match known {
            Some((_, false)) => {
                prop_assert!(published.is_err());
                return Ok(());
            }
            Some((sequence, true)) => {
                let published = published.expect("the same message");
                prop_assert!(published.duplicate);
                prop_assert_eq!(published.position.sequence, sequence);
                return Ok(());
            }
            None => published.expect("a new message").position.sequence,
        };
        prop_assert_eq!(sequence, self.newest() + 1, "positions follow each other");
        self.messages.push(Message {
            sequence,
            room: to.clone(),
            at: now,
        });
        if let Some(mark) = mark {
            self.marks
                .retain(|other| now.duration_since(other.at) < KEPT);
            self.marks.push(Marked {
                room: to.clone(),
                key: mark.key.into(),
                digest: mark.digest,
                sequence,
                at: now,
            });
        }
        for live in self.live.iter().filter(|live| live.is_in(to)) {
            let stream = self.streams.iter_mut().find(|s| s.serial == live.serial);
            if let Some(stream) = stream {
                stream.due.push_back((sequence, to.clone()));
            }
        }
        Ok(())
    }

    /// Lets time pass, in which the hub's own task does what is due, one grace's end after the
    /// other.
    async fn wait(&mut self, time: Duration) {
        let end = Instant::now() + time;
        loop {
            let due = |live: &Live| live.lingers.unwrap_or(live.expires);
            let next = self.live.iter().map(due).min();
            let next = next.map_or(end, |next| next.min(end));
            tokio::time::sleep_until(next).await;
            // Whatever is due in the same millisecond has its turn, too.
            for _ in 0..4 {
                tokio::task::yield_now().await;
            }
            while let Some(at) = self.live.iter().position(|live| due(live) <= next) {
                self.count_out(at, Reason::Expired);
            }
            self.moment += 1;
            self.note_history();
            if next == end {
                return;
            }
        }
    }

    fn shut(&mut self, most: usize) -> TestCaseResult {
        let before = self.live.len();
        self.hub.shut(most, Instant::now());
        let gone: Vec<ConnectionId> = self
            .live
            .iter()
            .map(|live| live.id)
            .filter(|id| self.hub.connection(*id).is_none())
            .collect();
        prop_assert_eq!(gone.len(), most.min(before), "as many as asked");
        for id in gone {
            let at = self.position(id).expect("it was there");
            self.count_out(at, Reason::Shutdown);
        }
        Ok(())
    }

    // ---- what one stream hears ----

    fn read(&mut self, which: usize) -> TestCaseResult {
        let mut stream = self.streams.remove(which);
        let heard = if !stream.over && stream.was_woken() {
            self.hear(&mut stream)
        } else {
            Ok(())
        };
        self.streams.insert(which, stream);
        heard
    }

    fn hear(&mut self, stream: &mut Stream) -> TestCaseResult {
        let deliveries = stream
            .registration
            .collect(&mut stream.cursor, &stream.inbox);
        self.forgive(stream);
        for delivery in deliveries {
            prop_assert!(!stream.over, "nothing comes after the end");
            match delivery {
                Delivery::Joined(room, told) => {
                    prop_assert_eq!(stream.words.pop_front(), Some(Word::Joined(room.clone())));
                    self.enter(stream, room, told, true)?;
                }
                Delivery::Watching(room, told) => {
                    prop_assert_eq!(stream.words.pop_front(), Some(Word::Watching(room.clone())));
                    self.enter(stream, room, told, false)?;
                }
                Delivery::Left(key, room) => {
                    let word = stream.words.pop_front();
                    let Some(Word::Left(due, at)) = word else {
                        return Err(TestCaseError::fail(format!("left instead of {word:?}")));
                    };
                    prop_assert_eq!(&due, &room);
                    let missing = stream.due.iter().find(|(s, r)| *s <= at && *r == room);
                    prop_assert_eq!(missing, None, "messages come before left");
                    let known = stream.known.remove(&room);
                    self.stop_listening(stream, key, known, true)?;
                }
                Delivery::Unwatched(key) => {
                    let word = stream.words.pop_front();
                    let Some(Word::Unwatched(room)) = word else {
                        return Err(TestCaseError::fail(format!("unwatched, not {word:?}")));
                    };
                    let known = stream.known.remove(&room);
                    self.stop_listening(stream, key, known, false)?;
                }
                Delivery::Count(frame) => self.hear_count(stream, &frame)?,
                Delivery::Told(told) => {
                    return Err(TestCaseError::fail(format!("{told:?} is for the slow")));
                }
                Delivery::Message(frame) => {
                    let (room, numbers) = read_frame(&frame);
                    let joined = stream.known.get(&room).is_some_and(|known| known.joined);
                    prop_assert!(
                        joined || stream.own_room.as_ref() == Some(&room),
                        "a message of {room} came to a stream that is not in it"
                    );
                    prop_assert_eq!(
                        stream.due.pop_front(),
                        Some((numbers[0], room)),
                        "the next message"
                    );
                    prop_assert!(numbers[0] > stream.heard);
                    stream.heard = numbers[0];
                }
                Delivery::Reset(room) => {
                    let gone = |s: u64| !self.is_kept(self.message(s));
                    stream.due.retain(|(s, r)| *r != room || !gone(*s));
                    let mut lost = self.messages.iter().filter(|message| {
                        message.sequence > stream.heard
                            && message.room == room
                            && !self.is_kept(message)
                    });
                    prop_assert!(lost.next().is_some(), "nothing was lost in {room}");
                }
                Delivery::Expires(at) => {
                    prop_assert_eq!(stream.words.pop_front(), Some(Word::Expires(at)));
                }
                Delivery::End(reason) => {
                    prop_assert_eq!(stream.words.pop_front(), Some(Word::End(reason)));
                    prop_assert!(stream.due.is_empty(), "messages come before the end");
                    stream.over = true;
                }
            }
        }
        prop_assert!(stream.words.is_empty(), "due: {:?}", stream.words);
        prop_assert!(stream.due.is_empty(), "due: {:?}", stream.due);
        Ok(())
    }

    /// A stream hears that it is in a room, and the room's numbers.
    fn enter(
        &mut self,
        stream: &mut Stream,
        room: RoomId,
        told: Option<Told>,
        joined: bool,
    ) -> TestCaseResult {
        let goes_again = stream.words.iter().any(|word| match word {
            Word::Left(other, _) | Word::Unwatched(other) => *other == room,
            Word::Joined(_) | Word::Watching(_) | Word::Expires(_) | Word::End(_) => false,
        });
        let ends = stream.words.iter().any(|word| matches!(word, Word::End(_)));
        prop_assert!(told.is_some() || goes_again || ends, "a count follows");
        if let Some(told) = &told {
            prop_assert_eq!(&told.room, &room);
            prop_assert_eq!(told.occupancy, self.occupancy(&room));
            self.check_key(told)?;
            stream.listen(told.key);
        }
        let known = Known {
            joined,
            count: told.map(|told| told.occupancy),
            moment: self.moment,
        };
        prop_assert!(stream.known.insert(room, known).is_none());
        Ok(())
    }

    /// A stream is out of a room.
    fn stop_listening(
        &self,
        stream: &mut Stream,
        key: RoomKey,
        known: Option<Known>,
        joined: bool,
    ) -> TestCaseResult {
        stream.channels.remove(&key);
        prop_assert_eq!(known.map(|known| known.joined), Some(joined));
        Ok(())
    }

    /// A stream that is out of a room, and has not read for as long as messages are kept, may not
    /// be told that it lost some.
    fn forgive(&self, stream: &mut Stream) {
        let now = Instant::now();
        let leaves = |room: &RoomId| {
            stream.words.iter().any(|word| match word {
                Word::Left(left, _) => left == room,
                Word::End(_) => true,
                Word::Joined(_) | Word::Watching(_) | Word::Unwatched(_) | Word::Expires(_) => {
                    false
                }
            })
        };
        stream.due.retain(|(sequence, room)| {
            let aged = now.duration_since(self.message(*sequence).at) >= KEPT;
            !(aged && leaves(room))
        });
    }

    fn hear_count(&self, stream: &mut Stream, frame: &Frame) -> TestCaseResult {
        let (room, numbers) = read_frame(frame);
        let number = |index: usize| u32::try_from(numbers[index]).expect("few");
        let told = Occupancy {
            viewers: number(0),
            connections: number(1),
            members: number(2),
            partial: false,
        };
        let Some(known) = stream.known.get_mut(&room) else {
            return Err(TestCaseError::fail(format!(
                "a count of {room} came to a stream that is not in it"
            )));
        };
        let history = &self.history[&room];
        let end = |place: usize| history.get(place + 1).map_or(usize::MAX, |next| next.0);
        let newest = (0..history.len())
            .rev()
            .find(|&place| history[place].1 == told && end(place) > known.moment);
        let Some(newest) = newest else {
            return Err(TestCaseError::fail(format!(
                "{told:?} was never so in {room} since {known:?}: {history:?}"
            )));
        };
        known.moment = known.moment.max(history[newest].0);
        known.count = Some(told);
        Ok(())
    }

    // ---- what the list says ----

    fn stream(&self, which: Which) -> Option<usize> {
        let of = |stream: &Stream| stream.id == connection(which.connection);
        if which.newest {
            self.streams.iter().rposition(of)
        } else {
            self.streams.iter().position(of)
        }
    }

    fn position(&self, id: ConnectionId) -> Option<usize> {
        self.live.iter().position(|live| live.id == id)
    }

    fn newest(&self) -> u64 {
        self.messages.last().map_or(0, |message| message.sequence)
    }

    fn message(&self, sequence: u64) -> &Message {
        let at = usize::try_from(sequence - 1).expect("few");
        &self.messages[at]
    }

    fn is_kept(&self, message: &Message) -> bool {
        let newer =
            |other: &&Message| other.sequence > message.sequence && other.room == message.room;
        Instant::now().duration_since(message.at) < KEPT
            && self.messages.iter().filter(newer).count() < KEPT_IN_ROOM
    }

    fn occupancy(&self, room: &RoomId) -> Occupancy {
        tally(self.live.iter().filter(|live| live.is_in(room)))
    }

    /// True where somebody is in the room or watches it, or a message of it is kept.
    fn holds(&self, room: &RoomId) -> bool {
        let is_there = |live: &Live| live.memberships().any(|other| other == room);
        let keeps = |message: &Message| message.room == *room && self.is_kept(message);
        self.live.iter().any(is_there) || self.messages.iter().any(keeps)
    }

    fn blocked(&self, id: ConnectionId, identity: &Identity) -> Option<Duration> {
        let of = |whom: Blocked| {
            let end = self.blocks.get(&whom)?;
            Some(end.duration_since(Instant::now()))
        };
        let blocked = of(Blocked::Connection(id));
        let blocked = match identity {
            Identity::Connection => blocked,
            named => blocked.max(of(Blocked::Identity(named.clone()))),
        };
        blocked.filter(|remaining| !remaining.is_zero())
    }

    fn note_history(&mut self) {
        for index in 0..ROOMS.len() {
            let room = room(index);
            let now = self.occupancy(&room);
            let moment = self.moment;
            let history = self.history.get_mut(&room).expect("every room");
            if history.last().is_none_or(|last| last.1 != now) {
                history.push((moment, now));
            }
            if !self.holds(&room) {
                self.keys.remove(&room);
            }
        }
    }

    // ---- the hub against the list ----

    fn check(&self) -> TestCaseResult {
        let personal: Vec<RoomId> = (0..USERS.len())
            .map(|index| RoomId::personal(&user(index)))
            .collect();
        let rooms: Vec<RoomId> = (0..ROOMS.len()).map(room).collect();
        for room in rooms.iter().chain(&personal) {
            let occupancy = self.occupancy(room);
            prop_assert_eq!(self.hub.occupancy(room), occupancy, "numbers of {}", room);
            self.check_list(room)?;
        }
        for (personal, rooms) in [(false, &rooms), (true, &personal)] {
            let mut occupied = self.hub.occupied(personal, &|_| true);
            occupied.sort_by(|a, b| a.0.cmp(&b.0));
            let mut expected: Vec<(RoomId, Occupancy)> = rooms
                .iter()
                .map(|room| (room.clone(), self.occupancy(room)))
                .filter(|(_, occupancy)| occupancy.connections > 0)
                .collect();
            expected.sort_by(|a, b| a.0.cmp(&b.0));
            prop_assert_eq!(occupied, expected, "occupied rooms");
        }
        self.check_totals(&rooms, &personal)?;
        for index in 0..CONNECTIONS {
            let id = connection(index);
            let known = self.hub.connection(id);
            let live = self.live.iter().find(|live| live.id == id);
            prop_assert_eq!(known.is_some(), live.is_some(), "whether {} is there", id);
            let open = live.is_some_and(|live| live.lingers.is_none());
            prop_assert_eq!(self.hub.is_open(id), open);
            if let (Some(known), Some(live)) = (known, live) {
                prop_assert_eq!(&known.rooms, &live.rooms);
                prop_assert_eq!(&known.identity, &live.identity);
                prop_assert_eq!(known.expires, live.expires);
                prop_assert_eq!(known.since_ms, live.since_ms);
            }
            let identity = Identity::Member(user(usize::from(index) % USERS.len()));
            for identity in [Identity::Connection, identity] {
                let blocked = self.hub.blocked(id, &identity, Instant::now());
                prop_assert_eq!(blocked, self.blocked(id, &identity));
            }
        }
        Ok(())
    }

    /// The list of a room's connections, whole and page by page.
    fn check_list(&self, room: &RoomId) -> TestCaseResult {
        let mut expected: Vec<ConnectionId> = self
            .live
            .iter()
            .filter(|live| live.is_in(room))
            .map(|live| live.id)
            .collect();
        expected.sort_unstable();
        let mut listed = Vec::new();
        let mut more = true;
        while more {
            let (page, follows) = self.hub.connections_in(room, listed.last().copied(), 2);
            prop_assert!(!follows || page.len() == 2);
            more = follows;
            listed.extend(page.iter().map(|info| info.id));
        }
        prop_assert_eq!(listed, expected, "connections in {}", room);
        Ok(())
    }

    fn check_totals(&self, rooms: &[RoomId], personal: &[RoomId]) -> TestCaseResult {
        let totals = self.hub.totals();
        let in_rooms =
            |live: &&Live| !live.rooms.joined.is_empty() || live.identity.user().is_some();
        let expected = Occupancy {
            viewers: tally(self.live.iter().filter(in_rooms)).viewers,
            connections: u32::try_from(self.live.len()).expect("few"),
            members: tally(self.live.iter()).members,
            partial: false,
        };
        prop_assert_eq!(totals.occupancy, expected, "totals");
        let occupied = rooms
            .iter()
            .filter(|room| self.occupancy(room).connections > 0);
        prop_assert_eq!(totals.rooms as usize, occupied.count(), "occupied rooms");
        let lingering = self.live.iter().filter(|live| live.lingers.is_some());
        prop_assert_eq!(
            totals.held,
            self.streams.len() + lingering.count(),
            "records whose delivery has not let go"
        );
        let kept = rooms.iter().chain(personal).filter(|room| self.holds(room));
        prop_assert_eq!(totals.kept_rooms, kept.count(), "rooms in memory");
        prop_assert_eq!(totals.turnover, self.turnover);
        prop_assert_eq!(self.hub.is_draining(), self.draining);
        Ok(())
    }

    /// Once everything due was done, every stream that reads has heard the truth.
    async fn settle(&mut self) -> TestCaseResult {
        self.wait(self.grace + Duration::from_secs(1)).await;
        self.moment += 1;
        self.note_history();
        self.check()?;
        // A read may make a stream read on; each does so once at the most.
        for _ in 0..3 {
            for which in 0..self.streams.len() {
                self.read(which)?;
            }
        }
        for stream in &self.streams {
            prop_assert!(stream.words.is_empty(), "due: {:?}", stream.words);
            prop_assert!(stream.due.is_empty(), "due: {:?}", stream.due);
            let live = self.live.iter().find(|live| live.serial == stream.serial);
            prop_assert_eq!(live.is_none(), stream.over, "{} knows its end", stream.id);
            let Some(live) = live else { continue };
            let known: BTreeSet<&RoomId> = stream.known.keys().collect();
            prop_assert_eq!(known, live.memberships().collect(), "the stream's rooms");
            for (room, known) in &stream.known {
                prop_assert_eq!(known.joined, live.rooms.joined.contains(room));
                prop_assert_eq!(known.count, Some(self.occupancy(room)), "told of {}", room);
            }
        }
        Ok(())
    }
}

async fn run(grace: Duration, Steps(steps): Steps) -> TestCaseResult {
    let mut model = Model::new(grace);
    let hub = model.hub.clone();
    let pulse = tokio::spawn(async move { hub.run().await });
    for step in steps {
        model.take(step).await?;
    }
    model.settle().await?;
    // With the last stream and the last kept message everything is gone.
    while !model.streams.is_empty() {
        model.cut(0);
    }
    model.wait(KEPT + model.grace).await;
    model.check()?;
    prop_assert_eq!(model.hub.totals().held, 0);
    prop_assert_eq!(model.hub.totals().kept_rooms, 0);
    pulse.abort();
    Ok(())
}

proptest! {
    // About 20,000 steps in all.
    #![proptest_config(ProptestConfig { cases: 160, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    #[test]
    fn the_hub_agrees_with_a_plain_list_of_live_connections(
        grace in prop_oneof![Just(0), Just(2_000)],
        steps in steps(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(run(Duration::from_millis(grace), steps))?;
    }
}

// ---- what random steps found, kept ----

fn opens(connection: u8, identity: Who, rooms: &[(usize, bool)]) -> Step {
    Step::Open(Asking {
        connection,
        identity,
        rooms: rooms.to_vec(),
        resume: Back::Fresh,
    })
}

fn changes(connection: u8, change: Change, room: usize) -> Step {
    Step::Change {
        connection,
        change,
        rooms: vec![room],
        personal: false,
        fits: true,
    }
}

fn publishes(to: Address) -> Step {
    Step::Publish {
        to,
        key: None,
        times: 1,
    }
}

fn reads(connection: u8) -> Step {
    Step::Read(Which {
        connection,
        newest: true,
    })
}

async fn holds(steps: impl IntoIterator<Item = Step>) {
    let steps = Steps(steps.into_iter().collect());
    run(Duration::ZERO, steps).await.expect("the hub agrees");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_between_a_join_and_the_next_read_is_heard() {
    holds([
        opens(0, Who::Nobody, &[(0, true)]),
        changes(0, Change::Join, 1),
        publishes(Address::Room(1)),
        reads(0),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn messages_keep_their_order_where_one_of_their_rooms_is_left() {
    holds([
        opens(0, Who::Nobody, &[(0, true), (1, true)]),
        publishes(Address::Room(1)),
        publishes(Address::Room(0)),
        changes(0, Change::Leave, 0),
        reads(0),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_message_that_comes_after_a_leave_or_an_end_is_not_heard() {
    let kick = Throw {
        block: 0,
        forbidden: None,
    };
    holds([
        opens(0, Who::Nobody, &[(0, true), (1, true)]),
        opens(1, Who::Nobody, &[(0, true)]),
        opens(2, Who::Nobody, &[(0, true)]),
        changes(0, Change::Leave, 0),
        Step::Kick(1, kick),
        publishes(Address::Room(0)),
        reads(0),
        reads(1),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_personal_message_that_is_gone_is_told_though_a_newer_one_is_kept() {
    holds([
        opens(0, Who::Member(0), &[]),
        publishes(Address::User(0)),
        Step::Wait(301_000),
        publishes(Address::User(0)),
        reads(0),
    ])
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_watcher_hears_of_a_change_though_one_who_came_after_it_has_gone() {
    holds([
        opens(0, Who::Nobody, &[(0, false)]),
        opens(1, Who::Nobody, &[(0, true)]),
        Step::Settle,
        Step::Goodbye(1),
        opens(2, Who::Nobody, &[(0, false)]),
        changes(2, Change::Unwatch, 0),
        Step::Settle,
    ])
    .await;
}
