//! The service through its HTTP surface.

mod auth;
mod bad_input;
mod badge;
mod cli;
mod connections;
mod dashboard;
mod drain;
mod helpers;
mod history;
mod join;
mod limits;
mod messages;
mod metrics;
mod model;
mod openapi;
mod pages;
#[path = "../cluster/redis_server.rs"]
#[expect(
    dead_code,
    clippy::unwrap_used,
    reason = "the tests of the store use all of it, and it is for tests alone"
)]
mod redis_server;
#[path = "../cluster/resp.rs"]
#[expect(dead_code, reason = "the tests of several nodes use all of it")]
mod resp;
mod rooms;
mod server;
mod sockets;
mod store;
mod stream;
mod wire;
