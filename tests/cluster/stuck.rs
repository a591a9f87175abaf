//! What must not hold a node up, and what it says where something does all the same.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::{
    node::Cluster,
    wire::{Numbers, PATIENCE, is_partial, until},
};

/// For how long Redis is away each time.
const AWAY: Duration = Duration::from_secs(1);

#[tokio::test]
async fn nodes_with_one_thread_each_tell_everything_to_a_redis_that_comes_back_empty() {
    // Whoever spins has no other thread to go on with.
    let mut cluster = Cluster::with(2, &[("TOKIO_WORKER_THREADS", "1")]).await;
    let (a, b) = cluster.pair();
    let mut readers = vec![a.join("blog:1").await, b.join("blog:1").await];
    for round in 1..=4 {
        cluster.redis.kill();
        sleep(AWAY).await;
        for client in [a, b] {
            let body = json!({ "rooms": ["blog:1"] });
            let ticket = client.try_join(&body, None).await.unwrap();
            readers.push(client.open_ticket(&ticket).await);
        }
        cluster.redis.start_empty().await;
        let all = 2 + 2 * round;
        cluster
            .expect_count("blog:1", Numbers::new(all, all, 0))
            .await;
    }
    cluster.expect_sound();
}

#[tokio::test]
async fn where_batches_alone_do_not_come_through_all_nodes_say_so() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let _near = a.join("blog:1").await;
    cluster.expect_count("blog:1", Numbers::new(1, 1, 0)).await;
    // Asked for before a batch changes anything, and by nothing else that a living node calls.
    let rights = async |rights: &str| {
        let set = ["ACL", "SETUSER", "default", rights];
        cluster.redis.call(&set).await.expect("Redis is there");
    };
    rights("-hlen").await;
    let _member = a.join_as("blog:1", "7").await;
    for (client, viewers) in [(a, 2), (b, 1)] {
        until(PATIENCE, async || {
            let count = client.read("/v1/rooms/blog:1").await;
            let said = is_partial(&count) && count["viewers"] == viewers;
            said.then_some(()).ok_or_else(|| count.to_string())
        })
        .await;
    }
    rights("+hlen").await;
    cluster.expect_count("blog:1", Numbers::new(2, 2, 1)).await;
    cluster.expect_sound();
}
