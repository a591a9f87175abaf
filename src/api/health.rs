//! For those who run it: alive, ready, metrics, and the contract itself.

use axum::{
    Json,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use serde::Serialize;

use super::error::{ApiError, Code};
use crate::{
    app::App,
    auth::{Backend, token::Scope},
    cluster::Cluster,
    server::client::Client,
    telemetry::metrics,
};

#[derive(Debug, Serialize)]
struct Status {
    status: &'static str,
    /// True while other nodes' numbers are missing, which makes no node unready.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    partial: bool,
}

fn ok(partial: bool) -> Response {
    let no_store = [(header::CACHE_CONTROL, "no-store")];
    let status = "ok";
    (no_store, Json(Status { status, partial })).into_response()
}

/// `GET /livez`: the process answers.
pub async fn live() -> Response {
    ok(false)
}

/// `GET /readyz`: it takes new streams. With Redis away it does, and says that numbers are
/// partial.
///
/// # Errors
///
/// 503 `shutdown` from the stop signal on.
pub async fn ready(State(app): State<App>) -> Result<Response, ApiError> {
    if app.hub().is_draining() {
        return Err(ApiError::new(Code::Shutdown, "The node is going down."));
    }
    Ok(ok(app.cluster().is_some_and(Cluster::is_partial)))
}

/// `GET /metrics` beside everybody's API: for this machine, or with scope `read`.
///
/// # Errors
///
/// As `openapi.yaml` lists them.
pub async fn guarded_metrics(
    app: State<App>,
    client: Client,
    backend: Backend,
) -> Result<Response, ApiError> {
    if !client.is_loopback() {
        backend.with(Scope::Read)?;
    }
    metrics(app).await
}

/// `GET /metrics` on the operators' own listener.
///
/// # Errors
///
/// 500 `internal` where the text cannot be written.
pub async fn metrics(State(app): State<App>) -> Result<Response, ApiError> {
    let text = metrics::text(&app).map_err(|error| ApiError::internal(&error))?;
    let headers = [
        (header::CONTENT_TYPE, metrics::MEDIA_TYPE),
        (header::CACHE_CONTROL, "no-store"),
    ];
    Ok((headers, text).into_response())
}

/// `GET /openapi.yaml`.
pub async fn openapi() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/yaml"),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    (headers, include_str!("../../openapi.yaml")).into_response()
}
