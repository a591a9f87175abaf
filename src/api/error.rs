//! Errors as the outside sees them: `application/problem+json` (RFC 9457) with a stable `code`.
//!
//! The one place where a failure becomes a response. What caused an internal one is logged here,
//! once, and not sent.

use std::{borrow::Cow, time::Duration};

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;

use crate::{
    auth::{ticket::InvalidTicket, token::InvalidToken},
    hub::RoomId,
    sse,
};

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $status:ident $code:literal,)*) => {
        /// What went wrong, for programs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $variant,)*
        }

        impl Code {
            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The code on the wire.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)*
                }
            }

            /// The status it is answered with.
            #[must_use]
            pub fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)*
                }
            }
        }
    };
}

codes! {
    /// The head or path of the request is malformed.
    BadRequest = BAD_REQUEST "bad_request",
    /// The body is not JSON.
    InvalidJson = BAD_REQUEST "invalid_json",
    /// The body is JSON of another shape.
    InvalidBody = BAD_REQUEST "invalid_body",
    /// The body has a field that nobody reads.
    UnknownField = BAD_REQUEST "unknown_field",
    /// A room's name is malformed.
    InvalidRoom = BAD_REQUEST "invalid_room",
    /// A blog's id is malformed.
    InvalidBlogId = BAD_REQUEST "invalid_blog_id",
    /// A viewer's chosen id is malformed.
    InvalidViewer = BAD_REQUEST "invalid_viewer",
    /// A user's id is malformed.
    InvalidUserId = BAD_REQUEST "invalid_user_id",
    /// A connection's id is malformed.
    InvalidConnection = BAD_REQUEST "invalid_connection",
    /// A last event id is malformed.
    InvalidLastEventId = BAD_REQUEST "invalid_last_event_id",
    /// No room was asked for.
    RoomsRequired = BAD_REQUEST "rooms_required",
    /// Rooms were asked for in more than one way.
    ConflictingRooms = BAD_REQUEST "conflicting_rooms",
    /// More rooms were asked for than allowed.
    TooManyRooms = BAD_REQUEST "too_many_rooms",
    /// Rooms and patterns do not fit a ticket.
    TicketTooLarge = BAD_REQUEST "ticket_too_large",
    /// `limit` is no number from 1 to 1,000.
    InvalidLimit = BAD_REQUEST "invalid_limit",
    /// `sort` is none of the orders.
    InvalidSort = BAD_REQUEST "invalid_sort",
    /// `cursor` was not given out for this list.
    InvalidCursor = BAD_REQUEST "invalid_cursor",
    /// `prefix` cannot begin a room's name.
    InvalidPrefix = BAD_REQUEST "invalid_prefix",
    /// `minutes` is no number from 1 to 1,440.
    InvalidMinutes = BAD_REQUEST "invalid_minutes",
    /// A badge's label cannot be shown.
    InvalidLabel = BAD_REQUEST "invalid_label",
    /// A badge's colour is none.
    InvalidColor = BAD_REQUEST "invalid_color",
    /// A badge's style is none.
    InvalidStyle = BAD_REQUEST "invalid_style",
    /// `block` is no number of seconds from 0 to 86,400.
    InvalidBlock = BAD_REQUEST "invalid_block",
    /// `event` cannot name a message.
    InvalidEvent = BAD_REQUEST "invalid_event",
    /// `idempotency_key` is not 1 to 128 printable ASCII characters.
    InvalidIdempotencyKey = BAD_REQUEST "invalid_idempotency_key",
    /// Nobody may do this without a token.
    TokenRequired = UNAUTHORIZED "token_required",
    /// The token is not valid.
    InvalidToken = UNAUTHORIZED "invalid_token",
    /// The token's time is over.
    TokenExpired = UNAUTHORIZED "token_expired",
    /// This needs the connection's ticket, or a back end's token.
    TicketRequired = UNAUTHORIZED "ticket_required",
    /// The ticket was not issued here.
    InvalidTicket = UNAUTHORIZED "invalid_ticket",
    /// The ticket's time is over.
    TicketExpired = UNAUTHORIZED "ticket_expired",
    /// The token does not cover a room.
    ForbiddenRoom = FORBIDDEN "forbidden_room",
    /// The token lacks a scope.
    InsufficientScope = FORBIDDEN "insufficient_scope",
    /// The cookie came with a page of another origin.
    ForeignOrigin = FORBIDDEN "foreign_origin",
    /// The viewer was thrown out and may not come back yet.
    Kicked = FORBIDDEN "kicked",
    /// The ticket is another connection's.
    WrongConnection = FORBIDDEN "wrong_connection",
    /// The token is another user's than the connection.
    WrongUser = FORBIDDEN "wrong_user",
    /// There is nothing at this path.
    NotFound = NOT_FOUND "not_found",
    /// The room is of a kind whose past is not kept.
    NoHistory = NOT_FOUND "no_history",
    /// No open stream has this connection.
    UnknownConnection = NOT_FOUND "unknown_connection",
    /// The path does not take this method.
    MethodNotAllowed = METHOD_NOT_ALLOWED "method_not_allowed",
    /// The request did not arrive in time.
    RequestTimeout = REQUEST_TIMEOUT "request_timeout",
    /// The idempotency key was used for another message.
    IdempotencyConflict = CONFLICT "idempotency_conflict",
    /// The body is larger than allowed.
    BodyTooLarge = PAYLOAD_TOO_LARGE "body_too_large",
    /// The address of the request is longer than allowed.
    UriTooLong = URI_TOO_LONG "uri_too_long",
    /// The body is of another media type than JSON.
    UnsupportedMediaType = UNSUPPORTED_MEDIA_TYPE "unsupported_media_type",
    /// The address or the member has as many streams as it may.
    TooManyConnections = TOO_MANY_REQUESTS "too_many_connections",
    /// The head of the request is larger than allowed.
    HeadTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE "head_too_large",
    /// The service failed.
    Internal = INTERNAL_SERVER_ERROR "internal",
    /// The node has as many streams as it can.
    Overloaded = SERVICE_UNAVAILABLE "overloaded",
    /// The keys that tokens are verified with could not be fetched yet.
    KeysUnavailable = SERVICE_UNAVAILABLE "keys_unavailable",
    /// A node that may know did not answer.
    NodesUnavailable = SERVICE_UNAVAILABLE "nodes_unavailable",
    /// The node is going down.
    Shutdown = SERVICE_UNAVAILABLE "shutdown",
}

