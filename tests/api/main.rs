//! The service through its HTTP surface.

mod auth;
mod bad_input;
mod cli;
mod drain;
mod helpers;
mod join;
mod limits;
mod server;
mod wire;
