//! Redis emptied, set back, stepped in time, filled with nonsense, slow or wrong.

use std::time::Duration;

use livecount::cluster::store::{Answer, Away, Channel, Redis, StoreError};

use super::helpers::{
    TestNode, TestStore, announcement, done, member, room, told_epoch, total, with,
};
use crate::{
    redis_server::documented_rights,
    resp_proxy::{Fault, RespProxy},
};

/// Lets a node go on as one does: whatever an answer says, begin again in the epoch in force.
/// Returns how many answers it took until a batch was applied and read back.
async fn recover(node: &mut TestNode) -> usize {
    for attempt in 1..8 {
        let begun = async {
            let (epoch, version) = node.lane.connect().await?;
            node.stamp.epoch = Some(epoch);
            node.stamp.version = version;
            node.me = livecount::cluster::store::Incarnation::random();
            node.number = 1;
            let answers = [
                matches!(
                    node.lane
                        .lease(node.stamp, node.me, None, &TestNode::card(), true)
                        .await?,
                    Answer::Done(_)
                ),
                matches!(
                    node.try_flush(1, &[with(room("blog:1", 2, 1), &[member(1)], &[])])
                        .await?,
                    Answer::Done(_)
                ),
                matches!(node.lane.announce(node.stamp).await?, Answer::Done(_)),
                matches!(
                    node.lane
                        .block(node.stamp, &[("c:1".to_owned(), 1_000)])
                        .await?,
                    Answer::Done(())
                ),
                matches!(
                    node.lane.claims_after(node.stamp, 0, 10).await?,
                    Answer::Done(_)
                ),
                matches!(
                    node.lane
                        .publish(
                            node.stamp,
                            &super::messages::publication(
                                "blog:1",
                                "x",
                                &format!("{:x}", rand::random::<u64>())
                            )
                        )
                        .await?,
                    Answer::Done(_)
                ),
            ];
            node.lane.log_span(node.stamp, None).await?;
            let log = node.lane.read_log(epoch, 0, 10, Duration::ZERO).await?;
            let totals = node.lane.totals(node.stamp, node.me, 0, 100).await?;
            let Answer::Done(totals) = totals else {
                return Ok(false);
            };
            let right =
                totals.rooms == [("blog:1".to_owned(), total(2, 2, 1))] && !log.entries.is_empty();
            Ok::<_, StoreError>(answers.iter().all(|answer| *answer) && right)
        };
        match begun.await {
            Ok(true) => return attempt,
            Ok(false) | Err(StoreError::Malformed(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("it does not recover");
}

#[tokio::test]
async fn an_emptied_store_begins_a_new_epoch() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    a.flush(&[room("blog:1", 5, 5)]).await;
    let () = store.raw(&redis::cmd("FLUSHALL")).await;
    let epoch = told_epoch(a.try_flush(2, &[room("blog:1", 6, 6)]).await);
    assert_ne!(epoch, a.epoch());
    assert_eq!(
        told_epoch(a.lane.announce(a.stamp).await),
        epoch,
        "and stays in it"
    );
    a.begin_again().await;
    assert_eq!(a.epoch(), epoch);
    assert_eq!(a.totals().await, []);
    a.flush(&[room("blog:1", 6, 6)]).await;
    assert_eq!(a.total("blog:1").await, total(6, 6, 0));
}

#[tokio::test]
async fn a_store_set_back_to_a_snapshot_begins_a_new_epoch() {
    let mut store = TestStore::start().await;
    let mut listener = store.listen().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    a.flush(&[room("blog:1", 5, 5)]).await;
    a.announce_all().await;
    a.stamp.version = announcement(&mut listener).await.version;
    let () = store.raw(&redis::cmd("SAVE")).await;
    a.flush(&[room("blog:1", 7, 7)]).await;
    a.announce_all().await;
    a.stamp.version = announcement(&mut listener).await.version;
    b.stamp.version = a.stamp.version;

    store.server.kill();
    assert!(store.server.resume().await);
    assert!(matches!(listener.next().await, Err(StoreError::Away(_))));
    assert!(matches!(
        a.lane.announce(a.stamp).await,
        Err(StoreError::Away(_))
    ));
    let epoch = told_epoch(a.try_flush(3, &[room("blog:1", 8, 8)]).await);
    assert_ne!(epoch, a.epoch());
    b.lane.announce(b.stamp).await.unwrap_err();
    b.begin_again().await;
    assert_eq!((b.epoch(), b.stamp.version), (epoch, 0));
    assert_eq!(b.totals().await, []);
}

#[tokio::test]
async fn a_store_set_back_without_an_announcement_shows_in_the_lease() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    a.flush(&[room("blog:1", 5, 5)]).await;
    let () = store.raw(&redis::cmd("SAVE")).await;
    let key = format!("t:1:0:{}:applied", a.epoch());
    let applied: String = store
        .raw(redis::cmd("HGET").arg(&key).arg(a.me.to_string()))
        .await;
    a.flush(&[room("blog:1", 6, 6)]).await;
    assert_eq!(a.lease(false).await.applied, 2);
    let () = store
        .raw(
            redis::cmd("HSET")
                .arg(&key)
                .arg(a.me.to_string())
                .arg(applied),
        )
        .await;
    assert_eq!(a.lease(false).await.applied, 1);
}

#[tokio::test]
async fn an_hours_step_of_the_clock_either_way_begins_a_new_epoch() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    for hour in [3_600_000, 0, -3_600_000, 0] {
        a.flush(&[room("blog:1", 2, 2)]).await;
        store.shift_clock(hour).await;
        let epoch = told_epoch(a.lane.announce(a.stamp).await);
        a.begin_again().await;
        assert_eq!(a.epoch(), epoch);
        assert_eq!(a.totals().await, []);
        assert!(a.lease(false).await.held);
        a.flush(&[room("blog:1", 3, 3)]).await;
    }
}

#[tokio::test]
async fn a_small_step_back_neither_ends_leases_nor_holds_announcements_up() {
    let mut store = TestStore::start().await;
    let mut listener = store.listen().await;
    let mut a = store.node().await;
    a.flush(&[room("blog:1", 2, 2)]).await;
    a.announce_all().await;
    let before = a.lease(false).await.now_ms;
    store.shift_clock(-8_000).await;
    a.flush(&[room("blog:1", 3, 3)]).await;
    a.announce_all().await;
    assert_eq!(announcement(&mut listener).await.version, 1);
    assert_eq!(announcement(&mut listener).await.rooms[0].1, total(3, 3, 0));
    let leased = a.lease(false).await;
    assert!(leased.held && leased.now_ms >= before && leased.lapsed.is_empty());
}

#[tokio::test]
async fn a_higher_format_keeps_the_node_out_and_is_left_alone() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let () = store.raw(redis::cmd("SET").arg("t:format").arg(2)).await;
    let before: Vec<String> = store.raw(redis::cmd("HVALS").arg("t:1:0:meta")).await;
    assert!(matches!(
        a.lane.announce(a.stamp).await,
        Err(StoreError::Format(2))
    ));
    assert!(matches!(a.lane.connect().await, Err(StoreError::Format(2))));
    assert_eq!(
        store
            .raw::<Vec<String>>(redis::cmd("HVALS").arg("t:1:0:meta"))
            .await,
        before
    );
    let () = store
        .raw(redis::cmd("SET").arg("t:format").arg("nonsense"))
        .await;
    assert_eq!(recover(&mut a).await, 1);
}

