//! What nodes say to each other, as none of them would: every message, with numbers at their ends and
//! names that are none.

use livecount::cluster::asks::{Ask, WireChange};
use serde::Serialize;

/// Further away than any date that can be written.
pub(crate) const FAR: u64 = u64::MAX;

/// As nodes write: a variant of an enum is its number, a struct its fields one after the other.
pub(crate) fn bytes(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("it can be written")
}

/// Every question there is about this connection, at the ends of its numbers; it lives through all
/// of them.
pub(crate) fn questions(connection: u128) -> Vec<Ask> {
    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let nonsense = || vec!["no room".to_owned(), "\0".to_owned(), "x".repeat(10_000)];
    let mut all = Vec::new();
    for connection in [connection, 0, u128::MAX] {
        all.push(Ask::Show { connection });
        for expires_unix in [FAR, FAR / 1_000, i64::MAX as u64, 253_402_300_800] {
            for grants in [None, Some(names(&["blog:*"])), Some(nonsense())] {
                all.push(Ask::Renew {
                    connection,
                    expires_unix,
                    grants,
                });
            }
        }
        for change in [WireChange::Join, WireChange::Watch, WireChange::Leave] {
            let many = (0..2_000).map(|n| format!("blog:many-{n}")).collect();
            for rooms in [many, nonsense(), Vec::new()] {
                all.push(Ask::Change {
                    connection,
                    change,
                    rooms,
                });
            }
        }
        all.push(Ask::Change {
            connection,
            change: WireChange::Unwatch,
            rooms: names(&["blog:none"]),
        });
        all.push(Ask::Kick {
            connection,
            block_secs: FAR,
            // A pattern that is none, so that nobody is thrown out.
            within: Some(nonsense()),
        });
    }
    for connection in [0, u128::MAX] {
        all.push(Ask::Goodbye { connection });
        all.push(Ask::Kick {
            connection,
            block_secs: FAR,
            within: None,
        });
    }
    for room in ["blog:1", "user:7", "", "no room"] {
        for (after, limit) in [(None, u32::MAX), (Some(u128::MAX), u32::MAX), (Some(0), 0)] {
            let room = room.to_owned();
            all.push(Ask::InRoom { room, after, limit });
        }
        let prefix = room.to_owned();
        all.push(Ask::Personal { prefix });
        let rooms = vec![room.to_owned(); 5_000];
        all.push(Ask::Users { rooms });
    }
    for user in ["nobody", "", "a b"] {
        for (only_ask, within) in [(true, None), (false, None), (false, Some(nonsense()))] {
            let user = user.to_owned();
            all.push(Ask::KickUser {
                user,
                block_secs: FAR,
                within,
                only_ask,
            });
        }
    }
    all
}

/// A connection in the place of a reply: id, user, viewer, since when, until when, patterns, rooms.
type Shown<'a> = (
    u128,
    Option<&'a str>,
    Option<&'a str>,
    u64,
    u64,
    Option<Vec<&'a str>>,
    Vec<&'a str>,
    Vec<&'a str>,
);

/// Every reply there is, at the ends of its numbers.
pub(crate) fn replies() -> Vec<Vec<u8>> {
    let far: Shown<'_> = (
        u128::MAX,
        None,
        Some("anna"),
        FAR,
        FAR,
        None,
        vec!["blog:1"],
        vec![],
    );
    let old: Shown<'_> = (0, Some("7"), None, 0, 0, Some(vec!["*"]), vec![], vec![]);
    let wrong: Shown<'_> = (
        1,
        Some(""),
        Some("a b"),
        1,
        1,
        Some(vec!["("]),
        vec!["?"],
        vec![],
    );
    let mut all = Vec::new();
    for shown in [&far, &old, &wrong] {
        all.push(bytes(&(2_u32, shown)));
        all.push(bytes(&(3_u32, vec![shown; 1_000], true)));
    }
    all.push(bytes(&(4_u32, vec![("user:7", u32::MAX); 3])));
    all.push(bytes(&(4_u32, vec![("no room", u32::MAX)])));
    all.push(bytes(&(7_u32, "no room")));
    all.push(bytes(&(7_u32, "blog:1")));
    all.extend([0_u32, 1, 5, 6].map(|variant| bytes(&variant)));
    all
}

/// Minutes that cannot have been.
pub(crate) fn minutes(now_min: u32) -> Vec<Vec<u8>> {
    type Range = (u32, u64, u32);
    let most: Range = (u32::MAX, FAR, u32::MAX);
    let wrong: Range = (u32::MAX, 0, 0);
    let mut all = Vec::new();
    for at in [0, now_min - 1, now_min, u32::MAX] {
        for range in [most, wrong, (0, FAR, u32::MAX)] {
            for rooms in [1, 501] {
                let step = (Some("blog:1"), range, range);
                all.push(bytes(&(2_u32, FAR, at, vec![step; rooms])));
            }
        }
    }
    all
}
