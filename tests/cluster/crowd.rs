//! Hundreds of readers at once, on all nodes, who come and go, come back elsewhere when their node
//! is gone, and remember every number that they were shown.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::oneshot,
    task::{AbortHandle, JoinHandle},
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use crate::{
    dice::Dice,
    event::Event,
    node::Cluster,
    truth::{Bounds, SERVICE, Truth, Who},
    wire::{Client, Numbers, PATIENCE, Reader, is_partial, token, until},
};

/// The room that most of a crowd is in.
pub(crate) const FRONT: &str = "blog:front";
/// Names that readers share, so that many have tabs on several nodes.
const NAMES: usize = 60;
/// How soon a reader comes back after its stream broke, at most. A browser waits longer.
const COME_BACK: Duration = Duration::from_millis(400);
/// What may pass between a change and its being shown, in fair weather.
pub(crate) const LAG: Duration = Duration::from_millis(1_500);

/// How a reader joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Query,
    Ticket,
}

/// What a reader wants.
#[derive(Debug, Clone)]
struct Plan {
    rooms: BTreeSet<String>,
    watching: BTreeSet<String>,
    /// `None` for nobody but itself.
    who: Option<Who>,
    by: By,
}

/// A number that a reader was shown.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) at: Instant,
    /// The node that showed it.
    pub(crate) node: usize,
    pub(crate) room: Arc<str>,
    pub(crate) numbers: Numbers,
    pub(crate) partial: bool,
}

/// A message that a reader was sent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Sent {
    pub(crate) room: String,
    pub(crate) data: Value,
}

#[derive(Debug)]
struct Member {
    plan: Plan,
    /// The node of its stream, or of its last one.
    node: usize,
    /// Who it counts for while its stream is open.
    open: Option<Who>,
    last: BTreeMap<Arc<str>, Seen>,
    sent: Vec<Sent>,
    resets: usize,
    task: Option<AbortHandle>,
}

#[derive(Debug, Default)]
struct State {
    /// Where readers may go; `None` for a node that is not to be used now.
    doors: Vec<Option<Client>>,
    members: BTreeMap<u64, Member>,
    next: u64,
    truth: Truth,
    seen: Vec<Seen>,
    /// What no reader should have met.
    trouble: Vec<String>,
}

/// All readers of a cluster. They live as long as the test's runtime.
#[derive(Debug, Clone)]
pub(crate) struct Crowd {
    state: Arc<Mutex<State>>,
}

impl Crowd {
    /// Nobody yet, before the doors of these nodes.
    pub(crate) fn before(doors: &[Client]) -> Self {
        let state = State {
            doors: doors.iter().copied().map(Some).collect(),
            ..State::default()
        };
        Self {
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// So many readers, spread over the nodes of a cluster; every number is right when this
    /// returns.
    pub(crate) async fn of(cluster: &Cluster, size: usize) -> Self {
        let doors: Vec<Client> = cluster.nodes.iter().map(|node| node.client()).collect();
        let crowd = Self::before(&doors);
        crowd.fill(size, &mut Dice::new(size as u64)).await;
        crowd.wait_exact(PATIENCE).await;
        crowd.wait_whole(PATIENCE).await;
        crowd
    }

    /// Lets so many in, a few at a time.
    pub(crate) async fn fill(&self, size: usize, dice: &mut Dice) {
        let mut left = size;
        while left > 0 {
            let together = left.min(16);
            let entering: Vec<_> = (0..together).map(|_| self.enter(dice)).collect();
            for open in entering {
                open.await.expect("a reader gets in");
            }
            left -= together;
        }
    }

    /// No reader goes to this node any more, and none of those who are there leaves.
    pub(crate) fn shut(&self, node: usize) {
        self.state.lock().doors[node] = None;
    }

    /// Readers may go to this node.
    pub(crate) fn open(&self, node: usize, client: Client) {
        self.state.lock().doors[node] = Some(client);
    }

    /// One more reader, as chance has it; it is in when the answer comes.
    fn enter(&self, dice: &mut Dice) -> oneshot::Receiver<()> {
        let plan = Plan::by_chance(dice);
        let (say, told) = oneshot::channel();
        let mut state = self.state.lock();
        let node = state.some_door(dice);
        let id = state.next;
        state.next += 1;
        let life = live(Arc::clone(&self.state), id, dice.clone(), say);
        state.members.insert(
            id,
            Member {
                plan,
                node,
                open: None,
                last: BTreeMap::new(),
                sent: Vec::new(),
                resets: 0,
                task: None,
            },
        );
        drop(state);
        let task = tokio::spawn(life).abort_handle();
        if let Some(member) = self.state.lock().members.get_mut(&id) {
            member.task = Some(task);
        }
        told
    }

    /// One who is in, on a node that is in use, leaves without a word.
    fn leave(&self, dice: &mut Dice) {
        let mut state = self.state.lock();
        let leavers = state
            .members
            .iter()
            .filter(|(_, member)| member.open.is_some() && state.doors[member.node].is_some());
        let leavers: Vec<u64> = leavers.map(|(id, _)| *id).collect();
        if let Some(id) = leavers.get(dice.roll(leavers.len().max(1))) {
            state.remove(*id);
        }
    }

    /// Joins and leaves, together so many a second, from now on.
    pub(crate) fn churn(&self, rate: u32) -> Churn {
        let stop = Arc::new(Mutex::new(false));
        let crowd = self.clone();
        let told = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut dice = Dice::new(u64::from(rate));
            let mut tick = interval(Duration::from_secs(1) / rate);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut entering: Vec<oneshot::Receiver<()>> = Vec::new();
            let mut joins = true;
            while !*told.lock() {
                tick.tick().await;
                if joins {
                    entering.push(crowd.enter(&mut dice));
                } else {
                    crowd.leave(&mut dice);
                }
                joins = !joins;
                entering.retain_mut(|told| told.try_recv().is_err());
            }
            for told in entering {
                // Who left again before it was in says nothing.
                let _ = told.await;
            }
        });
        Churn { stop, task }
    }

