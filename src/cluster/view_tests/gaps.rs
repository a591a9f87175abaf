//! Announcements that are lost, late, doubled, or of another epoch.

use super::{Node, epoch, part, told, total};

#[test]
fn after_a_gap_nothing_is_learnt_until_all_totals_were_read() {
    let mut node = Node::ready();
    node.tell(vec![part("blog:1", 2)]);
    // The first announcement, which is lost, names the batch: this one does not.
    assert!(node.hear(2, None, &[("blog:1", total(3))]).is_empty());
    assert!(node.view.reload);
    let batch = node.view.acknowledged();
    assert_eq!(
        node.read(2, batch, &[("blog:1", total(3))]),
        told("blog:1", 1)
    );
    assert!(!node.view.reload);
    assert_eq!(
        node.hear(3, None, &[("blog:1", total(4))]),
        told("blog:1", 2)
    );
}

#[test]
fn what_is_passed_over_after_a_gap_is_read_again() {
    let mut node = Node::ready();
    node.hear(2, None, &[]);
    node.view.begin_reading();
    assert!(node.hear(3, None, &[("blog:1", total(3))]).is_empty());
    // Its page was read before, and the announcement brought nothing.
    node.end_reading(2, 1, &[]);
    assert!(node.view.reload);
    assert_eq!(node.read(3, 1, &[("blog:1", total(3))]), told("blog:1", 3));
    assert!(!node.view.reload);
}

#[test]
fn an_announcement_that_names_the_own_batch_is_learnt_beyond_a_gap() {
    let mut node = Node::ready();
    let batch = node.tell(vec![part("blog:1", 2)]);
    assert_eq!(
        node.hear(3, Some(batch), &[("blog:1", total(3))]),
        told("blog:1", 1)
    );
    assert!(node.view.reload);
}

#[test]
fn a_gap_that_shows_during_a_reading_outlives_it() {
    let mut node = Node::ready();
    let two = node.tell(vec![part("blog:1", 2)]);
    node.hear(1, Some(two), &[("blog:1", total(2))]);
    node.view.begin_reading();
    node.page(1, two, &[("blog:1", total(2))]);
    let five = node.tell(vec![part("blog:1", 5)]);
    // The second, which is lost, names the batch of five.
    assert!(node.hear(3, None, &[]).is_empty());
    node.end_reading(1, two, &["blog:1"]);
    assert!(node.view.reload);
    assert!(node.hear(4, None, &[("blog:1", total(6))]).is_empty());
    assert_eq!(
        node.read(4, five, &[("blog:1", total(6))]),
        told("blog:1", 1)
    );
    assert_eq!(
        node.hear(5, None, &[("blog:1", total(7))]),
        told("blog:1", 2)
    );
}

#[test]
fn an_announcement_that_comes_twice_does_no_harm() {
    let mut node = Node::ready();
    let rooms = [("blog:1", total(3))];
    assert_eq!(node.hear(1, None, &rooms), told("blog:1", 3));
    assert!(node.hear(1, None, &rooms).is_empty());
    assert!(!node.view.reload);
}

#[test]
fn a_late_announcement_says_nothing_and_has_totals_read() {
    let mut node = Node::ready();
    node.hear(1, None, &[("blog:1", total(3))]);
    node.hear(2, None, &[("blog:1", total(4))]);
    // Not even of a room of which nothing newer is known.
    let late = [("blog:1", total(3)), ("blog:2", total(1))];
    assert!(node.hear(1, None, &late).is_empty());
    assert!(node.view.reload);
    assert_eq!(
        node.hear(3, None, &[("blog:1", total(5))]),
        told("blog:1", 5)
    );
}

#[test]
fn a_room_announced_late_that_was_gone_when_totals_were_read_stays_gone() {
    let mut node = Node::ready();
    assert!(node.read(3, 1, &[]).is_empty());
    assert!(node.hear(3, None, &[("blog:1", total(1))]).is_empty());
    assert!(node.hear(2, None, &[("blog:1", total(1))]).is_empty());
    assert_eq!(
        node.hear(4, None, &[("blog:2", total(1))]),
        told("blog:2", 1)
    );
}

#[test]
fn a_page_read_at_an_announcement_is_newer_than_it() {
    let mut node = Node::ready();
    node.hear(1, None, &[("blog:1", total(3))]);
    assert_eq!(node.page(1, 1, &[("blog:1", total(4))]), told("blog:1", 4));
    node.hear(2, None, &[("blog:1", total(5))]);
    assert!(node.page(1, 1, &[("blog:1", total(4))]).is_empty());
    // Whichever of the two comes first.
    assert_eq!(node.page(3, 1, &[("blog:1", total(7))]), told("blog:1", 7));
    assert!(node.hear(3, None, &[("blog:1", total(6))]).is_empty());
}

#[test]
fn a_room_that_emptied_while_its_page_was_on_its_way_stays_empty() {
    let mut node = Node::ready();
    node.hear(1, None, &[("blog:1", total(3))]);
    node.view.begin_reading();
    assert_eq!(
        node.hear(2, None, &[("blog:1", total(0))]),
        told("blog:1", 0)
    );
    assert!(node.page(1, 1, &[("blog:1", total(3))]).is_empty());
    node.end_reading(1, 1, &["blog:1"]);
    assert_eq!(node.view.remembered().0, 0);
}

#[test]
fn a_room_that_no_page_named_has_nobody_elsewhere() {
    let mut node = Node::ready();
    let own = node.tell(vec![part("blog:1", 2)]);
    node.hear(1, Some(own), &[("blog:1", total(3)), ("blog:2", total(1))]);
    let mut gone = node.read(1, own, &[("*", total(2))]);
    gone.retain(|(place, _)| place.is_some());
    gone.sort_by_key(|(place, _)| place.clone());
    assert_eq!(gone, [told("blog:1", 0), told("blog:2", 0)].concat());
}

#[test]
fn a_room_announced_during_a_reading_that_missed_it_stays() {
    let mut node = Node::ready();
    node.view.begin_reading();
    node.page(0, 1, &[]);
    assert_eq!(
        node.hear(1, None, &[("blog:1", total(3))]),
        told("blog:1", 3)
    );
    assert!(node.end_reading(0, 1, &[]).is_empty());
    assert_eq!(
        node.hear(2, None, &[("blog:1", total(4))]),
        told("blog:1", 4)
    );
}

#[test]
fn an_announcement_of_a_past_epoch_says_nothing() {
    let mut node = Node::ready();
    node.view.turn(epoch(2), 0, node.now);
    let mut late = node.announcement(9, None);
    late.epoch = epoch(1);
    late.rooms = vec![("blog:1".to_owned(), total(3))];
    assert!(node.view.hear(&late, node.now).0.is_empty());
    assert_eq!(node.view.epoch(), Some(epoch(2)));
    // Redis itself may say that an epoch of before is in force again: a snapshot was restored.
    node.view.turn(epoch(1), 4, node.now);
    assert_eq!(node.view.epoch(), Some(epoch(1)));
    node.read(4, 0, &[]);
    assert_eq!(
        node.hear(5, None, &[("blog:1", total(3))]),
        told("blog:1", 3)
    );
}

#[test]
fn before_the_first_contact_nothing_is_heard() {
    let mut node = Node::new();
    assert!(node.hear(1, None, &[("blog:1", total(3))]).is_empty());
    assert_eq!(node.view.epoch(), None);
}
