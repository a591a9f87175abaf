//! Strings to [`Config`]: every setting with its default, unit and range.
//!
//! Flags and environment come as maps of strings, so that nothing here knows the process it
//! runs in; files that settings name are read here, so that a missing one stops the start.
//! [`settings`] holds the table, [`values`] the parsers, [`keys`] the rules about keys.

pub mod error;
pub mod keys;
pub mod settings;
pub mod values;

use std::{collections::BTreeMap, fmt::Write, fs, net::SocketAddr, time::Duration};

use hyper::header::HeaderName;

use self::settings::{Fallback, Texts};
pub use self::{
    error::{ConfigError, Warning},
    keys::{KeySources, TicketKeys},
    settings::{SETTINGS, Setting, Source},
    values::{Networks, Origins, PublicUrl, Secret},
};
use crate::hub::pattern::Patterns;
pub use crate::telemetry::log::LogFormat;

/// Bounds of `ticket_ttl`. A browser may keep a page, and with it a ticket, open for weeks.
const TICKET_TTL: (Duration, Duration) = (Duration::from_secs(1), Duration::from_hours(30 * 24));
/// Bounds of `leave_grace` and `drain`.
const WAIT: (Duration, Duration) = (Duration::ZERO, Duration::from_mins(10));
/// Bounds of `heartbeat`; the HTML standard's notes on server-sent events advise about 15 s.
const HEARTBEAT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
/// Bounds of `push_interval`; the longest is where the hub's own stretching of it ends.
const PUSH_INTERVAL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));
/// Most connections that any limit may name.
const MOST_CONNECTIONS: usize = 10_000_000;
/// Most rooms that one connection may be allowed.
const MOST_ROOMS: usize = 1_000;

/// The settings in force, each valid by construction. What is secret is not in its `Debug`.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where to serve; port 0 picks a free port.
    pub listen: SocketAddr,
    /// Where to serve operators, if apart from everybody else.
    pub ops_listen: Option<SocketAddr>,
    /// Where clients find the service, if they are to be told.
    pub public_url: Option<PublicUrl>,
    /// What verifies tokens.
    pub keys: KeySources,
    /// Values of which a token's `iss` must be one; not checked where empty.
    pub jwt_issuer: Vec<String>,
    /// Values of which a token's `aud` must hold one; not checked where empty.
    pub jwt_audience: Vec<String>,
    /// What signs and verifies tickets.
    pub ticket_keys: TicketKeys,
    /// How long a ticket holds at most, 1 s to 30 days. 24 h by default.
    pub ticket_ttl: Duration,
    /// Rooms that may be joined and read without a token; a token is needed where empty.
    pub anonymous_rooms: Patterns,
    /// Which foreign pages' scripts may call.
    pub cors_origins: Origins,
    /// Whose forwarded header is believed.
    pub trusted_proxies: Networks,
    /// The one header believed from them.
    pub forwarded_header: HeaderName,
    /// The Redis that nodes share; it may hold a password.
    pub redis_url: Option<Secret>,
    /// What every key in Redis starts with.
    pub redis_prefix: String,
    /// This process's name among its nodes, 1 to 64 of `A-Z a-z 0-9 . _ -`.
    pub node_name: String,
    /// How long a viewer whose stream broke still counts, 0 s to 10 min. 0 s by default.
    pub leave_grace: Duration,
    /// Time between pings on a quiet stream, 1 s to 10 min. 20 s by default.
    pub heartbeat: Duration,
    /// Shortest time between two counts of a room, 10 ms to 5 s. 100 ms by default.
    pub push_interval: Duration,
    /// Time from the stop signal to the last stream's end, 0 s to 10 min. 10 s by default.
    pub drain: Duration,
    /// Streams open at a time, 1 to 10 million; without it the descriptor limit decides.
    pub max_connections: Option<usize>,
    /// Streams open at a time from one IPv4 address or IPv6 /64. 1,000 by default.
    pub max_connections_per_ip: usize,
    /// Streams open at a time by tokens of one user. 20 by default.
    pub max_connections_per_member: usize,
    /// Rooms that one connection may have joined, personal ones aside. 16 by default.
    pub max_rooms_per_connection: usize,
    /// True where no key is configured and the process runs on a random one.
    pub development: bool,
    /// True where the demo page is served.
    pub demo: bool,
    /// What is logged: a filter that [`crate::telemetry::log::init`] takes.
    pub log: String,
    /// How a log line is written.
    pub log_format: LogFormat,
    in_force: Vec<InForce>,
}

