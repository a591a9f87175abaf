//! The table of settings, and where their texts come from.
//!
//! A setting is one row of [`SETTINGS`]: its flag, its environment variable, its key in the
//! settings file, its help and its errors are all derived from it. Knows texts, not values.

use std::{
    collections::BTreeMap,
    fmt, fs,
    path::{Path, PathBuf},
    sync::LazyLock,
};

use super::{
    error::{ConfigError, Warning},
    values::Problem,
};

/// What every environment variable of the service starts with.
pub const PREFIX: &str = "LIVECOUNT_";
/// The name of the flag and variable that name the settings file; no setting itself.
pub const CONFIG: &str = "config";

/// One setting.
#[derive(Debug)]
pub struct Setting {
    /// Its name in lower snake case, which is its key in the settings file.
    pub name: &'static str,
    /// What holds where nothing is given.
    pub default: Fallback,
    /// What it decides.
    pub meaning: &'static str,
    /// Which texts it accepts, with unit and range.
    pub accepts: &'static str,
    /// How its text is given and shown.
    pub shape: Shape,
}

/// What holds where a setting is not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// This text, read as if it had been given.
    Text(&'static str),
    /// No text; in words, what then holds.
    Otherwise(&'static str),
}

/// How a setting's text is given and shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One value.
    One,
    /// True or false; the flag alone means true.
    Switch,
    /// Values separated by commas, or an array in the settings file.
    List,
    /// As [`Shape::One`], never shown, and also given by the name of a file that holds it.
    Secret,
    /// As [`Shape::List`], never shown, and also given by the name of a file that holds it.
    Secrets,
}

impl Setting {
    /// True where the value is never to be shown.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        matches!(self.shape, Shape::Secret | Shape::Secrets)
    }

    fn is_list(&self) -> bool {
        matches!(self.shape, Shape::List | Shape::Secrets)
    }
}

/// One way to give a setting: as such, or by the name of a file that holds its text.
#[derive(Debug)]
pub struct Spelling {
    /// The setting.
    pub setting: &'static Setting,
    /// True where the text names a file that holds the setting's.
    pub is_file: bool,
    /// The key: `push_interval`, `jwt_secret_file`.
    pub key: String,
    /// The flag without its dashes: `push-interval`.
    pub flag: String,
    /// The environment variable: `LIVECOUNT_PUSH_INTERVAL`.
    pub variable: String,
}

/// Every way to give every setting, in the order of [`SETTINGS`].
pub static SPELLINGS: LazyLock<Vec<Spelling>> = LazyLock::new(|| {
    let spellings = SETTINGS.iter().flat_map(|setting| {
        let file = setting.is_secret().then(|| Spelling::new(setting, true));
        [Spelling::new(setting, false)].into_iter().chain(file)
    });
    spellings.collect()
});

impl Spelling {
    fn new(setting: &'static Setting, is_file: bool) -> Self {
        let key = format!("{}{}", setting.name, if is_file { "_file" } else { "" });
        Self {
            setting,
            is_file,
            flag: key.replace('_', "-"),
            variable: format!("{PREFIX}{}", key.to_ascii_uppercase()),
            key,
        }
    }
}

/// Where a setting's text came from, the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Nowhere: its default.
    Default,
    /// The settings file.
    File,
    /// The environment.
    Environment,
    /// The command line.
    Flag,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::File => "settings file",
            Self::Environment => "environment",
            Self::Flag => "command line",
        })
    }
}

/// A setting's text and where it came from. Purposefully not `Debug`: the text may be a secret.
pub(super) struct Found {
    pub(super) text: String,
    pub(super) source: Source,
}

