//! The figures, each a function from the size of the run to rows of the table.

pub(crate) mod burst;
pub(crate) mod churn;
pub(crate) mod cluster;
pub(crate) mod counts;
pub(crate) mod idle;
pub(crate) mod joins;
pub(crate) mod many;

use std::{net::SocketAddr, thread, time::Duration};

use crate::{
    Result,
    orders::{Asks, Opened, Order},
    process::Role,
    table::Row,
};

/// How large a run is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Size {
    /// Viewers of one blog, and blogs with one viewer.
    pub(crate) viewers: u32,
    /// Small blogs that change, and changes a second.
    pub(crate) blogs: u32,
    pub(crate) changes: u32,
    /// Rounds of counts, for each side.
    pub(crate) rounds: u32,
    /// Rounds of joins and of requests, for each side.
    pub(crate) fills: u32,
    /// How long blogs change.
    pub(crate) churn: Duration,
    /// How long a round of requests takes.
    pub(crate) requests: Duration,
    /// Readers of many nodes.
    pub(crate) crowd: u32,
    /// How long memory may settle.
    pub(crate) settle: Duration,
    /// True where goals apply; a small run only shows that nothing breaks.
    pub(crate) judged: bool,
}

impl Size {
    pub(crate) const FULL: Self = Self {
        viewers: 15_000,
        blogs: 10_000,
        changes: 5_000,
        rounds: 30,
        fills: 3,
        churn: Duration::from_secs(10),
        requests: Duration::from_secs(1),
        crowd: 200_000,
        settle: Duration::from_secs(2),
        judged: true,
    };
    pub(crate) const QUICK: Self = Self {
        viewers: 500,
        blogs: 300,
        changes: 300,
        rounds: 3,
        fills: 1,
        churn: Duration::from_secs(2),
        requests: Duration::from_millis(300),
        crowd: 3_000,
        settle: Duration::from_millis(500),
        judged: false,
    };
}

/// Rows, and notes that are printed below them.
#[derive(Debug)]
pub(crate) struct Findings {
    size: Size,
    missed: u32,
}

impl Findings {
    pub(crate) fn new(size: Size) -> Self {
        Self { size, missed: 0 }
    }

    pub(crate) fn row(&mut self, mut row: Row) {
        if !self.size.judged {
            row.reached = None;
        }
        self.missed += u32::from(row.reached == Some(false));
        row.print();
    }

    /// A row of what must hold at any size.
    pub(crate) fn must(&mut self, row: &Row) {
        self.missed += u32::from(row.reached == Some(false));
        row.print();
    }

    #[expect(clippy::unused_self, reason = "reads as the rows do")]
    pub(crate) fn note(&self, note: &str) {
        crate::say(&format!("    {note}"));
    }

    pub(crate) fn missed(&self) -> u32 {
        self.missed
    }
}

/// Connections on their way at a time: many, yet fewer than the 4,096 that a listener's queue
/// holds on most machines.
const AT_ONCE: usize = 1_000;

/// Opens viewers of one blog and checks that each shows how many there are.
fn fill(clients: &mut Role, address: SocketAddr, viewers: u32, asks: Asks) -> Result<Opened> {
    let settle = match asks {
        Asks::OneBlog | Asks::Ticket => Some(viewers),
        Asks::OwnBlog => Some(1),
        Asks::Crowd | Asks::Nchan => None,
    };
    let opened = open(clients, address, viewers, asks, settle)?;
    if settle.is_some() && opened.settled_after_ms.is_none() {
        return Err("some viewers never show the exact number".into());
    }
    Ok(opened)
}

fn open(
    clients: &mut Role,
    address: SocketAddr,
    viewers: u32,
    asks: Asks,
    settle: Option<u32>,
) -> Result<Opened> {
    open_at_once(clients, address, viewers, asks, AT_ONCE, settle)
}

/// A storm: all connect at once to one blog, and the listener's queue holds what it can.
fn storm(
    clients: &mut Role,
    address: SocketAddr,
    viewers: u32,
    settle: Option<u32>,
) -> Result<Opened> {
    let at_once = viewers as usize;
    open_at_once(clients, address, viewers, Asks::OneBlog, at_once, settle)
}

fn open_at_once(
    clients: &mut Role,
    address: SocketAddr,
    viewers: u32,
    asks: Asks,
    at_once: usize,
    settle: Option<u32>,
) -> Result<Opened> {
    clients.ask(&Order::Open {
        address,
        viewers,
        asks,
        at_once,
        settle,
    })
}

/// Lets everything come to rest: a server that works, a closed stream that is still counted.
fn rest(time: Duration) {
    thread::sleep(time);
}

/// A whole number with its thousands apart.
fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