#[tokio::test]
async fn whatever_lies_under_our_keys_is_thrown_away_and_the_store_goes_on() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    recover(&mut a).await;
    let shared = [
        "totals", "who", "leases", "nodes", "applied", "changed", "flushed", "claims", "blocks",
        "log",
    ];
    for name in ["meta", "mine", "ids"].iter().chain(&shared) {
        for wrong in ["string", "list", "hash", "set", "stream", "zset"] {
            let epoch = a.epoch();
            let key = match *name {
                "meta" => "t:1:0:meta".to_owned(),
                "mine" | "ids" => format!("t:1:0:{epoch}:{name}:{}", a.me),
                shared => format!("t:1:0:{epoch}:{shared}"),
            };
            let () = store.raw(redis::cmd("DEL").arg(&key)).await;
            let mut command = redis::cmd(match wrong {
                "string" => "SET",
                "list" => "RPUSH",
                "hash" => "HSET",
                "set" => "SADD",
                "stream" => "XADD",
                _ => "ZADD",
            });
            command.arg(&key);
            match wrong {
                "hash" => command.arg("blog:1").arg("-1"),
                "stream" => command.arg("18446744073709551615-1").arg("f").arg("v"),
                "zset" => command.arg("inf").arg("x"),
                _ => command.arg("\n\0 9"),
            };
            let _: redis::Value = store.raw(&command).await;
            // The node's own numbers of a life before must not matter either.
            let _ = a
                .flush_or_not(&[with(room("blog:1", 3, 1), &[], &[])])
                .await;
            let _ = a
                .lane
                .lease(a.stamp, a.me, None, &TestNode::card(), false)
                .await;
            let _ = a.lane.reap(a.stamp, a.me, 10).await;
            recover_elsewhere(&mut a, name, wrong).await;
        }
    }
}

