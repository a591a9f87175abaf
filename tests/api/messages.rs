//! Messages to a room or a user: who gets them, in which order, and what a reader who was away
//! is given.

use std::time::Duration;

use axum::http::StatusCode;
use livecount::hub::{Frame, RoomId};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::helpers::{TestApp, Viewer, admin, bearer, token};

/// Shorter than a heartbeat, and longer than anything that is due.
const A_WHILE: Duration = Duration::from_secs(10);

/// How long messages and idempotency keys are kept.
const KEEP: Duration = Duration::from_secs(5 * 60);

/// Reads the `count`s of as many rooms.
async fn skip_counts(viewer: &mut Viewer, rooms: usize) {
    for _ in 0..rooms {
        assert_eq!(viewer.next().await.name, "count");
    }
}

/// Reads the `count`s that the arrival of others brings, until nothing more comes.
async fn settle(viewer: &mut Viewer) {
    while let Ok(event) = tokio::time::timeout(A_WHILE / 10, viewer.next()).await {
        assert_eq!(event.name, "count");
    }
}

/// A reader of these blogs who has read the first counts.
async fn reader_of(app: &TestApp, blogs: &[&str]) -> Viewer {
    let mut viewer = app.join(&blogs.join(",")).await;
    skip_counts(&mut viewer, blogs.len()).await;
    viewer
}

/// Checks that the next event is this message. Pings are skipped, nothing else is.
async fn expect_message(viewer: &mut Viewer, room: &str, data: impl Into<Value>) {
    let mut event = viewer.next().await;
    while event.name == "ping" {
        event = viewer.next().await;
    }
    let data = json!({"room": room, "data": data.into()});
    assert_eq!((event.name.as_str(), &event.data), ("message", &data));
}

/// Reads to a room's `reset`; answers how many messages came before it. A body holds none for a
/// reader who does not read, a socket as many as the kernel has room for.
async fn messages_before_reset(viewer: &mut Viewer, room: &str) -> u64 {
    let mut messages = 0;
    loop {
        let event = viewer.next().await;
        if event.name == "reset" {
            assert_eq!(event.data, json!({"room": room}));
            return messages;
        }
        assert_eq!(event.name, "message");
        messages += 1;
    }
}

/// Opens a stream that says it has had everything up to `position`.
async fn resume(app: &TestApp, path: &str, position: &str) -> Viewer {
    app.open(path, &[("last-event-id", position)]).await
}

/// Sends a message and answers status and body.
async fn send(app: &TestApp, to: &str, body: Value) -> (StatusCode, Value) {
    let bearer = bearer(&admin());
    let path = format!("/v1/{to}/messages");
    let answer = app.post(&path, &[("authorization", &bearer)], body).await;
    (answer.status, answer.json().await)
}

// ---- who gets them ----

