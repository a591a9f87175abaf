//! Messages: from a back end to everybody in a room, or to all connections of a user.

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::{
    error::{ApiError, Code},
    request::{JsonBody, Named, present},
};
use crate::{
    app::App,
    auth::{Backend, token::Scope},
    cluster::{Said, Unsaid},
    hub::{Idempotency, RoomId, UserId},
    sse,
};

/// Largest `data` of a message, as compact JSON: 64 KiB.
const MAX_DATA: usize = 64 << 10;
/// When to publish again where too much waits.
const TRY_AGAIN: std::time::Duration = std::time::Duration::from_secs(2);
/// What may stand around it in the body.
const ENVELOPE: usize = 1 << 10;
/// Names that the service's own events have, and those that `EventSource` keeps for itself.
const RESERVED: [&str; 10] = [
    "connected",
    "count",
    "joined",
    "left",
    "reset",
    "expiring",
    "ping",
    "closed",
    "error",
    "open",
];

/// The body of a message.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MessageBody {
    data: Box<RawValue>,
    #[serde(default, deserialize_with = "present")]
    event: Option<String>,
    #[serde(default, deserialize_with = "present")]
    idempotency_key: Option<String>,
}

#[derive(Debug, Serialize)]
struct Accepted {
    id: String,
    duplicate: bool,
    /// True where only this node has it so far.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

/// `POST /v1/rooms/{room}/messages`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn to_room(
    app: State<App>,
    backend: Backend,
    Named(room): Named<RoomId>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    send(app, &backend, room, request).await
}

/// `POST /v1/users/{user_id}/messages`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn to_user(
    app: State<App>,
    backend: Backend,
    Named(user): Named<UserId>,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    send(app, &backend, RoomId::personal(&user), request).await
}

/// The body is read only for those who may send.
async fn send(
    State(app): State<App>,
    backend: &Backend,
    room: RoomId,
    request: axum::extract::Request,
) -> Result<Response, ApiError> {
    use axum::extract::FromRequest;
    backend.within(Scope::Publish, &room)?;
    let JsonBody(body): JsonBody<MessageBody, { MAX_DATA + ENVELOPE }> =
        JsonBody::from_request(request, &app).await?;
    let event = body.event.as_deref().unwrap_or("message");
    check_event(event)?;
    let data = compact(body.data.get());
    if data.len() > MAX_DATA {
        return Err(ApiError::new(
            Code::BodyTooLarge,
            format!("data is larger than {MAX_DATA} bytes."),
        ));
    }
    let mark = body
        .idempotency_key
        .map(|key| mark(&key, event, &data))
        .transpose()?;
    let said = match app.cluster() {
        Some(cluster) => cluster.publish(&room, event, &data, mark).await,
        None => {
            let encode = |id| sse::message(event, &room, &data, id);
            let published = app.hub().publish(&room, mark, encode, Instant::now());
            published.map(Said::alone).map_err(Unsaid::from)
        }
    };
    let Said { published, partial } = said.map_err(unsaid)?;
    let accepted = Accepted {
        id: published.position.to_string(),
        duplicate: published.duplicate,
        partial,
    };
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::ACCEPTED, no_store, Json(accepted)).into_response())
}

fn unsaid(unsaid: Unsaid) -> ApiError {
    match unsaid {
        Unsaid::Conflict(_) => ApiError::new(
            Code::IdempotencyConflict,
            "The idempotency key was used for another message within 5 minutes.",
        ),
        Unsaid::Overloaded(_) => ApiError::new(
            Code::Overloaded,
            "Redis is away, and too many messages wait for it already.",
        )
        .retry_after(TRY_AGAIN),
    }
}

/// Lets pass `[A-Za-z][A-Za-z0-9_.-]{0,63}` that means nothing else on a stream.
fn check_event(name: &str) -> Result<(), ApiError> {
    let well_formed = name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if well_formed && !RESERVED.contains(&name) {
        return Ok(());
    }
    Err(ApiError::new(
        Code::InvalidEvent,
        "event must match [A-Za-z][A-Za-z0-9_.-]{0,63} and be none of the service's own names, error or open.",
    ))
}

fn mark(key: &str, event: &str, data: &str) -> Result<Idempotency, ApiError> {
    let printable = key.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    if !printable || !(1..=128).contains(&key.len()) {
        return Err(ApiError::new(
            Code::InvalidIdempotencyKey,
            "idempotency_key must be 1 to 128 printable ASCII characters.",
        ));
    }
    Ok(Idempotency::new(key, event, data))
}

/// JSON without the white space between its tokens: one line, with numbers and the order of
/// fields as the publisher wrote them.
fn compact(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    let (mut in_string, mut escaped) = (false, false);
    for letter in json.chars() {
        let skip = !in_string && matches!(letter, ' ' | '\t' | '\n' | '\r');
        if !skip {
            text.push(letter);
        }
        if escaped {
            escaped = false;
        } else if in_string && letter == '\\' {
            escaped = true;
        } else if letter == '"' {
            in_string = !in_string;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn white_space_goes_and_strings_stay() {
        let json = "{ \"a b\" :\n[ 1e400 , \"x \\\" y\\\\\" , 12345678901234567890 ] }";
        assert_eq!(
            compact(json),
            "{\"a b\":[1e400,\"x \\\" y\\\\\",12345678901234567890]}"
        );
    }

    proptest! {
        #[test]
        fn compact_json_means_the_same_and_has_no_line_break(text in "\\PC{0,40}", number in any::<i64>()) {
            let value = serde_json::json!({"text": text, "list": [number, null, {"a\nb": "\r\n"}]});
            let pretty = serde_json::to_string_pretty(&value).unwrap();
            let compact = compact(&pretty);
            prop_assert!(!compact.contains(['\n', '\r']));
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&compact).unwrap(), value);
        }
    }

    #[test]
    fn the_services_own_names_are_no_events_but_message_is() {
        for name in RESERVED
            .into_iter()
            .chain(["", "1a", "a b", "ä", &"a".repeat(65)])
        {
            assert!(check_event(name).is_err(), "{name}");
        }
        for name in ["message", "goal", "a", "A.b_c-1", &"a".repeat(64)] {
            assert!(check_event(name).is_ok(), "{name}");
        }
    }
}
