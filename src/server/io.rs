//! The socket as hyper sees it.
//!
//! Four things are different from a bare one. The socket stays ours while hyper uses it, so that
//! what comes after hyper can be done with it. What was taken from it before comes first. The
//! answers that hyper gives by itself to a head that it cannot read are exchanged for ones with a
//! body that says what is wrong. And over HTTP/2 what comes in is bounded.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use super::{allowance::Allowance, socket::Socket};
use crate::api::error::{ApiError, Code};

#[derive(Debug)]
pub(super) struct Io {
    socket: Arc<Socket>,
    /// What was taken from the socket before, and how much of it hyper has.
    taken: (Vec<u8>, usize),
    /// An answer that goes out in the place of hyper's, and how much of it has.
    exchanged: Option<(Vec<u8>, usize)>,
    /// True once a line has ended since the last answer: what is too large then is more than the
    /// request's first line.
    past_first_line: bool,
    /// What may still come, where that is bounded here.
    allowance: Option<Allowance>,
    asked: AskedAt,
}

/// When the first byte of the request came that is not answered yet, if there is one.
#[derive(Debug, Clone, Default)]
pub(super) struct AskedAt(Arc<Mutex<Option<Instant>>>);

impl AskedAt {
    /// A request that began to arrive then.
    pub(super) fn at(moment: Instant) -> Self {
        Self(Arc::new(Mutex::new(Some(moment))))
    }

    /// That moment.
    pub(super) fn get(&self) -> Option<Instant> {
        *self.0.lock()
    }

    fn note(&self) {
        self.0.lock().get_or_insert_with(Instant::now);
    }

    fn answered(&self) {
        *self.0.lock() = None;
    }
}

impl Io {
    /// A socket of which this was taken before. Its first request began to arrive at `asked`, where
    /// later ones are noted too.
    pub(super) fn new(socket: Arc<Socket>, taken: Vec<u8>, asked: AskedAt) -> Self {
        Self {
            asked,
            socket,
            taken: (taken, 0),
            exchanged: None,
            past_first_line: false,
            allowance: None,
        }
    }

    /// A socket from which no more is read than that allows.
    pub(super) fn bounded(socket: Arc<Socket>, taken: Vec<u8>, allowance: Allowance) -> Self {
        Self {
            allowance: Some(allowance),
            ..Self::new(socket, taken, AskedAt::default())
        }
    }

