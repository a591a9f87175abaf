//! The events of a stream as `text/event-stream` bytes.
//!
//! Format: HTML standard, "Server-sent events", section 9.2.6. Data is always one line of JSON,
//! so no value here may hold a line break; names of rooms cannot, and what publishers send is
//! freed of them in [`message`].

use std::{io::Write, time::Duration};

use serde::Serialize;

use crate::hub::{Encode, Frame, Occupancy, Position, Reason, RoomId};

/// A room's numbers as every JSON answer and every `count` event shows them.
#[derive(Debug, Clone, Serialize)]
pub struct Count<'a> {
    room: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    blog_id: Option<&'a str>,
    viewers: u32,
    connections: u32,
    members: u32,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

impl<'a> Count<'a> {
    /// The numbers of `room`.
    #[must_use]
    pub fn of(room: &'a RoomId, occupancy: Occupancy) -> Self {
        Self {
            room: room.as_str(),
            blog_id: room.blog_id(),
            viewers: occupancy.viewers,
            connections: occupancy.connections,
            members: occupancy.members,
            partial: occupancy.partial,
        }
    }
}

/// What `connected` says; times in whole seconds.
#[derive(Debug, Serialize)]
pub struct Connected<'a> {
    /// The connection's id.
    pub connection: String,
    /// The token's `sub`, if there was a token.
    pub user_id: Option<&'a str>,
    /// Joined rooms, the personal one last.
    pub rooms: Vec<&'a str>,
    /// Watched rooms.
    pub watching: Vec<&'a str>,
    /// Permission to open this stream again.
    pub ticket: &'a str,
    /// Where to open it again.
    pub stream_url: &'a str,
    /// Until the stream ends.
    pub expires_in: u64,
    /// Between two `ping`s on a quiet stream.
    pub heartbeat: u64,
}

#[derive(Serialize)]
struct InRoom<'a> {
    room: &'a str,
}

#[derive(Serialize)]
struct ExpiresIn {
    expires_in: u64,
}

#[derive(Serialize)]
struct Closed {
    reason: &'static str,
}

/// Encodes counts for the hub.
#[derive(Debug, Clone, Copy)]
pub struct Encoder;

impl Encode for Encoder {
    fn count(&self, room: &RoomId, occupancy: Occupancy) -> Frame {
        let mut text = Text::default();
        text.count(room, occupancy);
        Frame::of(text.as_bytes())
    }
}

/// The frame of one message: `event` is the publisher's name for it, `data` one line of JSON.
#[must_use]
pub fn message(event: &str, room: &RoomId, data: &str, id: Position) -> Frame {
    debug_assert!(!data.contains(['\n', '\r']), "data is one line");
    let text =
        format!("event: {event}\nid: {id}\ndata: {{\"room\":\"{room}\",\"data\":{data}}}\n\n");
    Frame::of(text.as_bytes())
}

/// The `ping` of a quiet stream.
pub const PING: &str = "event: ping\ndata: {}\n\n";

/// Events of one stream, gathered for one write.
#[derive(Debug, Default)]
pub struct Text(Vec<u8>);

impl Text {
    /// No events yet, with room for so many bytes.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    /// True where nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes, given away.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// How long an `EventSource` waits before it comes back.
    pub fn retry(&mut self, wait: Duration) {
        self.line(format_args!("retry: {}\n\n", wait.as_millis()));
    }

    /// `connected`, with the position at which the stream starts.
    pub fn connected(&mut self, connected: &Connected<'_>, position: Position) {
        self.event("connected", Some(position), connected);
    }

    /// `count`.
    pub fn count(&mut self, room: &RoomId, occupancy: Occupancy) {
        self.event("count", None, &Count::of(room, occupancy));
    }

    /// `joined`.
    pub fn joined(&mut self, room: &RoomId) {
        self.room_event("joined", room);
    }

    /// `left`.
    pub fn left(&mut self, room: &RoomId) {
        self.room_event("left", room);
    }

    /// `reset`.
    pub fn reset(&mut self, room: &RoomId) {
        self.room_event("reset", room);
    }

