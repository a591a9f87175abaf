//! One connection, from its first byte through hyper to its end.

use std::{
    convert::Infallible,
    io,
    net::{IpAddr, Shutdown},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use socket2::SockRef;
use tokio::{
    io::Interest,
    net::TcpStream,
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout, timeout_at},
};
use tower::ServiceExt;

use super::{
    accept::Arrival,
    client::Peer,
    handoff::{Aside, Asked, Handoff},
    io::Io,
};
use crate::delivery::shards::{self, Shards};

/// From accepting to the end of the first request's head; the same for each later one.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// Largest head: a token of 8 KiB, a ticket of 4, cookies, and as much again.
const MAX_HEAD: usize = 32 << 10;
/// How a client says that it speaks HTTP/2 without being asked (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Most requests at a time on one HTTP/2 connection; each may be a stream.
const MAX_HTTP2_STREAMS: u32 = 250;
/// HTTP/2's own heartbeat: every 20 s, and gone after another 20 s without an answer.
const HTTP2_PING: Duration = Duration::from_secs(20);
/// How long what still comes is thrown away after our side is closed.
const LINGER: Duration = Duration::from_secs(1);

/// What every connection of a listener is given.
#[derive(Debug, Clone)]
pub(super) struct Site {
    pub(super) router: Router,
    pub(super) shards: Option<Shards>,
    /// A permit for each request that is being read.
    pub(super) parsing: Arc<Semaphore>,
}

/// Serves one connection to its end, or until a shard has it.
pub(super) async fn run((socket, peer): Arrival, site: Site) {
    // Whatever fails here, the peer is gone or never was one; there is nobody to tell.
    let _ = serve(socket, peer.ip(), site).await;
}

async fn serve(socket: std::net::TcpStream, peer: IpAddr, site: Site) -> io::Result<()> {
    let began = Instant::now();
    let deadline = began + HEAD_TIME;
    socket.set_nonblocking(true)?;
    let stream = Arc::new(TcpStream::from_std(socket)?);
    // Outside hyper until it says something: a silent socket costs no buffers.
    let preface = timeout_at(deadline, speaks_http2(&stream)).await??;
    let parsing = Arc::clone(&site.parsing);
    let Ok(permit) = timeout_at(deadline, parsing.acquire_owned()).await? else {
        return Ok(());
    };
    if preface {
        drop(permit);
        http2(&stream, peer, site.router).await;
    } else if let Some(aside) = http1(&stream, peer, &site, permit).await {
        return hand_over(stream, *aside, began, &site);
    }
    linger(&stream).await;
    Ok(())
}

fn hand_over(stream: Arc<TcpStream>, aside: Aside, began: Instant, site: &Site) -> io::Result<()> {
    // hyper and its buffers are gone, and with them the only other handle.
    let stream = Arc::try_unwrap(stream).map_err(|_| io::ErrorKind::Other)?;
    if let Some(shards) = &site.shards {
        shards.hand_over(shards::Arrival {
            socket: stream.into_std()?,
            head: aside.head,
            subscription: aside.subscription,
            chunked: aside.chunked,
            began,
        });
    }
    Ok(())
}

/// Waits for the first bytes and looks at them without taking them.
async fn speaks_http2(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; PREFACE.len()];
    loop {
        let seen = stream.peek(&mut start).await?;
        if !PREFACE.starts_with(&start[..seen]) {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        if seen == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // The rest is on its way; peeking again at once would spin on the same bytes.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Answers requests until the connection ends, or a stream leaves it.
async fn http1(
    stream: &Arc<TcpStream>,
    peer: IpAddr,
    site: &Site,
    permit: OwnedSemaphorePermit,
) -> Option<Box<Aside>> {
    // Held until the first request is answered; what is between requests holds none.
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
            let response = answer(router, peer, request).await;
            permit.lock().take();
            let gone = handoff.is_some_and(|handoff| handoff.consider(&asked, &response));
            if gone {
                // Whoever drives this connection takes it apart now.
                std::future::pending::<()>().await;
            }
            if response.body().size_hint().upper().is_none() {
                streaming.notify_one();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(Io::new(Arc::clone(stream)));
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(MAX_HEAD)
        // A caller may close its side behind its request and still wants the answer; who does so
        // on a stream has left.
        .half_close(true)
        .serve_connection(io, service);
    let driven = std::future::poll_fn(|cx| {
        let over = Pin::new(&mut connection).poll(cx);
        match handoff.take() {
            Some(aside) => Poll::Ready(Some(aside)),
            // An error is the peer's: a head that cannot be read, or a connection that broke. It
            // was answered where it could be.
            None => over.map(|_| None),
        }
    });
    tokio::select! {
        aside = driven => aside,
        () = left(stream, &streaming) => None,
    }
}

/// Waits for the end of the reader of a stream that stays a body. hyper would not see it behind a
/// stray byte that nobody reads; the kernel tells it by itself.
async fn left(stream: &TcpStream, streaming: &Notify) {
    streaming.notified().await;
    // Of what this interest stands for, only the peer's closing is ever registered for. An error
    // says that the socket is gone too.
    let _ = stream.ready(Interest::PRIORITY).await;
}

async fn http2(stream: &Arc<TcpStream>, peer: IpAddr, router: Router) {
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer(router.clone(), peer, request);
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let io = TokioIo::new(Io::new(Arc::clone(stream)));
    let _ = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_HTTP2_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX))
        .keep_alive_interval(HTTP2_PING)
        .keep_alive_timeout(HTTP2_PING)
        .serve_connection(io, service)
        .await;
}

async fn answer(router: Router, peer: IpAddr, request: Request<Incoming>) -> Response {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(Peer(peer));
    match router.oneshot(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    }
}

/// Closes our side and throws away what still comes, for a moment: closing a socket with unread
/// input sends RST, and the peer would lose the answer that it has not read yet.
async fn linger(stream: &TcpStream) {
    if SockRef::from(stream).shutdown(Shutdown::Write).is_err() {
        return;
    }
    let mut waste = [0; 4096];
    let drained = async {
        while stream.readable().await.is_ok() {
            match stream.try_read(&mut waste) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    };
    let _ = timeout(LINGER, drained).await;
}