#[tokio::test(start_paused = true)]
async fn a_message_goes_to_every_connection_in_the_room_and_to_no_other() {
    let app = TestApp::new();
    let anna = "/v1/stream?blog_id=1&viewer=anna";
    let mut inside = [
        app.join("1").await,
        app.open(anna, &[]).await,
        app.open(anna, &[]).await,
        app.join_as("1", &token("7", "")).await,
    ];
    let mut outside = [
        app.join("2").await,
        app.open("/v1/watch?blog_id=1", &[]).await,
        app.join_as("2", &token("8", "")).await,
    ];
    for viewer in inside.iter_mut().chain(&mut outside) {
        settle(viewer).await;
    }
    let id = app
        .publish("rooms/blog:1", json!({"data": {"goal": 1}}))
        .await;
    for viewer in &mut inside {
        let message = viewer.next().await;
        assert_eq!(message.name, "message");
        assert_eq!(message.data, json!({"room": "blog:1", "data": {"goal": 1}}));
        assert_eq!(message.id.as_deref(), Some(id.as_str()));
        viewer.expect_silence(A_WHILE / 10).await;
    }
    for viewer in &mut outside {
        viewer.expect_silence(A_WHILE / 10).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_user_reaches_every_connection_of_that_user_once() {
    let app = TestApp::new();
    let user = token("7", "");
    let by_token = bearer(&user);
    let mut streams = [
        app.join_as("1", &user).await,
        app.join_as("1", &user).await,
        app.join_as("2", &user).await,
        app.open("/v1/watch?blog_id=1", &[("authorization", &by_token)])
            .await,
    ];
    let mut namesake = app.open("/v1/stream?blog_id=3&viewer=7", &[]).await;
    let mut other = app.join_as("4", &token("8", "")).await;
    for stream in streams.iter_mut().chain([&mut namesake, &mut other]) {
        settle(stream).await;
    }
    app.publish("users/7", json!({"data": "hello"})).await;
    for stream in &mut streams {
        expect_message(stream, "user:7", "hello").await;
        stream.expect_silence(A_WHILE / 10).await;
    }
    namesake.expect_silence(A_WHILE / 10).await;
    other.expect_silence(A_WHILE / 10).await;
}

#[tokio::test(start_paused = true)]
async fn a_user_can_be_addressed_by_the_personal_rooms_name_too() {
    let app = TestApp::new();
    let mut viewer = app.join_as("1", &token("7", "")).await;
    skip_counts(&mut viewer, 1).await;
    app.publish("rooms/user:7", json!({"data": 1})).await;
    expect_message(&mut viewer, "user:7", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_message_may_have_a_name_of_its_own() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    for event in ["goal", "message", "Score.home-team_1"] {
        let body = json!({"data": null, "event": event});
        app.publish("rooms/blog:1", body).await;
        let data = json!({"room": "blog:1", "data": null});
        viewer.expect(event, data).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_as_it_was_published() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    for data in [
        json!("lines\nand\r\nmore\u{2028}\"quoted\""),
        json!([1, -2.5, true, null, {}, []]),
        json!({"nested": {"ü": "✓"}, "event: forged": "data: x\n\n"}),
        json!(""),
    ] {
        app.publish("rooms/blog:1", json!({"data": data})).await;
        expect_message(&mut viewer, "blog:1", data).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_accepted_with_the_id_that_readers_see() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    let (status, accepted) = send(&app, "rooms/blog:1", json!({"data": 1})).await;
    assert_eq!(status, StatusCode::ACCEPTED);
    let message = viewer.next().await;
    assert_eq!(accepted, json!({"id": message.id, "duplicate": false}));
}

// ---- order, and from when until when ----

#[tokio::test(start_paused = true)]
async fn messages_come_in_one_order_across_all_rooms_of_a_stream() {
    let app = TestApp::new();
    let bearer = bearer(&token("7", ""));
    let headers = [("authorization", bearer.as_str())];
    let mut viewer = app.open("/v1/stream?blog_id=1,2", &headers).await;
    skip_counts(&mut viewer, 2).await;
    let rooms = ["blog:2", "user:7", "blog:1"];
    for number in 0..30 {
        let room = rooms[number % 3];
        app.publish(&format!("rooms/{room}"), json!({"data": number}))
            .await;
    }
    for number in 0..30 {
        expect_message(&mut viewer, rooms[number % 3], number).await;
    }
}

#[tokio::test(start_paused = true)]
async fn messages_stay_in_order_where_a_room_is_left_after_them() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1", "2"]).await;
    app.publish("rooms/blog:2", json!({"data": "first"})).await;
    app.publish("rooms/blog:1", json!({"data": "second"})).await;
    app.change(&viewer, "leave", json!({"blog_id": 1})).await;
    app.publish("rooms/blog:2", json!({"data": "third"})).await;
    expect_message(&mut viewer, "blog:2", "first").await;
    expect_message(&mut viewer, "blog:1", "second").await;
    viewer.expect("left", json!({"room": "blog:1"})).await;
    expect_message(&mut viewer, "blog:2", "third").await;
}

#[tokio::test(start_paused = true)]
async fn a_message_right_after_a_join_on_the_open_stream_is_not_missed() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    app.change(&viewer, "join", json!({"blog_id": 2})).await;
    app.publish("rooms/blog:2", json!({"data": "welcome"}))
        .await;
    viewer.expect("joined", json!({"room": "blog:2"})).await;
    viewer.expect_count("blog:2", (1, 1, 0)).await;
    expect_message(&mut viewer, "blog:2", "welcome").await;
}

#[tokio::test(start_paused = true)]
async fn no_message_from_before_a_join_on_the_open_stream_is_told() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    app.publish("rooms/blog:2", json!({"data": "before"})).await;
    app.change(&viewer, "join", json!({"blog_id": 2})).await;
    viewer.expect("joined", json!({"room": "blog:2"})).await;
    viewer.expect_count("blog:2", (1, 1, 0)).await;
    viewer.expect_silence(A_WHILE).await;
    app.publish("rooms/blog:2", json!({"data": "after"})).await;
    expect_message(&mut viewer, "blog:2", "after").await;
}

#[tokio::test(start_paused = true)]
async fn messages_before_and_after_a_join_keep_their_order_with_it() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    app.publish("rooms/blog:1", json!({"data": 1})).await;
    app.change(&viewer, "join", json!({"blog_id": 2})).await;
    app.publish("rooms/blog:2", json!({"data": 2})).await;
    app.publish("rooms/blog:1", json!({"data": 3})).await;
    expect_message(&mut viewer, "blog:1", 1).await;
    viewer.expect("joined", json!({"room": "blog:2"})).await;
    viewer.expect_count("blog:2", (1, 1, 0)).await;
    expect_message(&mut viewer, "blog:2", 2).await;
    expect_message(&mut viewer, "blog:1", 3).await;
}

#[tokio::test(start_paused = true)]
async fn a_room_left_and_joined_again_brings_nothing_from_in_between() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    app.publish("rooms/blog:1", json!({"data": "in"})).await;
    app.change(&viewer, "leave", json!({"blog_id": 1})).await;
    app.publish("rooms/blog:1", json!({"data": "out"})).await;
    app.change(&viewer, "join", json!({"blog_id": 1})).await;
    app.publish("rooms/blog:1", json!({"data": "in again"}))
        .await;
    expect_message(&mut viewer, "blog:1", "in").await;
    viewer.expect("left", json!({"room": "blog:1"})).await;
    viewer.expect("joined", json!({"room": "blog:1"})).await;
    viewer.expect_count("blog:1", (1, 1, 0)).await;
    expect_message(&mut viewer, "blog:1", "in again").await;
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_watched_room_that_is_joined_begins_to_bring_messages() {
    let app = TestApp::new();
    let mut viewer = app.open("/v1/watch?blog_id=1", &[]).await;
    skip_counts(&mut viewer, 1).await;
    app.publish("rooms/blog:1", json!({"data": "unheard"}))
        .await;
    viewer.expect_silence(A_WHILE).await;
    app.change(&viewer, "join", json!({"blog_id": 1})).await;
    viewer.expect("joined", json!({"room": "blog:1"})).await;
    viewer.expect_count("blog:1", (1, 1, 0)).await;
    app.publish("rooms/blog:1", json!({"data": "heard"})).await;
    expect_message(&mut viewer, "blog:1", "heard").await;
}

#[tokio::test(start_paused = true)]
async fn what_was_said_before_a_kick_is_still_told() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    app.publish("rooms/blog:1", json!({"data": "last words"}))
        .await;
    let path = format!("/v1/connections/{}", viewer.connection());
    app.kick(&path, None).await;
    app.publish("rooms/blog:1", json!({"data": "too late"}))
        .await;
    expect_message(&mut viewer, "blog:1", "last words").await;
    assert!(viewer.next().await.retry.is_some());
    viewer.expect("closed", json!({"reason": "kicked"})).await;
}

