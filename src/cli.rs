//! What was typed: `serve`, `check-config`, `token`, `healthcheck`, and every setting as a flag.
//!
//! Flags come from the table of settings and leave as texts; what they mean is for
//! [`crate::config`] to say. The two subcommands that need nothing of the service run here.

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::OsString,
    fmt,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    process::ExitCode,
    sync::mpsc,
    thread,
    time::Duration,
};

use clap::{Arg, ArgAction, ArgMatches, builder::ValueParser};

use crate::{
    auth::token::{self, Rules},
    config::{
        Config, Setting,
        settings::{self, Fallback, SPELLINGS, Shape},
    },
    hub::{id::UserId, pattern::Patterns},
};

/// Exit code where what was typed or configured cannot be used, as clap has it.
const UNUSABLE: u8 = 2;
/// Longest wait of a health check, from the look-up of the host to the status line.
const HEALTHCHECK_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of an answer in which its status is looked for.
const STATUS_BYTES: u64 = 12;
/// Longest life of a token that `token` makes: 10 years.
const LONGEST_TOKEN: Duration = Duration::from_hours(24 * 3_652);

/// The settings given as flags, by the settings' names; [`Config::load`] takes the map.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Flags(pub BTreeMap<String, String>);

impl fmt::Debug for Flags {
    /// Shows names only, since a value may be a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// What the process is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run the service; what `livecount` alone does.
    Serve(Flags),
    /// Print the settings in force: [`check_config`].
    CheckConfig(Flags),
    /// Print a token: [`token()`].
    Token(TokenRequest, Flags),
    /// Ask a running service whether it is alive: [`healthcheck`].
    Healthcheck {
        /// Whom to ask; the configured `listen` where not given.
        url: Option<String>,
        /// The settings.
        flags: Flags,
    },
}

/// What a token is to say. `exp` is `ttl` from now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequest {
    /// The claim `sub`.
    pub sub: UserId,
    /// The claim `scope`, space-separated and valid; left out where empty.
    pub scope: String,
    /// The claim `rooms`, valid patterns; left out where not given.
    pub rooms: Option<Vec<String>>,
    /// How long it holds, 1 s to 10 years. 1 h by default.
    pub ttl: Duration,
}

/// Reads the command line, the program's name first.
///
/// # Errors
///
/// For what is no command line of the service, and for `--help` and `--version`: the error's
/// `exit` prints either and ends the process with the right code.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let mut flags = BTreeMap::new();
    gather(&matches, &mut flags);
    let Some((name, matches)) = matches.subcommand() else {
        return Ok(Command::Serve(Flags(flags)));
    };
    gather(matches, &mut flags);
    let flags = Flags(flags);
    let text = |name: &str| matches.get_one::<String>(name).cloned();
    Ok(match name {
        "check-config" => Command::CheckConfig(flags),
        "healthcheck" => Command::Healthcheck {
            url: text("url"),
            flags,
        },
        "token" => Command::Token(token_request(matches)?, flags),
        _ => Command::Serve(flags),
    })
}

/// Prints the settings in force, warnings on standard error: code 0, or 2 where they cannot be
/// used.
#[must_use]
pub fn check_config(flags: &Flags, environment: &BTreeMap<String, String>) -> ExitCode {
    match Config::load(&flags.0, environment) {
        Ok((config, warnings)) => {
            for warning in warnings {
                say(io::stderr(), &format!("warning: {warning}\n"));
            }
            say(io::stdout(), &config.describe());
            ExitCode::SUCCESS
        }
        Err(error) => unusable(&error),
    }
}

/// Prints a token that `sign` makes with the configured secret: code 0, or 2 where there is
/// none or the settings cannot be used.
#[must_use]
pub fn token(
    request: &TokenRequest,
    flags: &Flags,
    environment: &BTreeMap<String, String>,
) -> ExitCode {
    let config = match Config::load(&flags.0, environment) {
        Ok((config, _)) => config,
        Err(error) => return unusable(&error),
    };
    let secret = match config.token_secret() {
        Ok(secret) => secret,
        Err(error) => return unusable(&error),
    };
    let rules = Rules {
        issuer: config.jwt_issuer.clone(),
        audience: config.jwt_audience.clone(),
    };
    let scope = (!request.scope.is_empty()).then_some(request.scope.as_str());
    let rooms = request.rooms.as_deref();
    match token::sign(
        secret.expose(),
        request.sub.as_str(),
        scope,
        rooms,
        request.ttl,
        &rules,
    ) {
        Ok(token) => {
            say(io::stdout(), &format!("{token}\n"));
            ExitCode::SUCCESS
        }
        Err(error) => unusable(&error),
    }
}

