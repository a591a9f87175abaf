//! Readers that talk when they should listen: their count is right, and others are on time.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use livecount::hub::RoomId;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::helpers::{Path, Reader, Service, on_both_paths, reset};

const STREAM: &[u8] = b"GET /v1/stream?blog_id=a HTTP/1.1\r\nHost: l\r\n\r\n";

on_both_paths!(
    whoever_sent_stray_bytes_and_closes_is_counted_out,
    whoever_sent_stray_bytes_with_the_head_and_closes_is_counted_out,
    endless_input_is_closed,
);

/// How long whoever is gone may still count; no heartbeat comes within it.
const MOST: Duration = Duration::from_secs(1);

fn close_with_fin_and_rst(path: Path, open: impl Fn(&Service) -> Reader) {
    let service = Service::start(path);
    for by_reset in [false, true] {
        let reader = open(&service);
        assert_eq!(service.count("a"), (1, 1, 0));
        if by_reset {
            reset(reader.socket);
        } else {
            drop(reader);
        }
        service.wait_for("a", 0, MOST);
    }
    // One that only closes its side is a reader no more either.
    let reader = open(&service);
    reader.half_close();
    service.wait_for("a", 0, MOST);
}

fn whoever_sent_stray_bytes_and_closes_is_counted_out(path: Path) {
    close_with_fin_and_rst(path, |service| {
        let mut reader = service.client().join("a");
        reader.next_named("count");
        reader.socket.write_all(b"stray").unwrap();
        thread::sleep(Duration::from_millis(50));
        reader
    });
}

fn whoever_sent_stray_bytes_with_the_head_and_closes_is_counted_out(path: Path) {
    close_with_fin_and_rst(path, |service| {
        let mut socket = service.client().connect();
        socket.write_all(&[STREAM, b"stray"].concat()).unwrap();
        let mut reader = Reader::of(socket).connected();
        reader.next_named("count");
        reader
    });
}

fn endless_input_is_closed(path: Path) {
    let service = Service::start(path);
    let mut reader = service.client().join("a");
    reader.next_named("count");
    reader
        .socket
        .set_write_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    // What a stream may be sent behind its request is let be.
    reader.socket.write_all(&[b'x'; 8 << 10]).unwrap();
    service.client().publish("blog:a", &json!("still there"));
    reader.next_named("message");
    assert_eq!(service.count("a"), (1, 1, 0));
    let waste = vec![b'x'; 64 << 10];
    let mut sent = 0;
    let end = loop {
        match reader.socket.write(&waste) {
            Ok(bytes) => sent += bytes,
            Err(error) => break error.kind(),
        }
        assert!(sent < 64 << 20, "somebody takes it all");
    };
    assert!(
        matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{end}"
    );
    service.wait_for("a", 0, MOST);
}

/// What a stream says after its end is thrown away, but not without end.
#[test]
fn whoever_floods_after_its_goodbye_is_closed_and_holds_up_nobody() {
    let service = Service::at(Path::Shard, "127.0.0.1:0".parse().unwrap(), 1, &[]);
    let client = service.client();
    let mut other = client.join("b");
    other.next_named("count");
    thread::scope(|scope| {
        for _ in 0..3 {
            let mut reader = client.join("a");
            let url = format!("/v1/connections/{}", reader.connection());
            client.call("DELETE", &url, &reader.ticket(), &Value::Null);
            assert_eq!(reader.reason(), "left");
            scope.spawn(move || {
                let waste = vec![b'x'; 1 << 20];
                let mut sent = 0;
                while let Ok(bytes) = reader.socket.write(&waste) {
                    sent += bytes;
                    assert!(sent < 64 << 20, "somebody takes it all");
                }
            });
        }
        for number in 0..40 {
            let start = Instant::now();
            client.publish("blog:b", &json!(number));
            other.next_named("message");
            let told = start.elapsed();
            assert!(told < Duration::from_secs(1), "told after {told:?}");
            thread::sleep(Duration::from_millis(25));
        }
    });
}

/// A room with more messages than its readers can be sent, on the one shard that there is.
#[test]
fn a_flood_of_messages_in_one_room_holds_up_no_count_of_another() {
    let service = Service::at(Path::Shard, "127.0.0.1:0".parse().unwrap(), 1, &[]);
    let client = service.client();
    let crowd: Vec<Reader> = (0..200).map(|_| client.join("a")).collect();
    let mut watcher = client.stream("/v1/watch?blog_id=b", &[]);
    watcher.next_named("count");
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for reader in &crowd {
            let mut socket = reader.socket.try_clone().unwrap();
            socket
                .set_read_timeout(Some(Duration::from_millis(200)))
                .unwrap();
            let done = &done;
            scope.spawn(move || {
                let mut waste = vec![0; 256 << 10];
                while !done.load(Ordering::Relaxed) {
                    // A time-out says only that there is nothing yet.
                    let _ = socket.read(&mut waste);
                }
            });
        }
        let room = RoomId::parse("blog:a").unwrap();
        for _ in 0..5_000 {
            let frame = |id| livecount::sse::message("message", &room, "1", id);
            service
                .app
                .hub()
                .publish(&room, None, frame, Instant::now())
                .unwrap();
        }
        let start = Instant::now();
        let joined = client.join("b");
        let told = watcher.next_within(Duration::from_secs(20));
        let waited = start.elapsed();
        done.store(true, Ordering::Relaxed);
        assert_eq!(told.unwrap().unwrap().name, "count");
        assert!(waited < Duration::from_secs(1), "told after {waited:?}");
        drop(joined);
    });
}

/// More halves of heads than requests are read at a time.
#[test]
fn heads_that_do_not_end_hold_up_nobody() {
    expect_held_up_by_nobody(300, &STREAM[..20]);
}

#[test]
fn large_heads_that_do_not_end_hold_up_nobody() {
    let mut head = b"GET /livez HTTP/1.1\r\nHost: l\r\nX: ".to_vec();
    head.resize(17 << 10, b'a');
    expect_held_up_by_nobody(2_000, &head);
}

/// Somebody joins at once while so many others have sent the same part of a head.
fn expect_held_up_by_nobody(others: usize, part: &[u8]) {
    let service = Service::start(Path::Shard);
    let _slow: Vec<TcpStream> = (0..others)
        .map(|_| {
            let mut socket = service.client().connect();
            socket.write_all(part).unwrap();
            socket
        })
        .collect();
    thread::sleep(Duration::from_millis(100));
    let start = Instant::now();
    let mut reader = service.client().join("a");
    reader.next_named("count");
    let waited = start.elapsed();
    assert!(waited < Duration::from_secs(3), "joined after {waited:?}");
}
