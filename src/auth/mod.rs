//! Who may do what.
//!
//! Handlers ask for one of the extractors here; having one is the proof that what came with the
//! request was valid. A credential that is there and not valid is an error, never nobody.

mod jwks;
pub mod keys;
pub mod ticket;
pub mod token;

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, Method, header, request::Parts},
};

use self::token::{Claims, Scope};
use crate::{
    api::error::{ApiError, Code},
    app::App,
    config::Origins,
    hub::{Patterns, RoomId},
};

/// The cookie that serves what an `EventSource` cannot send a header for.
pub const COOKIE: &str = "livecount_token";

/// Whoever asks to join, to watch or to read counts: by header, by cookie, or nobody.
#[derive(Debug, Clone)]
pub struct Reader {
    claims: Option<Claims>,
    app: App,
}

/// Whoever asks for something that only a header's token permits.
#[derive(Debug, Clone)]
pub struct Backend {
    claims: Option<Claims>,
}

impl Reader {
    /// The token's claims, if there is one.
    #[must_use]
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// Lets pass whoever may join `room`.
    ///
    /// # Errors
    ///
    /// 401 `token_required` without a token, 403 `forbidden_room` with one that does not suffice.
    pub fn may_join(&self, room: &RoomId) -> Result<(), ApiError> {
        let open = self.app.anonymous().open(room);
        match &self.claims {
            Some(claims) if open || claims.opens(room) => Ok(()),
            Some(_) => Err(ApiError::forbidden_room(room)),
            None if open => Ok(()),
            None => Err(
                token_required(format!("Without a token nobody is let into {room}."))
                    .about(room.to_string()),
            ),
        }
    }

    /// Lets pass whoever may read the counts of `room`.
    ///
    /// # Errors
    ///
    /// As [`Reader::may_join`].
    pub fn may_read(&self, room: &RoomId) -> Result<(), ApiError> {
        if self.reads_all() {
            return Ok(());
        }
        self.may_join(room)
    }

    /// True where the caller may read the counts of `room`.
    #[must_use]
    pub fn can_read(&self, room: &RoomId) -> bool {
        let opened = |claims: &Claims| claims.opens(room);
        self.reads_all()
            || self.app.anonymous().open(room)
            || self.claims.as_ref().is_some_and(opened)
    }

    /// Lets pass whoever may read the counts of any room at all.
    ///
    /// # Errors
    ///
    /// 401 `token_required` without a token, where anybody may read none.
    pub fn may_list(&self) -> Result<(), ApiError> {
        if self.claims.is_none() && self.app.anonymous().is_empty() {
            return Err(token_required(
                "Without a token no room may be read.".to_owned(),
            ));
        }
        Ok(())
    }

    /// True with scope `read`.
    #[must_use]
    pub fn reads_all(&self) -> bool {
        let claims = self.claims.as_ref();
        claims.is_some_and(|claims| claims.has(Scope::Read))
    }

    /// What anybody may read.
    #[must_use]
    pub fn anonymous(&self) -> &Patterns {
        self.app.anonymous()
    }
}

impl Backend {
    /// Lets pass any token.
    ///
    /// # Errors
    ///
    /// 401 `token_required` without one.
    pub fn any(&self) -> Result<&Claims, ApiError> {
        let claims = self.claims.as_ref();
        claims.ok_or_else(|| token_required("This needs a token.".to_owned()))
    }

    /// Lets pass a token with `scope`.
    ///
    /// # Errors
    ///
    /// 401 `token_required` without a token, 403 `insufficient_scope` with another.
    pub fn with(&self, scope: Scope) -> Result<&Claims, ApiError> {
        match &self.claims {
            None => Err(token_required(format!(
                "This needs a token with the scope {}.",
                scope.as_str()
            ))),
            Some(claims) if claims.has(scope) => Ok(claims),
            Some(_) => Err(ApiError::new(
                Code::InsufficientScope,
                format!("The token lacks the scope {}.", scope.as_str()),
            )),
        }
    }

