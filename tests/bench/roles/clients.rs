//! The role of the readers: one thread, one epoll, as many streams as a process may have.

use std::{net::SocketAddr, time::Duration};

use mio::{Events, Poll, Token};
use slab::Slab;
use tokio::time::Instant;

use super::{churn, crowd::Crowd, orders, report, requests, viewer::Viewer};
use crate::{
    Result,
    orders::{Asks, Gathered, Opened, Order},
};

/// How long readers wait for what must come.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long every reader may take to show the exact number after the last join.
const SETTLING: Duration = Duration::from_secs(10);
/// How long one looks for a count too many.
const A_MOMENT: Duration = Duration::from_millis(30);

/// A number that no viewer is ever shown.
const NOTHING: u32 = u32::MAX;

pub(super) fn play() -> Result<()> {
    let mut clients = Clients::new()?;
    let mut crowd = None;
    for order in orders() {
        match order? {
            Order::Open {
                address,
                viewers,
                asks,
                at_once,
                settle,
            } => report(&clients.open(address, viewers, asks, at_once, settle)?)?,
            Order::Gather { each } => report(&clients.gather(each)?)?,
            Order::Read { ms } => {
                clients.forget();
                let start = Instant::now();
                clients.read_until(start + Duration::from_millis(ms), |_| false)?;
                report(&clients.gathered(start))?;
            }
            Order::Close => {
                clients = Clients::new()?;
                report(&())?;
            }
            Order::Churn {
                address,
                per_second,
                ms,
            } => {
                let time = Duration::from_millis(ms);
                report(&churn::run(&mut clients, address, per_second, time)?)?;
            }
            Order::Request {
                address,
                path,
                connections,
                ms,
            } => {
                let time = Duration::from_millis(ms);
                report(&requests::run(address, &path, connections, time)?)?;
            }
            Order::Crowd {
                nodes,
                readers,
                at_once,
                awaits,
            } => {
                let crowd = crowd.insert(Crowd::of(readers)?);
                report(&crowd.open(&nodes, at_once, &awaits)?)?;
            }
            Order::Await(awaits) => {
                let crowd: &mut Crowd = crowd.as_mut().ok_or("there is no crowd")?;
                report(&crowd.awaits(&awaits)?)?;
            }
            Order::Accept { .. } | Order::Send { .. } => return Err("that is the floor's".into()),
        }
    }
    Ok(())
}

pub(super) struct Clients {
    poll: Poll,
    events: Events,
    buffer: Vec<u8>,
    pub(super) viewers: Slab<Viewer>,
    /// The number that all are to show, or [`NOTHING`], and how many do.
    wanted: u32,
    exact: usize,
    /// How many counts each is to get, and how many did.
    each: u32,
    served: usize,
    /// How many are open.
    pub(super) open: usize,
}

impl Clients {
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            poll: Poll::new()?,
            events: Events::with_capacity(1_024),
            buffer: vec![0; 64 << 10],
            viewers: Slab::new(),
            wanted: NOTHING,
            exact: 0,
            each: 0,
            served: 0,
            open: 0,
        })
    }

    /// Adds a stream; `number` names its blog, where [`Asks`] gives each its own, or its user.
    pub(super) fn connect(
        &mut self,
        number: usize,
        address: SocketAddr,
        asks: Asks,
    ) -> Result<usize> {
        let entry = self.viewers.vacant_entry();
        let place = entry.key();
        let registry = self.poll.registry();
        entry.insert(Viewer::connect(
            registry,
            Token(place),
            number,
            address,
            asks,
        )?);
        Ok(place)
    }

    /// Waits for news, `wait` at the most, and takes them; `seen` is told which viewer was shown
    /// a number, and which.
    pub(super) fn read(&mut self, wait: Duration, mut seen: impl FnMut(usize, u32)) -> Result<()> {
        if let Err(error) = self.poll.poll(&mut self.events, Some(wait))
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            return Err(error.into());
        }
        for event in &self.events {
            let place = event.token().0;
            // Closed by ourselves in this very round.
            let Some(viewer) = self.viewers.get_mut(place) else {
                continue;
            };
            if event.is_writable() {
                viewer.send()?;
            }
            if !event.is_readable() {
                continue;
            }
            let (was_open, counts, shown) = (viewer.open, viewer.counts, viewer.shown);
            viewer.read(&mut self.buffer)?;
            self.open += usize::from(viewer.open && !was_open);
            if viewer.counts > counts {
                self.exact += usize::from(viewer.shown == self.wanted);
                self.exact -= usize::from(shown == self.wanted);
                self.served += usize::from(counts < self.each && viewer.counts >= self.each);
                seen(place, viewer.shown);
            }
        }
        Ok(())
    }

    fn open(
        &mut self,
        address: SocketAddr,
        viewers: u32,
        asks: Asks,
        at_once: usize,
        settle: Option<u32>,
    ) -> Result<Opened> {
        let target = self.viewers.len() + viewers as usize;
        self.wanted = settle.unwrap_or(NOTHING);
        let exact = self.viewers.iter();
        self.exact = exact.filter(|(_, v)| v.shown == self.wanted).count();
        self.forget();
        let start = Instant::now();
        while self.open < target {
            while self.viewers.len() < target && self.viewers.len() - self.open < at_once {
                self.connect(self.viewers.len(), address, asks)?;
            }
            self.read(Duration::from_millis(100), |_, _| {})?;
            if start.elapsed() > PATIENCE {
                return Err(format!("only {} of {target} streams are open", self.open).into());
            }
        }
        let opened = Instant::now();
        let mut settled = None;
        if settle.is_some() {
            self.read_until(opened + SETTLING, |clients| clients.exact == target)?;
            let took = opened.elapsed().as_secs_f64() * 1e3;
            settled = (self.exact == target).then_some(took);
        }
        Ok(Opened {
            seconds: (opened - start).as_secs_f64(),
            counts: self.gathered(start).counts,
            settled_seconds: start.elapsed().as_secs_f64(),
            settled_after_ms: settled,
        })
    }

    fn gather(&mut self, each: u32) -> Result<Gathered> {
        self.forget();
        self.each = each;
        let start = Instant::now();
        let all = self.viewers.len();
        self.read_until(start + PATIENCE, |clients| clients.served == all)?;
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.read_until(Instant::now() + A_MOMENT, |_| false)?;
        Ok(Gathered {
            ms: took,
            ..self.gathered(start)
        })
    }

    fn read_until(&mut self, end: Instant, enough: impl Fn(&Self) -> bool) -> Result<()> {
        while !enough(self) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.read(left, |_, _| {})?;
        }
        Ok(())
    }

    /// Begins to count anew.
    fn forget(&mut self) {
        self.served = 0;
        for (_, viewer) in &mut self.viewers {
            (viewer.counts, viewer.bytes) = (0, 0);
        }
    }

    fn gathered(&self, start: Instant) -> Gathered {
        let counts = || self.viewers.iter().map(|(_, viewer)| viewer.counts);
        Gathered {
            least: counts().min().unwrap_or(0),
            most: counts().max().unwrap_or(0),
            counts: counts().map(u64::from).sum(),
            bytes: self.viewers.iter().map(|(_, viewer)| viewer.bytes).sum(),
            ms: start.elapsed().as_secs_f64() * 1e3,
        }
    }
}
