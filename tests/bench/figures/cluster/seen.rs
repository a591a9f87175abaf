//! A reader comes or goes on one node: how soon does a reader of the blog see it on another?
//!
//! Inside the clock: from the first byte of the join's request, or from the `close`, to the other
//! reader's reading of the count; both nodes, Redis, the push interval and the load's own way.

use crate::{
    Result,
    figures::{Findings, Size, open, rest, thousands},
    orders::{Asks, Churned, Order},
    process::Role,
    redis::Redis,
    server,
    table::Row,
};

/// From the issue, as are the changes.
const SEEN_MS: f64 = 250.0;
const CHANGES: u32 = 2_000;
const BLOGS: u32 = 1_000;

pub(super) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let redis = Redis::start()?;
    let mut nodes = Vec::new();
    for name in ["seen-here", "seen-there", "seen-nowhere"] {
        nodes.push(server::node(name, redis.address, "seen:")?);
    }
    let mut readers = Role::start("clients")?;
    let [here, there] = [nodes[0].address, nodes[1].address];
    let (blogs, changes) = if size.judged {
        (BLOGS, CHANGES)
    } else {
        (BLOGS / 5, CHANGES / 10)
    };
    open(&mut readers, there, blogs, Asks::OwnBlog, Some(1))?;
    rest(size.settle);
    let spent = || -> Result<[u64; 3]> {
        let [here, there] = [&nodes[0].process, &nodes[1].process];
        Ok([here.cpu()?, there.cpu()?, redis.process.cpu()?])
    };
    let before = spent()?;
    let churned: Churned = readers.ask(&Order::Churn {
        address: here,
        per_second: changes,
        ms: u64::try_from(size.churn.as_millis())?,
    })?;
    let after = spent()?;
    findings.row(Row {
        figure: format!(
            "{} blogs, seen on another node, p99",
            thousands(blogs.into())
        ),
        goal: format!("<= {SEEN_MS:.0} ms"),
        measured: format!("{:.1} ms", churned.p99_ms),
        reached: Some(churned.p99_ms <= SEEN_MS),
        ..Row::default()
    });
    findings.must(&Row {
        figure: "  changes that nobody saw".into(),
        goal: "none".into(),
        measured: format!("{} of {}", churned.unseen, churned.changes),
        reached: Some(churned.unseen == 0),
        ..Row::default()
    });
    let share = |side: usize| {
        let spent = (after[side] - before[side]) as f64 / 1e3;
        spent / churned.changes as f64
    };
    findings.note(&format!(
        "{} changes/s; median {:.1} ms, most {:.1} ms; CPU a change: here {:.1} µs, there {:.1} µs, Redis {:.1} µs",
        thousands(churned.changes as f64 / churned.seconds),
        churned.median_ms,
        churned.most_ms,
        share(0),
        share(1),
        share(2)
    ));
    Ok(())
}
