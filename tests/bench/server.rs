//! The servers under test and beside it, each a process of its own, on loopback.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{ChildStdin, Command, Stdio},
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use crate::{
    Result,
    process::{Process, Role, exists},
};

/// The key of every token here.
pub(crate) const SECRET: &str = "the-secret-of-the-benchmark-has-32-bytes-or-more";

/// How long a server may take to start.
const START: Duration = Duration::from_secs(10);
/// What comes before the address in livecount's log.
const LISTENING: &str = "listening for readers url=http://";
/// Where distributions put nginx's modules.
const NCHAN: [&str; 3] = [
    "/usr/lib/nginx/modules/ngx_nchan_module.so",
    "/usr/lib64/nginx/modules/ngx_nchan_module.so",
    "/usr/share/nginx/modules/ngx_nchan_module.so",
];

/// A server that listens.
#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    /// What livecount warned of.
    pub(crate) warnings: Arc<Mutex<Vec<String>>>,
    /// A role ends when nobody can give it orders any more.
    _orders: Option<ChildStdin>,
}

/// livecount itself, the binary of this build, with these settings beside the key.
pub(crate) fn livecount(settings: &[(&str, &str)]) -> Result<Server> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_livecount"));
    command
        .args(["--listen", "127.0.0.1:0"])
        .env("LIVECOUNT_JWT_SECRET", SECRET)
        .envs(settings.iter().copied())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    let mut process = Process::start(&mut command)?;
    let log = process
        .child()
        .stderr
        .take()
        .ok_or("no pipe from livecount")?;
    let (found, address) = mpsc::channel();
    let warnings = Arc::<Mutex<Vec<String>>>::default();
    let warned = Arc::clone(&warnings);
    // Reads to the end, or the server would wait for room in the pipe one day.
    thread::spawn(move || {
        for line in BufReader::new(log)
            .lines()
            .map_while(std::result::Result::ok)
        {
            let line = plain(&line);
            if let Some((_, address)) = line.split_once(LISTENING) {
                let _ = found.send(address.trim().to_owned());
            } else if line.contains("ERROR") || line.contains("panicked") {
                crate::say(&format!("livecount: {line}"));
            } else if let Some((_, warning)) = line.split_once(" WARN ") {
                warned.lock().push(warning.to_owned());
            }
        }
    });
    let address = address.recv_timeout(START);
    let address = address.map_err(|_| "livecount does not say where it listens")?;
    Ok(Server {
        process,
        address: address.parse()?,
        warnings,
        _orders: None,
    })
}

/// A node of this name on the Redis there.
pub(crate) fn node(name: &str, redis: SocketAddr, prefix: &str) -> Result<Server> {
    livecount(&[
        ("LIVECOUNT_NODE_NAME", name),
        ("LIVECOUNT_REDIS_URL", &format!("redis://{redis}")),
        ("LIVECOUNT_REDIS_PREFIX", prefix),
    ])
}

/// A line without the colours that a log may have.
fn plain(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + part.split_once('m').map_or("", |(_, rest)| rest)
    })
}

/// The reference: see [`crate::roles::axum`].
pub(crate) fn axum() -> Result<Server> {
    let (role, address) = listening(Role::start("axum")?)?;
    Ok(Server {
        process: role.process,
        address,
        warnings: Arc::default(),
        _orders: Some(role.orders),
    })
}

/// The floor: see [`crate::roles::floor`]. It goes on being told what to do.
pub(crate) fn floor() -> Result<(Role, SocketAddr)> {
    listening(Role::start("floor")?)
}

fn listening(mut role: Role) -> Result<(Role, SocketAddr)> {
    let address = role.hear()?;
    Ok((role, address))
}

/// Nchan in nginx, or `None` where it is not installed.
pub(crate) fn nchan() -> Result<Option<Server>> {
    let named = std::env::var("LIVECOUNT_BENCH_NCHAN").ok();
    let module = named.or_else(|| {
        let found = NCHAN.into_iter().find(|path| exists(path))?;
        Some(found.to_owned())
    });
    let (Some(module), true) = (module, exists("/usr/sbin/nginx")) else {
        return Ok(None);
    };
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
        .local_addr()?
        .port();
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("nchan");
    fs::create_dir_all(&folder)?;
    let settings = folder.join("nginx.conf");
    fs::write(&settings, nginx_settings(&module, address))?;
    let process = Process::start(
        Command::new("/usr/sbin/nginx")
            .arg("-p")
            .arg(&folder)
            .arg("-c")
            .arg(&settings)
            .stderr(Stdio::null()),
    )?;
    for _ in 0..START.as_millis() / 20 {
        if TcpStream::connect(address).is_ok() {
            return Ok(Some(Server {
                process,
                address,
                warnings: Arc::default(),
                _orders: None,
            }));
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err("nginx with Nchan does not listen".into())
}

fn nginx_settings(module: &str, address: SocketAddr) -> String {
    format!(
        "load_module {module};
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 19000; }}
http {{
  access_log off;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{
    listen {address} backlog=4096;
    location = /subscribe {{ nchan_subscriber eventsource; nchan_channel_id bench; }}
  }}
}}
"
    )
}
