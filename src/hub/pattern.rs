//! Patterns: which rooms somebody may join, read, publish to or manage.
//!
//! A pattern is a room's full name, or a prefix with one final `*`. A prefix never covers a
//! personal room; whether a full name does is the question's to say.

use super::id::{InvalidName, MAX_KIND, MAX_NAME, RoomId, check_kind, is_name_byte};

/// Most patterns in one set.
pub const MAX_PATTERNS: usize = 16;
/// Most characters in one set, all patterns together.
pub const MAX_PATTERN_CHARS: usize = 1_000;

/// Says why a set of patterns was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPatterns {
    /// More than [`MAX_PATTERNS`].
    #[error("more than {MAX_PATTERNS} room patterns")]
    TooMany,
    /// More than [`MAX_PATTERN_CHARS`] characters together.
    #[error("room patterns of more than {MAX_PATTERN_CHARS} characters together")]
    TooLong,
    /// Neither a room's full name nor a prefix with one final `*`.
    #[error("the room pattern {0:?} is neither a room's full name nor a prefix with one final *")]
    Pattern(String),
}

/// A set of patterns. Empty covers nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Patterns(Vec<Pattern>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exactly(RoomId),
    Prefix(Box<str>),
}

impl Patterns {
    /// Reads a set of patterns.
    ///
    /// # Errors
    ///
    /// When there are too many, they are too long together, or one is malformed.
    pub fn parse<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, InvalidPatterns> {
        let mut set = Vec::new();
        let mut chars = 0;
        for text in patterns {
            chars += text.len();
            if set.len() == MAX_PATTERNS {
                return Err(InvalidPatterns::TooMany);
            }
            if chars > MAX_PATTERN_CHARS {
                return Err(InvalidPatterns::TooLong);
            }
            set.push(
                Pattern::parse(text)
                    .map_err(|_| InvalidPatterns::Pattern(text.chars().take(MAX_NAME).collect()))?,
            );
        }
        Ok(Self(set))
    }

    /// Every blog: `blog:*`, what a token without a `rooms` claim may join and read.
    #[must_use]
    pub fn every_blog() -> Self {
        Self(vec![Pattern::Prefix("blog:".into())])
    }

    /// True where the set is empty and covers nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// True where `room` may be joined and read. Never true for a personal room: one's own is
    /// open without a pattern, another's never is.
    #[must_use]
    pub fn open(&self, room: &RoomId) -> bool {
        !room.is_personal() && self.cover(room)
    }

    /// True where `room` is named in full or by a prefix; a prefix covers no personal room.
    #[must_use]
    pub fn cover(&self, room: &RoomId) -> bool {
        self.0.iter().any(|pattern| match pattern {
            Pattern::Exactly(named) => named == room,
            Pattern::Prefix(prefix) => !room.is_personal() && room.as_str().starts_with(&**prefix),
        })
    }

    /// The patterns as written.
    pub fn iter(&self) -> impl Iterator<Item = String> + '_ {
        self.0.iter().map(|pattern| match pattern {
            Pattern::Exactly(room) => room.to_string(),
            Pattern::Prefix(prefix) => format!("{prefix}*"),
        })
    }
}

impl Pattern {
    fn parse(text: &str) -> Result<Self, InvalidName> {
        let Some(prefix) = text.strip_suffix('*') else {
            return RoomId::parse(text).map(Self::Exactly);
        };
        match prefix.split_once(':') {
            Some((kind, name)) => {
                check_kind(kind)?;
                if !name.bytes().all(is_name_byte) {
                    return Err(InvalidName::Character);
                }
                if name.len() > MAX_NAME {
                    return Err(InvalidName::TooLong(MAX_NAME));
                }
            }
            None if prefix.is_empty() => {}
            None => check_kind(prefix)?,
        }
        debug_assert!(prefix.len() <= MAX_KIND + 1 + MAX_NAME);
        Ok(Self::Prefix(prefix.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    #[test]
    fn a_prefix_covers_what_starts_so_and_no_personal_room() {
        let patterns = Patterns::parse(["*"]).unwrap();
        assert!(patterns.cover(&room("blog:1")));
        assert!(!patterns.cover(&room("user:1")));
        let patterns = Patterns::parse(["user:*", "us*", "blog:4*"]).unwrap();
        assert!(!patterns.cover(&room("user:1")));
        assert!(patterns.cover(&room("blog:42")));
        assert!(!patterns.cover(&room("blog:5")));
    }

    #[test]
    fn a_full_name_of_a_personal_room_covers_it_but_does_not_open_it() {
        let patterns = Patterns::parse(["user:8"]).unwrap();
        assert!(patterns.cover(&room("user:8")));
        assert!(!patterns.open(&room("user:8")));
        assert!(!patterns.cover(&room("user:80")));
    }

    #[test]
    fn malformed_long_and_numerous_patterns_are_refused() {
        for bad in ["", "blog", "b*g:*", "Blog:*", "blog:*1", "**", "blog:a b*"] {
            assert!(Patterns::parse([bad]).is_err(), "{bad}");
        }
        assert_eq!(
            Patterns::parse(["blog:1"; 17]),
            Err(InvalidPatterns::TooMany)
        );
        let long = format!("blog:{}", "a".repeat(120));
        assert_eq!(
            Patterns::parse([long.as_str(); 9]),
            Err(InvalidPatterns::TooLong)
        );
    }
}
