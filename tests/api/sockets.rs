//! The service over sockets, with a shard and the test in one runtime.
//!
//! [`Sockets`] gives each request a connection, which the service's own code serves: hyper reads
//! it, and a stream leaves hyper for the shard, which is a task. So whatever the service does
//! follows the test's clock, a paused one too.
//!
//! A paused clock moves when no task runs and a look at the sockets wakes none. A pair of Unix
//! sockets takes TCP's place, for the kernel delivers within the call that sends, where over
//! loopback it may leave that to a thread of its own: then a look sees nothing, and the clock moves
//! while bytes are on their way. What TCP itself does is tested in `wire.rs` and `tests/survival`.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, TcpStream},
    os::{fd::OwnedFd, unix::net::UnixStream as StdUnixStream},
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header},
};
use futures_util::FutureExt;
use http_body_util::BodyExt;
use livecount::{
    app::{App, Face},
    delivery::shards::Shards,
    server::{Site, client::Peer},
};
use socket2::SockRef;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

/// What the kernel buffers for one connection's way out, as on the service's own listener.
const SEND_BUFFER: usize = 16 << 10;

/// The service as it is met over sockets.
pub(crate) struct Sockets(Site);

impl Sockets {
    /// Has a shard deliver what this service streams. Must be called within the test's runtime.
    pub(crate) fn new(app: &App) -> Self {
        let made = Shards::as_task(app.hub(), app.config().heartbeat);
        let (shards, shard) = made.expect("the system gives an epoll");
        app.show_shards(&shards);
        tokio::spawn(shard);
        Self(Site::new(app.router(Face::Public), Some(shards)))
    }

    /// Sends a request over a connection of its own; answers once the response's head is there.
    pub(crate) async fn send(&self, request: Request<Body>) -> Response<Body> {
        let (ours, theirs) = StdUnixStream::pair().expect("the system gives sockets");
        let theirs = TcpStream::from(OwnedFd::from(theirs));
        theirs.set_nonblocking(true).expect("the socket is open");
        let buffer = SockRef::from(&theirs).set_send_buffer_size(SEND_BUFFER);
        buffer.expect("the socket is open");
        let peer = request.extensions().get::<Peer>();
        let peer = peer.map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |peer| peer.0);
        tokio::spawn(self.0.clone().serve(theirs, peer));

        ours.set_nonblocking(true).expect("the socket is open");
        let mut line = Line {
            socket: UnixStream::from_std(ours).expect("the runtime has io"),
            unread: Vec::new(),
        };
        let asks_for_body = *request.method() != Method::HEAD;
        line.say(&encode(request)).await;
        let (status, headers) = line.head().await;
        let has_body =
            asks_for_body && status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED;
        let framing = if has_body {
            Framing::of(&headers)
        } else {
            Framing::Length(0)
        };
        let body =
            futures_util::stream::try_unfold((line, framing), async |(mut line, framing)| {
                let next = line.part(framing).await?;
                Ok::<_, io::Error>(next.map(|(part, framing)| (part, (line, framing))))
            });
        let mut response = Response::new(Body::from_stream(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// A request as HTTP/1.1. Adds nothing but the length of its body; a body that is not at hand is
/// announced, and does not come.
fn encode(request: Request<Body>) -> Vec<u8> {
    let (parts, body) = request.into_parts();
    let body = body.collect().now_or_never();
    let body = body.map(|body| body.expect("the body does not fail").to_bytes());
    let mut bytes = format!("{} {} HTTP/1.1\r\n", parts.method, parts.uri).into_bytes();
    for (name, value) in &parts.headers {
        bytes.extend_from_slice(name.as_str().as_bytes());
        bytes.extend_from_slice(b": ");
        bytes.extend_from_slice(value.as_bytes());
        bytes.extend_from_slice(b"\r\n");
    }
    let length = body.as_ref().map_or(1, Bytes::len);
    if length > 0 && !parts.headers.contains_key(header::CONTENT_LENGTH) {
        bytes.extend_from_slice(format!("content-length: {length}\r\n").as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(&body.unwrap_or_default());
    bytes
}

/// How the end of a body is known, with what is left of it.
#[derive(Debug, Clone, Copy)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Framing {
    fn of(headers: &HeaderMap) -> Self {
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Self::Chunked;
        }
        let length = headers.get(header::CONTENT_LENGTH);
        length.map_or(Self::UntilClose, |length| {
            let length = length.to_str().expect("a length is ASCII");
            Self::Length(length.parse().expect("a length is a number"))
        })
    }
}

/// The client's end of a connection; closed when dropped.
struct Line {
    socket: UnixStream,
    unread: Vec<u8>,
}

impl Line {
    async fn say(&mut self, bytes: &[u8]) {
        // Who is refused before the end may be hung up on; the answer says why.
        let _ = self.socket.write_all(bytes).await;
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> io::Result<bool> {
        Ok(self.socket.read_buf(&mut self.unread).await? > 0)
    }

    /// Reads more, which must come.
    async fn must_more(&mut self) -> io::Result<()> {
        match self.more().await? {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// Takes what comes up to and with `mark`.
    async fn up_to(&mut self, mark: &[u8]) -> io::Result<String> {
        loop {
            let found = self.unread.windows(mark.len()).position(|at| at == mark);
            if let Some(at) = found {
                let taken = self.unread.drain(..at + mark.len()).collect();
                return Ok(String::from_utf8(taken).expect("it is UTF-8"));
            }
            self.must_more().await?;
        }
    }

    async fn head(&mut self) -> (StatusCode, HeaderMap) {
        let head = self.up_to(b"\r\n\r\n").await.expect("an answer comes");
        let mut lines = head.trim_end().lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1));
        let status = status.expect("a status").parse().expect("a known status");
        let mut headers = HeaderMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").expect("a field");
            let name: HeaderName = name.parse().expect("a field's name");
            let value: HeaderValue = value.parse().expect("a field's value");
            headers.append(name, value);
        }
        (status, headers)
    }

    /// The next part of a body, with what is left of it; `None` at its end.
    async fn part(&mut self, framing: Framing) -> io::Result<Option<(Bytes, Framing)>> {
        match framing {
            Framing::Length(0) => Ok(None),
            Framing::Length(left) => {
                if self.unread.is_empty() {
                    self.must_more().await?;
                }
                let take = left.min(self.unread.len());
                let part: Bytes = self.unread.drain(..take).collect();
                Ok(Some((part, Framing::Length(left - take))))
            }
            Framing::Chunked => {
                let size = self.up_to(b"\r\n").await?;
                let size = usize::from_str_radix(size.trim_end(), 16).expect("a chunk's size");
                while self.unread.len() < size + 2 {
                    self.must_more().await?;
                }
                let part: Bytes = self.unread.drain(..size).collect();
                let end: Vec<u8> = self.unread.drain(..2).collect();
                assert_eq!(end, b"\r\n", "a chunk ends with its size");
                Ok((size > 0).then_some((part, framing)))
            }
            Framing::UntilClose => {
                if self.unread.is_empty() && !self.more().await? {
                    return Ok(None);
                }
                Ok(Some((std::mem::take(&mut self.unread).into(), framing)))
            }
        }
    }
}