/// The text of every setting that has one.
pub(super) struct Texts(BTreeMap<&'static str, Found>);

impl Texts {
    /// Gathers the texts: a flag goes over the environment, the environment over the file.
    pub(super) fn gather(
        flags: &BTreeMap<String, String>,
        environment: &BTreeMap<String, String>,
        warnings: &mut Vec<Warning>,
    ) -> Result<Self, ConfigError> {
        let config_variable = format!("{PREFIX}{}", CONFIG.to_ascii_uppercase());
        let path = flags
            .get(CONFIG)
            .or_else(|| environment.get(&config_variable));
        let layers = [
            (Source::Flag, from_flags(flags)?),
            (
                Source::Environment,
                from_environment(environment, &config_variable, warnings),
            ),
            (
                Source::File,
                path.map(|path| from_file(Path::new(path)))
                    .transpose()?
                    .unwrap_or_default(),
            ),
        ];
        let mut texts = BTreeMap::new();
        for spelling in SPELLINGS.iter().filter(|spelling| !spelling.is_file) {
            if let Some(found) = find(spelling, &layers)? {
                texts.insert(spelling.setting.name, found);
            }
        }
        Ok(Self(texts))
    }

    /// The setting's text, where it has one.
    pub(super) fn get(&self, name: &str) -> Option<&Found> {
        self.0.get(name)
    }

    /// Reads a setting that has a default, by `parse`.
    pub(super) fn read<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Result<T, ConfigError> {
        let (text, source) = match self.get(name) {
            Some(found) => (found.text.as_str(), found.source),
            None => ("", Source::Default),
        };
        parse(text).map_err(|problem| refused(name, source, problem))
    }

    /// Reads a setting that may be absent, by `parse`.
    pub(super) fn read_optional<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, Problem>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(name).map(|_| self.read(name, parse)).transpose()
    }

    /// Reads the file that a setting names.
    pub(super) fn read_file(&self, name: &str) -> Result<Option<(PathBuf, String)>, ConfigError> {
        let Some(found) = self.get(name) else {
            return Ok(None);
        };
        let text = file_text(variable(name), &found.text)?;
        Ok(Some((PathBuf::from(&found.text), text)))
    }
}

/// The environment variable of a setting.
pub(super) fn variable(name: &str) -> &'static str {
    spelling(name).map_or("", |spelling| &spelling.variable)
}

fn spelling(key: &str) -> Option<&'static Spelling> {
    SPELLINGS.iter().find(|spelling| spelling.key == key)
}

fn refused(name: &str, origin: Source, problem: Problem) -> ConfigError {
    let accepts = spelling(name).map_or("", |spelling| spelling.setting.accepts);
    ConfigError::Value {
        variable: variable(name),
        origin,
        problem,
        accepts,
    }
}

/// The texts of one source, by key.
type Layer = BTreeMap<&'static str, String>;

/// A setting's text from the strongest layer that gives it. As such and by file are two
/// spellings of one setting: which of them a weaker layer uses is of no matter.
fn find(
    spelling: &'static Spelling,
    layers: &[(Source, Layer)],
) -> Result<Option<Found>, ConfigError> {
    let variable = spelling.variable.as_str();
    for &(source, ref layer) in layers {
        let direct = layer.get(spelling.key.as_str());
        let path = layer.get(format!("{}_file", spelling.key).as_str());
        let path = path.filter(|_| spelling.setting.is_secret());
        let text = match (direct, path) {
            (None, None) => continue,
            (Some(_), Some(_)) => {
                return Err(ConfigError::Twice {
                    variable,
                    origin: source,
                });
            }
            (Some(text), None) => text.clone(),
            (None, Some(path)) => {
                let by_file = SPELLINGS
                    .iter()
                    .find(|other| other.is_file && other.setting.name == spelling.setting.name);
                let variable = by_file.map_or(variable, |spelling| &spelling.variable);
                let text = file_text(variable, path)?;
                text.trim_end_matches(['\r', '\n']).to_owned()
            }
        };
        return Ok(Some(Found { text, source }));
    }
    Ok(match spelling.setting.default {
        Fallback::Text(text) => Some(Found {
            text: text.to_owned(),
            source: Source::Default,
        }),
        Fallback::Otherwise(_) => None,
    })
}

