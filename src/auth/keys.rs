//! The keys that a token's signature may be checked with, and where they come from: secrets,
//! a PEM file, a JWKS file or a JWKS URL.
//!
//! A key knows its one algorithm, so no token can choose how it is checked. What a token says is
//! not known here.

use std::{fmt, sync::Arc};

use aws_lc_rs::{rsa, signature};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::Value;

use super::{
    jwks::Jwks,
    token::{InvalidToken, Jws},
};

/// Shortest HS256 secret: 32 bytes (RFC 7518, section 3.2: no shorter than the hash).
pub const MIN_SECRET_BYTES: usize = 32;
/// Most keys in one JWKS, those that are of no use here included.
pub const MAX_JWKS_KEYS: usize = 100;
/// Lengths of an RSA modulus: 2,048 to 8,192 bits (RFC 7518, section 3.3, and what is verified).
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1_024;

/// Says why keys were refused. Never holds any part of a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Nothing that could verify a token.
    #[error("there is no key in it")]
    NoKey,
    /// An HS256 secret of fewer than [`MIN_SECRET_BYTES`].
    #[error("a secret has fewer than {MIN_SECRET_BYTES} bytes")]
    ShortSecret,
    /// Not PEM: a block without its end, or bytes that are no text.
    #[error("it is not PEM text")]
    Pem,
    /// A PEM block with a private key.
    #[error("it holds a private key; only the public key belongs here")]
    Private,
    /// A PEM block with anything else that is no public key.
    #[error("it holds a PEM block other than PUBLIC KEY or RSA PUBLIC KEY")]
    NotPublic,
    /// A public key of another kind, or a broken one.
    #[error("a key in it is neither RSA of 2048 to 8192 bits, nor EC P-256, nor Ed25519")]
    Unsupported,
    /// Not JSON.
    #[error("it is not JSON")]
    Json(#[source] serde_json::Error),
    /// JSON, yet no JWK Set (RFC 7517, section 5).
    #[error("it is no JWK set: an object with an array named keys")]
    NoSet,
    /// More than [`MAX_JWKS_KEYS`].
    #[error("it holds more than {MAX_JWKS_KEYS} keys")]
    TooMany,
    /// A JWK set, yet no key in it can verify a token.
    #[error("no key in it is for RS256, ES256 or EdDSA signatures")]
    NoUsableKey,
    /// Not an absolute URL of http or https.
    #[error("it is not a URL that starts with http:// or https://")]
    Url,
    /// The HTTP client cannot be set up, as without the system's root certificates.
    #[error("the client that would fetch it cannot be set up")]
    Client(#[source] reqwest::Error),
}

/// The keys of one source. Cheap to clone; clones share what was fetched. `Debug` shows the
/// number of keys and nothing of them.
#[derive(Clone)]
pub struct Keys(Source);

#[derive(Clone)]
enum Source {
    Fixed(Arc<KeySet>),
    Fetched(Jwks),
}

impl Keys {
    /// Takes HS256 secrets; a token signed with any of them is good, so that one can be
    /// replaced by another.
    ///
    /// # Errors
    ///
    /// When there is none, or one is shorter than [`MIN_SECRET_BYTES`].
    pub fn secrets(secrets: impl IntoIterator<Item: AsRef<[u8]>>) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for secret in secrets {
            let secret = secret.as_ref();
            if secret.len() < MIN_SECRET_BYTES {
                return Err(KeyError::ShortSecret);
            }
            keys.push(Key::unnamed(
                Algorithm::HS256,
                DecodingKey::from_secret(secret),
            ));
        }
        Self::fixed(keys)
    }

    /// Takes public keys in PEM, one block or several. The kind of key fixes the algorithm:
    /// RSA means RS256, EC P-256 ES256, Ed25519 `EdDSA`.
    ///
    /// # Errors
    ///
    /// When it is not PEM, or holds no block, a private key, a certificate, or a key of another
    /// kind.
    pub fn public_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| KeyError::Pem)?;
        let keys = pem_blocks(text)?
            .into_iter()
            .map(Key::from_pem)
            .collect::<Result<_, _>>()?;
        Self::fixed(keys)
    }

    /// Takes the contents of a JWKS file (RFC 7517). Each key's kind fixes its algorithm, as for
    /// PEM; keys of other kinds, for other algorithms or for other uses are passed over.
    ///
    /// # Errors
    ///
    /// When it is no JWK set, holds more than [`MAX_JWKS_KEYS`], or none of use.
    pub fn jwks(json: &[u8]) -> Result<Self, KeyError> {
        Ok(Self(Source::Fixed(Arc::new(KeySet::from_jwks(json)?))))
    }

    /// Names the URL of a JWKS. Nothing is fetched yet: [`Keys::keep_fresh`] does so, and so
    /// does the first token.
    ///
    /// # Errors
    ///
    /// When it is no http or https URL, or there is no HTTP client to be had.
    pub fn jwks_url(url: &str) -> Result<Self, KeyError> {
        Jwks::new(url).map(|jwks| Self(Source::Fetched(jwks)))
    }

    fn fixed(keys: Vec<Key>) -> Result<Self, KeyError> {
        if keys.is_empty() {
            return Err(KeyError::NoKey);
        }
        Ok(Self(Source::Fixed(Arc::new(KeySet { keys }))))
    }

    /// Fetches a JWKS URL now and then every hour, after a failure sooner. Ends when the last
    /// clone of these keys is gone; at once where there is nothing to fetch. For a task of its
    /// own.
    pub fn keep_fresh(&self) -> impl Future<Output = ()> + Send + 'static {
        let fresh = match &self.0 {
            Source::Fixed(_) => None,
            Source::Fetched(jwks) => Some(jwks.keep_fresh()),
        };
        async {
            if let Some(fresh) = fresh {
                fresh.await;
            }
        }
    }

    /// Checks the signature. Waits only for a fetch of a JWKS URL, and is cancel safe: the fetch
    /// goes on without the caller.
    pub(super) async fn check(&self, jws: &Jws<'_>) -> Result<(), InvalidToken> {
        match &self.0 {
            Source::Fixed(set) => set.check(jws),
            Source::Fetched(jwks) => jwks.check(jws).await,
        }
    }
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Fixed(set) => set.fmt(f),
            Source::Fetched(jwks) => jwks.fmt(f),
        }
    }
}

