//! Blocks reach every node, and stay there, whatever happens to Redis.

use std::time::Duration;

use serde_json::json;

use crate::{
    node::Cluster,
    proxy::Trap,
    wire::{Client, Numbers, until},
};

const ROOM: &str = "blog:1";

/// Throws out a viewer of a name by its only connection, which is on this node.
async fn kick(node: Client, name: &str) {
    let kicked = node.join_named(ROOM, name).await;
    let path = format!("/v1/connections/{}", kicked.connection());
    let (status, answer) = node.order("DELETE", &path, json!({ "block": 300 })).await;
    assert_eq!(status, 204, "{answer}");
}

/// Waits until the node refuses a viewer of this name.
async fn expect_refused(node: Client, name: &str) {
    until(Duration::from_secs(3), async || {
        let body = json!({ "blog_id": 1, "viewer": name });
        let answer = node.try_call("POST", "/v1/join", "", &body).await;
        let (status, answer) = answer.expect("it answers");
        let refused = status == 403 && answer["code"] == "kicked";
        refused.then_some(()).ok_or_else(|| answer.to_string())
    })
    .await;
}

#[tokio::test]
async fn a_block_whose_call_fails_is_told_again_though_nobody_comes_or_goes() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    cluster.expect_count(ROOM, Numbers::default()).await;
    cluster.links[0].arm("v:anna", Trap::Break);
    kick(a, "anna").await;
    expect_refused(b, "anna").await;
    assert!(!cluster.links[0].disarm(), "no call failed");
    cluster.expect_sound();
}
