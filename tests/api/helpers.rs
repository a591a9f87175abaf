//! The service as a client meets it: the only file that knows how a request is built.
//!
//! [`TestApp`] calls the router as a tower service, without a socket, or with `TEST_DELIVERY=shards`
//! in the environment the service over sockets; a [`Viewer`] reads the events of a stream and leaves
//! when it is dropped.

use std::{collections::BTreeMap, ops::RangeInclusive, time::Duration};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, StatusCode},
};
use http_body_util::BodyExt;
use livecount::{
    app::{App, Face},
    auth::token::{self, Rules},
    config::Config,
    hub::Hub,
    run,
    server::client::Peer,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tower::ServiceExt;

use crate::sockets::Sockets;

/// The HS256 secret of every test service.
pub(crate) const SECRET: &str = "the-secret-of-the-tests-has-32-bytes-or-more";

/// How long a test waits for what must come; with a paused clock no time at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// A service in this process, with its pulse running.
pub(crate) struct TestApp {
    pub(crate) app: App,
    router: Router,
    pulse: JoinHandle<()>,
    /// What requests go over; without, streams stay the bodies of their answers.
    sockets: Option<Sockets>,
}

/// True where this run is to send requests over sockets, and to deliver streams by a shard.
fn by_shards() -> bool {
    std::env::var_os("TEST_DELIVERY").is_some_and(|delivery| delivery == "shards")
}

impl TestApp {
    /// One with the default settings and the tests' secret.
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// One with these settings beside, by their names: `("push_interval", "50ms")`.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        Self::delivering(settings, by_shards())
    }

    /// One with the default settings whose streams are bodies in any run, for what cannot be said
    /// of others: over a socket a reader who does not read is not told from one who does, until
    /// the kernel's buffers are full.
    pub(crate) fn of_bodies() -> Self {
        Self::delivering(&[], false)
    }

    /// One with the default settings that is met over sockets in any run.
    pub(crate) fn over_sockets() -> Self {
        Self::delivering(&[], true)
    }

    fn delivering(settings: &[(&str, &str)], by_shards: bool) -> Self {
        let mut flags = BTreeMap::from([("jwt_secret".to_owned(), SECRET.to_owned())]);
        for (name, value) in settings {
            flags.insert((*name).to_owned(), (*value).to_owned());
        }
        let (config, _) = Config::load(&flags, &BTreeMap::new()).expect("the settings are valid");
        let app = run::app(config).expect("the keys are valid");
        let sockets = by_shards.then(|| Sockets::new(&app));
        let hub = app.hub().clone();
        let pulse = tokio::spawn(async move { hub.run().await });
        Self {
            router: app.router(Face::Public),
            app,
            pulse,
            sockets,
        }
    }

    pub(crate) fn hub(&self) -> &Hub {
        self.app.hub()
    }

    /// Sends any request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        let response = match &self.sockets {
            Some(sockets) => sockets.send(request).await,
            None => {
                let answer = self.router.clone().oneshot(request).await;
                answer.expect("the router never fails")
            }
        };
        let (head, body) = response.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body,
        }
    }

    /// A `GET` with these headers.
    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        self.call(Method::GET, path, headers, None).await
    }

    /// A `POST` of JSON with these headers.
    pub(crate) async fn post(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        self.call(Method::POST, path, headers, Some(body)).await
    }

    /// A `DELETE` with these headers and, perhaps, a JSON body.
    pub(crate) async fn delete(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        self.call(Method::DELETE, path, headers, body).await
    }

    async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<Value>,
    ) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                Body::from(body.to_string())
            }
            None => Body::empty(),
        };
        self.send(request.body(body).expect("the request is well formed"))
            .await
    }

    /// Joins a blog by `GET` and reads up to the first count.
    pub(crate) async fn join(&self, blog_id: &str) -> Viewer {
        self.open(&format!("/v1/stream?blog_id={blog_id}"), &[])
            .await
    }

    /// Joins a blog with a token.
    pub(crate) async fn join_as(&self, blog_id: &str, token: &str) -> Viewer {
        let bearer = bearer(token);
        let headers = [("authorization", bearer.as_str())];
        self.open(&format!("/v1/stream?blog_id={blog_id}"), &headers)
            .await
    }

    /// Opens a stream by `GET` and reads `connected`.
    pub(crate) async fn open(&self, path: &str, headers: &[(&str, &str)]) -> Viewer {
        let answer = self.get(path, headers).await;
        answer.expect_stream().connected().await
    }

    /// Joins by `POST` and opens the stream at once.
    pub(crate) async fn join_by_post(&self, body: Value, headers: &[(&str, &str)]) -> Viewer {
        let mut headers = headers.to_vec();
        headers.push(("accept", "text/event-stream"));
        let answer = self.post("/v1/join", &headers, body).await;
        answer.expect_stream().connected().await
    }

    /// Joins by `POST` without a stream and answers what the ticket came with.
    pub(crate) async fn join_later(&self, body: Value, headers: &[(&str, &str)]) -> Value {
        let answer = self.post("/v1/join", headers, body).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        answer.json().await
    }

    /// Opens the stream of a ticket and reads `connected`.
    pub(crate) async fn open_ticket(&self, ticket: &str) -> Viewer {
        self.open(&format!("/v1/stream?ticket={ticket}"), &[]).await
    }

    /// A call on a connection, `join` or `leave` or any other, by ticket or token.
    pub(crate) async fn call_on(
        &self,
        connection: &str,
        call: &str,
        credential: &str,
        body: Value,
    ) -> Answer {
        let path = format!("/v1/connections/{connection}/{call}");
        let bearer = bearer(credential);
        self.post(&path, &[("authorization", &bearer)], body).await
    }

    /// Changes the rooms of an open stream by its own ticket and answers what it is told.
    pub(crate) async fn change(&self, viewer: &Viewer, call: &str, body: Value) -> Value {
        let answer = self
            .call_on(viewer.connection(), call, viewer.ticket(), body)
            .await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.json().await
    }

    /// A back end's `GET` of JSON, with every scope.
    pub(crate) async fn read(&self, path: &str) -> Value {
        let bearer = bearer(&admin());
        let answer = self.get(path, &[("authorization", &bearer)]).await;
        assert_eq!(answer.status, StatusCode::OK);
        answer.json().await
    }

    /// A back end's `DELETE`, with every scope.
    pub(crate) async fn kick(&self, path: &str, body: Option<Value>) -> StatusCode {
        let bearer = bearer(&admin());
        let headers = [("authorization", bearer.as_str())];
        self.delete(path, &headers, body).await.status
    }

    /// Sends a message as a back end: `to` is `rooms/blog:1` or `users/7`. Answers its id.
    pub(crate) async fn publish(&self, to: &str, body: Value) -> String {
        let bearer = bearer(&admin());
        let path = format!("/v1/{to}/messages");
        let answer = self.post(&path, &[("authorization", &bearer)], body).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED);
        let accepted = answer.json().await;
        accepted["id"].as_str().expect("an id").to_owned()
    }

    /// A blog's count over REST: viewers, connections, members.
    pub(crate) async fn count(&self, blog_id: &str) -> (u64, u64, u64) {
        let token = token("reader", "read");
        let bearer = bearer(&token);
        let path = format!("/v1/blogs/{blog_id}/count");
        let answer = self.get(&path, &[("authorization", &bearer)]).await;
        numbers(&answer.json().await)
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.pulse.abort();
    }
}

