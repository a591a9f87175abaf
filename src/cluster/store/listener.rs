//! What nodes publish, on a connection of its own.

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use redis::{
    RedisError, Value,
    aio::{PubSubSink, PubSubStream},
};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::StreamExt;

use super::{Away, Channel, Shared, StoreError, lane::TIMEOUT};

/// A `PING` goes out after this silence.
const SILENCE: Duration = Duration::from_secs(1);

/// Hears what nodes publish. After an error nothing is subscribed to any more: what was published
/// until the next [`Listener::subscribe`] is lost.
pub struct Listener {
    shared: Arc<Shared>,
    subscription: Option<Subscription>,
}

/// Something that was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Where.
    pub channel: Channel,
    /// What; not to be trusted.
    pub bytes: Bytes,
}

struct Subscription {
    sink: PubSubSink,
    stream: PubSubStream,
    heard_at: Instant,
    ping: Option<Ping>,
}

/// A `PING` on its way.
struct Ping {
    answer: Pin<Box<dyn Future<Output = Result<Value, RedisError>> + Send>>,
    sent_at: Instant,
}

impl Listener {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            subscription: None,
        }
    }

    /// Subscribes to channels, beside those of before; connects where there is no connection.
    ///
    /// # Errors
    ///
    /// When Redis is away or refuses; nothing is subscribed to then.
    pub async fn subscribe(&mut self, channels: &[Channel]) -> Result<(), StoreError> {
        let names: Vec<String> = channels
            .iter()
            .map(|channel| self.shared.keys.channel(*channel))
            .collect();
        let subscribing = async {
            let mut subscription = match self.subscription.take() {
                Some(subscription) => subscription,
                None => {
                    let (sink, stream) = self.shared.client.get_async_pubsub().await?.split();
                    Subscription {
                        sink,
                        stream,
                        heard_at: Instant::now(),
                        ping: None,
                    }
                }
            };
            subscription.sink.subscribe(&names).await?;
            Ok::<_, RedisError>(subscription)
        };
        match timeout(TIMEOUT, subscribing).await {
            Ok(done) => {
                self.subscription = Some(done?);
                Ok(())
            }
            Err(_) => Err(StoreError::Away(Away::Timeout)),
        }
    }

    /// Waits for the next that is published. Asks for a sign of life after 1 s of silence.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    ///
    /// When nothing is subscribed to, the connection broke, or no sign of life came in 2.5 s.
    pub async fn next(&mut self) -> Result<Heard, StoreError> {
        let Some(subscription) = &mut self.subscription else {
            return Err(StoreError::Away(Away::Unsubscribed));
        };
        let error = loop {
            match subscription.step().await {
                Ok(None) => {}
                Ok(Some((name, bytes))) => {
                    if let Some(channel) = self.shared.keys.channel_named(&name) {
                        return Ok(Heard { channel, bytes });
                    }
                }
                Err(error) => break error,
            }
        };
        self.subscription = None;
        Err(StoreError::Away(error))
    }
}

impl Subscription {
    /// Waits for one thing to happen: something published, an answer, or a time to act.
    async fn step(&mut self) -> Result<Option<(String, Bytes)>, Away> {
        let Self {
            sink,
            stream,
            heard_at,
            ping,
        } = self;
        let due = match ping {
            Some(ping) => ping.sent_at.max(*heard_at) + TIMEOUT,
            None => *heard_at + SILENCE,
        };
        let answered = async {
            match ping {
                Some(ping) => (&mut ping.answer).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            published = stream.next() => {
                let message = published.ok_or(Away::Unsubscribed)?;
                *heard_at = Instant::now();
                let bytes = Bytes::copy_from_slice(message.get_payload_bytes());
                Ok(Some((message.get_channel_name().to_owned(), bytes)))
            }
            answer = answered => {
                answer?;
                *heard_at = Instant::now();
                *ping = None;
                Ok(None)
            }
            () = sleep_until(due) => {
                if ping.is_some() {
                    return Err(Away::Timeout);
                }
                let mut sink = sink.clone();
                *ping = Some(Ping {
                    answer: Box::pin(async move { sink.ping().await }),
                    sent_at: Instant::now(),
                });
                Ok(None)
            }
        }
    }
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("subscribed", &self.subscription.is_some())
            .finish_non_exhaustive()
    }
}
