//! The log of messages, and blocks.

use std::time::Duration;

use livecount::cluster::store::{Channel, Publication, Published, parse_blocks};

use super::helpers::{TestStore, done};

pub(crate) fn publication<'a>(room: &'a str, data: &'a str, once: &'a str) -> Publication<'a> {
    let mut digest = [7; 32];
    digest[0] = data.len() as u8;
    Publication {
        room,
        event: "message",
        data: data.as_bytes(),
        once,
        digest,
        floor: 0,
        origin: "o",
    }
}

fn position(published: Published) -> u64 {
    match published {
        Published::Ordered { position, .. } => position,
        Published::Conflict => panic!("a conflict"),
    }
}

#[tokio::test]
async fn messages_are_read_in_the_order_of_their_growing_positions() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    let mut expected = Vec::new();
    for index in 0..250 {
        let data = format!("{index}\n\u{e4}");
        let published = done(
            a.lane
                .publish(a.stamp, &publication("blog:1", &data, ""))
                .await,
        );
        expected.push((position(published), data));
    }
    assert!(expected.is_sorted_by(|one, next| one.0 < next.0));
    let mut reader = store.redis.lane();
    let (mut after, mut read) = (0, Vec::new());
    loop {
        let page = reader
            .read_log(a.epoch(), after, 100, Duration::ZERO)
            .await
            .unwrap();
        if page.entries.is_empty() {
            break;
        }
        after = page.upto;
        read.extend(page.entries);
    }
    assert_eq!(read[3].room, "blog:1");
    assert_eq!((&*read[3].event, &*read[3].origin), ("message", "o"));
    let read: Vec<_> = read
        .into_iter()
        .map(|entry| {
            (
                entry.position,
                String::from_utf8(entry.data.to_vec()).unwrap(),
            )
        })
        .collect();
    assert_eq!(read, expected);
    assert_eq!(done(a.lane.log_span(a.stamp, None).await).last, after);
}

#[tokio::test]
async fn a_waiting_reader_is_woken_by_a_message() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    let mut reader = store.redis.lane();
    let nothing = reader
        .read_log(a.epoch(), 0, 10, Duration::from_millis(20))
        .await
        .unwrap();
    assert_eq!((nothing.upto, nothing.entries.len()), (0, 0));
    let message = publication("blog:1", "x", "");
    let (read, _) = tokio::join!(
        reader.read_log(a.epoch(), 0, 10, Duration::from_secs(20)),
        a.lane.publish(a.stamp, &message),
    );
    assert_eq!(read.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_message_published_again_keeps_its_place_and_another_is_a_conflict() {
    let mut store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    let first = done(
        a.lane
            .publish(a.stamp, &publication("blog:1", "x", "key"))
            .await,
    );
    let again = done(
        b.lane
            .publish(b.stamp, &publication("blog:1", "x", "key"))
            .await,
    );
    assert_eq!(
        again,
        Published::Ordered {
            position: position(first),
            duplicate: true
        }
    );
    let other = done(
        b.lane
            .publish(b.stamp, &publication("blog:1", "other", "key"))
            .await,
    );
    assert_eq!(other, Published::Conflict);
    let elsewhere = done(
        b.lane
            .publish(b.stamp, &publication("blog:2", "other", "key"))
            .await,
    );
    assert!(position(elsewhere) > position(first));
    let log = a
        .lane
        .read_log(a.epoch(), 0, 10, Duration::ZERO)
        .await
        .unwrap();
    let onces: Vec<&str> = log.entries.iter().map(|entry| &*entry.once).collect();
    assert_eq!(onces, ["key", "key"]);
    let keys: Vec<String> = store.raw(redis::cmd("KEYS").arg("t:*:once:*")).await;
    for key in keys {
        let left: i64 = store.raw(redis::cmd("PTTL").arg(key)).await;
        assert!((290_000..=300_000).contains(&left), "{left}");
    }
}

#[tokio::test]
async fn a_position_is_above_all_that_its_publisher_knows() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    let known = position(done(
        a.lane
            .publish(a.stamp, &publication("blog:1", "x", ""))
            .await,
    ));
    // An hour ahead, and at the end of the sequences of that ms.
    let floor = ((known >> 20) + 3_600_000) << 20 | 0xf_ffff;
    let ahead = Publication {
        floor,
        ..publication("blog:1", "y", "")
    };
    let next = position(done(a.lane.publish(a.stamp, &ahead).await));
    assert_eq!(next, floor + 1);
    let after = position(done(
        a.lane
            .publish(a.stamp, &publication("blog:1", "z", ""))
            .await,
    ));
    assert_eq!(after, next + 1);
}

