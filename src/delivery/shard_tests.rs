//! What a shard does with its sockets, step by step and without a thread.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    sync::Arc,
    time::Duration,
};

use mio::{Interest, Poll, Token};
use tokio::time::Instant;

use super::{
    Subscription, Welcome,
    shard::Shard,
    shards::{Arrival, Tally, Way},
};
use crate::{
    hub::{ConnectionId, Entry, Hub, Identity, Post, Resume, RoomId, SlotId, Tempo},
    sse::Encoder,
};

struct Bench {
    shard: Shard,
    way: Arc<Way>,
    hub: Hub,
    listener: TcpListener,
}

impl Bench {
    fn new() -> Self {
        let tempo = Tempo {
            push_interval: Duration::from_millis(100),
            leave_grace: Duration::ZERO,
        };
        let hub = Hub::new(Box::new(Encoder), tempo);
        let post = Post::new(Box::new(|| {}));
        let number = hub.attach(Arc::clone(&post));
        let way = Arc::new(Way::new(post, Duration::from_secs(20)));
        Self {
            shard: Shard::new(Poll::new().unwrap(), Arc::clone(&way), number, hub.clone()),
            way,
            hub,
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
        }
    }

    /// A connection: the client's end and ours.
    fn connect(&self) -> (TcpStream, TcpStream) {
        let client = TcpStream::connect(self.listener.local_addr().unwrap()).unwrap();
        (client, self.listener.accept().unwrap().0)
    }

    /// Hands a socket over as the stream of somebody in `blog:a`.
    fn adopt(&mut self, socket: TcpStream) {
        let now = Instant::now();
        let (connection, room) = (ConnectionId::random(), RoomId::parse("blog:a").unwrap());
        let expires = now + Duration::from_secs(3_600);
        let registration = self.hub.register(Entry {
            connection,
            identity: Identity::Connection,
            rooms: vec![room.clone()],
            watching: Vec::new(),
            grants: None,
            expires,
            since_ms: 0,
            resume: Resume::Fresh,
        });
        let welcome = Welcome {
            connection,
            user: None,
            rooms: vec![room],
            watching: Vec::new(),
            ticket: String::new(),
            stream_url: String::new(),
        };
        self.shard.adopt(Arrival {
            socket,
            head: b"HTTP/1.1 200 OK\r\n\r\n".to_vec(),
            subscription: Subscription {
                registration,
                welcome: Box::new(welcome),
                expires,
                heartbeat: Duration::from_secs(20),
                admission: Box::new(()),
            },
            chunked: true,
            began: now,
        });
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.way.stats.add_to(&mut tally);
        tally
    }
}

#[test]
fn a_socket_that_cannot_be_watched_is_refused_softly_and_counted() {
    let mut bench = Bench::new();
    let (mut client, ours) = bench.connect();
    ours.set_nonblocking(true).unwrap();
    // The kernel watches no socket twice.
    let mut watched = mio::net::TcpStream::from_std(ours);
    let registry = bench.shard.poll.registry();
    registry
        .register(&mut watched, Token(9), Interest::READABLE)
        .unwrap();
    bench.adopt(watched.into());
    let mut said = String::new();
    client.read_to_string(&mut said).unwrap();
    assert!(
        said.contains("\nretry: ") && said.contains("\"overloaded\""),
        "{said}"
    );
    assert!(said.ends_with("\r\n0\r\n\r\n"), "{said}");
    assert_eq!(bench.tally().unwatched, 1);
    assert_eq!(bench.hub.totals().turnover.opened, 0);
    assert!(bench.shard.slots.is_empty());
}

#[test]
fn what_a_burst_of_streams_needed_is_given_back_after_the_last() {
    let mut bench = Bench::new();
    let mut clients = Vec::new();
    for _ in 0..100 {
        let (client, ours) = bench.connect();
        clients.push(client);
        bench.adopt(ours);
    }
    assert_eq!(bench.hub.totals().held, 100);
    assert!(bench.shard.slots.capacity() >= 100);
    let ids: Vec<SlotId> = bench
        .shard
        .slots
        .iter()
        .filter_map(|(index, slot)| {
            let index = u32::try_from(index).ok()?;
            let generation = slot.generation;
            Some(SlotId { index, generation })
        })
        .collect();
    for id in ids {
        bench.shard.drop_slot(id);
    }
    assert_eq!(bench.hub.totals().held, 0);
    assert_eq!(bench.shard.slots.capacity(), 0);
}
