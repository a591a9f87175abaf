//! A Redis for nodes in this process, on the test's clock.
//!
//! Redis is a process with a clock of its own. A runtime with nothing to run moves a paused clock
//! to its next timer, so while Redis works every timeout would fire; and what scripts take the
//! time from would stand still. So nodes meet Redis over a link within the runtime: it keeps the
//! runtime busy while a call is under way, and has scripts see the time that has passed here.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::resp::{self, Reply};

/// Real time in which what Redis sends unasked has come, counted from any traffic.
const LINGER: Duration = Duration::from_millis(2);
/// How often a read that waits in Redis for news is asked again, in the test's time.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The way of nodes to a Redis. Ends with the test's runtime.
#[derive(Debug)]
pub(crate) struct Link {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    redis: SocketAddr,
    /// The key at which scripts find how far the test's clock is ahead, in milliseconds.
    clock: String,
    began: (Instant, SystemTime),
    busy: Busy,
}

impl Link {
    /// One of the test's own; `name` is like no other's. Must be called within its runtime.
    pub(crate) async fn before(redis: SocketAddr, name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            redis,
            clock: format!("{name}clock"),
            began: (Instant::now(), SystemTime::now()),
            busy: Busy::keep(),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((node, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                // Either side's end is the end of both.
                tokio::spawn(async move { carry(node, &shared).await });
            }
        });
        Self { address, shared }
    }

    /// The URL that a node is to be given.
    pub(crate) fn url(&self) -> String {
        format!("redis://{}/", self.address)
    }

    /// The same future, each step of which keeps the clock until what it sent has been seen.
    pub(crate) async fn watch<T>(&self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|context| {
            let _busy = self.shared.busy.hold();
            future.as_mut().poll(context)
        })
        .await
    }
}

/// One side of a connection, read frame by frame.
struct Side {
    socket: TcpStream,
    bytes: Vec<u8>,
}

impl Side {
    fn of(socket: TcpStream) -> io::Result<Self> {
        socket.set_nodelay(true)?;
        let bytes = Vec::new();
        Ok(Self { socket, bytes })
    }

    /// The next frame and what it says. Cancel safe.
    async fn next(&mut self) -> io::Result<(Vec<u8>, Reply)> {
        loop {
            if let Some((length, said)) = resp::frame(&self.bytes)? {
                return Ok((self.bytes.drain(..length).collect(), said));
            }
            if self.socket.read_buf(&mut self.bytes).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn say(&mut self, frame: &[u8]) -> io::Result<()> {
        self.socket.write_all(frame).await
    }
}

/// Serves one call after the other, and passes on what comes unasked.
async fn carry(node: TcpStream, shared: &Shared) -> io::Result<()> {
    let mut node = Side::of(node)?;
    let mut redis = {
        let _busy = shared.busy.hold();
        Side::of(TcpStream::connect(shared.redis).await?)?
    };
    loop {
        tokio::select! {
            call = node.next() => {
                let (frame, call) = call?;
                let words: Vec<Vec<u8>> = call.items().iter().map(bytes_of).collect();
                let name = words.first().map(|name| name.to_ascii_uppercase());
                match name.as_deref().unwrap_or_default() {
                    b"XREAD" => read_log(&mut node, &mut redis, words, shared).await?,
                    b"EVAL" | b"EVALSHA" => {
                        let _busy = shared.busy.hold();
                        let ahead = shared.ahead().to_string();
                        let set = resp::request(&[b"SET", shared.clock.as_bytes(), ahead.as_bytes()]);
                        redis.say(&set).await?;
                        redis.next().await?;
                        redis.say(&shared.with_clock(&words)).await?;
                        replies(&mut node, &mut redis, 1).await?;
                    }
                    b"SUBSCRIBE" | b"UNSUBSCRIBE" => {
                        let _busy = shared.busy.hold();
                        redis.say(&frame).await?;
                        replies(&mut node, &mut redis, words.len() - 1).await?;
                    }
                    _ => {
                        let _busy = shared.busy.hold();
                        redis.say(&frame).await?;
                        replies(&mut node, &mut redis, 1).await?;
                    }
                }
            }
            unasked = redis.next() => {
                let _busy = shared.busy.hold();
                node.say(&unasked?.0).await?;
            }
        }
    }
}

/// Passes on so many replies, and what comes unasked among them.
async fn replies(node: &mut Side, redis: &mut Side, count: usize) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        let (frame, said) = redis.next().await?;
        let is_message = said
            .items()
            .first()
            .is_some_and(|kind| kind.text() == "message");
        left -= usize::from(!is_message);
        node.say(&frame).await?;
    }
    Ok(())
}

