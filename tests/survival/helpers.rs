//! The service as a hostile network meets it: raw sockets on one side, a whole service in this
//! process or the real program on the other.
//!
//! The only file that knows how a request is written and how a stream is framed. Everything here
//! blocks; a test is a plain thread.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use livecount::{
    app::{App, Face},
    auth::token::{self, Rules},
    config::Config,
    delivery::shards::Shards,
    hub::RoomId,
    run,
    server::{Server, bind},
};
use parking_lot::Mutex;
use serde_json::{Value, json};
use socket2::{Domain, SockRef, Socket, Type};
use tokio::time::Instant;

use crate::event::Event;

/// The HS256 secret of every test service.
pub(crate) const SECRET: &str = "the-secret-of-the-tests-has-32-bytes-or-more";
/// How long a test waits for what must come; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The two ways in which a stream is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Its socket lives on a shard.
    Shard,
    /// It is the body of its response.
    Body,
}

/// Makes of each function that takes a [`Path`] two tests, one for each path.
macro_rules! on_both_paths {
    ($($name:ident),+ $(,)?) => {
        $(mod $name {
            #[test]
            fn shard() {
                super::$name($crate::helpers::Path::Shard);
            }

            #[test]
            fn body() {
                super::$name($crate::helpers::Path::Body);
            }
        })+
    };
}
pub(crate) use on_both_paths;

/// A service in this process.
pub(crate) struct Service {
    pub(crate) app: App,
    pub(crate) address: SocketAddr,
    runtime: Option<tokio::runtime::Runtime>,
    server: Option<Server>,
}

impl Service {
    /// One on loopback with the default settings.
    pub(crate) fn start(path: Path) -> Self {
        Self::with(path, &[])
    }

    /// One with these settings, by their names: `("heartbeat", "1s")`.
    pub(crate) fn with(path: Path, settings: &[(&str, &str)]) -> Self {
        Self::at(path, "127.0.0.1:0".parse().unwrap(), 2, settings)
    }

    /// One that listens there, with so many shards.
    pub(crate) fn at(
        path: Path,
        address: SocketAddr,
        shards: usize,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut flags = BTreeMap::from([("jwt_secret".to_owned(), SECRET.to_owned())]);
        for (name, value) in settings {
            flags.insert((*name).to_owned(), (*value).to_owned());
        }
        let (config, _) = Config::load(&flags, &BTreeMap::new()).expect("the settings are valid");
        let app = run::app(config).expect("the keys are valid");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("threads can be started");
        let guard = runtime.enter();
        let shards = (path == Path::Shard).then(|| {
            Shards::start(app.hub(), shards, app.config().heartbeat).expect("shards start")
        });
        if let Some(shards) = &shards {
            app.show_shards(shards);
        }
        let listener = bind(address).expect("the address can be bound");
        let server = Server::start(listener, app.router(Face::Public), shards)
            .expect("the server can be started");
        let hub = app.hub().clone();
        runtime.spawn(async move { hub.run().await });
        drop(guard);
        Self {
            address: server.address(),
            app,
            runtime: Some(runtime),
            server: Some(server),
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.address)
    }

    /// A blog's viewers, connections and members, as the hub has them.
    pub(crate) fn count(&self, blog_id: &str) -> (u32, u32, u32) {
        let room = RoomId::parse(&format!("blog:{blog_id}")).unwrap();
        let occupancy = self.app.hub().occupancy(&room);
        (occupancy.viewers, occupancy.connections, occupancy.members)
    }

    /// Waits until a blog has so many connections; answers how long that took.
    pub(crate) fn wait_for(&self, blog_id: &str, connections: u32, most: Duration) -> Duration {
        until(most, || {
            let now = self.count(blog_id).1;
            (now == connections)
                .then_some(())
                .ok_or_else(|| format!("blog {blog_id} has {now} connections, not {connections}"))
        })
    }

