//! Many small blogs, changing all the time: how soon is a change seen by whoever is there?

use std::{net::SocketAddr, time::Duration};

use tokio::time::Instant;

use super::clients::Clients;
use crate::{
    Result,
    orders::{Asks, Churned},
};

/// How long one waits for the last changes to be seen.
const PATIENCE: Duration = Duration::from_secs(2);
/// Most changes before what came is read, so that a late one does not delay the reading.
const AT_ONCE: u64 = 32;
/// How often one looks for a blog without a change under way before giving up.
const TRIES: usize = 64;

/// Lets second viewers come and go, and in the end go. The clients hold one stream in each blog,
/// and the blog's number is the stream's place.
///
/// A blog's next change waits until the one before it was seen, so that each change has one count
/// that shows it.
pub(super) fn run(
    clients: &mut Clients,
    address: SocketAddr,
    per_second: u32,
    time: Duration,
) -> Result<Churned> {
    let mut churn = Churn::new(clients.viewers.len());
    let mut changes = 0;
    let start = Instant::now();
    let seconds = loop {
        let elapsed = start.elapsed();
        if elapsed >= time {
            break elapsed.as_secs_f64();
        }
        let due = elapsed.as_micros() * u128::from(per_second) / 1_000_000;
        let due = u64::try_from(due)?.saturating_sub(changes);
        for _ in 0..due.min(AT_ONCE) {
            churn.change(clients, address)?;
            changes += 1;
        }
        churn.read(clients, Duration::from_millis(u64::from(due == 0)))?;
    };
    let mut unseen = churn.wait(clients)?;
    let mut latencies = std::mem::take(&mut churn.latencies);
    // Seen too, or the next run would begin with wrong numbers; not among the latencies.
    churn.all_go(clients);
    unseen += churn.wait(clients)?;

    latencies.sort_unstable();
    let joined = latencies.iter().filter(|latency| latency.1);
    let joined: Vec<_> = joined.copied().collect();
    let left = latencies.iter().filter(|latency| !latency.1);
    let left: Vec<_> = left.copied().collect();
    let at = |percent| percentile(&latencies, percent);
    Ok(Churned {
        changes,
        unseen,
        seconds,
        median_ms: at(50),
        p99_ms: at(99),
        most_ms: at(100),
        joined_ms: percentile(&joined, 50),
        left_ms: percentile(&left, 50),
    })
}

/// In milliseconds, of what is sorted.
fn percentile(latencies: &[(Duration, bool)], percent: usize) -> f64 {
    let last = latencies.len().saturating_sub(1);
    let latency = latencies.get(last * percent / 100);
    latency.map_or(0.0, |latency| latency.0.as_secs_f64()) * 1e3
}

/// A blog with its first viewer, who stays, and perhaps a second one, who comes and goes.
#[derive(Debug, Default)]
struct Blog {
    second: Option<usize>,
    /// Since when the first viewer is to see another number, and which.
    due: Option<(Instant, u32)>,
}

struct Churn {
    blogs: Vec<Blog>,
    /// With whether it was a join.
    latencies: Vec<(Duration, bool)>,
}

impl Churn {
    fn new(blogs: usize) -> Self {
        Self {
            blogs: std::iter::repeat_with(Blog::default).take(blogs).collect(),
            latencies: Vec::new(),
        }
    }

    /// Lets a second viewer come or go.
    fn change(&mut self, clients: &mut Clients, address: SocketAddr) -> Result<()> {
        let random = || rand::random_range(0..self.blogs.len());
        let mut tries = std::iter::repeat_with(random).take(TRIES);
        let number = tries.find(|number| self.blogs[*number].due.is_none());
        let number = number.ok_or("most blogs wait for a count that does not come")?;
        let blog = &mut self.blogs[number];
        let now = Instant::now();
        if let Some(second) = blog.second.take() {
            blog.due = Some((now, 1));
            clients.viewers.remove(second);
        } else {
            blog.due = Some((now, 2));
            blog.second = Some(clients.connect(number, address, Asks::OwnBlog)?);
        }
        Ok(())
    }

    fn all_go(&mut self, clients: &mut Clients) {
        for blog in &mut self.blogs {
            if let Some(second) = blog.second.take() {
                clients.viewers.remove(second);
                blog.due = Some((Instant::now(), 1));
            }
        }
    }

    fn read(&mut self, clients: &mut Clients, wait: Duration) -> Result<()> {
        clients.read(wait, |place, shown| {
            // Second viewers stand behind all the first ones.
            let Some(blog) = self.blogs.get_mut(place) else {
                return;
            };
            if let Some((since, wanted)) = blog.due
                && shown == wanted
            {
                blog.due = None;
                self.latencies.push((since.elapsed(), wanted == 2));
            }
        })
    }

    /// Waits until all changes were seen; answers how many were not.
    fn wait(&mut self, clients: &mut Clients) -> Result<u64> {
        let end = Instant::now() + PATIENCE;
        loop {
            let due = self.blogs.iter().filter(|blog| blog.due.is_some()).count();
            if due == 0 || Instant::now() >= end {
                return Ok(u64::try_from(due)?);
            }
            self.read(clients, Duration::from_millis(10))?;
        }
    }
}
