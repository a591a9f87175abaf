//! Many nodes on one Redis. Every test starts the `redis-server` that it needs, on a free port of
//! the loopback, and stops it by its own handle.

#![expect(
    clippy::unwrap_used,
    reason = "all of this is tests, their helpers too"
)]

mod redis_server;
mod resp_proxy;
mod store;
