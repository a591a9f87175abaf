//! Many nodes that lapse at once, beside one that lives and takes their numbers off.

use livecount::cluster::store::{Flushed, Redis};
use tokio::time::Instant;

use super::helpers::{TestNode, TestStore, done, member, room, total, with};
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

#[tokio::test]
async fn a_life_that_nobody_is_in_any_more_is_gone_from_redis_within_a_minute() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    for round in 0..3 {
        a.flush(&[with(room("blog:1", 2, 1), &[member(round)], &[])])
            .await;
        let life = format!("t:1:0:{}:*", a.epoch());
        let () = store
            .raw(redis::cmd("HDEL").arg("t:1:0:meta").arg("time"))
            .await;
        let (epoch, _) = a.lane.connect().await.expect("the store answers");
        assert_ne!(epoch, a.epoch());
        let left: Vec<String> = store.raw(redis::cmd("KEYS").arg(life)).await;
        assert!(!left.is_empty());
        for key in left {
            let ms: i64 = store.raw(redis::cmd("PTTL").arg(&key)).await;
            assert!((1..=60_000).contains(&ms), "{key} is kept for {ms} ms");
        }
        a.begin_again().await;
    }
}

#[tokio::test]
async fn after_a_silence_of_all_the_first_one_back_finds_nobody_lapsed() {
    for silence in [1_600, 5_000, 9_500] {
        let mut store = TestStore::start().await;
        let (mut a, mut b, mut lapsed) =
            (store.node().await, store.node().await, store.node().await);
        for node in [&mut a, &mut b, &mut lapsed] {
            node.flush(&[room("blog:1", 100, 100)]).await;
        }
        done(lapsed.lane.release(lapsed.stamp, lapsed.me).await);
        store.shift_clock(silence).await;
        // One that knows no epoch yet may come before them.
        let mut new = store.stranger().await;
        let first = a.lease(false).await;
        assert!(first.held, "{silence}: {first:?}");
        assert_eq!(first.lapsed, [lapsed.me], "{silence}");
        a.reap_all().await;
        assert_eq!(new.total("blog:1").await, total(200, 200, 0), "{silence}");
        assert!(b.lease(false).await.held, "{silence}");

        // Those who do not come back lapse as ever.
        store.shift_clock(silence + 1_000).await;
        assert!(a.lease(false).await.held);
        store.pass(silence + 1_000, silence + 3_900).await;
        assert!(!b.lease(false).await.held, "{silence}");
    }
}
