//! Counts over REST: one blog, many, the top rooms, the whole service.

use std::time::Duration;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::helpers::{Answer, TestApp, Viewer, bearer, numbers, token, token_for};

/// So many anonymous viewers of each of these blogs.
async fn occupy(app: &TestApp, blogs: &[(&str, usize)]) -> Vec<Viewer> {
    let mut viewers = Vec::new();
    for (blog_id, number) in blogs {
        for _ in 0..*number {
            viewers.push(app.join(blog_id).await);
        }
    }
    viewers
}

fn rooms_of(list: &Value) -> Vec<&str> {
    let rooms = list.as_array().expect("a list of counts");
    rooms
        .iter()
        .filter_map(|count| count["room"].as_str())
        .collect()
}

// ---- one count ----

#[tokio::test(start_paused = true)]
async fn a_blogs_count_has_its_three_numbers() {
    let app = TestApp::new();
    let reader = token("7", "");
    let _tabs = [
        app.join_as("42", &reader).await,
        app.join_as("42", &reader).await,
    ];
    let _anonymous = app.join("42").await;
    let _watcher = app.open("/v1/watch?blog_id=42", &[]).await;
    let count =
        json!({"room": "blog:42", "blog_id": "42", "viewers": 2, "connections": 3, "members": 1});
    let by_blog = app.get("/v1/blogs/42/count", &[]).await;
    assert_eq!(by_blog.header("content-type"), "application/json");
    assert_eq!(by_blog.json().await, count);
    assert_eq!(app.get("/v1/rooms/blog:42", &[]).await.json().await, count);
}

