//! Tokens: a JWT to the claims it makes, or the reason why it makes none.
//!
//! Which algorithm verifies is a matter of the configured keys and never of the token. Whether
//! the claims suffice for what is asked is not known here.

use std::{
    fmt,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::keys::Keys;
use crate::hub::{
    id::{InvalidName, RoomId, UserId},
    pattern::{InvalidPatterns, Patterns},
};

/// Longest token read: 8 KiB.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;
/// What the clocks of issuer and service may differ by, in `exp` and `nbf`: 5 s.
pub const LEEWAY_SECS: u64 = 5;
/// Largest whole number that every JSON reader agrees on: 2^53-1 (RFC 8259, section 6).
const MAX_WHOLE_NUMBER: u64 = (1 << 53) - 1;
/// Latest expiry, the last second of the year 9999, so that reckoning with it cannot overflow.
const MAX_EXPIRY_SECS: u64 = 253_402_300_799;

/// Says why a token is not valid, without any part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Its `exp` is past, and the leeway too.
    #[error("the token has expired")]
    Expired,
    /// Its `nbf` is further ahead than the leeway.
    #[error("the token is not valid yet")]
    NotYet,
    /// No key that could be meant made the signature.
    #[error("the token's signature does not match")]
    Signature,
    /// Not three parts of base64url, the first two of them JSON objects.
    #[error("the token is not a well-formed JWT")]
    Malformed,
    /// More than [`MAX_TOKEN_BYTES`].
    #[error("the token is longer than {MAX_TOKEN_BYTES} bytes")]
    TooLong,
    /// Its `alg` is none that a configured key is for.
    #[error("the token's algorithm is not accepted")]
    Algorithm,
    /// It has a `crit` header, and no extension is understood here.
    #[error("the token's crit header names what is not understood")]
    Critical,
    /// Its `kid` names no key of the set, nor did a fetch, where one was due, bring it.
    #[error("the token's key is not known")]
    UnknownKey,
    /// No key set has been fetched so far.
    #[error("the keys that tokens are verified with are not available")]
    KeysUnavailable,
    /// The configured audience is not among its `aud`.
    #[error("the token is for another audience")]
    Audience,
    /// Its `iss` is not the configured issuer.
    #[error("the token is of another issuer")]
    Issuer,
    /// This claim is missing although required, or not of the form it must have.
    #[error("the token's claim {0} is missing or malformed")]
    Claim(&'static str),
}

/// What a token may be good for beside joining and reading its rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All counts, rooms and connections.
    Read,
    /// Messages to rooms and users.
    Publish,
    /// Joins, leaves and kicks for others.
    Manage,
    /// All of these.
    Admin,
}

impl Scope {
    const ALL: [Self; 4] = [Self::Read, Self::Publish, Self::Manage, Self::Admin];

    /// The word for it in a token.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Publish => "publish",
            Self::Manage => "manage",
            Self::Admin => "admin",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of scopes: one byte, empty by default.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Scopes(u8);

impl Scopes {
    /// Reads words with spaces between them. Unknown ones are other services' and ignored.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        text.split(' ')
            .filter_map(|word| Scope::ALL.into_iter().find(|scope| scope.as_str() == word))
            .fold(Self::default(), |set, scope| Self(set.0 | scope.bit()))
    }

    /// True where the set holds `scope`, or `admin`, which implies every other.
    #[must_use]
    pub fn has(self, scope: Scope) -> bool {
        self.0 & (scope.bit() | Scope::Admin.bit()) != 0
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = Scope::ALL
            .into_iter()
            .filter(|scope| self.0 & scope.bit() != 0);
        f.debug_set().entries(held).finish()
    }
}

/// What a verified token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// Who it speaks for: `sub`.
    pub user: UserId,
    /// When it ends: `exp` in seconds since 1970, fractions cut off, at most the year 9999. May
    /// be up to [`LEEWAY_SECS`] past.
    pub expires_unix: u64,
    /// Its `rooms`, where it has the claim; none are covered where the claim is empty.
    pub rooms: Option<Patterns>,
    /// Its `scope`.
    pub scopes: Scopes,
}

impl Claims {
    /// True where the bearer may join and read `room`: by `rooms`, without the claim every blog;
    /// the own personal room always, another's never.
    #[must_use]
    pub fn opens(&self, room: &RoomId) -> bool {
        opens(&self.user, self.rooms.as_ref(), room)
    }

