//! What a node did not hear, or did not say, reaches the others all the same, though nobody comes
//! or goes any more.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::{
    node::Cluster,
    proxy::Weather,
    redis::Redis,
    resp::Connection,
    wire::{Numbers, PATIENCE, until},
};

/// How long a link that loses announcements may take to lose one that others have heard.
const LOST: Duration = Duration::from_millis(50);

/// What nodes announce from now on.
pub(crate) async fn announcements(redis: &Redis) -> Connection {
    let mut heard = Connection::to(redis.address()).await.unwrap();
    let subscribed = heard.call(&["SUBSCRIBE", "livecount:1:0:announcements"]);
    subscribed.await.expect("Redis is there");
    heard
}

/// Waits until an announcement has this in it, and every link has passed it on or lost it.
pub(crate) async fn wait_announced(heard: &mut Connection, what: &str) {
    let announced = async {
        loop {
            let message = heard.next(PATIENCE).await.expect("Redis is there");
            if message.items()[2].text().contains(what) {
                return;
            }
        }
    };
    let announced = timeout(PATIENCE, announced).await;
    announced.unwrap_or_else(|_| panic!("{what} is not announced"));
    sleep(LOST).await;
}

#[tokio::test]
async fn what_is_announced_while_a_node_reads_what_it_missed_is_not_lost() {
    const ROOMS: usize = 12;
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let fair = Weather::default();
    // Its own batches would say what the announcements hold of it, so it has nothing to say.
    cluster.links[0].set(Weather {
        lose_pushes: true,
        ..fair
    });
    let mut heard = announcements(&cluster.redis).await;
    let mut readers = vec![b.join("blog:missed").await];
    wait_announced(&mut heard, "r blog:missed 1 1 0").await;
    // It hears again, and sees that it missed one; what it reads then is slow to come.
    cluster.links[0].set(Weather {
        hold_replies: Duration::from_millis(1_500),
        ..fair
    });
    for number in 0..ROOMS {
        readers.push(b.join(&format!("blog:{number}")).await);
        wait_announced(&mut heard, &format!("r blog:{number} 1 1 0")).await;
    }
    cluster.links[0].clear();
    let rooms = (0..ROOMS).map(|number| format!("blog:{number}"));
    for room in rooms.chain(["blog:missed".to_owned()]) {
        until(PATIENCE, async || {
            let found = a.count(&room).await;
            let right = found == Numbers::new(1, 1, 0);
            right
                .then_some(())
                .ok_or_else(|| format!("{room} is {found:?}"))
        })
        .await;
    }
    cluster.expect_sound();
}

#[tokio::test]
async fn a_quiet_nodes_readers_are_in_the_numbers_again_after_an_outage() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut near = a.join("blog:1").await;
    let mut far = b.join_as("blog:1", "7").await;
    for reader in [&mut near, &mut far] {
        reader.wait_for("blog:1", Numbers::new(2, 2, 1)).await;
    }
    cluster.links[1].set(Weather {
        cut: true,
        ..Weather::default()
    });
    near.wait_for("blog:1", Numbers::new(1, 1, 0)).await;
    cluster.nodes[1].expect_partial(true).await;
    cluster.links[1].clear();
    near.wait_for("blog:1", Numbers::new(2, 2, 1)).await;

    cluster.redis.freeze();
    for node in &cluster.nodes {
        node.expect_partial(true).await;
    }
    // For longer than leases last.
    sleep(Duration::from_secs(1)).await;
    cluster.redis.thaw();
    cluster.expect_count("blog:1", Numbers::new(2, 2, 1)).await;
    // Lapsed leases would be taken off the totals by now.
    sleep(Duration::from_millis(700)).await;
    cluster.expect_count("blog:1", Numbers::new(2, 2, 1)).await;
    cluster.expect_sound();
}
