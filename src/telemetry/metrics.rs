//! Metrics in the `OpenMetrics` text format, read off the hub when they are asked for.
//!
//! Nothing is counted twice: what the hub and the doorkeeper count anyway is what is shown, and
//! no label is ever a blog, a user or an address.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{
    app::App,
    cluster::Doings,
    delivery::shards::{LATENCY_MS, Tally},
    hub::Reason,
    server::accept_errors,
};

/// The media type of [`text`].
pub const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Writes all metrics.
///
/// # Errors
///
/// When the text cannot be formatted.
pub fn text(app: &App) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("livecount");
    registry.register_collector(Box::new(Reading(app.clone())));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Reading(App);

impl Collector for Reading {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let totals = self.0.hub().totals();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        let occupancy = totals.occupancy;
        gauge(
            "viewers",
            "Distinct viewers over all rooms",
            occupancy.viewers.into(),
        )?;
        gauge(
            "connections",
            "Open streams, watching ones too",
            occupancy.connections.into(),
        )?;
        gauge(
            "members",
            "Distinct viewers known by a token",
            occupancy.members.into(),
        )?;
        gauge(
            "rooms",
            "Rooms with at least one viewer",
            totals.rooms.into(),
        )?;
        let kept = i64::try_from(totals.kept_rooms).unwrap_or(i64::MAX);
        gauge(
            "kept_rooms",
            "Rooms in memory: occupied, watched or with messages",
            kept,
        )?;

        let opened = ConstCounter::new(totals.turnover.opened);
        let metric =
            encoder.encode_descriptor("opened", "Streams opened", None, opened.metric_type())?;
        opened.encode(metric)?;

        let ended = Reason::ALL
            .map(Reason::as_str)
            .into_iter()
            .zip(totals.turnover.ended);
        let ended = ended.chain([("broken", totals.turnover.broken)]);
        family(
            &mut encoder,
            "closed",
            "Streams ended, by reason",
            "reason",
            ended,
        )?;
        let tally = self.0.tally();
        let mut counter = |name: &str, help: &str, value: u64| {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)
        };
        counter(
            "frames",
            "Counts and messages told by shards to streams that keep up",
            tally.frames,
        )?;
        counter(
            "frame_bytes",
            "Bytes of these counts and messages, as HTTP/1.1 frames them",
            tally.bytes,
        )?;
        counter(
            "conflated",
            "Counts that a newer one replaced untold: of a room before its pulse, or of a slow stream of a shard",
            totals.turnover.conflated + tally.conflated,
        )?;
        counter(
            "ghosts",
            "Streams of shards ended since the reader had vanished",
            tally.ghosts,
        )?;
        counter(
            "unwatched",
            "Streams refused since the kernel would not watch their sockets",
            tally.unwatched,
        )?;
        counter(
            "accept_errors",
            "Connections that could not be accepted",
            accept_errors(),
        )?;
        let behind = i64::try_from(tally.behind).unwrap_or(i64::MAX);
        let behind = ConstGauge::new(behind);
        let help = "Streams of shards whose reader does not keep up right now";
        let metric = encoder.encode_descriptor("behind", help, None, behind.metric_type())?;
        behind.encode(metric)?;
        latency(&mut encoder, &tally)?;
        if let Some(cluster) = self.0.cluster() {
            nodes(&mut encoder, cluster.doings())?;
        }
        let refused = ["node", "address", "member"]
            .into_iter()
            .zip(self.0.refused());
        family(
            &mut encoder,
            "refused",
            "Streams refused, by the limit met",
            "limit",
            refused,
        )
    }
}

/// What nodes share, where there are several.
fn nodes(encoder: &mut DescriptorEncoder<'_>, doings: Doings) -> fmt::Result {
    let counters = [
        (
            "redis_calls",
            "Calls to Redis that were answered",
            doings.calls,
        ),
        (
            "redis_failures",
            "Calls to Redis that were not answered, or with an error",
            doings.failures,
        ),
        (
            "resyncs",
            "Times that this node told all of its numbers anew",
            doings.resyncs,
        ),
    ];
    for (name, help, value) in counters {
        let counter = ConstCounter::new(value);
        let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
        counter.encode(metric)?;
    }
    let gauges = [
        (
            "nodes",
            "Nodes that hold a lease, this one too, as last known",
            i64::try_from(doings.nodes).unwrap_or(i64::MAX),
        ),
        (
            "partial",
            "1 while other nodes' numbers are missing or may be old, else 0",
            i64::from(doings.partial),
        ),
    ];
    for (name, help, value) in gauges {
        let gauge = ConstGauge::new(value);
        let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
        gauge.encode(metric)?;
    }
    Ok(())
}

/// Seconds from the first byte of a stream's request to its first count.
fn latency(encoder: &mut DescriptorEncoder<'_>, tally: &Tally) -> fmt::Result {
    let bounds = LATENCY_MS.iter().map(|ms| *ms as f64 / 1_000.0);
    let buckets: Vec<(f64, u64)> = bounds
        .chain([f64::MAX])
        .zip(tally.latency.iter().copied())
        .collect();
    let joins = tally.latency.iter().sum();
    let mut metric = encoder.encode_descriptor(
        "join_latency",
        "Of streams of shards: from the first byte of the request to the first count",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    let seconds = tally.latency_us as f64 / 1_000_000.0;
    metric.encode_histogram::<NoLabelSet>(seconds, joins, &buckets, None)
}

fn family(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl Iterator<Item = (&'static str, u64)>,
) -> fmt::Result {
    let kind = ConstCounter::new(0_u64).metric_type();
    let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
    for (value, count) in values {
        let labels = [(label, value)];
        ConstCounter::new(count).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}
