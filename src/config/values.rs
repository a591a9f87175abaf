//! Single values: texts to durations, addresses, origins, networks, patterns and keys.
//!
//! Knows no setting's name. A parser says what is wrong with a text; what its setting accepts
//! is said by the table of settings. No message quotes a text that could hold a password.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::RangeInclusive,
    str::FromStr,
    time::Duration,
};

use hyper::header::HeaderName;
use ipnet::IpNet;

use crate::{
    cluster::store::is_url,
    hub::pattern::Patterns,
    telemetry::log::{self, LogFormat},
};

/// Shortest HS256 or ticket key: 32 bytes, the size of SHA-256's output (RFC 7518, section 3.2).
pub const MIN_KEY_BYTES: usize = 32;

const LOOPBACK: [&str; 2] = ["127.0.0.0/8", "::1/128"];
/// RFC 1918, and RFC 4193 for IPv6.
const PRIVATE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"];

/// Bytes that nobody is to see: `Debug` shows none of them. Purposefully without `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Keeps `bytes` from being shown.
    #[must_use]
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// Draws 256 random bits from the thread's cryptographic generator, written as 64
    /// hexadecimal digits.
    #[must_use]
    pub fn random() -> Self {
        let bits = rand::random::<[u128; 2]>();
        Self::new(format!("{:032x}{:032x}", bits[0], bits[1]).into_bytes())
    }

    /// The bytes, for whoever signs, verifies or logs in with them.
    #[must_use]
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// Which foreign pages' scripts may call the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origins {
    /// Every page's, but without cookies.
    Any,
    /// Those of these origins, `scheme://host[:port]` as a browser writes it. May be empty.
    Listed(Vec<String>),
}

/// The address that clients know the service by: scheme, host, port and path prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicUrl {
    text: String,
    origin_bytes: usize,
}

impl PublicUrl {
    /// The whole address, without a final slash: `https://example.org/live`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Its origin as a browser writes it: `https://example.org`.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.text[..self.origin_bytes]
    }

    /// Its path prefix, empty or `/live`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.text[self.origin_bytes..]
    }
}

/// A set of address ranges. Empty holds no address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Networks(Vec<IpNet>);

impl Networks {
    /// True where `address` is in one of the ranges; an IPv4 address written as IPv6
    /// (`::ffff:10.0.0.1`), as a dual-stack socket reports it, counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// What is wrong with a text.
pub(super) type Problem = String;

pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, Problem> {
    let duration = humantime::parse_duration(text)
        .map_err(|error| format!("{} is no duration ({error})", quoted(text)))?;
    if range.contains(&duration) {
        Ok(duration)
    } else {
        Err(format!("{} is out of range", quoted(text)))
    }
}

pub(super) fn number(text: &str, range: RangeInclusive<usize>) -> Result<usize, Problem> {
    // `parse` alone would take "+5".
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if digits && range.contains(&number) => Ok(number),
        _ if digits => Err(format!("{} is out of range", quoted(text))),
        _ => Err(format!("{} is no whole number", quoted(text))),
    }
}

