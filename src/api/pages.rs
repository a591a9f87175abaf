//! Pages for people: the demo.

use axum::{
    http::header,
    response::{Html, IntoResponse, Response},
};

/// `GET /`: a blog page with its counter.
pub async fn demo() -> Response {
    let headers = [
        (header::CACHE_CONTROL, "no-cache"),
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; style-src 'sha256-STYLE'; script-src 'sha256-SCRIPT'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ];
    (headers, Html(include_str!("demo.html"))).into_response()
}
