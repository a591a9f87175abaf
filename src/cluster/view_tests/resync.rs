//! Everything told again under a fresh incarnation.

use super::{Node, epoch, incarnation, part, part_of, place, told, total, viewer};
use crate::hub::Part;

/// A node with 3 of the 5 connections of `blog:1`, its batches up to 57, that begins again.
fn resyncing() -> Node {
    let mut node = Node::ready();
    while node.view.next_batch() < 57 {
        node.tell(Vec::new());
    }
    let batch = node.tell(vec![part("blog:1", 3)]);
    assert_eq!(
        node.hear(1, Some(batch), &[("blog:1", total(5))]),
        told("blog:1", 2)
    );
    node.read(1, batch, &[("blog:1", total(5))]);
    node.view.begin(incarnation(3));
    node
}

/// A step of telling who is in `blog:1`.
fn step(whole: bool, came: u8) -> Part {
    Part {
        connections: 3,
        whole,
        ..part_of("blog:1", &[viewer(came)])
    }
}

#[test]
fn a_room_stays_as_it_was_until_the_whole_of_it_was_told() {
    let mut node = resyncing();
    // The entry of before is in the total, and the new one is not.
    assert!(node.hear(2, None, &[("blog:1", total(6))]).is_empty());
    let first = node.tell(vec![step(false, 1)]);
    assert!(
        node.hear(3, Some(first), &[("blog:1", total(6))])
            .is_empty()
    );
    assert!(node.read(3, first, &[("blog:1", total(6))]).is_empty());
    let second = node.tell(vec![step(false, 2)]);
    let last = node.tell(vec![step(true, 3)]);
    assert!(
        node.hear(4, Some(second), &[("blog:1", total(6))])
            .is_empty()
    );
    assert_eq!(
        node.hear(5, Some(last), &[("blog:1", total(6))]),
        told("blog:1", 3)
    );
}

#[test]
fn a_room_that_a_reading_misses_stays_as_it_was_until_it_was_told() {
    let mut node = resyncing();
    assert!(node.read(2, 0, &[]).is_empty());
    let last = node.tell_last(vec![part("blog:1", 3)]);
    assert!(node.read(2, 0, &[]).is_empty());
    assert_eq!(node.read(2, last, &[]), told("blog:1", 0));
}

#[test]
fn batches_of_the_incarnation_before_say_nothing_of_the_new_one() {
    let mut node = resyncing();
    let whole = node.tell(vec![part("blog:1", 4)]);
    // It was announced before this batch came in.
    assert!(node.hear(2, None, &[("blog:1", total(5))]).is_empty());
    assert_eq!(
        node.hear(3, Some(whole), &[("blog:1", total(6))]),
        told("blog:1", 2)
    );
    node.tell(vec![part("blog:1", 5)]);
    assert_eq!(
        node.hear(4, None, &[("blog:1", total(7))]),
        told("blog:1", 3)
    );
}

#[test]
fn a_share_that_is_as_before_is_noted_anew() {
    let mut node = resyncing();
    let whole = node.tell(vec![part("blog:1", 3)]);
    assert_eq!(
        node.hear(2, Some(whole), &[("blog:1", total(6))]),
        told("blog:1", 3)
    );
}

#[test]
fn a_room_that_was_left_is_told_too_and_not_forgotten_before() {
    let mut node = resyncing();
    let whole = node.tell(vec![part("blog:1", 0)]);
    node.read(2, whole - 1, &[]);
    // What the incarnation before had is in this total.
    let before = [("blog:1", total(5))];
    assert!(node.hear(3, None, &before).is_empty());
    let after = [("blog:1", total(2))];
    assert_eq!(node.hear(4, Some(whole), &after), told("blog:1", 2));
}

