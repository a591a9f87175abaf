//! Bytes that nobody foresaw, to a live service: it answers or closes, and counts right.
//!
//! `PROPTEST_CASES` sets how many of each are tried.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::Duration,
};

use livecount::{
    auth::ticket::TicketKeys,
    hub::{Frame, Position, RoomId},
    sse,
};
use proptest::{prelude::*, test_runner::TestRunner};
use serde_json::Value;

use crate::helpers::{Client, PATIENCE, Program, numbers};

const HEADS: [&str; 6] = [
    "GET /v1/stream?blog_id=a HTTP/1.1\r\nHost: l\r\n\r\n",
    "GET /v1/watch?blog_id=a&room=match:1 HTTP/1.0\r\n\r\n",
    "POST /v1/join HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\nAccept: text/event-stream\r\nContent-Length: 15\r\n\r\n{\"blog_id\":\"a\"}",
    "GET /v1/blogs/a/count HTTP/1.1\r\nHost: l\r\nAuthorization: Bearer x.y.z\r\n\r\n",
    "POST /v1/counts HTTP/1.1\r\nHost: l\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\n10\r\n{\"rooms\":[\"a:b\"]\r\n1\r\n}\r\n0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0",
];

/// So many tries, unless `PROPTEST_CASES` says otherwise.
fn tries(cases: u32) -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok();
    ProptestConfig {
        cases: asked.and_then(|text| text.parse().ok()).unwrap_or(cases),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Changes to a head that is right.
#[derive(Debug, Clone)]
enum Mutation {
    Put(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Cut(prop::sample::Index),
    Repeat,
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let index = || any::<prop::sample::Index>();
    let odd = prop_oneof![
        Just(b"\r\n".to_vec()),
        Just(b"\0".to_vec()),
        Just(b"%00%ff%".to_vec()),
        Just(b"&ticket=lct1.x".to_vec()),
        Just(b"Content-Length: 99999999999999999999\r\n".to_vec()),
        Just(b"Transfer-Encoding: chunked\r\n".to_vec()),
        Just(b"Upgrade: h2c\r\nConnection: upgrade\r\n".to_vec()),
        Just(vec![b'a'; 40 << 10]),
        prop::collection::vec(any::<u8>(), 1..20),
    ];
    prop_oneof![
        (index(), any::<u8>()).prop_map(|(at, byte)| Mutation::Put(at, byte)),
        (index(), odd).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
        (index(), 1..20_usize).prop_map(|(at, length)| Mutation::Remove(at, length)),
        index().prop_map(Mutation::Cut),
        Just(Mutation::Repeat),
    ]
}

fn mutated() -> impl Strategy<Value = Vec<u8>> {
    let mutations = prop::collection::vec(mutation(), 0..4);
    (prop::sample::select(&HEADS[..]), mutations).prop_map(|(head, mutations)| {
        let mut bytes = head.as_bytes().to_vec();
        for mutation in mutations {
            let length = bytes.len();
            if length == 0 {
                break;
            }
            match mutation {
                Mutation::Put(at, byte) => bytes[at.index(length)] = byte,
                Mutation::Insert(at, more) => {
                    let at = at.index(length);
                    bytes.splice(at..at, more);
                }
                Mutation::Remove(at, count) => {
                    let at = at.index(length);
                    bytes.drain(at..length.min(at + count));
                }
                Mutation::Cut(at) => bytes.truncate(at.index(length)),
                Mutation::Repeat => bytes.extend_from_within(..),
            }
        }
        bytes
    })
}

fn requests() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => mutated(),
        1 => prop::collection::vec(any::<u8>(), 0..2_000),
    ]
}

/// Sends the bytes in two parts and says no more: an answer, a close or both come at once, since
/// our side is closed.
fn expect_an_end(client: Client, bytes: &[u8], cut: usize) -> Result<(), TestCaseError> {
    let mut socket = client.connect();
    let (first, second) = bytes.split_at(cut.min(bytes.len()));
    let sent = socket.write_all(first).and_then(|()| {
        socket.write_all(second)?;
        // So that some of it is dealt with before the end of it is known.
        thread::sleep(Duration::from_millis(5));
        socket.shutdown(Shutdown::Write)
    });
    if let Err(error) = sent {
        let closed = [
            ErrorKind::BrokenPipe,
            ErrorKind::ConnectionReset,
            ErrorKind::NotConnected,
        ];
        prop_assert!(closed.contains(&error.kind()), "{error}");
    }
    read_to_the_end(&mut socket)
}

