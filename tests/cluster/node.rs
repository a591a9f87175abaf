//! Nodes as an operator runs them: the program itself, killed, stopped, woken and started again.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    process,
    proxy::{Proxy, Weather},
    redis::Redis,
    wire::{Client, Numbers, PATIENCE, SECRET, is_partial, until},
};

/// A running node. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Node {
    name: String,
    address: SocketAddr,
    environment: Vec<(String, String)>,
    child: Child,
    log: Arc<Mutex<String>>,
}

impl Node {
    /// Starts one of this name with these settings, by their names: `("leave_grace", "2s")`.
    pub(crate) async fn start(name: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_trusting(name, settings, None).await
    }

    /// As [`Self::start`], trusting this certificate authority instead of the system's.
    pub(crate) async fn start_trusting(
        name: &str,
        settings: &[(&str, &str)],
        authority: Option<&std::path::Path>,
    ) -> Self {
        let mut environment = variables(settings);
        if let Some(authority) = authority {
            let path = authority.to_str().expect("it is text").to_owned();
            environment.push(("SSL_CERT_FILE".to_owned(), path));
        }
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Self::run(name, environment, address, Arc::default()).await
    }

    async fn run(
        name: &str,
        environment: Vec<(String, String)>,
        address: SocketAddr,
        log: Arc<Mutex<String>>,
    ) -> Self {
        let inherited = std::env::vars().map(|(variable, _)| variable);
        let mut command = Command::new(env!("CARGO_BIN_EXE_livecount"));
        for variable in inherited.filter(|variable| variable.starts_with("LIVECOUNT_")) {
            command.env_remove(variable);
        }
        let mut child = command
            .arg("serve")
            .env("LIVECOUNT_LISTEN", address.to_string())
            .env("LIVECOUNT_JWT_SECRET", SECRET)
            .env("LIVECOUNT_NODE_NAME", name)
            .env("LIVECOUNT_ANONYMOUS_ROOMS", "*")
            .env("LIVECOUNT_MAX_CONNECTIONS_PER_MEMBER", "1000")
            .env("LIVECOUNT_DRAIN", "2s")
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program can be started");
        let output = child.stderr.take().expect("it is a pipe");
        let from = log.lock().len();
        let writer = Arc::clone(&log);
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let mut log = writer.lock();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut node = Self {
            name: name.to_owned(),
            address,
            environment,
            child,
            log,
        };
        until(PATIENCE, async || {
            let log = node.log.lock()[from..].to_owned();
            let ended = node.child.try_wait().expect("it is ours");
            assert_eq!(ended, None, "{name} ended at its start: {log}");
            let found = log
                .lines()
                .find(|line| line.contains("listening for readers"));
            let url = found.and_then(|line| line.split("http://").nth(1));
            let address = url.and_then(|url| url.split_whitespace().next()?.parse().ok());
            node.address = address.ok_or(log)?;
            Ok(())
        })
        .await;
        node
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn client(&self) -> Client {
        Client(self.address)
    }

    /// All it has said, those of its name before it included.
    pub(crate) fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Ends it at once, as a crash of its machine does: no goodbye to anybody.
    pub(crate) fn kill(&mut self) {
        // Where it has ended already there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Stops it in the midst of whatever it does; its sockets stay.
    pub(crate) fn freeze(&self) {
        process::freeze(&self.child);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        process::thaw(&self.child);
    }

    /// Bytes of its memory that are in use.
    pub(crate) fn memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB"));
        let kib = kib.expect("Linux says so").trim().parse::<u64>();
        kib.expect("a number") << 10
    }

    /// Waits until it says that others' numbers are unknown, or that they are known again.
    pub(crate) async fn expect_partial(&self, partial: bool) {
        until(PATIENCE, async || {
            let (_, ready) = self.client().ask("/readyz").await;
            let right = is_partial(&ready) == partial;
            right.then_some(()).ok_or_else(|| ready.to_string())
        })
        .await;
    }

    /// Asks it to drain.
    pub(crate) fn stop(&self) {
        process::terminate(&self.child);
    }

    /// Waits until it has ended by itself, in order.
    pub(crate) async fn ended(&mut self, within: Duration) {
        until(within, async || {
            let status = self.child.try_wait().expect("it is ours");
            let status = status.ok_or("it still runs")?;
            assert!(status.success(), "{status}: {}", self.log());
            Ok(())
        })
        .await;
    }

    /// Starts it again where it was and under the same name, after it has ended or been killed.
    pub(crate) async fn start_again(&mut self) {
        self.kill();
        let environment = self.environment.clone();
        let log = Arc::clone(&self.log);
        *self = Self::run(&self.name.clone(), environment, self.address, log).await;
    }

    /// True once it was killed, or ended by itself and was waited for.
    pub(crate) fn is_dead(&mut self) -> bool {
        self.child.try_wait().expect("it is ours").is_some()
    }

    /// Checks that it runs, and that nothing in it ever panicked.
    pub(crate) fn expect_sound(&mut self) {
        assert_eq!(self.child.try_wait().expect("it is ours"), None);
        assert!(!self.log().contains("panicked"), "{}", self.log());
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(20)..];
            println!("The last that {} said:\n{}", self.name, last.join("\n"));
        }
    }
}