/// One line of [`Config::describe`].
#[derive(Debug, Clone)]
struct InForce {
    name: &'static str,
    shown: String,
    source: Source,
}

/// Says that this process has no secret which a running service would know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "tokens are signed with LIVECOUNT_JWT_SECRET, which is not set; give it the value that the service runs with (in development use the token from its log)"
)]
pub struct NoTokenSecret;

impl Config {
    /// Reads the settings: `flags` by the settings' names (`push_interval`, `config`) over
    /// `environment` by the variables' (`LIVECOUNT_PUSH_INTERVAL`), over the file that `config`
    /// names, over the defaults. Reads that file, those with keys, and the host's name.
    ///
    /// # Errors
    ///
    /// For a value that its setting does not accept; an unknown key or flag; a file that cannot
    /// be read or is no TOML; a setting given twice in one place; keys of two families, no key
    /// outside development, or no ticket key where nodes must share one; two listeners on one
    /// address.
    pub fn load(
        flags: &BTreeMap<String, String>,
        environment: &BTreeMap<String, String>,
    ) -> Result<(Self, Vec<Warning>), ConfigError> {
        let mut warnings = Vec::new();
        let texts = Texts::gather(flags, environment, &mut warnings)?;
        let config = Self::read(&texts, &mut warnings)?;
        refuse_shared_address(&config)?;
        Ok((config, warnings))
    }

    fn read(texts: &Texts, warnings: &mut Vec<Warning>) -> Result<Self, ConfigError> {
        let duration = |name, (shortest, longest)| {
            texts.read(name, |text| values::duration(text, shortest..=longest))
        };
        let connections = |text: &str| values::number(text, 1..=MOST_CONNECTIONS);

        let listen = texts.read("listen", values::socket_address)?;
        let dev = texts.read("dev", values::switch)?;
        let redis_url = texts.read_optional("redis_url", values::redis_url)?;
        let may_develop = dev || listen.ip().to_canonical().is_loopback();
        let (keys, development) = keys::token_keys(texts, may_develop)?;
        if dev && !development {
            warnings.push(Warning::NoDevelopment);
        }
        let many_nodes = redis_url.is_some();
        let ticket_keys = keys::ticket_keys(texts, &keys, development, many_nodes, warnings)?;
        let node_name = texts.read_optional("node_name", values::node_name)?;
        let mut config = Self {
            listen,
            ops_listen: texts.read_optional("ops_listen", values::socket_address)?,
            public_url: texts.read_optional("public_url", values::public_url)?,
            keys,
            jwt_issuer: texts
                .read_optional("jwt_issuer", values::claims)?
                .unwrap_or_default(),
            jwt_audience: texts
                .read_optional("jwt_audience", values::claims)?
                .unwrap_or_default(),
            ticket_keys,
            ticket_ttl: duration("ticket_ttl", TICKET_TTL)?,
            anonymous_rooms: texts.read("anonymous_rooms", values::patterns)?,
            cors_origins: texts.read("cors_origins", values::origins)?,
            trusted_proxies: texts.read("trusted_proxies", values::networks)?,
            forwarded_header: texts.read("forwarded_header", values::header_name)?,
            redis_url,
            redis_prefix: texts.read("redis_prefix", |text| values::word(text, 64))?,
            node_name: node_name.unwrap_or_else(host_name),
            leave_grace: duration("leave_grace", WAIT)?,
            heartbeat: duration("heartbeat", HEARTBEAT)?,
            push_interval: duration("push_interval", PUSH_INTERVAL)?,
            drain: duration("drain", WAIT)?,
            max_connections: texts.read_optional("max_connections", connections)?,
            max_connections_per_ip: texts.read("max_connections_per_ip", connections)?,
            max_connections_per_member: texts.read("max_connections_per_member", connections)?,
            max_rooms_per_connection: texts.read("max_rooms_per_connection", |text| {
                values::number(text, 1..=MOST_ROOMS)
            })?,
            development,
            demo: texts
                .read_optional("demo", values::switch)?
                .unwrap_or(development),
            log: texts.read("log", values::log_filter)?,
            log_format: texts.read("log_format", values::log_format)?,
            in_force: Vec::new(),
        };
        config.in_force = SETTINGS
            .iter()
            .map(|setting| config.in_force(setting, texts))
            .collect();
        Ok(config)
    }

