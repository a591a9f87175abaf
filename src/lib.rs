//! livecount counts who is on a page right now and pushes the number to everyone on it, over
//! Server-Sent Events and nothing else.
//!
//! In reading order:
//!
//! - [`hub`]: who is in which room; the numbers, the messages, who is told what and when. Pure:
//!   it knows no socket, HTTP, JSON or token.
//! - [`history`]: what the numbers were, noted as the hub changes them.
//! - [`sse`]: what streams are told, as `text/event-stream` bytes.
//! - [`delivery`]: those bytes to open streams.
//! - [`auth`]: tokens, tickets, and what they permit.
//! - [`api`]: the HTTP edge; [`app`] has every route on one screen.
//! - [`server`]: sockets; who is admitted, and how it all ends.
//! - [`cluster`]: what nodes share, with Redis.
//! - [`config`], [`cli`], [`telemetry`], [`run`]: settings in, log lines out, start to stop.
//!
//! Invariants:
//!
//! - A number shown to anybody equals the number of open streams. A stream is counted exactly as
//!   long as its [`hub::Registration`] lives, unless the hub ended it before; its drop is the only
//!   other way out.
//! - Sockets are touched in [`server`] and [`delivery`] only, and by the health check of [`cli`];
//!   the environment is read in `main.rs` only.
//! - Nothing awaits while it holds a lock.
//! - Dependencies point inward: `api` knows `auth`, `hub` and `delivery`; `delivery` knows `hub`
//!   and `sse`; `hub` knows nothing of ours.

pub mod api;
pub mod app;
pub mod auth;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod delivery;
pub mod history;
pub mod hub;
pub mod run;
pub mod server;
pub mod sse;
pub mod telemetry;
