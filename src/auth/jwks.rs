//! Keys behind a URL: fetched, cached, refreshed every hour and when a token names a key that is
//! not known, and kept when a fetch fails.
//!
//! Strangers can make such tokens, so what they cause is bounded: one fetch at a time, at most
//! one a minute for their sake, each limited in time and size.

use std::{
    error::Error,
    fmt,
    sync::{Arc, Weak},
    time::Duration,
};

use jsonwebtoken::Algorithm;
use parking_lot::Mutex;
use reqwest::{Client, StatusCode, Url};
use tokio::{
    sync::watch,
    time::{self, Instant},
};
use tracing::{debug, info, warn};

use super::{
    keys::{KeyError, KeySet},
    token::{InvalidToken, Jws},
};

/// Time between two scheduled fetches, give or take a tenth, lest all nodes ask at once.
const REFRESH: Duration = Duration::from_hours(1);
/// Shortest time between two fetches that unknown keys cause.
const DEMAND: Duration = Duration::from_mins(1);
/// Wait after a scheduled fetch failed; doubled with each further failure, up to [`DEMAND`].
const RETRY: Duration = Duration::from_secs(5);
/// Longest a fetch may take, from connecting to the last byte.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Largest key set read: 256 KiB.
const MAX_BYTES: usize = 256 * 1024;

/// A key set behind a URL. Cheap to clone; clones share it.
#[derive(Clone)]
pub(super) struct Jwks(Arc<Shared>);

struct Shared {
    url: Url,
    client: Client,
    /// A lock rather than atomics: whether to fetch is one decision over the flight and the time
    /// of the last demand. Never held over an `await`.
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The keys of the last fetch that went well.
    keys: Option<Arc<KeySet>>,
    /// The newest fetch. It is under way as long as the task that runs it holds the sender, so
    /// not even a panic there can leave it under way for ever.
    flight: Option<watch::Receiver<bool>>,
    /// When a fetch was last begun for the sake of an unknown key.
    demanded: Option<Instant>,
}

impl State {
    /// The fetch under way. The error of `has_changed` is that the sender is gone.
    fn under_way(&self) -> Option<&watch::Receiver<bool>> {
        self.flight
            .as_ref()
            .filter(|flight| flight.has_changed().is_ok())
    }
}

/// Why to fetch.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cause {
    Schedule,
    UnknownKey,
}

/// Says why a fetch failed.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("it took longer than {TIMEOUT:?}")]
    Timeout,
    #[error("the request failed")]
    Http(#[source] reqwest::Error),
    #[error("the answer was {0}; only 200 is accepted, and no redirect followed")]
    Status(StatusCode),
    #[error("the answer is longer than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the answer is of no use")]
    Keys(#[source] KeyError),
}

impl Jwks {
    pub(super) fn new(url: &str) -> Result<Self, KeyError> {
        let url = Url::parse(url).map_err(|_| KeyError::Url)?;
        if !matches!(url.scheme(), "http" | "https") || !url.has_host() {
            return Err(KeyError::Url);
        }
        let client = Client::builder()
            .user_agent(concat!("livecount/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            // Proxies would be taken from the environment, which only `main` reads.
            .no_proxy()
            // The next fetch is an hour away.
            .pool_max_idle_per_host(0)
            .build()
            .map_err(KeyError::Client)?;
        Ok(Self(Arc::new(Shared {
            url,
            client,
            state: Mutex::default(),
        })))
    }

    /// Checks a signature, fetching the set anew where it lacks the token's key and a fetch is
    /// due. Cancel safe: a fetch is a task of its own.
    pub(super) async fn check(&self, jws: &Jws<'_>) -> Result<(), InvalidToken> {
        // No set holds secrets, so this must not cause a fetch.
        if jws.algorithm == Algorithm::HS256 {
            return Err(InvalidToken::Algorithm);
        }
        let verdict = self.0.check(jws);
        if matches!(
            verdict,
            Err(InvalidToken::UnknownKey | InvalidToken::KeysUnavailable)
        ) && let Some(flight) = self.0.begin(Cause::UnknownKey)
        {
            landed(flight).await;
            return self.0.check(jws);
        }
        verdict
    }

    /// Fetches now and then on schedule, as long as any clone of `self` lives.
    pub(super) fn keep_fresh(&self) -> impl Future<Output = ()> + Send + 'static {
        let shared = Arc::downgrade(&self.0);
        async move {
            let mut retry = RETRY;
            while let Some(flight) = begin_scheduled(&shared) {
                let wait = if landed(flight).await {
                    retry = RETRY;
                    REFRESH.mul_f64(rand::random_range(0.9..1.1))
                } else {
                    let wait = retry;
                    retry = DEMAND.min(retry * 2);
                    wait
                };
                time::sleep(wait).await;
            }
        }
    }
}

impl fmt::Debug for Jwks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jwks")
            .field("host", &self.0.host())
            .field("keys", &self.0.state.lock().keys)
            .finish()
    }
}

