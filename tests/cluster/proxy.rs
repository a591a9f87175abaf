//! A proxy between one node and Redis that can do to the link what networks do, and more.
//!
//! It knows where frames of Redis' protocol begin and end, so that a reply is lost or a request
//! doubled as a whole, and every later reply belongs to another request than it seems to.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use crate::{
    dice::Dice,
    resp::{self, Reply},
};

/// By how many milliseconds the clock that scripts see is ahead of the server's own, where a link
/// fakes it. A key of the tests' own.
pub(crate) const CLOCK: &str = "tests:clock";

/// What is wrong with a link; nothing by default.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// Open connections break, new ones are closed at once.
    pub(crate) cut: bool,
    /// Connections stay, and can be made, but nothing passes in either direction.
    pub(crate) stalled: bool,
    /// Every reply and push comes so much later.
    pub(crate) delay: Duration,
    /// Of so many replies and pushes, one is lost, by chance; 0 loses none.
    pub(crate) lose_one_in: usize,
    /// Whatever is published is lost; replies are not.
    pub(crate) lose_pushes: bool,
    /// Of so many requests, one arrives twice, by chance; 0 doubles none.
    pub(crate) double_one_in: usize,
    /// Replies are held back by chance for up to this, in order within a connection.
    pub(crate) hold_replies: Duration,
    /// Published messages are held back by chance for up to this, and so overtake each other.
    pub(crate) hold_pushes: Duration,
}

/// What becomes of a request with a certain text in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trap {
    /// Its connection breaks, and the request is not done. Once.
    Break,
    /// It is lost without a sign. Once.
    Lose,
    /// It is lost without a sign, and so is every other one like it.
    LoseAll,
}

/// The proxy of one node. Ends, with its connections, when dropped.
#[derive(Debug)]
pub(crate) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    fakes_clock: bool,
    weather: watch::Sender<Weather>,
    dice: Mutex<Dice>,
    requests: Mutex<BTreeMap<String, u64>>,
    trap: Mutex<Option<(Vec<u8>, Trap)>>,
}

impl Proxy {
    /// One in fair weather before the Redis there; chance begins at the seed.
    pub(crate) async fn before(upstream: SocketAddr, seed: u64) -> Self {
        Self::with(upstream, seed, false).await
    }

    /// One that has scripts see the time that [`CLOCK`] says. Every script then goes over the link
    /// as a whole, since Redis knows none by the name that the node gives it.
    pub(crate) async fn faking_clock(upstream: SocketAddr, seed: u64) -> Self {
        Self::with(upstream, seed, true).await
    }

    async fn with(upstream: SocketAddr, seed: u64, fakes_clock: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port is free");
        let shared = Arc::new(Shared {
            upstream,
            fakes_clock,
            weather: watch::Sender::new(Weather::default()),
            dice: Mutex::new(Dice::new(seed)),
            requests: Mutex::default(),
            trap: Mutex::default(),
        });
        Self {
            address: listener.local_addr().expect("it is bound"),
            accepting: tokio::spawn(accept(listener, Arc::clone(&shared))),
            shared,
        }
    }

    /// The URL that the node is to be given.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the weather for all connections, open and to come.
    pub(crate) fn set(&self, weather: Weather) {
        self.shared.weather.send_replace(weather);
    }

    /// Fair weather again.
    pub(crate) fn clear(&self) {
        self.set(Weather::default());
    }

    /// Has this happen to a request with this text in it, until [`Self::disarm`].
    pub(crate) fn arm(&self, text: &str, trap: Trap) {
        *self.shared.trap.lock() = Some((text.as_bytes().to_vec(), trap));
    }

    /// From now on nothing happens to any request; true where a trap still waited.
    pub(crate) fn disarm(&self) -> bool {
        self.shared.trap.lock().take().is_some()
    }

    /// Commands that the node has sent so far, by name; one script counts as one command.
    pub(crate) fn requests(&self) -> BTreeMap<String, u64> {
        self.shared.requests.lock().clone()
    }
}

impl Shared {
    /// What becomes of this request, where it is caught.
    fn sprung(&self, request: &[u8]) -> Option<Trap> {
        let mut armed = self.trap.lock();
        let (text, trap) = armed.as_ref()?;
        let mut parts = request.windows(text.len());
        if !parts.any(|part| part == text) {
            return None;
        }
        let trap = *trap;
        if trap != Trap::LoseAll {
            *armed = None;
        }
        Some(trap)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.set(Weather {
            cut: true,
            ..Weather::default()
        });
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    loop {
        let (node, _) = listener.accept().await.expect("descriptors are left");
        if shared.weather.borrow().cut {
            continue;
        }
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let mut weather = shared.weather.subscribe();
            tokio::select! {
                // Either side's end is the end of both.
                _ = carry(node, &shared) => {}
                _ = weather.wait_for(|weather| weather.cut) => {}
            }
        });
    }
}

