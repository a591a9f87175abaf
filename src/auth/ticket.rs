//! Tickets: signed permission to open, and to reopen, one connection's stream by plain `GET`.
//!
//! A ticket says everything that a node needs, so any node accepts it and none remembers it:
//! `lct1.` and base64url of a compact record and its HMAC-SHA256. It is no JWT, and its key is
//! never a token's key, so neither ever passes for the other.

use std::{fmt, sync::Arc};

use aws_lc_rs::{hkdf, hmac};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::token;
use crate::hub::{
    ConnectionId, Fingerprint, Fingerprints, Identity, MEMBER, Patterns, RoomId, UserId, ViewerName,
};

/// What every ticket starts with.
pub const PREFIX: &str = "lct1.";
/// Longest ticket, in characters; a URL that holds it stays below what proxies take.
pub const MAX_CHARS: usize = 4_000;
/// Bytes of HMAC-SHA256, all of them kept.
const TAG_BYTES: usize = 32;

/// What a ticket permits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The connection whose stream it opens.
    pub connection: ConnectionId,
    /// Who is counted.
    pub identity: Identity,
    /// Rooms to join, the personal one aside.
    pub rooms: Vec<RoomId>,
    /// Rooms to watch.
    pub watching: Vec<RoomId>,
    /// The token's `rooms` claim, where it had one.
    pub grants: Option<Arc<Patterns>>,
    /// Its end, in seconds of Unix time; the stream ends with it.
    pub expires_unix: u64,
}

impl Ticket {
    /// True where its viewer may join and read `room` beyond what anybody may: by what the token
    /// granted, without a `rooms` claim every blog; the own personal room always.
    #[must_use]
    pub fn opens(&self, room: &RoomId) -> bool {
        self.identity
            .user()
            .is_some_and(|user| token::opens(user, self.grants.as_deref(), room))
    }
}

/// Why a text is no ticket that may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidTicket {
    /// It does not start with `lct1.`, is cut short, or was not signed with a key of this
    /// service.
    #[error("the ticket was not issued by this service")]
    Forged,
    /// It was issued here and its time is over.
    #[error("the ticket has expired")]
    Expired,
}

/// The ticket would be longer than [`MAX_CHARS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rooms and patterns do not fit a ticket of {MAX_CHARS} characters")]
pub struct TooLarge;

/// The keys: the first signs, all verify.
#[derive(Clone)]
pub struct TicketKeys(Arc<[hmac::Key]>);

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TicketKeys({} hidden)", self.0.len())
    }
}

/// Every node has the same keys, so a viewer has the same name on all of them. While keys are
/// rotated a viewer with tabs on an old and a new node counts once on each.
impl Fingerprints for TicketKeys {
    fn identity(&self, identity: &Identity) -> Option<Fingerprint> {
        match identity {
            Identity::Connection => None,
            Identity::Chosen(name) => Some(self.fingerprint(b'v', name.as_str().as_bytes())),
            Identity::Member(user) => Some(self.fingerprint(MEMBER, user.as_str().as_bytes())),
        }
    }
}

impl TicketKeys {
    /// Of a name of some kind: the kind, then the first 96 bits of an HMAC.
    fn fingerprint(&self, kind: u8, name: &[u8]) -> Fingerprint {
        let mut fingerprint = [kind; 13];
        if let Some(key) = self.0.first() {
            // No ticket's record begins so: what is signed here never passes for one.
            let mut signing = hmac::Context::with_key(key);
            signing.update(b"\xffviewer");
            signing.update(&[kind]);
            signing.update(name);
            let tag = signing.sign();
            fingerprint[1..].copy_from_slice(&tag.as_ref()[..12]);
        }
        fingerprint
    }
}

/// The record inside; field order is the format, so a change needs another [`PREFIX`].
#[derive(Serialize, Deserialize)]
struct Record<'a> {
    connection: u128,
    expires_unix: u64,
    viewer: Viewer<'a>,
    #[serde(borrow)]
    rooms: Vec<&'a str>,
    #[serde(borrow)]
    watching: Vec<&'a str>,
    grants: Option<Vec<std::borrow::Cow<'a, str>>>,
}

