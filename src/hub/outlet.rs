//! Where the hub's word to one stream goes: orders for a single connection, and the news that
//! its rooms have something to say.
//!
//! The hub changes its own record first and hands the order out second, both under its lock, so
//! that orders arrive in the order in which the record changed.

use std::{collections::VecDeque, sync::Arc, task::Waker};

use parking_lot::Mutex;
use tokio::time::Instant;

use super::{RoomId, RoomKey};

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
    /// It is in the room now and is due `joined` and the room's count.
    Joined(RoomKey, RoomId),
    /// It is out of the room and is due `left`.
    Left(RoomKey, RoomId),
    /// It watches the room now and is due the room's count.
    Watching(RoomKey, RoomId),
    /// It no longer watches the room.
    Unwatched(RoomKey),
    /// It may stay open until then.
    Expires(Instant),
    /// It is counted out already and is due `closed`, then its end.
    End(Reason),
}

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

    /// Adds an order; [`Inbox::wake`] tells the reader.
    pub(super) fn push(&self, order: Order) {
        self.0.lock().orders.push_back(order);
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

    /// Takes the oldest order.
    pub(super) fn pop(&self) -> Option<Order> {
        self.0.lock().orders.pop_front()
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