// ---- idempotency ----

#[tokio::test(start_paused = true)]
async fn the_same_message_under_the_same_key_is_delivered_once() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    let body = json!({"data": [1, 2], "event": "goal", "idempotency_key": "key 1"});
    let (_, first) = send(&app, "rooms/blog:1", body.clone()).await;
    assert_eq!(first["duplicate"], json!(false));
    for _ in 0..3 {
        let (status, again) = send(&app, "rooms/blog:1", body.clone()).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        assert_eq!(again, json!({"id": first["id"], "duplicate": true}));
    }
    assert_eq!(viewer.next().await.name, "goal");
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn another_message_under_the_same_key_is_refused_and_not_delivered() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1"]).await;
    let body = json!({"data": 1, "idempotency_key": "k"});
    app.publish("rooms/blog:1", body).await;
    expect_message(&mut viewer, "blog:1", 1).await;
    for other in [
        json!({"data": 2, "idempotency_key": "k"}),
        json!({"data": 1, "event": "goal", "idempotency_key": "k"}),
    ] {
        let (status, problem) = send(&app, "rooms/blog:1", other).await;
        assert_eq!(status, StatusCode::CONFLICT);
        assert_eq!(problem["code"], json!("idempotency_conflict"));
    }
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_holds_in_its_room_alone() {
    let app = TestApp::new();
    for (to, data) in [("rooms/blog:1", 1), ("rooms/blog:2", 2), ("users/7", 3)] {
        let body = json!({"data": data, "idempotency_key": "k"});
        let (status, accepted) = send(&app, to, body).await;
        assert_eq!(status, StatusCode::ACCEPTED);
        assert_eq!(accepted["duplicate"], json!(false), "{to}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_holds_for_five_minutes() {
    // Redis forgets a key by its own clock, which no test moves.
    let app = TestApp::of_one_node(&[]);
    let body = json!({"data": 1, "idempotency_key": "k"});
    let (_, first) = send(&app, "rooms/blog:1", body.clone()).await;
    tokio::time::sleep(KEEP - Duration::from_secs(1)).await;
    let (_, again) = send(&app, "rooms/blog:1", body.clone()).await;
    assert_eq!(again, json!({"id": first["id"], "duplicate": true}));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (_, anew) = send(&app, "rooms/blog:1", body).await;
    assert_eq!(anew["duplicate"], json!(false));
    assert_ne!(anew["id"], first["id"]);
}

#[tokio::test(start_paused = true)]
async fn an_idempotency_key_outlives_its_message() {
    let app = TestApp::new();
    let body = json!({"data": 1, "idempotency_key": "k"});
    app.publish("rooms/blog:1", body.clone()).await;
    for number in 0..101 {
        app.publish("rooms/blog:1", json!({"data": number})).await;
    }
    let (_, again) = send(&app, "rooms/blog:1", body).await;
    assert_eq!(again["duplicate"], json!(true));
}

// ---- replay ----

const BOTH: &str = "/v1/stream?blog_id=1,2";

#[tokio::test(start_paused = true)]
async fn a_reader_who_comes_back_gets_what_was_missed_in_order() {
    let app = TestApp::new();
    let mut viewer = reader_of(&app, &["1", "2"]).await;
    app.publish("rooms/blog:1", json!({"data": "had"})).await;
    expect_message(&mut viewer, "blog:1", "had").await;
    let (ticket, position) = (viewer.ticket().to_owned(), viewer.position.clone());
    drop(viewer);
    app.publish("rooms/blog:2", json!({"data": "missed 1"}))
        .await;
    app.publish("rooms/blog:3", json!({"data": "of another room"}))
        .await;
    app.publish("rooms/blog:1", json!({"data": "missed 2", "event": "goal"}))
        .await;
    let mut back = resume(&app, &format!("/v1/stream?ticket={ticket}"), &position).await;
    skip_counts(&mut back, 2).await;
    expect_message(&mut back, "blog:2", "missed 1").await;
    back.expect("goal", json!({"room": "blog:1", "data": "missed 2"}))
        .await;
    app.publish("rooms/blog:1", json!({"data": "live"})).await;
    expect_message(&mut back, "blog:1", "live").await;
    back.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn the_position_is_read_from_header_query_and_body_and_the_header_wins() {
    let app = TestApp::new();
    let early = app.join("1").await.position;
    let late = app.publish("rooms/blog:1", json!({"data": "old"})).await;
    app.publish("rooms/blog:1", json!({"data": "new"})).await;
    let path = "/v1/stream?blog_id=1";
    let with_query = format!("{path}&last_event_id={late}");
    let body = |position: &str| json!({"blog_id": 1, "last_event_id": position});
    let joined = app.join_later(json!({"blog_id": 1}), &[]).await;
    let by_ticket = joined["stream_url"].as_str().expect("a URL");
    let late_header = [("last-event-id", late.as_str())];
    let streams = [
        resume(&app, path, &late).await,
        app.open(&with_query, &[]).await,
        app.open(&format!("{path}&last_event_id={early}"), &late_header)
            .await,
        app.open(&format!("{by_ticket}&last_event_id={late}"), &[])
            .await,
        app.join_by_post(body(&late), &[]).await,
        app.join_by_post(body(&early), &late_header).await,
    ];
    for mut stream in streams {
        skip_counts(&mut stream, 1).await;
        expect_message(&mut stream, "blog:1", "new").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_fresh_stream_gets_no_old_messages() {
    let app = TestApp::new();
    app.publish("rooms/blog:1", json!({"data": 1})).await;
    let mut viewer = reader_of(&app, &["1"]).await;
    viewer.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_starts_at_the_position_that_connected_names() {
    let app = TestApp::new();
    app.publish("rooms/blog:1", json!({"data": "before"})).await;
    let viewer = reader_of(&app, &["1"]).await;
    let position = viewer.position.clone();
    drop(viewer);
    app.publish("rooms/blog:1", json!({"data": "after"})).await;
    let mut back = resume(&app, BOTH, &position).await;
    skip_counts(&mut back, 2).await;
    expect_message(&mut back, "blog:1", "after").await;
    back.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_replay_that_breaks_after_connected_can_be_repeated() {
    let app = TestApp::new();
    let position = app.join("1").await.position;
    app.publish("rooms/blog:1", json!({"data": "missed"})).await;
    let broken = resume(&app, "/v1/stream?blog_id=1", &position).await;
    // Only `connected` was read of it.
    let position = broken.position.clone();
    drop(broken);
    let mut back = resume(&app, "/v1/stream?blog_id=1", &position).await;
    skip_counts(&mut back, 1).await;
    expect_message(&mut back, "blog:1", "missed").await;
}

#[tokio::test(start_paused = true)]
async fn a_message_to_a_user_who_is_away_waits_for_the_return() {
    let app = TestApp::new();
    let user = bearer(&token("7", ""));
    let position = app.join_as("1", &token("7", "")).await.position;
    app.publish("users/7", json!({"data": "while away"})).await;
    let headers = [
        ("authorization", user.as_str()),
        ("last-event-id", position.as_str()),
    ];
    let mut back = app.open("/v1/stream?blog_id=9", &headers).await;
    skip_counts(&mut back, 1).await;
    expect_message(&mut back, "user:7", "while away").await;
}

#[tokio::test(start_paused = true)]
async fn nothing_is_lost_and_nothing_doubled_wherever_a_stream_breaks() {
    const MESSAGES: usize = 12;
    for cut in 0..=MESSAGES {
        let app = TestApp::new();
        let mut viewer = reader_of(&app, &["1", "2"]).await;
        let ticket = viewer.ticket().to_owned();
        let mut got = Vec::new();
        for number in 0..MESSAGES {
            let to = format!("rooms/blog:{}", 1 + number % 2);
            app.publish(&to, json!({"data": number})).await;
            if number == cut {
                // Breaks here, having read half of what was sent.
                while got.len() < cut / 2 {
                    got.push(viewer.next_named("message").await.data["data"].clone());
                }
                let url = format!("/v1/stream?ticket={ticket}");
                viewer = resume(&app, &url, &viewer.position).await;
            }
        }
        while got.len() < MESSAGES {
            got.push(viewer.next_named("message").await.data["data"].clone());
        }
        let all: Vec<Value> = (0..MESSAGES).map(Value::from).collect();
        assert_eq!(got, all, "cut at {cut}");
        settle(&mut viewer).await;
        viewer.expect_silence(A_WHILE).await;
    }
}

// ---- reset ----

#[tokio::test(start_paused = true)]
async fn an_id_that_this_service_never_gave_resets_every_joined_room() {
    let app = TestApp::new();
    let known = app.publish("rooms/blog:1", json!({"data": 1})).await;
    let (epoch, last) = known.split_once('.').expect("an id of this service");
    let next = u64::from_str_radix(last, 16).expect("a position") + 1;
    let user = bearer(&token("7", ""));
    let accept = "text/event-stream";
    for foreign in [
        "0.0",
        "1-0",
        "what-is-this",
        &format!("{epoch}1.0"),
        &format!("{epoch}.{next:x}"),
        &format!("{epoch}.ffffffffffffffff"),
    ] {
        let headers = [
            ("authorization", user.as_str()),
            ("last-event-id", foreign),
            ("accept", accept),
        ];
        let body = json!({"rooms": ["blog:2", "blog:1"], "watch": ["blog:3"]});
        let mut viewer = app.join_by_post(body, &headers[..2]).await;
        skip_counts(&mut viewer, 3).await;
        for room in ["blog:2", "blog:1", "user:7"] {
            viewer.expect("reset", json!({"room": room})).await;
        }
        viewer.expect_silence(A_WHILE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_missed_messages_are_replayed_and_of_more_a_loss_is_told() {
    let app = TestApp::new();
    let position = app.join("1").await.position;
    for number in 1..=100 {
        app.publish("rooms/blog:1", json!({"data": number})).await;
    }
    let path = "/v1/stream?blog_id=1";
    let mut whole = resume(&app, path, &position).await;
    skip_counts(&mut whole, 1).await;
    for number in 1..=100 {
        expect_message(&mut whole, "blog:1", number).await;
    }
    app.publish("rooms/blog:1", json!({"data": 101})).await;
    let mut short = resume(&app, path, &position).await;
    skip_counts(&mut short, 1).await;
    short.expect("reset", json!({"room": "blog:1"})).await;
    for number in 2..=101 {
        expect_message(&mut short, "blog:1", number).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_loss_in_one_room_resets_that_room_alone() {
    let app = TestApp::new();
    let position = reader_of(&app, &["1", "2"]).await.position;
    app.publish("rooms/blog:2", json!({"data": "kept"})).await;
    for number in 0..101 {
        app.publish("rooms/blog:1", json!({"data": number})).await;
    }
    let mut back = resume(&app, BOTH, &position).await;
    skip_counts(&mut back, 2).await;
    back.expect("reset", json!({"room": "blog:1"})).await;
    expect_message(&mut back, "blog:2", "kept").await;
    expect_message(&mut back, "blog:1", 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_room_keeps_at_most_a_mebibyte_of_messages() {
    let app = TestApp::new();
    let position = app.join("1").await.position;
    // Sixteen of them and what stands around them are a little more.
    let large = "x".repeat((64 << 10) - 2);
    for _ in 0..15 {
        app.publish("rooms/blog:1", json!({"data": large})).await;
    }
    let path = "/v1/stream?blog_id=1";
    let mut whole = resume(&app, path, &position).await;
    skip_counts(&mut whole, 1).await;
    assert_eq!(whole.next().await.name, "message");
    app.publish("rooms/blog:1", json!({"data": large})).await;
    let mut short = resume(&app, path, &position).await;
    skip_counts(&mut short, 1).await;
    short.expect("reset", json!({"room": "blog:1"})).await;
    for _ in 0..15 {
        assert_eq!(short.next().await.name, "message");
    }
    short.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_keeps_at_most_64_mebibytes_of_messages_and_drops_the_oldest() {
    const ROOMS: usize = 80;
    let app = TestApp::of_one_node(&[]);
    let position = app.join("0").await.position;
    let text = format!("event: message\ndata: \"{}\"\n\n", "x".repeat(64 << 10));
    let large = Frame::of(text.as_bytes());
    let mut late = String::new();
    for number in 0..ROOMS * 15 {
        let room = RoomId::parse(&format!("blog:{}", number / 15)).expect("a room");
        let encode = |_| large.clone();
        let published = app.hub().publish(&room, None, encode, Instant::now());
        let position = published.expect("no key, no conflict").position;
        if number + 1 == (ROOMS - 1) * 15 {
            late = position.to_string();
        }
    }
    let mut oldest = resume(&app, "/v1/stream?blog_id=0", &position).await;
    skip_counts(&mut oldest, 1).await;
    oldest.expect("reset", json!({"room": "blog:0"})).await;
    oldest.expect_silence(A_WHILE).await;
    let newest = format!("/v1/stream?blog_id={}", ROOMS - 1);
    let mut newest = resume(&app, &newest, &late).await;
    skip_counts(&mut newest, 1).await;
    for _ in 0..15 {
        assert_eq!(newest.next().await.name, "message");
    }
}

#[tokio::test(start_paused = true)]
async fn messages_are_kept_for_five_minutes_and_then_their_loss_is_told() {
    let app = TestApp::new();
    let position = app.join("1").await.position;
    app.publish("rooms/blog:1", json!({"data": "old"})).await;
    tokio::time::sleep(KEEP - Duration::from_secs(1)).await;
    let path = "/v1/stream?blog_id=1";
    let mut in_time = resume(&app, path, &position).await;
    skip_counts(&mut in_time, 1).await;
    expect_message(&mut in_time, "blog:1", "old").await;
    drop(in_time);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut late = resume(&app, path, &position).await;
    skip_counts(&mut late, 1).await;
    late.expect("reset", json!({"room": "blog:1"})).await;
    late.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_room_that_was_forgotten_with_its_messages_is_reset_and_one_without_is_not() {
    let app = TestApp::of_one_node(&[]);
    let before = app.join("1").await.position;
    let last = app.publish("rooms/blog:1", json!({"data": "old"})).await;
    tokio::time::sleep(KEEP * 2).await;
    assert_eq!(app.hub().totals().kept_rooms, 0, "nothing reminds of it");
    let path = "/v1/stream?blog_id=1";
    let mut lost = resume(&app, path, &before).await;
    skip_counts(&mut lost, 1).await;
    lost.expect("reset", json!({"room": "blog:1"})).await;
    let mut had_all = resume(&app, path, &last).await;
    skip_counts(&mut had_all, 1).await;
    had_all.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_room_without_viewers_is_gone_with_its_last_message() {
    let app = TestApp::of_one_node(&[]);
    app.publish("rooms/blog:1", json!({"data": 1, "idempotency_key": "k"}))
        .await;
    app.publish("users/7", json!({"data": 1})).await;
    tokio::time::sleep(KEEP - Duration::from_secs(1)).await;
    assert_eq!(app.hub().totals().kept_rooms, 2);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(app.hub().totals().kept_rooms, 0);
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_is_lapped_is_told_so_and_given_the_newest_messages() {
    let app = TestApp::new();
    let mut slow = reader_of(&app, &["1"]).await;
    for number in 0..500 {
        app.publish("rooms/blog:1", json!({"data": number})).await;
    }
    app.settle().await;
    assert!(messages_before_reset(&mut slow, "blog:1").await < 400);
    for number in 400..500 {
        expect_message(&mut slow, "blog:1", number).await;
    }
    slow.expect_silence(A_WHILE).await;
}

#[tokio::test(start_paused = true)]
async fn a_user_who_is_lapped_is_told_so_even_where_the_room_was_forgotten_in_between() {
    let app = TestApp::new();
    let mut slow = app.join_as("1", &token("7", "")).await;
    skip_counts(&mut slow, 1).await;
    // More than a socket takes from one who does not read.
    app.publish("users/7", json!({"data": "x".repeat(60_000)}))
        .await;
    app.publish("users/7", json!({"data": "lost"})).await;
    tokio::time::sleep(KEEP + Duration::from_secs(1)).await;
    app.publish("users/7", json!({"data": "kept"})).await;
    assert!(messages_before_reset(&mut slow, "user:7").await < 2);
    expect_message(&mut slow, "user:7", "kept").await;
}

#[tokio::test(start_paused = true)]
async fn a_user_who_was_told_everything_is_not_reset_when_messages_age() {
    let app = TestApp::new();
    let mut viewer = app.join_as("1", &token("7", "")).await;
    skip_counts(&mut viewer, 1).await;
    for round in 0..3 {
        app.publish("users/7", json!({"data": round})).await;
        expect_message(&mut viewer, "user:7", round).await;
        app.publish("rooms/blog:2", json!({"data": "elsewhere"}))
            .await;
        tokio::time::sleep(KEEP + Duration::from_secs(1)).await;
        app.publish("rooms/blog:1", json!({"data": round})).await;
        expect_message(&mut viewer, "blog:1", round).await;
    }
}
