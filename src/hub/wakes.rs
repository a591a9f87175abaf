//! Who is to be woken for what was done under the hub's lock, once the lock is gone.

use std::sync::Arc;

use smallvec::SmallVec;
use tokio::sync::broadcast;

use super::{Inbox, Post, Word};

/// Who is to be woken once the lock is gone.
#[derive(Debug, Default)]
pub(super) struct Wakes {
    pub(super) inboxes: SmallVec<[Arc<Inbox>; 2]>,
    pub(super) channels: SmallVec<[broadcast::Sender<()>; 2]>,
    pub(super) posts: SmallVec<[Arc<Post>; 2]>,
    pub(super) pulse: bool,
    /// True where something is to be told to the other nodes.
    pub(super) share: bool,
}

impl Wakes {
    pub(super) fn post(&mut self, post: &Arc<Post>, word: Word) {
        post.push(word);
        if !self.posts.iter().any(|other| Arc::ptr_eq(other, post)) {
            self.posts.push(Arc::clone(post));
        }
    }

    /// Wakes them.
    pub(super) fn fire(self) {
        for inbox in self.inboxes {
            inbox.wake();
        }
        for post in self.posts {
            post.wake();
        }
        for channel in self.channels {
            // An error says that the last receiver has just gone: nobody is left to wake.
            let _ = channel.send(());
        }
    }
}
