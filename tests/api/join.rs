//! Joining, watching and leaving: who is counted, from when, until when, and who is told.

use std::time::Duration;

use axum::{
    body::Body,
    http::{Method, Request, StatusCode},
};
use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::helpers::{TestApp, Viewer, about, bearer, expires_in, numbers, token};

const PUSH_INTERVAL: Duration = Duration::from_millis(100);

/// Shorter than a heartbeat, and longer than anything that is due.
const A_WHILE: Duration = Duration::from_secs(10);

/// The default life of a ticket, in seconds.
const A_DAY: u64 = 24 * 60 * 60;

#[tokio::test(start_paused = true)]
async fn closing_a_stream_decrements_the_count() {
    let app = TestApp::new();
    let mut first = app.join("post-1").await;
    assert_eq!(first.next_count().await, (1, 1, 0));
    let second = app.join("post-1").await;
    assert_eq!(first.next_count().await, (2, 2, 0));
    drop(second);
    assert_eq!(first.next_count().await, (1, 1, 0));
}

// ---- ways in ----

#[tokio::test(start_paused = true)]
async fn a_post_that_accepts_an_event_stream_is_answered_with_the_stream() {
    let app = TestApp::new();
    for accept in [
        "text/event-stream",
        "application/json, text/event-stream",
        "Text/Event-Stream;q=0.5",
    ] {
        let headers = [("accept", accept)];
        let body = json!({"blog_id": 42});
        let answer = app.post("/v1/join", &headers, body).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-type"), "text/event-stream");
    }
}

