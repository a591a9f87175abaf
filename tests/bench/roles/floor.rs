//! The floor: a bare loop of `send` over descriptors. It parses nothing, frames nothing and keeps
//! nothing but the sockets, which have the options that livecount's have.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, mpsc},
    thread,
};

use livecount::{
    hub::{Encode, Occupancy, RoomId},
    server,
    sse::Encoder,
};

use super::{orders, report};
use crate::{Result, orders::Order};

pub(super) fn play() -> Result<()> {
    let listener = server::bind((Ipv4Addr::LOCALHOST, 0).into())?;
    report(&listener.local_addr()?)?;
    let mut loops = Vec::new();
    for order in orders() {
        match order? {
            Order::Accept { viewers, threads } => {
                let sockets = accept(&listener, viewers)?;
                let share = sockets.len().div_ceil(threads);
                loops.extend(sockets.chunks(share).map(Loop::start));
            }
            Order::Send { text } => {
                let text: Arc<str> = text.into();
                for one in &loops {
                    one.texts.send(Arc::clone(&text))?;
                }
                for one in &loops {
                    one.ends.recv()??;
                }
            }
            other => return Err(format!("that is not the floor's: {other:?}").into()),
        }
        report(&())?;
    }
    Ok(())
}

fn accept(listener: &TcpListener, viewers: u32) -> Result<Vec<Arc<TcpStream>>> {
    let welcome = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_owned() + &count(1)?;
    let mut sockets = Vec::new();
    for _ in 0..viewers {
        let (mut socket, _) = listener.accept()?;
        // The request is not looked at, but must not lie there.
        let _ = socket.read(&mut [0; 1_024])?;
        socket.write_all(welcome.as_bytes())?;
        socket.set_nonblocking(true)?;
        sockets.push(Arc::new(socket));
    }
    Ok(sockets)
}

/// A thread that sends to its share of the sockets. It stays, since the kernel's account of a
/// thread's time goes with the thread.
struct Loop {
    texts: mpsc::Sender<Arc<str>>,
    ends: mpsc::Receiver<io::Result<()>>,
}

impl Loop {
    fn start(sockets: &[Arc<TcpStream>]) -> Self {
        let (texts, orders) = mpsc::channel::<Arc<str>>();
        let (end, ends) = mpsc::channel();
        let sockets = sockets.to_vec();
        thread::spawn(move || {
            for text in orders {
                if end.send(send(&sockets, text.as_bytes())).is_err() {
                    return;
                }
            }
        });
        Self { texts, ends }
    }
}

fn send(sockets: &[Arc<TcpStream>], bytes: &[u8]) -> io::Result<()> {
    for socket in sockets {
        let mut socket = &**socket;
        // Standard library: one call of `send`, with MSG_NOSIGNAL.
        if socket.write(bytes)? != bytes.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    Ok(())
}

/// What livecount sends when blog 42 has so many anonymous viewers, chunk framing included.
pub(crate) fn count(viewers: u32) -> Result<String> {
    let occupancy = Occupancy {
        viewers,
        connections: viewers,
        members: 0,
        partial: false,
    };
    let frame = Encoder.count(&RoomId::parse("blog:42")?, occupancy);
    Ok(String::from_utf8(frame.chunk().to_vec())?)
}