/// A token of the tests' secret for an hour, without a `rooms` claim.
pub(crate) fn token(sub: &str, scope: &str) -> String {
    token_for(sub, scope, None, Duration::from_secs(3600))
}

/// A token of the tests' secret.
pub(crate) fn token_for(sub: &str, scope: &str, rooms: Option<&[&str]>, ttl: Duration) -> String {
    let rooms: Option<Vec<String>> =
        rooms.map(|rooms| rooms.iter().map(|room| (*room).to_owned()).collect());
    let scope = (!scope.is_empty()).then_some(scope);
    let rules = Rules::default();
    token::sign(SECRET.as_bytes(), sub, scope, rooms.as_deref(), ttl, &rules)
        .expect("the claims are valid")
}

/// A token with every scope.
pub(crate) fn admin() -> String {
    token("back-end", "admin")
}

/// The value of an `Authorization` header.
pub(crate) fn bearer(credential: &str) -> String {
    format!("Bearer {credential}")
}

/// What may be left of so many seconds: tokens and tickets end by the wall clock in whole
/// seconds, and a test takes its time.
pub(crate) fn about(seconds: u64) -> RangeInclusive<u64> {
    seconds - 2..=seconds
}

/// The seconds that are said to be left.
pub(crate) fn expires_in(said: &Value) -> u64 {
    said["expires_in"].as_u64().expect("whole seconds")
}

