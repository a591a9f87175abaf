//! Who may do what: tokens, cookies, tickets, scopes and rooms; what other pages may do; and that
//! nothing secret is told to anybody.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::http::Request;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use livecount::{
    app::Face,
    auth::ticket::Ticket,
    hub::{ConnectionId, Identity, RoomId},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use crate::{
    helpers::{Answer, SECRET, TestApp, Viewer, bearer, from_address, token, token_for},
    server::{Binary, Service, request},
    wire::Http2,
};

const HOUR: Duration = Duration::from_secs(3600);

/// A token with these claims, well formed or not, signed with the tests' secret.
fn signed(claims: &Value) -> String {
    signed_with(SECRET, claims)
}

fn signed_with(secret: &str, claims: &Value) -> String {
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), claims, &key).expect("claims are JSON")
}

fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.expect("the clock is right").as_secs()
}

/// A back end or a reader: an app, and one credential that goes with every call.
struct Caller<'a> {
    app: &'a TestApp,
    authorization: String,
}

impl<'a> Caller<'a> {
    fn new(app: &'a TestApp, credential: &str) -> Self {
        Self {
            app,
            authorization: bearer(credential),
        }
    }

    /// With a scope and perhaps the claim `rooms`.
    fn with(app: &'a TestApp, scope: &str, rooms: Option<&[&str]>) -> Self {
        Self::new(app, &token_for("7", scope, rooms, HOUR))
    }

    fn headers(&self) -> [(&str, &str); 1] {
        [("authorization", &self.authorization)]
    }

    async fn get(&self, path: &str) -> Answer {
        self.app.get(path, &self.headers()).await
    }

    async fn post(&self, path: &str, body: Value) -> Answer {
        self.app.post(path, &self.headers(), body).await
    }

    async fn delete(&self, path: &str) -> Answer {
        self.app.delete(path, &self.headers(), None).await
    }

    async fn join(&self, body: Value) -> Viewer {
        self.app.join_by_post(body, &self.headers()).await
    }

    /// The status of a join.
    async fn joins(&self, room: &str) -> u16 {
        let answer = self.post("/v1/join", json!({"room": room})).await;
        answer.status.as_u16()
    }

    async fn publishes(&self, room: &str) -> u16 {
        let path = format!("/v1/rooms/{room}/messages");
        self.post(&path, json!({"data": 1})).await.status.as_u16()
    }
}

fn call(viewer: &Viewer, name: &str) -> String {
    format!("/v1/connections/{}/{name}", viewer.connection())
}

// ---- a token is there: valid, or an error ----

#[tokio::test(start_paused = true)]
async fn an_invalid_token_is_never_treated_as_none() {
    let app = TestApp::new();
    let good = token("7", "");
    let exp = unix_now() + 3600;
    let unsigned = "eyJhbGciOiJub25lIn0.eyJzdWIiOiI3IiwiZXhwIjo5OTk5OTk5OTk5fQ.";
    for credential in [
        "nonsense",
        unsigned,
        &format!("{good}x"),
        &signed_with(
            "another secret of the same length, or more",
            &json!({"sub": "7", "exp": exp}),
        ),
        &signed(&json!({"exp": exp})),
        &signed(&json!({"sub": "7"})),
        &signed(&json!({"sub": "a b", "exp": exp})),
        &signed(&json!({"sub": "7", "exp": exp, "nbf": exp})),
        &signed(&json!({"sub": "7", "exp": exp, "rooms": null})),
        &signed(&json!({"sub": "7", "exp": exp, "rooms": "blog:*"})),
        &signed(&json!({"sub": "7", "exp": exp, "rooms": vec!["a:b"; 17]})),
        &signed(&json!({"sub": "7", "exp": exp, "scope": ["read"]})),
    ] {
        let caller = Caller::new(&app, credential);
        let anonymous_may = [
            "/v1/stream?blog_id=1",
            "/v1/watch?blog_id=1",
            "/v1/blogs/1/count",
            "/v1/rooms/blog:1",
            "/v1/counts?blog_id=1",
            "/v1/rooms",
        ];
        for path in anonymous_may {
            let answer = caller.get(path).await;
            assert_eq!(answer.header("www-authenticate"), "Bearer");
            answer.expect_problem(401, "invalid_token").await;
        }
        let joined = caller.post("/v1/join", json!({"blog_id": 1})).await;
        joined.expect_problem(401, "invalid_token").await;
    }
    assert!(app.totals().iter().all(|node| node.turnover.opened == 0));
}

