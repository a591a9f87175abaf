//! Connections: rooms joined and left on an open stream, goodbyes, kicks, renewals, lists.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::helpers::{Answer, TestApp, Viewer, about, admin, bearer, expires_in, token, token_for};

/// Shorter than a heartbeat, and longer than anything that is due.
const A_WHILE: Duration = Duration::from_secs(10);

const HOUR: Duration = Duration::from_secs(60 * 60);

/// Reads a whole list by its cursors.
async fn all_connections(app: &TestApp, path: &str, limit: usize) -> Vec<Value> {
    let mut found = Vec::new();
    let mut next = format!("{path}?limit={limit}");
    loop {
        let page = app.read(&next).await;
        let entries = page["connections"].as_array().expect("a list");
        assert!(entries.len() <= limit);
        found.extend(entries.iter().cloned());
        assert!(found.len() <= 100, "the pages come to an end");
        match page["next_cursor"].as_str() {
            Some(cursor) => next = format!("{path}?limit={limit}&cursor={cursor}"),
            None => return found,
        }
    }
}

/// A reader of one blog who has read its first count.
async fn reader_of(app: &TestApp, blog_id: &str) -> Viewer {
    let mut viewer = app.join(blog_id).await;
    assert_eq!(viewer.next().await.name, "count");
    viewer
}

/// A body of some media type, sent as a page's `sendBeacon` does.
async fn beacon(app: &TestApp, path: &str, media_type: Option<&str>, body: &str) -> Answer {
    let mut request = Request::builder().method(Method::POST).uri(path);
    if let Some(media_type) = media_type {
        request = request.header("content-type", media_type);
    }
    let body = Body::from(body.to_owned());
    app.send(request.body(body).expect("a request")).await
}

// ---- rooms of an open stream ----

#[tokio::test(start_paused = true)]
async fn a_room_joined_on_the_open_stream_is_told_with_its_count() {
    let app = TestApp::new();
    let mut other = reader_of(&app, "2").await;
    let mut viewer = reader_of(&app, "1").await;
    app.change(&viewer, "join", json!({"blog_id": 2})).await;
    viewer.expect("joined", json!({"room": "blog:2"})).await;
    viewer.expect_count("blog:2", (2, 2, 0)).await;
    other.expect_count("blog:2", (2, 2, 0)).await;
    let _third = app.join("2").await;
    viewer.expect_count("blog:2", (3, 3, 0)).await;
    assert_eq!(app.count("1").await, (1, 1, 0), "it is still there too");
}

#[tokio::test(start_paused = true)]
async fn a_room_left_on_the_open_stream_is_told_and_its_counts_end() {
    let app = TestApp::new();
    let mut other = reader_of(&app, "2").await;
    let mut viewer = app.open("/v1/stream?blog_id=1,2", &[]).await;
    other.expect_count("blog:2", (2, 2, 0)).await;
    viewer.expect_count("blog:1", (1, 1, 0)).await;
    viewer.expect_count("blog:2", (2, 2, 0)).await;
    app.change(&viewer, "leave", json!({"blog_id": 2})).await;
    viewer.expect("left", json!({"room": "blog:2"})).await;
    other.expect_count("blog:2", (1, 1, 0)).await;
    let _third = app.join("2").await;
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn several_rooms_are_joined_in_the_order_asked_and_each_once() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, "1").await;
    let rooms = json!({"rooms": ["blog:3", "blog:1", "blog:2", "blog:3"]});
    let changed = app.change(&viewer, "join", rooms).await;
    assert_eq!(changed["rooms"], json!(["blog:1", "blog:3", "blog:2"]));
    for room in ["blog:3", "blog:2"] {
        viewer.expect("joined", json!({"room": room})).await;
        viewer.expect_count(room, (1, 1, 0)).await;
    }
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_is_answered_with_the_new_set_and_a_ticket_for_it() {
    let app = TestApp::new();
    let viewer = app.join_as("1", &token("7", "")).await;
    app.change(&viewer, "join", json!({"room": "blog:2"})).await;
    let changed = app
        .change(&viewer, "watch", json!({"rooms": ["blog:3"]}))
        .await;
    let ticket = changed["ticket"].as_str().expect("a ticket");
    let left = expires_in(&changed);
    assert!(about(3600).contains(&left), "{left}");
    assert_ne!(ticket, viewer.ticket());
    assert_eq!(
        changed,
        json!({
            "rooms": ["blog:1", "blog:2", "user:7"],
            "watching": ["blog:3"],
            "ticket": ticket,
            "stream_url": format!("/v1/stream?ticket={ticket}"),
            "expires_in": left,
        })
    );
}

