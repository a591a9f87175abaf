//! One stream of the load: its socket, what it asks, what it was shown.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use livecount::auth::token::{self, Rules};
use mio::{Interest, Registry, Token, net::TcpStream};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Result, crowd, orders::Asks, server::SECRET};

/// Source addresses, since one has 28,000 ports and a closed connection keeps its own for a
/// minute.
const SOURCES: usize = 240;

/// What an event says about its name and its number.
const COUNT: &[u8] = b"event: count\n";
const NUMBER: &[u8] = b"\"viewers\":";
const PARTIAL: &[u8] = b"\"partial\":true";

pub(super) struct Viewer {
    socket: TcpStream,
    /// What is still to be sent.
    request: Vec<u8>,
    address: SocketAddr,
    asks: Asks,
    pub(super) open: bool,
    /// The beginning of an event whose end has not come.
    pending: Vec<u8>,
    /// Counts since the last order.
    pub(super) counts: u32,
    pub(super) bytes: u64,
    /// The newest number of viewers.
    pub(super) shown: u32,
    /// Whether that was said to lack other nodes' viewers.
    pub(super) partial: bool,
}

impl Viewer {
    /// Begins to connect, from the source address of its place, and sends the request where that
    /// is possible at once, as it is on loopback.
    pub(super) fn connect(
        registry: &Registry,
        token: Token,
        number: usize,
        address: SocketAddr,
        asks: Asks,
    ) -> Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        let host = u8::try_from(token.0 % SOURCES + 1)?;
        let source = SocketAddr::from((Ipv4Addr::new(127, 0, 0, host), 0));
        socket.bind(&source.into())?;
        match socket.connect(&address.into()) {
            Err(error)
                if error.raw_os_error() != Some(rustix::io::Errno::INPROGRESS.raw_os_error()) =>
            {
                return Err(error.into());
            }
            _ => {}
        }
        let mut viewer = Self {
            socket: TcpStream::from_std(socket.into()),
            request: asks.first_request(number, address)?,
            address,
            asks,
            open: false,
            pending: Vec::new(),
            counts: 0,
            bytes: 0,
            shown: 0,
            partial: false,
        };
        viewer.send()?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        registry.register(&mut viewer.socket, token, interest)?;
        Ok(viewer)
    }

    /// Sends what is left of the request.
    pub(super) fn send(&mut self) -> io::Result<()> {
        while !self.request.is_empty() {
            match self.socket.write(&self.request) {
                Ok(sent) => drop(self.request.drain(..sent)),
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        // An empty list, so that 15,000 of them are no burden to the machine.
        self.request = Vec::new();
        Ok(())
    }

    /// Reads what there is. Fails where the server ended the stream.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<()> {
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err("the server ended a stream".into()),
                Ok(read) => {
                    self.bytes += u64::try_from(read)?;
                    self.take(&buffer[..read])?;
                    if read < buffer.len() {
                        // Edge-triggered, and a short read has taken everything.
                        return Ok(());
                    }
                }
                Err(error) if waits(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if self.pending.is_empty() {
            let rest = self.look(bytes)?;
            self.pending.extend_from_slice(&bytes[bytes.len() - rest..]);
        } else {
            let mut pending = std::mem::take(&mut self.pending);
            pending.extend_from_slice(bytes);
            let rest = self.look(&pending)?;
            self.pending
                .extend_from_slice(&pending[pending.len() - rest..]);
        }
        Ok(())
    }

    /// Takes what is whole; answers how many bytes are not.
    fn look(&mut self, bytes: &[u8]) -> Result<usize> {
        if !self.open && self.asks == Asks::Ticket && bytes.starts_with(b"HTTP/1.1 201") {
            return self.redeem(bytes);
        }
        if !self.open && !bytes.starts_with(b"HTTP/1.1 200") {
            let start = String::from_utf8_lossy(&bytes[..bytes.len().min(300)]);
            return Err(format!("not a stream: {start}").into());
        }
        if self.asks == Asks::Nchan {
            self.open |= find(bytes, b"\r\n\r\n").is_some();
        }
        let mut start = 0;
        while let Some(length) = find(&bytes[start..], b"\n\n") {
            self.event(&bytes[start..start + length]);
            start += length + 2;
        }
        // The end of a chunk is nothing to wait with.
        let rest = bytes.len() - start;
        Ok(if &bytes[start..] == b"\r\n" { 0 } else { rest })
    }

    /// Asks for the stream of the ticket that came.
    fn redeem(&mut self, bytes: &[u8]) -> Result<usize> {
        let Some(at) = find(bytes, b"\"stream_url\":\"") else {
            return Ok(bytes.len());
        };
        let url = &bytes[at + 14..];
        let (Some(end), true) = (find(url, b"\""), url.ends_with(b"}")) else {
            return Ok(bytes.len());
        };
        let url = std::str::from_utf8(&url[..end])?;
        self.request = get(url, self.address);
        self.send()?;
        Ok(0)
    }

    fn event(&mut self, event: &[u8]) {
        if find(event, COUNT).is_none() {
            return;
        }
        let number = find(event, NUMBER).map_or(0, |at| {
            let digits = event[at + NUMBER.len()..].iter();
            let digits = digits.take_while(|byte| byte.is_ascii_digit());
            digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'))
        });
        self.open = true;
        self.counts += 1;
        self.shown = number;
        self.partial = find(event, PARTIAL).is_some();
    }
}

impl Asks {
    fn first_request(self, number: usize, address: SocketAddr) -> Result<Vec<u8>> {
        Ok(match self {
            Self::OneBlog => get("/v1/stream?blog_id=42", address),
            Self::OwnBlog => get(&format!("/v1/stream?blog_id={number}"), address),
            Self::Crowd => {
                let reader = u32::try_from(number)?;
                let path = format!("/v1/stream?blog_id={}", crowd::blog(reader));
                let id = crowd::is_named(reader).then(|| format!("&viewer=reader-{reader}"));
                get(&(path + &id.unwrap_or_default()), address)
            }
            Self::Nchan => get("/subscribe", address),
            Self::Ticket => {
                let (user, hour) = (format!("user-{number}"), Duration::from_hours(1));
                let rules = Rules::default();
                let token = token::sign(SECRET.as_bytes(), &user, None, None, hour, &rules)?;
                let body = "{\"blog_id\":42}";
                let length = body.len();
                format!(
                    "POST /v1/join HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
                )
                .into_bytes()
            }
        })
    }
}

/// As a browser's `EventSource` asks, without the fields that nobody here reads.
fn get(path: &str, address: SocketAddr) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nAccept: text/event-stream\r\nCache-Control: no-cache\r\n\r\n").into_bytes()
}

/// True for errors that pass.
fn waits(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, NotConnected, WouldBlock};
    matches!(error.kind(), Interrupted | NotConnected | WouldBlock)
}

/// Where `wanted` begins first.
fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let (first, rest) = wanted.split_first()?;
    let mut from = 0;
    loop {
        let at = from + bytes[from..].iter().position(|byte| byte == first)?;
        if bytes[at + 1..].starts_with(rest) {
            return Some(at);
        }
        from = at + 1;
    }
}
