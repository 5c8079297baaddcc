//! A JWK set that is fetched.
//!
//! Job: fetch, keep, fetch again when the answer's Cache-Control says so or when a token names a key that is not
//! known, the latter at most once in [`UNKNOWN_KEY_PAUSE`]: nobody makes a node fetch by sending tokens. Keys live
//! until a fetch succeeds without them; a failed one changes nothing. One fetch at a time. Neighbours: `keeper`
//! runs it, `jwt` waits for news.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    task::JoinSet,
};

use super::super::super::keeper::Kept;
use crate::config::{
    document::HttpUrl,
    jose::{Algorithm, KeySet},
};

/// A fetch from the connection to the last byte.
const FETCH_MAX: Duration = Duration::from_secs(5);
/// How long a request waits for one.
const NEWS_MAX: Duration = Duration::from_secs(6);
/// A larger answer is not a JWK set.
const BYTES_MAX: usize = 256 << 10;
/// How long a set lives whose answer does not say.
const LIFETIME: Duration = Duration::from_secs(300);
/// What an answer may say.
const LIFETIME_MIN: Duration = Duration::from_secs(30);
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// Between two fetches for keys that are not known.
const UNKNOWN_KEY_PAUSE: Duration = Duration::from_secs(10);
/// After a failed fetch, doubled with each.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub(super) struct Jwks {
    url: HttpUrl,
    algorithms: Vec<Algorithm>,
    keys: ArcSwapOption<KeySet>,
    /// Fetches that have ended, well or not.
    ended: watch::Sender<u64>,
    /// A fetch is under way or about to be.
    busy: AtomicBool,
    wanted: Notify,
    born: Instant,
    /// When a key was last asked for that was not known, in milliseconds since `born`; 0: never.
    asked_ms: AtomicU64,
}

// === impl Jwks ===

impl Jwks {
    pub(super) fn new(url: HttpUrl, algorithms: Vec<Algorithm>) -> Arc<Jwks> {
        Arc::new(Jwks {
            url,
            algorithms,
            keys: ArcSwapOption::empty(),
            ended: watch::Sender::new(0),
            busy: AtomicBool::new(true),
            wanted: Notify::new(),
            born: Instant::now(),
            asked_ms: AtomicU64::new(0),
        })
    }

    /// The keys, once there was a fetch that succeeded.
    pub(super) fn keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full()
    }

    /// Waits for the fetch that is under way, if there is one.
    pub(super) async fn first(&self) {
        let ended = self.ended.subscribe();
        if self.busy.load(Ordering::Acquire) {
            news(ended).await;
        }
    }

    /// A token has a key that is not known: waits for a fetch, unless there was one for this reason lately.
    pub(super) async fn another(&self) {
        // Before the question, so that a fetch that ends meanwhile is news.
        let ended = self.ended.subscribe();
        if self.busy.load(Ordering::Acquire) || self.ask() {
            news(ended).await;
        }
    }

    fn ask(&self) -> bool {
        // Never 0.
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = self.asked_ms.load(Ordering::Relaxed);
        let pause = u64::try_from(UNKNOWN_KEY_PAUSE.as_millis()).unwrap_or(u64::MAX);
        if last != 0 && now.saturating_sub(last) < pause {
            return false;
        }
        if self.asked_ms.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.busy.store(true, Ordering::Release);
            self.wanted.notify_one();
        }
        true
    }

    async fn refresh(&self, failures: u32) -> Result<Duration, Duration> {
        let fetched = tokio::time::timeout(FETCH_MAX, fetch(&self.url)).await;
        let outcome =
            fetched.unwrap_or_else(|_| Err("no answer in time".into())).and_then(|(lifetime, body)| {
                let keys = KeySet::of_jwks(&body, &self.algorithms).map_err(|(problem, _)| problem)?;
                Ok((lifetime, keys))
            });
        match outcome {
            Ok((lifetime, keys)) => {
                let known = self.keys.swap(Some(Arc::new(keys)));
                if known.is_none() || failures > 0 {
                    tracing::info!(host = %self.url.host, "keys fetched");
                }
                Ok(lifetime)
            }
            Err(reason) => {
                let (host, known) = (&self.url.host, self.keys.load().is_some());
                tracing::warn!(%host, %reason, known, "keys cannot be fetched: those that are known stay");
                let pause = RETRY_MIN.saturating_mul(1 << failures.min(10)).min(RETRY_MAX);
                // Nodes that lost the issuer together do not come back together.
                Err(pause.mul_f64(rand::random_range(0.5..1.0)))
            }
        }
    }
}

