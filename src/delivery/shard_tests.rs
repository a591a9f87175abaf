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
    hub::{
        ConnectionId, Entry, Frame, Hub, Identity, Kick, Post, Resume, RoomId, RoomKey, SlotId,
        Tempo, Word,
    },
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
        self.adopt_in("blog:a", socket);
    }

    /// The same in another room.
    fn adopt_in(&mut self, room: &str, socket: TcpStream) -> ConnectionId {
        socket.set_nonblocking(true).unwrap();
        let now = Instant::now();
        let (connection, room) = (ConnectionId::random(), RoomId::parse(room).unwrap());
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
            by_ticket: false,
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
        connection
    }

    fn publish(&mut self, room: &str, data: &str) {
        let (room, now) = (RoomId::parse(room).unwrap(), Instant::now());
        let frame = |id| crate::sse::message("message", &room, data, id);
        self.hub.publish(&room, None, frame, now).unwrap();
    }

    /// Takes what the hub said, and tells it.
    fn take_words(&mut self) {
        let mut words = Vec::new();
        self.way.post.take(&mut words);
        for word in words {
            self.shard.sort(word);
        }
        self.shard.work();
    }

    fn ids(&self) -> Vec<SlotId> {
        let slots = self.shard.slots.iter();
        let ids = slots.map(|(index, slot)| SlotId {
            index: u32::try_from(index).unwrap(),
            generation: slot.generation,
        });
        ids.collect()
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
    for id in bench.ids() {
        bench.shard.drop_slot(id);
    }
    assert_eq!(bench.hub.totals().held, 0);
    assert_eq!(bench.shard.slots.capacity(), 0);
}

/// Reads up to what ends with `end`.
fn read_to(client: &mut TcpStream, end: &str) -> String {
    let mut said = Vec::new();
    while !said.ends_with(end.as_bytes()) {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        said.push(byte[0]);
    }
    String::from_utf8(said).unwrap()
}

#[test]
fn of_two_counts_that_wait_the_newer_is_told_and_the_older_noted_as_conflated() {
    let mut bench = Bench::new();
    let (mut client, ours) = bench.connect();
    bench.adopt(ours);
    // The hub's first room.
    let room = RoomKey::of_test(0, 1);
    for version in [7, 8] {
        let frame = Frame::of(format!("count {version}").as_bytes());
        bench.shard.sort(Word::Count(room, version, frame));
    }
    bench.shard.work();
    let said = read_to(&mut client, "count 8");
    assert!(!said.contains("count 7"), "{said}");
    let tally = bench.tally();
    assert_eq!((tally.conflated, tally.frames), (1, 1));
    assert_eq!(tally.bytes, "7\r\ncount 8\r\n".len() as u64);
}

#[test]
fn a_reader_that_does_not_keep_up_is_behind_until_it_does() {
    let mut bench = Bench::new();
    let (mut client, ours) = bench.connect();
    bench.adopt(ours);
    let room = RoomId::parse("blog:a").unwrap();
    let publish = |bench: &mut Bench, data: &str| {
        let frame = |id| crate::sse::message("message", &room, data, id);
        bench
            .hub
            .publish(&room, None, frame, Instant::now())
            .unwrap();
        bench.take_words();
    };
    let large = format!("\"{}\"", "x".repeat(60 << 10));
    let mut sent = 0;
    while bench.tally().behind == 0 {
        publish(&mut bench, &large);
        sent += 1;
        assert!(sent < 1_000, "there is room for everything");
    }
    publish(&mut bench, "\"last\"");
    assert_eq!(bench.tally().behind, 1);
    let reading = std::thread::spawn(move || read_to(&mut client, "\"last\"}\n\n"));
    let (id, deadline) = (bench.ids()[0], Instant::now() + Duration::from_secs(10));
    while bench.tally().behind > 0 {
        assert!(Instant::now() < deadline, "it never catches up");
        bench.shard.go_on(id);
    }
    reading.join().unwrap();
}

/// A shard with a large room that many messages were just sent to, and one reader of another.
fn flooded(messages: usize) -> (Bench, Vec<TcpStream>, TcpStream, ConnectionId) {
    let mut bench = Bench::new();
    let mut crowd = Vec::new();
    for _ in 0..100 {
        let (client, ours) = bench.connect();
        crowd.push(client);
        bench.adopt(ours);
    }
    let (client, ours) = bench.connect();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let connection = bench.adopt_in("blog:b", ours);
    for number in 0..messages {
        bench.publish("blog:a", &number.to_string());
    }
    (bench, crowd, client, connection)
}

#[test]
fn a_kick_does_not_wait_for_the_messages_of_others() {
    let (mut bench, _crowd, mut client, connection) = flooded(150);
    bench.publish("blog:b", "\"last\"");
    let kick = Kick {
        block: Duration::ZERO,
        everywhere: true,
        permitted: &|_| true,
    };
    bench.hub.kick(connection, kick, Instant::now()).unwrap();
    // All that is before it, its own message too, and no more: 15,000 writes are some 15 turns.
    for _ in 0..17 {
        bench.take_words();
    }
    let said = read_to(&mut client, "\r\n0\r\n\r\n");
    assert!(said.contains("\"last\"}"), "{said}");
    assert!(said.contains("\"kicked\""), "{said}");

    let (mut bench, _crowd, mut client, connection) = flooded(150);
    let kick = Kick {
        block: Duration::ZERO,
        everywhere: true,
        permitted: &|_| true,
    };
    bench.hub.kick(connection, kick, Instant::now()).unwrap();
    bench.take_words();
    let said = read_to(&mut client, "\r\n0\r\n\r\n");
    assert!(said.contains("\"kicked\""), "{said}");
}

#[test]
fn a_message_waits_for_no_more_than_some_writes_to_another_room() {
    let (mut bench, _crowd, mut client, _) = flooded(2_000);
    bench.publish("blog:b", "\"last\"");
    // 20,000 writes, and as many for each of a hundred readers as it is looked up.
    for _ in 0..30 {
        bench.take_words();
    }
    let said = read_to(&mut client, "\"last\"}\n\n");
    assert!(!said.contains("reset"), "{said}");
}
