//! The names of keys and channels. Everything in the keyspace of an epoch carries the epoch in its
//! name, so that a new epoch is an empty keyspace.

use super::{Channel, Epoch, Incarnation};

/// Format of what is kept. A node that meets a higher one keeps out.
pub(super) const FORMAT: u64 = 1;

/// Stands for the epoch in the keys of a call that knows none, which then touches none of them.
const NO_EPOCH: &str = "0000000000000000";

/// The shared keys of an epoch, in the order that the scripts know.
const SHARED: [&str; 10] = [
    "totals", "who", "leases", "nodes", "applied", "changed", "flushed", "claims", "blocks", "log",
];

/// Makes the names under one prefix, of the one partition that there is.
#[derive(Debug)]
pub(super) struct Keys {
    format: String,
    base: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            format: format!("{prefix}format"),
            base: format!("{prefix}{FORMAT}:0:"),
        }
    }

    /// What every script gets first.
    pub(super) fn shared(&self, epoch: Option<Epoch>) -> Vec<String> {
        let mut keys = vec![self.format.clone(), format!("{}meta", self.base)];
        keys.extend(SHARED.iter().map(|name| self.of(epoch, name)));
        keys
    }

    /// A node's own: its share of each room, and the identities it has there.
    pub(super) fn own(&self, epoch: Option<Epoch>, node: Incarnation) -> [String; 2] {
        ["mine", "ids"].map(|name| self.of(epoch, &format!("{name}:{node}")))
    }

    pub(super) fn log(&self, epoch: Epoch) -> String {
        self.of(Some(epoch), "log")
    }

    /// What remembers a publication by the digest of its room and key.
    pub(super) fn once(&self, epoch: Option<Epoch>, digest: &str) -> String {
        self.of(epoch, &format!("once:{digest}"))
    }

    fn of(&self, epoch: Option<Epoch>, name: &str) -> String {
        let base = &self.base;
        match epoch {
            Some(epoch) => format!("{base}{epoch}:{name}"),
            None => format!("{base}{NO_EPOCH}:{name}"),
        }
    }

    pub(super) fn channel(&self, channel: Channel) -> String {
        let base = &self.base;
        match channel {
            Channel::Announcements => format!("{base}announcements"),
            Channel::Blocks => format!("{base}blocks"),
            Channel::Everybody => format!("{base}everybody"),
            Channel::Node(node) => format!("{base}node:{node}"),
        }
    }

    /// The channel of this name; none for a name that is not ours.
    pub(super) fn channel_named(&self, name: &str) -> Option<Channel> {
        match name.strip_prefix(&self.base)? {
            "announcements" => Some(Channel::Announcements),
            "blocks" => Some(Channel::Blocks),
            "everybody" => Some(Channel::Everybody),
            other => other.strip_prefix("node:")?.parse().ok().map(Channel::Node),
        }
    }
}
