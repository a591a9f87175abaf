//! A real Redis of a test's own: killed, emptied, put back to an older state, stopped and woken.

use std::{
    fs, io,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use crate::{
    process,
    resp::{Connection, Reply},
    wire::{PATIENCE, until},
};

static STARTED: AtomicU32 = AtomicU32::new(0);

/// A `redis-server` on a port of its own that keeps nothing on disk unless told to. Killed when
/// dropped.
#[derive(Debug)]
pub(crate) struct Redis {
    child: Option<Child>,
    address: SocketAddr,
    directory: PathBuf,
}

/// What a Redis held at some moment.
#[derive(Debug)]
pub(crate) struct Snapshot(Vec<u8>);

impl Redis {
    /// Starts one that is empty.
    pub(crate) async fn start() -> Self {
        let number = STARTED.fetch_add(1, Ordering::Relaxed);
        let name = format!("livecount-redis-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).expect("a directory can be made");
        // Whoever else takes the port between here and there makes the start fail; then another.
        for _ in 0..5 {
            let address = free_address();
            let mut redis = Self {
                child: None,
                address,
                directory: directory.clone(),
            };
            if redis.try_start().await.is_ok() {
                return redis;
            }
            redis.kill();
        }
        panic!("no redis-server could be started; is it installed?");
    }

    async fn try_start(&mut self) -> io::Result<()> {
        let port = self.address.port().to_string();
        let mut child = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port])
            .args(["--save", "", "--appendonly", "no", "--dir"])
            .arg(&self.directory)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut answered = false;
        for _ in 0..500 {
            if child.try_wait()?.is_some() {
                break;
            }
            // Another Redis on the port would answer as well, but ours would have ended then.
            answered = self
                .call(&["PING"])
                .await
                .is_ok_and(|pong| pong.text() == "PONG");
            if answered {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if answered && child.try_wait()?.is_none() {
            self.child = Some(child);
            return Ok(());
        }
        let _ = child.kill();
        let _ = child.wait();
        Err(io::ErrorKind::AddrInUse.into())
    }

    /// Where it listens, or listened.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// One command on a connection of its own.
    ///
    /// # Errors
    ///
    /// When it is away.
    pub(crate) async fn call(&self, words: &[&str]) -> io::Result<Reply> {
        Connection::to(self.address).await?.call(words).await
    }

    /// Ends it at once; nothing is kept.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Where it has ended already there is nothing to kill.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on its old port, empty.
    pub(crate) async fn start_empty(&mut self) {
        self.start_with(None).await;
    }

    /// What it holds now.
    pub(crate) async fn snapshot(&self) -> Snapshot {
        let saved = self.call(&["SAVE"]).await.expect("Redis is there");
        assert_eq!(saved.text(), "OK");
        Snapshot(fs::read(self.dump()).expect("it was saved"))
    }

    /// Kills it and starts it with what it held then.
    pub(crate) async fn restore(&mut self, snapshot: &Snapshot) {
        self.start_with(Some(snapshot)).await;
    }

    async fn start_with(&mut self, snapshot: Option<&Snapshot>) {
        self.kill();
        match snapshot {
            Some(Snapshot(bytes)) => fs::write(self.dump(), bytes).expect("there is a disk"),
            // Where nothing was ever saved there is no file.
            None => drop(fs::remove_file(self.dump())),
        }
        let mut tries = 0;
        while let Err(error) = self.try_start().await {
            tries += 1;
            assert!(tries < 5, "Redis does not come back: {error}");
        }
    }

    fn dump(&self) -> PathBuf {
        self.directory.join("dump.rdb")
    }

    /// Throws everything away while it runs.
    pub(crate) async fn flush_all(&self) {
        let flushed = self.call(&["FLUSHALL"]).await.expect("Redis is there");
        assert_eq!(flushed.text(), "OK");
    }

    /// Stops it in the midst of whatever it does; its connections stay open and silent.
    pub(crate) fn freeze(&self) {
        process::freeze(self.child.as_ref().expect("it runs"));
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        process::thaw(self.child.as_ref().expect("it runs"));
    }

    /// Calls of each command since the start, by its name, those from within scripts too.
    pub(crate) async fn calls(&self) -> Vec<(String, u64)> {
        let info = self.call(&["INFO", "commandstats"]).await;
        let info = info.expect("Redis is there").text();
        let calls = info.lines().filter_map(|line| {
            let (name, numbers) = line.strip_prefix("cmdstat_")?.split_once(':')?;
            let calls = numbers.strip_prefix("calls=")?.split(',').next()?;
            Some((name.to_owned(), calls.parse().ok()?))
        });
        calls.collect()
    }

    /// CPU time it has used, its own and the kernel's for it.
    pub(crate) async fn cpu(&self) -> Duration {
        let info = self.call(&["INFO", "cpu"]).await;
        let info = info.expect("Redis is there").text();
        let part = |name: &str| {
            let seconds = info.lines().find_map(|line| line.strip_prefix(name));
            let seconds = seconds.expect("Redis says so").trim();
            Duration::from_secs_f64(seconds.parse().expect("seconds"))
        };
        part("used_cpu_user:") + part("used_cpu_sys:")
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
        // A directory left behind in the temporary ones harms nobody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A loopback address that nobody has right now.
fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound")
}

#[tokio::test]
async fn a_redis_is_killed_emptied_put_back_flushed_and_frozen() {
    let mut redis = Redis::start().await;
    let get = async |redis: &Redis| redis.call(&["GET", "k"]).await.unwrap().text();
    redis.call(&["SET", "k", "old"]).await.unwrap();
    let snapshot = redis.snapshot().await;
    redis.call(&["SET", "k", "new"]).await.unwrap();
    redis.restore(&snapshot).await;
    assert_eq!(get(&redis).await, "old");
    redis.kill();
    assert!(redis.call(&["PING"]).await.is_err());
    redis.start_empty().await;
    assert_eq!(get(&redis).await, "");
    redis.call(&["SET", "k", "newer"]).await.unwrap();
    redis.flush_all().await;
    assert_eq!(get(&redis).await, "");

    let mut open = Connection::to(redis.address()).await.unwrap();
    redis.freeze();
    let silent = open.call(&["PING"]);
    let silent = tokio::time::timeout(Duration::from_millis(300), silent).await;
    assert!(silent.is_err(), "a frozen Redis said {silent:?}");
    redis.thaw();
    assert_eq!(open.next(PATIENCE).await.unwrap().text(), "PONG");
    let pings = redis
        .calls()
        .await
        .into_iter()
        .find(|(name, _)| name == "ping");
    assert!(pings.is_some_and(|(_, calls)| calls >= 1));
    assert!(redis.cpu().await > Duration::ZERO);
    until(PATIENCE, async || {
        let alive = redis.call(&["PING"]).await;
        alive.map(drop).map_err(|error| error.to_string())
    })
    .await;
}
