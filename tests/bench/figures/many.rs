//! The big picture: as many nodes as it takes on this machine, nine of ten readers in one blog and
//! the rest in a thousand others, half of them with an id that nodes compare; every reader must be
//! shown the exact total of all nodes. Then a node is killed, and every other reader must be shown
//! what is left; then its readers come back to the other nodes.
//!
//! Descriptors bound both ends: a process has 20,000, so that each node has a process of readers
//! of its own, which give way to the servers.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    ops::Range,
    thread,
    time::Duration,
};

use tokio::time::Instant;

use super::{Findings, Size, rest, thousands};
use crate::{
    Result,
    crowd::{self, Totals},
    orders::{Awaited, Awaits, Order},
    process::{Role, kernel_memory, tracked_connections},
    redis::Redis,
    server::{self, Server},
    table::Row,
};

/// Readers that a node takes at the most; a process has 20,000 descriptors here.
const A_NODE: u32 = 19_000;
/// Until the readers of a killed node are in no node's totals any more.
const GONE_MS: f64 = 5_000.0;
/// How much nodes and load give way to Redis, which is one process beside them all.
const NICE: i32 = 10;
/// Connections on their way at a time, of all load together.
const AT_ONCE: usize = 1_500;
/// How long the load may take: to come in, for each so many, and to be right.
const IN_MS: u64 = 60_000;
const A_READER_MS: f64 = 0.5;
/// How long one looks whether what is right stays so.
const STAYS_MS: u64 = 3_000;

struct Part {
    // Goes first, or it would complain of its node's going.
    load: Role,
    node: Server,
    readers: Range<u32>,
}

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let readers = size.crowd;
    // One more than it takes, so that the others have room for the readers of one that is killed.
    let count = (readers.div_ceil(A_NODE) + 1).max(3);
    let kernel = kernel_memory()?;
    tell_tracking(readers, findings);
    let redis = Redis::start()?;
    // Redis goes first, as on a machine of its own.
    rustix::process::nice(NICE)?;
    let mut parts = Vec::new();
    for (number, readers) in (0..).zip(crowd::parted(readers, count)) {
        let node = server::node(&format!("many-{number}"), redis.address, "many:")?;
        let load = Role::start("clients")?;
        parts.push(Part {
            load,
            node,
            readers,
        });
    }
    rest(size.settle);
    let empty = (memory(&parts)?, redis.process.memory()?);
    let before = cpu(&parts, &redis)?;

    let patience = IN_MS + (f64::from(readers) * A_READER_MS) as u64;
    let awaits = |totals: Totals, least_ms| Awaits {
        totals,
        least_ms,
        most_ms: patience,
    };
    let ranges = |parts: &[Part]| -> Vec<Range<u32>> {
        parts.iter().map(|part| part.readers.clone()).collect()
    };
    let totals = Totals::of(&ranges(&parts));
    let start = Instant::now();
    for part in &mut parts {
        part.load.tell(&Order::Crowd {
            nodes: vec![part.node.address],
            readers: part.readers.clone(),
            at_once: AT_ONCE / count as usize + 1,
            awaits: awaits(totals.clone(), 0),
        })?;
    }
    let came = hear(&mut parts, findings)?;
    let seconds = start.elapsed().as_secs_f64();
    let spent = cpu(&parts, &redis)?;
    // Once more, after the last of them was right: a number that was right by chance is not now.
    for part in &mut parts {
        part.load
            .tell(&Order::Await(awaits(totals.clone(), STAYS_MS)))?;
    }
    let stayed = hear(&mut parts, findings)?;
    findings.must(&Row {
        figure: format!(
            "{} readers on {count} nodes, shown the total",
            thousands(readers.into())
        ),
        goal: "all".into(),
        measured: thousands(stayed.exact as f64),
        reached: Some(stayed.exact == stayed.readers),
        ..Row::default()
    });
    findings.row(Row {
        figure: "  all of them exact after the last join".into(),
        measured: format!("{} ms", thousands(came.exact_ms - came.opened_ms)),
        ..Row::default()
    });
    findings.note(&format!(
        "in after {:.1} s ({} joins/s), with {} counts; CPU meanwhile: nodes {:.1} s, Redis {:.1} s of {:.1} s",
        came.opened_ms / 1e3,
        thousands(f64::from(readers) / came.opened_ms * 1e3),
        thousands(came.counts as f64),
        (spent.0 - before.0) as f64 / 1e9,
        (spent.1 - before.1) as f64 / 1e9,
        seconds,
    ));
    tell_memory(&parts, &redis, empty, kernel, readers, findings)?;
    tell_idle(&parts, &redis, findings)?;

    // The node with the number 0 goes; its readers must not be first to close.
    let gone = parts.remove(0);
    let totals = Totals::of(&ranges(&parts));
    gone.load.process.halt();
    let start = Instant::now();
    gone.node.process.kill()?;
    let killed = start.elapsed();
    for part in &mut parts {
        part.load
            .tell(&Order::Await(awaits(totals.clone(), STAYS_MS)))?;
    }
    let before = cpu(&parts, &redis)?;
    let known_ms = all_know(&parts, totals.of_blog(crowd::LARGE_BLOG), start, patience)?;
    let healed = hear(&mut parts, findings)?;
    drop(gone.load);
    let gone_ms = healed.exact_ms + killed.as_secs_f64() * 1e3;
    let all = healed.exact == healed.readers;
    findings.row(Row {
        figure: format!(
            "  a node killed with {}: the others know",
            thousands(gone.readers.len() as f64)
        ),
        goal: format!("<= {} ms", thousands(GONE_MS)),
        measured: format!("{} ms", thousands(known_ms)),
        reached: Some(known_ms <= GONE_MS),
        ..Row::default()
    });
    findings.must(&Row {
        figure: "  all other readers shown the total".into(),
        goal: "all".into(),
        measured: format!(
            "{} after {} ms",
            thousands(healed.exact as f64),
            thousands(gone_ms)
        ),
        reached: Some(all),
        ..Row::default()
    });
    let spent = cpu(&parts, &redis)?;
    findings.note(&format!(
        "CPU meanwhile: nodes {:.1} s, Redis {:.1} s",
        (spent.0 - before.0) as f64 / 1e9,
        (spent.1 - before.1) as f64 / 1e9,
    ));
    come_back(&mut parts, gone.readers, &awaits, findings)?;
    tell_warnings(&parts, findings);
    Ok(())
}

