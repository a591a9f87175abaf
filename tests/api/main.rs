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
#[path = "../cluster/resp.rs"]
#[expect(dead_code, reason = "the tests of several nodes use all of it")]
mod resp;
mod rooms;
mod server;
mod sockets;
mod store;
mod stream;
mod wire;
