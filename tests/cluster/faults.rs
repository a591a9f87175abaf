//! What no fault may bend: three nodes, three hundred readers, steady churn, and something that
//! breaks. In the end every number on every node is the truth, and on the way there no reader was
//! shown one that is too far from it.
//!
//! Readers who never left their node vouch for what was shown; [`crate::truth`] says what could
//! have been true.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    crowd::{Churn, Crowd, FRONT, LAG, Seen},
    dice::Dice,
    node::{Cluster, names_of},
    pace::{allow, judged},
    proxy::{CLOCK, Weather},
    resp::Reply,
    truth::{Bounds, SERVICE},
    wire::{Client, Numbers, PATIENCE, is_partial, until},
};

const READERS: usize = 300;
/// Joins and leaves a second, together.
const CHURN: u32 = 16;
/// How soon all numbers are right after a fault is over.
const HEALED: Duration = Duration::from_secs(3);
/// How soon a killed node's readers are gone from every number.
const BURIED: Duration = Duration::from_secs(5);
/// How soon nothing says `partial` any more: its end is spread over two seconds.
const WHOLE: Duration = Duration::from_secs(4);
/// What every node needs to be shown the last joins and leaves once nobody comes or goes.
const SETTLE: Duration = Duration::from_millis(1_500);

/// How many of a room may be missed for a moment: whoever closes a tab here and has or opens one on
/// another node, while news of that take longer than a node waits for them.
const MOVED: u64 = 3;

/// Three nodes and their readers, who come and go.
struct Scene {
    cluster: Cluster,
    crowd: Crowd,
    churn: Churn,
    began: Instant,
}

impl Scene {
    async fn begin() -> Self {
        Self::on(Cluster::start(3).await).await
    }

    async fn on(cluster: Cluster) -> Self {
        let crowd = Crowd::of(&cluster, READERS).await;
        let churn = crowd.churn(CHURN);
        let began = Instant::now();
        sleep(LAG).await;
        Self {
            cluster,
            crowd,
            churn,
            began,
        }
    }

    /// Lets readers come and go for most of the time that is left, then checks that everything is
    /// right before so much time since then is over.
    async fn heals(self, since: Instant, bound: Duration) -> Healed {
        let deadline = since + allow(bound);
        sleep_until(deadline - allow(SETTLE)).await;
        self.churn.stop().await;
        let left = deadline.saturating_duration_since(Instant::now());
        let took = self.crowd.wait_exact(left).await;
        println!("right {took:?} after the last reader came or left, of {left:?} allowed");
        self.crowd.wait_whole(allow(WHOLE)).await;
        // Nor does anything come later that makes it wrong again, such as what was held back.
        sleep(SETTLE).await;
        self.crowd.wait_exact(Duration::ZERO).await;
        self.crowd.expect_no_trouble();
        let mut cluster = self.cluster;
        for node in &cluster.nodes {
            assert!(!node.log().contains("panicked"), "{}", node.log());
        }
        cluster.nodes.retain_mut(|node| !node.is_dead());
        cluster.wait_until_met().await;
        Healed {
            cluster,
            crowd: self.crowd,
            during: (self.began, Instant::now()),
        }
    }

    /// Checks that everything is right soon after a fault that is over now, and that no reader
    /// noticed it.
    async fn heals_calmly(self) {
        let healed = self.heals(Instant::now(), HEALED).await;
        healed.expect_seen(HEALED + LAG, calm);
    }
}

/// A scene after its fault.
struct Healed {
    /// The nodes that are left.
    cluster: Cluster,
    crowd: Crowd,
    during: (Instant, Instant),
}

impl Healed {
    /// Checks every number that a reader was shown from the beginning to the end.
    fn expect_seen(&self, window: Duration, allowed: impl Fn(&Seen, &Bounds) -> bool) {
        self.crowd.expect_seen(self.during, allow(window), allowed);
    }
}

/// At least half of what was the least, and not above the most by more than the joins. In a room
/// of a few it may be [`MOVED`] less.
fn calm(seen: &Seen, truth: &Bounds) -> bool {
    let half = |least: u64, _| least.div_ceil(2).min(least.saturating_sub(MOVED));
    truth.least.with(truth.least, half).is_within(seen.numbers) && not_above(seen, truth, 0)
}

