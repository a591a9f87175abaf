//! Join: a viewer asks for rooms and is let in, at once with a stream or later with a ticket.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};

use super::{
    error::{ApiError, Code},
    request::{self, Asked, Id, JsonBody, RoomFields, present},
    stream::{self, Answer},
};
use crate::{
    app::App,
    auth::{Reader, ticket::Ticket, token::InvalidToken},
    hub::{ConnectionId, Identity, ViewerName},
    server::client::Client,
    sse::Count,
};

/// The body of a join.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoinBody {
    #[serde(default, deserialize_with = "present")]
    blog_id: Option<Id>,
    #[serde(default, deserialize_with = "present")]
    room: Option<String>,
    #[serde(default, deserialize_with = "present")]
    rooms: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    watch: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    viewer: Option<String>,
    #[serde(default, deserialize_with = "present")]
    last_event_id: Option<String>,
}

/// The answer to a join without a stream.
#[derive(Debug, Serialize)]
struct Joined<'a> {
    connection: String,
    ticket: &'a str,
    stream_url: String,
    expires_in: u64,
    counts: Vec<Count<'a>>,
}

/// `POST /v1/join`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn join(
    State(app): State<App>,
    client: Client,
    reader: Reader,
    headers: HeaderMap,
    JsonBody(body): JsonBody<JoinBody>,
) -> Result<Response, ApiError> {
    let rooms = RoomFields {
        blog_id: body.blog_id,
        room: body.room,
        rooms: body.rooms,
    };
    let rooms = rooms.read()?.unwrap_or_default();
    let watching = body.watch.map(request::names).transpose()?;
    let asked = Asked::of(rooms, watching.unwrap_or_default());
    let viewer = body.viewer.as_deref().map(request::viewer).transpose()?;
    if let Some(id) = &body.last_event_id {
        check_last_event_id(id)?;
    }
    let asked = asked.permitted(&reader, app.config().max_rooms_per_connection)?;
    let ticket = new_ticket(&app, &reader, viewer, asked);
    let text = issue(&app, &ticket)?;
    if wants_stream(&headers) {
        let resume = request::resume(&headers, body.last_event_id.as_deref());
        let permit = stream::Permit::issued(ticket, text);
        return stream::open(&app, client, permit, resume, Answer::Hard).await;
    }
    app.admit(client, &ticket).map_err(ApiError::from)?;
    let asked = ticket.rooms.iter().chain(&ticket.watching);
    let joined = Joined {
        connection: ticket.connection.to_string(),
        stream_url: match &body.last_event_id {
            // Its characters stand for themselves in a query.
            Some(id) => format!("{}&last_event_id={id}", app.stream_url(&text)),
            None => app.stream_url(&text),
        },
        ticket: &text,
        expires_in: app.seconds_left(ticket.expires_unix),
        counts: asked
            .map(|room| Count::of(room, app.hub().occupancy(room)))
            .collect(),
    };
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, no_store, Json(joined)).into_response())
}

/// A ticket for a connection that is new.
pub(super) fn new_ticket(
    app: &App,
    reader: &Reader,
    viewer: Option<ViewerName>,
    asked: Asked,
) -> Ticket {
    let claims = reader.claims();
    let identity = match (claims, viewer) {
        (Some(claims), _) => Identity::Member(claims.user.clone()),
        (None, Some(viewer)) => Identity::Chosen(viewer),
        (None, None) => Identity::Connection,
    };
    Ticket {
        connection: ConnectionId::random(),
        identity,
        rooms: asked.rooms,
        watching: asked.watching,
        grants: claims.and_then(|claims| claims.rooms.clone().map(Arc::new)),
        expires_unix: app.ticket_end(claims),
    }
}

/// Writes a ticket.
pub(super) fn issue(app: &App, ticket: &Ticket) -> Result<String, ApiError> {
    if app.time_left(ticket.expires_unix).is_zero() {
        // Within the leeway a token still counts, but nothing can be opened that lasts no time.
        return Err(InvalidToken::Expired.into());
    }
    app.tickets().issue(ticket).map_err(|_| ticket_too_large())
}

pub(super) fn ticket_too_large() -> ApiError {
    ApiError::new(
        Code::TicketTooLarge,
        "Rooms and patterns together do not fit a ticket of 4,000 characters.",
    )
}

/// The answer to whoever was thrown out and may not come back yet.
pub(super) fn kicked() -> ApiError {
    ApiError::new(
        Code::Kicked,
        "This viewer was thrown out and may not come back yet.",
    )
}

fn check_last_event_id(id: &str) -> Result<(), ApiError> {
    let well_formed = (1..=64).contains(&id.len())
        && id
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    well_formed.then_some(()).ok_or_else(|| {
        ApiError::new(
            Code::InvalidLastEventId,
            "last_event_id has 1 to 64 of A-Z a-z 0-9 . _ -",
        )
    })
}

/// True where the client names `text/event-stream` and does not rank it at 0 (RFC 9110, section
/// 12.5.1); a wildcard is no wish for a stream.
fn wants_stream(headers: &HeaderMap) -> bool {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|range| {
            let mut parts = range.split(';').map(str::trim);
            let named = parts
                .next()
                .is_some_and(|name| name.eq_ignore_ascii_case("text/event-stream"));
            let refused = parts.any(|part| {
                part.split_once('=').is_some_and(|(name, value)| {
                    name.eq_ignore_ascii_case("q") && value.parse() == Ok(0.0_f32)
                })
            });
            named && !refused
        })
}
