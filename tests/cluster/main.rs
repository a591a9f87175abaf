//! Several nodes that share a real Redis, as their readers and back ends see them, and the store
//! that they stand on.
//!
//! Real processes, a real clock. Every test has nodes and a Redis of its own, and the whole takes
//! a few minutes, most of it waiting: more tests at a time than cores (`--test-threads 4`) are
//! quicker.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers too, and some say what they measured"
)]

mod basics;
mod blocks;
mod crowd;
mod dice;
#[path = "../survival/event.rs"]
mod event;
mod faults;
mod forged;
mod forgery;
mod leases;
mod missed;
mod moves;
mod node;
mod operation;
mod outage;
mod pace;
mod process;
mod proxy;
mod redis;
mod redis_server;
mod resp;
mod resp_proxy;
mod silent;
mod store;
mod stuck;
mod thousands;
mod truth;
mod wire;
