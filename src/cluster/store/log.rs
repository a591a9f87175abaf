//! The one log of messages: its order is the order everywhere.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use redis::Value;

use super::{
    Answer, Away, Epoch, Lane, Stamp, StoreError, hex,
    lane::{Arguments, TIMEOUT},
    reply::{Reply, malformed},
};

/// Sequences within one ms that a position has room for.
const SEQUENCE_BITS: u32 = 20;

/// No position is at so many ms, in the year 2248: what says so was written by no node.
const MOST_MS: u64 = 1 << 43;
/// A floor at so many ms, in the year 2109, is none: above what somebody forged there must be room
/// for messages, in every epoch to come.
const MOST_FLOOR_MS: u64 = 1 << 42;

/// A message to append.
#[derive(Debug, Clone, Copy)]
pub struct Publication<'a> {
    /// To whom.
    pub room: &'a str,
    /// Its event's name.
    pub event: &'a str,
    /// Its data.
    pub data: &'a [u8],
    /// Makes it the same message however often it is published in this room within 5 min; empty
    /// for a message that is always new.
    pub once: &'a str,
    /// Digest of what was published; another under the same `once` is a conflict.
    pub digest: [u8; 32],
    /// The highest position that the caller knows: the message gets a higher one, unless this one
    /// lies in the next century.
    pub floor: u64,
    /// Who published it, in the caller's words; comes back with the entry.
    pub origin: &'a str,
}

/// What became of a publication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It has its place in the log.
    Ordered {
        /// Position in the log: ms since 1970 shifted left by 20, plus a sequence.
        position: u64,
        /// True where it had this place before.
        duplicate: bool,
    },
    /// Something else was published under this `once`.
    Conflict,
}

/// A message of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position, higher than all before it.
    pub position: u64,
    /// To whom.
    pub room: String,
    /// Its event's name.
    pub event: String,
    /// Its data.
    pub data: Bytes,
    /// Who published it.
    pub origin: String,
    /// What made it the same message however often it was published; empty for one that is always
    /// new, and where a node published it that did not write this down.
    pub once: String,
}

/// A part of the log, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPage {
    /// Where to read on: the position of the last entry, malformed ones included.
    pub upto: u64,
    /// True where it ends with entries whose ids are no positions. They come again with the next
    /// reading, which is not to be made at once.
    pub stuck: bool,
    /// The messages.
    pub entries: Vec<LogEntry>,
}

/// What the log holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpan {
    /// Position of the last entry cut off for its age or for space; 0 for none.
    pub cut: u64,
    /// Position of the last entry appended in this epoch; 0 for none.
    pub last: u64,
    /// The highest position in the epoch before that any caller has said it knows; 0 for none.
    pub was: u64,
}

impl Lane {
    /// Appends a message to the log, once. The log keeps 5 min and at most 64 MiB.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn publish(
        &mut self,
        stamp: Stamp,
        publication: &Publication<'_>,
    ) -> Result<Answer<Published>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        let named = format!("{}\n{}", publication.room, publication.once);
        let name = hex(&digest(&SHA256, named.as_bytes()).as_ref()[..16]);
        arguments.keys.push(shared.keys.once(stamp.epoch, &name));
        arguments.push_bytes(publication.room.as_bytes());
        arguments.push_bytes(publication.event.as_bytes());
        arguments.push_bytes(publication.data);
        arguments.push_bytes(publication.origin.as_bytes());
        arguments.push(&hex(&publication.digest));
        let (ms, sequence) = match unpack(publication.floor) {
            (MOST_FLOOR_MS.., _) => (0, 0),
            floor => floor,
        };
        arguments.push(&ms);
        arguments.push(&sequence);
        arguments.push_bytes(publication.once.as_bytes());
        self.call(&shared.scripts.publish, stamp, arguments, published)
            .await
    }

    /// Says what the log holds; and, where the caller followed the log of an epoch `before`, how
    /// far it knows that one, which tells others whether they had all of it.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn log_span(
        &mut self,
        stamp: Stamp,
        before: Option<(Epoch, u64)>,
    ) -> Result<Answer<LogSpan>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        let epoch = before.map(|(epoch, _)| epoch.to_string());
        arguments.push(&epoch.unwrap_or_default());
        let (ms, sequence) = unpack(before.map_or(0, |(_, known)| known));
        arguments.push(&ms);
        arguments.push(&sequence);
        let read = |reply: &mut Reply| {
            Ok(LogSpan {
                cut: position(reply)?,
                last: position(reply)?,
                was: position(reply)?,
            })
        };
        self.call(&shared.scripts.log_span, stamp, arguments, read)
            .await
    }

    /// Reads up to `count` messages after a position, waiting up to `block` for the first (zero:
    /// not at all). An entry that is no message is passed over. For a lane of its own, since it
    /// waits.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn read_log(
        &mut self,
        epoch: Epoch,
        after: u64,
        count: usize,
        block: Duration,
    ) -> Result<LogPage, StoreError> {
        let (ms, sequence) = unpack(after);
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(count.max(1));
        if !block.is_zero() {
            command
                .arg("BLOCK")
                .arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX).max(1));
        }
        command
            .arg("STREAMS")
            .arg(self.shared.keys.log(epoch))
            .arg(format!("{ms}-{sequence}"));
        let value = self
            .request(&command, block + TIMEOUT)
            .await
            .map_err(|error| match error {
                StoreError::Away(Away::Redis(error)) if error.code() == Some("WRONGTYPE") => {
                    malformed("the log is no stream")
                }
                other => other,
            })?;
        // No script, and so no tag: a reply to another call shows by its positions.
        let page = log_page(value, after);
        if page.is_err() {
            self.give_up();
        }
        page
    }
}

