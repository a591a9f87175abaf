//! What the numbers were: by the minute, for a room and for the service, as numbers and as a plot.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};
use tokio::time::{Instant, advance};

use crate::helpers::{Answer, TestApp, bearer, token, token_for};

const MINUTE: Duration = Duration::from_secs(60);
const BLOG: &str = "/v1/rooms/blog:42/history";

/// Goes on to half a second into the next minute of the history.
async fn next_minute(app: &TestApp) {
    let now = app.app().history().node(1, Instant::now()).spans[0].at;
    while app.app().history().node(1, Instant::now()).spans[0].at == now {
        advance(Duration::from_millis(250)).await;
    }
    advance(Duration::from_millis(500)).await;
}

async fn history(app: &TestApp, path: &str) -> Value {
    let answer = app.get(path, &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    answer.json().await
}

fn steps(history: &Value) -> &[Value] {
    history["steps"].as_array().expect("steps")
}

/// The most viewers of each step.
fn most(history: &Value) -> Vec<u64> {
    let of = |step: &Value| step["viewers"]["max"].as_u64().expect("a number");
    steps(history).iter().map(of).collect()
}

fn unix(time: &Value) -> u64 {
    let time = humantime::parse_rfc3339(time.as_str().expect("a time")).expect("RFC 3339");
    let since = time.duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_secs()
}

// ---- numbers ----

#[tokio::test(start_paused = true)]
async fn a_minute_has_the_least_the_mean_and_the_most_of_the_numbers_shown() {
    let app = TestApp::of_one_node(&[]);
    next_minute(&app).await;
    advance(MINUTE - Duration::from_millis(1_000)).await;
    next_minute(&app).await;
    // Half a second in: one viewer for 30 s, two tabs more for 15 s, nobody for the rest.
    let reader = token("7", "");
    let one = app.join("42").await;
    advance(Duration::from_secs(15)).await;
    let tabs = [
        app.join_as("42", &reader).await,
        app.join_as("42", &reader).await,
    ];
    advance(Duration::from_secs(15)).await;
    drop((one, tabs));
    next_minute(&app).await;
    let history = history(&app, BLOG).await;
    let steps = steps(&history);
    let minute = &steps[steps.len() - 2];
    assert_eq!(minute["seconds"], json!(60));
    assert_eq!(minute.get("complete"), None);
    let numbers = |name: &str| {
        let numbers = &minute[name];
        (
            numbers["min"].as_u64().unwrap(),
            numbers["mean"].as_f64().unwrap(),
            numbers["max"].as_u64().unwrap(),
        )
    };
    assert_eq!(numbers("viewers"), (0, 0.75, 2));
    assert_eq!(numbers("connections"), (0, 1.0, 3));
    let running = steps.last().expect("the running minute");
    assert_eq!(running["complete"], json!(false));
    assert_eq!(running["viewers"]["max"], json!(0));
}

#[tokio::test(start_paused = true)]
async fn a_peak_between_two_looks_is_kept_with_its_minute() {
    let app = TestApp::of_one_node(&[]);
    next_minute(&app).await;
    let stays = app.join("42").await;
    next_minute(&app).await;
    let peak = {
        let _more = [app.join("42").await, app.join("42").await];
        advance(Duration::from_millis(2)).await;
        history(&app, BLOG).await["steps"].as_array().unwrap().len()
    };
    next_minute(&app).await;
    drop(stays);
    next_minute(&app).await;
    let history = history(&app, BLOG).await;
    assert_eq!(
        history["now"],
        json!({"viewers": 0, "connections": 0, "members": 0})
    );
    assert_eq!(history["peak"]["viewers"], json!(3));
    assert_eq!(history["peak"]["at"], steps(&history)[peak - 1]["at"]);
}

#[tokio::test(start_paused = true)]
async fn what_takes_the_place_of_a_stream_is_no_peak() {
    let app = TestApp::of_one_node(&[]);
    let first = app.join("42").await;
    advance(Duration::from_secs(1)).await;
    let again = app.open_ticket(first.ticket()).await;
    advance(Duration::from_secs(1)).await;
    let by_room = history(&app, BLOG).await;
    assert_eq!(by_room["peak"]["viewers"], json!(1));
    let step = steps(&by_room).last().unwrap();
    assert_eq!(step["connections"]["max"], json!(1));
    let of_all = app.read("/v1/history").await;
    assert_eq!(
        steps(&of_all).last().unwrap()["connections"]["max"],
        json!(1)
    );
    drop(again);
}

#[tokio::test(start_paused = true)]
async fn history_is_kept_when_everybody_left_and_steps_grow_coarser() {
    let app = TestApp::of_one_node(&[]);
    next_minute(&app).await;
    let viewers = [app.join("42").await, app.join("42").await];
    next_minute(&app).await;
    drop(viewers);
    advance(MINUTE * 60 * 5).await;
    let last_hour = history(&app, BLOG).await;
    assert_eq!(most(&last_hour), [0; 60]);
    assert_eq!(last_hour["peak"], Value::Null);
    let day = history(&app, "/v1/rooms/blog:42/history?minutes=1440").await;
    assert_eq!(day["peak"]["viewers"], json!(2));
    let mut end = unix(&day["from"]);
    let mut lengths = Vec::new();
    for step in steps(&day) {
        assert_eq!(unix(&step["at"]), end, "there is no gap");
        let seconds = step["seconds"].as_u64().unwrap();
        lengths.push(seconds);
        end += seconds;
    }
    assert_eq!(end, unix(&day["to"]));
    assert!(lengths.len() < 5 * 60, "{}", lengths.len());
    assert!(lengths.contains(&1_200));
    assert!(
        lengths[lengths.len() - 180..]
            .iter()
            .all(|seconds| *seconds == 60)
    );
    advance(MINUTE * 60 * 20).await;
    let day = history(&app, "/v1/rooms/blog:42/history?minutes=1440").await;
    assert_eq!(day["peak"], Value::Null, "a day later it is forgotten");
}

#[tokio::test(start_paused = true)]
async fn history_starts_with_the_process_and_is_zero_where_nobody_ever_was() {
    let app = TestApp::of_one_node(&[("anonymous_rooms", "blog:*, match:*")]);
    let at_once = history(&app, BLOG).await;
    assert_eq!(most(&at_once), [0]);
    assert_eq!(at_once["room"], json!("blog:42"));
    assert_eq!(at_once["blog_id"], json!("42"));
    assert_eq!(at_once["peak"], Value::Null);
    assert_eq!(unix(&at_once["to"]), unix(&at_once["from"]) + 60);
    assert_eq!(unix(&at_once["from"]) % 60, 0);
    advance(MINUTE * 3).await;
    assert_eq!(most(&history(&app, BLOG).await), [0; 4]);
    assert_eq!(app.app().history().rooms(), 0, "to ask takes no place");
    let other = history(&app, "/v1/rooms/match:1/history").await;
    assert_eq!(other.get("blog_id"), None);
}

#[tokio::test(start_paused = true)]
async fn the_minutes_asked_for_are_shown_the_running_one_included() {
    let app = TestApp::of_one_node(&[]);
    advance(MINUTE * 170).await;
    for minutes in [1, 2, 60, 170] {
        let path = format!("{BLOG}?minutes={minutes}");
        assert_eq!(steps(&history(&app, &path).await).len(), minutes);
    }
    assert_eq!(steps(&history(&app, BLOG).await).len(), 60);
}

#[tokio::test(start_paused = true)]
async fn minutes_that_are_no_number_from_1_to_1440_are_refused() {
    let app = TestApp::of_one_node(&[]);
    let reader = bearer(&token("7", "read"));
    let headers = [("authorization", reader.as_str())];
    for bad in [
        "0",
        "1441",
        "-1",
        "+5",
        "1.5",
        "ten",
        "",
        "99999999999999999999",
    ] {
        for path in [
            BLOG,
            "/v1/rooms/blog:42/history.svg",
            "/v1/history",
            "/v1/history.svg",
        ] {
            let answer = app.get(&format!("{path}?minutes={bad}"), &headers).await;
            answer.expect_problem(400, "invalid_minutes").await;
        }
    }
}

// ---- the service ----

#[tokio::test(start_paused = true)]
async fn the_history_of_the_service_counts_viewers_once_and_every_stream() {
    let app = TestApp::of_one_node(&[]);
    next_minute(&app).await;
    let reader = token("7", "");
    let streams = [
        app.join_as("1", &reader).await,
        app.join_as("2", &reader).await,
        app.join("1").await,
        app.open("/v1/watch?blog_id=1", &[]).await,
    ];
    next_minute(&app).await;
    let history = app.read("/v1/history").await;
    assert_eq!(
        history["now"],
        json!({"viewers": 2, "connections": 4, "members": 1})
    );
    assert_eq!(history["peak"]["viewers"], json!(2));
    assert_eq!(history.get("room"), None);
    let minute = &steps(&history)[steps(&history).len() - 2];
    assert_eq!(minute["viewers"]["max"], json!(2));
    assert_eq!(minute["connections"]["max"], json!(4));
    drop(streams);
    next_minute(&app).await;
    let history = app.read("/v1/history").await;
    assert_eq!(history["now"]["connections"], json!(0));
    assert_eq!(most(&history).last(), Some(&0));
}

// ---- who may ----

#[tokio::test(start_paused = true)]
async fn whoever_may_read_a_count_may_read_its_history() {
    let app = TestApp::of_one_node(&[("anonymous_rooms", "blog:4*")]);
    let member = bearer(&token_for("7", "", Some(&["blog:9"]), MINUTE));
    let member = [("authorization", member.as_str())];
    for plot in ["", ".svg"] {
        let path = |room: &str| format!("/v1/rooms/{room}/history{plot}");
        assert_eq!(app.get(&path("blog:42"), &[]).await.status, StatusCode::OK);
        let answer = app.get(&path("blog:9"), &[]).await;
        answer.expect_problem(401, "token_required").await;
        let answer = app.get(&path("blog:9"), &member).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("cache-control"), "private, no-cache");
        assert_eq!(answer.header("vary"), "authorization, cookie");
        let answer = app.get(&path("blog:5"), &member).await;
        answer.expect_problem(403, "forbidden_room").await;
    }
}

