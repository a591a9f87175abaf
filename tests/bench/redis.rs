//! A `redis-server` of the benchmark's own, and links to it that count and delay.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    thread,
    time::Duration,
};

use tokio::time::Instant;

use crate::{Result, process::Process};

/// How long Redis may take to start.
const START: Duration = Duration::from_secs(5);

/// A Redis that saves nothing.
#[derive(Debug)]
pub(crate) struct Redis {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

impl Redis {
    /// Starts one, or says that none is installed.
    pub(crate) fn start() -> Result<Self> {
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = free.local_addr()?;
        drop(free);
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--port", &address.port().to_string()])
            .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        let process = Process::start(&mut command)?;
        for _ in 0..START.as_millis() / 10 {
            if TcpStream::connect(address).is_ok() {
                return Ok(Self { process, address });
            }
            thread::sleep(Duration::from_millis(10));
        }
        Err("redis-server does not listen".into())
    }
}

/// A way of one node to Redis. Open connections end with either side.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    commands: Arc<AtomicU64>,
}

impl Link {
    /// Replies come so much later; requests at once.
    pub(crate) fn to(redis: SocketAddr, delay: Duration) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let commands = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&commands);
        // Ends with the benchmark.
        thread::spawn(move || {
            for node in listener.incoming().flatten() {
                // The node sees that its connection ends, and tries again.
                let _ = carry(node, redis, delay, &counter);
            }
        });
        Ok(Self { address, commands })
    }

    /// Commands that the node sent so far; a script is one.
    pub(crate) fn commands(&self) -> u64 {
        self.commands.load(Relaxed)
    }
}

fn carry(
    node: TcpStream,
    redis: SocketAddr,
    delay: Duration,
    counter: &Arc<AtomicU64>,
) -> io::Result<()> {
    let redis = TcpStream::connect(redis)?;
    node.set_nodelay(true)?;
    redis.set_nodelay(true)?;
    let (node_too, redis_too) = (node.try_clone()?, redis.try_clone()?);
    let counter = Arc::clone(counter);
    thread::spawn(move || {
        let mut commands = Commands::default();
        let _ = copy(&node, &redis, |bytes| {
            counter.fetch_add(commands.take(bytes), Relaxed);
        });
    });
    let (replies, due) = mpsc::channel::<(Instant, Vec<u8>)>();
    let mut node = node_too.try_clone()?;
    thread::spawn(move || {
        for (at, bytes) in due {
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if node.write_all(&bytes).is_err() {
                return;
            }
        }
    });
    thread::spawn(move || {
        let (mut redis, mut buffer) = (redis_too, [0; 16 << 10]);
        while let Ok(read @ 1..) = redis.read(&mut buffer) {
            let reply = (Instant::now() + delay, buffer[..read].to_vec());
            if replies.send(reply).is_err() {
                break;
            }
        }
        let _ = node_too.shutdown(Shutdown::Both);
    });
    Ok(())
}

fn copy(mut from: &TcpStream, mut to: &TcpStream, mut see: impl FnMut(&[u8])) -> io::Result<()> {
    let mut buffer = [0; 16 << 10];
    while let read @ 1.. = from.read(&mut buffer)? {
        see(&buffer[..read]);
        to.write_all(&buffer[..read])?;
    }
    to.shutdown(Shutdown::Both)
}

/// Finds where commands begin: each is an array of texts, and each text says its length.
#[derive(Debug, Default)]
struct Commands {
    /// Texts that the command still has.
    texts: usize,
    /// Bytes of the text that have not come, with its line's end.
    text: usize,
    line: Vec<u8>,
}

impl Commands {
    /// How many commands begin in these bytes.
    fn take(&mut self, mut bytes: &[u8]) -> u64 {
        let mut begun = 0;
        while !bytes.is_empty() {
            if self.text > 0 {
                let taken = self.text.min(bytes.len());
                self.text -= taken;
                bytes = &bytes[taken..];
                continue;
            }
            let byte = bytes[0];
            bytes = &bytes[1..];
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let digits = line.iter().filter(|byte| byte.is_ascii_digit());
            let number = digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'));
            if self.texts == 0 {
                begun += 1;
                self.texts = number;
            } else {
                self.texts -= 1;
                self.text = number + 2;
            }
        }
        begun
    }
}
