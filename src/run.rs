//! The service from its settings to its last stream's end: binds, starts, waits for the signal,
//! drains.

use std::{error::Error, io, net::SocketAddr, process::ExitCode, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    app::{App, Face, unix_ms},
    auth::{
        keys::Keys,
        ticket::TicketKeys,
        token::{self, Rules, Verifier},
    },
    cli,
    cluster::Tasks,
    config::{self, Config, KeySources, Secret},
    delivery::shards::Shards,
    server::{Server, bind, descriptors, drain},
};

/// How long ended streams may take to send their last word: a little more than their linger.
const SETTLE: Duration = Duration::from_millis(1_200);
/// How long the token in a development log holds: a working day and the next.
const DEVELOPMENT_TOKEN: Duration = Duration::from_hours(24);

/// Serves until a signal says to stop; success where every stream ended in time.
#[must_use]
pub fn serve(config: Config) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return cli::unusable(&error),
    };
    match runtime.block_on(until_stopped(config)) {
        Ok(code) => code,
        Err(error) => cli::unusable(&*error),
    }
}

/// Makes the service of these settings.
///
/// # Errors
///
/// When a key cannot be used; the text names the setting.
pub fn app(config: Config) -> Result<App, Box<dyn Error>> {
    let node_limit = descriptors::raise();
    let keys = token_keys(&config.keys)?;
    let rules = rules(&config);
    let tickets = ticket_keys(&config);
    Ok(App::new(
        config,
        Verifier::new(keys, rules),
        tickets,
        node_limit,
    ))
}

fn rules(config: &Config) -> Rules {
    Rules {
        issuer: config.jwt_issuer.clone(),
        audience: config.jwt_audience.clone(),
    }
}

fn token_keys(sources: &KeySources) -> Result<Keys, Box<dyn Error>> {
    let (variable, keys) = match sources {
        KeySources::Hs256(secrets) => (
            "LIVECOUNT_JWT_SECRET",
            Keys::secrets(secrets.iter().map(Secret::expose)),
        ),
        KeySources::PublicKey { pem, .. } => (
            "LIVECOUNT_JWT_PUBLIC_KEY_FILE",
            Keys::public_pem(pem.as_bytes()),
        ),
        KeySources::JwksFile { json, .. } => ("LIVECOUNT_JWKS_FILE", Keys::jwks(json.as_bytes())),
        KeySources::JwksUrl(url) => ("LIVECOUNT_JWKS_URL", Keys::jwks_url(url)),
    };
    keys.map_err(|error| format!("{variable}: {error}").into())
}

fn ticket_keys(config: &Config) -> TicketKeys {
    match (&config.ticket_keys, &config.keys) {
        (config::TicketKeys::Given(secrets), _) => {
            TicketKeys::new(secrets.iter().map(Secret::expose))
        }
        (config::TicketKeys::Derived, KeySources::Hs256(secrets)) => {
            TicketKeys::derived(secrets.iter().map(Secret::expose))
        }
        (config::TicketKeys::Random(secret), _) => TicketKeys::new([secret.expose()]),
        (config::TicketKeys::Derived, _) => TicketKeys::new([Secret::random().expose()]),
    }
}

async fn until_stopped(config: Config) -> Result<ExitCode, Box<dyn Error>> {
    let mut stop = StopSignal::new()?;
    let drain_time = config.drain;
    let app = app(config)?;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = Shards::start(app.hub(), threads, app.config().heartbeat)?;
    app.show_shards(&shards);
    let mut cluster = app.join_cluster().await?;
    let servers = listen(&app, &shards)?;
    let hub = app.hub().clone();
    let mut pulse = tokio::spawn(async move { hub.run().await });
    let keys = tokio::spawn(app.verifier().keep_fresh());
    let history = app.history().clone();
    let history = tokio::spawn(async move { history.run(unix_ms).await });
    announce(&app, &servers);

    tokio::select! {
        () = stop.recv() => {}
        _ = &mut pulse => {
            tracing::error!("the pulse ended; the process ends");
            return Ok(ExitCode::FAILURE);
        }
        () = failed(&mut cluster) => {
            tracing::error!("a task of the cluster ended; the process ends");
            return Ok(ExitCode::FAILURE);
        }
    }
    tracing::info!(
        streams = app.hub().totals().held,
        "stopping: ending all streams"
    );
    let in_time = tokio::select! {
        in_time = drain::run(app.hub(), drain_time) => in_time,
        () = stop.recv() => {
            tracing::warn!("stopped at once by a second signal");
            return Ok(ExitCode::FAILURE);
        }
    };
    settle(&shards).await;
    if let (Some(cluster), Some(tasks)) = (app.cluster(), cluster) {
        cluster.part(tasks).await;
    }
    let left = app.hub().totals().held;
    tracing::info!(in_time, left, "stopped");
    for server in servers {
        server.stop().await;
    }
    pulse.abort();
    keys.abort();
    history.abort();
    Ok(ExitCode::SUCCESS)
}

/// Waits until a task of the cluster fails; for ever without a cluster.
async fn failed(cluster: &mut Option<Tasks>) {
    match cluster {
        Some(tasks) => tasks.failed().await,
        None => std::future::pending().await,
    }
}

/// Waits until the streams that got their last word have it, for a moment at the most.
async fn settle(shards: &Shards) {
    let all_gone = async {
        while shards.tally().slots > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let _ = tokio::time::timeout(SETTLE, all_gone).await;
}

/// Everybody's listener, and the operators' where there is one.
fn listen(app: &App, shards: &Shards) -> Result<Vec<Server>, Box<dyn Error>> {
    let config = app.config();
    let open = |variable: &str, address: SocketAddr| {
        bind(address).map_err(|error| format!("{variable}: {address} cannot be bound: {error}"))
    };
    let mut handed_in = listenfd::ListenFd::from_env();
    let public = match handed_in.take_tcp_listener(0)? {
        Some(listener) => listener,
        None => open("LIVECOUNT_LISTEN", config.listen)?,
    };
    let mut servers = vec![Server::start(
        public,
        app.router(Face::Public),
        Some(shards.clone()),
    )?];
    if let Some(address) = config.ops_listen {
        let operators = open("LIVECOUNT_OPS_LISTEN", address)?;
        servers.push(Server::start(
            operators,
            app.router(Face::Operators),
            Some(shards.clone()),
        )?);
    }
    Ok(servers)
}

fn announce(app: &App, servers: &[Server]) {
    let config = app.config();
    for (server, what) in servers.iter().zip(["readers", "operators"]) {
        let url = format!("http://{}", server.address());
        tracing::info!(%url, "listening for {what}");
    }
    let Some(public) = servers.first() else {
        return;
    };
    if config.demo {
        tracing::info!("demo page: http://{}/", public.address());
    }
    if let Some(last) = servers.last() {
        tracing::info!("dashboard: http://{}/dashboard", last.address());
    }
    if config.development
        && let KeySources::Hs256(secrets) = &config.keys
        && let Some(secret) = secrets.first()
    {
        let token = token::sign(
            secret.expose(),
            "developer",
            Some("admin"),
            None,
            DEVELOPMENT_TOKEN,
            &rules(config),
        );
        match token {
            Ok(token) => tracing::warn!(
                "development: no key is configured, so a random one is used until the process ends. Admin token for 24 h: {token}"
            ),
            Err(error) => tracing::error!(%error, "no development token"),
        }
    }
    // Outside systemd there is nobody to tell, which is no error.
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
}

/// SIGTERM and SIGINT.
struct StopSignal {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignal {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
