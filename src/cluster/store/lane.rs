//! One connection to Redis, one call at a time.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Cmd, RedisError, ServerErrorKind, Value, aio::MultiplexedConnection,
};
use tokio::time::timeout;

use super::{
    Answer, Away, Channel, Epoch, Shared, Stamp, StoreError,
    reply::{Reply, malformed},
    script::Script,
};

/// How long an answer may take, connecting included.
pub(super) const TIMEOUT: Duration = Duration::from_millis(2_500);

/// One connection to Redis, one call at a time.
///
/// Connects when first needed; after any error the connection is given up, so that no late reply
/// meets a later call, and the next call makes a new one. A call dropped before its answer gives
/// the connection up too, and may or may not have been done.
pub struct Lane {
    pub(super) shared: Arc<Shared>,
    connection: Option<MultiplexedConnection>,
    calls: u64,
    name: u64,
}

/// What a script is called with, beside what every script gets.
#[derive(Default)]
pub(super) struct Arguments {
    pub(super) keys: Vec<String>,
    pub(super) values: Vec<Vec<u8>>,
}

impl Arguments {
    pub(super) fn push(&mut self, value: &impl ToString) {
        self.values.push(value.to_string().into_bytes());
    }

    pub(super) fn push_bytes(&mut self, value: &[u8]) {
        self.values.push(value.to_vec());
    }

    pub(super) fn push_flag(&mut self, value: bool) {
        self.push(&u8::from(value));
    }
}

impl Lane {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            connection: None,
            calls: 0,
            name: rand::random(),
        }
    }

    /// True where a connection stands from the last call.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    /// Learns the epoch in force, starting one where there is none, and the number of its last
    /// announcement.
    ///
    /// # Errors
    ///
    /// As every call's: Redis away, a reply that is not ours or malformed, a higher format.
    pub async fn connect(&mut self) -> Result<(Epoch, u64), StoreError> {
        let shared = Arc::clone(&self.shared);
        let stamp = Stamp::default();
        let answer = self
            .call(&shared.scripts.connect, stamp, Arguments::default(), |_| {
                Ok(())
            })
            .await?;
        match answer {
            Answer::Epoch { epoch, version } => Ok((epoch, version)),
            Answer::Done(()) => {
                self.connection = None;
                Err(malformed("an answer without an epoch"))
            }
        }
    }

    /// Publishes to the nodes that listen now.
    ///
    /// # Errors
    ///
    /// As every call's.
    pub async fn send(&mut self, channel: Channel, bytes: &[u8]) -> Result<(), StoreError> {
        let shared = Arc::clone(&self.shared);
        let tag = self.tag();
        let values = [
            tag.as_bytes(),
            shared.keys.channel(channel).as_bytes(),
            bytes,
        ]
        .map(<[u8]>::to_vec);
        let value = self.run(&shared.scripts.send, &[], &values).await?;
        let connection = self.connection.take();
        let mut reply = Self::checked(value, &tag)?;
        if reply.text()? != "done" {
            return Err(malformed("an unknown answer"));
        }
        reply.end()?;
        self.connection = connection;
        Ok(())
    }

    fn tag(&mut self) -> String {
        self.calls += 1;
        format!("{:016x}.{}", self.name, self.calls)
    }

    fn checked(value: Value, tag: &str) -> Result<Reply, StoreError> {
        let mut reply = Reply::of(value).map_err(|_| StoreError::Mismatch)?;
        match reply.bytes() {
            Ok(found) if found == tag.as_bytes() => Ok(reply),
            _ => Err(StoreError::Mismatch),
        }
    }

    /// Calls a script that begins as all do but one, and reads what it says when done.
    pub(super) async fn call<T>(
        &mut self,
        script: &Script,
        stamp: Stamp,
        arguments: Arguments,
        read: impl FnOnce(&mut Reply) -> Result<T, StoreError>,
    ) -> Result<Answer<T>, StoreError> {
        let tag = self.tag();
        let mut keys = self.shared.keys.shared(stamp.epoch);
        keys.extend(arguments.keys);
        let epoch = stamp
            .epoch
            .map(|epoch| epoch.to_string())
            .unwrap_or_default();
        let mut values = vec![
            tag.clone().into_bytes(),
            epoch.into_bytes(),
            stamp.version.to_string().into_bytes(),
            Epoch::random().to_string().into_bytes(),
        ];
        values.extend(arguments.values);

        let value = self.run(script, &keys, &values).await?;
        // Out of its place until the reply has proved sound.
        let connection = self.connection.take();
        let mut reply = Self::checked(value, &tag)?;
        let answer = match reply.text()?.as_str() {
            "done" => Answer::Done(read(&mut reply)?),
            "epoch" => Answer::Epoch {
                epoch: reply.id()?,
                version: reply.number()?,
            },
            "format" => return Err(StoreError::Format(reply.number()?)),
            "malformed" => return Err(StoreError::Malformed(reply.text()?)),
            _ => return Err(malformed("an unknown answer")),
        };
        reply.end()?;
        self.connection = connection;
        Ok(answer)
    }

    /// Runs a script by its digest, or by its source where the server does not know it yet.
    async fn run(
        &mut self,
        script: &Script,
        keys: &[String],
        values: &[Vec<u8>],
    ) -> Result<Value, StoreError> {
        let command = |name: &str, what: &str| {
            let mut command = redis::cmd(name);
            command.arg(what).arg(keys.len()).arg(keys).arg(values);
            command
        };
        let known = command("EVALSHA", &script.sha1);
        match self.request(&known, TIMEOUT).await {
            Err(StoreError::Away(Away::Redis(error))) if is_unknown_script(&error) => {
                let done = self
                    .request(&command("EVAL", &script.source), TIMEOUT)
                    .await;
                // A source needs no digest: "unknown" answers another call here.
                if done.is_err() {
                    self.give_up();
                }
                done
            }
            done => done,
        }
    }

    /// Sends one command. The connection stays only where there was an answer, or the error that a
    /// script is unknown.
    pub(super) async fn request(
        &mut self,
        command: &Cmd,
        limit: Duration,
    ) -> Result<Value, StoreError> {
        let asking = async {
            let mut connection = match self.connection.take() {
                Some(connection) => connection,
                None => open(&self.shared.client).await?,
            };
            let answer = command.query_async(&mut connection).await;
            if answer.as_ref().err().is_none_or(is_unknown_script) {
                self.connection = Some(connection);
            }
            answer
        };
        match timeout(limit, asking).await {
            Ok(answer) => answer.map_err(StoreError::from),
            Err(_) => Err(StoreError::Away(Away::Timeout)),
        }
    }

    pub(super) fn give_up(&mut self) {
        self.connection = None;
    }
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane")
            .field("connected", &self.is_connected())
            .finish_non_exhaustive()
    }
}

fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
}

async fn open(client: &redis::Client) -> Result<MultiplexedConnection, RedisError> {
    // The time limits are the caller's, around all of it.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None);
    client
        .get_multiplexed_async_connection_with_config(&config)
        .await
}
