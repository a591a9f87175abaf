//! The service as a client meets it: the only file that knows how a request is built.
//!
//! [`TestApp`] calls the router as a tower service, without a socket, or with `TEST_DELIVERY=shards`
//! in the environment the service over sockets; a [`Viewer`] reads the events of a stream and leaves
//! when it is dropped.
//!
//! With `TEST_STORE=redis` the service is two nodes that share a Redis, and each request goes to the
//! other one than the request before: what one of them streams, the other one is asked about.

use std::{
    collections::BTreeMap,
    ops::RangeInclusive,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    http::{HeaderMap, Method, Request, Response, StatusCode},
};
use http_body_util::BodyExt;
use livecount::{
    app::{App, Face},
    auth::token::{self, Rules},
    cluster,
    config::{Config, Secret},
    hub::{Hub, Totals},
    run,
    server::client::Peer,
};
use serde_json::{Value, json};
use tokio::{
    sync::OnceCell,
    task::JoinHandle,
    time::{Instant, sleep, timeout_at},
};
use tower::ServiceExt;

use crate::{sockets::Sockets, store::Link};

/// The HS256 secret of every test service.
pub(crate) const SECRET: &str = "the-secret-of-the-tests-has-32-bytes-or-more";

/// How long a test waits for what must come; with a paused clock no time at all.
const PATIENCE: Duration = Duration::from_secs(10);

/// Time in which a change on one node is on the other one: a batch waits for 50 ms, and its
/// announcement for 25 ms. With a paused clock no time at all.
const REACH: Duration = Duration::from_millis(150);

/// How long numbers may be on their way in which one viewer on two nodes is still two.
const ON_ITS_WAY: Duration = Duration::from_secs(1);

/// A service in this process, with its pulse running.
pub(crate) struct TestApp {
    /// One, or two that share a store.
    nodes: Vec<Node>,
    store: Option<Store>,
    /// How many requests were sent.
    sent: AtomicUsize,
}

/// One node of a service.
struct Node {
    app: App,
    router: Router,
    pulse: JoinHandle<()>,
    /// What requests go over; without, streams stay the bodies of their answers.
    sockets: Option<Sockets>,
}

/// What nodes share.
struct Store {
    _link: Link,
    /// The nodes' part in it, from the first request on.
    joined: OnceCell<Vec<cluster::Tasks>>,
}

/// True where this run is to send requests over sockets, and to deliver streams by a shard.
fn by_shards() -> bool {
    std::env::var_os("TEST_DELIVERY").is_some_and(|delivery| delivery == "shards")
}

/// True where in this run a service is two nodes that share a Redis.
fn on_two_nodes() -> bool {
    std::env::var_os("TEST_STORE").is_some_and(|store| store == "redis")
}

impl TestApp {
    /// One with the default settings and the tests' secret.
    pub(crate) fn new() -> Self {
        Self::with(&[])
    }

    /// One with these settings beside, by their names: `("push_interval", "50ms")`.
    pub(crate) fn with(settings: &[(&str, &str)]) -> Self {
        Self::made(settings, by_shards(), on_two_nodes())
    }

    /// One that is a single node in any run, for what is a node's own: its limits, its drain, its
    /// metrics, what its hub keeps.
    pub(crate) fn of_one_node(settings: &[(&str, &str)]) -> Self {
        Self::made(settings, by_shards(), false)
    }

    /// One with the default settings whose streams are bodies in any run, for what cannot be said
    /// of others: over a socket a reader who does not read is not told from one who does, until
    /// the kernel's buffers are full.
    pub(crate) fn of_bodies() -> Self {
        Self::made(&[], false, false)
    }

    /// One with the default settings that is met over sockets in any run.
    pub(crate) fn over_sockets() -> Self {
        Self::made(&[], true, false)
    }

    fn made(settings: &[(&str, &str)], by_shards: bool, on_two_nodes: bool) -> Self {
        if !on_two_nodes {
            return Self {
                nodes: vec![Node::start(config(settings), by_shards)],
                store: None,
                sent: AtomicUsize::new(0),
            };
        }
        let link = Link::new();
        let nodes = ["one", "two"].map(|name| {
            let mut config = config(&[&[("node_name", name)], settings].concat());
            config.redis_url = Some(Secret::new(link.url().as_bytes()));
            link.prefix().clone_into(&mut config.redis_prefix);
            Node::start(config, by_shards)
        });
        Self {
            nodes: nodes.into(),
            store: Some(Store {
                _link: link,
                joined: OnceCell::new(),
            }),
            sent: AtomicUsize::new(0),
        }
    }

    /// Whichever node, for what is the same on all: their keys and settings.
    pub(crate) fn a_node(&self) -> &App {
        &self.nodes[0].app
    }

    /// The service of a single node.
    pub(crate) fn app(&self) -> &App {
        match self.nodes.as_slice() {
            [node] => &node.app,
            _ => panic!("with several nodes no test looks into one of them"),
        }
    }