fn from_flags(flags: &BTreeMap<String, String>) -> Result<Layer, ConfigError> {
    let mut layer = Layer::new();
    for (key, text) in flags.iter().filter(|(key, _)| *key != CONFIG) {
        let spelling =
            spelling(key).ok_or_else(|| ConfigError::UnknownFlag(key.replace('_', "-")))?;
        layer.insert(&spelling.key, text.clone());
    }
    Ok(layer)
}

/// A variable that is no setting only warns: others write into this namespace too, such as
/// Kubernetes for a service of this name.
fn from_environment(
    environment: &BTreeMap<String, String>,
    config_variable: &str,
    warnings: &mut Vec<Warning>,
) -> Layer {
    let by_variable: BTreeMap<&str, &'static str> = SPELLINGS
        .iter()
        .map(|spelling| (spelling.variable.as_str(), spelling.key.as_str()))
        .collect();
    let mut layer = Layer::new();
    for (variable, text) in environment {
        if let Some(&key) = by_variable.get(variable.as_str()) {
            layer.insert(key, text.clone());
        } else if variable.starts_with(PREFIX) && variable != config_variable {
            warnings.push(Warning::UnknownVariable(variable.clone()));
        }
    }
    layer
}

fn from_file(path: &Path) -> Result<Layer, ConfigError> {
    let text = file_text("LIVECOUNT_CONFIG", path)?;
    let table: toml::Table = toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.bytes().take(start);
        ConfigError::Toml {
            path: path.to_owned(),
            line: 1 + before.filter(|byte| *byte == b'\n').count(),
            problem: error.message().to_owned(),
        }
    })?;
    let mut layer = Layer::new();
    for (key, value) in table {
        let Some(spelling) = spelling(&key) else {
            let path = path.to_owned();
            return Err(ConfigError::UnknownKey { path, key });
        };
        let is_list = spelling.setting.is_list() && !spelling.is_file;
        let text = toml_text(&value, is_list)
            .map_err(|problem| refused(spelling.setting.name, Source::File, problem))?;
        layer.insert(&spelling.key, text);
    }
    Ok(layer)
}

/// A value as the text that a flag would hold. Shows nothing of it in an error.
fn toml_text(value: &toml::Value, is_list: bool) -> Result<String, Problem> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(truth.to_string()),
        toml::Value::Array(entries) if is_list => {
            let text = |entry: &toml::Value| match entry.as_str() {
                Some(text) if !text.contains(',') => Ok(text.to_owned()),
                Some(_) => Err("an entry of its array holds a comma".to_owned()),
                None => Err("an entry of its array is no string".to_owned()),
            };
            let entries = entries.iter().map(text).collect::<Result<Vec<_>, _>>()?;
            Ok(entries.join(","))
        }
        toml::Value::Array(_)
        | toml::Value::Float(_)
        | toml::Value::Datetime(_)
        | toml::Value::Table(_) => Err(format!("it is of the type {}", value.type_str())),
    }
}

fn file_text(variable: &'static str, path: impl AsRef<Path>) -> Result<String, ConfigError> {
    fs::read_to_string(&path).map_err(|reason| ConfigError::File {
        variable,
        path: path.as_ref().to_owned(),
        reason,
    })
}