    /// One more in a room, who is nobody's but the test's, and stays until the end.
    pub(crate) fn count_in(&self, reader: &Reader, room: &str) {
        let who = Who::Itself(reader.connection().to_owned());
        let rooms = BTreeSet::from([room.to_owned()]);
        self.state.lock().truth.enter(&who, &rooms);
    }

    /// The numbers of a room, or of [`SERVICE`], by the test's own list.
    pub(crate) fn truth(&self, room: &str) -> Numbers {
        self.state.lock().truth.of(room)
    }

    /// Readers on a node, by the test's own list.
    pub(crate) fn on_node(&self, node: usize) -> usize {
        let state = self.state.lock();
        let there = state.members.values();
        let there = there.filter(|member| member.open.is_some() && member.node == node);
        there.count()
    }

    /// Waits until every node in use and every reader shows exactly the truth, and checks that
    /// they still do a moment later. Nobody may come or go meanwhile. Answers how long it took.
    pub(crate) async fn wait_exact(&self, within: Duration) -> Duration {
        let took = until(within, async || self.mismatch(false).await).await;
        sleep(Duration::from_millis(300)).await;
        until(Duration::ZERO, async || self.mismatch(false).await).await;
        took
    }

    /// As [`Self::wait_exact`], and waits until nothing says `partial` any more.
    pub(crate) async fn wait_whole(&self, within: Duration) {
        until(within, async || self.mismatch(true).await).await;
    }

    /// The first number that is not the truth, if any; `partial` too where that matters.
    async fn mismatch(&self, partial_matters: bool) -> Result<(), String> {
        let (doors, truth) = self.state.lock().check(partial_matters)?;
        let rooms: Vec<&str> = truth.keys().map(String::as_str).collect();
        let rooms: Vec<&str> = rooms.into_iter().filter(|room| *room != SERVICE).collect();
        let reader = format!("Bearer {}", token("back-end", "admin"));
        for (node, client) in doors {
            let body = json!({ "rooms": rooms });
            let counts = client.try_call("POST", "/v1/counts", &reader, &body).await;
            let (_, counts) = counts.map_err(|error| format!("node {node}: {error}"))?;
            let listed = counts["counts"].as_array();
            let listed = listed.filter(|listed| listed.len() == rooms.len());
            let listed = listed.ok_or_else(|| format!("node {node} answers {counts}"))?;
            for (room, count) in rooms.iter().zip(listed) {
                let numbers = Numbers::of(count);
                let right = numbers == truth[*room] && !(partial_matters && is_partial(count));
                right.then_some(()).ok_or_else(|| {
                    let truth = truth[*room];
                    format!("node {node} answers {count}, and the truth is {truth:?}")
                })?;
            }
            let stats = client
                .try_call("GET", "/v1/stats", &reader, &Value::Null)
                .await;
            let (_, stats) = stats.map_err(|error| format!("node {node}: {error}"))?;
            let right = Numbers::of(&stats) == truth[SERVICE];
            right.then_some(()).ok_or_else(|| {
                let truth = truth[SERVICE];
                format!("node {node} answers {stats}, and the truth is {truth:?}")
            })?;
        }
        Ok(())
    }

