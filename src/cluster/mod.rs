//! What nodes share: one number per room over all of them, each other's connections, one order of
//! messages.
//!
//! Every node counts its own streams in its hub, whether Redis is there or not; the cluster tells
//! the others this node's part and tells the hub theirs. Joining and leaving never wait for it.
//! One node alone has no cluster, and none of this runs.

mod asking;
pub mod asks;
mod blocking;
mod clock;
mod counting;
mod hearing;
mod messages;
mod minutes;
pub mod store;
mod view;
#[cfg(test)]
mod view_tests;

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    sync::{Notify, mpsc},
    task::JoinSet,
    time::Instant,
};

pub use self::messages::{Overloaded, Said, Unsaid};
use self::{
    asks::{Ask, Reply},
    messages::Outbox,
    minutes::Minutes,
    store::{Incarnation, InvalidUrl, Lane, Node, Redis},
    view::View,
};
use crate::{
    history::History,
    hub::{Blocked, Fingerprints, Hub},
};

/// How long a start waits for the others' numbers before it goes on without them.
const FIRST_CONTACT: Duration = Duration::from_secs(3);

/// Shortest time between two complaints in the log that Redis does not answer.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// Answers what another node asks about connections of this one.
pub type Respond = Box<dyn Fn(Ask) -> Reply + Send + Sync>;

/// Where and under which name a node takes part.
#[derive(Debug)]
pub struct Membership<'a> {
    /// `redis://` or `rediss://`.
    pub url: &'a str,
    /// What all keys start with.
    pub prefix: &'a str,
    /// The node's name.
    pub name: &'a str,
    /// When it started, in milliseconds of Unix time.
    pub since_ms: u64,
    /// Where finished minutes are exchanged with the other nodes, where they are kept.
    pub history: Option<&'a History>,
}

/// This node's part in the cluster. A cheap handle.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({})", self.0.name)
    }
}

struct Shared {
    hub: Hub,
    redis: Redis,
    name: String,
    since_ms: u64,
    /// Names this process on the control channels, whatever its incarnation.
    process: Incarnation,
    /// Held for bookkeeping, the hub's own lock inside it; never across an await.
    view: Mutex<View>,
    /// Who is leased, this node included, as the last lease's answer said; with when that was.
    nodes: Mutex<(Vec<Node>, Option<Instant>)>,
    /// Blocks that Redis does not have yet.
    blocks: Mutex<Vec<(Blocked, Instant)>>,
    lapsed: mpsc::UnboundedSender<Incarnation>,
    /// Woken where everything or claims are to be told.
    retell: Notify,
    /// Woken where totals are to be read.
    reread: Notify,
    /// Woken when an epoch begins.
    turned: Notify,
    /// Questions that wait for answers.
    asked: Mutex<HashMap<u64, mpsc::UnboundedSender<(Incarnation, Reply)>>>,
    questions: AtomicU64,
    /// The way out for questions and answers.
    mail: mpsc::UnboundedSender<asking::Mail>,
    outbox: Outbox,
    minutes: Option<Minutes>,
    calls: AtomicU64,
    failures: AtomicU64,
    /// When the log last said that a call failed.
    complained: Mutex<Option<Instant>>,
    resyncs: AtomicU64,
    /// True once Redis held a higher format.
    outdated: AtomicBool,
    /// True once the log was read to where it ended when Redis was first met.
    caught_up: AtomicBool,
}

/// The tasks of a cluster; they end when this is dropped.
#[derive(Debug)]
pub struct Tasks(JoinSet<()>);

impl Tasks {
    /// Waits until one of them ends, which none does by itself: it failed. Cancel safe.
    pub async fn failed(&mut self) {
        self.0.join_next().await;
    }
}

/// What a cluster did since the start, for metrics.
#[derive(Debug, Clone, Copy, Default)]
pub struct Doings {
    /// Calls to Redis that were answered.
    pub calls: u64,
    /// Calls to Redis that were not.
    pub failures: u64,
    /// How often everything was told anew.
    pub resyncs: u64,
    /// Nodes that hold a lease, this one included.
    pub nodes: usize,
    /// True where other nodes' numbers are missing or may be old.
    pub partial: bool,
}

