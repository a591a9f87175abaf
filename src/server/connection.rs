//! One connection, from its first byte through hyper to its end.

use std::{
    convert::Infallible,
    io,
    mem::MaybeUninit,
    net::{IpAddr, Shutdown},
    os::fd::AsRawFd,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use http_body_util::BodyExt;
use hyper::{
    body::{Body as _, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustix::net::RecvFlags;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tower::ServiceExt;

use super::{
    allowance::{Allowance, Requests},
    client::Peer,
    descriptors,
    handoff::{Aside, Asked, Handoff},
    io::{AskedAt, Io},
    socket::Socket,
};
use crate::{
    api::error::{ApiError, Code},
    delivery::shards::{self, Shards},
};

/// Most requests whose head and body are being read at a time; hyper takes 18 KB for each.
const PARSED_AT_A_TIME: usize = 128;
/// From accepting to the end of the first request's head; the same for each later one.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long one request may hold its permit. Nearly all are answered within a millisecond; the
/// few whose rest is slow to come must not keep the many waiting.
const PERMIT_TIME: Duration = Duration::from_millis(250);
/// Largest head: a token of 8 KiB, a ticket of 4, cookies, and as much again. Every head is waited
/// for outside hyper, up to this size.
const MAX_HEAD: usize = 32 << 10;
/// How a client says that it speaks HTTP/2 without being asked (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most requests at a time on one HTTP/2 connection; each may be a stream.
const MAX_HTTP2_STREAMS: u32 = 250;
/// Largest head over HTTP/2 that is answered at all, decoded and with 32 bytes for each field (RFC
/// 9113, section 6.5.2): four times the limit that is told.
const HTTP2_HEAD: u32 = 128 << 10;
/// HTTP/2's own heartbeat: every 20 s, and gone after another 20 s without an answer.
const HTTP2_PING: Duration = Duration::from_secs(20);
/// How long what still comes is thrown away after our side is closed.
const LINGER: Duration = Duration::from_secs(1);
/// Most bytes of it, so that a flood ends sooner.
const LINGER_INPUT: usize = 1 << 20;
/// Most bytes that the reader of a stream that stays a body may send behind its request, as on a
/// shard.
const STREAM_INPUT: usize = 16 << 10;

/// How long a new connection is left in peace: its request may be on its way.
const SPARED: Duration = Duration::from_millis(250);
/// Most silent connections that go at a time when no more can be accepted.
const RELIEF: usize = 8;

/// What every connection of a listener is given.
#[derive(Debug, Clone)]
pub struct Site {
    router: Router,
    shards: Option<Shards>,
    /// A permit for each request that is being read.
    parsing: Arc<Semaphore>,
    /// Called when descriptors run short. First in, first out: the longest without a request goes.
    crowded: Arc<Notify>,
    /// How many have sent no whole request yet.
    silent: Arc<AtomicUsize>,
    /// The first descriptor at which they run short.
    crowded_from: usize,
}

impl Site {
    /// A listener's requests go to `router`, and its streams to the shards where there are some
    /// and HTTP allows it; else they stay the bodies of their responses.
    #[must_use]
    pub fn new(router: Router, shards: Option<Shards>) -> Self {
        Self {
            router,
            shards,
            parsing: Arc::new(Semaphore::new(PARSED_AT_A_TIME)),
            crowded: Arc::default(),
            silent: Arc::default(),
            crowded_from: descriptors::crowded_from(),
        }
    }

    /// What is to be called when no more connections can be accepted: has some of those go that
    /// have sent no whole request.
    pub(super) fn relief(&self) -> impl Fn() + Send + 'static + use<> {
        let (crowded, silent) = (Arc::clone(&self.crowded), Arc::clone(&self.silent));
        move || {
            for _ in 0..silent.load(Ordering::Relaxed).min(RELIEF) {
                crowded.notify_one();
            }
        }
    }

    /// Serves one connection, accepted from `peer`, to its end or until a shard has it. Dropped,
    /// it closes the connection. The socket must be one that does not block. Must run within a
    /// Tokio runtime with io and time.
    pub async fn serve(self, socket: std::net::TcpStream, peer: IpAddr) {
        // Whatever fails here, the peer is gone or never was one; there is nobody to tell.
        let _ = serve(socket, peer, self).await;
    }
}

/// Somebody who has sent no whole request yet.
struct Silent<'a>(&'a AtomicUsize);

impl<'a> Silent<'a> {
    /// Where descriptors run short, has whoever is silent for longest go.
    fn new(site: &'a Site, is_crowded: bool) -> Self {
        let others = site.silent.fetch_add(1, Ordering::Relaxed);
        // With nobody to hear it, the call would be kept for whoever comes next.
        if is_crowded && others > 0 {
            site.crowded.notify_one();
        }
        Self(&site.silent)
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(socket: std::net::TcpStream, peer: IpAddr, site: Site) -> io::Result<()> {
    let deadline = Instant::now() + HEAD_TIME;
    let is_crowded = usize::try_from(socket.as_raw_fd()).is_ok_and(|fd| fd >= site.crowded_from);
    let socket = Arc::new(Socket::new(socket));
    // Outside hyper until it says something: a silent socket costs no buffers.
    let heard = {
        let _silent = Silent::new(&site, is_crowded);
        let mut heard = Heard::default();
        if heard.take(&socket)? {
            heard
        } else {
            let since = Instant::now();
            let mut head = std::pin::pin!(timeout_at(deadline, heard.rest(&socket)));
            loop {
                tokio::select! {
                    biased;
                    head = head.as_mut() => break head??,
                    () = site.crowded.notified() => {
                        if since.elapsed() >= SPARED {
                            return Ok(());
                        }
                    }
                }
            }
        }
    };
    let parsing = Arc::clone(&site.parsing);
    let Ok(permit) = timeout_at(deadline, parsing.acquire_owned()).await? else {
        return Ok(());
    };
    let asked = AskedAt::at(heard.first.unwrap_or_else(Instant::now));
    if heard.preface {
        drop(permit);
        http2(&socket, heard.taken, peer, site.router).await;
    } else {
        let io = Io::new(Arc::clone(&socket), heard.taken, asked.clone());
        if let Some(aside) = http1(io, &socket, peer, &site, permit, is_crowded).await {
            let began = asked.get().unwrap_or_else(Instant::now);
            return hand_over(socket, *aside, began, &site);
        }
    }
    linger(&socket).await
}

fn hand_over(socket: Arc<Socket>, aside: Aside, began: Instant, site: &Site) -> io::Result<()> {
    // hyper and its buffers are gone, and with them the only other handle.
    let socket = Arc::try_unwrap(socket).map_err(|_| io::ErrorKind::Other)?;
    if let Some(shards) = &site.shards {
        shards.hand_over(shards::Arrival {
            socket: socket.into_std()?,
            head: aside.head,
            subscription: aside.subscription,
            chunked: aside.chunked,
            began,
        });
    }
    Ok(())
}

/// What a connection has said so far, waited for outside hyper until it is a whole head.
///
/// Who sends the head bit by bit waits here, where waiting costs no permit and no buffer but for
/// the little that was taken at first; the rest is only looked at. A head that is larger than
/// [`MAX_HEAD`] is left to hyper, which refuses it without waiting for its end.
#[derive(Debug, Default)]
struct Heard {
    /// No longer in the socket.
    taken: Vec<u8>,
    /// True for HTTP/2's preface.
    preface: bool,
    /// When the first of it came.
    first: Option<Instant>,
}

impl Heard {
    /// Takes what is there already, without waiting; true where that is all there is to wait for.
    ///
    /// # Errors
    ///
    /// When nothing will come.
    fn take(&mut self, socket: &Socket) -> io::Result<bool> {
        let taken = match socket.take() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            taken => taken?,
        };
        self.first = Some(Instant::now());
        self.taken = taken;
        if self.taken.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(self.is_whole(&[]))
    }

    /// True where what was taken, with what is only looked at, is all there is to wait for.
    fn is_whole(&mut self, seen: &[u8]) -> bool {
        let start = if seen.is_empty() {
            start(&self.taken)
        } else {
            start(&[&self.taken, seen].concat())
        };
        self.preface = start == Start::Preface;
        start != Start::Part
    }

    /// Waits for the rest of it.
    ///
    /// # Errors
    ///
    /// When nothing will come.
    async fn rest(mut self, socket: &Socket) -> io::Result<Self> {
        let mut pause = Duration::from_millis(2);
        let mut looked_at = None;
        let stream = socket.watched()?;
        loop {
            let ready = stream.ready(Interest::READABLE).await?;
            if self.taken.is_empty() {
                if self.take(socket)? {
                    return Ok(self);
                }
                if !ready.is_read_closed() {
                    continue;
                }
            }
            let arrived = Some(rustix::io::ioctl_fionread(stream)?);
            // Looking is a copy of all that has arrived, and done only where that is more than
            // before.
            if looked_at != arrived || ready.is_read_closed() {
                looked_at = arrived;
                let seen = look(stream)?;
                // Where no more will come, hyper answers it, whatever it is.
                if self.is_whole(&seen) || ready.is_read_closed() {
                    return Ok(self);
                }
            }
            // The rest is on its way. The socket stays readable for what was only looked at, so
            // waiting for that would spin.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(250));
        }
    }
}

/// Looks at what has arrived without taking it.
fn look(stream: &TcpStream) -> io::Result<Vec<u8>> {
    let mut room = [MaybeUninit::uninit(); MAX_HEAD];
    let seen = stream.try_io(Interest::READABLE, || {
        let ((seen, _), _) = rustix::net::recv(stream, &mut room, RecvFlags::PEEK)?;
        Ok(seen.to_vec())
    });
    match seen {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
        seen => seen,
    }
}

/// What a connection begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Start {
    /// Part of a head.
    Part,
    /// A whole head, or more of one than is looked at.
    Head,
    /// The preface of HTTP/2.
    Preface,
}

fn start(bytes: &[u8]) -> Start {
    if bytes.starts_with(PREFACE) {
        return Start::Preface;
    }
    // An empty line before the request is ignored (RFC 9112, section 2.2).
    let head = bytes.trim_ascii_start();
    let mut lines = head.split(|byte| *byte == b'\n');
    // The first line is never empty here, and the last has not ended.
    let _ = (lines.next(), lines.next_back());
    let whole = lines.any(|line| line.is_empty() || line == b"\r");
    let is_preface_so_far = PREFACE.starts_with(bytes);
    if bytes.len() >= MAX_HEAD || (whole && !is_preface_so_far) || is_no_request(head) {
        Start::Head
    } else {
        Start::Part
    }
}

/// Answers requests until the connection ends, or a stream leaves it. Where descriptors run short
/// it ends with its first answer: those who ask every few seconds would hold theirs for ever.
async fn http1(
    io: Io,
    socket: &Socket,
    peer: IpAddr,
    site: &Site,
    permit: OwnedSemaphorePermit,
    is_crowded: bool,
) -> Option<Box<Aside>> {
    // Held until the first head is read; what is between requests holds none.
    let permit = Arc::new(Mutex::new(Some(permit)));
    let handoff = Handoff::default();
    let streaming = Notify::new();
    let service = service_fn(|request: Request<Incoming>| {
        let (router, permit) = (site.router.clone(), Arc::clone(&permit));
        let handoff = site.shards.as_ref().map(|_| handoff.clone());
        let streaming = &streaming;
        async move {
            let asked = Asked {
                method: request.method().clone(),
                version: request.version(),
            };
            // The head is read. What a body takes is bounded where bodies are read.
            permit.lock().take();
            let mut response = answer(router, peer, request).await;
            let gone = handoff.is_some_and(|handoff| handoff.consider(&asked, &response));
            if gone {
                // Whoever drives this connection takes it apart now.
                std::future::pending::<()>().await;
            }
            let is_stream = response.body().size_hint().upper().is_none();
            if is_stream || is_crowded {
                // Behind a stream nothing is read as a request any more.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            if is_stream {
                streaming.notify_one();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        // A caller may close its side behind its request and still wants the answer; who does so
        // on a stream has left.
        .half_close(true)
        .serve_connection(TokioIo::new(io), service);
    let mut patience = std::pin::pin!(tokio::time::sleep(PERMIT_TIME));
    let driven = std::future::poll_fn(|cx| {
        let over = Pin::new(&mut connection).poll(cx);
        if let Some(aside) = handoff.take() {
            return Poll::Ready(Some(aside));
        }
        // Only now: who is done at once, as most are, never enters the runtime's timer.
        if permit.lock().is_some() && patience.as_mut().poll(cx).is_ready() {
            permit.lock().take();
        }
        // An error is the peer's: a head that cannot be read, or a connection that broke. It was
        // answered where it could be.
        over.map(|_| None)
    });
    tokio::select! {
        biased;
        aside = driven => aside,
        () = left(socket, &streaming) => None,
    }
}

/// Waits for the end of the reader of a stream that stays a body, or for one who sends what no
/// reader does. hyper reads no more while it has a body to send, and so would see neither: what
/// comes is read here and thrown away.
async fn left(socket: &Socket, streaming: &Notify) {
    streaming.notified().await;
    // One that cannot be watched is closed.
    if let Ok(stream) = socket.watched() {
        swallow(stream, STREAM_INPUT).await;
    }
}

async fn http2(socket: &Arc<Socket>, taken: Vec<u8>, peer: IpAddr, router: Router) {
    let requests = Requests::default();
    let allowance = Allowance::new(requests.clone(), Instant::now());
    let counting = requests.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let open = counting.begin();
        let answer = answer(router.clone(), peer, request);
        async move {
            let hold_on = move |frame| {
                let _open = &open;
                frame
            };
            let response = answer.await;
            Ok::<_, Infallible>(response.map(|body| body.map_frame(hold_on)))
        }
    });
    let io = TokioIo::new(Io::bounded(Arc::clone(socket), taken, allowance));
    let mut connection = std::pin::pin!(
        http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .max_concurrent_streams(MAX_HTTP2_STREAMS)
            .max_header_list_size(HTTP2_HEAD)
            .keep_alive_interval(HTTP2_PING)
            .keep_alive_timeout(HTTP2_PING)
            .serve_connection(io, service)
    );
    // Two rounds without a request, and it goes: an idle connection costs a descriptor.
    let mut idle_rounds = 0;
    while idle_rounds < 2 {
        if timeout(HEAD_TIME / 2, connection.as_mut()).await.is_ok() {
            return;
        }
        idle_rounds = if requests.open() > 0 {
            0
        } else {
            idle_rounds + 1
        };
    }
    connection.as_mut().graceful_shutdown();
    let _ = timeout(LINGER, connection).await;
}

async fn answer(router: Router, peer: IpAddr, request: Request<Incoming>) -> Response {
    if let Err(too_large) = check_head(&request) {
        return too_large.into_response();
    }
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// hyper's own limits are met somewhere above [`MAX_HEAD`], as the bytes happen to arrive, and
/// over HTTP/2 answered without a body; so this is the limit that is told.
fn check_head(request: &Request<Incoming>) -> Result<(), ApiError> {
    let uri = request.uri();
    // Without writing it: the scheme and what stands around the authority are no matter here.
    let uri = uri
        .authority()
        .map_or(0, |authority| authority.as_str().len())
        + uri.path_and_query().map_or(0, |path| path.as_str().len());
    if uri > MAX_HEAD {
        return Err(ApiError::new(
            Code::UriTooLong,
            "The address of the request is longer than 32 KiB.",
        ));
    }
    let fields = request.headers().iter();
    let fields: usize = fields
        .map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len())
        .sum();
    if uri + fields > MAX_HEAD {
        return Err(ApiError::new(
            Code::HeadTooLarge,
            "The head of the request is larger than 32 KiB.",
        ));
    }
    Ok(())
}

/// Closes our side and throws away what still comes, for a moment: closing a socket with unread
/// input sends RST, and the peer would lose the answer that it has not read yet.
///
/// # Errors
///
/// When the socket is gone already.
async fn linger(socket: &Socket) -> io::Result<()> {
    let stream = socket.watched()?;
    SockRef::from(stream).shutdown(Shutdown::Write)?;
    let _ = timeout(LINGER, swallow(stream, LINGER_INPUT)).await;
    Ok(())
}

/// Reads and throws away what comes, until the peer closes or `most` bytes have come.
async fn swallow(stream: &TcpStream, most: usize) {
    let mut left = most;
    // A failure says that the socket is gone.
    while stream.readable().await.is_ok() {
        // Not held while nothing comes: a future keeps what it holds across a wait.
        let mut waste = [0; 4096];
        match stream.try_read(&mut waste) {
            Ok(bytes) if bytes > 0 && bytes <= left => left -= bytes,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(_) | Err(_) => return,
        }
    }
}

/// True for what cannot become a request, so that it is refused at once: a method that is no
/// word, or a first line that does not end with a version.
fn is_no_request(head: &[u8]) -> bool {
    let Some(first) = head.first() else {
        return false;
    };
    let line_end = head.iter().position(|byte| *byte == b'\n');
    let line = line_end.map(|end| head[..end].trim_ascii_end());
    let versions: [&[u8]; 3] = [b" HTTP/1.1", b" HTTP/1.0", b" HTTP/2.0"];
    !first.is_ascii_uppercase()
        || line.is_some_and(|line| !versions.iter().any(|version| line.ends_with(version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_become_a_request_is_not_waited_for() {
        assert_eq!(start(b"\x16\x03\x01"), Start::Head);
        assert_eq!(start(b"hello"), Start::Head);
        assert_eq!(start(b"GET /\r\n"), Start::Head);
    }

    #[test]
    fn a_head_is_whole_at_its_empty_line() {
        assert_eq!(start(b"G"), Start::Part);
        assert_eq!(start(b"GET / HTTP/1.1\r\nhost: a\r\n"), Start::Part);
        assert_eq!(start(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"), Start::Head);
        assert_eq!(start(b"GET / HTTP/1.1\nhost: a\n\n"), Start::Head);
        assert_eq!(start(b"\r\n\r\nGET"), Start::Part);
        assert_eq!(start(&[b'a'; MAX_HEAD]), Start::Head);
    }

    #[test]
    fn the_preface_of_http2_is_known_once_it_is_whole() {
        assert_eq!(start(PREFACE), Start::Preface);
        for end in 1..PREFACE.len() {
            assert_eq!(start(&PREFACE[..end]), Start::Part, "{end}");
        }
    }
}
