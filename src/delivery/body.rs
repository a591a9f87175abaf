//! A subscription as an HTTP body: for HTTP/2, for what stands behind TLS, and for tests.
//!
//! Opens with its first poll. Woken by its rooms' channels and its own inbox, it asks the hub
//! what it is due, so that a slow reader skips counts and never queues them.

use std::{
    convert::Infallible,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http_body::Frame as BodyFrame;
use tokio::time::{Instant, Sleep};
use tokio_stream::{Stream, StreamMap, wrappers::BroadcastStream};

use super::{Admission, EXPIRY_NOTICE, Offer, Subscription};
use crate::{
    hub::{Cursor, Delivery, Inbox, Reason, Registration, RoomKey},
    sse::Text,
};

/// The body of one stream.
pub struct Feed(Phase);

enum Phase {
    Pending(Offer),
    Open(Box<Open>),
    Done,
}

/// About 400 bytes, and as much again per room for the channel's receiver.
struct Open {
    registration: Registration,
    inbox: Arc<Inbox>,
    cursor: Cursor,
    channels: StreamMap<RoomKey, BroadcastStream<()>>,
    heartbeat: Duration,
    quiet_since: Instant,
    expires: Instant,
    /// True once `expiring` was said of this end.
    warned: bool,
    alarm: Pin<Box<Sleep>>,
    /// True where the hub must be asked, whatever woke the stream.
    behind: bool,
    _admission: Admission,
}

impl Feed {
    /// Makes a body that opens the stream when it is first polled.
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        Self(Phase::Pending(offer))
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Phase::Pending(_) => "Feed(pending)",
            Phase::Open(_) => "Feed(open)",
            Phase::Done => "Feed(done)",
        })
    }
}

impl http_body::Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        let now = Instant::now();
        let bytes = match &mut self.0 {
            Phase::Pending(offer) => {
                let Some(subscription) = offer.take() else {
                    return Poll::Ready(None);
                };
                match open(subscription, now) {
                    Ok((open, bytes)) => {
                        self.0 = Phase::Open(Box::new(open));
                        bytes
                    }
                    Err(reason) => {
                        self.0 = Phase::Done;
                        let mut text = Text::default();
                        text.closed(reason);
                        text.into_bytes().into()
                    }
                }
            }
            Phase::Open(open) => {
                let (bytes, over) = std::task::ready!(open.poll_due(cx, now));
                if over {
                    // The registration and the places under the limits go with this.
                    self.0 = Phase::Done;
                }
                bytes
            }
            Phase::Done => return Poll::Ready(None),
        };
        Poll::Ready(Some(Ok(BodyFrame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.0, Phase::Done)
    }
}

fn open(subscription: Subscription, now: Instant) -> Result<(Open, Bytes), Reason> {
    let Subscription {
        mut registration,
        welcome,
        expires,
        heartbeat,
        admission,
    } = subscription;
    let inbox = Inbox::new();
    let opening = registration.open(&inbox, now)?;
    let bytes = welcome.first_words(&opening, expires, heartbeat, now);
    let mut open = Open {
        registration,
        inbox,
        channels: StreamMap::new(),
        cursor: opening.cursor,
        heartbeat,
        quiet_since: now,
        expires,
        warned: false,
        alarm: Box::pin(tokio::time::sleep_until(now + heartbeat)),
        // The rooms may have spoken before their channels were listened to.
        behind: true,
        _admission: admission,
    };
    let keys: Vec<RoomKey> = open.cursor.seats().map(|seat| seat.key).collect();
    for key in keys {
        open.listen(key);
    }
    open.set_alarm();
    Ok((open, bytes.into()))
}

impl Open {
    /// Waits for something to say; true where it is the last.
    fn poll_due(&mut self, cx: &mut Context<'_>, now: Instant) -> Poll<(Bytes, bool)> {
        loop {
            if self.poll_news(cx) {
                let (bytes, over) = self.collect(now);
                if !bytes.is_empty() || over {
                    self.quiet_since = now;
                    return Poll::Ready((bytes, over));
                }
            }
            std::task::ready!(self.alarm.as_mut().poll(cx));
            let text = self.on_alarm(now);
            self.set_alarm();
            if !text.is_empty() {
                self.quiet_since = now;
                self.set_alarm();
                return Poll::Ready((text.into_bytes().into(), false));
            }
        }
    }

    fn poll_news(&mut self, cx: &mut Context<'_>) -> bool {
        let mut news = std::mem::take(&mut self.behind);
        news |= self.inbox.poll_news(cx.waker());
        // A channel holds two words at the most, so this ends.
        while let Poll::Ready(Some(_)) = Pin::new(&mut self.channels).poll_next(cx) {
            news = true;
        }
        news
    }

    fn collect(&mut self, now: Instant) -> (Bytes, bool) {
        let mut bytes = BytesMut::new();
        let mut over = false;
        for delivery in self.registration.collect(&mut self.cursor, &self.inbox) {
            let mut text = Text::default();
            match delivery {
                Delivery::Joined(room, told) => {
                    text.joined(&room);
                    if let Some(told) = told {
                        text.count(&room, told.occupancy);
                        self.listen(told.key);
                    }
                }
                Delivery::Watching(room, told) => {
                    if let Some(told) = told {
                        text.count(&room, told.occupancy);
                        self.listen(told.key);
                    }
                }
                Delivery::Left(key, room) => {
                    text.left(&room);
                    self.channels.remove(&key);
                }
                Delivery::Unwatched(key) => {
                    self.channels.remove(&key);
                }
                Delivery::Told(told) => text.count(&told.room, told.occupancy),
                Delivery::Count(frame) | Delivery::Message(frame) => {
                    bytes.extend_from_slice(&frame.payload());
                }
                Delivery::Reset(room) => text.reset(&room),
                Delivery::Expires(at) => {
                    self.expires = at;
                    self.warned = false;
                    if let Some(left) = self.notice(now) {
                        text.expiring(left);
                    }
                    self.set_alarm();
                }
                Delivery::End(reason) => {
                    text.closed(reason);
                    over = true;
                }
            }
            bytes.extend_from_slice(text.as_bytes());
        }
        self.behind |= self.cursor.is_owed();
        (bytes.freeze(), over)
    }

    fn listen(&mut self, key: RoomKey) {
        if let Some(receiver) = self.registration.listen(key) {
            self.channels.insert(key, BroadcastStream::new(receiver));
            self.behind = true;
        }
    }

    /// The time left, once, when it is time to tell it.
    fn notice(&mut self, now: Instant) -> Option<Duration> {
        let left = self.expires.duration_since(now);
        (!self.warned && left <= EXPIRY_NOTICE).then(|| {
            self.warned = true;
            left
        })
    }

    fn on_alarm(&mut self, now: Instant) -> Text {
        let mut text = Text::default();
        if now >= self.expires {
            // Comes back as an order, and the next round says `closed`.
            self.registration.end(Reason::Expired, now);
            self.behind = true;
            return text;
        }
        if let Some(left) = self.notice(now) {
            text.expiring(left);
        } else if now.duration_since(self.quiet_since) >= self.heartbeat {
            text.ping();
        }
        text
    }

    fn set_alarm(&mut self) {
        let mut next = (self.quiet_since + self.heartbeat).min(self.expires);
        if !self.warned {
            let notice = self.expires.checked_sub(EXPIRY_NOTICE);
            next = notice.map_or(next, |notice| next.min(notice));
        }
        self.alarm.as_mut().reset(next);
    }
}
