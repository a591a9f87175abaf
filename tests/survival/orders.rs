//! What an open stream is told of itself, in which order, and how it ends.

use std::{thread, time::Duration};

use serde_json::{Value, json};

use crate::helpers::{
    PATIENCE, Path, Reader, Service, numbers, on_both_paths, token, token_for, until,
};

on_both_paths!(
    the_first_words_come_in_the_contracts_order,
    a_room_joined_on_the_open_stream_is_told_and_counted,
    a_room_left_is_told_and_silent_from_then_on,
    a_watched_room_is_told_and_not_counted,
    a_joined_room_that_was_watched_gets_messages,
    a_kick_says_so_and_ends_the_stream_properly,
    a_goodbye_ends_the_stream_at_once,
    the_newer_stream_of_a_connection_takes_the_older_ones_place,
    of_many_streams_of_one_connection_at_once_one_stays,
    a_stream_ends_with_its_token_and_says_so_before,
    a_renewed_stream_outlives_its_first_token,
    a_quiet_stream_is_pinged_every_heartbeat,
    messages_to_two_rooms_and_a_user_come_in_the_order_of_publication,
    a_reader_who_comes_back_gets_what_it_missed_once_and_in_order,
    a_reader_who_comes_back_from_another_log_is_told_so,
    a_drain_ends_every_stream_with_its_reason,
);

fn first_count(reader: &mut Reader, room: &str) -> (u64, u64, u64) {
    let count = reader.next_named("count");
    assert_eq!(count.room(), room);
    numbers(&count.data)
}

/// Nothing but pings and counts of a room comes in half a second.
fn expect_nothing_of(reader: &mut Reader, room: &str) {
    for event in reader.rest(Duration::from_millis(500)) {
        assert_ne!(event.room(), room, "{event:?}");
    }
}

fn the_first_words_come_in_the_contracts_order(path: Path) {
    let service = Service::start(path);
    let bearer = format!("Bearer {}", token("7", ""));
    let mut reader = service.client().stream(
        "/v1/stream?blog_id=b&blog_id=a&blog_id=c",
        &[("Authorization", &bearer)],
    );
    let rooms = json!(["blog:b", "blog:a", "blog:c", "user:7"]);
    assert_eq!(reader.connected["rooms"], rooms);
    for room in ["blog:b", "blog:a", "blog:c"] {
        let count = reader.next();
        assert_eq!((count.name.as_str(), count.room()), ("count", room));
        assert_eq!(numbers(&count.data), (1, 1, 1));
    }
    for expected in [
        "content-type: text/event-stream\r\n",
        "cache-control: private, no-store, no-transform\r\n",
        "x-accel-buffering: no\r\n",
        "referrer-policy: no-referrer\r\n",
        "access-control-allow-origin: *\r\n",
    ] {
        assert!(reader.head.contains(expected), "{}", reader.head);
    }
    assert!(!reader.head.contains("content-length"), "{}", reader.head);
}

fn a_room_joined_on_the_open_stream_is_told_and_counted(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut other = client.join("b");
    let mut reader = client.join("a");
    first_count(&mut reader, "blog:a");
    let (status, answer) = reader.change(client, "join", &["blog:b"]);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["rooms"], json!(["blog:a", "blog:b"]));
    let joined = reader.next();
    assert_eq!((joined.name.as_str(), joined.room()), ("joined", "blog:b"));
    assert_eq!(first_count(&mut reader, "blog:b"), (2, 2, 0));
    other.wait_for_count("blog:b", (2, 2, 0));
    client.publish("blog:b", &json!("hello"));
    assert_eq!(reader.next_named("message").data["data"], "hello");
    drop(reader);
    other.wait_for_count("blog:b", (1, 1, 0));
}

