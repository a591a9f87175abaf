//! Everything at once: joins and leaves of every kind for a while, and then every number equals
//! the truth, and nothing is left when all have left.
//!
//! `CHURN_SECONDS` says for how long, 30 by default; `CHURN_SEED` repeats a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
    net::TcpStream,
    thread,
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::Instant;

use crate::{
    helpers::{Client, PATIENCE, Path, Program, Reader, Service, numbers, reset, token, until},
    http2,
};

const WORKERS: u64 = 8;
/// Joins and leaves a second, all workers together.
const RATE: u32 = 1_000;
/// Bytes a join that are no leak yet: half of the smallest record there is.
const LEAK: u64 = 32;
/// What an allocator may keep more after one round than after another.
const SLACK: u64 = 256 << 10;
/// Most streams that one worker holds.
const HELD: usize = 40;
const ROOMS: [&str; 6] = ["blog:a", "blog:b", "blog:c", "blog:d", "match:1", "match:2"];

/// Numbers that look random and come again with their seed (xorshift64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % sides as u64).unwrap()
    }

    fn room(&mut self) -> &'static str {
        ROOMS[self.roll(ROOMS.len())]
    }
}

/// Who a stream counts for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Who {
    Itself(String),
    Viewer(String),
    Member(String),
}

/// A stream, and what is true of it.
struct Live {
    reader: Reader,
    who: Who,
    joined: BTreeSet<String>,
    watched: BTreeSet<String>,
    /// What its ticket says, and so what it is in after it comes back.
    of_ticket: BTreeSet<String>,
}

struct Worker {
    client: Client,
    dice: Dice,
    lives: Vec<Live>,
    /// Streams that are the bodies of HTTP/2's answers, each by its member. All are in `blog:a`.
    bodies: Vec<Body>,
    with_bodies: bool,
    steps: u64,
}

/// One of them, which nobody reads.
struct Body {
    socket: TcpStream,
    who: Who,
}

impl Worker {
    fn run(mut self, until: Instant) -> Self {
        let pace = Duration::from_secs(1) * u32::try_from(WORKERS).unwrap() / RATE;
        let start = Instant::now();
        while Instant::now() < until {
            self.step();
            self.steps += 1;
            let due = pace * u32::try_from(self.steps).unwrap();
            thread::sleep(due.saturating_sub(start.elapsed()));
        }
        self
    }

    fn step(&mut self) {
        if self.with_bodies && self.dice.roll(5) == 0 {
            return self.step_body();
        }
        let joins = self.lives.is_empty() || self.dice.roll(2) == 0;
        if joins && self.lives.len() < HELD {
            return self.join();
        }
        let index = self.dice.roll(self.lives.len());
        match self.dice.roll(10) {
            0 | 1 => self.replace(index),
            2 | 3 => self.change(index),
            _ => {
                let live = self.lives.swap_remove(index);
                self.leave(live);
            }
        }
    }

    /// Opens or closes a stream that is a body.
    fn step_body(&mut self) {
        if self.bodies.is_empty() || (self.bodies.len() < HELD && self.dice.roll(2) == 0) {
            let someone = format!("n{}", self.dice.roll(30));
            self.bodies.push(Body {
                socket: http2::open(self.client, &token(&someone, ""), 65_535),
                who: Who::Member(someone),
            });
            return;
        }
        let body = self.bodies.swap_remove(self.dice.roll(self.bodies.len()));
        if self.dice.roll(2) == 0 {
            reset(body.socket);
        }
    }

    fn join(&mut self) {
        let rooms: BTreeSet<String> = (0..=self.dice.roll(3))
            .map(|_| self.dice.room().to_owned())
            .filter(|room| room.starts_with("blog:"))
            .chain(["blog:a".to_owned()])
            .collect();
        let mut url = "/v1/stream?".to_owned();
        for room in &rooms {
            url += &format!("room={room}&");
        }
        let someone = format!("n{}", self.dice.roll(30));
        let (reader, who) = match self.dice.roll(3) {
            0 => {
                let reader = self.client.stream(&url, &[]);
                let who = Who::Itself(reader.connection());
                (reader, who)
            }
            1 => {
                let url = format!("{url}viewer={someone}");
                (self.client.stream(&url, &[]), Who::Viewer(someone))
            }
            _ => {
                let bearer = format!("Bearer {}", token(&someone, ""));
                let reader = self.client.stream(&url, &[("Authorization", &bearer)]);
                (reader, Who::Member(someone))
            }
        };
        self.lives.push(Live {
            reader,
            who,
            of_ticket: rooms.clone(),
            joined: rooms,
            watched: BTreeSet::new(),
        });
    }