#[tokio::test(start_paused = true)]
async fn personal_rooms_have_no_history_and_say_so_to_whoever_may_ask() {
    let app = TestApp::of_one_node(&[]);
    let reader = bearer(&token("7", "read"));
    for plot in ["", ".svg"] {
        let path = format!("/v1/rooms/user:7/history{plot}");
        let answer = app.get(&path, &[]).await;
        answer.expect_problem(401, "token_required").await;
        let answer = app.get(&path, &[("authorization", &reader)]).await;
        answer.expect_problem(404, "no_history").await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_of_the_service_takes_scope_read() {
    let app = TestApp::of_one_node(&[]);
    let member = bearer(&token("7", "publish"));
    let reader = bearer(&token("7", "read"));
    for path in ["/v1/history", "/v1/history.svg"] {
        let answer = app.get(path, &[]).await;
        answer.expect_problem(401, "token_required").await;
        let answer = app.get(path, &[("authorization", &member)]).await;
        answer.expect_problem(403, "insufficient_scope").await;
        let answer = app.get(path, &[("authorization", &reader)]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.header("cache-control"), "private, no-cache");
    }
}

// ---- caches ----

#[tokio::test(start_paused = true)]
async fn a_history_that_the_client_has_is_answered_with_304_until_it_changes() {
    let app = TestApp::of_one_node(&[]);
    next_minute(&app).await;
    let _viewer = app.join("42").await;
    next_minute(&app).await;
    for path in [BLOG, "/v1/rooms/blog:42/history.svg"] {
        let fresh = app.get(path, &[]).await;
        let tag = fresh.header("etag").to_owned();
        assert_eq!(fresh.header("cache-control"), "public, max-age=1");
        advance(Duration::from_secs(1)).await;
        let known = [("if-none-match", tag.as_str())];
        let same = app.get(path, &known).await;
        assert_eq!(
            same.status,
            StatusCode::NOT_MODIFIED,
            "the numbers are steady"
        );
        next_minute(&app).await;
        assert_eq!(app.get(path, &known).await.status, StatusCode::OK);
    }
}

// ---- plots ----

fn assert_drawing(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("content-type"), "image/svg+xml");
    assert_eq!(
        answer.header("content-security-policy"),
        "default-src 'none'"
    );
    assert_eq!(answer.header("x-content-type-options"), "nosniff");
}

#[tokio::test(start_paused = true)]
async fn a_plot_shows_the_same_numbers() {
    let app = TestApp::of_one_node(&[]);
    next_minute(&app).await;
    let _viewers = [app.join("42").await, app.join("42").await];
    next_minute(&app).await;
    let answer = app
        .get("/v1/rooms/blog:42/history.svg?minutes=5", &[])
        .await;
    assert_drawing(&answer);
    let svg = answer.text().await;
    assert!(svg.starts_with("<svg "), "{svg}");
    assert!(svg.contains("<title>Viewers of blog:42 from "), "{svg}");
    assert!(svg.contains("Z: 2 now, at most 2, at "), "{svg}");
    let reader = bearer(&token("7", "read"));
    let answer = app
        .get("/v1/history.svg", &[("authorization", &reader)])
        .await;
    assert_drawing(&answer);
    assert!(
        answer
            .text()
            .await
            .contains("<title>Viewers of all rooms from ")
    );
}
