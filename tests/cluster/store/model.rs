//! Random changes of several nodes, with replies lost and requests doubled, against a plain model.
//!
//! Every announced total has to be the sum of what each node had as of the batch that the
//! announcement names for it: what a node shows is that total, less its own share in it, plus its
//! own share now, and is exact only so.

use std::collections::{BTreeMap, BTreeSet};

use livecount::cluster::store::{
    Announcement, Answer, Batch, Flushed, Incarnation, Redis, RoomChange, Total,
};
use livecount::hub::Fingerprint;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::helpers::{TestNode, TestStore, announcement, done, member, viewer};
use crate::resp_proxy::{Fault, RespProxy};

const ROOMS: [&str; 5] = ["blog:1", "blog:2", "match:3", "match:4", "*"];

/// What one node has in one room.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Share {
    connections: u32,
    unidentified: u32,
    identities: BTreeSet<Fingerprint>,
}

type Shares = BTreeMap<&'static str, Share>;

/// One node, what it has now, and what it had as of each of its batches.
struct ModelNode {
    node: TestNode,
    now: Shares,
    flushed: Shares,
    /// By incarnation and number of the batch, from 0.
    history: Vec<Shares>,
    /// Sent, and not acknowledged.
    frozen: Option<Vec<RoomChange>>,
}

impl ModelNode {
    fn change(&mut self, random: &mut StdRng) {
        let share = self
            .now
            .entry(ROOMS[random.random_range(0..ROOMS.len())])
            .or_default();
        match random.random_range(0..4) {
            0 => {
                share.connections = random.random_range(0..5);
                share.unidentified = random.random_range(0..=share.connections);
            }
            1 => share.identities.clear(),
            _ => {
                let number = random.random_range(0..4);
                let identity = if random.random() {
                    member(number)
                } else {
                    viewer(number)
                };
                if !share.identities.remove(&identity) {
                    share.identities.insert(identity);
                }
            }
        }
    }

    /// Sends what changed, or again what was not acknowledged.
    async fn flush(&mut self) {
        if self.frozen.is_none() {
            let mut rooms = Vec::new();
            for (room, now) in &self.now {
                let before = self.flushed.get(room).cloned().unwrap_or_default();
                if *now != before {
                    rooms.push(RoomChange {
                        room: (*room).to_owned(),
                        connections: now.connections,
                        unidentified: now.unidentified,
                        add: now
                            .identities
                            .difference(&before.identities)
                            .copied()
                            .collect(),
                        remove: before
                            .identities
                            .difference(&now.identities)
                            .copied()
                            .collect(),
                    });
                }
            }
            self.flushed = self.now.clone();
            self.history.push(self.now.clone());
            self.node.number += 1;
            self.frozen = Some(rooms);
        }
        let rooms = self.frozen.clone().unwrap();
        match self.node.try_flush(self.node.number, &rooms).await {
            Ok(Answer::Done(Flushed::Applied { .. })) => self.frozen = None,
            Ok(other) => panic!("{other:?}"),
            Err(_) => assert!(!self.node.lane.is_connected()),
        }
    }
}

fn add_up<'a>(shares: impl Iterator<Item = &'a Shares>, room: &str) -> Total {
    let mut total = Total::default();
    let mut identities = BTreeSet::new();
    for share in shares.filter_map(|shares| shares.get(room)) {
        total.connections += share.connections;
        total.viewers += share.unidentified;
        identities.extend(share.identities.iter().copied());
    }
    total.viewers += identities.len() as u32;
    total.members = identities
        .iter()
        .filter(|identity| identity[0] == b'm')
        .count() as u32;
    total
}

/// Holds each announcement against the model.
#[derive(Default)]
struct Reader {
    version: u64,
    applied: BTreeMap<Incarnation, u64>,
    totals: BTreeMap<String, Total>,
}

impl Reader {
    fn hear(&mut self, heard: Announcement, nodes: &[ModelNode], seed: u64) {
        assert_eq!(heard.version, self.version + 1, "seed {seed}");
        self.version = heard.version;
        self.applied.extend(heard.applied);
        self.totals.extend(heard.rooms);
        // Not only the announced rooms: of the others the totals of before still hold.
        for room in &ROOMS {
            let as_of = nodes.iter().map(|node| {
                let number = self.applied.get(&node.node.me).copied().unwrap_or(0);
                &node.history[usize::try_from(number).unwrap()]
            });
            let told = self.totals.get(*room).copied().unwrap_or_default();
            assert_eq!(
                told,
                add_up(as_of, room),
                "{room} in announcement {}, seed {seed}",
                self.version
            );
        }
    }
}