/// Asks `url`, or the configured `listen` address, for `/livez`: code 0 where the answer is
/// 200 within 3 s, else 1, the reason on standard error. Blocks.
#[must_use]
pub fn healthcheck(
    url: Option<&str>,
    flags: &Flags,
    environment: &BTreeMap<String, String>,
) -> ExitCode {
    let probe = match url {
        Some(url) => Probe::parse(url),
        None => Config::load(&flags.0, environment)
            .map_err(|error| with_causes(&error))
            .and_then(|(config, _)| Probe::of(config.listen)),
    };
    match probe.and_then(|probe| probe.ask(HEALTHCHECK_TIMEOUT)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(reason) => {
            say(io::stderr(), &format!("livecount: not healthy: {reason}\n"));
            ExitCode::FAILURE
        }
    }
}

/// Prints why the process cannot go on, causes included, on standard error: code 2.
#[must_use]
pub fn unusable(error: &(dyn Error + 'static)) -> ExitCode {
    say(
        io::stderr(),
        &format!("livecount: {}\n", with_causes(error)),
    );
    ExitCode::from(UNUSABLE)
}

/// An error's message, then those of its causes, separated by colons.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Writes `text` out. A reader that went away, as `| head` does, is no error of ours.
fn say(mut out: impl Write, text: &str) {
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn command() -> clap::Command {
    let shown = |command: clap::Command| command.args(setting_args(false));
    let hidden = |command: clap::Command| command.args(setting_args(true));
    shown(clap::Command::new("livecount"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("Counts who is on a page right now and tells everyone on it, over Server-Sent Events")
        .after_help(
            "Every setting is also an environment variable (--push-interval: LIVECOUNT_PUSH_INTERVAL) \
             and a key of the settings file (push_interval). Flags go over the environment, the \
             environment goes over the file.",
        )
        // Or the value of a switch, which may be left out, would swallow the subcommand.
        .subcommand_precedence_over_arg(true)
        .subcommand(shown(
            clap::Command::new("serve").about("Runs the service; the same as no subcommand"),
        ))
        .subcommand(shown(clap::Command::new("check-config").about(
            "Prints the settings in force with secrets hidden; exits with 2 where they cannot be used",
        )))
        .subcommand(hidden(
            clap::Command::new("token")
                .about("Prints a token signed with the first key of --jwt-secret")
                .args(token_args()),
        ))
        .subcommand(hidden(
            clap::Command::new("healthcheck")
                .about("Asks a running service whether it is alive; exits with 0 or 1")
                .arg(
                    Arg::new("url").long("url").value_name("URL").help(
                        "Whom to ask, /livez where it has no path [default: the listen address]",
                    ),
                ),
        ))
}

/// Every setting as a flag, and `--config`; `hidden` leaves them to the long help.
fn setting_args(hidden: bool) -> impl Iterator<Item = Arg> {
    let config = Arg::new(settings::CONFIG)
        .long(settings::CONFIG)
        .value_name("PATH")
        .help("settings file, TOML [default: none]");
    let settings = SPELLINGS.iter().map(|spelling| {
        let arg = Arg::new(spelling.key.as_str()).long(spelling.flag.as_str());
        if spelling.is_file {
            let direct = spelling.setting.name.replace('_', "-");
            let help =
                format!("file that holds the value of --{direct}, unseen by other processes");
            return arg.value_name("PATH").help(help);
        }
        let arg = arg.value_name("VALUE").help(setting_help(spelling.setting));
        match spelling.setting.shape {
            Shape::Switch => arg.num_args(0..=1).default_missing_value("true"),
            Shape::One | Shape::List | Shape::Secret | Shape::Secrets => arg,
        }
    });
    [config]
        .into_iter()
        .chain(settings)
        .map(move |arg| arg.help_heading("Settings").hide_short_help(hidden))
}

fn setting_help(setting: &Setting) -> String {
    let Setting {
        meaning, accepts, ..
    } = setting;
    let (Fallback::Text(default) | Fallback::Otherwise(default)) = setting.default;
    format!("{meaning} ({accepts}) [default: {default}]")
}

fn token_args() -> [Arg; 4] {
    [
        Arg::new("sub")
            .long("sub")
            .value_name("USER")
            .required(true)
            .value_parser(|text: &str| UserId::parse(text))
            .help("Whom the token is for"),
        Arg::new("scope")
            .long("scope")
            .value_name("SCOPES")
            .default_value("")
            .value_parser(scope)
            .help("What it allows: read, publish, manage, admin, separated by spaces"),
        Arg::new("rooms")
            .long("rooms")
            .value_name("PATTERNS")
            .action(ArgAction::Append)
            .help("Rooms it opens, or prefixes with a final *, separated by commas or repeated [default: no claim, which is blog:*]"),
        Arg::new("ttl")
            .long("ttl")
            .value_name("DURATION")
            .default_value("1h")
            .value_parser(ValueParser::new(token_ttl))
            .help("How long it holds, 1s to 10 years"),
    ]
}

fn scope(text: &str) -> Result<String, String> {
    let scopes: Vec<_> = text.split_whitespace().collect();
    for scope in &scopes {
        if !matches!(*scope, "read" | "publish" | "manage" | "admin") {
            return Err("a scope is one of read, publish, manage, admin".to_owned());
        }
    }
    Ok(scopes.join(" "))
}

fn token_ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if ttl < Duration::from_secs(1) || ttl > LONGEST_TOKEN {
        return Err("it holds from 1s to 10 years".to_owned());
    }
    Ok(ttl)
}

/// Adds the settings of one level of the command line to `flags`.
fn gather(matches: &ArgMatches, flags: &mut BTreeMap<String, String>) {
    let keys = SPELLINGS.iter().map(|spelling| spelling.key.as_str());
    for key in keys.chain([settings::CONFIG]) {
        if let Some(text) = matches.get_one::<String>(key) {
            flags.insert(key.to_owned(), text.clone());
        }
    }
}

fn token_request(matches: &ArgMatches) -> Result<TokenRequest, clap::Error> {
    let required = |name: &str| {
        let message = format!("--{name} is required\n");
        clap::Error::raw(clap::error::ErrorKind::MissingRequiredArgument, message)
    };
    let rooms = matches.get_many::<String>("rooms").map(|lists| {
        let names = lists.flat_map(|list| list.split(',')).map(str::trim);
        names
            .filter(|name| !name.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    if let Some(rooms) = &rooms {
        Patterns::parse(rooms.iter().map(String::as_str)).map_err(|error| {
            let message = format!("--rooms: {error}\n");
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, message)
        })?;
    }
    Ok(TokenRequest {
        sub: matches
            .get_one::<UserId>("sub")
            .cloned()
            .ok_or_else(|| required("sub"))?,
        scope: matches
            .get_one::<String>("scope")
            .cloned()
            .unwrap_or_default(),
        rooms,
        ttl: *matches
            .get_one::<Duration>("ttl")
            .ok_or_else(|| required("ttl"))?,
    })
}

/// One request for a service's health.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Probe {
    authority: String,
    path: String,
}

impl Probe {
    fn parse(url: &str) -> Result<Self, String> {
        let after = url
            .strip_prefix("http://")
            .filter(|after| after.bytes().all(|byte| byte.is_ascii_graphic()))
            .ok_or("--url is an http:// URL, such as http://127.0.0.1:8080/livez")?;
        let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
        // A colon within brackets belongs to an IPv6 address.
        let has_port = authority
            .rsplit(']')
            .next()
            .unwrap_or_default()
            .contains(':');
        let port = if has_port { "" } else { ":80" };
        Ok(Self {
            authority: format!("{authority}{port}"),
            path: if path.len() > 1 { path } else { "/livez" }.to_owned(),
        })
    }

    /// The probe of a listener on this machine; on every address means on loopback too.
    fn of(mut listen: SocketAddr) -> Result<Self, String> {
        if listen.port() == 0 {
            return Err("the configured port is 0, picked at start; name it by --url".to_owned());
        }
        if listen.ip().is_unspecified() {
            listen.set_ip(match listen.ip() {
                IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
                IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
            });
        }
        Ok(Self {
            authority: listen.to_string(),
            path: "/livez".to_owned(),
        })
    }

    /// Asks, on a thread of its own: one deadline then bounds look-up, connect and a slow
    /// answer alike. A thread that is still waiting ends with the process.
    fn ask(self, timeout: Duration) -> Result<(), String> {
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || sender.send(self.status_line()));
        match receiver.recv_timeout(timeout) {
            Ok(Ok(line)) if line.starts_with("HTTP/1.") && line.ends_with(" 200") => Ok(()),
            Ok(Ok(line)) => Err(format!("the answer was {line:?}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {timeout:?}")),
        }
    }

    /// The first bytes of the answer, `HTTP/1.1 200`.
    fn status_line(&self) -> io::Result<String> {
        let Self { authority, path } = self;
        let mut stream = TcpStream::connect(authority.as_str())?;
        let head = format!("GET {path} HTTP/1.1\r\nHost: {authority}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes())?;
        let mut line = Vec::new();
        stream.take(STATUS_BYTES).read_to_end(&mut line)?;
        Ok(String::from_utf8_lossy(&line).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::config::SETTINGS;

    fn parsed(line: &[&str]) -> Result<Command, clap::Error> {
        parse(["livecount"].iter().chain(line).map(OsString::from))
    }

    fn flags(pairs: &[(&str, &str)]) -> Flags {
        let owned = |&(key, text): &(&str, &str)| (key.to_owned(), text.to_owned());
        Flags(pairs.iter().map(owned).collect())
    }

    fn refusal(line: &[&str]) -> String {
        parsed(line)
            .expect_err("the command line is bad")
            .to_string()
    }

    fn help(line: &[&str]) -> String {
        let help = refusal(line);
        help.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// A server that gives one client this answer, and its address.
    fn answering(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = listener
            .local_addr()
            .expect("a bound socket has an address");
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client connects");
            let mut head = [0; 512];
            let read = stream.read(&mut head).expect("the client sends a head");
            assert!(head[..read].starts_with(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1:"));
            stream.write_all(answer).expect("the client reads");
            if answer.is_empty() {
                thread::sleep(Duration::from_secs(2));
            }
        });
        address
    }

    #[test]
    fn the_command_line_is_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn nothing_typed_means_serve() {
        assert_eq!(parsed(&[]).unwrap(), Command::Serve(Flags::default()));
        assert_eq!(
            parsed(&["serve"]).unwrap(),
            Command::Serve(Flags::default())
        );
    }

    #[test]
    fn settings_stand_before_or_behind_the_subcommand() {
        let expected = flags(&[("config", "x.toml"), ("push_interval", "1s")]);
        for line in [
            &["--push-interval", "1s", "--config=x.toml"][..],
            &["serve", "--push-interval", "1s", "--config", "x.toml"],
            &["--config", "x.toml", "serve", "--push-interval=1s"],
        ] {
            assert_eq!(parsed(line).unwrap(), Command::Serve(expected.clone()));
        }
    }

    #[test]
    fn every_spelling_of_every_setting_is_a_flag() {
        for spelling in SPELLINGS.iter() {
            let flag = format!("--{}", spelling.flag);
            let expected = flags(&[(&spelling.key, "true")]);
            let command = parsed(&["check-config", &flag, "true"]).unwrap();
            assert_eq!(command, Command::CheckConfig(expected));
        }
    }

    #[test]
    fn a_switch_alone_means_true() {
        for (line, text) in [
            (&["--dev"][..], "true"),
            (&["--dev", "serve"], "true"),
            (&["serve", "--dev"], "true"),
            (&["--dev=false"], "false"),
            (&["--dev", "false"], "false"),
        ] {
            assert_eq!(
                parsed(line).unwrap(),
                Command::Serve(flags(&[("dev", text)]))
            );
        }
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let command = parsed(&["--anonymous-rooms", ""]).unwrap();
        assert_eq!(command, Command::Serve(flags(&[("anonymous_rooms", "")])));
    }

    #[test]
    fn unknown_flags_and_subcommands_are_refused() {
        assert!(refusal(&["--puhs-interval", "1s"]).contains("--puhs-interval"));
        assert!(refusal(&["sevre"]).contains("sevre"));
    }

    #[test]
    fn help_tells_each_settings_meaning_range_and_default() {
        let help = help(&["serve", "--help"]);
        for setting in SETTINGS {
            assert!(help.contains(&setting_help(setting)), "{}", setting.name);
        }
    }

    #[test]
    fn debug_shows_no_value_of_a_flag() {
        let command = parsed(&["--jwt-secret", "hunter2"]).unwrap();
        assert_eq!(format!("{command:?}"), r#"Serve({"jwt_secret"})"#);
    }

    #[test]
    fn a_token_is_asked_for_with_its_claims() {
        let line = [
            "token",
            "--sub",
            "7",
            "--scope",
            "publish  read",
            "--rooms",
            "blog:*,match:1",
            "--rooms",
            "user:8",
            "--ttl",
            "2h",
        ];
        let expected = TokenRequest {
            sub: UserId::parse("7").unwrap(),
            scope: "publish read".to_owned(),
            rooms: Some(["blog:*", "match:1", "user:8"].map(str::to_owned).to_vec()),
            ttl: Duration::from_hours(2),
        };
        assert_eq!(
            parsed(&line).unwrap(),
            Command::Token(expected, Flags::default())
        );
    }

    #[test]
    fn a_token_needs_only_its_sub() {
        let Command::Token(request, _) = parsed(&["token", "--sub", "7"]).unwrap() else {
            panic!("another command");
        };
        assert_eq!((request.scope.as_str(), request.rooms), ("", None));
        assert_eq!(request.ttl, Duration::from_hours(1));
    }

    #[test]
    fn an_empty_list_of_rooms_is_a_claim_that_opens_none() {
        let Command::Token(request, _) = parsed(&["token", "--sub", "7", "--rooms", ""]).unwrap()
        else {
            panic!("another command");
        };
        assert_eq!(request.rooms, Some(Vec::new()));
    }

    #[test]
    fn a_token_that_no_service_would_take_is_refused() {
        for line in [
            &["token"][..],
            &["token", "--sub", ""],
            &["token", "--sub", "a b"],
            &["token", "--sub", "7", "--scope", "write"],
            &["token", "--sub", "7", "--rooms", "blog"],
            &["token", "--sub", "7", "--ttl", "0s"],
            &["token", "--sub", "7", "--ttl", "11years"],
            &["token", "--sub", "7", "--ttl", "soon"],
        ] {
            assert!(parsed(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn a_probe_goes_to_livez_unless_the_url_has_a_path() {
        for (url, authority, path) in [
            ("http://localhost", "localhost:80", "/livez"),
            ("http://127.0.0.1:8080/", "127.0.0.1:8080", "/livez"),
            ("http://[::1]:8080/readyz", "[::1]:8080", "/readyz"),
            ("http://[::1]", "[::1]:80", "/livez"),
        ] {
            let probe = Probe::parse(url).unwrap();
            assert_eq!(
                (probe.authority.as_str(), probe.path.as_str()),
                (authority, path)
            );
        }
        for bad in [
            "https://localhost",
            "localhost:8080",
            "http://a b",
            "http://a/\r\nX: y",
        ] {
            assert!(Probe::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_listener_on_every_address_is_probed_on_loopback() {
        let authority =
            |listen: &str| Probe::of(listen.parse().unwrap()).map(|probe| probe.authority);
        assert_eq!(authority("0.0.0.0:8080").as_deref(), Ok("127.0.0.1:8080"));
        assert_eq!(authority("[::]:8080").as_deref(), Ok("[::1]:8080"));
        assert_eq!(authority("192.0.2.1:80").as_deref(), Ok("192.0.2.1:80"));
        assert!(authority("127.0.0.1:0").is_err());
    }

    #[test]
    fn only_the_status_200_is_healthy() {
        let ask = |answer| {
            Probe::of(answering(answer))
                .unwrap()
                .ask(Duration::from_millis(500))
        };
        assert_eq!(ask(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"), Ok(()));
        assert!(ask(b"HTTP/1.1 503 Service Unavailable\r\n\r\n").is_err());
        assert!(ask(b"SSH-2.0-OpenSSH\r\n").is_err());
        assert_eq!(ask(b""), Err("no answer within 500ms".to_owned()));
    }

    #[test]
    fn a_healthcheck_of_nobody_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let code = healthcheck(Some(&url), &Flags::default(), &BTreeMap::new());
        assert_eq!(format!("{code:?}"), format!("{:?}", ExitCode::FAILURE));
    }
}
