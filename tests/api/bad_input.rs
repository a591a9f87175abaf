//! Bad input: each is a problem with a code of its own, and none of it costs a count.
//!
//! A [`Scene`] is a service with readers in it; after each refusal all its numbers must be what
//! they were, and its readers must have been told nothing.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::Body,
    http::{HeaderValue, Request},
};
use bytes::Bytes;
use http_body::Frame;
use livecount::hub::Totals;
use serde_json::{Value, json};

use crate::{
    helpers::{TestApp, Viewer, bearer, token, token_for},
    server::request,
};

const HOUR: Duration = Duration::from_secs(3600);
/// Longer than anything takes to be told but a heartbeat.
const SILENCE: Duration = Duration::from_secs(1);

/// A service with a member and an anonymous reader in two rooms, and one who watches.
struct Scene {
    app: TestApp,
    member: Viewer,
    anonymous: Viewer,
    watcher: Viewer,
    before: Vec<Totals>,
}

impl Scene {
    async fn new() -> Self {
        let app = TestApp::new();
        let authorization = bearer(&token_for("7", "", Some(&["blog:*", "match:*"]), HOUR));
        let headers = [("authorization", authorization.as_str())];
        let rooms = json!({"rooms": ["blog:1", "match:1"]});
        let mut member = app.join_by_post(rooms, &headers).await;
        let mut anonymous = app.join("1").await;
        let mut watcher = app.open("/v1/watch?blog_id=1", &[]).await;
        member.wait_for_count((2, 2, 1)).await;
        anonymous.wait_for_count((2, 2, 1)).await;
        watcher.wait_for_count((2, 2, 1)).await;
        app.settle().await;
        Self {
            before: app.totals(),
            app,
            member,
            anonymous,
            watcher,
        }
    }

    /// Checks that a request is refused with this problem and changes nothing.
    async fn refuses(&mut self, request: Request<Body>, status: u16, code: &str) {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = self.app.send(request).await;
        if answer.status != status {
            let found = answer.status;
            panic!("{what} is answered with {found}: {}", answer.text().await);
        }
        answer.expect_problem(status, code).await;
        assert_eq!(self.app.totals(), self.before, "{what}");
        assert_eq!(self.app.count("1").await, (2, 2, 1), "{what}");
    }

    /// Checks a `POST` of a body that says it is JSON.
    async fn refuses_json(&mut self, path: &str, body: impl Into<Body>, status: u16, code: &str) {
        let json = [("content-type", "application/json")];
        let request = request("POST", path, &json, body);
        self.refuses(request, status, code).await;
    }

    /// Checks a join with this body.
    async fn refuses_join(&mut self, body: &Value, status: u16, code: &str) {
        self.refuses_json("/v1/join", body.to_string(), status, code)
            .await;
        // As a stream at once it would be counted.
        let headers = [
            ("content-type", "application/json"),
            ("accept", "text/event-stream"),
        ];
        let request = request("POST", "/v1/join", &headers, body.to_string());
        self.refuses(request, status, code).await;
    }

    async fn refuses_get(&mut self, path: &str, status: u16, code: &str) {
        self.refuses(request("GET", path, &[], ""), status, code)
            .await;
    }

    /// Checks a call with a token of this scope.
    async fn refuses_back_end(
        &mut self,
        scope: &str,
        (method, path): (&str, &str),
        body: &str,
        status: u16,
        code: &str,
    ) {
        let authorization = bearer(&token("cms", scope));
        let headers = [
            ("authorization", authorization.as_str()),
            ("content-type", "application/json"),
        ];
        let request = request(method, path, &headers, body.to_owned());
        self.refuses(request, status, code).await;
    }

    /// Checks that no reader was told anything.
    async fn expect_silence(mut self) {
        for viewer in [&mut self.member, &mut self.anonymous, &mut self.watcher] {
            viewer.expect_silence(SILENCE).await;
        }
    }
}

// ---- bodies ----

