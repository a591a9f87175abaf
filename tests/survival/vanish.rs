//! Readers that vanish without a word: a network namespace whose link goes down.
//!
//! The bound: heartbeat + 25 s, so 45 s with the default settings. A `ping` goes out a heartbeat
//! after the last word at the latest, 20 s without an acknowledgement end the connection, and the
//! kernel looks now and then only. Needs root and `ip`; where no namespace can be made the tests
//! say so and show nothing, and where `CI=true` they fail.

use std::{
    io::Write,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU8, Ordering},
    thread,
    time::Duration,
};

use crate::helpers::{PATIENCE, Path, Service};

/// A network with two ends: ours, and one in a namespace of its own. Gone when dropped.
struct Network {
    name: String,
    ours: String,
}

static NETWORKS: AtomicU8 = AtomicU8::new(0);

fn ip(arguments: &str) -> bool {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .stderr(Stdio::null())
        .status();
    status.is_ok_and(|status| status.success())
}

impl Network {
    /// `None` where this machine grants no namespaces.
    fn new() -> Option<Self> {
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        let id = std::process::id();
        let name = format!("lc{id}-{number}");
        // Of 198.18.0.0/15, which is for tests (RFC 2544).
        let net = format!("198.18.{}.{}", id % 256, u32::from(number) * 4 % 256);
        let (base, last) = net.rsplit_once('.')?;
        let last: u32 = last.parse().ok()?;
        let (ours, theirs) = (
            format!("{base}.{}", last + 1),
            format!("{base}.{}", last + 2),
        );
        let network = Self {
            name: name.clone(),
            ours: ours.clone(),
        };
        let made = [
            format!("netns add {name}"),
            format!("link add {name} type veth peer name v netns {name}"),
            format!("addr add {ours}/30 dev {name}"),
            format!("link set {name} up"),
            format!("-n {name} addr add {theirs}/30 dev v"),
            format!("-n {name} link set v up"),
        ]
        .iter()
        .all(|command| ip(command));
        made.then_some(network)
    }

    fn address(&self) -> SocketAddr {
        format!("{}:0", self.ours).parse().unwrap()
    }

    /// A reader at the other end.
    fn curl(&self, service: &Service, more: &[&str]) -> Child {
        let url = format!("http://{}/v1/stream?blog_id=a", service.address);
        Command::new("ip")
            .args(["netns", "exec", &self.name, "curl", "-sN"])
            .args(more)
            .arg(url)
            .stdout(Stdio::null())
            .spawn()
            .expect("curl is installed")
    }

    fn cut(&self) {
        assert!(ip(&format!("-n {} link set v down", self.name)));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        ip(&format!("link del {}", self.name));
        ip(&format!("netns del {}", self.name));
    }
}

/// One reader vanishes, with these settings and arguments of curl: counted out within `most`, and
/// whoever is left is told.
fn vanish(path: Path, settings: &[(&str, &str)], more: &[&str], most: Duration) {
    let Some(network) = Network::new() else {
        let must_run = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(
            !must_run,
            "no network namespace can be made here: `ip netns add` needs root"
        );
        // Past what the test harness keeps to itself.
        let said = "SKIPPED: tests/survival/vanish.rs showed nothing, since no network namespace can be made here (needs root and `ip`)\n";
        std::io::stderr().write_all(said.as_bytes()).unwrap();
        return;
    };
    let service = Service::at(path, network.address(), 2, settings);
    let mut curl = network.curl(&service, more);
    service.wait_for("a", 1, PATIENCE);
    let mut other = service.client().join("a");
    other.wait_for_count("blog:a", (2, 2, 0));
    // In the midst of a heartbeat, as most vanish.
    thread::sleep(Duration::from_millis(300));
    network.cut();
    let taken = service.wait_for("a", 1, most);
    println!("{path:?} {settings:?} {more:?}: counted out after {taken:?}");
    other.wait_for_count("blog:a", (1, 1, 0));
    // What a shard held is told apart from a closed tab; a body's end is hyper's to see.
    let is_body = path == Path::Body || more.contains(&"--http2-prior-knowledge");
    assert_eq!(service.app.tally().ghosts, u64::from(!is_body));
    curl.kill().unwrap();
    curl.wait().unwrap();
}

#[test]
fn a_reader_that_vanishes_is_counted_out_within_45_seconds_by_default() {
    thread::scope(|scope| {
        for path in [Path::Shard, Path::Body] {
            scope.spawn(move || vanish(path, &[], &[], Duration::from_secs(45)));
        }
    });
}

#[test]
fn a_reader_that_vanishes_is_counted_out_within_a_heartbeat_and_25_seconds() {
    let most = Duration::from_secs(2 + 25);
    let settings = &[("heartbeat", "2s")];
    let http2: &[&str] = &["--http2-prior-knowledge"];
    thread::scope(|scope| {
        scope.spawn(move || vanish(Path::Shard, settings, &[], most));
        scope.spawn(move || vanish(Path::Shard, settings, &["--http1.0"], most));
        scope.spawn(move || vanish(Path::Body, settings, &[], most));
        // The body path as it is met in a service that has shards.
        scope.spawn(move || vanish(Path::Shard, settings, http2, most));
    });
}