    fn leave(&mut self, live: Live) {
        let url = format!("/v1/connections/{}", live.reader.connection());
        match self.dice.roll(6) {
            0 => drop(live),
            1 => reset(live.reader.socket),
            2 => {
                let mut live = live;
                // It may be told that nobody listens.
                let _ = live.reader.socket.write_all(b"stray");
            }
            3 => {
                live.reader.half_close();
                thread::sleep(Duration::from_millis(1));
            }
            4 => {
                let (status, _) =
                    self.client
                        .call("DELETE", &url, &live.reader.ticket(), &Value::Null);
                assert_eq!(status, 204);
            }
            _ => {
                let manager = token("manager", "admin");
                let body = json!({ "block": 0 });
                let (status, _) = self.client.call("DELETE", &url, &manager, &body);
                assert_eq!(status, 204);
            }
        }
    }

    fn replace(&mut self, index: usize) {
        let live = &mut self.lives[index];
        let url = format!("/v1/stream?ticket={}", live.reader.ticket());
        let newer = self.client.stream(&url, &[]);
        assert_eq!(newer.connection(), live.reader.connection());
        live.reader = newer;
        live.joined.clone_from(&live.of_ticket);
        live.watched.clear();
    }

    fn change(&mut self, index: usize) {
        let room = ["blog:a", "blog:b", "blog:c", "blog:d"][self.dice.roll(4)];
        let what = ["join", "leave", "watch", "unwatch"][self.dice.roll(4)];
        let live = &mut self.lives[index];
        let (status, answer) = live.reader.change(self.client, what, &[room]);
        assert_eq!(status, 200, "{answer}");
        match what {
            "join" => {
                live.watched.remove(room);
                live.joined.insert(room.to_owned());
            }
            "leave" => {
                live.joined.remove(room);
            }
            "watch" if !live.joined.contains(room) => {
                live.watched.insert(room.to_owned());
            }
            "unwatch" => {
                live.watched.remove(room);
            }
            _ => {}
        }
        let names = |rooms: &Value| -> BTreeSet<String> {
            let names = rooms.as_array().unwrap().iter();
            let names = names.map(|name| name.as_str().unwrap().to_owned());
            names.filter(|name| !name.starts_with("user:")).collect()
        };
        assert_eq!(names(&answer["rooms"]), live.joined);
        assert_eq!(names(&answer["watching"]), live.watched);
    }
}

/// What every room's numbers are, counted by hand.
fn truth(lives: &[Live], bodies: &[Body]) -> BTreeMap<&'static str, (u64, u64, u64)> {
    let of = |room: &'static str| {
        let there = lives.iter().filter(|live| live.joined.contains(room));
        let bodies = bodies.iter().filter(|_| room == "blog:a");
        let there: Vec<&Who> = there
            .map(|live| &live.who)
            .chain(bodies.map(|body| &body.who))
            .collect();
        let viewers: BTreeSet<&Who> = there.iter().copied().collect();
        let members = viewers.iter().filter(|who| matches!(who, Who::Member(_)));
        let number = |n: usize| u64::try_from(n).unwrap();
        let counts = (
            number(viewers.len()),
            number(there.len()),
            number(members.count()),
        );
        (room, counts)
    };
    ROOMS.into_iter().map(of).collect()
}