/// Every setting, in the order in which help and `check-config` show them.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "listen",
        default: Fallback::Text("127.0.0.1:8080"),
        meaning: "address to serve on; port 0 picks a free one, and the log says which",
        accepts: "an IP address and port, such as 0.0.0.0:8080 or [::]:8080",
        shape: Shape::One,
    },
    Setting {
        name: "ops_listen",
        default: Fallback::Otherwise("none"),
        meaning: "second address, for operators: serves metrics, the dashboard and the whole API, and takes the first two from the main one",
        accepts: "an IP address and port, such as 127.0.0.1:9090",
        shape: Shape::One,
    },
    Setting {
        name: "public_url",
        default: Fallback::Otherwise("none"),
        meaning: "address that clients know the service by; makes stream_url absolute",
        accepts: "http or https, a host and perhaps a path, such as https://example.org/live",
        shape: Shape::One,
    },
    Setting {
        name: "jwt_secret",
        default: Fallback::Otherwise("none"),
        meaning: "HS256 keys that tokens are verified with, the first of which signs",
        accepts: "keys of 32 bytes or more, separated by commas",
        shape: Shape::Secrets,
    },
    Setting {
        name: "jwt_public_key_file",
        default: Fallback::Otherwise("none"),
        meaning: "file with the public key that tokens are verified with",
        accepts: "the path of a PEM file with an RSA, P-256 or Ed25519 public key",
        shape: Shape::One,
    },
    Setting {
        name: "jwks_file",
        default: Fallback::Otherwise("none"),
        meaning: "file with the public keys that tokens are verified with",
        accepts: "the path of a JWKS file (JSON)",
        shape: Shape::One,
    },
    Setting {
        name: "jwks_url",
        default: Fallback::Otherwise("none"),
        meaning: "address to fetch the public keys from that tokens are verified with",
        accepts: "an http or https URL without a user's name, such as https://example.org/.well-known/jwks.json",
        shape: Shape::One,
    },
    Setting {
        name: "jwt_issuer",
        default: Fallback::Otherwise("not checked"),
        meaning: "what a token's iss must be",
        accepts: "one value or more, separated by commas, any of which will do",
        shape: Shape::List,
    },
    Setting {
        name: "jwt_audience",
        default: Fallback::Otherwise("not checked"),
        meaning: "what a token's aud must hold",
        accepts: "one value or more, separated by commas, any of which will do",
        shape: Shape::List,
    },
    Setting {
        name: "ticket_key",
        default: Fallback::Otherwise("derived from the JWT secret"),
        meaning: "keys of tickets: the first signs, all verify",
        accepts: "keys of 32 bytes or more, separated by commas",
        shape: Shape::Secrets,
    },
    Setting {
        name: "ticket_ttl",
        default: Fallback::Text("24h"),
        meaning: "how long a ticket holds at most; never past its token's exp",
        accepts: "a duration from 1s to 30d",
        shape: Shape::One,
    },
    Setting {
        name: "anonymous_rooms",
        default: Fallback::Text("blog:*"),
        meaning: "rooms that may be joined and read without a token; empty: none",
        accepts: "at most 16 rooms or prefixes with a final *, separated by commas, none of them personal (user:)",
        shape: Shape::List,
    },
    Setting {
        name: "cors_origins",
        default: Fallback::Text("*"),
        meaning: "pages whose scripts may call the service; * is all of them, but without cookies",
        accepts: "* alone, or origins such as https://example.org, separated by commas",
        shape: Shape::List,
    },
    Setting {
        name: "trusted_proxies",
        default: Fallback::Text("loopback"),
        meaning: "proxies whose forwarded header is believed; empty: none",
        accepts: "IP addresses, CIDR ranges and the words loopback and private, separated by commas",
        shape: Shape::List,
    },
    Setting {
        name: "forwarded_header",
        default: Fallback::Text("X-Forwarded-For"),
        meaning: "the one header believed from a trusted proxy, read from the right",
        accepts: "a header's name",
        shape: Shape::One,
    },
    Setting {
        name: "redis_url",
        default: Fallback::Otherwise("none: one node in memory"),
        meaning: "Redis through which nodes share their counts",
        accepts: "a redis:// or rediss:// URL",
        shape: Shape::Secret,
    },
    Setting {
        name: "redis_prefix",
        default: Fallback::Text("livecount:"),
        meaning: "what every key in Redis starts with",
        accepts: "1 to 64 visible ASCII characters",
        shape: Shape::One,
    },
    Setting {
        name: "node_name",
        default: Fallback::Otherwise("host name"),
        meaning: "this process's name among its nodes",
        accepts: "1 to 64 characters of A-Z a-z 0-9 . _ -",
        shape: Shape::One,
    },
    Setting {
        name: "leave_grace",
        default: Fallback::Text("0s"),
        meaning: "how long a viewer whose stream broke still counts; a goodbye is immediate",
        accepts: "a duration from 0s to 10m",
        shape: Shape::One,
    },
    Setting {
        name: "heartbeat",
        default: Fallback::Text("20s"),
        meaning: "time between pings on a quiet stream",
        accepts: "a duration from 1s to 10m",
        shape: Shape::One,
    },
    Setting {
        name: "push_interval",
        default: Fallback::Text("100ms"),
        meaning: "shortest time between two counts of a room; grows with the room",
        accepts: "a duration from 10ms to 5s",
        shape: Shape::One,
    },
    Setting {
        name: "drain",
        default: Fallback::Text("10s"),
        meaning: "time from SIGTERM to the last stream's end",
        accepts: "a duration from 0s to 10m",
        shape: Shape::One,
    },
    Setting {
        name: "max_connections",
        default: Fallback::Otherwise("from the descriptor limit"),
        meaning: "streams open at a time",
        accepts: "a number from 1 to 10000000",
        shape: Shape::One,
    },
    Setting {
        name: "max_connections_per_ip",
        default: Fallback::Text("1000"),
        meaning: "streams open at a time from one IPv4 address or IPv6 /64; loopback clients and trusted proxies themselves have no limit",
        accepts: "a number from 1 to 10000000",
        shape: Shape::One,
    },
    Setting {
        name: "max_connections_per_member",
        default: Fallback::Text("20"),
        meaning: "streams open at a time by tokens of one user",
        accepts: "a number from 1 to 10000000",
        shape: Shape::One,
    },
    Setting {
        name: "max_rooms_per_connection",
        default: Fallback::Text("16"),
        meaning: "rooms that one connection may have joined, personal ones aside",
        accepts: "a number from 1 to 1000",
        shape: Shape::One,
    },
    Setting {
        name: "dev",
        default: Fallback::Text("false"),
        meaning: "where no key is configured: start with a random one, on any address",
        accepts: "true or false",
        shape: Shape::Switch,
    },
    Setting {
        name: "demo",
        default: Fallback::Otherwise("on in development, else off"),
        meaning: "serve the demo page",
        accepts: "true or false",
        shape: Shape::Switch,
    },
    Setting {
        name: "log",
        default: Fallback::Text("info"),
        meaning: "what is logged, to standard error",
        accepts: "off, error, warn, info, debug, trace, or a list such as warn,livecount=debug",
        shape: Shape::One,
    },
    Setting {
        name: "log_format",
        default: Fallback::Text("text"),
        meaning: "how a log line is written",
        accepts: "text or json",
        shape: Shape::One,
    },
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn flag_variable_and_key_come_from_one_name() {
        let spelling = spelling("push_interval").unwrap();
        assert_eq!(spelling.flag, "push-interval");
        assert_eq!(spelling.variable, "LIVECOUNT_PUSH_INTERVAL");
    }

    #[test]
    fn no_two_spellings_collide() {
        let keys: BTreeSet<_> = SPELLINGS.iter().map(|spelling| &spelling.key).collect();
        assert_eq!(keys.len(), SPELLINGS.len());
        assert!(spelling(CONFIG).is_none());
    }

    #[test]
    fn keys_and_the_redis_url_are_secret_and_have_a_file_spelling() {
        let secret: Vec<_> = SPELLINGS
            .iter()
            .filter(|spelling| spelling.is_file)
            .map(|spelling| spelling.variable.as_str())
            .collect();
        assert_eq!(
            secret,
            [
                "LIVECOUNT_JWT_SECRET_FILE",
                "LIVECOUNT_TICKET_KEY_FILE",
                "LIVECOUNT_REDIS_URL_FILE"
            ]
        );
    }
}
