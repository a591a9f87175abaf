//! This node's own share, taken off each total as it was in that total.

use super::{Node, member, others, part, part_of, place, told, total, viewer};
use crate::cluster::store::Total;
use crate::hub::{Occupancy, Part};

#[test]
fn a_total_lacks_the_share_of_the_batch_in_it_and_not_the_newest() {
    let mut node = Node::ready();
    let two = node.tell(vec![part("blog:1", 2)]);
    let five = node.tell(vec![part("blog:1", 5)]);
    assert_eq!(
        node.hear(1, Some(two), &[("blog:1", total(9))]),
        told("blog:1", 7)
    );
    assert_eq!(
        node.hear(2, Some(five), &[("blog:1", total(12))]),
        told("blog:1", 7)
    );
}

#[test]
fn a_batch_holds_for_all_announcements_until_a_later_one_is_named() {
    let mut node = Node::ready();
    let two = node.tell(vec![part("blog:1", 2)]);
    node.hear(1, Some(two), &[("blog:1", total(2))]);
    node.tell(vec![part("blog:1", 5)]);
    assert_eq!(
        node.hear(2, None, &[("blog:1", total(3))]),
        told("blog:1", 1)
    );
}

#[test]
fn a_room_that_a_batch_does_not_name_has_the_share_of_one_before() {
    let mut node = Node::ready();
    node.tell(vec![part("blog:1", 2)]);
    let other = node.tell(vec![part("blog:2", 1)]);
    assert_eq!(
        node.hear(1, Some(other), &[("blog:1", total(3))]),
        told("blog:1", 1)
    );
    // Forgetting what was before has to keep it.
    assert_eq!(
        node.hear(2, None, &[("blog:1", total(4))]),
        told("blog:1", 2)
    );
}

#[test]
fn a_reading_lacks_the_share_of_the_batch_that_it_names() {
    let mut node = Node::ready();
    let two = node.tell(vec![part("blog:1", 2)]);
    let five = node.tell(vec![part("blog:1", 5)]);
    assert_eq!(
        node.read(3, two, &[("blog:1", total(3))]),
        told("blog:1", 1)
    );
    assert_eq!(
        node.read(3, five, &[("blog:1", total(6))]),
        told("blog:1", 1)
    );
}

#[test]
fn after_a_reading_its_batch_holds_for_announcements_that_name_none() {
    let mut node = Node::ready();
    let two = node.tell(vec![part("blog:1", 2)]);
    node.read(3, two, &[("blog:1", total(2))]);
    node.tell(vec![part("blog:1", 5)]);
    assert_eq!(
        node.hear(4, None, &[("blog:1", total(4))]),
        told("blog:1", 2)
    );
}

#[test]
fn named_viewers_and_members_are_counted_as_they_come_and_go() {
    let mut node = Node::ready();
    node.tell(vec![Part {
        connections: 5,
        unidentified: 1,
        ..part_of("blog:1", &[member(1), member(2), viewer(3), viewer(4)])
    }]);
    let last = node.tell(vec![Part {
        connections: 4,
        unidentified: 1,
        went: vec![member(1), viewer(3)],
        ..part_of("blog:1", &[viewer(5)])
    }]);
    let all = Total {
        connections: 7,
        viewers: 6,
        members: 2,
    };
    let elsewhere = Occupancy {
        connections: 3,
        viewers: 2,
        members: 1,
        partial: false,
    };
    assert_eq!(
        node.hear(1, Some(last), &[("blog:1", all)]),
        vec![(place("blog:1"), elsewhere)]
    );
}

#[test]
fn the_service_is_a_place_like_any_room() {
    let mut node = Node::ready();
    let two = node.tell(vec![part("*", 2)]);
    node.tell(vec![part("*", 5)]);
    assert_eq!(
        node.hear(1, Some(two), &[("*", total(9))]),
        vec![(None, others(7))]
    );
}

#[test]
fn a_total_below_the_own_share_shows_nobody_elsewhere() {
    let mut node = Node::ready();
    let five = node.tell(vec![part("blog:1", 5)]);
    assert_eq!(
        node.hear(1, Some(five), &[("blog:1", total(3))]),
        told("blog:1", 0)
    );
}

#[test]
fn a_name_that_is_no_room_is_passed_over() {
    let mut node = Node::ready();
    let rooms = [("no room", total(3)), ("blog:1", total(3))];
    assert_eq!(node.hear(1, None, &rooms), told("blog:1", 3));
}

#[test]
fn a_batch_that_says_nothing_gives_its_number_back() {
    let mut node = Node::ready();
    let frozen = node.view.freeze(Vec::new(), Vec::new(), false);
    node.view.unused(&frozen);
    assert_eq!(node.tell(vec![part("blog:1", 1)]), frozen.number);
}