fn unpack(position: u64) -> (u64, u64) {
    (
        position >> SEQUENCE_BITS,
        position & ((1 << SEQUENCE_BITS) - 1),
    )
}

fn pack(ms: u64, sequence: u64) -> Result<u64, StoreError> {
    if ms >= MOST_MS || sequence >= 1 << SEQUENCE_BITS {
        return Err(malformed("a position that cannot be"));
    }
    Ok(ms << SEQUENCE_BITS | sequence)
}

fn position(reply: &mut Reply) -> Result<u64, StoreError> {
    pack(reply.number()?, reply.number()?)
}

fn published(reply: &mut Reply) -> Result<Published, StoreError> {
    let duplicate = match reply.text()?.as_str() {
        "ordered" => false,
        "duplicate" => true,
        "conflict" => return Ok(Published::Conflict),
        _ => return Err(malformed("an unknown fate of a message")),
    };
    Ok(Published::Ordered {
        position: position(reply)?,
        duplicate,
    })
}

fn log_page(value: Value, after: u64) -> Result<LogPage, StoreError> {
    let mut page = LogPage {
        upto: after,
        stuck: false,
        entries: Vec::new(),
    };
    if value == Value::Nil {
        return Ok(page);
    }
    let mut streams = Reply::of(value)?;
    let mut stream = streams.list()?;
    streams.end()?;
    stream.bytes()?;
    let mut entries = stream.list()?;
    while !entries.is_empty() {
        let mut entry = entries.list()?;
        let id = entry.text()?;
        let (ms, sequence) = id
            .split_once('-')
            .ok_or_else(|| malformed("an id that is none"))?;
        let number = |text: &str| text.parse().map_err(|_| malformed("an id that is none"));
        let Ok(position) = pack(number(ms)?, number(sequence)?) else {
            page.stuck = true;
            continue;
        };
        page.stuck = false;
        if position <= page.upto {
            return Err(StoreError::Mismatch);
        }
        page.upto = position;
        match message(position, entry) {
            Ok(message) => page.entries.push(message),
            Err(error) => tracing::warn!(position, %error, "passed over an entry of the log"),
        }
    }
    Ok(page)
}

fn message(position: u64, mut entry: Reply) -> Result<LogEntry, StoreError> {
    let mut fields = entry.list()?;
    let (mut room, mut event, mut data, mut origin) = (None, None, None, None);
    let mut once = String::new();
    while !fields.is_empty() {
        match fields.text()?.as_str() {
            "room" => room = Some(fields.text()?),
            "event" => event = Some(fields.text()?),
            "data" => data = Some(Bytes::from(fields.bytes()?)),
            "origin" => origin = Some(fields.text()?),
            "once" => once = fields.text()?,
            _ => drop(fields.bytes()?),
        }
    }
    let missing = || malformed("an entry without room, event, data or origin");
    Ok(LogEntry {
        position,
        room: room.ok_or_else(missing)?,
        event: event.ok_or_else(missing)?,
        data: data.ok_or_else(missing)?,
        origin: origin.ok_or_else(missing)?,
        once,
    })
}
