//! The reference: the same service as one writes it first with axum, `Sse`, `KeepAlive` and
//! `tokio::sync::broadcast`; and a bare handler that answers with a count.

use std::{convert::Infallible, io, net::Ipv4Addr, thread};

use axum::{
    Json, Router,
    extract::State,
    http::{HeaderName, header},
    response::sse::{Event, KeepAlive, Sse},
    routing::get,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::broadcast};
use tokio_stream::{Stream, StreamExt, wrappers::BroadcastStream};

use super::report;
use crate::Result;

/// Changes that a slow reader may be behind.
const CAPACITY: usize = 16;

pub(super) fn play() -> Result<()> {
    // Ends with the benchmark, whatever ends that.
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(0);
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        // tokio's own `bind` allows 1,024 to wait, which a storm of joins overflows.
        let listener = livecount::server::bind((Ipv4Addr::LOCALHOST, 0).into())?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        report(&listener.local_addr()?)?;
        let router = Router::new()
            .route("/v1/stream", get(stream))
            .route("/v1/blogs/{blog_id}/count", get(count))
            .with_state(broadcast::Sender::new(CAPACITY));
        Ok(axum::serve(listener, router).await?)
    })
}

async fn stream(
    State(room): State<broadcast::Sender<usize>>,
) -> Sse<impl Stream<Item = std::result::Result<Event, Infallible>>> {
    let later = BroadcastStream::new(room.subscribe());
    let first = tokio_stream::once(room.receiver_count());
    let counts = first.chain(later.filter_map(std::result::Result::ok));
    let events = counts.map(|viewers| {
        let event = Event::default().event("count");
        Ok(event.data(body(viewers).to_string()))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

async fn count(
    State(room): State<broadcast::Sender<usize>>,
) -> ([(HeaderName, &'static str); 1], Json<Value>) {
    let cache = [(header::CACHE_CONTROL, "public, max-age=1")];
    (cache, Json(body(room.receiver_count())))
}

fn body(viewers: usize) -> Value {
    json!({"room": "blog:42", "blog_id": "42", "viewers": viewers, "connections": viewers, "members": 0})
}