    /// Checks every number that readers were shown between two moments against what was true
    /// within `window` before and right after it.
    pub(crate) fn expect_seen(
        &self,
        (from, to): (Instant, Instant),
        window: Duration,
        allowed: impl Fn(&Seen, &Bounds) -> bool,
    ) {
        let state = self.state.lock();
        let seen = state
            .seen
            .iter()
            .filter(|seen| seen.at >= from && seen.at <= to);
        let mut checked = 0;
        for seen in seen {
            let bounds = state.truth.around(&seen.room, seen.at, window);
            let after = seen.at - from;
            assert!(
                allowed(seen, &bounds),
                "{after:?} after its beginning: {seen:?} where the truth was {bounds:?}"
            );
            checked += 1;
        }
        assert!(checked > 0, "readers were shown nothing at all");
    }

    /// True where any reader was shown something that fits, between two moments.
    pub(crate) fn has_seen(
        &self,
        (from, to): (Instant, Instant),
        fits: impl Fn(&Seen) -> bool,
    ) -> bool {
        let state = self.state.lock();
        let mut seen = state.seen.iter();
        seen.any(|seen| seen.at >= from && seen.at <= to && fits(seen))
    }

    /// Checks that each reader who has been in a room since before `data` was sent got all of it
    /// there, once and in this order; answers how many readers that were.
    pub(crate) fn expect_messages(&self, room: &str, data: &[Value], entered_before: u64) -> usize {
        let state = self.state.lock();
        let readers = state.members.range(..entered_before);
        let readers = readers.filter(|(_, member)| member.plan.rooms.contains(room));
        let mut checked = 0;
        for (id, member) in readers {
            let sent = member.sent.iter().filter(|sent| sent.room == room);
            let sent: Vec<&Value> = sent.map(|sent| &sent.data).collect();
            let same = sent.iter().copied().eq(data);
            assert!(same, "reader {id} of node {} got {sent:?}", member.node);
            assert_eq!(member.resets, 0, "reader {id} of node {}", member.node);
            checked += 1;
        }
        checked
    }

    /// Those who came so far have a number below this.
    pub(crate) fn entered(&self) -> u64 {
        self.state.lock().next
    }

    /// Checks that no reader met what it should not have, such as a stream replaced or refused.
    pub(crate) fn expect_no_trouble(&self) {
        let state = self.state.lock();
        assert!(state.trouble.is_empty(), "{:?}", state.trouble);
    }
}

/// Readers who come and go until they are told to stop.
#[derive(Debug)]
pub(crate) struct Churn {
    stop: Arc<Mutex<bool>>,
    task: JoinHandle<()>,
}

impl Churn {
    /// Nobody comes or goes from here on; those on their way in are in.
    pub(crate) async fn stop(self) {
        *self.stop.lock() = true;
        self.task.await.expect("the churn goes on until now");
    }
}

impl Plan {
    /// Most are in the room of all, some in a smaller one too, some watch another.
    fn by_chance(dice: &mut Dice) -> Self {
        let small = |dice: &mut Dice| format!("blog:{}", dice.roll(8));
        let mut rooms = BTreeSet::new();
        let mut watching = BTreeSet::new();
        match dice.roll(10) {
            0..6 => drop(rooms.insert(FRONT.to_owned())),
            6..8 => drop(rooms.insert(small(dice))),
            8 => rooms.extend([FRONT.to_owned(), small(dice), "match:1".to_owned()]),
            _ => drop(watching.insert(FRONT.to_owned())),
        }
        if dice.roll(5) == 0 {
            let other = small(dice);
            if !rooms.contains(&other) {
                watching.insert(other);
            }
        }
        let who = match dice.roll(3) {
            0 => None,
            1 => Some(Who::Viewer(format!("v{}", dice.roll(NAMES)))),
            _ => Some(Who::Member(format!("u{}", dice.roll(NAMES)))),
        };
        Self {
            // A stream in no room is nobody's in the truth, so it has no name either.
            who: who.filter(|_| !rooms.is_empty()),
            rooms,
            watching,
            by: if dice.roll(2) == 0 {
                By::Query
            } else {
                By::Ticket
            },
        }
    }

