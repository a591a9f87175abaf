//! REST for CMS back ends: the counts of one blog or many, the top rooms, the whole service.

use std::convert::Infallible;

use aws_lc_rs::digest;
use axum::{
    Json,
    extract::{FromRequestParts, State},
    http::{HeaderValue, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{
    error::{ApiError, Code},
    history, peers,
    request::{self, BlogRoom, JsonBody, Named, Query, rooms_required},
};
use crate::{
    app::App,
    auth::{Backend, Reader, token::Scope},
    cluster::store::Card,
    hub::{Occupancy, Patterns, RoomId},
    sse::Count,
};

/// Most rooms in one call for counts.
const MAX_COUNTS: usize = 1_000;

/// The body of a call for many counts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CountsBody {
    rooms: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Counts<'a> {
    counts: Vec<Count<'a>>,
}

#[derive(Debug, Serialize)]
struct RoomsPage<'a> {
    rooms: Vec<Count<'a>>,
    next_cursor: Option<String>,
}

#[derive(Debug, Serialize)]
struct Stats {
    viewers: u32,
    connections: u32,
    members: u32,
    rooms: u32,
    nodes: Vec<Node>,
    /// True while other nodes' numbers are missing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// One running process.
#[derive(Debug, Serialize)]
struct Node {
    name: String,
    connections: u64,
    since: String,
    lag_ms: u64,
}

/// What a caller says that it has: the entity tags of `If-None-Match`. Taken alone, since
/// extracting all headers copies them all.
#[derive(Debug)]
pub struct Known(Vec<HeaderValue>);

impl<S: Sync> FromRequestParts<S> for Known {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let tags = parts.headers.get_all(header::IF_NONE_MATCH);
        Ok(Self(tags.iter().cloned().collect()))
    }
}

impl Known {
    pub(super) fn has(&self, tag: &str) -> bool {
        let texts = self.0.iter().filter_map(|value| value.to_str().ok());
        let tags = texts.flat_map(|text| text.split(','));
        tags.map(|known| known.trim().trim_start_matches("W/"))
            .any(|known| known == tag || known == "*")
    }
}

/// `GET /v1/blogs/{blog_id}/count`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn blog_count(
    State(app): State<App>,
    reader: Reader,
    Named(BlogRoom(room)): Named<BlogRoom>,
    known: Known,
) -> Result<Response, ApiError> {
    one_count(&app, &reader, &room, &known).await
}

/// `GET /v1/rooms/{room}`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn room_count(
    State(app): State<App>,
    reader: Reader,
    Named(room): Named<RoomId>,
    known: Known,
) -> Result<Response, ApiError> {
    one_count(&app, &reader, &room, &known).await
}

async fn one_count(
    app: &App,
    reader: &Reader,
    room: &RoomId,
    known: &Known,
) -> Result<Response, ApiError> {
    reader.may_read(room)?;
    let count = Count::of(room, peers::occupancy(app, room).await);
    let audience = Audience::of(reader.anonymous().open(room));
    cacheable(&count, audience, known)
}

/// `GET /v1/counts`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn counts(
    State(app): State<App>,
    reader: Reader,
    query: Query,
    known: Known,
) -> Result<Response, ApiError> {
    many_counts(&app, &reader, query.rooms()?, Some(&known)).await
}

/// `POST /v1/counts`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn post_counts(
    State(app): State<App>,
    reader: Reader,
    JsonBody(body): JsonBody<CountsBody, { 256 << 10 }>,
) -> Result<Response, ApiError> {
    many_counts(&app, &reader, request::names(body.rooms)?, None).await
}

async fn many_counts(
    app: &App,
    reader: &Reader,
    asked: Vec<RoomId>,
    known: Option<&Known>,
) -> Result<Response, ApiError> {
    let mut seen = std::collections::HashSet::new();
    let rooms: Vec<RoomId> = asked
        .into_iter()
        .filter(|room| seen.insert(room.clone()))
        .collect();
    if rooms.is_empty() {
        return Err(rooms_required());
    }
    if rooms.len() > MAX_COUNTS {
        return Err(ApiError::new(
            Code::TooManyRooms,
            "At most 1,000 counts may be asked for in one call.",
        ));
    }
    for room in &rooms {
        reader.may_read(room)?;
    }
    let numbers = peers::occupancies(app, &rooms).await;
    let counts = rooms.iter().zip(numbers);
    let counts = Counts {
        counts: counts
            .map(|(room, numbers)| Count::of(room, numbers))
            .collect(),
    };
    match known {
        Some(known) => {
            let public = rooms.iter().all(|room| reader.anonymous().open(room));
            cacheable(&counts, Audience::of(public), known)
        }
        None => Ok(([(header::CACHE_CONTROL, "no-store")], Json(counts)).into_response()),
    }
}

