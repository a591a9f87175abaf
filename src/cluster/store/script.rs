//! The scripts, each put together from what it stands on, and its digest.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

use super::hex;

/// Where the scripts take the time from.
#[derive(Debug, Clone, Default)]
pub enum Clock {
    /// The server's own clock.
    #[default]
    Server,
    /// The server's clock, shifted by as many milliseconds as stand at this key: how tests step it.
    Shifted(String),
}

/// One script: its source, and its SHA-1 by which the server knows it.
#[derive(Debug)]
pub(super) struct Script {
    pub(super) source: String,
    pub(super) sha1: String,
}

impl Script {
    fn new(source: String) -> Self {
        let sha1 = hex(digest(&SHA1_FOR_LEGACY_USE_ONLY, source.as_bytes()).as_ref());
        Self { source, sha1 }
    }
}

const TIME: &str = "redis.call('TIME')";

macro_rules! scripts {
    ($($name:ident: $($file:literal)+;)+) => {
        /// Every script of the store.
        #[derive(Debug)]
        pub(super) struct Scripts {
            $(pub(super) $name: Script,)+
        }

        impl Scripts {
            pub(super) fn new(clock: &Clock) -> Self {
                let timed = |source: &str| match clock {
                    Clock::Server => Script::new(source.to_owned()),
                    Clock::Shifted(key) => Script::new(source.replace(TIME, &shifted(key))),
                };
                Self {
                    $($name: timed(concat!($(include_str!($file)),+)),)+
                }
            }
        }
    };
}

scripts! {
    connect: "prelude.lua" "connect.lua";
    lease: "prelude.lua" "counting.lua" "logging.lua" "lease.lua";
    release: "prelude.lua" "release.lua";
    flush: "prelude.lua" "counting.lua" "flush.lua";
    reap: "prelude.lua" "counting.lua" "reap.lua";
    announce: "prelude.lua" "counting.lua" "announce.lua";
    totals: "prelude.lua" "counting.lua" "totals.lua";
    claims: "prelude.lua" "claims.lua";
    block: "prelude.lua" "block.lua";
    blocks: "prelude.lua" "blocks.lua";
    publish: "prelude.lua" "logging.lua" "publish.lua";
    log_span: "prelude.lua" "logging.lua" "log_span.lua";
    send: "send.lua";
}

fn shifted(key: &str) -> String {
    format!(
        "(function() local time = {TIME} \
         local ms = time[1] * 1000 + math.floor(time[2] / 1000) + (redis.call('GET', '{key}') or 0) \
         return {{ math.floor(ms / 1000), ms % 1000 * 1000 }} end)()"
    )
}