    /// Opens its first stream.
    async fn open(&self, client: Client) -> std::io::Result<Reader> {
        let member = match &self.who {
            Some(Who::Member(user)) => Some(token(user, "")),
            _ => None,
        };
        let viewer = match &self.who {
            Some(Who::Viewer(name)) => Some(name),
            _ => None,
        };
        // A query can either join or watch.
        if self.by == By::Query && self.watching.is_empty() {
            let mut path = "/v1/stream?".to_owned();
            for room in &self.rooms {
                path += &format!("room={room}&");
            }
            if let Some(viewer) = viewer {
                path += &format!("viewer={viewer}");
            }
            let bearer = member.map_or_else(String::new, |token| format!("Bearer {token}"));
            return client.try_open(&path, &[("Authorization", &bearer)]).await;
        }
        let mut body = json!({});
        if !self.rooms.is_empty() {
            body["rooms"] = json!(self.rooms);
        }
        if !self.watching.is_empty() {
            body["watch"] = json!(self.watching);
        }
        if let Some(viewer) = viewer {
            body["viewer"] = json!(viewer);
        }
        let ticket = client.try_join(&body, member.as_deref()).await?;
        client
            .try_open(&format!("/v1/stream?ticket={ticket}"), &[])
            .await
    }
}

impl State {
    /// A node in use.
    fn some_door(&self, dice: &mut Dice) -> usize {
        let doors = self.doors.iter().enumerate();
        let open: Vec<usize> = doors
            .filter_map(|(node, door)| door.map(|_| node))
            .collect();
        open[dice.roll(open.len())]
    }

    fn opened(&mut self, id: u64, node: usize, connection: &str) {
        if let Some(member) = self.members.get_mut(&id) {
            let who = member.plan.who.clone();
            let who = who.unwrap_or_else(|| Who::Itself(connection.to_owned()));
            member.node = node;
            member.last.clear();
            self.truth.enter(&who, &member.plan.rooms);
            member.open = Some(who);
        }
    }

    fn ended(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id)
            && let Some(who) = member.open.take()
        {
            self.truth.leave(&who, &member.plan.rooms);
        }
    }

    fn remove(&mut self, id: u64) {
        self.ended(id);
        if let Some(task) = self.members.remove(&id).and_then(|member| member.task) {
            task.abort();
        }
    }

    fn heard(&mut self, id: u64, event: &Event) {
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        match event.name.as_str() {
            "count" => {
                let seen = Seen {
                    at: Instant::now(),
                    node: member.node,
                    room: Arc::from(event.room()),
                    numbers: Numbers::of(&event.data),
                    partial: is_partial(&event.data),
                };
                member.last.insert(Arc::clone(&seen.room), seen.clone());
                self.seen.push(seen);
            }
            "message" => member.sent.push(Sent {
                room: event.room().to_owned(),
                data: event.data["data"].clone(),
            }),
            "reset" => member.resets += 1,
            "closed" if event.data["reason"] != "shutdown" => {
                let node = member.node;
                self.trouble
                    .push(format!("a reader of node {node}: {event:?}"));
            }
            _ => {}
        }
    }

    /// Compares what each reader was shown last; answers the doors and the truth.
    #[expect(
        clippy::type_complexity,
        reason = "two things that are taken apart at once"
    )]
    fn check(
        &self,
        partial_matters: bool,
    ) -> Result<(Vec<(usize, Client)>, BTreeMap<String, Numbers>), String> {
        for (id, member) in &self.members {
            let node = member.node;
            if self.doors[node].is_none() {
                continue;
            }
            if member.open.is_none() {
                return Err(format!("reader {id} of node {node} is not in"));
            }
            for room in member.plan.rooms.iter().chain(&member.plan.watching) {
                let truth = self.truth.of(room);
                let last = member.last.get(room.as_str());
                let right = last.is_some_and(|last| {
                    last.numbers == truth && !(partial_matters && last.partial)
                });
                if !right {
                    return Err(format!(
                        "reader {id} of node {node} was shown {last:?} of {room}, and the truth is {truth:?}"
                    ));
                }
            }
        }
        let doors = self.doors.iter().enumerate();
        let doors = doors.filter_map(|(node, door)| Some((node, (*door)?)));
        let truth = self.truth.rooms().chain([SERVICE]);
        let truth = truth.map(|room| (room.to_owned(), self.truth.of(room)));
        Ok((doors.collect(), truth.collect()))
    }
}

