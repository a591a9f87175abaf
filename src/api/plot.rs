//! A room's past as a picture: the most and the least viewers as a band, the mean as a line.
//!
//! For mails and admin pages, so it is on white whatever the reader's theme, its axis says that
//! times are UTC, and it says in words what it shows for those who do not see it.

use std::io;

use plotters::{
    prelude::{
        BindKeyPoints, ChartBuilder, Color, DrawingAreaErrorKind, IntoDrawingArea, IntoFont,
        LineSeries, Polygon, RGBColor, SVGBackend, WHITE,
    },
    style::TextStyle,
};

use super::{history::time, svg};
use crate::history::{Past, Span};

/// In pixels.
const SIZE: (u32, u32) = (720, 260);
/// Longest name in the caption, in characters; the whole one is in the description.
const LONGEST_NAME: usize = 28;
/// Lines across, at most.
const LINES: u32 = 5;
/// Moments named below, at most.
const TICKS: u32 = 8;

const INK: RGBColor = RGBColor(0x33, 0x3a, 0x45);
const GRID: RGBColor = RGBColor(0xe3, 0xe6, 0xea);
/// Contrast with white 4.9 to 1.
const LINE: RGBColor = RGBColor(0x1f, 0x6f, 0xc4);

/// What is drawn.
pub(super) struct Plot<'a> {
    pub(super) name: &'a str,
    pub(super) past: &'a Past,
    /// Viewers.
    pub(super) now: u32,
}

/// Draws the viewers of a past.
///
/// # Errors
///
/// What the plotting library says; drawing to memory, it has no cause to.
pub(super) fn draw(plot: &Plot<'_>) -> Result<String, DrawingAreaErrorKind<io::Error>> {
    let spans = &plot.past.spans;
    let begin = spans.first().map_or(0, |span| span.at);
    let end = spans.last().map_or(1, |span| span.at + span.minutes);
    let most = spans.iter().map(|span| span.step.viewers.max).max();
    let most = most.unwrap_or_default();
    let every = nice_lines(most);
    let top = (most / every + 1) * every;

    let mut drawn = String::new();
    {
        let area = SVGBackend::with_string(&mut drawn, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let font = |size: u32| TextStyle::from(("sans-serif", size).into_font()).color(&INK);
        let mut chart = ChartBuilder::on(&area)
            .caption(caption(plot), font(20))
            .margin(12)
            .margin_right(28)
            .x_label_area_size(36)
            .y_label_area_size(52)
            .build_cartesian_2d(
                (begin..end).with_key_points(ticks(begin, end)),
                (0..hundredths(top)).with_key_points(
                    (0..=top / every)
                        .map(|line| hundredths(line * every))
                        .collect(),
                ),
            )?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .bold_line_style(GRID)
            .light_line_style(GRID)
            .axis_style(GRID)
            .label_style(font(14))
            .x_desc("UTC")
            .axis_desc_style(font(13))
            .x_label_formatter(&|minute| clock(*minute))
            .y_label_formatter(&|hundredths| (hundredths / 100).to_string())
            .draw()?;
        let upper = stairs(spans, |span| hundredths(span.step.viewers.max));
        let lower = stairs(spans, |span| hundredths(span.step.viewers.min));
        let band: Vec<(u32, u64)> = upper.into_iter().chain(lower.into_iter().rev()).collect();
        chart.draw_series([Polygon::new(band, LINE.mix(0.22).filled())])?;
        let mean = stairs(spans, |span| {
            (span.step.viewers.mean * 100.0).round() as u64
        });
        chart.draw_series(LineSeries::new(mean, LINE.stroke_width(2)))?;
        area.present()?;
    }
    Ok(described(&drawn, &description(plot, begin, end)))
}

fn caption(plot: &Plot<'_>) -> String {
    let mut name: String = plot.name.chars().take(LONGEST_NAME).collect();
    if name.len() < plot.name.len() {
        name.push('…');
    }
    let now = plot.now;
    match plot.past.peak() {
        Some((most, at)) => format!("{name}: {now} now, peak {most} at {}", clock(at)),
        None => format!("{name}: {now} now"),
    }
}

fn description(plot: &Plot<'_>, begin: u32, end: u32) -> String {
    let (name, now) = (plot.name, plot.now);
    let peak = plot.past.peak().map_or_else(
        || "nobody came".to_owned(),
        |(most, at)| format!("at most {most}, at {}", time(at)),
    );
    let (begin, end) = (time(begin), time(end));
    format!("Viewers of {name} from {begin} to {end}: {now} now, {peak}")
}

/// The drawing with a name for those who do not see it: the library's own root element has none.
fn described(drawn: &str, description: &str) -> String {
    let inner = drawn.split_once(">\n").map_or("", |(_, inner)| inner);
    let (width, height) = SIZE;
    let description = svg::escape(description);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"{description}\">\n\
         <title>{description}</title>\n{inner}"
    )
}

/// A number of viewers on the axis, which is in hundredths: its lines are fixed, and the library
/// writes fixed lines of whole numbers alone.
fn hundredths(viewers: u32) -> u64 {
    u64::from(viewers) * 100
}