impl Shared {
    fn check(&self, jws: &Jws<'_>) -> Result<(), InvalidToken> {
        let keys = self.state.lock().keys.clone();
        keys.map_or(Err(InvalidToken::KeysUnavailable), |keys| keys.check(jws))
    }

    /// Joins the fetch under way, or begins one where `cause` may. One lock for the question and
    /// the answer, so that of any number of callers one begins it.
    fn begin(self: &Arc<Self>, cause: Cause) -> Option<watch::Receiver<bool>> {
        let mut state = self.state.lock();
        if let Some(flight) = state.under_way() {
            return Some(flight.clone());
        }
        if cause == Cause::UnknownKey {
            let now = Instant::now();
            if state.demanded.is_some_and(|at| now < at + DEMAND) {
                return None;
            }
            state.demanded = Some(now);
        }
        let (landing, flight) = watch::channel(false);
        state.flight = Some(flight.clone());
        drop(state);
        // A task of its own: whoever waits may be a request whose client goes away.
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            let went_well = shared.refresh().await;
            landing.send_replace(went_well);
        });
        Some(flight)
    }

    /// Fetches once; true where the set that is known now is the fetched one.
    async fn refresh(&self) -> bool {
        let fetched = time::timeout(TIMEOUT, self.fetch())
            .await
            .unwrap_or(Err(FetchError::Timeout));
        match fetched {
            Ok(keys) => {
                let count = keys.len();
                let before = self.state.lock().keys.replace(Arc::new(keys));
                let host = self.host();
                match before {
                    None => info!(host, keys = count, "fetched the token keys"),
                    Some(_) => debug!(host, keys = count, "fetched the token keys again"),
                }
                true
            }
            Err(err) => {
                let kept = self.state.lock().keys.as_ref().map_or(0, |keys| keys.len());
                warn!(
                    host = self.host(),
                    kept,
                    error = &err as &(dyn Error + 'static),
                    "cannot fetch the token keys"
                );
                false
            }
        }
    }

    async fn fetch(&self) -> Result<KeySet, FetchError> {
        // Errors name the URL, and its query may be a secret.
        let http = |err: reqwest::Error| FetchError::Http(err.without_url());
        let mut response = self
            .client
            .get(self.url.clone())
            .send()
            .await
            .map_err(http)?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let mut json = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(http)? {
            if json.len() + chunk.len() > MAX_BYTES {
                return Err(FetchError::TooLarge);
            }
            json.extend_from_slice(&chunk);
        }
        KeySet::from_jwks(&json).map_err(FetchError::Keys)
    }

    /// What of the URL may be shown.
    fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }
}

fn begin_scheduled(shared: &Weak<Shared>) -> Option<watch::Receiver<bool>> {
    shared.upgrade()?.begin(Cause::Schedule)
}

