//! Real sockets: heads in pieces, many requests on one connection, old and new HTTP, and every
//! way in which a reader goes.

use std::time::Duration;

use tokio::time::{Instant, timeout};

use crate::{
    helpers::Viewer,
    server::{Service, Wire},
};

/// A reader who goes, with a FIN or a reset, is counted out within this time.
const NOTICED: Duration = Duration::from_secs(1);

const STREAM: &str = "GET /v1/stream?blog_id=1 HTTP/1.1\r\nHost: localhost\r\n\r\n";
const COUNT: &str = "GET /v1/blogs/1/count HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// A viewer of blog 1 who was told of one more.
async fn beside_a_viewer(service: &Service, request: &str) -> (Viewer, Wire) {
    let mut viewer = service.app.join("1").await;
    assert_eq!(viewer.next_count().await, (1, 1, 0));
    let mut wire = service.say(request).await;
    wire.expect_stream().await;
    assert_eq!(viewer.next_count().await, (2, 2, 0));
    (viewer, wire)
}

/// Streams that left hyper, and streams that stayed the bodies of their responses.
fn both_ways() -> [Service; 2] {
    [Service::start(), Service::without_shards()]
}

async fn expect_counted_out(viewer: &mut Viewer) {
    let count = timeout(NOTICED, viewer.next_count()).await;
    assert_eq!(count.expect("it is noticed in time"), (1, 1, 0));
}

fn post_join(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
}

#[tokio::test]
async fn a_head_may_come_byte_by_byte() {
    let service = Service::start();
    let mut wire = service.connect().await;
    // Its first letter is that of HTTP/2's preface too.
    for byte in post_join("{\"blog_id\":1}").bytes() {
        wire.send(&[byte]).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.answer().await.status, 201);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let service = Service::start();
    let requests = ["/livez", "/v1/nothing", "/readyz", "/v1/blogs/1/count"]
        .map(|path| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"));
    let mut wire = service.say(&requests.concat()).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(wire.answer().await.status);
    }
    assert_eq!(statuses, [200, 404, 200, 200]);
}

