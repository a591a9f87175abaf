//! Messages and calls while Redis is away: what waits, for how long, and what becomes of it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    node::Cluster,
    pace::{allow, judged},
    proxy::Weather,
    redis::Redis,
    wire::{Client, Numbers, PATIENCE, Reader, is_partial, token},
};

const ROOM: &str = "blog:1";
const TO: &str = "rooms/blog:1";
/// One call to Redis that is not answered, and what a busy machine takes beside.
const ONE_CALL: Duration = Duration::from_secs(5);

/// The data of every message up to this one; `None` where the reader was told that some may be
/// missing.
async fn told(reader: &mut Reader, last: &Value) -> Option<Vec<Value>> {
    let mut messages = Vec::new();
    let mut missing = false;
    loop {
        let event = reader.next().await;
        match event.name.as_str() {
            "reset" => missing = true,
            "message" if &event.data["data"] == last => return (!missing).then_some(messages),
            "message" => messages.push(event.data["data"].clone()),
            "closed" => panic!("{event:?}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn what_was_said_while_a_link_was_cut_is_told_or_its_loss_is() {
    let cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let say = async |client: Client, what: &str| client.publish(TO, json!({ "data": what })).await;
    let [mut stays, mut comes_back] = [b.join(ROOM).await, b.join(ROOM).await];
    let mut far_stays = a.join(ROOM).await;
    // One of each comes back on either node.
    let mut near = [b.join(ROOM).await, b.join(ROOM).await];
    let mut far = [a.join(ROOM).await, a.join(ROOM).await];
    say(a, "before").await;
    let all = [&mut stays, &mut comes_back, &mut far_stays];
    for reader in all.into_iter().chain(&mut near).chain(&mut far) {
        reader.expect_message(&json!("before")).await;
    }
    cluster.links[1].set(Weather {
        cut: true,
        ..Weather::default()
    });
    cluster.nodes[1].expect_partial(true).await;
    for what in ["far 1", "far 2"] {
        assert!(!is_partial(&say(a, what).await));
        for reader in &mut far {
            reader.expect_message(&json!(what)).await;
        }
    }
    assert!(is_partial(&say(b, "near").await));
    for reader in [&mut stays].into_iter().chain(&mut near) {
        reader.expect_message(&json!("near")).await;
    }
    let leave = |reader: Reader| (reader.ticket().to_owned(), reader.position.clone());
    let (near, far) = (near.map(leave), far.map(leave));
    let (ticket, position) = leave(comes_back);
    let during = b.resume(&ticket, &position).await;

    cluster.links[1].clear();
    far_stays.expect_message(&json!("far 1")).await;
    far_stays.expect_message(&json!("far 2")).await;
    far_stays.expect_message(&json!("near")).await;
    stays.expect_message(&json!("far 1")).await;
    stays.expect_message(&json!("far 2")).await;
    // By now the node has heard its own message from the others too, and not told it again.
    say(a, "after").await;
    assert_eq!(told(&mut stays, &json!("after")).await, Some(Vec::new()));
    assert_eq!(
        told(&mut far_stays, &json!("after")).await,
        Some(Vec::new())
    );
    let all = ["far 1", "far 2", "near"].map(Value::from);

    // None of those who come back may be left to believe that it missed nothing.
    let mut back = vec![(during, &all[..], "while the link was cut")];
    let of_near = (near, &all[..2], "the cut node's own message");
    let of_far = (far, &all[2..], "a message that the cut node did not have");
    for (leavers, missed, from) in [of_near, of_far] {
        for ((ticket, position), client) in leavers.iter().zip([a, b]) {
            back.push((client.resume(ticket, position).await, missed, from));
        }
    }
    let end = json!("end");
    b.publish(TO, json!({ "data": end })).await;
    for (mut reader, missed, from) in back {
        let Some(messages) = told(&mut reader, &end).await else {
            println!("reset, from {from}");
            continue;
        };
        for message in missed {
            assert!(messages.contains(message), "from {from}: {messages:?}");
        }
    }
}

#[test]
fn messages_to_a_redis_that_hangs_wait_together_and_come_once() {
    judged(async || {
        const MESSAGES: u64 = 20;
        let mut cluster = Cluster::start(2).await;
        let (a, b) = cluster.pair();
        let mut readers = [a.join(ROOM).await, b.join(ROOM).await];
        cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
        cluster.redis.freeze();
        let began = Instant::now();
        let mut publishing = JoinSet::new();
        for number in 0..MESSAGES {
            publishing.spawn(async move {
                let answer = a.publish(TO, json!({ "data": number })).await;
                (answer, began.elapsed())
            });
        }
        for (answer, took) in publishing.join_all().await {
            assert!(is_partial(&answer), "{answer}");
            assert!(took < allow(ONE_CALL), "one waited for {took:?}");
        }
        let mut near = Vec::new();
        for _ in 0..MESSAGES {
            near.push(readers[0].next_named("message").await.data["data"].clone());
        }
        cluster.redis.thaw();
        let mut far = Vec::new();
        for _ in 0..MESSAGES {
            far.push(readers[1].next_named("message").await.data["data"].clone());
        }
        for told in [&mut near, &mut far] {
            told.sort_unstable_by_key(Value::as_u64);
            assert!(
                told.iter().cloned().eq((0..MESSAGES).map(Value::from)),
                "{told:?}"
            );
        }
        // Nor does any of them come again with what Redis finds in its sockets.
        let last = json!("last");
        b.publish(TO, json!({ "data": last })).await;
        for reader in &mut readers {
            assert_eq!(told(reader, &last).await, Some(Vec::new()));
        }
        cluster.expect_sound();
    });
}

#[tokio::test]
async fn what_is_said_again_under_its_key_around_an_outage_is_told_once() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let (mut near, mut far) = (a.join(ROOM).await, b.join(ROOM).await);
    let keyed = |data: &str, key: &str| json!({ "data": data, "idempotency_key": key });
    let first = a.publish(TO, keyed("before", "k1")).await;
    for reader in [&mut near, &mut far] {
        reader.expect_message(&json!("before")).await;
    }
    cluster.cut_off().await;
    for client in [a, b] {
        let again = client.publish(TO, keyed("before", "k1")).await;
        assert_eq!(
            (&again["id"], &again["duplicate"]),
            (&first["id"], &json!(true))
        );
        let (status, answer) = client
            .order("POST", &format!("/v1/{TO}/messages"), keyed("other", "k1"))
            .await;
        assert_eq!(
            (status, &answer["code"]),
            (409, &json!("idempotency_conflict"))
        );
        let during = client.publish(TO, keyed("during", "k2")).await;
        assert_eq!(during["duplicate"], false);
    }
    a.publish(TO, keyed("of a", "k3")).await;
    b.publish(TO, keyed("of b", "k3")).await;
    for link in &cluster.links {
        link.clear();
    }
    for node in &cluster.nodes {
        node.expect_partial(false).await;
    }
    // Each goes behind what waits on its node.
    for (client, said) in [(a, "end of a"), (b, "end of b")] {
        client.publish(TO, json!({ "data": said })).await;
    }
    let mut told = Vec::new();
    for reader in [&mut near, &mut far] {
        let mut messages = Vec::new();
        let mut ends = 0;
        while ends < 2 {
            let message = reader.next_named("message").await;
            let data = message.data["data"].as_str().unwrap().to_owned();
            ends += usize::from(data.starts_with("end"));
            messages.push(data);
        }
        messages.retain(|data| !data.starts_with("end"));
        told.push(messages);
    }
    // Of two messages under one key the log has one, and that is told to all.
    let of_a = [vec!["during", "of a"], vec!["during", "of b", "of a"]];
    let of_b = [vec!["during", "of a", "of b"], vec!["during", "of b"]];
    assert!(told == of_a || told == of_b, "{told:?}");
    cluster.expect_sound();
}

/// Cuts the log off behind its last entry, as scripts do five minutes later.
async fn cut_log(redis: &Redis) {
    const META: &str = "livecount:1:0:meta";
    let call = async |words: &[&str]| redis.call(words).await.expect("Redis is there");
    let log = format!(
        "livecount:1:0:{}:log",
        call(&["HGET", META, "epoch"]).await.text()
    );
    let last = call(&["XREVRANGE", &log, "+", "-", "COUNT", "1"]).await;
    let last = last.items()[0].items()[0].text();
    let (ms, sequence) = last.split_once('-').expect("it is an id");
    call(&["XTRIM", &log, "MAXLEN", "0"]).await;
    call(&["HSET", META, "cut_ms", ms, "cut_seq", sequence]).await;
}

#[tokio::test]
async fn what_the_log_no_longer_has_when_a_node_comes_back_is_told_as_lost() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let cut = Weather {
        cut: true,
        ..Weather::default()
    };
    let (mut near, mut far) = (a.join(ROOM).await, b.join_as(ROOM, "7").await);
    for (number, loses_epoch) in [(1, false), (2, true)] {
        cluster.links[1].set(cut);
        cluster.nodes[1].expect_partial(true).await;
        let missed = json!(format!("missed {number}"));
        a.publish(TO, json!({ "data": missed })).await;
        near.expect_message(&missed).await;
        if loses_epoch {
            cluster.redis.flush_all().await;
        } else {
            cut_log(&cluster.redis).await;
        }
        cluster.links[1].clear();
        let mut rooms = Vec::new();
        for _ in 0..2 {
            let event = far.next_of(&["message", "reset"]).await;
            assert_eq!(event.name, "reset", "{event:?}");
            rooms.push(event.room().to_owned());
        }
        rooms.sort_unstable();
        assert_eq!(rooms, [ROOM, "user:7"]);
        for node in &cluster.nodes {
            node.expect_partial(false).await;
        }
        let last = json!(format!("last {number}"));
        a.publish(TO, json!({ "data": last })).await;
        // Who had heard all is told nothing of the kind.
        for reader in [&mut near, &mut far] {
            assert_eq!(told(reader, &last).await, Some(Vec::new()));
        }
    }
    cluster.expect_sound();
}

#[tokio::test]
async fn four_mebibytes_wait_for_redis_and_no_more() {
    const LARGE: usize = 60_000;
    let cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut far = b.join(ROOM).await;
    cluster.cut_off().await;
    let path = format!("/v1/{TO}/messages");
    let text = "x".repeat(LARGE);
    let mut taken = 0;
    loop {
        let (status, answer) = a.order("POST", &path, json!({ "data": text })).await;
        if status != 202 {
            assert_eq!((status, &answer["code"]), (503, &json!("overloaded")));
            break;
        }
        taken += 1;
    }
    // With the quotes around each.
    assert_eq!(taken, (4 << 20) / (LARGE + 2));
    for link in &cluster.links {
        link.clear();
    }
    for _ in 0..taken {
        let message = far.next_named("message").await;
        assert_eq!(message.data["data"].as_str().unwrap().len(), LARGE);
    }
}

#[test]
fn a_kick_that_was_answered_with_unavailable_is_not_done_later() {
    judged(async || {
        const STREAMS: usize = 12;
        let cluster = Cluster::start(2).await;
        let (a, b) = cluster.pair();
        let mut streams = Vec::new();
        for _ in 0..STREAMS {
            streams.push(b.join(ROOM).await);
        }
        let all = STREAMS as u64;
        cluster.expect_count(ROOM, Numbers::new(all, all, 0)).await;
        cluster.redis.freeze();
        let began = Instant::now();
        let mut kicks = JoinSet::new();
        for stream in &streams {
            let path = format!("/v1/connections/{}", stream.connection());
            kicks.spawn(async move { a.order("DELETE", &path, Value::Null).await });
        }
        for (status, answer) in kicks.join_all().await {
            let code = answer["code"].as_str();
            assert_eq!((status, code), (503, Some("nodes_unavailable")), "{answer}");
        }
        // What still waits would be sent now.
        cluster.redis.thaw();
        assert!(began.elapsed() < Duration::from_secs(2), "Redis was missed");
        for node in &cluster.nodes {
            node.expect_partial(false).await;
        }
        // Questions go out in their order, so this one is behind all that still waits.
        let path = "/v1/users/nobody/connections";
        crate::wire::until(PATIENCE, async || {
            let (status, answer) = a.order("DELETE", path, Value::Null).await;
            (status == 204).then_some(()).ok_or(answer.to_string())
        })
        .await;
        b.publish(TO, json!({ "data": "left" })).await;
        let mut left = 0;
        for stream in &mut streams {
            left += usize::from(stream.next_of(&["message", "closed"]).await.name == "message");
        }
        // One at a time is on its way, and Redis may find that one in its socket.
        assert!(left + 1 >= STREAMS, "{left} of {STREAMS} are left");
    });
}

#[tokio::test]
async fn however_much_is_said_and_opened_while_redis_is_away_memory_is_bounded() {
    const MESSAGES: usize = 2_000;
    const OPENED: usize = 2_000;
    /// What waits for Redis at the most, as the README has it.
    const WAITING: usize = 1_000;
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut far = b.join(ROOM).await;
    let mut near = a.join(ROOM).await;
    cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
    cluster.cut_off().await;
    let before = cluster.nodes[0].memory();

    let text = "x".repeat(3_000);
    let mut taken = Vec::new();
    let path = format!("/v1/{TO}/messages");
    for number in 0..MESSAGES {
        let body = json!({ "data": [number, text] });
        let (status, answer) = a.order("POST", &path, body).await;
        match status {
            202 => taken.push(number),
            503 => assert_eq!(answer["code"], "overloaded", "{answer}"),
            _ => panic!("{status} {answer}"),
        }
        if status == 202 {
            let message = near.next_named("message").await;
            assert_eq!(message.data["data"][0], json!(number));
        }
    }
    assert_eq!(taken.len(), WAITING);
    let mut opening = JoinSet::new();
    for part in 0..8 {
        opening.spawn(async move {
            for number in 0..OPENED / 8 {
                let body = json!({ "room": format!("blog:{part}-{number}"), "viewer": format!("v{part}-{number}") });
                let ticket = a.try_join(&body, None).await.expect("it lets in");
                drop(a.open_ticket(&ticket).await);
            }
        });
    }
    opening.join_all().await;
    let grown = cluster.nodes[0].memory().saturating_sub(before);
    println!("{} KiB more", grown >> 10);
    assert!(grown < 24 << 20, "{grown} bytes more");

    for link in &cluster.links {
        link.clear();
    }
    for number in taken {
        let message = far.next_named("message").await;
        assert_eq!(message.data["data"][0], json!(number));
    }
    let last = json!("last");
    a.publish(TO, json!({ "data": last })).await;
    for reader in [&mut near, &mut far] {
        assert_eq!(told(reader, &last).await, Some(Vec::new()));
    }
    cluster.expect_count(ROOM, Numbers::new(2, 2, 0)).await;
    let stats = b
        .call("GET", "/v1/stats", &token("back-end", "read"), Value::Null)
        .await;
    assert_eq!(stats.1["connections"], 2, "{}", stats.1);
    cluster.expect_sound();
}