#[tokio::test(start_paused = true)]
async fn a_body_that_is_not_json_is_invalid_json() {
    let mut scene = Scene::new().await;
    for body in [
        &b""[..],
        b" ",
        b"{",
        b"{\"blog_id\":1",
        b"{\"blog_id\":1}}",
        b"{blog_id:1}",
        b"{'blog_id':1}",
        b"{\"blog_id\":01}",
        b"{\"blog_id\":NaN}",
        b"blog_id=1",
        b"\xef\xbb\xbf{\"blog_id\":1}",
        b"{\"room\":\"blog:\xff\"}",
        b"{\"room\":\"\\ud800\"}",
        b"{\"room\":\"a\nb\"}",
    ] {
        scene
            .refuses_json("/v1/join", body.to_vec(), 400, "invalid_json")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_nested_a_million_times_is_invalid_json() {
    let mut scene = Scene::new().await;
    for opening in ["[", "{\"a\":"] {
        let body = format!("{{\"blog_id\":{}", opening.repeat(30_000 / opening.len()));
        scene
            .refuses_json("/v1/join", body, 400, "invalid_json")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_object_is_an_invalid_body() {
    let mut scene = Scene::new().await;
    for body in [
        json!(null),
        json!(true),
        json!(1),
        json!("blog:1"),
        json!([]),
        // Field by field in their order is no way to write an object.
        json!([2]),
        json!([[["blog:2"]]]),
    ] {
        scene.refuses_join(&body, 400, "invalid_body").await;
    }
    for body in ["[[\"blog:1\"]]", "\"blog:1\"", "null"] {
        scene
            .refuses_json("/v1/counts", body, 400, "invalid_body")
            .await;
    }
    let path = format!("/v1/connections/{}/close", scene.anonymous.connection());
    let ticket = json!([scene.anonymous.ticket()]).to_string();
    scene.refuses_json(&path, ticket, 400, "invalid_body").await;
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_field_is_refused_by_every_body() {
    let mut scene = Scene::new().await;
    scene
        .refuses_join(&json!({"blog_id": 2, "blogid": 3}), 400, "unknown_field")
        .await;
    scene
        .refuses_json(
            "/v1/counts",
            "{\"rooms\":[\"blog:1\"],\"sort\":1}",
            400,
            "unknown_field",
        )
        .await;
    let connection = format!("/v1/connections/{}", scene.member.connection());
    for name in ["join", "leave", "watch", "unwatch"] {
        let path = format!("{connection}/{name}");
        let body = "{\"blog_id\":2,\"viewer\":\"x\"}";
        scene
            .refuses_back_end("manage", ("POST", &path), body, 400, "unknown_field")
            .await;
    }
    for (method, path) in [
        ("DELETE", connection.clone()),
        ("POST", format!("{connection}/close")),
        ("DELETE", "/v1/users/7/connections".to_owned()),
    ] {
        let body = "{\"blocks\":60}";
        scene
            .refuses_back_end("manage", (method, &path), body, 400, "unknown_field")
            .await;
    }
    let renew = format!("{connection}/renew");
    let body = "{\"ticket\":\"\",\"token\":\"\"}";
    scene
        .refuses_back_end("", ("POST", &renew), body, 400, "unknown_field")
        .await;
    for path in ["/v1/rooms/blog:1/messages", "/v1/users/7/messages"] {
        let body = "{\"data\":1,\"id\":1}";
        scene
            .refuses_back_end("publish", ("POST", path), body, 400, "unknown_field")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_field_given_twice_is_an_invalid_body() {
    let mut scene = Scene::new().await;
    for body in [
        "{\"blog_id\":2,\"blog_id\":3}",
        "{\"room\":\"blog:2\",\"room\":\"blog:3\"}",
    ] {
        scene
            .refuses_json("/v1/join", body, 400, "invalid_body")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_blog_id_of_another_type_is_an_invalid_body() {
    let mut scene = Scene::new().await;
    for blog_id in [
        "null",
        "true",
        "false",
        "1.5",
        "-1",
        "-0.5",
        "9007199254740992",
        "18446744073709551616",
        "1e300",
        "[]",
        "[1]",
        "{}",
        "{\"id\":1}",
    ] {
        let body = format!("{{\"blog_id\":{blog_id}}}");
        scene
            .refuses_json("/v1/join", body, 400, "invalid_body")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_field_of_another_type_is_an_invalid_body() {
    let mut scene = Scene::new().await;
    for field in ["room", "viewer", "last_event_id"] {
        for value in [
            json!(null),
            json!(1),
            json!(true),
            json!(["blog:2"]),
            json!({}),
        ] {
            let mut body = json!({ field: value });
            if field != "room" {
                body["blog_id"] = json!(2);
            }
            scene.refuses_join(&body, 400, "invalid_body").await;
        }
    }
    for field in ["rooms", "watch"] {
        for value in [
            json!(null),
            json!("blog:2"),
            json!(2),
            json!({}),
            json!([2]),
            json!(["blog:2", null]),
            json!([["blog:2"]]),
        ] {
            let body = json!({ field: value });
            scene.refuses_join(&body, 400, "invalid_body").await;
        }
    }
    for rooms in ["null", "\"blog:1\"", "[1]", "{}"] {
        let body = format!("{{\"rooms\":{rooms}}}");
        scene
            .refuses_json("/v1/counts", body, 400, "invalid_body")
            .await;
    }
    scene
        .refuses_json("/v1/counts", "{}", 400, "invalid_body")
        .await;
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_of_more_than_64_kib_is_too_large() {
    let mut scene = Scene::new().await;
    let padded = |length: usize| format!("{{\"blog_id\":2{}}}", " ".repeat(length - 13));
    scene
        .refuses_json("/v1/join", padded((64 << 10) + 1), 413, "body_too_large")
        .await;
    let path = format!("/v1/connections/{}/leave", scene.member.connection());
    scene
        .refuses_json(&path, padded((64 << 10) + 1), 413, "body_too_large")
        .await;
    // Nothing is wrong with one byte less.
    let json = [("content-type", "application/json")];
    let largest = request("POST", "/v1/join", &json, padded(64 << 10));
    assert_eq!(scene.app.send(largest).await.status, 201);
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_more_than_64_kib_is_too_large() {
    let mut scene = Scene::new().await;
    let data = |length: usize| json!("x".repeat(length - 2));
    let path = ("POST", "/v1/rooms/blog:1/messages");
    for body in [
        json!({"data": data((64 << 10) + 1)}),
        json!({"data": data(70 << 10)}),
        json!({"data": data(1 << 20)}),
    ] {
        scene
            .refuses_back_end("publish", path, &body.to_string(), 413, "body_too_large")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let mut scene = Scene::new().await;
    scene
        .refuses_json("/v1/join", Body::new(Stalled), 408, "request_timeout")
        .await;
    scene.expect_silence().await;
}

/// The beginning of a body whose rest never comes.
struct Stalled;

impl http_body::Body for Stalled {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Pending
    }
}

#[tokio::test(start_paused = true)]
async fn another_media_type_than_json_is_unsupported() {
    let mut scene = Scene::new().await;
    for media_type in [
        "",
        "text/plain",
        "text/json",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "application/problem+json",
    ] {
        let headers = [("content-type", media_type)];
        for path in ["/v1/join", "/v1/counts"] {
            let request = request("POST", path, &headers, "{\"blog_id\":2}");
            scene.refuses(request, 415, "unsupported_media_type").await;
        }
    }
    let none = request("POST", "/v1/join", &[], "{\"blog_id\":2}");
    scene.refuses(none, 415, "unsupported_media_type").await;
    scene.expect_silence().await;
}

// ---- rooms ----

#[tokio::test(start_paused = true)]
async fn a_thousand_rooms_in_one_join_are_too_many() {
    let mut scene = Scene::new().await;
    for number in [1_000, 1_001, 5_000] {
        let rooms: Vec<String> = (0..number).map(|blog| format!("blog:{blog}")).collect();
        for field in ["rooms", "watch"] {
            let body = json!({ field: rooms });
            scene.refuses_join(&body, 400, "too_many_rooms").await;
        }
    }
    let path = format!("/v1/connections/{}", scene.anonymous.connection());
    let rooms: Vec<String> = (0..1_000).map(|blog| format!("blog:{blog}")).collect();
    let body = json!({ "rooms": rooms }).to_string();
    for name in ["join", "watch"] {
        let path = format!("{path}/{name}");
        scene
            .refuses_back_end("manage", ("POST", &path), &body, 400, "too_many_rooms")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn more_than_a_thousand_counts_in_one_call_are_too_many() {
    let mut scene = Scene::new().await;
    let rooms: Vec<String> = (0..1_001).map(|blog| format!("blog:{blog}")).collect();
    let body = json!({ "rooms": rooms }).to_string();
    scene
        .refuses_json("/v1/counts", body, 400, "too_many_rooms")
        .await;
    let ids: Vec<String> = (0..1_001).map(|blog| blog.to_string()).collect();
    let path = format!("/v1/counts?blog_id={}", ids.join(","));
    scene.refuses_get(&path, 400, "too_many_rooms").await;
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_room_is_invalid_wherever_it_stands() {
    let mut scene = Scene::new().await;
    let (kind, name) = ("k".repeat(33), "n".repeat(129));
    let long = [format!("{kind}:1"), format!("blog:{name}")];
    let rooms = [
        "",
        "blog",
        "blog:",
        ":1",
        "Blog:1",
        "1blog:1",
        "-a:1",
        "blög:1",
        "blog:a b",
        "blog:ä",
        "blog:a/b",
        "blog:*",
        "blog:a,b",
        "blog:\u{0}",
        "blog:a\nb",
        " blog:1",
        "blog:1 ",
    ];
    let rooms = rooms.into_iter().chain(long.iter().map(String::as_str));
    let connection = format!("/v1/connections/{}/join", scene.anonymous.connection());
    for room in rooms {
        for body in [
            json!({"room": room}),
            json!({"rooms": ["blog:2", room]}),
            json!({"watch": [room]}),
            json!({"blog_id": 2, "watch": ["blog:1", room]}),
        ] {
            scene.refuses_join(&body, 400, "invalid_room").await;
        }
        let body = json!({ "rooms": [room] }).to_string();
        scene
            .refuses_json("/v1/counts", body.clone(), 400, "invalid_room")
            .await;
        scene
            .refuses_back_end("manage", ("POST", &connection), &body, 400, "invalid_room")
            .await;
        let encoded: String = form_urlencoded::byte_serialize(room.as_bytes()).collect();
        // A comma separates rooms in a query.
        if !room.contains(',') {
            for path in ["/v1/stream", "/v1/watch", "/v1/counts"] {
                let path = format!("{path}?blog_id=2&room={encoded}");
                scene.refuses_get(&path, 400, "invalid_room").await;
            }
        }
        // An empty segment is another path; a space is written otherwise in a path.
        if !room.is_empty() {
            let encoded = encoded.replace('+', "%20");
            let path = format!("/v1/rooms/{encoded}");
            scene.refuses_get(&path, 400, "invalid_room").await;
            for (method, call, body) in [
                ("POST", "messages", "{\"data\":1}"),
                ("GET", "connections", ""),
            ] {
                let path = format!("{path}/{call}");
                scene
                    .refuses_back_end("admin", (method, &path), body, 400, "invalid_room")
                    .await;
            }
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_blog_id_is_invalid_wherever_it_stands() {
    let mut scene = Scene::new().await;
    let long = "n".repeat(129);
    for blog_id in ["", "a b", "ä", "a/b", "*", "a\nb", &long] {
        let body = json!({"blog_id": blog_id});
        scene.refuses_join(&body, 400, "invalid_blog_id").await;
        let encoded: String = form_urlencoded::byte_serialize(blog_id.as_bytes()).collect();
        for path in ["/v1/stream", "/v1/watch", "/v1/counts"] {
            let path = format!("{path}?room=blog:2&blog_id={encoded}");
            scene.refuses_get(&path, 400, "invalid_blog_id").await;
        }
        if !blog_id.is_empty() {
            let path = format!("/v1/blogs/{}/count", encoded.replace('+', "%20"));
            scene.refuses_get(&path, 400, "invalid_blog_id").await;
        }
    }
    for list in ["1,,2", "1,", ","] {
        let path = format!("/v1/counts?blog_id={list}");
        scene.refuses_get(&path, 400, "invalid_blog_id").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_call_that_names_no_room_asks_for_one() {
    let mut scene = Scene::new().await;
    for body in [
        json!({}),
        json!({"viewer": "x"}),
        json!({"rooms": []}),
        json!({"watch": []}),
        json!({"blog_id": 2, "watch": []}),
        json!({"rooms": [], "watch": ["blog:2"]}),
    ] {
        scene.refuses_join(&body, 400, "rooms_required").await;
    }
    for path in [
        "/v1/stream",
        "/v1/watch",
        "/v1/counts",
        "/v1/stream?blogid=2",
    ] {
        scene.refuses_get(path, 400, "rooms_required").await;
    }
    scene
        .refuses_json("/v1/counts", "{\"rooms\":[]}", 400, "rooms_required")
        .await;
    for name in ["join", "leave", "watch", "unwatch"] {
        let path = format!("/v1/connections/{}/{name}", scene.member.connection());
        for body in ["{}", "{\"rooms\":[]}"] {
            scene
                .refuses_back_end("manage", ("POST", &path), body, 400, "rooms_required")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn rooms_named_in_two_ways_conflict() {
    let mut scene = Scene::new().await;
    for body in [
        json!({"blog_id": 2, "room": "blog:2"}),
        json!({"blog_id": 2, "rooms": ["blog:3"]}),
        json!({"room": "blog:2", "rooms": ["blog:3"]}),
    ] {
        scene.refuses_join(&body, 400, "conflicting_rooms").await;
        let path = format!("/v1/connections/{}/join", scene.anonymous.connection());
        let body = body.to_string();
        scene
            .refuses_back_end("manage", ("POST", &path), &body, 400, "conflicting_rooms")
            .await;
    }
    let path = format!("/v1/stream?ticket={}&blog_id=2", scene.anonymous.ticket());
    scene.refuses_get(&path, 400, "conflicting_rooms").await;
    scene.expect_silence().await;
}

/// As many rooms with long names as may be watched; their ticket would be three times too long.
fn long_rooms() -> Vec<String> {
    (0..100).map(|blog| format!("blog:{blog:0>100}")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_join_whose_ticket_would_be_too_large_is_refused_whole() {
    let mut scene = Scene::new().await;
    let body = json!({"blog_id": 2, "watch": long_rooms()});
    scene.refuses_join(&body, 400, "ticket_too_large").await;
    let ids: Vec<String> = long_rooms()
        .iter()
        .map(|room| room.replace("blog:", ""))
        .collect();
    let path = format!("/v1/watch?blog_id={}", ids.join(","));
    scene.refuses_get(&path, 400, "ticket_too_large").await;
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_ticket_would_be_too_large_is_refused_whole() {
    let mut scene = Scene::new().await;
    let path = format!("/v1/connections/{}/watch", scene.anonymous.connection());
    let ticket = bearer(scene.anonymous.ticket());
    let headers = [
        ("authorization", ticket.as_str()),
        ("content-type", "application/json"),
    ];
    let body = json!({ "rooms": long_rooms() }).to_string();
    let change = request("POST", &path, &headers, body);
    scene.refuses(change, 400, "ticket_too_large").await;
    // What fits is still taken, and nothing of the other was.
    let body = json!({"room": "blog:5"}).to_string();
    let change = scene.app.send(request("POST", &path, &headers, body)).await;
    assert_eq!(change.json().await["watching"], json!(["blog:5"]));
}

// ---- names ----

#[tokio::test(start_paused = true)]
async fn a_malformed_viewer_is_invalid() {
    let mut scene = Scene::new().await;
    let long = "v".repeat(65);
    for viewer in ["", "a b", "ä", "a,b", &long] {
        let body = json!({"blog_id": 2, "viewer": viewer});
        scene.refuses_join(&body, 400, "invalid_viewer").await;
        let encoded: String = form_urlencoded::byte_serialize(viewer.as_bytes()).collect();
        let path = format!("/v1/stream?blog_id=2&viewer={encoded}");
        scene.refuses_get(&path, 400, "invalid_viewer").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_user_is_invalid() {
    let mut scene = Scene::new().await;
    let long = "u".repeat(129);
    for user in ["a%20b", "%C3%A4", "a%2Fb", "*", &long] {
        for (method, call, body) in [
            ("GET", "connections", ""),
            ("DELETE", "connections", ""),
            ("POST", "messages", "{\"data\":1}"),
        ] {
            let path = format!("/v1/users/{user}/{call}");
            scene
                .refuses_back_end("admin", (method, &path), body, 400, "invalid_user_id")
                .await;
        }
    }
    scene.expect_silence().await;
}

/// Every call on a connection, by a back end.
const CONNECTION_CALLS: [(&str, &str, &str); 7] = [
    ("POST", "/join", "{\"blog_id\":2}"),
    ("POST", "/leave", "{\"blog_id\":2}"),
    ("POST", "/watch", "{\"blog_id\":2}"),
    ("POST", "/unwatch", "{\"blog_id\":2}"),
    ("POST", "/close", ""),
    ("DELETE", "", ""),
    ("GET", "", ""),
];

#[tokio::test(start_paused = true)]
async fn a_malformed_connection_is_invalid() {
    let mut scene = Scene::new().await;
    let known = scene.member.connection().to_owned();
    for connection in [
        "1",
        &known[1..],
        &format!("{known}0"),
        &known
            .to_uppercase()
            .replace(|c: char| c.is_ascii_digit(), "A"),
        &"g".repeat(32),
        "%20",
    ] {
        for (method, call, body) in CONNECTION_CALLS {
            let path = format!("/v1/connections/{connection}{call}");
            scene
                .refuses_back_end("admin", (method, &path), body, 400, "invalid_connection")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn an_unknown_connection_is_not_found() {
    let mut scene = Scene::new().await;
    let gone = scene.app.join("1").await;
    let connection = gone.connection().to_owned();
    scene.app.settle().await;
    drop(gone);
    scene.anonymous.wait_for_count((2, 2, 1)).await;
    scene.member.wait_for_count((2, 2, 1)).await;
    scene.watcher.wait_for_count((2, 2, 1)).await;
    scene.app.settle().await;
    scene.before = scene.app.totals();
    for connection in [connection.as_str(), &"0".repeat(32)] {
        for (method, call, body) in CONNECTION_CALLS {
            let path = format!("/v1/connections/{connection}{call}");
            scene
                .refuses_back_end("admin", (method, &path), body, 404, "unknown_connection")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_malformed_last_event_id_in_a_body_is_invalid() {
    let mut scene = Scene::new().await;
    let long = "1".repeat(65);
    for id in ["", "a b", "ä", "1\n2", &long] {
        let body = json!({"blog_id": 2, "last_event_id": id});
        scene
            .refuses_join(&body, 400, "invalid_last_event_id")
            .await;
    }
    scene.expect_silence().await;
}

// ---- credentials ----

#[tokio::test(start_paused = true)]
async fn a_forged_ticket_is_invalid() {
    let mut scene = Scene::new().await;
    let ticket = scene.member.ticket().to_owned();
    let token = token("7", "admin");
    let huge = format!("lct1.{}", "A".repeat(20_000));
    let spoiled = ticket.replacen("lct1.", "lct1.A", 1);
    for forged in [
        "",
        "x",
        "lct1.",
        "LCT1.AAAA",
        "lct1.%00",
        &spoiled,
        &token,
        &huge,
    ] {
        let path = format!("/v1/stream?ticket={forged}");
        scene.refuses_get(&path, 401, "invalid_ticket").await;
    }
    let path = format!("/v1/connections/{}/close", scene.member.connection());
    let body = json!({ "ticket": spoiled }).to_string();
    scene.refuses_json(&path, body, 401, "invalid_ticket").await;
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_forged_token_is_invalid() {
    let mut scene = Scene::new().await;
    let huge = "a".repeat(9_000);
    let dots = ".".repeat(100);
    for forged in [
        "x",
        "a.b.c",
        "a.b",
        "..",
        &dots,
        &huge,
        "e30.e30.",
        "lct1.AAAA",
    ] {
        let authorization = bearer(forged);
        let headers = [("authorization", authorization.as_str())];
        for path in ["/v1/stream?blog_id=1", "/v1/stats", "/metrics"] {
            scene
                .refuses(request("GET", path, &headers, ""), 401, "invalid_token")
                .await;
        }
    }
    let mut opaque = request("GET", "/v1/stream?blog_id=1", &[], "");
    let bytes = HeaderValue::from_bytes(b"Bearer \xff\xfe").expect("a header may be opaque");
    opaque.headers_mut().insert("authorization", bytes);
    scene.refuses(opaque, 401, "invalid_token").await;
    scene.expect_silence().await;
}

// ---- methods and paths ----

#[tokio::test(start_paused = true)]
async fn a_method_that_a_path_does_not_take_is_not_allowed() {
    let mut scene = Scene::new().await;
    let connection = format!("/v1/connections/{}", scene.member.connection());
    for (method, path, allow) in [
        ("GET", "/v1/join", "POST"),
        ("PUT", "/v1/join", "POST"),
        ("POST", "/v1/stream?blog_id=1", "GET,HEAD"),
        ("POST", "/v1/watch?blog_id=1", "GET,HEAD"),
        ("PATCH", &connection, "GET,HEAD,DELETE"),
        ("GET", &format!("{connection}/close"), "POST"),
        ("DELETE", &format!("{connection}/leave"), "POST"),
        ("POST", "/v1/users/7/connections", "GET,HEAD,DELETE"),
        ("GET", "/v1/rooms/blog:1/messages", "POST"),
        ("DELETE", "/v1/rooms/blog:1", "GET,HEAD"),
        ("DELETE", "/v1/counts", "GET,HEAD,POST"),
        ("POST", "/v1/stats", "GET,HEAD"),
        ("POST", "/livez", "GET,HEAD"),
        ("POST", "/openapi.yaml", "GET,HEAD"),
        ("TRACE", "/v1/stats", "GET,HEAD"),
        ("BREW", "/v1/stats", "GET,HEAD"),
    ] {
        let wrong = request(method, path, &[], "");
        let answer = scene.app.send(request(method, path, &[], "")).await;
        assert_eq!(answer.header("allow"), allow, "{method} {path}");
        scene.refuses(wrong, 405, "method_not_allowed").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_path_where_there_is_nothing_is_not_found() {
    let mut scene = Scene::new().await;
    let long = format!("/{}", "x".repeat(5_000));
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v2/join",
        "/v1/join/",
        "//v1/join",
        "/v1/blogs/1",
        "/v1/rooms/",
        "/v1/rooms/blog:1/x",
        "/v1/rooms/blog:1/messages/1",
        "/V1/join",
        "/favicon.ico",
        "/v1/blogs/a/b/count",
        "/%76%31/nothing",
        &long,
    ] {
        for method in ["GET", "POST", "DELETE"] {
            scene
                .refuses(request(method, path, &[], ""), 404, "not_found")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_path_that_is_not_utf_8_is_a_bad_request() {
    let mut scene = Scene::new().await;
    for path in [
        "/v1/blogs/%ff/count",
        "/v1/blogs/%C3/count",
        "/v1/rooms/blog:%fe",
        "/v1/connections/%ff",
        "/v1/users/%ff/connections",
    ] {
        scene
            .refuses_back_end("admin", ("GET", path), "", 400, "bad_request")
            .await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_query_that_is_not_utf_8_names_nothing() {
    let mut scene = Scene::new().await;
    for (query, code) in [
        ("blog_id=%ff", "invalid_blog_id"),
        ("blog_id=1%C3", "invalid_blog_id"),
        ("blog_id=%", "invalid_blog_id"),
        ("blog_id=%zz", "invalid_blog_id"),
        ("room=blog:%ff", "invalid_room"),
        ("%ff=1", "rooms_required"),
        ("blog_id=2&viewer=%ff", "invalid_viewer"),
    ] {
        let path = format!("/v1/stream?{query}");
        scene.refuses_get(&path, 400, code).await;
    }
    scene.expect_silence().await;
}

// ---- parameters and fields of single calls ----

#[tokio::test(start_paused = true)]
async fn a_limit_that_is_no_number_from_1_to_1000_is_invalid() {
    let mut scene = Scene::new().await;
    for limit in [
        "",
        "0",
        "1001",
        "-1",
        "+1",
        "1.0",
        "1e2",
        "x",
        "%20",
        "99999999999999999999",
    ] {
        let path = format!("/v1/rooms?limit={limit}");
        scene.refuses_get(&path, 400, "invalid_limit").await;
        for path in ["/v1/rooms/blog:1/connections", "/v1/users/7/connections"] {
            let path = format!("{path}?limit={limit}");
            scene
                .refuses_back_end("read", ("GET", &path), "", 400, "invalid_limit")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn an_order_that_there_is_not_is_invalid() {
    let mut scene = Scene::new().await;
    for sort in ["", "viewers", "-room", "connections", "ROOM"] {
        let path = format!("/v1/rooms?sort={sort}");
        scene.refuses_get(&path, 400, "invalid_sort").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_cursor_that_was_not_given_out_is_invalid() {
    let mut scene = Scene::new().await;
    for query in [
        "cursor=",
        "cursor=x",
        "cursor=1",
        "cursor=blog:1",
        "cursor=-1|blog:1",
        "cursor=99999999999|blog:1",
        "cursor=1|",
        "cursor=|blog:1",
        "sort=room&cursor=1|x",
        "sort=room&cursor=",
    ] {
        let path = format!("/v1/rooms?{query}");
        scene.refuses_get(&path, 400, "invalid_cursor").await;
    }
    for cursor in ["", "x", "1|blog:1", &"g".repeat(32)] {
        for path in ["/v1/rooms/blog:1/connections", "/v1/users/7/connections"] {
            let path = format!("{path}?cursor={cursor}");
            scene
                .refuses_back_end("read", ("GET", &path), "", 400, "invalid_cursor")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_prefix_that_begins_no_room_is_invalid() {
    let mut scene = Scene::new().await;
    let long = "p".repeat(162);
    for prefix in ["%20", "a/b", "%C3%A4", "blog:*", "%ff", &long] {
        let path = format!("/v1/rooms?prefix={prefix}");
        scene.refuses_get(&path, 400, "invalid_prefix").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_block_that_is_no_number_of_seconds_up_to_a_day_is_invalid() {
    let mut scene = Scene::new().await;
    let connection = format!("/v1/connections/{}", scene.member.connection());
    for block in [
        "-1", "86401", "1.5", "\"60\"", "null", "true", "[]", "1e300",
    ] {
        let body = format!("{{\"block\":{block}}}");
        for (method, path) in [
            ("DELETE", connection.clone()),
            ("POST", format!("{connection}/close")),
            ("DELETE", "/v1/users/7/connections".to_owned()),
        ] {
            scene
                .refuses_back_end("manage", (method, &path), &body, 400, "invalid_block")
                .await;
        }
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_kick_with_a_body_that_is_no_json_kicks_nobody() {
    let mut scene = Scene::new().await;
    let connection = format!("/v1/connections/{}", scene.member.connection());
    for path in [&connection, "/v1/users/7/connections"] {
        scene
            .refuses_back_end("manage", ("DELETE", path), "{", 400, "invalid_json")
            .await;
    }
    scene.expect_silence().await;
}

/// Checks that a message is refused, to a room and to a user.
async fn refuses_message(scene: &mut Scene, body: &str, code: &str) {
    for path in ["/v1/rooms/blog:1/messages", "/v1/users/7/messages"] {
        scene
            .refuses_back_end("publish", ("POST", path), body, 400, code)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_name_a_message_is_invalid() {
    let mut scene = Scene::new().await;
    let long = "a".repeat(65);
    for event in [
        "connected",
        "count",
        "joined",
        "left",
        "reset",
        "expiring",
        "ping",
        "closed",
        "error",
        "open",
        "",
        "1a",
        "_a",
        "a b",
        "ä",
        "a\nb",
        "a:b",
        &long,
    ] {
        let body = json!({"data": 1, "event": event}).to_string();
        refuses_message(&mut scene, &body, "invalid_event").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_that_is_not_printable_or_too_long_is_invalid() {
    let mut scene = Scene::new().await;
    let long = "k".repeat(129);
    for key in ["", "ä", "a\nb", "\u{7f}", &long] {
        let body = json!({"data": 1, "idempotency_key": key}).to_string();
        refuses_message(&mut scene, &body, "invalid_idempotency_key").await;
    }
    scene.expect_silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_message_of_another_shape_is_an_invalid_body() {
    let mut scene = Scene::new().await;
    for body in [
        "{}",
        "{\"event\":\"goal\"}",
        "{\"data\":1,\"event\":null}",
        "{\"data\":1,\"event\":1}",
        "{\"data\":1,\"idempotency_key\":7}",
        "{\"data\":1,\"idempotency_key\":null}",
        "[1]",
    ] {
        refuses_message(&mut scene, body, "invalid_body").await;
    }
    refuses_message(&mut scene, "{\"data\":}", "invalid_json").await;
    scene.expect_silence().await;
}
