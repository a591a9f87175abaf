//! Stands between a node and Redis and fails at the level of commands: loses a reply, doubles a
//! request, so that every later reply on the connection would be another's.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// What happens to the next command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is done, and its reply lost.
    LoseReply = 1,
    /// It is done twice, and both replies come.
    Double = 2,
}

/// The running proxy; ends with the runtime of its test.
#[derive(Debug)]
pub(crate) struct RespProxy {
    port: u16,
    next: Arc<AtomicU8>,
}

impl RespProxy {
    pub(crate) async fn before(redis_port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let next = Arc::new(AtomicU8::new(0));
        let fault = Arc::clone(&next);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let fault = Arc::clone(&fault);
                tokio::spawn(async move {
                    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, redis_port)).await;
                    let _ = relay(client, server.unwrap(), &fault).await;
                });
            }
        });
        Self { port, next }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Lets the next script call fail so.
    pub(crate) fn fail_next(&self, fault: Fault) {
        self.next.store(fault as u8, Ordering::SeqCst);
    }
}

async fn relay(
    mut client: TcpStream,
    mut server: TcpStream,
    fault: &AtomicU8,
) -> std::io::Result<()> {
    let (mut asked, mut answered) = (Vec::new(), Vec::new());
    loop {
        let Some(request) = frame(&mut client, &mut asked).await? else {
            return Ok(());
        };
        let is_script = request.windows(4).any(|window| window == b"EVAL");
        let fault = if is_script {
            fault.swap(0, Ordering::SeqCst)
        } else {
            0
        };
        let times = if fault == Fault::Double as u8 { 2 } else { 1 };
        for _ in 0..times {
            server.write_all(&request).await?;
            let Some(reply) = frame(&mut server, &mut answered).await? else {
                return Ok(());
            };
            if fault != Fault::LoseReply as u8 {
                client.write_all(&reply).await?;
            }
        }
    }
}

/// Reads one whole request or reply; none at the end.
async fn frame(from: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(length) = frame_length(buffer) {
            let rest = buffer.split_off(length);
            return Ok(Some(std::mem::replace(buffer, rest)));
        }
        if from.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// The length of the first RESP2 value in these bytes, where it is whole.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|pair| pair == b"\r\n")? + 2;
    let number = || {
        std::str::from_utf8(&bytes[1..line - 2])
            .unwrap()
            .parse::<i64>()
            .unwrap()
    };
    match bytes[0] {
        b'$' if number() < 0 => Some(line),
        b'$' => {
            let length = line + usize::try_from(number()).unwrap() + 2;
            (bytes.len() >= length).then_some(length)
        }
        b'*' => {
            let mut length = line;
            for _ in 0..number().max(0) {
                length += frame_length(&bytes[length..])?;
            }
            Some(length)
        }
        _ => Some(line),
    }
}