async fn carry(node: TcpStream, shared: &Shared) -> io::Result<()> {
    let redis = TcpStream::connect(shared.upstream).await?;
    node.set_nodelay(true)?;
    redis.set_nodelay(true)?;
    let (from_node, to_node) = node.into_split();
    let (from_redis, to_redis) = redis.into_split();
    tokio::select! {
        done = requests(from_node, to_redis, shared) => done,
        done = replies(from_redis, to_node, shared) => done,
    }
}

/// Waits while nothing passes.
async fn unstalled(shared: &Shared) {
    let mut weather = shared.weather.subscribe();
    // The sender is in what is shared, so it is not gone.
    let _ = weather.wait_for(|weather| !weather.stalled).await;
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    while from.read_buf(&mut bytes).await? > 0 {
        unstalled(shared).await;
        while let Some((length, request)) = resp::frame(&bytes)? {
            let name = request
                .items()
                .first()
                .map_or_else(String::new, Reply::text);
            let name = name.to_ascii_uppercase();
            let frame: Vec<u8> = bytes.drain(..length).collect();
            match shared.sprung(&frame) {
                None => {}
                Some(Trap::Break) => return Ok(()),
                Some(Trap::Lose | Trap::LoseAll) => continue,
            }
            let frame = match name.as_str() {
                "EVAL" if shared.fakes_clock => with_faked_clock(&request),
                _ => frame,
            };
            *shared.requests.lock().entry(name).or_default() += 1;
            to.write_all(&frame).await?;
            let one_in = shared.weather.borrow().double_one_in;
            if shared.dice.lock().is_one_in(one_in) {
                to.write_all(&frame).await?;
            }
        }
    }
    Ok(())
}

/// A script's call, the script taking its time from [`CLOCK`].
fn with_faked_clock(request: &Reply) -> Vec<u8> {
    const TIME: &str = "redis.call('TIME')";
    let faked = format!(
        "(function() local time = {TIME} local ms = time[1] * 1000 + math.floor(time[2] / 1000) \
         + (redis.call('GET', '{CLOCK}') or 0) \
         return {{ string.format('%d', math.floor(ms / 1000)), string.format('%d', ms % 1000 * 1000) }} \
         end)()"
    );
    let words = request.items().iter().enumerate();
    let words: Vec<Vec<u8>> = words
        .map(|(at, word)| match (at, word) {
            (1, script) => script.text().replace(TIME, &faked).into_bytes(),
            (_, Reply::Text(text)) => text.clone(),
            (_, other) => other.text().into_bytes(),
        })
        .collect();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    resp::request(&words)
}

/// What waits to be written to the node, the first due on top.
type Queue = BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>;

async fn replies(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    shared: &Shared,
) -> io::Result<()> {
    let mut bytes = Vec::new();
    let mut queue = Queue::new();
    let mut number = 0;
    let mut last_reply = Instant::now();
    loop {
        let due = queue.peek().map(|Reverse((due, ..))| *due);
        tokio::select! {
            read = from.read_buf(&mut bytes) => if read? == 0 {
                return Ok(());
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
        }
        unstalled(shared).await;
        while let Some((length, reply)) = resp::frame(&bytes)? {
            let frame = bytes.drain(..length).collect();
            let weather = *shared.weather.borrow();
            let mut dice = shared.dice.lock();
            let pushed = is_message(&reply);
            if dice.is_one_in(weather.lose_one_in) || (pushed && weather.lose_pushes) {
                continue;
            }
            let due = Instant::now() + weather.delay;
            let due = if pushed {
                due + dice.up_to(weather.hold_pushes)
            } else {
                last_reply = last_reply.max(due + dice.up_to(weather.hold_replies));
                last_reply
            };
            number += 1;
            queue.push(Reverse((due, number, frame)));
        }
        let now = Instant::now();
        while queue.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((.., frame))) = queue.pop() {
                to.write_all(&frame).await?;
            }
        }
    }
}

