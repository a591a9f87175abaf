//! Metrics in the OpenMetrics text format, read off the hub when they are asked for.
//!
//! Nothing is counted twice: what the hub and the doorkeeper count anyway is what is shown, and
//! no label is ever a blog, a user or an address.

use std::fmt;

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
    registry::Registry,
};

use crate::{app::App, hub::Reason};

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