    /// True where `room` is within the bounds of `publish` and `manage`: any is without a
    /// `rooms` claim.
    #[must_use]
    pub fn bounds(&self, room: &RoomId) -> bool {
        self.rooms
            .as_ref()
            .is_none_or(|patterns| patterns.cover(room))
    }

    /// True where the token has `scope`, or `admin`, which implies every other.
    #[must_use]
    pub fn has(&self, scope: Scope) -> bool {
        self.scopes.has(scope)
    }
}

/// True where `user`, granted `rooms` or, without the claim, every blog, may join and read `room`:
/// the own personal room always, another's never.
#[must_use]
pub fn opens(user: &UserId, rooms: Option<&Patterns>, room: &RoomId) -> bool {
    static EVERY_BLOG: LazyLock<Patterns> = LazyLock::new(Patterns::every_blog);
    match room.user() {
        Some(owner) => owner == *user,
        None => rooms.unwrap_or(&EVERY_BLOG).open(room),
    }
}

/// What tokens must say beside what every token must. Nothing by default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rules {
    /// The `iss` accepted, one of them; any, and none, where empty.
    pub issuer: Vec<String>,
    /// One of these must be in `aud`; not looked at where empty.
    pub audience: Vec<String>,
}

/// Verifies tokens with one source of keys and one set of rules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Verifier {
    keys: Keys,
    rules: Arc<Rules>,
}

impl Verifier {
    /// Joins keys and rules.
    #[must_use]
    pub fn new(keys: Keys, rules: Rules) -> Self {
        Self {
            keys,
            rules: Arc::new(rules),
        }
    }

    /// Fetches a JWKS URL now and from time to time; see [`Keys::keep_fresh`].
    pub fn keep_fresh(&self) -> impl Future<Output = ()> + Send + 'static {
        self.keys.keep_fresh()
    }

    /// Reads a token and checks its signature, then its claims; the claims of a token that
    /// nobody signed are told nothing about.
    ///
    /// Waits only where keys come from a URL and the token's is not known: up to 5 s for a fetch
    /// shared by all who wait. Cancel safe.
    ///
    /// # Errors
    ///
    /// One for each way not to be valid. All but [`InvalidToken::KeysUnavailable`] are the
    /// token's fault.
    pub async fn verify(&self, token: &str) -> Result<Claims, InvalidToken> {
        let jws = Jws::parse(token)?;
        self.keys.check(&jws).await?;
        self.rules.read(&jws.payload()?, unix_now())
    }
}

/// Says why a token was not made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The `sub` is no user's name.
    #[error("the subject is no valid name")]
    Subject(#[source] InvalidName),
    /// The `rooms` are no patterns.
    #[error("the rooms are no valid patterns")]
    Rooms(#[source] InvalidPatterns),
    /// The library failed.
    #[error("the token cannot be signed")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

/// Makes a token that a [`Verifier`] with this secret and these rules accepts for `ttl`, in
/// whole seconds: HS256.
///
/// # Errors
///
/// When `sub` is no user's name or `rooms` no patterns.
pub fn sign(
    secret: &[u8],
    sub: &str,
    scope: Option<&str>,
    rooms: Option<&[String]>,
    ttl: Duration,
    rules: &Rules,
) -> Result<String, SignError> {
    #[derive(Serialize)]
    struct Payload<'a> {
        sub: &'a str,
        iat: u64,
        exp: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        rooms: Option<&'a [String]>,
        #[serde(skip_serializing_if = "Option::is_none")]
        scope: Option<&'a str>,
    }
    UserId::parse(sub).map_err(SignError::Subject)?;
    Patterns::parse(rooms.unwrap_or_default().iter().map(String::as_str))
        .map_err(SignError::Rooms)?;
    let now = unix_now();
    let payload = Payload {
        sub,
        iat: now,
        exp: now.saturating_add(ttl.as_secs()).min(MAX_EXPIRY_SECS),
        iss: rules.issuer.first().map(String::as_str),
        aud: rules.audience.first().map(String::as_str),
        rooms,
        scope,
    };
    let key = EncodingKey::from_secret(secret);
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &payload, &key).map_err(SignError::Sign)
}