#[tokio::test]
async fn a_stream_follows_its_join_on_one_connection() {
    let service = Service::start();
    let mut wire = service.say(&post_join("{\"blog_id\":1}")).await;
    let joined = wire.answer().await;
    let joined: serde_json::Value = serde_json::from_str(&joined.body).expect("it is JSON");
    let url = joined["stream_url"].as_str().expect("it has a stream");
    wire.send(format!("GET {url} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())
        .await;
    let head = wire.expect_stream().await;
    assert!(head.contains("cache-control: private, no-store, no-transform\r\n"));
    assert!(head.contains("x-accel-buffering: no\r\n"));
    assert!(head.contains("referrer-policy: no-referrer\r\n"));
}

#[tokio::test]
async fn a_head_request_for_a_stream_joins_nobody_and_keeps_the_connection() {
    let service = Service::start();
    let before = service.app.hub().totals();
    for path in ["/v1/stream?blog_id=1", "/v1/watch?blog_id=1"] {
        let mut wire = service
            .say(&format!("HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n"))
            .await;
        let head = wire.up_to("\r\n\r\n").await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(head.contains("content-type: text/event-stream\r\n"));
        wire.send(COUNT.as_bytes()).await;
        let count = wire.answer().await;
        assert!(count.body.contains("\"connections\":0"), "{count:?}");
    }
    assert_eq!(service.app.hub().totals(), before);
}

#[tokio::test]
async fn http_1_0_gets_a_stream_without_chunks() {
    let service = Service::start();
    let mut wire = service
        .say("GET /v1/stream?blog_id=1 HTTP/1.0\r\n\r\n")
        .await;
    let head = wire.up_to("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.0 200 OK\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
    let first = wire.take(7).await;
    assert_eq!(first, b"retry: ");
    wire.up_to("event: connected\n").await;
}

#[tokio::test]
async fn http_2_carries_streams_and_calls_on_one_connection() {
    let service = Service::start();
    let mut viewer = service.app.join("1").await;
    assert_eq!(viewer.next_count().await, (1, 1, 0));
    let mut client = Http2::connect(&service).await;
    client.get(1, "/v1/stream?blog_id=1").await;
    let stream = client.up_to(1, "event: count\n").await;
    assert!(stream.starts_with("retry: "), "{stream}");
    assert_eq!(viewer.next_count().await, (2, 2, 0));
    client.get(3, "/v1/blogs/1/count").await;
    let count = client.up_to(3, "}").await;
    assert!(count.contains("\"connections\":2"), "{count}");
    client.cancel(1).await;
    expect_counted_out(&mut viewer).await;
}

#[tokio::test]
async fn a_broken_http_2_connection_counts_all_its_streams_out() {
    let service = Service::start();
    let mut viewer = service.app.join("1").await;
    assert_eq!(viewer.next_count().await, (1, 1, 0));
    let mut client = Http2::connect(&service).await;
    for stream in [1, 3, 5] {
        client.get(stream, "/v1/stream?blog_id=1").await;
        client.up_to(stream, "event: count\n").await;
    }
    viewer.wait_for_count((4, 4, 0)).await;
    client.wire.reset();
    let gone = timeout(NOTICED, viewer.wait_for_count((1, 1, 0))).await;
    gone.expect("it is noticed in time");
}

#[tokio::test]
async fn a_get_with_a_body_is_a_stream_all_the_same() {
    for service in both_ways() {
        let request = "GET /v1/stream?blog_id=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello";
        let (mut viewer, wire) = beside_a_viewer(&service, request).await;
        drop(wire);
        expect_counted_out(&mut viewer).await;
    }
}

#[tokio::test]
async fn a_fin_counts_the_reader_out_within_a_second() {
    for service in both_ways() {
        let (mut viewer, wire) = beside_a_viewer(&service, STREAM).await;
        drop(wire);
        expect_counted_out(&mut viewer).await;
    }
}

#[tokio::test]
async fn a_half_closed_stream_is_one_that_its_reader_left() {
    for service in both_ways() {
        let (mut viewer, mut wire) = beside_a_viewer(&service, STREAM).await;
        wire.half_close().await;
        expect_counted_out(&mut viewer).await;
        wire.rest().await;
    }
}

#[tokio::test]
async fn a_reset_counts_the_reader_out_within_a_second() {
    for service in both_ways() {
        let (mut viewer, wire) = beside_a_viewer(&service, STREAM).await;
        wire.reset();
        expect_counted_out(&mut viewer).await;
    }
}

#[tokio::test]
async fn stray_bytes_behind_a_request_do_not_hide_that_its_reader_left() {
    for service in both_ways() {
        let request = format!("{STREAM}stray");
        let (mut viewer, wire) = beside_a_viewer(&service, &request).await;
        drop(wire);
        expect_counted_out(&mut viewer).await;
    }
}

#[tokio::test]
async fn a_reader_who_sends_without_end_is_shown_out() {
    let service = Service::start();
    let (mut viewer, mut wire) = beside_a_viewer(&service, STREAM).await;
    wire.send(&[b'x'; 20 << 10]).await;
    expect_counted_out(&mut viewer).await;
    wire.gone().await;
}

#[tokio::test]
async fn a_stream_that_is_over_ends_its_response_before_its_connection() {
    for service in both_ways() {
        for stray in ["", "stray"] {
            let mut wire = service.say(&format!("{STREAM}{stray}")).await;
            wire.expect_stream().await;
            service.app.hub().shut(1, Instant::now());
            let mut rest = wire.up_to("{\"reason\":\"shutdown\"}\n\n").await;
            rest += &wire.up_to("0\r\n\r\n").await;
            assert!(rest.ends_with("\n\n\r\n0\r\n\r\n"), "{rest:?}");
        }
    }
}

#[tokio::test]
async fn a_stream_that_is_over_is_closed_without_a_reset() {
    let service = Service::start();
    let mut wire = service.say(&format!("{STREAM}stray")).await;
    wire.expect_stream().await;
    service.app.hub().shut(1, Instant::now());
    assert!(wire.rest().await.ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn a_connection_that_closes_at_once_harms_nobody() {
    let service = Service::start();
    let before = service.app.hub().totals();
    for _ in 0..20 {
        drop(service.connect().await);
        service.connect().await.reset();
        service.say("GET /v1/str").await.reset();
        drop(service.say(&STREAM[..STREAM.len() - 2]).await);
    }
    let mut wire = service.say(COUNT).await;
    let count = wire.answer().await;
    assert!(count.body.contains("\"connections\":0"), "{count:?}");
    assert_eq!(service.app.hub().totals(), before);
}

#[tokio::test]
async fn a_call_is_answered_although_its_caller_has_closed_its_side() {
    let service = Service::start();
    let mut wire = service.say(&post_join("{\"blog_id\":1}")).await;
    wire.half_close().await;
    assert_eq!(wire.answer().await.status, 201);
    assert_eq!(wire.rest().await, "");
}

#[tokio::test]
async fn a_client_that_asks_before_it_sends_its_body_is_told_to_go_on() {
    let service = Service::start();
    let mut wire = service
        .say("POST /v1/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 13\r\nExpect: 100-continue\r\n\r\n")
        .await;
    assert_eq!(
        wire.up_to("\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    wire.send(b"{\"blog_id\":1}").await;
    assert_eq!(wire.answer().await.status, 201);
}

#[tokio::test]
async fn a_body_may_come_in_chunks() {
    let service = Service::start();
    let mut wire = service
        .say("POST /v1/join HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await;
    for chunk in ["6\r\n{\"blog\r\n", "7\r\n_id\":1}\r\n", "0\r\n\r\n"] {
        wire.send(chunk.as_bytes()).await;
        tokio::task::yield_now().await;
    }
    assert_eq!(wire.answer().await.status, 201);
}

#[tokio::test]
async fn a_body_that_breaks_off_joins_nobody() {
    let service = Service::start();
    let before = service.app.hub().totals();
    let request = post_join("{\"blog_id\":1}").replace("Length: 13", "Length: 14");
    let request = request.replace("Host:", "Accept: text/event-stream\r\nHost:");
    let mut wire = service.say(&request).await;
    wire.half_close().await;
    wire.answer().await.expect_problem(400, "bad_request");
    assert_eq!(service.app.hub().totals(), before);
}

#[tokio::test]
async fn a_malformed_head_is_a_problem_and_the_end_of_the_connection() {
    let service = Service::start();
    for head in [
        "NONSENSE\r\n\r\n",
        "GET /v1/blogs/1/count HTTP/7.1\r\n\r\n",
        "GET /v1/blogs/1/count HTTP/1.1\r\nHost localhost\r\n\r\n",
        "G\u{0}T / HTTP/1.1\r\n\r\n",
        "GET /v1/blogs/1/count HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    ] {
        let mut wire = service.say(head).await;
        let answer = wire.answer().await;
        answer.expect_problem(400, "bad_request");
        assert!(answer.head.contains("connection: close\r\n"), "{answer:?}");
        assert_eq!(wire.rest().await, "");
    }
}

#[tokio::test]
async fn a_head_of_70_kib_is_too_large() {
    let service = Service::start();
    let cookie = "c".repeat(70 << 10);
    let head = format!("GET /livez HTTP/1.1\r\nHost: localhost\r\nCookie: {cookie}\r\n\r\n");
    let mut wire = service.say(&head).await;
    let answer = wire.answer().await;
    answer.expect_problem(431, "head_too_large");
    assert_eq!(wire.rest().await, "");
}

#[tokio::test]
async fn a_head_of_more_than_100_fields_is_too_large() {
    let service = Service::start();
    let fields = "A: b\r\n".repeat(101);
    let head = format!("GET /livez HTTP/1.1\r\n{fields}\r\n");
    let answer = service.say(&head).await.answer().await;
    answer.expect_problem(431, "head_too_large");
}

#[tokio::test]
async fn an_address_of_70_kib_is_too_long() {
    let service = Service::start();
    let query = "q".repeat(70 << 10);
    let head = format!("GET /livez?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let mut wire = service.say(&head).await;
    let answer = wire.answer().await;
    answer.expect_problem(414, "uri_too_long");
    assert_eq!(wire.rest().await, "");
}

#[tokio::test]
async fn a_token_of_8_kib_beside_a_ticket_of_4000_characters_is_read() {
    let service = Service::start();
    let (ticket, token) = ("t".repeat(4_000), "a".repeat(8 << 10));
    let head = format!(
        "GET /v1/stream?ticket={ticket} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n\r\n"
    );
    let answer = service.say(&head).await.answer().await;
    answer.expect_problem(401, "invalid_ticket");
}

#[tokio::test]
async fn a_silent_connection_is_closed_after_ten_seconds() {
    expect_closed_after_ten_seconds("").await;
}

#[tokio::test]
async fn half_a_head_keeps_no_connection_open_for_more_than_ten_seconds() {
    expect_closed_after_ten_seconds("GET /v1/stream?blog_id=1 HTTP/1.1\r\nHost: local").await;
}

#[tokio::test]
async fn half_a_preface_keeps_no_connection_open_for_more_than_ten_seconds() {
    expect_closed_after_ten_seconds("PRI * HTTP/2").await;
}

#[tokio::test]
async fn a_connection_between_two_requests_is_closed_after_ten_seconds() {
    let service = Service::start();
    let mut wire = service.say(COUNT).await;
    wire.answer().await;
    expect_end_after_ten_seconds(&mut wire).await;
}

async fn expect_closed_after_ten_seconds(said: &str) {
    let service = Service::start();
    let mut wire = service.say(said).await;
    // Connections are served in the order of their coming: once this one is answered, the other
    // one's time runs, and only then may the clock jump.
    service.say(COUNT).await.answer().await;
    expect_end_after_ten_seconds(&mut wire).await;
}

async fn expect_end_after_ten_seconds(wire: &mut Wire) {
    tokio::time::pause();
    let start = Instant::now();
    wire.gone().await;
    let waited = start.elapsed();
    assert!(waited > Duration::from_secs(9), "after {waited:?}");
}

/// A client that speaks HTTP/2 from the start, as little of it as is needed (RFC 9113).
pub(crate) struct Http2 {
    wire: Wire,
    /// Data that came for a stream while another was read.
    unread: Vec<(u32, Vec<u8>)>,
}

impl Http2 {
    pub(crate) async fn connect(service: &Service) -> Self {
        let mut wire = service.say("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        wire.send(&frame(FrameKind::Settings, 0, 0, &[])).await;
        Self {
            wire,
            unread: Vec::new(),
        }
    }

    /// Asks for a path on a stream of its own. The head is written without compression (RFC 7541,
    /// section 6): two fields of the static table, two with the names of others.
    pub(crate) async fn get(&mut self, stream: u32, path: &str) {
        let mut head = vec![0x82, 0x86];
        for (name, value) in [(4, path), (1, "localhost")] {
            head.push(name);
            push_length(&mut head, value.len());
            head.extend_from_slice(value.as_bytes());
        }
        const END_STREAM_AND_HEADERS: u8 = 0x5;
        let frame = frame(FrameKind::Headers, END_STREAM_AND_HEADERS, stream, &head);
        self.wire.send(&frame).await;
    }

    async fn cancel(&mut self, stream: u32) {
        const CANCEL: [u8; 4] = [0, 0, 0, 8];
        let frame = frame(FrameKind::Reset, 0, stream, &CANCEL);
        self.wire.send(&frame).await;
    }

    /// Reads a stream's data up to and with `mark`.
    pub(crate) async fn up_to(&mut self, stream: u32, mark: &str) -> String {
        loop {
            let mut came = Vec::new();
            for (_, data) in self.unread.iter().filter(|(of, _)| *of == stream) {
                came.extend_from_slice(data);
            }
            let text = String::from_utf8(came).expect("it is UTF-8");
            if text.contains(mark) {
                self.unread.retain(|(of, _)| *of != stream);
                return text;
            }
            let head = self.wire.take(9).await;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let of = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let payload = self.wire.take(length as usize).await;
            match head[3] {
                kind if kind == FrameKind::Data as u8 => self.unread.push((of, payload)),
                kind if kind == FrameKind::Reset as u8 => panic!("stream {of} was reset"),
                kind if kind == FrameKind::GoAway as u8 => panic!("the service goes away"),
                _ => {}
            }
        }
    }
}

/// Writes a length as HTTP/2's heads have it: seven bits, and what is beyond them in groups of
/// seven (RFC 7541, section 5.1).
fn push_length(head: &mut Vec<u8>, length: usize) {
    let Some(mut beyond) = length.checked_sub(127) else {
        head.push(u8::try_from(length).expect("it is below 127"));
        return;
    };
    head.push(127);
    while beyond >= 128 {
        head.push(u8::try_from(beyond % 128 + 128).expect("it is below 256"));
        beyond /= 128;
    }
    head.push(u8::try_from(beyond).expect("it is below 128"));
}

#[derive(Clone, Copy)]
enum FrameKind {
    Data = 0,
    Headers = 1,
    Reset = 3,
    Settings = 4,
    GoAway = 7,
}

fn frame(kind: FrameKind, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("it is short");
    let mut frame = length.to_be_bytes()[1..].to_vec();
    frame.extend([kind as u8, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}