/// A failure on its way out.
#[derive(Debug, Clone)]
pub struct ApiError {
    code: Code,
    detail: Cow<'static, str>,
    room: Option<String>,
    retry_after: Option<Duration>,
}

#[derive(Serialize)]
struct Problem<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    room: Option<&'a str>,
}

impl ApiError {
    /// A failure, with a sentence for people.
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self {
            code,
            detail: detail.into(),
            room: None,
            retry_after: None,
        }
    }

    /// Something failed that no client can mend; the cause goes to the log.
    pub fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = cause, "a request failed");
        Self::new(
            Code::Internal,
            "The service failed; the cause is in its log.",
        )
    }

    /// The bearer may not do this in `room`.
    #[must_use]
    pub fn forbidden_room(room: &RoomId) -> Self {
        Self {
            room: Some(room.to_string()),
            ..Self::new(
                Code::ForbiddenRoom,
                format!("The token does not cover the room {room}."),
            )
        }
    }

    /// Names the room that this is about, as it was given.
    #[must_use]
    pub fn about(mut self, room: String) -> Self {
        self.room = Some(room);
        self
    }

    /// Names the time after which another try may succeed.
    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    fn body(&self) -> Problem<'_> {
        let status = self.code.status();
        Problem {
            r#type: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: &self.detail,
            code: self.code.as_str(),
            room: self.room.as_deref(),
        }
    }

    /// A whole HTTP/1.1 response, for where there is no HTTP library any more.
    #[must_use]
    pub fn raw_response(&self) -> Vec<u8> {
        let status = self.code.status();
        let body = serde_json::to_string(&self.body()).unwrap_or_default();
        format!(
            "HTTP/1.1 {} {}\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            status.as_u16(),
            status.canonical_reason().unwrap_or("Error"),
            body.len(),
        )
        .into_bytes()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let mut response = (status, Json(self.body())).into_response();
        let headers = response.headers_mut();
        let set = |value: &'static str| HeaderValue::from_static(value);
        headers.insert(header::CONTENT_TYPE, set("application/problem+json"));
        headers.insert(header::CACHE_CONTROL, set("no-store"));
        if status == StatusCode::UNAUTHORIZED {
            // RFC 9110, section 11.6.1: a 401 names the scheme.
            headers.insert(header::WWW_AUTHENTICATE, set("Bearer"));
        }
        if matches!(self.code, Code::Overloaded | Code::TooManyConnections) {
            // Kept open, it would hold a descriptor just when there are few.
            headers.insert(header::CONNECTION, set("close"));
        }
        if let Some(wait) = self.retry_after {
            let seconds = sse::whole_seconds(wait);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<InvalidToken> for ApiError {
    fn from(invalid: InvalidToken) -> Self {
        let code = match invalid {
            InvalidToken::Expired => Code::TokenExpired,
            InvalidToken::KeysUnavailable => Code::KeysUnavailable,
            _ => Code::InvalidToken,
        };
        Self::new(code, sentence(&invalid))
    }
}

impl From<InvalidTicket> for ApiError {
    fn from(invalid: InvalidTicket) -> Self {
        let code = match invalid {
            InvalidTicket::Expired => Code::TicketExpired,
            InvalidTicket::Forged => Code::InvalidTicket,
        };
        Self::new(code, sentence(&invalid))
    }
}

/// An error's text as a sentence: first letter large, full stop.
pub(super) fn sentence(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters.next().map_or_else(String::new, |first| {
        format!("{}{}.", first.to_uppercase(), letters.as_str())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique() {
        let mut codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Code::ALL.len());
    }

    #[test]
    fn a_raw_response_states_the_length_of_its_body() {
        let raw = ApiError::new(Code::HeadTooLarge, "Too large.").raw_response();
        let raw = String::from_utf8(raw).unwrap();
        let (head, body) = raw.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 "));
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(body.contains("\"code\":\"head_too_large\""));
    }
}
