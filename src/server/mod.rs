//! Sockets: accepting them, one connection through hyper, admission, drain.
//!
//! A [`Server`] binds nothing and installs no signal handler: it is handed a listener, so a test
//! passes port 0 and its own end.

mod accept;
pub mod admission;
mod allowance;
pub mod client;
mod connection;
pub mod descriptors;
pub mod drain;
mod handoff;
mod io;
mod socket;

use std::{
    future::poll_fn,
    io::Result,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    thread,
};

use axum::Router;
use tokio::{sync::mpsc, task::JoinSet};

use self::accept::{Acceptor, Arrival};
pub use self::{
    accept::{accept_errors, bind},
    connection::Site,
};
use crate::delivery::shards::Shards;

/// A running listener and its connections.
#[derive(Debug)]
pub struct Server {
    acceptor: Acceptor,
    address: SocketAddr,
    doors: JoinSet<()>,
}

impl Server {
    /// Serves `router` to whoever connects to `listener`, made by [`bind`] or one like it, until
    /// [`Server::stop`]. Streams go to the shards where there are some and HTTP allows it, else
    /// they stay the bodies of their responses. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the listener has no address, or no thread can be started for it.
    pub fn start(
        listener: std::net::TcpListener,
        router: Router,
        shards: Option<Shards>,
    ) -> Result<Self> {
        let address = listener.local_addr()?;
        let site = Site::new(router, shards);
        let mut doors = JoinSet::new();
        // One for each core: what a connection begins with is done at the door.
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let queues = (0..cores).map(|_| {
            let (queue, arrivals) = mpsc::unbounded_channel();
            doors.spawn(serve(arrivals, site.clone()));
            queue
        });
        let acceptor = Acceptor::start(listener, queues.collect(), site.relief())?;
        Ok(Self {
            acceptor,
            address,
            doors,
        })
    }

    /// Where it listens; with the port that was picked for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting and drops every connection, whatever it is doing.
    pub async fn stop(mut self) {
        self.acceptor.stop();
        self.doors.shutdown().await;
    }
}

/// Serves those who arrive at one door.
///
/// Nearly every connection is a stream whose request is there already and which a shard has after
/// the first poll. That one is made right here; only who is not done then gets a task.
async fn serve(mut arrivals: mpsc::UnboundedReceiver<Arrival>, site: Site) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrival = arrivals.recv() => {
                let Some((socket, peer)) = arrival else { break };
                let mut connection = Box::pin(site.clone().serve(socket, peer.ip()));
                if poll_fn(|cx| Poll::Ready(begin(connection.as_mut(), cx))).await.is_pending() {
                    connections.spawn(connection);
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// Polls a connection for the first time. One that panics is over, as a task's would be, and its
/// door goes on.
fn begin(connection: Pin<&mut impl Future<Output = ()>>, cx: &mut Context<'_>) -> Poll<()> {
    catch_unwind(AssertUnwindSafe(|| connection.poll(cx))).unwrap_or(Poll::Ready(()))
}