fn a_room_left_is_told_and_silent_from_then_on(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut other = client.join("a");
    let mut reader = client.stream("/v1/stream?blog_id=a&blog_id=b", &[]);
    other.wait_for_count("blog:a", (2, 2, 0));
    client.publish("blog:a", &json!("before"));
    assert_eq!(reader.change(client, "leave", &["blog:a"]).0, 200);
    client.publish("blog:a", &json!("after"));
    assert_eq!(reader.next_named("message").data["data"], "before");
    assert_eq!(reader.next_named("left").room(), "blog:a");
    other.wait_for_count("blog:a", (1, 1, 0));
    expect_nothing_of(&mut reader, "blog:a");
    // The last room too: the stream stays, for nobody.
    assert_eq!(reader.change(client, "leave", &["blog:b"]).0, 200);
    assert_eq!(reader.next_named("left").room(), "blog:b");
    assert_eq!(service.count("b"), (0, 0, 0));
    assert_eq!(reader.change(client, "join", &["blog:b"]).0, 200);
    assert_eq!(reader.next_named("joined").room(), "blog:b");
    assert_eq!(first_count(&mut reader, "blog:b"), (1, 1, 0));
}

fn a_watched_room_is_told_and_not_counted(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = client.stream("/v1/watch?blog_id=a", &[]);
    assert_eq!(first_count(&mut reader, "blog:a"), (0, 0, 0));
    assert_eq!(reader.change(client, "watch", &["blog:b"]).0, 200);
    let count = reader.next();
    assert_eq!((count.name.as_str(), count.room()), ("count", "blog:b"));
    assert_eq!(numbers(&count.data), (0, 0, 0));
    let joined = client.join("b");
    reader.wait_for_count("blog:b", (1, 1, 0));
    client.publish("blog:b", &json!("not for those who watch"));
    drop(joined);
    let next = reader.next();
    assert_eq!((next.name.as_str(), next.room()), ("count", "blog:b"));
    assert_eq!(numbers(&next.data), (0, 0, 0));
    assert_eq!(reader.change(client, "unwatch", &["blog:b"]).0, 200);
    let _joined = client.join("b");
    expect_nothing_of(&mut reader, "blog:b");
}

fn a_joined_room_that_was_watched_gets_messages(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = client.stream("/v1/watch?blog_id=a", &[]);
    client.publish("blog:a", &json!(1));
    assert_eq!(reader.change(client, "join", &["blog:a"]).0, 200);
    client.publish("blog:a", &json!(2));
    assert_eq!(reader.next_named("joined").room(), "blog:a");
    assert_eq!(first_count(&mut reader, "blog:a"), (1, 1, 0));
    assert_eq!(reader.next_named("message").data["data"], 2);
    assert_eq!(service.count("a"), (1, 1, 0));
}

fn a_kick_says_so_and_ends_the_stream_properly(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut other = client.join("a");
    let mut reader = client.join("a");
    other.wait_for_count("blog:a", (2, 2, 0));
    let url = format!("/v1/connections/{}", reader.connection());
    let manager = token("manager", "manage");
    let (status, _) = client.call("DELETE", &url, &manager, &json!({ "block": 60 }));
    assert_eq!(status, 204);
    assert_eq!(service.count("a"), (1, 1, 0));
    assert_eq!(reader.reason(), "kicked");
    other.wait_for_count("blog:a", (1, 1, 0));
    let again = format!(
        "GET /v1/stream?ticket={} HTTP/1.1\r\nHost: l\r\n\r\n",
        reader.ticket()
    );
    assert_eq!(client.ask(again.as_bytes()).0, 204);
    assert_eq!(service.count("a"), (1, 1, 0));
}

