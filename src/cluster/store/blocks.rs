//! Blocks: who was thrown out and may not come back yet.

use std::sync::Arc;

use super::{
    Answer, Lane, Stamp, StoreError,
    lane::Arguments,
    reply::{Reply, malformed},
};

/// Some of the blocks in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlocksPage {
    /// Where the next page begins; 0 at the end.
    pub cursor: u64,
    /// Name and time left, ms.
    pub blocks: Vec<(String, u64)>,
}

impl Lane {
    /// Blocks names for so many ms each, the longer time winning, and tells every node. At most
    /// 100,000 are kept; beyond them those that end soonest go.
    ///
    /// # Errors
    ///
    /// As every call's, and [`StoreError::Malformed`] for a name that is empty or holds a line
    /// break.
    pub async fn block(
        &mut self,
        stamp: Stamp,
        entries: &[(String, u64)],
    ) -> Result<Answer<()>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        for (name, ms) in entries {
            if name.is_empty() || name.contains('\n') {
                return Err(malformed("a blocked name that is none"));
            }
            arguments.push_bytes(name.as_bytes());
            arguments.push(&ms);
        }
        self.call(&shared.scripts.block, stamp, arguments, |_| Ok(()))
            .await
    }

    /// Reads a page of the blocks in force: `cursor` 0 begins, about `count` of them.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn blocks(
        &mut self,
        stamp: Stamp,
        cursor: u64,
        count: usize,
    ) -> Result<Answer<BlocksPage>, StoreError> {
        let shared = Arc::clone(&self.shared);
        let mut arguments = Arguments::default();
        arguments.push(&cursor);
        arguments.push(&count.max(1));
        self.call(&shared.scripts.blocks, stamp, arguments, page)
            .await
    }
}

fn page(reply: &mut Reply) -> Result<BlocksPage, StoreError> {
    let cursor = reply.number()?;
    let mut list = reply.list()?;
    let mut blocks = Vec::new();
    while !list.is_empty() {
        let name = String::from_utf8(list.bytes()?);
        let left_ms = list.number()?;
        match name {
            Ok(name) => blocks.push((name, left_ms)),
            Err(_) => tracing::warn!("passed over a block in Redis whose name is not UTF-8"),
        }
    }
    Ok(BlocksPage { cursor, blocks })
}

/// Reads what was published on [`Channel::Blocks`](super::Channel::Blocks): names and time left,
/// ms. None for anything else.
#[must_use]
pub fn parse_blocks(bytes: &[u8]) -> Option<Vec<(String, u64)>> {
    let text = std::str::from_utf8(bytes).ok()?;
    let lines = text.strip_prefix("1\n")?;
    if !lines.is_empty() && !lines.ends_with('\n') {
        return None;
    }
    lines
        .lines()
        .map(|line| {
            let (left_ms, name) = line.split_once(' ')?;
            (!name.is_empty()).then_some(())?;
            Some((name.to_owned(), left_ms.parse().ok()?))
        })
        .collect()
}
