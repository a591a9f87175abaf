//! Requests, parsed at the door: what a handler is given is well formed.

use std::{str::FromStr, time::Duration};

use axum::{
    RequestExt,
    extract::{FromRequest, FromRequestParts, Path, Request},
    http::{HeaderMap, header, request::Parts},
};
use bytes::Bytes;
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, IgnoredAny},
};
use tokio::sync::Semaphore;

use super::error::{ApiError, Code, sentence};
use crate::{
    app::App,
    auth::Reader,
    hub::{ConnectionId, MAX_WATCHED, Position, Resume, RoomId, UserId, ViewerName},
};

/// Largest body of any request but a message: 64 KiB.
pub const MAX_BODY: usize = 64 << 10;
/// Most bodies being read at a time, on all listeners: hyper takes 18 KB for each.
const BODIES_AT_A_TIME: usize = 4_096;
static BODIES: Semaphore = Semaphore::const_new(BODIES_AT_A_TIME);
/// From the end of the head to the end of the body.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Largest whole number that JSON carries safely (RFC 8259, section 6): 2^53 - 1.
const MAX_WHOLE: u64 = (1 << 53) - 1;

/// A request's body, whatever its media type, of at most `MAX` bytes.
#[derive(Debug)]
pub struct Body<const MAX: usize = MAX_BODY>(pub Bytes);

impl<const MAX: usize> FromRequest<App> for Body<MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &App) -> Result<Self, ApiError> {
        if request.body().is_end_stream() {
            return Ok(Self(Bytes::new()));
        }
        let Ok(_place) = BODIES.try_acquire() else {
            return Err(ApiError::new(
                Code::Overloaded,
                "The node is reading as many bodies as it can.",
            )
            .retry_after(Duration::from_secs(1)));
        };
        let body = Limited::new(request.into_body(), MAX).collect();
        let late = |_| {
            ApiError::new(
                Code::RequestTimeout,
                "The body did not arrive within 10 seconds.",
            )
        };
        match tokio::time::timeout(BODY_TIME, body).await.map_err(late)? {
            Ok(body) => Ok(Self(body.to_bytes())),
            Err(error) if error.is::<LengthLimitError>() => Err(ApiError::new(
                Code::BodyTooLarge,
                format!("The body is larger than {MAX} bytes."),
            )),
            Err(_) => Err(ApiError::new(
                Code::BadRequest,
                "The body ended before it was whole.",
            )),
        }
    }
}

/// A request's JSON body of at most `MAX` bytes, sent as `application/json`.
#[derive(Debug)]
pub struct JsonBody<T, const MAX: usize = MAX_BODY>(pub T);

impl<T: DeserializeOwned, const MAX: usize> FromRequest<App> for JsonBody<T, MAX> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &App) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            return Err(ApiError::new(
                Code::UnsupportedMediaType,
                "The body must be sent as Content-Type: application/json.",
            ));
        }
        let Body::<MAX>(body) = request.extract_with_state(app).await?;
        parse(&body).map(Self)
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE);
    let Some(media_type) = value.and_then(|value| value.to_str().ok()) else {
        return false;
    };
    let essence = media_type.split(';').next().unwrap_or_default().trim();
    essence.eq_ignore_ascii_case("application/json")
}

/// Reads JSON.
///
/// # Errors
///
/// `invalid_json` for what is none, `unknown_field` for a field that nobody reads, `invalid_body`
/// for any other shape.
pub fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    use serde_json::error::Category;
    // A derived reader also takes an array, field by field, which is no way to write a body.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(match serde_json::from_slice::<IgnoredAny>(body) {
            Ok(_) => ApiError::new(Code::InvalidBody, "The body must be a JSON object."),
            Err(error) => ApiError::new(Code::InvalidJson, sentence(&error)),
        });
    }
    serde_json::from_slice(body).map_err(|error| {
        let code = match error.classify() {
            Category::Data if error.to_string().starts_with("unknown field") => Code::UnknownField,
            Category::Data => Code::InvalidBody,
            Category::Syntax | Category::Eof | Category::Io => Code::InvalidJson,
        };
        ApiError::new(code, sentence(&error))
    })
}

/// For an optional field: absent is `None`, and `null` is a value like any other, mostly wrong.
///
/// # Errors
///
/// What the field's own type says.
pub fn present<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    field: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(field).map(Some)
}

/// An id that JSON may carry as a string or as a whole number from 0 to 2^53-1.
#[derive(Debug)]
pub struct Id(pub String);

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(field: D) -> Result<Self, D::Error> {
        use serde::de::{Error, Unexpected};
        let wrong =
            |found| D::Error::invalid_value(found, &"a string or a whole number from 0 to 2^53-1");
        match serde_json::Value::deserialize(field)? {
            serde_json::Value::String(text) => Ok(Self(text)),
            serde_json::Value::Number(number) => whole(&number)
                .map(|number| Self(number.to_string()))
                .ok_or_else(|| wrong(Unexpected::Other("another number"))),
            serde_json::Value::Null
            | serde_json::Value::Bool(_)
            | serde_json::Value::Array(_)
            | serde_json::Value::Object(_) => Err(wrong(Unexpected::Other("another type"))),
        }
    }
}