/// `GET /v1/rooms`: the occupied rooms that the caller may read, most viewers first or by name.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn list(
    State(app): State<App>,
    reader: Reader,
    query: Query,
) -> Result<Response, ApiError> {
    reader.may_list()?;
    let prefix = prefix(&query)?;
    let order = Order::of(query.get("sort"))?;
    let limit = query.limit()?;
    let after = query
        .get("cursor")
        .map(|cursor| order.read_cursor(cursor))
        .transpose()?;
    let personal = prefix.starts_with("user:");
    let wanted = |room: &RoomId| room.as_str().starts_with(prefix) && reader.can_read(room);
    let mut rooms = if personal {
        peers::personal(&app, prefix).await
    } else {
        // This node knows all rooms by the announcements. A sweep of Redis' totals takes Redis 165 ms
        // for 100,000 rooms (measured with 7.0), and would for every node that is asked.
        app.hub().occupied(false, &wanted)
    };
    rooms.retain(|(room, _)| wanted(room));
    if let Some(after) = &after {
        rooms.retain(|room| order.key(room) > order.key(after));
    }
    let more = rooms.len() > limit;
    if more {
        rooms.select_nth_unstable_by(limit, |a, b| order.key(a).cmp(&order.key(b)));
        rooms.truncate(limit);
    }
    rooms.sort_unstable_by(|a, b| order.key(a).cmp(&order.key(b)));
    let page = RoomsPage {
        next_cursor: rooms.last().filter(|_| more).map(|last| order.cursor(last)),
        rooms: rooms
            .iter()
            .map(|(room, occupancy)| Count::of(room, *occupancy))
            .collect(),
    };
    Ok(([(header::CACHE_CONTROL, "private, no-store")], Json(page)).into_response())
}

/// `GET /v1/stats`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn stats(State(app): State<App>, backend: Backend) -> Result<Response, ApiError> {
    backend.with(Scope::Read)?;
    let totals = app.hub().totals();
    let Occupancy {
        viewers,
        connections,
        members,
        partial,
    } = totals.occupancy;
    let stats = Stats {
        viewers,
        connections,
        members,
        rooms: totals.rooms,
        nodes: nodes(&app, u64::from(totals.own.connections)),
        partial,
    };
    Ok(([(header::CACHE_CONTROL, "private, no-store")], Json(stats)).into_response())
}

/// The nodes that hold a lease, this one as it is now.
fn nodes(app: &App, own: u64) -> Vec<Node> {
    let since_ms = app.since_ms();
    let node = |name: &str, connections, since_ms, lag_ms| Node {
        name: name.to_owned(),
        connections,
        since: history::moment(since_ms),
        lag_ms,
    };
    let here = node(&app.config().node_name, own, since_ms, 0);
    let Some(cluster) = app.cluster() else {
        return vec![here];
    };
    let (leased, age) = cluster.nodes();
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    let is_here = |card: &Card| card.name == here.name && card.since_ms == since_ms;
    let others = leased.iter().filter(|other| !is_here(&other.card));
    let others = others.map(|other| {
        let card = &other.card;
        let lag = other.lag_ms.saturating_add(age);
        node(&card.name, card.connections, card.since_ms, lag)
    });
    let mut all: Vec<Node> = others.collect();
    all.push(here);
    all.sort_by(|a, b| (&a.name, &a.since).cmp(&(&b.name, &b.since)));
    all
}

