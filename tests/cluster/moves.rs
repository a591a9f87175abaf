//! A connection that its ticket opens on one node after another lives where it was opened last,
//! whatever the nodes could tell each other meanwhile.

use std::time::Duration;

use livecount::hub::ConnectionId;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::{
    missed::{announcements, wait_announced},
    node::Cluster,
    pace::{allow, judged},
    proxy::Weather,
    wire::{Client, Numbers, Reader},
};

const ROOM: &str = "blog:1";
/// Openings further apart than this are told apart by their age, closer ones by the order in which
/// Redis was told of them.
const APART: Duration = Duration::from_millis(1_300);
/// How soon a node finds out by itself that it has missed an announcement.
const FOUND_OUT: Duration = Duration::from_secs(4);

/// A stream opened by its ticket, as an `EventSource` opens it.
async fn by_ticket(client: Client) -> Reader {
    let born = client.join(ROOM).await;
    client.open_ticket(born.ticket()).await
}

/// Opens the stream again over there; answers the older one.
async fn go(stream: &mut Reader, to: Client) -> Reader {
    let newer = to.open_ticket(stream.ticket()).await;
    assert_eq!(newer.connection(), stream.connection());
    std::mem::replace(stream, newer)
}

/// True for a stream that is told this message, false for one that another took the place of.
async fn lives(stream: &mut Reader, message: &Value) -> bool {
    loop {
        let event = stream.next().await;
        match event.name.as_str() {
            "message" if &event.data["data"] == message => return true,
            "closed" => {
                assert_eq!(event.data["reason"], "replaced");
                return false;
            }
            _ => {}
        }
    }
}

/// Moves connections between two nodes that cannot tell each other, until `restore`, which is to
/// bring back the second node, and then the first one.
async fn move_apart(cluster: &mut Cluster, restore: impl AsyncFnOnce(&mut Cluster)) {
    let (a, b) = cluster.pair();
    let mut once = by_ticket(a).await;
    let mut quick = by_ticket(a).await;
    let mut there = by_ticket(a).await;
    let mut back = by_ticket(b).await;
    cluster.expect_count(ROOM, Numbers::new(4, 4, 0)).await;
    sleep(APART).await;
    for link in &cluster.links {
        link.set(Weather {
            cut: true,
            ..Weather::default()
        });
    }
    // Of the first batch that is lost, and later of no other.
    let stays = go(&mut once, b).await;
    let mut older = vec![stays];
    for round in 0..3 {
        sleep(APART).await;
        let (to, from) = if round % 2 == 0 { (b, a) } else { (a, b) };
        older.push(go(&mut there, to).await);
        older.push(go(&mut back, from).await);
    }
    older.push(go(&mut quick, b).await);
    let mut other = go(&mut quick, a).await;
    for node in &cluster.nodes {
        node.expect_partial(true).await;
    }

    restore(cluster).await;
    cluster.expect_count(ROOM, Numbers::new(4, 4, 0)).await;
    let message = json!("who is left?");
    b.publish("rooms/blog:1", json!({ "data": message })).await;
    for (name, stream) in [
        ("once", &mut once),
        ("there", &mut there),
        ("back", &mut back),
    ] {
        assert!(
            lives(stream, &message).await,
            "{name}: the newest was ended"
        );
    }
    // Which of two that were opened at the same time is newer is nobody's to say, but one it is.
    let one = [
        lives(&mut quick, &message).await,
        lives(&mut other, &message).await,
    ];
    assert_ne!(one[0], one[1], "{one:?}");
    for mut stream in older {
        assert_eq!(stream.reason().await, "replaced");
    }

    // And so it goes on.
    for to in [a, b] {
        let mut older = [go(&mut there, to).await, go(&mut back, to).await];
        let mut replaced = [older[0].reason().await, older[1].reason().await];
        replaced.sort_unstable();
        assert_eq!(replaced, ["replaced", "replaced"]);
        cluster.expect_count(ROOM, Numbers::new(4, 4, 0)).await;
    }
    cluster.expect_sound();
}