/// The number where it is whole, `42.0` included, and in range.
pub(super) fn whole(number: &serde_json::Number) -> Option<u64> {
    if let Some(number) = number.as_u64() {
        return (number <= MAX_WHOLE).then_some(number);
    }
    let float = number.as_f64()?;
    let whole = float.fract() == 0.0 && (0.0..9_007_199_254_740_992.0).contains(&float);
    whole.then(|| format!("{float:.0}").parse().ok())?
}

/// Names in the path, each with its own code.
pub trait PathName: Sized {
    /// Reads the decoded path segment.
    ///
    /// # Errors
    ///
    /// When it is no such name.
    fn read(text: &str) -> Result<Self, ApiError>;
}

/// One name from the path.
#[derive(Debug)]
pub struct Named<T>(pub T);

impl<T: PathName> FromRequestParts<App> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, app)
            .await
            .map_err(|_| ApiError::new(Code::BadRequest, "The path is not valid UTF-8."))?;
        T::read(&text).map(Self)
    }
}

/// A blog's room, named by the blog.
#[derive(Debug)]
pub struct BlogRoom(pub RoomId);

impl PathName for BlogRoom {
    fn read(text: &str) -> Result<Self, ApiError> {
        blog_room(text).map(Self)
    }
}

impl PathName for RoomId {
    fn read(text: &str) -> Result<Self, ApiError> {
        room(text)
    }
}

impl PathName for UserId {
    fn read(text: &str) -> Result<Self, ApiError> {
        Self::parse(text).map_err(|error| {
            ApiError::new(Code::InvalidUserId, format!("This is no user id: {error}."))
        })
    }
}

impl PathName for ConnectionId {
    fn read(text: &str) -> Result<Self, ApiError> {
        Self::parse(text).map_err(|_| {
            ApiError::new(
                Code::InvalidConnection,
                "A connection's id has 32 lower-case hexadecimal digits.",
            )
        })
    }
}

/// Reads a room's name.
///
/// # Errors
///
/// `invalid_room`.
pub fn room(text: &str) -> Result<RoomId, ApiError> {
    RoomId::parse(text).map_err(|error| {
        let shown: String = text.chars().take(200).collect();
        let detail = format!("{shown:?} is no room: {error}.");
        ApiError::new(Code::InvalidRoom, detail).about(shown)
    })
}

/// Reads a blog's id.
///
/// # Errors
///
/// `invalid_blog_id`.
pub fn blog_room(text: &str) -> Result<RoomId, ApiError> {
    RoomId::blog(text).map_err(|error| {
        let shown: String = text.chars().take(200).collect();
        ApiError::new(
            Code::InvalidBlogId,
            format!("{shown:?} is no blog id: {error}."),
        )
    })
}

/// Reads the id that a client chose for its viewer.
///
/// # Errors
///
/// `invalid_viewer`.
pub fn viewer(text: &str) -> Result<ViewerName, ApiError> {
    ViewerName::parse(text).map_err(|error| {
        ApiError::new(
            Code::InvalidViewer,
            format!("This is no viewer id: {error}."),
        )
    })
}

/// The parameters of a query, in order, unknown ones included; they are ignored.
#[derive(Debug)]
pub struct Query(Vec<(String, String)>);

impl FromRequestParts<App> for Query {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        let pairs = form_urlencoded::parse(query.as_bytes());
        Ok(Self(pairs.into_owned().collect()))
    }
}

impl Query {
    /// The first value of a parameter, if it is there.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let mut found = self.0.iter().filter(|(key, _)| key == name);
        found.next().map(|(_, value)| value.as_str())
    }

    /// Rooms by `blog_id` and `room`, in the order asked. Frameworks write lists in different
    /// ways: `blog_id=1&blog_id=2`, `blog_id=1,2`, `blog_id[]=1` and `blog_id[0]=1` are one.
    ///
    /// # Errors
    ///
    /// `invalid_blog_id`, `invalid_room`.
    pub fn rooms(&self) -> Result<Vec<RoomId>, ApiError> {
        let mut rooms = Vec::new();
        for (key, value) in &self.0 {
            let read = match list_name(key) {
                "blog_id" => blog_room,
                "room" => room,
                _ => continue,
            };
            for item in value.split(',') {
                rooms.push(read(item)?);
            }
        }
        Ok(rooms)
    }

    /// Page size: `limit`, 1 to 1,000, 100 if not given.
    ///
    /// # Errors
    ///
    /// `invalid_limit`.
    pub fn limit(&self) -> Result<usize, ApiError> {
        let Some(text) = self.get("limit") else {
            return Ok(100);
        };
        let plain = text.bytes().all(|byte| byte.is_ascii_digit());
        let number = plain.then(|| usize::from_str(text).ok()).flatten();
        number
            .filter(|limit| (1..=1_000).contains(limit))
            .ok_or_else(|| {
                ApiError::new(
                    Code::InvalidLimit,
                    "limit must be a whole number from 1 to 1000.",
                )
            })
    }
}