    /// Lists all settings in force, a line each: name, value and where it came from. Secrets
    /// are shown as `(hidden)`.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = String::new();
        for InForce {
            name,
            shown,
            source,
        } in &self.in_force
        {
            // Writing to a string never fails.
            let _ = writeln!(text, "{name:<27} {shown:<27} ({source})");
        }
        text
    }

    /// The secret that tokens for this service are signed with.
    ///
    /// # Errors
    ///
    /// Where public keys verify them, or in development, whose random secret another process
    /// does not know.
    pub fn token_secret(&self) -> Result<&Secret, NoTokenSecret> {
        match &self.keys {
            KeySources::Hs256(secrets) if !self.development => secrets.first().ok_or(NoTokenSecret),
            KeySources::Hs256(_)
            | KeySources::PublicKey { .. }
            | KeySources::JwksFile { .. }
            | KeySources::JwksUrl(_) => Err(NoTokenSecret),
        }
    }

    fn in_force(&self, setting: &Setting, texts: &Texts) -> InForce {
        let found = texts.get(setting.name);
        let shown = match (found, setting.default) {
            (Some(_), _) if setting.is_secret() => "(hidden)".to_owned(),
            (Some(found), _) if found.text.is_empty() => "(empty)".to_owned(),
            (Some(found), _) => found.text.escape_debug().to_string(),
            // What these defaults come to is known by now.
            (None, _) if setting.name == "node_name" => self.node_name.clone(),
            (None, _) if setting.name == "demo" => self.demo.to_string(),
            (None, _) if setting.name == "jwt_secret" && self.development => {
                "random: development".to_owned()
            }
            (None, _)
                if setting.name == "ticket_key"
                    && matches!(self.ticket_keys, TicketKeys::Random(_)) =>
            {
                "random".to_owned()
            }
            (None, Fallback::Otherwise(text) | Fallback::Text(text)) => text.to_owned(),
        };
        InForce {
            name: setting.name,
            shown,
            source: found.map_or(Source::Default, |found| found.source),
        }
    }
}

fn refuse_shared_address(config: &Config) -> Result<(), ConfigError> {
    if config.listen.port() != 0 && config.ops_listen == Some(config.listen) {
        return Err(ConfigError::SameAddress);
    }
    Ok(())
}

/// The host's name where the system tells one that a node may have.
fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .and_then(|name| values::node_name(name.trim()).ok())
        .unwrap_or_else(|| "livecount".to_owned())
}

#[cfg(test)]
mod tests {
    use std::{
        net::IpAddr,
        path::PathBuf,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::{settings::SPELLINGS, *};
    use crate::hub::id::RoomId;

    const SECRET: &str = "hunter2-hunter2-hunter2-hunter2-hunter2";
    const PEM: &str = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";

    type Loaded = Result<(Config, Vec<Warning>), ConfigError>;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let owned = |&(key, text): &(&str, &str)| (key.to_owned(), text.to_owned());
        pairs.iter().map(owned).collect()
    }

    /// Loads from environment variables, given without their prefix.
    fn load(variables: &[(&str, &str)]) -> Loaded {
        let environment = variables
            .iter()
            .map(|(name, text)| (format!("LIVECOUNT_{name}"), (*text).to_owned()))
            .collect();
        Config::load(&BTreeMap::new(), &environment)
    }