/// Keys that are known, at least one.
pub(super) struct KeySet {
    keys: Vec<Key>,
}

impl KeySet {
    /// Reads a JWK set, passing over keys that are of no use (RFC 7517, section 5).
    pub(super) fn from_jwks(json: &[u8]) -> Result<Self, KeyError> {
        // By hand rather than into a struct, whose errors would quote what they found, and that
        // may be a key.
        let set: Value = serde_json::from_slice(json).map_err(KeyError::Json)?;
        let listed = set
            .get("keys")
            .and_then(Value::as_array)
            .ok_or(KeyError::NoSet)?;
        if listed.len() > MAX_JWKS_KEYS {
            return Err(KeyError::TooMany);
        }
        let keys: Vec<_> = listed.iter().filter_map(Key::from_jwk).collect();
        if keys.is_empty() {
            return Err(KeyError::NoUsableKey);
        }
        Ok(Self { keys })
    }

    /// Checks the signature with every key of the token's algorithm that its `kid` may mean.
    pub(super) fn check(&self, jws: &Jws<'_>) -> Result<(), InvalidToken> {
        let mut of_algorithm = self
            .keys
            .iter()
            .filter(|key| key.algorithm == jws.algorithm)
            .peekable();
        let none_of_algorithm = of_algorithm.peek().is_none();
        if of_algorithm
            .filter(|key| key.answers_to(jws.kid.as_deref()))
            .any(|key| jws.is_signed_by(&key.key))
        {
            Ok(())
        } else if self.lacks(jws.kid.as_deref()) {
            Err(InvalidToken::UnknownKey)
        } else if none_of_algorithm {
            Err(InvalidToken::Algorithm)
        } else {
            Err(InvalidToken::Signature)
        }
    }

