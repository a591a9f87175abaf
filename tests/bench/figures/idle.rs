//! What an idle viewer costs: `Pss_Anon` of the server before the first viewer comes and after
//! the last one has, everything being at rest, by the number of viewers. The kernel's memory for
//! the sockets is not in it and is shown beside it.

use std::time::Duration;

use super::{Findings, Size, fill, rest, thousands};
use crate::{
    Result,
    orders::Asks,
    process::{Role, kernel_memory},
    server::{self, Server},
    table::Row,
};

/// Bytes a viewer, from the issue.
const ONE_BLOG: f64 = 512.0;
const SIGNED_IN: f64 = 1_200.0;
const OWN_BLOGS: f64 = 1_500.0;
/// Of the first fill.
const AGAIN: f64 = 1.3;

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let axum = {
        let server = server::axum()?;
        // It tells the number at the join only, so that its viewers cannot settle.
        Fills::new(&server, size)?.fill(Asks::OneBlog, None)?
    };
    one_blog(size, axum, findings)?;
    match server::nchan()? {
        None => findings.note("Nchan: nginx with libnginx-mod-nchan is not installed; left out"),
        Some(server) => {
            let bytes = Fills::new(&server, size)?.fill(Asks::Nchan, None)?;
            findings.row(Row {
                figure: "  the same in Nchan".into(),
                measured: show(bytes),
                ..Row::default()
            });
        }
    }
    for (figure, asks, goal) in [
        ("memory, signed in with a ticket", Asks::Ticket, SIGNED_IN),
        ("memory, a blog for each", Asks::OwnBlog, OWN_BLOGS),
    ] {
        let server = server::livecount(&[])?;
        let bytes = Fills::new(&server, size)?.fill(asks, Some(()))?;
        findings.row(row(figure, bytes, goal, axum));
    }
    Ok(())
}

fn one_blog(size: Size, axum: f64, findings: &mut Findings) -> Result<()> {
    let server = server::livecount(&[])?;
    let mut fills = Fills::new(&server, size)?;
    let kernel = kernel_memory()?;
    let first = fills.fill(Asks::OneBlog, Some(()))?;
    // Both ends of each connection are on this machine.
    let kernel = kernel_memory()?.saturating_sub(kernel) as f64 / 2.0;
    findings.row(row(
        "memory of an idle viewer, one blog",
        first,
        ONE_BLOG,
        axum,
    ));
    findings.note(&format!(
        "kernel memory on top: {} B for each end of a connection (Slab, whole machine)",
        thousands(kernel / f64::from(size.viewers))
    ));
    let mut most: f64 = 0.0;
    for _ in 0..3 {
        fills.leave()?;
        most = most.max(fills.fill(Asks::OneBlog, Some(()))?);
    }
    fills.leave()?;
    let left = fills.memory()?;
    findings.row(Row {
        figure: "  after all left and came, three times".into(),
        goal: format!("<= {AGAIN} x first"),
        measured: show(most),
        reference: format!("first fill {}", show(first)),
        ratio: Some(most / first),
        reached: Some(most <= AGAIN * first),
    });
    findings.note(&format!(
        "after all left: {} KiB more than before the first came",
        thousands(left / 1_024.0)
    ));
    Ok(())
}

fn row(figure: &str, bytes: f64, goal: f64, axum: f64) -> Row {
    Row {
        figure: figure.into(),
        goal: format!("<= {} B", thousands(goal)),
        measured: show(bytes),
        reference: format!("axum {}", show(axum)),
        ratio: Some(bytes / axum),
        reached: Some(bytes <= goal),
    }
}

fn show(bytes: f64) -> String {
    format!("{} B", thousands(bytes))
}

/// Fills of one server, measured against its memory when empty and new.
struct Fills<'a> {
    server: &'a Server,
    clients: Role,
    size: Size,
    before: u64,
}

impl<'a> Fills<'a> {
    fn new(server: &'a Server, size: Size) -> Result<Self> {
        rest(Duration::from_millis(500));
        Ok(Self {
            server,
            clients: Role::start("clients")?,
            size,
            before: server.process.memory()?,
        })
    }

    /// Bytes a viewer once so many are there and all is at rest; they settle on the exact number
    /// first, where that is asked for.
    fn fill(&mut self, asks: Asks, settled: Option<()>) -> Result<f64> {
        let Size { viewers, .. } = self.size;
        match settled {
            Some(()) => fill(&mut self.clients, self.server.address, viewers, asks)?,
            None => super::open(&mut self.clients, self.server.address, viewers, asks, None)?,
        };
        rest(self.size.settle);
        Ok(self.memory()? / f64::from(viewers))
    }

    fn leave(&mut self) -> Result<()> {
        let () = self.clients.ask(&crate::orders::Order::Close)?;
        rest(self.size.settle);
        Ok(())
    }

    /// Bytes more than when it was empty.
    fn memory(&self) -> Result<f64> {
        let now = self.server.process.memory()?;
        Ok(now.saturating_sub(self.before) as f64)
    }
}
