//! Everybody comes to one blog at once, at default settings: how many counts that costs, and how
//! soon after the last join every viewer shows the exact number.
//!
//! Inside the clock of the counts: from the first `connect` to the settling. The processor time
//! is the server's for all of it.

use super::{Findings, Size, rest, storm, thousands};
use crate::{
    Result,
    process::{Role, listen_overflows},
    server,
    table::Row,
};

/// Counts a second that a viewer may get, from the push interval of 100 ms.
const COUNTS_A_SECOND: f64 = 10.0;
/// From the last join to everybody's showing the exact number.
const SETTLED_MS: f64 = 2_000.0;

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let server = server::livecount(&[])?;
    let mut clients = Role::start("clients")?;
    rest(size.settle / 4);
    let (before, overflows) = (server.process.cpu()?, listen_overflows()?);
    let viewers = size.viewers;
    let opened = storm(&mut clients, server.address, viewers, Some(viewers))?;
    let spent = (server.process.cpu()? - before) as f64 / 1e6;
    let joins = f64::from(viewers);
    let most = joins + joins * COUNTS_A_SECOND * opened.settled_seconds;
    let counts = opened.counts as f64;
    findings.row(Row {
        figure: format!("burst of {} joins, counts", thousands(joins)),
        goal: "<= joins + 10/s".into(),
        measured: thousands(counts),
        reference: format!("allowed {}", thousands(most)),
        ratio: Some(counts / most),
        reached: Some(counts <= most),
    });
    let settled = opened.settled_after_ms;
    findings.must(&Row {
        figure: "  all exact after the last join".into(),
        goal: format!("<= {} ms", thousands(SETTLED_MS)),
        measured: settled.map_or("never".into(), |ms| format!("{} ms", thousands(ms))),
        reached: Some(settled.is_some_and(|ms| ms <= SETTLED_MS)),
        ..Row::default()
    });
    findings.note(&format!(
        "{} joins/s, {} ms of CPU in all, {} overflows of the listener",
        thousands(joins / opened.seconds),
        thousands(spent),
        listen_overflows()? - overflows
    ));
    Ok(())
}
