//! What the benchmark tells the roles, and what they report: one line of JSON each.

use std::{net::SocketAddr, ops::Range};

use serde::{Deserialize, Serialize};

use crate::crowd::Totals;

/// What clients and the floor do when they are told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Clients: open so many streams, each beginning to connect as soon as fewer than `at_once`
    /// are on their way, and read until each has what [`Asks`] waits for; then on until each shows
    /// the number of `settle`. Answered by [`Opened`].
    Open {
        address: SocketAddr,
        viewers: u32,
        asks: Asks,
        at_once: usize,
        settle: Option<u32>,
    },
    /// Clients: read until every stream got so many counts from now on, and a moment longer, to
    /// see whether one gets more. Answered by [`Gathered`].
    Gather { each: u32 },
    /// Clients: read for so long. Answered by [`Gathered`].
    Read { ms: u64 },
    /// Clients: close all streams. Answered by `()`.
    Close,
    /// Clients that hold a stream in each of so many blogs: let a second viewer come or go in one
    /// at random, so often a second, and look when the first viewer sees it. Answered by
    /// [`Churned`].
    Churn {
        address: SocketAddr,
        per_second: u32,
        ms: u64,
    },
    /// Clients: ask for this path over and over on so many connections, each waiting for its
    /// answer. Answered by [`Answered`].
    Request {
        address: SocketAddr,
        path: String,
        connections: usize,
        ms: u64,
    },
    /// Clients: open a stream for each of these readers of the crowd, in turn at each of these
    /// nodes, with fewer than `at_once` on their way, and then as [`Order::Await`].
    Crowd {
        nodes: Vec<SocketAddr>,
        readers: Range<u32>,
        at_once: usize,
        awaits: Awaits,
    },
    /// Clients that are a crowd: read until each shows its total. Answered by [`Awaited`].
    Await(Awaits),
    /// The floor: accept so many, to be sent to by so many loops. Answered by `()`.
    Accept { viewers: u32, threads: usize },
    /// The floor: send this to each, once. Answered by `()`.
    Send { text: String },
}

/// What a crowd waits for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Awaits {
    pub(crate) totals: Totals,
    /// It reads so long even where all is right, and no longer than `most_ms` where it is not.
    pub(crate) least_ms: u64,
    pub(crate) most_ms: u64,
}

/// What a stream is asked for with, and when it counts as open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Asks {
    /// `GET` of the stream of blog 42; open with the first count.
    OneBlog,
    /// `GET` of the stream of a blog of its own; open with the first count.
    OwnBlog,
    /// `POST` of a join to blog 42 with a token of its own, then `GET` with the ticket, as an
    /// `EventSource` does; open with the first count.
    Ticket,
    /// `GET` of the stream of the blog that the reader of that number has in the crowd; open with
    /// the first count.
    Crowd,
    /// `GET /subscribe` of Nchan; open with the end of the head.
    Nchan,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Opened {
    /// From the first `connect` to the last stream's being open.
    pub(crate) seconds: f64,
    /// Counts received until then and until all settled.
    pub(crate) counts: u64,
    /// From the first `connect` to the settling.
    pub(crate) settled_seconds: f64,
    /// From the last stream's being open to the settling; `None` where it did not come in time.
    pub(crate) settled_after_ms: Option<f64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Gathered {
    /// Fewest and most counts that one stream got.
    pub(crate) least: u32,
    pub(crate) most: u32,
    pub(crate) counts: u64,
    pub(crate) bytes: u64,
    /// From the order to the last of the counts asked for.
    pub(crate) ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Churned {
    pub(crate) changes: u64,
    /// Changes that nobody saw within two seconds after the end.
    pub(crate) unseen: u64,
    pub(crate) seconds: f64,
    /// From the first byte of the join's request, or from the `close`, to the other viewer's
    /// reading of the count.
    pub(crate) median_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) most_ms: f64,
    /// Medians of joins and of leaves alone.
    pub(crate) joined_ms: f64,
    pub(crate) left_ms: f64,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Awaited {
    /// From the order to the last stream's being open; 0 where none was to be opened.
    pub(crate) opened_ms: f64,
    /// From the order to the last reader's showing its total.
    pub(crate) exact_ms: f64,
    pub(crate) readers: usize,
    /// How many showed their total in the end, none of them as partial.
    pub(crate) exact: usize,
    pub(crate) counts: u64,
    /// A reader with a wrong number, what it is shown and what it should be.
    pub(crate) wrong: Option<(u32, u32, u32)>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Answered {
    pub(crate) answers: u64,
    pub(crate) seconds: f64,
}
