//! What `/metrics` says of streams that shards deliver, and that it says all that the README
//! promises.

use serde_json::json;

use crate::helpers::{PATIENCE, Path, Reader, Service, numbers, until};

#[test]
fn what_shards_told_is_in_the_metrics() {
    let service = Service::start(Path::Shard);
    let client = service.client();
    let mut readers: Vec<Reader> = Vec::new();
    for already in 0..3 {
        readers.push(client.join("a"));
        let all = already + 1;
        readers[0].wait_for_count("blog:a", (all, all, 0));
    }
    client.publish("blog:a", &json!("x"));
    for reader in &mut readers {
        assert_eq!(reader.next_named("message").data["data"], json!("x"));
    }
    // The shard notes what it told once it told everybody.
    until(PATIENCE, || {
        let frames = client.metric("livecount_frames_total");
        // The first reader was told of the two others, and all of the message.
        (frames >= 5).then_some(()).ok_or(format!("{frames}"))
    });
    let bytes = client.metric("livecount_frame_bytes_total");
    assert!(bytes > 5 * 40, "{bytes}");
    assert_eq!(client.metric("livecount_opened_total"), 3);
    assert_eq!(client.metric("livecount_join_latency_seconds_count"), 3);
    assert_eq!(client.metric("livecount_behind"), 0);
    assert_eq!(client.metric("livecount_ghosts_total"), 0);
}

#[test]
fn counts_that_nobody_was_told_are_in_the_metrics() {
    let service = Service::with(Path::Shard, &[("push_interval", "2s")]);
    let client = service.client();
    let mut first = client.join("a");
    assert_eq!(numbers(&first.next_named("count").data), (1, 1, 0));
    // The second is told at once, the third and fourth together once two seconds are over.
    let _others: Vec<Reader> = (0..3).map(|_| client.join("a")).collect();
    first.wait_for_count("blog:a", (4, 4, 0));
    let untold = client.metric("livecount_conflated_total");
    assert!((1..=3).contains(&untold), "{untold}");
}

#[test]
fn every_metric_of_the_readme_is_told() {
    let service = Service::start(Path::Shard);
    let head = b"GET /metrics HTTP/1.1\r\nHost: l\r\nConnection: close\r\n\r\n";
    let (status, text) = service.client().ask(head);
    assert_eq!(status, 200);
    let told: Vec<&str> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let readme = include_str!("../../README.md");
    let table = readme
        .lines()
        .filter(|line| line.starts_with("  | `livecount_"));
    let mut promised = 0;
    for line in table {
        // Those of many nodes, from here to the table's end, are told with a Redis alone.
        if line.contains("`livecount_nodes`") {
            break;
        }
        let names = line.split('|').nth(1).expect("a row has cells");
        for name in names.split(',') {
            let name = name.trim().trim_matches('`');
            let name = name.split('{').next().expect("a name");
            let name = name.trim_end_matches("_total");
            assert!(told.contains(&name), "{name} is none of {told:?}");
            promised += 1;
        }
    }
    assert!(promised >= 15, "{promised}");
    assert_eq!(promised, told.len(), "of {told:?}");
}
