//! Several nodes that share a real Redis: what Redis keeps, and what readers and back ends see.
//!
//! Real processes, a real clock. Every test has nodes and a Redis of its own, and the whole takes
//! a few minutes, most of it waiting: more tests at a time than cores (`--test-threads 4`) are
//! quicker.

#![expect(clippy::print_stdout, reason = "some tests say what they measured")]
#![expect(
    clippy::unwrap_used,
    reason = "all of this is tests, their helpers too"
)]

mod basics;
mod crowd;
mod dice;
mod faults;
mod node;
mod process;
mod proxy;
mod redis;
mod redis_server;
mod resp;
mod resp_proxy;
mod store;
mod truth;
mod wire;
