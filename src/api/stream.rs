//! Streams: opened by ticket or by query; watching without being counted.

use std::time::Duration;

use axum::{
    body::Body,
    extract::{FromRequest, FromRequestParts, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
};
use tokio::time::Instant;

use super::{
    error::{ApiError, Code},
    join::{issue, kicked, new_ticket},
    request::{self, Asked, Query},
};
use crate::{
    app::{App, Refusal},
    auth::{Reader, ticket::Ticket},
    delivery::{Offer, Subscription, Welcome, body::Feed},
    hub::{Entry, Reason, Resume},
    server::client::Client,
    sse,
};

/// How a stream that meets a limit is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// By an error status.
    Hard,
    /// By 200 and a `closed` event, since an `EventSource` never recovers from another status;
    /// a blocked one by 204, on which it stops.
    Soft,
    /// With the head alone and nobody counted: it was a `HEAD`.
    Head,
}

impl Answer {
    fn to(method: &Method) -> Self {
        if *method == Method::HEAD {
            Self::Head
        } else {
            Self::Soft
        }
    }
}

/// What a stream is opened by.
#[derive(Debug)]
pub(super) struct Permit {
    ticket: Ticket,
    /// The ticket as its holder has it.
    text: String,
    /// True where it was issued by an earlier call, and so may have been used on another node.
    redeemed: bool,
}

impl Permit {
    /// Issues a ticket for the stream that this very call opens.
    fn new(app: &App, ticket: Ticket) -> Result<Self, ApiError> {
        let text = issue(app, &ticket)?;
        Ok(Self::issued(ticket, text))
    }

    /// The same where it is issued already.
    pub(super) fn issued(ticket: Ticket, text: String) -> Self {
        Self {
            ticket,
            text,
            redeemed: false,
        }
    }
}

/// `GET /v1/stream`: by ticket, or by query in one call.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn stream(
    State(app): State<App>,
    client: Client,
    query: Query,
    request: Request,
) -> Result<Response, ApiError> {
    let request = without_body(request, &app).await?;
    let resume = request::resume(request.headers(), query.get("last_event_id"));
    let answer = Answer::to(request.method());
    let rooms = query.rooms()?;
    let permit = if let Some(text) = query.get("ticket") {
        if !rooms.is_empty() {
            return Err(ApiError::new(
                Code::ConflictingRooms,
                "The ticket names the rooms; give either it or rooms.",
            ));
        }
        Permit {
            ticket: app.redeem(text)?,
            text: text.to_owned(),
            redeemed: true,
        }
    } else {
        let reader = reader(request, &app).await?;
        let viewer = query.get("viewer").map(request::viewer).transpose()?;
        let asked = Asked::of(rooms, Vec::new());
        let asked = asked.permitted(&reader, app.config().max_rooms_per_connection)?;
        Permit::new(&app, new_ticket(&app, &reader, viewer, asked))?
    };
    open(&app, client, permit, resume, answer).await
}

/// `GET /v1/watch`: a stream of counts whose reader is not counted.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn watch(
    State(app): State<App>,
    client: Client,
    query: Query,
    reader: Reader,
    request: Request,
) -> Result<Response, ApiError> {
    let request = without_body(request, &app).await?;
    let resume = request::resume(request.headers(), query.get("last_event_id"));
    let answer = Answer::to(request.method());
    let asked = Asked::of(Vec::new(), query.rooms()?);
    let asked = asked.permitted(&reader, app.config().max_rooms_per_connection)?;
    let permit = Permit::new(&app, new_ticket(&app, &reader, None, asked))?;
    open(&app, client, permit, resume, answer).await
}

/// Reads a body, which means nothing in a `GET` (RFC 9110, section 9.3.1), to its end: what is left
/// of it would be taken for what the stream's reader says behind its request.
async fn without_body(request: Request, app: &App) -> Result<Request, ApiError> {
    let (parts, body) = request.into_parts();
    let _: request::Body = request::Body::from_request(Request::new(body), app).await?;
    Ok(Request::from_parts(parts, Body::empty()))
}

