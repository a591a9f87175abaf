//! Numbers of several nodes, added up.

use std::time::Duration;

use livecount::cluster::store::{Batch, Flushed, Incarnation, RoomChange};

use super::helpers::{TestNode, TestStore, announcement, done, member, room, total, viewer, with};

fn is_applied(flushed: Flushed) -> bool {
    matches!(flushed, Flushed::Applied { .. })
}

#[tokio::test]
async fn a_total_is_the_sum_of_the_nodes_and_goes_with_the_last() {
    let store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    assert!(is_applied(
        a.flush(&[room("blog:1", 3, 3), room("blog:2", 1, 1)]).await
    ));
    assert!(is_applied(b.flush(&[room("blog:1", 2, 2)]).await));
    assert_eq!(a.total("blog:1").await, total(5, 5, 0));
    assert_eq!(
        b.totals().await,
        [
            ("blog:1".to_owned(), total(5, 5, 0)),
            ("blog:2".to_owned(), total(1, 1, 0))
        ]
    );
    a.flush(&[room("blog:1", 1, 1), room("blog:2", 0, 0)]).await;
    assert_eq!(b.totals().await, [("blog:1".to_owned(), total(3, 3, 0))]);
    assert_eq!(b.total("blog:none").await, total(0, 0, 0));
}

#[tokio::test]
async fn a_reader_on_two_nodes_is_one_viewer_until_the_last_leaves() {
    let store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    a.flush(&[with(room("blog:1", 2, 0), &[member(7), viewer(8)], &[])])
        .await;
    b.flush(&[with(room("blog:1", 3, 1), &[member(7), viewer(9)], &[])])
        .await;
    assert_eq!(a.total("blog:1").await, total(5, 4, 1));
    a.flush(&[with(room("blog:1", 1, 0), &[], &[member(7)])])
        .await;
    assert_eq!(a.total("blog:1").await, total(4, 4, 1));
    b.flush(&[with(room("blog:1", 2, 1), &[], &[member(7)])])
        .await;
    assert_eq!(a.total("blog:1").await, total(3, 3, 0));
}

#[tokio::test]
async fn a_batch_sent_twice_counts_once_and_says_the_same() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    let rooms = [with(room("blog:1", 2, 0), &[member(1), member(2)], &[])];
    let batch = Batch {
        number: 1,
        rooms: &rooms,
        claims: &[[1; 24], [2; 24]],
        ..a.batch()
    };
    let Flushed::Applied {
        claims_from: first, ..
    } = done(a.lane.flush(a.stamp, &batch).await)
    else {
        panic!("applied");
    };
    let Flushed::Applied {
        claims_from: again, ..
    } = done(a.lane.flush(a.stamp, &batch).await)
    else {
        panic!("applied");
    };
    assert_eq!((first, again), (1, 1));
    assert_eq!(a.total("blog:1").await, total(2, 2, 2));
    assert_eq!(done(a.lane.claims_after(a.stamp, 0, 10).await).len(), 2);
}

#[tokio::test]
async fn a_gap_and_a_lapsed_lease_are_answered_with_resync() {
    let mut store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    assert!(is_applied(a.flush_as(1, &[room("blog:1", 1, 1)]).await));
    assert_eq!(
        a.flush_as(3, &[room("blog:1", 9, 9)]).await,
        Flushed::Resync
    );
    let mut stranger = store.stranger().await;
    assert_eq!(
        stranger.flush(&[room("blog:1", 9, 9)]).await,
        Flushed::Resync
    );
    store.pass(0, 3_100).await;
    assert_eq!(
        a.flush_as(2, &[room("blog:1", 9, 9)]).await,
        Flushed::Resync
    );
    assert!(!a.lease(false).await.held, "a lapsed lease is not revived");
    b.begin_again().await;
    assert_eq!(b.total("blog:1").await, total(1, 1, 0));
}