#[tokio::test(start_paused = true)]
async fn changes_last_as_long_as_the_stream_and_the_new_ticket_brings_them_back() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    app.change(&viewer, "join", json!({"rooms": ["blog:2", "blog:3"]}))
        .await;
    app.change(&viewer, "leave", json!({"blog_id": 1})).await;
    let changed = app.change(&viewer, "watch", json!({"blog_id": 4})).await;
    let original = app.open_ticket(viewer.ticket()).await;
    assert_eq!(original.names("rooms"), ["blog:1"]);
    assert_eq!(original.names("watching"), [""; 0]);
    assert_eq!(app.count("2").await, (0, 0, 0));
    let ticket = changed["ticket"].as_str().expect("a ticket");
    let mut renamed = app.open_ticket(ticket).await;
    assert_eq!(renamed.connection(), viewer.connection());
    assert_eq!(renamed.names("rooms"), ["blog:2", "blog:3"]);
    assert_eq!(renamed.names("watching"), ["blog:4"]);
    renamed.expect_count("blog:2", (1, 1, 0)).await;
    renamed.expect_count("blog:3", (1, 1, 0)).await;
    renamed.expect_count("blog:4", (0, 0, 0)).await;
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn leaving_the_last_room_keeps_the_stream() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, "1").await;
    let changed = app.change(&viewer, "leave", json!({"blog_id": 1})).await;
    assert_eq!(changed["rooms"], json!([]));
    viewer.expect("left", json!({"room": "blog:1"})).await;
    assert_eq!(app.count("1").await, (0, 0, 0));
    let stats = app.read("/v1/stats").await;
    assert_eq!(
        (&stats["viewers"], &stats["connections"]),
        (&json!(0), &json!(1))
    );
    viewer.expect("ping", json!({})).await;
    app.change(&viewer, "join", json!({"blog_id": 2})).await;
    viewer.expect("joined", json!({"room": "blog:2"})).await;
    viewer.expect_count("blog:2", (1, 1, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_has_left_its_last_room_can_be_reopened_by_the_new_ticket() {
    let app = TestApp::new();
    let viewer = reader_of(&app, "1").await;
    let changed = app.change(&viewer, "leave", json!({"blog_id": 1})).await;
    let ticket = changed["ticket"].as_str().expect("a ticket");
    let again = app.open_ticket(ticket).await;
    assert_eq!(again.names("rooms"), [""; 0]);
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_room_watched_on_the_open_stream_is_told_and_not_counted_in() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, "1").await;
    app.change(&viewer, "watch", json!({"blog_id": 2})).await;
    viewer.expect_count("blog:2", (0, 0, 0)).await;
    let _other = app.join("2").await;
    viewer.expect_count("blog:2", (1, 1, 0)).await;
    let changed = app.change(&viewer, "unwatch", json!({"blog_id": 2})).await;
    assert_eq!(changed["watching"], json!([]));
    let _third = app.join("2").await;
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_watched_room_can_be_joined_and_a_joined_one_stays_joined() {
    let app = TestApp::new();
    let mut viewer = app.open("/v1/watch?blog_id=1", &[]).await;
    viewer.expect_count("blog:1", (0, 0, 0)).await;
    let joined = app.change(&viewer, "join", json!({"blog_id": 1})).await;
    assert_eq!(
        (&joined["rooms"], &joined["watching"]),
        (&json!(["blog:1"]), &json!([]))
    );
    viewer.expect("joined", json!({"room": "blog:1"})).await;
    viewer.expect_count("blog:1", (1, 1, 0)).await;
    for call in ["watch", "unwatch"] {
        let still = app.change(&viewer, call, json!({"blog_id": 1})).await;
        assert_eq!(
            (&still["rooms"], &still["watching"]),
            (&json!(["blog:1"]), &json!([]))
        );
    }
    assert_eq!(app.count("1").await, (1, 1, 0));
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn joining_and_leaving_twice_counts_once() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    for _ in 0..2 {
        app.change(&viewer, "join", json!({"blog_id": 2})).await;
        assert_eq!(app.count("2").await, (1, 1, 0));
    }
    for _ in 0..2 {
        app.change(&viewer, "leave", json!({"blog_id": 2})).await;
        assert_eq!(app.count("2").await, (0, 0, 0));
    }
    assert_eq!(app.count("1").await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_personal_room_cannot_be_left() {
    let app = TestApp::new();
    let viewer = app.join_as("1", &token("7", "")).await;
    for call in ["leave", "unwatch", "join", "watch"] {
        let changed = app.change(&viewer, call, json!({"room": "user:7"})).await;
        assert_eq!(changed["rooms"], json!(["blog:1", "user:7"]), "{call}");
        assert_eq!(changed["watching"], json!([]), "{call}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_forbidden_room_refuses_the_whole_change() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    for call in ["join", "watch"] {
        let rooms = json!({"rooms": ["blog:2", "match:9", "blog:3"]});
        let answer = app
            .call_on(viewer.connection(), call, viewer.ticket(), rooms)
            .await;
        let problem = answer.expect_problem(403, "forbidden_room").await;
        assert_eq!(problem["room"], json!("match:9"));
    }
    assert_eq!(app.count("2").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn one_forbidden_room_refuses_the_whole_join() {
    let app = TestApp::new();
    let reader = bearer(&token("7", ""));
    let headers = [("authorization", reader.as_str())];
    for body in [
        json!({"rooms": ["blog:2", "match:9"]}),
        json!({"rooms": ["blog:2"], "watch": ["match:9"]}),
    ] {
        let answer = app.post("/v1/join", &headers, body).await;
        let problem = answer.expect_problem(403, "forbidden_room").await;
        assert_eq!(problem["room"], json!("match:9"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_ticket_would_be_too_long_is_refused_whole() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let rooms: Vec<String> = (10..50)
        .map(|number| format!("blog:{}{number}", "x".repeat(120)))
        .collect();
    app.call_on(
        viewer.connection(),
        "watch",
        viewer.ticket(),
        json!({"rooms": rooms}),
    )
    .await
    .expect_problem(400, "ticket_too_large")
    .await;
    let shown = app
        .read(&format!("/v1/connections/{}", viewer.connection()))
        .await;
    assert_eq!(shown["watching"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn a_back_end_moves_a_viewer_by_its_own_token() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, "1").await;
    let manager = token("back-end", "manage");
    let connection = viewer.connection().to_owned();
    // A room that the viewer itself could not enter.
    let room = json!({"room": "match:9"});
    let answer = app.call_on(&connection, "join", &manager, room).await;
    assert_eq!(answer.status, StatusCode::OK);
    let changed = answer.json().await;
    viewer.expect("joined", json!({"room": "match:9"})).await;
    viewer.expect_count("match:9", (1, 1, 0)).await;
    let answer = app
        .call_on(&connection, "leave", &manager, json!({"blog_id": 1}))
        .await;
    assert_eq!(answer.json().await["rooms"], json!(["match:9"]));
    viewer.expect("left", json!({"room": "blog:1"})).await;
    let ticket = changed["ticket"].as_str().expect("a ticket");
    let again = app.open_ticket(ticket).await;
    assert_eq!(again.names("rooms"), ["blog:1", "match:9"]);
}

#[tokio::test(start_paused = true)]
async fn leave_takes_the_ticket_in_a_body_of_any_media_type() {
    let app = TestApp::new();
    for media_type in [
        None,
        Some("text/plain;charset=UTF-8"),
        Some("application/json"),
    ] {
        let mut viewer = reader_of(&app, "1").await;
        let path = format!("/v1/connections/{}/leave", viewer.connection());
        let body = json!({"blog_id": 1, "ticket": viewer.ticket()}).to_string();
        let answer = beacon(&app, &path, media_type, &body).await;
        assert_eq!(answer.status, StatusCode::OK, "{media_type:?}");
        viewer.expect("left", json!({"room": "blog:1"})).await;
    }
}

#[tokio::test(start_paused = true)]
async fn rooms_change_on_open_streams_only() {
    let app = TestApp::new();
    let joined = app.join_later(json!({"blog_id": 1}), &[]).await;
    let connection = joined["connection"].as_str().expect("an id");
    let ticket = joined["ticket"].as_str().expect("a ticket");
    for call in ["join", "leave", "watch", "unwatch"] {
        app.call_on(connection, call, ticket, json!({"blog_id": 2}))
            .await
            .expect_problem(404, "unknown_connection")
            .await;
    }
    drop(app.open_ticket(ticket).await);
    app.call_on(connection, "join", ticket, json!({"blog_id": 2}))
        .await
        .expect_problem(404, "unknown_connection")
        .await;
}

// ---- goodbyes ----

#[tokio::test(start_paused = true)]
async fn a_goodbye_counts_out_at_once_and_ends_the_stream() {
    let app = TestApp::new();
    let mut other = reader_of(&app, "1").await;
    let viewer = app.join("1").await;
    other.expect_count("blog:1", (2, 2, 0)).await;
    let path = format!("/v1/connections/{}", viewer.connection());
    let own = bearer(viewer.ticket());
    let answer = app.delete(&path, &[("authorization", &own)], None).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(app.count("1").await, (1, 1, 0));
    assert_eq!(viewer.farewell().await, ("left".to_owned(), None));
    other.expect_count("blog:1", (1, 1, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_page_says_goodbye_with_a_beacon_of_any_media_type() {
    let app = TestApp::new();
    for media_type in [
        None,
        Some("text/plain;charset=UTF-8"),
        Some("application/x-www-form-urlencoded"),
        Some("application/json"),
    ] {
        let viewer = app.join("1").await;
        let path = format!("/v1/connections/{}/close", viewer.connection());
        let body = json!({"ticket": viewer.ticket()}).to_string();
        let answer = beacon(&app, &path, media_type, &body).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT, "{media_type:?}");
        assert_eq!(viewer.reason().await, "left");
    }
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn close_takes_the_ticket_as_bearer_too_and_needs_no_body() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let path = format!("/v1/connections/{}/close", viewer.connection());
    let request = Request::builder().method(Method::POST).uri(path);
    let request = request.header("authorization", bearer(viewer.ticket()));
    let answer = app
        .send(request.body(Body::empty()).expect("a request"))
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    assert_eq!(viewer.reason().await, "left");
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_may_be_said_twice_and_before_the_stream_opens() {
    let app = TestApp::new();
    let joined = app.join_later(json!({"blog_id": 1}), &[]).await;
    let connection = joined["connection"].as_str().expect("an id");
    let ticket = joined["ticket"].as_str().expect("a ticket");
    for _ in 0..2 {
        let answer = app.call_on(connection, "close", ticket, json!({})).await;
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
    }
    let mut back = app.open_ticket(ticket).await;
    back.expect_count("blog:1", (1, 1, 0)).await;
}

// ---- kicks ----

/// What a kicked viewer meets that comes by `path`: nothing, on which an `EventSource` stops.
async fn expect_no_content(app: &TestApp, path: &str, headers: &[(&str, &str)]) {
    let answer = app.get(path, headers).await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT, "{path}");
}

/// What it meets by `POST`: a refusal that says for how long, in seconds.
async fn expect_kicked(answer: Answer, seconds: u64) {
    assert_eq!(answer.header("retry-after"), seconds.to_string());
    answer.expect_problem(403, "kicked").await;
}

#[tokio::test(start_paused = true)]
async fn a_kick_counts_out_at_once_and_ends_the_stream() {
    let app = TestApp::new();
    let mut other = reader_of(&app, "1").await;
    let viewer = app.join("1").await;
    other.expect_count("blog:1", (2, 2, 0)).await;
    let path = format!("/v1/connections/{}", viewer.connection());
    assert_eq!(app.kick(&path, None).await, StatusCode::NO_CONTENT);
    assert_eq!(app.count("1").await, (1, 1, 0));
    other.expect_count("blog:1", (1, 1, 0)).await;
    let (reason, retry) = viewer.farewell().await;
    assert_eq!(reason, "kicked");
    let retry = retry.expect("a retry right before");
    assert!((30_000..=60_000).contains(&retry), "{retry}");
}

#[tokio::test(start_paused = true)]
async fn a_kicked_connection_is_refused_for_a_minute() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let (connection, ticket) = (viewer.connection().to_owned(), viewer.ticket().to_owned());
    app.kick(&format!("/v1/connections/{connection}"), None)
        .await;
    let url = format!("/v1/stream?ticket={ticket}");
    expect_no_content(&app, &url, &[]).await;
    let by_ticket = app.call_on(&connection, "join", &ticket, json!({"blog_id": 2}));
    expect_kicked(by_ticket.await, 60).await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    expect_no_content(&app, &url, &[]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let back = app.open_ticket(&ticket).await;
    assert_eq!(back.connection(), connection);
}

#[tokio::test(start_paused = true)]
async fn a_kicked_member_is_refused_wherever_the_token_is_used() {
    let app = TestApp::new();
    let member = bearer(&token("7", ""));
    let headers = [("authorization", member.as_str())];
    let stream = [headers[0], ("accept", "text/event-stream")];
    let unopened = app.join_later(json!({"blog_id": 1}), &headers).await;
    let viewer = app.join_as("1", &token("7", "")).await;
    let path = format!("/v1/connections/{}", viewer.connection());
    app.kick(&path, Some(json!({"block": 300}))).await;
    expect_no_content(&app, "/v1/stream?blog_id=2", &headers).await;
    expect_no_content(&app, "/v1/watch?blog_id=2", &headers).await;
    let url = unopened["stream_url"].as_str().expect("a URL");
    expect_no_content(&app, url, &[]).await;
    let body = json!({"blog_id": 2});
    expect_kicked(app.post("/v1/join", &headers, body.clone()).await, 300).await;
    expect_kicked(app.post("/v1/join", &stream, body.clone()).await, 300).await;
    let _others = [app.join("2").await, app.join_as("2", &token("8", "")).await];
    let _namesake = app.open("/v1/stream?blog_id=2&viewer=7", &[]).await;
    assert_eq!(app.count("2").await, (3, 3, 1));
    tokio::time::sleep(Duration::from_secs(300)).await;
    app.join_as("2", &token("7", "")).await;
}

#[tokio::test(start_paused = true)]
async fn a_kicked_viewer_is_refused_by_the_name_that_it_chose() {
    let app = TestApp::new();
    let anna = "/v1/stream?blog_id=1&viewer=anna";
    let viewer = app.open(anna, &[]).await;
    let path = format!("/v1/connections/{}", viewer.connection());
    app.kick(&path, None).await;
    expect_no_content(&app, anna, &[]).await;
    let body = json!({"blog_id": 1, "viewer": "anna"});
    expect_kicked(app.post("/v1/join", &[], body).await, 60).await;
    let _bert = app.open("/v1/stream?blog_id=1&viewer=bert", &[]).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let _anna = app.open(anna, &[]).await;
    assert_eq!(app.count("1").await, (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_kick_with_no_block_lets_the_viewer_come_back_at_once() {
    let app = TestApp::new();
    let viewer = app.open("/v1/stream?blog_id=1&viewer=anna", &[]).await;
    let path = format!("/v1/connections/{}", viewer.connection());
    app.kick(&path, Some(json!({"block": 0}))).await;
    let back = app.open_ticket(viewer.ticket()).await;
    assert_eq!(back.connection(), viewer.connection());
    assert_eq!(viewer.reason().await, "kicked");
}

#[tokio::test(start_paused = true)]
async fn a_block_may_last_a_day_and_no_longer() {
    // Two nodes would renew their leases all day.
    let app = TestApp::of_one_node(&[]);
    let viewer = app.join("1").await;
    let path = format!("/v1/connections/{}", viewer.connection());
    let manager = bearer(&admin());
    for block in [
        json!(86_401),
        json!(-1),
        json!(1.5),
        json!("60"),
        json!(null),
    ] {
        let body = Some(json!({"block": block}));
        app.delete(&path, &[("authorization", &manager)], body)
            .await
            .expect_problem(400, "invalid_block")
            .await;
    }
    assert_eq!(app.count("1").await, (1, 1, 0));
    app.kick(&path, Some(json!({"block": 86_400}))).await;
    let url = format!("/v1/stream?ticket={}", viewer.ticket());
    tokio::time::sleep(Duration::from_secs(86_399)).await;
    expect_no_content(&app, &url, &[]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(app.get(&url, &[]).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_block_does_not_end_a_longer_one() {
    let app = TestApp::new();
    let anna = "/v1/stream?blog_id=1&viewer=anna";
    let tabs = [app.open(anna, &[]).await, app.open(anna, &[]).await];
    for (tab, block) in tabs.iter().zip([300, 1]) {
        let path = format!("/v1/connections/{}", tab.connection());
        app.kick(&path, Some(json!({"block": block}))).await;
    }
    tokio::time::sleep(Duration::from_secs(200)).await;
    expect_no_content(&app, anna, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn a_kick_reaches_a_stream_that_was_asked_for_and_not_yet_read() {
    let app = TestApp::new();
    let open = app.join("1").await;
    let url = format!("/v1/stream?ticket={}", open.ticket());
    let unread = app.get(&url, &[]).await.expect_stream();
    app.kick(&format!("/v1/connections/{}", open.connection()), None)
        .await;
    let (reason, retry) = unread.farewell().await;
    assert_eq!(reason, "kicked");
    assert!(retry.is_some_and(|retry| retry >= 30_000));
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_back_end_may_kick_by_close_too() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let manager = token("back-end", "manage");
    let answer = app
        .call_on(viewer.connection(), "close", &manager, json!({"block": 5}))
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    let url = format!("/v1/stream?ticket={}", viewer.ticket());
    expect_no_content(&app, &url, &[]).await;
    assert_eq!(viewer.reason().await, "kicked");
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_not_open_cannot_be_kicked() {
    let app = TestApp::new();
    let joined = app.join_later(json!({"blog_id": 1}), &[]).await;
    let connection = joined["connection"].as_str().expect("an id");
    let path = format!("/v1/connections/{connection}");
    assert_eq!(app.kick(&path, None).await, StatusCode::NOT_FOUND);
}

#[tokio::test(start_paused = true)]
async fn kicking_a_user_ends_every_connection_of_that_user() {
    let app = TestApp::new();
    let user = token("7", "");
    let member = bearer(&user);
    let headers = [("authorization", member.as_str())];
    let streams = [
        app.join_as("1", &user).await,
        app.join_as("2", &user).await,
        app.open("/v1/watch?blog_id=3", &headers).await,
    ];
    let mut other = app.join_as("1", &token("8", "")).await;
    let _namesake = app.open("/v1/stream?blog_id=1&viewer=7", &[]).await;
    other.wait_for_count((3, 3, 2)).await;
    let path = "/v1/users/7/connections";
    let body = Some(json!({"block": 30}));
    assert_eq!(app.kick(path, body).await, StatusCode::NO_CONTENT);
    for stream in streams {
        let url = format!("/v1/stream?ticket={}", stream.ticket());
        expect_no_content(&app, &url, &[]).await;
        assert_eq!(stream.reason().await, "kicked");
    }
    other.expect_count("blog:1", (2, 2, 1)).await;
    expect_no_content(&app, "/v1/stream?blog_id=1", &headers).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    app.join_as("1", &user).await;
}

#[tokio::test(start_paused = true)]
async fn a_user_who_is_not_here_can_be_kept_out() {
    let app = TestApp::new();
    let path = "/v1/users/7/connections";
    assert_eq!(app.kick(path, None).await, StatusCode::NO_CONTENT);
    let member = bearer(&token("7", ""));
    let headers = [("authorization", member.as_str())];
    expect_no_content(&app, "/v1/stream?blog_id=1", &headers).await;
    let answer = app.post("/v1/join", &headers, json!({"blog_id": 1})).await;
    expect_kicked(answer, 60).await;
}

// ---- renewal ----

async fn renew(app: &TestApp, viewer: &Viewer, token: &str) -> Answer {
    let body = json!({"ticket": viewer.ticket()});
    app.call_on(viewer.connection(), "renew", token, body).await
}

#[tokio::test(start_paused = true)]
async fn a_new_token_extends_the_open_stream_in_place() {
    let app = TestApp::new();
    let minute = token_for("7", "", None, Duration::from_secs(60));
    let mut viewer = app.join_as("1", &minute).await;
    let mut other = reader_of(&app, "1").await;
    let start = Instant::now();
    viewer.next_named("expiring").await;
    let ten_minutes = token_for("7", "", None, Duration::from_secs(600));
    let answer = renew(&app, &viewer, &ten_minutes).await;
    assert_eq!(answer.status, StatusCode::OK);
    let renewed = answer.json().await;
    assert_eq!(renewed["rooms"], json!(["blog:1", "user:7"]));
    assert_eq!(renewed["watching"], json!([]));
    assert!(about(600).contains(&expires_in(&renewed)));
    // Warned anew, half a minute before the new end; and nobody sees any of it.
    let renewed_at = Instant::now();
    let expiring = viewer.next_named("expiring").await;
    assert_eq!(expiring.data, json!({"expires_in": 30}));
    assert!(about(570).contains(&renewed_at.elapsed().as_secs()));
    assert_eq!(viewer.reason().await, "expired");
    assert!(start.elapsed() > Duration::from_secs(600));
    assert_eq!(other.next_count().await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_ticket_of_a_renewal_lasts_as_long_as_the_new_token() {
    let app = TestApp::new();
    let minute = token_for("7", "", None, Duration::from_secs(60));
    let viewer = app.join_as("1", &minute).await;
    let renewed = renew(&app, &viewer, &token_for("7", "", None, HOUR)).await;
    let renewed = renewed.json().await;
    let ticket = renewed["ticket"].as_str().expect("a ticket");
    let again = app.open_ticket(ticket).await;
    assert_eq!(again.connection(), viewer.connection());
    assert!(about(3600).contains(&expires_in(&again.connected)));
}

#[tokio::test(start_paused = true)]
async fn only_the_connections_own_user_renews_it() {
    let app = TestApp::new();
    let anonymous = app.join("1").await;
    let member = app.join_as("1", &token("8", "")).await;
    let chosen = app.open("/v1/stream?blog_id=1&viewer=7", &[]).await;
    for viewer in [&anonymous, &member, &chosen] {
        renew(&app, viewer, &token("7", "admin"))
            .await
            .expect_problem(403, "wrong_user")
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_kicked_member_cannot_renew_and_is_told_for_how_long() {
    let app = TestApp::new();
    let viewer = app.join_as("1", &token("7", "")).await;
    app.kick("/v1/users/7/connections", None).await;
    expect_kicked(renew(&app, &viewer, &token("7", "")).await, 60).await;
}

// ---- who is connected ----

#[tokio::test(start_paused = true)]
async fn a_connection_is_shown_with_its_viewer_and_rooms() {
    let app = TestApp::new();
    let member = app.join_as("1", &token("7", "")).await;
    app.change(&member, "join", json!({"blog_id": 2})).await;
    app.change(&member, "watch", json!({"blog_id": 3})).await;
    let chosen = app.open("/v1/stream?blog_id=1&viewer=anna", &[]).await;
    let nameless = app.open("/v1/watch?blog_id=1", &[]).await;
    for (viewer, user_id, name, rooms, watching) in [
        (
            &member,
            json!("7"),
            json!(null),
            json!(["blog:1", "blog:2", "user:7"]),
            json!(["blog:3"]),
        ),
        (
            &chosen,
            json!(null),
            json!("anna"),
            json!(["blog:1"]),
            json!([]),
        ),
        (
            &nameless,
            json!(null),
            json!(null),
            json!([]),
            json!(["blog:1"]),
        ),
    ] {
        let shown = app
            .read(&format!("/v1/connections/{}", viewer.connection()))
            .await;
        let since = shown["since"].as_str().expect("a time");
        assert!(
            since.ends_with('Z') && humantime::parse_rfc3339(since).is_ok(),
            "{since}"
        );
        assert_eq!(
            shown,
            json!({
                "connection": viewer.connection(), "user_id": user_id, "viewer": name,
                "since": since, "rooms": rooms, "watching": watching,
            })
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_gone_is_unknown() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let path = format!("/v1/connections/{}", viewer.connection());
    drop(viewer);
    let reader = bearer(&admin());
    app.get(&path, &[("authorization", &reader)])
        .await
        .expect_problem(404, "unknown_connection")
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_rooms_connections_are_the_streams_joined_to_it() {
    let app = TestApp::new();
    let member = app.join_as("1", &token("7", "")).await;
    let tab = app.join_as("1", &token("7", "")).await;
    let chosen = app.open("/v1/stream?blog_id=1&viewer=anna", &[]).await;
    let _watcher = app.open("/v1/watch?blog_id=1", &[]).await;
    let _elsewhere = app.join("2").await;
    let list = app.read("/v1/rooms/blog:1/connections").await;
    assert_eq!(list["next_cursor"], json!(null));
    let list = list["connections"].as_array().expect("a list");
    let mut expected = [
        (member.connection(), json!("7"), json!(null)),
        (tab.connection(), json!("7"), json!(null)),
        (chosen.connection(), json!(null), json!("anna")),
    ];
    expected.sort_by_key(|(connection, ..)| *connection);
    assert_eq!(list.len(), expected.len());
    for (entry, (connection, user_id, viewer)) in list.iter().zip(expected) {
        let since = entry["since"].clone();
        assert!(since.is_string());
        let whole =
            json!({"connection": connection, "user_id": user_id, "viewer": viewer, "since": since});
        assert_eq!(*entry, whole);
    }
}

#[tokio::test(start_paused = true)]
async fn no_connection_is_missing_from_the_pages_or_on_two_of_them() {
    let app = TestApp::new();
    let mut viewers = Vec::new();
    for _ in 0..10 {
        viewers.push(app.join_as("1", &token("7", "")).await);
    }
    let mut expected: Vec<&str> = viewers.iter().map(Viewer::connection).collect();
    expected.sort_unstable();
    for path in ["/v1/rooms/blog:1/connections", "/v1/users/7/connections"] {
        for limit in [1, 3, 9, 10, 11] {
            let found = all_connections(&app, path, limit).await;
            let found: Vec<_> = found
                .iter()
                .filter_map(|entry| entry["connection"].as_str())
                .collect();
            assert_eq!(found, expected, "{path} by {limit}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_users_connections_are_all_of_theirs_watching_ones_too() {
    let app = TestApp::new();
    let user = token("7", "");
    let member = bearer(&user);
    let reading = app.join_as("1", &user).await;
    let watching = app
        .open("/v1/watch?blog_id=2", &[("authorization", &member)])
        .await;
    let _namesake = app.open("/v1/stream?blog_id=1&viewer=7", &[]).await;
    let found = all_connections(&app, "/v1/users/7/connections", 100).await;
    let mut expected = [reading.connection(), watching.connection()];
    expected.sort_unstable();
    let found: Vec<_> = found
        .iter()
        .filter_map(|entry| entry["connection"].as_str())
        .collect();
    assert_eq!(found, expected);
}

#[tokio::test(start_paused = true)]
async fn nobody_in_a_room_and_no_connection_of_a_user_is_an_empty_list() {
    let app = TestApp::new();
    for path in ["/v1/rooms/blog:1/connections", "/v1/users/7/connections"] {
        let list = app.read(path).await;
        assert_eq!(list, json!({"connections": [], "next_cursor": null}));
    }
}