/// Recovers, in an epoch of its own where the damage was not met by any call so far: what is wrong
/// in a life that nobody reads any more is no harm.
async fn recover_elsewhere(node: &mut TestNode, name: &str, wrong: &str) {
    let attempts = recover_alone(node).await;
    assert!(attempts <= 4, "{name} as {wrong}: {attempts} attempts");
}

/// As [`recover`], after the lives before have been given up and reaped.
async fn recover_alone(node: &mut TestNode) -> usize {
    for attempt in 1..8 {
        let cleared = async {
            let (epoch, version) = node.lane.connect().await?;
            node.stamp.epoch = Some(epoch);
            node.stamp.version = version;
            node.lane.release(node.stamp, node.me).await?;
            while let Answer::Done(true) = node.lane.reap(node.stamp, node.me, 100).await? {}
            Ok::<_, StoreError>(())
        };
        match cleared.await {
            Ok(()) => return attempt - 1 + recover(node).await,
            Err(StoreError::Malformed(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    panic!("it does not recover");
}

impl TestNode {
    async fn flush_or_not(
        &mut self,
        rooms: &[livecount::cluster::store::RoomChange],
    ) -> Result<Answer<livecount::cluster::store::Flushed>, StoreError> {
        self.number += 1;
        self.try_flush(self.number, rooms).await
    }
}

#[tokio::test]
async fn a_key_that_was_deleted_or_evicted_leads_to_no_drift() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    for name in ["totals", "who", "mine", "ids", "applied"] {
        a.flush(&[with(room("blog:1", 2, 1), &[member(1)], &[])])
            .await;
        let key = match name {
            "mine" | "ids" => format!("t:1:0:{}:{name}:{}", a.epoch(), a.me),
            shared => format!("t:1:0:{}:{shared}", a.epoch()),
        };
        let gone: u64 = store.raw(redis::cmd("DEL").arg(&key)).await;
        assert_eq!(gone, 1, "{name}");
        let met = a
            .flush_or_not(&[with(room("blog:1", 3, 1), &[member(2)], &[])])
            .await;
        assert!(
            matches!(met, Err(StoreError::Malformed(_))),
            "{name}: {met:?}"
        );
        a.begin_again().await;
        assert_eq!(a.totals().await, [], "{name}");
    }
}

#[tokio::test]
async fn nonsense_in_single_values_is_met_with_a_new_epoch() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let nonsense: [&[u8]; 15] = [
        b"",
        b"-1 0 0 0",
        b"1 1 1",
        b"nan inf 0 0",
        b"\xff\xfe",
        b"99999999999999999999",
        b"1 2 3 4 5",
        b"0x10",
        b"4294967296 0 0 0",
        b"0 4294967295 9 0",
        b"1 1 1 \xff",
        b"18446744073709551616 1",
        b"1 99999999999999999999 1 a",
        b"9007199254740990",
        b"17592186044416",
    ];
    for value in nonsense {
        recover_alone(&mut a).await;
        for (name, field) in [
            ("totals", "blog:1"),
            ("leases", "ME"),
            ("leases", "nonsense"),
            ("nodes", "nonsense"),
            ("applied", "nonsense"),
            ("nodes", "ME"),
            ("applied", "ME"),
            ("mine", "blog:1"),
            ("meta", "version"),
            ("meta", "time"),
            ("meta", "epoch"),
            ("meta", "claim"),
            ("meta", "log_ms"),
            ("meta", "log_seq"),
            ("meta", "cut_ms"),
            ("meta", "claim_told"),
            ("meta", "announced_at"),
        ] {
            let key = match name {
                "meta" => "t:1:0:meta".to_owned(),
                "mine" => format!("t:1:0:{}:mine:{}", a.epoch(), a.me),
                shared => format!("t:1:0:{}:{shared}", a.epoch()),
            };
            let me = a.me.to_string();
            let field = if field == "ME" { &me } else { field };
            let _: i64 = store
                .raw(redis::cmd("HSET").arg(&key).arg(field).arg(value))
                .await;
            let _ = a.flush_or_not(&[room("blog:1", 3, 1)]).await;
            recover_alone(&mut a).await;
        }
    }
}

#[tokio::test]
async fn scripts_that_the_server_forgot_are_sent_again() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let () = store.raw(redis::cmd("SCRIPT").arg("FLUSH")).await;
    a.flush(&[room("blog:1", 1, 1)]).await;
    assert!(a.lane.is_connected());
    assert_eq!(a.total("blog:1").await, total(1, 1, 0));
}

#[tokio::test]
async fn no_reply_is_taken_for_anothers() {
    let store = TestStore::start().await;
    let proxy = RespProxy::before(store.server.port()).await;
    let mut a = store.node().await;
    a.lane = Redis::new(&proxy.url(), "t:").unwrap().lane();
    a.flush(&[room("blog:1", 1, 1)]).await;

    proxy.fail_next(Fault::Double);
    a.flush(&[room("blog:1", 2, 2)]).await;
    // The second reply lies in wait for whoever trusts order.
    match a.lane.totals(a.stamp, a.me, 0, 100).await {
        Err(StoreError::Mismatch | StoreError::Away(_)) => assert!(!a.lane.is_connected()),
        other => panic!("{other:?}"),
    }
    assert_eq!(a.total("blog:1").await, total(2, 2, 0));

    proxy.fail_next(Fault::LoseReply);
    let rooms = [room("blog:1", 3, 3)];
    let lost = a.try_flush(3, &rooms).await;
    assert!(
        matches!(lost, Err(StoreError::Away(Away::Timeout))),
        "{lost:?}"
    );
    a.flush_as(3, &rooms).await;
    assert_eq!(a.total("blog:1").await, total(3, 3, 0));
}

#[tokio::test]
async fn a_call_given_up_half_way_leaves_no_reply_behind() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    tokio::select! {
        biased;
        _ = a.lane.announce(a.stamp) => panic!("it cannot be done at the first poll"),
        () = std::future::ready(()) => {}
    }
    assert!(!a.lane.is_connected());
    a.flush(&[room("blog:1", 1, 1)]).await;
}