#[tokio::test]
async fn a_resync_shows_no_reader_a_dip_or_a_double() {
    let store = TestStore::start().await;
    let (mut a, mut other) = (store.node().await, store.node().await);
    let rooms: Vec<RoomChange> = (0..20)
        .map(|index| {
            let people = [member(1), member(index + 2), viewer(index)];
            with(room(&format!("blog:{index}"), 5, 2), &people, &[])
        })
        .collect();
    a.flush(&rooms).await;
    other
        .flush(&[with(room("blog:0", 1, 0), &[member(1)], &[])])
        .await;
    let before = other.totals().await;
    assert_eq!(before[0].1, total(6, 5, 2));

    let older = a.me;
    let me = Incarnation::random();
    done(
        a.lane
            .lease(a.stamp, me, Some(older), &TestNode::card(), true)
            .await,
    );
    for (index, chunk) in rooms.chunks(3).enumerate() {
        let number = index as u64 + 1;
        let last = number == 7;
        let batch = Batch {
            incarnation: me,
            older: Some(older),
            number,
            rooms: chunk,
            claims: &[],
            done: last,
        };
        assert!(is_applied(done(a.lane.flush(a.stamp, &batch).await)));
        assert_eq!(other.totals().await, before, "after chunk {number}");
    }
    let leased = other.lease(false).await;
    assert_eq!(leased.lapsed, [older]);
    assert!(
        leased
            .nodes
            .iter()
            .any(|node| node.incarnation == me && node.card.synced)
    );
    other.reap_all().await;
    assert_eq!(
        other.totals().await,
        before,
        "nothing is left of the older one"
    );
    let sends_synced_late = done(
        a.lane
            .lease(a.stamp, me, None, &TestNode::card(), false)
            .await,
    );
    let own = sends_synced_late
        .nodes
        .iter()
        .find(|node| node.incarnation == me)
        .unwrap();
    assert!(own.card.synced, "a lease on its way does not take it back");
}

#[tokio::test]
async fn what_left_during_a_resync_is_reaped_at_its_end() {
    let store = TestStore::start().await;
    let (mut a, mut other) = (store.node().await, store.node().await);
    a.flush(&[
        with(room("blog:1", 3, 1), &[member(1), viewer(2)], &[]),
        room("blog:2", 4, 4),
    ])
    .await;
    let older = a.me;
    a.me = Incarnation::random();
    done(
        a.lane
            .lease(a.stamp, a.me, Some(older), &TestNode::card(), true)
            .await,
    );
    let rooms = [with(room("blog:1", 1, 0), &[member(1)], &[])];
    let batch = Batch {
        older: Some(older),
        number: 1,
        rooms: &rooms,
        done: true,
        ..a.batch()
    };
    done(a.lane.flush(a.stamp, &batch).await);
    assert_eq!(other.total("blog:1").await, total(1, 2, 1));
    other.reap_all().await;
    assert_eq!(
        other.totals().await,
        [("blog:1".to_owned(), total(1, 1, 1))]
    );
}

#[tokio::test]
async fn a_dead_nodes_numbers_go_in_bounded_steps_unless_its_lease_comes_back() {
    let mut store = TestStore::start().await;
    let mut dead = store.node().await;
    let crowd: Vec<_> = (0..3_000).map(member).collect();
    for (index, part) in crowd.chunks(500).enumerate() {
        let rooms = [with(room("blog:1", 3_000, 0), part, &[])];
        assert!(is_applied(dead.flush_as(index as u64 + 1, &rooms).await));
    }
    let mut other = store.node().await;
    other
        .flush(&[with(room("blog:1", 1, 0), &[member(5)], &[])])
        .await;
    assert_eq!(other.total("blog:1").await, total(3_001, 3_000, 3_000));

    assert!(
        !done(other.lane.reap(other.stamp, dead.me, 500).await),
        "its lease runs"
    );
    store.pass(0, 3_100).await;
    other.begin_again().await;
    assert!(done(other.lane.reap(other.stamp, dead.me, 500).await));
    let partly = other.total("blog:1").await;
    assert!((2_500..=2_501).contains(&partly.viewers), "{partly:?}");
    // As the incarnation that a new one resyncs from it may come back, and nothing more is taken.
    let me = Incarnation::random();
    done(
        dead.lane
            .lease(dead.stamp, me, Some(dead.me), &TestNode::card(), true)
            .await,
    );
    assert!(!done(other.lane.reap(other.stamp, dead.me, 500).await));
    assert_eq!(other.total("blog:1").await, partly);

    store.pass(3_100, 6_200).await;
    other.begin_again().await;
    let mut steps = 0;
    while done(other.lane.reap(other.stamp, dead.me, 500).await) {
        steps += 1;
    }
    assert!(steps >= 5, "{steps} steps");
    // What is left is the first life of `other`, lapsed by the step of the clock.
    assert_eq!(other.total("blog:1").await, total(1, 1, 1));
    other.reap_all().await;
    assert_eq!(other.totals().await, []);
    let left: Vec<String> = store.raw(redis::cmd("KEYS").arg("t:*:mine:*")).await;
    assert_eq!(left, [""; 0]);
    let left: Vec<String> = store.raw(redis::cmd("KEYS").arg("t:*:ids:*")).await;
    assert_eq!(left, [""; 0]);
}

