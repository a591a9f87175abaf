//! Names of rooms, viewers, users and connections: parsed at the door, never blank.
//!
//! A value of one of these types is valid by construction; nothing further in checks again.

use std::{fmt, sync::Arc};

/// Longest name of a room within its kind, and of a user: 128 characters.
pub const MAX_NAME: usize = 128;
/// Longest name that a client may choose for its viewer: 64 characters.
pub const MAX_VIEWER: usize = 64;
/// Longest kind of a room: 32 characters.
pub const MAX_KIND: usize = 32;

const BLOG: &str = "blog:";
const USER: &str = "user:";

/// Says why a text is no name, in words fit for whoever sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing was given.
    #[error("it is empty")]
    Empty,
    /// More characters than allowed.
    #[error("it is longer than {0} characters")]
    TooLong(usize),
    /// A character outside `A-Z a-z 0-9 . _ ~ - : @ | +`.
    #[error("it holds a character outside A-Z a-z 0-9 . _ ~ - : @ | +")]
    Character,
    /// A room without `kind:` before its name.
    #[error("a room is written kind:name, as in blog:42")]
    NoKind,
    /// A kind that does not match `[a-z][a-z0-9_-]{0,31}`.
    #[error("its kind must match [a-z][a-z0-9_-]{{0,31}}")]
    Kind,
}

/// True for what may stand in a name.
pub(crate) fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'.' | b'_' | b'~' | b'-' | b':' | b'@' | b'|' | b'+')
}

fn check_name(name: &str, longest: usize) -> Result<(), InvalidName> {
    if name.is_empty() {
        Err(InvalidName::Empty)
    } else if !name.bytes().all(is_name_byte) {
        Err(InvalidName::Character)
    } else if name.len() > longest {
        Err(InvalidName::TooLong(longest))
    } else {
        Ok(())
    }
}

pub(crate) fn check_kind(kind: &str) -> Result<(), InvalidName> {
    let mut bytes = kind.bytes();
    let starts_well = bytes.next().is_some_and(|first| first.is_ascii_lowercase());
    let goes_on_well = bytes
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte));
    if starts_well && goes_on_well && kind.len() <= MAX_KIND {
        Ok(())
    } else {
        Err(InvalidName::Kind)
    }
}

/// What has a count: `kind:name`. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RoomId(Arc<str>);

impl RoomId {
    /// Reads `kind:name`, split at the first `:`.
    ///
    /// # Errors
    ///
    /// When the kind or the name is missing, too long or holds a foreign character.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let (kind, name) = text.split_once(':').ok_or(InvalidName::NoKind)?;
        check_kind(kind)?;
        check_name(name, MAX_NAME)?;
        Ok(Self(text.into()))
    }

    /// The room of a blog: `blog:{blog_id}`.
    ///
    /// # Errors
    ///
    /// When `blog_id` is no name of 1 to 128 characters.
    pub fn blog(blog_id: &str) -> Result<Self, InvalidName> {
        check_name(blog_id, MAX_NAME)?;
        Ok(Self(format!("{BLOG}{blog_id}").into()))
    }

    /// The personal room of a user: `user:{user_id}`.
    #[must_use]
    pub fn personal(user: &UserId) -> Self {
        Self(format!("{USER}{}", user.as_str()).into())
    }

    /// The whole name, `kind:name`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The blog's id where this is a blog's room.
    #[must_use]
    pub fn blog_id(&self) -> Option<&str> {
        self.0.strip_prefix(BLOG)
    }

    /// The user whose personal room this is.
    #[must_use]
    pub fn user(&self) -> Option<UserId> {
        self.0.strip_prefix(USER).map(|name| UserId(name.into()))
    }

    /// True for a user's personal room.
    #[must_use]
    pub fn is_personal(&self) -> bool {
        self.0.starts_with(USER)
    }
}

