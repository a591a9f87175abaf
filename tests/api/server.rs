//! The service behind a real socket: in this process, or as the built binary.
//!
//! A [`Service`] serves a [`TestApp`] on a port of its own, a [`Wire`] is one client's socket, read
//! as bytes. A [`Binary`] is the program as it is installed.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use axum::{body::Body, http::Request};
use livecount::{
    app::Face,
    delivery::shards::Shards,
    server::{Server, bind},
};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::Instant,
};

use crate::helpers::{SECRET, TestApp};

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A request as it stands: nothing is added to it.
pub(crate) fn request(
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Body>,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request
        .body(body.into())
        .expect("the request is well formed")
}

/// A service of this process on a port of its own.
pub(crate) struct Service {
    pub(crate) app: TestApp,
    server: Server,
}

impl Service {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// One whose streams stay the bodies of their responses, as over HTTP/2.
    pub(crate) fn without_shards() -> Self {
        Self::serving(TestApp::of_one_node(&[]), None)
    }

    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        let app = TestApp::of_one_node(settings);
        let shards = Shards::start(app.hub(), 2, app.app().config().heartbeat);
        let shards = shards.expect("the system gives threads");
        Self::serving(app, Some(shards))
    }

    fn serving(app: TestApp, shards: Option<Shards>) -> Self {
        let any_port = "127.0.0.1:0".parse().expect("an address");
        let listener = bind(any_port).expect("loopback has a free port");
        let router = app.app().router(Face::Public);
        let server = Server::start(listener, router, shards).expect("it starts");
        Self { app, server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// A socket that has said nothing yet.
    pub(crate) async fn connect(&self) -> Wire {
        let socket = tokio::net::TcpStream::connect(self.address()).await;
        let socket = socket.expect("the service accepts");
        socket.set_nodelay(true).expect("the socket is open");
        Wire {
            socket,
            unread: Vec::new(),
        }
    }

    /// A socket that has said this.
    pub(crate) async fn say(&self, text: &str) -> Wire {
        let mut wire = self.connect().await;
        wire.send(text.as_bytes()).await;
        wire
    }
}

/// One client's socket.
pub(crate) struct Wire {
    socket: tokio::net::TcpStream,
    unread: Vec<u8>,
}

/// One answer with a length, as it came.
#[derive(Debug)]
pub(crate) struct WireAnswer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl WireAnswer {
    /// Checks that this is a problem with this status and code.
    pub(crate) fn expect_problem(&self, status: u16, code: &str) {
        assert_eq!(self.status, status, "{self:?}");
        assert!(
            self.head
                .contains("content-type: application/problem+json\r\n"),
            "{self:?}"
        );
        let problem: serde_json::Value = serde_json::from_str(&self.body).expect("it is JSON");
        assert_eq!(problem["code"], code);
        assert_eq!(problem["status"], status);
    }
}

impl Wire {
    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        let sent = self.socket.write_all(bytes).await;
        sent.expect("the service reads");
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        let mut chunk = [0; 4096];
        let read = tokio::time::timeout(PATIENCE, self.socket.read(&mut chunk)).await;
        let read = read.expect("something comes in time");
        let read = read.expect("the socket does not break");
        self.unread.extend_from_slice(&chunk[..read]);
        read > 0
    }

    /// Takes what came up to and with `mark`.
    pub(crate) async fn up_to(&mut self, mark: &str) -> String {
        loop {
            let found = self
                .unread
                .windows(mark.len())
                .position(|window| window == mark.as_bytes());
            if let Some(start) = found {
                let taken = self.unread.drain(..start + mark.len()).collect();
                return String::from_utf8(taken).expect("it is UTF-8");
            }
            let came = String::from_utf8_lossy(&self.unread).into_owned();
            assert!(self.more().await, "{mark:?} is not in {came:?}");
        }
    }

    /// Takes this many bytes.
    pub(crate) async fn take(&mut self, bytes: usize) -> Vec<u8> {
        while self.unread.len() < bytes {
            assert!(self.more().await, "{bytes} bytes are yet to come");
        }
        self.unread.drain(..bytes).collect()
    }

    /// Reads one answer that states its length.
    pub(crate) async fn answer(&mut self) -> WireAnswer {
        let head = self.up_to("\r\n\r\n").await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map(|length| length.parse().expect("a number"));
        let body = self.take(length.unwrap_or(0)).await;
        let status = head.get(9..12).and_then(|status| status.parse().ok());
        WireAnswer {
            status: status.expect("a status line comes first"),
            head,
            body: String::from_utf8(body).expect("it is UTF-8"),
        }
    }

    /// Reads a stream's head and everything up to its first count.
    pub(crate) async fn expect_stream(&mut self) -> String {
        let head = self.up_to("\r\n\r\n").await;
        assert!(head.contains(" 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: text/event-stream\r\n"));
        self.up_to("event: connected\n").await;
        self.up_to("event: count\n").await;
        head
    }

    /// Reads to the end, which must be one: a reset is none.
    pub(crate) async fn rest(&mut self) -> String {
        while self.more().await {}
        let all = std::mem::take(&mut self.unread);
        String::from_utf8(all).expect("it is UTF-8")
    }

    /// Waits for the end, whichever it is.
    pub(crate) async fn gone(&mut self) {
        let mut waste = [0; 4096];
        let end = async {
            while self
                .socket
                .read(&mut waste)
                .await
                .is_ok_and(|read| read > 0)
            {}
        };
        let end = tokio::time::timeout(PATIENCE, end).await;
        end.expect("the service closes it in time");
    }

    /// Ends this side and leaves the other open.
    pub(crate) async fn half_close(&mut self) {
        let closed = self.socket.shutdown().await;
        closed.expect("the socket is open");
    }

    /// Breaks off with a reset.
    pub(crate) fn reset(self) {
        let socket = socket2::SockRef::from(&self.socket);
        let set = socket.set_linger(Some(Duration::ZERO));
        set.expect("the socket is open");
    }
}