/// A reader's life: opens its stream, listens, and comes back by its ticket when the stream breaks.
async fn live(state: Arc<Mutex<State>>, id: u64, mut dice: Dice, say: oneshot::Sender<()>) {
    let mut say = Some(say);
    let mut back: Option<(String, String)> = None;
    let began = Instant::now();
    loop {
        let (plan, node, client) = {
            let state = state.lock();
            let Some(member) = state.members.get(&id) else {
                return;
            };
            let same = state.doors[member.node].is_some() && back.is_none();
            let node = if same {
                member.node
            } else {
                state.some_door(&mut dice)
            };
            let client = state.doors[node].expect("it was just found open");
            (member.plan.clone(), node, client)
        };
        let reader = match &back {
            None => plan.open(client).await,
            Some((ticket, position)) => {
                let path = format!("/v1/stream?ticket={ticket}");
                client.try_open(&path, &[("Last-Event-ID", position)]).await
            }
        };
        match reader {
            Ok(mut reader) => {
                state.lock().opened(id, node, reader.connection());
                if let Some(say) = say.take() {
                    // Nobody waits for those who come by churn and are not the last.
                    let _ = say.send(());
                }
                while let Ok(Some(event)) = reader.try_next().await {
                    state.lock().heard(id, &event);
                }
                state.lock().ended(id);
                back = Some((reader.ticket().to_owned(), reader.position.clone()));
            }
            Err(error) if began.elapsed() < PATIENCE || back.is_some() => drop(error),
            Err(error) => {
                let mut state = state.lock();
                let trouble = format!("a reader cannot get into node {node}: {error}");
                state.trouble.push(trouble);
                state.members.remove(&id);
                return;
            }
        }
        sleep(dice.up_to(COME_BACK)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Node;

    #[tokio::test]
    async fn nodes_that_know_nothing_of_each_other_do_not_show_the_truth() {
        let nodes = [Node::start("a", &[]).await, Node::start("b", &[]).await];
        let crowd = Crowd::before(&nodes.each_ref().map(Node::client));
        crowd.fill(10, &mut Dice::new(1)).await;
        sleep(LAG).await;
        let mismatch = crowd.mismatch(false).await.unwrap_err();
        assert!(mismatch.contains("the truth is"), "{mismatch}");
        crowd.shut(1);
        let mismatch = crowd.mismatch(false).await.unwrap_err();
        assert!(mismatch.contains("the truth is"), "{mismatch}");
    }

    #[tokio::test]
    async fn what_one_node_in_memory_shows_is_the_truth_through_churn_and_a_restart() {
        let mut node = Node::start("solo", &[]).await;
        let crowd = Crowd::before(&[node.client()]);
        let began = Instant::now();
        crowd.fill(100, &mut Dice::new(1)).await;
        crowd.wait_exact(PATIENCE).await;
        let churn = crowd.churn(50);
        sleep(Duration::from_secs(2)).await;
        let entered = crowd.entered();
        assert!(entered > 110, "{entered} came");
        churn.stop().await;
        crowd.wait_exact(PATIENCE).await;
        crowd.wait_whole(Duration::ZERO).await;
        crowd.expect_seen((began, Instant::now()), LAG, |seen, truth| {
            truth.least.is_within(seen.numbers) && seen.numbers.is_within(truth.most)
        });

        let data = [json!(1), json!({ "two": 2 })];
        for data in &data {
            let body = json!({ "data": data });
            node.client().publish(&format!("rooms/{FRONT}"), body).await;
        }
        until(PATIENCE, async || {
            let state = crowd.state.lock();
            let mut members = state.members.values();
            let last = |member: &Member| member.sent.last().map(|sent| &sent.data) == data.last();
            let all = members.all(|member| last(member) || !member.plan.rooms.contains(FRONT));
            all.then_some(()).ok_or("not all have it".to_owned())
        })
        .await;
        assert!(crowd.expect_messages(FRONT, &data, crowd.entered()) > 50);

        node.kill();
        node.start_again().await;
        crowd.wait_exact(PATIENCE).await;
        assert_eq!(crowd.on_node(0) as u64, crowd.truth(SERVICE).connections);
        crowd.expect_no_trouble();
        node.expect_sound();
    }
}
