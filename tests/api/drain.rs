//! Drain: how a node goes down without its readers noticing more than they must.

use std::{collections::BTreeSet, io::Read, net::TcpStream, thread, time::Duration};

use livecount::server::drain;
use serde_json::json;
use tokio::time::Instant;

use crate::{
    helpers::{TestApp, bearer, numbers, token},
    server::{Binary, read_up_to},
};

/// How long a drain of these tests takes.
const DRAIN: Duration = Duration::from_secs(10);

/// How one stream ended.
#[derive(Debug)]
struct End {
    after: Duration,
    retry: u64,
    reason: String,
    /// The connections of each count told before the end.
    told: Vec<u64>,
}

/// Opens this many streams of a blog, and drains; answers how each ended, the first one first.
async fn drained(app: &TestApp, streams: usize) -> Vec<End> {
    let mut readers = Vec::new();
    let start = Instant::now();
    for _ in 0..streams {
        let mut viewer = app.join("1").await;
        readers.push(tokio::spawn(async move {
            let (mut retry, mut told) = (0, Vec::new());
            loop {
                let event = viewer.next().await;
                match event.name.as_str() {
                    "" => retry = event.retry.expect("only a wait has no name"),
                    "count" => told.push(numbers(&event.data).1),
                    "closed" => {
                        assert_eq!(viewer.try_next().await, None);
                        let reason = event.data["reason"].as_str().expect("a reason");
                        return End {
                            after: start.elapsed(),
                            retry,
                            reason: reason.to_owned(),
                            told,
                        };
                    }
                    _ => {}
                }
            }
        }));
    }
    assert!(drain::run(app.hub(), DRAIN).await, "it ends in time");
    let mut ends = Vec::new();
    for reader in readers {
        ends.push(reader.await.expect("the reader reads to the end"));
    }
    ends.sort_by_key(|end| end.after);
    ends
}

// ---- what is asked while it lasts ----

