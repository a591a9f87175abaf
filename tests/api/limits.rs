//! Limits: how many streams an address, a member and a node may hold, and how many rooms one
//! connection.

use serde_json::{Value, json};

use crate::{
    helpers::{Answer, TestApp, Viewer, bearer, from_address, token},
    server::request,
};

/// Opens a stream of blog 1 from an address, with these headers.
async fn open_from(app: &TestApp, address: &str, headers: &[(&str, &str)]) -> Answer {
    get_from(app, address, "/v1/stream?blog_id=1", headers).await
}

async fn get_from(app: &TestApp, address: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let request = request("GET", path, headers, "");
    app.send(from_address(request, address)).await
}

async fn post_from(app: &TestApp, address: &str, body: Value, headers: &[(&str, &str)]) -> Answer {
    let mut headers = headers.to_vec();
    headers.push(("content-type", "application/json"));
    let request = request("POST", "/v1/join", &headers, body.to_string());
    app.send(from_address(request, address)).await
}

/// Checks that this is a stream, and reads up to its first count.
async fn expect_admitted(answer: Answer) -> Viewer {
    let mut viewer = answer.expect_stream();
    viewer.connected = viewer.next_named("connected").await.data;
    viewer.next_count().await;
    viewer
}

/// Checks that a stream is refused in the way that an `EventSource` recovers from.
async fn expect_soft_refusal(answer: Answer) {
    let mut stream = answer.expect_stream();
    let retry = stream.next().await.retry.expect("first it is told to wait");
    assert!((5_000..=30_000).contains(&retry), "{retry} ms");
    let closed = stream.next().await;
    assert_eq!(
        (closed.name.as_str(), closed.data),
        ("closed", json!({"reason": "overloaded"}))
    );
    assert_eq!(stream.try_next().await, None);
}

/// Checks that a join is refused, and for how long.
async fn expect_hard_refusal(answer: Answer, status: u16, code: &str) {
    let wait: u64 = answer.header("retry-after").parse().expect("seconds");
    assert!((5..=30).contains(&wait), "{wait} s");
    answer.expect_problem(status, code).await;
}

/// Checks that two requests count as from one address: the second is refused.
async fn expect_same_address(settings: &[(&str, &str)], first: From<'_>, second: From<'_>) {
    let mut settings = settings.to_vec();
    settings.push(("max_connections_per_ip", "1"));
    let app = TestApp::of_one_node(&settings);
    let _held = expect_admitted(open_from(&app, first.0, first.1).await).await;
    expect_soft_refusal(open_from(&app, second.0, second.1).await).await;
}

/// Checks that two requests count as from two addresses, or from none that is limited.
async fn expect_apart(settings: &[(&str, &str)], first: From<'_>, second: From<'_>) {
    let mut settings = settings.to_vec();
    settings.push(("max_connections_per_ip", "1"));
    let app = TestApp::of_one_node(&settings);
    let _held = expect_admitted(open_from(&app, first.0, first.1).await).await;
    expect_admitted(open_from(&app, second.0, second.1).await).await;
}

/// Where a request comes from: the other end of the socket, and headers.
struct From<'a>(&'a str, &'a [(&'a str, &'a str)]);

// ---- addresses ----

#[tokio::test(start_paused = true)]
async fn an_ipv4_address_at_its_limit_is_refused_and_another_is_not() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "2")]);
    let _first = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    let _second = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    expect_soft_refusal(open_from(&app, "192.0.2.1", &[]).await).await;
    expect_admitted(open_from(&app, "192.0.2.2", &[]).await).await;
}

