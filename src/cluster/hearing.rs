//! What the other nodes publish: announcements, blocks, questions and answers.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    Respond, Shared,
    asks::Envelope,
    pause,
    store::{Announcement, Channel, Heard},
};

/// Longest time between two tries.
const RETRY: Duration = Duration::from_millis(300);

impl Shared {
    /// Listens for ever.
    pub(super) async fn listen(self: Arc<Self>, respond: Respond) {
        let channels = [
            Channel::Announcements,
            Channel::Blocks,
            Channel::Everybody,
            Channel::Node(self.process),
        ];
        loop {
            let mut listener = self.redis.listener();
            let subscribed = listener.subscribe(&channels).await;
            if self.called("subscribe", subscribed).is_none() {
                pause(RETRY).await;
                continue;
            }
            // What was published meanwhile is not heard any more.
            self.view.lock().reload = true;
            self.reread.notify_one();
            while let Some(heard) = self.called("listen", listener.next().await) {
                self.hear(&heard, &respond);
            }
        }
    }

    fn hear(&self, heard: &Heard, respond: &Respond) {
        match heard.channel {
            Channel::Announcements => match Announcement::parse(&heard.bytes) {
                Some(announcement) => self.announced(&announcement),
                None => {
                    tracing::warn!("passed over an announcement that is none");
                    self.view.lock().reload = true;
                    self.reread.notify_one();
                }
            },
            Channel::Blocks => self.blocked(&heard.bytes),
            Channel::Everybody | Channel::Node(_) => match Envelope::read(&heard.bytes) {
                Some(envelope) => self.received(envelope, respond),
                None => tracing::warn!("passed over a message between nodes that is none"),
            },
        }
    }

    fn announced(&self, announcement: &Announcement) {
        let now = Instant::now();
        let mut view = self.view.lock();
        let (before, seen) = (view.epoch(), view.claims_seen);
        let (news, taken) = view.hear(announcement, now);
        self.hub.set_elsewhere(&news, view.applied(), now);
        let turned = view.epoch() != before;
        if view.clock.is_known() {
            self.give_up(&taken);
        } else if !taken.is_empty() {
            // Nobody knows yet when that was: they are read once it is known.
            view.claims_seen = if turned { 0 } else { seen };
            view.reload = true;
        }
        let reload = view.reload;
        drop(view);
        if turned {
            self.has_turned(announcement.epoch, false);
        }
        if reload {
            self.reread.notify_one();
        }
    }
}
