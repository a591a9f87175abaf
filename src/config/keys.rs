//! Which keys verify tokens and sign tickets, and whether that makes it development.
//!
//! Reads the files that hold keys, so that a missing one stops the start; what is in a JWKS is
//! for `auth` to read.

use std::path::PathBuf;

use super::{
    error::{ConfigError, Warning},
    settings::{Texts, variable},
    values::{self, Problem, Secret},
};

/// What tokens are verified with: one family, never two, so that a token cannot choose.
#[derive(Debug, Clone)]
pub enum KeySources {
    /// HS256 secrets, never empty; the first signs, all verify.
    Hs256(Vec<Secret>),
    /// One RS256, ES256 or `EdDSA` public key.
    PublicKey {
        /// The file it was read from.
        path: PathBuf,
        /// The file's text, PEM.
        pem: String,
    },
    /// A set of public keys from a file.
    JwksFile {
        /// The file it was read from.
        path: PathBuf,
        /// The file's text, JSON.
        json: String,
    },
    /// A set of public keys to be fetched from this http or https address.
    JwksUrl(String),
}

/// What tickets are signed and verified with.
#[derive(Debug, Clone)]
pub enum TicketKeys {
    /// As configured, never empty; the first signs, all verify.
    Given(Vec<Secret>),
    /// To be derived from each of the HS256 secrets, in their order.
    Derived,
    /// Drawn at this start: tickets die with the process.
    Random(Secret),
}

/// The key settings that are given, at most one of which may be.
const FAMILIES: [&str; 4] = ["jwt_secret", "jwt_public_key_file", "jwks_file", "jwks_url"];

/// Reads what verifies tokens; a random secret, and true, where it is development: no key is
/// configured and `may_develop`.
pub(super) fn token_keys(
    texts: &Texts,
    may_develop: bool,
) -> Result<(KeySources, bool), ConfigError> {
    let mut given = FAMILIES
        .into_iter()
        .filter(|name| texts.get(name).is_some());
    if let (Some(first), Some(second)) = (given.next(), given.next()) {
        return Err(ConfigError::MixedKeys {
            first: variable(first),
            second: variable(second),
        });
    }
    let keys = if let Some(secrets) = texts.read_optional("jwt_secret", values::secret_keys)? {
        KeySources::Hs256(secrets)
    } else if let Some((path, pem)) = texts.read_file("jwt_public_key_file")? {
        texts.read("jwt_public_key_file", |_| public_pem(&pem))?;
        KeySources::PublicKey { path, pem }
    } else if let Some((path, json)) = texts.read_file("jwks_file")? {
        KeySources::JwksFile { path, json }
    } else if let Some(url) = texts.read_optional("jwks_url", values::fetch_url)? {
        KeySources::JwksUrl(url)
    } else if may_develop {
        return Ok((KeySources::Hs256(vec![Secret::random()]), true));
    } else {
        return Err(ConfigError::NoKey);
    };
    Ok((keys, false))
}

/// Reads what signs tickets. Every node must accept every ticket, so a key of this process
/// alone will do only where it is alone.
pub(super) fn ticket_keys(
    texts: &Texts,
    token_keys: &KeySources,
    development: bool,
    many_nodes: bool,
    warnings: &mut Vec<Warning>,
) -> Result<TicketKeys, ConfigError> {
    if let Some(keys) = texts.read_optional("ticket_key", values::secret_keys)? {
        return Ok(TicketKeys::Given(keys));
    }
    let has_secret = matches!(token_keys, KeySources::Hs256(_));
    if many_nodes && (development || !has_secret) {
        return Err(ConfigError::NoTicketKey);
    }
    if has_secret {
        return Ok(TicketKeys::Derived);
    }
    warnings.push(Warning::RandomTicketKey);
    Ok(TicketKeys::Random(Secret::random()))
}

/// Refuses what is no PEM, and a private key, which has no business on this machine.
fn public_pem(pem: &str) -> Result<(), Problem> {
    if pem.contains("PRIVATE KEY-----") {
        Err("the file holds a private key".to_owned())
    } else if !pem.contains("-----BEGIN ") {
        Err("the file holds no PEM".to_owned())
    } else {
        Ok(())
    }
}
