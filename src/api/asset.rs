//! Embedded files, served as they are: the widget, the pages and what these load.

use std::sync::Arc;

use aws_lc_rs::digest;
use axum::{
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{MethodRouter, get},
};

use super::rooms::Known;
use crate::app::App;

/// A file within the binary.
#[derive(Debug)]
pub struct Asset {
    body: &'static str,
    tag: String,
    headers: HeaderMap,
}

impl Asset {
    /// A file of this media type, which browsers ask for again each time unless
    /// [`with`](Self::with) says otherwise.
    #[must_use]
    pub fn new(media_type: &'static str, body: &'static str) -> Self {
        let digest = digest::digest(&digest::SHA256, body.as_bytes());
        let half = digest.as_ref().first_chunk().copied().unwrap_or_default();
        let asset = Self {
            body,
            tag: format!("\"{:032x}\"", u128::from_be_bytes(half)),
            headers: HeaderMap::new(),
        };
        asset
            .with(header::CONTENT_TYPE, media_type)
            .with(header::CACHE_CONTROL, "no-cache")
            .with(header::REFERRER_POLICY, "no-referrer")
            .with(header::X_CONTENT_TYPE_OPTIONS, "nosniff")
    }

    /// Answers with this header, in the place of one that has its name.
    #[must_use]
    pub fn with(mut self, name: HeaderName, value: &'static str) -> Self {
        self.headers.insert(name, HeaderValue::from_static(value));
        self
    }

    /// What serves it.
    pub fn route(self) -> MethodRouter<App> {
        let asset = Arc::new(self);
        get(move |known: Known| std::future::ready(asset.answer(&known)))
    }

    /// The file, or 304 where the client has it (RFC 9110, section 13.1.2).
    fn answer(&self, known: &Known) -> Response {
        let mut response = if known.has(&self.tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.body.into_response()
        };
        let headers = response.headers_mut();
        headers.extend(self.headers.clone());
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}