/// Not above the most by more than so many others and the joins, which a node may have heard of
/// sooner than of who left meanwhile.
fn not_above(seen: &Seen, truth: &Bounds, others: usize) -> bool {
    let slack = truth.joins + others as u64;
    let most = truth.most.with(truth.most, |most, _| most + slack);
    seen.numbers.is_within(most)
}

/// Not below the least by more than so many.
fn not_below(seen: &Seen, truth: &Bounds, others: usize) -> bool {
    let least = |least: u64, _| least.saturating_sub(others as u64);
    truth.least.with(truth.least, least).is_within(seen.numbers)
}

// ---- nodes ----

#[test]
fn a_killed_nodes_readers_are_gone_within_five_seconds_and_counted_once_elsewhere() {
    judged(async || {
        let mut scene = Scene::begin().await;
        let dead = scene.crowd.on_node(1);
        assert!(dead > READERS / 5, "{dead} readers are on the node");
        scene.crowd.shut(1);
        let killed = Instant::now();
        scene.cluster.nodes[1].kill();
        let healed = scene.heals(killed, BURIED).await;
        let window = BURIED + LAG;
        healed.expect_seen(window, |seen, truth| {
            not_below(seen, truth, 0) && not_above(seen, truth, dead)
        });
    });
}

#[test]
fn a_node_frozen_for_longer_than_its_lease_is_right_soon_after() {
    judged(async || {
        let scene = Scene::begin().await;
        let frozen = scene.crowd.on_node(1);
        scene.crowd.shut(1);
        scene.cluster.nodes[1].freeze();
        let other = scene.cluster.nodes[0].client();
        until(allow(BURIED), async || {
            let stats = other.read("/v1/stats").await;
            let gone = !names_of(&stats).contains(&"node-1");
            gone.then_some(()).ok_or_else(|| stats.to_string())
        })
        .await;
        let buried = Instant::now();
        sleep(LAG).await;
        let low = scene.crowd.truth(FRONT).connections - frozen as u64 / 3;
        let without = scene.crowd.has_seen((buried, Instant::now()), |seen| {
            seen.node != 1 && &*seen.room == FRONT && seen.numbers.connections < low
        });
        assert!(without, "nobody was shown that a node is away");
        scene.cluster.nodes[1].thaw();
        scene.crowd.open(1, scene.cluster.nodes[1].client());
        let healed = scene.heals(Instant::now(), HEALED).await;
        // What the frozen node had in hand when it was stopped is as old as its sleep.
        let window = BURIED + LAG * 2 + HEALED;
        healed.expect_seen(window, |seen, truth| {
            not_below(seen, truth, frozen) && not_above(seen, truth, 0)
        });
    });
}

#[test]
fn a_node_that_restarts_at_once_under_its_name_is_counted_once() {
    judged(async || {
        let mut scene = Scene::begin().await;
        let down = scene.crowd.on_node(2);
        scene.crowd.shut(2);
        scene.cluster.nodes[2].kill();
        scene.cluster.nodes[2].start_again().await;
        scene.crowd.open(2, scene.cluster.nodes[2].client());
        let healed = scene.heals(Instant::now(), BURIED).await;
        healed.expect_seen(BURIED + LAG, |seen, truth| {
            not_below(seen, truth, 0) && not_above(seen, truth, down)
        });
    });
}

#[test]
fn a_rolling_restart_is_off_by_no_more_than_the_node_that_is_down() {
    judged(async || {
        let mut scene = Scene::begin().await;
        let mut down = 0;
        for number in 0..3 {
            down = down.max(scene.crowd.on_node(number));
            scene.crowd.shut(number);
            scene.cluster.nodes[number].stop();
            scene.cluster.nodes[number].ended(PATIENCE).await;
            scene.cluster.nodes[number].start_again().await;
            scene
                .crowd
                .open(number, scene.cluster.nodes[number].client());
            scene.cluster.wait_until_met().await;
        }
        let healed = scene.heals(Instant::now(), HEALED).await;
        healed.expect_seen(HEALED + LAG, |seen, truth| {
            not_below(seen, truth, down) && not_above(seen, truth, down)
        });
    });
}