    /// `expiring`.
    pub fn expiring(&mut self, left: Duration) {
        let expires_in = whole_seconds(left);
        self.event("expiring", None, &ExpiresIn { expires_in });
    }

    /// `ping`.
    pub fn ping(&mut self) {
        self.0.extend_from_slice(PING.as_bytes());
    }

    /// `closed`, after the wait that its reason asks of an `EventSource`.
    pub fn closed(&mut self, reason: Reason) {
        if let Some(wait) = wait_after(reason) {
            self.retry(wait);
        }
        let reason = reason.as_str();
        self.event("closed", None, &Closed { reason });
    }

    fn room_event(&mut self, name: &str, room: &RoomId) {
        let room = room.as_str();
        self.event(name, None, &InRoom { room });
    }

    fn event(&mut self, name: &str, id: Option<Position>, data: &impl Serialize) {
        match id {
            Some(id) => self.line(format_args!("event: {name}\nid: {id}\ndata: ")),
            None => self.line(format_args!("event: {name}\ndata: ")),
        }
        // What is serialized here holds only strings and numbers, which always succeed.
        let _ = serde_json::to_writer(&mut self.0, data);
        self.0.extend_from_slice(b"\n\n");
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a Vec cannot fail.
        let _ = self.0.write_fmt(text);
    }
}

/// The wait that a new stream asks for: 1 to 3 s, so that readers cut off together do not come
/// back together.
#[must_use]
pub fn first_wait() -> Duration {
    Duration::from_millis(rand::random_range(1_000..=3_000))
}

/// The wait after a soft refusal, from the contract: 5 to 30 s.
#[must_use]
pub fn refusal_wait() -> Duration {
    Duration::from_millis(rand::random_range(5_000..=30_000))
}

/// How long an `EventSource` should stay away after this end; `None` leaves it as it was.
fn wait_after(reason: Reason) -> Option<Duration> {
    let milliseconds = match reason {
        Reason::Replaced | Reason::Kicked => 30_000..=60_000,
        Reason::Overloaded => 5_000..=30_000,
        // Where a node restarts its readers should be back soon, and not all at once.
        Reason::Shutdown => 1_000..=10_000,
        Reason::Expired | Reason::Slow | Reason::Left => return None,
    };
    Some(Duration::from_millis(rand::random_range(milliseconds)))
}

/// A soft refusal: 200, this, and the end, since `EventSource` never recovers from another
/// status.
#[must_use]
pub fn refusal(reason: Reason) -> Vec<u8> {
    let mut text = Text::default();
    text.retry(refusal_wait());
    let reason = reason.as_str();
    text.event("closed", None, &Closed { reason });
    text.into_bytes()
}

/// Rounds up, so that what still lasts is never shown as 0.
#[must_use]
pub fn whole_seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    #[test]
    fn a_count_is_one_event_and_names_the_blog() {
        let occupancy = Occupancy {
            viewers: 2,
            connections: 3,
            members: 1,
            partial: false,
        };
        let frame = Encoder.count(&room("blog:42"), occupancy);
        assert_eq!(
            frame.payload(),
            "event: count\ndata: {\"room\":\"blog:42\",\"blog_id\":\"42\",\"viewers\":2,\"connections\":3,\"members\":1}\n\n"
        );
        let frame = Encoder.count(&room("match:42"), occupancy);
        assert!(!String::from_utf8_lossy(&frame.payload()).contains("blog_id"));
    }

    #[test]
    fn whoever_was_replaced_or_kicked_is_asked_to_stay_away_for_30_to_60_s() {
        for reason in [Reason::Replaced, Reason::Kicked] {
            let mut text = Text::default();
            text.closed(reason);
            let text = String::from_utf8(text.into_bytes()).unwrap();
            let wait = text.strip_prefix("retry: ").unwrap();
            let wait: u64 = wait.split('\n').next().unwrap().parse().unwrap();
            assert!((30_000..=60_000).contains(&wait));
        }
    }

    #[test]
    fn seconds_round_up() {
        assert_eq!(whole_seconds(Duration::from_millis(1)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(20)), 20);
        assert_eq!(whole_seconds(Duration::ZERO), 0);
    }
}