/// Settings as variables of the environment; what has a variable's name already is one.
fn variables(settings: &[(&str, &str)]) -> Vec<(String, String)> {
    let variable = |(name, value): &(&str, &str)| {
        let name = match name
            .chars()
            .all(|char| char == '_' || char.is_ascii_uppercase())
        {
            true => (*name).to_owned(),
            false => format!("LIVECOUNT_{}", name.to_ascii_uppercase()),
        };
        (name, (*value).to_owned())
    };
    settings.iter().map(variable).collect()
}

/// Nodes that share a Redis, each over a link of its own.
#[derive(Debug)]
pub(crate) struct Cluster {
    // Nodes before what they stand on: fields are dropped in this order.
    pub(crate) nodes: Vec<Node>,
    pub(crate) links: Vec<Proxy>,
    pub(crate) redis: Redis,
    fakes_clock: bool,
}

impl Cluster {
    /// Starts so many nodes and waits until each knows of all.
    pub(crate) async fn start(count: usize) -> Self {
        Self::with(count, &[]).await
    }

    /// As [`Self::start`], with these settings on every node.
    pub(crate) async fn with(count: usize, settings: &[(&str, &str)]) -> Self {
        Self::build(count, settings, false).await
    }

    /// As [`Self::start`], the scripts of all nodes taking their time from [`crate::proxy::CLOCK`].
    pub(crate) async fn faking_clock(count: usize) -> Self {
        Self::build(count, &[], true).await
    }

    async fn build(count: usize, settings: &[(&str, &str)], fakes_clock: bool) -> Self {
        let redis = Redis::start().await;
        let mut cluster = Self {
            nodes: Vec::new(),
            links: Vec::new(),
            redis,
            fakes_clock,
        };
        for number in 0..count {
            cluster.add(&format!("node-{number}"), settings).await;
        }
        cluster.wait_until_met().await;
        cluster
    }

    /// Starts one more.
    pub(crate) async fn add(&mut self, name: &str, settings: &[(&str, &str)]) {
        let (redis, seed) = (self.redis.address(), self.links.len() as u64);
        let link = match self.fakes_clock {
            true => Proxy::faking_clock(redis, seed).await,
            false => Proxy::before(redis, seed).await,
        };
        let url = link.url();
        let mut settings = settings.to_vec();
        settings.push(("redis_url", &url));
        self.nodes.push(Node::start(name, &settings).await);
        self.links.push(link);
    }

    /// Waits until every node names all of them in its statistics.
    pub(crate) async fn wait_until_met(&self) {
        let mut names: Vec<&str> = self.nodes.iter().map(Node::name).collect();
        names.sort_unstable();
        for node in &self.nodes {
            until(PATIENCE, async || {
                let stats = node.client().read("/v1/stats").await;
                let mut found = names_of(&stats);
                found.sort_unstable();
                let met = found == names;
                met.then_some(())
                    .ok_or_else(|| format!("{} knows of {found:?}", node.name()))
            })
            .await;
        }
    }

    /// Waits until every node answers these numbers for a room, and whole.
    pub(crate) async fn expect_count(&self, room: &str, expected: Numbers) {
        let path = format!("/v1/rooms/{room}");
        for node in &self.nodes {
            until(PATIENCE, async || {
                let found = node.client().read(&path).await;
                let right = Numbers::of(&found) == expected && !is_partial(&found);
                let wrong = || format!("{} has {found} and not {expected:?}", node.name());
                right.then_some(()).ok_or_else(wrong)
            })
            .await;
        }
    }

    /// Cuts the way to Redis of every node, and waits until all of them have noticed.
    pub(crate) async fn cut_off(&self) {
        for link in &self.links {
            link.set(Weather {
                cut: true,
                ..Weather::default()
            });
        }
        for node in &self.nodes {
            node.expect_partial(true).await;
        }
    }

    /// The first two nodes, as clients reach them.
    pub(crate) fn pair(&self) -> (Client, Client) {
        (self.nodes[0].client(), self.nodes[1].client())
    }

    /// Checks that all nodes run and none ever panicked.
    pub(crate) fn expect_sound(&mut self) {
        for node in &mut self.nodes {
            node.expect_sound();
        }
    }
}

/// The names of the nodes in the answer to `GET /v1/stats`.
pub(crate) fn names_of(stats: &serde_json::Value) -> Vec<&str> {
    let nodes = stats["nodes"].as_array().expect("a list");
    let names = nodes.iter().map(|node| node["name"].as_str());
    names.map(|name| name.expect("a node has a name")).collect()
}

#[tokio::test]
async fn a_node_is_killed_frozen_stopped_and_started_again_where_it_was() {
    let mut node = Node::start("solo", &[]).await;
    let address = node.address;
    assert_eq!(names_of(&node.client().read("/v1/stats").await), ["solo"]);
    node.kill();
    let gone = node
        .client()
        .try_call("GET", "/livez", "", &serde_json::Value::Null);
    assert!(gone.await.is_err());
    node.start_again().await;
    assert_eq!(node.address, address);
    assert_eq!(names_of(&node.client().read("/v1/stats").await), ["solo"]);

    node.freeze();
    let client = node.client();
    let mut asked = tokio::spawn(async move { client.read("/v1/stats").await });
    let silent = tokio::time::timeout(Duration::from_millis(300), &mut asked).await;
    assert!(silent.is_err(), "a frozen node said {silent:?}");
    node.thaw();
    assert_eq!(names_of(&asked.await.expect("it answers")), ["solo"]);
    node.expect_sound();
    node.stop();
    node.ended(PATIENCE).await;
}
