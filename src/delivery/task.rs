//! A shard as a task: the same rounds as on a thread, waited for by a runtime.
//!
//! The runtime watches the shard's epoll, which is readable while any of its sockets has an event,
//! and keeps its time, so that a paused clock moves heartbeats and ends too.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use mio::{Events, Poll};
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::Notify,
    time::{Instant, sleep_until},
};

use super::{
    shard::{EVENTS, Shard},
    timing::TICK,
};

/// A shard's epoll as the runtime sees it, by a descriptor of its own.
#[derive(Debug)]
pub(super) struct Sockets(AsyncFd<OwnedFd>);

impl Sockets {
    /// Has the runtime watch a shard's epoll.
    #[expect(
        deprecated,
        reason = "what takes its place is unsafe, for the sake of types that do not own a descriptor; this one does"
    )]
    pub(super) fn watch(poll: &Poll) -> io::Result<Self> {
        let epoll = poll.registry().as_fd().try_clone_to_owned()?;
        AsyncFd::with_interest(epoll, Interest::READABLE).map(Self)
    }

    /// Waits until some socket has an event. The caller takes them all: what it leaves is not told
    /// again.
    async fn ready(&self) {
        match self.0.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            // The runtime goes down, and the task with it.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Shard {
    /// Runs as a task that `called` wakes, until the way is closed; then drops every stream.
    pub(super) async fn run_as_task(mut self, called: Arc<Notify>, sockets: Sockets) {
        let mut events = Events::with_capacity(EVENTS);
        while !self.way.is_closed() {
            tokio::select! {
                () = called.notified() => {}
                () = sockets.ready() => {}
                () = self.next_due() => {}
            }
            loop {
                if let Err(error) = self.poll.poll(&mut events, Some(Duration::ZERO)) {
                    tracing::error!(%error, "a shard cannot look at its sockets");
                }
                self.round(&events, Instant::now());
                if events.is_empty() {
                    break;
                }
            }
        }
    }

    /// Waits until there is something to do by the clock.
    async fn next_due(&self) {
        match self.patience() {
            None => std::future::pending().await,
            // Others on the runtime have their turn between two rounds.
            Some(Duration::ZERO) => tokio::task::yield_now().await,
            Some(_) => {
                let tick = self.wheel.next().filter(|_| !self.has_endings());
                let due = tick.map_or(self.now + TICK, |tick| self.start + TICK * tick);
                sleep_until(due).await;
            }
        }
    }
}
