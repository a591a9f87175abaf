//! A store that was emptied, restored or failed over: numbers of before are held until all nodes
//! have told theirs.

use std::time::Duration;

use super::{HOLD, Node, epoch, incarnation, others, part, part_of, place, told, total, viewer};
use crate::cluster::{store::Total, view::News};
use crate::hub::Occupancy;

/// One of three nodes, with 3 connections in `blog:1`, others having 4 there, 6 in `blog:2` and 2
/// in `blog:3`, that turns to epoch 2.
fn turned() -> Node {
    let mut node = Node::ready();
    let own = node.tell(vec![part("blog:1", 3)]);
    node.view.nodes(3, 3, 0, node.now);
    let rooms = [
        ("blog:1", total(7)),
        ("blog:2", total(6)),
        ("blog:3", total(2)),
    ];
    assert_eq!(node.hear(1, Some(own), &rooms).len(), 3);
    node.view.turn(epoch(2), 0, node.now);
    node
}

fn sorted(mut news: News) -> News {
    news.sort_by_key(|(place, _)| place.clone());
    news
}

#[test]
fn a_turn_has_everything_told_and_read_again() {
    let mut node = turned();
    assert!(node.view.resync && node.view.reload && node.view.block_again);
    assert!(node.view.is_holding());
    assert_eq!(node.view.stamp().version, 0);
    assert_eq!((node.view.next_batch(), node.view.acknowledged()), (1, 0));
    assert_eq!(node.view.applied(), 0);
    // To the epoch that is in force nothing turns.
    node.view.resync = false;
    node.view.turn(epoch(2), 9, node.now);
    assert!(!node.view.resync);
}

#[test]
fn the_first_epoch_holds_nothing() {
    let mut node = Node::new();
    node.view.turn(epoch(1), 4, node.now);
    assert!(!node.view.is_holding() && !node.view.claim_again);
    assert!(node.view.resync && node.view.reload);
    assert_eq!(node.view.stamp().version, 4);
}

#[test]
fn while_numbers_are_held_the_higher_of_old_and_new_is_shown() {
    let mut node = turned();
    assert_eq!(
        node.hear(1, None, &[("blog:2", total(1))]),
        told("blog:2", 6)
    );
    assert_eq!(
        node.hear(2, None, &[("blog:2", total(9))]),
        told("blog:2", 9)
    );
    // Each number by itself.
    let mixed = Total {
        connections: 8,
        viewers: 3,
        members: 1,
    };
    let shown = Occupancy {
        connections: 8,
        viewers: 6,
        members: 1,
        partial: false,
    };
    assert_eq!(
        node.hear(3, None, &[("blog:2", mixed)]),
        vec![(place("blog:2"), shown)]
    );
    // Nor does a reading that misses it take a room away.
    assert_eq!(node.read(3, 0, &[]), told("blog:2", 6));
}

#[test]
fn numbers_are_held_until_all_nodes_have_told_theirs_and_they_were_read() {
    let mut node = turned();
    node.view.begin(incarnation(3));
    let own = node.tell_last(vec![part("blog:1", 3)]);
    node.read(0, own, &[("blog:1", total(3)), ("blog:2", total(5))]);
    node.view.nodes(3, 2, 0, node.now);
    assert!(node.view.let_go(node.now).is_empty() && node.view.is_holding());
    node.view.nodes(3, 3, 0, node.now);
    let all = [("blog:1", 0), ("blog:2", 5), ("blog:3", 0)];
    let all: News = all.map(|(room, n)| (place(room), others(n))).into();
    assert_eq!(sorted(node.view.let_go(node.now)), all);
    assert!(!node.view.is_holding());
    assert!(node.view.let_go(node.now).is_empty());
}

#[test]
fn numbers_that_are_still_to_be_read_are_not_let_go() {
    let mut node = turned();
    node.view.begin(incarnation(3));
    let own = node.tell_last(vec![part("blog:1", 3)]);
    node.view.nodes(3, 3, 0, node.now);
    // Never read in this epoch.
    node.view.reload = false;
    assert!(node.view.let_go(node.now).is_empty());
    // To be read again.
    node.read(0, own, &[]);
    node.view.reload = true;
    assert!(node.view.let_go(node.now).is_empty());
    // Being read.
    node.view.begin_reading();
    assert!(node.view.let_go(node.now).is_empty());
    node.end_reading(0, own, &[]);
    assert_eq!(node.view.let_go(node.now).len(), 3);
}

