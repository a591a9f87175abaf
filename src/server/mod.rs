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

use std::{io::Result, net::SocketAddr};

use axum::Router;
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
};

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
    connections: JoinHandle<()>,
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
        let (queue, arrivals) = mpsc::unbounded_channel();
        let site = Site::new(router, shards);
        let acceptor = Acceptor::start(listener, queue, site.relief())?;
        let connections = tokio::spawn(serve(arrivals, site));
        Ok(Self {
            acceptor,
            address,
            connections,
        })
    }

    /// Where it listens; with the port that was picked for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops accepting and drops every connection, whatever it is doing.
    pub async fn stop(self) {
        self.acceptor.stop();
        self.connections.abort();
        // An error says that the task was aborted, which is what was asked for.
        let _ = self.connections.await;
    }
}

async fn serve(mut arrivals: mpsc::UnboundedReceiver<Arrival>, site: Site) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            arrival = arrivals.recv() => {
                let Some((socket, peer)) = arrival else { break };
                connections.spawn(site.clone().serve(socket, peer.ip()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}