#[tokio::test]
async fn a_released_lease_is_reaped_at_once() {
    let store = TestStore::start().await;
    let (mut drained, mut other) = (store.node().await, store.node().await);
    drained.flush(&[room("blog:1", 2, 2)]).await;
    done(drained.lane.release(drained.stamp, drained.me).await);
    assert_eq!(other.lease(false).await.lapsed, [drained.me]);
    other.reap_all().await;
    assert_eq!(other.totals().await, []);
    assert!(!drained.lease(false).await.held);
}

#[tokio::test]
async fn a_card_without_a_process_is_a_card() {
    let mut store = TestStore::start().await;
    let (mut a, old) = (store.node().await, store.node().await);
    for (name, process, read) in [
        ("7 old b", "", "7 old b"),
        ("\\n 7", "\n00000000000000ff", "\\n 7"),
        ("a\nb", "", "a\nb"),
        ("", "\n00000000000000FF", "\n00000000000000FF"),
        ("", "\nff", "\nff"),
    ] {
        let key = format!("t:1:0:{}:nodes", a.epoch());
        let card = format!("1 5 6 {name}{process}");
        let _: u64 = store
            .raw(
                redis::cmd("HSET")
                    .arg(key)
                    .arg(old.me.to_string())
                    .arg(card),
            )
            .await;
        let leased = a.lease(false).await;
        let mut nodes = leased.nodes.iter();
        let node = nodes.find(|node| node.incarnation == old.me).unwrap();
        assert_eq!(node.card.name, read);
        let known = Incarnation::from_bits(0xff).filter(|_| process.ends_with("00ff"));
        assert_eq!(node.card.process, known, "{name:?} {process:?}");
        assert_eq!((node.card.since_ms, node.card.connections), (5, 6));
    }
}

#[tokio::test]
async fn a_lease_says_who_lives_and_since_when() {
    let mut store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    store.shift_clock(1_000).await;
    let leased = a.lease(false).await;
    let node = leased
        .nodes
        .iter()
        .find(|node| node.incarnation == b.me)
        .unwrap();
    assert_eq!(node.card, TestNode::card());
    assert!((1_000..1_900).contains(&node.lag_ms), "{}", node.lag_ms);
    b.flush(&[room("blog:1", 1, 1)]).await;
    assert_eq!(b.lease(false).await.applied, 1);
}

