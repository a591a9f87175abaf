//! What the numbers were: of one room or of the whole service, as numbers and as a plot.

use std::time::{Duration, UNIX_EPOCH};

use axum::{
    extract::State,
    http::{HeaderName, header},
    response::Response,
};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    error::{ApiError, Code},
    plot::{self, Plot},
    request::{Named, Query},
    rooms::{Audience, Known, tagged},
};
use crate::{
    app::App,
    auth::{Backend, Reader, token::Scope},
    history::{LONGEST, Past, Range, Span},
    hub::{Occupancy, RoomId},
};

/// Minutes shown unless the caller says how many: the last hour.
const DEFAULT_MINUTES: u32 = 60;

/// What a drawing may load: nothing (W3C Content Security Policy Level 3). It is not a page, but
/// a browser shows it as one to whoever opens its address.
pub(super) const DRAWING: [(HeaderName, &str); 2] = [
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'"),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
];
/// The media type of drawings.
pub(super) const SVG: &str = "image/svg+xml";

#[derive(Debug, Serialize)]
struct Answer<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blog_id: Option<&'a str>,
    from: String,
    to: String,
    now: Now,
    peak: Option<Peak>,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Now {
    viewers: u32,
    connections: u32,
    members: u32,
}

#[derive(Debug, Serialize)]
struct Peak {
    viewers: u32,
    at: String,
}

#[derive(Debug, Serialize)]
struct Step {
    at: String,
    seconds: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    complete: Option<bool>,
    viewers: Numbers,
    connections: Numbers,
}

#[derive(Debug, Serialize)]
struct Numbers {
    min: u32,
    mean: f64,
    max: u32,
}

/// What one call asks for: the past of a room, or of the service.
struct Asked<'a> {
    room: Option<&'a RoomId>,
    past: Past,
    now: Occupancy,
    audience: Audience,
}

/// `GET /v1/rooms/{room}/history`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn of_room(
    State(app): State<App>,
    reader: Reader,
    Named(room): Named<RoomId>,
    query: Query,
    known: Known,
) -> Result<Response, ApiError> {
    of_a_room(&app, &reader, &room, &query)?.numbers(&known)
}

/// `GET /v1/rooms/{room}/history.svg`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn room_plot(
    State(app): State<App>,
    reader: Reader,
    Named(room): Named<RoomId>,
    query: Query,
    known: Known,
) -> Result<Response, ApiError> {
    of_a_room(&app, &reader, &room, &query)?.plot(&known)
}

/// `GET /v1/history`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn of_service(
    State(app): State<App>,
    backend: Backend,
    query: Query,
    known: Known,
) -> Result<Response, ApiError> {
    of_the_service(&app, &backend, &query)?.numbers(&known)
}

/// `GET /v1/history.svg`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn service_plot(
    State(app): State<App>,
    backend: Backend,
    query: Query,
    known: Known,
) -> Result<Response, ApiError> {
    of_the_service(&app, &backend, &query)?.plot(&known)
}

fn of_a_room<'a>(
    app: &App,
    reader: &Reader,
    room: &'a RoomId,
    query: &Query,
) -> Result<Asked<'a>, ApiError> {
    reader.may_read(room)?;
    if room.is_personal() {
        return Err(ApiError::new(
            Code::NoHistory,
            "Personal rooms keep no history; a count says whether the user is here.",
        ));
    }
    let minutes = minutes(query)?;
    let at = Instant::now();
    let now = app.hub().recorded_occupancy(room, at);
    Ok(Asked {
        room: Some(room),
        past: app.history().room(room, minutes, at),
        now,
        audience: Audience::of(reader.anonymous().open(room)),
    })
}

fn of_the_service(app: &App, backend: &Backend, query: &Query) -> Result<Asked<'static>, ApiError> {
    backend.with(Scope::Read)?;
    let minutes = minutes(query)?;
    Ok(Asked {
        room: None,
        past: app.history().node(minutes, Instant::now()),
        now: app.hub().totals().occupancy,
        audience: Audience::Private,
    })
}

/// `minutes` of the query: 1 to 1,440.
fn minutes(query: &Query) -> Result<u32, ApiError> {
    let Some(text) = query.get("minutes") else {
        return Ok(DEFAULT_MINUTES);
    };
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    let number = plain.then(|| text.parse().ok()).flatten();
    number
        .filter(|minutes| (1..=LONGEST).contains(minutes))
        .ok_or_else(|| {
            ApiError::new(
                Code::InvalidMinutes,
                format!("minutes must be a whole number from 1 to {LONGEST}."),
            )
        })
}

impl Asked<'_> {
    fn numbers(self, known: &Known) -> Result<Response, ApiError> {
        let spans = &self.past.spans;
        let end = |span: &Span| span.at + span.minutes;
        let answer = Answer {
            room: self.room.map(RoomId::as_str),
            blog_id: self.room.and_then(RoomId::blog_id),
            from: time(spans.first().map_or(0, |span| span.at)),
            to: time(spans.last().map_or(0, end)),
            now: Now {
                viewers: self.now.viewers,
                connections: self.now.connections,
                members: self.now.members,
            },
            peak: self.past.peak().map(|(viewers, at)| Peak {
                viewers,
                at: time(at),
            }),
            steps: spans.iter().map(Step::of).collect(),
        };
        let body = serde_json::to_vec(&answer).map_err(|error| ApiError::internal(&error))?;
        tagged(body, "application/json", self.audience, known)
    }

    fn plot(self, known: &Known) -> Result<Response, ApiError> {
        let plot = Plot {
            name: self.room.map_or("all rooms", RoomId::as_str),
            past: &self.past,
            now: self.now.viewers,
        };
        let svg = plot::draw(&plot).map_err(|error| ApiError::internal(&error))?;
        let mut response = tagged(svg.into_bytes(), SVG, self.audience, known)?;
        for (name, value) in DRAWING {
            response
                .headers_mut()
                .insert(name, header::HeaderValue::from_static(value));
        }
        Ok(response)
    }
}

impl Step {
    fn of(span: &Span) -> Self {
        Self {
            at: time(span.at),
            seconds: span.minutes * 60,
            complete: (!span.complete).then_some(false),
            viewers: Numbers::of(span.step.viewers),
            connections: Numbers::of(span.step.connections),
        }
    }
}

impl Numbers {
    fn of(range: Range) -> Self {
        Self {
            min: range.min,
            mean: (f64::from(range.mean) * 100.0).round() / 100.0,
            max: range.max,
        }
    }
}

/// Milliseconds of Unix time, as RFC 3339 writes them, which knows no year after 9999: other nodes
/// may say anything.
pub(super) fn moment(unix_ms: u64) -> String {
    const LAST_MS: u64 = 253_402_300_799_999;
    let time = UNIX_EPOCH + Duration::from_millis(unix_ms.min(LAST_MS));
    humantime::format_rfc3339_millis(time).to_string()
}

/// A minute of Unix time, as RFC 3339 writes it.
pub(super) fn time(minute: u32) -> String {
    let time = UNIX_EPOCH + Duration::from_mins(u64::from(minute));
    humantime::format_rfc3339_seconds(time).to_string()
}