impl fmt::Debug for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RoomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a token speaks for: its `sub`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(Arc<str>);

impl UserId {
    /// Reads a name of 1 to 128 characters.
    ///
    /// # Errors
    ///
    /// When it is empty, too long or holds a foreign character.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, MAX_NAME)?;
        Ok(Self(text.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The id that a client without a token chose for its viewer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ViewerName(Arc<str>);

impl ViewerName {
    /// Reads a name of 1 to 64 characters.
    ///
    /// # Errors
    ///
    /// When it is empty, too long or holds a foreign character.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        check_name(text, MAX_VIEWER)?;
        Ok(Self(text.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// One open stream's name: 128 random bits, written as 32 hexadecimal digits. Names no node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(u128);

impl ConnectionId {
    /// Draws a fresh id from the thread's cryptographic generator.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// Reads 32 lower-case hexadecimal digits.
    ///
    /// # Errors
    ///
    /// [`InvalidName::Character`] for anything else.
    pub fn parse(text: &str) -> Result<Self, InvalidName> {
        let well_formed = text.len() == 32
            && text
                .bytes()
                .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if !well_formed {
            return Err(InvalidName::Character);
        }
        u128::from_str_radix(text, 16)
            .map(Self)
            .map_err(|_| InvalidName::Character)
    }

    /// The bits, as a ticket carries them.
    #[must_use]
    pub fn to_bits(self) -> u128 {
        self.0
    }

    /// The id of these bits.
    #[must_use]
    pub const fn from_bits(bits: u128) -> Self {
        Self(bits)
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who is counted: a member by token, a viewer by the id it chose, or the connection itself.
/// The kinds never compare equal, whatever their names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Identity {
    /// Nobody in particular: each connection is a viewer of its own.
    Connection,
    /// The id that the client chose; anybody can choose any.
    Chosen(ViewerName),
    /// The token's `sub`; cannot be forged.
    Member(UserId),
}

impl Identity {
    /// The user, where a token named one.
    #[must_use]
    pub fn user(&self) -> Option<&UserId> {
        match self {
            Self::Member(user) => Some(user),
            Self::Chosen(_) | Self::Connection => None,
        }
    }

    /// The id that the client chose, where it did.
    #[must_use]
    pub fn chosen(&self) -> Option<&ViewerName> {
        match self {
            Self::Chosen(name) => Some(name),
            Self::Member(_) | Self::Connection => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_room_splits_at_the_first_colon() {
        let room = RoomId::parse("blog:a:b").unwrap();
        assert_eq!(room.blog_id(), Some("a:b"));
        assert_eq!(RoomId::blog("a:b").unwrap(), room);
    }

    #[test]
    fn what_is_no_room_is_refused_with_its_cause() {
        assert_eq!(RoomId::parse("blog"), Err(InvalidName::NoKind));
        assert_eq!(RoomId::parse("Blog:1"), Err(InvalidName::Kind));
        assert_eq!(RoomId::parse(":1"), Err(InvalidName::Kind));
        assert_eq!(RoomId::parse("blog:"), Err(InvalidName::Empty));
        assert_eq!(RoomId::parse("blog:a b"), Err(InvalidName::Character));
        assert_eq!(RoomId::parse("blog:ä"), Err(InvalidName::Character));
        let long = format!("blog:{}", "a".repeat(129));
        assert_eq!(RoomId::parse(&long), Err(InvalidName::TooLong(128)));
    }

    #[test]
    fn a_connection_id_reads_back_as_written_and_only_so() {
        let id = ConnectionId::random();
        assert_eq!(ConnectionId::parse(&id.to_string()), Ok(id));
        assert!(ConnectionId::parse("+0000000000000000000000000000001").is_err());
        assert!(
            ConnectionId::parse(
                &id.to_string()
                    .to_uppercase()
                    .replace(|c: char| c.is_ascii_digit(), "A")
            )
            .is_err()
        );
    }
}