/// A read of a stream, which waits for news by the test's clock and not in Redis.
async fn read_log(
    node: &mut Side,
    redis: &mut Side,
    mut words: Vec<Vec<u8>>,
    shared: &Shared,
) -> io::Result<()> {
    let wait = words
        .iter()
        .position(|word| word.eq_ignore_ascii_case(b"BLOCK"));
    let wait = wait.map(|at| {
        let taken: Vec<Vec<u8>> = words.drain(at..at + 2).collect();
        let millis = String::from_utf8_lossy(&taken[1]).parse();
        Duration::from_millis(millis.expect("a time in milliseconds"))
    });
    let until = Instant::now() + wait.unwrap_or_default();
    let words: Vec<&[u8]> = words.iter().map(Vec::as_slice).collect();
    let call = resp::request(&words);
    loop {
        {
            let _busy = shared.busy.hold();
            redis.say(&call).await?;
            let (frame, said) = redis.next().await?;
            if said != Reply::Nil || Instant::now() >= until {
                return node.say(&frame).await;
            }
        }
        sleep(ASK_AGAIN).await;
    }
}

fn bytes_of(word: &Reply) -> Vec<u8> {
    match word {
        Reply::Text(text) => text.clone(),
        other => other.text().into_bytes(),
    }
}

impl Shared {
    /// How far the test's clock is ahead of the real one, in milliseconds.
    fn ahead(&self) -> i128 {
        let (began, really) = self.began;
        let real = really.elapsed().unwrap_or_default().as_millis();
        began.elapsed().as_millis() as i128 - real as i128
    }

    /// A script's call, the script taking its time from the test's clock.
    fn with_clock(&self, words: &[Vec<u8>]) -> Vec<u8> {
        const TIME: &str = "redis.call('TIME')";
        let ours = format!(
            "(function() local time = {TIME} \
             local ms = time[1] * 1000 + math.floor(time[2] / 1000) \
             + (redis.call('GET', '{}') or 0) \
             return {{ string.format('%d', math.floor(ms / 1000)), \
             string.format('%d', ms % 1000 * 1000) }} end)()",
            self.clock
        );
        let script = words.get(1).map(|script| String::from_utf8_lossy(script));
        let script = script.unwrap_or_default().replace(TIME, &ours);
        let words = words.iter().enumerate();
        let words: Vec<&[u8]> = words
            .map(|(at, word)| if at == 1 { script.as_bytes() } else { word })
            .collect();
        resp::request(&words)
    }
}

/// Keeps the runtime busy, and so a paused clock where it is, while anything is held and for a
/// moment after.
#[derive(Debug, Clone)]
struct Busy(Arc<State>);

#[derive(Debug)]
struct State {
    held: AtomicUsize,
    last: Mutex<SystemTime>,
    woken: Notify,
}

/// Holds the clock until dropped.
struct Hold<'a>(&'a State);

impl Busy {
    fn keep() -> Self {
        let state = Arc::new(State {
            held: AtomicUsize::new(0),
            last: Mutex::new(SystemTime::now()),
            woken: Notify::new(),
        });
        let kept = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                while kept.is_busy() {
                    tokio::task::yield_now().await;
                }
                kept.woken.notified().await;
            }
        });
        Self(state)
    }

    fn hold(&self) -> Hold<'_> {
        self.0.held.fetch_add(1, Ordering::Relaxed);
        self.0.woken.notify_one();
        Hold(&self.0)
    }
}

impl State {
    fn is_busy(&self) -> bool {
        // A real clock that was set back is as good as one on which the time has passed.
        self.held.load(Ordering::Relaxed) > 0
            || self.last.lock().elapsed().is_ok_and(|quiet| quiet < LINGER)
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        *self.0.last.lock() = SystemTime::now();
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use livecount::cluster::store::{Answer, Card, Incarnation, Redis, Stamp};

    use super::*;
    use crate::redis_server::RedisServer;

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_held_for_minutes_of_a_paused_clock_and_ends_when_it_is_let_go() {
        let server = RedisServer::start().await;
        let address = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let name = format!("rig{}:", std::process::id());
        let link = Link::before(address, &name).await;
        let redis = Redis::new(&link.url(), &name).expect("the URL is valid");
        let (mut a, mut b) = (redis.lane(), redis.lane());
        let (epoch, version) = link.watch(a.connect()).await.expect("Redis is there");
        let stamp = Stamp {
            epoch: Some(epoch),
            version,
        };
        let card = Card {
            name: "a".to_owned(),
            since_ms: 0,
            connections: 0,
            synced: true,
        };
        let (me, other) = (Incarnation::random(), Incarnation::random());
        let began = Instant::now();
        let mut first = None;
        for round in 0..600 {
            let leased = link.watch(a.lease(stamp, me, None, &card, round == 0));
            let leased = timeout(Duration::from_millis(500), leased).await;
            let leased = leased.expect("no time passes while Redis works").unwrap();
            let Answer::Done(leased) = leased else {
                panic!("a new epoch: {leased:?}");
            };
            assert!(leased.held, "round {round}: {leased:?}");
            let first = *first.get_or_insert(leased.now_ms);
            let passed = Duration::from_millis(leased.now_ms - first);
            let drift = passed.abs_diff(began.elapsed());
            assert!(drift < Duration::from_millis(500), "{drift:?}");
            sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(began.elapsed(), Duration::from_secs(300));

        sleep(Duration::from_secs(4)).await;
        let leased = link.watch(b.lease(stamp, other, None, &card, true)).await;
        let Ok(Answer::Done(leased)) = leased else {
            panic!("{leased:?}");
        };
        assert_eq!(leased.lapsed, [me]);
    }
}