    /// Ends all streams within `time`, as the end of the process does.
    pub(crate) fn drain(&self, time: Duration) -> bool {
        let runtime = self.runtime.as_ref().expect("it runs");
        runtime.block_on(livecount::server::drain::run(self.app.hub(), time))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let (Some(runtime), Some(server)) = (self.runtime.take(), self.server.take()) {
            runtime.block_on(server.stop());
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// Tries until it succeeds; answers how long that took. Panics with the last reason where it does
/// not within `most`.
pub(crate) fn until(most: Duration, mut check: impl FnMut() -> Result<(), String>) -> Duration {
    let start = Instant::now();
    loop {
        match check() {
            Ok(()) => return start.elapsed(),
            Err(reason) => assert!(start.elapsed() < most, "not within {most:?}: {reason}"),
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// The real program, as an operator starts it. Killed when dropped.
pub(crate) struct Program {
    child: Child,
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<String>>,
}

impl Program {
    /// Starts it behind `before`, such as `prlimit --nofile=64`, with these environment variables.
    pub(crate) fn start(before: &[&str], environment: &[(&str, &str)]) -> Self {
        let program = env!("CARGO_BIN_EXE_livecount");
        let words: Vec<&str> = before.iter().copied().chain([program, "serve"]).collect();
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .env("LIVECOUNT_LISTEN", "127.0.0.1:0")
            .env("LIVECOUNT_JWT_SECRET", SECRET)
            .env("LIVECOUNT_LOG", "info")
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let log = Arc::new(Mutex::new(String::new()));
        let outputs: [Option<Box<dyn Read + Send>>; 2] = [
            child.stdout.take().map(|output| Box::new(output) as _),
            child.stderr.take().map(|output| Box::new(output) as _),
        ];
        for output in outputs.into_iter().flatten() {
            let log = Arc::clone(&log);
            thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let mut log = log.lock();
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        let mut address = None;
        until(PATIENCE, || {
            let log = log.lock();
            let found = log
                .lines()
                .find(|line| line.contains("listening for readers"));
            let url = found.and_then(|line| line.split("http://").nth(1));
            let digits = |c: char| c.is_ascii_digit() || c == '.' || c == ':';
            let url = url.map(|rest| rest.split(|c| !digits(c)).next().unwrap_or_default());
            address = url.and_then(|url| url.parse().ok());
            address.map(|_: SocketAddr| ()).ok_or(log.clone())
        });
        Self {
            child,
            address: address.expect("the log says where it listens"),
            log,
        }
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.address)
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Memory of its own, in KiB: `Pss_Anon`.
    pub(crate) fn memory_kib(&self) -> u64 {
        memory_kib_of(&self.child.id().to_string())
    }

    /// Open descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).expect("the program runs").count()
    }

    /// CPU time used so far, user and system, to the nanosecond.
    pub(crate) fn cpu(&self) -> Duration {
        let path = format!("/proc/{}/task", self.child.id());
        let threads = std::fs::read_dir(path).expect("the program runs");
        let nanos = threads.flatten().filter_map(|thread| {
            let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split_whitespace().next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanos.sum())
    }

    /// Whether it still runs, and nothing in it ever panicked.
    pub(crate) fn expect_sound(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "{}", self.log());
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Where it has ended already there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Memory of a process's own, in KiB: `Pss_Anon`.
pub(crate) fn memory_kib_of(process: &str) -> u64 {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = std::fs::read_to_string(path).expect("the process runs");
    let line = text.lines().find(|line| line.starts_with("Pss_Anon:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number.and_then(|kib| kib.parse().ok()).expect("a number")
}

/// Where a service listens, and what can be asked of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Client(pub(crate) SocketAddr);

impl Client {
    /// A bare connection.
    pub(crate) fn connect(self) -> TcpStream {
        let socket = TcpStream::connect(self.0).expect("the service accepts");
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// One that takes so few bytes before it is read.
    pub(crate) fn connect_narrow(self, window: usize) -> TcpStream {
        let socket = Socket::new(Domain::for_address(self.0), Type::STREAM, None).unwrap();
        // Before it connects, or the window is agreed already.
        socket.set_recv_buffer_size(window).unwrap();
        socket.connect(&self.0.into()).unwrap();
        let socket: TcpStream = socket.into();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// Opens a stream and reads its head and `connected`.
    pub(crate) fn stream(self, path: &str, headers: &[(&str, &str)]) -> Reader {
        self.open(path, headers).connected()
    }

    /// Opens a stream and reads its head.
    pub(crate) fn open(self, path: &str, headers: &[(&str, &str)]) -> Reader {
        let mut socket = self.connect();
        socket
            .write_all(&get(path, headers))
            .expect("a request is sent");
        Reader::of(socket)
    }

    /// Joins a blog without a token and reads up to the first count.
    pub(crate) fn join(self, blog_id: &str) -> Reader {
        self.stream(&format!("/v1/stream?blog_id={blog_id}"), &[])
    }

    /// One request on a connection of its own: status and body.
    pub(crate) fn ask(self, request: &[u8]) -> (u16, String) {
        let mut socket = self.connect();
        socket.write_all(request).expect("a request is sent");
        read_answer(&mut socket)
    }

    /// A call with a token or ticket; JSON in, status and JSON out.
    pub(crate) fn call(self, method: &str, path: &str, bearer: &str, body: &Value) -> (u16, Value) {
        let (status, body) = self.ask(&request(method, path, bearer, body));
        (status, serde_json::from_str(&body).unwrap_or(Value::Null))
    }

    /// Sends a message to a room.
    pub(crate) fn publish(self, room: &str, data: &Value) -> String {
        let path = format!("/v1/rooms/{room}/messages");
        let token = token("publisher", "publish");
        let (status, answer) = self.call("POST", &path, &token, &json!({ "data": data }));
        assert_eq!(status, 202, "{answer}");
        answer["id"].as_str().expect("an id").to_owned()
    }

    /// A metric, its labels taken together.
    pub(crate) fn metric(self, name: &str) -> u64 {
        let (status, text) =
            self.ask(b"GET /metrics HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n");
        assert_eq!(status, 200);
        let samples = text.lines().filter_map(|line| {
            let rest = line.strip_prefix(name)?;
            rest.starts_with([' ', '{']).then_some(rest)
        });
        let mut found = samples
            .map(|rest| rest.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .peekable();
        assert!(found.peek().is_some(), "{name} is none of {text}");
        found.sum()
    }

    /// A room's viewers, connections and members, over REST.
    pub(crate) fn room(self, room: &str) -> (u64, u64, u64) {
        let token = token("reader", "read");
        let (status, count) = self.call("GET", &format!("/v1/rooms/{room}"), &token, &Value::Null);
        assert_eq!(status, 200, "{count}");
        numbers(&count)
    }
}

/// The bytes of a `GET`.
pub(crate) fn get(path: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    (text + "\r\n").into_bytes()
}

/// The bytes of a call with a token or ticket, after whose answer the connection is closed.
pub(crate) fn request(method: &str, path: &str, bearer: &str, body: &Value) -> Vec<u8> {
    let body = match body {
        Value::Null => String::new(),
        body => body.to_string(),
    };
    format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {bearer}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads one answer with a length: status and body.
pub(crate) fn read_answer(socket: &mut TcpStream) -> (u16, String) {
    let head = read_head(socket);
    let status = head[9..12].parse().expect("a status");
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length")
            .then(|| value.trim().parse::<usize>().unwrap())
    });
    let mut body = vec![0; length.unwrap_or(0)];
    socket.read_exact(&mut body).expect("the body is whole");
    (status, String::from_utf8(body).expect("the body is UTF-8"))
}

/// Reads a head byte by byte, so that nothing after it is taken.
pub(crate) fn read_head(socket: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        let read = socket.read(&mut byte);
        match read {
            Ok(1) => head.push(byte[0]),
            other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&head)),
        }
    }
    String::from_utf8(head).expect("a head is ASCII")
}

/// Closes with RST.
pub(crate) fn reset(socket: TcpStream) {
    SockRef::from(&socket)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(socket);
}

/// A token of the tests' secret for an hour.
pub(crate) fn token(sub: &str, scope: &str) -> String {
    token_for(sub, scope, Duration::from_secs(3600))
}

/// A token of the tests' secret.
pub(crate) fn token_for(sub: &str, scope: &str, ttl: Duration) -> String {
    let scope = (!scope.is_empty()).then_some(scope);
    token::sign(SECRET.as_bytes(), sub, scope, None, ttl, &Rules::default())
        .expect("the claims are valid")
}

/// `viewers`, `connections` and `members` of a count.
pub(crate) fn numbers(count: &Value) -> (u64, u64, u64) {
    let number = |name: &str| count[name].as_u64().expect("a count has three numbers");
    (number("viewers"), number("connections"), number("members"))
}

/// A reader of one stream, who checks the framing of every byte. Leaves with FIN when dropped.
pub(crate) struct Reader {
    pub(crate) socket: TcpStream,
    pub(crate) head: String,
    /// What `connected` said.
    pub(crate) connected: Value,
    chunked: bool,
    raw: Vec<u8>,
    text: Vec<u8>,
    /// True once the body's end was read.
    over: bool,
    /// Most bytes taken with one read.
    pub(crate) gulp: usize,
}

impl Reader {
    /// Reads the head.
    pub(crate) fn of(mut socket: TcpStream) -> Self {
        let head = read_head(&mut socket).to_ascii_lowercase();
        assert!(head[8..].starts_with(" 200 "), "{head}");
        assert!(
            head.contains("content-type: text/event-stream\r\n"),
            "{head}"
        );
        Self {
            socket,
            chunked: head.contains("transfer-encoding: chunked\r\n"),
            head,
            connected: Value::Null,
            raw: Vec::new(),
            text: Vec::new(),
            over: false,
            gulp: 64 << 10,
        }
    }

    /// Reads `retry:` and `connected`.
    pub(crate) fn connected(mut self) -> Self {
        assert_eq!(self.next().name, "", "a stream begins with retry:");
        let connected = self.next();
        assert_eq!(connected.name, "connected");
        self.connected = connected.data;
        self
    }

    pub(crate) fn connection(&self) -> String {
        self.connected["connection"].as_str().unwrap().to_owned()
    }

    pub(crate) fn ticket(&self) -> String {
        self.connected["ticket"].as_str().unwrap().to_owned()
    }

    /// The next event; panics where none comes in time or the stream has ended.
    pub(crate) fn next(&mut self) -> Event {
        let event = self.next_within(PATIENCE).expect("an event comes in time");
        event.expect("the stream goes on")
    }

    /// The next event, or `None` at the stream's end.
    ///
    /// # Errors
    ///
    /// When nothing comes in time, or the connection breaks.
    pub(crate) fn next_within(&mut self, time: Duration) -> io::Result<Option<Event>> {
        let deadline = Instant::now() + time;
        loop {
            self.decode();
            if let Some(end) = self.text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = self.text.drain(..end + 2).collect();
                let event = std::str::from_utf8(&event[..end]).expect("events are UTF-8");
                return Ok(Some(Event::parse(event)));
            }
            if self.over {
                assert!(self.text.is_empty(), "half an event at the end");
                return Ok(None);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.socket.set_read_timeout(Some(left))?;
            let mut bytes = vec![0; self.gulp];
            match self.socket.read(&mut bytes) {
                Ok(0) if self.chunked => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(0) => self.over = true,
                Ok(read) => self.raw.extend_from_slice(&bytes[..read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Moves whole chunks from what was read to what is said.
    fn decode(&mut self) {
        if !self.chunked {
            self.text.append(&mut self.raw);
            return;
        }
        while !self.over {
            let Some(line) = self.raw.windows(2).position(|two| two == b"\r\n") else {
                assert!(self.raw.len() < 20, "no size of a chunk: {:?}", self.raw);
                return;
            };
            let size = std::str::from_utf8(&self.raw[..line]).expect("a chunk's size is ASCII");
            let size = usize::from_str_radix(size, 16)
                .unwrap_or_else(|_| panic!("{size:?} is no chunk's size"));
            let end = line + 2 + size;
            if self.raw.len() < end + 2 {
                return;
            }
            assert_eq!(&self.raw[end..end + 2], b"\r\n", "a chunk ends with CRLF");
            self.text.extend_from_slice(&self.raw[line + 2..end]);
            self.raw.drain(..end + 2);
            if size == 0 {
                assert!(self.raw.is_empty(), "something after the last chunk");
                self.over = true;
            }
        }
    }

    /// The next event of this name; others are skipped.
    pub(crate) fn next_named(&mut self, name: &str) -> Event {
        loop {
            let event = self.next();
            if event.name == name {
                return event;
            }
        }
    }

    /// Everything that comes until nothing does for this long.
    pub(crate) fn rest(&mut self, quiet: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        while let Ok(Some(event)) = self.next_within(quiet) {
            events.push(event);
        }
        events
    }

    /// Reads counts until one shows these numbers for the room.
    pub(crate) fn wait_for_count(&mut self, room: &str, expected: (u64, u64, u64)) {
        loop {
            let count = self.next_named("count");
            if count.room() == room && numbers(&count.data) == expected {
                return;
            }
        }
    }

    /// Reads to the end; answers the reason of `closed`.
    pub(crate) fn reason(&mut self) -> String {
        let closed = self.next_named("closed");
        let end = self.next_within(PATIENCE).expect("the body ends properly");
        assert_eq!(end, None, "closed is the last event");
        closed.data["reason"].as_str().expect("a reason").to_owned()
    }

    /// Changes the stream's rooms by its own ticket.
    pub(crate) fn change(&self, client: Client, what: &str, rooms: &[&str]) -> (u16, Value) {
        let path = format!("/v1/connections/{}/{what}", self.connection());
        client.call("POST", &path, &self.ticket(), &json!({ "rooms": rooms }))
    }

    /// Closes our side only.
    pub(crate) fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).expect("it is open");
    }
}
