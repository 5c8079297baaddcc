//! A client of the admin API: register and stay registered, watch, or make any other call, at whichever of
//! several nodes answers.
//!
//! ```no_run
//! use gogate::client::{Client, Error, Event, Instance};
//!
//! # async fn run() -> Result<(), Error> {
//! let client = Client::new(["http://10.0.0.1:7070", "http://10.0.0.2:7070"], None)?;
//!
//! // Beats until it is closed or dropped, at any node that answers; then it deregisters.
//! let registration = client.register(Instance::new("api", "10.0.0.5:9000")).await?;
//!
//! // Goes on at another node, from where it was, when one is lost.
//! let mut watch = client.watch(Some("api")).await?;
//! loop {
//!     match watch.next().await? {
//!         Event::Snapshot { instances, .. } => println!("{} instances", instances.len()),
//!         Event::Registered { instance, .. } => println!("{} has come", instance.id),
//!         Event::Deregistered { instance, .. } | Event::Expired { instance, .. } => {
//!             println!("{} has gone", instance.id);
//!             break;
//!         }
//!         _ => {}
//!     }
//! }
//! registration.close().await
//! # }
//! ```
//!
//! Invariants: a call that may have changed something is never sent twice, unless twice changes no more than
//! once: the next node is tried only if this one did not get it, or said that nothing was written; what broke
//! off in between, or was answered with 504, is [`Error::Unknown`]. The node that answered last is asked first. Deliberately absent: a pool
//! of connections, a list of CAs, and anything that knows how a node works inside: this file and its folder use `config`
//! for the spelling of addresses and durations, and nothing else of gogate. The command line uses this client.

mod connection;
mod registration;
mod watch;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
pub use registration::{Instance, Registration};
use serde::Deserialize;
use tokio_rustls::{TlsConnector, rustls::ClientConfig};
pub use watch::{Event, Watch};

use self::connection::Connection;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may take: more than the API's own default, so that its answer comes first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an answer: a list of very many instances.
const ANSWER_MAX: usize = 256 << 20;

/// Talks to any of several nodes. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    nodes: Arc<[String]>,
    token: Option<Token>,
    /// None: `http://`.
    tls: Option<Tls>,
    answer_timeout: Duration,
    /// The place of the node that answered last, which is asked first.
    last: Arc<AtomicUsize>,
}

/// What a node knows the caller by; shown to nobody else.
#[derive(Clone)]
struct Token(String);

/// Whom to believe, and what to show.
#[derive(Clone)]
struct Tls(TlsConnector);

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The path with its query.
    pub path: String,
    /// Beside those that every call has.
    pub headers: Vec<(HeaderName, String)>,
    /// The body.
    pub body: Bytes,
    /// Whether it may be sent again though a node may have got it: it changes nothing, or nothing more.
    pub repeatable: bool,
}

/// One answer, whatever its status.
#[derive(Debug)]
pub struct Reply {
    /// The status.
    pub status: StatusCode,
    /// The body.
    pub body: Bytes,
}

/// Why a call was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An address cannot be used.
    #[error("{0}")]
    Address(String),
    /// A node said no, and nothing was changed; but of kind `not-yet`: a document is written, and does not run
    /// everywhere yet.
    #[error("{detail}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The last part of the problem's type, as `not-found`; empty if the answer was no problem.
        kind: String,
        /// What the node said.
        detail: String,
    },
    /// It may have been done, or may yet be.
    #[error("{0}")]
    Unknown(String),
    /// No node answers; nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// What answers is not the admin API.
    #[error("{0}: is this the admin API?")]
    Answer(String),
}

/// What happened at one node.
enum Tried {
    Answered(Reply),
    /// It did not get the call.
    NotSent(String),
    /// It may have got it.
    BrokeOff(String),
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    detail: String,
    #[serde(default)]
    problems: Vec<crate::config::Problem>,
    #[serde(default)]
    nodes: BTreeMap<String, String>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls(…)")
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

// === impl Client ===

impl Client {
    /// A client of the nodes at `addresses`, each `http://HOST:PORT` or `HOST:PORT`; `token` is sent with every
    /// call.
    ///
    /// # Errors
    /// When an address cannot be used, or there is none.
    pub fn new(
        addresses: impl IntoIterator<Item = impl AsRef<str>>,
        token: Option<String>,
    ) -> Result<Self, Error> {
        Self::with(addresses, token, None)
    }

    /// A client of the nodes at `addresses`, each `https://HOST:PORT`. `tls` says whose certificates are believed, and
    /// may have one of its own instead of a token.
    ///
    /// # Errors
    /// When an address cannot be used, or there is none.
    pub fn with_tls(
        addresses: impl IntoIterator<Item = impl AsRef<str>>,
        token: Option<String>,
        tls: Arc<ClientConfig>,
    ) -> Result<Self, Error> {
        Self::with(addresses, token, Some(Tls(TlsConnector::from(tls))))
    }

