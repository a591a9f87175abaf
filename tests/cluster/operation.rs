//! What whoever runs several nodes relies on: TLS and a user's rights, no password in sight, what
//! metrics and readiness say, the past.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{
    node::{Cluster, Node, names_of},
    redis_server::{RedisServer, documented_rights},
    wire::{Client, Numbers, PATIENCE, is_partial, until},
};

const PASSWORD: &str = "a/pass#word@of:the-tests";
/// As it stands in a URL.
const ENCODED: &str = "a%2Fpass%23word%40of%3Athe-tests";

async fn expect_count(client: Client, room: &str, expected: Numbers) {
    until(PATIENCE, async || {
        let found = client.count(room).await;
        (found == expected)
            .then_some(())
            .ok_or_else(|| format!("{room} is {found:?} and not {expected:?}"))
    })
    .await;
}

// ---- TLS, users, passwords ----

/// A certificate authority of the test's own, and a certificate of `localhost` by it.
struct Certificates(PathBuf);

impl Certificates {
    fn make() -> Self {
        let name = format!("livecount-tls-{:016x}", rand::random::<u64>());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).expect("the directory is new");
        let made = Self(directory);
        let key = "ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
        std::fs::write(made.path("names"), "subjectAltName=DNS:localhost")
            .expect("the directory can be written");
        for command in [
            format!(
                "req -x509 -newkey {key} -days 1 -subj /CN=tests \
                 -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem"
            ),
            format!("req -newkey {key} -subj /CN=redis -keyout key.pem -out request.pem"),
            "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 1 \
             -extfile names -out certificate.pem"
                .to_owned(),
        ] {
            let done = Command::new("openssl")
                .args(command.split_whitespace())
                .current_dir(&made.0)
                .output()
                .expect("openssl is installed");
            assert!(done.status.success(), "{command}: {done:?}");
        }
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().expect("it is text").to_owned()
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // A directory left behind in the temporary ones harms nobody.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Starts a Redis that speaks TLS on a port beside its own, with one user, who may what the README
/// says; answers that port too.
async fn tls_redis(certificates: &Certificates) -> (RedisServer, u16) {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let port = free.local_addr().expect("it is bound").port();
    drop(free);
    let (port_text, password) = (port.to_string(), format!(">{PASSWORD}"));
    let files = ["certificate.pem", "key.pem", "ca.pem"].map(|name| certificates.text(name));
    let mut arguments = vec!["--tls-port", &port_text, "--tls-auth-clients", "no"];
    arguments.extend(["--tls-cert-file", &files[0], "--tls-key-file", &files[1]]);
    arguments.extend(["--tls-ca-cert-file", &files[2]]);
    arguments.extend(["--user", "default", "off"]);
    arguments.extend(["--user", "livecount", "on", &password]);
    let rights = documented_rights();
    arguments.extend(rights.iter().map(String::as_str));
    (RedisServer::start_with(&arguments).await, port)
}

#[tokio::test]
async fn nodes_meet_over_tls_as_a_user_with_the_documented_rights() {
    let certificates = Certificates::make();
    let authority = certificates.path("ca.pem");
    let (_redis, port) = tls_redis(&certificates).await;
    let url = format!("rediss://livecount:{ENCODED}@localhost:{port}");
    let settings = [("redis_url", url.as_str())];
    let mut a = Node::start_trusting("a", &settings, Some(&authority)).await;
    let mut b = Node::start_trusting("b", &settings, Some(&authority)).await;
    for node in [&a, &b] {
        until(PATIENCE, async || {
            let met = names_of(&node.client().read("/v1/stats").await) == ["a", "b"];
            met.then_some(())
                .ok_or_else(|| "they have not met".to_owned())
        })
        .await;
    }
    let _far = a.client().join("blog:1").await;
    let mut near = b.client().join_as("blog:1", "7").await;
    near.wait_for("blog:1", Numbers::new(2, 2, 1)).await;
    let message = json!({ "data": "over TLS" });
    a.client().publish("rooms/blog:1", message).await;
    near.expect_message(&json!("over TLS")).await;
    let connection = a.client().read("/v1/users/7/connections").await;
    assert_eq!(connection["connections"][0]["user_id"], "7");
    let kick = json!({ "block": 60 });
    let kicked = a.client().order("DELETE", "/v1/users/7/connections", kick);
    assert_eq!(kicked.await.0, 204);
    expect_count(b.client(), "blog:1", Numbers::new(1, 1, 0)).await;
    for node in [&mut a, &mut b] {
        node.expect_sound();
        let log = node.log();
        assert!(!log.contains("WARN"), "a right is missing? {log}");
    }
}

#[tokio::test]
async fn a_certificate_that_nobody_vouches_for_is_not_trusted() {
    let certificates = Certificates::make();
    let (_redis, port) = tls_redis(&certificates).await;
    for (host, authority) in [
        ("localhost", None),
        // It vouches for the certificate, but that one is not this name's.
        ("127.0.0.1", Some(certificates.path("ca.pem"))),
    ] {
        let url = format!("rediss://livecount:{ENCODED}@{host}:{port}");
        let settings = [("redis_url", url.as_str())];
        let node = Node::start_trusting("a", &settings, authority.as_deref()).await;
        let (status, ready) = node.client().ask("/readyz").await;
        assert_eq!((status, is_partial(&ready)), (200, true), "{ready}");
        let log = node.log();
        assert!(log.contains("certificate"), "{log}");
        expect_no_password(&log);
    }
}

#[tokio::test]
async fn a_password_is_neither_logged_nor_shown_by_the_program() {
    let redis = RedisServer::start_with(&["--requirepass", "another one"]).await;
    let url = format!("redis://livecount:{ENCODED}@localhost:{}/0", redis.port());
    let settings = [("redis_url", url.as_str()), ("log", "debug")];
    let mut node = Node::start("a", &settings).await;
    let (_, ready) = node.client().ask("/readyz").await;
    assert!(is_partial(&ready), "{ready}");
    node.stop();
    node.ended(PATIENCE).await;
    let log = node.log();
    assert!(log.contains("Password authentication failed"), "{log}");
    expect_no_password(&log);

    let shown = program("check-config", &url);
    assert!(shown.contains("redis_url"), "{shown}");
    expect_no_password(&shown);
    for wrong in [
        format!("redis://livecount:{PASSWORD}@localhost"),
        format!("redis://livecount:{ENCODED}@localhost/first"),
        format!("rediss://livecount:{ENCODED}@localhost/#insecure"),
    ] {
        for command in ["check-config", "serve", "healthcheck"] {
            let said = program(command, &wrong);
            assert!(said.contains("LIVECOUNT_REDIS_URL"), "{command}: {said}");
            expect_no_password(&said);
        }
    }
}

#[tokio::test]
async fn a_part_of_a_redis_cluster_is_named_in_the_log_and_the_node_serves_its_own() {
    let redis = RedisServer::start_with(&["--cluster-enabled", "yes"]).await;
    // Else it says that the cluster is down, rather than that keys lie apart.
    let mut slots = redis::cmd("CLUSTER");
    slots.arg("ADDSLOTS").arg((0..16_384).collect::<Vec<u32>>());
    let () = slots
        .query_async(&mut redis.connection().await)
        .await
        .expect("it takes them all");
    let url = redis.url();
    let mut node = Node::start("a", &[("redis_url", url.as_str())]).await;
    let (_, ready) = node.client().ask("/readyz").await;
    assert!(is_partial(&ready), "{ready}");
    node.stop();
    node.ended(PATIENCE).await;
    let log = node.log();
    let said = "it is part of a Redis Cluster, which is not supported";
    assert!(log.contains(said), "{log}");
}

/// What the program says to this URL, until it ends by itself.
fn program(command: &str, url: &str) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_livecount"))
        .arg(command)
        .env_clear()
        .env("LIVECOUNT_LISTEN", "127.0.0.1:0")
        .env("LIVECOUNT_JWT_SECRET", crate::wire::SECRET)
        .env("LIVECOUNT_REDIS_URL", url)
        .output()
        .expect("the program can be started");
    let said = [done.stdout, done.stderr].concat();
    String::from_utf8(said).expect("it is text")
}