#[tokio::test]
async fn an_announcement_holds_what_changed_and_whose_batches_are_in_it() {
    let store = TestStore::start().await;
    let mut listener = store.listen().await;
    let mut a = store.node().await;
    let rooms = [
        with(room("blog:1", 2, 1), &[member(1)], &[]),
        room("*", 2, 2),
    ];
    let batch = Batch {
        number: 1,
        rooms: &rooms,
        claims: &[[3; 24]],
        ..a.batch()
    };
    done(a.lane.flush(a.stamp, &batch).await);
    a.announce_all().await;
    let mut heard = announcement(&mut listener).await;
    assert_eq!(heard.epoch, a.epoch());
    assert_eq!(heard.version, a.stamp.version + 1);
    assert_eq!(heard.applied, [(a.me, 1)]);
    assert_eq!(
        (
            heard.claims[0].number,
            heard.claims[0].connection,
            heard.claims[0].holder
        ),
        (1, [3; 24], a.me)
    );
    heard.rooms.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(
        heard.rooms,
        [
            ("*".to_owned(), total(2, 2, 0)),
            ("blog:1".to_owned(), total(2, 2, 1))
        ]
    );
    assert_eq!(a.totals().await, heard.rooms);
    assert_eq!(a.page_of("*").await.version, heard.version);
}

#[tokio::test]
async fn a_second_node_with_the_same_reader_is_announced_though_no_total_changed() {
    let store = TestStore::start().await;
    let mut listener = store.listen().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    a.flush(&[with(room("blog:1", 1, 0), &[member(1)], &[])])
        .await;
    a.announce_all().await;
    announcement(&mut listener).await;
    b.flush(&[with(room("blog:1", 0, 0), &[member(1)], &[])])
        .await;
    b.announce_all().await;
    let heard = announcement(&mut listener).await;
    assert_eq!(heard.applied, [(b.me, 1)]);
    assert_eq!(heard.rooms, [("blog:1".to_owned(), total(1, 1, 1))]);
}

#[tokio::test]
async fn three_thousand_changed_rooms_are_announced_a_thousand_at_a_time() {
    let store = TestStore::start().await;
    let mut listener = store.listen().await;
    let mut a = store.node().await;
    let rooms: Vec<_> = (0..3_000)
        .map(|index| room(&format!("blog:{index}"), 1, 1))
        .collect();
    a.flush(&rooms).await;
    a.announce_all().await;
    let mut seen = std::collections::BTreeSet::new();
    for expected in 1..=3 {
        let heard = announcement(&mut listener).await;
        assert_eq!(heard.version, expected);
        assert_eq!(heard.rooms.len(), 1_000);
        seen.extend(heard.rooms.into_iter().map(|(room, _)| room));
    }
    assert_eq!(seen.len(), 3_000);
}

#[tokio::test]
async fn announcements_keep_their_distance() {
    let store = TestStore::start().await;
    let mut a = store.node().await;
    a.flush(&[room("blog:1", 1, 1)]).await;
    let mut waited = false;
    for number in 2..20 {
        let flushed = a
            .flush_as(number, &[room("blog:1", number as u32, 0)])
            .await;
        let Flushed::Applied { announce_in, .. } = flushed else {
            panic!("applied")
        };
        waited |= announce_in.is_some();
        assert!(announce_in.unwrap_or_default() <= Duration::from_millis(25));
    }
    assert!(waited);
    a.announce_all().await;
    assert!(done(a.lane.announce(a.stamp).await).is_none());
}

#[tokio::test]
async fn claims_are_ordered_over_all_nodes() {
    let store = TestStore::start().await;
    let (mut a, mut b) = (store.node().await, store.node().await);
    for (round, node) in [&mut a, &mut b].into_iter().enumerate() {
        let claims = [[round as u8; 24], [9; 24]];
        let batch = Batch {
            number: 1,
            claims: &claims,
            ..node.batch()
        };
        let Flushed::Applied { claims_from, .. } = done(node.lane.flush(node.stamp, &batch).await)
        else {
            panic!("applied");
        };
        assert_eq!(claims_from, round as u64 * 2 + 1);
    }
    let claims = done(a.lane.claims_after(a.stamp, 1, 10).await);
    let read: Vec<_> = claims
        .iter()
        .map(|claim| (claim.number, claim.connection[0], claim.holder))
        .collect();
    assert_eq!(read, [(2, 9, a.me), (3, 1, b.me), (4, 9, b.me)]);
    assert_eq!(done(a.lane.claims_after(a.stamp, 1, 2).await).len(), 2);
}
