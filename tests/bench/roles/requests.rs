//! A back end that asks for counts, one request after the other on each of its connections.

use std::{
    io::{self, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use mio::{Events, Interest, Poll, Token, net::TcpStream};
use tokio::time::Instant;

use crate::{Result, orders::Answered};

/// Asks for `path` for so long; counts the answers, which must have status 200 and a length.
pub(super) fn run(
    address: SocketAddr,
    path: &str,
    connections: usize,
    time: Duration,
) -> Result<Answered> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n\r\n");
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1_024);
    let mut sockets = Vec::new();
    for place in 0..connections {
        let socket = std::net::TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        socket.set_nonblocking(true)?;
        let mut socket = TcpStream::from_std(socket);
        let registry = poll.registry();
        registry.register(&mut socket, Token(place), Interest::READABLE)?;
        socket.write_all(request.as_bytes())?;
        sockets.push((socket, Vec::new()));
    }
    let mut answers = 0;
    let mut buffer = [0; 4_096];
    let start = Instant::now();
    while start.elapsed() < time {
        poll.poll(&mut events, Some(Duration::from_millis(100)))?;
        for event in &events {
            let (socket, pending) = &mut sockets[event.token().0];
            loop {
                match socket.read(&mut buffer) {
                    Ok(0) => return Err("the server closed a connection".into()),
                    Ok(read) => pending.extend_from_slice(&buffer[..read]),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error.into()),
                }
                if is_whole(pending)? {
                    answers += 1;
                    pending.clear();
                    // Far smaller than the socket's buffer, which is empty.
                    socket.write_all(request.as_bytes())?;
                    break;
                }
            }
        }
    }
    Ok(Answered {
        answers,
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// True where the head and as much of the body as it says are there.
fn is_whole(answer: &[u8]) -> Result<bool> {
    let text = std::str::from_utf8(answer)?;
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return Ok(false);
    };
    if !head.starts_with("HTTP/1.1 200") {
        return Err(format!("not a count: {text}").into());
    }
    let length = head.split("content-length: ").nth(1);
    let length = length.and_then(|text| text.split("\r\n").next()?.parse().ok());
    let length: usize = length.ok_or("an answer has no length")?;
    Ok(body.len() >= length)
}