#[tokio::test]
async fn every_announced_total_is_the_sum_as_of_the_batches_it_names() {
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let store = TestStore::start().await;
    let proxy = RespProxy::before(store.server.port()).await;
    let redis = Redis::new(&proxy.url(), "t:").unwrap();
    let mut listener = store.listen().await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        let mut node = TestNode::on(&redis).await;
        assert!(node.lease(true).await.held);
        nodes.push(ModelNode {
            node,
            now: Shares::new(),
            flushed: Shares::new(),
            history: vec![Shares::new()],
            frozen: None,
        });
    }

    let mut reader = Reader::default();
    for step in 0..600 {
        let node = &mut nodes[random.random_range(0..3)];
        match random.random_range(0..10) {
            0..4 => node.change(&mut random),
            4..8 => {
                match random.random_range(0..12) {
                    0 => proxy.fail_next(Fault::Double),
                    // Each takes the time that a call waits for its answer.
                    1 if step % 200 == 0 => proxy.fail_next(Fault::LoseReply),
                    _ => {}
                }
                node.flush().await;
            }
            8 => drop(node.node.lane.announce(node.node.stamp).await),
            _ => drop(
                node.node
                    .lane
                    .lease(node.node.stamp, node.node.me, None, &TestNode::card(), true)
                    .await,
            ),
        }
        // What is published arrives in order; waiting for some of it now and then keeps the model
        // of then at hand.
        if step % 10 == 0 {
            while let Ok(heard) = tokio::time::timeout(
                std::time::Duration::from_millis(5),
                announcement(&mut listener),
            )
            .await
            {
                reader.hear(heard, &nodes, seed);
            }
        }
    }

    for node in &mut nodes {
        while node.frozen.is_some() || node.flushed != node.now {
            node.flush().await;
        }
    }
    let mut observer = store.node().await;
    observer.announce_all().await;
    let last = observer.page_of("*").await.version;
    while reader.version < last {
        reader.hear(announcement(&mut listener).await, &nodes, seed);
    }
    for node in &nodes {
        assert_eq!(
            reader.applied[&node.node.me], node.node.number,
            "seed {seed}"
        );
    }
    for room in ROOMS {
        let truth = add_up(nodes.iter().map(|node| &node.now), room);
        assert_eq!(observer.total(room).await, truth, "{room}, seed {seed}");
    }
}

/// Nodes change, are killed and reaped, resync in chunks, and at every step the totals are what
/// the model says.
#[tokio::test]
async fn kills_and_resyncs_in_any_order_leave_exact_totals() {
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    let store = TestStore::start().await;
    let mut nodes = Vec::new();
    for _ in 0..3 {
        nodes.push(ModelNode {
            node: store.node().await,
            now: Shares::new(),
            flushed: Shares::new(),
            history: vec![Shares::new()],
            frozen: None,
        });
    }
    let mut observer = store.node().await;
    for _ in 0..150 {
        let at = random.random_range(0..3);
        for _ in 0..random.random_range(1..6) {
            nodes[at].change(&mut random);
        }
        nodes[at].flush().await;
        match random.random_range(0..8) {
            // Killed, reaped, and started again with nothing.
            0 => {
                let lapsed = nodes[at].node.me;
                done(observer.lane.release(observer.stamp, lapsed).await);
                while done(
                    observer
                        .lane
                        .reap(observer.stamp, lapsed, random.random_range(1..4))
                        .await,
                ) {}
                nodes[at].node = store.node().await;
                nodes[at].now.clear();
                nodes[at].flushed.clear();
            }
            // Resyncs, a room at a time, having changed some since.
            1..3 => {
                let truth: Vec<_> = ROOMS
                    .map(|room| add_up(nodes.iter().map(|node| &node.now), room))
                    .into();
                let ModelNode { node, now, .. } = &mut nodes[at];
                resync(node, now, &mut observer, &truth, &mut random).await;
            }
            _ => {}
        }
        for room in ROOMS {
            let truth = add_up(nodes.iter().map(|node| &node.now), room);
            assert_eq!(observer.total(room).await, truth, "{room}, seed {seed}");
        }
    }
}

/// Moves a node's numbers to a new incarnation, the totals staying what they are in between.
async fn resync(
    node: &mut TestNode,
    now: &Shares,
    observer: &mut TestNode,
    truth: &[Total],
    random: &mut StdRng,
) {
    let older = node.me;
    node.me = Incarnation::random();
    node.number = 0;
    done(
        node.lane
            .lease(node.stamp, node.me, Some(older), &TestNode::card(), true)
            .await,
    );
    let mut chunks = Vec::new();
    for (room, share) in now {
        // Identities in steps, as a large room's are.
        let mut identities: Vec<_> = share.identities.iter().copied().collect();
        let first = identities.split_off(identities.len().min(random.random_range(0..3)));
        for add in [identities, first] {
            chunks.push(RoomChange {
                room: (*room).to_owned(),
                connections: share.connections,
                unidentified: share.unidentified,
                add,
                remove: Vec::new(),
            });
        }
    }
    for chunk in chunks.chunks(random.random_range(1..4)) {
        node.number += 1;
        let batch = Batch {
            older: Some(older),
            rooms: chunk,
            ..node.batch()
        };
        assert!(matches!(
            done(node.lane.flush(node.stamp, &batch).await),
            Flushed::Applied { .. }
        ));
        for (room, truth) in ROOMS.iter().zip(truth) {
            assert_eq!(observer.total(room).await, *truth, "{room} in a resync");
        }
    }
    node.number += 1;
    let last = Batch {
        older: Some(older),
        done: true,
        ..node.batch()
    };
    done(node.lane.flush(node.stamp, &last).await);
    while done(observer.lane.reap(observer.stamp, older, 2).await) {}
}