/// A token taken apart, with nothing verified (RFC 7515, section 7.1).
pub(super) struct Jws<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// Header and payload as signed.
    message: &'a str,
    payload: &'a str,
    signature: &'a str,
}

impl<'a> Jws<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, InvalidToken> {
        // The library's own reading of a header lets `crit` pass.
        #[derive(Deserialize)]
        struct JoseHeader {
            alg: String,
            kid: Option<String>,
            #[serde(default, deserialize_with = "present")]
            crit: Option<Value>,
        }
        if token.len() > MAX_TOKEN_BYTES {
            return Err(InvalidToken::TooLong);
        }
        let mut parts = token.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(InvalidToken::Malformed);
        };
        let message = &token[..header.len() + 1 + payload.len()];
        let header: JoseHeader = object(&decode(header)?)?;
        if header.crit.is_some() {
            return Err(InvalidToken::Critical);
        }
        let algorithm = match header.alg.as_str() {
            "HS256" => Algorithm::HS256,
            "RS256" => Algorithm::RS256,
            "ES256" => Algorithm::ES256,
            "EdDSA" => Algorithm::EdDSA,
            _ => return Err(InvalidToken::Algorithm),
        };
        Ok(Self {
            algorithm,
            kid: header.kid,
            message,
            payload,
            signature,
        })
    }

    /// True where `key`, which must be for this token's algorithm, made the signature.
    pub(super) fn is_signed_by(&self, key: &DecodingKey) -> bool {
        let message = self.message.as_bytes();
        jsonwebtoken::crypto::verify(self.signature, message, key, self.algorithm).unwrap_or(false)
    }

    fn payload(&self) -> Result<Payload, InvalidToken> {
        object(&decode(self.payload)?)
    }
}

/// The claims as they stand. `Some(Null)` is a claim that is there: a `rooms` of null must not
/// pass for a token without bounds.
#[derive(Deserialize)]
struct Payload {
    #[serde(default, deserialize_with = "present")]
    sub: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    exp: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    iss: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    aud: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    rooms: Option<Value>,
    #[serde(default, deserialize_with = "present")]
    scope: Option<Value>,
}

impl Rules {
    /// Reads claims at the time `now`, in seconds since 1970.
    ///
    /// Not the library's validation: that rounds `exp`, and takes a token without `aud` or `iss`
    /// for one that has the right ones.
    fn read(&self, payload: &Payload, now: u64) -> Result<Claims, InvalidToken> {
        let expires_unix = payload
            .exp
            .as_ref()
            .and_then(seconds)
            .ok_or(InvalidToken::Claim("exp"))?;
        if now >= expires_unix.saturating_add(LEEWAY_SECS) {
            return Err(InvalidToken::Expired);
        }
        if let Some(nbf) = &payload.nbf {
            let starts_unix = seconds(nbf).ok_or(InvalidToken::Claim("nbf"))?;
            if starts_unix > now.saturating_add(LEEWAY_SECS) {
                return Err(InvalidToken::NotYet);
            }
        }
        if !self.issuer.is_empty() {
            let matches = payload
                .iss
                .as_ref()
                .is_some_and(|iss| named(&self.issuer, iss));
            matches.then_some(()).ok_or(InvalidToken::Issuer)?;
        }
        if !self.audience.is_empty() {
            let matches = payload.aud.as_ref().is_some_and(|aud| match aud {
                Value::Array(several) => several.iter().any(|one| named(&self.audience, one)),
                one => named(&self.audience, one),
            });
            matches.then_some(()).ok_or(InvalidToken::Audience)?;
        }
        Ok(Claims {
            user: payload
                .sub
                .as_ref()
                .and_then(user)
                .ok_or(InvalidToken::Claim("sub"))?,
            expires_unix: expires_unix.min(MAX_EXPIRY_SECS),
            rooms: match &payload.rooms {
                None => None,
                Some(rooms) => Some(patterns(rooms).ok_or(InvalidToken::Claim("rooms"))?),
            },
            scopes: match &payload.scope {
                None => Scopes::default(),
                Some(Value::String(words)) => Scopes::parse(words),
                Some(_) => return Err(InvalidToken::Claim("scope")),
            },
        })
    }
}

fn user(sub: &Value) -> Option<UserId> {
    match sub {
        Value::String(name) => UserId::parse(name).ok(),
        Value::Number(number) => {
            let number = number.as_u64().filter(|n| *n <= MAX_WHOLE_NUMBER)?;
            UserId::parse(&number.to_string()).ok()
        }
        _ => None,
    }
}

