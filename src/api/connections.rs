//! Connections: rooms joined and left on an open stream, goodbyes, kicks and renewals; who is
//! connected.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::time::Instant;

use super::{
    error::{ApiError, Code},
    join::{issue, kicked, ticket_too_large},
    request::{
        Body, Id, JsonBody, Named, Query, RoomFields, parse, present, rooms_required,
        too_many_rooms, whole,
    },
};
use crate::{
    app::App,
    auth::{
        self, Backend,
        ticket::{self, Ticket},
        token::{Claims, Scope},
    },
    hub::{
        Bounds, Change, ChangeError, ConnectionId, ConnectionInfo, Kick, KickError, RoomId, UserId,
    },
};

/// How long a kick keeps its viewer out unless it says otherwise: a minute.
const DEFAULT_BLOCK_SECS: u64 = 60;
/// The longest that it can say: a day.
const MAX_BLOCK_SECS: u64 = 86_400;

/// The body of a call that changes rooms.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoomsBody {
    #[serde(default, deserialize_with = "present")]
    blog_id: Option<Id>,
    #[serde(default, deserialize_with = "present")]
    room: Option<String>,
    #[serde(default, deserialize_with = "present")]
    rooms: Option<Vec<String>>,
}

/// The same for leaving, which a page does as it goes: the ticket may be in the body.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaveBody {
    #[serde(default, deserialize_with = "present")]
    blog_id: Option<Id>,
    #[serde(default, deserialize_with = "present")]
    room: Option<String>,
    #[serde(default, deserialize_with = "present")]
    rooms: Option<Vec<String>>,
    #[serde(default, deserialize_with = "present")]
    ticket: Option<String>,
}

/// The body of a goodbye or a kick.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseBody {
    #[serde(default, deserialize_with = "present")]
    ticket: Option<String>,
    #[serde(default, deserialize_with = "present")]
    block: Option<serde_json::Value>,
}

/// The body of a kick of a user.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct KickBody {
    #[serde(default, deserialize_with = "present")]
    block: Option<serde_json::Value>,
}

/// The body of a renewal.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RenewBody {
    ticket: String,
}

/// A connection's rooms, and the ticket that names them.
#[derive(Debug, Serialize)]
struct Changed {
    rooms: Vec<String>,
    watching: Vec<String>,
    ticket: String,
    stream_url: String,
    expires_in: u64,
}

/// A connection as lists show it.
#[derive(Debug, Serialize)]
struct Listed {
    connection: String,
    user_id: Option<String>,
    viewer: Option<String>,
    since: String,
}

#[derive(Debug, Serialize)]
struct ListedWithRooms {
    #[serde(flatten)]
    listed: Listed,
    rooms: Vec<String>,
    watching: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Page {
    connections: Vec<Listed>,
    next_cursor: Option<String>,
}

/// Who acts on a connection: whoever holds its ticket, or a back end.
enum Hand {
    Client(Ticket),
    BackEnd(Claims),
}

/// `POST /v1/connections/{connection}/join`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn join(
    app: State<App>,
    connection: Named<ConnectionId>,
    headers: HeaderMap,
    body: JsonBody<RoomsBody>,
) -> Result<Response, ApiError> {
    change(app, connection, headers, body, Change::Join).await
}

/// `POST /v1/connections/{connection}/watch`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn watch(
    app: State<App>,
    connection: Named<ConnectionId>,
    headers: HeaderMap,
    body: JsonBody<RoomsBody>,
) -> Result<Response, ApiError> {
    change(app, connection, headers, body, Change::Watch).await
}

/// `POST /v1/connections/{connection}/unwatch`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn unwatch(
    app: State<App>,
    connection: Named<ConnectionId>,
    headers: HeaderMap,
    body: JsonBody<RoomsBody>,
) -> Result<Response, ApiError> {
    change(app, connection, headers, body, Change::Unwatch).await
}

async fn change(
    State(app): State<App>,
    Named(connection): Named<ConnectionId>,
    headers: HeaderMap,
    JsonBody(body): JsonBody<RoomsBody>,
    change: Change,
) -> Result<Response, ApiError> {
    let hand = hand(&app, &headers, None, connection).await?;
    let fields = RoomFields {
        blog_id: body.blog_id,
        room: body.room,
        rooms: body.rooms,
    };
    apply(&app, connection, &hand, fields, change)
}