impl Cluster {
    /// Takes part from now on: `respond` answers the others' questions. Waits for the others'
    /// numbers, 3 s at the most: with Redis away a node starts with its own.
    ///
    /// # Errors
    ///
    /// When the URL is none of Redis.
    pub async fn join(
        hub: &Hub,
        membership: Membership<'_>,
        fingerprints: Box<dyn Fingerprints>,
        respond: Respond,
    ) -> Result<(Self, Tasks), InvalidUrl> {
        let redis = Redis::new(membership.url, membership.prefix)?;
        let (lapsed, to_reap) = mpsc::unbounded_channel();
        let (mail, to_send) = mpsc::unbounded_channel();
        let cluster = Self(Arc::new(Shared {
            hub: hub.clone(),
            redis,
            name: membership.name.to_owned(),
            since_ms: membership.since_ms,
            process: Incarnation::random(),
            view: Mutex::new(View::new(Incarnation::random())),
            nodes: Mutex::default(),
            blocks: Mutex::default(),
            lapsed,
            retell: Notify::new(),
            reread: Notify::new(),
            turned: Notify::new(),
            asked: Mutex::default(),
            questions: AtomicU64::new(0),
            mail,
            outbox: Outbox::default(),
            minutes: membership.history.cloned().map(Minutes::new),
            calls: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            complained: Mutex::default(),
            resyncs: AtomicU64::new(0),
            outdated: AtomicBool::new(false),
            caught_up: AtomicBool::new(false),
        }));
        hub.share(fingerprints);
        // Everything is told when Redis is met; until then a list of changes would know no bound.
        hub.stop_sharing();
        // Until the others' numbers are here, whoever asks is told that they are missing.
        hub.set_partial(true, &|_| Duration::ZERO, Instant::now());
        let shared = &cluster.0;
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(shared).tell());
        tasks.spawn(Arc::clone(shared).lease());
        tasks.spawn(Arc::clone(shared).reread());
        tasks.spawn(Arc::clone(shared).reap(to_reap));
        tasks.spawn(Arc::clone(shared).watch_over());
        tasks.spawn(Arc::clone(shared).listen(respond));
        tasks.spawn(Arc::clone(shared).post(to_send));
        tasks.spawn(Arc::clone(shared).follow_log());
        tasks.spawn(Arc::clone(shared).append_later());
        tasks.spawn(Arc::clone(shared).tell_minutes());
        let first = async {
            while shared.is_behind() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(FIRST_CONTACT, first).await.is_err() {
            tracing::warn!("Redis does not answer: starting with this node's own numbers");
        } else {
            hub.set_partial(false, &|_| Duration::ZERO, Instant::now());
        }
        Ok((cluster, Tasks(tasks)))
    }

    /// Who is leased, this node included, and how old that knowledge is.
    #[must_use]
    pub fn nodes(&self) -> (Vec<Node>, Duration) {
        let nodes = self.0.nodes.lock();
        let age = nodes.1.map(|at| at.elapsed());
        (nodes.0.clone(), age.unwrap_or_default())
    }

    /// True where other nodes' numbers are missing or may be old.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.0.view.lock().is_partial(Instant::now())
    }

    /// What it did since the start.
    #[must_use]
    pub fn doings(&self) -> Doings {
        Doings {
            calls: self.0.calls.load(Ordering::Relaxed),
            failures: self.0.failures.load(Ordering::Relaxed),
            resyncs: self.0.resyncs.load(Ordering::Relaxed),
            nodes: self.0.nodes.lock().0.len(),
            partial: self.is_partial(),
        }
    }

    /// Gives up the lease of a node that goes down, so that nothing of it is left in the totals.
    pub async fn part(&self, tasks: Tasks) {
        drop(tasks);
        let (stamp, me) = {
            let view = self.0.view.lock();
            (view.stamp(), view.me)
        };
        let mut lane: Lane = self.0.redis.lane();
        if let Err(error) = lane.release(stamp, me).await {
            tracing::warn!(%error, "the lease was not given up; it ends by itself in 3 s");
        }
    }
}

