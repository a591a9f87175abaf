//! More named viewers in one room than go into one batch: while all of them are told anew, nobody
//! is shown more than there are.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::{
    node::{Cluster, names_of},
    wire::{Client, Numbers, PATIENCE, Reader, until},
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

/// The highest of each number that somebody who watches is shown from now on.
fn watch(mut watcher: Reader) -> (Arc<Mutex<Numbers>>, JoinHandle<()>) {
    let most = Arc::new(Mutex::new(Numbers::default()));
    let noted = Arc::clone(&most);
    let task = tokio::spawn(async move {
        // It ends with its node.
        while let Ok(Some(event)) = watcher.try_next().await {
            if event.name == "count" {
                let mut most = noted.lock();
                *most = most.with(Numbers::of(&event.data), u64::max);
            }
        }
    });
    (most, task)
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
        seen.push(watch(client.open("/v1/watch?blog_id=1", &[]).await));
    }
    let expect_no_more = |during: &str| {
        for (node, (most, _)) in seen.iter().enumerate() {
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
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    settle(&cluster, whole, before).await;
    expect_no_more("FLUSHALL again and again");
    cluster.expect_sound();
}

/// How often a node has begun to tell everything anew.
async fn resyncs(client: Client) -> u64 {
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