/// `POST /v1/connections/{connection}/leave`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn leave(
    State(app): State<App>,
    Named(connection): Named<ConnectionId>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<Response, ApiError> {
    let body: LeaveBody = parse(&body)?;
    let hand = hand(&app, &headers, body.ticket.as_deref(), connection).await?;
    let fields = RoomFields {
        blog_id: body.blog_id,
        room: body.room,
        rooms: body.rooms,
    };
    apply(&app, connection, &hand, fields, Change::Leave)
}

fn apply(
    app: &App,
    connection: ConnectionId,
    hand: &Hand,
    fields: RoomFields,
    change: Change,
) -> Result<Response, ApiError> {
    let mut rooms: Vec<RoomId> = Vec::new();
    for room in fields.read()?.ok_or_else(rooms_required)? {
        if !rooms.contains(&room) {
            rooms.push(room);
        }
    }
    let most_joined = app.config().max_rooms_per_connection;
    for room in &rooms {
        hand.may(app, change, room)?;
    }
    hand.not_blocked(app)?;
    let bounds = Bounds {
        most_joined,
        fits: &|info| app.tickets().fits(&next_ticket(app, info)),
    };
    let changed = app
        .hub()
        .change(connection, change, &rooms, bounds, Instant::now());
    match changed {
        Ok(info) => answer(app, &info),
        Err(ChangeError::Unknown) => Err(unknown_connection()),
        Err(ChangeError::TooManyRooms) => Err(too_many_rooms(most_joined)),
        Err(ChangeError::DoNotFit) => Err(ticket_too_large()),
    }
}

/// The ticket that opens this connection's stream next time.
fn next_ticket(app: &App, info: &ConnectionInfo) -> Ticket {
    let left = info.expires.duration_since(Instant::now());
    Ticket {
        connection: info.id,
        identity: info.identity.clone(),
        rooms: info.rooms.joined.clone(),
        watching: info.rooms.watching.clone(),
        grants: info.grants.clone(),
        expires_unix: app.unix_after(left),
    }
}

fn answer(app: &App, info: &ConnectionInfo) -> Result<Response, ApiError> {
    let ticket = issue(app, &next_ticket(app, info))?;
    let (rooms, watching) = room_names(info);
    let changed = Changed {
        rooms,
        watching,
        stream_url: app.stream_url(&ticket),
        ticket,
        expires_in: crate::sse::whole_seconds(info.expires.duration_since(Instant::now())),
    };
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((no_store, Json(changed)).into_response())
}

/// Joined rooms, the personal one last, and watched ones.
fn room_names(info: &ConnectionInfo) -> (Vec<String>, Vec<String>) {
    let personal = info.identity.user().map(RoomId::personal);
    let joined = info.rooms.joined.iter().chain(&personal);
    (
        joined.map(ToString::to_string).collect(),
        info.rooms
            .watching
            .iter()
            .map(ToString::to_string)
            .collect(),
    )
}

/// `POST /v1/connections/{connection}/renew`: a new token extends the open stream.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn renew(
    State(app): State<App>,
    Named(connection): Named<ConnectionId>,
    backend: Backend,
    JsonBody(body): JsonBody<RenewBody>,
) -> Result<Response, ApiError> {
    let claims = backend.any()?;
    let ticket = ticket_for(&app, &body.ticket, connection)?;
    if ticket.identity.user() != Some(&claims.user) {
        return Err(ApiError::new(
            Code::WrongUser,
            "Only a new token of the connection's own user renews it.",
        ));
    }
    if let Some(remaining) = app.blocked(&ticket) {
        return Err(kicked().retry_after(remaining));
    }
    let before = app
        .hub()
        .connection(connection)
        .ok_or_else(unknown_connection)?;
    let old = Claims {
        rooms: before.grants.as_deref().cloned(),
        ..claims.clone()
    };
    // A room that the old token opened and the new one does not: the permission was taken back.
    // What neither opens was given by a back end and stays.
    let rooms = before.rooms.joined.iter().chain(&before.rooms.watching);
    for room in rooms {
        let lost = old.opens(room) && !claims.opens(room) && !app.anonymous().open(room);
        if lost {
            return Err(ApiError::forbidden_room(room));
        }
    }
    let end = app.time_left(app.ticket_end(Some(claims)));
    let grants = claims.rooms.clone().map(Arc::new);
    let info = ConnectionInfo {
        grants: grants.clone(),
        ..before
    };
    if !app.tickets().fits(&next_ticket(&app, &info)) {
        return Err(ticket_too_large());
    }
    app.hub()
        .renew(connection, Instant::now() + end, grants)
        .ok_or_else(unknown_connection)
        .and_then(|info| answer(&app, &info))
}