    fn poll_send(&self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.socket.send_bare(bytes) {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
            Some(result) => return Poll::Ready(result),
            None => {}
        }
        let stream = self.socket.watched()?;
        loop {
            ready!(stream.poll_write_ready(cx))?;
            match stream.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let bytes = if this.taken.0.is_empty() {
            ready!(poll_receive(&this.socket, cx, buffer))?
        } else {
            give(&mut this.taken, buffer)
        };
        if let Some(allowance) = &mut this.allowance
            && !allowance.take(bytes, Instant::now())
        {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if bytes > 0 {
            this.asked.note();
        }
        this.past_first_line |= buffer.filled()[before..].contains(&b'\n');
        Poll::Ready(Ok(()))
    }
}

/// Gives what there is room for of bytes that were taken before, and lets go of them at their end.
fn give(taken: &mut (Vec<u8>, usize), buffer: &mut ReadBuf<'_>) -> usize {
    let rest = &taken.0[taken.1..];
    let bytes = rest.len().min(buffer.remaining());
    buffer.put_slice(&rest[..bytes]);
    taken.1 += bytes;
    if taken.1 == taken.0.len() {
        *taken = (Vec::new(), 0);
    }
    bytes
}

/// Reads what is there, and enters the runtime's epoll only where there is nothing: hyper gives
/// up a connection whose unread body is not there at the first look.
fn poll_receive(
    socket: &Socket,
    cx: &mut Context<'_>,
    buffer: &mut ReadBuf<'_>,
) -> Poll<io::Result<usize>> {
    match socket.read_bare(buffer) {
        Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {}
        Some(result) => return Poll::Ready(result),
        None => {}
    }
    let (stream, room) = (socket.watched()?, buffer.remaining());
    loop {
        ready!(stream.poll_read_ready(cx))?;
        match read(stream, buffer, room) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return Poll::Ready(result),
        }
    }
}

/// Reads once, and tells tokio that the socket is empty where less came than there was room for:
/// with an edge-triggered epoll the next bytes are a new event. tokio's own `poll_read` does so
/// too; without it every request costs a second `recv` that only says that there is nothing.
fn read(stream: &TcpStream, buffer: &mut ReadBuf<'_>, room: usize) -> io::Result<usize> {
    let mut result = Err(io::ErrorKind::WouldBlock.into());
    // Looks at the event before the read, so that one that comes meanwhile is not taken for it.
    // What it answers is known already.
    let _ = stream.try_io(Interest::READABLE, || {
        result = stream.try_read_buf(buffer);
        match result {
            Ok(bytes) if bytes > 0 && bytes < room => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(()),
        }
    });
    result
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.exchanged.is_none() {
            let past_first_line = std::mem::take(&mut self.past_first_line);
            let answer = own_answer(bytes, past_first_line);
            self.exchanged = answer.map(|answer| (answer.raw_response(), 0));
        }
        while let Some((answer, sent)) = &self.exchanged {
            if *sent == answer.len() {
                self.exchanged = None;
                return Poll::Ready(Ok(bytes.len()));
            }
            let more = ready!(self.poll_send(cx, &answer[*sent..]))?;
            if let Some((_, sent)) = &mut self.exchanged {
                *sent += more;
            }
        }
        let sent = ready!(self.poll_send(cx, bytes))?;
        self.asked.answered();
        if let Some(allowance) = &mut self.allowance {
            allowance.send(sent);
        }
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Leaves the socket open: how it is closed is decided by whoever gave it to hyper.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What to say in the place of an answer that hyper made up by itself. Those have no body, and
/// every error of ours has one. hyper's limit for heads is below its limit for addresses, so which
/// of the two was met is told by what came before.
fn own_answer(bytes: &[u8], past_first_line: bool) -> Option<ApiError> {
    let status = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?;
    let empty = b"content-length: 0\r\n";
    let is_bare = bytes.ends_with(b"\r\n\r\n") && bytes.windows(empty.len()).any(|w| w == empty);
    if !is_bare {
        return None;
    }
    Some(match status {
        b"400" => ApiError::new(Code::BadRequest, "The head of the request is not HTTP."),
        b"431" if !past_first_line => ApiError::new(
            Code::UriTooLong,
            "The address of the request is longer than 32 KiB.",
        ),
        b"431" => ApiError::new(
            Code::HeadTooLarge,
            "The head of the request is larger than 32 KiB or has more than 100 fields.",
        ),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::{io::Write, task::Waker};

    use super::*;

    #[test]
    fn only_bare_errors_are_exchanged() {
        let bare = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(own_answer(bare, true).unwrap().code(), Code::HeadTooLarge);
        assert_eq!(own_answer(bare, false).unwrap().code(), Code::UriTooLong);
        let no_content = b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n";
        let ours = ApiError::new(Code::BadRequest, "No.").raw_response();
        assert!(own_answer(&ours, true).is_none());
        assert!(own_answer(no_content, true).is_none());
        assert!(own_answer(b"HTTP", true).is_none());
    }

    #[tokio::test]
    async fn what_is_there_is_read_at_the_first_look() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        peer.write_all(&[b'x'; 5_000]).unwrap();
        while ours.peek(&mut [0; 5_000]).unwrap() < 5_000 {}
        ours.set_nonblocking(true).unwrap();
        let socket = Arc::new(Socket::new(ours));
        let taken = socket.take().unwrap();
        let mut io = Io::new(Arc::clone(&socket), taken, AskedAt::default());
        let mut cx = Context::from_waker(Waker::noop());
        let mut all = [0; 8_000];
        let mut buffer = ReadBuf::new(&mut all);
        for _ in 0..2 {
            assert!(Pin::new(&mut io).poll_read(&mut cx, &mut buffer).is_ready());
        }
        assert_eq!(buffer.filled(), [b'x'; 5_000]);
        // Now there is nothing, and whoever waits is told when there is.
        let mut one = [0];
        let read = std::future::poll_fn(|cx| {
            let mut buffer = ReadBuf::new(&mut one);
            Pin::new(&mut io).poll_read(cx, &mut buffer)
        });
        let (read, ()) = tokio::join!(read, async { peer.write_all(b"y").unwrap() });
        read.unwrap();
        assert_eq!(one, *b"y");
    }
}
