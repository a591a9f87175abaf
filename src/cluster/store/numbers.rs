//! The numbers: batches in, totals and claims out.

use std::{sync::Arc, time::Duration};

use super::{
    Answer, Incarnation, Lane, Stamp, StoreError, hex,
    lane::Arguments,
    nodes::wait,
    reply::{Reply, malformed},
    unhex,
};
use crate::hub::{Fingerprint, id::is_name_byte};

/// The room that is the service as a whole: every open stream, every viewer once.
pub const SERVICE: &str = "*";

/// A connection's stream: the 16 bytes of the connection's id, then 8 of when the stream was opened,
/// in ms of Redis' time, big-endian.
pub type Opened = [u8; 24];

/// What changed in one room of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoomChange {
    /// Name of the room.
    pub room: String,
    /// The node's connections in it, absolute.
    pub connections: u32,
    /// Those of them that are viewers of their own, known by nothing else; absolute.
    pub unidentified: u32,
    /// Identities that this node has in the room since.
    pub add: Vec<Fingerprint>,
    /// Identities that it has no longer.
    pub remove: Vec<Fingerprint>,
}

/// One numbered batch of changes, frozen until it is acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Whose.
    pub incarnation: Incarnation,
    /// In a resync the incarnation before: its entries for these rooms are taken off in the same
    /// script, and identities that it had are moved.
    pub older: Option<Incarnation>,
    /// From 1, without gaps.
    pub number: u64,
    /// The changed rooms. A room may come more than once.
    pub rooms: &'a [RoomChange],
    /// Connections whose newest stream is here.
    pub claims: &'a [Opened],
    /// True for the last of a resync: the node is synced, and what is left of `older` is to reap.
    pub done: bool,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flushed {
    /// It is in the totals, now or since before.
    Applied {
        /// Number of its first claim, the others following; 0 without claims.
        claims_from: u64,
        /// In how long to call [`Lane::announce`]; none where nothing is pending.
        announce_in: Option<Duration>,
    },
    /// The lease has lapsed or a batch is missing: begin again with a new incarnation.
    Resync,
}

/// All nodes' numbers of one room.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Total {
    /// Open streams.
    pub connections: u32,
    /// Distinct viewers.
    pub viewers: u32,
    /// Those of them known by a token.
    pub members: u32,
}

/// Totals as of one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TotalsPage {
    /// Where the next page begins; 0 at the end.
    pub cursor: u64,
    /// Number of the last announcement before them.
    pub version: u64,
    /// Number of the reader's last batch in them.
    pub applied: u64,
    /// The rooms. A room may come again on a later page, which is newer then.
    pub rooms: Vec<(String, Total)>,
}

/// One node's word that a connection's newest stream is its own. The highest number wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its place in the order of claims, from 1.
    pub number: u64,
    /// The connection.
    pub connection: Opened,
    /// The node.
    pub holder: Incarnation,
}

impl Lane {
    /// Applies a batch to the totals, once however often it is sent.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn flush(
        &mut self,
        stamp: Stamp,
        batch: &Batch<'_>,
    ) -> Result<Answer<Flushed>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let me = batch.incarnation;
        let mut arguments = Arguments::default();
        arguments.keys.extend(shared.keys.own(stamp.epoch, me));
        arguments
            .keys
            .extend(shared.keys.own(stamp.epoch, batch.older.unwrap_or(me)));
        arguments.push(&me);
        arguments.push(
            &batch
                .older
                .map(|older| older.to_string())
                .unwrap_or_default(),
        );
        arguments.push(&batch.number);
        arguments.push_flag(batch.done);
        arguments.push(&batch.claims.len());
        for connection in batch.claims {
            arguments.push(&hex(connection));
        }
        arguments.push(&batch.rooms.len());
        for room in batch.rooms {
            arguments.push_bytes(room.room.as_bytes());
            arguments.push(&room.connections);
            arguments.push(&room.unidentified);
            for fingerprints in [&room.add, &room.remove] {
                arguments.push(&fingerprints.len());
                for fingerprint in fingerprints {
                    arguments.push_bytes(fingerprint);
                }
            }
        }
        self.call(&shared.scripts.flush, stamp, arguments, flushed)
            .await
    }

    /// Announces what is pending, unless the last announcement is younger than 25 ms; says in how
    /// long to call again, if at all.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn announce(&mut self, stamp: Stamp) -> Result<Answer<Option<Duration>>, StoreError> {
        let shared = Arc::clone(&self.shared);
        self.call(&shared.scripts.announce, stamp, Arguments::default(), wait)
            .await
    }

    /// Reads a page of all totals: `cursor` 0 begins, about `count` rooms.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn totals(
        &mut self,
        stamp: Stamp,
        me: Incarnation,
        cursor: u64,
        count: usize,
    ) -> Result<Answer<TotalsPage>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        arguments.push(&me);
        arguments.push(&cursor);
        arguments.push(&count.max(1));
        self.call(&shared.scripts.totals, stamp, arguments, totals_page)
            .await
    }

    /// Reads up to `count` claims after this number, in their order. The last 100,000 are kept.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn claims_after(
        &mut self,
        stamp: Stamp,
        number: u64,
        count: usize,
    ) -> Result<Answer<Vec<Claim>>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        arguments.push(&number);
        arguments.push(&count.max(1));
        self.call(&shared.scripts.claims, stamp, arguments, claims)
            .await
    }
}

/// True for the name of a room as the hub makes them, or the service's.
pub(super) fn is_room(name: &str) -> bool {
    name == SERVICE || (name.len() <= 161 && name.contains(':') && name.bytes().all(is_name_byte))
}

fn flushed(reply: &mut Reply) -> Result<Flushed, StoreError> {
    match reply.text()?.as_str() {
        "applied" => Ok(Flushed::Applied {
            claims_from: reply.number()?,
            announce_in: wait(reply)?,
        }),
        "resync" => Ok(Flushed::Resync),
        _ => Err(malformed("an unknown fate of a batch")),
    }
}

fn totals_page(reply: &mut Reply) -> Result<TotalsPage, StoreError> {
    let cursor = reply.number()?;
    let version = reply.number()?;
    let applied = reply.number()?;
    let mut list = reply.list()?;
    let mut rooms = Vec::new();
    while !list.is_empty() {
        let name = list.bytes()?;
        let total = Total {
            connections: list.number()?,
            viewers: list.number()?,
            members: list.number()?,
        };
        // A name that is none is nobody's room.
        match String::from_utf8(name) {
            Ok(room) if is_room(&room) => rooms.push((room, total)),
            _ => tracing::warn!("passed over a total in Redis whose room is no name"),
        }
    }
    Ok(TotalsPage {
        cursor,
        version,
        applied,
        rooms,
    })
}

fn claims(reply: &mut Reply) -> Result<Vec<Claim>, StoreError> {
    let mut list = reply.list()?;
    let mut claims = Vec::new();
    while !list.is_empty() {
        claims.push(Claim {
            number: list.number()?,
            connection: unhex(&list.text()?)
                .ok_or_else(|| malformed("a connection that is none"))?,
            holder: list.id()?,
        });
    }
    Ok(claims)
}