impl Shared {
    /// Counts a call to Redis and notes that it answers.
    fn called<T>(&self, what: &'static str, result: Result<T, store::StoreError>) -> Option<T> {
        match result {
            Ok(answer) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                self.view.lock().alive(Instant::now());
                Some(answer)
            }
            Err(error) => {
                if let store::StoreError::Format(_) = error
                    && !self.outdated.swap(true, Ordering::Relaxed)
                {
                    tracing::error!(%error, "serving as if Redis was away, until this node is upgraded");
                }
                self.failures.fetch_add(1, Ordering::Relaxed);
                let mut complained = self.complained.lock();
                if complained.is_none_or(|at| at.elapsed() >= COMPLAINTS) {
                    *complained = Some(Instant::now());
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    tracing::warn!(what, %error, cause, "Redis");
                } else {
                    tracing::debug!(what, %error, "Redis");
                }
                None
            }
        }
    }

    /// The answer where the call was done; else turns to the epoch in force.
    fn done<T>(&self, answer: store::Answer<T>) -> Option<T> {
        match answer {
            store::Answer::Done(done) => Some(done),
            store::Answer::Epoch { epoch, version } => {
                self.turn(epoch, version);
                None
            }
        }
    }

    /// True until the others' numbers are known and the log of messages is read: streams that
    /// opened before would take old messages for new.
    fn is_behind(&self) -> bool {
        let view = self.view.lock();
        let followed = view.epoch().map(store::Epoch::bits) == Some(self.hub.position().epoch);
        let caught_up = self.caught_up.load(Ordering::Relaxed);
        view.is_partial(Instant::now()) || !followed || !caught_up
    }

    fn turn(&self, epoch: store::Epoch, version: u64) {
        let mut view = self.view.lock();
        if view.epoch() == Some(epoch) {
            return;
        }
        let is_first = view.epoch().is_none();
        view.turn(epoch, version, Instant::now());
        drop(view);
        self.has_turned(epoch, is_first);
    }

    /// Says that another epoch is in force, and wakes whoever tells and reads everything then.
    fn has_turned(&self, epoch: store::Epoch, is_first: bool) {
        if is_first {
            tracing::info!(%epoch, "met Redis: telling all numbers");
        } else {
            tracing::info!(%epoch, "a new epoch of Redis: telling all numbers anew");
        }
        self.retell.notify_one();
        self.reread.notify_one();
        self.turned.notify_waiters();
    }
}

/// Waits a little, at random, before the next try: `most` at most, half of it at least.
async fn pause(most: Duration) {
    let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX).max(2);
    let wait = rand::random_range(millis / 2..=millis);
    tokio::time::sleep(Duration::from_millis(wait)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        hub::{
            ConnectionId, Entry, Identity, Inbox, Nameless, Registration, Resume, RoomId, Tempo,
        },
        sse::Encoder,
    };

    fn visit(hub: &Hub, room: &str) -> Registration {
        let now = Instant::now();
        let mut registration = hub.register(Entry {
            connection: ConnectionId::random(),
            identity: Identity::Connection,
            rooms: vec![RoomId::parse(room).unwrap()],
            watching: Vec::new(),
            grants: None,
            expires: now + Duration::from_hours(1),
            since_ms: 0,
            resume: Resume::Fresh,
            by_ticket: true,
        });
        registration.open(&Inbox::new(), now).unwrap();
        registration
    }

    #[tokio::test(start_paused = true)]
    async fn a_node_that_never_met_redis_keeps_no_list_of_what_it_would_tell() {
        let tempo = Tempo {
            push_interval: Duration::from_millis(100),
            leave_grace: Duration::ZERO,
        };
        let hub = Hub::new(Box::new(Encoder), tempo);
        let nobodys = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("redis://{}", nobodys.local_addr().unwrap());
        drop(nobodys);
        let membership = Membership {
            url: &url,
            prefix: "livecount:",
            name: "alone",
            since_ms: 0,
            history: None,
        };
        let respond = Box::new(|_| Reply::Unknown);
        let joined = Cluster::join(&hub, membership, Box::new(Nameless), respond).await;
        let (cluster, tasks) = joined.unwrap();
        for number in 0..10_000 {
            drop(visit(&hub, &format!("blog:{number}")));
        }
        assert!(!hub.has_parts());
        // Once it is met, whoever is here then is told.
        let stays = visit(&hub, "blog:1");
        hub.share_all([], Instant::now());
        let parts = hub.take_parts(10, 10, 1);
        assert_eq!(parts.len(), 2, "{parts:?}");
        assert!(cluster.is_partial());
        drop((stays, tasks));
    }
}
