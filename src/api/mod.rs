//! The HTTP edge: one file per tag of `openapi.yaml`; each handler extracts, calls and answers.
//!
//! What handlers share is in [`request`]: bodies, paths and queries, each refused with its own
//! code, and rooms as asked for.

pub mod asset;
pub mod badge;
pub mod connections;
pub mod dashboard;
pub mod error;
pub mod health;
pub mod history;
pub mod join;
pub mod messages;
pub mod pages;
pub mod peers;
mod plot;
pub mod request;
pub mod rooms;
pub mod stream;
mod svg;
