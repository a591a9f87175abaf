//! Embedded files, served as they are: the widget, the pages and what these load.

use std::{borrow::Cow, sync::Arc};

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
    body: Cow<'static, str>,
    tag: String,
    headers: HeaderMap,
}

impl Asset {
    /// A file of this media type, which browsers ask for again each time unless
    /// [`with`](Self::with) says otherwise.
    #[must_use]
    pub fn new(media_type: &'static str, body: impl Into<Cow<'static, str>>) -> Self {
        let body = body.into();
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

    /// A JavaScript file, as [`slim`] makes it.
    #[must_use]
    pub fn script(source: &str) -> Self {
        Self::new("text/javascript; charset=utf-8", slim(source))
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
    pub(super) fn answer(&self, known: &Known) -> Response {
        let mut response = if known.has(&self.tag) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.body.clone().into_response()
        };
        let headers = response.headers_mut();
        headers.extend(self.headers.clone());
        if let Ok(tag) = HeaderValue::from_str(&self.tag) {
            headers.insert(header::ETAG, tag);
        }
        response
    }
}

/// The script without what only its author reads: lines that are comments, empty lines,
/// indentation. So comments cost a page's readers nothing, and nothing is built. No line of a
/// template literal may begin with `//` or depend on its indentation.
fn slim(source: &str) -> String {
    let lines = source.lines().map(str::trim);
    let told: Vec<&str> = lines
        .filter(|line| !line.is_empty() && !line.starts_with("//"))
        .collect();
    told.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slim_script_has_neither_comments_nor_indentation() {
        let source = "// Why.\n\nif (a) {\n  // Because.\n  b(\"//\"); // stays\n}\n";
        assert_eq!(slim(source), "if (a) {\nb(\"//\"); // stays\n}");
    }
}
