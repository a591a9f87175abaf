//! One stream's life: its head, its reopening by ticket, its grace, its heartbeat, its end.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use crate::helpers::{Answer, TestApp, Viewer, about, bearer, expires_in, token, token_for};

const HEARTBEAT: Duration = Duration::from_secs(20);
const GRACE: Duration = Duration::from_secs(5);

/// Shorter than a heartbeat and a grace, and longer than a pulse.
const A_MOMENT: Duration = Duration::from_secs(4);

fn with_grace() -> TestApp {
    TestApp::with(&[("leave_grace", "5s")])
}

// ---- heads ----

fn assert_head_of_a_stream(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK);
    for (name, value) in [
        ("content-type", "text/event-stream"),
        ("cache-control", "private, no-store, no-transform"),
        ("x-accel-buffering", "no"),
        ("referrer-policy", "no-referrer"),
    ] {
        assert_eq!(answer.header(name), value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_stream_has_the_head_that_proxies_and_browsers_need() {
    let app = TestApp::new();
    assert_head_of_a_stream(&app.get("/v1/stream?blog_id=1", &[]).await);
    assert_head_of_a_stream(&app.get("/v1/watch?blog_id=1", &[]).await);
    let accept = [("accept", "text/event-stream")];
    let joined = app.post("/v1/join", &accept, json!({"blog_id": 1})).await;
    assert_head_of_a_stream(&joined);
    let joined = app.join_later(json!({"blog_id": 1}), &[]).await;
    let url = joined["stream_url"].as_str().expect("a URL");
    assert_head_of_a_stream(&app.get(url, &[]).await);
}

#[tokio::test(start_paused = true)]
async fn stream_urls_are_absolute_where_the_public_url_is_set() {
    let app = TestApp::with(&[("public_url", "https://example.org/live")]);
    let joined = app.join_later(json!({"blog_id": 1}), &[]).await;
    let prefix = "https://example.org/live/v1/stream?ticket=lct1.";
    let viewer = app.join("1").await;
    let changed = app.change(&viewer, "join", json!({"blog_id": 2})).await;
    for said in [&joined, &viewer.connected, &changed] {
        let url = said["stream_url"].as_str().expect("a URL");
        assert!(url.starts_with(prefix), "{url}");
    }
}

// ---- reopening ----

#[tokio::test(start_paused = true)]
async fn every_kind_of_stream_can_be_reopened_by_its_ticket() {
    let app = TestApp::new();
    let bearer = bearer(&token("7", ""));
    let by_token = [("authorization", bearer.as_str())];
    let body = json!({"rooms": ["blog:2", "blog:1"], "watch": ["blog:3"], "viewer": "anna"});
    let streams = [
        app.join("1").await,
        app.open("/v1/watch?blog_id=1,2", &[]).await,
        app.open("/v1/stream?blog_id=1&viewer=bert", &by_token)
            .await,
        app.join_by_post(body, &[]).await,
    ];
    for stream in streams {
        let again = app.open_ticket(stream.ticket()).await;
        for field in ["connection", "user_id", "rooms", "watching"] {
            assert_eq!(again.connected[field], stream.connected[field], "{field}");
        }
        assert_eq!(stream.reason().await, "replaced");
    }
}

#[tokio::test(start_paused = true)]
async fn the_newer_stream_of_a_connection_replaces_the_older_one() {
    let app = TestApp::new();
    let older = app.join("42").await;
    let mut newer = app.open_ticket(older.ticket()).await;
    newer.expect_count("blog:42", (1, 1, 0)).await;
    let (reason, retry) = older.farewell().await;
    assert_eq!(reason, "replaced");
    let retry = retry.expect("a retry right before");
    assert!((30_000..=60_000).contains(&retry), "{retry}");
    newer.expect_silence(A_MOMENT).await;
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_the_numbers_move_while_a_stream_is_reopened() {
    let these = (2, 2, 1);
    let app = TestApp::new();
    let mut reader = app.join("42").await;
    let mut watcher = app.open("/v1/watch?blog_id=42", &[]).await;
    let mut older = app.join_as("42", &token("7", "")).await;
    reader.wait_for_count(these).await;
    watcher.wait_for_count(these).await;
    for _ in 0..3 {
        let newer = app.open_ticket(older.ticket()).await;
        reader.expect_steady("blog:42", these, A_MOMENT / 4).await;
        watcher.expect_steady("blog:42", these, A_MOMENT / 4).await;
        assert_eq!(app.count("42").await, these);
        // The older one is let go of late, as a slow network does.
        drop(older);
        reader.expect_steady("blog:42", these, A_MOMENT / 4).await;
        watcher.expect_steady("blog:42", these, A_MOMENT / 4).await;
        older = newer;
    }
    assert_eq!(app.count("42").await, these);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_replayed_ten_times_never_raises_a_count() {
    let app = TestApp::new();
    let mut watcher = app.open("/v1/watch?blog_id=42", &[]).await;
    watcher.expect_count("blog:42", (0, 0, 0)).await;
    let joined = app.join_later(json!({"blog_id": 42}), &[]).await;
    let ticket = joined["ticket"].as_str().expect("a ticket");
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(app.open_ticket(ticket).await);
        assert_eq!(app.count("42").await, (1, 1, 0));
    }
    watcher.expect_count("blog:42", (1, 1, 0)).await;
    watcher.expect_silence(A_MOMENT).await;
    drop(streams);
    watcher.expect_count("blog:42", (0, 0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn tickets_replayed_at_the_same_time_leave_the_newest_stream() {
    // Between nodes the newest is the one that was opened last, not asked for last.
    let app = TestApp::of_one_node(&[]);
    let joined = app.join_later(json!({"blog_id": 42}), &[]).await;
    let url = joined["stream_url"].as_str().expect("a URL");
    let first = app.get(url, &[]).await.expect_stream();
    let second = app.get(url, &[]).await.expect_stream();
    let mut newest = app.get(url, &[]).await.expect_stream();
    // They are read in another order than they were asked for.
    assert_eq!(newest.next_named("connected").await.name, "connected");
    for older in [second, first] {
        let (reason, retry) = older.farewell().await;
        assert_eq!(reason, "replaced");
        assert!(retry.is_some_and(|retry| retry >= 30_000));
    }
    newest.expect_count("blog:42", (1, 1, 0)).await;
    assert_eq!(app.count("42").await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_replaced_counts_nobody_out_when_it_goes() {
    let app = TestApp::new();
    let older = app.join("42").await;
    let mut newer = app.open_ticket(older.ticket()).await;
    newer.expect_count("blog:42", (1, 1, 0)).await;
    drop(older);
    newer.expect_silence(A_MOMENT).await;
    assert_eq!(app.count("42").await, (1, 1, 0));
}

// ---- broken streams ----

#[tokio::test(start_paused = true)]
async fn without_a_grace_a_broken_stream_is_counted_out_at_once() {
    let app = TestApp::new();
    let viewer = app.join("42").await;
    assert_eq!(app.count("42").await, (1, 1, 0));
    drop(viewer);
    assert_eq!(app.count("42").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_broken_stream_counts_until_its_grace_ends() {
    let app = with_grace();
    let mut other = app.join("42").await;
    let lost = app.join_as("42", &token("7", "")).await;
    other.wait_for_count((2, 2, 1)).await;
    let broken = Instant::now();
    drop(lost);
    other.expect_count("blog:42", (1, 1, 0)).await;
    assert_eq!(broken.elapsed(), GRACE);
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_a_return_by_ticket_within_the_grace() {
    let app = with_grace();
    let mut other = app.join("42").await;
    let lost = app.join("42").await;
    other.wait_for_count((2, 2, 0)).await;
    let ticket = lost.ticket().to_owned();
    drop(lost);
    other.expect_silence(A_MOMENT).await;
    let mut back = app.open_ticket(&ticket).await;
    back.expect_count("blog:42", (2, 2, 0)).await;
    other.expect_steady("blog:42", (2, 2, 0), GRACE * 2).await;
    assert_eq!(app.count("42").await, (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_a_known_viewers_return_by_a_new_connection_within_the_grace() {
    // Only where it was lost does a new connection take the place of a lost one.
    let app = TestApp::of_one_node(&[("leave_grace", "5s")]);
    let mut other = app.join("42").await;
    let anna = "/v1/stream?blog_id=42&viewer=anna";
    let lost = app.open(anna, &[]).await;
    other.wait_for_count((2, 2, 0)).await;
    drop(lost);
    other.expect_silence(A_MOMENT).await;
    let _back = app.open(anna, &[]).await;
    other.expect_silence(GRACE * 2).await;
    assert_eq!(app.count("42").await, (2, 2, 0));
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_all_tabs_of_a_reader_return_within_the_grace() {
    // Elsewhere a tab that comes back takes the place of another one, until that is back too.
    let app = TestApp::of_one_node(&[("leave_grace", "5s")]);
    let mut other = app.join("42").await;
    let reader = token("7", "");
    let tabs = [
        app.join_as("42", &reader).await,
        app.join_as("42", &reader).await,
        app.join_as("42", &reader).await,
    ];
    other.wait_for_count((2, 4, 1)).await;
    let tickets: Vec<String> = tabs.iter().map(|tab| tab.ticket().to_owned()).collect();
    drop(tabs);
    let mut back = Vec::new();
    for ticket in &tickets {
        back.push(app.open_ticket(ticket).await);
        other.expect_silence(GRACE / 5).await;
    }
    other.expect_silence(GRACE * 2).await;
    assert_eq!(app.count("42").await, (2, 4, 1));
}

#[tokio::test(start_paused = true)]
async fn a_tab_that_is_new_takes_the_place_of_one_lost_tab() {
    let app = with_grace();
    let mut other = app.join("42").await;
    let reader = token("7", "");
    let tabs = [
        app.join_as("42", &reader).await,
        app.join_as("42", &reader).await,
    ];
    other.wait_for_count((2, 3, 1)).await;
    drop(tabs);
    let _reloaded = app.join_as("42", &reader).await;
    let _reloaded_too = app.join_as("42", &reader).await;
    other.expect_silence(GRACE * 2).await;
    assert_eq!(app.count("42").await, (2, 3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_new_tab_beside_a_living_one_is_one_more() {
    let app = with_grace();
    let reader = token("7", "");
    let mut first = app.join_as("42", &reader).await;
    first.expect_count("blog:42", (1, 1, 1)).await;
    let _second = app.join_as("42", &reader).await;
    first.expect_count("blog:42", (1, 2, 1)).await;
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_is_immediate_with_a_grace_too() {
    let app = with_grace();
    let mut other = app.join("42").await;
    let viewer = app.join("42").await;
    other.wait_for_count((2, 2, 0)).await;
    other.expect_silence(A_MOMENT).await;
    let said = Instant::now();
    let answer = app
        .call_on(viewer.connection(), "close", viewer.ticket(), json!({}))
        .await;
    assert_eq!(answer.status, StatusCode::NO_CONTENT);
    other.expect_count("blog:42", (1, 1, 0)).await;
    assert!(said.elapsed() <= app.told_within());
}

#[tokio::test(start_paused = true)]
async fn a_goodbye_ends_the_grace_of_a_stream_that_broke() {
    let app = with_grace();
    let mut other = app.join("42").await;
    let viewer = app.join("42").await;
    other.wait_for_count((2, 2, 0)).await;
    let (connection, ticket) = (viewer.connection().to_owned(), viewer.ticket().to_owned());
    drop(viewer);
    other.expect_silence(A_MOMENT).await;
    let said = Instant::now();
    app.call_on(&connection, "close", &ticket, json!({})).await;
    other.expect_count("blog:42", (1, 1, 0)).await;
    assert!(said.elapsed() <= app.told_within());
    other.expect_silence(GRACE * 2).await;
    let held: usize = app.totals().iter().map(|totals| totals.held).sum();
    assert_eq!(held, 1);
}

#[tokio::test(start_paused = true)]
async fn a_grace_is_over_for_a_stream_that_expires_or_is_kicked() {
    let app = TestApp::with(&[("leave_grace", "5s"), ("ticket_ttl", "60s")]);
    let kicked = app.join("42").await;
    let path = format!("/v1/connections/{}", kicked.connection());
    assert_eq!(app.kick(&path, None).await, StatusCode::NO_CONTENT);
    assert_eq!(app.count("42").await, (0, 0, 0));
    assert_eq!(kicked.reason().await, "kicked");
    let expired = app.join("42").await;
    assert_eq!(expired.reason().await, "expired");
    assert_eq!(app.count("42").await, (0, 0, 0));
}

// ---- heartbeat ----

/// Reads `ping` and answers when it came.
async fn next_ping(viewer: &mut Viewer) -> Instant {
    viewer.expect("ping", json!({})).await;
    Instant::now()
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_is_pinged_every_twenty_seconds() {
    let app = TestApp::new();
    let mut viewer = app.join("42").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    let mut last = Instant::now();
    for _ in 0..3 {
        let ping = next_ping(&mut viewer).await;
        assert_eq!(ping - last, HEARTBEAT);
        last = ping;
    }
}

#[tokio::test(start_paused = true)]
async fn whatever_a_stream_is_told_postpones_its_ping() {
    let app = TestApp::new();
    let mut viewer = app.join("42").await;
    viewer.expect_count("blog:42", (1, 1, 0)).await;
    viewer.expect_silence(HEARTBEAT - A_MOMENT).await;
    let other = app.join("42").await;
    viewer.expect_count("blog:42", (2, 2, 0)).await;
    let counted = Instant::now();
    assert_eq!(next_ping(&mut viewer).await - counted, HEARTBEAT);
    viewer.expect_silence(A_MOMENT).await;
    app.publish("rooms/blog:42", json!({"data": 1})).await;
    assert_eq!(viewer.next().await.name, "message");
    let spoken = Instant::now();
    assert_eq!(next_ping(&mut viewer).await - spoken, HEARTBEAT);
    drop(other);
}

#[tokio::test(start_paused = true)]
async fn the_heartbeat_is_as_set() {
    let app = TestApp::with(&[("heartbeat", "7s")]);
    let mut viewer = app.open("/v1/watch?blog_id=42", &[]).await;
    assert_eq!(viewer.connected["heartbeat"], json!(7));
    viewer.expect_count("blog:42", (0, 0, 0)).await;
    let opened = Instant::now();
    assert_eq!(
        next_ping(&mut viewer).await - opened,
        Duration::from_secs(7)
    );
}

// ---- expiry ----

#[tokio::test(start_paused = true)]
async fn a_stream_is_warned_half_a_minute_before_its_ticket_ends_and_ends_with_it() {
    let app = TestApp::with(&[("ticket_ttl", "5m")]);
    let mut viewer = app.join("42").await;
    assert!(about(300).contains(&expires_in(&viewer.connected)));
    let start = Instant::now();
    let expiring = viewer.next_named("expiring").await;
    assert_eq!(expiring.data, json!({"expires_in": 30}));
    assert!(about(270).contains(&start.elapsed().as_secs()));
    let mut other = app.open("/v1/watch?blog_id=42", &[]).await;
    assert_eq!(viewer.farewell().await, ("expired".to_owned(), None));
    assert!(about(300).contains(&start.elapsed().as_secs()));
    assert_eq!(app.count("42").await, (0, 0, 0));
    other.wait_for_count((0, 0, 0)).await;
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_token_where_that_is_sooner() {
    let app = TestApp::new();
    let brief = token_for("7", "", None, Duration::from_secs(90));
    let start = Instant::now();
    let mut viewer = app.join_as("42", &brief).await;
    assert!(about(90).contains(&expires_in(&viewer.connected)));
    viewer.next_named("expiring").await;
    assert!(about(60).contains(&start.elapsed().as_secs()));
    assert_eq!(viewer.farewell().await, ("expired".to_owned(), None));
    assert!(about(90).contains(&start.elapsed().as_secs()));
    assert_eq!(app.count("42").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_within_half_a_minute_is_warned_at_once() {
    let app = TestApp::with(&[("ticket_ttl", "60s")]);
    let brief = token_for("7", "", None, Duration::from_secs(20));
    let mut viewer = app.join_as("42", &brief).await;
    let start = Instant::now();
    viewer.expect_count("blog:42", (1, 1, 1)).await;
    let expiring = viewer.next().await;
    assert_eq!(expiring.name, "expiring");
    assert!(about(20).contains(&expires_in(&expiring.data)));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_reopened_stream_ends_when_its_ticket_does() {
    let app = TestApp::with(&[("ticket_ttl", "5m")]);
    let older = app.join("42").await;
    let newer = app.open_ticket(older.ticket()).await;
    assert!(about(300).contains(&expires_in(&newer.connected)));
    let start = Instant::now();
    assert_eq!(newer.reason().await, "expired");
    assert!(about(300).contains(&start.elapsed().as_secs()));
}
