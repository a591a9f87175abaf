//! Accepting: a thread of its own, so that the kernel's queue is emptied whatever else goes on.
//!
//! Measured: in a storm of 15,000 joins the queue overflowed 200 to 2,200 times behind tokio's
//! `accept`, and never with a thread.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{sync::mpsc, time::Instant};

/// A socket that never blocks, and who is at its other end.
pub(super) type Arrival = (TcpStream, SocketAddr);

/// Longest queue of connections that nobody accepted yet; the kernel cuts it to `somaxconn`.
const BACKLOG: i32 = 65_535;
/// How long sent data may stay unacknowledged before the peer counts as gone.
const USER_TIMEOUT: Duration = Duration::from_secs(20);
/// What the kernel buffers for one socket's way out. A count is 120 bytes.
const SEND_BUFFER: usize = 16 << 10;
/// Most bytes that may wait unsent before the socket counts as full: a slow reader is noticed
/// early, and what it is sent later is fresh.
const UNSENT: u32 = 2 << 10;
/// A back-up for the heartbeat: probes after 30 s of silence, five seconds apart, three of them.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(5), 3);
/// Wait after an error that another try at once would only meet again, such as `EMFILE`.
const PAUSE: Duration = Duration::from_millis(50);

/// Shortest time between two complaints in the log.
const COMPLAINTS: Duration = Duration::from_secs(10);

/// Failures of accepting since the process started, on all listeners.
static ERRORS: AtomicU64 = AtomicU64::new(0);

/// How often a connection could not be accepted since the process started, mostly for want of
/// descriptors.
#[must_use]
pub fn accept_errors() -> u64 {
    ERRORS.load(Ordering::Relaxed)
}

/// Binds a listener whose options every accepted socket inherits.
///
/// # Errors
///
/// When the address cannot be bound.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    // Without it a restart cannot bind while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    tune(&SockRef::from(&socket))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sets what accepted sockets inherit.
fn tune(socket: &SockRef<'_>) -> io::Result<()> {
    let (idle, interval, probes) = KEEPALIVE;
    socket.set_tcp_nodelay(true)?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.set_tcp_notsent_lowat(UNSENT)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(idle)
            .with_interval(interval)
            .with_retries(probes),
    )
}

/// The accepting thread. Dropped or stopped, it ends.
#[derive(Debug)]
pub(super) struct Acceptor {
    listener: Arc<TcpListener>,
    stopping: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Acceptor {
    pub(super) fn start(
        listener: TcpListener,
        queues: Vec<mpsc::UnboundedSender<Arrival>>,
        relieve: impl Fn() + Send + 'static,
    ) -> io::Result<Self> {
        // A listener that was handed in by a supervisor may lack what bind sets.
        tune(&SockRef::from(&listener))?;
        listener.set_nonblocking(false)?;
        let listener = Arc::new(listener);
        let stopping = Arc::new(AtomicBool::new(false));
        let (accepting, end) = (Arc::clone(&listener), Arc::clone(&stopping));
        let thread = thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || accept(&accepting, &queues, &relieve, &end))?;
        Ok(Self {
            listener,
            stopping,
            thread: Some(thread),
        })
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stopping.store(true, Ordering::Release);
        // Linux wakes an `accept` on a socket that is shut down, with EINVAL.
        let _ = SockRef::from(&*self.listener).shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            // A panic of that thread was its own; there is nothing left to do for it.
            let _ = thread.join();
        }
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for the next connection. Its socket is told not to block in the same call: all who use it
/// after rely on that.
fn accept_one(listener: &TcpListener) -> io::Result<Arrival> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let (socket, peer) = acceptfrom_with(listener, flags)?;
    let peer = peer.ok_or(Errno::AFNOSUPPORT)?.try_into()?;
    Ok((socket.into(), peer))
}

/// Accepts, and puts one connection after the other into each queue in its turn.
fn accept(
    listener: &TcpListener,
    queues: &[mpsc::UnboundedSender<Arrival>],
    relieve: &impl Fn(),
    stopping: &AtomicBool,
) {
    let mut complained: Option<Instant> = None;
    let mut turns = queues.iter().cycle();
    while !stopping.load(Ordering::Acquire) {
        match accept_one(listener) {
            Ok(arrival) => {
                let queue = turns.next();
                if queue.is_none_or(|queue| queue.send(arrival).is_err()) {
                    return;
                }
            }
            // The peer was gone before it was accepted: nothing is wrong here.
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) if stopping.load(Ordering::Acquire) => return,
            Err(error) => {
                ERRORS.fetch_add(1, Ordering::Relaxed);
                if complained.is_none_or(|at| at.elapsed() > COMPLAINTS) {
                    tracing::warn!(%error, "connections cannot be accepted; trying on");
                    complained = Some(Instant::now());
                }
                relieve();
                thread::sleep(PAUSE);
            }
        }
    }
}