/// The reader is looked for only where there is no ticket: what else came with a ticket's
/// request, such as a foreign page's cookie, is nobody's business.
async fn reader(request: Request, app: &App) -> Result<Reader, ApiError> {
    let (mut parts, _) = request.into_parts();
    Reader::from_request_parts(&mut parts, app).await
}

/// Opens the stream of a ticket, or refuses it as `answer` says.
pub(super) async fn open(
    app: &App,
    client: Client,
    permit: Permit,
    resume: Resume,
    answer: Answer,
) -> Result<Response, ApiError> {
    let Permit {
        ticket,
        text,
        redeemed,
    } = permit;
    let admission = match (app.admit(client, &ticket), answer) {
        (Ok(_), Answer::Head) => return Ok(head(Body::empty())),
        (Ok(places), Answer::Hard | Answer::Soft) => places,
        (Err(refusal), Answer::Hard) => return Err(refusal.into()),
        (Err(Refusal::Blocked(_)), Answer::Soft | Answer::Head) => {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        (Err(refusal), Answer::Soft | Answer::Head) => {
            // Kept open, the connection would hold a descriptor just when there are few.
            let mut response = head(Body::from(sse::refusal(refusal.reason())));
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
            return Ok(response);
        }
    };
    if let (Some(cluster), Resume::After(position)) = (app.cluster(), resume) {
        cluster.reach(position).await;
    }
    let left = app.time_left(ticket.expires_unix);
    let expires = Instant::now() + left;
    let registration = app.hub().register(Entry {
        connection: ticket.connection,
        identity: ticket.identity.clone(),
        rooms: ticket.rooms.clone(),
        watching: ticket.watching.clone(),
        grants: ticket.grants,
        expires,
        since_ms: app.unix_ms(),
        resume,
        by_ticket: redeemed,
    });
    let subscription = Subscription {
        registration,
        welcome: Box::new(Welcome {
            connection: ticket.connection,
            user: ticket.identity.user().cloned(),
            rooms: ticket.rooms,
            watching: ticket.watching,
            stream_url: app.stream_url(&text),
            ticket: text,
        }),
        expires,
        heartbeat: app.config().heartbeat,
        admission: Box::new(admission),
    };
    let offer = Offer::new(subscription);
    let mut response = head(Body::new(Feed::new(offer.clone())));
    response.extensions_mut().insert(offer);
    Ok(response)
}

/// The head of every stream, from the contract.
fn head(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
    set(header::CONTENT_TYPE, "text/event-stream");
    set(header::CACHE_CONTROL, "private, no-store, no-transform");
    set(header::REFERRER_POLICY, "no-referrer");
    set(header::HeaderName::from_static("x-accel-buffering"), "no");
    response
}

impl Refusal {
    /// What a soft refusal says.
    fn reason(self) -> Reason {
        match self {
            Self::Blocked(_) => Reason::Kicked,
            Self::Draining => Reason::Shutdown,
            Self::Full(_) => Reason::Overloaded,
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        use crate::server::admission::Full;
        let (code, detail) = match refusal {
            Refusal::Blocked(remaining) => return kicked().retry_after(remaining),
            Refusal::Draining => (Code::Shutdown, "The node is going down; try again."),
            Refusal::Full(Full::Node) => (
                Code::Overloaded,
                "The node has as many streams as it can hold.",
            ),
            Refusal::Full(Full::Address) => (
                Code::TooManyConnections,
                "The address has as many streams as it may hold.",
            ),
            Refusal::Full(Full::Member) => (
                Code::TooManyConnections,
                "The member has as many streams as it may hold.",
            ),
        };
        Self::new(code, detail).retry_after(Duration::from_secs(rand::random_range(5..=30)))
    }
}
