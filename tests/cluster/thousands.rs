//! More named viewers in one room than go into one batch: while all of them are told anew, nobody
//! is shown more than there are.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::{task::JoinSet, time::sleep};

use crate::{
    node::{Cluster, names_of},
    proxy::Weather,
    wire::{Client, Numbers, PATIENCE, Reader, token, until},
};

const ROOM: &str = "blog:1";
/// More than the 2,000 that go into one batch.
const VIEWERS: u64 = 2_500;
/// Of them, so many have a tab on the other node too.
const SHARED: u64 = 300;

/// Opens a stream for each of these names, some at a time.
async fn crowd(client: Client, names: std::ops::Range<u64>) -> Vec<Reader> {
    const TOGETHER: u64 = 8;
    let mut opening = JoinSet::new();
    for first in 0..TOGETHER {
        let names = names
            .clone()
            .skip(first as usize)
            .step_by(TOGETHER as usize);
        opening.spawn(async move {
            let mut readers = Vec::new();
            for name in names {
                readers.push(client.join_named(ROOM, &format!("v{name}")).await);
            }
            readers
        });
    }
    opening.join_all().await.into_iter().flatten().collect()
}

/// The highest of each number that a node shows from now on, to who watches and to who asks.
fn watch(client: Client, mut watcher: Reader) -> Arc<Mutex<Numbers>> {
    let most = Arc::new(Mutex::new(Numbers::default()));
    let note = |most: &Mutex<Numbers>, count: &Value| {
        let mut most = most.lock();
        *most = most.with(Numbers::of(count), u64::max);
    };
    let noted = Arc::clone(&most);
    tokio::spawn(async move {
        // It ends with its node.
        while let Ok(Some(event)) = watcher.try_next().await {
            if event.name == "count" {
                note(&noted, &event.data);
            }
        }
    });
    let noted = Arc::clone(&most);
    tokio::spawn(async move {
        let bearer = format!("Bearer {}", token("back-end", "read"));
        let path = format!("/v1/rooms/{ROOM}");
        // A frozen node does not answer in time, and is asked again.
        loop {
            let answer = client.try_call("GET", &path, &bearer, &Value::Null).await;
            if let Ok((200, count)) = answer {
                note(&noted, &count);
            }
            sleep(Duration::from_millis(20)).await;
        }
    });
    most
}

/// Makes Redis forget the last batch that it acknowledged to a node, as one that was put back.
async fn take_back_a_batch(cluster: &Cluster, name: &str) {
    let meta = ["HGET", "livecount:1:0:meta", "epoch"];
    let epoch = cluster.redis.call(&meta).await.unwrap().text();
    let key = |kind: &str| format!("livecount:1:0:{epoch}:{kind}");
    let nodes = cluster.redis.call(&["HGETALL", &key("nodes")]).await;
    let nodes = nodes.unwrap();
    let cards = nodes.items().chunks(2);
    // The name ends the first line.
    let is_its = |card: &str| card.lines().next().is_some_and(|line| line.ends_with(name));
    let mut of_it = cards.filter(|card| is_its(&card[1].text()));
    let incarnation = of_it.next().expect("it is leased")[0].text();
    let applied = ["HGET", &key("applied"), &incarnation];
    let applied = cluster.redis.call(&applied).await.unwrap().text();
    let (batch, rest) = applied.split_once(' ').expect("numbers");
    let before = batch.parse::<u64>().expect("a number") - 1;
    let set = [
        "HSET",
        &key("applied"),
        &incarnation,
        &format!("{before} {rest}"),
    ];
    cluster.redis.call(&set).await.unwrap();
}

#[tokio::test]
async fn telling_thousands_of_names_anew_shows_nobody_more_than_there_are() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let _crowd = crowd(a, 0..VIEWERS).await;
    let _tabs = crowd(b, 0..SHARED).await;
    let whole = Numbers::new(VIEWERS, VIEWERS + SHARED, 0);
    cluster.expect_count(ROOM, whole).await;
    let mut seen = Vec::new();
    for client in [a, b] {
        let watcher = client.open("/v1/watch?blog_id=1", &[]).await;
        seen.push(watch(client, watcher));
    }
    let expect_no_more = |during: &str| {
        for (node, most) in seen.iter().enumerate() {
            let most = *most.lock();
            assert!(
                most.is_within(whole),
                "{during}: node-{node} showed {most:?} of {whole:?}"
            );
        }
    };

    let before = [resyncs(a).await, resyncs(b).await];
    cluster.redis.flush_all().await;
    settle(&cluster, whole, before).await;
    expect_no_more("FLUSHALL");

    // From a life before that is still counted, and each batch is late.
    cluster.links[0].set(Weather {
        delay: Duration::from_millis(250),
        ..Weather::default()
    });
    let before = [resyncs(a).await, 0];
    take_back_a_batch(&cluster, "node-0").await;
    settle(&cluster, whole, before).await;
    expect_no_more("a batch that was taken back");
    cluster.links[0].clear();

    let before = [resyncs(a).await, 0];
    cluster.nodes[0].freeze();
    until(PATIENCE, async || {
        let stats = b.read("/v1/stats").await;
        let alone = names_of(&stats) == ["node-1"];
        alone.then_some(()).ok_or_else(|| stats.to_string())
    })
    .await;
    until(PATIENCE, async || {
        let found = b.count(ROOM).await;
        let gone = found == Numbers::new(SHARED, SHARED, 0);
        gone.then_some(()).ok_or_else(|| format!("{found:?}"))
    })
    .await;
    cluster.nodes[0].thaw();
    settle(&cluster, whole, before).await;
    expect_no_more("a frozen node's return");

    // In the midst of telling everything, everything again.
    let before = [resyncs(a).await, resyncs(b).await];
    for _ in 0..3 {
        cluster.redis.flush_all().await;
        sleep(Duration::from_millis(150)).await;
    }
    settle(&cluster, whole, before).await;
    expect_no_more("FLUSHALL again and again");
    cluster.expect_sound();
}

/// How often a node has begun to tell everything anew.
pub(crate) async fn resyncs(client: Client) -> u64 {
    let metrics = client.text("/metrics").await;
    let mut lines = metrics.lines();
    let count = lines.find_map(|line| line.strip_prefix("livecount_resyncs_total "));
    count.expect("it counts them").parse().expect("a number")
}

/// Waits until each node has begun anew since, and all numbers are right again.
async fn settle(cluster: &Cluster, whole: Numbers, before: [u64; 2]) {
    for (node, before) in cluster.nodes.iter().zip(before) {
        until(PATIENCE, async || {
            let since = resyncs(node.client()).await - before;
            (since > 0)
                .then_some(())
                .ok_or(format!("{} goes on", node.name()))
        })
        .await;
    }
    cluster.wait_until_met().await;
    cluster.expect_count(ROOM, whole).await;
}