#[tokio::test(start_paused = true)]
async fn a_post_that_does_not_ask_for_a_stream_is_answered_with_a_ticket() {
    let app = TestApp::new();
    for accept in ["application/json", "*/*", "text/event-stream;q=0"] {
        let headers = [("accept", accept)];
        let body = json!({"blog_id": 42});
        let answer = app.post("/v1/join", &headers, body).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        assert_eq!(answer.header("cache-control"), "no-store");
        assert_eq!(answer.header("content-type"), "application/json");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticket_comes_with_its_connection_its_stream_and_its_end() {
    let app = TestApp::new();
    let joined = app.join_later(json!({"blog_id": 42}), &[]).await;
    let ticket = joined["ticket"].as_str().expect("a ticket");
    assert!(ticket.starts_with("lct1."));
    assert_eq!(
        joined,
        json!({
            "connection": joined["connection"],
            "ticket": ticket,
            "stream_url": format!("/v1/stream?ticket={ticket}"),
            "expires_in": joined["expires_in"],
            "counts": [
                {"room": "blog:42", "blog_id": "42", "viewers": 0, "connections": 0, "members": 0},
            ],
        })
    );
    assert!(about(A_DAY).contains(&expires_in(&joined)));
    let opened = app
        .open(joined["stream_url"].as_str().expect("a URL"), &[])
        .await;
    assert_eq!(opened.connected["connection"], joined["connection"]);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_is_not_counted_before_its_stream_opens() {
    let app = TestApp::new();
    let mut first = app.join("42").await;
    assert_eq!(first.next_count().await, (1, 1, 0));
    let joined = app.join_later(json!({"blog_id": 42}), &[]).await;
    first.expect_silence(A_WHILE).await;
    assert_eq!(app.count("42").await, (1, 1, 0));
    let _second = app
        .open_ticket(joined["ticket"].as_str().expect("a ticket"))
        .await;
    assert_eq!(first.next_count().await, (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn the_counts_beside_a_ticket_are_those_before_it_is_counted() {
    let app = TestApp::new();
    let _reader = app.join("1").await;
    let _watched = app.join("3").await;
    let body = json!({"rooms": ["blog:2", "blog:1"], "watch": ["blog:3"]});
    let joined = app.join_later(body, &[]).await;
    let counts = joined["counts"].as_array().expect("counts");
    let counts: Vec<_> = counts
        .iter()
        .map(|count| (count["room"].as_str(), numbers(count).1))
        .collect();
    assert_eq!(
        counts,
        [
            (Some("blog:2"), 0),
            (Some("blog:1"), 1),
            (Some("blog:3"), 1)
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_body_is_never_read_is_never_counted() {
    // A shard opens a stream as soon as it has the socket.
    let app = TestApp::of_bodies();
    let mut first = app.join("42").await;
    assert_eq!(first.next_count().await, (1, 1, 0));
    let unread = app.get("/v1/stream?blog_id=42", &[]).await;
    first.expect_silence(A_WHILE).await;
    drop(unread);
    first.expect_silence(A_WHILE / 2).await;
    assert_eq!(app.hub().totals().held, 1);
}

#[tokio::test(start_paused = true)]
async fn a_head_request_never_joins() {
    let app = TestApp::new();
    for path in ["/v1/stream?blog_id=42", "/v1/watch?blog_id=42"] {
        let request = Request::builder().method(Method::HEAD).uri(path);
        let request = request.body(Body::empty()).expect("a request");
        let answer = app.send(request).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("content-type"), "text/event-stream");
        assert_eq!(answer.text().await, "");
    }
    assert!(app.totals().iter().all(|node| node.turnover.opened == 0));
}

#[tokio::test(start_paused = true)]
async fn a_query_names_rooms_repeated_by_commas_or_in_brackets() {
    let app = TestApp::with(&[("anonymous_rooms", "blog:*,match:*")]);
    let query = "blog_id=1&blog_id=2,3&room=match:7&blog_id[]=4&blog_id[0]=5&blog_id%5B1%5D=6&room=blog:8&page=9";
    let viewer = app.open(&format!("/v1/stream?{query}"), &[]).await;
    assert_eq!(
        viewer.names("rooms"),
        [
            "blog:1", "blog:2", "blog:3", "match:7", "blog:4", "blog:5", "blog:6", "blog:8"
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn a_room_that_is_named_twice_is_joined_once() {
    let app = TestApp::new();
    let path = "/v1/stream?blog_id=1&blog_id=2&blog_id=1,2&room=blog:1";
    let viewer = app.open(path, &[]).await;
    assert_eq!(viewer.names("rooms"), ["blog:1", "blog:2"]);
    assert_eq!(app.count("1").await, (1, 1, 0));
    let body = json!({"rooms": ["blog:3", "blog:3"], "watch": ["blog:4", "blog:3", "blog:4"]});
    let viewer = app.join_by_post(body, &[]).await;
    assert_eq!(viewer.names("rooms"), ["blog:3"]);
    assert_eq!(viewer.names("watching"), ["blog:4"]);
    assert_eq!(app.count("3").await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_blog_is_the_same_by_number_and_by_text() {
    let app = TestApp::new();
    let mut viewers = Vec::new();
    for blog_id in [json!(42), json!("42"), json!(42.0)] {
        let body = json!({"blog_id": blog_id});
        viewers.push(app.join_by_post(body, &[]).await);
    }
    viewers.push(app.join_by_post(json!({"room": "blog:42"}), &[]).await);
    viewers.push(app.join("42").await);
    assert_eq!(app.count("42").await, (5, 5, 0));
    for viewer in &mut viewers {
        assert_eq!(viewer.next().await.data["blog_id"], json!("42"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_largest_blog_id_is_written_back_whole() {
    let app = TestApp::new();
    let largest: u64 = (1 << 53) - 1;
    let viewer = app.join_by_post(json!({"blog_id": largest}), &[]).await;
    assert_eq!(viewer.names("rooms"), ["blog:9007199254740991"]);
}

// ---- who is counted ----

#[tokio::test(start_paused = true)]
async fn three_tabs_of_one_signed_in_reader_are_one_viewer_and_one_member() {
    let app = TestApp::new();
    let reader = token("7", "");
    let mut first = app.join_as("42", &reader).await;
    assert_eq!(first.next_count().await, (1, 1, 1));
    let second = app.join_as("42", &reader).await;
    assert_eq!(first.next_count().await, (1, 2, 1));
    let third = app.join_as("42", &token("7", "read")).await;
    assert_eq!(first.next_count().await, (1, 3, 1));
    drop(second);
    assert_eq!(first.next_count().await, (1, 2, 1));
    drop(third);
    assert_eq!(first.next_count().await, (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn tabs_that_choose_the_same_viewer_are_one_viewer_and_no_member() {
    let app = TestApp::new();
    let mut first = app.open("/v1/stream?blog_id=42&viewer=anna", &[]).await;
    assert_eq!(first.next_count().await, (1, 1, 0));
    let body = json!({"blog_id": 42, "viewer": "anna"});
    let _second = app.join_by_post(body.clone(), &[]).await;
    assert_eq!(first.next_count().await, (1, 2, 0));
    let joined = app.join_later(body, &[]).await;
    let _third = app
        .open_ticket(joined["ticket"].as_str().expect("a ticket"))
        .await;
    assert_eq!(first.next_count().await, (1, 3, 0));
}

#[tokio::test(start_paused = true)]
async fn a_chosen_viewer_is_never_the_member_of_the_same_name() {
    let app = TestApp::new();
    let mut member = app.join_as("42", &token("7", "")).await;
    assert_eq!(member.next_count().await, (1, 1, 1));
    let _chosen = app.open("/v1/stream?blog_id=42&viewer=7", &[]).await;
    assert_eq!(member.next_count().await, (2, 2, 1));
}

#[tokio::test(start_paused = true)]
async fn a_chosen_viewer_is_never_the_connection_of_the_same_name() {
    let app = TestApp::new();
    let mut nameless = app.join("42").await;
    assert_eq!(nameless.next_count().await, (1, 1, 0));
    let path = format!("/v1/stream?blog_id=42&viewer={}", nameless.connection());
    let _chosen = app.open(&path, &[]).await;
    assert_eq!(nameless.next_count().await, (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn a_viewer_chosen_beside_a_token_is_ignored() {
    let app = TestApp::new();
    let bearer = bearer(&token("7", ""));
    let headers = [("authorization", bearer.as_str())];
    let path = "/v1/stream?blog_id=42&viewer=anna";
    let mut member = app.open(path, &headers).await;
    assert_eq!(member.next_count().await, (1, 1, 1));
    let body = json!({"blog_id": 42, "viewer": "bert"});
    let _tab = app.join_by_post(body, &headers).await;
    assert_eq!(member.next_count().await, (1, 2, 1));
    let _anna = app.open(path, &[]).await;
    assert_eq!(member.next_count().await, (2, 3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_viewer_of_two_rooms_is_counted_in_each() {
    let app = TestApp::new();
    let viewer = app.open("/v1/stream?blog_id=1,2", &[]).await;
    assert_eq!(app.count("1").await, (1, 1, 0));
    assert_eq!(app.count("2").await, (1, 1, 0));
    drop(viewer);
    assert_eq!(app.count("1").await, (0, 0, 0));
    assert_eq!(app.count("2").await, (0, 0, 0));
}

// ---- watching ----

#[tokio::test(start_paused = true)]
async fn whoever_watches_is_told_the_counts_and_is_not_counted() {
    let app = TestApp::new();
    let mut watcher = app.open("/v1/watch?blog_id=1", &[]).await;
    watcher.expect_count("blog:1", (0, 0, 0)).await;
    let reader = app.join("1").await;
    watcher.expect_count("blog:1", (1, 1, 0)).await;
    drop(reader);
    watcher.expect_count("blog:1", (0, 0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn counts_are_watched_in_the_order_asked() {
    let app = TestApp::with(&[("anonymous_rooms", "blog:*,match:*")]);
    let path = "/v1/watch?blog_id=2&blog_id=1&room=match:9&blog_id=2";
    let mut watcher = app.open(path, &[]).await;
    assert_eq!(watcher.names("rooms"), [""; 0]);
    assert_eq!(watcher.names("watching"), ["blog:2", "blog:1", "match:9"]);
    for room in ["blog:2", "blog:1", "match:9"] {
        watcher.expect_count(room, (0, 0, 0)).await;
    }
    watcher.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_join_may_only_watch() {
    let app = TestApp::new();
    let mut watcher = app.join_by_post(json!({"watch": ["blog:1"]}), &[]).await;
    watcher.expect_count("blog:1", (0, 0, 0)).await;
    assert_eq!(app.count("1").await, (0, 0, 0));
    let joined = app.join_later(json!({"watch": ["blog:1"]}), &[]).await;
    let again = app
        .open_ticket(joined["ticket"].as_str().expect("a ticket"))
        .await;
    assert_eq!(again.names("watching"), ["blog:1"]);
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn counts_go_only_to_the_rooms_own_viewers_and_watchers() {
    let app = TestApp::new();
    let mut here = app.join("1").await;
    let mut there = app.join("2").await;
    let mut watcher = app.open("/v1/watch?blog_id=2", &[]).await;
    here.expect_count("blog:1", (1, 1, 0)).await;
    there.expect_count("blog:2", (1, 1, 0)).await;
    watcher.expect_count("blog:2", (1, 1, 0)).await;
    let _another = app.join("1").await;
    here.expect_count("blog:1", (2, 2, 0)).await;
    there.expect_silence(A_WHILE / 2).await;
    watcher.expect_silence(A_WHILE / 2).await;
}

// ---- what a new stream is told ----

#[tokio::test(start_paused = true)]
async fn the_first_count_holds_the_viewer_itself() {
    let app = TestApp::new();
    let mut viewers = Vec::new();
    for number in 1..=3 {
        let mut viewer = app.join("42").await;
        assert_eq!(viewer.next_count().await, (number, number, 0));
        viewers.push(viewer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_begins_with_retry_connected_and_a_count_per_room_in_the_order_asked() {
    let app = TestApp::new();
    let bearer = bearer(&token("7", ""));
    let headers = [
        ("authorization", bearer.as_str()),
        ("accept", "text/event-stream"),
    ];
    let body = json!({"rooms": ["blog:9", "user:7", "blog:3"], "watch": ["blog:8", "blog:1"]});
    let mut stream = app.post("/v1/join", &headers, body).await.expect_stream();
    let retry = stream.next().await;
    assert!(retry.name.is_empty() && retry.retry.is_some(), "{retry:?}");
    let connected = stream.next().await;
    assert_eq!(connected.name, "connected");
    let id = connected.id.expect("a position");
    assert!((1..=64).contains(&id.len()));
    assert!(
        id.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
    );
    stream.expect_count("blog:9", (1, 1, 1)).await;
    stream.expect_count("blog:3", (1, 1, 1)).await;
    stream.expect_count("blog:8", (0, 0, 0)).await;
    stream.expect_count("blog:1", (0, 0, 0)).await;
    stream.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn connected_says_all_that_a_client_must_know_of_its_stream() {
    let app = TestApp::with(&[("heartbeat", "15s")]);
    let anonymous = app.join("42").await.connected;
    let ticket = anonymous["ticket"].as_str().expect("a ticket");
    assert_eq!(
        anonymous,
        json!({
            "connection": anonymous["connection"],
            "user_id": null,
            "rooms": ["blog:42"],
            "watching": [],
            "ticket": ticket,
            "stream_url": format!("/v1/stream?ticket={ticket}"),
            "expires_in": anonymous["expires_in"],
            "heartbeat": 15,
        })
    );
    assert!(about(A_DAY).contains(&expires_in(&anonymous)));
    let member = app.join_as("42", &token("7", "")).await.connected;
    assert_eq!(member["user_id"], json!("7"));
    assert_eq!(member["rooms"], json!(["blog:42", "user:7"]));
    let until_the_tokens_end = expires_in(&member);
    assert!(about(3600).contains(&until_the_tokens_end));
}

#[tokio::test(start_paused = true)]
async fn a_count_names_the_blog_in_blog_rooms_only() {
    let app = TestApp::with(&[("anonymous_rooms", "*")]);
    let mut viewer = app.open("/v1/stream?blog_id=1&room=match:1", &[]).await;
    viewer
        .expect(
            "count",
            json!({"room": "blog:1", "blog_id": "1", "viewers": 1, "connections": 1, "members": 0}),
        )
        .await;
    viewer
        .expect(
            "count",
            json!({"room": "match:1", "viewers": 1, "connections": 1, "members": 0}),
        )
        .await;
}

// ---- the personal room ----

#[tokio::test(start_paused = true)]
async fn a_member_is_in_the_personal_room_unasked_and_is_pushed_no_count_of_it() {
    let app = TestApp::new();
    let reader = token("7", "");
    let mut first = app.join_as("1", &reader).await;
    assert_eq!(first.names("rooms"), ["blog:1", "user:7"]);
    first.expect_count("blog:1", (1, 1, 1)).await;
    let _second = app.join_as("2", &reader).await;
    first.expect_silence(A_WHILE).await;
    let count = app.read("/v1/rooms/user:7").await;
    assert_eq!(
        count,
        json!({"room": "user:7", "viewers": 1, "connections": 2, "members": 1})
    );
}

#[tokio::test(start_paused = true)]
async fn a_personal_room_that_is_asked_for_is_joined_once_and_has_no_count() {
    let app = TestApp::new();
    let bearer = bearer(&token("7", ""));
    let headers = [("authorization", bearer.as_str())];
    let mut alone = app.open("/v1/stream?room=user:7", &headers).await;
    assert_eq!(alone.names("rooms"), ["user:7"]);
    alone.expect_silence(A_WHILE).await;
    let mut watching = app.open("/v1/watch?room=user:7&blog_id=1", &headers).await;
    assert_eq!(watching.names("rooms"), ["user:7"]);
    watching.expect_count("blog:1", (0, 0, 0)).await;
    watching.expect_silence(A_WHILE).await;
}

// ---- the pulse ----

#[tokio::test(start_paused = true)]
async fn the_first_change_of_a_quiet_room_is_told_at_once() {
    let app = TestApp::new();
    let mut viewer = app.join("42").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    viewer.expect_silence(A_WHILE).await;
    let changed = Instant::now();
    let _second = app.join("42").await;
    viewer.expect_count("blog:42", (2, 2, 0)).await;
    assert!(changed.elapsed() <= app.told_within());
}

#[tokio::test(start_paused = true)]
async fn further_changes_are_told_together_after_the_push_interval() {
    // To have each request known on another node takes longer than the push interval.
    let app = TestApp::of_one_node(&[]);
    let mut viewer = app.join("42").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    viewer.expect_silence(A_WHILE).await;
    let _second = app.join("42").await;
    viewer.expect_count("blog:42", (2, 2, 0)).await;
    let told = Instant::now();
    let (_third, fourth) = (app.join("42").await, app.join("42").await);
    drop(fourth);
    let _fifth = app.join("42").await;
    viewer.expect_count("blog:42", (4, 4, 0)).await;
    assert_eq!(told.elapsed(), PUSH_INTERVAL);
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn the_push_interval_is_as_set() {
    let app = TestApp::with(&[("push_interval", "2s")]);
    let mut viewer = app.join("42").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    viewer.expect_silence(A_WHILE).await;
    let mut others = Vec::new();
    let mut told = Vec::new();
    for number in 2..=4 {
        others.push(app.join("42").await);
        viewer.expect_count("blog:42", (number, number, 0)).await;
        told.push(Instant::now());
    }
    assert_eq!(told[1] - told[0], Duration::from_secs(2));
    assert_eq!(told[2] - told[1], Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_room_that_changes_all_the_time_is_told_once_per_push_interval() {
    // To have each request known on another node takes longer than the push interval.
    let app = TestApp::of_one_node(&[]);
    let mut watcher = app.open("/v1/watch?blog_id=42", &[]).await;
    watcher.expect_count("blog:42", (0, 0, 0)).await;
    let start = Instant::now();
    let reading = tokio::spawn(async move {
        let mut told = Vec::new();
        loop {
            let (_, connections, _) = watcher.next_count().await;
            told.push(Instant::now());
            if connections == 100 {
                return told;
            }
        }
    });
    let mut viewers = Vec::new();
    for _ in 0..100 {
        viewers.push(app.join("42").await);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let told = reading.await.expect("the counts come");
    assert_eq!(told[0], start);
    assert!(
        told.windows(2)
            .all(|pair| pair[1] - pair[0] >= PUSH_INTERVAL)
    );
    assert_eq!(told.len(), 11, "at once, then ten times in a second");
}

#[tokio::test(start_paused = true)]
async fn changes_that_cancel_out_at_once_are_not_told() {
    // Over sockets the first one is told before the second one is asked for.
    let app = TestApp::of_bodies();
    let mut viewer = app.join("42").await;
    let other = app.join("1").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    viewer.expect_silence(A_WHILE).await;
    app.change(&other, "join", json!({"blog_id": 42})).await;
    app.change(&other, "leave", json!({"blog_id": 42})).await;
    viewer.expect_silence(A_WHILE / 2).await;
}

#[tokio::test(start_paused = true)]
async fn changes_that_cancel_out_within_the_push_interval_are_not_told() {
    // To have each request known on another node takes longer than the push interval.
    let app = TestApp::of_one_node(&[]);
    let mut viewer = app.join("42").await;
    let other = app.join("1").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    viewer.expect_silence(A_WHILE).await;
    app.change(&other, "join", json!({"blog_id": 42})).await;
    viewer.expect_count("blog:42", (2, 2, 0)).await;
    app.change(&other, "leave", json!({"blog_id": 42})).await;
    app.change(&other, "join", json!({"blog_id": 42})).await;
    viewer.expect_silence(A_WHILE / 2).await;
}

#[tokio::test(start_paused = true)]
async fn numbers_that_come_back_are_told_to_whoever_was_given_others() {
    let app = TestApp::new();
    let _first = app.join("42").await;
    tokio::time::sleep(A_WHILE).await;
    let gone = app.join("42").await;
    let mut watcher = app.open("/v1/watch?blog_id=42", &[]).await;
    drop(gone);
    watcher.expect_count("blog:42", (2, 2, 0)).await;
    watcher.expect_count("blog:42", (1, 1, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_change_of_any_of_the_three_numbers_is_told() {
    let app = TestApp::new();
    let mut watcher = app.open("/v1/watch?blog_id=42", &[]).await;
    watcher.expect_count("blog:42", (0, 0, 0)).await;
    let path = "/v1/stream?blog_id=42&viewer=anna";
    let _first = app.open(path, &[]).await;
    watcher.expect_count("blog:42", (1, 1, 0)).await;
    let tab = app.open(path, &[]).await;
    watcher.expect_count("blog:42", (1, 2, 0)).await;
    // The tab goes and a member comes in one pulse: only `members` and `viewers` differ.
    drop(tab);
    let _member = app.join_as("42", &token("7", "")).await;
    watcher.expect_count("blog:42", (2, 2, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn every_decrement_of_a_storm_is_told() {
    let app = TestApp::new();
    let mut viewers: Vec<Viewer> = Vec::new();
    for _ in 0..50 {
        viewers.push(app.join("42").await);
    }
    while viewers.len() > 1 {
        let left = viewers.len() - 1;
        viewers.truncate(left.div_ceil(2));
        let left = u64::try_from(viewers.len()).expect("a small number");
        for viewer in &mut viewers {
            viewer.wait_for_count((left, left, 0)).await;
        }
    }
}

/// Reads counts until one shows `all` viewers; answers how many came, and the viewer, who would
/// leave otherwise.
async fn counts_until(mut viewer: Viewer, all: u64) -> (usize, Viewer) {
    let mut counts = 1;
    while viewer.next_count().await.0 != all {
        counts += 1;
    }
    (counts, viewer)
}

#[tokio::test(start_paused = true)]
async fn a_burst_of_joins_is_told_in_a_bounded_number_of_events() {
    const JOINS: usize = 5_000;
    let all = u64::try_from(JOINS).expect("a small number");
    let app = TestApp::of_one_node(&[("max_connections", "6000")]);
    let start = Instant::now();
    let mut readers = JoinSet::new();
    for number in 0..JOINS {
        let viewer = app.join("42").await;
        readers.spawn(counts_until(viewer, all));
        if number % 50 == 49 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut events = 0;
    let mut viewers = Vec::new();
    while let Some(reader) = readers.join_next().await {
        let (counts, viewer) = reader.expect("every viewer sees the whole number");
        events += counts;
        viewers.push(viewer);
    }
    let seconds = start.elapsed().as_secs_f64();
    let most = 5_000.0 + 5_000.0 * seconds * 10.0;
    assert!(events >= JOINS, "everybody is told");
    assert!(
        f64::from(u32::try_from(events).expect("a small number")) <= most,
        "{events} events in {seconds} s, at most {most}"
    );
}

// ---- nothing is left ----

#[tokio::test(start_paused = true)]
async fn an_empty_room_is_gone() {
    let app = TestApp::of_one_node(&[]);
    let viewer = app.join_as("1", &token("7", "")).await;
    let watcher = app.open("/v1/watch?blog_id=1&blog_id=2", &[]).await;
    assert_eq!(app.hub().totals().kept_rooms, 2);
    drop(viewer);
    assert_eq!(app.count("1").await, (0, 0, 0));
    assert_eq!(app.hub().totals().rooms, 0);
    drop(watcher);
    tokio::time::sleep(A_WHILE).await;
    let totals = app.hub().totals();
    assert_eq!((totals.kept_rooms, totals.held), (0, 0));
    assert_eq!(totals.occupancy, livecount::hub::Occupancy::default());
}

#[tokio::test(start_paused = true)]
async fn asking_for_the_count_of_a_room_does_not_make_it() {
    let app = TestApp::of_one_node(&[]);
    let count: Value = app.read("/v1/rooms/blog:1").await;
    assert_eq!(numbers(&count), (0, 0, 0));
    app.join_later(json!({"blog_id": 2}), &[]).await;
    assert_eq!(app.hub().totals().kept_rooms, 0);
}
