//! The service in one handle, and every route on one screen.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    http::{HeaderName, Method, Uri, header},
    response::IntoResponse,
    routing::{MethodRouter, delete, get, post},
};
use tokio::time::Instant;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer},
};

use crate::{
    api::{
        badge, connections, dashboard,
        error::{ApiError, Code},
        health, history, join, messages, pages, peers, rooms, stream,
    },
    auth::{
        ticket::{InvalidTicket, Ticket, TicketKeys},
        token::{Claims, Verifier},
    },
    cluster::{Cluster, Membership, Tasks, store::InvalidUrl},
    config::{Config, Origins},
    delivery::shards::{Shards, Tally},
    history::History,
    hub::{Hub, Patterns, Tempo},
    server::{
        admission::{Admission, Full, Limits, Places},
        client::Client,
    },
    sse::Encoder,
};

/// The shared handle that every handler is given. Cheap to clone.
#[derive(Debug, Clone)]
pub struct App(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    config: Config,
    hub: Hub,
    history: History,
    verifier: Verifier,
    tickets: TicketKeys,
    admission: Admission,
    shards: OnceLock<Shards>,
    cluster: OnceLock<Cluster>,
    since: SystemTime,
}

/// Which of the two listeners a router is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Face {
    /// Everybody's.
    Public,
    /// The operators' own, where there is one.
    Operators,
}

/// Why no stream is opened right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The connection or its viewer was thrown out, and may come back after this.
    Blocked(Duration),
    /// The node is going down.
    Draining,
    /// A limit is met.
    Full(Full),
}

/// Every route. Contract and router are held against each other by `tests/api/openapi.rs`.
#[must_use]
pub fn routes(config: &Config, face: Face) -> Vec<(&'static str, MethodRouter<App>)> {
    let mut routes = vec![
        ("/v1/join", post(join::join)),
        ("/v1/stream", get(stream::stream)),
        ("/v1/watch", get(stream::watch)),
        (
            "/v1/connections/{connection}",
            get(connections::show).delete(connections::close),
        ),
        ("/v1/connections/{connection}/join", post(connections::join)),
        (
            "/v1/connections/{connection}/leave",
            post(connections::leave),
        ),
        (
            "/v1/connections/{connection}/watch",
            post(connections::watch),
        ),
        (
            "/v1/connections/{connection}/unwatch",
            post(connections::unwatch),
        ),
        (
            "/v1/connections/{connection}/renew",
            post(connections::renew),
        ),
        (
            "/v1/connections/{connection}/close",
            post(connections::close),
        ),
        (
            "/v1/users/{user_id}/connections",
            get(connections::of_user).merge(delete(connections::close_user)),
        ),
        ("/v1/users/{user_id}/messages", post(messages::to_user)),
        ("/v1/blogs/{blog_id}/count", get(rooms::blog_count)),
        ("/v1/blogs/{blog_id}/badge.svg", get(badge::badge)),
        ("/v1/counts", get(rooms::counts).post(rooms::post_counts)),
        ("/v1/rooms", get(rooms::list)),
        ("/v1/rooms/{room}", get(rooms::room_count)),
        ("/v1/rooms/{room}/connections", get(connections::in_room)),
        ("/v1/rooms/{room}/messages", post(messages::to_room)),
        ("/v1/rooms/{room}/history", get(history::of_room)),
        ("/v1/rooms/{room}/history.svg", get(history::room_plot)),
        ("/v1/stats", get(rooms::stats)),
        ("/v1/history", get(history::of_service)),
        ("/v1/history.svg", get(history::service_plot)),
        ("/livez", get(health::live)),
        ("/readyz", get(health::ready)),
        ("/openapi.yaml", get(health::openapi)),
    ];
    match face {
        Face::Operators => routes.push(("/metrics", get(health::metrics))),
        Face::Public if config.ops_listen.is_none() => {
            routes.push(("/metrics", get(health::guarded_metrics)));
        }
        Face::Public => {}
    }
    routes.extend(pages::widget());
    if face == Face::Operators || config.ops_listen.is_none() {
        routes.push(("/dashboard", dashboard::page()));
        routes.push(("/dashboard/{file}", dashboard::files()));
    }
    if config.demo {
        routes.extend(pages::demo());
    }
    routes
}