    fn with(
        addresses: impl IntoIterator<Item = impl AsRef<str>>,
        token: Option<String>,
        tls: Option<Tls>,
    ) -> Result<Self, Error> {
        let mut nodes = Vec::new();
        for address in addresses {
            let address = address.as_ref().trim();
            if address.is_empty() {
                continue;
            }
            let (authority, is_secure) = match address.strip_prefix("https://") {
                Some(authority) => (authority, true),
                None => (address.strip_prefix("http://").unwrap_or(address), false),
            };
            let authority = authority.trim_end_matches('/');
            if crate::config::reach(authority).is_err() {
                return Err(Error::Address(format!(
                    "`{address}` is no address of an admin API: use http://HOST:PORT"
                )));
            }
            if is_secure && tls.is_none() {
                return Err(Error::Address(format!(
                    "{address}: whose certificates are to be believed? There is no list of CAs here: name the file of the nodes' CA (the command line: --ca FILE, or GOGATE_CA)"
                )));
            }
            if !is_secure && tls.is_some() {
                return Err(Error::Address(format!(
                    "{address}: with a CA every address begins with https://"
                )));
            }
            nodes.push(authority.to_owned());
        }
        if nodes.is_empty() {
            return Err(Error::Address("no node is named: use http://HOST:PORT".into()));
        }
        let token = token.map(Token);
        Ok(Self { nodes: nodes.into(), token, tls, answer_timeout: ANSWER_TIMEOUT, last: Arc::default() })
    }

    /// The nodes that it talks to, each as `HOST:PORT`.
    #[must_use]
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The same client, which waits no longer than `answer_timeout` for one node.
    #[must_use]
    pub fn with_timeout(&self, answer_timeout: Duration) -> Self {
        Self { answer_timeout, ..self.clone() }
    }

    /// Sends a call; an answer that is an error becomes one.
    ///
    /// # Errors
    /// When it was not done, or nobody knows.
    pub async fn call(&self, call: &Call) -> Result<Reply, Error> {
        let reply = self.send(call).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(reply.into_error()) }
    }

    /// Sends a call to the first node that takes it; the answer, whatever its status.
    ///
    /// # Errors
    /// When no node answered, or one broke off that may have got it.
    pub async fn send(&self, call: &Call) -> Result<Reply, Error> {
        let mut failures = Vec::new();
        let mut refusal = None;
        for (place, node) in self.in_turn() {
            match self.attempt(node, call).await {
                // It says that nothing was written, so another one may have a quorum; or that nobody knows, so another
                // one may be asked what may be asked twice.
                Tried::Answered(reply)
                    if reply.status == StatusCode::SERVICE_UNAVAILABLE
                        || call.repeatable && reply.status == StatusCode::GATEWAY_TIMEOUT =>
                {
                    let leaves_open = |refusal: &Reply| refusal.status == StatusCode::GATEWAY_TIMEOUT;
                    if !refusal.as_ref().is_some_and(leaves_open) {
                        refusal = Some(reply);
                    }
                }
                Tried::Answered(reply) => {
                    self.last.store(place, Ordering::Relaxed);
                    return Ok(reply);
                }
                Tried::BrokeOff(problem) if !call.repeatable => {
                    return Err(Error::Unknown(format!(
                        "{}://{node} got the call, but {problem}",
                        self.scheme()
                    )));
                }
                Tried::NotSent(problem) | Tried::BrokeOff(problem) => failures.push((node, problem)),
            }
        }
        refusal.ok_or_else(|| self.unreachable(&failures))
    }

    /// Registers `instance`, and keeps it alive until the guard is closed or dropped.
    ///
    /// # Errors
    /// When no node takes the registration; it is repeatable, as the instance has an id.
    pub async fn register(&self, instance: Instance) -> Result<Registration, Error> {
        Registration::begin(self, instance).await
    }

    /// Watches the instances of `service`, or everything.
    ///
    /// # Errors
    /// When no node lets it in.
    pub async fn watch(&self, service: Option<&str>) -> Result<Watch, Error> {
        Watch::begin(self, service).await
    }

    /// The nodes with their places, beginning with the one that answered last.
    fn in_turn(&self) -> impl Iterator<Item = (usize, &String)> {
        let (before, after) = self.nodes.split_at(self.last.load(Ordering::Relaxed));
        (before.len()..).zip(after).chain((0..).zip(before))
    }

