//! Where the hub's word to one stream goes: orders for a single connection, and the news that
//! its rooms have something to say.
//!
//! The hub changes its own record first and hands the order out second, both under its lock, so
//! that orders arrive in the order in which the record changed.

use std::{collections::VecDeque, fmt, sync::Arc, task::Waker};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{Frame, RoomId, RoomKey};

/// Why a stream ends, as its `closed` event says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The token or ticket came to its end.
    Expired,
    /// A back end threw the connection or its viewer out.
    Kicked,
    /// A newer stream of the same connection took its place.
    Replaced,
    /// The reader did not keep up and there was no room to wait for it.
    Slow,
    /// The node is going down.
    Shutdown,
    /// The node, the address or the member has as many streams as it may.
    Overloaded,
    /// The client said goodbye.
    Left,
}

impl Reason {
    /// Every reason there is.
    pub const ALL: [Self; 7] = [
        Self::Expired,
        Self::Kicked,
        Self::Replaced,
        Self::Slow,
        Self::Shutdown,
        Self::Overloaded,
        Self::Left,
    ];

    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::Kicked => "kicked",
            Self::Replaced => "replaced",
            Self::Slow => "slow",
            Self::Shutdown => "shutdown",
            Self::Overloaded => "overloaded",
            Self::Left => "left",
        }
    }
}

/// What one stream is told of its own.
#[derive(Debug, Clone)]
pub enum Order {
    /// It is in the room now and is due its messages up to this sequence, `joined` and the room's
    /// count; and the room's messages after that sequence.
    Joined(RoomKey, RoomId, u64),
    /// It is out of the room and is due its messages up to this sequence, then `left`.
    Left(RoomKey, RoomId, u64),
    /// It watches the room now and is due the room's count.
    Watching(RoomKey, RoomId),
    /// It no longer watches the room.
    Unwatched(RoomKey),
    /// It may stay open until then.
    Expires(Instant),
    /// It is counted out already and is due its messages up to this sequence, `closed`, then its
    /// end.
    End(Reason, u64),
}

/// Where one connection's orders go.
#[derive(Debug, Clone)]
pub enum Outlet {
    /// To a stream with a task of its own.
    Inbox(Arc<Inbox>),
    /// To a slot of a shard, by the number that [`super::Hub::attach`] gave to the shard.
    Slot(u8, SlotId),
}

/// One stream of a shard: its place and which stream of that place it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SlotId {
    /// Its place.
    pub index: u32,
    /// Which stream of that place; a word for an older one is for nobody.
    pub generation: u32,
}

/// What a shard is told.
#[derive(Debug)]
pub enum Word {
    /// To one slot.
    Order(SlotId, Order),
    /// A room's newest count, with its version.
    Count(RoomKey, u64, Frame),
    /// A message to everybody who joined the room, with its sequence; without its frame where too
    /// many wait, and then it is looked up in the room's log.
    Message(RoomKey, u64, Option<Frame>),
    /// The same to one slot's personal room.
    Personal(SlotId, u64, Option<Frame>),
}

/// A list of words with room for more is given back once it is empty: 64 KiB or so.
const KEPT: usize = 1_024;

/// Most bytes of messages that wait in a [`Post`], and again on its shard: 4 MiB.
pub const WAITING_BYTES: usize = 4 << 20;

/// The way to a shard: words in the order in which the hub said them, and a waker.
pub struct Post {
    /// Locked for a push, a look at the flag, or the exchange of the whole queue.
    queue: Mutex<Queue>,
    waker: Box<dyn Fn() + Send + Sync>,
}

#[derive(Debug, Default)]
struct Queue {
    words: Vec<Word>,
    /// Bytes of their messages.
    bytes: usize,
    /// True from a wake until the shard takes its words.
    awake: bool,
}

impl fmt::Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Post({} words)", self.queue.lock().words.len())
    }
}

impl Post {
    /// A way to a shard that `waker` wakes.
    #[must_use]
    pub fn new(waker: Box<dyn Fn() + Send + Sync>) -> Arc<Self> {
        Arc::new(Self {
            queue: Mutex::default(),
            waker,
        })
    }