#[test]
fn all_places_of_which_something_was_told_are_told_again() {
    let mut node = Node::ready();
    node.tell(vec![part("blog:1", 1), part("blog:2", 1), part("*", 2)]);
    node.tell(vec![part("blog:2", 0), part("*", 1)]);
    let mut places = node.view.begin(incarnation(3));
    places.sort();
    assert_eq!(places, [None, place("blog:1"), place("blog:2")]);
    // And once more, though nothing was told meanwhile.
    let mut again = node.view.begin(incarnation(4));
    again.sort();
    assert_eq!(again, places);
}

#[test]
fn identities_are_counted_anew() {
    let mut node = Node::ready();
    node.tell(vec![part_of("blog:1", &[viewer(1), viewer(2)])]);
    node.view.begin(incarnation(3));
    let last = node.tell(vec![part_of("blog:1", &[viewer(1)])]);
    assert_eq!(
        node.hear(1, Some(last), &[("blog:1", total(3))]),
        told("blog:1", 2)
    );
}

#[test]
fn entries_are_taken_over_from_whoever_told_something_in_this_epoch() {
    let mut node = Node::new();
    node.view.turn(epoch(1), 0, node.now);
    node.view.begin(incarnation(2));
    assert_eq!(node.view.older, None);
    node.tell(vec![part("blog:1", 1)]);
    node.view.begin(incarnation(3));
    assert_eq!(node.view.older, Some(incarnation(2)));
    // The third has told nothing: what is to be taken over is the second's still.
    assert_eq!(node.view.predecessor(), Some(incarnation(2)));
    node.view.begin(incarnation(4));
    assert_eq!(node.view.older, Some(incarnation(2)));
    assert_eq!(node.view.abandoned(), None);
    node.tell(vec![part("blog:1", 1)]);
    // From here on nobody takes over what is left of the second.
    assert_eq!(node.view.abandoned(), Some(incarnation(2)));
    node.view.begin(incarnation(5));
    assert_eq!(node.view.older, Some(incarnation(4)));
    assert_eq!(node.view.abandoned(), None);
    node.view.turn(epoch(2), 0, node.now);
    assert_eq!(node.view.predecessor(), None);
    node.view.begin(incarnation(6));
    assert_eq!(node.view.older, None);
}

#[test]
fn a_resync_ends_with_the_batch_after_which_nothing_waits() {
    let mut node = resyncing();
    assert!(node.view.telling && !node.view.resync);
    node.tell(vec![step(false, 1)]);
    assert!(node.view.telling);
    assert_eq!(node.view.older, Some(incarnation(2)));
    node.view.begin_reading();
    let frozen = node.view.freeze(vec![step(true, 2)], Vec::new(), true);
    assert!(frozen.done && node.view.telling);
    node.view.acknowledge(&frozen, 0);
    assert!(!node.view.telling);
    assert_eq!(node.view.older, None);
    // What was announced while shares were not settled is read.
    assert!(node.view.reload);
    // Once over, no batch ends it again.
    assert!(!node.view.freeze(Vec::new(), Vec::new(), true).done);
}

#[test]
fn batches_and_what_is_acknowledged_are_counted_from_the_start() {
    let mut node = resyncing();
    assert_eq!((node.view.next_batch(), node.view.acknowledged()), (1, 0));
    assert_eq!(node.view.applied(), 0);
    assert_eq!(node.tell(Vec::new()), 1);
    assert_eq!(node.view.acknowledged(), 1);
}

/// What it costs Redis to be told everything by all nodes at once may be what it breaks off for.
#[test]
fn a_node_that_never_comes_to_the_end_of_telling_everything_waits_longer_each_time() {
    let mut node = Node::ready();
    let mut waits = Vec::new();
    for number in 2..=9 {
        waits.push(node.view.respite().map(|wait| wait.as_millis()));
        node.view.begin(incarnation(number));
    }
    assert_eq!(waits[..2], [None, None]);
    let waited: Vec<u128> = waits.into_iter().flatten().collect();
    assert_eq!(waited, [500, 1_000, 2_000, 4_000, 8_000, 8_000]);
    node.tell_last(Vec::new());
    assert_eq!(node.view.respite(), None);
}