#[tokio::test(start_paused = true)]
async fn a_draining_node_is_alive_and_not_ready() {
    let app = TestApp::of_one_node(&[]);
    assert_eq!(app.get("/readyz", &[]).await.status, 200);
    app.hub().drain();
    let ready = app.get("/readyz", &[]).await;
    ready.expect_problem(503, "shutdown").await;
    assert_eq!(app.get("/livez", &[]).await.status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_answers_its_back_ends() {
    let app = TestApp::of_one_node(&[]);
    let mut viewer = app.join("1").await;
    assert_eq!(viewer.next_count().await, (1, 1, 0));
    app.hub().drain();
    assert_eq!(app.count("1").await, (1, 1, 0));
    let publisher = bearer(&token("cms", "publish"));
    let sent = app
        .post(
            "/v1/rooms/blog:1/messages",
            &[("authorization", &publisher)],
            json!({"data": "good bye"}),
        )
        .await;
    assert_eq!(sent.status, 202);
    assert_eq!(viewer.next_named("message").await.data["data"], "good bye");
}

#[tokio::test(start_paused = true)]
async fn a_new_stream_is_refused_softly_by_a_draining_node() {
    let app = TestApp::of_one_node(&[]);
    let joined = app.post("/v1/join", &[], json!({"blog_id": 1})).await;
    let joined = joined.json().await;
    let by_ticket = joined["stream_url"].as_str().expect("a URL").to_owned();
    app.hub().drain();
    for path in [
        "/v1/stream?blog_id=1",
        "/v1/watch?blog_id=1",
        by_ticket.as_str(),
    ] {
        let mut stream = app.get(path, &[]).await.expect_stream();
        let retry = stream.next().await.retry.expect("first it is told to wait");
        assert!((5_000..=30_000).contains(&retry), "{retry} ms");
        let closed = stream.next().await;
        assert_eq!(
            (closed.name.as_str(), closed.data),
            ("closed", json!({"reason": "shutdown"}))
        );
        assert_eq!(stream.try_next().await, None);
    }
}

#[tokio::test(start_paused = true)]
async fn a_join_by_post_is_refused_by_a_draining_node() {
    let app = TestApp::of_one_node(&[]);
    app.hub().drain();
    for headers in [&[][..], &[("accept", "text/event-stream")]] {
        let refused = app.post("/v1/join", headers, json!({"blog_id": 1})).await;
        let wait: u64 = refused.header("retry-after").parse().expect("seconds");
        assert!((5..=30).contains(&wait), "{wait} s");
        refused.expect_problem(503, "shutdown").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_admitted_just_before_the_drain_never_connects() {
    // A shard opens it before the drain: nobody can be between admission and the first read.
    let app = TestApp::of_bodies();
    let mut admitted = app.get("/v1/stream?blog_id=1", &[]).await.expect_stream();
    app.hub().drain();
    assert!(admitted.next().await.retry.is_some());
    assert_eq!(admitted.reason().await, "shutdown");
    assert_eq!(app.count("1").await, (0, 0, 0));
}

// ---- how open streams end ----

#[tokio::test(start_paused = true)]
async fn every_open_stream_is_told_of_the_shutdown() {
    let ends = drained(&TestApp::of_one_node(&[]), 50).await;
    assert!(ends.iter().all(|end| end.reason == "shutdown"), "{ends:?}");
}

#[tokio::test(start_paused = true)]
async fn ends_are_spread_over_the_time_of_the_drain() {
    let ends = drained(&TestApp::of_one_node(&[]), 100).await;
    let by = |time: u64| {
        let time = Duration::from_secs(time);
        ends.iter().filter(|end| end.after <= time).count()
    };
    // Four fifths of the time are for the ends, the rest for what is slow to go.
    for (time, expected) in [(2, 25), (4, 50), (6, 75), (9, 100)] {
        assert!(by(time).abs_diff(expected) <= 3, "{} by {time} s", by(time));
    }
}

#[tokio::test(start_paused = true)]
async fn readers_are_told_to_come_back_at_different_times() {
    let ends = drained(&TestApp::of_one_node(&[]), 50).await;
    let waits: BTreeSet<u64> = ends.iter().map(|end| end.retry).collect();
    assert!(waits.len() > 25, "{waits:?}");
    assert!(waits.iter().all(|wait| (1_000..=10_000).contains(wait)));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_still_there_sees_the_others_go() {
    let app = TestApp::of_one_node(&[]);
    let ends = drained(&app, 4).await;
    let last = ends.last().expect("there are four");
    assert!(last.told.ends_with(&[4, 3, 2, 1]), "{last:?}");
    assert_eq!(app.count("1").await, (0, 0, 0));
    assert_eq!(app.hub().totals().held, 0);
}

#[tokio::test(start_paused = true)]
async fn a_drain_with_nobody_there_is_over_at_once() {
    let app = TestApp::of_one_node(&[]);
    let start = Instant::now();
    assert!(drain::run(app.hub(), DRAIN).await);
    assert!(start.elapsed() < Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn the_grace_of_broken_streams_does_not_hold_a_drain_up() {
    let app = TestApp::of_one_node(&[("leave_grace", "60s")]);
    drop(app.join("1").await);
    assert_eq!(app.count("1").await, (1, 1, 0));
    let start = Instant::now();
    assert!(drain::run(app.hub(), DRAIN).await);
    assert!(start.elapsed() < DRAIN);
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_does_not_read_does_not_hold_a_drain_up_beyond_its_time() {
    // A shard waits for no reader: see the next one.
    let app = TestApp::of_bodies();
    let _unread = app.join("1").await;
    let start = Instant::now();
    assert!(!drain::run(app.hub(), DRAIN).await);
    let took = start.elapsed();
    assert!((DRAIN..DRAIN + Duration::from_millis(100)).contains(&took));
    // It is counted out all the same.
    assert_eq!(app.count("1").await, (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_reader_who_does_not_read_does_not_hold_a_drain_of_shards_up_at_all() {
    let app = TestApp::over_sockets();
    let unread = app.join("1").await;
    assert!(drain::run(app.hub(), DRAIN).await, "it ends in time");
    assert_eq!(app.count("1").await, (0, 0, 0));
    assert_eq!(unread.reason().await, "shutdown");
}

// ---- the program ----

/// Opens this many streams, 100 in a room.
fn open_streams(program: &Binary, streams: usize) -> Vec<TcpStream> {
    let mut open: Vec<TcpStream> = (0..streams)
        .map(|stream| {
            let blog = stream / 100;
            program.say(&format!(
                "GET /v1/stream?blog_id={blog} HTTP/1.1\r\nHost: localhost\r\n\r\n"
            ))
        })
        .collect();
    for stream in &mut open {
        read_up_to(stream, "event: count\n");
    }
    open
}

/// Checks that each stream is told of the shutdown and ends.
fn expect_shutdown(streams: Vec<TcpStream>) {
    for mut stream in streams {
        let mut rest = String::new();
        stream
            .read_to_string(&mut rest)
            .expect("a stream ends in time, and not by a reset");
        assert!(rest.contains("{\"reason\":\"shutdown\"}"), "{rest}");
    }
}

#[test]
fn a_terminated_program_with_300_streams_ends_them_all_and_exits_with_0() {
    let mut program = Binary::start(&[("drain", "2s")]);
    let streams = open_streams(&program, 300);
    let start = Instant::now();
    program.terminate();
    expect_shutdown(streams);
    assert_eq!(program.exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(3));
}

#[test]
fn a_terminated_program_with_10_000_streams_ends_them_all_and_exits_with_0_in_time() {
    let mut program = Binary::start(&[("drain", "5s"), ("max_connections", "10000")]);
    let streams = open_streams(&program, 10_000);
    assert!(
        program
            .get("/metrics", "")
            .contains("livecount_connections 10000\n")
    );
    let start = Instant::now();
    program.terminate();
    expect_shutdown(streams);
    assert_eq!(program.exit().code(), Some(0));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "it took {took:?}");
}

#[test]
fn a_terminated_program_answers_calls_until_its_last_stream_has_ended() {
    let mut program = Binary::start(&[("drain", "2s")]);
    let streams = open_streams(&program, 1);
    program.terminate();
    // The signal may take a moment to arrive.
    let deadline = Instant::now() + Duration::from_secs(1);
    while program.get("/readyz", "").starts_with("HTTP/1.1 200") {
        assert!(Instant::now() < deadline, "it stays ready");
    }
    assert!(program.get("/readyz", "").starts_with("HTTP/1.1 503"));
    let count = program.get("/v1/blogs/0/count", "");
    assert!(count.contains("\"connections\":1"), "{count}");
    let refused = program.get("/v1/stream?blog_id=0", "");
    assert!(refused.starts_with("HTTP/1.1 200"), "{refused}");
    assert!(refused.contains("{\"reason\":\"shutdown\"}"), "{refused}");
    expect_shutdown(streams);
    assert_eq!(program.exit().code(), Some(0));
}

#[test]
fn idle_connections_do_not_hold_the_end_up() {
    let mut program = Binary::start(&[]);
    let _silent = program.say("");
    let mut idle = program.say("GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n");
    read_up_to(&mut idle, "{\"status\":\"ok\"}");
    let start = Instant::now();
    program.terminate();
    assert_eq!(program.exit().code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_second_signal_ends_the_program_at_once() {
    let mut program = Binary::start(&[("drain", "60s")]);
    let _streams = open_streams(&program, 10);
    program.terminate();
    while program.get("/readyz", "").starts_with("HTTP/1.1 200") {
        thread::yield_now();
    }
    let start = Instant::now();
    program.terminate();
    let code = program.exit().code();
    assert!(start.elapsed() < Duration::from_secs(2));
    assert_eq!(code, Some(1), "what was cut off is no success");
}