/// The program itself, killed when dropped.
pub(crate) struct Binary {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Binary {
    /// Starts it on a free port with these settings and the tests' secret.
    pub(crate) fn start(settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("jwt_secret", SECRET)];
        all.extend(settings);
        Self::start_bare(&all)
    }

    /// Starts it on a free port with nothing but these settings.
    pub(crate) fn start_bare(settings: &[(&str, &str)]) -> Self {
        let mut all = vec![("listen", "127.0.0.1:0")];
        all.extend(settings);
        let mut child = command(&[], &all).spawn().expect("the program starts");
        let stderr = child.stderr.take().expect("the log is piped");
        let log = Arc::new(Mutex::new(String::new()));
        let (sender, receiver) = mpsc::channel();
        let written = Arc::clone(&log);
        thread::spawn(move || follow(stderr, &written, &sender));
        let address = receiver.recv_timeout(PATIENCE);
        let Ok(address) = address else {
            let _ = child.kill();
            let log = log.lock().expect("nobody panicked");
            panic!("the program does not start: {log}");
        };
        Self {
            child,
            address,
            log,
        }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().expect("nobody panicked").clone()
    }

    /// Sends SIGTERM.
    pub(crate) fn terminate(&self) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).expect("the program runs");
    }

    /// Waits for its end.
    pub(crate) fn exit(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it is our child") {
                return status;
            }
            assert!(Instant::now() < deadline, "the program does not end");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// A socket that has said this.
    pub(crate) fn say(&self, text: &str) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).expect("the program accepts");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("the socket is open");
        socket
            .write_all(text.as_bytes())
            .expect("the program reads");
        socket
    }

    /// The answer to a `GET`, head and body.
    pub(crate) fn get(&self, path: &str, headers: &str) -> String {
        let mut socket = self.say(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{headers}\r\n"
        ));
        let mut answer = String::new();
        socket
            .read_to_string(&mut answer)
            .expect("an answer ends in time");
        answer
    }

    /// Opens a stream and reads up to its first count.
    pub(crate) fn open(&self, path: &str, headers: &str) -> TcpStream {
        let mut socket = self.say(&format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        ));
        read_up_to(&mut socket, "event: count\n");
        socket
    }
}

impl Drop for Binary {
    fn drop(&mut self) {
        // An error says that it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads until `mark` has come; answers all that came.
pub(crate) fn read_up_to(socket: &mut TcpStream, mark: &str) -> String {
    let mut came = Vec::new();
    let mut chunk = [0; 4096];
    while !came
        .windows(mark.len())
        .any(|window| window == mark.as_bytes())
    {
        let read = socket.read(&mut chunk).expect("something comes in time");
        let text = String::from_utf8_lossy(&came);
        assert!(read > 0, "{mark:?} is not in {text:?}");
        came.extend_from_slice(&chunk[..read]);
    }
    String::from_utf8(came).expect("it is UTF-8")
}

/// Runs the program to its end with these arguments and settings.
pub(crate) fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let output = command(arguments, settings).output();
    output.expect("the program starts")
}

/// The program, with settings by their names as variables and no others.
fn command(arguments: &[&str], settings: &[(&str, &str)]) -> Command {
    let variables: BTreeMap<String, &str> = settings
        .iter()
        .map(|(name, value)| (format!("LIVECOUNT_{}", name.to_uppercase()), *value))
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_livecount"));
    command
        .args(arguments)
        .env_clear()
        .envs(variables)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Keeps the log and finds the readers' address in it.
fn follow(stderr: ChildStderr, log: &Mutex<String>, address: &mpsc::Sender<SocketAddr>) {
    for line in BufReader::new(stderr).lines() {
        let Ok(line) = line else { return };
        let mut log = log.lock().expect("nobody panicked");
        log.push_str(&line);
        log.push('\n');
        let found = line
            .contains("listening for readers")
            .then(|| line.split("http://").nth(1))
            .flatten()
            .and_then(|rest| rest.split(|c: char| c.is_whitespace() || c == '"').next())
            .and_then(|text| text.parse().ok());
        if let Some(found) = found {
            // Nobody waits any more where the start was given up.
            let _ = address.send(found);
        }
    }
}
