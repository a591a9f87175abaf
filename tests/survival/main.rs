//! What the service lives through: readers that stop, vanish, flood and churn, requests that no
//! client should send, and too few descriptors. Real sockets all the way, on the real clock.
//!
//! The whole binary takes about two minutes. `CHURN_SECONDS` sets how long the churn lasts.

mod churn;
mod descriptors;
mod fuzz;
mod helpers;
mod orders;
mod slow;
mod stray;
mod vanish;
mod wire;