#[tokio::test(start_paused = true)]
async fn a_blog_that_nobody_reads_counts_zero() {
    let app = TestApp::new();
    for path in [
        "/v1/blogs/never-heard-of/count",
        "/v1/rooms/blog:never-heard-of",
    ] {
        let answer = app.get(path, &[]).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(numbers(&answer.json().await), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn names_in_the_path_are_percent_decoded() {
    let app = TestApp::new();
    let _viewer = app.open("/v1/stream?blog_id=a%3Ab%7Cc", &[]).await;
    let count = app.get("/v1/blogs/a%3Ab%7Cc/count", &[]).await.json().await;
    assert_eq!(count["blog_id"], json!("a:b|c"));
    assert_eq!(numbers(&count), (1, 1, 0));
    let count = app.get("/v1/rooms/blog%3Aa%3Ab%7cc", &[]).await;
    assert_eq!(numbers(&count.json().await), (1, 1, 0));
}

// ---- caching ----

const CACHEABLE: [&str; 3] = [
    "/v1/blogs/42/count",
    "/v1/rooms/blog:42",
    "/v1/counts?blog_id=42&blog_id=43",
];

#[tokio::test(start_paused = true)]
async fn a_count_that_the_client_has_is_answered_with_304() {
    let app = TestApp::new();
    let _viewer = app.join("42").await;
    for path in CACHEABLE {
        let fresh = app.get(path, &[]).await;
        assert_eq!(fresh.status, StatusCode::OK);
        let tag = fresh.header("etag").to_owned();
        assert!(tag.starts_with('"') && tag.ends_with('"') && tag.len() > 2);
        for known in [
            tag.clone(),
            format!("W/{tag}"),
            format!("\"other\", {tag}"),
            "*".to_owned(),
        ] {
            let same = app.get(path, &[("if-none-match", &known)]).await;
            assert_eq!(same.status, StatusCode::NOT_MODIFIED, "{known}");
            assert_eq!(same.header("etag"), tag);
            assert_eq!(same.header("cache-control"), "public, max-age=1");
            assert_eq!(same.text().await, "");
        }
        let other = app.get(path, &[("if-none-match", "\"other\"")]).await;
        assert_eq!(other.status, StatusCode::OK);
    }
}

#[tokio::test(start_paused = true)]
async fn the_entity_tag_changes_with_the_numbers_and_comes_back_with_them() {
    let app = TestApp::new();
    let path = "/v1/blogs/42/count";
    let none = app.get(path, &[]).await.header("etag").to_owned();
    let viewer = app.join("42").await;
    let one = app.get(path, &[("if-none-match", &none)]).await;
    assert_eq!(one.status, StatusCode::OK);
    assert_ne!(one.header("etag"), none);
    drop(viewer);
    assert_eq!(app.get(path, &[]).await.header("etag"), none);
}

#[tokio::test(start_paused = true)]
async fn what_anybody_may_read_any_cache_may_keep_for_a_second() {
    let app = TestApp::new();
    let reader = bearer(&token("7", "read"));
    for path in CACHEABLE {
        for headers in [&[][..], &[("authorization", reader.as_str())][..]] {
            let answer = app.get(path, headers).await;
            assert_eq!(answer.header("cache-control"), "public, max-age=1");
        }
    }
}

fn assert_private(answer: &Answer) {
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.header("cache-control"), "private, no-cache");
    assert!(!answer.header("etag").is_empty());
    let vary = answer.header("vary").to_ascii_lowercase();
    assert!(
        vary.contains("authorization") && vary.contains("cookie"),
        "{vary}"
    );
}

#[tokio::test(start_paused = true)]
async fn what_needs_a_token_no_shared_cache_may_keep() {
    let app = TestApp::with(&[("anonymous_rooms", "blog:4*")]);
    let reader = bearer(&token("7", "read"));
    let headers = [("authorization", reader.as_str())];
    for path in [
        "/v1/blogs/5/count",
        "/v1/rooms/match:1",
        "/v1/counts?blog_id=4&blog_id=5",
    ] {
        assert_private(&app.get(path, &headers).await);
    }
    let open = app.get("/v1/counts?blog_id=4&blog_id=42", &headers).await;
    assert_eq!(open.header("cache-control"), "public, max-age=1");
}

// ---- many counts ----

#[tokio::test(start_paused = true)]
async fn many_counts_come_in_the_order_asked_however_the_list_is_written() {
    let app = TestApp::new();
    let _viewers = occupy(&app, &[("1", 1), ("2", 2)]).await;
    for query in [
        "blog_id=3&blog_id=1&blog_id=2",
        "blog_id=3,1,2",
        "blog_id=3&blog_id=1,2&blog_id=3",
        "blog_id[]=3&blog_id[]=1&blog_id[]=2",
        "blog_id%5B0%5D=3&blog_id%5B1%5D=1&blog_id%5B2%5D=2",
        "room=blog:3&blog_id=1&room=blog:2&unknown=1",
        "room=blog:3,blog:1,blog:2",
    ] {
        let answer = app.get(&format!("/v1/counts?{query}"), &[]).await;
        assert_eq!(
            answer.json().await,
            json!({"counts": [
                {"room": "blog:3", "blog_id": "3", "viewers": 0, "connections": 0, "members": 0},
                {"room": "blog:1", "blog_id": "1", "viewers": 1, "connections": 1, "members": 0},
                {"room": "blog:2", "blog_id": "2", "viewers": 2, "connections": 2, "members": 0},
            ]}),
            "{query}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_thousand_counts_may_be_asked_for_by_post() {
    let app = TestApp::new();
    let _viewers = occupy(&app, &[("7", 1)]).await;
    let rooms: Vec<String> = (0..1_000).rev().map(|n| format!("blog:{n}")).collect();
    let answer = app.post("/v1/counts", &[], json!({"rooms": rooms})).await;
    assert_eq!(answer.status, StatusCode::OK);
    let counts = answer.json().await;
    assert_eq!(rooms_of(&counts["counts"]), rooms);
    assert_eq!(numbers(&counts["counts"][992]), (1, 1, 0));
    let one_more: Vec<String> = (0..=1_000).map(|n| format!("blog:{n}")).collect();
    app.post("/v1/counts", &[], json!({"rooms": one_more}))
        .await
        .expect_problem(400, "too_many_rooms")
        .await;
}

// ---- top rooms ----

#[tokio::test(start_paused = true)]
async fn the_rooms_with_most_viewers_come_first_and_equals_by_name() {
    let app = TestApp::new();
    let blogs = [("a", 1), ("b", 3), ("c", 2), ("d", 3), ("e", 1)];
    let _viewers = occupy(&app, &blogs).await;
    for path in ["/v1/rooms", "/v1/rooms?sort=-viewers", "/v1/rooms?limit=5"] {
        let list = app.get(path, &[]).await.json().await;
        assert_eq!(
            rooms_of(&list["rooms"]),
            ["blog:b", "blog:d", "blog:c", "blog:a", "blog:e"]
        );
        assert_eq!(list["next_cursor"], Value::Null);
        assert_eq!(numbers(&list["rooms"][0]), (3, 3, 0));
    }
    let top = app.get("/v1/rooms?limit=2", &[]).await.json().await;
    assert_eq!(rooms_of(&top["rooms"]), ["blog:b", "blog:d"]);
    assert!(top["next_cursor"].is_string());
}

#[tokio::test(start_paused = true)]
async fn rooms_are_sorted_by_viewers_and_not_by_connections() {
    let app = TestApp::new();
    let mut tabs = Vec::new();
    for _ in 0..3 {
        tabs.push(app.open("/v1/stream?blog_id=tabs&viewer=anna", &[]).await);
    }
    let _viewers = occupy(&app, &[("viewers", 2)]).await;
    let list = app.get("/v1/rooms", &[]).await.json().await;
    assert_eq!(rooms_of(&list["rooms"]), ["blog:viewers", "blog:tabs"]);
}

#[tokio::test(start_paused = true)]
async fn rooms_can_be_sorted_by_name() {
    let app = TestApp::new();
    let _viewers = occupy(&app, &[("c", 1), ("a", 1), ("b", 2)]).await;
    let list = app.get("/v1/rooms?sort=room", &[]).await.json().await;
    assert_eq!(rooms_of(&list["rooms"]), ["blog:a", "blog:b", "blog:c"]);
}

#[tokio::test(start_paused = true)]
async fn a_prefix_narrows_the_list_of_rooms() {
    let app = TestApp::with(&[("anonymous_rooms", "*")]);
    let path = "/v1/stream?room=blog:1,blog:12,blog:2,match:1";
    let _viewer = app.open(path, &[]).await;
    for (prefix, rooms) in [
        ("", &["blog:1", "blog:12", "blog:2", "match:1"][..]),
        ("blog:", &["blog:1", "blog:12", "blog:2"]),
        ("blog:1", &["blog:1", "blog:12"]),
        ("m", &["match:1"]),
        ("lesson:", &[]),
    ] {
        let path = format!("/v1/rooms?prefix={prefix}");
        let list = app.get(&path, &[]).await.json().await;
        assert_eq!(rooms_of(&list["rooms"]), rooms, "{prefix}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_occupied_rooms_are_listed() {
    let app = TestApp::new();
    let viewer = app.join("1").await;
    let _watcher = app.open("/v1/watch?blog_id=1,2", &[]).await;
    app.publish("rooms/blog:3", json!({"data": 1})).await;
    let list = app.read("/v1/rooms").await;
    assert_eq!(rooms_of(&list["rooms"]), ["blog:1"]);
    drop(viewer);
    let list = app.read("/v1/rooms").await;
    assert_eq!(list, json!({"rooms": [], "next_cursor": null}));
}

#[tokio::test(start_paused = true)]
async fn personal_rooms_are_listed_only_where_the_prefix_asks_for_them() {
    let app = TestApp::new();
    let _seven = app.join_as("1", &token("7", "")).await;
    let _eight = app.join_as("1", &token("8", "")).await;
    for path in ["/v1/rooms", "/v1/rooms?prefix=", "/v1/rooms?prefix=blog:"] {
        assert_eq!(
            rooms_of(&app.read(path).await["rooms"]),
            ["blog:1"],
            "{path}"
        );
    }
    let personal = app.read("/v1/rooms?prefix=user:").await;
    assert_eq!(rooms_of(&personal["rooms"]), ["user:7", "user:8"]);
    let one = app.read("/v1/rooms?prefix=user:8").await;
    assert_eq!(rooms_of(&one["rooms"]), ["user:8"]);
}

#[tokio::test(start_paused = true)]
async fn a_list_holds_only_the_rooms_that_the_caller_may_read() {
    let app = TestApp::new();
    let path = "/v1/stream?room=match:1,match:2&blog_id=1";
    let manager = token_for("9", "", Some(&["*"]), Duration::from_secs(600));
    let _viewer = app
        .open(path, &[("authorization", &bearer(&manager))])
        .await;
    let anonymous = app.get("/v1/rooms", &[]).await.json().await;
    assert_eq!(rooms_of(&anonymous["rooms"]), ["blog:1"]);
    let fan = token_for("7", "", Some(&["match:2"]), Duration::from_secs(600));
    let own = app
        .get("/v1/rooms", &[("authorization", &bearer(&fan))])
        .await;
    assert_eq!(rooms_of(&own.json().await["rooms"]), ["blog:1", "match:2"]);
    assert_eq!(rooms_of(&app.read("/v1/rooms").await["rooms"]).len(), 3);
}

/// Follows the cursors of a list to its end.
async fn all_pages(app: &TestApp, path: &str, list: &str) -> Vec<Value> {
    let mut found = Vec::new();
    let mut next = path.to_owned();
    loop {
        let page = app.read(&next).await;
        let entries = page[list].as_array().expect("a list");
        assert!(!entries.is_empty(), "no page is empty but an empty list's");
        found.extend(entries.iter().cloned());
        assert!(found.len() <= 100, "the pages come to an end");
        let Some(cursor) = page["next_cursor"].as_str() else {
            return found;
        };
        let cursor: String = form_urlencoded::byte_serialize(cursor.as_bytes()).collect();
        next = format!("{path}&cursor={cursor}");
    }
}

#[tokio::test(start_paused = true)]
async fn no_room_is_missing_from_the_pages_or_on_two_of_them() {
    let app = TestApp::new();
    let names = ["a+b", "a|b", "a:b", "a@b", "a~b", "1", "10", "2", "z", "a"];
    let blogs: Vec<(&str, usize)> = names
        .iter()
        .copied()
        .zip([1, 2, 3, 1, 2, 3, 1, 2, 3, 1])
        .collect();
    let mut viewers = Vec::new();
    for (blog_id, number) in &blogs {
        let blog_id: String = form_urlencoded::byte_serialize(blog_id.as_bytes()).collect();
        viewers.extend(occupy(&app, &[(&blog_id, *number)]).await);
    }
    for sort in ["-viewers", "room"] {
        let whole = app.read(&format!("/v1/rooms?sort={sort}")).await;
        let whole = whole["rooms"].as_array().expect("a list");
        assert_eq!(whole.len(), names.len());
        for limit in [1, 2, 3, 5, 9, 10, 11] {
            let path = format!("/v1/rooms?sort={sort}&limit={limit}");
            assert_eq!(&all_pages(&app, &path, "rooms").await, whole, "{path}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_page_has_a_hundred_rooms_unless_asked_otherwise() {
    let app = TestApp::with(&[("max_rooms_per_connection", "16")]);
    let mut viewers = Vec::new();
    for first in (0..112).step_by(16) {
        let rooms: Vec<String> = (first..first + 16).map(|n| format!("blog:{n}")).collect();
        viewers.push(app.join_by_post(json!({"rooms": rooms}), &[]).await);
    }
    for (path, rooms) in [
        ("/v1/rooms", 100),
        ("/v1/rooms?limit=1000", 112),
        ("/v1/rooms?limit=112", 112),
    ] {
        let list = app.read(path).await;
        assert_eq!(rooms_of(&list["rooms"]).len(), rooms);
        assert_eq!(list["next_cursor"].is_string(), rooms == 100);
    }
}

// ---- the whole service ----

#[tokio::test(start_paused = true)]
async fn the_statistics_count_viewers_once_over_all_rooms_and_streams_that_watch_too() {
    let app = TestApp::with(&[("node_name", "north")]);
    let reader = token("7", "");
    let _member = [
        app.join_as("1", &reader).await,
        app.join_as("2", &reader).await,
    ];
    let _chosen = [
        app.open("/v1/stream?blog_id=1&viewer=anna", &[]).await,
        app.open("/v1/stream?blog_id=3&viewer=anna", &[]).await,
    ];
    let _nameless = app.open("/v1/stream?blog_id=1,2", &[]).await;
    let _watcher = app.open("/v1/watch?blog_id=1,9", &[]).await;
    // What a node says of itself it says again every half second.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut stats = app.read("/v1/stats").await;
    let nodes = stats["nodes"].take();
    let mut on_nodes = 0;
    for node in nodes.as_array().expect("a list") {
        assert_eq!(node["name"], "north");
        let since = node["since"].as_str().expect("a time");
        assert!(
            since.ends_with('Z') && humantime::parse_rfc3339(since).is_ok(),
            "{since}"
        );
        let lag = node["lag_ms"].as_u64().expect("milliseconds");
        assert!(lag < 1_000, "{lag}");
        on_nodes += node["connections"].as_u64().expect("a number");
    }
    assert_eq!(
        (on_nodes, nodes.as_array().map(Vec::len)),
        (6, Some(app.nodes()))
    );
    assert_eq!(
        stats,
        json!({"viewers": 3, "connections": 6, "members": 1, "rooms": 3, "nodes": null})
    );
}

#[tokio::test(start_paused = true)]
async fn the_statistics_of_an_empty_service_are_zero() {
    let app = TestApp::new();
    drop(app.join_as("1", &token("7", "")).await);
    drop(app.open("/v1/watch?blog_id=1", &[]).await);
    let stats = app.read("/v1/stats").await;
    for number in ["viewers", "connections", "members", "rooms"] {
        assert_eq!(stats[number], json!(0), "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_statistics_need_the_scope_read() {
    let app = TestApp::new();
    app.get("/v1/stats", &[])
        .await
        .expect_problem(401, "token_required")
        .await;
    let reader = bearer(&token("7", "publish manage"));
    app.get("/v1/stats", &[("authorization", &reader)])
        .await
        .expect_problem(403, "insufficient_scope")
        .await;
}
