//! The command line's HTTP client: one call, at the first node that takes it.
//!
//! Invariants: a call that may have changed something is never sent twice, unless twice changes no more than
//! once: the next node is tried only if this one did not get it, or said that nothing was written; what broke
//! off in between is `Unknown`. The node that answered last is asked first.

use std::{
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
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::TcpStream;

use super::CliError;

/// How long a node may take to accept a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long an answer may take: more than the API's own default, so that its answer comes first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of an answer: a list of very many instances.
const ANSWER_MAX: usize = 256 << 20;

/// Talks to any of several nodes.
#[derive(Debug, Clone)]
pub(super) struct Client {
    nodes: Vec<String>,
    token: Option<String>,
    answer_timeout: Duration,
    /// The place of the node that answered last, which is asked first.
    last: Arc<AtomicUsize>,
}

/// One call.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) headers: Vec<(HeaderName, String)>,
    pub(super) body: Bytes,
    /// Whether it may be sent again though a node may have got it: it changes nothing, or nothing more.
    pub(super) repeatable: bool,
}

/// One answer, whatever its status.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) body: Bytes,
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
    nodes: std::collections::BTreeMap<String, String>,
}

// === impl Client ===

impl Client {
    /// `urls`: one or several, with commas between them.
    pub(super) fn new(urls: &str, token: Option<String>) -> Result<Self, CliError> {
        let mut nodes = Vec::new();
        for url in urls.split(',').map(str::trim).filter(|url| !url.is_empty()) {
            if url.starts_with("https://") {
                return Err(CliError::Usage(format!(
                    "{url}: the admin API over TLS is not supported yet, use http://"
                )));
            }
            let authority = url.strip_prefix("http://").unwrap_or(url).trim_end_matches('/');
            let good = crate::config::reach(authority).is_ok();
            if !good {
                return Err(CliError::Usage(format!(
                    "`{url}` is no address of an admin API: use http://HOST:PORT"
                )));
            }
            nodes.push(authority.to_owned());
        }
        if nodes.is_empty() {
            return Err(CliError::Usage("--admin names no node: use http://HOST:PORT".into()));
        }
        Ok(Self { nodes, token, answer_timeout: ANSWER_TIMEOUT, last: Arc::default() })
    }

    /// The nodes that it talks to.
    pub(super) fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// The same client, which waits no longer than `answer_timeout` for one node.
    pub(super) fn with_timeout(&self, answer_timeout: Duration) -> Self {
        Self { answer_timeout, ..self.clone() }
    }

    /// Sends a call; an answer that is an error becomes one.
    pub(super) async fn call(&self, call: &Call) -> Result<Reply, CliError> {
        let reply = self.send(call).await?;
        if reply.status.is_success() { Ok(reply) } else { Err(reply.into_error()) }
    }

    /// Sends a call to the first node that takes it.
    pub(super) async fn send(&self, call: &Call) -> Result<Reply, CliError> {
        let mut failures = Vec::new();
        let mut refusal = None;
        let first = self.last.load(Ordering::Relaxed);
        let (before, after) = self.nodes.split_at(first);
        for (place, node) in (first..).zip(after).chain((0..).zip(before)) {
            match self.attempt(node, call).await {
                // It says that nothing was written: another one may have a quorum.
                Tried::Answered(reply) if reply.status == StatusCode::SERVICE_UNAVAILABLE => {
                    refusal = Some(reply);
                }
                Tried::Answered(reply) => {
                    self.last.store(place, Ordering::Relaxed);
                    return Ok(reply);
                }
                Tried::BrokeOff(problem) if !call.repeatable => {
                    return Err(CliError::Unknown(format!("http://{node} got the call, but {problem}")));
                }
                Tried::NotSent(problem) | Tried::BrokeOff(problem) => failures.push((node, problem)),
            }
        }
        match refusal {
            Some(reply) => Ok(reply),
            None => Err(CliError::Failed(unreachable(&failures))),
        }
    }

