//! Metrics: the numbers as a Prometheus scrape sees them.

use axum::{
    body::Body,
    http::{Request, StatusCode},
};
use serde_json::json;

use crate::helpers::{Answer, TestApp, bearer, from_address, token};

/// The text of a scrape from this machine.
async fn scrape(app: &TestApp) -> String {
    let answer = app.get("/metrics", &[]).await;
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(
        answer.header("content-type"),
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
    );
    let text = answer.text().await;
    assert!(text.ends_with("# EOF\n"), "{text}");
    text
}

/// A scrape from another machine.
async fn scrape_from_afar(app: &TestApp, token: Option<&str>) -> Answer {
    let mut request = Request::builder().uri("/metrics");
    if let Some(token) = token {
        request = request.header("authorization", bearer(token));
    }
    let request = request.body(Body::empty()).expect("a request");
    app.send(from_address(request, "192.0.2.1")).await
}

/// One sample's value.
fn sample(text: &str, name: &str) -> u64 {
    let found: Vec<u64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .map(|value| value.parse().expect("a whole number"))
        .collect();
    assert_eq!(found.len(), 1, "{name} in {text}");
    found[0]
}

#[tokio::test(start_paused = true)]
async fn metrics_show_who_is_here() {
    let app = TestApp::of_one_node(&[]);
    let reader = token("7", "");
    let _tabs = [
        app.join_as("1", &reader).await,
        app.join_as("2", &reader).await,
    ];
    let _anonymous = app.join("1").await;
    let _watcher = app.open("/v1/watch?blog_id=1,3", &[]).await;
    let text = scrape(&app).await;
    for (name, value) in [
        ("livecount_viewers", 2),
        ("livecount_connections", 4),
        ("livecount_members", 1),
        ("livecount_rooms", 2),
        ("livecount_kept_rooms", 3),
        ("livecount_opened_total", 4),
    ] {
        assert_eq!(sample(&text, name), value, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_fall_back_to_zero_with_the_last_viewer() {
    let app = TestApp::of_one_node(&[]);
    drop(app.join_as("1", &token("7", "")).await);
    let text = scrape(&app).await;
    for name in ["viewers", "connections", "members", "rooms", "kept_rooms"] {
        assert_eq!(sample(&text, &format!("livecount_{name}")), 0, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_count_the_ends_of_streams_by_reason() {
    let app = TestApp::of_one_node(&[("ticket_ttl", "60s")]);
    let broken = app.join("1").await;
    drop(broken);
    let replaced = app.join("1").await;
    let kicked = app.open_ticket(replaced.ticket()).await;
    let path = format!("/v1/connections/{}", kicked.connection());
    app.kick(&path, None).await;
    let left = app.join("1").await;
    app.call_on(left.connection(), "close", left.ticket(), json!({}))
        .await;
    let expired = app.join("1").await;
    assert_eq!(expired.reason().await, "expired");
    drop((replaced, kicked, left));
    let text = scrape(&app).await;
    for (reason, number) in [
        ("broken", 1),
        ("replaced", 1),
        ("kicked", 1),
        ("left", 1),
        ("expired", 1),
        ("slow", 0),
        ("shutdown", 0),
        ("overloaded", 0),
    ] {
        let name = format!("livecount_closed_total{{reason=\"{reason}\"}}");
        assert_eq!(sample(&text, &name), number, "{reason}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_never_name_a_blog_a_user_or_a_connection() {
    let app = TestApp::of_one_node(&[]);
    let viewer = app.join_as("a-blog", &token("a-user", "")).await;
    let _chosen = app
        .open("/v1/stream?blog_id=a-blog&viewer=a-name", &[])
        .await;
    let text = scrape(&app).await;
    for secret in [
        "a-blog",
        "a-user",
        "a-name",
        viewer.connection(),
        viewer.ticket(),
    ] {
        assert!(!text.contains(secret), "{secret}");
    }
}

#[tokio::test(start_paused = true)]
async fn metrics_are_for_this_machine_and_for_the_scope_read() {
    let app = TestApp::of_one_node(&[]);
    scrape_from_afar(&app, None)
        .await
        .expect_problem(401, "token_required")
        .await;
    scrape_from_afar(&app, Some(&token("7", "publish manage")))
        .await
        .expect_problem(403, "insufficient_scope")
        .await;
    let answer = scrape_from_afar(&app, Some(&token("7", "read"))).await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn metrics_are_the_operators_alone_where_they_have_a_listener_of_their_own() {
    let app = TestApp::of_one_node(&[("ops_listen", "127.0.0.1:9090")]);
    app.get("/metrics", &[])
        .await
        .expect_problem(404, "not_found")
        .await;
}