/// A number over time, level through each span.
fn stairs(spans: &[Span], number: impl Fn(&Span) -> u64) -> Vec<(u32, u64)> {
    let step = |span: &Span| {
        let number = number(span);
        [(span.at, number), (span.at + span.minutes, number)]
    };
    spans.iter().flat_map(step).collect()
}

/// The distance between the lines of an axis up to `most`: 1, 2 or 5 times a power of ten.
fn nice_lines(most: u32) -> u32 {
    let mut tens = 1_u32;
    loop {
        for step in [1, 2, 5].map(|times| tens.saturating_mul(times)) {
            if most / step < LINES || step == u32::MAX {
                return step;
            }
        }
        tens = tens.saturating_mul(10);
    }
}

/// Round times from `begin` to `end`, in minutes.
fn ticks(begin: u32, end: u32) -> Vec<u32> {
    let steps = [1, 2, 5, 10, 15, 30, 60, 120, 180];
    let fits = |step: &u32| (end - begin) / step <= TICKS;
    let step = steps.into_iter().find(fits).unwrap_or(180);
    let first = begin.next_multiple_of(step);
    let step = usize::try_from(step).unwrap_or(1);
    (first..=end).step_by(step).collect()
}

/// A minute of Unix time as the time of day.
fn clock(minute: u32) -> String {
    let of_day = minute % (24 * 60);
    format!("{:02}:{:02}", of_day / 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{Range, Step};

    /// A minute at midnight.
    const MIDNIGHT: u32 = 1_440 * 20_000;

    fn past(numbers: &[u32]) -> Past {
        let spans = (MIDNIGHT..).zip(numbers);
        let spans = spans.map(|(at, number)| Span {
            at,
            minutes: 1,
            complete: true,
            peak: at,
            step: Step {
                viewers: Range {
                    min: number / 2,
                    mean: *number as f32 * 0.75,
                    max: *number,
                },
                ..Step::default()
            },
        });
        Past {
            spans: spans.collect(),
        }
    }

    fn drawn(name: &str, numbers: &[u32], now: u32) -> String {
        let past = past(numbers);
        let plot = Plot {
            name,
            past: &past,
            now,
        };
        draw(&plot).expect("memory takes it")
    }

    #[test]
    fn a_plot_says_what_it_shows() {
        let svg = drawn("blog:42", &[1, 4, 17, 3], 3);
        let words = "Viewers of blog:42 from 2024-10-04T00:00:00Z to 2024-10-04T00:04:00Z: 3 now, at most 17, at 2024-10-04T00:02:00Z";
        assert!(svg.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\" "));
        assert!(svg.contains(&format!("role=\"img\" aria-label=\"{words}\"")));
        assert!(svg.contains(&format!("<title>{words}</title>")));
        assert!(svg.contains("blog:42: 3 now, peak 17 at 00:02"));
        assert!(svg.trim_end().ends_with("</svg>"));
        assert_eq!(svg.matches("<svg").count(), 1);
    }

    #[test]
    fn a_plot_has_a_band_a_line_and_round_axes() {
        let svg = drawn("blog:42", &[1, 4, 17, 3], 3);
        assert_eq!(svg.matches("<polygon").count(), 1);
        let line = svg
            .lines()
            .find(|line| line.starts_with("<polyline") && line.contains("#1F6FC4"))
            .expect("the mean");
        let points = line.split("points=\"").nth(1).expect("points");
        let points = points.split('"').next().expect("their end");
        assert_eq!(points.split_whitespace().count(), 8, "two a minute");
        for label in ["0", "5", "10", "15", "20", "00:00", "00:02", "00:04", "UTC"] {
            assert!(svg.contains(&format!(">\n{label}\n<")), "{label}: {svg}");
        }
    }

    #[test]
    fn where_nobody_came_the_plot_says_so() {
        let svg = drawn("blog:42", &[0, 0], 0);
        assert!(svg.contains("0 now, nobody came"));
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn a_long_name_is_cut_in_the_caption_alone() {
        let name = format!("blog:{}", "x".repeat(128));
        let svg = drawn(&name, &[1], 1);
        assert!(svg.contains(&format!("Viewers of {name} from")));
        assert!(svg.contains(&format!("{}…", &name[..LONGEST_NAME])));
    }

    #[test]
    fn axes_have_a_handful_of_round_lines() {
        for (most, step) in [
            (0, 1),
            (4, 1),
            (5, 2),
            (17, 5),
            (49, 10),
            (50, 20),
            (1_000, 500),
        ] {
            assert_eq!(nice_lines(most), step, "{most}");
        }
        assert!(nice_lines(u32::MAX) > 0);
        for minutes in [1, 7, 60, 200, 1_440, 1_460] {
            let ticks = ticks(MIDNIGHT + 13, MIDNIGHT + 13 + minutes);
            assert!((1..=10).contains(&ticks.len()), "{minutes}: {ticks:?}");
        }
        assert_eq!(
            ticks(MIDNIGHT + 3, MIDNIGHT + 63)[..2],
            [MIDNIGHT + 10, MIDNIGHT + 20]
        );
    }
}
