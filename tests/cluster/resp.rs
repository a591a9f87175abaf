//! Redis' protocol, as much of it as tests need: where a frame ends, what it says, and a client of
//! one call at a time.
//!
//! Both versions of the protocol are read; requests are written as arrays of strings.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// How long a call may take before the server counts as away.
const CALL: Duration = Duration::from_secs(5);
/// Deeper than any frame of Redis.
const MOST_DEPTH: usize = 16;

/// One value that Redis says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Nil,
    Error(String),
    Integer(i64),
    Text(Vec<u8>),
    List(Vec<Self>),
}

impl Reply {
    /// The text of a string or error; empty for anything else.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Text(text) => String::from_utf8_lossy(text).into_owned(),
            Self::Error(text) => text.clone(),
            Self::Nil | Self::Integer(_) | Self::List(_) => String::new(),
        }
    }

    /// What is in a list; nothing for anything else.
    pub(crate) fn items(&self) -> &[Self] {
        match self {
            Self::List(items) => items,
            _ => &[],
        }
    }
}

/// A whole frame at the beginning of these bytes: its length and its value; `None` where it is
/// not whole yet.
///
/// # Errors
///
/// When the bytes are not in the protocol.
pub(crate) fn frame(bytes: &[u8]) -> io::Result<Option<(usize, Reply)>> {
    let mut at = 0;
    Ok(value(bytes, &mut at, 0)?.map(|value| (at, value)))
}

fn malformed(bytes: &[u8]) -> io::Error {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(40)]);
    io::Error::new(io::ErrorKind::InvalidData, format!("no frame: {text:?}"))
}

fn value(bytes: &[u8], at: &mut usize, depth: usize) -> io::Result<Option<Reply>> {
    let rest = &bytes[*at..];
    let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
        return Ok(None);
    };
    let line = std::str::from_utf8(&rest[..end]).map_err(|_| malformed(rest))?;
    let kind = *rest.first().ok_or_else(|| malformed(rest))?;
    let said = line.get(1..).ok_or_else(|| malformed(rest))?;
    let number = || said.parse::<i64>().map_err(|_| malformed(rest));
    *at += end + 2;
    Ok(Some(match kind {
        b'+' | b',' | b'(' | b'#' => Reply::Text(said.into()),
        b'-' => Reply::Error(said.to_owned()),
        b':' => Reply::Integer(number()?),
        b'_' => Reply::Nil,
        b'$' | b'=' | b'!' => {
            let Ok(length) = usize::try_from(number()?) else {
                return Ok(Some(Reply::Nil));
            };
            let Some(text) = bytes.get(*at..*at + length + 2) else {
                return Ok(None);
            };
            *at += length + 2;
            Reply::Text(text[..length].into())
        }
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let Ok(length) = usize::try_from(number()?) else {
                return Ok(Some(Reply::Nil));
            };
            if depth == MOST_DEPTH {
                return Err(malformed(rest));
            }
            let pairs = if matches!(kind, b'%' | b'|') { 2 } else { 1 };
            let mut items = Vec::new();
            for _ in 0..length * pairs {
                match value(bytes, at, depth + 1)? {
                    Some(item) => items.push(item),
                    None => return Ok(None),
                }
            }
            // Attributes stand before the value that they belong to.
            if kind == b'|' {
                return value(bytes, at, depth + 1);
            }
            Reply::List(items)
        }
        _ => return Err(malformed(rest)),
    }))
}

/// A request's bytes.
pub(crate) fn request(words: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// A connection to a Redis.
#[derive(Debug)]
pub(crate) struct Connection {
    socket: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    ///
    /// When nobody listens there.
    pub(crate) async fn to(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let read = Vec::new();
        Ok(Self { socket, read })
    }

    /// Calls and reads one reply.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or nothing comes within five seconds.
    pub(crate) async fn call(&mut self, words: &[&str]) -> io::Result<Reply> {
        let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
        self.socket.write_all(&request(&words)).await?;
        self.next(CALL).await
    }

    /// The next frame, whoever asked for it.
    ///
    /// # Errors
    ///
    /// When the connection breaks, or nothing comes in time.
    pub(crate) async fn next(&mut self, within: Duration) -> io::Result<Reply> {
        let read = async {
            loop {
                if let Some((length, reply)) = frame(&self.read)? {
                    self.read.drain(..length);
                    return Ok(reply);
                }
                if self.socket.read_buf(&mut self.read).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
        };
        timeout(within, read)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
    }
}

#[test]
fn a_frame_is_found_whole_or_not_at_all() {
    let bytes = b"*3\r\n$3\r\nfoo\r\n:42\r\n%1\r\n+a\r\n*2\r\n_\r\n$-1\r\n";
    for end in 0..bytes.len() {
        assert_eq!(frame(&bytes[..end]).unwrap(), None, "{end} bytes");
    }
    let mut more = bytes.to_vec();
    more.extend_from_slice(b"+OK\r\n");
    let (length, reply) = frame(&more).unwrap().expect("it is whole");
    assert_eq!(length, bytes.len());
    assert_eq!(reply.items()[0].text(), "foo");
    assert_eq!(reply.items()[1], Reply::Integer(42));
    let inner = Reply::List(vec![Reply::Nil, Reply::Nil]);
    assert_eq!(reply.items()[2].items(), [Reply::Text("a".into()), inner]);
    assert!(frame(b"HTTP/1.1 200 OK\r\n").is_err());
}
