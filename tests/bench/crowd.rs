//! Who reads what where many nodes share the readers: most of them one blog, the rest a thousand
//! others, spread so that the readers of each are on many nodes.
//!
//! A reader is a number from 0 on; every node has a range of them.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Blogs beside the large one.
pub(crate) const SMALL_BLOGS: u32 = 1_000;
/// What most of them read.
pub(crate) const LARGE_BLOG: u32 = 0;
/// Of so many readers, one is in a small blog.
const ONE_IN: u32 = 10;

/// The blog of a reader.
pub(crate) fn blog(reader: u32) -> u32 {
    if reader.is_multiple_of(ONE_IN) {
        reader / ONE_IN % SMALL_BLOGS + 1
    } else {
        LARGE_BLOG
    }
}

/// True for readers that come with an id of their own, which nodes compare: every second one.
pub(crate) fn is_named(reader: u32) -> bool {
    reader / ONE_IN % 2 == 1
}

/// How many readers each blog has; its number is its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Totals(Vec<u32>);

impl Totals {
    pub(crate) fn of(readers: &[Range<u32>]) -> Self {
        let mut totals = vec![0; SMALL_BLOGS as usize + 1];
        for reader in readers.iter().cloned().flatten() {
            totals[blog(reader) as usize] += 1;
        }
        Self(totals)
    }

    /// How many readers this blog has.
    pub(crate) fn of_blog(&self, blog: u32) -> u32 {
        self.0[blog as usize]
    }

    /// What this reader is to be shown.
    pub(crate) fn shown_to(&self, reader: u32) -> u32 {
        self.of_blog(blog(reader))
    }
}

/// Parts the readers among so many nodes.
pub(crate) fn parted(readers: u32, nodes: u32) -> Vec<Range<u32>> {
    let bound = |node| readers / nodes * node + (readers % nodes).min(node);
    (0..nodes)
        .map(|node| bound(node)..bound(node + 1))
        .collect()
}
