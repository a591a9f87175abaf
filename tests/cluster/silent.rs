//! A node that does not answer: what the others say of connections that it may hold.

use serde_json::{Value, json};

use crate::{
    node::Cluster,
    pace::judged,
    wire::{Numbers, PATIENCE, Reader, is_partial, token, until},
};

const ROOM: &str = "blog:1";

/// The connections of a list.
fn listed(list: &Value) -> Vec<&str> {
    let entries = list["connections"].as_array().expect("a list");
    let ids = entries.iter().map(|entry| entry["connection"].as_str());
    ids.map(|id| id.expect("an id")).collect()
}

fn is_unavailable(answer: &(u16, Value)) -> bool {
    answer.0 == 503 && answer.1["code"] == "nodes_unavailable"
}

#[test]
fn what_a_frozen_node_may_hold_is_neither_denied_nor_left_out_in_silence() {
    judged(async || {
        let mut cluster = Cluster::start(3).await;
        let clients = [0, 1, 2].map(|number| cluster.nodes[number].client());
        let [a, b, frozen] = clients;
        let mut tabs = [
            a.join_as(ROOM, "7").await,
            b.join_as(ROOM, "7").await,
            frozen.join_as(ROOM, "7").await,
        ];
        cluster.expect_count(ROOM, Numbers::new(1, 3, 1)).await;
        let path = |reader: &Reader| format!("/v1/connections/{}", reader.connection());
        let [here, there, away] = [path(&tabs[0]), path(&tabs[1]), path(&tabs[2])];
        let nobody = format!("/v1/connections/{}", livecount::hub::ConnectionId::random());
        let room = format!("/v1/rooms/{ROOM}/connections");
        let mut live: Vec<String> = tabs[..2]
            .iter()
            .map(|tab| tab.connection().to_owned())
            .collect();
        live.sort_unstable();

        // For less than its lease lasts: after that it counts as gone, and nobody waits for it.
        cluster.nodes[2].freeze();
        let token = token("back-end", "admin");
        let call = |method, path| {
            let token = &token;
            async move { a.call(method, path, token, Value::Null).await }
        };
        let lists = tokio::join!(
            call("GET", &room),
            call("GET", "/v1/users/7/connections"),
            call("GET", "/v1/rooms/user:7"),
            call("GET", "/v1/rooms?prefix=user:"),
        );
        let singles = tokio::join!(
            call("GET", &here),
            call("GET", &there),
            call("GET", &away),
            call("GET", &nobody),
            call("DELETE", &nobody),
        );
        let kick = call("DELETE", "/v1/users/7/connections").await;
        cluster.nodes[2].thaw();

        let (in_room, of_user, count, people) = lists;
        for (status, list) in [&in_room, &of_user] {
            assert_eq!((*status, is_partial(list)), (200, true), "{list}");
            assert_eq!(listed(list), live);
        }
        assert_eq!((count.0, is_partial(&count.1)), (200, true), "{}", count.1);
        assert_eq!(Numbers::of(&count.1), Numbers::new(1, 2, 1));
        assert!(is_partial(&people.1["rooms"][0]), "{}", people.1);
        let (here_shown, there_shown, unknown, random, kick_one) = singles;
        for (shown, tab) in [(here_shown, &tabs[0]), (there_shown, &tabs[1])] {
            assert_eq!(
                (shown.0, &shown.1["connection"]),
                (200, &json!(tab.connection()))
            );
        }
        for answer in [&unknown, &random, &kick_one, &kick] {
            assert!(is_unavailable(answer), "{answer:?}");
        }
        // All of a user's are thrown out or none: not even those on nodes that did answer.
        assert!(
            kick.1["detail"]
                .as_str()
                .is_some_and(|why| why.contains("nothing was done"))
        );
        b.publish("rooms/blog:1", json!({ "data": "still here" }))
            .await;
        for tab in &mut tabs {
            tab.expect_message(&json!("still here")).await;
        }

        until(PATIENCE, async || {
            let answer = call("DELETE", "/v1/users/7/connections").await;
            (answer.0 == 204).then_some(()).ok_or(answer.1.to_string())
        })
        .await;
        for tab in &mut tabs {
            assert_eq!(tab.reason().await, "kicked");
        }
        cluster.expect_count(ROOM, Numbers::default()).await;
        until(PATIENCE, async || {
            let list = call("GET", &room).await.1;
            (!is_partial(&list)).then_some(()).ok_or(list.to_string())
        })
        .await;
        assert_eq!(call("GET", &nobody).await.0, 404);
        cluster.expect_sound();
    });
}