// ---- Redis ----

#[test]
fn a_redis_that_comes_back_empty_is_filled_and_no_reader_notices() {
    judged(async || {
        let mut scene = Scene::begin().await;
        scene.cluster.redis.kill();
        scene.cluster.redis.start_empty().await;
        scene.heals_calmly().await;
    });
}

#[test]
fn a_redis_restored_from_an_older_snapshot_brings_nobody_back() {
    judged(async || {
        let mut scene = Scene::begin().await;
        let snapshot = scene.cluster.redis.snapshot().await;
        // Long enough for the leases in the snapshot to be over, and for the numbers to be others.
        sleep(Duration::from_secs(4)).await;
        scene.cluster.redis.restore(&snapshot).await;
        scene.heals_calmly().await;
    });
}

#[test]
fn a_redis_restored_at_once_from_a_snapshot_just_taken_brings_nobody_back() {
    judged(async || {
        let mut scene = Scene::begin().await;
        let snapshot = scene.cluster.redis.snapshot().await;
        sleep(Duration::from_millis(700)).await;
        scene.cluster.redis.restore(&snapshot).await;
        scene.heals_calmly().await;
    });
}

#[test]
fn flushing_redis_twice_makes_no_reader_see_a_dip_or_a_double() {
    judged(async || {
        let scene = Scene::begin().await;
        scene.cluster.redis.flush_all().await;
        // In the midst of being filled again.
        sleep(Duration::from_millis(400)).await;
        scene.cluster.redis.flush_all().await;
        scene.heals_calmly().await;
    });
}

#[test]
fn while_redis_is_frozen_each_node_serves_its_own() {
    judged(async || {
        let scene = Scene::begin().await;
        scene.cluster.redis.freeze();
        serve_alone(scene, |cluster| cluster.redis.thaw()).await;
    });
}

#[test]
fn while_the_links_to_redis_are_cut_each_node_serves_its_own() {
    judged(async || {
        let scene = Scene::begin().await;
        for link in &scene.cluster.links {
            link.set(Weather {
                cut: true,
                ..Weather::default()
            });
        }
        serve_alone(scene, |cluster| {
            for link in &cluster.links {
                link.clear();
            }
        })
        .await;
    });
}

#[test]
fn a_redis_that_is_frozen_for_less_than_ten_seconds_is_missed_by_nobody_however_quiet() {
    judged(async || {
        let scene = Scene::begin().await;
        scene.churn.stop().await;
        scene.crowd.wait_exact(PATIENCE).await;
        let lost = Instant::now();
        scene.cluster.redis.freeze();
        sleep(Duration::from_secs(5)).await;
        scene.cluster.redis.thaw();
        let back = Instant::now();
        let took = scene.crowd.wait_exact(allow(HEALED)).await;
        println!("right {took:?} after its return");
        scene.crowd.wait_whole(allow(WHOLE)).await;
        // A lease that lapsed all the same would be taken off the totals by then.
        sleep_until(back + allow(BURIED)).await;
        scene.crowd.wait_exact(Duration::ZERO).await;
        scene.crowd.expect_no_trouble();
        let during = (lost, Instant::now());
        scene.crowd.expect_seen(during, allow(LAG), calm);
    });
}

