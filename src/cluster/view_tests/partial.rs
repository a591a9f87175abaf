//! When numbers say that other nodes' are missing.

use std::time::Duration;

use super::{HOLD, Node, epoch, incarnation, part};
use crate::cluster::view::SILENCE;

const MOMENT: Duration = Duration::from_millis(1);
const LEASE: Duration = Duration::from_secs(3);

#[test]
fn numbers_are_partial_until_all_totals_were_read() {
    let mut node = Node::new();
    node.view.turn(epoch(1), 0, node.now);
    node.view.begin(incarnation(2));
    node.view.alive(node.now);
    node.view.nodes(1, 1, 0, node.now);
    assert!(node.view.is_partial(node.now));
    node.view.begin_reading();
    node.view.read_all(0, 0, &std::collections::HashSet::new());
    // Claims and blocks are still to be read.
    assert!(node.view.is_partial(node.now));
    node.view.loaded();
    assert!(!node.view.is_partial(node.now));
}

#[test]
fn numbers_are_partial_when_nothing_was_heard_for_two_seconds_and_a_half() {
    let mut node = Node::ready();
    let end = node.now + SILENCE;
    assert!(node.view.is_near(end - MOMENT) && !node.view.is_partial(end - MOMENT));
    assert!(!node.view.is_near(end) && node.view.is_partial(end));
    node.view.alive(end);
    assert!(node.view.is_near(end) && !node.view.is_partial(end));
}

#[test]
fn numbers_are_partial_while_a_batch_has_long_not_come_through() {
    let mut node = Node::ready();
    let frozen = node.view.freeze(vec![part("blog:1", 1)], Vec::new(), false);
    // What else Redis answers says nothing of it.
    let end = tokio::time::Instant::now() + LEASE;
    for moment in [node.now, end - LEASE / 2, end] {
        node.view.alive(moment);
        node.view.leased(true, moment);
    }
    assert!(!node.view.is_partial(end - LEASE / 2));
    assert!(node.view.is_unheard(end) && node.view.is_partial(end));
    node.view.acknowledge(&frozen, 0);
    assert!(!node.view.is_unheard(end) && !node.view.is_partial(end));
    // Nothing to say is nothing that waits.
    let empty = node.view.freeze(Vec::new(), Vec::new(), false);
    node.view.unused(&empty);
    assert!(!node.view.is_unheard(end + LEASE));
}

#[test]
fn redis_is_away_until_it_first_answers() {
    let mut node = Node::new();
    assert!(!node.view.is_near(node.now));
    node.view.alive(node.now);
    assert!(node.view.is_near(node.now));
}

#[test]
fn numbers_are_partial_while_a_leased_node_has_long_not_told_everything() {
    let mut node = Node::ready();
    node.view.nodes(3, 2, 0, node.now);
    let later = node.now + Duration::from_millis(500);
    node.view.nodes(3, 2, 0, later);
    let end = node.now + HOLD;
    node.view.alive(end);
    assert!(!node.view.is_partial(end));
    assert!(node.view.is_partial(end + MOMENT));
    node.view.nodes(3, 3, 0, end + MOMENT);
    assert!(!node.view.is_partial(end + MOMENT));
    // The next one that comes has its own time.
    node.view.nodes(4, 3, 0, end + MOMENT);
    assert!(!node.view.is_partial(end + 2 * MOMENT));
}

#[test]
fn after_a_new_epoch_nodes_of_before_are_awaited_for_as_long_as_a_lease() {
    let mut node = Node::ready();
    node.view.nodes(3, 3, 0, node.now);
    node.view.turn(epoch(2), 0, node.now);
    let end = node.now + LEASE;
    node.view.alive(node.now + Duration::from_secs(2));
    // What is held covers for what is missing.
    assert!(!node.view.is_partial(node.now + HOLD));
    node.view.let_go(node.now + HOLD);
    assert!(node.view.is_partial(node.now + HOLD));
    node.view.nodes(2, 2, 0, node.now + HOLD);
    assert!(node.view.is_partial(end - MOMENT));
    // Whoever has not come by then is gone.
    assert!(!node.view.is_partial(end));
}

#[test]
fn numbers_are_whole_once_as_many_nodes_as_before_have_told_theirs() {
    let mut node = Node::ready();
    node.view.nodes(3, 3, 0, node.now);
    node.view.turn(epoch(2), 0, node.now);
    let end = node.now + HOLD;
    node.view.alive(end);
    node.view.let_go(end);
    node.view.nodes(3, 3, 0, end);
    assert!(!node.view.is_partial(end));
}

#[test]
fn a_version_that_a_lease_told_and_nobody_heard_has_totals_read() {
    let mut node = Node::ready();
    node.view.nodes(1, 1, 4, node.now);
    // It may be on its way still.
    assert!(!node.view.reload);
    node.view.nodes(1, 1, 4, node.now);
    assert!(node.view.reload);
    node.read(4, 1, &[]);
    node.view.nodes(1, 1, 4, node.now);
    assert!(!node.view.reload);
}

#[test]
fn a_version_that_was_heard_by_the_next_lease_is_no_reason_to_read() {
    let mut node = Node::ready();
    node.view.nodes(1, 1, 1, node.now);
    node.hear(1, None, &[]);
    node.view.nodes(1, 1, 2, node.now);
    assert!(!node.view.reload);
}
