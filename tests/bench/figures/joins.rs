//! What a join costs: processor time of the server from a storm's first `connect` to the last
//! viewer's first count, by the number of joins, beside axum. The push interval is 5 s, so that
//! what the joins tell the others is left out; accepting, reading and answering the request,
//! counting in and the first write are in.

use super::{Findings, Size, fill, rest, storm, thousands};
use crate::{
    Result,
    orders::{Asks, Opened, Order},
    process::{Process, Role, listen_overflows},
    server,
    table::Row,
};

/// Microseconds, and joins a second, from the issue.
const GOAL: f64 = 60.0;
const A_SECOND: f64 = 12_000.0;

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let livecount = server::livecount(&[("LIVECOUNT_PUSH_INTERVAL", "5s")])?;
    let axum = server::axum()?;
    let mut clients = Role::start("clients")?;
    let (mut ours, mut theirs) = (Sums::default(), Sums::default());
    // Once for nothing: threads, arenas and the branch predictor begin cold on both sides.
    fill(
        &mut clients,
        livecount.address,
        size.viewers.min(1_000),
        Asks::OneBlog,
    )?;
    let () = clients.ask(&Order::Close)?;
    for round in 0..size.fills {
        let mut sides = [(&livecount, &mut ours), (&axum, &mut theirs)];
        sides.rotate_left(round as usize % 2);
        for (server, sums) in sides {
            rest(size.settle / 2);
            let overflows = listen_overflows()?;
            let before = server.process.cpu()?;
            let opened = storm(&mut clients, server.address, size.viewers, None)?;
            sums.add(&server.process, before, &opened)?;
            sums.overflows += listen_overflows()? - overflows;
            let () = clients.ask(&Order::Close)?;
        }
    }
    let joins = f64::from(size.viewers) * f64::from(size.fills);
    let (join, axum_join) = (
        ours.nanoseconds / joins / 1e3,
        theirs.nanoseconds / joins / 1e3,
    );
    let (rate, axum_rate) = (joins / ours.seconds, joins / theirs.seconds);
    findings.row(Row {
        figure: "CPU of a join, GET to first count".into(),
        goal: format!("<= {GOAL:.0} µs"),
        measured: format!("{join:.1} µs"),
        reference: format!("axum {axum_join:.1} µs"),
        ratio: Some(join / axum_join),
        reached: Some(join <= GOAL),
    });
    findings.row(Row {
        figure: format!("  joins a second, all {} rounds", size.fills),
        goal: format!(">= {}/s", thousands(A_SECOND)),
        measured: format!("{}/s", thousands(rate)),
        reference: format!("axum {}/s", thousands(axum_rate)),
        ratio: Some(rate / axum_rate),
        reached: Some(rate >= A_SECOND),
    });
    findings.row(Row {
        figure: "  overflows of the listener meanwhile".into(),
        goal: "none".into(),
        measured: ours.overflows.to_string(),
        reference: format!("axum {}", theirs.overflows),
        reached: Some(ours.overflows == 0),
        ..Row::default()
    });
    Ok(())
}

#[derive(Debug, Default)]
struct Sums {
    nanoseconds: f64,
    seconds: f64,
    overflows: u64,
}

impl Sums {
    fn add(&mut self, process: &Process, before: u64, opened: &Opened) -> Result<()> {
        self.nanoseconds += (process.cpu()? - before) as f64;
        self.seconds += opened.seconds;
        Ok(())
    }
}
