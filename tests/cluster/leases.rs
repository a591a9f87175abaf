//! Leases that are lost, kept and waited for: what becomes of a node's numbers and streams.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;

use crate::{
    node::Cluster,
    proxy::Trap,
    thousands::resyncs,
    wire::{Numbers, Reader, is_partial, until},
};

const ROOM: &str = "blog:1";
/// How long a lease lasts.
const LEASE: Duration = Duration::from_secs(3);

/// Waits until a node has said this since it was asked to say it.
async fn expect_said(cluster: &Cluster, node: usize, what: &str) {
    until(Duration::from_secs(5), async || {
        let log = cluster.nodes[node].log();
        log.contains(what).then_some(()).ok_or(log)
    })
    .await;
}

#[tokio::test]
async fn an_opening_told_in_a_batch_that_came_too_late_is_told_again() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let born = a.join(ROOM).await;
    let mut older = a.open_ticket(born.ticket()).await;
    cluster.expect_count(ROOM, Numbers::new(1, 1, 0)).await;
    // Only what makes and renews leases has the node's name in it.
    cluster.links[1].arm("node-1", Trap::LoseAll);
    sleep(LEASE + Duration::from_millis(300)).await;
    cluster.links[1].disarm();
    let newer: Reader = b.open_ticket(older.ticket()).await;
    let replaced = tokio::time::timeout(Duration::from_secs(3), older.reason()).await;
    assert_eq!(replaced.expect("it ends in time"), "replaced");
    expect_said(&cluster, 1, "lease or a batch was lost").await;
    cluster.expect_count(ROOM, Numbers::new(1, 1, 0)).await;
    assert_eq!(newer.connection(), older.connection());
    cluster.expect_sound();
}

#[tokio::test]
async fn a_node_that_meets_a_higher_format_serves_its_own_and_says_so() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut near = a.join(ROOM).await;
    let _far = b.join(ROOM).await;
    cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
    let set = ["SET", "livecount:format", "2"];
    assert_eq!(cluster.redis.call(&set).await.unwrap().text(), "OK");
    for (number, node) in cluster.nodes.iter().enumerate() {
        node.expect_partial(true).await;
        expect_said(&cluster, number, "the store's format is 2").await;
    }
    let _another = a.join(ROOM).await;
    while Numbers::of(&near.next_named("count").await.data) != Numbers::new(3, 3, 0) {}
    let said = a.publish("rooms/blog:1", json!({ "data": "near" })).await;
    assert!(is_partial(&said), "{said}");
    near.expect_message(&json!("near")).await;
    // It takes nothing away from those who know that format.
    let kept = cluster.redis.call(&["GET", "livecount:format"]).await;
    assert_eq!(kept.unwrap().text(), "2");
    cluster.expect_sound();
}

#[tokio::test]
async fn a_node_whose_lease_is_not_renewed_says_that_numbers_are_partial() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let _readers = [a.join(ROOM).await, b.join(ROOM).await];
    cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
    // Everything else goes on, so Redis is not missed.
    cluster.links[1].arm("node-1", Trap::LoseAll);
    cluster.nodes[1].expect_partial(true).await;
    cluster.links[1].disarm();
    cluster.nodes[1].expect_partial(false).await;
    cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
    cluster.expect_sound();
}

#[tokio::test]
async fn one_lost_request_does_not_cost_the_lease() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let _readers = [a.join(ROOM).await, b.join(ROOM).await];
    cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
    let before = resyncs(b).await;
    for _ in 0..2 {
        cluster.links[1].arm("node-1", Trap::Lose);
        sleep(LEASE + Duration::from_millis(800)).await;
        assert!(!cluster.links[1].disarm(), "nothing was lost");
        assert_eq!(a.count(ROOM).await, Numbers::new(2, 2, 0));
    }
    assert_eq!(resyncs(b).await, before, "{}", cluster.nodes[1].log());
    cluster.expect_sound();
}
