//! A Redis for nodes in this process, on the test's clock.
//!
//! Redis is a process with a clock of its own. A runtime with nothing to run moves a paused clock
//! to its next timer, so while Redis works every timeout would fire; and what scripts take the
//! time from would stand still. So nodes meet Redis over a link within the runtime: it keeps the
//! runtime busy while a call is under way, and has scripts see the time that has passed here.
//!
//! Nothing is on its way unseen. Between a node and the link lies a Unix socket, over which the
//! kernel delivers within the call that sends; and a script's answer is passed on only after what
//! the script published has been.

use std::{
    fmt, io,
    os::unix::net::UnixListener as StdUnixListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Notify, mpsc, oneshot},
    time::{Instant, timeout_at},
};

use crate::resp::{self, Reply};

/// Where the scripts of the service take the time from.
const TIME: &str = "redis.call('TIME')";

/// The Redis of this process. Each user has a prefix of its own.
static REDIS: LazyLock<OwnRedis> = LazyLock::new(OwnRedis::start);

/// A Redis that ends with this process, however that ends.
struct OwnRedis {
    directory: PathBuf,
    socket: PathBuf,
    /// Its end, and so that of this process, is the end of Redis.
    _alive: ChildStdin,
    _shell: Child,
}

impl OwnRedis {
    /// Starts it and waits until it listens.
    fn start() -> Self {
        // Statics are not dropped, so nothing in this process could stop it; a shell can, that
        // reads from a pipe which the kernel closes at the latest.
        const SHELL: &str = "redis-server --port 0 --unixsocket \"$1/redis\" --dir \"$1\" \
             --save '' --appendonly no --daemonize no & \
             trap '' INT TERM; read -r _; kill $!; wait $!; rm -rf \"$1\"";
        let name = format!("livecount-api-{:016x}", rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("the directory is new");
        let mut shell = Command::new("sh")
            .args(["-c", SHELL, "sh"])
            .arg(&directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("there is a shell");
        let socket = directory.join("redis");
        let began = SystemTime::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let waited = began.elapsed().unwrap_or_default();
            assert!(waited < Duration::from_secs(20), "redis-server starts");
            // Nothing tells when a process begins to listen.
            std::thread::sleep(Duration::from_millis(5));
        }
        Self {
            directory,
            socket,
            _alive: shell.stdin.take().expect("it is piped"),
            _shell: shell,
        }
    }
}

/// The way of a test's nodes to Redis. Ends with the test's runtime.
pub(crate) struct Link {
    socket: PathBuf,
    prefix: String,
    shared: Arc<Shared>,
}

/// Asks for a sign that everything published so far has been passed on.
type Barrier = oneshot::Sender<()>;

struct Shared {
    /// The key at which scripts find how far the test's clock is ahead, in milliseconds.
    clock: String,
    began: (Instant, SystemTime),
    busy: Busy,
    /// The connections over which something published may come.
    subscribers: Mutex<Vec<mpsc::UnboundedSender<Barrier>>>,
    /// Told after every script, which may have written what a read of the log waits for.
    written: Notify,
}

impl Link {
    /// One of the test's own, with a prefix of its own. Must be called within its runtime.
    pub(crate) fn new() -> Self {
        static LINKS: AtomicUsize = AtomicUsize::new(0);
        let number = LINKS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("test{number}:");
        let socket = REDIS.directory.join(format!("link{number}"));
        let listener = StdUnixListener::bind(&socket).expect("the name is new");
        listener.set_nonblocking(true).expect("the socket is open");
        let listener = UnixListener::from_std(listener).expect("the runtime has io");
        let shared = Arc::new(Shared {
            clock: format!("{prefix}clock"),
            began: (Instant::now(), SystemTime::now()),
            busy: Busy::keep(),
            subscribers: Mutex::default(),
            written: Notify::new(),
        });
        let serving = Arc::clone(&shared);
        tokio::spawn(async move {
            while let Ok((node, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                // Either side's end is the end of both.
                tokio::spawn(async move { carry(node, &REDIS.socket, &shared).await });
            }
        });
        Self {
            socket,
            prefix,
            shared,
        }
    }

    /// The URL that a node is to be given.
    pub(crate) fn url(&self) -> String {
        format!("redis+unix://{}", self.socket.display())
    }

    /// The prefix that a node is to be given.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({}, {})", self.prefix, self.shared.ahead())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// One side of a connection, read frame by frame.
struct Side {
    socket: UnixStream,
    bytes: Vec<u8>,
}

impl Side {
    fn of(socket: UnixStream) -> Self {
        let bytes = Vec::new();
        Self { socket, bytes }
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
async fn carry(node: UnixStream, redis: &Path, shared: &Shared) -> io::Result<()> {
    let mut node = Side::of(node);
    let mut redis = {
        let _busy = shared.busy.hold();
        Side::of(UnixStream::connect(redis).await?)
    };
    let (subscriber, mut barriers) = mpsc::unbounded_channel();
    loop {
        tokio::select! {
            call = node.next() => {
                let (frame, call) = call?;
                let words: Vec<Vec<u8>> = call.items().iter().map(bytes_of).collect();
                let name = words.first().map(|name| name.to_ascii_uppercase());
                match name.as_deref().unwrap_or_default() {
                    b"XREAD" => read_log(&mut node, &mut redis, words, shared).await?,
                    // The script is another one here, and comes whole once it is not known.
                    b"EVALSHA" => node.say(b"-NOSCRIPT No matching script.\r\n").await?,
                    b"EVAL" => {
                        let _busy = shared.busy.hold();
                        let answer = run(&mut redis, &words, shared).await?;
                        shared.published().await;
                        shared.written.notify_waiters();
                        node.say(&answer).await?;
                    }
                    b"SUBSCRIBE" => {
                        let _busy = shared.busy.hold();
                        shared.subscribers.lock().push(subscriber.clone());
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
            Some(barrier) = barriers.recv() => {
                let _busy = shared.busy.hold();
                redis.say(&resp::request(&[b"PING"])).await?;
                while !pass_on_unless_pong(&mut node, &mut redis).await? {}
                // The error says that nobody waits any more.
                let _ = barrier.send(());
            }
        }
    }
}

/// Runs a script by the test's clock.
async fn run(redis: &mut Side, words: &[Vec<u8>], shared: &Shared) -> io::Result<Vec<u8>> {
    let ahead = shared.ahead().to_string();
    let mut calls = resp::request(&[b"SET", shared.clock.as_bytes(), ahead.as_bytes()]);
    calls.extend(shared.with_clock(words));
    redis.say(&calls).await?;
    redis.next().await?;
    Ok(redis.next().await?.0)
}

/// Passes on so many replies, and what comes unasked among them.
async fn replies(node: &mut Side, redis: &mut Side, count: usize) -> io::Result<()> {
    let mut left = count;
    while left > 0 {
        let (frame, said) = redis.next().await?;
        left -= usize::from(kind(&said) != "message");
        node.say(&frame).await?;
    }
    Ok(())
}

/// Takes what comes next; true where it is the answer to a `PING`, which is not passed on.
async fn pass_on_unless_pong(node: &mut Side, redis: &mut Side) -> io::Result<bool> {
    let (frame, said) = redis.next().await?;
    let is_pong = kind(&said) != "message";
    if !is_pong {
        node.say(&frame).await?;
    }
    Ok(is_pong)
}

fn kind(said: &Reply) -> String {
    said.items().first().map(Reply::text).unwrap_or_default()
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
        let written = shared.written.notified();
        {
            let _busy = shared.busy.hold();
            redis.say(&call).await?;
            let (frame, said) = redis.next().await?;
            if said != Reply::Nil || Instant::now() >= until {
                return node.say(&frame).await;
            }
        }
        // At the end of the time it is asked once more.
        let _ = timeout_at(until, written).await;
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

    /// Waits until whatever was published so far has been passed on.
    async fn published(&self) {
        let subscribers = self.subscribers.lock().clone();
        for subscriber in subscribers {
            let (barrier, passed) = oneshot::channel();
            // The error says that the subscriber is gone.
            if subscriber.send(barrier).is_ok() {
                let _ = passed.await;
            }
        }
    }

    /// A script's call, the script taking its time from the test's clock.
    fn with_clock(&self, words: &[Vec<u8>]) -> Vec<u8> {
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

/// Keeps the runtime busy, and so a paused clock where it is, while anything is held.
#[derive(Clone)]
struct Busy(Arc<State>);

#[derive(Default)]
struct State {
    held: AtomicUsize,
    woken: Notify,
}

/// Holds the clock until dropped.
struct Hold<'a>(&'a State);

impl Busy {
    fn keep() -> Self {
        let state = Arc::new(State::default());
        let kept = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                while kept.held.load(Ordering::Relaxed) > 0 {
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

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        self.0.held.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use livecount::cluster::store::{Answer, Card, Incarnation, Redis, Stamp};

    use tokio::time::{sleep, timeout};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_lease_is_held_for_minutes_of_a_paused_clock_and_ends_when_it_is_let_go() {
        let link = Link::new();
        let redis = Redis::new(&link.url(), link.prefix()).expect("the URL is valid");
        let (mut a, mut b) = (redis.lane(), redis.lane());
        let (epoch, version) = a.connect().await.expect("Redis is there");
        let stamp = Stamp {
            epoch: Some(epoch),
            version,
        };
        let card = Card {
            name: "a".to_owned(),
            process: None,
            since_ms: 0,
            connections: 0,
            synced: true,
            unheard: false,
        };
        let (me, other) = (Incarnation::random(), Incarnation::random());
        let began = Instant::now();
        let mut first = None;
        for round in 0..600 {
            let leased = a.lease(stamp, me, None, &card, round == 0);
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

        // A silence of all would be taken for Redis' own.
        for _ in 0..8 {
            sleep(Duration::from_millis(500)).await;
            b.announce(stamp).await.expect("Redis is there");
        }
        let leased = b.lease(stamp, other, None, &card, true).await;
        let Ok(Answer::Done(leased)) = leased else {
            panic!("{leased:?}");
        };
        assert_eq!(leased.lapsed, [me]);
    }
}