#[derive(Serialize, Deserialize)]
enum Viewer<'a> {
    Connection,
    Chosen(&'a str),
    Member(&'a str),
}

impl TicketKeys {
    /// Takes the keys as configured: the first signs, all verify.
    #[must_use]
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let keys = secrets
            .into_iter()
            .map(|secret| hmac::Key::new(hmac::HMAC_SHA256, secret));
        Self(keys.collect())
    }

    /// Derives the keys from the JWT secrets (HKDF-SHA256, RFC 5869), so that a deployment needs
    /// one secret only and still no ticket can pass for a token.
    ///
    /// # Panics
    ///
    /// Never: 32 bytes are far below what HKDF can give.
    #[must_use]
    pub fn derived<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"livecount");
        let keys = secrets.into_iter().map(|secret| {
            let derived = salt.extract(secret);
            let info = [&b"ticket 1"[..]];
            let material = derived
                .expand(&info, hmac::HMAC_SHA256)
                .expect("HKDF-SHA256 gives up to 8,160 bytes");
            hmac::Key::from(material)
        });
        Self(keys.collect())
    }

    /// True where the ticket can be issued.
    #[must_use]
    pub fn fits(&self, ticket: &Ticket) -> bool {
        record_bytes(ticket).is_some_and(|bytes| {
            PREFIX.len() + base64::encoded_len(bytes.len() + TAG_BYTES, false).unwrap_or(usize::MAX)
                <= MAX_CHARS
        })
    }

    /// Writes and signs a ticket.
    ///
    /// # Errors
    ///
    /// [`TooLarge`] when it would be longer than [`MAX_CHARS`].
    pub fn issue(&self, ticket: &Ticket) -> Result<String, TooLarge> {
        let mut bytes = record_bytes(ticket).ok_or(TooLarge)?;
        let key = self.0.first().ok_or(TooLarge)?;
        bytes.extend_from_slice(hmac::sign(key, &bytes).as_ref());
        let encoded = base64::encoded_len(bytes.len(), false).ok_or(TooLarge)?;
        let mut text = String::with_capacity(PREFIX.len() + encoded);
        text.push_str(PREFIX);
        BASE64_URL_SAFE_NO_PAD.encode_string(&bytes, &mut text);
        if text.len() > MAX_CHARS {
            return Err(TooLarge);
        }
        Ok(text)
    }

    /// Reads a ticket that this service issued and that still holds at `now_unix` seconds.
    ///
    /// # Errors
    ///
    /// When it was not issued here, or has expired.
    pub fn redeem(&self, text: &str, now_unix: u64) -> Result<Ticket, InvalidTicket> {
        let bytes = self.verified(text).ok_or(InvalidTicket::Forged)?;
        let ticket = read(&bytes).ok_or(InvalidTicket::Forged)?;
        if ticket.expires_unix <= now_unix {
            return Err(InvalidTicket::Expired);
        }
        Ok(ticket)
    }

    fn verified(&self, text: &str) -> Option<Vec<u8>> {
        let encoded = text.strip_prefix(PREFIX)?;
        if text.len() > MAX_CHARS {
            return None;
        }
        let mut bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).ok()?;
        let length = bytes.len().checked_sub(TAG_BYTES)?;
        let (record, tag) = bytes.split_at(length);
        let genuine = self
            .0
            .iter()
            .any(|key| hmac::verify(key, record, tag).is_ok());
        bytes.truncate(length);
        genuine.then_some(bytes)
    }
}

fn record_bytes(ticket: &Ticket) -> Option<Vec<u8>> {
    let record = Record {
        connection: ticket.connection.to_bits(),
        expires_unix: ticket.expires_unix,
        viewer: match &ticket.identity {
            Identity::Connection => Viewer::Connection,
            Identity::Chosen(name) => Viewer::Chosen(name.as_str()),
            Identity::Member(user) => Viewer::Member(user.as_str()),
        },
        rooms: ticket.rooms.iter().map(RoomId::as_str).collect(),
        watching: ticket.watching.iter().map(RoomId::as_str).collect(),
        grants: ticket
            .grants
            .as_ref()
            .map(|grants| grants.iter().map(Into::into).collect()),
    };
    // Room for one name or two, and for the tag.
    postcard::to_extend(&record, Vec::with_capacity(160)).ok()
}