pub(super) fn switch(text: &str) -> Result<bool, Problem> {
    match text {
        "true" | "on" | "yes" | "1" => Ok(true),
        "false" | "off" | "no" | "0" => Ok(false),
        _ => Err(format!("{} is neither true nor false", quoted(text))),
    }
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Problem> {
    text.parse()
        .map_err(|_| format!("{} is no IP address with a port", quoted(text)))
}

/// A text of 1 to `longest` visible ASCII characters, spaces excepted.
pub(super) fn word(text: &str, longest: usize) -> Result<String, Problem> {
    if text.is_empty() {
        Err("it is empty".to_owned())
    } else if text.len() > longest {
        Err(format!("it is longer than {longest} characters"))
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err(format!("{} holds a foreign character", quoted(text)))
    } else {
        Ok(text.to_owned())
    }
}

pub(super) fn node_name(text: &str) -> Result<String, Problem> {
    let is_foreign = |byte: u8| !byte.is_ascii_alphanumeric() && !b"._-".contains(&byte);
    if text.bytes().any(is_foreign) {
        return Err(format!("{} holds a foreign character", quoted(text)));
    }
    word(text, 64)
}

/// One or more texts that a claim may hold; an empty one would switch the check off unseen.
pub(super) fn claims(text: &str) -> Result<Vec<String>, Problem> {
    let values = list(text);
    if values.is_empty() || values.contains(&"") {
        return Err("it holds an empty value".to_owned());
    }
    Ok(values.into_iter().map(str::to_owned).collect())
}

/// Comma-separated keys, one or more, the first of which signs.
pub(super) fn secret_keys(text: &str) -> Result<Vec<Secret>, Problem> {
    let check = |(index, key): (usize, &str)| {
        let number = index + 1;
        if key.len() < MIN_KEY_BYTES {
            let length = key.len();
            Err(format!(
                "key {number} has {length} bytes, fewer than {MIN_KEY_BYTES}"
            ))
        } else if key.trim() != key {
            // Trimmed it would be another key than its other holder's.
            Err(format!("key {number} begins or ends with white space"))
        } else {
            Ok(Secret::new(key.as_bytes()))
        }
    };
    text.split(',').enumerate().map(check).collect()
}

pub(super) fn patterns(text: &str) -> Result<Patterns, Problem> {
    let patterns = list(text);
    // A prefix never covers a personal room and a full name never opens one, so either would
    // promise what does not happen.
    if let Some(personal) = patterns.iter().find(|pattern| pattern.starts_with("user:")) {
        return Err(format!("{} is for personal rooms", quoted(personal)));
    }
    Patterns::parse(patterns).map_err(|error| error.to_string())
}

pub(super) fn origins(text: &str) -> Result<Origins, Problem> {
    let entries = list(text);
    if entries == ["*"] {
        return Ok(Origins::Any);
    }
    if entries.contains(&"*") {
        return Err("* stands beside other origins".to_owned());
    }
    let origin = |entry: &str| match split_url(entry)? {
        (origin, "") => Ok(origin),
        _ => Err("an origin has no path, not even a final slash".to_owned()),
    };
    let listed = entries.into_iter().map(origin).collect::<Result<_, _>>()?;
    Ok(Origins::Listed(listed))
}

pub(super) fn public_url(text: &str) -> Result<PublicUrl, Problem> {
    let (origin, path) = split_url(text)?;
    web_scheme(&origin)?;
    let prefix = path.trim_end_matches('/');
    let is_path = prefix
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"/-._~!$&'()*+,;=:@%".contains(&byte));
    if path.contains(['?', '#']) {
        return Err("it has a query or fragment".to_owned());
    }
    if !is_path || prefix.contains("//") || prefix.split('/').any(|part| matches!(part, "." | ".."))
    {
        return Err("its path is malformed".to_owned());
    }
    Ok(PublicUrl {
        origin_bytes: origin.len(),
        text: origin + prefix,
    })
}

/// An http or https address to fetch from, its query kept.
pub(super) fn fetch_url(text: &str) -> Result<String, Problem> {
    let (origin, rest) = split_url(text)?;
    web_scheme(&origin)?;
    if rest.contains('#') || !rest.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("its path is malformed or it has a fragment".to_owned());
    }
    Ok(origin + rest)
}

pub(super) fn redis_url(text: &str) -> Result<Secret, Problem> {
    let (scheme, rest) = text.split_once("://").unwrap_or_default();
    if !matches!(scheme, "redis" | "rediss") {
        return Err("it does not start with redis:// or rediss://".to_owned());
    }
    if rest.contains('#') {
        return Err(
            "it has a fragment: what is not percent-encoded in a password, or `#insecure`, which this service does not do"
                .to_owned(),
        );
    }
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit('@').next().unwrap_or_default();
    if host.is_empty() || host.starts_with(':') || !text.bytes().all(|byte| byte.is_ascii_graphic())
    {
        return Err("it has no host or holds a foreign character".to_owned());
    }
    if !is_url(text) {
        return Err(
            "its port is no port, its database no number, or a user or password is not percent-encoded"
                .to_owned(),
        );
    }
    Ok(Secret::new(text.as_bytes()))
}

pub(super) fn networks(text: &str) -> Result<Networks, Problem> {
    let mut networks = Vec::new();
    for entry in list(text) {
        let ranges: &[&str] = match entry {
            "loopback" => &LOOPBACK,
            "private" => &PRIVATE,
            range => &[range],
        };
        for range in ranges {
            networks.push(network(range)?);
        }
    }
    Ok(Networks(networks))
}

pub(super) fn header_name(text: &str) -> Result<HeaderName, Problem> {
    HeaderName::from_str(text).map_err(|_| format!("{} is no header's name", quoted(text)))
}

pub(super) fn log_filter(text: &str) -> Result<String, Problem> {
    log::check_filter(text).map_err(|error| error.to_string())?;
    Ok(text.to_owned())
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, Problem> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err(format!("{} is no format", quoted(text))),
    }
}

