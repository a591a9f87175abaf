//! Which address a request came from, seen through the proxies that are trusted.

use std::net::{IpAddr, Ipv4Addr};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, header, request::Parts},
};

use super::admission::Address;
use crate::{app::App, config::Networks};

/// The other end of the socket; put into each request by the server.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Whose request it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Client {
    ip: IpAddr,
    trusted: bool,
    /// True where a trusted proxy spoke for somebody whom it did not name readably.
    veiled: bool,
}

impl Client {
    /// Sees through `trusted` proxies: the one header is read from the right, and the first
    /// address that is no trusted proxy's is the client's. What cannot be read ends the search,
    /// so whatever a client wrote into the header itself is never believed.
    #[must_use]
    pub fn resolve(
        peer: IpAddr,
        headers: &HeaderMap,
        header: &HeaderName,
        trusted: &Networks,
    ) -> Self {
        let mut ip = peer.to_canonical();
        let mut veiled = false;
        if trusted.contains(ip) {
            let values: Vec<&str> = headers
                .get_all(header)
                .iter()
                .map(|value| value.to_str().unwrap_or("?"))
                .collect();
            for hop in values.iter().rev().flat_map(|value| value.rsplit(',')) {
                let Some(address) = address(hop, header) else {
                    veiled = true;
                    break;
                };
                ip = address;
                if !trusted.contains(ip) {
                    break;
                }
            }
        }
        Self {
            ip,
            trusted: trusted.contains(ip),
            veiled,
        }
    }

    /// True where the request came from this machine itself, and not through its proxy from
    /// somebody unknown.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        self.ip.is_loopback() && !self.veiled
    }

    /// What the limit per address counts; nothing for this machine and trusted proxies.
    #[must_use]
    pub fn limited(self) -> Option<Address> {
        (!self.trusted && !self.is_loopback()).then(|| Address::of(self.ip))
    }
}

/// One hop of `X-Forwarded-For` and its like, or of `Forwarded` (RFC 7239, section 4).
fn address(hop: &str, header: &HeaderName) -> Option<IpAddr> {
    let hop = if *header == header::FORWARDED {
        let node = hop.split(';').find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            name.trim().eq_ignore_ascii_case("for").then_some(value)
        })?;
        node.trim().trim_matches('"')
    } else {
        hop.trim()
    };
    let bare = match hop.strip_prefix('[') {
        // An IPv6 address with or without a port: [2001:db8::1]:4711.
        Some(rest) => rest.split(']').next()?,
        // An IPv4 address with a port; an IPv6 address has more than one colon.
        None if hop.matches(':').count() == 1 => hop.split(':').next()?,
        None => hop,
    };
    bare.parse::<IpAddr>().ok().map(|ip| ip.to_canonical())
}

impl FromRequestParts<App> for Client {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Self::Rejection> {
        let Peer(peer) = parts
            .extensions
            .get()
            .copied()
            .unwrap_or(Peer(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        let config = app.config();
        Ok(Self::resolve(
            peer,
            &parts.headers,
            &config.forwarded_header,
            &config.trusted_proxies,
        ))
    }
}
