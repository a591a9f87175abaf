//! Several nodes that share a real Redis, as their readers and back ends see them.
//!
//! Real processes, a real clock. Every test has nodes and a Redis of its own, and the whole takes
//! a few minutes, most of it waiting: more tests at a time than cores (`--test-threads 4`) are
//! quicker.

#![expect(clippy::print_stdout, reason = "some tests say what they measured")]

mod basics;
mod crowd;
mod dice;
mod faults;
mod node;
mod process;
mod proxy;
mod redis;
mod resp;
mod truth;
mod wire;