    /// Lets pass a token with `scope` whose `rooms` cover `room`.
    ///
    /// # Errors
    ///
    /// As [`Backend::with`], and 403 `forbidden_room`.
    pub fn within(&self, scope: Scope, room: &RoomId) -> Result<&Claims, ApiError> {
        let claims = self.with(scope)?;
        if claims.bounds(room) {
            Ok(claims)
        } else {
            Err(ApiError::forbidden_room(room))
        }
    }
}

fn token_required(detail: String) -> ApiError {
    ApiError::new(Code::TokenRequired, detail)
}

/// The credential of an `Authorization` header, if there is one.
///
/// # Errors
///
/// 401 `invalid_token` for anything but one `Bearer` credential (RFC 6750, section 2.1).
pub fn bearer(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let invalid = || {
        ApiError::new(
            Code::InvalidToken,
            "The Authorization header must be one: Bearer, a space, and the token.",
        )
    };
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let value = value.to_str().map_err(|_| invalid())?;
    let (scheme, credential) = value.split_once(' ').ok_or_else(invalid)?;
    let credential = credential.trim();
    let well_formed =
        scheme.eq_ignore_ascii_case("bearer") && !credential.is_empty() && values.next().is_none();
    well_formed.then_some(Some(credential)).ok_or_else(invalid)
}

/// Verifies a token from a header.
///
/// # Errors
///
/// 401, or 503 where keys have never been fetched.
pub async fn verify(app: &App, token: &str) -> Result<Claims, ApiError> {
    Ok(app.verifier().verify(token).await?)
}

impl FromRequestParts<App> for Backend {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let claims = match bearer(&parts.headers)? {
            Some(token) => Some(verify(app, token).await?),
            None => None,
        };
        Ok(Self { claims })
    }
}

impl FromRequestParts<App> for Reader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, ApiError> {
        let claims = match (bearer(&parts.headers)?, cookie(&parts.headers)) {
            (Some(token), _) => Some(verify(app, token).await?),
            (None, Some(token)) => {
                check_origin(app, parts)?;
                let mut claims = verify(app, token).await?;
                // A page's own script can be made to send it, so it is good for reading only.
                claims.scopes = token::Scopes::default();
                Some(claims)
            }
            (None, None) => None,
        };
        Ok(Self {
            claims,
            app: app.clone(),
        })
    }
}

/// The token in the cookie, if there is one (RFC 6265, section 4.2.1).
fn cookie(headers: &HeaderMap) -> Option<&str> {
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find_map(|(name, value)| (name == COOKIE).then(|| value.trim_matches('"')))
}

/// Lets a cookie pass that a page of this service's or a listed origin sent.
///
/// A browser always sends `Origin` with a cross-origin script's request, so a `GET` without it is
/// the page's own or a navigation; `Sec-Fetch-Site` (W3C Fetch Metadata) tells these apart.
fn check_origin(app: &App, parts: &Parts) -> Result<(), ApiError> {
    let text = |name: header::HeaderName| parts.headers.get(name).and_then(|v| v.to_str().ok());
    let good = match parts.headers.get(header::ORIGIN) {
        Some(origin) => origin
            .to_str()
            .is_ok_and(|origin| is_listed(app, origin) || is_own(app, parts, origin)),
        None => {
            parts.method == Method::GET
                && text(header::HeaderName::from_static("sec-fetch-site")) == Some("same-origin")
        }
    };
    good.then_some(()).ok_or_else(|| {
        ApiError::new(
            Code::ForeignOrigin,
            "The cookie livecount_token counts only from a page of this service's origin or of one in LIVECOUNT_CORS_ORIGINS.",
        )
    })
}

fn is_listed(app: &App, origin: &str) -> bool {
    match app.origins() {
        Origins::Any => false,
        Origins::Listed(origins) => origins.iter().any(|listed| listed == origin),
    }
}

/// The service's own origin is that of its public address, where configured, else of whatever
/// host the request was for.
fn is_own(app: &App, parts: &Parts, origin: &str) -> bool {
    if let Some(own) = app.public_origin() {
        return own == origin;
    }
    let host = parts
        .headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok())
        .or_else(|| parts.uri.authority().map(|authority| authority.as_str()));
    let of_origin = origin
        .strip_prefix("http://")
        .or_else(|| origin.strip_prefix("https://"));
    host.is_some() && host == of_origin
}
