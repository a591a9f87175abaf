//! Leases: which nodes live.

use std::{sync::Arc, time::Duration};

use super::{
    Answer, Incarnation, Lane, Stamp, StoreError,
    lane::Arguments,
    reply::{Reply, malformed},
};

/// How long a lease runs from its last renewal, ms of script time.
pub const LEASE_MS: u64 = 3_000;

/// What a node says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// Its name, as configured.
    pub name: String,
    /// Its process, by which it answers questions whatever its incarnation; none of a node that
    /// is too old to tell.
    pub process: Option<Incarnation>,
    /// When it started, in ms since 1970.
    pub since_ms: u64,
    /// Its open streams.
    pub connections: u64,
    /// True where all that it counts is in the totals. Once true it stays so for the incarnation,
    /// unless it says otherwise.
    pub synced: bool,
    /// True where it says that its batches have not come through for a while: it is not synced any
    /// more. Not read back.
    pub unheard: bool,
}

/// A node whose lease runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its present incarnation.
    pub incarnation: Incarnation,
    /// What it says of itself.
    pub card: Card,
    /// Time since its last renewal, ms of script time.
    pub lag_ms: u64,
}

/// What a node learns with its lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leased {
    /// False where the lease had lapsed or was never made; it is not revived then.
    pub held: bool,
    /// The nodes whose leases run, those that resync twice, under both incarnations.
    pub nodes: Vec<Node>,
    /// Incarnations whose leases have lapsed, at most 16: to reap.
    pub lapsed: Vec<Incarnation>,
    /// Number of the last announcement.
    pub version: u64,
    /// Number of this incarnation's last applied batch. Lower than what was acknowledged where the
    /// store was set back.
    pub applied: u64,
    /// Script time, ms since 1970.
    pub now_ms: u64,
    /// In how long to call [`Lane::announce`]; none where nothing is pending.
    pub announce_in: Option<Duration>,
}

impl Lane {
    /// Makes (`new`) or renews the lease of `me` for 3 s. The incarnation that it resyncs from,
    /// `older`, is kept alive with it.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn lease(
        &mut self,
        stamp: Stamp,
        me: Incarnation,
        older: Option<Incarnation>,
        card: &Card,
        new: bool,
    ) -> Result<Answer<Leased>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        arguments.keys.extend(shared.keys.own(stamp.epoch, me));
        arguments
            .keys
            .extend(shared.keys.own(stamp.epoch, older.unwrap_or(me)));
        arguments.push(&me);
        arguments.push(&older.map(|older| older.to_string()).unwrap_or_default());
        arguments.push_flag(new);
        arguments.push(&card.since_ms);
        arguments.push(&card.connections);
        arguments.push(&if card.unheard {
            2
        } else {
            u8::from(card.synced)
        });
        arguments.push_bytes(card.name.as_bytes());
        let process = card.process.map(|process| process.to_string());
        arguments.push(&process.unwrap_or_default());
        self.call(&shared.scripts.lease, stamp, arguments, leased)
            .await
    }

    /// Gives the lease of `me` up, so that the next node to renew its own takes its numbers off.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn release(
        &mut self,
        stamp: Stamp,
        me: Incarnation,
    ) -> Result<Answer<()>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        arguments.push(&me);
        self.call(&shared.scripts.release, stamp, arguments, |_| Ok(()))
            .await
    }

    /// Takes up to `steps` (1 to 10,000) identities and rooms of a lapsed node off the totals;
    /// true where more is left. Does nothing to a node whose lease runs again.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn reap(
        &mut self,
        stamp: Stamp,
        lapsed: Incarnation,
        steps: u32,
    ) -> Result<Answer<bool>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        arguments.keys.extend(shared.keys.own(stamp.epoch, lapsed));
        arguments.push(&lapsed);
        arguments.push(&steps.clamp(1, 10_000));
        self.call(&shared.scripts.reap, stamp, arguments, Reply::flag)
            .await
    }
}

fn leased(reply: &mut Reply) -> Result<Leased, StoreError> {
    let held = reply.flag()?;
    let now_ms = reply.number()?;
    let version = reply.number()?;
    let applied = reply.number()?;
    let announce_in = wait(reply)?;
    let mut nodes = Vec::new();
    let mut live = reply.list()?;
    while !live.is_empty() {
        let incarnation = live.id()?;
        let left_ms: u64 = live.number()?;
        let synced = live.flag()?;
        nodes.push(Node {
            incarnation,
            lag_ms: LEASE_MS.saturating_sub(left_ms),
            card: Card {
                synced,
                unheard: false,
                since_ms: live.number()?,
                connections: live.number()?,
                name: String::from_utf8_lossy(&live.bytes()?).into_owned(),
                process: live.text()?.parse().ok(),
            },
        });
    }
    let mut lapsed = Vec::new();
    let mut ended = reply.list()?;
    while !ended.is_empty() {
        lapsed.push(ended.id()?);
    }
    Ok(Leased {
        held,
        nodes,
        lapsed,
        version,
        applied,
        now_ms,
        announce_in,
    })
}

/// Reads in how many ms to announce, -1 for not at all.
pub(super) fn wait(reply: &mut Reply) -> Result<Option<Duration>, StoreError> {
    match reply.number::<i64>()? {
        -1 => Ok(None),
        // No wait is longer than the pause between two announcements.
        ms @ 0..=1_000 => Ok(Some(Duration::from_millis(ms.unsigned_abs()))),
        _ => Err(malformed("a wait that cannot be")),
    }
}