/// `DELETE /v1/connections/{connection}` and `POST …/close`: the client's goodbye by its ticket,
/// or a back end's kick.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn close(
    State(app): State<App>,
    Named(connection): Named<ConnectionId>,
    headers: HeaderMap,
    Body(body): Body,
) -> Result<StatusCode, ApiError> {
    let body: CloseBody = optional(&body)?;
    match hand(&app, &headers, body.ticket.as_deref(), connection).await? {
        Hand::Client(_) => {
            app.hub().goodbye(connection, Instant::now());
        }
        Hand::BackEnd(claims) => {
            let kick = Kick {
                block: block(body.block.as_ref())?,
                everywhere: claims.rooms.is_none(),
                permitted: &|room| claims.bounds(room),
            };
            app.hub()
                .kick(connection, kick, Instant::now())
                .map_err(kick_error)?;
        }
    }
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /v1/users/{user_id}/connections`: kicks all of a user's.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn close_user(
    State(app): State<App>,
    backend: Backend,
    Named(user): Named<UserId>,
    Body(body): Body,
) -> Result<StatusCode, ApiError> {
    let claims = backend.within(Scope::Manage, &RoomId::personal(&user))?;
    let body: KickBody = optional(&body)?;
    let kick = Kick {
        block: block(body.block.as_ref())?,
        everywhere: claims.rooms.is_none(),
        permitted: &|room| claims.bounds(room),
    };
    app.hub()
        .kick_user(&user, kick, Instant::now())
        .map_err(kick_error)?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/connections/{connection}`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn show(
    State(app): State<App>,
    backend: Backend,
    Named(connection): Named<ConnectionId>,
) -> Result<Response, ApiError> {
    backend.with(Scope::Read)?;
    let info = app
        .hub()
        .connection(connection)
        .ok_or_else(unknown_connection)?;
    let (rooms, watching) = room_names(&info);
    let shown = ListedWithRooms {
        listed: Listed::of(&info),
        rooms,
        watching,
    };
    Ok((private(), Json(shown)).into_response())
}

/// `GET /v1/rooms/{room}/connections`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn in_room(
    State(app): State<App>,
    backend: Backend,
    Named(room): Named<RoomId>,
    query: Query,
) -> Result<Response, ApiError> {
    page(&app, &backend, &room, &query)
}

/// `GET /v1/users/{user_id}/connections`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn of_user(
    State(app): State<App>,
    backend: Backend,
    Named(user): Named<UserId>,
    query: Query,
) -> Result<Response, ApiError> {
    page(&app, &backend, &RoomId::personal(&user), &query)
}

fn page(app: &App, backend: &Backend, room: &RoomId, query: &Query) -> Result<Response, ApiError> {
    backend.with(Scope::Read)?;
    let after = query.get("cursor").map(|cursor| {
        ConnectionId::parse(cursor).map_err(|_| {
            ApiError::new(
                Code::InvalidCursor,
                "The cursor must be the next_cursor of the page before.",
            )
        })
    });
    let (infos, more) = app
        .hub()
        .connections_in(room, after.transpose()?, query.limit()?);
    let page = Page {
        next_cursor: infos
            .last()
            .filter(|_| more)
            .map(|last| last.id.to_string()),
        connections: infos.iter().map(Listed::of).collect(),
    };
    Ok((private(), Json(page)).into_response())
}