/// Waits until a fetch is over; true where it went well.
async fn landed(mut flight: watch::Receiver<bool>) -> bool {
    // Its end is that of the sender, whose task stores the keys first.
    while flight.changed().await.is_ok() {}
    *flight.borrow()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
        sync::Semaphore,
    };

    use super::{
        super::keys::fixtures::{Pair, jwk_set},
        *,
    };

    /// An issuer's server: counts fetches, and answers as last told, once it is let.
    struct Issuer {
        url: String,
        fetches: AtomicUsize,
        answer: Mutex<Vec<u8>>,
        /// One permit an answer.
        gate: Semaphore,
    }

    impl Issuer {
        async fn start(answer: Vec<u8>) -> Arc<Self> {
            let issuer = Self::start_closed(answer).await;
            issuer.gate.add_permits(1_000);
            issuer
        }

        async fn start_closed(answer: Vec<u8>) -> Arc<Self> {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}/keys?word=hidden", listener.local_addr().unwrap());
            let issuer = Arc::new(Self {
                url,
                fetches: AtomicUsize::new(0),
                answer: Mutex::new(answer),
                gate: Semaphore::new(0),
            });
            let served = Arc::clone(&issuer);
            tokio::spawn(async move {
                loop {
                    let (mut socket, _) = listener.accept().await.unwrap();
                    let served = Arc::clone(&served);
                    tokio::spawn(async move {
                        let mut head = Vec::new();
                        while !head.ends_with(b"\r\n\r\n") {
                            head.push(socket.read_u8().await.unwrap());
                        }
                        served.fetches.fetch_add(1, Ordering::SeqCst);
                        served.gate.acquire().await.unwrap().forget();
                        let answer = served.answer.lock().clone();
                        // A client that has read enough closes early.
                        let _ = socket.write_all(&answer).await;
                    });
                }
            });
            issuer
        }

        fn answer_with(&self, answer: Vec<u8>) {
            *self.answer.lock() = answer;
        }

        fn fetches(&self) -> usize {
            self.fetches.load(Ordering::SeqCst)
        }

        async fn reached(&self, fetches: usize) {
            while self.fetches() < fetches {
                tokio::task::yield_now().await;
            }
        }
    }

    fn answer(status: &str, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn keys(jwks: &[Value]) -> Vec<u8> {
        answer("200 OK", &jwk_set(jwks))
    }

    fn token(pair: &Pair, kid: &str) -> String {
        pair.token(&json!({"alg": pair.alg(), "kid": kid}), &json!({}))
    }

    async fn check(jwks: &Jwks, token: &str) -> Result<(), InvalidToken> {
        jwks.check(&Jws::parse(token).unwrap()).await
    }

    /// Moves the clock alone: a paused clock would run past every timeout while a socket waits.
    async fn pass(duration: Duration) {
        time::pause();
        // Timers fire at the millisecond that follows.
        time::advance(duration + Duration::from_millis(2)).await;
        time::resume();
    }

    #[tokio::test]
    async fn the_first_token_fetches_and_the_next_does_not() {
        let pair = Pair::es256();
        let issuer = Issuer::start(keys(&[pair.jwk("a")])).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
        assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
        let stranger = token(&Pair::es256(), "a");
        assert_eq!(check(&jwks, &stranger).await, Err(InvalidToken::Signature));
        assert_eq!(issuer.fetches(), 1);
    }

    #[tokio::test]
    async fn an_unknown_kid_fetches_at_most_once_a_minute() {
        let pair = Pair::es256();
        let issuer = Issuer::start(keys(&[pair.jwk("a")])).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        assert!(jwks.0.refresh().await);
        assert_eq!(issuer.fetches(), 1);
        for round in 0..3 {
            for attack in 0..20 {
                let token = token(&pair, &format!("{round}-{attack}"));
                assert_eq!(check(&jwks, &token).await, Err(InvalidToken::UnknownKey));
            }
            assert_eq!(issuer.fetches(), 2 + round);
            assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
            pass(DEMAND).await;
        }
    }

    #[tokio::test]
    async fn a_new_key_is_fetched_when_a_token_first_names_it() {
        let (old, new) = (Pair::rs256(), Pair::eddsa());
        let issuer = Issuer::start(keys(&[old.jwk("old")])).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        assert!(jwks.0.refresh().await);
        issuer.answer_with(keys(&[new.jwk("new")]));
        assert_eq!(check(&jwks, &token(&new, "new")).await, Ok(()));
        let gone = check(&jwks, &token(&old, "old")).await;
        assert_eq!(gone, Err(InvalidToken::UnknownKey));
        assert_eq!(issuer.fetches(), 2);
    }

    #[tokio::test]
    async fn a_token_of_another_algorithm_causes_no_fetch() {
        let issuer = Issuer::start(keys(&[Pair::es256().jwk("a")])).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        let header = json!({"alg": "HS256", "kid": "b"});
        let forged = super::super::keys::fixtures::hs256(&[7; 32], &header, &json!({}));
        assert_eq!(check(&jwks, &forged).await, Err(InvalidToken::Algorithm));
        assert_eq!(issuer.fetches(), 0);
    }

    #[tokio::test]
    async fn requests_at_one_time_share_one_fetch() {
        let pair = Arc::new(Pair::es256());
        let issuer = Issuer::start_closed(keys(&[pair.jwk("a")])).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        let waiting: Vec<_> = (0..50)
            .map(|_| {
                let (jwks, pair) = (jwks.clone(), Arc::clone(&pair));
                tokio::spawn(async move { check(&jwks, &token(&pair, "a")).await })
            })
            .collect();
        issuer.reached(1).await;
        issuer.gate.add_permits(100);
        for waiter in waiting {
            assert_eq!(waiter.await.unwrap(), Ok(()));
        }
        assert_eq!(issuer.fetches(), 1);
    }

    #[tokio::test]
    async fn a_fetch_goes_on_when_the_request_that_began_it_is_dropped() {
        let pair = Pair::es256();
        let issuer = Issuer::start_closed(keys(&[pair.jwk("a")])).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        let begun = tokio::spawn({
            let (jwks, token) = (jwks.clone(), token(&pair, "a"));
            async move { check(&jwks, &token).await }
        });
        issuer.reached(1).await;
        begun.abort();
        assert!(begun.await.unwrap_err().is_cancelled());
        issuer.gate.add_permits(1);
        assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
        assert_eq!(issuer.fetches(), 1);
    }

    #[tokio::test]
    async fn keys_are_kept_when_a_fetch_fails() {
        let pair = Pair::es256();
        let good = keys(&[pair.jwk("a")]);
        let issuer = Issuer::start(good.clone()).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        assert!(jwks.0.refresh().await);
        let empty = jwk_set(&[]);
        let redirect = format!("302 Found\r\nlocation: {}", issuer.url);
        for bad in [
            answer("500 Internal Server Error", &empty),
            answer("204 No Content", &[]),
            answer("200 OK", b"<html>"),
            answer("200 OK", &empty),
            answer(&redirect, &jwk_set(&[pair.jwk("b")])),
            good[..good.len() - 9].to_vec(),
            Vec::new(),
        ] {
            issuer.answer_with(bad);
            let before = issuer.fetches();
            let unknown = check(&jwks, &token(&pair, "b")).await;
            assert_eq!(unknown, Err(InvalidToken::UnknownKey));
            assert_eq!(issuer.fetches(), before + 1);
            assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
            pass(DEMAND).await;
        }
    }

    #[tokio::test]
    async fn an_oversized_set_is_refused_without_being_read_to_its_end() {
        let pair = Pair::es256();
        let mut body = jwk_set(&[pair.jwk("a")]);
        body.resize(MAX_BYTES, b' ');
        let issuer = Issuer::start(answer("200 OK", &body)).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        assert!(jwks.0.fetch().await.is_ok());
        body.resize(64 * MAX_BYTES, b' ');
        issuer.answer_with(answer("200 OK", &body));
        let refused = jwks.0.fetch().await;
        assert!(matches!(refused, Err(FetchError::TooLarge)), "{refused:?}");
    }

    #[tokio::test]
    async fn a_slow_issuer_is_given_up_on() {
        let issuer = Issuer::start_closed(Vec::new()).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        let flight = jwks.0.begin(Cause::Schedule).unwrap();
        issuer.reached(1).await;
        pass(TIMEOUT).await;
        assert!(!landed(flight).await);
        let pair = Pair::es256();
        issuer.answer_with(keys(&[pair.jwk("a")]));
        issuer.gate.add_permits(9);
        assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
    }

    #[tokio::test]
    async fn without_any_keys_a_token_is_told_so() {
        let issuer = Issuer::start(answer("503 Service Unavailable", b"")).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        for _ in 0..2 {
            let refused = check(&jwks, &token(&Pair::es256(), "a")).await;
            assert_eq!(refused, Err(InvalidToken::KeysUnavailable));
        }
        assert_eq!(issuer.fetches(), 1);
    }

    #[tokio::test]
    async fn the_schedule_fetches_at_once_then_hourly_and_sooner_after_a_failure() {
        let pair = Pair::es256();
        let good = keys(&[pair.jwk("a")]);
        let issuer = Issuer::start(answer("500 Internal Server Error", b"")).await;
        let jwks = Jwks::new(&issuer.url).unwrap();
        let schedule = tokio::spawn(jwks.keep_fresh());
        let settled_at = async |fetches| {
            // Lets the schedule wake up, and go to sleep again once the fetch is over.
            let turns = async || {
                for _ in 0..10 {
                    tokio::task::yield_now().await;
                }
            };
            turns().await;
            while jwks.0.state.lock().under_way().is_some() {
                tokio::task::yield_now().await;
            }
            turns().await;
            assert_eq!(issuer.fetches(), fetches);
        };
        settled_at(1).await;
        pass(RETRY).await;
        settled_at(2).await;
        pass(RETRY).await;
        settled_at(2).await;
        issuer.answer_with(good);
        pass(RETRY).await;
        settled_at(3).await;
        assert_eq!(check(&jwks, &token(&pair, "a")).await, Ok(()));
        pass(REFRESH.mul_f64(0.8)).await;
        settled_at(3).await;
        pass(REFRESH.mul_f64(0.3)).await;
        settled_at(4).await;
        drop(jwks);
        pass(REFRESH.mul_f64(1.1)).await;
        schedule.await.unwrap();
    }
}