/// Comma-separated entries; none of them where the text is blank.
fn list(text: &str) -> Vec<&str> {
    if text.trim().is_empty() {
        return Vec::new();
    }
    text.split(',').map(str::trim).collect()
}

fn network(text: &str) -> Result<IpNet, Problem> {
    let network = IpNet::from_str(text)
        .or_else(|_| IpAddr::from_str(text).map(IpNet::from))
        .map_err(|_| format!("{} is no address or range", quoted(text)))?;
    // Addresses are compared as IPv4 where they can be, so such a range would never match.
    if matches!(network.addr(), IpAddr::V6(address) if address.to_ipv4_mapped().is_some()) {
        return Err(format!("{} is an IPv4 range written as IPv6", quoted(text)));
    }
    Ok(network.trunc())
}

fn web_scheme(origin: &str) -> Result<(), Problem> {
    if origin.starts_with("http://") || origin.starts_with("https://") {
        Ok(())
    } else {
        Err("its scheme is neither http nor https".to_owned())
    }
}

/// Splits a URL into its origin, written as a browser does (RFC 6454, section 6.2: lower case,
/// no default port), and whatever follows. A name and password in it are refused, unquoted.
fn split_url(text: &str) -> Result<(String, &str), Problem> {
    let (scheme, after) = text
        .split_once("://")
        .ok_or_else(|| "it has no scheme://".to_owned())?;
    let scheme = scheme.to_ascii_lowercase();
    let goes_on_well = scheme
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    if !goes_on_well || !scheme.starts_with(|first: char| first.is_ascii_lowercase()) {
        return Err("its scheme is malformed".to_owned());
    }
    let end = after.find(['/', '?', '#']).unwrap_or(after.len());
    let (authority, rest) = after.split_at(end);
    if authority.contains('@') {
        return Err("it holds a user's name or password".to_owned());
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host = canonical_host(host)?;
    let port = match port.map(|port| number(port, 1..=65_535)) {
        Some(Err(_)) => return Err("its port is no number from 1 to 65535".to_owned()),
        Some(Ok(80)) if scheme == "http" => None,
        Some(Ok(443)) if scheme == "https" => None,
        Some(Ok(port)) => Some(port),
        None => None,
    };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    Ok((format!("{scheme}://{host}{port}"), rest))
}

fn canonical_host(host: &str) -> Result<String, Problem> {
    if let Some(inside) = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        return Ipv6Addr::from_str(inside)
            .map(|address| format!("[{address}]"))
            .map_err(|_| "its IPv6 address is malformed".to_owned());
    }
    let well_formed = host
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if host.is_empty() || host.len() > 253 || !well_formed {
        return Err("its host is missing or holds a foreign character".to_owned());
    }
    Ok(host.to_ascii_lowercase())
}

