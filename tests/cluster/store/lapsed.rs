//! Many nodes that lapse at once, beside one that lives and takes their numbers off.

use livecount::cluster::store::{Flushed, Redis};
use tokio::time::Instant;

use super::helpers::{TestNode, done, member, room, total, with};
use crate::{
    node::Node,
    pace::{allow, judged},
    redis_server::RedisServer,
    wire::{Numbers, PATIENCE, until},
};

/// More than a lease's answer names, several times over.
const LAPSED: u32 = 80;
/// How often scripts called a command.
async fn calls(redis: &mut redis::aio::MultiplexedConnection, command: &str) -> u64 {
    let stats: String = redis::cmd("INFO")
        .arg("commandstats")
        .query_async(redis)
        .await
        .expect("the server answers");
    let mut lines = stats.lines();
    let prefix = format!("cmdstat_{command}:calls=");
    let line = lines.find_map(|line| line.strip_prefix(prefix.as_str()));
    let calls = line.and_then(|line| line.split(',').next()?.parse().ok());
    calls.unwrap_or_default()
}

#[test]
fn eighty_nodes_that_lapse_at_once_are_each_reaped_once_and_in_time() {
    judged(async || {
        let server = RedisServer::start().await;
        let mut raw = server.connection().await;
        let url = server.url();
        let mut node = Node::start("lives", &[("redis_url", &url)]).await;
        let _reader = node.client().join_as("blog:1", "0").await;
        let redis = Redis::new(&url, "livecount:").unwrap();
        let mut last = TestNode::on(&redis).await;
        let before = calls(&mut raw, "hrandfield").await;
        for number in 0..LAPSED {
            let mut lapses = TestNode::on(&redis).await;
            assert!(lapses.lease(true).await.held);
            let rooms = [
                with(room("blog:1", 3, 1), &[member(number)], &[]),
                room(&format!("blog:of-{number}"), 1, 1),
            ];
            let flushed = lapses.flush(&rooms).await;
            assert!(matches!(flushed, Flushed::Applied { .. }), "{flushed:?}");
            last = lapses;
        }
        let lapse = Instant::now();
        let all = u64::from(LAPSED);

        until(allow(PATIENCE), async || {
            let left = last.total("blog:1").await;
            let right = left == total(1, 1, 1) && last.totals().await.len() <= 3;
            right.then_some(()).ok_or_else(|| format!("{left:?}"))
        })
        .await;
        println!("gone after {:?}", lapse.elapsed());
        until(PATIENCE, async || {
            let found = node.client().count("blog:1").await;
            let right = found == Numbers::new(1, 1, 1);
            right.then_some(()).ok_or_else(|| format!("{found:?}"))
        })
        .await;
        let leased: Vec<String> = redis::cmd("HKEYS")
            .arg(format!("livecount:1:0:{}:leases", last.epoch()))
            .query_async(&mut raw)
            .await
            .expect("the server answers");
        assert_eq!(leased.len(), 1, "{leased:?}");
        // The script that reaps is the only one that draws rooms.
        let drawn = calls(&mut raw, "hrandfield").await - before;
        println!("{drawn} calls for {LAPSED} nodes");
        assert!(drawn <= all + all / 4, "{drawn} calls for {LAPSED} nodes");
        done(last.lane.announce(last.stamp).await);
        node.expect_sound();
    });
}