fn expect_no_password(text: &str) {
    for part in [PASSWORD, ENCODED, "pass#word", "pass%23word", "another one"] {
        assert!(!text.contains(part), "{part} is in: {text}");
    }
}

// ---- metrics and readiness ----

/// Every sample without labels.
async fn samples(client: Client) -> BTreeMap<String, f64> {
    let text = client.text("/metrics").await;
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[tokio::test]
async fn metrics_and_readiness_say_how_the_nodes_get_on() {
    let mut cluster = Cluster::start(2).await;
    let client = cluster.nodes[0].client();
    let before = samples(client).await;
    assert_eq!(before["livecount_nodes"], 2.0);
    assert_eq!(before["livecount_partial"], 0.0);
    assert!(before["livecount_resyncs_total"] >= 1.0, "the first one");
    assert_eq!(client.read("/readyz").await, json!({ "status": "ok" }));
    until(PATIENCE, async || {
        let calls = samples(client).await["livecount_redis_calls_total"];
        let more = calls > before["livecount_redis_calls_total"];
        more.then_some(())
            .ok_or_else(|| format!("still {calls} calls"))
    })
    .await;

    cluster.redis.kill();
    until(PATIENCE, async || {
        let now = samples(client).await;
        let failures = now["livecount_redis_failures_total"];
        let away =
            now["livecount_partial"] == 1.0 && failures > before["livecount_redis_failures_total"];
        away.then_some(()).ok_or_else(|| format!("{now:?}"))
    })
    .await;
    let ready = client.read("/readyz").await;
    assert_eq!(ready, json!({ "status": "ok", "partial": true }));

    cluster.redis.start_empty().await;
    until(PATIENCE, async || {
        let now = samples(client).await;
        let back = now["livecount_partial"] == 0.0
            && now["livecount_nodes"] == 2.0
            && now["livecount_resyncs_total"] > before["livecount_resyncs_total"];
        back.then_some(()).ok_or_else(|| format!("{now:?}"))
    })
    .await;
    cluster.expect_sound();

    let alone = Node::start("solo", &[]).await;
    let samples = samples(alone.client()).await;
    assert!(samples.contains_key("livecount_viewers"));
    for name in ["nodes", "partial", "resyncs_total", "redis_calls_total"] {
        assert!(
            !samples.contains_key(&format!("livecount_{name}")),
            "{name}"
        );
    }
}

// ---- the past ----

/// What a room was in the minute that began then, as a node tells it.
async fn minute(client: Client, room: &str, began: u64) -> Value {
    let at = rfc3339(began);
    let past = client
        .read(&format!("/v1/rooms/{room}/history?minutes=3"))
        .await;
    let steps = past["steps"].as_array().expect("a list");
    let step = steps.iter().find(|step| step["at"] == at);
    step.cloned().unwrap_or_default()
}

/// A second of Unix time that begins a minute, as the past is told.
fn rfc3339(second: u64) -> String {
    let of = Duration::from_secs(second);
    humantime::format_rfc3339_seconds(UNIX_EPOCH + of).to_string()
}

fn now_secs() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.expect("it is after 1970").as_secs()
}

