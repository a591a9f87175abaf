//! Messages that come faster than they can be told. How many wait at the most is shown where they
//! wait, in `delivery/words.rs` and `hub/outlet.rs`; here, that none is lost in silence.

use std::{
    collections::{BTreeMap, BTreeSet},
    thread,
};

use livecount::hub::RoomId;
use serde_json::json;
use tokio::time::Instant;

use crate::helpers::{Path, Reader, Service, token};

const ROOMS: [&str; 4] = ["blog:a", "blog:b", "blog:c", "user:7"];
const MESSAGES: u64 = 30_000;

/// What a reader was told, held against what was said: message `n` went to room `n % 4`.
#[derive(Default)]
struct Told {
    /// The newest message of each room since it was joined.
    newest: BTreeMap<String, u64>,
    /// Rooms that were reset since.
    reset: BTreeSet<String>,
    last: Option<u64>,
    resets: usize,
    messages: usize,
}

impl Told {
    /// Reads until the last message of `room`.
    fn read_to_the_last_of(mut self, reader: &mut Reader, room: &str) -> Self {
        loop {
            let event = reader.next();
            let of = event.room().to_owned();
            match event.name.as_str() {
                "joined" => {
                    assert!(!self.newest.contains_key(&of), "{of} is told before it");
                }
                "left" => {
                    self.newest.remove(&of);
                    self.reset.remove(&of);
                }
                "reset" => {
                    self.resets += 1;
                    self.reset.insert(of);
                }
                "message" => {
                    self.messages += 1;
                    let number = event.data["data"][0].as_u64().unwrap();
                    assert!(self.last < Some(number), "{number} after {:?}", self.last);
                    self.last = Some(number);
                    let before = self.newest.insert(of.clone(), number);
                    let was_reset = self.reset.remove(&of);
                    let next = before.is_none_or(|before| before + 4 == number);
                    assert!(next || was_reset, "{of}: {number} after {before:?}");
                    if of == room && number + 4 >= MESSAGES {
                        return self;
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn of_messages_that_come_too_fast_every_reader_gets_each_once_or_reset() {
    let service = Service::at(Path::Shard, "127.0.0.1:0".parse().unwrap(), 1, &[]);
    let client = service.client();
    let bearer = format!("Bearer {}", token("7", ""));
    let open = |number: usize| {
        let signed_in = [("Authorization", bearer.as_str())];
        let headers: &[(&str, &str)] = if number < 2 { &signed_in } else { &[] };
        client.stream("/v1/stream?blog_id=a&blog_id=b", headers)
    };
    let readers: Vec<Reader> = (0..4).map(open).collect();
    let mut hopper = open(4);
    let rooms = ROOMS.map(|room| RoomId::parse(room).unwrap());
    thread::scope(|scope| {
        let reading: Vec<_> = readers
            .into_iter()
            .map(|mut reader| {
                scope.spawn(move || Told::default().read_to_the_last_of(&mut reader, "blog:b"))
            })
            .collect();
        let (connection, ticket) = (hopper.connection(), hopper.ticket());
        let hopping =
            scope.spawn(move || Told::default().read_to_the_last_of(&mut hopper, "blog:b"));
        let hops = scope.spawn(move || {
            for round in 0..100 {
                let what = ["join", "leave"][round % 2];
                let path = format!("/v1/connections/{connection}/{what}");
                let body = json!({ "rooms": ["blog:c"] });
                assert_eq!(client.call("POST", &path, &ticket, &body).0, 200);
            }
        });
        let filler = "x".repeat(300);
        for number in 0..MESSAGES {
            let room = &rooms[usize::try_from(number % 4).unwrap()];
            let data = format!("[{number},\"{filler}\"]");
            let frame = |id| livecount::sse::message("message", room, &data, id);
            let hub = service.app.hub();
            hub.publish(room, None, frame, Instant::now()).unwrap();
        }
        hops.join().unwrap();
        let mut told: Vec<Told> = reading.into_iter().map(|r| r.join().unwrap()).collect();
        told.push(hopping.join().unwrap());
        let messages: usize = told.iter().map(|told| told.messages).sum();
        let resets: usize = told.iter().map(|told| told.resets).sum();
        println!("{messages} told, {resets} resets");
        // Or they all kept up, and the test shows nothing.
        assert!(resets > 0);
    });
}