    /// True where keys have names and `kid` is none of them, so that a newer set may hold it.
    fn lacks(&self, kid: Option<&str>) -> bool {
        let mut names = self.keys.iter().filter_map(|key| key.kid.as_deref());
        match (kid, names.next()) {
            (Some(kid), Some(first)) => first != kid && names.all(|name| name != kid),
            _ => false,
        }
    }

    /// The number of keys.
    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }
}

impl fmt::Debug for KeySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeySet({} keys)", self.len())
    }
}

/// One key and the one algorithm that it is for.
struct Key {
    algorithm: Algorithm,
    kid: Option<String>,
    key: DecodingKey,
}

impl Key {
    fn unnamed(algorithm: Algorithm, key: DecodingKey) -> Self {
        Self {
            algorithm,
            kid: None,
            key,
        }
    }

    /// A token without `kid` may mean any key, and a key without one be meant by any token.
    fn answers_to(&self, kid: Option<&str>) -> bool {
        match (kid, &self.kid) {
            (Some(asked), Some(own)) => asked == own,
            _ => true,
        }
    }

    fn from_pem(block: &str) -> Result<Self, KeyError> {
        let pem = block.as_bytes();
        let key = if let Ok(key) = DecodingKey::from_ed_pem(pem) {
            key.try_get_as_bytes().ok().and_then(ed25519)
        } else if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            key.try_get_as_bytes().ok().and_then(p256)
        } else if let Ok(key) = DecodingKey::from_rsa_pem(pem) {
            let public = key
                .try_get_as_bytes()
                .ok()
                .and_then(|der| rsa::PublicKey::from_der(der).ok());
            public.and_then(|public| {
                let parts = signature::RsaPublicKeyComponents::<Vec<u8>>::from(&public);
                rsa_key(&parts.n, &parts.e)
            })
        } else {
            None
        };
        key.map(|(algorithm, key)| Self::unnamed(algorithm, key))
            .ok_or(KeyError::Unsupported)
    }

    fn from_jwk(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?).ok();
        let (algorithm, key) = match (text("kty")?, text("crv")) {
            ("RSA", _) => rsa_key(&bytes("n")?, &bytes("e")?)?,
            ("EC", Some("P-256")) => {
                // An uncompressed point: SEC 1, section 2.3.3.
                let point = [vec![4], bytes("x")?, bytes("y")?].concat();
                p256(&point)?
            }
            ("OKP", Some("Ed25519")) => ed25519(&bytes("x")?)?,
            _ => return None,
        };
        let name = match algorithm {
            Algorithm::RS256 => "RS256",
            Algorithm::ES256 => "ES256",
            _ => "EdDSA",
        };
        let is_for_it = jwk.get("alg").is_none_or(|alg| alg == name);
        let is_for_signatures = jwk.get("use").is_none_or(|usage| usage == "sig");
        let may_verify = jwk.get("key_ops").is_none_or(|ops| {
            ops.as_array()
                .is_some_and(|ops| ops.iter().any(|op| op == "verify"))
        });
        let kid = match jwk.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str()?.to_owned()),
        };
        (is_for_it && is_for_signatures && may_verify).then_some(Self {
            algorithm,
            kid,
            key,
        })
    }
}

fn rsa_key(modulus: &[u8], exponent: &[u8]) -> Option<(Algorithm, DecodingKey)> {
    // Some issuers write the sign byte of the DER form, which the library refuses.
    let [modulus, exponent] = [modulus, exponent].map(|number| {
        let zeros = number.iter().take_while(|byte| **byte == 0).count();
        &number[zeros..]
    });
    let fits = RSA_MODULUS_BYTES.contains(&modulus.len()) && !exponent.is_empty();
    fits.then(|| {
        let key = DecodingKey::from_rsa_raw_components(modulus, exponent);
        (Algorithm::RS256, key)
    })
}

