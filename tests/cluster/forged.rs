//! What comes over the control channels and was written by no node: numbers at their ends, names
//! that are none, bytes that say nothing. It is passed over, and the node goes on.

use std::time::Duration;

use livecount::hub::ConnectionId;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_stream::StreamExt;

use crate::{
    dice::Dice,
    forgery::{FAR, bytes, minutes, questions, replies},
    node::Cluster,
    wire::{Numbers, PATIENCE, Reader, until},
};

const CHANNELS: &str = "livecount:1:0";
/// No node of these tests.
const IMPOSTOR: u64 = 0xdead_beef_0000_0001;
/// Who writes to the channels.
struct Forger {
    client: redis::Client,
    redis: redis::aio::MultiplexedConnection,
}

impl Forger {
    async fn at(cluster: &Cluster) -> Self {
        let url = format!("redis://{}", cluster.redis.address());
        let client = redis::Client::open(url).unwrap();
        let redis = client.get_multiplexed_async_connection().await;
        Self {
            redis: redis.expect("Redis is there"),
            client,
        }
    }

    async fn publish(&mut self, channel: &str, bytes: &[u8]) {
        let mut publish = redis::cmd("PUBLISH");
        let publish = publish.arg(format!("{CHANNELS}:{channel}")).arg(bytes);
        let heard: u64 = publish.query_async(&mut self.redis).await.unwrap();
        assert!(heard > 0, "nobody listens to {channel}");
    }

    /// Answers every question to all nodes with these bytes from now on, in the place of nodes
    /// that are silent.
    async fn answer_with(&self, reply: Vec<u8>) -> JoinHandle<()> {
        let mut asked = self.client.get_async_pubsub().await.unwrap();
        asked
            .subscribe(format!("{CHANNELS}:everybody"))
            .await
            .unwrap();
        let mut redis = self.redis.clone();
        tokio::spawn(async move {
            let mut asked = asked.into_on_message();
            while let Some(message) = asked.next().await {
                let question = postcard::take_from_bytes(message.get_payload_bytes());
                let Ok(((0_u32, from, id), _)) = question else {
                    continue;
                };
                let (from, id): (u64, u64) = (from, id);
                let answer = [bytes(&(1_u32, IMPOSTOR, id)), reply.clone()].concat();
                let mut publish = redis::cmd("PUBLISH");
                publish
                    .arg(format!("{CHANNELS}:node:{from:016x}"))
                    .arg(answer);
                let _: u64 = publish.query_async(&mut redis).await.unwrap();
            }
        })
    }
}

fn bits(stream: &Reader) -> u128 {
    let id = ConnectionId::parse(stream.connection());
    id.expect("it is an id").to_bits()
}

/// Checks that the nodes do as they are told, and tell each other: kicks over the other node.
async fn expect_heard(cluster: &Cluster, room: &str) {
    let (a, b) = cluster.pair();
    let mut kicked = [a.join(room).await, b.join(room).await];
    cluster.expect_count(room, Numbers::new(2, 2, 0)).await;
    for (stream, over) in kicked.iter_mut().zip([b, a]) {
        let path = format!("/v1/connections/{}", stream.connection());
        let (status, answer) = over.order("DELETE", &path, Value::Null).await;
        assert_eq!(status, 204, "{answer}");
        assert_eq!(stream.reason().await, "kicked");
    }
    cluster.expect_count(room, Numbers::default()).await;
}