/// Checks what nodes do for twenty seconds without Redis, and that all is right after `restore`.
async fn serve_alone(scene: Scene, restore: impl FnOnce(&Cluster)) {
    const AWAY: Duration = Duration::from_secs(20);
    let lost = Instant::now();
    let clients: Vec<Client> = scene
        .cluster
        .nodes
        .iter()
        .map(|node| node.client())
        .collect();
    for client in &clients {
        until(allow(Duration::from_secs(4)), async || {
            let count = client.read(&format!("/v1/rooms/{FRONT}")).await;
            is_partial(&count)
                .then_some(())
                .ok_or_else(|| count.to_string())
        })
        .await;
    }
    let (near, far) = (clients[0], clients[1]);
    let mut others = far.join("blog:own").await;
    let joining = Instant::now();
    let mut first = near.join("blog:own").await;
    let count = first.next_named("count").await;
    assert_eq!(Numbers::of(&count.data), Numbers::new(1, 1, 0));
    assert!(is_partial(&count.data), "{count:?}");
    let mut second = near.join("blog:own").await;
    while Numbers::of(&first.next_named("count").await.data) != Numbers::new(2, 2, 0) {}
    let took = joining.elapsed();
    assert!(took < allow(LAG), "two joins took {took:?} without Redis");
    let sent = near.publish("rooms/blog:own", json!({ "data": "a" })).await;
    assert!(is_partial(&sent), "{sent}");
    let keyed = json!({ "data": "b", "idempotency_key": "k" });
    let sent = near.publish("rooms/blog:own", keyed.clone()).await;
    let again = near.publish("rooms/blog:own", keyed).await;
    assert_eq!(
        (&again["id"], &again["duplicate"]),
        (&sent["id"], &json!(true))
    );
    for reader in [&mut first, &mut second] {
        reader.expect_message(&json!("a")).await;
        reader.expect_message(&json!("b")).await;
    }
    while lost.elapsed() < AWAY {
        for client in &clients {
            assert_eq!(client.ask("/readyz").await.0, 200);
            let count = client.read(&format!("/v1/rooms/{FRONT}")).await;
            assert!(is_partial(&count), "{count}");
        }
        sleep(Duration::from_secs(1)).await;
    }
    let told = scene
        .crowd
        .has_seen((lost, Instant::now()), |seen| seen.partial);
    assert!(told, "no reader was shown that numbers are partial");

    for reader in [&first, &second, &others] {
        scene.crowd.count_in(reader, "blog:own");
    }

    restore(&scene.cluster);
    let healed = scene.heals(Instant::now(), HEALED).await;
    healed.expect_seen(AWAY + HEALED + LAG, calm);
    // What was sent meanwhile has reached the other nodes too, and nobody twice.
    others.expect_message(&json!("a")).await;
    others.expect_message(&json!("b")).await;
    let far = healed.cluster.nodes[1].client();
    far.publish("rooms/blog:own", json!({ "data": "c" })).await;
    for reader in [&mut first, &mut second, &mut others] {
        reader.expect_message(&json!("c")).await;
    }
}

#[test]
fn a_clock_of_redis_that_steps_an_hour_back_and_forth_bends_no_number() {
    judged(async || {
        let mut scene = Scene::on(Cluster::faking_clock(3).await).await;
        let hour = Duration::from_secs(3_600).as_millis();
        for step in [format!("{hour}"), format!("-{hour}"), "0".to_owned()] {
            let set = scene.cluster.redis.call(&["SET", CLOCK, &step]).await;
            assert_eq!(set.unwrap().text(), "OK");
            let stepped = Instant::now();
            sleep_until(stepped + allow(BURIED) - allow(SETTLE)).await;
            scene = rest(scene, SETTLE).await;
            // Nobody lost its lease for good, and nobody keeps one that it should not.
            scene.cluster.wait_until_met().await;
            let window = BURIED + LAG;
            scene
                .crowd
                .expect_seen((stepped, Instant::now()), allow(window), calm);
        }
        let dead = scene.crowd.on_node(1);
        scene.crowd.shut(1);
        let killed = Instant::now();
        scene.cluster.nodes[1].kill();
        let healed = scene.heals(killed, BURIED).await;
        healed.expect_seen(BURIED + LAG, |seen, truth| not_above(seen, truth, dead));
    });
}

