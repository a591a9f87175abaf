//! What this executable is when the benchmark starts it again: clients, the floor, the reference.
//!
//! A role does what its standard input says and ends with it.

pub(crate) mod axum;
mod churn;
mod clients;
mod crowd;
pub(crate) mod floor;
mod requests;
mod viewer;

use std::io::{self, BufRead, Write};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;

use crate::{Result, orders::Order};

/// Plays a role to its end.
pub(crate) fn play(name: &str) -> Result<()> {
    let limit = getrlimit(Resource::Nofile).maximum;
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit,
            maximum: limit,
        },
    )?;
    match name {
        "axum" => axum::play(),
        "clients" => clients::play(),
        "floor" => floor::play(),
        _ => Err(format!("there is no role {name}").into()),
    }
}

/// The orders, one a line.
fn orders() -> impl Iterator<Item = Result<Order>> {
    let lines = io::stdin().lock().lines();
    lines.map(|line| Ok(serde_json::from_str(&line?)?))
}

fn report(report: &impl Serialize) -> Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, report)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}