/// True for what was published, in either version of the protocol.
fn is_message(reply: &Reply) -> bool {
    let kind = reply.items().first().map_or_else(String::new, Reply::text);
    matches!(kind.as_str(), "message" | "smessage" | "pmessage")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{redis::Redis, resp::Connection};

    const SHORT: Duration = Duration::from_millis(200);

    async fn link() -> (Redis, Proxy, Connection) {
        let redis = Redis::start().await;
        let proxy = Proxy::before(redis.address(), 1).await;
        let connection = Connection::to(proxy.address()).await.unwrap();
        (redis, proxy, connection)
    }

    #[tokio::test]
    async fn a_cut_link_breaks_and_refuses_until_it_is_mended() {
        let (_redis, proxy, mut open) = link().await;
        assert_eq!(open.call(&["PING"]).await.unwrap().text(), "PONG");
        proxy.set(Weather {
            cut: true,
            ..Weather::default()
        });
        assert!(open.call(&["PING"]).await.is_err());
        let refused = async { Connection::to(proxy.address()).await?.call(&["PING"]).await };
        assert!(refused.await.is_err());
        proxy.clear();
        let mut again = Connection::to(proxy.address()).await.unwrap();
        assert_eq!(again.call(&["PING"]).await.unwrap().text(), "PONG");
        assert_eq!(proxy.requests()["PING"], 2);
    }

    #[tokio::test]
    async fn a_stalled_link_is_silent_and_then_says_everything() {
        let (_redis, proxy, mut open) = link().await;
        assert_eq!(open.call(&["PING"]).await.unwrap().text(), "PONG");
        proxy.set(Weather {
            stalled: true,
            ..Weather::default()
        });
        let silent = tokio::time::timeout(SHORT, open.call(&["PING"])).await;
        assert!(silent.is_err(), "{silent:?}");
        proxy.clear();
        assert_eq!(open.next(SHORT * 10).await.unwrap().text(), "PONG");
    }

    #[tokio::test]
    async fn replies_come_late_not_at_all_or_twice() {
        let (_redis, proxy, mut open) = link().await;
        proxy.set(Weather {
            delay: SHORT,
            ..Weather::default()
        });
        let began = Instant::now();
        assert_eq!(open.call(&["PING"]).await.unwrap().text(), "PONG");
        assert!(began.elapsed() >= SHORT);

        proxy.set(Weather {
            double_one_in: 1,
            ..Weather::default()
        });
        let first = open.call(&["INCR", "n"]).await.unwrap();
        assert_eq!(first, Reply::Integer(1));
        proxy.clear();
        let shifted = open.call(&["PING"]).await.unwrap();
        assert_eq!(shifted, Reply::Integer(2), "it answers the request before");
        assert_eq!(open.next(SHORT * 10).await.unwrap().text(), "PONG");

        proxy.set(Weather {
            lose_one_in: 1,
            ..Weather::default()
        });
        let lost = tokio::time::timeout(SHORT, open.call(&["ECHO", "lost"])).await;
        assert!(lost.is_err(), "{lost:?}");
    }

    #[tokio::test]
    async fn a_request_that_is_caught_is_lost_or_breaks_its_connection() {
        let (_redis, proxy, mut open) = link().await;
        proxy.arm("caught", Trap::Lose);
        let lost = tokio::time::timeout(SHORT, open.call(&["ECHO", "is caught"])).await;
        assert!(lost.is_err(), "{lost:?}");
        assert!(!proxy.disarm());
        assert_eq!(
            open.call(&["ECHO", "caught"]).await.unwrap().text(),
            "caught"
        );
        proxy.arm("caught", Trap::LoseAll);
        for _ in 0..2 {
            let lost = tokio::time::timeout(SHORT, open.call(&["ECHO", "caught"])).await;
            assert!(lost.is_err(), "{lost:?}");
        }
        assert!(proxy.disarm());
        proxy.arm("caught", Trap::Break);
        assert_eq!(open.call(&["PING"]).await.unwrap().text(), "PONG");
        assert!(open.call(&["ECHO", "caught"]).await.is_err());
    }

    #[tokio::test]
    async fn scripts_see_the_clock_that_a_test_sets() {
        const ASK: [&str; 3] = ["EVAL", "return redis.call('TIME')[1]", "0"];
        let redis = Redis::start().await;
        let proxy = Proxy::faking_clock(redis.address(), 1).await;
        let mut link = Connection::to(proxy.address()).await.unwrap();
        let seconds = |reply: Reply| reply.text().parse::<i64>().unwrap();
        let real = seconds(redis.call(&ASK).await.unwrap());
        assert!((0..=5).contains(&(seconds(link.call(&ASK).await.unwrap()) - real)));
        for hours in [1, -1] {
            let ahead = (hours * 3_600_000).to_string();
            redis.call(&["SET", CLOCK, &ahead]).await.unwrap();
            let shown = seconds(link.call(&ASK).await.unwrap());
            assert!((0..=5).contains(&(shown - real - hours * 3_600)), "{shown}");
        }
    }

    #[tokio::test]
    async fn held_messages_overtake_each_other_and_replies_do_not() {
        let (redis, proxy, mut open) = link().await;
        proxy.set(Weather {
            hold_pushes: SHORT,
            hold_replies: SHORT,
            ..Weather::default()
        });
        let subscribed = open.call(&["SUBSCRIBE", "c"]).await.unwrap();
        assert_eq!(subscribed.items()[0].text(), "subscribe");
        let sent: Vec<String> = (0..20).map(|number| number.to_string()).collect();
        for number in &sent {
            redis.call(&["PUBLISH", "c", number]).await.unwrap();
        }
        let mut heard = Vec::new();
        for _ in &sent {
            let message = open.next(SHORT * 10).await.unwrap();
            heard.push(message.items()[2].text());
        }
        assert_ne!(heard, sent, "by the seed of this proxy");
        heard.sort_by_key(|number| number.parse::<u32>().unwrap());
        assert_eq!(heard, sent);

        let mut calls = Connection::to(proxy.address()).await.unwrap();
        for number in &sent {
            let echo = calls.call(&["ECHO", number]).await.unwrap();
            assert_eq!(echo.text(), *number);
        }
    }
}