/// `viewers`, `connections` and `members` of a count.
pub(crate) fn numbers(count: &Value) -> (u64, u64, u64) {
    let number = |name: &str| count[name].as_u64().expect("a count has three numbers");
    (number("viewers"), number("connections"), number("members"))
}

/// Makes a request come from this address, as the server would.
pub(crate) fn from_address(mut request: Request<Body>, address: &str) -> Request<Body> {
    let address = address.parse().expect("an IP address");
    request.extensions_mut().insert(Peer(address));
    request
}

/// An answer whose body was not read yet.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    body: Body,
}

impl Answer {
    /// A header's value; empty where it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        let value = self.headers.get(name);
        value.map_or("", |value| value.to_str().expect("headers are ASCII"))
    }

    pub(crate) async fn text(self) -> String {
        let whole = tokio::time::timeout(PATIENCE, self.body.collect());
        let whole = whole.await.expect("the body ends").expect("it is whole");
        String::from_utf8(whole.to_bytes().to_vec()).expect("it is UTF-8")
    }

    pub(crate) async fn json(self) -> Value {
        let text = self.text().await;
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text:?} is no JSON"))
    }

    /// Checks that this is a problem with this status and code, of the one shape that problems
    /// have.
    pub(crate) async fn expect_problem(self, status: u16, code: &str) -> Value {
        let media_type = self.header("content-type").to_owned();
        let found = self.status.as_u16();
        let text = self.text().await;
        assert_eq!(
            (found, media_type.as_str()),
            (status, "application/problem+json"),
            "{text}"
        );
        let problem: Value = serde_json::from_str(&text).expect("a problem is JSON");
        assert_eq!(problem["code"], json!(code), "{problem}");
        assert_eq!(problem["status"], json!(status));
        problem
    }

    /// Checks that this is a stream.
    pub(crate) fn expect_stream(self) -> Viewer {
        assert_eq!(self.status, StatusCode::OK);
        assert_eq!(self.header("content-type"), "text/event-stream");
        self.stream()
    }

    /// The body as a stream of events.
    pub(crate) fn stream(self) -> Viewer {
        Viewer {
            body: self.body,
            pending: String::new(),
            connected: Value::Null,
            position: String::new(),
        }
    }
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Event {
    /// Its name; empty for a bare `retry:`.
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    /// Its data, parsed; null where it has none.
    pub(crate) data: Value,
    /// Milliseconds of a `retry:` field.
    pub(crate) retry: Option<u64>,
}

/// A reader of one stream. Leaves when dropped.
pub(crate) struct Viewer {
    body: Body,
    pending: String,
    /// What `connected` said.
    pub(crate) connected: Value,
    /// The id of the last event that had one, as a browser would send it back.
    pub(crate) position: String,
}

impl Viewer {
    /// Reads `retry:` and `connected`.
    async fn connected(mut self) -> Self {
        let retry = self.next().await;
        assert!(
            retry.retry.is_some(),
            "a stream begins with retry: {retry:?}"
        );
        let connected = self.next().await;
        assert_eq!(connected.name, "connected");
        assert!(connected.id.is_some(), "connected has an id");
        self.connected = connected.data;
        self
    }

    /// The names of a list in `connected`: `rooms` or `watching`.
    pub(crate) fn names(&self, list: &str) -> Vec<&str> {
        let list = self.connected[list].as_array().expect("a list");
        list.iter().filter_map(Value::as_str).collect()
    }

