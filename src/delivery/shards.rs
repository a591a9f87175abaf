//! The shards of a node: how streams are handed to them, and what they count of themselves.

use std::{
    fmt, io,
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use mio::{Poll, Waker};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

use super::{
    Subscription,
    shard::{Shard, WAKER},
    task,
};
use crate::hub::{Hub, Post};

/// A stream on its way to a shard: its socket, out of hyper's hands, and what to say first.
#[derive(Debug)]
pub struct Arrival {
    /// The socket, one that does not block.
    pub socket: TcpStream,
    /// The head of the response, encoded.
    pub head: Vec<u8>,
    /// The stream.
    pub subscription: Subscription,
    /// True for HTTP/1.1, which frames the body in chunks; HTTP/1.0 knows none.
    pub chunked: bool,
    /// When the first byte of its request came.
    pub began: Instant,
}

/// The way to one shard.
#[derive(Debug)]
pub(super) struct Way {
    pub(super) post: Arc<Post>,
    /// Locked for a push, or for the exchange of the whole list.
    arrivals: Mutex<Vec<Arrival>>,
    closed: AtomicBool,
    pub(super) heartbeat: Duration,
    pub(super) stats: Stats,
}

impl Way {
    pub(super) fn new(post: Arc<Post>, heartbeat: Duration) -> Self {
        Self {
            post,
            arrivals: Mutex::default(),
            closed: AtomicBool::new(false),
            heartbeat,
            stats: Stats::default(),
        }
    }

    pub(super) fn arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut *self.arrivals.lock())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }
}

/// All shards of a node. Dropped with the last clone, they drop every stream and end.
#[derive(Debug, Clone)]
pub struct Shards(Arc<Running>);

#[derive(Default)]
struct Running {
    ways: Vec<Arc<Way>>,
    threads: Vec<thread::JoinHandle<()>>,
    next: AtomicUsize,
}

impl fmt::Debug for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} shards", self.ways.len())
    }
}

impl Running {
    /// Makes the way to one more shard, and has the hub number it.
    fn open(&mut self, hub: &Hub, post: Arc<Post>, heartbeat: Duration) -> (Arc<Way>, u8) {
        let number = hub.attach(Arc::clone(&post));
        let way = Arc::new(Way::new(post, heartbeat));
        self.ways.push(Arc::clone(&way));
        (way, number)
    }
}

impl Shards {
    /// Starts so many shards, 1 to 64, whose quiet streams are pinged every `heartbeat`.
    ///
    /// # Errors
    ///
    /// When the system gives no epoll or no thread.
    pub fn start(hub: &Hub, shards: usize, heartbeat: Duration) -> io::Result<Self> {
        let mut running = Running::default();
        for _ in 0..shards.clamp(1, 64) {
            let poll = Poll::new()?;
            let waker = Waker::new(poll.registry(), WAKER)?;
            let post = Post::new(Box::new(move || {
                if let Err(error) = waker.wake() {
                    tracing::error!(%error, "a shard cannot be woken");
                }
            }));
            let (way, number) = running.open(hub, post, heartbeat);
            let shard = Shard::new(poll, way, number, hub.clone());
            let thread = thread::Builder::new().name(format!("shard-{number}"));
            running.threads.push(thread.spawn(move || {
                let _loud = Loud;
                shard.run();
            })?);
        }
        Ok(Self(Arc::new(running)))
    }

    /// Makes one shard without a thread: it is the future that is returned, and runs where and as
    /// long as that is driven. For a process of one thread; and for a paused clock, which threads
    /// know nothing of. Must be called within the Tokio runtime that is to drive it, with io and
    /// time enabled.
    ///
    /// Dropped, the future drops every stream; what is handed over then stays unopened.
    ///
    /// # Errors
    ///
    /// When the system gives no epoll.
    pub fn as_task(
        hub: &Hub,
        heartbeat: Duration,
    ) -> io::Result<(Self, impl Future<Output = ()> + Send + use<>)> {
        let poll = Poll::new()?;
        let sockets = task::Sockets::watch(&poll)?;
        let called = Arc::new(Notify::new());
        let calling = Arc::clone(&called);
        let post = Post::new(Box::new(move || calling.notify_one()));
        let mut running = Running::default();
        let (way, number) = running.open(hub, post, heartbeat);
        let shard = Shard::new(poll, way, number, hub.clone());
        Ok((Self(Arc::new(running)), shard.run_as_task(called, sockets)))
    }

