//! Three nodes full of readers who come and go no more: what they ask of Redis.
//!
//! Commands are counted on each node's way to Redis; a script is one. The processor time is that
//! of all threads, user and kernel.

use std::{thread, time::Duration};

use crate::{
    Result,
    crowd::{self, Totals},
    figures::{Findings, Size, rest, thousands},
    orders::{Awaited, Awaits, Order},
    process::Role,
    redis::{Link, Redis},
    server,
    table::Row,
};

const NODES: u32 = 3;
/// A second and node, from the issue.
const COMMANDS: f64 = 5.0;
/// How long one counts.
const WATCHED: Duration = Duration::from_secs(15);
const PATIENCE_MS: u64 = 60_000;
const AT_ONCE: usize = 300;

pub(super) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let redis = Redis::start()?;
    let readers = crowd::parted(size.viewers * NODES, NODES);
    let (mut nodes, mut links, mut clients) = (Vec::new(), Vec::new(), Vec::new());
    for number in 0..NODES {
        let link = Link::to(redis.address, Duration::ZERO)?;
        nodes.push(server::node(
            &format!("idle-{number}"),
            link.address,
            "idle:",
        )?);
        links.push(link);
        clients.push(Role::start("clients")?);
    }
    let awaits = Awaits {
        totals: Totals::of(&readers),
        least_ms: 0,
        most_ms: PATIENCE_MS,
    };
    for ((role, node), readers) in clients.iter_mut().zip(&nodes).zip(&readers) {
        role.tell(&Order::Crowd {
            nodes: vec![node.address],
            readers: readers.clone(),
            at_once: AT_ONCE,
            awaits: awaits.clone(),
        })?;
    }
    for role in &mut clients {
        let awaited: Awaited = role.hear()?;
        if awaited.exact < awaited.readers {
            return Err(format!("not everybody is shown the exact number: {awaited:?}").into());
        }
    }
    rest(size.settle);

    let spent = || -> Result<[u64; 2]> {
        let mut sum = 0;
        for node in &nodes {
            sum += node.process.cpu()?;
        }
        Ok([redis.process.cpu()?, sum])
    };
    let counted = || links.iter().map(Link::commands).collect::<Vec<u64>>();
    let (before, commands) = (spent()?, counted());
    thread::sleep(WATCHED);
    let (after, now) = (spent()?, counted());
    let seconds = WATCHED.as_secs_f64();
    let rates = now.iter().zip(&commands);
    let rates: Vec<f64> = rates
        .map(|(now, before)| (now - before) as f64 / seconds)
        .collect();
    let most = rates.iter().copied().fold(0.0, f64::max);
    findings.row(Row {
        figure: format!(
            "{NODES} nodes, {} idle viewers each",
            thousands(size.viewers.into())
        ),
        goal: format!("<= {COMMANDS} commands/s"),
        measured: format!("{most:.1}/s a node"),
        reached: Some(most <= COMMANDS),
        ..Row::default()
    });
    let share = |side: usize| (after[side] - before[side]) as f64 / 1e7 / seconds;
    findings.note(&format!(
        "of a core: Redis {:.2} %, each node {:.2} %; Redis has {} KiB",
        share(0),
        share(1) / f64::from(NODES),
        thousands(redis.process.memory()? as f64 / 1_024.0)
    ));
    Ok(())
}