impl App {
    /// Joins the parts. `node_limit` is how many streams this node may hold.
    #[must_use]
    pub fn new(config: Config, verifier: Verifier, tickets: TicketKeys, node_limit: usize) -> Self {
        let tempo = Tempo {
            push_interval: config.push_interval,
            leave_grace: config.leave_grace,
        };
        let limits = Limits {
            node: config.max_connections.unwrap_or(node_limit),
            address: config.max_connections_per_ip,
            member: config.max_connections_per_member,
        };
        let hub = Hub::new(Box::new(Encoder), tempo);
        let history = History::begin(Instant::now(), unix_ms());
        hub.record_to(Arc::new(history.clone()));
        Self(Arc::new(Shared {
            hub,
            history,
            verifier,
            tickets,
            admission: Admission::new(limits),
            shards: OnceLock::new(),
            cluster: OnceLock::new(),
            since: SystemTime::now(),
            config,
        }))
    }

    /// The router of one listener.
    pub fn router(&self, face: Face) -> Router {
        routes(self.config(), face)
            .into_iter()
            .fold(Router::new(), |router, (path, methods)| {
                router.route(path, methods)
            })
            .fallback(not_found)
            .method_not_allowed_fallback(method_not_allowed)
            // In one layer, the first outermost: each of axum's own costs two boxes a request.
            .layer((
                cors(self.origins()),
                CatchPanicLayer::custom(|_| {
                    ApiError::new(
                        Code::Internal,
                        "The service failed; the cause is in its log.",
                    )
                    .into_response()
                }),
            ))
            .with_state(self.clone())
    }

    /// The settings in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// This node's rooms.
    #[must_use]
    pub fn hub(&self) -> &Hub {
        &self.0.hub
    }

    /// What this node's numbers were.
    #[must_use]
    pub fn history(&self) -> &History {
        &self.0.history
    }

