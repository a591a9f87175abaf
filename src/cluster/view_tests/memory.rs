//! What came and went leaves nothing behind.

use std::time::Duration;

use super::{Node, connection, epoch, incarnation, others, part, part_of, place, told, total};
use super::{member, viewer};

const ROOMS: u32 = 10_000;

fn room(number: u32) -> String {
    format!("blog:{number}")
}

#[test]
fn rooms_that_came_and_went_leave_nothing_behind() {
    let mut node = Node::ready();
    let mut version = 0;
    for number in 0..ROOMS {
        let room = room(number);
        let came = node.tell(vec![part_of(&room, &[member(1), viewer(2)])]);
        node.hear(version + 1, Some(came), &[(&room, total(3))]);
        let mut left = part(&room, 0);
        left.went = vec![member(1), viewer(2)];
        let went = node.tell(vec![left]);
        node.hear(version + 2, Some(went), &[(&room, total(1))]);
        version += 3;
        node.hear(version, None, &[(&room, total(0))]);
    }
    assert_eq!(node.view.remembered(), (0, 0));
}

#[test]
fn a_room_is_remembered_while_somebody_is_in_it_here_or_elsewhere() {
    let mut node = Node::ready();
    let own = node.tell(vec![part("blog:1", 1)]);
    node.hear(1, Some(own), &[("blog:1", total(1)), ("blog:2", total(1))]);
    assert_eq!(node.view.remembered().0, 2);
    let none = node.tell(vec![part("blog:1", 0)]);
    node.hear(2, Some(none), &[("blog:1", total(0))]);
    assert_eq!(node.view.remembered().0, 1);
    node.hear(3, None, &[("blog:2", total(0))]);
    assert_eq!(node.view.remembered().0, 0);
}

/// Nothing of it is announced: by the time of the batch nothing had changed.
#[test]
fn rooms_that_somebody_only_bounced_off_leave_nothing_behind() {
    let mut node = Node::ready();
    for number in 0..ROOMS {
        node.tell(vec![part(&room(number), 0)]);
    }
    let one = node.tell(vec![part("blog:1", 1)]);
    let none = node.tell(vec![part("blog:1", 0)]);
    // Before the announcement somebody came and went again between two batches.
    node.tell(vec![part("blog:1", 0)]);
    node.hear(1, Some(one), &[("blog:1", total(1))]);
    node.hear(2, Some(none), &[("blog:1", total(0))]);
    assert_eq!(node.view.remembered(), (0, 0));
}

#[test]
fn rooms_whose_last_announcement_was_lost_are_forgotten_with_the_next_reading() {
    let mut node = Node::ready();
    for number in 0..ROOMS {
        node.tell(vec![part(&room(number), 1)]);
        node.tell(vec![part(&room(number), 0)]);
    }
    node.hear(9, None, &[]);
    let all = node.view.acknowledged();
    node.read(9, all, &[]);
    assert_eq!(node.view.remembered(), (0, 0));
}

#[test]
fn a_batch_on_its_way_is_remembered_beyond_a_reading() {
    let mut node = Node::ready();
    let one = node.tell(vec![part("blog:1", 1)]);
    let two = node.tell(vec![part("blog:1", 2)]);
    node.read(1, one, &[]);
    assert_eq!(
        node.hear(2, None, &[("blog:1", total(2))]),
        told("blog:1", 1)
    );
    assert_eq!(
        node.hear(3, Some(two), &[("blog:1", total(3))]),
        vec![(place("blog:1"), others(1))]
    );
}

#[tokio::test(start_paused = true)]
async fn own_claims_are_forgotten_after_a_minute() {
    let mut node = Node::ready();
    let openings = (0..ROOMS).map(|number| (connection(number.into()), 30));
    node.claim(openings.collect(), 1);
    assert_eq!(node.view.remembered().1, 10_000);
    tokio::time::advance(Duration::from_secs(61)).await;
    node.claim(Vec::new(), 0);
    assert_eq!(node.view.remembered(), (0, 0));
}

#[test]
fn claims_of_a_batch_that_was_dropped_are_forgotten() {
    let mut node = Node::ready();
    let opened = vec![(connection(1), 30), (connection(2), 30)];
    node.view.freeze(Vec::new(), opened.clone(), false);
    node.view.begin(incarnation(3));
    assert_eq!(node.view.remembered(), (0, 0));
    node.view.freeze(Vec::new(), opened, false);
    node.view.turn(epoch(2), 0, node.now);
    assert_eq!(node.view.remembered(), (0, 0));
}
