//! Why a start was refused, and what an operator should know although it was not.

use std::{fmt, io, path::PathBuf};

use super::settings::Source;

/// Says why the settings cannot be used. Names the variable, what is wrong and what is
/// accepted; never holds a secret's value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value outside what its setting accepts.
    #[error("{variable} (from the {origin}): {problem}; accepted is {accepts}")]
    Value {
        /// The environment variable of the setting.
        variable: &'static str,
        /// Where the value came from.
        origin: Source,
        /// What is wrong with it.
        problem: String,
        /// What the setting accepts.
        accepts: &'static str,
    },
    /// A key or URL given both as such and by the name of a file.
    #[error("{variable} and {variable}_FILE are both given by the {origin}; give one of them")]
    Twice {
        /// The environment variable of the setting.
        variable: &'static str,
        /// Where both came from.
        origin: Source,
    },
    /// A file that a setting names cannot be read.
    #[error("{variable}: cannot read {}", path.display())]
    File {
        /// The environment variable that names the file.
        variable: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        reason: io::Error,
    },
    /// The settings file is not TOML. The parser's own error is not kept: it quotes the line,
    /// which may hold a secret.
    #[error("LIVECOUNT_CONFIG: {} is not TOML, line {line}: {problem}", path.display())]
    Toml {
        /// The settings file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser expected.
        problem: String,
    },
    /// A key of the settings file that is no setting.
    #[error(
        "LIVECOUNT_CONFIG: {} has the unknown key {key:?}; accepted are the settings' names, such as push_interval",
        path.display()
    )]
    UnknownKey {
        /// The settings file.
        path: PathBuf,
        /// The key.
        key: String,
    },
    /// A flag that is no setting.
    #[error("--{0} is no setting")]
    UnknownFlag(String),
    /// Two ways to verify tokens at once.
    #[error(
        "{first} and {second} are both given; tokens are verified by exactly one of LIVECOUNT_JWT_SECRET, LIVECOUNT_JWT_PUBLIC_KEY_FILE, LIVECOUNT_JWKS_FILE and LIVECOUNT_JWKS_URL, or the holder of a public key could pass it off as a secret"
    )]
    MixedKeys {
        /// The environment variable of the one.
        first: &'static str,
        /// The environment variable of the other.
        second: &'static str,
    },
    /// No key, and no development either.
    #[error(
        "no key is configured to verify tokens with; set LIVECOUNT_JWT_SECRET (or LIVECOUNT_JWT_SECRET_FILE), LIVECOUNT_JWT_PUBLIC_KEY_FILE, LIVECOUNT_JWKS_FILE or LIVECOUNT_JWKS_URL; for development only, LIVECOUNT_DEV=true or a loopback LIVECOUNT_LISTEN starts with a random key"
    )]
    NoKey,
    /// Many nodes, and no key that all of them could sign tickets with.
    #[error(
        "LIVECOUNT_TICKET_KEY is not set, and with LIVECOUNT_REDIS_URL but no LIVECOUNT_JWT_SECRET there is nothing to derive it from; set it to the same keys on every node, each of 32 bytes or more"
    )]
    NoTicketKey,
    /// The whole API on one address twice.
    #[error(
        "LIVECOUNT_OPS_LISTEN is the address of LIVECOUNT_LISTEN; give it another port, or leave it out"
    )]
    SameAddress,
}

/// What an operator should know about settings that work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    /// An environment variable that looks like a setting and is none.
    UnknownVariable(String),
    /// Tickets are signed with a key that dies with the process.
    RandomTicketKey,
    /// Development was asked for, and a key is configured.
    NoDevelopment,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownVariable(name) => {
                write!(f, "{name:?} is no setting and has no effect")
            }
            Self::RandomTicketKey => f.write_str(
                "without LIVECOUNT_TICKET_KEY tickets are signed with a random key: a restart ends them all",
            ),
            Self::NoDevelopment => {
                f.write_str("LIVECOUNT_DEV has no effect, since a key is configured")
            }
        }
    }
}