#[tokio::test]
async fn whatever_comes_over_the_control_channels_a_node_goes_on_hearing() {
    let mut cluster = Cluster::start(2).await;
    let (a, _) = cluster.pair();
    let mut forger = Forger::at(&cluster).await;
    let mut reader = a.join_as("blog:1", "7").await;
    let mut all: Vec<Vec<u8>> = Vec::new();
    for ask in questions(bits(&reader)) {
        for from in [IMPOSTOR, 0, FAR] {
            all.push(bytes(&(0_u32, from, FAR, &ask)));
        }
    }
    for reply in replies() {
        for id in [0, 1, FAR] {
            all.push([bytes(&(1_u32, IMPOSTOR, id)), reply.clone()].concat());
        }
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    all.extend(minutes((now.unwrap().as_secs() / 60) as u32));
    let mut dice = Dice::new(3);
    for number in 0..300 {
        let whole = &all[dice.roll(all.len())];
        // The ends of lists and texts, and whatever stands behind the last one.
        let mut cut = whole[..dice.roll(whole.len())].to_vec();
        if number % 3 == 0 {
            cut.extend((0..dice.roll(30)).map(|_| dice.roll(256) as u8));
        }
        // A cut may leave the question to throw the connection out whole; nothing else does.
        all.push(cut);
        all.push((0..dice.roll(60)).map(|_| dice.roll(256) as u8).collect());
    }
    for message in &all {
        forger.publish("everybody", message).await;
    }
    for block in ["m:nobody", "c:nonsense", "v:nobody", "x", ""] {
        let text = format!("1\n{FAR} {block}\n");
        forger.publish("blocks", text.as_bytes()).await;
    }
    forger.publish("blocks", b"\xff\xfe").await;

    expect_heard(&cluster, "blog:2").await;
    // Nor did it reach who was asked about.
    a.publish("rooms/blog:1", json!({ "data": "still here" }))
        .await;
    reader.expect_message(&json!("still here")).await;
    for node in &cluster.nodes {
        let log = node.log();
        let said = log.contains("passed over a message between nodes that is none");
        assert!(said, "{} says nothing of it: {log}", node.name());
    }
    cluster.expect_sound();
}

#[tokio::test]
async fn an_announcement_with_numbers_that_cannot_be_bends_nothing_for_long() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut forger = Forger::at(&cluster).await;
    let mut readers = vec![a.join("blog:1").await, b.join_as("blog:1", "7").await];
    cluster.expect_count("blog:1", Numbers::new(2, 2, 1)).await;
    let meta = cluster.redis.call(&["HGET", "livecount:1:0:meta", "epoch"]);
    let epoch = meta.await.unwrap().text();
    let most = u32::MAX;
    for text in [
        format!("1 {epoch} {FAR}\nr blog:1 {most} {most} {most}\nr * {most} {most} {most}\n"),
        format!("1 {epoch} 0\nr blog:1 0 0 0\n"),
        format!("1 00000000000000aa {FAR}\nr blog:1 {most} 0 0\n"),
        format!(
            "1 {epoch} {FAR}\na {IMPOSTOR:016x} {FAR}\nc {FAR} {:048x} {IMPOSTOR:016x}\n",
            1
        ),
        format!("1 {epoch} 99999999999999999999999\n"),
    ] {
        forger.publish("announcements", text.as_bytes()).await;
    }
    readers.push(b.join("blog:1").await);
    cluster.expect_count("blog:1", Numbers::new(3, 3, 1)).await;
    drop(readers);
    cluster.expect_count("blog:1", Numbers::default()).await;
    expect_heard(&cluster, "blog:2").await;
    cluster.expect_sound();
}

#[tokio::test]
async fn whatever_id_an_entry_of_the_log_has_messages_come_and_epochs_stay() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut readers = [a.join("blog:1").await, b.join("blog:1").await];
    cluster.expect_count("blog:1", Numbers::new(2, 2, 0)).await;
    let epoch = async || {
        let meta = cluster.redis.call(&["HGET", "livecount:1:0:meta", "epoch"]);
        meta.await.unwrap().text()
    };
    for id in [
        "4398046511104-0",
        "8796093022207-1048575",
        "17592186044415-1048575",
        "18446744073709551615-18446744073709551615",
    ] {
        let forged = json!(format!("forged at {id}"));
        let log = format!("livecount:1:0:{}:log", epoch().await);
        let mut add = vec!["XADD", &log, id, "room", "blog:1", "event", "message"];
        let data = forged.to_string();
        // As if it was said a while from now, so that it is not cut off at once.
        let at = u64::from(u32::MAX) * 1_000;
        let (at, origin) = (at.to_string(), format!("{IMPOSTOR:016x}:1"));
        add.extend(["data", &data, "origin", &origin, "at", &at]);
        let added = cluster.redis.call(&add).await.expect("Redis is there");
        assert_eq!(added.text(), id);
        for number in 0..3 {
            let data = json!(format!("{number} behind {id}"));
            for reader in [a, b] {
                reader
                    .publish("rooms/blog:1", json!({ "data": data }))
                    .await;
            }
            for reader in &mut readers {
                let both = async {
                    for _ in 0..2 {
                        while reader.next_named("message").await.data["data"] != data {}
                    }
                };
                let both = tokio::time::timeout(PATIENCE, both).await;
                both.unwrap_or_else(|_| panic!("{data} does not come twice"));
            }
        }
        let before = epoch().await;
        for client in [a, b] {
            let data = json!({ "data": "again" });
            let said = client.publish("rooms/blog:1", data).await;
            assert!(!crate::wire::is_partial(&said), "{said}");
        }
        assert_eq!(epoch().await, before);
    }
    cluster.expect_sound();
}