#[tokio::test]
async fn a_silent_server_is_noticed_by_calls_and_by_the_listener() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    let mut listener = store.listen().await;
    store.server.signal("STOP");
    let began = tokio::time::Instant::now();
    let (called, heard) = tokio::join!(a.lane.announce(a.stamp), listener.next());
    assert!(
        matches!(called, Err(StoreError::Away(Away::Timeout))),
        "{called:?}"
    );
    assert!(
        matches!(heard, Err(StoreError::Away(Away::Timeout))),
        "{heard:?}"
    );
    assert!(
        began.elapsed() < Duration::from_millis(4_500),
        "{:?}",
        began.elapsed()
    );
    store.server.signal("CONT");
    assert!(matches!(
        listener.next().await,
        Err(StoreError::Away(Away::Unsubscribed))
    ));
    listener
        .subscribe(&[Channel::Everybody, Channel::Node(a.me)])
        .await
        .unwrap();
    a.lane.send(Channel::Node(a.me), b"hello").await.unwrap();
    let heard = listener.next().await.unwrap();
    assert_eq!(
        (heard.channel, &heard.bytes[..]),
        (Channel::Node(a.me), &b"hello"[..])
    );
}

#[tokio::test]
async fn a_quiet_listener_stays() {
    let store = TestStore::start().await;
    let mut a = store.stranger().await;
    let mut listener = store.listen().await;
    let quiet = tokio::time::timeout(Duration::from_millis(2_500), listener.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
    a.lane.send(Channel::Everybody, b"hello").await.unwrap();
    assert_eq!(&listener.next().await.unwrap().bytes[..], b"hello");
}

#[tokio::test]
async fn an_error_that_is_no_damage_loses_nothing_and_leaves_a_gap_that_shows() {
    let mut store = TestStore::start().await;
    let user = |store: &mut TestStore, rights: Vec<String>| {
        let mut command = redis::cmd("ACL");
        command.arg("SETUSER").arg("livecount").arg(rights);
        let mut raw = store.raw.clone();
        async move {
            let () = command.query_async(&mut raw).await.expect("it is done");
        }
    };
    let mut rights = vec!["on".to_owned(), ">secret".to_owned()];
    rights.extend(documented_rights());
    user(&mut store, rights).await;
    let url = format!("redis://livecount:secret@127.0.0.1:{}", store.server.port());
    let redis = Redis::new(&url, "livecount:").unwrap();
    let mut listener = redis.listener();
    listener.subscribe(&[Channel::Announcements]).await.unwrap();
    let mut a = TestNode::on(&redis).await;
    assert!(a.lease(true).await.held);
    a.flush(&[room("blog:1", 1, 1)]).await;
    a.announce_all().await;
    let before = announcement(&mut listener).await;
    tokio::time::sleep(Duration::from_millis(30)).await;

    // What is announced is read, and cannot be removed from the list of what is to be announced.
    user(&mut store, vec!["-srem".to_owned()]).await;
    let rooms = [room("blog:1", 2, 2), room("blog:2", 1, 1)];
    for _ in 0..2 {
        let refused = a.try_flush(2, &rooms).await;
        let error = refused.expect_err("a right is missing");
        assert!(
            matches!(error, StoreError::Away(Away::Redis(_))),
            "{error:?}"
        );
        tokio::time::sleep(Duration::from_millis(30)).await;
    }

    user(&mut store, vec!["+srem".to_owned()]).await;
    a.flush_as(2, &rooms).await;
    a.announce_all().await;
    let after = announcement(&mut listener).await;
    assert_eq!((before.epoch, after.epoch), (a.epoch(), a.epoch()));
    assert!(
        after.version > before.version + 1,
        "{} follows {}",
        after.version,
        before.version
    );
    let mut told = after.rooms.clone();
    told.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    let now = [("blog:1", total(2, 2, 0)), ("blog:2", total(1, 1, 0))];
    let now = now.map(|(room, total)| (room.to_owned(), total));
    assert_eq!(told, now);
    assert_eq!(a.totals().await, now);
}

#[tokio::test]
async fn a_user_with_the_documented_rights_can_do_everything() {
    let mut store = TestStore::start().await;
    let () = store
        .raw(
            redis::cmd("ACL")
                .arg("SETUSER")
                .arg("livecount")
                .arg("on")
                .arg(">secret")
                .arg(documented_rights()),
        )
        .await;
    let () = store
        .raw(redis::cmd("ACL").arg("SETUSER").arg("default").arg("off"))
        .await;
    let url = format!("redis://livecount:secret@127.0.0.1:{}", store.server.port());
    let redis = Redis::new(&url, "livecount:").unwrap();
    let mut a = TestNode::on(&redis).await;
    recover(&mut a).await;
    a.number = 1;
    a.flush(&[with(room("blog:1", 1, 1), &[], &[member(1)])])
        .await;
    a.flush(&[with(room("blog:1", 0, 0), &[], &[])]).await;
    done(a.lane.blocks(a.stamp, 0, 10).await);
    done(a.lane.log_span(a.stamp, None).await);
    done(a.lane.totals(a.stamp, a.me, 0, 10).await);
    a.flush(&[with(room("blog:1", 2, 1), &[member(1)], &[])])
        .await;
    let mut listener = redis.listener();
    listener.subscribe(&[Channel::Everybody]).await.unwrap();
    a.lane.send(Channel::Everybody, b"hello").await.unwrap();
    listener.next().await.unwrap();
    done(a.lane.release(a.stamp, a.me).await);
    assert!(done(a.lane.reap(a.stamp, a.me, 1).await));
    assert!(!done(a.lane.reap(a.stamp, a.me, 5).await));
    let denied: Vec<redis::Value> = store.raw(redis::cmd("ACL").arg("LOG")).await;
    assert!(denied.is_empty(), "{denied:?}");

    let elsewhere = Redis::new(&url, "other:").unwrap();
    assert!(matches!(
        elsewhere.lane().connect().await,
        Err(StoreError::Away(Away::Redis(_)))
    ));
    let wrong = Redis::new(&url.replace("secret", "wrong"), "livecount:").unwrap();
    assert!(matches!(
        wrong.lane().connect().await,
        Err(StoreError::Away(Away::Redis(_)))
    ));
}
