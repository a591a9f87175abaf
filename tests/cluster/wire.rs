//! What a client says to a node and hears from it, over plain sockets.
//!
//! In HTTP/1.0, so that an answer ends with its connection and a stream has no framing to take
//! off: other tests check framing, these hold hundreds of streams.

use std::{io, net::SocketAddr, time::Duration};

use livecount::auth::token::{self, Rules};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep, timeout},
};

use crate::event::Event;

/// The HS256 secret of every node.
pub(crate) const SECRET: &str = "the-secret-of-the-tests-has-32-bytes-or-more";
/// How long a test waits for what must come; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Tries until it succeeds; answers how long that took. Panics with the last reason where it does
/// not within `most`.
pub(crate) async fn until(
    most: Duration,
    mut check: impl AsyncFnMut() -> Result<(), String>,
) -> Duration {
    let start = Instant::now();
    loop {
        match check().await {
            Ok(()) => return start.elapsed(),
            Err(reason) => assert!(start.elapsed() < most, "not within {most:?}: {reason}"),
        }
        sleep(Duration::from_millis(25)).await;
    }
}

/// A token of the tests' secret for an hour.
pub(crate) fn token(sub: &str, scope: &str) -> String {
    let scope = (!scope.is_empty()).then_some(scope);
    let hour = Duration::from_hours(1);
    token::sign(SECRET.as_bytes(), sub, scope, None, hour, &Rules::default())
        .expect("the claims are valid")
}

/// The three numbers of a count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Numbers {
    pub(crate) viewers: u64,
    pub(crate) connections: u64,
    pub(crate) members: u64,
}

impl Numbers {
    /// In this order, which is that of the contract.
    pub(crate) fn new(viewers: u64, connections: u64, members: u64) -> Self {
        Self {
            viewers,
            connections,
            members,
        }
    }

    /// Those of a count, or of whatever else has them.
    pub(crate) fn of(count: &Value) -> Self {
        let number = |name: &str| count[name].as_u64().expect("a count has three numbers");
        Self::new(number("viewers"), number("connections"), number("members"))
    }

    /// Each number put together with the other's.
    pub(crate) fn with(self, other: Self, join: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            viewers: join(self.viewers, other.viewers),
            connections: join(self.connections, other.connections),
            members: join(self.members, other.members),
        }
    }

    /// True where each number is at most the other's.
    pub(crate) fn is_within(self, most: Self) -> bool {
        self.with(most, u64::min) == self
    }
}

/// True for a count that says that other nodes' numbers are unknown.
pub(crate) fn is_partial(count: &Value) -> bool {
    count["partial"] == json!(true)
}

/// Where a node listens, and what can be asked of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Client(pub(crate) SocketAddr);

