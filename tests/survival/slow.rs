//! Readers that read slowly or not at all: they cost little, hold up nobody, and lose nothing
//! without being told.

use std::{
    io::{Read, Write},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::helpers::{
    Client, PATIENCE, Path, Program, Reader, Service, get, numbers, on_both_paths, token_for, until,
};

on_both_paths!(
    large_messages_arrive_whole_at_a_reader_with_a_small_window,
    a_slow_reader_that_joins_a_room_meanwhile_misses_nothing_of_it,
    a_slow_reader_is_told_of_the_end,
    a_reader_that_stops_at_the_end_is_told_of_it_when_it_reads_on,
    who_comes_back_is_given_all_of_a_long_absence_in_order,
    a_stuck_reader_is_counted_out_when_its_token_ends,
    a_stuck_reader_that_comes_back_on_a_new_stream_is_counted_once,
    a_reader_that_stops_for_good_is_ended_by_the_kernel,
);

/// What a message of this number says: 64 KiB less a little, no two alike.
fn large(number: usize) -> Value {
    let word = format!("{number:08x}-");
    json!(word.repeat(63 * 1024 / word.len()))
}

/// Opens a stream over a small window.
fn narrow(client: Client, path: &str) -> Reader {
    narrow_with(client, path, &[])
}

fn narrow_with(client: Client, path: &str, headers: &[(&str, &str)]) -> Reader {
    let mut socket = client.connect_narrow(4 << 10);
    socket.write_all(&get(path, headers)).unwrap();
    let mut reader = Reader::of(socket).connected();
    reader.gulp = 1 << 10;
    reader
}

fn large_messages_arrive_whole_at_a_reader_with_a_small_window(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = narrow(client, "/v1/stream?blog_id=a&blog_id=b");
    let mut old = {
        let mut socket = client.connect_narrow(4 << 10);
        socket
            .write_all(b"GET /v1/stream?blog_id=a&blog_id=b HTTP/1.0\r\n\r\n")
            .unwrap();
        Reader::of(socket).connected()
    };
    for number in 0..8 {
        client.publish(["blog:a", "blog:b"][number % 2], &large(number));
    }
    thread::scope(|scope| {
        for reader in [&mut reader, &mut old] {
            scope.spawn(|| {
                for number in 0..8 {
                    let message = reader.next_named("message");
                    assert_eq!(message.data["data"], large(number), "message {number}");
                }
                let rest = reader.rest(Duration::from_millis(300));
                assert!(rest.iter().all(|event| event.name == "count"), "{rest:?}");
            });
        }
    });
    assert_eq!(service.count("a"), (2, 2, 0));
}

/// Stuffs a reader's way until nothing more fits.
fn stuff(client: Client, room: &str) {
    for number in 0..12 {
        client.publish(room, &large(number));
    }
}

fn a_slow_reader_that_joins_a_room_meanwhile_misses_nothing_of_it(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = narrow(client, "/v1/stream?blog_id=a&blog_id=x");
    reader.gulp = 16 << 10;
    stuff(client, "blog:a");
    client.publish("blog:b", &json!("before it joins"));
    assert_eq!(reader.change(client, "join", &["blog:b"]).0, 200);
    client.publish("blog:b", &json!(1));
    assert_eq!(reader.change(client, "leave", &["blog:x"]).0, 200);
    assert_eq!(reader.change(client, "watch", &["blog:c"]).0, 200);
    client.publish("blog:b", &json!(2));
    let _other = client.join("c");
    service.wait_for("c", 1, PATIENCE);
    let events = reader.rest(Duration::from_secs(2));
    let of = |room: &str, name: &str| -> Vec<&Value> {
        let of = events.iter().filter(|e| e.room() == room && e.name == name);
        of.map(|event| &event.data).collect()
    };
    assert_eq!(of("blog:b", "joined").len(), 1, "{events:?}");
    assert_eq!(of("blog:x", "left").len(), 1);
    let messages = of("blog:b", "message");
    let said: Vec<&Value> = messages.iter().map(|data| &data["data"]).collect();
    assert_eq!(said, [&json!(1), &json!(2)]);
    assert_eq!(of("blog:a", "message").len(), 12);
    assert_eq!(numbers(of("blog:b", "count").last().unwrap()), (1, 1, 0));
    assert_eq!(numbers(of("blog:c", "count").last().unwrap()), (1, 1, 0));
    // And from here on it keeps up as any other.
    client.publish("blog:b", &json!(3));
    assert_eq!(reader.next_named("message").data["data"], 3);
    let _third = client.join("b");
    reader.wait_for_count("blog:b", (2, 2, 0));
}

fn a_slow_reader_is_told_of_the_end(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut reader = narrow(client, "/v1/stream?blog_id=a");
    reader.gulp = 64 << 10;
    client.publish("blog:a", &large(0));
    let url = format!("/v1/connections/{}", reader.connection());
    client.call("DELETE", &url, &reader.ticket(), &Value::Null);
    assert_eq!(service.count("a"), (0, 0, 0));
    assert_eq!(reader.reason(), "left");
}

fn a_reader_that_stops_at_the_end_is_told_of_it_when_it_reads_on(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut readers = [(); 2].map(|()| narrow(client, "/v1/stream?blog_id=a"));
    client.publish("blog:a", &large(0));
    for reader in &readers {
        let url = format!("/v1/connections/{}", reader.connection());
        client.call("DELETE", &url, &reader.ticket(), &Value::Null);
    }
    assert_eq!(service.count("a"), (0, 0, 0));
    thread::sleep(Duration::from_secs(3));
    let [reader, _stuck] = &mut readers;
    reader.gulp = 64 << 10;
    assert_eq!(reader.reason(), "left");
    // One that never reads on is not waited for without end.
    until(Duration::from_secs(40), || {
        let held = service.app.tally().slots;
        (held == 0).then_some(()).ok_or(format!("{held} are held"))
    });
}

fn a_stuck_reader_is_counted_out_when_its_token_ends(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let bearer = format!("Bearer {}", token_for("7", "", Duration::from_secs(3)));
    let start = Instant::now();
    let _stuck = narrow_with(
        client,
        "/v1/stream?blog_id=a",
        &[("Authorization", &bearer)],
    );
    stuff(client, "blog:a");
    service.wait_for("a", 0, Duration::from_secs(6));
    assert!(start.elapsed() > Duration::from_secs(1));
}

fn a_stuck_reader_that_comes_back_on_a_new_stream_is_counted_once(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let stuck = narrow(client, "/v1/stream?blog_id=a");
    stuff(client, "blog:a");
    let url = format!("/v1/stream?ticket={}", stuck.ticket());
    let mut back = client.stream(&url, &[]);
    assert_eq!(numbers(&back.next_named("count").data), (1, 1, 0));
    assert_eq!(service.count("a"), (1, 1, 0));
    let held = || service.app.hub().totals().held;
    until(Duration::from_secs(30), || {
        (held() == 1)
            .then_some(())
            .ok_or(format!("{} are held", held()))
    });
    drop(stuck);
    assert_eq!(service.count("a"), (1, 1, 0));
}

fn a_reader_that_stops_for_good_is_ended_by_the_kernel(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    // Gets no messages, which it would have to read all the while.
    let mut watcher = client.stream("/v1/watch?blog_id=a", &[]);
    let stuck = narrow(client, "/v1/stream?blog_id=a");
    watcher.wait_for_count("blog:a", (1, 1, 0));
    stuff(client, "blog:a");
    let taken = service.wait_for("a", 0, Duration::from_secs(40));
    assert!(taken > Duration::from_secs(15), "after {taken:?} already");
    watcher.wait_for_count("blog:a", (0, 0, 0));
    drop(stuck);
}

/// What one reader got while 10 MB passed.
struct Heard {
    latest: Duration,
    messages: usize,
}

/// Reads messages that say when they were sent, until one says that it is the last.
fn listen(mut reader: Reader, start: Instant) -> Heard {
    let mut heard = Heard {
        latest: Duration::ZERO,
        messages: 0,
    };
    loop {
        let event = reader.next();
        if event.name != "message" {
            continue;
        }
        heard.messages += 1;
        let sent = Duration::from_micros(event.data["data"]["sent"].as_u64().unwrap());
        heard.latest = heard.latest.max(start.elapsed().saturating_sub(sent));
        if event.data["data"]["last"] == true {
            return heard;
        }
    }
}

/// Sends `messages` of 64 KB to the blog, with a count that changes between any two.
fn pour(client: Client, messages: usize, start: Instant, last: bool) {
    let mut passing = None;
    for number in 0..messages {
        let sent = u64::try_from(start.elapsed().as_micros()).unwrap();
        let last = last && number + 1 == messages;
        let data = json!({ "sent": sent, "last": last, "load": large(number) });
        client.publish("blog:a", &data);
        passing = match passing {
            None => Some(client.join("a")),
            Some(_) => None,
        };
        // So that whoever reads all the time, in a test on a busy machine, keeps up.
        thread::sleep(Duration::from_millis(25));
    }
}

#[test]
fn a_reader_that_stops_costs_nothing_holds_up_nobody_and_is_told_what_it_missed() {
    // Where the machine stood still for so long that the kernel ended the reader, nothing is shown.
    let shown = (0..3).any(|_| a_reader_stops());
    assert!(shown, "three times 10 MB took longer than 14 s");
}

/// True where the messages passed in time for the reader to come back.
fn a_reader_stops() -> bool {
    let mut program = Program::start(&[], &[]);
    let client = program.client();
    let start = Instant::now();
    // What the service keeps of messages anyway, and its own buffers, are there before.
    pour(client, 40, start, false);
    let before = program.memory_kib();
    let mut stuck: Vec<Reader> = (0..4).map(|_| client.join("a")).collect();
    let others: Vec<_> = (0..3)
        .map(|_| {
            let reader = client.join("a");
            thread::spawn(move || listen(reader, start))
        })
        .collect();
    let stopped = Instant::now();
    pour(client, 160, start, true);
    let heard: Vec<Heard> = others
        .into_iter()
        .map(|other| other.join().expect("it reads to the last message"))
        .collect();
    if stopped.elapsed() > Duration::from_secs(14) {
        return false;
    }
    for heard in heard {
        assert_eq!(heard.messages, 160);
        assert!(
            heard.latest < Duration::from_secs(2),
            "told after {:?}",
            heard.latest
        );
    }
    let grown = program.memory_kib().saturating_sub(before);
    assert!(grown < 6 << 10, "grown by {grown} KiB");
    until(PATIENCE, || {
        let now = client.room("blog:a");
        (now == (4, 4, 0)).then_some(()).ok_or(format!("{now:?}"))
    });

    let behind = client.metric("livecount_behind");
    assert!((1..=4).contains(&behind), "{behind} behind");
    // One comes back after some seconds, and the others never.
    thread::sleep(Duration::from_secs(12).saturating_sub(stopped.elapsed()));
    let events = stuck[0].rest(Duration::from_secs(2));
    let last = events.iter().rfind(|event| event.name == "count").unwrap();
    assert_eq!(numbers(&last.data), (4, 4, 0));
    let sent: Vec<u64> = events
        .iter()
        .filter(|event| event.name == "message")
        .map(|event| event.data["data"]["sent"].as_u64().unwrap())
        .collect();
    assert!(sent.is_sorted(), "out of order");
    let newest = events.iter().rfind(|event| event.name == "message");
    assert_eq!(newest.unwrap().data["data"]["last"], true);
    let reset = events.iter().any(|event| event.name == "reset");
    assert!(
        sent.len() < 160,
        "all of it lay in buffers: the test shows nothing"
    );
    assert!(reset, "{} messages of 160, and not a word", sent.len());
    client.publish("blog:a", &json!("hello"));
    assert_eq!(stuck[0].next_named("message").data["data"], "hello");

    until(Duration::from_secs(30), || {
        let now = client.room("blog:a");
        (now == (1, 1, 0)).then_some(()).ok_or(format!("{now:?}"))
    });
    assert_eq!(client.metric("livecount_behind"), 0);
    let mut waste = Vec::new();
    // Where the kernel has ended it, what it took before comes, then RST.
    assert!(stuck[1].socket.read_to_end(&mut waste).is_err());
    program.expect_sound();
    true
}

/// Each reads what it once was sent, is caught up with what is newest then, and stops again.
#[test]
fn readers_that_trickle_hold_a_portion_each_of_what_they_missed() {
    // The last to read has waited for all others, and beyond 20 s the kernel would end it.
    const READERS: usize = 15;
    let mut program = Program::start(&[], &[]);
    let client = program.client();
    let fill = |round: usize| {
        for number in 0..16 {
            let data = json!({ "number": round * 16 + number, "load": large(number) });
            client.publish("blog:a", &data);
        }
    };
    fill(0);
    let before = program.memory_kib();
    let mut readers: Vec<Reader> = (0..READERS)
        .map(|_| narrow(client, "/v1/stream?blog_id=a"))
        .collect();
    fill(1);
    for (round, reader) in readers.iter_mut().enumerate() {
        let first = reader.next_named("message");
        assert_eq!(first.data["data"]["number"], 16);
        fill(2 + round);
    }
    let grown = program.memory_kib().saturating_sub(before);
    println!("grown by {grown} KiB");
    // As whole as the log has it, what each holds would be 1 MiB.
    assert!(grown < (READERS as u64) * 300, "grown by {grown} KiB");
    for reader in &mut readers {
        reader.gulp = 64 << 10;
        let (mut newest, mut reset) = (16, false);
        let last = (READERS as u64 + 2) * 16 - 1;
        while newest < last {
            let event = reader.next();
            match event.name.as_str() {
                "reset" => reset = true,
                "message" => {
                    let number = event.data["data"]["number"].as_u64().unwrap();
                    assert!(
                        number == newest + 1 || (reset && number > newest),
                        "{number}"
                    );
                    (newest, reset) = (number, false);
                }
                _ => {}
            }
        }
    }
    program.expect_sound();
}

/// More than is sent at once, of several rooms and to the user, to one who was away.
fn who_comes_back_is_given_all_of_a_long_absence_in_order(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let bearer = format!("Bearer {}", token_for("7", "", Duration::from_secs(3600)));
    let url = "/v1/stream?blog_id=a&blog_id=b";
    let mut reader = client.stream(url, &[("Authorization", &bearer)]);
    client.publish("blog:a", &json!("first"));
    let last = reader.next_named("message").id.unwrap();
    let url = format!("/v1/stream?ticket={}", reader.ticket());
    drop(reader);
    for number in 0..36 {
        let room = ["blog:a", "blog:b", "user:7"][number % 3];
        client.publish(room, &large(number));
    }
    let mut back = narrow_with(client, &url, &[("Last-Event-ID", &last)]);
    back.gulp = 64 << 10;
    for number in 36..40 {
        client.publish("blog:a", &large(number));
    }
    for number in 0..40 {
        let message = back.next_named("message");
        assert_eq!(message.data["data"], large(number), "message {number}");
    }
    let rest = back.rest(Duration::from_millis(300));
    assert!(rest.iter().all(|event| event.name == "count"), "{rest:?}");
}