    async fn attempt(&self, node: &str, call: &Call) -> Tried {
        let connected =
            tokio::time::timeout(self.answer_timeout, Connection::open(node, self.connector())).await;
        let mut connection = match connected {
            Ok(Ok(connection)) => connection,
            Ok(Err(problem)) => return Tried::NotSent(problem),
            Err(_) => return Tried::NotSent("no connection in time".into()),
        };
        let request = match self.request(node, call) {
            Ok(request) => request,
            Err(error) => return Tried::NotSent(error.to_string()),
        };
        let answer = async {
            let (head, body) = connection.send(request).await?.into_parts();
            let body = connection.driven(Limited::new(body, ANSWER_MAX).collect()).await;
            Ok::<_, String>(Reply {
                status: head.status,
                body: body.map_err(|error| error.to_string())?.to_bytes(),
            })
        };
        match tokio::time::timeout(self.answer_timeout, answer).await {
            Ok(Ok(reply)) => Tried::Answered(reply),
            Ok(Err(error)) => Tried::BrokeOff(format!("the connection broke off: {error}")),
            Err(_) => Tried::BrokeOff(format!("it did not answer within {:?}", self.answer_timeout)),
        }
    }

    fn connector(&self) -> Option<&TlsConnector> {
        self.tls.as_ref().map(|Tls(connector)| connector)
    }

    fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    fn unreachable(&self, failures: &[(&String, String)]) -> Error {
        let scheme = self.scheme();
        let said = failures
            .iter()
            .map(|(node, problem)| format!("no gogate answers at {scheme}://{node}: {problem}"));
        Error::Unreachable(said.collect::<Vec<_>>().join("\n"))
    }

    fn request(&self, node: &str, call: &Call) -> http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(&call.method).uri(&call.path).header(header::HOST, node);
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(Token(token)) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(call.body.clone()))
    }
}

/// Percent-encodes all but what is unreserved (RFC 3986, section 2.3), for a part of a path or of a query.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// The path of the instance with this id.
#[must_use]
pub fn instance_path(id: &str) -> String {
    format!("/v1/services/{}", encode(id))
}

// === impl Call ===

impl Call {
    /// A call without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        let repeatable = method.is_safe();
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new(), repeatable }
    }

    /// A read.
    pub fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// The same, which may be sent twice.
    #[must_use]
    pub fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }

    /// The same with a body in JSON.
    #[must_use]
    pub fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into();
        self.headers.push((header::CONTENT_TYPE, "application/json".into()));
        self
    }
}

// === impl Reply ===

impl Reply {
    /// The body, which has to be JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|error| Error::Answer(format!("the answer is no JSON: {error}")))
    }

    fn into_error(self) -> Error {
        let problem: Problem = match serde_json::from_slice(&self.body) {
            Ok(problem) => problem,
            Err(_) => {
                let body = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).trim().to_owned();
                return Error::Answer(format!("{}: {body}", self.status));
            }
        };
        let detail = problem.to_string();
        let kind = problem.r#type.rsplit(':').next().unwrap_or_default().to_owned();
        if self.status == StatusCode::GATEWAY_TIMEOUT && kind != "not-yet" {
            Error::Unknown(detail)
        } else {
            Error::Refused { status: self.status.as_u16(), kind, detail }
        }
    }
}

// === impl Problem ===

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.detail)?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        for (node, running) in &self.nodes {
            write!(f, "\n  {node}: {running}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// A node that accepts and never answers, and one that answers every connection once.
    async fn hung_and_well() -> (TcpListener, [String; 2]) {
        let (hung, well) = (TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await);
        let (hung, well) = (hung.unwrap(), well.unwrap());
        let addresses = [&hung, &well].map(|listener| listener.local_addr().unwrap().to_string());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = well.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            }
        });
        (hung, addresses)
    }

    #[tokio::test]
    async fn a_node_that_hangs_costs_a_beat_one_timeout_and_the_next_beat_nothing() {
        let (hung, addresses) = hung_and_well().await;
        let client = Client::new(addresses, None).unwrap().with_timeout(Duration::from_millis(200));
        let beat = Call::new(Method::PUT, "/v1/services/a/heartbeat").repeatable();
        assert!(client.call(&beat).await.is_ok());
        assert_eq!(client.last.load(Ordering::Relaxed), 1, "the one that answered is asked first");
        drop(hung);
        assert!(client.call(&beat).await.is_ok());
    }

    #[tokio::test]
    async fn a_call_that_may_have_changed_something_is_not_sent_to_a_second_node() {
        let (_hung, addresses) = hung_and_well().await;
        let client = Client::new(addresses, None).unwrap().with_timeout(Duration::from_millis(100));
        let removed = client.call(&Call::new(Method::DELETE, "/v1/services/a")).await;
        assert!(matches!(removed, Err(Error::Unknown(_))), "{removed:?}");
    }

    #[test]
    fn addresses_that_cannot_be_used_are_refused() {
        for addresses in [vec![], vec![" "], vec!["https://a:7070"], vec!["http://a:7070", "nonsense"]] {
            let refused = Client::new(&addresses, None);
            assert!(matches!(refused, Err(Error::Address(_))), "{addresses:?}");
        }
        assert!(Client::new(["a:1", "http://b:2/"], None).is_ok());
    }
}
