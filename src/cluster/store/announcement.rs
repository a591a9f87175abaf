//! Announcements: changed totals of many rooms, told to every node.

use std::str::SplitAsciiWhitespace;

use super::{Claim, Epoch, Incarnation, Total, numbers::is_room, unhex};

/// What changed since the announcement before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announcement {
    /// The epoch it belongs to.
    pub epoch: Epoch,
    /// Its number in that epoch. A number left out is a loss: the totals have to be read again.
    pub version: u64,
    /// Which batches these totals hold: the last one of each node that flushed since the
    /// announcement before. For the others those of before still hold.
    pub applied: Vec<(Incarnation, u64)>,
    /// New claims, in their order.
    pub claims: Vec<Claim>,
    /// Changed rooms, as of now.
    pub rooms: Vec<(String, Total)>,
}

impl Announcement {
    /// Reads an announcement; none for anything else.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?.strip_suffix('\n')?;
        let mut lines = text.split('\n');
        let mut head = lines.next()?.strip_prefix("1 ")?.split_ascii_whitespace();
        let mut announcement = Self {
            epoch: head.next()?.parse().ok()?,
            version: head.next()?.parse().ok()?,
            applied: Vec::new(),
            claims: Vec::new(),
            rooms: Vec::new(),
        };
        head.next().is_none().then_some(())?;
        for line in lines {
            let (kind, rest) = line.split_once(' ')?;
            let mut words = rest.split_ascii_whitespace();
            announcement.take(kind, &mut words)?;
            words.next().is_none().then_some(())?;
        }
        Some(announcement)
    }

    fn take(&mut self, kind: &str, words: &mut SplitAsciiWhitespace<'_>) -> Option<()> {
        match kind {
            "a" => self
                .applied
                .push((words.next()?.parse().ok()?, words.next()?.parse().ok()?)),
            "c" => self.claims.push(Claim {
                number: words.next()?.parse().ok()?,
                connection: unhex(words.next()?)?,
                holder: words.next()?.parse().ok()?,
            }),
            "r" => {
                let room = words.next()?;
                is_room(room).then_some(())?;
                let total = Total {
                    connections: words.next()?.parse().ok()?,
                    viewers: words.next()?.parse().ok()?,
                    members: words.next()?.parse().ok()?,
                };
                self.rooms.push((room.to_owned(), total));
            }
            _ => return None,
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::Announcement;

    const WHOLE: &str = "1 00000000000000aa 7\na 00000000000000bb 3\n\
        c 9 000102030405060708090a0b0c0d0e0f1011121314151617 00000000000000bb\nr blog:1 3 2 1\nr * 4 4 0\n";

    #[test]
    fn an_announcement_says_version_batches_claims_and_rooms() {
        let read = Announcement::parse(WHOLE.as_bytes()).expect("it is whole");
        assert_eq!(read.epoch.to_string(), "00000000000000aa");
        assert_eq!(read.version, 7);
        assert_eq!(read.applied[0].1, 3);
        assert_eq!(read.claims[0].connection[23], 23);
        assert_eq!(read.rooms[0].1.viewers, 2);
        assert_eq!(read.rooms[1].0, "*");
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_reading_panic(bytes: Vec<u8>) {
            let _ = Announcement::parse(&bytes);
        }

        /// Every prefix of an announcement but at a line's end is refused; and whatever replaces
        /// one byte, what is read never panics and holds names only.
        #[test]
        fn a_changed_announcement_is_refused_or_still_one(at in 0..WHOLE.len(), byte: u8) {
            let mut bytes = WHOLE.as_bytes().to_vec();
            bytes[at] = byte;
            if let Some(read) = Announcement::parse(&bytes) {
                for (room, _) in read.rooms {
                    proptest::prop_assert!(!room.contains(char::is_whitespace));
                }
            }
            let cut = Announcement::parse(&WHOLE.as_bytes()[..at]);
            let at_line_end = at > 0 && WHOLE.as_bytes()[at - 1] == b'\n';
            proptest::prop_assert_eq!(cut.is_some(), at_line_end);
        }
    }
}