#[tokio::test]
async fn a_connection_that_moves_while_redis_is_away_lives_where_it_was_opened_last() {
    let mut cluster = Cluster::start(2).await;
    move_apart(&mut cluster, async |cluster| {
        // Whoever is back later is told of later, though its stream may be the older one.
        for number in [1, 0] {
            cluster.links[number].clear();
            cluster.nodes[number].expect_partial(false).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_connection_that_moves_while_redis_is_emptied_lives_where_it_was_opened_last() {
    let mut cluster = Cluster::start(2).await;
    move_apart(&mut cluster, async |cluster| {
        cluster.redis.flush_all().await;
        for number in [1, 0] {
            cluster.links[number].clear();
            cluster.nodes[number].expect_partial(false).await;
        }
    })
    .await;
}

#[tokio::test]
async fn an_opening_that_an_emptied_redis_forgot_is_told_again() {
    let mut cluster = Cluster::start(2).await;
    let (a, b) = cluster.pair();
    let mut heard = announcements(&cluster.redis).await;
    let mut stream = by_ticket(a).await;
    cluster.expect_count(ROOM, Numbers::new(1, 1, 0)).await;
    sleep(APART).await;
    cluster.links[0].set(Weather {
        cut: true,
        ..Weather::default()
    });
    let mut older = go(&mut stream, b).await;
    wait_announced(&mut heard, &claim(&stream)).await;
    cluster.redis.flush_all().await;
    cluster.links[0].clear();
    assert_eq!(older.reason().await, "replaced");
    cluster.expect_count(ROOM, Numbers::new(1, 1, 0)).await;
    let message = json!("still here");
    a.publish("rooms/blog:1", json!({ "data": message })).await;
    assert!(lives(&mut stream, &message).await);
    cluster.expect_sound();
}

/// How an announcement says that this connection was opened.
fn claim(stream: &Reader) -> String {
    let id = ConnectionId::parse(stream.connection()).expect("it is an id");
    format!("{:032x}", id.to_bits())
}

#[test]
fn an_opening_announced_while_a_node_did_not_hear_ends_the_older_stream_there() {
    judged(async || {
        let cluster = Cluster::start(2).await;
        let (a, b) = cluster.pair();
        let mut heard = announcements(&cluster.redis).await;
        let mut streams = [by_ticket(a).await, by_ticket(a).await, by_ticket(a).await];
        wait_announced(&mut heard, &claim(&streams[2])).await;
        cluster.expect_count(ROOM, Numbers::new(3, 3, 0)).await;
        let deaf = Weather {
            lose_pushes: true,
            ..Weather::default()
        };
        let [missed, next, last] = &mut streams;

        // One is missed, and the next one is heard.
        let began = Instant::now();
        cluster.links[0].set(deaf);
        let mut older = vec![go(missed, b).await];
        wait_announced(&mut heard, &claim(missed)).await;
        cluster.links[0].clear();
        older.push(go(next, b).await);
        for stream in &mut older {
            assert_eq!(stream.reason().await, "replaced");
        }
        assert!(began.elapsed() < allow(FOUND_OUT), "{:?}", began.elapsed());

        // Nothing is heard any more.
        let began = Instant::now();
        cluster.links[0].set(deaf);
        let mut older = go(last, b).await;
        assert_eq!(older.reason().await, "replaced");
        assert!(began.elapsed() < allow(FOUND_OUT), "{:?}", began.elapsed());
        cluster.expect_count(ROOM, Numbers::new(3, 3, 0)).await;
        cluster.links[0].clear();

        let message = json!("all three are left");
        b.publish("rooms/blog:1", json!({ "data": message })).await;
        for stream in &mut streams {
            assert!(lives(stream, &message).await);
        }
    });
}