    pub(crate) fn hub(&self) -> &Hub {
        self.app().hub()
    }

    /// How many nodes there are.
    pub(crate) fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// What each node knows of itself and of the service.
    pub(crate) fn totals(&self) -> Vec<Totals> {
        let nodes = self.nodes.iter();
        nodes.map(|node| node.app.hub().totals()).collect()
    }

    /// Within how long what is done is told to every reader: at once where there is one node.
    pub(crate) fn told_within(&self) -> Duration {
        self.store.as_ref().map_or(Duration::ZERO, |_| REACH * 2)
    }

    /// Has what was done so far be known on all nodes.
    pub(crate) async fn settle(&self) {
        let Some(store) = &self.store else {
            return;
        };
        store.joined.get_or_init(|| self.join_nodes()).await;
        sleep(REACH).await;
    }

    /// Has all nodes meet.
    async fn join_nodes(&self) -> Vec<cluster::Tasks> {
        let mut tasks = Vec::new();
        for node in &self.nodes {
            let joined = node.app.join_cluster().await;
            tasks.extend(joined.expect("the URL is one of Redis"));
        }
        let all_met = async {
            let clusters = || self.nodes.iter().filter_map(|node| node.app.cluster());
            while clusters().any(|c| c.nodes().0.len() < self.nodes.len() || c.is_partial()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let met = tokio::time::timeout(PATIENCE, all_met).await;
        met.expect("the nodes meet");
        tasks
    }

    /// Sends any request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Answer {
        self.settle().await;
        let turn = self.sent.fetch_add(1, Ordering::Relaxed) % self.nodes.len();
        let (head, body) = self.nodes[turn].send(request).await.into_parts();
        Answer {
            status: head.status,
            headers: head.headers,
            body,
            of_several: self.store.is_some(),
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

impl Node {
    fn start(config: Config, by_shards: bool) -> Self {
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

    async fn send(&self, request: Request<Body>) -> Response<Body> {
        match &self.sockets {
            Some(sockets) => sockets.send(request).await,
            None => {
                let answer = self.router.clone().oneshot(request).await;
                answer.expect("the router never fails")
            }
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.pulse.abort();
    }
}

/// These settings beside the tests' secret.
fn config(settings: &[(&str, &str)]) -> Config {
    let mut flags = BTreeMap::from([("jwt_secret".to_owned(), SECRET.to_owned())]);
    for (name, value) in settings {
        flags.insert((*name).to_owned(), (*value).to_owned());
    }
    let (config, _) = Config::load(&flags, &BTreeMap::new()).expect("the settings are valid");
    config
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
    /// True where it came from one of several nodes.
    of_several: bool,
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
            of_several: self.of_several,
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
    /// True where it reads from one of several nodes.
    of_several: bool,
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

    /// Checks that the next event is a room's count: viewers, connections, members. From one of
    /// several nodes counts of that room may come before it that are on their way there.
    pub(crate) async fn expect_count(&mut self, room: &str, expected: (u64, u64, u64)) {
        let began = Instant::now();
        loop {
            let event = self.next().await;
            assert_eq!(event.name, "count", "{event:?}");
            assert_eq!(event.data["room"], room);
            let found = numbers(&event.data);
            if found == expected {
                return;
            }
            let on_its_way = self.of_several && began.elapsed() < ON_ITS_WAY;
            assert!(on_its_way, "{found:?} came in the place of {expected:?}");
        }
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

    /// Checks that nothing comes for this long; with a paused clock that takes no time. From one
    /// of several nodes a ping may come: to have requests known there takes its time.
    pub(crate) async fn expect_silence(&mut self, time: Duration) {
        let until = Instant::now() + time;
        assert_eq!(self.pending, "");
        while let Ok(next) = timeout_at(until, self.try_next()).await {
            let is_ping = next.as_ref().is_some_and(|event| event.name == "ping");
            assert!(is_ping && self.of_several, "something came: {next:?}");
        }
    }

    /// Checks that a room's numbers stay these for this long. From one of several nodes others
    /// may be on their way there first, none with fewer connections, of which the last one shows
    /// these again.
    pub(crate) async fn expect_steady(
        &mut self,
        room: &str,
        these: (u64, u64, u64),
        time: Duration,
    ) {
        let began = Instant::now();
        if self.of_several {
            let mut last = these;
            while let Ok(event) = timeout_at(began + ON_ITS_WAY, self.next()).await {
                assert_eq!(
                    (event.name.as_str(), &event.data["room"]),
                    ("count", &json!(room))
                );
                last = numbers(&event.data);
                // Whoever moves is counted there before it is no longer counted here. A viewer who
                // was on both is told of again with the next batch.
                assert!(last.1 >= these.1, "{last:?} came in the place of {these:?}");
            }
            assert_eq!(last, these);
        }
        self.expect_silence(time.saturating_sub(began.elapsed()))
            .await;
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
