//! Many small blogs that change at random, and a back end that asks for counts meanwhile.
//!
//! A change is a second viewer's coming or going. Inside its clock: from the first byte of the
//! join's request, or from the `close`, to the first viewer's reading of the count, the load
//! process's own way included. For the back end's requests the load goes on, and rounds alternate
//! between livecount and a bare axum handler in another process beside the same load.

use std::time::Duration;

use super::{Findings, Size, open, rest, thousands};
use crate::{
    Result,
    orders::{Answered, Asks, Churned, Order},
    process::Role,
    server,
    table::Row,
};

/// The push interval, 100 ms, and 50 more.
const SEEN_MS: f64 = 150.0;
/// Requests a second, of the bare handler's.
const REQUESTS: f64 = 0.7;
/// Connections of the back end.
const CONNECTIONS: usize = 32;
const PATH: &str = "/v1/blogs/42/count";

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let livecount = server::livecount(&[])?;
    let mut viewers = Role::start("clients")?;
    open(
        &mut viewers,
        livecount.address,
        size.blogs,
        Asks::OwnBlog,
        Some(1),
    )?;
    rest(size.settle / 4);
    let before = livecount.process.cpu()?;
    let churn = |time: Duration| -> Result<Order> {
        Ok(Order::Churn {
            address: livecount.address,
            per_second: size.changes,
            ms: u64::try_from(time.as_millis())?,
        })
    };
    let churned: Churned = viewers.ask(&churn(size.churn)?)?;
    let spent = (livecount.process.cpu()? - before) as f64 / 1e3;
    let rate = churned.changes as f64 / churned.seconds;
    findings.row(Row {
        figure: format!("{} blogs, change seen, p99", thousands(size.blogs.into())),
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
    findings.row(kept_up("  changes a second", rate, size));
    findings.note(&format!(
        "median {:.1} ms, most {:.1} ms; {:.1} µs of CPU a change",
        churned.median_ms,
        churned.most_ms,
        spent / churned.changes as f64
    ));

    let axum = server::axum()?;
    let mut back_end = Role::start("clients")?;
    let rounds = size.fills * 2;
    let pause = Duration::from_millis(100);
    // A little longer than the rounds take, so that the last one is under load too.
    viewers.tell(&churn((size.requests + pause) * (rounds * 2 + 1))?)?;
    rest(pause);
    let mut sums = [0.0, 0.0];
    for round in 0..rounds {
        let sides = [(0, livecount.address), (1, axum.address)];
        for turn in [round % 2, 1 - round % 2] {
            let (side, address) = sides[turn as usize];
            let answered: Answered = back_end.ask(&Order::Request {
                address,
                path: PATH.to_owned(),
                connections: CONNECTIONS,
                ms: u64::try_from(size.requests.as_millis())?,
            })?;
            sums[side] += answered.answers as f64 / answered.seconds / f64::from(rounds);
        }
    }
    let under: Churned = viewers.hear()?;
    let ratio = sums[0] / sums[1];
    findings.row(Row {
        figure: "GET of a count under that load".into(),
        goal: format!(">= {REQUESTS} x bare"),
        measured: format!("{}/s", thousands(sums[0])),
        reference: format!("bare axum {}/s", thousands(sums[1])),
        ratio: Some(ratio),
        reached: Some(ratio >= REQUESTS),
    });
    let rate = under.changes as f64 / under.seconds;
    findings.row(kept_up("  changes a second meanwhile", rate, size));
    findings.note(&format!(
        "{rounds} rounds each; meanwhile seen p99 {:.1} ms, {} unseen",
        under.p99_ms, under.unseen
    ));
    Ok(())
}

/// The load itself: less of it would make everything else easy.
fn kept_up(figure: &str, rate: f64, size: Size) -> Row {
    let goal = f64::from(size.changes);
    Row {
        figure: figure.into(),
        goal: format!("{}/s", thousands(goal)),
        measured: format!("{}/s", thousands(rate)),
        reached: Some(rate >= 0.95 * goal),
        ..Row::default()
    }
}
