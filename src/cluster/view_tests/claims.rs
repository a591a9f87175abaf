//! Connections that several nodes opened: whose stream is the newest.

use std::time::Duration;

use super::{Node, claim, connection, epoch, incarnation};

const HOUR_MS: u64 = 3_600_000;
const NOON_MS: u64 = 1_700_000_000_000;

#[test]
fn claims_of_others_are_told_in_their_order() {
    let mut node = Node::ready();
    let taken = node.hear_claims(1, &[claim(1, 7, 30, 8), claim(2, 7, 40, 9)]);
    let both = [(connection(7), 30, None), (connection(7), 40, None)];
    assert_eq!(taken, both);
    assert_eq!(node.view.claims_seen, 2);
    assert!(!node.view.reload);
}

#[test]
fn a_claim_that_a_gap_swallowed_is_asked_for_and_read() {
    let mut node = Node::ready();
    node.hear_claims(1, &[claim(1, 7, 30, 9)]);
    node.view.reload = false;
    // The second is missing; the third is told all the same.
    assert_eq!(node.hear_claims(2, &[claim(3, 8, 50, 9)]).len(), 1);
    assert!(node.view.reload);
    assert_eq!(node.view.claims_seen, 1);
    let read = node
        .view
        .read_claims(&[claim(2, 6, 40, 9), claim(3, 8, 50, 9)]);
    assert_eq!(read[0], (connection(6), 40, None));
    assert_eq!(node.view.claims_seen, 3);
}

#[test]
fn claims_that_are_not_kept_any_more_are_not_waited_for() {
    let mut node = Node::ready();
    node.view.begin_reading();
    assert_eq!(node.view.read_claims(&[claim(500, 7, 30, 9)]).len(), 1);
    assert_eq!(node.view.claims_seen, 500);
    assert!(!node.view.reload);
}

#[test]
fn claims_heard_late_or_twice_leave_the_order_as_it_is() {
    let mut node = Node::ready();
    node.hear_claims(1, &[claim(1, 7, 30, 9), claim(2, 8, 30, 9)]);
    assert_eq!(node.hear_claims(1, &[claim(1, 7, 30, 9)]).len(), 1);
    assert_eq!(node.view.claims_seen, 2);
    assert!(!node.view.reload);
}

#[test]
fn claims_of_an_announcement_that_teaches_no_totals_are_heard() {
    let mut node = Node::ready();
    assert_eq!(node.hear_claims(2, &[claim(1, 7, 30, 9)]).len(), 1);
    assert_eq!(node.view.claims_seen, 1);
}

#[test]
fn own_claims_are_nobodys_elses_whatever_this_node_was_called_then() {
    let mut node = Node::ready();
    assert!(node.hear_claims(1, &[claim(1, 7, 30, 2)]).is_empty());
    node.view.begin(incarnation(3));
    let own = [claim(2, 7, 30, 2), claim(3, 7, 30, 3), claim(4, 7, 30, 1)];
    assert!(node.hear_claims(2, &own).is_empty());
    assert_eq!(node.view.claims_seen, 4);
}

#[test]
fn whether_a_claim_came_after_the_own_one_goes_by_their_numbers() {
    let mut node = Node::ready();
    node.claim(vec![(connection(6), 30), (connection(7), 30)], 4);
    let taken = node.view.claimed(&[
        claim(3, 7, 30, 9),
        claim(4, 7, 30, 9),
        claim(5, 6, 30, 9),
        claim(6, 7, 30, 9),
        claim(7, 8, 30, 9),
    ]);
    let after: Vec<Option<bool>> = taken.iter().map(|(.., after)| *after).collect();
    let first = Some(true);
    assert_eq!(after, [Some(false), Some(false), first, Some(true), None]);
}

#[test]
fn an_own_claim_on_its_way_will_come_after_what_is_heard_before_its_answer() {
    let mut node = Node::ready();
    let frozen = node
        .view
        .freeze(Vec::new(), vec![(connection(7), 30)], false);
    let before = node.view.claimed(&[claim(1, 7, 30, 9)]);
    assert_eq!(before[0].2, Some(false));
    node.view.acknowledge(&frozen, 2);
    assert_eq!(node.view.claimed(&[claim(1, 7, 30, 9)])[0].2, Some(false));
    assert_eq!(node.view.claimed(&[claim(3, 7, 30, 9)])[0].2, Some(true));
}

/// Or both nodes would keep their streams: each would take its own for the newer one.
#[test]
fn an_own_claim_that_is_heard_before_its_answer_has_its_number() {
    let mut node = Node::ready();
    node.claim(vec![(connection(7), 20)], 1);
    node.view
        .freeze(Vec::new(), vec![(connection(7), 30)], false);
    // The one before says nothing of the one on its way.
    let before = node.view.claimed(&[claim(1, 7, 20, 2), claim(2, 7, 25, 9)]);
    assert_eq!(before[0].2, Some(false));
    let after = node.view.claimed(&[claim(3, 7, 30, 2), claim(4, 7, 40, 9)]);
    assert_eq!(after, [(connection(7), 40, Some(true))]);
}

#[test]
fn numbers_of_claims_of_another_epoch_are_not_compared() {
    let mut node = Node::ready();
    node.claim(vec![(connection(7), 30)], 900);
    node.hear_claims(1, &[claim(1, 5, 30, 9)]);
    assert!(!node.view.claim_again);
    node.view.turn(epoch(2), 0, node.now);
    // All streams opened by ticket are claimed again, and all claims read from the first.
    assert!(node.view.claim_again);
    assert_eq!(node.view.claims_seen, 0);
    assert_eq!(node.view.claimed(&[claim(1, 7, 30, 9)])[0].2, None);
    node.view
        .freeze(Vec::new(), vec![(connection(7), 30)], false);
    let after = node.view.claimed(&[claim(2, 7, 30, 2), claim(3, 7, 30, 9)]);
    assert_eq!(after[0].2, Some(true));
}

#[tokio::test(start_paused = true)]
async fn the_number_of_an_own_claim_is_known_for_a_minute() {
    let mut node = Node::ready();
    node.claim(vec![(connection(7), 30)], 1);
    tokio::time::advance(Duration::from_secs(59)).await;
    node.claim(Vec::new(), 0);
    assert_eq!(node.view.claimed(&[claim(2, 7, 30, 9)])[0].2, Some(true));
    tokio::time::advance(Duration::from_secs(2)).await;
    node.claim(Vec::new(), 0);
    assert_eq!(node.view.claimed(&[claim(2, 7, 30, 9)])[0].2, None);
}

/// Two nodes, one's clock an hour fast and the other's an hour slow: what the one wrote the other
/// reads as a moment of its own clock.
#[test]
fn moments_travel_between_clocks_that_are_hours_apart() {
    let mut fast = Node::ready();
    let mut slow = Node::ready();
    fast.view.compare_clocks(NOON_MS, NOON_MS + HOUR_MS);
    slow.view.compare_clocks(NOON_MS, NOON_MS - HOUR_MS);
    let opened = NOON_MS + HOUR_MS + 250;
    let written = fast.view.redis_time(opened);
    assert_eq!(written, NOON_MS + 250);
    let taken = slow.view.claimed(&[claim(1, 7, written, 9)]);
    assert_eq!(taken[0].1, NOON_MS - HOUR_MS + 250);
    let back = slow.view.redis_time(taken[0].1);
    assert_eq!(fast.view.claimed(&[claim(1, 7, back, 9)])[0].1, opened);
}
