//! The service through its HTTP surface.

mod helpers;
mod join;
