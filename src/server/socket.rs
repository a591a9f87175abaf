//! A connection's socket, which the runtime watches from the first time on that something waits
//! for it.
//!
//! Nearly every stream is asked for in one piece that is there when its task begins, and then
//! nothing waits for the socket before a shard watches it: entering the runtime's epoll and leaving
//! it again would be two system calls for nothing.

use std::{
    io::{self, Write},
    mem::MaybeUninit,
    net,
    sync::OnceLock,
};

use parking_lot::Mutex;
use rustix::net::RecvFlags;
use tokio::{io::Interest, net::TcpStream};

/// Most bytes that [`Socket::take`] takes; a browser's request for a stream has some 600.
pub(super) const FIRST: usize = 2 << 10;

#[derive(Debug)]
pub(super) struct Socket {
    /// Here until it is watched. Locked for one call on it, which does not block.
    bare: Mutex<Option<net::TcpStream>>,
    watched: OnceLock<TcpStream>,
}

impl Socket {
    /// A socket that does not block.
    pub(super) fn new(socket: net::TcpStream) -> Self {
        Self {
            bare: Mutex::new(Some(socket)),
            watched: OnceLock::new(),
        }
    }

    /// The socket, watched by the runtime from now on.
    ///
    /// # Errors
    ///
    /// When it cannot be watched; it is closed then.
    pub(super) fn watched(&self) -> io::Result<&TcpStream> {
        if let Some(watched) = self.watched.get() {
            return Ok(watched);
        }
        let mut bare = self.bare.lock();
        if let Some(socket) = bare.take() {
            // Nobody else can have set it: there was a bare one.
            let _ = self.watched.set(TcpStream::from_std(socket)?);
        }
        let watched = self.watched.get();
        watched.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// The socket, which nobody watches any more.
    ///
    /// # Errors
    ///
    /// When it could not be watched before, or the runtime does not let go of it.
    pub(super) fn into_std(self) -> io::Result<net::TcpStream> {
        match self.watched.into_inner() {
            Some(watched) => watched.into_std(),
            None => {
                let bare = self.bare.into_inner();
                bare.ok_or_else(|| io::ErrorKind::NotConnected.into())
            }
        }
    }

    /// Takes the first of what has come, up to [`FIRST`] bytes, without waiting; nothing where the
    /// peer has closed its side.
    ///
    /// # Errors
    ///
    /// `WouldBlock` where nothing has come, or what is wrong with the socket.
    pub(super) fn take(&self) -> io::Result<Vec<u8>> {
        if let Some(socket) = &*self.bare.lock() {
            return take(socket);
        }
        let mut taken = Err(io::ErrorKind::WouldBlock.into());
        let socket = self.watched()?;
        // Less than there was room for is all there was: with an edge-triggered epoll the next
        // bytes are a new event. What `try_io` answers is known already.
        let _ = socket.try_io(Interest::READABLE, || {
            taken = take(socket);
            match &taken {
                Ok(bytes) if bytes.len() < FIRST => Err(io::ErrorKind::WouldBlock.into()),
                Ok(_) => Ok(()),
                Err(error) => Err(error.kind().into()),
            }
        });
        taken
    }

    /// Sends what there is room for, where the runtime does not watch the socket; else `None`.
    pub(super) fn send_bare(&self, bytes: &[u8]) -> Option<io::Result<usize>> {
        let bare = self.bare.lock();
        bare.as_ref().map(|mut socket| socket.write(bytes))
    }
}

fn take(socket: impl std::os::fd::AsFd) -> io::Result<Vec<u8>> {
    let mut room = [MaybeUninit::uninit(); FIRST];
    let ((taken, _), _) = rustix::net::recv(socket, &mut room, RecvFlags::empty())?;
    Ok(taken.to_vec())
}
