//! The store: what nodes keep in Redis, and the calls that change it.
//!
//! Everything here is soft state, thrown away and rebuilt without loss: each node owns its own
//! absolute numbers under a lease, scripts add them up, and a store that is empty, set back or
//! damaged starts a new epoch. This module knows scripts, keys and replies; when to call, and what
//! to make of the answers, is the cluster's. Nothing that Redis says is trusted to be well formed.

mod announcement;
mod blocks;
mod error;
mod ids;
mod keys;
mod lane;
mod listener;
mod log;
mod nodes;
mod numbers;
mod reply;
mod script;

use std::{fmt::Write as _, sync::Arc};

use redis::IntoConnectionInfo as _;

pub use self::{
    announcement::Announcement,
    blocks::{BlocksPage, parse_blocks},
    error::{Away, InvalidUrl, StoreError},
    ids::{Epoch, Incarnation, InvalidId},
    lane::Lane,
    listener::{Heard, Listener},
    log::{LogEntry, LogPage, LogSpan, Publication, Published},
    nodes::{Card, LEASE_MS, Leased, Node},
    numbers::{Batch, Claim, Flushed, Opened, RoomChange, SERVICE, Total, TotalsPage},
    script::Clock,
};
use self::{keys::Keys, script::Scripts};

/// True for an address that [`Redis::new`] takes.
#[must_use]
pub fn is_url(text: &str) -> bool {
    redis::Client::open(text).is_ok()
}

/// Where the store is and under which prefix. Cheap to clone; connects to nothing by itself.
#[derive(Clone)]
pub struct Redis(Arc<Shared>);

/// What every connection to the store needs.
pub(crate) struct Shared {
    client: redis::Client,
    keys: Keys,
    scripts: Scripts,
}

impl Redis {
    /// The store at `url`, every key and channel of which begins with `prefix`.
    ///
    /// # Errors
    ///
    /// When `url` is none of Redis.
    pub fn new(url: &str, prefix: &str) -> Result<Self, InvalidUrl> {
        Self::with_clock(url, prefix, &Clock::Server)
    }

    /// As [`Redis::new`], with the scripts' time from elsewhere.
    ///
    /// # Errors
    ///
    /// When `url` is none of Redis.
    pub fn with_clock(url: &str, prefix: &str, clock: &Clock) -> Result<Self, InvalidUrl> {
        let info = url.into_connection_info().map_err(|_| InvalidUrl)?;
        // A client that names itself to Redis needs a right more, and fills the log of denials of a
        // Redis that does not give it.
        let settings = info.redis_settings().clone().set_skip_set_lib_name();
        let info = info.set_redis_settings(settings);
        let client = redis::Client::open(info).map_err(|_| InvalidUrl)?;
        Ok(Self(Arc::new(Shared {
            client,
            keys: Keys::new(prefix),
            scripts: Scripts::new(clock),
        })))
    }

    /// A connection for calls, not made yet.
    #[must_use]
    pub fn lane(&self) -> Lane {
        Lane::new(Arc::clone(&self.0))
    }

    /// A connection for what nodes publish, not made yet.
    #[must_use]
    pub fn listener(&self) -> Listener {
        Listener::new(Arc::clone(&self.0))
    }
}

impl std::fmt::Debug for Redis {
    // The address may hold a password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Redis")
            .field("keys", &self.0.keys)
            .finish_non_exhaustive()
    }
}

/// What a caller knows of the store, sent with every call.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The epoch in force; none before the first answer.
    pub epoch: Option<Epoch>,
    /// The highest announcement seen in that epoch. A store that has had fewer was set back, and
    /// starts a new epoch.
    pub version: u64,
}

/// The answer to a call with a [`Stamp`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It was done.
    Done(T),
    /// Nothing was done: the caller's epoch is not, or no longer, the one in force.
    Epoch {
        /// The epoch in force.
        epoch: Epoch,
        /// Number of its last announcement.
        version: u64,
    },
}

/// Where nodes publish to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// Changed totals: each an [`Announcement`].
    Announcements,
    /// New blocks: see [`parse_blocks`].
    Blocks,
    /// For all nodes.
    Everybody,
    /// For one node.
    Node(Incarnation),
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = u8::try_from(high * 16 + low).ok()?;
    }
    Some(bytes)
}
