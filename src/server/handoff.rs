//! The hand-off: a stream's socket out of hyper and into the hands of a shard.
//!
//! The Router has answered, so every layer has run, when [`Handoff::consider`] sees the response.
//! A stream that may go is put aside and hyper is left waiting for a response that never comes;
//! right after that poll whoever drives the connection finds it, and takes the socket back.

use std::{sync::Arc, time::SystemTime};

use axum::{
    http::{HeaderMap, Method, StatusCode, Version, header},
    response::Response,
};
use parking_lot::Mutex;

use crate::delivery::{Offer, Subscription};

/// What there is to know of a request before it is given to the Router.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) method: Method,
    pub(super) version: Version,
}

/// A stream that was put aside.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) head: Vec<u8>,
    pub(super) subscription: Subscription,
    pub(super) chunked: bool,
}

/// Where one connection's stream is put aside.
#[derive(Debug, Clone, Default)]
pub(super) struct Handoff(Arc<Mutex<Option<Box<Aside>>>>);

impl Handoff {
    /// Puts a response's stream aside where it may leave hyper: over HTTP/1.x, asked for by `GET`
    /// or `POST`, answered with 200. Anything else keeps its body; true where it was put aside.
    ///
    /// A stream is offered only after the whole of its request's body was read, so whatever comes
    /// behind is none of it.
    pub(super) fn consider(&self, asked: &Asked, response: &Response) -> bool {
        let chunked = match asked.version {
            Version::HTTP_11 => true,
            Version::HTTP_10 => false,
            _ => return false,
        };
        let fit = response.status() == StatusCode::OK
            && (asked.method == Method::GET || asked.method == Method::POST);
        if !fit {
            return false;
        }
        let offer = response.extensions().get::<Offer>();
        let Some(subscription) = offer.and_then(Offer::take) else {
            return false;
        };
        *self.0.lock() = Some(Box::new(Aside {
            head: encode(response.headers(), chunked),
            subscription,
            chunked,
        }));
        true
    }

    /// Takes what was put aside.
    pub(super) fn take(&self) -> Option<Box<Aside>> {
        self.0.lock().take()
    }
}

/// The head of a stream's response. The connection ends with the stream; its length is not known,
/// so HTTP/1.1 frames it in chunks and HTTP/1.0 by the end.
fn encode(headers: &HeaderMap, chunked: bool) -> Vec<u8> {
    let mut head = Vec::with_capacity(512);
    head.extend_from_slice(if chunked {
        b"HTTP/1.1 200 OK\r\n"
    } else {
        b"HTTP/1.0 200 OK\r\n"
    });
    let framing = [
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
    ];
    for (name, value) in headers {
        if framing.contains(name) {
            continue;
        }
        head.extend_from_slice(name.as_str().as_bytes());
        head.extend_from_slice(b": ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    let date = httpdate::fmt_http_date(SystemTime::now());
    head.extend_from_slice(b"date: ");
    head.extend_from_slice(date.as_bytes());
    head.extend_from_slice(b"\r\nconnection: close\r\n");
    if chunked {
        head.extend_from_slice(b"transfer-encoding: chunked\r\n");
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_frames_the_body_as_the_version_knows_it() {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_LENGTH, "0".parse().unwrap());
        headers.insert(header::CONTENT_TYPE, "text/event-stream".parse().unwrap());
        let head = String::from_utf8(encode(&headers, true)).unwrap();
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(head.contains("content-type: text/event-stream\r\n"));
        assert!(head.contains("transfer-encoding: chunked\r\n"));
        assert!(!head.contains("content-length"));
        assert!(head.ends_with("\r\n\r\n"));
        let head = String::from_utf8(encode(&headers, false)).unwrap();
        assert!(head.starts_with("HTTP/1.0 200 OK\r\n"));
        assert!(!head.contains("chunked"));
    }
}