/// Says where the kernel will drop connections that nobody here is to blame for.
fn tell_tracking(readers: u32, findings: &Findings) {
    if let Some((tracked, most)) = tracked_connections()
        && tracked + u64::from(readers) > most
    {
        findings.note(&format!(
            "a firewall that tracks connections drops those beyond {}: net.netfilter.nf_conntrack_max",
            thousands(most as f64)
        ));
    }
}

/// Waits until every node says that the large blog has so many readers; answers when that was,
/// in milliseconds since `start`.
fn all_know(parts: &[Part], readers: u32, start: Instant, patience_ms: u64) -> Result<f64> {
    let wanted = format!("\"viewers\":{readers},");
    for part in parts {
        while !count(part.node.address)?.contains(&wanted) {
            if start.elapsed() > Duration::from_millis(patience_ms) {
                return Err("a node never counts right".into());
            }
            rest(Duration::from_millis(20));
        }
    }
    Ok(start.elapsed().as_secs_f64() * 1e3)
}

/// What a node says of the large blog.
fn count(node: SocketAddr) -> Result<String> {
    let mut socket = TcpStream::connect(node)?;
    let path = format!("/v1/blogs/{}/count", crowd::LARGE_BLOG);
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nHost: {node}\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

/// The readers of the node that is gone come back to the others, in turn.
fn come_back(
    parts: &mut [Part],
    readers: Range<u32>,
    awaits: &impl Fn(Totals, u64) -> Awaits,
    findings: &mut Findings,
) -> Result<()> {
    let nodes: Vec<SocketAddr> = parts.iter().map(|part| part.node.address).collect();
    let mut ranges = vec![readers.clone()];
    ranges.extend(parts.iter().map(|part| part.readers.clone()));
    let totals = Totals::of(&ranges);
    let mut load = Role::start("clients")?;
    load.tell(&Order::Crowd {
        nodes,
        readers,
        at_once: AT_ONCE,
        awaits: awaits(totals.clone(), STAYS_MS),
    })?;
    for part in &mut *parts {
        let awaits = awaits(totals.clone(), STAYS_MS);
        part.load.tell(&Order::Await(awaits))?;
    }
    let back: Awaited = load.hear()?;
    let others = hear(parts, findings)?;
    let exact = back.exact + others.exact;
    findings.must(&Row {
        figure: "  they come back elsewhere, shown the total".into(),
        goal: "all".into(),
        measured: thousands(exact as f64),
        reached: Some(exact == back.readers + others.readers),
        ..Row::default()
    });
    findings.note(&format!(
        "in after {:.1} s, all exact {} ms later",
        back.opened_ms / 1e3,
        thousands(others.exact_ms.max(back.exact_ms) - back.opened_ms)
    ));
    Ok(())
}

/// What all parts of the load report, taken together.
fn hear(parts: &mut [Part], findings: &Findings) -> Result<Awaited> {
    let mut sum: Option<Awaited> = None;
    for part in parts {
        let one: Awaited = part.load.hear()?;
        if let Some((reader, shown, wanted)) = one.wrong {
            findings.note(&format!(
                "{} of {} wrong on a node: reader {reader} is shown {shown}, should be {wanted}",
                one.readers - one.exact,
                one.readers
            ));
        }
        sum = Some(match sum {
            None => one,
            Some(sum) => Awaited {
                opened_ms: sum.opened_ms.max(one.opened_ms),
                exact_ms: sum.exact_ms.max(one.exact_ms),
                readers: sum.readers + one.readers,
                exact: sum.exact + one.exact,
                counts: sum.counts + one.counts,
                wrong: sum.wrong.or(one.wrong),
            },
        });
    }
    Ok(sum.ok_or("no load")?)
}

fn memory(parts: &[Part]) -> Result<u64> {
    parts.iter().map(|part| part.node.process.memory()).sum()
}

/// Nanoseconds of all nodes, and of Redis.
fn cpu(parts: &[Part], redis: &Redis) -> Result<(u64, u64)> {
    let nodes = parts.iter().map(|part| part.node.process.cpu());
    Ok((nodes.sum::<Result<u64>>()?, redis.process.cpu()?))
}

fn tell_memory(
    parts: &[Part],
    redis: &Redis,
    empty: (u64, u64),
    kernel: u64,
    readers: u32,
    findings: &mut Findings,
) -> Result<()> {
    let (nodes, store) = (memory(parts)?, redis.process.memory()?);
    let a_reader = nodes.saturating_sub(empty.0) as f64 / f64::from(readers);
    findings.row(Row {
        figure: "  memory of a reader, all nodes together".into(),
        measured: format!("{} B", thousands(a_reader)),
        ..Row::default()
    });
    let mib = |bytes: u64| thousands(bytes as f64 / f64::from(1 << 20));
    let kernel = kernel_memory()?.saturating_sub(kernel);
    findings.note(&format!(
        "nodes {} MiB (empty {}), Redis {} MiB (empty {}); the kernel, for both ends of each stream, {} MiB",
        mib(nodes),
        mib(empty.0),
        mib(store),
        mib(empty.1),
        mib(kernel)
    ));
    Ok(())
}

/// What all of it costs while nobody comes or goes.
fn tell_idle(parts: &[Part], redis: &Redis, findings: &Findings) -> Result<()> {
    const LOOK: Duration = Duration::from_secs(5);
    let before = cpu(parts, redis)?;
    thread::sleep(LOOK);
    let after = cpu(parts, redis)?;
    let share = |after: u64, before: u64| (after - before) as f64 / 1e7 / LOOK.as_secs_f64();
    findings.note(&format!(
        "idle, of a core: nodes {:.1} % in all, Redis {:.1} %",
        share(after.0, before.0),
        share(after.1, before.1)
    ));
    Ok(())
}

fn tell_warnings(parts: &[Part], findings: &Findings) {
    let mut warnings: Vec<String> = parts
        .iter()
        .flat_map(|part| part.node.warnings.lock().clone())
        .collect();
    let all = warnings.len();
    warnings.sort();
    warnings.dedup();
    warnings.truncate(5);
    if all > 0 {
        findings.note(&format!("{all} warnings, as: {}", warnings.join("; ")));
    }
}