#[tokio::test]
async fn the_log_keeps_five_minutes() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let old = position(done(
        a.lane
            .publish(a.stamp, &publication("blog:1", "old", ""))
            .await,
    ));
    // In steps that are no step of the clock.
    let mut shift = 0;
    while shift < 290_000 {
        shift += 9_000;
        store.shift_clock(shift).await;
        a.lease(true).await;
    }
    assert_eq!(done(a.lane.log_span(a.stamp, None).await).cut, 0);
    let new = position(done(
        a.lane
            .publish(a.stamp, &publication("blog:1", "new", ""))
            .await,
    ));
    shift += 9_000;
    store.shift_clock(shift).await;
    a.lease(true).await;
    let span = done(a.lane.log_span(a.stamp, None).await);
    assert_eq!((span.cut, span.last), (old, new));
    let log = a
        .lane
        .read_log(a.epoch(), 0, 10, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(log.entries.len(), 1);
    assert_eq!(log.entries[0].position, new);
}

#[tokio::test]
async fn the_log_keeps_sixty_four_mebibytes() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let small = "s".repeat(1_000);
    for _ in 0..300 {
        done(
            a.lane
                .publish(a.stamp, &publication("blog:1", &small, ""))
                .await,
        );
    }
    let large = "x".repeat(1 << 18);
    for _ in 0..260 {
        done(
            a.lane
                .publish(a.stamp, &publication("blog:1", &large, ""))
                .await,
        );
    }
    let key = format!("t:1:0:{}:log", a.epoch());
    let entries: u64 = store.raw(redis::cmd("XLEN").arg(&key)).await;
    assert_eq!(entries, 255);
    let bytes: u64 = store
        .raw(redis::cmd("HGET").arg("t:1:0:meta").arg("log_bytes"))
        .await;
    assert!((63 << 20..64 << 20).contains(&bytes), "{bytes}");
    assert!(done(a.lane.log_span(a.stamp, None).await).cut > 0);
}

#[tokio::test]
async fn an_entry_that_is_no_message_is_passed_over() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let key = format!("t:1:0:{}:log", a.epoch());
    let _: String = store
        .raw(
            redis::cmd("XADD")
                .arg(&key)
                .arg("5-1")
                .arg("room")
                .arg("blog:1"),
        )
        .await;
    let _: String = store
        .raw(
            redis::cmd("XADD")
                .arg(&key)
                .arg("5-2")
                .arg("data")
                .arg(&b"\xff"[..]),
        )
        .await;
    let page = a
        .lane
        .read_log(a.epoch(), 0, 10, Duration::ZERO)
        .await
        .unwrap();
    assert_eq!((page.upto, page.entries.len()), (5 << 20 | 2, 0));
}

#[tokio::test]
async fn an_entry_whose_id_is_no_position_is_passed_over_with_what_is_sound_around_it() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let epoch = a.epoch();
    let mut upto = 0;
    for (id, sound) in [
        ("5-1", true),
        ("5-1048576", false),
        ("6-1", true),
        ("8796093022208-0", false),
        ("17592186044415-1048575", false),
        ("17592186044416-0", false),
        ("18446744073709551615-18446744073709551615", false),
    ] {
        let mut add = redis::cmd("XADD");
        add.arg(format!("t:1:0:{epoch}:log")).arg(id);
        let fields = ["room", "blog:1", "event", "e", "data", id, "origin", "o"];
        let _: String = store.raw(add.arg(&fields)).await;
        let page = a.lane.read_log(epoch, upto, 10, Duration::ZERO).await;
        let page = page.unwrap();
        let said: Vec<&[u8]> = page.entries.iter().map(|entry| &*entry.data).collect();
        let expected = sound.then_some(id.as_bytes());
        assert!(said.iter().copied().eq(expected), "{id}");
        assert_eq!(page.stuck, !sound, "{id}");
        upto = page.upto;
    }
    assert_eq!(upto, 6 << 20 | 1);
}

#[tokio::test]
async fn a_position_that_cannot_be_bends_no_message_and_no_epoch() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    let mut last = 0;
    for floor in [
        u64::MAX,
        (1 << 63) - 1,
        (1 << 63) - (1 << 20),
        (1 << 62) + 5,
        (1 << 62) - 1,
        u64::MAX,
    ] {
        let far = Publication {
            floor,
            ..publication("blog:1", "x", "")
        };
        let next = position(done(a.lane.publish(a.stamp, &far).await));
        assert!(next > last && next < 1 << 63, "{floor:x} {next:x}");
        last = next;
    }
    let page = a.lane.read_log(a.epoch(), 0, 10, Duration::ZERO).await;
    assert_eq!(page.unwrap().entries.len(), 6);
}