fn private() -> [(header::HeaderName, &'static str); 1] {
    [(header::CACHE_CONTROL, "private, no-store")]
}

impl Listed {
    fn of(info: &ConnectionInfo) -> Self {
        let since = std::time::UNIX_EPOCH + Duration::from_millis(info.since_ms);
        Self {
            connection: info.id.to_string(),
            user_id: info.identity.user().map(|user| user.as_str().to_owned()),
            viewer: info.identity.chosen().map(|name| name.as_str().to_owned()),
            since: humantime::format_rfc3339_millis(since).to_string(),
        }
    }
}

/// How long a kick keeps its viewer out.
fn block(value: Option<&serde_json::Value>) -> Result<Duration, ApiError> {
    let seconds = match value {
        None => Some(DEFAULT_BLOCK_SECS),
        Some(serde_json::Value::Number(number)) => {
            whole(number).filter(|seconds| *seconds <= MAX_BLOCK_SECS)
        }
        Some(_) => None,
    };
    seconds.map(Duration::from_secs).ok_or_else(|| {
        ApiError::new(
            Code::InvalidBlock,
            "block must be a whole number of seconds from 0 to 86400.",
        )
    })
}

/// A goodbye or a kick may come without any body.
fn optional<T: DeserializeOwned + Default>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii().is_empty() {
        return Ok(T::default());
    }
    parse(body)
}

/// Finds out who acts: by the header, else by the ticket in the body.
async fn hand(
    app: &App,
    headers: &HeaderMap,
    in_body: Option<&str>,
    connection: ConnectionId,
) -> Result<Hand, ApiError> {
    let credential = match (auth::bearer(headers)?, in_body) {
        (Some(header), _) => header,
        (None, Some(ticket)) => {
            return ticket_for(app, ticket, connection).map(Hand::Client);
        }
        (None, None) => {
            return Err(ApiError::new(
                Code::TicketRequired,
                "This needs the connection's ticket, or a token with the scope manage.",
            ));
        }
    };
    if credential.starts_with(ticket::PREFIX) {
        return ticket_for(app, credential, connection).map(Hand::Client);
    }
    let claims = auth::verify(app, credential).await?;
    if claims.has(Scope::Manage) {
        Ok(Hand::BackEnd(claims))
    } else {
        Err(ApiError::new(
            Code::InsufficientScope,
            "The token lacks the scope manage.",
        ))
    }
}

fn ticket_for(app: &App, text: &str, connection: ConnectionId) -> Result<Ticket, ApiError> {
    let ticket = app.redeem(text)?;
    if ticket.connection == connection {
        Ok(ticket)
    } else {
        Err(ApiError::new(
            Code::WrongConnection,
            "The ticket is another connection's.",
        ))
    }
}

impl Hand {
    /// Lets pass a change of this room: by what the ticket grants, or within the token's bounds.
    fn may(&self, app: &App, change: Change, room: &RoomId) -> Result<(), ApiError> {
        let may = match (self, change) {
            (Self::BackEnd(claims), _) => claims.bounds(room),
            // Nobody needs a permission to go.
            (Self::Client(_), Change::Leave | Change::Unwatch) => true,
            (Self::Client(ticket), Change::Join | Change::Watch) => {
                app.anonymous().open(room) || ticket.opens(room)
            }
        };
        if may {
            Ok(())
        } else {
            Err(ApiError::forbidden_room(room))
        }
    }

    fn not_blocked(&self, app: &App) -> Result<(), ApiError> {
        match self {
            Self::Client(ticket) => match app.blocked(ticket) {
                Some(remaining) => Err(kicked().retry_after(remaining)),
                None => Ok(()),
            },
            Self::BackEnd(_) => Ok(()),
        }
    }
}

fn kick_error(error: KickError) -> ApiError {
    match error {
        KickError::Unknown => unknown_connection(),
        KickError::Forbidden(room) => ApiError::forbidden_room(&room),
    }
}

fn unknown_connection() -> ApiError {
    ApiError::new(
        Code::UnknownConnection,
        "No open stream has this connection.",
    )
}