#[tokio::test]
async fn a_node_that_came_later_learns_what_the_minute_was() {
    let mut cluster = Cluster::start(1).await;
    // All of it has to happen within one minute of the clock.
    let left = 60 - now_secs() % 60;
    if left < 15 {
        sleep(Duration::from_secs(left)).await;
    }
    let began = now_secs() / 60 * 60;
    let a = cluster.nodes[0].client();
    let mut stays = a.join_as("blog:1", "7").await;
    let crowd = [a.join("blog:1").await, a.join("blog:1").await];
    let gone = a.join("blog:2").await;
    stays.wait_for("blog:1", Numbers::new(3, 3, 1)).await;
    drop((crowd, gone));
    stays.wait_for("blog:1", Numbers::new(1, 1, 1)).await;
    expect_count(a, "blog:2", Numbers::default()).await;
    cluster.add("later", &[]).await;
    let b = cluster.nodes[1].client();
    expect_count(b, "blog:1", Numbers::new(1, 1, 1)).await;
    assert_eq!(
        now_secs() / 60 * 60,
        began,
        "the machine is too slow for this"
    );
    until(PATIENCE, async || {
        let found = minute(b, "blog:1", began).await;
        let follows = found["viewers"]["max"] == 1;
        follows
            .then_some(())
            .ok_or_else(|| format!("blog:1 {found}"))
    })
    .await;

    let within = Duration::from_secs(60 - now_secs() % 60 + 20);
    until(within, async || {
        let blog_1 = minute(b, "blog:1", began).await;
        let blog_2 = minute(b, "blog:2", began).await;
        let learned = blog_1["viewers"]["max"] == 3 && blog_2["viewers"]["max"] == 1;
        learned
            .then_some(())
            .ok_or_else(|| format!("blog:1 {blog_1} blog:2 {blog_2}"))
    })
    .await;
    assert_eq!(minute(a, "blog:1", began).await["viewers"]["max"], 3);
    let names = names_of(&a.read("/v1/stats").await).len();
    assert_eq!(names, 2);
    cluster.expect_sound();
}