    /// Hands a stream over, to each shard in its turn. It is opened there, or dropped uncounted
    /// where the shards have ended.
    pub fn hand_over(&self, arrival: Arrival) {
        let turn = self.0.next.fetch_add(1, Ordering::Relaxed);
        let way = &self.0.ways[turn % self.0.ways.len()];
        way.arrivals.lock().push(arrival);
        way.post.wake();
    }

    /// What all shards together did since their start.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        for way in &self.0.ways {
            way.stats.add_to(&mut tally);
        }
        tally
    }
}

/// Ends the process where a shard panics, which none can: its streams would hang and count for
/// ever, while a supervisor starts a process that ended again.
struct Loud;

impl Drop for Loud {
    fn drop(&mut self) {
        if thread::panicking() {
            tracing::error!("a shard panicked; the process ends");
            std::process::abort();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for way in &self.ways {
            way.closed.store(true, Ordering::Release);
            way.post.wake();
        }
        for thread in self.threads.drain(..) {
            // A panic of that thread was its own; there is nothing left to do for it.
            let _ = thread.join();
        }
    }
}

/// Upper bounds of the buckets of join latency, in milliseconds: from the first byte of the request
/// to the first count.
pub const LATENCY_MS: [u64; 10] = [1, 2, 5, 10, 20, 50, 100, 250, 1_000, 5_000];

/// What one shard did since its start. Only the shard itself writes.
#[derive(Debug, Default)]
pub(super) struct Stats {
    frames: AtomicU64,
    bytes: AtomicU64,
    conflated: AtomicU64,
    fell_behind: AtomicU64,
    caught_up: AtomicU64,
    ghosts: AtomicU64,
    unwatched: AtomicU64,
    slots: AtomicU64,
    latency: [AtomicU64; LATENCY_MS.len() + 1],
    latency_us: AtomicU64,
}

/// What shards did since their start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Counts and messages told to streams that keep up; not their first words, nor `ping`s, nor
    /// what slow ones are caught up with.
    pub frames: u64,
    /// Their bytes, as HTTP/1.1 frames them.
    pub bytes: u64,
    /// Counts that a newer one took the place of before they were told.
    pub conflated: u64,
    /// Streams that do not keep up right now.
    pub behind: u64,
    /// Streams whose reader had vanished without a word.
    pub ghosts: u64,
    /// Streams refused since the kernel would not watch their sockets.
    pub unwatched: u64,
    /// Sockets that shards hold, those with their last word included.
    pub slots: u64,
    /// Joins by latency; the last bucket has no upper bound.
    pub latency: [u64; LATENCY_MS.len() + 1],
    /// Microseconds of all joins together.
    pub latency_us: u64,
}

/// Adds without a locked instruction: there is one writer, and a reader may be a little late.
fn add(number: &AtomicU64, more: u64) {
    number.store(number.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl Stats {
    pub(super) fn frame(&self, bytes: usize) {
        add(&self.frames, 1);
        add(&self.bytes, bytes as u64);
    }

    pub(super) fn conflated(&self) {
        add(&self.conflated, 1);
    }

    pub(super) fn fell_behind(&self) {
        add(&self.fell_behind, 1);
    }

    pub(super) fn caught_up(&self) {
        add(&self.caught_up, 1);
    }

    pub(super) fn hold(&self, slots: usize) {
        self.slots.store(slots as u64, Ordering::Relaxed);
    }

    pub(super) fn ghost(&self) {
        add(&self.ghosts, 1);
    }

    pub(super) fn unwatched(&self) {
        add(&self.unwatched, 1);
    }

    pub(super) fn opened(&self, latency: Duration) {
        let ms = u64::try_from(latency.as_millis()).unwrap_or(u64::MAX);
        let bucket = LATENCY_MS.partition_point(|bound| *bound < ms);
        add(&self.latency[bucket], 1);
        let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        add(&self.latency_us, us);
    }

    pub(super) fn add_to(&self, tally: &mut Tally) {
        let read = |number: &AtomicU64| number.load(Ordering::Relaxed);
        tally.frames += read(&self.frames);
        tally.bytes += read(&self.bytes);
        tally.conflated += read(&self.conflated);
        tally.ghosts += read(&self.ghosts);
        tally.unwatched += read(&self.unwatched);
        // Read in this order, so that a slot that catches up meanwhile is not counted below zero.
        let caught_up = read(&self.caught_up);
        tally.behind += read(&self.fell_behind).saturating_sub(caught_up);
        for (sum, bucket) in tally.latency.iter_mut().zip(&self.latency) {
            *sum += read(bucket);
        }
        tally.latency_us += read(&self.latency_us);
        tally.slots += read(&self.slots);
    }
}