fn prefix(query: &Query) -> Result<&str, ApiError> {
    let prefix = query.get("prefix").unwrap_or_default();
    let possible = Patterns::parse([format!("{prefix}*").as_str()]).is_ok();
    possible.then_some(prefix).ok_or_else(|| {
        ApiError::new(
            Code::InvalidPrefix,
            "prefix must be the beginning of a room's name.",
        )
    })
}

/// The orders of the list of rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// Most viewers first, then by name.
    Viewers,
    /// By name.
    Room,
}

type Listed = (RoomId, Occupancy);

impl Order {
    fn of(sort: Option<&str>) -> Result<Self, ApiError> {
        match sort {
            None | Some("-viewers") => Ok(Self::Viewers),
            Some("room") => Ok(Self::Room),
            Some(_) => Err(ApiError::new(
                Code::InvalidSort,
                "sort must be -viewers or room.",
            )),
        }
    }

    fn key(self, listed: &Listed) -> (u32, &RoomId) {
        let (room, occupancy) = listed;
        match self {
            Self::Viewers => (u32::MAX - occupancy.viewers, room),
            Self::Room => (0, room),
        }
    }

    /// Where the next page goes on: behind this room with this many viewers. A room whose number
    /// changes between two pages may be on both, or on none.
    fn cursor(self, (room, occupancy): &Listed) -> String {
        let text = match self {
            Self::Viewers => format!("{}|{room}", occupancy.viewers),
            Self::Room => room.to_string(),
        };
        // A name may hold what means something else in a query.
        BASE64_URL_SAFE_NO_PAD.encode(text)
    }

    fn read_cursor(self, cursor: &str) -> Result<Listed, ApiError> {
        let read = || {
            let bytes = BASE64_URL_SAFE_NO_PAD.decode(cursor).ok()?;
            let text = String::from_utf8(bytes).ok()?;
            let (viewers, room) = match self {
                Self::Viewers => text.split_once('|')?,
                Self::Room => ("0", text.as_str()),
            };
            let plain = viewers.bytes().all(|byte| byte.is_ascii_digit());
            let occupancy = Occupancy {
                viewers: plain.then(|| viewers.parse().ok())??,
                ..Occupancy::default()
            };
            Some((RoomId::parse(room).ok()?, occupancy))
        };
        read().ok_or_else(|| {
            ApiError::new(
                Code::InvalidCursor,
                "The cursor must be the next_cursor of the page before, with the same sort.",
            )
        })
    }
}

/// Whose eyes an answer is for, which says what caches may do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Audience {
    /// Anybody's: any cache may keep it for so many seconds.
    Public(u8),
    /// The bearer's.
    Private,
}

impl Audience {
    /// That of numbers which anybody may read or not: what is public, is so for a second.
    pub(super) fn of(public: bool) -> Self {
        if public {
            Self::Public(1)
        } else {
            Self::Private
        }
    }
}

fn cacheable(
    answer: &impl Serialize,
    audience: Audience,
    known: &Known,
) -> Result<Response, ApiError> {
    let body = serde_json::to_vec(answer).map_err(|error| ApiError::internal(&error))?;
    tagged(body, "application/json", audience, known)
}

/// Answers with an entity tag of the body, or 304 where the client has it (RFC 9110, section
/// 13.1.2).
pub(super) fn tagged(
    body: Vec<u8>,
    media_type: &'static str,
    audience: Audience,
    known: &Known,
) -> Result<Response, ApiError> {
    let digest = digest::digest(&digest::SHA256, &body);
    let half = digest.as_ref().first_chunk().copied().unwrap_or_default();
    let tag = format!("\"{:032x}\"", u128::from_be_bytes(half));
    let mut response = if known.has(&tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, media_type)], body).into_response()
    };
    let headers = response.headers_mut();
    let tag = HeaderValue::try_from(tag).map_err(|error| ApiError::internal(&error))?;
    headers.insert(header::ETAG, tag);
    let control = match audience {
        Audience::Public(seconds) => HeaderValue::try_from(format!("public, max-age={seconds}"))
            .map_err(|error| ApiError::internal(&error))?,
        Audience::Private => {
            headers.insert(
                header::VARY,
                HeaderValue::from_static("authorization, cookie"),
            );
            HeaderValue::from_static("private, no-cache")
        }
    };
    headers.insert(header::CACHE_CONTROL, control);
    Ok(response)
}
