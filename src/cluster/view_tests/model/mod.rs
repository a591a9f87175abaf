//! Several nodes on one store, and anything that may go wrong between them, at random.

mod hearing;
mod node;
mod numbers;
mod store;
mod telling;

use std::collections::BTreeSet;

use proptest::prelude::*;
use tokio::time::Instant;

use self::node::{Common, Node, moment, stream};
use super::{member, place, viewer};
use crate::{
    cluster::view::Place,
    hub::{ConnectionId, Fingerprint, Occupancy},
};

const NODES: usize = 3;
const ROOMS: [&str; 4] = ["blog:1", "blog:2", "match:3", "match:4"];

/// What happens next; nodes by number.
#[derive(Debug, Clone)]
enum Step {
    /// Somebody joins a room, known by a name or not.
    Join(usize, usize, Option<u8>),
    /// Somebody of a room leaves it.
    Leave(usize, usize, usize),
    /// A stream is opened by ticket.
    Open(usize, u8),
    /// A step of telling, the answer lost or not.
    Tell(usize, bool),
    Lease(usize),
    Reread(usize),
    Reap(usize),
    Hear(usize),
    /// Of a node's announcements on their way one is lost, comes twice, or comes late.
    Lose(usize, usize),
    Double(usize, usize),
    Delay(usize, usize),
    /// Of the changed rooms so many are announced.
    Announce(usize),
    /// Milliseconds pass.
    Wait(u64),
    /// A node was not heard of for as long as its lease.
    Lapse(usize),
    /// A node is killed, and another started.
    Kill(usize),
    /// The store loses everything.
    Empty,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = || 0..NODES;
    let step = prop_oneof![
        12 => (node(), 0..ROOMS.len(), proptest::option::of(0..6_u8))
            .prop_map(|(node, room, name)| Step::Join(node, room, name)),
        9 => (node(), 0..ROOMS.len(), 0..4_usize)
            .prop_map(|(node, room, who)| Step::Leave(node, room, who)),
        3 => (node(), 0..3_u8).prop_map(|(node, stream)| Step::Open(node, stream)),
        32 => (node(), prop::bool::weighted(0.1)).prop_map(|(node, lost)| Step::Tell(node, lost)),
        5 => node().prop_map(Step::Lease),
        16 => node().prop_map(Step::Reread),
        4 => node().prop_map(Step::Reap),
        24 => node().prop_map(Step::Hear),
        2 => (node(), 0..4_usize).prop_map(|(node, at)| Step::Lose(node, at)),
        2 => (node(), 0..4_usize).prop_map(|(node, at)| Step::Double(node, at)),
        2 => (node(), 0..4_usize).prop_map(|(node, at)| Step::Delay(node, at)),
        12 => (1..5_usize).prop_map(Step::Announce),
        3 => prop_oneof![Just(100_u64), Just(600), Just(3_100)].prop_map(Step::Wait),
        2 => node().prop_map(Step::Lapse),
        1 => node().prop_map(Step::Kill),
        1 => Just(Step::Empty),
    ];
    proptest::collection::vec(step, 0..120)
}

struct World {
    common: Common,
    nodes: Vec<Node>,
    start: Instant,
    ms: u64,
    /// Names by which nodes are leased.
    processes: usize,
}

impl World {
    fn new() -> Self {
        let mut common = Common::default();
        common.store.empty();
        Self {
            nodes: (0..NODES)
                .map(|process| Node::new(process, &mut common))
                .collect(),
            common,
            start: Instant::now(),
            ms: 0,
            processes: NODES,
        }
    }

    fn now(&self) -> Instant {
        moment(self.start, self.ms)
    }