/// `blog_id` of `blog_id`, `blog_id[]` and `blog_id[0]`.
fn list_name(key: &str) -> &str {
    match key.split_once('[') {
        Some((name, rest)) => {
            let index = rest.strip_suffix(']');
            let well_formed =
                index.is_some_and(|index| index.bytes().all(|byte| byte.is_ascii_digit()));
            if well_formed { name } else { key }
        }
        None => key,
    }
}

/// Rooms that somebody asks for; each once, and none both ways.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    /// To be joined.
    pub rooms: Vec<RoomId>,
    /// To be watched.
    pub watching: Vec<RoomId>,
}

impl Asked {
    /// Rooms to join, rooms to watch; what is asked for twice counts once, and a joined room is
    /// watched anyway.
    #[must_use]
    pub fn of(rooms: Vec<RoomId>, watching: Vec<RoomId>) -> Self {
        let mut asked = Self::default();
        for room in rooms {
            if !asked.rooms.contains(&room) {
                asked.rooms.push(room);
            }
        }
        for room in watching {
            if !asked.rooms.contains(&room) && !asked.watching.contains(&room) {
                asked.watching.push(room);
            }
        }
        asked
    }

    /// Lets pass what `reader` may join and watch, within the limits; personal rooms, which are
    /// joined unasked, are left out of the lists then.
    ///
    /// # Errors
    ///
    /// `rooms_required`, `too_many_rooms`, or what [`Reader::may_join`] says of a room.
    pub fn permitted(mut self, reader: &Reader, most_joined: usize) -> Result<Self, ApiError> {
        if self.rooms.is_empty() && self.watching.is_empty() {
            return Err(rooms_required());
        }
        check_number(&self, most_joined)?;
        for room in &self.rooms {
            reader.may_join(room)?;
        }
        for room in &self.watching {
            reader.may_read(room)?;
        }
        self.rooms.retain(|room| !room.is_personal());
        self.watching.retain(|room| !room.is_personal());
        Ok(self)
    }
}

/// The answer to a call that names no room.
#[must_use]
pub fn rooms_required() -> ApiError {
    ApiError::new(Code::RoomsRequired, "Name at least one blog or room.")
}

fn check_number(asked: &Asked, most_joined: usize) -> Result<(), ApiError> {
    let joined = asked.rooms.iter().filter(|room| !room.is_personal());
    if joined.count() > most_joined || asked.watching.len() > MAX_WATCHED {
        return Err(too_many_rooms(most_joined));
    }
    Ok(())
}

/// The answer to a call after which a connection would have too many rooms.
#[must_use]
pub fn too_many_rooms(most_joined: usize) -> ApiError {
    ApiError::new(
        Code::TooManyRooms,
        format!("A connection may join {most_joined} rooms and watch {MAX_WATCHED}."),
    )
}

/// The ways in which a body names rooms; one of them.
#[derive(Debug, Default)]
pub struct RoomFields {
    /// `blog_id`.
    pub blog_id: Option<Id>,
    /// `room`.
    pub room: Option<String>,
    /// `rooms`.
    pub rooms: Option<Vec<String>>,
}

impl RoomFields {
    /// The rooms named; `None` where none of the fields is there.
    ///
    /// # Errors
    ///
    /// `conflicting_rooms` for more than one field, `rooms_required` for an empty list, and what
    /// is wrong with a name.
    pub fn read(self) -> Result<Option<Vec<RoomId>>, ApiError> {
        let given = [
            self.blog_id.is_some(),
            self.room.is_some(),
            self.rooms.is_some(),
        ];
        if given.into_iter().filter(|given| *given).count() > 1 {
            return Err(ApiError::new(
                Code::ConflictingRooms,
                "Give one of blog_id, room and rooms.",
            ));
        }
        if let Some(Id(blog_id)) = self.blog_id {
            return blog_room(&blog_id).map(|room| Some(vec![room]));
        }
        if let Some(name) = self.room {
            return room(&name).map(|room| Some(vec![room]));
        }
        self.rooms.map(names).transpose()
    }
}

/// Reads a list of rooms.
///
/// # Errors
///
/// `rooms_required` where it is empty, `too_many_rooms` past 1,000, `invalid_room`.
pub fn names(list: Vec<String>) -> Result<Vec<RoomId>, ApiError> {
    if list.is_empty() {
        return Err(rooms_required());
    }
    if list.len() > 1_000 {
        return Err(ApiError::new(
            Code::TooManyRooms,
            "At most 1,000 rooms may be named in one list.",
        ));
    }
    list.into_iter().map(|name| room(&name)).collect()
}

/// Where a client left off: the `Last-Event-ID` header, else what query or body say.
#[must_use]
pub fn resume(headers: &HeaderMap, otherwise: Option<&str>) -> Resume {
    let header = headers.get("last-event-id");
    let id = match header {
        Some(value) => value.to_str().unwrap_or("?"),
        None => otherwise.unwrap_or_default(),
    };
    if id.is_empty() {
        return Resume::Fresh;
    }
    Position::parse(id).map_or(Resume::Unknown, Resume::After)
}
