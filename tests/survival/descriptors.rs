//! Too few descriptors: readers beyond them are turned away softly or wait, nothing spins, and
//! all is well again once some have left.

use std::{io::Write, net::TcpStream, thread, time::Duration};

use serde_json::json;
use tokio::time::Instant;

use crate::helpers::{PATIENCE, Program, Reader, numbers, until};

/// CPU of the program in two seconds in which nothing is asked of it.
fn expect_idle(program: &Program) {
    let (time, before) = (Duration::from_secs(2), program.cpu());
    thread::sleep(time);
    let used = program.cpu() - before;
    assert!(used < time / 20, "{used:?} of CPU in {time:?}");
}

#[test]
fn with_64_descriptors_readers_are_turned_away_softly_and_nothing_spins() {
    let mut program = Program::start(
        &["prlimit", "--nofile=64:64"],
        &[("LIVECOUNT_HEARTBEAT", "60s")],
    );
    let client = program.client();
    let idle = program.descriptors();

    // As many as the node holds, which leaves some descriptors for refusals and calls.
    let mut readers: Vec<Reader> = Vec::new();
    let refused = loop {
        let mut reader = client.open("/v1/stream?blog_id=a", &[]);
        assert_eq!(reader.next().name, "", "retry: comes first");
        let first = reader.next();
        if first.name == "closed" {
            break first;
        }
        assert_eq!(first.name, "connected");
        readers.push(reader);
        assert!(readers.len() < 64, "more streams than descriptors");
    };
    assert_eq!(refused.data, json!({ "reason": "overloaded" }));
    assert!(readers.len() >= 16, "only {} streams", readers.len());
    let held = u64::try_from(readers.len()).unwrap();
    assert_eq!(client.room("blog:a"), (held, held, 0));
    assert!(client.metric("livecount_refused_total") >= 1);

    // Beyond them, connections that would take all that is left, and then some. Those who ask
    // something are answered all the same, and new readers told that there is no place.
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..8 {
        silent.extend((0..64).map(|_| client.connect()));
        let asked = Instant::now();
        assert_eq!(client.room("blog:a"), (held, held, 0));
        let mut reader = client.open("/v1/stream?blog_id=a", &[]);
        assert_eq!(reader.reason(), "overloaded");
        let waited = asked.elapsed();
        assert!(waited < Duration::from_secs(5), "answered after {waited:?}");
    }
    expect_idle(&program);
    let lines = program.log();
    let lines = lines
        .lines()
        .filter(|line| line.contains("cannot be accepted"));
    let lines = lines.count();
    assert!((1..10).contains(&lines), "{lines} lines for all tries");
    assert!(client.metric("livecount_accept_errors_total") >= 1);
    drop(silent);

    // The same by those who ask something and stay for the next request.
    let mut asking: Vec<TcpStream> = Vec::new();
    for _ in 0..8 {
        for _ in 0..8 {
            let mut socket = client.connect();
            socket
                .write_all(b"GET /livez HTTP/1.1\r\nHost: l\r\n\r\n")
                .unwrap();
            asking.push(socket);
        }
        let asked = Instant::now();
        let mut reader = client.open("/v1/stream?blog_id=a", &[]);
        assert_eq!(reader.reason(), "overloaded");
        let waited = asked.elapsed();
        assert!(waited < Duration::from_secs(5), "answered after {waited:?}");
    }
    drop(asking);
    // Those who are in are told as ever.
    let left = readers.pop().expect("there are some");
    drop(left);
    readers[0].wait_for_count("blog:a", (held - 1, held - 1, 0));

    drop(readers);
    until(PATIENCE, || {
        let now = program.descriptors();
        (now <= idle + 1)
            .then_some(())
            .ok_or(format!("{now} descriptors, once {idle}"))
    });
    let mut reader = client.join("a");
    assert_eq!(numbers(&reader.next_named("count").data), (1, 1, 0));
    expect_idle(&program);
    program.expect_sound();
}