#[tokio::test]
async fn an_answer_that_cannot_be_is_no_answer() {
    let mut cluster = Cluster::start(2).await;
    let (a, _) = cluster.pair();
    let forger = Forger::at(&cluster).await;
    let _reader = a.join_as("blog:1", "7").await;
    cluster.expect_count("blog:1", Numbers::new(1, 1, 1)).await;
    let unknown = ConnectionId::random();
    for (number, reply) in replies().into_iter().enumerate() {
        // It answers no questions for a while, and its lease is renewed before that runs out.
        cluster.nodes[1].freeze();
        let impostor = forger.answer_with(reply).await;
        let token = crate::wire::token("back-end", "admin");
        let ask = |method, path: String| {
            let token = &token;
            async move { a.call(method, &path, token, Value::Null).await }
        };
        let answers = tokio::join!(
            ask("GET", format!("/v1/connections/{unknown}")),
            ask("GET", "/v1/rooms/blog:1/connections".to_owned()),
            ask("GET", "/v1/users/7/connections".to_owned()),
            ask("GET", "/v1/rooms/user:7".to_owned()),
            ask("GET", "/v1/rooms?prefix=user:".to_owned()),
            ask("DELETE", format!("/v1/connections/{unknown}")),
            ask("DELETE", "/v1/users/nobody/connections".to_owned()),
        );
        let (one, room, user, count, people, kick, kick_user) = answers;
        for (status, answer) in [one, room, user, count, people, kick, kick_user] {
            let known = [200, 204, 400, 403, 404, 503].contains(&status);
            assert!(known, "reply {number}: {status} {answer}");
        }
        cluster.nodes[1].thaw();
        impostor.abort();
    }
    // Frozen so often, it may have lost its lease, and is not asked until it has one again.
    cluster.wait_until_met().await;
    expect_heard(&cluster, "blog:2").await;
    cluster.expect_sound();
}

#[tokio::test]
async fn a_node_that_claims_to_be_from_the_end_of_time_is_shown_and_harms_nobody() {
    const MOST: u64 = (1 << 53) - 1;
    let mut cluster = Cluster::start(1).await;
    let a = cluster.nodes[0].client();
    let meta = cluster.redis.call(&["HGET", "livecount:1:0:meta", "epoch"]);
    let epoch = meta.await.unwrap().text();
    let who = format!("{IMPOSTOR:016x}");
    for (key, value) in [
        ("leases", MOST.to_string()),
        ("nodes", format!("1 {MOST} {MOST} x")),
    ] {
        let key = format!("livecount:1:0:{epoch}:{key}");
        let set = cluster.redis.call(&["HSET", &key, &who, &value]).await;
        set.expect("Redis is there");
    }
    until(PATIENCE, async || {
        let stats = a.read("/v1/stats").await;
        let nodes = stats["nodes"].as_array().map_or(0, Vec::len);
        (nodes == 2).then_some(()).ok_or_else(|| stats.to_string())
    })
    .await;
    assert_eq!(a.ask("/readyz").await.0, 200);
    let mut reader = a.join("blog:1").await;
    reader.wait_for("blog:1", Numbers::new(1, 1, 0)).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    cluster.expect_sound();
}
