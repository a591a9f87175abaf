//! What a delivered count costs: processor time of the server for telling one change to all
//! viewers of one blog, by their number, beside the floor.
//!
//! Both are alive at once and rounds alternate, since the same binary costs 6.0 to 8.5 µs a count
//! from one minute to the next. In a round one viewer comes or goes, which is one change; every
//! other viewer must get exactly one count. Inside the clock: that viewer's coming or going, the
//! announcement, and one pass. The floor sends the same bytes, from as many threads as livecount
//! has shards, to clients of the same kind.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use super::{Findings, Size, fill, rest, thousands};
use crate::{
    Result,
    orders::{Asks, Gathered, Order},
    process::Role,
    roles::floor::count,
    server,
    table::Row,
};

const GOAL: f64 = 1.15;
/// Before each round of either side, so that both begin alike. With the other side's round it is
/// longer than livecount's push interval, so that its next count goes out at once.
const QUIET: Duration = Duration::from_millis(100);

pub(crate) fn run(size: Size, findings: &mut Findings) -> Result<()> {
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let server = server::livecount(&[])?;
    let mut ours = Role::start("clients")?;
    fill(&mut ours, server.address, size.viewers, Asks::OneBlog)?;
    let (mut floor, address) = server::floor()?;
    let mut theirs = Role::start("clients")?;
    floor.tell(&Order::Accept {
        viewers: size.viewers,
        threads,
    })?;
    super::open(&mut theirs, address, size.viewers, Asks::OneBlog, None)?;
    let () = floor.hear()?;
    rest(size.settle);

    let mut sums = Sums::default();
    let mut other = None;
    for round in 0..size.rounds {
        let joins = round % 2 == 0;
        let text = count(size.viewers + u32::from(joins))?;

        let before = server.process.cpu()?;
        let got = gather(&mut ours, size, &text, || {
            other = if joins {
                Some(come(server.address)?)
            } else {
                None
            };
            Ok(())
        })?;
        let spent = server.process.cpu()? - before;

        let before = floor.process.cpu()?;
        let same = gather(&mut theirs, size, &text, || {
            floor.ask(&Order::Send { text: text.clone() })
        })?;
        sums.add([spent, floor.process.cpu()? - before], [&got, &same]);
    }
    drop(other);
    findings.row(sums.row(size));
    findings.note(&sums.note(size, threads));
    let others = come_and_go(&server, size)?;
    findings.note(&format!(
        "in it, one join or leave a round: about {others:.0} µs of {:.0} ms",
        sums.nanoseconds[0] / 1e6 / f64::from(size.rounds)
    ));
    Ok(())
}

/// Livecount's first, the floor's second.
#[derive(Debug, Default)]
struct Sums {
    nanoseconds: [f64; 2],
    ratios: Vec<f64>,
    /// Until the last viewer had the count.
    told_ms: [f64; 2],
}

impl Sums {
    fn add(&mut self, nanoseconds: [u64; 2], got: [&Gathered; 2]) {
        for side in 0..2 {
            self.nanoseconds[side] += nanoseconds[side] as f64;
            self.told_ms[side] += got[side].ms;
        }
        self.ratios
            .push(nanoseconds[0] as f64 / nanoseconds[1] as f64);
    }

    fn row(&self, size: Size) -> Row {
        let counts = f64::from(size.viewers) * f64::from(size.rounds) * 1e3;
        let [ours, floor] = self.nanoseconds;
        let ratio = ours / floor;
        Row {
            figure: "CPU of a delivered count, one blog".into(),
            goal: format!("<= {GOAL} x floor"),
            measured: format!("{:.2} µs", ours / counts),
            reference: format!("floor {:.2} µs", floor / counts),
            ratio: Some(ratio),
            reached: Some(ratio <= GOAL),
        }
    }

    fn note(&self, size: Size, threads: usize) -> String {
        let mut ratios = self.ratios.clone();
        ratios.sort_by(f64::total_cmp);
        let at = |share: usize| ratios.get(ratios.len() * share / 4).copied().unwrap_or(0.0);
        let rounds = f64::from(size.rounds);
        format!(
            "{} rounds each, ratio of a round: quarters {:.3}, {:.3}, {:.3}; all told after {:.0} ms (floor, {threads} loops: {:.0} ms)",
            size.rounds,
            at(1),
            at(2),
            at(3),
            self.told_ms[0] / rounds,
            self.told_ms[1] / rounds
        )
    }
}

/// Lets `change` happen and sees to it that every viewer gets `text`, once.
fn gather(
    clients: &mut Role,
    size: Size,
    text: &str,
    change: impl FnOnce() -> Result<()>,
) -> Result<Gathered> {
    clients.tell(&Order::Gather { each: 1 })?;
    thread::sleep(QUIET);
    change()?;
    let got: Gathered = clients.hear()?;
    let bytes = u64::from(size.viewers) * text.len() as u64;
    if (got.least, got.most) != (1, 1) || got.bytes != bytes {
        let wanted = thousands(bytes as f64);
        return Err(format!("each viewer should get one count, {wanted} bytes: {got:?}").into());
    }
    Ok(got)
}

/// One more viewer, who reads up to the first count.
fn come(address: SocketAddr) -> Result<TcpStream> {
    let mut socket = TcpStream::connect(address)?;
    let request = format!("GET /v1/stream?blog_id=42 HTTP/1.1\r\nHost: {address}\r\n\r\n");
    socket.write_all(request.as_bytes())?;
    let (mut text, mut buffer) = (Vec::new(), [0; 4_096]);
    while !text.windows(12).any(|part| part == b"event: count") {
        match socket.read(&mut buffer)? {
            0 => return Err("the server ended a stream".into()),
            read => text.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(socket)
}

/// Microseconds of a join or leave, from many of them in a blog that nobody else reads.
fn come_and_go(server: &server::Server, size: Size) -> Result<f64> {
    let times = size.rounds * 10;
    let address = server.address;
    let before = server.process.cpu()?;
    for _ in 0..times {
        let mut socket = TcpStream::connect(address)?;
        let request = format!("GET /v1/stream?blog_id=7 HTTP/1.1\r\nHost: {address}\r\n\r\n");
        socket.write_all(request.as_bytes())?;
        let _ = socket.read(&mut [0; 4_096])?;
    }
    rest(Duration::from_millis(200));
    let spent = (server.process.cpu()? - before) as f64 / 1e3;
    Ok(spent / f64::from(times) / 2.0)
}