/// The text as a message shows it: escaped, and its first 80 characters at most.
fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(80).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(networks: &Networks, address: &str) -> bool {
        networks.contains(address.parse().unwrap())
    }

    #[test]
    fn a_secret_shows_nothing() {
        let secret = Secret::new(*b"hunter2");
        assert_eq!(format!("{secret:?} {secret:#?}"), "(hidden) (hidden)");
        assert_eq!(secret.expose(), b"hunter2");
    }

    #[test]
    fn random_secrets_are_long_printable_and_differ() {
        let secret = Secret::random();
        assert_eq!(secret.expose().len(), 64);
        assert!(secret.expose().iter().all(u8::is_ascii_hexdigit));
        assert_ne!(secret, Secret::random());
    }

    #[test]
    fn keys_come_in_their_order_and_a_short_one_is_told_by_number_only() {
        let (first, second) = ("a".repeat(32), "b".repeat(40));
        let keys = secret_keys(&format!("{first},{second}")).unwrap();
        assert_eq!(keys[0].expose(), first.as_bytes());
        assert_eq!(keys[1].expose(), second.as_bytes());
        let problem = secret_keys(&format!("{first},hunter2")).unwrap_err();
        assert_eq!(problem, "key 2 has 7 bytes, fewer than 32");
        assert!(secret_keys(&format!("{first}, {second}")).is_err());
        assert!(secret_keys("").is_err());
    }

    #[test]
    fn a_public_url_is_split_into_origin_and_prefix() {
        let url = public_url("HTTPS://Example.org:443/live/").unwrap();
        assert_eq!(url.as_str(), "https://example.org/live");
        assert_eq!(
            (url.origin(), url.prefix()),
            ("https://example.org", "/live")
        );
        let url = public_url("http://[::1]:8080").unwrap();
        assert_eq!((url.origin(), url.prefix()), ("http://[::1]:8080", ""));
    }

    #[test]
    fn what_is_no_public_url_is_refused() {
        for bad in [
            "",
            "example.org",
            "ftp://example.org",
            "https://",
            "https:///live",
            "https://exa mple.org",
            "https://example.org?x=1",
            "https://example.org/live#top",
            "https://example.org/a//b",
            "https://example.org/../b",
            "https://example.org/a b",
            "https://example.org:0",
            "https://example.org:+80",
            "https://example.org:",
            "https://[::1",
            "https://[::g]",
            "https://bücher.example",
        ] {
            assert!(public_url(bad).is_err(), "{bad}");
        }
        let problem = public_url("https://admin:hunter2@example.org").unwrap_err();
        assert!(!problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn origins_are_any_or_a_list_written_as_a_browser_does() {
        assert_eq!(origins("*"), Ok(Origins::Any));
        assert_eq!(origins(""), Ok(Origins::Listed(Vec::new())));
        let listed = [
            "https://a.example",
            "http://b.example:8080",
            "capacitor://localhost",
        ];
        assert_eq!(
            origins("https://A.example:443, http://b.example:8080,capacitor://localhost"),
            Ok(Origins::Listed(listed.map(str::to_owned).to_vec()))
        );
    }

    #[test]
    fn mixed_origins_paths_and_patterns_of_origins_are_refused() {
        for bad in [
            "*,https://a.example",
            "https://a.example/",
            "https://a.example/page",
            "https://*.example",
            "a.example",
            "null",
            "https://a.example,",
        ] {
            assert!(origins(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn networks_are_ranges_addresses_and_words() {
        let networks = networks("loopback, 203.0.113.7,2001:db8::/32,10.9.8.7/8").unwrap();
        for inside in [
            "127.3.2.1",
            "::1",
            "::ffff:127.0.0.1",
            "203.0.113.7",
            "2001:db8:1::1",
            "10.1.1.1",
        ] {
            assert!(holds(&networks, inside), "{inside}");
        }
        for outside in ["203.0.113.8", "2001:db9::1", "192.168.1.1", "11.0.0.1"] {
            assert!(!holds(&networks, outside), "{outside}");
        }
    }

    #[test]
    fn private_networks_are_those_of_rfc_1918_and_4193() {
        let networks = networks("private").unwrap();
        for inside in ["10.0.0.1", "172.31.0.1", "192.168.0.1", "fd00::1"] {
            assert!(holds(&networks, inside), "{inside}");
        }
        for outside in ["127.0.0.1", "172.32.0.1", "169.254.1.1", "fe80::1"] {
            assert!(!holds(&networks, outside), "{outside}");
        }
    }

    #[test]
    fn no_network_is_trusted_where_none_is_named() {
        assert!(!holds(&networks("").unwrap(), "127.0.0.1"));
        for bad in ["proxy", "10.0.0.0/33", "::ffff:10.0.0.0/104", "10.0.0.1,"] {
            assert!(networks(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn personal_rooms_are_no_pattern_for_everybody() {
        assert!(patterns("blog:*,match:1").is_ok());
        assert!(patterns("").unwrap().is_empty());
        for bad in ["user:*", "blog:*,user:7", "blog", "blog:*,"] {
            assert!(patterns(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_redis_url_is_taken_whole_and_never_quoted() {
        for good in [
            "redis://localhost",
            "rediss://:hunter2@r.example:6380/1",
            "rediss://u:hun%2Fter2%23@[::1]:6380",
        ] {
            assert_eq!(redis_url(good).unwrap().expose(), good.as_bytes());
        }
        for bad in [
            "localhost:6379",
            "redis://",
            "redis://u:hunter2@/1",
            "redis://:6379",
            "redis://u:hunter2@r.example:99999",
            "redis://u:hunter2@r.example/first",
            "redis://u:hunter2/3@r.example",
            "redis://u:hunter2#3@r.example",
            "rediss://u:hunter2@r.example/#insecure",
        ] {
            let problem = redis_url(bad).unwrap_err();
            assert!(!problem.contains("hunter2"), "{problem}");
        }
    }

    #[test]
    fn a_number_is_written_in_digits() {
        assert_eq!(number("16", 1..=1_000), Ok(16));
        for bad in [
            "",
            "0",
            "1001",
            "+5",
            "-1",
            "1e3",
            "99999999999999999999999",
        ] {
            assert!(number(bad, 1..=1_000).is_err(), "{bad}");
        }
    }
}