#[test]
fn what_is_no_value_of_ours_in_redis_is_thrown_away_and_said_in_the_log() {
    judged(async || {
        let scene = Scene::begin().await;
        let redis = &scene.cluster.redis;
        let mut dice = Dice::new(7);
        let junk = |dice: &mut Dice| -> String {
            let letters = (0..dice.roll(40)).map(|_| char::from(dice.roll(95) as u8 + 32));
            letters.collect()
        };
        let ends = Instant::now() + Duration::from_secs(5);
        let mut spoilt = 0;
        while Instant::now() < ends {
            sleep(Duration::from_millis(100)).await;
            let keys = redis.call(&["KEYS", "livecount:*"]).await.unwrap();
            let keys: Vec<String> = keys.items().iter().map(Reply::text).collect();
            if keys.is_empty() {
                continue;
            }
            let key = &keys[dice.roll(keys.len())];
            let known = redis.call(&["HRANDFIELD", key]).await.unwrap();
            let known = Some(known.text()).filter(|_| dice.roll(2) == 0);
            let (field, value) = (known.unwrap_or_else(|| junk(&mut dice)), junk(&mut dice));
            // A key of another type refuses; then it stays as it is.
            match dice.roll(3) {
                0 => redis.call(&["SET", key, &value]).await.unwrap(),
                1 => redis.call(&["HSET", key, &field, &value]).await.unwrap(),
                _ => redis.call(&["SADD", key, &value]).await.unwrap(),
            };
            let channels = redis
                .call(&["PUBSUB", "CHANNELS", "livecount:*"])
                .await
                .unwrap();
            for channel in channels.items() {
                let junk = junk(&mut dice);
                redis
                    .call(&["PUBLISH", &channel.text(), &junk])
                    .await
                    .unwrap();
            }
            spoilt += 1;
        }
        assert!(spoilt > 10, "{spoilt}");
        // What was spoilt and nobody has met yet goes with the rest.
        redis.flush_all().await;
        let healed = scene.heals(Instant::now(), HEALED).await;
        healed.expect_seen(HEALED + LAG, |seen, truth| {
            not_above(seen, truth, READERS / 2)
        });
        for node in &healed.cluster.nodes {
            let log = node.log();
            let said = log
                .lines()
                .any(|line| line.contains("WARN") || line.contains("ERROR"));
            assert!(said, "{} says nothing of it: {log}", node.name());
        }
    });
}

// ---- links ----

/// Sets the weather of all links for so long, under churn.
async fn weather(scene: &Scene, weather: Weather, time: Duration) {
    for link in &scene.cluster.links {
        link.set(weather);
    }
    sleep(time).await;
}

/// Fair weather again.
fn clear(scene: &Scene) {
    for link in &scene.cluster.links {
        link.clear();
    }
}

/// Checks that once nobody comes or goes all numbers come to rest at the truth, in whatever
/// weather.
async fn rest(scene: Scene, within: Duration) -> Scene {
    scene.churn.stop().await;
    scene.crowd.wait_exact(allow(within)).await;
    let churn = scene.crowd.churn(CHURN);
    Scene { churn, ..scene }
}

/// How long links are bad.
const BAD: Duration = Duration::from_secs(12);

#[test]
fn lost_replies_and_announcements_bend_no_number() {
    judged(async || {
        let scene = Scene::begin().await;
        let lossy = Weather {
            lose_one_in: 10,
            ..Weather::default()
        };
        weather(&scene, lossy, BAD).await;
        clear(&scene);
        // A reply that never comes is waited for before anything else is tried.
        let timeout = Duration::from_millis(2_500);
        let healed = scene.heals(Instant::now(), timeout + HEALED).await;
        // A node whose replies are lost may lose its lease, and is then missed; none is ever doubled for
        // longer than two replies that never come, one after the other.
        let window = BURIED + timeout * 2 + LAG;
        healed.expect_seen(window, |seen, truth| {
            // Two of the three at once, at the worst.
            not_below(seen, truth, READERS * 3 / 4) && not_above(seen, truth, 0)
        });
    });
}

#[test]
fn doubled_requests_bend_no_number() {
    judged(async || {
        let scene = Scene::begin().await;
        let doubling = Weather {
            double_one_in: 10,
            ..Weather::default()
        };
        weather(&scene, doubling, BAD).await;
        let scene = rest(scene, PATIENCE).await;
        clear(&scene);
        scene.heals_calmly().await;
    });
}

