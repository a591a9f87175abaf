//! How much an HTTP/2 connection may send.
//!
//! Every frame is legal input and most are answered by h2 itself, so a peer that sends nothing but
//! `PING`, `SETTINGS`, `WINDOW_UPDATE` or frames of unknown kinds would be served for ever, and
//! the streams on its connection would count as long. h2 bounds what its own state costs: heads
//! and their continuations, pending resets, one unanswered `PING`. This bounds the bytes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Most bytes that may come before anything is earned: hyper's window of a connection, 1 MiB, and
/// as much again for the heads of as many requests as are let in at a time. What was earned beyond
/// it is kept only for requests that are open, whose bodies may still be on their way.
const MOST: u64 = 2 << 20;
/// What a request earns: its head of 128 KiB and its body, with what comes on top.
const REQUEST: u64 = 256 << 10;
/// What a second earns: pings, and the windows of a quiet stream.
const SECOND: u64 = 1 << 10;
/// Bytes sent for each that they earn. Windows are opened for what was sent, a few bytes for many;
/// the answer to a `PING` is as long as the `PING` and must not pay for it.
const SENT: u64 = 4;

/// The requests of one connection, counted by whoever answers them.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    /// Since the last look.
    begun: AtomicU64,
    open: AtomicU64,
}

/// One request, open until the body of its answer is gone.
#[derive(Debug)]
pub(super) struct OpenRequest(Requests);

impl Requests {
    /// Counts one that has just begun.
    pub(super) fn begin(&self) -> OpenRequest {
        self.0.begun.fetch_add(1, Ordering::Relaxed);
        self.0.open.fetch_add(1, Ordering::Relaxed);
        OpenRequest(self.clone())
    }

    /// How many are open.
    pub(super) fn open(&self) -> u64 {
        self.0.open.load(Ordering::Relaxed)
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.0.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one connection may still send.
#[derive(Debug)]
pub(super) struct Allowance {
    left: u64,
    since: Instant,
    sent: u64,
    requests: Requests,
}

impl Allowance {
    pub(super) fn new(requests: Requests, now: Instant) -> Self {
        Self {
            left: MOST,
            since: now,
            sent: 0,
            requests,
        }
    }

    /// Notes bytes on their way out.
    pub(super) fn send(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    /// Takes what came in; false where it is too much.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> bool {
        let seconds = now.duration_since(self.since).as_secs();
        self.since += Duration::from_secs(seconds);
        let begun = self.requests.0.begun.swap(0, Ordering::Relaxed);
        let time_and_sent = seconds
            .saturating_mul(SECOND)
            .saturating_add(std::mem::take(&mut self.sent) / SENT);
        let bodies = self.requests.open().saturating_mul(REQUEST);
        let most = MOST.saturating_add(bodies);
        // Neither time nor what is sent raises it above what there was, requests do.
        let left = self
            .left
            .saturating_add(time_and_sent)
            .min(self.left.max(MOST));
        self.left = left.saturating_add(begun.saturating_mul(REQUEST)).min(most);
        let left = self.left.checked_sub(bytes as u64);
        self.left = left.unwrap_or(0);
        left.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes that are taken in portions, of which each earns `answer` bytes of output.
    fn taken(allowance: &mut Allowance, portion: usize, answer: usize, now: Instant) -> usize {
        let mut sum = 0;
        while sum < 100 << 20 && allowance.take(portion, now) {
            sum += portion;
            allowance.send(answer);
        }
        sum
    }

    #[test]
    fn a_flood_that_is_answered_byte_for_byte_comes_to_its_end() {
        let now = Instant::now();
        let mut allowance = Allowance::new(Requests::default(), now);
        let sum = taken(&mut allowance, 17, 17, now);
        assert!(sum < 3 << 20, "{sum}");
    }

    #[test]
    fn requests_and_windows_of_what_was_sent_go_on_for_ever() {
        let now = Instant::now();
        let requests = Requests::default();
        let mut allowance = Allowance::new(requests.clone(), now);
        assert!(taken(&mut allowance, 26, 140, now) >= 100 << 20);
        for _ in 0..1_000 {
            drop(requests.begin());
            assert!(allowance.take(200 << 10, now));
        }
    }

    #[test]
    fn bodies_may_come_after_the_heads_of_all() {
        let now = Instant::now();
        let requests = Requests::default();
        let mut allowance = Allowance::new(requests.clone(), now);
        let mut open: Vec<OpenRequest> = (0..250).map(|_| requests.begin()).collect();
        for _ in 0..250 {
            assert!(allowance.take(100, now));
        }
        while let Some(request) = open.pop() {
            assert!(allowance.take(200 << 10, now), "{} are open", open.len());
            drop(request);
        }
        // What they did not need is not kept for anything else.
        assert!(taken(&mut allowance, 512, 0, now) <= 2 << 20);
    }

    #[test]
    fn open_requests_let_nothing_else_earn_more() {
        let now = Instant::now();
        let requests = Requests::default();
        let mut allowance = Allowance::new(requests.clone(), now);
        let _open: Vec<OpenRequest> = (0..250).map(|_| requests.begin()).collect();
        assert!(allowance.take(252 * (256 << 10), now));
        let much_later = now + Duration::from_hours(48);
        assert!(taken(&mut allowance, 512, 0, much_later) <= 6 << 20);
    }

    #[test]
    fn time_earns_too_and_no_more_than_there_was() {
        let now = Instant::now();
        let mut allowance = Allowance::new(Requests::default(), now);
        assert!(!allowance.take(3 << 20, now));
        let later = now + Duration::from_secs(10);
        assert_eq!(taken(&mut allowance, 512, 0, later), 10 << 10);
        let much_later = now + Duration::from_hours(48);
        assert_eq!(taken(&mut allowance, 512, 0, much_later), 2 << 20);
    }
}
