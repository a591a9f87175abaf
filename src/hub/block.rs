//! Blocks: connections and viewers that were thrown out and may not come back for a while.

use std::{collections::HashMap, time::Duration};

use tokio::time::Instant;

use super::{ConnectionId, Identity};

/// Most blocks kept at once; past it the one that ends soonest makes room.
pub const MOST_BLOCKS: usize = 100_000;

/// Who may not come in.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Blocked {
    /// The holder of this connection's ticket.
    Connection(ConnectionId),
    /// This viewer.
    Identity(Identity),
}

/// Who may not come in, each with the end of it.
#[derive(Debug, Default)]
pub(super) struct Blocks(HashMap<Blocked, Instant>);

impl Blocks {
    /// Keeps somebody out until then; a longer block stays.
    pub(super) fn add(&mut self, whom: Blocked, until: Instant, now: Instant) {
        if until <= now {
            return;
        }
        if self.0.len() >= MOST_BLOCKS && !self.0.contains_key(&whom) {
            self.0.retain(|_, end| *end > now);
            let soonest = self.0.iter().min_by_key(|(_, end)| **end);
            if let Some(soonest) = soonest.map(|(blocked, _)| blocked.clone())
                && self.0.len() >= MOST_BLOCKS
            {
                self.0.remove(&soonest);
            }
        }
        let end = self.0.entry(whom).or_insert(until);
        *end = (*end).max(until);
    }

    /// How much longer this connection or viewer stays out, if at all.
    pub(super) fn remaining(
        &self,
        id: ConnectionId,
        identity: &Identity,
        now: Instant,
    ) -> Option<Duration> {
        if self.0.is_empty() {
            return None;
        }
        let of = |whom: Blocked| self.0.get(&whom).map(|end| end.duration_since(now));
        let connection = of(Blocked::Connection(id));
        let identity = match identity {
            Identity::Connection => None,
            named => of(Blocked::Identity(named.clone())),
        };
        connection
            .max(identity)
            .filter(|remaining| !remaining.is_zero())
    }

    /// Everybody who may not come in, with the end of it.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Blocked, Instant)> {
        self.0.iter().map(|(whom, until)| (whom, *until))
    }

    /// Drops what has ended.
    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, end| *end > now);
    }
}