    /// Adds a word, without waking anybody.
    pub(super) fn push(&self, mut word: Word) {
        let mut queue = self.queue.lock();
        if let Word::Message(_, _, frame) | Word::Personal(_, _, frame) = &mut word {
            frame.take_if(|frame| queue.bytes + frame.size() > WAITING_BYTES);
            queue.bytes += frame.as_ref().map_or(0, Frame::size);
        }
        queue.words.push(word);
    }

    /// Wakes the shard, unless it is awake and has not taken its words yet.
    pub fn wake(&self) {
        let was_awake = std::mem::replace(&mut self.queue.lock().awake, true);
        if !was_awake {
            (self.waker)();
        }
    }

    /// Exchanges what waits for `empty`, which must be empty.
    pub fn take(&self, empty: &mut Vec<Word>) {
        debug_assert!(empty.is_empty(), "words would be lost");
        if empty.capacity() > KEPT {
            *empty = Vec::new();
        }
        let mut queue = self.queue.lock();
        queue.awake = false;
        queue.bytes = 0;
        std::mem::swap(&mut queue.words, empty);
    }
}

impl From<&Arc<Inbox>> for Outlet {
    fn from(inbox: &Arc<Inbox>) -> Self {
        Self::Inbox(Arc::clone(inbox))
    }
}

/// Most orders that wait for one stream; one that lets more pile up does not keep up.
pub const MAX_ORDERS: usize = 256;

/// The orders of a stream that has a task of its own to read them.
#[derive(Debug, Default)]
pub struct Inbox(Mutex<Waiting>);

/// Behind a lock since the hub writes and the stream's task reads; held for a push or a take.
#[derive(Debug, Default)]
struct Waiting {
    orders: VecDeque<Order>,
    news: bool,
    reader: Option<Waker>,
}

impl Inbox {
    /// A new, empty inbox.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds an order, without waking anybody. Of ends that were ordered one after the other the last
    /// holds.
    pub fn push(&self, order: Order) {
        let orders = &mut self.0.lock().orders;
        match (orders.back_mut(), order) {
            (Some(Order::Expires(before)), Order::Expires(at)) => *before = at,
            (_, order) => orders.push_back(order),
        }
    }

    /// Tells the reader that something waits for it.
    pub(super) fn wake(&self) {
        let reader = {
            let mut waiting = self.0.lock();
            waiting.news = true;
            waiting.reader.take()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }

    /// How many orders wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.lock().orders.len()
    }

    /// True where no order waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the oldest order.
    pub(super) fn pop(&self) -> Option<Order> {
        self.0.lock().orders.pop_front()
    }

    /// Puts an order back that was taken and could not be carried out yet.
    pub(super) fn put_back(&self, order: Order) {
        self.0.lock().orders.push_front(order);
    }

    /// True once after each wake; `waker` is called at the next one in any case.
    pub fn poll_news(&self, waker: &Waker) -> bool {
        let mut waiting = self.0.lock();
        match &mut waiting.reader {
            Some(reader) => reader.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
        std::mem::take(&mut waiting.news)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beyond_what_may_wait_only_the_frame_stays_behind() {
        let post = Post::new(Box::new(|| {}));
        let room = RoomKey::of_test(1, 1);
        let frame = Frame::of(&[b'x'; 64 << 10]);
        let mut words = Vec::new();
        for _ in 0..2 {
            for sequence in 0..100 {
                post.push(Word::Message(room, sequence, Some(frame.clone())));
            }
            post.take(&mut words);
            let sequences = words.iter().map(|word| match word {
                Word::Message(_, sequence, _) => *sequence,
                other => panic!("{other:?}"),
            });
            assert!(sequences.eq(0..100));
            let frames = words
                .drain(..)
                .filter(|word| matches!(word, Word::Message(_, _, Some(_))));
            assert_eq!(frames.count(), WAITING_BYTES / frame.size());
        }
    }
}