/// Everything is parsed again although it is signed: a key that leaked elsewhere must not make
/// names that cannot be.
fn read(bytes: &[u8]) -> Option<Ticket> {
    let record: Record<'_> = postcard::from_bytes(bytes).ok()?;
    let rooms = |names: &[&str]| -> Option<Vec<RoomId>> {
        names.iter().map(|name| RoomId::parse(name).ok()).collect()
    };
    Some(Ticket {
        connection: ConnectionId::from_bits(record.connection),
        identity: match record.viewer {
            Viewer::Connection => Identity::Connection,
            Viewer::Chosen(name) => Identity::Chosen(ViewerName::parse(name).ok()?),
            Viewer::Member(user) => Identity::Member(UserId::parse(user).ok()?),
        },
        rooms: rooms(&record.rooms)?,
        watching: rooms(&record.watching)?,
        grants: match record.grants {
            None => None,
            Some(patterns) => {
                let patterns = Patterns::parse(patterns.iter().map(AsRef::as_ref));
                Some(Arc::new(patterns.ok()?))
            }
        },
        expires_unix: record.expires_unix,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECRET: &[u8] = b"a secret of thirty-two bytes ....";

    fn keys() -> TicketKeys {
        TicketKeys::derived([SECRET])
    }

    fn ticket() -> Ticket {
        Ticket {
            connection: ConnectionId::random(),
            identity: Identity::Member(UserId::parse("7").unwrap()),
            rooms: vec![RoomId::parse("blog:42").unwrap()],
            watching: vec![RoomId::parse("match:1").unwrap()],
            grants: Some(Arc::new(Patterns::parse(["blog:*", "match:1"]).unwrap())),
            expires_unix: 1_000,
        }
    }

    #[test]
    fn a_ticket_comes_back_as_issued() {
        let issued = ticket();
        let text = keys().issue(&issued).unwrap();
        assert!(text.starts_with("lct1."));
        assert_eq!(keys().redeem(&text, 999), Ok(issued));
    }

    #[test]
    fn an_expired_ticket_is_told_from_a_forged_one() {
        let text = keys().issue(&ticket()).unwrap();
        assert_eq!(keys().redeem(&text, 1_000), Err(InvalidTicket::Expired));
        let foreign = TicketKeys::new([&b"another key of thirty-two bytes."[..]]);
        assert_eq!(foreign.redeem(&text, 1), Err(InvalidTicket::Forged));
    }

    #[test]
    fn the_jwt_secret_itself_signs_no_ticket() {
        let text = TicketKeys::new([SECRET]).issue(&ticket()).unwrap();
        assert_eq!(keys().redeem(&text, 1), Err(InvalidTicket::Forged));
    }

    #[test]
    fn after_a_rotation_the_older_key_still_verifies() {
        let old = TicketKeys::new([SECRET]);
        let both = TicketKeys::new([&b"the new key, thirty-two bytes too"[..], SECRET]);
        let text = old.issue(&ticket()).unwrap();
        assert!(both.redeem(&text, 1).is_ok());
        assert!(old.redeem(&both.issue(&ticket()).unwrap(), 1).is_err());
    }

    #[test]
    fn what_does_not_fit_is_refused_whole() {
        let mut large = ticket();
        let name = |n: usize| RoomId::blog(&format!("{n:0>100}")).unwrap();
        large.watching = (0..20).map(name).collect();
        assert!(keys().issue(&large).unwrap().len() <= MAX_CHARS);
        assert!(keys().fits(&large));
        large.watching = (0..40).map(name).collect();
        assert_eq!(keys().issue(&large), Err(TooLarge));
        assert!(!keys().fits(&large));
    }

    #[test]
    fn debug_shows_no_key() {
        assert_eq!(format!("{:?}", keys()), "TicketKeys(1 hidden)");
    }

    proptest! {
        #[test]
        fn no_text_panics_and_none_passes(text in "(lct1\\.)?[A-Za-z0-9_.-]{0,200}") {
            prop_assert_eq!(keys().redeem(&text, 1), Err(InvalidTicket::Forged));
        }

        #[test]
        fn one_changed_character_spoils_it(at in 5usize..150, to in "[A-Za-z0-9_-]") {
            let text = keys().issue(&ticket()).unwrap();
            let at = at.min(text.len() - 2);
            let mut forged = text.clone();
            forged.replace_range(at..=at, &to);
            prop_assume!(forged != text);
            prop_assert_eq!(keys().redeem(&forged, 1), Err(InvalidTicket::Forged));
        }

        #[test]
        fn signed_rubbish_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let keys = keys();
            let mut bytes = bytes;
            let tag = hmac::sign(&keys.0[0], &bytes);
            bytes.extend_from_slice(tag.as_ref());
            let text = format!("{PREFIX}{}", BASE64_URL_SAFE_NO_PAD.encode(&bytes));
            // It may happen to be a well-formed record; it must not panic.
            let _ = keys.redeem(&text, 1);
        }
    }
}
