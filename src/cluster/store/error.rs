//! What goes wrong between a node and the store.

use redis::{ErrorKind, RedisError, ServerErrorKind};

/// Says why a call has no answer. Whether it was done is unknown but for [`StoreError::Format`];
/// the connection that it went over is given up.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Redis is not there, or does not do what it is asked.
    #[error("Redis is away")]
    Away(#[source] Away),
    /// The reply answers another call.
    #[error("a reply from Redis answers another call")]
    Mismatch,
    /// A reply, or something in the store, is not what it has to be. What was found in the store
    /// has been thrown away: the next call meets a new epoch.
    #[error("what Redis holds or answered is malformed: {0}")]
    Malformed(String),
    /// The store holds a higher format than this node knows.
    #[error("the store's format is {0}, and this node knows up to 1")]
    Format(u64),
}

/// Says in what way Redis is away.
#[derive(Debug, thiserror::Error)]
pub enum Away {
    /// It could not be reached, or refused.
    #[error(transparent)]
    Redis(RedisError),
    /// It is part of a Redis Cluster, which has no place where all keys of a call lie together.
    #[error("it is part of a Redis Cluster, which is not supported")]
    Cluster(#[source] RedisError),
    /// It did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// Nothing is subscribed to yet, or any more.
    #[error("not subscribed")]
    Unsubscribed,
}

impl From<RedisError> for Away {
    fn from(error: RedisError) -> Self {
        use ServerErrorKind::{Ask, ClusterDown, CrossSlot, Moved};
        match error.kind() {
            ErrorKind::Server(Ask | ClusterDown | CrossSlot | Moved) => Self::Cluster(error),
            _ => Self::Redis(error),
        }
    }
}

impl From<RedisError> for StoreError {
    fn from(error: RedisError) -> Self {
        Self::Away(error.into())
    }
}

/// Says that a URL is none of Redis: `redis://` or `rediss://`, host, port, user, password, number
/// of the database. Says nothing of what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not redis://[user[:password]@]host[:port][/database], or rediss:// for TLS")]
pub struct InvalidUrl;