#[test]
fn numbers_are_held_no_longer_than_a_second_and_a_half() {
    let mut node = turned();
    let late = node.now + HOLD;
    assert!(node.view.let_go(late - Duration::from_millis(1)).is_empty());
    // Of a room that this node is in nothing better is known; in the others nobody is.
    let all = [("blog:1", 4), ("blog:2", 0), ("blog:3", 0)];
    let all: News = all.map(|(room, n)| (place(room), others(n))).into();
    assert_eq!(sorted(node.view.let_go(late)), all);
    // Until the room was told, which shows what is true.
    assert!(node.hear(1, None, &[("blog:1", total(1))]).is_empty());
    node.view.begin(incarnation(3));
    let own = node.tell_last(vec![part("blog:1", 3)]);
    assert_eq!(
        node.hear(2, Some(own), &[("blog:1", total(4))]),
        told("blog:1", 1)
    );
}

#[test]
fn what_was_let_go_unsettled_ends_with_a_reading_that_misses_it() {
    let mut node = turned();
    node.view.let_go(node.now + HOLD);
    node.view.begin(incarnation(3));
    let own = node.tell_last(vec![part("blog:1", 0)]);
    assert_eq!(node.read(0, own, &[]), told("blog:1", 0));
}

/// Viewer 1 is on both nodes: counted twice were the other's word of it taken before this
/// node's own share is in the total.
#[test]
fn a_viewer_of_two_nodes_is_not_counted_twice() {
    let mut node = Node::ready();
    let own = node.tell(vec![part_of("blog:1", &[viewer(1)])]);
    let both = Total {
        connections: 2,
        viewers: 1,
        members: 0,
    };
    let elsewhere = Occupancy {
        connections: 1,
        ..Occupancy::default()
    };
    let same = vec![(place("blog:1"), elsewhere)];
    assert_eq!(node.hear(1, Some(own), &[("blog:1", both)]), same);
    node.view.turn(epoch(2), 0, node.now);
    // The other was faster.
    assert!(node.hear(1, None, &[("blog:1", total(1))]).is_empty());
    node.view.begin(incarnation(3));
    assert!(node.hear(2, None, &[("blog:1", total(1))]).is_empty());
    assert!(node.read(2, 0, &[("blog:1", total(1))]).is_empty());
    let own = node.tell_last(vec![part_of("blog:1", &[viewer(1)])]);
    assert!(node.hear(3, None, &[("blog:1", total(1))]).is_empty());
    assert_eq!(node.hear(4, Some(own), &[("blog:1", both)]), same);
}

#[test]
fn the_higher_numbers_of_two_epochs_in_a_row_are_held() {
    let mut node = turned();
    let second = node.now + Duration::from_millis(1_400);
    assert_eq!(
        node.hear(1, None, &[("blog:3", total(5))]),
        told("blog:3", 5)
    );
    node.view.turn(epoch(3), 0, second);
    let rooms = [
        ("blog:2", total(1)),
        ("blog:3", total(1)),
        ("blog:4", total(1)),
    ];
    let shown = [("blog:2", 6), ("blog:3", 5), ("blog:4", 1)];
    let shown: News = shown.map(|(room, n)| (place(room), others(n))).into();
    assert_eq!(node.hear(1, None, &rooms), shown);
    // The second hold has its own end.
    assert!(node.view.let_go(node.now + HOLD).is_empty());
    let end = sorted(node.view.let_go(second + HOLD));
    let after = [("blog:1", 4), ("blog:2", 1), ("blog:3", 1)];
    let after: News = after.map(|(room, n)| (place(room), others(n))).into();
    assert_eq!(end, after);
}

#[test]
fn batches_of_the_epoch_before_say_nothing_in_the_new_one() {
    let mut node = Node::ready();
    while node.view.next_batch() < 9 {
        node.tell(Vec::new());
    }
    let own = node.tell(vec![part("blog:1", 3)]);
    node.hear(1, Some(own), &[("blog:1", total(3))]);
    node.view.turn(epoch(2), 0, node.now);
    // Frozen before the fresh incarnation, as where an epoch begins while a lease is made.
    node.view.freeze(vec![part("blog:1", 3)], Vec::new(), false);
    assert!(node.hear(1, None, &[("blog:1", total(2))]).is_empty());
    node.view.begin(incarnation(3));
    let own = node.tell_last(vec![part("blog:1", 3)]);
    assert_eq!(
        node.hear(2, Some(own), &[("blog:1", total(5))]),
        told("blog:1", 2)
    );
}

#[test]
fn an_announcement_of_a_new_epoch_turns_to_it() {
    let mut node = Node::ready();
    node.hear(1, None, &[("blog:1", total(3))]);
    let mut first = node.announcement(5, None);
    first.epoch = epoch(2);
    first.rooms = vec![("blog:1".to_owned(), total(1))];
    // Which of the announcements before it is missing nobody knows: totals are read.
    assert!(node.view.hear(&first, node.now).0.is_empty());
    assert_eq!(node.view.epoch(), Some(epoch(2)));
    assert_eq!(node.view.stamp().version, 5);
    assert!(node.view.reload && node.view.is_holding());
}