fn patterns(rooms: &Value) -> Option<Patterns> {
    let rooms: Vec<_> = rooms
        .as_array()?
        .iter()
        .map(Value::as_str)
        .collect::<Option<_>>()?;
    Patterns::parse(rooms).ok()
}

/// A `NumericDate` (RFC 7519, section 2), its fraction cut off; a time before 1970 is 0.
fn seconds(value: &Value) -> Option<u64> {
    let number = value.as_number()?;
    // The cast saturates at both ends.
    number.as_u64().or(number.as_f64().map(|secs| secs as u64))
}

fn decode(part: &str) -> Result<Vec<u8>, InvalidToken> {
    URL_SAFE_NO_PAD
        .decode(part)
        .map_err(|_| InvalidToken::Malformed)
}

/// Reads a JSON object; a derived struct would be read from an array as well. A member that
/// counts here and stands there twice is an error (RFC 7515, section 4).
fn object<T: for<'de> Deserialize<'de>>(json: &[u8]) -> Result<T, InvalidToken> {
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(InvalidToken::Malformed);
    }
    serde_json::from_slice(json).map_err(|_| InvalidToken::Malformed)
}

fn present<'de, D: Deserializer<'de>>(member: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(member).map(Some)
}

fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// True where `found` is one of the accepted `values`.
fn named(values: &[String], found: &Value) -> bool {
    found
        .as_str()
        .is_some_and(|found| values.iter().any(|value| value == found))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{
        super::keys::fixtures::{Pair, hs256, unsigned},
        *,
    };

    const SECRET: &[u8] = b"a secret of these tests, 32 bytes or more";
    const NOW: u64 = 1_800_000_000;

    fn secrets() -> Keys {
        Keys::secrets([SECRET]).unwrap()
    }

    async fn verify(token: &str) -> Result<Claims, InvalidToken> {
        Verifier::new(secrets(), Rules::default())
            .verify(token)
            .await
    }

    /// Good claims with some replaced.
    fn claims(with: Value) -> Value {
        let mut claims = json!({"sub": "7", "exp": unix_now() + 60});
        let Value::Object(with) = with else {
            panic!("claims are an object")
        };
        claims.as_object_mut().unwrap().extend(with);
        claims
    }

    fn token(with: Value) -> String {
        hs256(SECRET, &json!({"alg": "HS256"}), &claims(with))
    }

    fn read_at(now: u64, claims: Value) -> Result<Claims, InvalidToken> {
        let payload = serde_json::from_value(claims).unwrap();
        Rules::default().read(&payload, now)
    }

    fn read(with: Value) -> Result<Claims, InvalidToken> {
        read_at(unix_now(), claims(with))
    }

    fn room(name: &str) -> RoomId {
        RoomId::parse(name).unwrap()
    }

    #[tokio::test]
    async fn a_token_signed_with_the_secret_is_valid_and_says_who_and_what() {
        let token = token(json!({"rooms": ["blog:1", "match:*"], "scope": "read x publish"}));
        let claims = verify(&token).await.unwrap();
        assert_eq!(claims.user.as_str(), "7");
        assert_eq!(
            claims.rooms,
            Some(Patterns::parse(["blog:1", "match:*"]).unwrap())
        );
        assert!(claims.has(Scope::Read) && claims.has(Scope::Publish));
        assert!(!claims.has(Scope::Manage) && !claims.has(Scope::Admin));
        assert_eq!(format!("{:?}", claims.scopes), "{Read, Publish}");
    }

    #[tokio::test]
    async fn tokens_of_all_three_public_key_algorithms_are_valid() {
        for pair in [Pair::rs256(), Pair::es256(), Pair::eddsa()] {
            let keys = Keys::public_pem(pair.pem().as_bytes()).unwrap();
            let token = pair.token(&json!({"alg": pair.alg()}), &claims(json!({})));
            let verifier = Verifier::new(keys, Rules::default());
            assert!(verifier.verify(&token).await.is_ok(), "{}", pair.alg());
        }
    }

    #[tokio::test]
    async fn any_of_several_secrets_verifies() {
        let (old, new) = ([1; 32], [2; 32]);
        let verifier = Verifier::new(Keys::secrets([new, old]).unwrap(), Rules::default());
        for secret in [old, new] {
            let token = hs256(&secret, &json!({"alg": "HS256"}), &claims(json!({})));
            assert!(verifier.verify(&token).await.is_ok());
        }
        let stranger = hs256(&[3; 32], &json!({"alg": "HS256"}), &claims(json!({})));
        assert_eq!(
            verifier.verify(&stranger).await,
            Err(InvalidToken::Signature)
        );
    }

    #[tokio::test]
    async fn a_token_without_an_algorithm_is_refused() {
        for alg in ["none", "None", "NONE", ""] {
            let message = unsigned(&json!({"alg": alg}), &claims(json!({})));
            let refused = verify(&format!("{message}.")).await;
            assert_eq!(refused, Err(InvalidToken::Algorithm), "{alg}");
        }
        let message = unsigned(&json!({"alg": "HS256"}), &claims(json!({})));
        let refused = verify(&format!("{message}.")).await;
        assert_eq!(refused, Err(InvalidToken::Signature));
    }

    #[tokio::test]
    async fn a_public_key_does_not_serve_as_a_secret() {
        for pair in [Pair::rs256(), Pair::es256(), Pair::eddsa()] {
            let pem = pair.pem();
            let keys = Keys::public_pem(pem.as_bytes()).unwrap();
            let verifier = Verifier::new(keys, Rules::default());
            for secret in [pem.as_str(), pem.trim()] {
                let header = json!({"alg": "HS256"});
                let forged = hs256(secret.as_bytes(), &header, &claims(json!({})));
                assert_eq!(verifier.verify(&forged).await, Err(InvalidToken::Algorithm));
            }
        }
    }

    #[tokio::test]
    async fn a_token_of_another_algorithm_than_the_key_is_refused() {
        let pairs = [Pair::rs256(), Pair::es256(), Pair::eddsa()];
        for (configured, pair) in pairs.iter().zip(pairs.iter().cycle().skip(1)) {
            let keys = Keys::public_pem(configured.pem().as_bytes()).unwrap();
            let verifier = Verifier::new(keys, Rules::default());
            let token = pair.token(&json!({"alg": pair.alg()}), &claims(json!({})));
            assert_eq!(verifier.verify(&token).await, Err(InvalidToken::Algorithm));
            // The signature is another's although the header names the right algorithm.
            let token = pair.token(&json!({"alg": configured.alg()}), &claims(json!({})));
            assert_eq!(verifier.verify(&token).await, Err(InvalidToken::Signature));
            assert_eq!(verify(&token).await, Err(InvalidToken::Algorithm));
        }
        for alg in ["HS384", "HS512"] {
            let token = hs256(SECRET, &json!({"alg": alg}), &claims(json!({})));
            assert_eq!(verify(&token).await, Err(InvalidToken::Algorithm));
        }
    }

    #[tokio::test]
    async fn a_tampered_token_is_refused() {
        let good = token(json!({"scope": "read"}));
        let (_, signature) = good.rsplit_once('.').unwrap();
        let payload = claims(json!({"scope": "admin"}));
        let message = unsigned(&json!({"alg": "HS256"}), &payload);
        let forged = format!("{message}.{signature}");
        assert_eq!(verify(&forged).await, Err(InvalidToken::Signature));
        for place in 0..good.len() {
            let mut bytes = good.clone().into_bytes();
            bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
            let bent = String::from_utf8(bytes).unwrap();
            assert!(verify(&bent).await.is_err(), "{place}");
        }
    }

    #[tokio::test]
    async fn what_is_no_jwt_is_refused() {
        let good = token(json!({}));
        let array = |part: &str| URL_SAFE_NO_PAD.encode(part);
        let payload = claims(json!({})).to_string();
        for bad in [
            String::new(),
            ".".to_owned(),
            "..".to_owned(),
            "lct1.AAAA".to_owned(),
            "ä.ö.ü".to_owned(),
            format!("{good}."),
            format!(".{good}"),
            format!("{good}.{good}"),
            format!(" {good}"),
            format!("{}.{}.", array(r#"["HS256"]"#), array(&payload)),
            format!("{}.{}.", array("null"), array(&payload)),
            format!(
                "{}.{}.",
                array(r#"{"alg":"HS256","alg":"none"}"#),
                array(&payload)
            ),
            format!(
                "{}.{}.",
                array(r#"{"alg":"HS256","kid":7}"#),
                array(&payload)
            ),
            format!("{}.{}.", array("{}"), array(&payload)),
        ] {
            assert_eq!(verify(&bad).await, Err(InvalidToken::Malformed), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_signed_payload_that_is_no_object_or_says_a_claim_twice_is_refused() {
        use aws_lc_rs::hmac;
        let exp = unix_now() + 60;
        for payload in [
            format!(r#"["7",{exp}]"#),
            format!(r#"{{"sub":"7","sub":"8","exp":{exp}}}"#),
            format!(r#"{{"sub":"7","exp":{exp},"rooms":["blog:1"],"rooms":["*"]}}"#),
            r#"{"sub":"7","exp":1e999}"#.to_owned(),
            "7".to_owned(),
            String::new(),
        ] {
            let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
            let message = format!("{header}.{}", URL_SAFE_NO_PAD.encode(&payload));
            let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET);
            let tag = URL_SAFE_NO_PAD.encode(hmac::sign(&key, message.as_bytes()));
            let refused = verify(&format!("{message}.{tag}")).await;
            assert_eq!(refused, Err(InvalidToken::Malformed), "{payload}");
        }
    }

    #[tokio::test]
    async fn a_token_of_more_than_8_kib_is_refused() {
        let pad = |bytes: usize| token(json!({"pad": "a".repeat(bytes)}));
        let empty = pad(0).len();
        // Base64 makes four characters of three bytes.
        let most = (MAX_TOKEN_BYTES - empty) * 3 / 4 - 3;
        assert!(verify(&pad(most)).await.is_ok());
        assert_eq!(verify(&pad(most + 9)).await, Err(InvalidToken::TooLong));
    }

    #[tokio::test]
    async fn a_critical_header_is_refused() {
        for crit in [json!(["b64"]), json!([]), json!(null), json!("exp")] {
            let header = json!({"alg": "HS256", "crit": crit, "b64": false});
            let token = hs256(SECRET, &header, &claims(json!({})));
            assert_eq!(verify(&token).await, Err(InvalidToken::Critical));
        }
    }

    #[tokio::test]
    async fn a_key_in_the_header_is_not_believed() {
        let pair = Pair::es256();
        let keys = Keys::public_pem(Pair::es256().pem().as_bytes()).unwrap();
        let header = json!({"alg": "ES256", "jwk": pair.jwk("a"), "jku": "http://127.0.0.1/"});
        let token = pair.token(&header, &claims(json!({})));
        let verifier = Verifier::new(keys, Rules::default());
        assert_eq!(verifier.verify(&token).await, Err(InvalidToken::Signature));
    }

    #[test]
    fn a_token_lasts_until_its_expiry_and_the_leeway_are_over() {
        let expiring = |exp: Value| json!({"sub": "7", "exp": exp});
        let good = read_at(NOW, expiring(json!(NOW - 4))).unwrap();
        assert_eq!(good.expires_unix, NOW - 4);
        assert_eq!(
            read_at(NOW, expiring(json!(NOW - 5))),
            Err(InvalidToken::Expired)
        );
        assert_eq!(read_at(NOW, expiring(json!(0))), Err(InvalidToken::Expired));
        assert_eq!(
            read_at(NOW, expiring(json!(-1))),
            Err(InvalidToken::Expired)
        );
    }

    #[tokio::test]
    async fn an_expired_token_is_told_so() {
        let old = token(json!({"exp": unix_now() - 60}));
        assert_eq!(verify(&old).await, Err(InvalidToken::Expired));
    }

    #[test]
    fn a_fraction_of_the_expiry_is_cut_off() {
        let claims = read_at(NOW, json!({"sub": "7", "exp": NOW as f64 + 1.75})).unwrap();
        assert_eq!(claims.expires_unix, NOW + 1);
    }

    #[test]
    fn an_expiry_beyond_all_calendars_is_the_year_9999() {
        for exp in [json!(u64::MAX), json!(1e300), json!(MAX_EXPIRY_SECS)] {
            let claims = read(json!({"exp": exp})).unwrap();
            assert_eq!(claims.expires_unix, MAX_EXPIRY_SECS);
        }
    }

    #[test]
    fn an_expiry_is_required_and_a_number() {
        let missing = json!({"sub": "7"});
        assert_eq!(read_at(NOW, missing), Err(InvalidToken::Claim("exp")));
        for bad in [
            json!(null),
            json!("2099-01-01"),
            json!("99999999999"),
            json!([9]),
        ] {
            assert_eq!(read(json!({"exp": bad})), Err(InvalidToken::Claim("exp")));
        }
    }

    #[test]
    fn a_token_is_refused_before_its_time() {
        let starting = |nbf: Value| {
            let claims = json!({"sub": "7", "exp": NOW + 60, "nbf": nbf});
            read_at(NOW, claims)
        };
        assert!(starting(json!(NOW + 5)).is_ok());
        assert_eq!(starting(json!(NOW + 6)), Err(InvalidToken::NotYet));
        assert_eq!(starting(json!(1e300)), Err(InvalidToken::NotYet));
        assert_eq!(starting(json!("1")), Err(InvalidToken::Claim("nbf")));
        assert_eq!(starting(json!(null)), Err(InvalidToken::Claim("nbf")));
    }

    #[test]
    fn a_subject_is_required_and_a_name_or_a_whole_number() {
        let missing = json!({"exp": NOW + 60});
        assert_eq!(read_at(NOW, missing), Err(InvalidToken::Claim("sub")));
        for (good, name) in [
            (json!("auth0|7"), "auth0|7"),
            (json!("7"), "7"),
            (json!(7), "7"),
            (json!(0), "0"),
            (json!(9_007_199_254_740_991_u64), "9007199254740991"),
        ] {
            assert_eq!(read(json!({"sub": good})).unwrap().user.as_str(), name);
        }
        for bad in [
            json!(null),
            json!(""),
            json!("a b"),
            json!("a".repeat(129)),
            json!(7.5),
            json!(-7),
            json!(9_007_199_254_740_992_u64),
            json!(true),
            json!(["7"]),
        ] {
            let refused = read(json!({"sub": bad.clone()}));
            assert_eq!(refused, Err(InvalidToken::Claim("sub")), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_configured_audience_must_be_there_and_match() {
        let rules = Rules {
            audience: vec!["livecount".to_owned()],
            ..Rules::default()
        };
        let verifier = Verifier::new(secrets(), rules);
        for good in [json!("livecount"), json!(["cms", "livecount"])] {
            let token = token(json!({"aud": good}));
            assert!(verifier.verify(&token).await.is_ok());
        }
        for bad in [
            json!({}),
            json!({"aud": "cms"}),
            json!({"aud": "livecount2"}),
            json!({"aud": ["cms"]}),
            json!({"aud": []}),
            json!({"aud": null}),
            json!({"aud": {"livecount": true}}),
        ] {
            let refused = verifier.verify(&token(bad.clone())).await;
            assert_eq!(refused, Err(InvalidToken::Audience), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_configured_issuer_must_be_there_and_match() {
        let rules = Rules {
            issuer: vec!["https://id.example".to_owned()],
            ..Rules::default()
        };
        let verifier = Verifier::new(secrets(), rules);
        let good = token(json!({"iss": "https://id.example"}));
        assert!(verifier.verify(&good).await.is_ok());
        for bad in [
            json!({}),
            json!({"iss": "https://id.example/"}),
            json!({"iss": ["https://id.example"]}),
            json!({"iss": null}),
        ] {
            let refused = verifier.verify(&token(bad.clone())).await;
            assert_eq!(refused, Err(InvalidToken::Issuer), "{bad}");
        }
    }

    #[test]
    fn audience_and_issuer_are_not_looked_at_where_not_configured() {
        assert!(read(json!({"aud": "cms", "iss": "https://other.example"})).is_ok());
        assert!(read(json!({"aud": ["cms"], "iss": 7})).is_ok());
    }

    #[test]
    fn a_malformed_rooms_claim_is_refused() {
        for bad in [
            json!(null),
            json!("blog:*"),
            json!({"blog": "*"}),
            json!([7]),
            json!(["blog:1", null]),
            json!(["blog"]),
            json!(["blog:*1"]),
            json!(vec!["blog:1"; 17]),
            json!(vec![format!("blog:{}", "a".repeat(120)); 9]),
        ] {
            let refused = read(json!({"rooms": bad.clone()}));
            assert_eq!(refused, Err(InvalidToken::Claim("rooms")), "{bad}");
        }
    }

    #[test]
    fn a_malformed_scope_claim_is_refused_and_unknown_words_ignored() {
        for bad in [json!(null), json!(["read"]), json!(1)] {
            let refused = read(json!({"scope": bad}));
            assert_eq!(refused, Err(InvalidToken::Claim("scope")));
        }
        let claims = read(json!({"scope": " openid  Admin administrator manage"})).unwrap();
        assert!(claims.has(Scope::Manage));
        assert!(!claims.has(Scope::Admin) && !claims.has(Scope::Read));
    }

    #[test]
    fn admin_implies_every_scope() {
        let claims = read(json!({"scope": "admin"})).unwrap();
        assert!(Scope::ALL.into_iter().all(|scope| claims.has(scope)));
        let none = read(json!({})).unwrap();
        assert!(!Scope::ALL.into_iter().any(|scope| none.has(scope)));
    }

    #[test]
    fn a_token_without_rooms_opens_every_blog_and_bounds_nothing() {
        let claims = read(json!({})).unwrap();
        assert!(claims.opens(&room("blog:42")) && claims.opens(&room("user:7")));
        assert!(!claims.opens(&room("match:1")) && !claims.opens(&room("user:8")));
        assert!(claims.bounds(&room("match:1")) && claims.bounds(&room("user:8")));
    }

    #[test]
    fn a_rooms_claim_says_what_opens_and_bounds_the_rest() {
        let claims = read(json!({"rooms": ["match:*", "user:8"], "scope": "admin"})).unwrap();
        assert!(claims.opens(&room("match:1")) && claims.opens(&room("user:7")));
        assert!(!claims.opens(&room("blog:42")) && !claims.opens(&room("user:8")));
        assert!(claims.bounds(&room("match:1")) && claims.bounds(&room("user:8")));
        assert!(!claims.bounds(&room("blog:42")) && !claims.bounds(&room("user:7")));
        let nothing = read(json!({"rooms": []})).unwrap();
        assert!(!nothing.opens(&room("blog:42")) && !nothing.bounds(&room("blog:42")));
        assert!(nothing.opens(&room("user:7")));
    }

    #[tokio::test]
    async fn a_token_made_here_is_valid_here() {
        let rules = Rules {
            issuer: vec!["me".to_owned()],
            audience: vec!["them".to_owned()],
        };
        let rooms = ["blog:*".to_owned()];
        let hour = Duration::from_hours(1);
        let token = sign(
            SECRET,
            "7",
            Some("publish read"),
            Some(&rooms),
            hour,
            &rules,
        )
        .unwrap();
        let verifier = Verifier::new(secrets(), rules);
        let claims = verifier.verify(&token).await.unwrap();
        assert_eq!(claims.user.as_str(), "7");
        assert_eq!(claims.rooms, Some(Patterns::every_blog()));
        assert_eq!(claims.scopes, Scopes::parse("read publish"));
        assert!(claims.expires_unix >= unix_now() + 3_590);
        let bare = sign(SECRET, "7", None, None, Duration::MAX, &Rules::default()).unwrap();
        assert_eq!(verify(&bare).await.unwrap().rooms, None);
    }

    #[test]
    fn a_token_that_would_not_be_valid_is_not_made() {
        let (hour, rules) = (Duration::from_hours(1), Rules::default());
        let nobody = sign(SECRET, "a b", None, None, hour, &rules);
        assert!(matches!(nobody, Err(SignError::Subject(_))));
        let rooms = ["blog".to_owned()];
        let nowhere = sign(SECRET, "7", None, Some(&rooms), hour, &rules);
        assert!(matches!(nowhere, Err(SignError::Rooms(_))));
    }

    #[tokio::test]
    async fn neither_debug_nor_errors_show_a_secret_or_a_token() {
        let secret = "correct horse battery staple 1234567";
        let verifier = Verifier::new(Keys::secrets([secret]).unwrap(), Rules::default());
        let shown = format!("{verifier:?}");
        assert!(shown.contains("KeySet(1 keys)"), "{shown}");
        assert!(
            !shown.contains("horse") && !shown.contains("99, 111, 114"),
            "{shown}"
        );
        let token = token(json!({}));
        let err = verifier.verify(&token).await.unwrap_err();
        for part in token.split('.') {
            assert!(!format!("{err} {err:?}").contains(part));
        }
    }
}
