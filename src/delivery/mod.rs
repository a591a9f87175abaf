//! Delivery: frames to open streams.
//!
//! The API hands over a [`Subscription`], which is everything one stream needs for the rest of
//! its life; from there on nobody else holds any part of it, and its drop is the only way in
//! which a viewer is no longer counted.

pub mod body;
mod fanout;
mod shard;
#[cfg(test)]
mod shard_tests;
pub mod shards;
mod slot;
mod slow;
mod task;
mod telling;
mod timing;
mod wheel;
mod words;

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    hub::{ConnectionId, Opening, Registration, RoomId, UserId},
    sse::{self, Connected, Text},
};

/// How long before the end of token or ticket a stream is told so, from the contract.
pub const EXPIRY_NOTICE: Duration = Duration::from_secs(30);

/// One stream, ready to be opened.
#[derive(Debug)]
pub struct Subscription {
    /// Its place in the hub.
    pub registration: Registration,
    /// What it is told of itself.
    pub welcome: Box<Welcome>,
    /// When it ends.
    pub expires: Instant,
    /// Time between two `ping`s while it is quiet.
    pub heartbeat: Duration,
    /// What it holds while it lives: its places under the limits, opaque here.
    pub admission: Admission,
}

/// A stream on offer in a response: whoever takes it opens it, the shards or the response's own
/// body. Untaken, it was never counted.
#[derive(Debug, Clone)]
pub struct Offer(Arc<Mutex<Option<Box<Subscription>>>>);

impl Offer {
    /// Offers a stream.
    #[must_use]
    pub fn new(subscription: Subscription) -> Self {
        Self(Arc::new(Mutex::new(Some(Box::new(subscription)))))
    }

    /// Takes it, unless somebody did.
    #[must_use]
    pub fn take(&self) -> Option<Subscription> {
        self.0.lock().take().map(|subscription| *subscription)
    }
}

/// What a stream holds of the node's limits; given back when dropped.
pub type Admission = Box<dyn std::any::Any + Send + Sync>;

/// What `connected` says beside what the hub knows.
#[derive(Debug)]
pub struct Welcome {
    /// The connection's id.
    pub connection: ConnectionId,
    /// The token's `sub`.
    pub user: Option<UserId>,
    /// Joined rooms, in the order asked.
    pub rooms: Vec<RoomId>,
    /// Watched rooms, in the order asked.
    pub watching: Vec<RoomId>,
    /// Permission to open this stream again.
    pub ticket: String,
    /// Where to.
    pub stream_url: String,
}

impl Welcome {
    /// The first events of a stream, in the contract's order: `retry:`, `connected`, the counts,
    /// then what was missed.
    fn first_words(
        &self,
        opening: &Opening,
        expires: Instant,
        heartbeat: Duration,
        now: Instant,
    ) -> Vec<u8> {
        let personal = self.user.as_ref().map(RoomId::personal);
        let connected = Connected {
            connection: self.connection.to_string(),
            user_id: self.user.as_ref().map(UserId::as_str),
            rooms: self
                .rooms
                .iter()
                .chain(&personal)
                .map(RoomId::as_str)
                .collect(),
            watching: self.watching.iter().map(RoomId::as_str).collect(),
            ticket: &self.ticket,
            stream_url: &self.stream_url,
            expires_in: sse::whole_seconds(expires.duration_since(now)),
            heartbeat: sse::whole_seconds(heartbeat),
        };
        // Names and ids fit beside the ticket, which is said twice, where there are not many rooms.
        let mut text = Text::with_capacity(512 + self.ticket.len() + self.stream_url.len());
        text.retry(sse::first_wait());
        text.connected(&connected, opening.starts_at);
        for told in &opening.counts {
            text.count(&told.room, told.occupancy);
        }
        for room in &opening.resets {
            text.reset(room);
        }
        let mut bytes = text.into_bytes();
        for message in &opening.messages {
            bytes.extend_from_slice(&message.payload());
        }
        bytes
    }
}
