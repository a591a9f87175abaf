//! Readers that talk when they should listen: their count is right, and others are on time.

use std::{
    io::{ErrorKind, Write},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::helpers::{Path, Reader, Service, on_both_paths, reset};

const STREAM: &[u8] = b"GET /v1/stream?blog_id=a HTTP/1.1\r\nHost: l\r\n\r\n";

on_both_paths!(
    whoever_sent_stray_bytes_and_closes_is_counted_out,
    whoever_sent_stray_bytes_with_the_head_and_closes_is_counted_out,
    endless_input_costs_no_memory_and_holds_up_nobody,
);

/// On a shard at once. A body's end is seen by the second write after it, as hyper listens no
/// more once a byte has come that it cannot read yet; with a heartbeat of 1 s that is 3 s.
fn most(path: Path) -> Duration {
    match path {
        Path::Shard => Duration::from_secs(1),
        Path::Body => Duration::from_secs(4),
    }
}

fn close_with_fin_and_rst(path: Path, open: impl Fn(&Service) -> Reader) {
    let service = Service::with(path, &[("heartbeat", "1s")]);
    for by_reset in [false, true] {
        let reader = open(&service);
        assert_eq!(service.count("a"), (1, 1, 0));
        if by_reset {
            reset(reader.socket);
        } else {
            drop(reader);
        }
        service.wait_for("a", 0, most(path));
    }
    // One that only closes its side is a reader no more either.
    let reader = open(&service);
    reader.half_close();
    if path == Path::Shard {
        service.wait_for("a", 0, most(path));
    }
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

fn endless_input_costs_no_memory_and_holds_up_nobody(path: Path) {
    let service = Service::with(path, &[("heartbeat", "1s")]);
    let mut reader = service.client().join("a");
    reader.next_named("count");
    reader
        .socket
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let waste = vec![b'x'; 64 << 10];
    let mut sent = 0;
    let end = loop {
        match reader.socket.write(&waste) {
            Ok(bytes) => sent += bytes,
            Err(error) => break error.kind(),
        }
        assert!(sent < 64 << 20, "somebody takes it all");
    };
    match path {
        Path::Shard => {
            assert!(
                matches!(end, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
                "{end}"
            );
            service.wait_for("a", 0, Duration::from_secs(1));
        }
        Path::Body => {
            // Nobody reads it: the kernel holds the sender up, who is there and counts.
            assert_eq!(end, ErrorKind::WouldBlock);
            assert_eq!(service.count("a"), (1, 1, 0));
            drop(reader);
            service.wait_for("a", 0, most(path));
        }
    }
}

/// The one shard has nothing else to do, and still must not listen to these for ever.
#[test]
fn whoever_floods_after_its_goodbye_holds_up_nobody_on_its_shard() {
    let service = Service::at(Path::Shard, "127.0.0.1:0".parse().unwrap(), 1, &[]);
    let client = service.client();
    let mut other = client.join("b");
    other.next_named("count");
    let done = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        for _ in 0..3 {
            let mut reader = client.join("a");
            let url = format!("/v1/connections/{}", reader.connection());
            client.call("DELETE", &url, &reader.ticket(), &Value::Null);
            assert_eq!(reader.reason(), "left");
            let done = &done;
            scope.spawn(move || {
                let waste = vec![b'x'; 1 << 20];
                let timeout = Some(Duration::from_millis(100));
                reader.socket.set_write_timeout(timeout).unwrap();
                while !done.load(Ordering::Relaxed) && reader.socket.write(&waste).is_ok() {}
            });
        }
        let mut slowest = Duration::ZERO;
        for number in 0..40 {
            let start = Instant::now();
            client.publish("blog:b", &json!(number));
            // Long enough for one that is held up till the floods end.
            let _ = other.next_within(Duration::from_secs(3));
            slowest = slowest.max(start.elapsed());
            thread::sleep(Duration::from_millis(25));
        }
        done.store(true, Ordering::Relaxed);
        slowest
    });
    println!("told after {slowest:?} at the latest");
    assert!(slowest < Duration::from_secs(1), "told after {slowest:?}");
}