#[tokio::test]
async fn how_far_the_log_of_an_epoch_before_went_is_known_by_who_knew_most_of_it() {
    let store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    let [one, other] = [1, 2].map(|number| format!("{number:016x}").parse().unwrap());
    let at = |ms: u64, sequence: u64| ms << 20 | sequence;
    for (epoch, known, was) in [
        (one, at(5, 9), at(5, 9)),
        (one, at(5, 8), at(5, 9)),
        (one, at(4, 11), at(5, 9)),
        (one, at(5, 10), at(5, 10)),
        (other, at(3, 1), at(3, 1)),
        (one, at(6, 0), at(6, 0)),
        (other, 0, at(3, 1)),
    ] {
        for node in [&mut a, &mut b] {
            let span = node.lane.log_span(node.stamp, Some((epoch, known)));
            assert_eq!(done(span.await).was, was);
        }
    }
    assert_eq!(done(a.lane.log_span(a.stamp, None).await).was, 0);
}

#[tokio::test]
async fn an_entry_of_a_node_that_writes_no_key_is_read() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let mut add = redis::cmd("XADD");
    add.arg(format!("t:1:0:{}:log", a.epoch())).arg("5-1");
    let fields = ["room", "blog:1", "event", "e", "data", "1", "origin", "o"];
    let _: String = store.raw(add.arg(&fields).arg("at").arg(5)).await;
    let page = a.lane.read_log(a.epoch(), 0, 10, Duration::ZERO).await;
    let entries = page.unwrap().entries;
    assert_eq!((&*entries[0].event, &*entries[0].once), ("e", ""));
}

#[tokio::test]
async fn blocks_end_with_their_time_and_the_longer_wins() {
    let mut store = TestStore::start().await;
    let mut listener = store.listen().await;
    let mut a = store.node().await;
    let named = |name: &str, ms| (name.to_owned(), ms);
    done(
        a.lane
            .block(a.stamp, &[named("c:1", 5_000), named("v:a b", 60_000)])
            .await,
    );
    let heard = listener.next().await.unwrap();
    assert_eq!(heard.channel, Channel::Blocks);
    assert_eq!(
        parse_blocks(&heard.bytes).unwrap(),
        [named("c:1", 5_000), named("v:a b", 60_000)]
    );
    done(a.lane.block(a.stamp, &[named("v:a b", 1_000)]).await);
    let heard = parse_blocks(&listener.next().await.unwrap().bytes).unwrap();
    assert!((50_000..=60_000).contains(&heard[0].1), "{heard:?}");
    store.shift_clock(6_000).await;
    let page = done(a.lane.blocks(a.stamp, 0, 100).await);
    assert_eq!(page.cursor, 0);
    assert_eq!(page.blocks.len(), 1);
    assert_eq!(page.blocks[0].0, "v:a b");
    assert!(a.lane.block(a.stamp, &[named("a\nb", 1)]).await.is_err());
}

#[tokio::test]
async fn a_hundred_thousand_blocks_are_kept_and_the_soonest_ending_go() {
    let mut store = TestStore::start().await;
    let mut a = store.node().await;
    let all: Vec<_> = (0..100_500_u64)
        .map(|index| (format!("c:{index}"), 600_000 + index))
        .collect();
    for part in all.chunks(1_000) {
        done(a.lane.block(a.stamp, part).await);
    }
    let kept: u64 = store
        .raw(redis::cmd("ZCARD").arg(format!("t:1:0:{}:blocks", a.epoch())))
        .await;
    assert_eq!(kept, 100_000);
    let (mut cursor, mut read) = (0, std::collections::BTreeSet::new());
    loop {
        let page = done(a.lane.blocks(a.stamp, cursor, 5_000).await);
        read.extend(page.blocks.into_iter().map(|(name, _)| name));
        cursor = page.cursor;
        if cursor == 0 {
            break;
        }
    }
    assert_eq!(read.len(), 100_000);
    assert!(!read.contains("c:0") && read.contains("c:100499"));
}

#[test]
fn nothing_but_blocks_is_read_as_blocks() {
    for bytes in [
        &b""[..],
        b"2\n1 a\n",
        b"1\n1\n",
        b"1\nx a\n",
        b"1\n1 a",
        b"\xff",
    ] {
        assert!(parse_blocks(bytes).is_none(), "{bytes:?}");
    }
    assert_eq!(parse_blocks(b"1\n").unwrap(), []);
}
