//! The store alone: what its scripts make of batches, leases, claims, blocks and messages.

mod batches;
mod faults;
mod helpers;
mod lapsed;
mod messages;
mod model;