    fn config(variables: &[(&str, &str)]) -> Config {
        load(variables).expect("the settings are good").0
    }

    fn refusal(loaded: Loaded) -> String {
        loaded.expect_err("the settings are bad").to_string()
    }

    /// A file that is gone at the end of its test.
    struct TempFile(PathBuf);

    impl TempFile {
        fn with(text: &str) -> Self {
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("livecount-config-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, text).expect("the temporary folder takes files");
            Self(path)
        }

        fn path(&self) -> &str {
            self.0
                .to_str()
                .expect("the temporary folder has a plain name")
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    #[test]
    fn defaults_are_those_of_the_contract() {
        let config = config(&[]);
        assert_eq!(config.listen, "127.0.0.1:8080".parse().unwrap());
        assert_eq!(config.ops_listen, None);
        assert_eq!(config.public_url, None);
        assert!(config.jwt_issuer.is_empty() && config.jwt_audience.is_empty());
        assert!(matches!(config.ticket_keys, TicketKeys::Derived));
        assert_eq!(config.ticket_ttl, Duration::from_hours(24));
        assert_eq!(config.anonymous_rooms, Patterns::every_blog());
        assert_eq!(config.cors_origins, Origins::Any);
        assert!(
            config
                .trusted_proxies
                .contains(IpAddr::from([127, 0, 0, 1]))
        );
        assert!(!config.trusted_proxies.contains(IpAddr::from([10, 0, 0, 1])));
        assert_eq!(config.forwarded_header, "x-forwarded-for");
        assert_eq!(config.redis_url, None);
        assert_eq!(config.redis_prefix, "livecount:");
        assert_eq!(config.node_name, host_name());
        assert_eq!(config.leave_grace, Duration::ZERO);
        assert_eq!(config.heartbeat, Duration::from_secs(20));
        assert_eq!(config.push_interval, Duration::from_millis(100));
        assert_eq!(config.drain, Duration::from_secs(10));
        assert_eq!(config.max_connections, None);
        assert_eq!(config.max_connections_per_ip, 1_000);
        assert_eq!(config.max_connections_per_member, 20);
        assert_eq!(config.max_rooms_per_connection, 16);
        assert_eq!(config.log, "info");
        assert_eq!(config.log_format, LogFormat::Text);
    }

    #[test]
    fn a_flag_goes_over_the_environment_and_that_over_the_file() {
        let file = TempFile::with("heartbeat = '1s'\ndrain = '1s'\nleave_grace = '1s'\n");
        let flags = map(&[("heartbeat", "3s")]);
        let environment = map(&[
            ("LIVECOUNT_CONFIG", file.path()),
            ("LIVECOUNT_HEARTBEAT", "2s"),
            ("LIVECOUNT_DRAIN", "2s"),
        ]);
        let (config, _) = Config::load(&flags, &environment).unwrap();
        assert_eq!(config.heartbeat, Duration::from_secs(3));
        assert_eq!(config.drain, Duration::from_secs(2));
        assert_eq!(config.leave_grace, Duration::from_secs(1));
    }

    #[test]
    fn the_flag_names_another_file_than_the_environment() {
        let (one, other) = (
            TempFile::with("drain = '1s'"),
            TempFile::with("drain = '2s'"),
        );
        let environment = map(&[("LIVECOUNT_CONFIG", one.path())]);
        let (config, warnings) =
            Config::load(&map(&[("config", other.path())]), &environment).unwrap();
        assert_eq!(config.drain, Duration::from_secs(2));
        assert_eq!(warnings, []);
    }

    #[test]
    fn the_file_takes_strings_numbers_truths_and_lists() {
        let file = TempFile::with(
            "max_connections = 50\ndemo = false\nheartbeat = '5s'\nanonymous_rooms = ['blog:*', 'match:1']",
        );
        let config = config(&[("CONFIG", file.path())]);
        assert_eq!(config.max_connections, Some(50));
        assert!(!config.demo);
        assert_eq!(config.heartbeat, Duration::from_secs(5));
        assert!(
            config
                .anonymous_rooms
                .open(&RoomId::parse("match:1").unwrap())
        );
    }

    #[test]
    fn an_unknown_key_of_the_file_stops_the_start() {
        for (text, key) in [
            ("puhs_interval = '1s'", "puhs_interval"),
            ("[jwt]\nx = 1", "jwt"),
            ("config = 'x'", "config"),
        ] {
            let file = TempFile::with(text);
            let refusal = refusal(load(&[("CONFIG", file.path())]));
            assert!(
                refusal.contains("LIVECOUNT_CONFIG") && refusal.contains(key),
                "{refusal}"
            );
        }
    }

    #[test]
    fn a_file_that_is_missing_or_no_toml_stops_the_start_without_quoting_it() {
        let refused = refusal(load(&[("CONFIG", "/nowhere/livecount.toml")]));
        assert!(
            refused.contains("LIVECOUNT_CONFIG: cannot read /nowhere/livecount.toml"),
            "{refused}"
        );
        for text in [
            format!("drain = '1s'\njwt_secret = {SECRET}"),
            format!("drain = '1s'\njwt_secret = '{SECRET}"),
            format!("drain = '1s'\njwt_secret = '{SECRET}' {SECRET}"),
        ] {
            let file = TempFile::with(&text);
            let error = load(&[("CONFIG", file.path())]).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(shown.contains("line 2"), "{shown}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn a_value_of_a_senseless_type_names_its_variable() {
        for text in [
            "heartbeat = 1.5",
            "heartbeat = ['1s']",
            "anonymous_rooms = [1]",
            "anonymous_rooms = ['blog:1,blog:2']",
            "listen = {}",
        ] {
            let file = TempFile::with(text);
            let refusal = refusal(load(&[("CONFIG", file.path())]));
            let name = text.split(' ').next().unwrap().to_uppercase();
            assert!(refusal.contains(&format!("LIVECOUNT_{name} ")), "{refusal}");
        }
    }

    #[test]
    fn an_unknown_variable_is_a_warning_and_a_foreign_one_nothing() {
        let environment = map(&[
            ("LIVECOUNT_PUHS_INTERVAL", "1s"),
            ("LIVECOUNT_listen", "x"),
            ("HOME", "/"),
        ]);
        let (_, warnings) = Config::load(&BTreeMap::new(), &environment).unwrap();
        let unknown = |name: &str| Warning::UnknownVariable(name.to_owned());
        assert_eq!(
            warnings,
            [
                unknown("LIVECOUNT_PUHS_INTERVAL"),
                unknown("LIVECOUNT_listen")
            ]
        );
    }

    #[test]
    fn an_unknown_flag_stops_the_start() {
        let refused = refusal(Config::load(
            &map(&[("puhs_interval", "1s")]),
            &BTreeMap::new(),
        ));
        assert_eq!(refused, "--puhs-interval is no setting");
    }

    /// A value that its setting refuses, and one that it takes. The match on names makes sure
    /// that no setting of the table goes unread.
    fn bad_values(name: &str) -> &'static [&'static str] {
        match name {
            "listen" | "ops_listen" => {
                &["", "localhost:8080", "127.0.0.1", "8080", "127.0.0.1:70000"]
            }
            "public_url" => &[
                "",
                "example.org",
                "ftp://example.org",
                "https://x.example/?q",
            ],
            "jwt_secret" | "ticket_key" => &["", "short", "0123456789012345678901234567890"],
            "jwt_public_key_file" | "jwks_file" => &["", "/nowhere/key.pem", "/"],
            "jwks_url" => &["", "file:///etc/passwd", "https://u:p@x.example/jwks"],
            "jwt_issuer" | "jwt_audience" => &["", "a,,b"],
            "ticket_ttl" => &["", "999ms", "31d", "24"],
            "anonymous_rooms" => &["user:*", "blog", "user:7"],
            "cors_origins" => &["*,https://a.example", "https://a.example/", "a.example"],
            "trusted_proxies" => &["proxy", "10.0.0.0/33"],
            "forwarded_header" => &["", "X Forwarded", "a:b"],
            "redis_url" => &["", "localhost", "http://localhost"],
            "redis_prefix" => &["", "a b"],
            "node_name" => &["", "a b", "a/b"],
            "leave_grace" | "drain" => &["", "11m", "-1s", "soon"],
            "heartbeat" => &["", "0s", "999ms", "11m"],
            "push_interval" => &["", "0s", "9ms", "6s", "100"],
            "max_connections" | "max_connections_per_ip" | "max_connections_per_member" => {
                &["", "0", "-1", "10000001", "many"]
            }
            "max_rooms_per_connection" => &["", "0", "1001"],
            "dev" | "demo" => &["", "maybe", "TRUE "],
            "log" => &["", "warning", "a=b=c"],
            "log_format" => &["", "xml"],
            _ => panic!("{name} has no bad value in this test"),
        }
    }

    #[test]
    fn every_bad_value_names_its_variable() {
        for setting in SETTINGS {
            let variable = setting.name.to_uppercase();
            for bad in bad_values(setting.name) {
                let refusal = refusal(load(&[(&variable, bad)]));
                assert!(
                    refusal.starts_with(&format!("LIVECOUNT_{variable}")),
                    "{bad:?}: {refusal}"
                );
            }
        }
    }

    #[test]
    fn the_ends_of_every_range_are_taken() {
        for (name, ends) in [
            ("TICKET_TTL", ["1s", "30d"]),
            ("LEAVE_GRACE", ["0s", "10m"]),
            ("DRAIN", ["0s", "10m"]),
            ("HEARTBEAT", ["1s", "10m"]),
            ("PUSH_INTERVAL", ["10ms", "5s"]),
            ("MAX_CONNECTIONS", ["1", "10000000"]),
            ("MAX_CONNECTIONS_PER_IP", ["1", "10000000"]),
            ("MAX_CONNECTIONS_PER_MEMBER", ["1", "10000000"]),
            ("MAX_ROOMS_PER_CONNECTION", ["1", "1000"]),
        ] {
            for end in ends {
                assert!(load(&[(name, end)]).is_ok(), "{name} {end}");
            }
        }
    }

    #[test]
    fn a_refusal_says_what_is_wrong_and_what_is_accepted() {
        assert_eq!(
            refusal(load(&[("PUSH_INTERVAL", "6s")])),
            "LIVECOUNT_PUSH_INTERVAL (from the environment): \"6s\" is out of range; accepted is a duration from 10ms to 5s"
        );
    }

    #[test]
    fn secrets_are_in_no_debug_and_no_description() {
        let file = TempFile::with(SECRET);
        let config = config(&[("JWT_SECRET", SECRET), ("TICKET_KEY_FILE", file.path())]);
        let shown = format!("{config:?} {config:#?} {}", config.describe());
        assert!(!shown.contains("hunter2"), "{shown}");
        assert!(shown.contains("(hidden)"), "{shown}");
    }

    #[test]
    fn secrets_are_in_no_refusal() {
        let short = "hunter2";
        let url = "https://hunter2:hunter2@redis.example";
        for (name, text) in [
            ("JWT_SECRET", short),
            ("TICKET_KEY", short),
            ("REDIS_URL", url),
            ("PUBLIC_URL", url),
            ("JWKS_URL", url),
        ] {
            let error = load(&[(name, text)]).unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn the_description_lists_every_setting_with_its_source() {
        let file = TempFile::with("drain = '1s'");
        let flags = map(&[("config", file.path()), ("heartbeat", "3s")]);
        let environment = map(&[("LIVECOUNT_ANONYMOUS_ROOMS", "")]);
        let described = Config::load(&flags, &environment).unwrap().0.describe();
        let words = |name: &str| {
            let mut lines = described.lines();
            let line = lines
                .find(|line| line.split(' ').next() == Some(name))
                .unwrap();
            line.split_whitespace().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(described.lines().count(), SETTINGS.len());
        assert_eq!(words("heartbeat"), "heartbeat 3s (command line)");
        assert_eq!(
            words("anonymous_rooms"),
            "anonymous_rooms (empty) (environment)"
        );
        assert_eq!(words("drain"), "drain 1s (settings file)");
        assert_eq!(words("push_interval"), "push_interval 100ms (default)");
        assert_eq!(
            words("jwt_secret"),
            "jwt_secret random: development (default)"
        );
        assert_eq!(words("demo"), "demo true (default)");
    }

    #[test]
    fn a_key_may_come_from_a_file_without_its_final_newline() {
        let file = TempFile::with(&format!("{SECRET}\r\n"));
        let config = config(&[("JWT_SECRET_FILE", file.path())]);
        assert_eq!(config.token_secret().unwrap().expose(), SECRET.as_bytes());
        assert!(!config.development);
    }

    #[test]
    fn a_key_and_its_file_in_one_place_are_refused() {
        let file = TempFile::with(SECRET);
        for spelling in SPELLINGS.iter().filter(|spelling| spelling.is_file) {
            let direct = spelling.setting.name.to_uppercase();
            let by_file = format!("{direct}_FILE");
            let refusal = refusal(load(&[(&direct, SECRET), (&by_file, file.path())]));
            let names = format!("LIVECOUNT_{direct} and LIVECOUNT_{direct}_FILE are both given");
            assert!(refusal.starts_with(&names), "{refusal}");
        }
    }

    #[test]
    fn a_key_in_the_environment_goes_over_its_file_in_the_settings_file() {
        let key = TempFile::with(&"k".repeat(32));
        let file = TempFile::with(&format!("jwt_secret_file = '{}'", key.path()));
        let config = config(&[("CONFIG", file.path()), ("JWT_SECRET", SECRET)]);
        assert_eq!(config.token_secret().unwrap().expose(), SECRET.as_bytes());
    }

    #[test]
    fn a_missing_key_file_names_its_variable_and_path() {
        let refusal = refusal(load(&[("JWT_SECRET_FILE", "/nowhere/key")]));
        assert!(
            refusal.starts_with("LIVECOUNT_JWT_SECRET_FILE: cannot read /nowhere/key"),
            "{refusal}"
        );
    }

    #[test]
    fn without_a_key_a_loopback_address_or_dev_makes_it_development() {
        for variables in [
            &[][..],
            &[("LISTEN", "[::1]:0")],
            &[("LISTEN", "0.0.0.0:8080"), ("DEV", "true")],
        ] {
            let config = config(variables);
            assert!(config.development && config.demo, "{variables:?}");
            let KeySources::Hs256(secrets) = &config.keys else {
                panic!("{:?}", config.keys);
            };
            assert!(secrets[0].expose().len() >= 32);
        }
    }

    #[test]
    fn without_a_key_another_address_is_refused_naming_the_variables() {
        for listen in ["0.0.0.0:8080", "[::]:8080", "192.0.2.1:80"] {
            let refusal = refusal(load(&[("LISTEN", listen)]));
            for name in [
                "LIVECOUNT_JWT_SECRET",
                "LIVECOUNT_JWKS_URL",
                "LIVECOUNT_DEV",
            ] {
                assert!(refusal.contains(name), "{refusal}");
            }
        }
    }

    #[test]
    fn with_a_key_it_is_no_development_whatever_dev_says() {
        let (config, warnings) = load(&[("JWT_SECRET", SECRET), ("DEV", "true")]).unwrap();
        assert!(!config.development && !config.demo);
        assert_eq!(warnings, [Warning::NoDevelopment]);
    }

    #[test]
    fn demo_is_as_set_where_it_is_set() {
        assert!(!config(&[("DEMO", "false")]).demo);
        assert!(config(&[("JWT_SECRET", SECRET), ("DEMO", "true")]).demo);
    }

    #[test]
    fn keys_of_two_families_are_refused_naming_both() {
        let pem = TempFile::with(PEM);
        let families = [
            ("JWT_SECRET", SECRET),
            ("JWT_PUBLIC_KEY_FILE", pem.path()),
            ("JWKS_FILE", pem.path()),
            ("JWKS_URL", "https://x.example/jwks"),
        ];
        for (index, one) in families.iter().enumerate() {
            for other in &families[index + 1..] {
                let refusal = refusal(load(&[*one, *other]));
                let names = format!("LIVECOUNT_{} and LIVECOUNT_{} are", one.0, other.0);
                assert!(refusal.starts_with(&names), "{refusal}");
            }
        }
    }

    #[test]
    fn public_keys_without_a_ticket_key_draw_one_and_warn() {
        let pem = TempFile::with(PEM);
        let (config, warnings) = load(&[("JWT_PUBLIC_KEY_FILE", pem.path())]).unwrap();
        assert!(matches!(&config.keys, KeySources::PublicKey { pem, .. } if pem == PEM));
        assert!(matches!(config.ticket_keys, TicketKeys::Random(_)));
        assert_eq!(warnings, [Warning::RandomTicketKey]);
    }

    #[test]
    fn a_ticket_key_is_used_as_given() {
        let (config, warnings) = load(&[
            ("JWKS_URL", "https://x.example/jwks?v=1"),
            ("TICKET_KEY", SECRET),
        ])
        .unwrap();
        assert!(
            matches!(&config.keys, KeySources::JwksUrl(url) if url == "https://x.example/jwks?v=1")
        );
        assert!(
            matches!(&config.ticket_keys, TicketKeys::Given(keys) if keys[0].expose() == SECRET.as_bytes())
        );
        assert_eq!(warnings, []);
    }

    #[test]
    fn a_private_key_or_no_pem_is_no_public_key() {
        for text in [PEM.replace("PUBLIC", "PRIVATE"), "AAAA".to_owned()] {
            let file = TempFile::with(&text);
            let refusal = refusal(load(&[("JWT_PUBLIC_KEY_FILE", file.path())]));
            assert!(
                refusal.starts_with("LIVECOUNT_JWT_PUBLIC_KEY_FILE "),
                "{refusal}"
            );
        }
    }

    #[test]
    fn only_a_configured_secret_signs_tokens_for_another_process() {
        let pem = TempFile::with(PEM);
        assert!(config(&[("JWT_SECRET", SECRET)]).token_secret().is_ok());
        assert_eq!(config(&[]).token_secret(), Err(NoTokenSecret));
        let config = config(&[("JWKS_FILE", pem.path())]);
        assert_eq!(config.token_secret(), Err(NoTokenSecret));
    }

    /// Reads settings of many nodes.
    fn read(variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let flags = map(variables);
        let texts = Texts::gather(&flags, &BTreeMap::new(), &mut Vec::new())?;
        Config::read(&texts, &mut Vec::new())
    }

    #[test]
    fn the_redis_settings_are_carried() {
        let url = "redis://:hunter2@localhost:6379/1";
        let config = read(&[
            ("jwt_secret", SECRET),
            ("redis_url", url),
            ("redis_prefix", "blogs:"),
            ("node_name", "node-1"),
        ])
        .unwrap();
        assert_eq!(config.redis_url, Some(Secret::new(url.as_bytes())));
        assert_eq!(config.redis_prefix, "blogs:");
        assert_eq!(config.node_name, "node-1");
    }

    #[test]
    fn many_nodes_without_a_secret_to_derive_from_need_a_ticket_key() {
        let redis = ("redis_url", "redis://localhost");
        let jwks = ("jwks_url", "https://x.example/jwks");
        for variables in [&[redis][..], &[redis, jwks]] {
            let error = read(variables).unwrap_err();
            assert!(matches!(error, ConfigError::NoTicketKey), "{error}");
        }
        assert!(read(&[redis, jwks, ("ticket_key", SECRET)]).is_ok());
    }

    #[test]
    fn two_listeners_on_one_address_are_refused_unless_the_port_is_picked() {
        let both = |address| load(&[("LISTEN", address), ("OPS_LISTEN", address)]);
        assert!(refusal(both("127.0.0.1:9000")).starts_with("LIVECOUNT_OPS_LISTEN"));
        assert!(both("127.0.0.1:0").is_ok());
    }
}
