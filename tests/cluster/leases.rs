//! Leases that are lost, kept and waited for: what becomes of a node's numbers and streams.

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    node::Cluster,
    proxy::Trap,
    wire::{Numbers, Reader, until},
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
