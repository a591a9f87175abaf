//! Joins and leaves on a node that has no Redis, one that answers, one that is stopped and one
//! whose replies come late: nobody on the node itself may wait for it.
//!
//! All four are alive at once and rounds alternate. Inside the clock: from the first byte of the
//! join's request, or from the `close`, to the reading of the count by the blog's other reader on
//! the same node. A round gives a median; the figure is the median of the rounds' ratios to the
//! round without Redis.

use std::time::Duration;

use crate::{
    Result,
    figures::{Findings, Size, open, rest},
    orders::{Asks, Churned, Order},
    process::Role,
    redis::{Link, Redis},
    server::{self, Server},
    table::Row,
};

/// From the issue.
const RATIO: f64 = 1.1;
/// Few enough that a blog seldom changes within its push interval.
const BLOGS: u32 = 1_000;
const CHANGES: u32 = 500;
const SLOW: Duration = Duration::from_secs(2);
/// After which numbers of other nodes are shown as missing where Redis is away.
const NOTICED: Duration = Duration::from_secs(5);

struct Side {
    name: &'static str,
    server: Server,
    readers: Role,
    /// Medians of joins and leaves, in milliseconds, and microseconds of processor time a change.
    joined: Vec<f64>,
    left: Vec<f64>,
    cpu: Vec<f64>,
}

impl Side {
    fn new(name: &'static str, server: Server) -> Result<Self> {
        let mut readers = Role::start("clients")?;
        open(&mut readers, server.address, BLOGS, Asks::OwnBlog, Some(1))?;
        Ok(Self {
            name,
            server,
            readers,
            joined: Vec::new(),
            left: Vec::new(),
            cpu: Vec::new(),
        })
    }

    fn round(&mut self, time: Duration) -> Result<()> {
        let before = self.server.process.cpu()?;
        let churned: Churned = self.readers.ask(&Order::Churn {
            address: self.server.address,
            per_second: CHANGES,
            ms: u64::try_from(time.as_millis())?,
        })?;
        let spent = (self.server.process.cpu()? - before) as f64 / 1e3;
        if churned.unseen > 0 {
            return Err(format!("Redis {}: {} changes unseen", self.name, churned.unseen).into());
        }
        self.joined.push(churned.joined_ms);
        self.left.push(churned.left_ms);
        self.cpu.push(spent / churned.changes as f64);
        Ok(())
    }
}

pub(super) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let (redis, stopped) = (Redis::start()?, Redis::start()?);
    let link = Link::to(redis.address, SLOW)?;
    let mut sides = [
        Side::new("none", server::livecount(&[])?)?,
        Side::new("on", server::node("on", redis.address, "on:")?)?,
        Side::new("slow", server::node("slow", link.address, "slow:")?)?,
        Side::new("away", server::node("away", stopped.address, "away:")?)?,
    ];
    stopped.process.halt();
    rest(NOTICED);
    let (rounds, time) = if size.judged {
        (10, Duration::from_millis(1_500))
    } else {
        (2, Duration::from_millis(500))
    };
    for round in 0..rounds {
        for turn in 0..sides.len() {
            let turn = (turn + round) % sides.len();
            sides[turn].round(time)?;
        }
    }
    let (without, others) = sides.split_at(1);
    let without = &without[0];
    for side in others {
        for (what, ours, theirs) in [
            ("join", &side.joined, &without.joined),
            ("leave", &side.left, &without.left),
        ] {
            let ratios = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs);
            let ratio = median(ratios.collect());
            findings.row(Row {
                figure: format!("{what} seen on its node, Redis {}", side.name),
                goal: format!("<= {RATIO} x without"),
                measured: format!("{:.3} ms", median(ours.clone())),
                reference: format!("without {:.3} ms", median(theirs.clone())),
                ratio: Some(ratio),
                reached: Some(ratio <= RATIO),
            });
        }
    }
    let cpu = |side: &Side| format!("{} {:.0}", side.name, median(side.cpu.clone()));
    let cpu: Vec<String> = sides.iter().map(cpu).collect();
    findings.note(&format!(
        "{rounds} rounds each; µs of CPU a change, Redis: {}",
        cpu.join(", ")
    ));
    Ok(())
}

fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}