#[tokio::test(start_paused = true)]
async fn an_ipv6_network_of_64_bits_is_one_address() {
    expect_same_address(
        &[],
        From("2001:db8:1:2::1", &[]),
        From("2001:db8:1:2:ffff::9", &[]),
    )
    .await;
    expect_apart(
        &[],
        From("2001:db8:1:2::1", &[]),
        From("2001:db8:1:3::1", &[]),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn an_ipv4_address_written_as_ipv6_is_that_ipv4_address() {
    expect_same_address(&[], From("192.0.2.1", &[]), From("::ffff:192.0.2.1", &[])).await;
}

#[tokio::test(start_paused = true)]
async fn this_machine_has_no_limit_per_address() {
    for address in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        for settings in [&[][..], &[("trusted_proxies", "")]] {
            expect_apart(settings, From(address, &[]), From(address, &[])).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_trusted_proxy_itself_has_no_limit_per_address() {
    let trusted = [("trusted_proxies", "10.0.0.0/8")];
    expect_apart(&trusted, From("10.1.2.3", &[]), From("10.1.2.3", &[])).await;
}

#[tokio::test(start_paused = true)]
async fn what_an_untrusted_peer_says_of_itself_is_not_believed() {
    for said in ["198.51.100.1", "127.0.0.1", "10.0.0.1", "::1"] {
        expect_same_address(
            &[],
            From("192.0.2.1", &[("x-forwarded-for", said)]),
            From("192.0.2.1", &[("x-forwarded-for", "198.51.100.2")]),
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_trusted_proxy_tells_its_clients_apart() {
    expect_apart(
        &[],
        From("127.0.0.1", &[("x-forwarded-for", "198.51.100.1")]),
        From("127.0.0.1", &[("x-forwarded-for", "198.51.100.2")]),
    )
    .await;
    expect_same_address(
        &[],
        From("127.0.0.1", &[("x-forwarded-for", "198.51.100.1")]),
        From("127.0.0.1", &[("x-forwarded-for", "198.51.100.1:4711")]),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_a_client_writes_into_the_header_is_not_believed() {
    // A proxy appends what it saw to what the client sent.
    for forged in ["1.1.1.1", "127.0.0.1", "nonsense", "10.0.0.1, 127.0.0.1"] {
        let header = format!("{forged}, 198.51.100.1");
        expect_same_address(
            &[("trusted_proxies", "loopback,10.0.0.0/8")],
            From("127.0.0.1", &[("x-forwarded-for", "198.51.100.1")]),
            From("127.0.0.1", &[("x-forwarded-for", &header)]),
        )
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn the_header_is_read_from_the_right_through_all_trusted_proxies() {
    let trusted = [("trusted_proxies", "loopback,10.0.0.0/8")];
    let hops = [("x-forwarded-for", "203.0.113.9, 198.51.100.1, 10.0.0.7")];
    let lines = [
        ("x-forwarded-for", "203.0.113.8, 198.51.100.1"),
        ("x-forwarded-for", "10.0.0.7"),
    ];
    expect_same_address(
        &trusted,
        From("127.0.0.1", &hops),
        From("198.51.100.1", &[]),
    )
    .await;
    expect_same_address(
        &trusted,
        From("127.0.0.1", &hops),
        From("127.0.0.1", &lines),
    )
    .await;
}

#[tokio::test(start_paused = true)]
async fn forwarded_is_believed_where_it_is_the_configured_header_and_no_other() {
    let setting = [("forwarded_header", "Forwarded")];
    let client = [(
        "forwarded",
        "for=203.0.113.9, For=\"[2001:db8::1]:4711\";proto=https",
    )];
    let neighbour = [("forwarded", "for=\"[2001:db8::2]\"")];
    expect_same_address(
        &setting,
        From("127.0.0.1", &client),
        From("127.0.0.1", &neighbour),
    )
    .await;
    let other = [("x-forwarded-for", "198.51.100.1")];
    expect_apart(
        &setting,
        From("127.0.0.1", &other),
        From("127.0.0.1", &other),
    )
    .await;
    // And where it is not configured it is nothing.
    expect_apart(&[], From("127.0.0.1", &client), From("127.0.0.1", &client)).await;
}

#[tokio::test(start_paused = true)]
async fn an_address_at_its_limit_is_refused_a_join_by_post_with_429() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    let _held = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    for accept in ["text/event-stream", "application/json"] {
        let answer = post_from(
            &app,
            "192.0.2.1",
            json!({"blog_id": 1}),
            &[("accept", accept)],
        )
        .await;
        expect_hard_refusal(answer, 429, "too_many_connections").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_ends_gives_its_place_back() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    for _ in 0..5 {
        let viewer = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
        drop(viewer);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_was_never_read_gives_its_place_back() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    let unread = open_from(&app, "192.0.2.1", &[]).await;
    expect_soft_refusal(open_from(&app, "192.0.2.1", &[]).await).await;
    drop(unread);
    expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
}

#[tokio::test(start_paused = true)]
async fn neither_a_ticket_nor_a_refusal_nor_a_head_request_holds_a_place() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    for _ in 0..3 {
        let joined = post_from(&app, "192.0.2.1", json!({"blog_id": 1}), &[]).await;
        assert_eq!(joined.status, 201);
        let forbidden = get_from(&app, "192.0.2.1", "/v1/stream?room=match:1", &[]).await;
        forbidden.expect_problem(401, "token_required").await;
        let head = request("HEAD", "/v1/stream?blog_id=1", &[], "");
        let head = app.send(from_address(head, "192.0.2.1")).await;
        assert_eq!(head.text().await, "");
    }
    expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
}

#[tokio::test(start_paused = true)]
async fn watching_takes_a_place_too() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    let watch = "/v1/watch?blog_id=1";
    let _held = expect_admitted(get_from(&app, "192.0.2.1", watch, &[]).await).await;
    expect_soft_refusal(get_from(&app, "192.0.2.1", watch, &[]).await).await;
}

#[tokio::test(start_paused = true)]
async fn whoever_is_refused_is_not_counted() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    let _held = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    let before = app.hub().totals();
    for _ in 0..10 {
        open_from(&app, "192.0.2.1", &[]).await.text().await;
    }
    assert_eq!(app.hub().totals(), before);
    assert_eq!(app.count("1").await, (1, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_returning_ticket_is_let_in_at_the_limit_of_its_address() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    let older = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    let path = format!("/v1/stream?ticket={}", older.ticket());
    let newer = expect_admitted(get_from(&app, "192.0.2.1", &path, &[]).await).await;
    assert_eq!(older.reason().await, "replaced");
    // It holds the one place now.
    expect_soft_refusal(open_from(&app, "192.0.2.1", &[]).await).await;
    drop(newer);
    expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
}

#[tokio::test(start_paused = true)]
async fn a_ticket_whose_stream_is_gone_has_no_right_of_return() {
    let app = TestApp::of_one_node(&[("max_connections_per_ip", "1")]);
    let gone = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    let path = format!("/v1/stream?ticket={}", gone.ticket());
    drop(gone);
    let _held = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    expect_soft_refusal(get_from(&app, "192.0.2.1", &path, &[]).await).await;
}

// ---- members ----

#[tokio::test(start_paused = true)]
async fn a_member_at_the_limit_is_refused_from_wherever() {
    let app = TestApp::of_one_node(&[("max_connections_per_member", "2")]);
    let seven = bearer(&token("7", ""));
    let headers = [("authorization", seven.as_str())];
    let _first = expect_admitted(open_from(&app, "192.0.2.1", &headers).await).await;
    let _second = expect_admitted(open_from(&app, "192.0.2.2", &headers).await).await;
    expect_soft_refusal(open_from(&app, "192.0.2.3", &headers).await).await;
    expect_soft_refusal(open_from(&app, "127.0.0.1", &headers).await).await;
    let answer = post_from(&app, "192.0.2.3", json!({"blog_id": 1}), &headers).await;
    expect_hard_refusal(answer, 429, "too_many_connections").await;
}

#[tokio::test(start_paused = true)]
async fn a_members_limit_is_nobody_elses() {
    let app = TestApp::of_one_node(&[("max_connections_per_member", "1")]);
    let seven = bearer(&token("7", ""));
    let eight = bearer(&token("8", ""));
    let _seven =
        expect_admitted(open_from(&app, "192.0.2.1", &[("authorization", &seven)]).await).await;
    let _eight =
        expect_admitted(open_from(&app, "192.0.2.1", &[("authorization", &eight)]).await).await;
    // A viewer's chosen name is no member, and has no limit of its own.
    let path = "/v1/stream?blog_id=1&viewer=7";
    let _chosen = expect_admitted(get_from(&app, "192.0.2.1", path, &[]).await).await;
    expect_admitted(get_from(&app, "192.0.2.1", path, &[]).await).await;
}

#[tokio::test(start_paused = true)]
async fn a_returning_ticket_is_let_in_at_the_limit_of_its_member() {
    let app = TestApp::of_one_node(&[("max_connections_per_member", "1")]);
    let older = app.join_as("1", &token("7", "")).await;
    let newer = app
        .open(&format!("/v1/stream?ticket={}", older.ticket()), &[])
        .await;
    assert_eq!(older.reason().await, "replaced");
    drop(newer);
    app.join_as("1", &token("7", "")).await;
}

// ---- the node ----

#[tokio::test(start_paused = true)]
async fn a_full_node_refuses_everybody() {
    let app = TestApp::of_one_node(&[("max_connections", "2")]);
    let _first = app.join("1").await;
    let second = app.join("2").await;
    expect_soft_refusal(open_from(&app, "127.0.0.1", &[]).await).await;
    expect_soft_refusal(get_from(&app, "127.0.0.1", "/v1/watch?blog_id=1", &[]).await).await;
    let mut headers = vec![("accept", "text/event-stream")];
    for _ in 0..2 {
        let answer = post_from(&app, "192.0.2.1", json!({"blog_id": 1}), &headers).await;
        expect_hard_refusal(answer, 503, "overloaded").await;
        headers.clear();
    }
    drop(second);
    app.join("1").await;
}

#[tokio::test(start_paused = true)]
async fn waits_after_a_refusal_differ() {
    let app = TestApp::of_one_node(&[("max_connections", "1")]);
    let _held = app.join("1").await;
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut stream = open_from(&app, "127.0.0.1", &[]).await.stream();
        waits.insert(stream.next().await.retry.expect("it is told to wait"));
    }
    assert!(waits.len() > 10, "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn metrics_tell_how_often_each_limit_refused() {
    let app = TestApp::of_one_node(&[("max_connections", "2"), ("max_connections_per_ip", "1")]);
    let _first = expect_admitted(open_from(&app, "192.0.2.1", &[]).await).await;
    open_from(&app, "192.0.2.1", &[]).await;
    let _second = app.join("1").await;
    for _ in 0..2 {
        open_from(&app, "192.0.2.3", &[]).await;
    }
    let metrics = app.get("/metrics", &[]).await.text().await;
    for line in [
        "livecount_refused_total{limit=\"node\"} 2\n",
        "livecount_refused_total{limit=\"address\"} 1\n",
        "livecount_refused_total{limit=\"member\"} 0\n",
    ] {
        assert!(metrics.contains(line), "{line} is not in {metrics}");
    }
}

// ---- rooms of one connection ----

/// `count` rooms' names, blogs that anybody may join.
fn blogs(count: usize) -> Vec<String> {
    (1..=count).map(|blog| format!("blog:{blog}")).collect()
}

#[tokio::test(start_paused = true)]
async fn a_connection_joins_16_rooms_and_not_17() {
    let app = TestApp::new();
    let joined = app.post("/v1/join", &[], json!({"rooms": blogs(16)})).await;
    assert_eq!(joined.status, 201);
    let refused = app.post("/v1/join", &[], json!({"rooms": blogs(17)})).await;
    refused.expect_problem(400, "too_many_rooms").await;
    let query: Vec<String> = (1..=17).map(|blog| format!("blog_id={blog}")).collect();
    let refused = app
        .get(&format!("/v1/stream?{}", query.join("&")), &[])
        .await;
    refused.expect_problem(400, "too_many_rooms").await;
    assert!(app.totals().iter().all(|node| node.turnover.opened == 0));
}

#[tokio::test(start_paused = true)]
async fn the_own_personal_room_and_repetitions_do_not_count_as_rooms() {
    let app = TestApp::with(&[("max_rooms_per_connection", "2")]);
    let seven = bearer(&token("7", ""));
    let rooms = json!({"rooms": ["blog:1", "user:7", "blog:2", "blog:1"]});
    let viewer = app.join_by_post(rooms, &[("authorization", &seven)]).await;
    assert_eq!(
        viewer.connected["rooms"],
        json!(["blog:1", "blog:2", "user:7"])
    );
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_joins_no_more_rooms_than_allowed() {
    let app = TestApp::with(&[("max_rooms_per_connection", "2")]);
    let viewer = app.join("1").await;
    let ticket = bearer(viewer.ticket());
    let headers = [("authorization", ticket.as_str())];
    let path = |call: &str| format!("/v1/connections/{}/{call}", viewer.connection());
    let refused = app
        .post(
            &path("join"),
            &headers,
            json!({"rooms": ["blog:2", "blog:3"]}),
        )
        .await;
    refused.expect_problem(400, "too_many_rooms").await;
    assert_eq!(app.count("2").await, (0, 0, 0));
    let joined = app
        .post(&path("join"), &headers, json!({"blog_id": 2}))
        .await;
    assert_eq!(joined.json().await["rooms"], json!(["blog:1", "blog:2"]));
    app.post(&path("leave"), &headers, json!({"blog_id": 1}))
        .await;
    let joined = app
        .post(&path("join"), &headers, json!({"blog_id": 3}))
        .await;
    assert_eq!(joined.json().await["rooms"], json!(["blog:2", "blog:3"]));
}

#[tokio::test(start_paused = true)]
async fn a_connection_watches_100_rooms_and_not_101() {
    let app = TestApp::new();
    let joined = app
        .post("/v1/join", &[], json!({"watch": blogs(100)}))
        .await;
    assert_eq!(joined.status, 201);
    let refused = app
        .post("/v1/join", &[], json!({"watch": blogs(101)}))
        .await;
    refused.expect_problem(400, "too_many_rooms").await;
}

#[tokio::test(start_paused = true)]
async fn an_open_stream_watches_no_more_than_100_rooms() {
    let app = TestApp::new();
    let viewer = app.join_by_post(json!({"watch": blogs(100)}), &[]).await;
    let ticket = bearer(viewer.ticket());
    let path = format!("/v1/connections/{}/watch", viewer.connection());
    let headers = [("authorization", ticket.as_str())];
    let refused = app.post(&path, &headers, json!({"blog_id": 101})).await;
    refused.expect_problem(400, "too_many_rooms").await;
    // What is watched already is no further room.
    let same = app.post(&path, &headers, json!({"blog_id": 100})).await;
    assert_eq!(same.status, 200);
}