fn p256(point: &[u8]) -> Option<(Algorithm, DecodingKey)> {
    // A point of another curve has the same length and form; parsing finds that it is not on
    // this one.
    let uncompressed = point.len() == 65 && point[0] == 4;
    let on_curve = uncompressed
        && signature::ParsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).is_ok();
    on_curve.then(|| (Algorithm::ES256, DecodingKey::from_ec_der(point)))
}

fn ed25519(point: &[u8]) -> Option<(Algorithm, DecodingKey)> {
    (point.len() == 32).then(|| (Algorithm::EdDSA, DecodingKey::from_ed_der(point)))
}

/// Splits a file into its blocks, each with its `BEGIN` and `END` lines. Text between blocks is
/// ignored (RFC 7468, section 2).
fn pem_blocks(mut text: &str) -> Result<Vec<&str>, KeyError> {
    const BEGIN: &str = "-----BEGIN ";
    let mut blocks = Vec::new();
    while let Some(start) = text.find(BEGIN) {
        text = &text[start..];
        let (label, _) = text[BEGIN.len()..]
            .split_once("-----")
            .ok_or(KeyError::Pem)?;
        // The library would take these: a private key for the public one inside, and a
        // certificate without looking at who signed it or when it ends.
        if label.ends_with("PRIVATE KEY") {
            return Err(KeyError::Private);
        }
        if label != "PUBLIC KEY" && label != "RSA PUBLIC KEY" {
            return Err(KeyError::NotPublic);
        }
        let end = format!("-----END {label}-----");
        let length = text.find(&end).ok_or(KeyError::Pem)? + end.len();
        blocks.push(&text[..length]);
        text = &text[length..];
    }
    Ok(blocks)
}

/// Key pairs for the tests of this folder, made afresh in each run.
#[cfg(test)]
pub(super) mod fixtures {
    use std::sync::LazyLock;

    use aws_lc_rs::{
        encoding::AsDer as _,
        rand::SystemRandom,
        signature::{
            ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
            RSA_PKCS1_SHA256, RsaKeyPair, RsaPublicKeyComponents,
        },
    };
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    use super::*;

    pub(in crate::auth) static RSA: LazyLock<RsaKeyPair> =
        LazyLock::new(|| RsaKeyPair::generate(rsa::KeySize::Rsa2048).unwrap());

    /// One key pair, by the algorithm it is for.
    pub(in crate::auth) enum Pair {
        Rs256(&'static RsaKeyPair),
        Es256(Box<EcdsaKeyPair>),
        EdDsa(Box<Ed25519KeyPair>),
    }

    impl Pair {
        pub(in crate::auth) fn rs256() -> Self {
            Self::Rs256(&RSA)
        }

        pub(in crate::auth) fn es256() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            Self::Es256(Box::new(pair))
        }

        pub(in crate::auth) fn eddsa() -> Self {
            Self::EdDsa(Box::new(Ed25519KeyPair::generate().unwrap()))
        }

        pub(in crate::auth) fn alg(&self) -> &'static str {
            match self {
                Self::Rs256(_) => "RS256",
                Self::Es256(_) => "ES256",
                Self::EdDsa(_) => "EdDSA",
            }
        }

        fn sign(&self, message: &[u8]) -> Vec<u8> {
            let random = SystemRandom::new();
            match self {
                Self::Rs256(pair) => {
                    let mut signature = vec![0; pair.public_modulus_len()];
                    pair.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)
                        .unwrap();
                    signature
                }
                Self::Es256(pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
                Self::EdDsa(pair) => pair.sign(message).as_ref().to_vec(),
            }
        }

        /// A token with this header and these claims, as they stand.
        pub(in crate::auth) fn token(&self, header: &Value, claims: &Value) -> String {
            let message = unsigned(header, claims);
            let signature = URL_SAFE_NO_PAD.encode(self.sign(message.as_bytes()));
            format!("{message}.{signature}")
        }

