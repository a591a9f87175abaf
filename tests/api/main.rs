//! The service through its HTTP surface.

mod auth;
mod bad_input;
mod cli;
mod connections;
mod drain;
mod helpers;
mod join;
mod limits;
mod messages;
mod metrics;
mod model;
mod openapi;
mod pages;
mod rooms;
mod server;
mod stream;
mod wire;