#[test]
fn replies_that_come_two_seconds_late_bend_no_number() {
    judged(async || {
        let scene = Scene::begin().await;
        let delay = Duration::from_secs(2);
        let late = Weather {
            delay,
            ..Weather::default()
        };
        weather(&scene, late, BAD).await;
        let scene = rest(scene, PATIENCE + delay * 2).await;
        clear(&scene);
        let healed = scene.heals(Instant::now(), delay + HEALED).await;
        // Who has tabs on two nodes may be missed for one while news of the other is late; a node
        // that lost its lease would be missed with a third of all.
        let few = READERS / 20;
        healed.expect_seen(delay * 2 + HEALED + LAG, |seen, truth| {
            not_below(seen, truth, few) && not_above(seen, truth, 0)
        });
    });
}

#[test]
fn replies_and_announcements_that_overtake_each_other_bend_no_number() {
    judged(async || {
        let scene = Scene::begin().await;
        let hold = Duration::from_millis(300);
        let none = Duration::ZERO;
        // Announcements behind replies, replies behind announcements, and either.
        for (hold_replies, hold_pushes) in [(none, hold), (hold, none), (hold, hold)] {
            let shuffling = Weather {
                hold_replies,
                hold_pushes,
                ..Weather::default()
            };
            weather(&scene, shuffling, BAD / 3).await;
        }
        let scene = rest(scene, PATIENCE).await;
        clear(&scene);
        scene.heals_calmly().await;
    });
}

// ---- messages ----

#[test]
fn each_message_comes_once_and_in_one_order_though_a_node_dies_under_its_readers() {
    judged(async || {
        const MESSAGES: usize = 60;
        let mut scene = Scene::begin().await;
        let entered = scene.crowd.entered();
        let reference = scene.cluster.nodes[0].client();
        let mut reference = reference.join(FRONT).await;
        let clients: Vec<Client> = scene
            .cluster
            .nodes
            .iter()
            .map(|node| node.client())
            .collect();
        // Each publisher sends in its own order, and every message a second time by another node, as
        // one does who has seen no answer.
        let publishers: Vec<_> = (0..3)
            .map(|who| {
                let clients = clients.clone();
                tokio::spawn(async move {
                    for number in 0..MESSAGES {
                        let data = json!([who, number]);
                        let key = format!("{who}-{number}");
                        for try_at in [who, who + 1, who + 2] {
                            publish_once(clients[try_at % 3], &data, &key).await;
                        }
                        sleep(Duration::from_millis(50)).await;
                    }
                })
            })
            .collect();
        sleep(Duration::from_secs(1)).await;
        let killed = Instant::now();
        scene.crowd.shut(2);
        scene.cluster.nodes[2].kill();
        for publisher in publishers {
            publisher
                .await
                .expect("every message was taken by some node");
        }
        let mut order: Vec<Value> = Vec::new();
        while order.len() < 3 * MESSAGES {
            order.push(reference.next_named("message").await.data["data"].clone());
        }
        for who in 0..3 {
            let own = order.iter().filter(|data| data[0] == json!(who));
            assert!(
                own.map(|data| data[1].clone())
                    .eq((0..MESSAGES).map(Value::from))
            );
        }
        reference.expect_no("message", LAG).await;
        drop(reference);
        let bound = HEALED.max(BURIED.saturating_sub(killed.elapsed()));
        let healed = scene.heals(Instant::now(), bound).await;
        let checked = healed.crowd.expect_messages(FRONT, &order, entered);
        println!(
            "{checked} readers got all of it, {} are in",
            healed.crowd.truth(SERVICE).connections
        );
        assert!(
            checked > READERS / 5,
            "{checked} readers were there all the time"
        );
    });
}

/// Sends a message to the room of all by this node, if it is there.
async fn publish_once(client: Client, data: &Value, key: &str) {
    let body = json!({ "data": data, "idempotency_key": key });
    let bearer = format!("Bearer {}", crate::wire::token("back-end", "admin"));
    let path = format!("/v1/rooms/{FRONT}/messages");
    if let Ok((status, answer)) = client.try_call("POST", &path, &bearer, &body).await {
        assert_eq!(status, 202, "{answer}");
    }
}