        pub(in crate::auth) fn pem(&self) -> String {
            let der = match self {
                Self::Rs256(pair) => pair.public_key().as_der().unwrap(),
                Self::Es256(pair) => pair.public_key().as_der().unwrap(),
                Self::EdDsa(pair) => pair.public_key().as_der().unwrap(),
            };
            pem("PUBLIC KEY", der.as_ref())
        }

        pub(in crate::auth) fn jwk(&self, kid: &str) -> Value {
            let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
            match self {
                Self::Rs256(pair) => {
                    let parts = RsaPublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                    json!({"kty": "RSA", "kid": kid, "n": text(&parts.n), "e": text(&parts.e)})
                }
                Self::Es256(pair) => {
                    let (x, y) = pair.public_key().as_ref()[1..].split_at(32);
                    json!({"kty": "EC", "crv": "P-256", "kid": kid, "x": text(x), "y": text(y)})
                }
                Self::EdDsa(pair) => {
                    let x = text(pair.public_key().as_ref());
                    json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x})
                }
            }
        }
    }

    pub(in crate::auth) fn pem(label: &str, der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let lines: Vec<_> = text
            .as_bytes()
            .chunks(64)
            .map(|line| std::str::from_utf8(line).unwrap())
            .collect();
        let lines = lines.join("\n");
        format!("-----BEGIN {label}-----\n{lines}\n-----END {label}-----\n")
    }

    /// The first two parts of a token.
    pub(in crate::auth) fn unsigned(header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}", part(header), part(claims))
    }

    /// A token signed with a secret, with this header and these claims as they stand.
    pub(in crate::auth) fn hs256(secret: &[u8], header: &Value, claims: &Value) -> String {
        use aws_lc_rs::hmac;
        let message = unsigned(header, claims);
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let tag = hmac::sign(&key, message.as_bytes());
        format!("{message}.{}", URL_SAFE_NO_PAD.encode(tag))
    }

    pub(in crate::auth) fn jwk_set(keys: &[Value]) -> Vec<u8> {
        json!({ "keys": keys }).to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        encoding::{AsDer, Pkcs8V1Der},
        signature::{ECDSA_P256K1_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::{fixtures::*, *};

    fn check(keys: &Keys, token: &str) -> Result<(), InvalidToken> {
        let Source::Fixed(set) = &keys.0 else {
            panic!("these keys are not fetched")
        };
        set.check(&Jws::parse(token)?)
    }

    fn token(pair: &Pair) -> String {
        pair.token(&json!({"alg": pair.alg()}), &json!({}))
    }

    fn token_of(pair: &Pair, kid: &str) -> String {
        pair.token(&json!({"alg": pair.alg(), "kid": kid}), &json!({}))
    }

    #[test]
    fn a_public_key_file_verifies_with_the_algorithm_of_its_kind() {
        for pair in [Pair::rs256(), Pair::es256(), Pair::eddsa()] {
            let keys = Keys::public_pem(pair.pem().as_bytes()).unwrap();
            assert_eq!(check(&keys, &token(&pair)), Ok(()), "{}", pair.alg());
            assert_eq!(check(&keys, &token_of(&pair, "any")), Ok(()));
        }
    }

    #[test]
    fn a_public_key_file_may_hold_several_keys_and_words_between_them() {
        let (old, new) = (Pair::es256(), Pair::rs256());
        let file = format!("old:\n{}\r\nnew:\n{}", old.pem(), new.pem());
        let keys = Keys::public_pem(file.as_bytes()).unwrap();
        assert_eq!(check(&keys, &token(&old)), Ok(()));
        assert_eq!(check(&keys, &token(&new)), Ok(()));
        assert_eq!(
            check(&keys, &token(&Pair::es256())),
            Err(InvalidToken::Signature)
        );
        assert_eq!(
            check(&keys, &token(&Pair::eddsa())),
            Err(InvalidToken::Algorithm)
        );
    }

    #[test]
    fn an_rsa_key_in_its_older_form_is_read_too() {
        let file = pem("RSA PUBLIC KEY", RSA.public_key().as_ref());
        let keys = Keys::public_pem(file.as_bytes()).unwrap();
        assert_eq!(check(&keys, &token(&Pair::rs256())), Ok(()));
    }

    #[test]
    fn what_is_no_public_key_file_is_refused_with_its_cause() {
        let refusal = |pem: &str| Keys::public_pem(pem.as_bytes()).unwrap_err();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&*RSA).unwrap();
        assert!(matches!(refusal(""), KeyError::NoKey));
        assert!(matches!(refusal("secret"), KeyError::NoKey));
        assert!(matches!(
            refusal(&pem("PRIVATE KEY", private.as_ref())),
            KeyError::Private
        ));
        assert!(matches!(
            refusal(&pem("RSA PRIVATE KEY", private.as_ref())),
            KeyError::Private
        ));
        assert!(matches!(
            refusal(&pem("CERTIFICATE", b"x")),
            KeyError::NotPublic
        ));
        assert!(matches!(
            refusal(&pem("PUBLIC KEY", b"x")),
            KeyError::Unsupported
        ));
        assert!(matches!(
            refusal("-----BEGIN PUBLIC KEY-----\nAAAA"),
            KeyError::Pem
        ));
        assert!(matches!(refusal("-----BEGIN "), KeyError::Pem));
        assert!(matches!(
            Keys::public_pem(b"\xff").unwrap_err(),
            KeyError::Pem
        ));
    }

    #[test]
    fn a_key_of_another_curve_or_of_too_few_bits_is_refused() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256K1_SHA256_ASN1_SIGNING).unwrap();
        let der = pair.public_key().as_der().unwrap();
        let file = pem("PUBLIC KEY", der.as_ref());
        assert!(matches!(
            Keys::public_pem(file.as_bytes()),
            Err(KeyError::Unsupported)
        ));
        assert!(rsa_key(&[0xff; 128], &[1, 0, 1]).is_none());
        assert!(rsa_key(&[0xff; 256], &[0]).is_none());
    }

    #[test]
    fn a_sign_byte_before_a_modulus_is_passed_over() {
        let pair = Pair::rs256();
        let mut jwk = pair.jwk("a");
        let mut modulus = vec![0];
        modulus.extend(URL_SAFE_NO_PAD.decode(jwk["n"].as_str().unwrap()).unwrap());
        jwk["n"] = URL_SAFE_NO_PAD.encode(modulus).into();
        let keys = Keys::jwks(&jwk_set(&[jwk])).unwrap();
        assert_eq!(check(&keys, &token_of(&pair, "a")), Ok(()));
    }

    #[test]
    fn a_jwks_verifies_by_kid_or_where_a_token_names_none_by_any_key() {
        let pairs = [Pair::rs256(), Pair::es256(), Pair::eddsa(), Pair::es256()];
        let names = ["a", "b", "c", "d"];
        let jwks: Vec<_> = pairs.iter().zip(names).map(|(p, n)| p.jwk(n)).collect();
        let keys = Keys::jwks(&jwk_set(&jwks)).unwrap();
        for (pair, name) in pairs.iter().zip(names) {
            assert_eq!(check(&keys, &token_of(pair, name)), Ok(()));
            assert_eq!(check(&keys, &token(pair)), Ok(()));
        }
        let [_, second, _, fourth] = &pairs;
        assert_eq!(
            check(&keys, &token_of(second, "d")),
            Err(InvalidToken::Signature)
        );
        assert_eq!(
            check(&keys, &token_of(fourth, "a")),
            Err(InvalidToken::Signature)
        );
        assert_eq!(
            check(&keys, &token_of(fourth, "e")),
            Err(InvalidToken::UnknownKey)
        );
    }

    #[test]
    fn a_jwks_key_for_another_use_algorithm_or_kind_is_passed_over() {
        let pair = Pair::rs256();
        let with = |name: &str, value: Value| {
            let mut jwk = pair.jwk("a");
            jwk[name] = value;
            jwk
        };
        for bad in [
            with("use", json!("enc")),
            with("alg", json!("RS512")),
            with("alg", json!("HS256")),
            with("alg", json!("none")),
            with("alg", json!(1)),
            with("key_ops", json!(["encrypt"])),
            with("kty", json!("EC")),
            with("kid", json!(7)),
            with("n", json!("AQAB")),
            with("n", json!("a+/=")),
            json!({"kty": "oct", "kid": "a", "k": URL_SAFE_NO_PAD.encode([7; 32])}),
            json!({"kty": "EC", "crv": "P-256", "x": URL_SAFE_NO_PAD.encode([1; 32]),
                "y": URL_SAFE_NO_PAD.encode([1; 32])}),
            json!({"kty": "OKP", "crv": "Ed448", "x": "AQAB"}),
            json!("RSA"),
            json!(null),
        ] {
            let set = jwk_set(std::slice::from_ref(&bad));
            assert!(
                matches!(Keys::jwks(&set), Err(KeyError::NoUsableKey)),
                "{bad}"
            );
            let other = Pair::es256();
            let keys = Keys::jwks(&jwk_set(&[bad, other.jwk("b")])).unwrap();
            assert_eq!(check(&keys, &token_of(&other, "b")), Ok(()));
        }
        let mut good = with("use", json!("sig"));
        good["alg"] = json!("RS256");
        good["key_ops"] = json!(["verify"]);
        assert!(Keys::jwks(&jwk_set(&[good])).is_ok());
    }

    #[test]
    fn what_is_no_jwks_or_too_large_a_one_is_refused_with_its_cause() {
        assert!(matches!(Keys::jwks(b"{"), Err(KeyError::Json(_))));
        assert!(matches!(Keys::jwks(b"[]"), Err(KeyError::NoSet)));
        assert!(matches!(Keys::jwks(b"{\"keys\":{}}"), Err(KeyError::NoSet)));
        let none = Keys::jwks(&jwk_set(&[]));
        assert!(matches!(none, Err(KeyError::NoUsableKey)));
        let many = vec![Pair::es256().jwk("a"); MAX_JWKS_KEYS + 1];
        assert!(matches!(
            Keys::jwks(&jwk_set(&many)),
            Err(KeyError::TooMany)
        ));
        assert!(Keys::jwks(&jwk_set(&many[1..])).is_ok());
    }

    #[test]
    fn a_missing_or_short_secret_is_refused() {
        let none: [&[u8]; 0] = [];
        assert!(matches!(Keys::secrets(none), Err(KeyError::NoKey)));
        assert!(matches!(
            Keys::secrets([[7; 31]]),
            Err(KeyError::ShortSecret)
        ));
    }

    #[test]
    fn a_url_of_another_scheme_is_refused() {
        for bad in [
            "",
            "example.org/jwks",
            "file:///etc/passwd",
            "ftp://a/b",
            "http://",
        ] {
            assert!(matches!(Keys::jwks_url(bad), Err(KeyError::Url)), "{bad}");
        }
    }

    #[test]
    fn debug_and_errors_show_nothing_of_a_key() {
        let secret = b"correct horse battery staple, 32+";
        let keys = Keys::secrets([secret]).unwrap();
        assert_eq!(format!("{keys:?}"), "KeySet(1 keys)");
        let url = Keys::jwks_url("https://me:pass@example.org/jwks?key=word").unwrap();
        let shown = format!("{url:?}");
        assert!(
            !shown.contains("pass") && !shown.contains("word"),
            "{shown}"
        );
        let err = Keys::jwks(br#"{"keys":"hunter2"}"#).unwrap_err();
        assert!(!format!("{err} {err:?}").contains("hunter2"));
    }
}