/// Reads until the newest count of each of the stream's rooms is the true one, and stays it.
fn expect_told(live: &mut Live, truth: &BTreeMap<&'static str, (u64, u64, u64)>) {
    let rooms: Vec<&String> = live.joined.iter().chain(&live.watched).collect();
    let mut newest = BTreeMap::new();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let wrong = rooms
            .iter()
            .find(|room| newest.get(room.as_str()) != truth.get(room.as_str()));
        // Once all is right, whatever lies in buffers must not make it wrong again.
        let patience = if wrong.is_none() {
            Duration::from_millis(1)
        } else {
            Duration::from_secs(1)
        };
        match live.reader.next_within(patience) {
            Ok(Some(event)) if event.name == "count" => {
                newest.insert(event.room().to_owned(), numbers(&event.data));
            }
            Ok(Some(event)) => assert_ne!(event.name, "closed", "{event:?}"),
            Ok(None) => panic!("the stream ended"),
            Err(_) if wrong.is_none() => return,
            Err(error) => assert!(
                Instant::now() < deadline,
                "{error}: told {newest:?} of {rooms:?}, and the truth is {truth:?}"
            ),
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Churns for so long; answers the streams that are left.
fn churn(client: Client, time: Duration, seed: u64, with_bodies: bool) -> (Vec<Live>, Vec<Body>) {
    let idle_before = idle();
    let until_then = Instant::now() + time;
    let workers: Vec<_> = (1..=WORKERS)
        .map(|number| Worker {
            client,
            dice: Dice(seed.wrapping_mul(number) | 1),
            lives: Vec::new(),
            bodies: Vec::new(),
            with_bodies,
            steps: 0,
        })
        .map(|worker| thread::spawn(move || worker.run(until_then)))
        .collect();
    let mut steps = 0;
    let (mut lives, mut bodies) = (Vec::new(), Vec::new());
    for worker in workers {
        let worker = worker.join().expect("a worker meets only what it expects");
        steps += worker.steps;
        lives.extend(worker.lives);
        bodies.extend(worker.bodies);
    }
    let rate = steps as f64 / time.as_secs_f64();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let idle = (idle() - idle_before) / time.as_secs_f64() / cores as f64;
    println!(
        "{rate:.0} steps a second, {idle:.2} of the machine idle, {} streams and {} bodies left",
        lives.len(),
        bodies.len()
    );
    // A machine with other work to do may be too slow for it; one with time left is not.
    let least = f64::from(RATE) * if idle < 0.2 { 0.1 } else { 0.8 };
    assert!(
        rate >= least,
        "{rate:.0} steps a second, while {idle:.2} of the machine was idle"
    );
    (lives, bodies)
}

/// Seconds that all cores together had nothing to do since the machine started.
fn idle() -> f64 {
    let uptime = std::fs::read_to_string("/proc/uptime").expect("Linux tells");
    let idle = uptime.split_whitespace().nth(1);
    idle.and_then(|idle| idle.parse().ok()).expect("a number")
}

/// Every number is the true one, in every answer and on every stream.
fn expect_true(client: Client, lives: &mut [Live], bodies: &[Body]) {
    let truth = truth(lives, bodies);
    for (room, expected) in &truth {
        until(Duration::from_secs(2), || {
            let found = client.room(room);
            let right = found == *expected;
            right
                .then_some(())
                .ok_or(format!("{room} is {found:?} and not {expected:?}"))
        });
    }
    let (_, stats) = client.call("GET", "/v1/stats", &token("reader", "read"), &Value::Null);
    let open = lives.len() + bodies.len();
    assert_eq!(stats["connections"], json!(open), "{stats}");
    for live in lives {
        expect_told(live, &truth);
    }
}

/// Waits until nothing is left of anybody; answers how many streams were ever opened.
fn expect_nobody(program: &Program, descriptors: usize) -> u64 {
    let client = program.client();
    for room in ROOMS {
        until(PATIENCE, || {
            let found = client.room(room);
            (found == (0, 0, 0))
                .then_some(())
                .ok_or(format!("{room} is {found:?}"))
        });
    }
    until(PATIENCE, || {
        let now = program.descriptors();
        let back = now <= descriptors + 1;
        back.then_some(())
            .ok_or(format!("{now} descriptors, once {descriptors}"))
    });
    for record in ["connections", "viewers", "members", "kept_rooms", "behind"] {
        let left = client.metric(&format!("livecount_{record}"));
        assert_eq!(left, 0, "{record}");
    }
    let opened = client.metric("livecount_opened_total");
    assert_eq!(opened, client.metric("livecount_closed_total"));
    opened
}

#[test]
fn after_churn_with_bodies_among_the_streams_every_number_is_true() {
    let seconds = setting("CHURN_SECONDS").unwrap_or(30) / 5;
    let seed = setting("CHURN_SEED").unwrap_or_else(rand::random);
    println!("CHURN_SEED={seed}");
    let environment = [("LIVECOUNT_MAX_CONNECTIONS_PER_MEMBER", "1000")];
    let mut program = Program::start(&[], &environment);
    let client = program.client();
    client.room("blog:a");
    let descriptors = program.descriptors();
    let (mut lives, bodies) = churn(client, Duration::from_secs(seconds), seed, true);
    expect_true(client, &mut lives, &bodies);
    drop((lives, bodies));
    expect_nobody(&program, descriptors);
    program.expect_sound();
}

/// Twice, so that what the second leaves behind is told from what a process grows to anyway.
#[test]
fn after_churn_every_number_is_true_and_after_all_left_nothing_is_held() {
    let seconds = setting("CHURN_SECONDS").unwrap_or(30);
    let seed = setting("CHURN_SEED").unwrap_or_else(rand::random);
    println!("CHURN_SECONDS={seconds} CHURN_SEED={seed}");
    // With one arena, what the allocator keeps is nearly the same each time.
    let environment = [
        ("LIVECOUNT_MAX_CONNECTIONS_PER_MEMBER", "1000"),
        ("MALLOC_ARENA_MAX", "1"),
    ];
    let mut program = Program::start(&[], &environment);
    let client = program.client();
    client.room("blog:a");
    let descriptors = program.descriptors();
    let mut rounds = Vec::new();
    for round in 1..=2 {
        let time = Duration::from_secs(seconds) * round / 3;
        let (mut lives, bodies) = churn(client, time, seed.wrapping_add(round.into()), false);
        expect_true(client, &mut lives, &bodies);
        drop((lives, bodies));
        let opened = expect_nobody(&program, descriptors);
        rounds.push((opened, program.memory_kib() << 10));
    }
    let (joins, grown) = (
        rounds[1].0 - rounds[0].0,
        rounds[1].1.saturating_sub(rounds[0].1),
    );
    println!("{joins} joins in the second round, grown by {grown} bytes");
    assert!(
        grown < joins * LEAK + SLACK,
        "{grown} bytes after {joins} joins"
    );
    program.expect_sound();
}

/// More than a pass tells in one turn, so that passes are interrupted, and slots leave and join
/// in their midst.
#[test]
fn a_large_room_is_told_everything_in_order_while_half_of_it_leaves() {
    const JOINS: usize = 3_000;
    const MESSAGES: usize = 40;
    let service = Service::at(Path::Shard, "127.0.0.1:0".parse().unwrap(), 1, &[]);
    let client = service.client();
    let mut dice = Dice(rand::random::<u64>() | 1);
    let mut readers: Vec<Reader> = (0..JOINS).map(|_| client.join("a")).collect();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..MESSAGES {
                client.publish("blog:a", &json!(number));
                thread::sleep(Duration::from_millis(20));
            }
        });
        for round in 0..JOINS / 2 {
            let reader = readers.swap_remove(dice.roll(readers.len()));
            if round % 2 == 0 {
                reset(reader.socket);
            }
            if round % 3 == 0 {
                drop(client.join("a"));
            }
        }
    });
    let left = u64::try_from(readers.len()).unwrap();
    service.wait_for("a", u32::try_from(left).unwrap(), PATIENCE);
    client.publish("blog:a", &json!(MESSAGES));
    let mut first = readers.swap_remove(0);
    first.wait_for_count("blog:a", (left, left, 0));
    for reader in &mut readers {
        let mut expected = 0;
        let mut newest = (0, 0, 0);
        while expected <= MESSAGES || newest != (left, left, 0) {
            let event = reader.next();
            match event.name.as_str() {
                "message" => {
                    assert_eq!(event.data["data"], json!(expected));
                    expected += 1;
                }
                "count" => newest = numbers(&event.data),
                _ => {}
            }
        }
    }
}
