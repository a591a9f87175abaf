//! Connections: rooms joined and left on an open stream, goodbyes, kicks and renewals; who is
//! connected.

use std::sync::Arc;

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
    history,
    join::{issue, kicked, ticket_too_large},
    peers,
    request::{
        Body, Id, JsonBody, Named, Query, RoomFields, parse, present, rooms_required, whole,
    },
};
use crate::{
    app::App,
    auth::{
        self, Backend,
        ticket::{self, Ticket},
        token::{Claims, Scope},
    },
    cluster::asks::Ask,
    hub::{Change, ConnectionId, ConnectionInfo, RoomId, UserId},
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
    /// True where a node did not answer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
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
    apply(&app, connection, &hand, fields, change).await
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
    apply(&app, connection, &hand, fields, Change::Leave).await
}

async fn apply(
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
    for room in &rooms {
        hand.may(app, change, room)?;
    }
    hand.not_blocked(app)?;
    let ask = Ask::Change {
        connection: connection.to_bits(),
        change: change.into(),
        rooms: rooms.iter().map(ToString::to_string).collect(),
    };
    answer(app, &peers::connection(app, ask).await?)
}

/// The ticket that opens this connection's stream next time.
pub(super) fn next_ticket(app: &App, info: &ConnectionInfo) -> Ticket {
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
    let show = Ask::Show {
        connection: connection.to_bits(),
    };
    let before = peers::connection(&app, show).await?;
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
    let info = ConnectionInfo {
        grants: claims.rooms.clone().map(Arc::new),
        ..before
    };
    if !app.tickets().fits(&next_ticket(&app, &info)) {
        return Err(ticket_too_large());
    }
    let renew = Ask::Renew {
        connection: connection.to_bits(),
        expires_unix: app.ticket_end(Some(claims)),
        grants: patterns(claims),
    };
    answer(&app, &peers::connection(&app, renew).await?)
}

/// The bounds of a token, as another node reads them.
fn patterns(claims: &Claims) -> Option<Vec<String>> {
    claims.rooms.as_ref().map(|rooms| rooms.iter().collect())
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
            peers::goodbye(&app, connection).await;
        }
        Hand::BackEnd(claims) => {
            let kick = Ask::Kick {
                connection: connection.to_bits(),
                block_secs: block(body.block.as_ref())?,
                within: patterns(&claims),
            };
            peers::kick_connection(&app, kick).await?;
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
    let block_secs = block(body.block.as_ref())?;
    // All of them or none: nobody is thrown out before every node said that it may.
    for only_ask in [true, false] {
        let kick = Ask::KickUser {
            user: user.as_str().to_owned(),
            block_secs,
            within: patterns(claims),
            only_ask,
        };
        peers::everywhere(&app, kick).await?;
    }
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
    let show = Ask::Show {
        connection: connection.to_bits(),
    };
    let info = peers::connection(&app, show).await?;
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
    page(&app, &backend, &room, &query).await
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
    page(&app, &backend, &RoomId::personal(&user), &query).await
}

async fn page(
    app: &App,
    backend: &Backend,
    room: &RoomId,
    query: &Query,
) -> Result<Response, ApiError> {
    backend.with(Scope::Read)?;
    let after = query.get("cursor").map(|cursor| {
        ConnectionId::parse(cursor).map_err(|_| {
            ApiError::new(
                Code::InvalidCursor,
                "The cursor must be the next_cursor of the page before.",
            )
        })
    });
    let (infos, more, partial) =
        peers::in_room(app, room, after.transpose()?, query.limit()?).await;
    let page = Page {
        next_cursor: infos
            .last()
            .filter(|_| more)
            .map(|last| last.id.to_string()),
        connections: infos.iter().map(Listed::of).collect(),
        partial,
    };
    Ok((private(), Json(page)).into_response())
}

fn private() -> [(header::HeaderName, &'static str); 1] {
    [(header::CACHE_CONTROL, "private, no-store")]
}

impl Listed {
    fn of(info: &ConnectionInfo) -> Self {
        Self {
            connection: info.id.to_string(),
            user_id: info.identity.user().map(|user| user.as_str().to_owned()),
            viewer: info.identity.chosen().map(|name| name.as_str().to_owned()),
            since: history::moment(info.since_ms),
        }
    }
}

/// How long a kick keeps its viewer out, in seconds.
fn block(value: Option<&serde_json::Value>) -> Result<u64, ApiError> {
    let seconds = match value {
        None => Some(DEFAULT_BLOCK_SECS),
        Some(serde_json::Value::Number(number)) => {
            whole(number).filter(|seconds| *seconds <= MAX_BLOCK_SECS)
        }
        Some(_) => None,
    };
    seconds.ok_or_else(|| {
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
