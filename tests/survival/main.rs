//! What the service lives through: readers that stop, vanish, flood and churn, requests that no
//! client should send, and too few descriptors. Real sockets all the way, on the real clock.
//!
//! The whole binary takes about two minutes with two tests at a time, most of it waiting, so
//! that more at a time (`--test-threads 6`) take a minute. `CHURN_SECONDS` says how long the churn
//! lasts and `PROPTEST_CASES` how much is tried of what is random.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "all of this is tests, their helpers too, and some say what they measured"
)]

mod churn;
mod descriptors;
mod event;
mod flood;
mod fuzz;
mod helpers;
mod http2;
mod metrics;
mod orders;
mod slow;
mod stray;
mod vanish;
mod wire;