fn a_goodbye_ends_the_stream_at_once(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = client.join("a");
    let url = format!("/v1/connections/{}/close", reader.connection());
    let body = json!({ "ticket": reader.ticket() }).to_string();
    let beacon = format!(
        "POST {url} HTTP/1.1\r\nHost: l\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    assert_eq!(client.ask(beacon.as_bytes()).0, 204);
    assert_eq!(service.count("a"), (0, 0, 0));
    assert_eq!(reader.reason(), "left");
    // The ticket lives on.
    let url = format!("/v1/stream?ticket={}", reader.ticket());
    let mut back = client.stream(&url, &[]);
    assert_eq!(first_count(&mut back, "blog:a"), (1, 1, 0));
}

fn the_newer_stream_of_a_connection_takes_the_older_ones_place(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut watcher = client.stream("/v1/watch?blog_id=a", &[]);
    assert_eq!(first_count(&mut watcher, "blog:a"), (0, 0, 0));
    let mut reader = client.join("a");
    let url = format!("/v1/stream?ticket={}", reader.ticket());
    for _ in 0..5 {
        let newer = client.stream(&url, &[]);
        assert_eq!(reader.reason(), "replaced");
        reader = newer;
        assert_eq!(first_count(&mut reader, "blog:a"), (1, 1, 0));
        assert_eq!(service.count("a"), (1, 1, 0));
    }
    drop(reader);
    service.wait_for("a", 0, PATIENCE);
    for event in watcher.rest(Duration::from_millis(500)) {
        if event.name == "count" {
            assert!(numbers(&event.data).0 <= 1, "a dip or a double: {event:?}");
        }
    }
}

fn of_many_streams_of_one_connection_at_once_one_stays(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let first = client.join("a");
    let url = format!("/v1/stream?ticket={}", first.ticket());
    let readers: Vec<_> = (0..40)
        .map(|_| {
            let url = url.clone();
            thread::spawn(move || client.open(&url, &[]))
        })
        .collect();
    let readers = readers.into_iter().map(|reader| reader.join().unwrap());
    let mut readers: Vec<Reader> = readers.chain([first]).collect();
    let held = || service.app.hub().totals().held;
    until(PATIENCE, || {
        (held() == 1)
            .then_some(())
            .ok_or(format!("{} are held", held()))
    });
    assert_eq!(service.count("a"), (1, 1, 0));
    let mut staying = 0;
    for reader in &mut readers {
        let events = reader.rest(Duration::from_millis(200));
        let closed = events.iter().find(|event| event.name == "closed");
        match closed {
            Some(closed) => assert_eq!(closed.data["reason"], "replaced"),
            None => staying += 1,
        }
        for event in events.iter().filter(|event| event.name == "count") {
            assert_eq!(numbers(&event.data), (1, 1, 0));
        }
    }
    assert_eq!(staying, 1);
}

fn a_stream_ends_with_its_token_and_says_so_before(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let token = token_for("7", "", Duration::from_secs(3));
    let bearer = format!("Bearer {token}");
    let mut reader = client.stream("/v1/stream?blog_id=a", &[("Authorization", &bearer)]);
    let expiring = reader.next_named("expiring");
    let left = expiring.data["expires_in"].as_u64().unwrap();
    assert!((1..=3).contains(&left), "{expiring:?}");
    assert_eq!(service.count("a"), (1, 1, 1));
    assert_eq!(reader.reason(), "expired");
    assert_eq!(service.count("a"), (0, 0, 0));
}

fn a_renewed_stream_outlives_its_first_token(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let bearer = format!("Bearer {}", token_for("7", "", Duration::from_secs(3)));
    let mut reader = client.stream("/v1/stream?blog_id=a", &[("Authorization", &bearer)]);
    reader.next_named("expiring");
    let url = format!("/v1/connections/{}/renew", reader.connection());
    let renew = |ticket: &str, seconds| {
        let token = token_for("7", "", Duration::from_secs(seconds));
        client.call("POST", &url, &token, &json!({ "ticket": ticket }))
    };
    let (status, renewed) = renew(&reader.ticket(), 3600);
    assert_eq!(status, 200, "{renewed}");
    let past_the_first_end = reader.rest(Duration::from_secs(4));
    assert!(
        past_the_first_end
            .iter()
            .all(|event| event.name != "closed")
    );
    assert_eq!(service.count("a"), (1, 1, 1));
    // And a shorter one shortens it.
    assert_eq!(renew(renewed["ticket"].as_str().unwrap(), 2).0, 200);
    reader.next_named("expiring");
    assert_eq!(reader.reason(), "expired");
    service.wait_for("a", 0, PATIENCE);
}

fn a_quiet_stream_is_pinged_every_heartbeat(path: Path) {
    let service = Service::with(path, &[("heartbeat", "1s")]);
    let mut reader = service.client().join("a");
    assert_eq!(reader.connected["heartbeat"], 1);
    first_count(&mut reader, "blog:a");
    for _ in 0..3 {
        let start = tokio::time::Instant::now();
        let ping = reader.next();
        assert_eq!((ping.name.as_str(), &ping.data), ("ping", &json!({})));
        let waited = start.elapsed();
        let expected = Duration::from_millis(600)..Duration::from_millis(2_500);
        assert!(expected.contains(&waited), "a ping after {waited:?}");
    }
}

fn messages_to_two_rooms_and_a_user_come_in_the_order_of_publication(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let bearer = format!("Bearer {}", token("7", ""));
    let mut reader = client.stream(
        "/v1/stream?blog_id=a&blog_id=b",
        &[("Authorization", &bearer)],
    );
    // More in the rooms, so that a message is told to many and on several shards.
    let _crowd: Vec<Reader> = (0..20).map(|_| client.join("a")).collect();
    for number in 0..60 {
        let room = ["blog:a", "blog:b", "user:7"][number % 3];
        client.publish(room, &json!(number));
    }
    let got: Vec<Value> = (0..60)
        .map(|_| reader.next_named("message").data["data"].clone())
        .collect();
    let sent: Vec<Value> = (0..60).map(|number| json!(number)).collect();
    assert_eq!(got, sent);
}

fn a_reader_who_comes_back_gets_what_it_missed_once_and_in_order(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = client.stream("/v1/stream?blog_id=a&blog_id=b", &[]);
    client.publish("blog:a", &json!(0));
    let last = reader.next_named("message").id.unwrap();
    let url = format!("/v1/stream?ticket={}", reader.ticket());
    drop(reader);
    service.wait_for("a", 0, PATIENCE);
    for number in 1..=10 {
        client.publish(["blog:a", "blog:b"][number % 2], &json!(number));
    }
    client.publish("blog:c", &json!("not for it"));
    let mut back = client.stream(&url, &[("Last-Event-ID", &last)]);
    client.publish("blog:a", &json!(11));
    for number in 1..=11 {
        assert_eq!(back.next_named("message").data["data"], number);
    }
    let rest = back.rest(Duration::from_millis(300));
    assert!(
        rest.iter()
            .all(|e| e.name != "message" && e.name != "reset"),
        "{rest:?}"
    );
}

fn a_reader_who_comes_back_from_another_log_is_told_so(path: Path) {
    let service = Service::start(path);
    let mut back = service.client().stream(
        "/v1/stream?blog_id=a&blog_id=b",
        &[("Last-Event-ID", "abc.1")],
    );
    assert_eq!(back.next_named("reset").room(), "blog:a");
    assert_eq!(back.next_named("reset").room(), "blog:b");
}

fn a_drain_ends_every_stream_with_its_reason(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut readers: Vec<Reader> = (0..20).map(|_| client.join("a")).collect();
    let joined = until(PATIENCE, || {
        (service.count("a").1 == 20)
            .then_some(())
            .ok_or("joining".to_owned())
    });
    assert!(joined < PATIENCE);
    assert!(service.drain(Duration::from_secs(2)), "in time");
    for reader in &mut readers {
        assert_eq!(reader.reason(), "shutdown");
    }
    assert_eq!(service.app.hub().totals().held, 0);
    let mut late = client.open("/v1/stream?blog_id=a", &[]);
    assert_eq!(late.next().name, "");
    let closed = late.next();
    assert_eq!(closed.data, json!({ "reason": "shutdown" }));
}
