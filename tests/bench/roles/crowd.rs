//! Readers of many nodes who must each be shown the exact total.

use std::{net::SocketAddr, ops::Range, time::Duration};

use tokio::time::Instant;

use super::clients::Clients;
use crate::{
    Result,
    orders::{Asks, Awaited, Awaits},
};

/// Longest look at the sockets before the clock is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How much the load gives way to the servers, which share the processors with it.
const NICE: i32 = 5;

/// A reader's place among the clients is its number less the first one's.
pub(super) struct Crowd {
    clients: Clients,
    readers: Range<u32>,
    /// Whether each shows its total.
    exact: Vec<bool>,
}

impl Crowd {
    pub(super) fn of(readers: Range<u32>) -> Result<Self> {
        rustix::process::nice(NICE)?;
        Ok(Self {
            clients: Clients::new()?,
            exact: vec![false; readers.len()],
            readers,
        })
    }

    pub(super) fn open(
        &mut self,
        nodes: &[SocketAddr],
        at_once: usize,
        awaits: &Awaits,
    ) -> Result<Awaited> {
        let start = Instant::now();
        let end = start + Duration::from_millis(awaits.most_ms);
        let target = self.readers.len();
        while self.clients.open < target {
            while self.clients.viewers.len() < target
                && self.clients.viewers.len() - self.clients.open < at_once
            {
                let place = self.clients.viewers.len();
                let number = self.readers.start as usize + place;
                let node = nodes[place % nodes.len()];
                self.clients.connect(number, node, Asks::Crowd)?;
            }
            self.clients.read(LOOK, |_, _| {})?;
            if Instant::now() > end {
                let open = self.clients.open;
                return Err(format!("only {open} of {target} readers are in").into());
            }
        }
        let opened = start.elapsed();
        let awaited = self.awaits(awaits)?;
        Ok(Awaited {
            opened_ms: opened.as_secs_f64() * 1e3,
            exact_ms: awaited.exact_ms + opened.as_secs_f64() * 1e3,
            ..awaited
        })
    }

    pub(super) fn awaits(&mut self, awaits: &Awaits) -> Result<Awaited> {
        let start = Instant::now();
        let least = start + Duration::from_millis(awaits.least_ms);
        let most = start + Duration::from_millis(awaits.most_ms);
        let all = self.readers.len();
        let mut right = 0;
        for place in 0..all {
            self.exact[place] = self.is_exact(place, awaits);
            right += usize::from(self.exact[place]);
        }
        let mut exact_at = start;
        let mut counts = 0;
        loop {
            let now = Instant::now();
            if now >= most || (right == all && now >= least) {
                break;
            }
            let mut seen = Vec::new();
            self.clients.read(LOOK, |place, _| seen.push(place))?;
            counts += seen.len() as u64;
            let before = right;
            for place in seen {
                let is = self.is_exact(place, awaits);
                right += usize::from(is);
                right -= usize::from(std::mem::replace(&mut self.exact[place], is));
            }
            if right == all && before < all {
                exact_at = Instant::now();
            }
        }
        let wrong = self.exact.iter().position(|exact| !exact).map(|place| {
            let reader = self.reader(place);
            let shown = self.clients.viewers[place].shown;
            (reader, shown, awaits.totals.shown_to(reader))
        });
        Ok(Awaited {
            opened_ms: 0.0,
            exact_ms: (exact_at - start).as_secs_f64() * 1e3,
            readers: all,
            exact: right,
            counts,
            wrong,
        })
    }

    fn is_exact(&self, place: usize, awaits: &Awaits) -> bool {
        let viewer = &self.clients.viewers[place];
        !viewer.partial && viewer.shown == awaits.totals.shown_to(self.reader(place))
    }

    fn reader(&self, place: usize) -> u32 {
        // Places are as many as the readers of the range.
        self.readers.start + u32::try_from(place).unwrap_or(u32::MAX)
    }
}