    async fn attempt(&self, node: &str, call: &Call) -> Tried {
        let stream =
            match tokio::time::timeout(CONNECT_TIMEOUT.min(self.answer_timeout), TcpStream::connect(node))
                .await
            {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => return Tried::NotSent(error.to_string()),
                Err(_) => return Tried::NotSent("no connection in time".into()),
            };
        let (mut sender, connection) = match http1::handshake(TokioIo::new(stream)).await {
            Ok(parts) => parts,
            Err(error) => return Tried::NotSent(error.to_string()),
        };
        let request = match self.request(node, call) {
            Ok(request) => request,
            Err(error) => return Tried::NotSent(error.to_string()),
        };
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, ANSWER_MAX).collect().await.map_err(|error| error.to_string())?;
            Ok::<_, String>(Reply { status: head.status, body: body.to_bytes() })
        };
        // The connection is driven here, beside the call: both end together.
        let driven = async {
            let mut connection = std::pin::pin!(connection);
            let mut answer = std::pin::pin!(answer);
            let mut open = true;
            loop {
                tokio::select! {
                    answer = answer.as_mut() => return answer,
                    _ = connection.as_mut(), if open => open = false,
                }
            }
        };
        match tokio::time::timeout(self.answer_timeout, driven).await {
            Ok(Ok(reply)) => Tried::Answered(reply),
            Ok(Err(error)) => Tried::BrokeOff(format!("the connection broke off: {error}")),
            Err(_) => Tried::BrokeOff(format!("it did not answer within {:?}", self.answer_timeout)),
        }
    }

    fn request(&self, node: &str, call: &Call) -> http::Result<Request<Full<Bytes>>> {
        let mut request = Request::builder().method(&call.method).uri(&call.path).header(header::HOST, node);
        for (name, value) in &call.headers {
            request = request.header(name, value);
        }
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        request.body(Full::new(call.body.clone()))
    }
}

fn unreachable(failures: &[(&String, String)]) -> String {
    let mut said = String::new();
    for (node, problem) in failures {
        said.push_str(&format!("no gogate answers at http://{node}: {problem}\n"));
    }
    said.push_str(
        "start one with `gogate dev` or `gogate serve`, or name the nodes with --admin or GOGATE_ADMIN",
    );
    said
}

// === impl Call ===

impl Call {
    /// A call without a body.
    pub(super) fn new(method: Method, path: impl Into<String>) -> Self {
        let repeatable = method.is_safe();
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new(), repeatable }
    }

    /// A read.
    pub(super) fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    /// The same, which may be sent twice.
    pub(super) fn repeatable(self) -> Self {
        Self { repeatable: true, ..self }
    }

    /// The same with a body in JSON.
    pub(super) fn json(mut self, body: &serde_json::Value) -> Self {
        self.body = body.to_string().into();
        self.headers.push((header::CONTENT_TYPE, "application/json".into()));
        self
    }
}

// === impl Reply ===

impl Reply {
    /// The body, which has to be JSON.
    pub(super) fn json(&self) -> Result<serde_json::Value, CliError> {
        serde_json::from_slice(&self.body).map_err(|error| {
            CliError::Failed(format!("the answer is no JSON: {error}: is this the admin API?"))
        })
    }

    fn into_error(self) -> CliError {
        let problem: Problem = match serde_json::from_slice(&self.body) {
            Ok(problem) => problem,
            Err(_) => {
                let body = String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).trim().to_owned();
                return CliError::Failed(format!("{}: {body}: is this the admin API?", self.status));
            }
        };
        let said = problem.to_string();
        if problem.r#type.ends_with(":not-yet") {
            CliError::NotYet(said)
        } else if self.status == StatusCode::GATEWAY_TIMEOUT {
            CliError::Unknown(said)
        } else {
            CliError::Failed(said)
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
    async fn hung_and_well() -> (TcpListener, String) {
        let (hung, well) = (TcpListener::bind("127.0.0.1:0").await, TcpListener::bind("127.0.0.1:0").await);
        let (hung, well) = (hung.unwrap(), well.unwrap());
        let urls = format!("{},{}", hung.local_addr().unwrap(), well.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = well.accept().await {
                let _ = stream.read(&mut [0; 1024]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await;
            }
        });
        (hung, urls)
    }

    #[tokio::test]
    async fn a_node_that_hangs_costs_a_beat_one_timeout_and_the_next_beat_nothing() {
        let (hung, urls) = hung_and_well().await;
        let client = Client::new(&urls, None).unwrap().with_timeout(Duration::from_millis(200));
        let beat = Call::new(Method::PUT, "/v1/services/a/heartbeat").repeatable();
        assert!(client.call(&beat).await.is_ok());
        assert_eq!(client.last.load(Ordering::Relaxed), 1, "the one that answered is asked first");
        drop(hung);
        assert!(client.call(&beat).await.is_ok());
    }

    #[tokio::test]
    async fn a_call_that_may_have_changed_something_is_not_sent_to_a_second_node() {
        let (_hung, urls) = hung_and_well().await;
        let client = Client::new(&urls, None).unwrap().with_timeout(Duration::from_millis(100));
        let removed = client.call(&Call::new(Method::DELETE, "/v1/services/a")).await;
        assert!(matches!(removed, Err(CliError::Unknown(_))), "{removed:?}");
    }
}