fn read_to_the_end(socket: &mut TcpStream) -> Result<(), TestCaseError> {
    // A head that begins as HTTP/2 does may be waited for, which ends after 10 s.
    socket
        .set_read_timeout(Some(Duration::from_secs(15)))
        .unwrap();
    let mut said = Vec::new();
    match socket.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) => prop_assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    if !said.is_empty() {
        let known = said.starts_with(b"HTTP/1.") || said.get(3) == Some(&4);
        prop_assert!(known, "{:?}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

#[test]
fn whatever_is_sent_is_answered_or_closed_and_never_miscounted() {
    let mut program = Program::start(&[], &[("LIVECOUNT_HEARTBEAT", "1s")]);
    let client = program.client();
    let mut faithful = client.join("faithful");
    let mut runner = TestRunner::new(tries(200));
    let cases = (requests(), any::<prop::sample::Index>());
    let result = runner.run(&cases, |(bytes, cut)| {
        expect_an_end(client, &bytes, cut.index(bytes.len() + 1))
    });
    result.unwrap_or_else(|error| panic!("{error}\n{}", program.log()));
    crate::helpers::until(PATIENCE, || {
        let token = crate::helpers::token("reader", "read");
        let (_, stats) = client.call("GET", "/v1/stats", &token, &Value::Null);
        (numbers(&stats) == (1, 1, 0))
            .then_some(())
            .ok_or(stats.to_string())
    });
    let _second = client.join("faithful");
    faithful.wait_for_count("blog:faithful", (2, 2, 0));
    program.expect_sound();
}

#[test]
fn a_stream_may_be_sent_anything_and_is_counted_right() {
    let mut program = Program::start(&[], &[]);
    let client = program.client();
    let mut runner = TestRunner::new(tries(100));
    let input = prop::collection::vec(any::<u8>(), 0..20_000);
    let result = runner.run(&(input, any::<bool>()), |(bytes, by_reset)| {
        let mut reader = client.join("a");
        // Too much of it ends the stream.
        let _ = reader.socket.write_all(&bytes);
        if by_reset {
            crate::helpers::reset(reader.socket);
        }
        crate::helpers::until(Duration::from_secs(1), || {
            let count = client.room("blog:a");
            (count.1 <= 1).then_some(()).ok_or(format!("{count:?}"))
        });
        Ok(())
    });
    result.unwrap_or_else(|error| panic!("{error}\n{}", program.log()));
    crate::helpers::until(Duration::from_secs(1), || {
        let count = client.room("blog:a");
        (count == (0, 0, 0))
            .then_some(())
            .ok_or(format!("{count:?}"))
    });
    program.expect_sound();
}

proptest! {
    #![proptest_config(tries(2_000))]

    #[test]
    fn no_text_but_an_issued_one_is_a_ticket(text in "(lct1\\.)?[A-Za-z0-9_.=-]{0,200}|\\PC{0,60}") {
        let keys = TicketKeys::new([b"a key of thirty-two bytes or more".as_slice()]);
        prop_assert!(keys.redeem(&text, 0).is_err());
    }

    #[test]
    fn a_message_is_one_chunk_and_one_event_whatever_it_says(
        text in "\\PC{0,300}|[\\x00-\\x7f]{0,300}",
        sequence in any::<u64>(),
    ) {
        let room = RoomId::parse("blog:a").unwrap();
        let data = Value::String(text);
        let id = Position { epoch: 7, sequence };
        let frame = sse::message("message", &room, &data.to_string(), id);
        let payload = unframe(&frame);
        prop_assert_eq!(&payload[..], &frame.payload()[..]);
        let event = String::from_utf8(payload).unwrap();
        let event = event.strip_suffix("\n\n").unwrap();
        prop_assert!(!event.contains("\n\n"));
        let data_line = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
        let said: Value = serde_json::from_str(data_line).unwrap();
        prop_assert_eq!(&said["data"], &data);
        prop_assert_eq!(event.lines().count(), 3);
    }

    #[test]
    fn any_bytes_are_one_chunk(bytes in prop::collection::vec(any::<u8>(), 1..5_000)) {
        prop_assert_eq!(unframe(&Frame::of(&bytes)), bytes);
    }
}

/// What a client makes of one chunk.
fn unframe(frame: &Frame) -> Vec<u8> {
    let chunk = frame.chunk();
    let line = chunk.windows(2).position(|two| two == b"\r\n").unwrap();
    let size = std::str::from_utf8(&chunk[..line]).unwrap();
    let size = usize::from_str_radix(size, 16).unwrap();
    let payload = chunk[line + 2..line + 2 + size].to_vec();
    assert_eq!(&chunk[line + 2 + size..], b"\r\n");
    payload
}
