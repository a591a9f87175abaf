//! Blocks: whoever was thrown out on one node is kept out on all of them.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    Shared,
    store::{Lane, parse_blocks},
};
use crate::hub::{Blocked, ConnectionId, Identity, MOST_BLOCKS, UserId, ViewerName};

/// Longest block, as the contract has it: what says more was not written by a node.
const LONGEST: Duration = Duration::from_hours(24);
/// Blocks told or read in one call.
const PAGE: usize = 500;

impl Shared {
    /// Takes the blocks made here to those that are to be told. Where more wait than there can be
    /// in force, those in force do instead.
    pub(super) fn take_blocks(&self) {
        let mut blocks = self.blocks.lock();
        blocks.extend(self.hub.take_blocks());
        if blocks.len() > MOST_BLOCKS {
            *blocks = self.hub.blocks();
        }
    }

    /// Tells Redis, and by it the others, the blocks made here.
    pub(super) async fn send_blocks(&self, lane: &mut Lane) -> Option<()> {
        {
            let mut view = self.view.lock();
            if std::mem::take(&mut view.block_again) {
                *self.blocks.lock() = self.hub.blocks();
            }
        }
        loop {
            let some: Vec<(Blocked, Instant)> = {
                let blocks = self.blocks.lock();
                blocks.iter().take(PAGE).cloned().collect()
            };
            if some.is_empty() {
                return Some(());
            }
            let now = Instant::now();
            let entries: Vec<(String, u64)> = some
                .iter()
                .map(|(whom, until)| (name(whom), millis(until.duration_since(now))))
                .filter(|(_, left)| *left > 0)
                .collect();
            let stamp = self.view.lock().stamp();
            if !entries.is_empty() {
                let answer = lane.block(stamp, &entries).await;
                self.done(self.called("block", answer)?)?;
            }
            let mut blocks = self.blocks.lock();
            let sent = some.len().min(blocks.len());
            blocks.drain(..sent);
        }
    }

    /// Takes in blocks that another node published.
    pub(super) fn blocked(&self, bytes: &[u8]) {
        let Some(blocks) = parse_blocks(bytes) else {
            tracing::warn!("passed over blocks that are none");
            return;
        };
        self.take_in_blocks(&blocks);
    }

    fn take_in_blocks(&self, blocks: &[(String, u64)]) {
        let now = Instant::now();
        for (text, left) in blocks {
            if let Some(whom) = read(text) {
                let left = Duration::from_millis(*left).min(LONGEST);
                self.hub.block(whom, now + left, now);
            }
        }
    }

    /// Reads all blocks in force.
    pub(super) async fn read_blocks(&self, lane: &mut Lane) -> Option<()> {
        let mut cursor = 0;
        loop {
            let stamp = self.view.lock().stamp();
            let answer = lane.blocks(stamp, cursor, PAGE).await;
            let page = self.done(self.called("blocks", answer)?)?;
            self.take_in_blocks(&page.blocks);
            cursor = page.cursor;
            if cursor == 0 {
                return Some(());
            }
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

fn name(whom: &Blocked) -> String {
    match whom {
        Blocked::Connection(id) => format!("c:{id}"),
        Blocked::Identity(Identity::Member(user)) => format!("m:{}", user.as_str()),
        Blocked::Identity(Identity::Chosen(viewer)) => format!("v:{}", viewer.as_str()),
        // Never blocked: it is known by its connection.
        Blocked::Identity(Identity::Connection) => String::new(),
    }
}

fn read(text: &str) -> Option<Blocked> {
    let (kind, name) = text.split_once(':')?;
    match kind {
        "c" => ConnectionId::parse(name).ok().map(Blocked::Connection),
        "m" => UserId::parse(name)
            .ok()
            .map(|user| Blocked::Identity(Identity::Member(user))),
        "v" => ViewerName::parse(name)
            .ok()
            .map(|viewer| Blocked::Identity(Identity::Chosen(viewer))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reads_back_as_written() {
        let user = UserId::parse("7:a|b").unwrap();
        let viewer = ViewerName::parse("m:7").unwrap();
        for whom in [
            Blocked::Connection(ConnectionId::random()),
            Blocked::Identity(Identity::Member(user)),
            Blocked::Identity(Identity::Chosen(viewer)),
        ] {
            assert_eq!(read(&name(&whom)), Some(whom));
        }
        for text in ["", "m", "x:7", "c:7", "v:a b"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