impl Client {
    /// A call with a token or ticket; JSON in, status and JSON out.
    ///
    /// # Errors
    ///
    /// When the node cannot be reached or does not answer in time.
    pub(crate) async fn try_call(
        self,
        method: &str,
        path: &str,
        bearer: &str,
        body: &Value,
    ) -> io::Result<(u16, Value)> {
        let answer = async {
            let mut socket = TcpStream::connect(self.0).await?;
            let request = request(method, path, &[("Authorization", bearer)], body);
            socket.write_all(&request).await?;
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await?;
            let answer = String::from_utf8(answer).map_err(io::Error::other)?;
            let (head, body) = answer
                .split_once("\r\n\r\n")
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = head.get(9..12).and_then(|status| status.parse().ok());
            let status = status.ok_or(io::ErrorKind::InvalidData)?;
            let body = match body {
                "" => Value::Null,
                text => serde_json::from_str(text).map_err(io::Error::other)?,
            };
            Ok((status, body))
        };
        timeout(PATIENCE, answer)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// What this machine is answered to a `GET`, as text.
    pub(crate) async fn text(self, path: &str) -> String {
        let answer = async {
            let mut socket = TcpStream::connect(self.0).await?;
            let request = request("GET", path, &[], &Value::Null);
            socket.write_all(&request).await?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        let answer = timeout(PATIENCE, answer).await.expect("it answers in time");
        let answer = answer.expect("the node is there");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head ends");
        assert_eq!(head.get(9..12), Some("200"), "{answer}");
        body.to_owned()
    }

    /// As [`Self::try_call`], of a node that answers.
    pub(crate) async fn call(
        self,
        method: &str,
        path: &str,
        credential: &str,
        body: Value,
    ) -> (u16, Value) {
        let bearer = format!("Bearer {credential}");
        let answer = self.try_call(method, path, &bearer, &body).await;
        answer.unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// A back end's `GET`, with every scope.
    pub(crate) async fn read(self, path: &str) -> Value {
        let (status, answer) = self.ask(path).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    }

    /// A back end's `GET`, with every scope, whatever the answer.
    pub(crate) async fn ask(self, path: &str) -> (u16, Value) {
        let token = token("back-end", "admin");
        self.call("GET", path, &token, Value::Null).await
    }

    /// A back end's `POST` or `DELETE`, with every scope.
    pub(crate) async fn order(self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let token = token("back-end", "admin");
        self.call(method, path, &token, body).await
    }

    /// A room's numbers over REST.
    pub(crate) async fn count(self, room: &str) -> Numbers {
        Numbers::of(&self.read(&format!("/v1/rooms/{room}")).await)
    }

    /// Sends a message; `to` is `rooms/blog:1` or `users/7`. Answers what the node did.
    pub(crate) async fn publish(self, to: &str, body: Value) -> Value {
        let path = format!("/v1/{to}/messages");
        let (status, answer) = self.order("POST", &path, body).await;
        assert_eq!(status, 202, "{answer}");
        answer
    }

    /// A call on a stream's connection by its own ticket, on whichever node this is.
    pub(crate) async fn change(self, reader: &Reader, what: &str, body: Value) -> Value {
        let path = format!("/v1/connections/{}/{what}", reader.connection());
        let (status, answer) = self.call("POST", &path, reader.ticket(), body).await;
        assert_eq!(status, 200, "{what}: {answer}");
        answer
    }

    /// Joins by `POST` without a stream; answers the ticket.
    ///
    /// # Errors
    ///
    /// When the node cannot be reached, or refuses.
    pub(crate) async fn try_join(self, body: &Value, token: Option<&str>) -> io::Result<String> {
        let bearer = token.map_or_else(String::new, |token| format!("Bearer {token}"));
        let (status, answer) = self.try_call("POST", "/v1/join", &bearer, body).await?;
        let ticket = answer["ticket"].as_str().filter(|_| status == 201);
        let refused = || io::Error::other(format!("join: {status} {answer}"));
        ticket.map(str::to_owned).ok_or_else(refused)
    }

    /// Opens a stream by `GET` and reads `connected`.
    ///
    /// # Errors
    ///
    /// When the node cannot be reached, refuses, or ends the stream at once.
    pub(crate) async fn try_open(self, path: &str, headers: &[(&str, &str)]) -> io::Result<Reader> {
        let open = async {
            let mut socket = TcpStream::connect(self.0).await?;
            let request = request("GET", path, headers, &Value::Null);
            socket.write_all(&request).await?;
            Reader::of(socket).await
        };
        timeout(PATIENCE, open)
            .await
            .map_err(|_| io::ErrorKind::TimedOut)?
    }

    /// As [`Self::try_open`], of a node that lets readers in.
    pub(crate) async fn open(self, path: &str, headers: &[(&str, &str)]) -> Reader {
        let reader = self.try_open(path, headers).await;
        reader.unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// Joins a room as nobody in particular.
    pub(crate) async fn join(self, room: &str) -> Reader {
        self.open(&format!("/v1/stream?room={room}"), &[]).await
    }

    /// Joins a room under a name that the client chose.
    pub(crate) async fn join_named(self, room: &str, viewer: &str) -> Reader {
        let path = format!("/v1/stream?room={room}&viewer={viewer}");
        self.open(&path, &[]).await
    }

    /// Joins a room with a token of this user's.
    pub(crate) async fn join_as(self, room: &str, user: &str) -> Reader {
        let bearer = format!("Bearer {}", token(user, ""));
        let headers = [("Authorization", bearer.as_str())];
        self.open(&format!("/v1/stream?room={room}"), &headers)
            .await
    }

    /// Opens the stream of a ticket.
    pub(crate) async fn open_ticket(self, ticket: &str) -> Reader {
        self.open(&format!("/v1/stream?ticket={ticket}"), &[]).await
    }

    /// Comes back with a ticket after this event, as a browser would.
    pub(crate) async fn resume(self, ticket: &str, position: &str) -> Reader {
        let path = format!("/v1/stream?ticket={ticket}");
        self.open(&path, &[("Last-Event-ID", position)]).await
    }
}

/// A request's bytes. Headers without a value are left out.
fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Vec<u8> {
    let mut text = format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\n");
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        text += &format!("{name}: {value}\r\n");
    }
    if !body.is_null() {
        let body = body.to_string();
        text += "Content-Type: application/json\r\n";
        text += &format!("Content-Length: {}\r\n\r\n{body}", body.len());
        return text.into_bytes();
    }
    (text + "\r\n").into_bytes()
}

/// A reader of one stream. Leaves when dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    socket: TcpStream,
    bytes: Vec<u8>,
    /// What `connected` said.
    pub(crate) connected: Value,
    /// The id of the last event that had one, as a browser would send it back.
    pub(crate) position: String,
}

impl Reader {
    async fn of(socket: TcpStream) -> io::Result<Self> {
        let mut reader = Self {
            socket,
            bytes: Vec::new(),
            connected: Value::Null,
            position: String::new(),
        };
        let head = reader.until(b"\r\n\r\n").await?;
        let head = head.ok_or(io::ErrorKind::UnexpectedEof)?;
        if head.get(9..12) != Some("200") {
            return Err(io::Error::other(head));
        }
        while let Some(event) = reader.try_next().await? {
            match event.name.as_str() {
                "" => {}
                "connected" => {
                    reader.connected = event.data;
                    return Ok(reader);
                }
                _ => return Err(io::Error::other(format!("{event:?}"))),
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    /// The text up to this mark, which is taken off; `None` at the end.
    async fn until(&mut self, mark: &[u8]) -> io::Result<Option<String>> {
        let mut seen = 0;
        loop {
            let from = seen.max(mark.len()) - mark.len();
            let found = self.bytes[from..]
                .windows(mark.len())
                .position(|bytes| bytes == mark);
            if let Some(end) = found {
                let end = from + end;
                let text = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
                self.bytes.drain(..end + mark.len());
                return Ok(Some(text));
            }
            seen = self.bytes.len();
            if self.socket.read_buf(&mut self.bytes).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The next event, or `None` at the end, whether `closed` came before it or not.
    ///
    /// # Errors
    ///
    /// When the connection breaks.
    pub(crate) async fn try_next(&mut self) -> io::Result<Option<Event>> {
        let Some(text) = self.until(b"\n\n").await? else {
            return Ok(None);
        };
        let event = Event::parse(&text);
        if let Some(id) = &event.id {
            self.position.clone_from(id);
        }
        Ok(Some(event))
    }

    pub(crate) fn connection(&self) -> &str {
        self.connected["connection"].as_str().expect("an id")
    }

    pub(crate) fn ticket(&self) -> &str {
        self.connected["ticket"].as_str().expect("a ticket")
    }

    /// The next event; panics where none comes in time or the stream has ended.
    pub(crate) async fn next(&mut self) -> Event {
        let event = timeout(PATIENCE, self.try_next()).await;
        let event = event.expect("an event comes in time");
        let event = event.expect("the stream does not break");
        event.expect("the stream goes on")
    }

    /// The next event of this name; others are skipped.
    pub(crate) async fn next_named(&mut self, name: &str) -> Event {
        self.next_of(&[name]).await
    }

    /// The next event of one of these names; others are skipped.
    pub(crate) async fn next_of(&mut self, names: &[&str]) -> Event {
        loop {
            let event = self.next().await;
            if names.contains(&event.name.as_str()) {
                return event;
            }
        }
    }

    /// Reads counts until one shows these numbers of a room, and whole; answers how long that
    /// took.
    pub(crate) async fn wait_for(&mut self, room: &str, expected: Numbers) -> Duration {
        let begin = Instant::now();
        let mut newest = None;
        let told = async {
            loop {
                let count = self.next_named("count").await;
                if count.room() == room {
                    newest = Some(count.data.clone());
                    if Numbers::of(&count.data) == expected && !is_partial(&count.data) {
                        return;
                    }
                }
            }
        };
        let told = timeout(PATIENCE, told).await;
        assert!(told.is_ok(), "{room} is {newest:?} and not {expected:?}");
        begin.elapsed()
    }

    /// Reads the next message and checks its data.
    pub(crate) async fn expect_message(&mut self, data: &Value) -> Event {
        let message = self.next_named("message").await;
        assert_eq!(&message.data["data"], data);
        message
    }

    /// Checks that no event of this name comes for so long.
    pub(crate) async fn expect_no(&mut self, name: &str, time: Duration) {
        let came = timeout(time, self.next_named(name)).await;
        assert!(came.is_err(), "{came:?}");
    }

    /// Reads to the end; answers the reason of `closed`.
    pub(crate) async fn reason(&mut self) -> String {
        let closed = self.next_named("closed").await;
        let reason = closed.data["reason"].as_str().expect("a reason");
        reason.to_owned()
    }
}
