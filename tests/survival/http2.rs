//! HTTP/2 as no library speaks it: frames by hand, and floods of them.

use std::{
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::Duration,
};

use crate::helpers::{Client, Path, Service, token, token_for};

/// Kinds of frames (RFC 9113, section 6), and one that there is not.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const UNKNOWN: u8 = 0xbb;
const ACK: u8 = 1;
/// `END_STREAM` and `END_HEADERS`.
const WHOLE: u8 = 0x1 | 0x4;

/// A frame (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
    frame.extend_from_slice(payload);
    frame
}

/// A header field with a name of the static table, never indexed (RFC 7541, section 6.2.2).
fn field(name: &[u8], value: &str) -> Vec<u8> {
    let mut field = name.to_vec();
    let mut length = value.len();
    if length < 127 {
        field.push(u8::try_from(length).unwrap());
    } else {
        field.push(127);
        length -= 127;
        while length >= 128 {
            field.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        field.push(u8::try_from(length).unwrap());
    }
    field.extend_from_slice(value.as_bytes());
    field
}

/// Opens a stream of blog `a` with a window of so many bytes.
pub(crate) fn open(client: Client, token: &str, window: u32) -> TcpStream {
    let mut socket = client.connect();
    let headers = [
        vec![0x82, 0x86],
        field(&[0x04], "/v1/stream?blog_id=a"),
        field(&[0x01], "localhost"),
        field(&[0x0f, 0x08], &format!("Bearer {token}")),
    ]
    .concat();
    let window = [&[0, 4][..], &window.to_be_bytes()].concat();
    let opening = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        frame(SETTINGS, 0, 0, &window),
        frame(HEADERS, WHOLE, 1, &headers),
        frame(SETTINGS, ACK, 0, &[]),
    ];
    socket.write_all(&opening.concat()).unwrap();
    socket
}

/// Its body is never asked for more, and neither heartbeat nor kernel find anything wrong.
#[test]
fn an_http_2_reader_with_a_shut_window_is_counted_out_when_its_token_ends() {
    let service = Service::start(Path::Shard);
    let token = token_for("7", "", Duration::from_secs(3));
    let _socket = open(service.client(), &token, 1);
    service.wait_for("a", 1, Duration::from_secs(2));
    let taken = service.wait_for("a", 0, Duration::from_secs(8));
    assert!(taken > Duration::from_secs(1), "after {taken:?} already");
    assert_eq!(service.app.hub().totals().turnover.broken, 0);
}

/// Sends one thing over and over to a stream's connection, which is closed for it and counted out.
fn flood(what: &[u8]) {
    let service = Service::start(Path::Shard);
    let mut socket = open(service.client(), &token("7", ""), 65_535);
    service.wait_for("a", 1, Duration::from_secs(2));
    let mut answers = socket.try_clone().unwrap();
    let reading = thread::spawn(move || {
        let mut waste = [0; 64 << 10];
        while answers.read(&mut waste).is_ok_and(|read| read > 0) {}
    });
    let many = what.repeat((64 << 10) / what.len());
    let mut sent = 0;
    while socket.write_all(&many).is_ok() {
        sent += many.len();
        assert!(sent < 64 << 20, "somebody takes it all");
    }
    service.wait_for("a", 0, Duration::from_secs(1));
    reading.join().unwrap();
}

#[test]
fn a_flood_of_pings_holds_no_count() {
    flood(&frame(PING, 0, 0, b"12345678"));
}

#[test]
fn a_flood_of_settings_holds_no_count() {
    flood(&frame(SETTINGS, 0, 0, &[]));
}

#[test]
fn a_flood_of_frames_that_are_to_be_ignored_holds_no_count() {
    flood(&frame(UNKNOWN, 0, 0, &[0; 4_096]));
}

#[test]
fn a_flood_of_garbage_holds_no_count() {
    flood(b"this is no frame of any kind at all");
    flood(&frame(DATA, 0, 1, b"to a stream that takes no more"));
}
