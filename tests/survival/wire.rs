//! Requests as no library would send them: the right answer, and the right count after it.

use std::{
    io::{Read, Write},
    net::Shutdown,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::helpers::{
    PATIENCE, Path, Reader, Service, get, numbers, on_both_paths, read_answer, read_head, request,
    reset, token,
};

const STREAM: &[u8] = b"GET /v1/stream?blog_id=a HTTP/1.1\r\nHost: l\r\n\r\n";
const LIVE: &[u8] = b"GET /livez HTTP/1.1\r\nHost: l\r\n\r\n";

on_both_paths!(
    a_head_that_comes_byte_by_byte_is_answered,
    a_ticket_and_its_stream_fit_one_connection,
    a_post_that_accepts_events_is_the_stream_itself,
    what_is_pipelined_before_a_stream_is_answered_first,
    what_is_pipelined_before_a_stream_is_whole_however_slowly_it_is_read,
    what_is_pipelined_after_a_stream_is_never_answered,
    a_head_request_is_never_counted,
    http_1_0_gets_a_stream_without_chunks,
    http_2_without_being_asked_for_gets_a_stream,
    a_get_with_a_body_gets_its_stream,
    a_get_is_answered_when_its_body_is_whole,
    a_post_that_expects_continue_gets_its_stream,
    an_immediate_close_leaves_nobody_counted,
    a_half_closed_reader_is_a_reader_no_more,
    a_half_closed_call_is_answered,
    half_a_head_and_a_close_are_answered_at_once,
    a_head_that_is_no_http_is_a_problem,
    a_head_that_is_too_large_is_a_problem,
    a_silent_connection_is_closed_after_ten_seconds,
);

/// The reader is a good one, and counted until it leaves.
fn expect_counted(service: &Service, mut reader: Reader) {
    let count = reader.next_named("count");
    assert_eq!(numbers(&count.data), (1, 1, 0));
    assert_eq!(service.count("a"), (1, 1, 0));
    service.client().publish("blog:a", &json!("hello"));
    assert_eq!(reader.next_named("message").data["data"], "hello");
    drop(reader);
    service.wait_for("a", 0, Duration::from_secs(1));
}

fn a_head_that_comes_byte_by_byte_is_answered(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    for byte in STREAM {
        socket.write_all(&[*byte]).unwrap();
        thread::sleep(Duration::from_millis(2));
    }
    expect_counted(&service, Reader::of(socket).connected());
}

fn a_ticket_and_its_stream_fit_one_connection(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    let body = r#"{"blog_id":"a"}"#;
    let post = format!(
        "POST /v1/join HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    socket.write_all(post.as_bytes()).unwrap();
    let (status, answer) = read_answer(&mut socket);
    assert_eq!(status, 201, "{answer}");
    assert_eq!(service.count("a"), (0, 0, 0));
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let url = answer["stream_url"].as_str().unwrap();
    socket.write_all(&get(url, &[])).unwrap();
    expect_counted(&service, Reader::of(socket).connected());
}

fn a_post_that_accepts_events_is_the_stream_itself(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    // The body in a segment of its own, cut in two.
    let head = "POST /v1/join HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: 15\r\n\r\n";
    for part in [head, r#"{"blog_i"#, r#"d":"a"}"#] {
        socket.write_all(part.as_bytes()).unwrap();
        thread::sleep(Duration::from_millis(20));
    }
    expect_counted(&service, Reader::of(socket).connected());
}

fn what_is_pipelined_before_a_stream_is_answered_first(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    let requests = [LIVE, LIVE, LIVE, STREAM].concat();
    socket.write_all(&requests).unwrap();
    for _ in 0..3 {
        assert_eq!(read_answer(&mut socket).0, 200);
    }
    expect_counted(&service, Reader::of(socket).connected());
}

fn what_is_pipelined_before_a_stream_is_whole_however_slowly_it_is_read(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect_narrow(4 << 10);
    let rooms: Vec<String> = (0..1_000).map(|n| format!("blog:{n}")).collect();
    let large = request(
        "POST",
        "/v1/counts",
        &token("7", "read"),
        &json!({ "rooms": rooms }),
    );
    let large = String::from_utf8(large)
        .unwrap()
        .replace("Connection: close\r\n", "");
    let requests = [large.as_bytes(), large.as_bytes(), STREAM].concat();
    socket.write_all(&requests).unwrap();
    // Both answers are far larger than the buffers between here and there.
    thread::sleep(Duration::from_millis(300));
    for _ in 0..2 {
        let (status, body) = read_answer(&mut socket);
        assert_eq!(status, 200);
        let counts: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(counts["counts"].as_array().unwrap().len(), 1_000);
    }
    expect_counted(&service, Reader::of(socket).connected());
}

fn what_is_pipelined_after_a_stream_is_never_answered(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    socket.write_all(&[STREAM, LIVE].concat()).unwrap();
    let mut reader = Reader::of(socket).connected();
    reader.next_named("count");
    // Whatever came between would break the framing, which the reader checks.
    service.client().publish("blog:a", &json!("hello"));
    assert_eq!(reader.next_named("message").data["data"], "hello");
    assert_eq!(service.count("a"), (1, 1, 0));
}

fn a_head_request_is_never_counted(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    for target in ["/v1/stream?blog_id=a", "/v1/watch?blog_id=a"] {
        let head = format!("HEAD {target} HTTP/1.1\r\nHost: l\r\n\r\n");
        socket.write_all(head.as_bytes()).unwrap();
        let head = read_head(&mut socket);
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(head.contains("text/event-stream"), "{head}");
        assert_eq!(service.app.hub().totals().turnover.opened, 0);
    }
    // The connection is good for more.
    socket.write_all(STREAM).unwrap();
    expect_counted(&service, Reader::of(socket).connected());
}

fn http_1_0_gets_a_stream_without_chunks(path: Path) {
    let service = Service::start(path);
    let client = service.client();
    let mut socket = client.connect();
    socket
        .write_all(b"GET /v1/stream?blog_id=a HTTP/1.0\r\n\r\n")
        .unwrap();
    let mut reader = Reader::of(socket).connected();
    assert!(reader.head.starts_with("http/1.0 200"), "{}", reader.head);
    assert!(
        !reader.head.contains("transfer-encoding"),
        "{}",
        reader.head
    );
    let count = reader.next_named("count");
    assert_eq!(numbers(&count.data), (1, 1, 0));
    // A frame made for everybody, which others get in chunks.
    let mut other = client.join("a");
    reader.wait_for_count("blog:a", (2, 2, 0));
    client.publish("blog:a", &json!("hello"));
    assert_eq!(reader.next_named("message").data["data"], "hello");
    assert_eq!(other.next_named("message").data["data"], "hello");
    let url = format!("/v1/connections/{}", reader.connection());
    let ticket = reader.ticket();
    assert_eq!(client.call("DELETE", &url, &ticket, &Value::Null).0, 204);
    assert_eq!(reader.reason(), "left");
    assert_eq!(service.count("a"), (1, 1, 0));
}

fn http_2_without_being_asked_for_gets_a_stream(path: Path) {
    let service = Service::start(path);
    let url = format!("http://{}/v1/stream?blog_id=a", service.address);
    let mut curl = Command::new("curl")
        .args(["-sN", "--http2-prior-knowledge", "-D", "-", &url])
        .stdout(Stdio::piped())
        .spawn()
        .expect("curl is installed");
    service.wait_for("a", 1, PATIENCE);
    let _other = service.client().join("a");
    service.wait_for("a", 2, PATIENCE);
    thread::sleep(Duration::from_millis(500));
    curl.kill().unwrap();
    let mut said = String::new();
    let mut output = curl.stdout.take().unwrap();
    output.read_to_string(&mut said).unwrap();
    curl.wait().unwrap();
    assert!(said.starts_with("HTTP/2 200"), "{said}");
    assert!(said.contains("event: connected\n"), "{said}");
    assert!(said.contains("\"viewers\":1,\"connections\":1"), "{said}");
    assert!(said.contains("\"viewers\":2,\"connections\":2"), "{said}");
    service.wait_for("a", 1, Duration::from_secs(1));
}

fn a_get_with_a_body_gets_its_stream(path: Path) {
    let service = Service::start(path);
    let head = "GET /v1/stream?blog_id=a HTTP/1.1\r\nHost: l\r\n";
    for rest in [
        "Content-Length: 5\r\n\r\nhello",
        "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    ] {
        let mut socket = service.client().connect();
        socket
            .write_all(format!("{head}{rest}").as_bytes())
            .unwrap();
        let mut reader = Reader::of(socket).connected();
        assert_eq!(numbers(&reader.next_named("count").data), (1, 1, 0));
        service.client().publish("blog:a", &json!("hello"));
        assert_eq!(reader.next_named("message").data["data"], "hello");
        drop(reader);
        service.wait_for("a", 0, Duration::from_secs(1));
    }
}

/// Longer than what a stream's reader may say, and not yet there when the head is.
fn a_get_is_answered_when_its_body_is_whole(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    let head = "GET /v1/stream?blog_id=a HTTP/1.1\r\nHost: l\r\nContent-Length: 50000\r\n\r\n";
    socket.write_all(head.as_bytes()).unwrap();
    for _ in 0..5 {
        thread::sleep(Duration::from_millis(50));
        assert_eq!(service.count("a"), (0, 0, 0));
        socket.write_all(&[b'x'; 10_000]).unwrap();
    }
    expect_counted(&service, Reader::of(socket).connected());
    let large = head.replace("50000", "70000") + &"x".repeat(70_000);
    expect_problem(&service, large.as_bytes(), 413, "body_too_large");
    assert_eq!(service.app.hub().totals().turnover.opened, 1);
}

fn a_post_that_expects_continue_gets_its_stream(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    let head = "POST /v1/join HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\nExpect: 100-continue\r\nContent-Length: 15\r\n\r\n";
    socket.write_all(head.as_bytes()).unwrap();
    assert!(read_head(&mut socket).starts_with("HTTP/1.1 100 "));
    socket.write_all(br#"{"blog_id":"a"}"#).unwrap();
    expect_counted(&service, Reader::of(socket).connected());
}

fn an_immediate_close_leaves_nobody_counted(path: Path) {
    let service = Service::start(path);
    for round in 0..60 {
        let mut socket = service.client().connect();
        match round % 3 {
            0 => socket.write_all(STREAM).unwrap(),
            1 => socket.write_all(&STREAM[..30]).unwrap(),
            _ => {}
        }
        if round % 2 == 0 {
            reset(socket);
        }
    }
    thread::sleep(Duration::from_millis(100));
    service.wait_for("a", 0, Duration::from_secs(1));
    let held = service.app.hub().totals().held;
    assert_eq!(held, 0);
}

fn a_half_closed_reader_is_a_reader_no_more(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    socket.write_all(STREAM).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut said = Vec::new();
    // The service's end of it may be a FIN or a RST.
    let _ = socket.read_to_end(&mut said);
    service.wait_for("a", 0, Duration::from_secs(1));
    // The same of one that has read a while.
    let mut reader = service.client().join("a");
    reader.next_named("count");
    reader.half_close();
    service.wait_for("a", 0, Duration::from_secs(1));
}

fn a_half_closed_call_is_answered(path: Path) {
    let service = Service::start(path);
    let mut socket = service.client().connect();
    socket.write_all(LIVE).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
}

fn half_a_head_and_a_close_are_answered_at_once(path: Path) {
    let service = Service::start(path);
    for half in [&STREAM[..20], b"PRI * HT"] {
        let mut socket = service.client().connect();
        socket.write_all(half).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let start = Instant::now();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        let waited = start.elapsed();
        assert!(waited < Duration::from_secs(3), "closed after {waited:?}");
        let problem = answer.starts_with("HTTP/1.1 400 ") || answer.is_empty();
        assert!(problem, "{answer}");
    }
}

fn expect_problem(service: &Service, head: &[u8], status: u16, code: &str) {
    let (found, body) = service.client().ask(head);
    let problem: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{found} {body}"));
    assert_eq!(
        (found, &problem["code"]),
        (status, &json!(code)),
        "{problem}"
    );
}

fn a_head_that_is_no_http_is_a_problem(path: Path) {
    let service = Service::start(path);
    expect_problem(&service, b"hello\r\n\r\n", 400, "bad_request");
    expect_problem(
        &service,
        b"GET / HTTP/1.1\r\nbad header\r\n\r\n",
        400,
        "bad_request",
    );
    // One that begins as HTTP/2 does.
    expect_problem(&service, b"PRI * HTTP/1.1\r\n\r\n", 404, "not_found");
}

fn a_head_that_is_too_large_is_a_problem(path: Path) {
    let service = Service::start(path);
    let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "x".repeat(128 << 10));
    expect_problem(&service, long.as_bytes(), 431, "head_too_large");
}

fn a_silent_connection_is_closed_after_ten_seconds(path: Path) {
    let service = Service::start(path);
    let start = Instant::now();
    let silent = service.client().connect();
    let mut halting = service.client().connect();
    halting.write_all(&STREAM[..20]).unwrap();
    let mut preface = service.client().connect();
    preface.write_all(b"PRI * HT").unwrap();
    for mut socket in [silent, halting, preface] {
        let wait = Duration::from_secs(15);
        socket.set_read_timeout(Some(wait)).unwrap();
        let mut said = Vec::new();
        let end = socket.read_to_end(&mut said);
        assert!(start.elapsed() < wait, "{end:?} {said:?}");
    }
    assert!(
        start.elapsed() > Duration::from_secs(8),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(service.app.hub().totals().turnover.opened, 0);
}

/// A browser opens connections in advance, and uses them again.
#[test]
fn the_latency_of_a_join_is_that_of_its_request_and_not_of_its_connection() {
    let service = Service::start(Path::Shard);
    let client = service.client();
    let mut early = client.connect();
    let mut used = client.connect();
    used.write_all(&get("/livez", &[])).unwrap();
    assert_eq!(read_answer(&mut used).0, 200);
    let age = Duration::from_secs(2);
    thread::sleep(age);
    for socket in [&mut early, &mut used] {
        socket.write_all(&get("/v1/stream?blog_id=a", &[])).unwrap();
    }
    let _readers = [early, used].map(|socket| Reader::of(socket).connected());
    let (_, text) = client.ask(b"GET /metrics HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n");
    let name = "livecount_join_latency_seconds_sum ";
    let sum = text.lines().find_map(|line| line.strip_prefix(name));
    let sum: f64 = sum.and_then(|sum| sum.parse().ok()).expect(&text);
    assert!(sum < age.as_secs_f64(), "{sum} s");
}