    /// What verifies tokens.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        &self.0.verifier
    }

    /// What issues and redeems tickets.
    #[must_use]
    pub fn tickets(&self) -> &TicketKeys {
        &self.0.tickets
    }

    /// Rooms that anybody may join and read.
    #[must_use]
    pub fn anonymous(&self) -> &Patterns {
        &self.config().anonymous_rooms
    }

    /// Which foreign pages may call.
    #[must_use]
    pub fn origins(&self) -> &Origins {
        &self.config().cors_origins
    }

    /// The origin of the public address, where configured.
    #[must_use]
    pub fn public_origin(&self) -> Option<&str> {
        self.config().public_url.as_ref().map(|url| url.origin())
    }

    /// When the process started, in milliseconds of Unix time.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        let since = self.0.since.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// The other nodes, where there are some.
    #[must_use]
    pub fn cluster(&self) -> Option<&Cluster> {
        self.0.cluster.get()
    }

    /// Takes part with other nodes, where a Redis is configured; until the tasks are dropped.
    ///
    /// # Errors
    ///
    /// When the URL is none of Redis.
    pub async fn join_cluster(&self) -> Result<Option<Tasks>, InvalidUrl> {
        let config = self.config();
        let Some(url) = &config.redis_url else {
            return Ok(None);
        };
        let url = std::str::from_utf8(url.expose()).map_err(|_| InvalidUrl)?;
        let membership = Membership {
            url,
            prefix: &config.redis_prefix,
            name: &config.node_name,
            since_ms: self.since_ms(),
            history: Some(self.history()),
        };
        let fingerprints = Box::new(self.tickets().clone());
        let app = self.clone();
        let respond = Box::new(move |ask| peers::respond(&app, ask));
        let (cluster, tasks) = Cluster::join(self.hub(), membership, fingerprints, respond).await?;
        // A second call is harmless: there is one cluster in a process.
        let _ = self.0.cluster.set(cluster);
        Ok(Some(tasks))
    }

    /// Where a ticket's stream is opened: absolute where the public address is configured.
    #[must_use]
    pub fn stream_url(&self, ticket: &str) -> String {
        let base = self.config().public_url.as_ref();
        let base = base.map_or("", |url| url.as_str());
        format!("{base}/v1/stream?ticket={ticket}")
    }

    /// Reads a ticket.
    ///
    /// # Errors
    ///
    /// When it was not issued here, or has expired.
    pub fn redeem(&self, text: &str) -> Result<Ticket, InvalidTicket> {
        self.tickets().redeem(text, unix_now().as_secs())
    }

    /// The end of a ticket issued now, in seconds of Unix time: after the configured time, but
    /// never past the end of its token.
    #[must_use]
    pub fn ticket_end(&self, claims: Option<&Claims>) -> u64 {
        let end = (unix_now() + self.config().ticket_ttl).as_secs();
        claims.map_or(end, |claims| end.min(claims.expires_unix))
    }

    /// Time left until a second of Unix time; zero where it is past.
    #[must_use]
    pub fn time_left(&self, unix_secs: u64) -> Duration {
        Duration::from_secs(unix_secs).saturating_sub(unix_now())
    }

    /// The same in whole seconds, rounded up.
    #[must_use]
    pub fn seconds_left(&self, unix_secs: u64) -> u64 {
        crate::sse::whole_seconds(self.time_left(unix_secs))
    }

    /// The second of Unix time after `left`, to the nearest.
    #[must_use]
    pub fn unix_after(&self, left: Duration) -> u64 {
        (unix_now() + left + Duration::from_millis(500)).as_secs()
    }

    /// Now, in milliseconds of Unix time.
    #[must_use]
    pub fn unix_ms(&self) -> u64 {
        unix_ms()
    }

    /// How much longer a ticket's connection or viewer is refused, if at all.
    #[must_use]
    pub fn blocked(&self, ticket: &Ticket) -> Option<Duration> {
        self.hub()
            .blocked(ticket.connection, &ticket.identity, Instant::now())
    }

    /// Takes a ticket's stream its places under the limits.
    ///
    /// # Errors
    ///
    /// When its viewer was thrown out, the node is going down, or a limit is met.
    pub fn admit(&self, client: Client, ticket: &Ticket) -> Result<Places, Refusal> {
        let identity = &ticket.identity;
        // Asked at once: each look takes the hub's lock.
        let standing = self
            .hub()
            .standing(ticket.connection, identity, Instant::now());
        if let Some(remaining) = standing.blocked {
            return Err(Refusal::Blocked(remaining));
        }
        if standing.is_draining {
            return Err(Refusal::Draining);
        }
        self.0
            .admission
            .admit(client.limited(), identity.user(), standing.is_open)
            .map_err(Refusal::Full)
    }

    /// Lets metrics show what these shards do. Those of a first call stay.
    pub fn show_shards(&self, shards: &Shards) {
        // A second call is harmless: there is one set of shards in a process.
        let _ = self.0.shards.set(shards.clone());
    }

    /// What the shards did since the start.
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.0.shards.get().map(Shards::tally).unwrap_or_default()
    }

    /// How often each limit refused: node, address, member.
    #[must_use]
    pub fn refused(&self) -> [u64; 3] {
        self.0.admission.refused()
    }
}

fn unix_now() -> Duration {
    // Before 1970 is no time at which this runs; a clock that says so counts as 1970.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// Now, in milliseconds of Unix time.
pub(crate) fn unix_ms() -> u64 {
    u64::try_from(unix_now().as_millis()).unwrap_or(u64::MAX)
}

async fn not_found(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(200).collect();
    ApiError::new(Code::NotFound, format!("There is nothing at {path}."))
}

async fn method_not_allowed(method: Method) -> ApiError {
    ApiError::new(
        Code::MethodNotAllowed,
        format!("This path does not take {method}; Allow says what it takes."),
    )
}

fn cors(origins: &Origins) -> CorsLayer {
    let layer = CorsLayer::new()
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([header::ETAG, header::RETRY_AFTER])
        .max_age(Duration::from_hours(24));
    match origins {
        // The same answer for every origin, so it does not vary.
        Origins::Any => layer.allow_origin(tower_http::cors::Any).vary([]),
        Origins::Listed(origins) => layer
            .allow_origin(AllowOrigin::list(
                origins.iter().filter_map(|origin| origin.parse().ok()),
            ))
            .allow_credentials(true)
            .vary([header::ORIGIN]),
    }
}