#[tokio::test(start_paused = true)]
async fn an_expired_token_is_told_so_and_five_seconds_are_forgiven() {
    let app = TestApp::new();
    let ended = |ago: u64| signed(&json!({"sub": "7", "exp": unix_now() - ago}));
    let path = "/v1/blogs/1/count";
    let expired = Caller::new(&app, &ended(6)).get(path).await;
    expired.expect_problem(401, "token_expired").await;
    assert_eq!(Caller::new(&app, &ended(3)).get(path).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn an_authorization_header_of_another_form_is_no_valid_token() {
    let app = TestApp::new();
    let good = bearer(&token("7", ""));
    let twice = [("authorization", good.as_str()); 2];
    for headers in [
        &[("authorization", "Basic Nzo3")][..],
        &[("authorization", "Bearer")],
        &[("authorization", "Bearer ")],
        &[("authorization", "")],
        &twice,
    ] {
        let answer = app.get("/v1/blogs/1/count", headers).await;
        answer.expect_problem(401, "invalid_token").await;
    }
    let lower = good.replace("Bearer", "bearer");
    let answer = app
        .get("/v1/blogs/1/count", &[("authorization", &lower)])
        .await;
    assert_eq!(answer.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_sub_may_be_a_whole_number() {
    let app = TestApp::new();
    let number = signed(&json!({"sub": 42, "exp": unix_now() + 60}));
    let viewer = app.join_as("1", &number).await;
    assert_eq!(viewer.connected["user_id"], "42");
}

#[tokio::test(start_paused = true)]
async fn issuer_and_audience_are_required_where_configured() {
    let app = TestApp::with(&[("jwt_issuer", "cms"), ("jwt_audience", "livecount")]);
    let claims = |iss: &str, aud: Value| {
        signed(&json!({"sub": "7", "exp": unix_now() + 60, "iss": iss, "aud": aud}))
    };
    for (credential, status) in [
        (claims("cms", json!("livecount")), 200),
        (claims("cms", json!(["other", "livecount"])), 200),
        (claims("other", json!("livecount")), 401),
        (claims("cms", json!("other")), 401),
        (signed(&json!({"sub": "7", "exp": unix_now() + 60})), 401),
    ] {
        let answer = Caller::new(&app, &credential)
            .get("/v1/blogs/1/count")
            .await;
        assert_eq!(answer.status, status);
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_in_the_url_is_no_token() {
    let app = TestApp::new();
    let token = token("7", "admin");
    for parameter in ["token", "access_token", "livecount_token"] {
        let path = format!("/v1/stats?{parameter}={token}");
        let answer = app.get(&path, &[]).await;
        answer.expect_problem(401, "token_required").await;
    }
}

// ---- rooms ----

#[tokio::test(start_paused = true)]
async fn without_a_token_the_anonymous_rooms_are_open_and_others_need_one() {
    let app = TestApp::new();
    assert_eq!(app.get("/v1/blogs/1/count", &[]).await.status, 200);
    for path in [
        "/v1/rooms/match:1",
        "/v1/stream?room=match:1",
        "/v1/watch?room=match:1",
        "/v1/counts?blog_id=1&room=match:1",
        "/v1/rooms/user:7",
        "/v1/stream?room=user:7",
    ] {
        let answer = app.get(path, &[]).await;
        answer.expect_problem(401, "token_required").await;
    }
    let rooms = json!({"rooms": ["blog:1", "match:1"]});
    let joined = app.post("/v1/join", &[], rooms.clone()).await;
    joined.expect_problem(401, "token_required").await;
    let counts = app.post("/v1/counts", &[], rooms).await;
    counts.expect_problem(401, "token_required").await;
}

#[tokio::test(start_paused = true)]
async fn with_no_anonymous_rooms_everything_needs_a_token() {
    let app = TestApp::with(&[("anonymous_rooms", "")]);
    for path in [
        "/v1/blogs/1/count",
        "/v1/stream?blog_id=1",
        "/v1/watch?blog_id=1",
        "/v1/rooms",
    ] {
        let answer = app.get(path, &[]).await;
        answer.expect_problem(401, "token_required").await;
    }
    let joined = app.post("/v1/join", &[], json!({"blog_id": 1})).await;
    joined.expect_problem(401, "token_required").await;
    // What a token without a rooms claim opens is every blog.
    let reader = Caller::with(&app, "", None);
    assert_eq!(reader.joins("blog:1").await, 201);
    assert_eq!(reader.joins("match:1").await, 403);
}

#[tokio::test(start_paused = true)]
async fn the_rooms_claim_is_what_a_token_opens() {
    let app = TestApp::with(&[("anonymous_rooms", "")]);
    let reader = Caller::with(&app, "", Some(&["match:*", "blog:42", "lesson:spanish-*"]));
    for (room, status) in [
        ("match:1", 201),
        ("blog:42", 201),
        ("lesson:spanish-3", 201),
        ("blog:43", 403),
        ("blog:4", 403),
        ("lesson:french-1", 403),
        ("matches:1", 403),
    ] {
        assert_eq!(reader.joins(room).await, status, "{room}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_forbidden_room_refuses_the_whole_call_and_is_named() {
    let app = TestApp::new();
    let reader = Caller::with(&app, "", None);
    for body in [
        json!({"rooms": ["blog:1", "match:1"]}),
        json!({"blog_id": 1, "watch": ["match:1"]}),
    ] {
        let answer = reader.post("/v1/join", body).await;
        let problem = answer.expect_problem(403, "forbidden_room").await;
        assert_eq!(problem["room"], "match:1");
    }
    let answer = reader.get("/v1/counts?blog_id=1&room=match:1").await;
    let problem = answer.expect_problem(403, "forbidden_room").await;
    assert_eq!(problem["room"], "match:1");
}

#[tokio::test(start_paused = true)]
async fn a_token_adds_to_what_anybody_may() {
    let app = TestApp::with(&[("anonymous_rooms", "lobby:1")]);
    let narrow = Caller::with(&app, "", Some(&["match:1"]));
    assert_eq!(narrow.joins("match:1").await, 201);
    assert_eq!(narrow.joins("lobby:1").await, 201);
    assert_eq!(narrow.joins("blog:1").await, 403);
    let none = Caller::with(&app, "", Some(&[]));
    assert_eq!(none.joins("lobby:1").await, 201);
    assert_eq!(none.joins("match:1").await, 403);
}

#[tokio::test(start_paused = true)]
async fn the_own_personal_room_is_always_open() {
    let app = TestApp::new();
    for rooms in [None, Some(&[][..]), Some(&["match:1"])] {
        let seven = Caller::with(&app, "", rooms);
        assert_eq!(seven.get("/v1/rooms/user:7").await.status, 200);
        let viewer = seven.join(json!({"room": "user:7"})).await;
        assert_eq!(viewer.connected["rooms"], json!(["user:7"]));
    }
}

#[tokio::test(start_paused = true)]
async fn anothers_personal_room_is_open_by_no_pattern() {
    let app = TestApp::new();
    for rooms in [None, Some(&["user:8"][..]), Some(&["user:*"]), Some(&["*"])] {
        let seven = Caller::with(&app, "", rooms);
        assert_eq!(seven.joins("user:8").await, 403);
        let count = seven.get("/v1/rooms/user:8").await;
        count.expect_problem(403, "forbidden_room").await;
        let watch = seven.get("/v1/watch?room=user:8").await;
        watch.expect_problem(403, "forbidden_room").await;
    }
}

// ---- scopes ----

/// What every back end's call answers, joins aside, at a connection that is open in `blog:1`.
async fn back_end_calls(caller: &Caller<'_>, viewer: &Viewer) -> Vec<(&'static str, Answer)> {
    let connection = format!("/v1/connections/{}", viewer.connection());
    let message = json!({"data": 1});
    let room = json!({"blog_id": 2});
    let publish = caller.post("/v1/rooms/blog:1/messages", message.clone());
    let to_user = caller.post("/v1/users/8/messages", message);
    vec![
        ("read", caller.get("/v1/stats").await),
        ("read", caller.get("/v1/rooms/blog:1/connections").await),
        ("read", caller.get(&connection).await),
        ("read", caller.get("/v1/users/8/connections").await),
        ("publish", publish.await),
        ("publish", to_user.await),
        (
            "manage",
            caller.post(&call(viewer, "join"), room.clone()).await,
        ),
        (
            "manage",
            caller.post(&call(viewer, "leave"), room.clone()).await,
        ),
        (
            "manage",
            caller.post(&call(viewer, "watch"), room.clone()).await,
        ),
        ("manage", caller.post(&call(viewer, "unwatch"), room).await),
        ("manage", caller.delete("/v1/users/9/connections").await),
        ("manage", caller.delete(&connection).await),
    ]
}

#[tokio::test(start_paused = true)]
async fn each_scope_permits_its_calls_and_no_other() {
    let app = TestApp::new();
    for scope in ["", "read", "publish", "manage"] {
        let viewer = app.join("1").await;
        let caller = Caller::with(&app, scope, None);
        for (needed, answer) in back_end_calls(&caller, &viewer).await {
            if needed == scope {
                assert!(answer.status.is_success(), "{needed}: {}", answer.status);
            } else {
                answer.expect_problem(403, "insufficient_scope").await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn admin_is_every_scope() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let admin = Caller::with(&app, "admin", None);
    for (needed, answer) in back_end_calls(&admin, &viewer).await {
        assert!(answer.status.is_success(), "{needed}: {}", answer.status);
    }
}

#[tokio::test(start_paused = true)]
async fn back_ends_calls_need_a_token() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let connection = format!("/v1/connections/{}", viewer.connection());
    for path in [
        "/v1/stats",
        "/v1/rooms/blog:1/connections",
        "/v1/users/8/connections",
        &connection,
    ] {
        let answer = app.get(path, &[]).await;
        answer.expect_problem(401, "token_required").await;
    }
    for path in ["/v1/rooms/blog:1/messages", "/v1/users/8/messages"] {
        let answer = app.post(path, &[], json!({"data": 1})).await;
        answer.expect_problem(401, "token_required").await;
    }
    for name in ["join", "leave", "watch", "unwatch"] {
        let answer = app
            .post(&call(&viewer, name), &[], json!({"blog_id": 2}))
            .await;
        answer.expect_problem(401, "ticket_required").await;
    }
    let kick = app.delete(&connection, &[], None).await;
    kick.expect_problem(401, "ticket_required").await;
    let kick = app.delete("/v1/users/8/connections", &[], None).await;
    kick.expect_problem(401, "token_required").await;
}

#[tokio::test(start_paused = true)]
async fn read_reads_everything_whatever_the_rooms_claim() {
    let app = TestApp::with(&[("anonymous_rooms", "")]);
    let reader = Caller::with(&app, "read", Some(&[]));
    for path in [
        "/v1/rooms/match:1",
        "/v1/rooms/user:8",
        "/v1/counts?room=match:1&blog_id=1",
        "/v1/rooms/match:1/connections",
        "/v1/users/8/connections",
        "/v1/stats",
    ] {
        assert_eq!(reader.get(path).await.status, 200, "{path}");
    }
    let watch = reader.get("/v1/watch?room=match:1").await;
    assert_eq!(watch.status, 200);
}

#[tokio::test(start_paused = true)]
async fn read_joins_nothing_more() {
    let app = TestApp::with(&[("anonymous_rooms", "")]);
    let reader = Caller::with(&app, "read", Some(&["match:1"]));
    for room in ["blog:1", "match:2", "user:8"] {
        assert_eq!(reader.joins(room).await, 403, "{room}");
        let stream = reader.get(&format!("/v1/stream?room={room}")).await;
        stream.expect_problem(403, "forbidden_room").await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_list_of_rooms_shows_what_the_caller_may_read() {
    let app = TestApp::new();
    let _seven = Caller::with(&app, "", Some(&["match:1"]))
        .join(json!({"rooms": ["blog:1", "match:1"]}))
        .await;
    let listed = async |headers: &[(&str, &str)]| {
        let page = app.get("/v1/rooms?sort=room", headers).await.json().await;
        let rooms = page["rooms"].as_array().expect("a list").clone();
        let names = rooms.iter().map(|room| room["room"].clone());
        Value::Array(names.collect())
    };
    assert_eq!(listed(&[]).await, json!(["blog:1"]));
    let member = Caller::with(&app, "", Some(&["match:*"]));
    assert_eq!(
        listed(&member.headers()).await,
        json!(["blog:1", "match:1"])
    );
    let reader = Caller::with(&app, "read", Some(&[]));
    assert_eq!(
        listed(&reader.headers()).await,
        json!(["blog:1", "match:1"])
    );
}

// ---- publish and manage within the rooms claim ----

#[tokio::test(start_paused = true)]
async fn publish_without_a_rooms_claim_has_no_bounds() {
    let app = TestApp::new();
    let publisher = Caller::with(&app, "publish", None);
    for room in ["blog:1", "match:1", "user:8"] {
        assert_eq!(publisher.publishes(room).await, 202, "{room}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_rooms_claim_bounds_publish_and_admin_too() {
    let app = TestApp::new();
    for scope in ["publish", "admin"] {
        let publisher = Caller::with(&app, scope, Some(&["match:*"]));
        assert_eq!(publisher.publishes("match:1").await, 202);
        // What anybody may join and read is not what anybody may speak in.
        for room in ["blog:1", "user:8", "user:7"] {
            assert_eq!(publisher.publishes(room).await, 403, "{room}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_full_name_covers_anothers_room_for_publish_and_manage_and_no_prefix_does() {
    let app = TestApp::new();
    for scope in ["publish", "admin"] {
        let named = Caller::with(&app, scope, Some(&["user:8"]));
        let sent = named.post("/v1/users/8/messages", json!({"data": 1})).await;
        assert_eq!(sent.status, 202);
        assert_eq!(named.publishes("user:8").await, 202);
        assert_eq!(named.publishes("user:9").await, 403);
        for prefix in ["user:*", "*", "user:8*"] {
            let prefixed = Caller::with(&app, scope, Some(&[prefix]));
            let sent = prefixed
                .post("/v1/users/8/messages", json!({"data": 1}))
                .await;
            sent.expect_problem(403, "forbidden_room").await;
        }
    }
    let kick = |rooms| {
        let manager = Caller::with(&app, "manage", rooms);
        async move { manager.delete("/v1/users/8/connections").await }
    };
    assert_eq!(kick(Some(&["user:8"][..])).await.status, 204);
    for rooms in [&["user:*"][..], &["*"], &["user:9"], &[]] {
        let refused = kick(Some(rooms)).await;
        refused.expect_problem(403, "forbidden_room").await;
    }
}

#[tokio::test(start_paused = true)]
async fn manage_changes_others_rooms() {
    let app = TestApp::new();
    let mut viewer = app.join("1").await;
    assert_eq!(viewer.next_count().await, (1, 1, 0));
    let manager = Caller::with(&app, "manage", None);
    // Also into rooms that the viewer could not join alone.
    let joined = manager
        .post(&call(&viewer, "join"), json!({"room": "match:1"}))
        .await;
    assert_eq!(joined.json().await["rooms"], json!(["blog:1", "match:1"]));
    assert_eq!(viewer.next_named("joined").await.data["room"], "match:1");
    let left = manager
        .post(&call(&viewer, "leave"), json!({"blog_id": 1}))
        .await;
    assert_eq!(left.json().await["rooms"], json!(["match:1"]));
    assert_eq!(viewer.next_named("left").await.data["room"], "blog:1");
    let kicked = manager
        .delete(&format!("/v1/connections/{}", viewer.connection()))
        .await;
    assert_eq!(kicked.status, 204);
    assert_eq!(viewer.reason().await, "kicked");
}

#[tokio::test(start_paused = true)]
async fn the_rooms_claim_bounds_manage_and_admin_too() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    for scope in ["manage", "admin"] {
        let manager = Caller::with(&app, scope, Some(&["match:*"]));
        for name in ["join", "leave", "watch", "unwatch"] {
            let path = call(&viewer, name);
            let within = manager.post(&path, json!({"room": "match:1"})).await;
            assert_eq!(within.status, 200, "{name}");
            for room in ["blog:1", "user:8"] {
                let beyond = manager.post(&path, json!({"room": room})).await;
                beyond.expect_problem(403, "forbidden_room").await;
            }
            let both = manager
                .post(&path, json!({"rooms": ["match:2", "blog:1"]}))
                .await;
            both.expect_problem(403, "forbidden_room").await;
        }
    }
    assert_eq!(app.count("1").await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kick_needs_every_room_of_the_connection_covered() {
    let app = TestApp::new();
    let seven = Caller::with(&app, "", Some(&["match:*"]));
    let viewer = seven
        .join(json!({"rooms": ["match:1", "match:2"], "watch": ["blog:9"]}))
        .await;
    let path = format!("/v1/connections/{}", viewer.connection());
    for rooms in [
        &["match:1"][..],
        &["match:*"],
        &["blog:9", "match:1"],
        &["user:7"],
        &[],
    ] {
        let refused = Caller::with(&app, "manage", Some(rooms))
            .delete(&path)
            .await;
        refused.expect_problem(403, "forbidden_room").await;
        let rooms = [rooms, &["user:7"]].concat();
        let refused = Caller::with(&app, "manage", Some(&rooms))
            .delete("/v1/users/7/connections")
            .await;
        refused.expect_problem(403, "forbidden_room").await;
    }
    assert_eq!(app.read("/v1/stats").await["connections"], 1);
    // The personal room needs no covering.
    let covering = Caller::with(&app, "manage", Some(&["match:*", "blog:9"]));
    assert_eq!(covering.delete(&path).await.status, 204);
    assert_eq!(viewer.reason().await, "kicked");
}

#[tokio::test(start_paused = true)]
async fn permission_is_checked_before_existence() {
    let app = TestApp::new();
    let nobody = "/v1/connections/00000000000000000000000000000000";
    let none = Caller::with(&app, "", None);
    none.get(nobody)
        .await
        .expect_problem(403, "insufficient_scope")
        .await;
    none.delete(nobody)
        .await
        .expect_problem(403, "insufficient_scope")
        .await;
    let anonymous = app.get(nobody, &[]).await;
    anonymous.expect_problem(401, "token_required").await;
    let manager = Caller::with(&app, "manage", Some(&["match:*"]));
    for name in ["join", "leave", "watch", "unwatch"] {
        let path = format!("{nobody}/{name}");
        let beyond = manager.post(&path, json!({"blog_id": 1})).await;
        beyond.expect_problem(403, "forbidden_room").await;
        let within = manager.post(&path, json!({"room": "match:1"})).await;
        within.expect_problem(404, "unknown_connection").await;
    }
    let kick = manager.delete(nobody).await;
    kick.expect_problem(404, "unknown_connection").await;
}

// ---- the cookie ----

/// What a browser sends with the cookie: `("origin", …)` and its like.
async fn with_cookie(
    app: &TestApp,
    method: &str,
    path: &str,
    token: &str,
    headers: &[(&str, &str)],
) -> Answer {
    let cookie = format!("theme=dark; livecount_token={token}; other=1");
    let mut headers = headers.to_vec();
    headers.push(("cookie", &cookie));
    let body = match method {
        "POST" => {
            headers.push(("content-type", "application/json"));
            json!({"blog_id": 1}).to_string()
        }
        _ => String::new(),
    };
    app.send(request(method, path, &headers, body)).await
}

const OWN: [(&str, &str); 2] = [
    ("host", "live.example.org"),
    ("origin", "https://live.example.org"),
];

#[tokio::test(start_paused = true)]
async fn the_cookie_serves_joining_streaming_watching_and_reading_counts() {
    let app = TestApp::with(&[("anonymous_rooms", "")]);
    let token = token("7", "");
    for path in [
        "/v1/stream?blog_id=1",
        "/v1/watch?blog_id=1",
        "/v1/blogs/1/count",
        "/v1/rooms/blog:1",
        "/v1/counts?blog_id=1",
        "/v1/rooms",
    ] {
        let answer = with_cookie(&app, "GET", path, &token, &OWN).await;
        assert_eq!(answer.status, 200, "{path}");
    }
    let joined = with_cookie(&app, "POST", "/v1/join", &token, &OWN).await;
    assert_eq!(joined.status, 201);
    let mut stream = with_cookie(&app, "GET", "/v1/stream?blog_id=1", &token, &OWN)
        .await
        .expect_stream();
    assert_eq!(stream.next_named("connected").await.data["user_id"], "7");
}

#[tokio::test(start_paused = true)]
async fn the_cookie_serves_no_back_end() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let admin = token("7", "admin");
    let connection = format!("/v1/connections/{}", viewer.connection());
    for (method, path, code) in [
        ("GET", "/v1/stats", "token_required"),
        ("GET", "/v1/rooms/blog:1/connections", "token_required"),
        ("GET", "/v1/users/7/connections", "token_required"),
        ("GET", &connection, "token_required"),
        ("POST", "/v1/rooms/blog:1/messages", "token_required"),
        ("POST", "/v1/users/7/messages", "token_required"),
        ("POST", &call(&viewer, "join"), "ticket_required"),
        ("POST", &call(&viewer, "leave"), "ticket_required"),
        ("DELETE", &connection, "ticket_required"),
        ("DELETE", "/v1/users/7/connections", "token_required"),
    ] {
        let answer = with_cookie(&app, method, path, &admin, &OWN).await;
        answer.expect_problem(401, code).await;
    }
    let remote = request(
        "GET",
        "/metrics",
        &[("cookie", &format!("livecount_token={admin}"))],
        "",
    );
    let metrics = app.send(from_address(remote, "192.0.2.1")).await;
    metrics.expect_problem(401, "token_required").await;
}

#[tokio::test(start_paused = true)]
async fn the_cookies_scope_is_ignored() {
    let app = TestApp::new();
    for scope in ["read", "admin"] {
        let cookie = token("7", scope);
        let answer = with_cookie(&app, "GET", "/v1/rooms/match:1", &cookie, &OWN).await;
        answer.expect_problem(403, "forbidden_room").await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_cookie_counts_from_the_origin_that_the_request_is_for() {
    let app = TestApp::new();
    let token = token("7", "");
    for (host, origin, good) in [
        ("live.example.org", "https://live.example.org", true),
        ("live.example.org", "http://live.example.org", true),
        (
            "live.example.org:8443",
            "https://live.example.org:8443",
            true,
        ),
        ("live.example.org:8443", "https://live.example.org", false),
        ("live.example.org", "https://evil.example.org", false),
        (
            "live.example.org",
            "https://live.example.org.evil.org",
            false,
        ),
        ("live.example.org", "null", false),
        ("live.example.org", "", false),
        ("live.example.org", "live.example.org", false),
    ] {
        let headers = [("host", host), ("origin", origin)];
        for (method, path) in [("GET", "/v1/stream?blog_id=1"), ("POST", "/v1/join")] {
            let answer = with_cookie(&app, method, path, &token, &headers).await;
            if good {
                assert!(answer.status.is_success(), "{origin} at {host}");
            } else {
                answer.expect_problem(403, "foreign_origin").await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn the_cookie_counts_from_the_origin_of_the_public_url_where_there_is_one() {
    let app = TestApp::with(&[("public_url", "https://live.example.org/counts")]);
    let token = token("7", "");
    let own = [
        ("host", "10.0.0.5:8080"),
        ("origin", "https://live.example.org"),
    ];
    let path = "/v1/stream?blog_id=1";
    let answer = with_cookie(&app, "GET", path, &token, &own).await;
    assert_eq!(answer.status, 200);
    // A name that an attacker made resolve to the service is its Host, and not its origin.
    let rebound = [("host", "evil.example"), ("origin", "https://evil.example")];
    let answer = with_cookie(&app, "GET", path, &token, &rebound).await;
    answer.expect_problem(403, "foreign_origin").await;
}

#[tokio::test(start_paused = true)]
async fn the_cookie_counts_from_a_listed_origin_but_not_from_any() {
    let foreign = [
        ("host", "live.example.org"),
        ("origin", "https://blog.example.org"),
    ];
    let token = token("7", "");
    let path = "/v1/stream?blog_id=1";
    let listed = TestApp::with(&[("cors_origins", "https://blog.example.org")]);
    let answer = with_cookie(&listed, "GET", path, &token, &foreign).await;
    assert_eq!(answer.status, 200);
    let any = TestApp::new();
    let answer = with_cookie(&any, "GET", path, &token, &foreign).await;
    answer.expect_problem(403, "foreign_origin").await;
}

#[tokio::test(start_paused = true)]
async fn without_an_origin_the_cookie_counts_on_a_get_of_the_same_origin_alone() {
    let app = TestApp::new();
    let token = token("7", "");
    for (method, path, site, good) in [
        ("GET", "/v1/stream?blog_id=1", Some("same-origin"), true),
        ("GET", "/v1/stream?blog_id=1", Some("same-site"), false),
        ("GET", "/v1/stream?blog_id=1", Some("cross-site"), false),
        ("GET", "/v1/stream?blog_id=1", Some("none"), false),
        ("GET", "/v1/stream?blog_id=1", None, false),
        ("POST", "/v1/join", Some("same-origin"), false),
    ] {
        let headers: Vec<_> = site
            .map(|site| ("sec-fetch-site", site))
            .into_iter()
            .collect();
        let answer = with_cookie(&app, method, path, &token, &headers).await;
        if good {
            assert_eq!(answer.status, 200);
        } else {
            answer.expect_problem(403, "foreign_origin").await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_with_the_cookie_must_be_json() {
    let app = TestApp::new();
    let cookie = format!("livecount_token={}", token("7", ""));
    // What a page may send elsewhere without asking: a form's media types.
    for media_type in [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
    ] {
        let mut headers = OWN.to_vec();
        headers.extend([("cookie", cookie.as_str()), ("content-type", media_type)]);
        let answer = app
            .send(request("POST", "/v1/join", &headers, "{\"blog_id\":1}"))
            .await;
        answer.expect_problem(415, "unsupported_media_type").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_cookie_that_is_no_valid_token_is_not_treated_as_none() {
    let app = TestApp::new();
    let expired = signed(&json!({"sub": "7", "exp": unix_now() - 60}));
    for (cookie, code) in [("nonsense", "invalid_token"), (&*expired, "token_expired")] {
        let answer = with_cookie(&app, "GET", "/v1/blogs/1/count", cookie, &OWN).await;
        answer.expect_problem(401, code).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_header_wins_over_the_cookie() {
    let app = TestApp::new();
    let (seven, eight) = (bearer(&token("7", "")), token("8", ""));
    // Even from a page whose cookie would not count.
    let foreign = ("origin", "https://evil.example");
    let headers = [("authorization", seven.as_str()), foreign];
    let mut stream = with_cookie(&app, "GET", "/v1/stream?blog_id=1", &eight, &headers)
        .await
        .expect_stream();
    assert_eq!(stream.next_named("connected").await.data["user_id"], "7");
    let [host, origin] = OWN;
    let invalid = [("authorization", "Bearer nonsense"), host, origin];
    let answer = with_cookie(&app, "GET", "/v1/blogs/1/count", &eight, &invalid).await;
    answer.expect_problem(401, "invalid_token").await;
}

// ---- tickets ----

/// A ticket for a stream of `blog:1`, signed by the service, that ended a second ago.
fn expired_ticket(app: &TestApp) -> (ConnectionId, String) {
    let connection = ConnectionId::random();
    let ticket = Ticket {
        connection,
        identity: Identity::Connection,
        rooms: vec![RoomId::parse("blog:1").expect("a room")],
        watching: Vec::new(),
        grants: None,
        expires_unix: unix_now() - 1,
    };
    let text = app.a_node().tickets().issue(&ticket).expect("it fits");
    (connection, text)
}

/// Every call on a connection but its `GET`, with this credential as its ticket.
async fn ticket_calls(app: &TestApp, connection: &str, ticket: &str) -> Vec<Answer> {
    let path = format!("/v1/connections/{connection}");
    let holder = Caller::new(app, ticket);
    let mut answers = Vec::new();
    for name in ["join", "leave", "watch", "unwatch"] {
        let path = format!("{path}/{name}");
        answers.push(holder.post(&path, json!({"blog_id": 2})).await);
    }
    answers.push(holder.delete(&path).await);
    let in_body = json!({"ticket": ticket, "blog_id": 2});
    answers.push(app.post(&format!("{path}/leave"), &[], in_body).await);
    let in_body = json!({"ticket": ticket});
    answers.push(
        app.post(&format!("{path}/close"), &[], in_body.clone())
            .await,
    );
    answers.push(
        Caller::with(app, "", None)
            .post(&format!("{path}/renew"), in_body)
            .await,
    );
    answers
}

#[tokio::test(start_paused = true)]
async fn a_forged_ticket_opens_and_changes_nothing() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let genuine = viewer.ticket();
    let cut = &genuine[..genuine.len() - 1];
    let foreign = TestApp::with(&[("ticket_key", "another-key-of-thirty-two-bytes-or-more")]);
    let foreign = foreign.join("1").await.ticket().to_owned();
    for forged in ["lct1.", "lct1.AAAA", cut, &foreign, &format!("{genuine}A")] {
        let stream = app.get(&format!("/v1/stream?ticket={forged}"), &[]).await;
        stream.expect_problem(401, "invalid_ticket").await;
        for answer in ticket_calls(&app, viewer.connection(), forged).await {
            answer.expect_problem(401, "invalid_ticket").await;
        }
    }
    assert_eq!(app.count("1").await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn an_expired_ticket_opens_and_changes_nothing() {
    let app = TestApp::new();
    let (connection, ticket) = expired_ticket(&app);
    let stream = app.get(&format!("/v1/stream?ticket={ticket}"), &[]).await;
    assert_eq!(stream.header("www-authenticate"), "Bearer");
    stream.expect_problem(401, "ticket_expired").await;
    for answer in ticket_calls(&app, &connection.to_string(), &ticket).await {
        answer.expect_problem(401, "ticket_expired").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticket_of_another_connection_changes_nothing() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let other = app.join("1").await;
    for answer in ticket_calls(&app, viewer.connection(), other.ticket()).await {
        answer.expect_problem(403, "wrong_connection").await;
    }
    assert_eq!(app.count("1").await, (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_ticket_is_no_token() {
    let app = TestApp::new();
    let viewer = app.join_as("1", &token("7", "admin")).await;
    let holder = Caller::new(&app, viewer.ticket());
    for path in [
        "/v1/blogs/1/count",
        "/v1/stream?blog_id=1",
        "/v1/stats",
        "/v1/users/7/connections",
    ] {
        holder
            .get(path)
            .await
            .expect_problem(401, "invalid_token")
            .await;
    }
    let join = holder.post("/v1/join", json!({"blog_id": 1})).await;
    join.expect_problem(401, "invalid_token").await;
    let renewed = holder
        .post(&call(&viewer, "renew"), json!({"ticket": viewer.ticket()}))
        .await;
    renewed.expect_problem(401, "invalid_token").await;
    let cookie = with_cookie(&app, "GET", "/v1/blogs/1/count", viewer.ticket(), &OWN).await;
    cookie.expect_problem(401, "invalid_token").await;
}

#[tokio::test(start_paused = true)]
async fn a_token_is_no_ticket() {
    let app = TestApp::new();
    let admin = token("7", "admin");
    let viewer = app.join_as("1", &admin).await;
    let stream = app.get(&format!("/v1/stream?ticket={admin}"), &[]).await;
    stream.expect_problem(401, "invalid_ticket").await;
    for name in ["leave", "close"] {
        let mut body = json!({"ticket": admin});
        if name == "leave" {
            body["blog_id"] = json!(1);
        }
        let answer = app.post(&call(&viewer, name), &[], body).await;
        answer.expect_problem(401, "invalid_ticket").await;
    }
    let renewed = Caller::new(&app, &admin)
        .post(&call(&viewer, "renew"), json!({"ticket": admin}))
        .await;
    renewed.expect_problem(401, "invalid_ticket").await;
}

#[tokio::test(start_paused = true)]
async fn a_ticket_carries_what_its_token_granted() {
    let app = TestApp::new();
    let member = Caller::with(&app, "", Some(&["match:*"]));
    let viewer = member.join(json!({"room": "match:1"})).await;
    let holder = Caller::new(&app, viewer.ticket());
    let path = call(&viewer, "join");
    let joined = holder
        .post(&path, json!({"rooms": ["match:2", "blog:1"]}))
        .await;
    assert_eq!(joined.status, 200);
    for room in ["lesson:1", "user:8"] {
        let refused = holder.post(&path, json!({"room": room})).await;
        let problem = refused.expect_problem(403, "forbidden_room").await;
        assert_eq!(problem["room"], room);
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticket_grants_no_reading_that_its_scope_did() {
    let app = TestApp::new();
    let reader = Caller::with(&app, "read", None);
    let viewer = reader.join(json!({"blog_id": 1})).await;
    let watch = Caller::new(&app, viewer.ticket())
        .post(&call(&viewer, "watch"), json!({"room": "match:1"}))
        .await;
    watch.expect_problem(403, "forbidden_room").await;
}

#[tokio::test(start_paused = true)]
async fn a_ticket_never_outlives_its_token() {
    let app = TestApp::new();
    let member = token_for("7", "", None, Duration::from_secs(60));
    let caller = Caller::new(&app, &member);
    let end = unix_now() + 60;
    let joined = caller.post("/v1/join", json!({"blog_id": 1})).await;
    let joined = joined.json().await;
    assert!(joined["expires_in"].as_u64() <= Some(60), "{joined}");
    let ticket = joined["ticket"].as_str().expect("a ticket");
    let viewer = caller.join(json!({"blog_id": 1})).await;
    for ticket in [ticket, viewer.ticket()] {
        let ticket = app.a_node().redeem(ticket).expect("it is genuine");
        assert!(ticket.expires_unix <= end);
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticket_lasts_no_longer_than_configured() {
    let app = TestApp::with(&[("ticket_ttl", "10m")]);
    for viewer in [app.join("1").await, app.join_as("1", &token("7", "")).await] {
        let expires_in = viewer.connected["expires_in"].as_u64();
        assert!((599..=600).contains(&expires_in.expect("seconds")));
    }
}

// ---- the end of a token ----

#[tokio::test(start_paused = true)]
async fn a_stream_ends_when_its_token_does() {
    let app = TestApp::new();
    let start = Instant::now();
    let member = token_for("7", "", None, Duration::from_secs(60));
    let mut beside = app.join("1").await;
    let mut viewer = app.join_as("1", &member).await;
    let expiring = viewer.next_named("expiring").await;
    assert_eq!(expiring.data, json!({"expires_in": 30}));
    assert!((28..=30).contains(&start.elapsed().as_secs()));
    assert_eq!(viewer.reason().await, "expired");
    assert!((58..=60).contains(&start.elapsed().as_secs()));
    beside.wait_for_count((2, 2, 1)).await;
    beside.wait_for_count((1, 1, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_extends_the_open_stream() {
    let app = TestApp::new();
    let start = Instant::now();
    let member = token_for("7", "", None, Duration::from_secs(60));
    let mut viewer = app.join_as("1", &member).await;
    viewer.next_named("expiring").await;
    let longer = token_for("7", "", None, Duration::from_secs(600));
    let renewed = Caller::new(&app, &longer)
        .post(&call(&viewer, "renew"), json!({"ticket": viewer.ticket()}))
        .await;
    assert_eq!(renewed.header("cache-control"), "no-store");
    let renewed = renewed.json().await;
    assert!(renewed["expires_in"].as_u64() > Some(590), "{renewed}");
    let ticket = renewed["ticket"].as_str().expect("a ticket");
    let ticket = app.a_node().redeem(ticket).expect("it is genuine");
    assert_eq!(ticket.connection.to_string(), viewer.connection());
    let again = viewer.next_named("expiring").await;
    assert_eq!(again.data, json!({"expires_in": 30}));
    assert_eq!(viewer.reason().await, "expired");
    assert!(start.elapsed() > Duration::from_secs(600));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_by_another_or_of_an_anonymous_connection_is_refused() {
    let app = TestApp::new();
    let seven = app.join_as("1", &token("7", "")).await;
    let anonymous = app.join("1").await;
    let chosen = app.open("/v1/stream?blog_id=1&viewer=7", &[]).await;
    let other = Caller::new(&app, &token("8", "admin"));
    let same = Caller::new(&app, &token("7", ""));
    for (caller, viewer) in [(&other, &seven), (&same, &anonymous), (&same, &chosen)] {
        let body = json!({"ticket": viewer.ticket()});
        let refused = caller.post(&call(viewer, "renew"), body).await;
        refused.expect_problem(403, "wrong_user").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_renewal_needs_token_and_ticket() {
    let app = TestApp::new();
    let viewer = app.join_as("1", &token("7", "")).await;
    let path = call(&viewer, "renew");
    let by_ticket = app
        .post(&path, &[], json!({"ticket": viewer.ticket()}))
        .await;
    by_ticket.expect_problem(401, "token_required").await;
    let seven = Caller::new(&app, &token("7", "manage"));
    let by_token = seven.post(&path, json!({})).await;
    by_token.expect_problem(400, "invalid_body").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_of_a_stream_that_is_gone_finds_nothing() {
    let app = TestApp::new();
    let member = token("7", "");
    let viewer = app.join_as("1", &member).await;
    let (path, body) = (call(&viewer, "renew"), json!({"ticket": viewer.ticket()}));
    drop(viewer);
    let answer = Caller::new(&app, &member).post(&path, body).await;
    answer.expect_problem(404, "unknown_connection").await;
}

#[tokio::test(start_paused = true)]
async fn a_renewal_with_a_token_that_lost_a_room_is_refused() {
    let app = TestApp::new();
    let before = Caller::with(&app, "", Some(&["match:*"]));
    let viewer = before.join(json!({"rooms": ["match:1", "blog:1"]})).await;
    let (path, body) = (call(&viewer, "renew"), json!({"ticket": viewer.ticket()}));
    let lost = Caller::with(&app, "", Some(&["match:2"]));
    let refused = lost.post(&path, body.clone()).await;
    let problem = refused.expect_problem(403, "forbidden_room").await;
    assert_eq!(problem["room"], "match:1");
    let kept = Caller::with(&app, "", Some(&["match:1"]));
    assert_eq!(kept.post(&path, body).await.status, 200);
}

// ---- other pages ----

fn preflight(path: &str, origin: &str) -> Request<axum::body::Body> {
    let headers = [
        ("origin", origin),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    request("OPTIONS", path, &headers, "")
}

/// A header's words, in lower case and in order.
fn words(answer: &Answer, name: &str) -> Vec<String> {
    let values = answer.headers.get_all(name).iter();
    let text = values.map(|value| value.to_str().expect("headers are ASCII"));
    let mut words: Vec<String> = text
        .flat_map(|value| value.split(','))
        .map(|word| word.trim().to_ascii_lowercase())
        .collect();
    words.sort();
    words
}

#[tokio::test(start_paused = true)]
async fn a_preflight_permits_for_a_day_what_pages_need() {
    let app = TestApp::new();
    for path in ["/v1/join", "/v1/connections/x/renew", "/v1/blogs/1/count"] {
        let answer = app.send(preflight(path, "https://blog.example.org")).await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            words(&answer, "access-control-allow-headers"),
            ["authorization", "content-type", "last-event-id"]
        );
        assert_eq!(
            words(&answer, "access-control-allow-methods"),
            ["delete", "get", "head", "post"]
        );
        assert_eq!(answer.header("access-control-max-age"), "86400");
    }
}

#[tokio::test(start_paused = true)]
async fn any_page_may_call_but_not_with_credentials() {
    let app = TestApp::new();
    let origin = [("origin", "https://blog.example.org")];
    for path in ["/v1/blogs/1/count", "/v1/stream?blog_id=1"] {
        let answer = app.get(path, &origin).await;
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert_eq!(answer.header("access-control-allow-credentials"), "");
        assert_eq!(
            words(&answer, "access-control-expose-headers"),
            ["etag", "retry-after"]
        );
        assert_eq!(answer.header("vary"), "", "it is the same for all");
    }
}

#[tokio::test(start_paused = true)]
async fn listed_pages_may_call_with_credentials_and_no_others() {
    let app = TestApp::with(&[(
        "cors_origins",
        "https://blog.example.org,https://www.example.org:8443",
    )]);
    let path = "/v1/blogs/1/count";
    for origin in ["https://blog.example.org", "https://www.example.org:8443"] {
        let answers = [
            app.get(path, &[("origin", origin)]).await,
            app.send(preflight(path, origin)).await,
        ];
        for answer in answers {
            assert_eq!(answer.header("access-control-allow-origin"), origin);
            assert_eq!(answer.header("access-control-allow-credentials"), "true");
            assert!(words(&answer, "vary").contains(&"origin".to_owned()));
        }
    }
    for origin in ["https://evil.example", "http://blog.example.org", "null"] {
        let answer = app.get(path, &[("origin", origin)]).await;
        assert_eq!(answer.header("access-control-allow-origin"), "");
    }
    // What a cache keeps for whom it does not know must not serve a listed page.
    let answer = app.get(path, &[]).await;
    assert!(words(&answer, "vary").contains(&"origin".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_private_count_varies_by_who_asks() {
    for (settings, expected) in [
        (
            &[("anonymous_rooms", "")][..],
            &["authorization", "cookie"][..],
        ),
        (
            &[("anonymous_rooms", ""), ("cors_origins", "https://a.org")],
            &["authorization", "cookie", "origin"],
        ),
    ] {
        let app = TestApp::with(settings);
        let answer = Caller::with(&app, "", None).get("/v1/blogs/1/count").await;
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        assert_eq!(words(&answer, "vary"), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn pages_can_read_errors() {
    let app = TestApp::new();
    let origin = [("origin", "https://blog.example.org")];
    for (path, status) in [
        ("/v1/nothing", 404),
        ("/v1/join", 405),
        ("/v1/stream", 400),
        ("/v1/stats", 401),
    ] {
        let answer = app.get(path, &origin).await;
        assert_eq!(answer.header("access-control-allow-origin"), "*");
        assert_eq!(answer.status, status);
    }
}

// ---- operators ----

/// Asks for the metrics from this address.
async fn metrics(app: &TestApp, address: &str, headers: &[(&str, &str)]) -> Answer {
    let request = request("GET", "/metrics", headers, "");
    app.send(from_address(request, address)).await
}

#[tokio::test(start_paused = true)]
async fn metrics_are_for_this_machine_or_scope_read() {
    let app = TestApp::new();
    for address in ["127.0.0.1", "127.9.9.9", "::1"] {
        assert_eq!(metrics(&app, address, &[]).await.status, 200);
    }
    let remote = metrics(&app, "192.0.2.1", &[]).await;
    remote.expect_problem(401, "token_required").await;
    for (scope, status) in [("read", 200), ("admin", 200), ("publish manage", 403)] {
        let token = bearer(&token("7", scope));
        let answer = metrics(&app, "192.0.2.1", &[("authorization", &token)]).await;
        assert_eq!(answer.status, status, "{scope}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_are_for_this_machine_after_forwarding_is_resolved() {
    let app = TestApp::new();
    for (address, forwarded) in [
        // A proxy on this machine, and who came through it.
        ("127.0.0.1", "192.0.2.1"),
        // The same, and what the client wrote before it.
        ("127.0.0.1", "127.0.0.1, 192.0.2.1"),
        // A proxy that does not say who came (RFC 7239, section 6, has words for that).
        ("127.0.0.1", "unknown"),
        ("127.0.0.1", "192.0.2.1, _hidden"),
        // Nobody's proxy.
        ("192.0.2.1", "127.0.0.1"),
    ] {
        let answer = metrics(&app, address, &[("x-forwarded-for", forwarded)]).await;
        answer.expect_problem(401, "token_required").await;
    }
    let local = metrics(&app, "127.0.0.1", &[("x-forwarded-for", "127.0.0.1")]).await;
    assert_eq!(local.status, 200);
}

#[tokio::test(start_paused = true)]
async fn with_a_listener_for_operators_the_readers_one_has_no_metrics() {
    let app = TestApp::of_one_node(&[("ops_listen", "127.0.0.1:9090")]);
    let readers = metrics(&app, "127.0.0.1", &[]).await;
    readers.expect_problem(404, "not_found").await;
    let operators = app.app().router(Face::Operators);
    // Who reaches that listener is an operator, wherever from; the rest of the API is there too.
    for path in ["/metrics", "/v1/blogs/1/count", "/readyz"] {
        let request = from_address(request("GET", path, &[], ""), "192.0.2.1");
        let answer = operators.clone().oneshot(request).await;
        let answer = answer.expect("the router never fails");
        assert_eq!(answer.status(), 200, "{path}");
    }
    let stats = operators
        .oneshot(request("GET", "/v1/stats", &[], ""))
        .await;
    let stats = stats.expect("the router never fails");
    assert_eq!(stats.status(), 401, "the API asks whom it always asks");
}

// ---- secrets ----

/// A log that is kept.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        let bytes = self.0.lock().expect("nobody panicked").clone();
        String::from_utf8(bytes).expect("it is UTF-8")
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .expect("nobody panicked")
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What a session told whoever held it: none of it is for the log.
fn expect_none_of(secrets: &[&str], log: &str) {
    for secret in secrets {
        // A log might cut what it shows.
        let start: String = secret.chars().take(24).collect();
        assert!(!log.contains(&start), "{start} is in the log: {log}");
    }
}

#[tokio::test]
async fn no_log_line_of_a_session_holds_a_token_a_ticket_or_a_query_string() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    tracing::info!("the log is kept");

    let service = Service::start();
    let app = &service.app;
    let member = token("7", "admin");
    let caller = Caller::new(app, &member);
    let mut viewer = caller.join(json!({"rooms": ["blog:queryable"]})).await;
    viewer.next_count().await;
    let ticket = viewer.ticket().to_owned();
    let body = json!({"ticket": ticket});
    let renewed = caller.post(&call(&viewer, "renew"), body.clone()).await;
    let renewed = renewed.json().await["ticket"].to_string();
    // What is refused is what logs like to tell of.
    let forged = format!("{ticket}forged");
    app.get(&format!("/v1/stream?ticket={forged}"), &[]).await;
    Caller::new(app, &format!("{member}forged"))
        .get("/v1/rooms?prefix=queryable")
        .await;
    with_cookie(app, "GET", "/v1/rooms", &member, &OWN).await;
    app.post(&call(&viewer, "close"), &[], body).await;
    // And over a socket, beneath which libraries have logs of their own.
    let mut wire = service
        .say(&format!(
            "GET /v1/stream?ticket={ticket} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {member}\r\n\r\n"
        ))
        .await;
    wire.expect_stream().await;
    wire.reset();
    let mut wire = service
        .say(&format!("GET /v1/stream?ticket={ticket} HTTP/9.9\r\n\r\n"))
        .await;
    wire.rest().await;
    let mut client = Http2::connect(&service).await;
    client.get(1, &format!("/v1/stream?ticket={ticket}")).await;
    client.up_to(1, "event: count\n").await;
    client.get(3, &format!("/v1/stream?ticket={forged}")).await;
    client.up_to(3, "invalid_ticket").await;
    drop(guard);

    let log = log.text();
    assert!(log.contains("the log is kept"), "{log}");
    assert!(log.contains("h2::"), "libraries are heard too: {log}");
    let secrets = [
        &member,
        &ticket,
        renewed.trim_matches('"'),
        SECRET,
        "queryable",
        "ticket=",
    ];
    expect_none_of(&secrets, &log);
}

#[test]
fn no_log_line_of_the_program_holds_a_token_a_ticket_or_a_query_string() {
    for format in ["text", "json"] {
        let mut program =
            Binary::start(&[("log", "trace"), ("log_format", format), ("drain", "1s")]);
        let member = token("7", "admin");
        let authorization = format!("Authorization: Bearer {member}\r\n");
        let path = "/v1/stream?blog_id=queryable";
        let mut stream = program.open(path, &authorization);
        program.get("/v1/rooms?prefix=queryable", &authorization);
        program.get("/v1/stream?ticket=lct1.forgedforgedforged", "");
        program.get(path, "Authorization: Bearer forgedforgedforged\r\n");
        program.terminate();
        io::Read::read_to_end(&mut stream, &mut Vec::new()).expect("the stream ends in time");
        program.exit();
        let log = program.log();
        assert!(log.contains("stopped"), "{log}");
        expect_none_of(
            &[&member, SECRET, "queryable", "lct1.", "forgedforged"],
            &log,
        );
    }
}

#[tokio::test(start_paused = true)]
async fn debug_shows_no_secret() {
    const TICKET_KEY: &str = "the-ticket-key-of-the-tests-has-32-bytes-or-more";
    let app = TestApp::of_one_node(&[("ticket_key", TICKET_KEY)]);
    let viewer = app.join_as("1", &token("7", "")).await;
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        app.app(),
        app.app().config(),
        app.app().tickets(),
        app.app().verifier()
    );
    assert!(shown.contains("push_interval"), "{shown}");
    expect_none_of(&[SECRET, TICKET_KEY, viewer.ticket()], &shown);
    assert!(!app.app().config().describe().contains(&SECRET[..16]));
}

#[tokio::test(start_paused = true)]
async fn neither_errors_nor_metrics_show_a_credential() {
    let app = TestApp::new();
    let forged = format!("{}forged", token("7", "admin"));
    let viewer = app.join("1").await;
    let ticket = format!("{}forged", viewer.ticket());
    let mut said = Caller::new(&app, &forged)
        .get("/v1/stats")
        .await
        .text()
        .await;
    for answer in ticket_calls(&app, viewer.connection(), &ticket).await {
        said += &answer.text().await;
    }
    said += &app
        .get(&format!("/v1/stream?ticket={ticket}"), &[])
        .await
        .text()
        .await;
    said += &app.get("/metrics", &[]).await.text().await;
    assert!(said.contains("invalid_ticket") && said.contains("livecount_viewers"));
    expect_none_of(&[&forged, &ticket, SECRET], &said);
}