    fn step(&mut self, step: &Step) {
        let now = self.now();
        let common = &mut self.common;
        match *step {
            Step::Join(node, room, name) => {
                let room = place(ROOMS[room]);
                let name = name.map(|n| if n % 2 == 0 { member(n) } else { viewer(n) });
                let node = &mut self.nodes[node];
                node.here.entry(room.clone()).or_default().push(name);
                node.change(room);
            }
            Step::Leave(node, room, who) => {
                let room = place(ROOMS[room]);
                let node = &mut self.nodes[node];
                let all = node.here.entry(room.clone()).or_default();
                if who < all.len() {
                    all.swap_remove(who);
                    node.change(room);
                }
            }
            Step::Open(node, number) => {
                self.ms += 1;
                self.nodes[node].open(stream(number), self.ms);
            }
            Step::Tell(node, lost) => self.nodes[node].tell(common, lost, now),
            Step::Lease(node) => self.nodes[node].lease(common, now),
            Step::Reread(node) => self.nodes[node].reread(common, now),
            Step::Reap(node) => self.nodes[node].reap(common, now),
            Step::Hear(node) => self.nodes[node].hear(common, now),
            Step::Lose(node, at) => drop(self.nodes[node].inbox.remove(at)),
            Step::Double(node, at) => {
                let inbox = &mut self.nodes[node].inbox;
                let again = inbox.get(at).cloned();
                inbox.extend(again);
            }
            Step::Delay(node, at) => {
                let inbox = &mut self.nodes[node].inbox;
                let late = inbox.remove(at);
                inbox.extend(late);
            }
            Step::Announce(most) => self.announce(most),
            Step::Wait(ms) => {
                self.ms += ms;
                let now = self.now();
                self.nodes.iter_mut().for_each(|node| node.watch_over(now));
            }
            Step::Lapse(node) => common.store.lapse(self.nodes[node].process()),
            Step::Kill(node) => {
                common.store.lapse(self.nodes[node].process());
                self.nodes[node] = Node::new(self.processes, common);
                self.processes += 1;
            }
            Step::Empty => common.store.empty(),
        }
    }

    fn announce(&mut self, most: usize) {
        if let Some(announcement) = self.common.store.announce(most) {
            let id = (announcement.epoch, announcement.version);
            self.common.moments.insert(id, self.common.store.at());
            for node in &mut self.nodes {
                node.inbox.push_back(announcement.clone());
            }
        }
    }

    /// Lets everything be told, announced, heard, read and reaped.
    fn settle(&mut self) {
        for round in 0.. {
            assert!(round < 100, "it never comes to rest");
            self.ms += 100;
            let now = self.now();
            for node in &mut self.nodes {
                node.lease(&mut self.common, now);
                for _ in 0..8 {
                    node.tell(&mut self.common, false, now);
                    node.reap(&mut self.common, now);
                }
            }
            self.announce(usize::MAX);
            for node in &mut self.nodes {
                while !node.inbox.is_empty() {
                    node.hear(&self.common, now);
                }
                for _ in 0..12 {
                    node.reread(&mut self.common, now);
                }
                node.watch_over(now);
            }
            let leases = self.nodes.iter().flat_map(Node::leases).collect();
            self.common.store.lapse_others(&leases);
            if round > 4 && self.nodes.iter().all(Node::is_quiet) {
                return;
            }
        }
    }

    /// Everybody in a place, on all nodes.
    fn truth(&self, place: &Place) -> Occupancy {
        let own: Vec<(Occupancy, BTreeSet<Fingerprint>)> =
            self.nodes.iter().map(|node| node.own(place)).collect();
        let names: BTreeSet<Fingerprint> =
            own.iter().flat_map(|(_, n)| n.iter().copied()).collect();
        let alone = own
            .iter()
            .map(|(own, names)| own.viewers - names.len() as u32);
        Occupancy {
            connections: own.iter().map(|(own, _)| own.connections).sum(),
            viewers: alone.sum::<u32>() + names.len() as u32,
            members: names.iter().filter(|name| name[0] == b'm').count() as u32,
            partial: false,
        }
    }

    /// At rest every node shows what is true, remembers no room that is empty, and no stream is
    /// open on two of them.
    fn check(&self) {
        let places = ROOMS.iter().map(|room| place(room)).chain([None]);
        let places: Vec<Place> = places.collect();
        let occupied = places
            .iter()
            .filter(|place| self.truth(place).connections > 0);
        let occupied = occupied.count();
        for node in &self.nodes {
            for place in &places {
                let (own, _) = node.own(place);
                let others = node.elsewhere.get(place).copied().unwrap_or_default();
                let shown = Occupancy {
                    connections: own.connections + others.connections,
                    viewers: own.viewers + others.viewers,
                    members: own.members + others.members,
                    partial: false,
                };
                assert_eq!(shown, self.truth(place), "{place:?}");
            }
            assert!(!node.view.is_partial(self.now()));
            assert!(
                node.view.remembered().0 <= occupied,
                "empty rooms are remembered"
            );
        }
        let streams = self.nodes.iter().flat_map(|node| node.streams.keys());
        let streams: Vec<&ConnectionId> = streams.collect();
        let distinct: BTreeSet<&ConnectionId> = streams.iter().copied().collect();
        assert_eq!(distinct.len(), streams.len(), "a stream is open twice");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 96,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_happens_all_nodes_come_to_show_what_is_true(steps in steps()) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
        world.settle();
        world.check();
        for node in &mut world.nodes {
            let rooms: Vec<Place> = std::mem::take(&mut node.here).into_keys().collect();
            rooms.into_iter().for_each(|room| node.change(room));
        }
        world.settle();
        world.check();
    }
}