    pub(crate) fn connection(&self) -> &str {
        self.connected["connection"].as_str().expect("an id")
    }

    pub(crate) fn ticket(&self) -> &str {
        self.connected["ticket"].as_str().expect("a ticket")
    }

    /// The next event; panics where none comes in time or the stream has ended.
    pub(crate) async fn next(&mut self) -> Event {
        let next = self.try_next().await;
        next.expect("the stream goes on")
    }

    /// The next event, or `None` at the stream's end.
    pub(crate) async fn try_next(&mut self) -> Option<Event> {
        loop {
            if let Some((event, rest)) = self.pending.split_once("\n\n") {
                let event = Event::parse(event);
                self.pending = rest.to_owned();
                if let Some(id) = &event.id {
                    self.position.clone_from(id);
                }
                return Some(event);
            }
            let frame = tokio::time::timeout(PATIENCE * 6, self.body.frame()).await;
            let frame = frame.expect("an event comes in time")?;
            let bytes = frame.expect("the stream does not break").into_data();
            let bytes = bytes.expect("a stream has no trailers");
            self.pending += std::str::from_utf8(&bytes).expect("events are UTF-8");
        }
    }

    /// The next event of this name; others are skipped.
    pub(crate) async fn next_named(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await;
            if event.name == name {
                return event;
            }
        }
    }

    /// Checks that the next event is this one.
    pub(crate) async fn expect(&mut self, name: &str, data: Value) {
        let event = self.next().await;
        assert_eq!((event.name.as_str(), &event.data), (name, &data));
    }

    /// Checks that the next event is a room's count: viewers, connections, members.
    pub(crate) async fn expect_count(&mut self, room: &str, expected: (u64, u64, u64)) {
        let event = self.next().await;
        assert_eq!(event.name, "count");
        assert_eq!(event.data["room"], room);
        assert_eq!(numbers(&event.data), expected);
    }

    /// The next `count`: viewers, connections, members. Pings are skipped, nothing else is.
    pub(crate) async fn next_count(&mut self) -> (u64, u64, u64) {
        loop {
            let event = self.next().await;
            match event.name.as_str() {
                "count" => return numbers(&event.data),
                "ping" => {}
                other => panic!("{other} came in the place of a count"),
            }
        }
    }

    /// Reads counts until one shows these numbers.
    pub(crate) async fn wait_for_count(&mut self, expected: (u64, u64, u64)) {
        while numbers(&self.next_named("count").await.data) != expected {}
    }

    /// Checks that nothing comes for this long; with a paused clock that takes no time.
    pub(crate) async fn expect_silence(&mut self, time: Duration) {
        assert_eq!(self.pending, "");
        let next = tokio::time::timeout(time, self.body.frame()).await;
        assert!(next.is_err(), "something came: {next:?}");
    }

    /// Reads to the end; answers the reason of `closed`.
    pub(crate) async fn reason(self) -> String {
        self.farewell().await.0
    }

    /// Reads to the end; answers the reason of `closed` and the `retry:` right before it, in
    /// milliseconds.
    pub(crate) async fn farewell(mut self) -> (String, Option<u64>) {
        let mut retry = None;
        loop {
            let event = self.next().await;
            if event.name == "closed" {
                assert_eq!(self.try_next().await, None, "closed is the last event");
                let reason = event.data["reason"].as_str().expect("a reason");
                return (reason.to_owned(), retry);
            }
            retry = event.retry;
        }
    }
}

impl Event {
    fn parse(text: &str) -> Self {
        let mut event = Self {
            name: String::new(),
            id: None,
            data: Value::Null,
            retry: None,
        };
        for line in text.lines() {
            match line.split_once(": ") {
                Some(("event", name)) => event.name = name.to_owned(),
                Some(("id", id)) => event.id = Some(id.to_owned()),
                Some(("data", data)) => {
                    assert!(event.data.is_null(), "data is one line: {text}");
                    event.data = serde_json::from_str(data).expect("data is JSON");
                }
                Some(("retry", wait)) => event.retry = wait.parse().ok(),
                _ => panic!("{line:?} is no field of an event"),
            }
        }
        event
    }
}