impl Kept for Jwks {
    fn keep(self: Arc<Self>) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(async move {
            let mut failures = 0;
            loop {
                self.busy.store(true, Ordering::Release);
                let pause = match self.refresh(failures).await {
                    Ok(lifetime) => {
                        failures = 0;
                        lifetime
                    }
                    Err(pause) => {
                        failures += 1;
                        pause
                    }
                };
                self.busy.store(false, Ordering::Release);
                self.ended.send_modify(|ended| *ended += 1);
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = self.wanted.notified() => {}
                }
            }
        })
    }
}

async fn news(mut ended: watch::Receiver<u64>) {
    // Late is as good as no news.
    let _ = tokio::time::timeout(NEWS_MAX, ended.changed()).await;
}

async fn fetch(url: &HttpUrl) -> Result<(Duration, Bytes), String> {
    let tcp = TcpStream::connect(&url.address).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(tcp)).await.map_err(|error| error.to_string())?;
    // Dropped with its task at the end of the fetch.
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::get(&url.target)
        .header(header::HOST, &url.host)
        .header(header::ACCEPT, "application/jwk-set+json, application/json")
        .header(header::USER_AGENT, "gogate")
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
    if response.status() != 200 {
        return Err(format!("the answer is {}", response.status()));
    }
    let lifetime = lifetime(response.headers());
    let body = Limited::new(response.into_body(), BYTES_MAX).collect().await;
    let body = body.map_err(|_| format!("the answer broke off or is larger than {BYTES_MAX} bytes"))?;
    Ok((lifetime, body.to_bytes()))
}

/// `max-age` within bounds (RFC 9111, section 5.2.2.1).
fn lifetime(headers: &HeaderMap) -> Duration {
    let directives = headers.get_all(header::CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    for directive in directives.flat_map(|value| value.split(',')).map(str::trim) {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let seconds = match name.to_ascii_lowercase().as_str() {
            "no-store" | "no-cache" => Some(0),
            "max-age" => value.trim_matches('"').parse().ok(),
            _ => None,
        };
        if let Some(seconds) = seconds {
            return Duration::from_secs(seconds).clamp(LIFETIME_MIN, LIFETIME_MAX);
        }
    }
    LIFETIME
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_lifetime_is_kept_within_bounds() {
        for (value, seconds) in [
            ("", 300),
            ("public", 300),
            ("max-age=600", 600),
            ("public, Max-Age=\"900\", must-revalidate", 900),
            ("max-age=1", 30),
            ("no-store", 30),
            ("max-age=99999999", 86_400),
            ("max-age=-5", 300),
            ("max-age=99999999999999999999999", 300),
        ] {
            let headers = HeaderMap::from_iter([(header::CACHE_CONTROL, value.parse().unwrap())]);
            assert_eq!(lifetime(&headers).as_secs(), seconds, "{value}");
        }
    }

    #[tokio::test]
    async fn a_key_that_is_not_known_is_asked_for_once_in_a_while() {
        let url = HttpUrl { address: "127.0.0.1:1".into(), host: "h".into(), target: "/".into() };
        let jwks = Jwks::new(url, Vec::new());
        jwks.busy.store(false, Ordering::Release);
        assert!(jwks.ask());
        assert!(!jwks.ask());
        // A fetch under way is waited for, whoever began it.
        tokio::join!(jwks.another(), async { jwks.ended.send_modify(|ended| *ended += 1) });
        jwks.busy.store(false, Ordering::Release);
        // Too soon for the next one, so this does not wait.
        jwks.another().await;
    }
}
