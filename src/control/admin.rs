//! The admin API: HTTP and JSON for operators and services, on any node.
//!
//! Invariants: connections, heads, bodies and waits are bounded; a call costs no task of its own and is not
//! logged; it runs on the control plane's runtime, never on a worker of the proxy. Neighbours: `router` here
//! picks a handler in one of the files below, `error` alone makes refusals.
//!
//! Watchers and calls share the connections, and neither keeps the other out: there is room for more connections
//! than the watchers that `control::watch` admits, and a watcher's connection is never taken for an idle one. It
//! is closed when it takes nothing of what it is sent, signs of life at least, for [`STALL_TIMEOUT`].

mod answer;
mod cluster;
mod config;
mod error;
mod health;
mod members;
mod once;
mod services;
mod watch;

use std::{
    collections::HashMap,
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{Arc, Mutex, OnceLock},
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use gogate_cluster::Cluster;
use http::{Method, Request, StatusCode, header, request::Parts};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, watch::Receiver},
    task::{self, JoinSet},
    time::Instant,
};
use tracing::{debug, warn};

use self::{
    answer::{Answer, Body, Query, decode, text},
    error::ApiError,
};
use super::{drain::Drain, heartbeats::Heartbeats, publish::Published, watch::Watches};
use crate::proxy::Proxy;

/// Connections at one time. When they are taken, a new one takes the place of the one that has been idle for
/// longest, so that idle ones never keep a probe out; if all are at work, it waits for the first to end.
const CONNECTIONS_MAX: usize = 16_384;

/// From one answer to the end of the next call's head, which bounds the sending of the answer too; connections
/// that take longer are closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// How long a stream may take nothing of what it is sent, which is something at least once in a
/// [`BEAT`](super::watch::BEAT).
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

/// What the kernel may hold for a client that does not read, and how long for one that does not acknowledge.
const SEND_BUFFER: usize = 128 << 10;
const USER_TIMEOUT: Duration = Duration::from_secs(60);

/// Bytes of a call's head.
const HEAD_MAX: usize = 64 << 10;

/// How long open calls may go on when the server stops.
const STOP_DEADLINE: Duration = Duration::from_secs(2);

/// How long to wait when no connection can be accepted, most often for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the handlers work with.
pub struct Context {
    /// The cluster's name.
    pub cluster_name: String,
    /// This node's name.
    pub node: String,
    /// This node's part in the cluster.
    pub cluster: Cluster,
    /// What the data plane does.
    pub proxy: Arc<Proxy>,
    /// What this node runs.
    pub published: Arc<Published>,
    /// Where beats go.
    pub heartbeats: Arc<Heartbeats>,
    /// Who watches at this node.
    pub watches: Arc<Watches>,
    /// This node's way out.
    pub drain: Arc<Drain>,
    /// Whether this node has seen every write of the time before it started.
    pub caught_up: Receiver<bool>,
    /// This node's build.
    pub build: &'static str,
}

/// What the handlers work with, once this node takes part in its cluster.
pub type Starting = Arc<OnceLock<Context>>;

/// What is known of an open connection.
struct Slot {
    /// What it does, and since when.
    state: Mutex<(Phase, Instant)>,
    /// Its place is needed.
    close: Notify,
}

/// What a connection does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It waits for a call, or is being sent a whole answer.
    Idle,
    /// A call is being worked on.
    Call,
    /// It is sent a stream, and took something of it since then.
    Stream,
}

/// A stream that its connection is told of.
struct Streamed {
    body: Body,
    slot: Arc<Slot>,
}

/// The open connections.
#[derive(Default)]
struct Connections {
    open: JoinSet<()>,
    slots: HashMap<task::Id, Arc<Slot>>,
}

/// Serves until `stop` turns true, then lets open calls finish for a short while. Before there is a context
/// every call but the probes is refused.
pub async fn serve(listener: TcpListener, context: Starting, mut stop: Receiver<bool>) {
    let mut connections = Connections::default();
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stopped| *stopped) => break,
            accepted = listener.accept() => accepted,
            () = connections.ended(), if !connections.open.is_empty() => continue,
        };
        match accepted {
            Ok((stream, peer)) => {
                let _ = stream.set_nodelay(true);
                let socket = socket2::SockRef::from(&stream);
                let _ = socket.set_send_buffer_size(SEND_BUFFER);
                let _ = socket.set_tcp_user_timeout(Some(USER_TIMEOUT));
                let slot = Arc::new(Slot::new());
                let task = connection(stream, peer, context.clone(), stop.clone(), slot.clone());
                connections.make_room().await;
                connections.slots.insert(connections.open.spawn(task).id(), slot);
            }
            Err(error) => {
                warn!(%error, "the admin API cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let all = async { while connections.open.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(STOP_DEADLINE, all).await;
}

/// One connection, to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    context: Starting,
    mut stop: Receiver<bool>,
    slot: Arc<Slot>,
) {
    let service = service_fn(|request| async {
        slot.turn(Phase::Call);
        let answer = handle(&context, peer, request).await;
        Ok::<_, Infallible>(slot.answered(answer))
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_MAX)
        .half_close(false);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut stopped = pin!(async move { stop.wait_for(|stopped| *stopped).await.is_ok() });
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        _ = stopped.as_mut() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        () = slot.over() => return,
    };
    if let Err(error) = ended {
        debug!(%peer, %error, "an admin connection broke off");
    }
}

async fn handle(context: &OnceLock<Context>, peer: SocketAddr, request: Request<Incoming>) -> Answer {
    let Some(context) = context.get() else {
        return match request.uri().path() {
            "/livez" => text(StatusCode::OK, "ok\n"),
            _ => ApiError::Unavailable(
                "this node is starting: it opens its store, and waits for its peers if it has any; nothing was done".into(),
            )
            .answer(None),
        };
    };
    match route(context, peer, request).await {
        Ok(answer) => answer,
        Err(error) => error.answer(context.cluster.status().leader),
    }
}

/// Picks the handler. The paths are few and short: a match over their parts is the whole router.
async fn route(context: &Context, peer: SocketAddr, request: Request<Incoming>) -> Result<Answer, ApiError> {
    let (head, body) = request.into_parts();
    let query = head.uri.query();
    let path = head.uri.path();
    let mut parts = [""; 5];
    let mut count = 0;
    for part in path.trim_start_matches('/').split('/') {
        let Some(slot) = parts.get_mut(count) else { return Err(unknown_path(path)) };
        *slot = part;
        count += 1;
    }
    let get = head.method == Method::GET || head.method == Method::HEAD;
    if !get {
        check_write(&head)?;
    }
    let method = |allow: &'static str| Err(ApiError::Method { allow });
    match &parts[..count] {
        ["v1", "services"] => match head.method {
            Method::POST => services::register(context, &head, body).await,
            _ if get => services::list(context, query).await,
            _ => method("GET, HEAD, POST"),
        },
        ["v1", "services", id] => {
            let id = segment(id)?;
            match head.method {
                Method::DELETE => services::deregister(context, &id, &head).await,
                _ if get => services::get(context, &id, query).await,
                _ => method("DELETE, GET, HEAD"),
            }
        }
        ["v1", "services", id, "heartbeat"] => match head.method {
            Method::PUT => services::heartbeat(context, &segment(id)?, query).await,
            _ => method("PUT"),
        },
        ["v1", "config"] => match head.method {
            Method::PUT => config::put(context, peer, &head, body).await,
            Method::PATCH => config::patch(context, peer, &head, body).await,
            _ if get => config::get(context, query).await,
            _ => method("GET, HEAD, PATCH, PUT"),
        },
        ["v1", "config", "versions"] if get => config::versions(context, query).await,
        ["v1", "config", "diff"] if get => config::diff(context, query).await,
        ["v1", "config", "status"] if get => config::status(context, query).await,
        ["v1", "config", "rollback"] => match head.method {
            Method::POST => config::rollback(context, peer, &head, body).await,
            _ => method("POST"),
        },
        ["v1", "cluster"] if get => cluster::status(context, query).await,
        ["v1", "watch"] => match head.method {
            Method::GET => watch::watch(context, &head.headers, query).await,
            _ => method("GET"),
        },
        ["v1", "cluster", "members"] => match head.method {
            Method::POST => members::add(context, query, body).await,
            _ => method("POST"),
        },
        ["v1", "cluster", "members", id] => match head.method {
            Method::DELETE => members::remove(context, id, query).await,
            _ => method("DELETE"),
        },
        ["v1", "cluster", "members", id, "promote"] => match head.method {
            Method::POST => members::promote(context, id, query).await,
            _ => method("POST"),
        },
        ["v1", "cluster", "transfer-leader"] => match head.method {
            Method::POST => members::transfer_leader(context, query, body).await,
            _ => method("POST"),
        },
        ["v1", "node", "drain"] => match head.method {
            Method::POST => members::drain(context, query).await,
            _ => method("POST"),
        },
        ["livez"] if get => Ok(text(StatusCode::OK, "ok\n")),
        ["readyz" | "health"] if get => health::ready(context, query).await,
        ["metrics"] if get => health::metrics(context).await,
        ["backends"] if get => Ok(health::backends(context)),
        [""] if get => Ok(text(StatusCode::OK, health::index(context))),
        ["v1", "config", "versions" | "diff" | "status"]
        | ["v1", "cluster"]
        | ["livez" | "readyz" | "health" | "backends" | "metrics" | ""] => method("GET, HEAD"),
        _ => Err(unknown_path(path)),
    }
}

/// Refuses a write that a page of somewhere else may have made a browser send.
fn check_write(head: &Parts) -> Result<(), ApiError> {
    let text = |name| head.headers.get(name).map(|value| value.to_str().unwrap_or_default());
    if let Some(origin) = text(header::ORIGIN) {
        let from = origin.split_once("://").map(|(_, host)| host);
        let own = text(header::HOST);
        if from.is_none() || !from.zip(own).is_some_and(|(from, own)| from.eq_ignore_ascii_case(own)) {
            return Err(ApiError::Forbidden { origin: crate::config::problem::shown(origin) });
        }
    }
    // A browser sends these two from a form without asking; `curl -d` says `x-www-form-urlencoded` of JSON.
    let kind = text(header::CONTENT_TYPE).unwrap_or_default().to_ascii_lowercase();
    if head.method == Method::POST && (kind.starts_with("text/plain") || kind.starts_with("multipart/")) {
        return Err(ApiError::MediaType);
    }
    Ok(())
}

fn segment(part: &str) -> Result<std::borrow::Cow<'_, str>, ApiError> {
    let id = decode(part).filter(|id| !id.is_empty());
    id.ok_or_else(|| ApiError::Malformed("the id in the path is empty or badly encoded".into()))
}

fn unknown_path(path: &str) -> ApiError {
    let path = crate::config::problem::shown(path);
    ApiError::NotFound(format!("nothing is at `{path}`; GET / lists what there is"))
}

// === impl Connections ===

impl Connections {
    /// Returns when one has ended, or there is none.
    async fn ended(&mut self) {
        if let Some(ended) = self.open.join_next_with_id().await {
            self.slots.remove(&ended.map_or_else(|error| error.id(), |(id, ())| id));
        }
    }

    /// Returns once there is room for one more, closing the one that has been idle for longest if need be.
    async fn make_room(&mut self) {
        while self.open.len() >= CONNECTIONS_MAX {
            let idle = self.slots.values().filter(|slot| slot.is_idle());
            if let Some(slot) = idle.min_by_key(|slot| slot.since()) {
                slot.close.notify_one();
            }
            // It may have got a call in this moment: then another one is chosen.
            let _ = tokio::time::timeout(ACCEPT_PAUSE, self.ended()).await;
        }
    }
}

// === impl Slot ===

impl Slot {
    fn new() -> Self {
        Self { state: Mutex::new((Phase::Idle, Instant::now())), close: Notify::new() }
    }

    fn state(&self) -> (Phase, Instant) {
        *self.state.lock().expect("nothing panics under this lock")
    }

    fn turn(&self, phase: Phase) {
        *self.state.lock().expect("nothing panics under this lock") = (phase, Instant::now());
    }

    /// Notes that `answer` is about to be sent.
    fn answered(self: &Arc<Self>, answer: Answer) -> Answer {
        answer.map(|body| match body {
            Body::Whole(_) => {
                self.turn(Phase::Idle);
                body
            }
            Body::Stream(_) => {
                self.turn(Phase::Stream);
                Body::Stream(Streamed { body, slot: self.clone() }.boxed_unsync())
            }
        })
    }

    fn is_idle(&self) -> bool {
        self.state().0 == Phase::Idle
    }

    fn since(&self) -> Instant {
        self.state().1
    }

    /// When the connection has to end unless something happens before.
    fn end(&self) -> Option<Instant> {
        match self.state() {
            (Phase::Idle, since) => Some(since + HEAD_TIMEOUT),
            (Phase::Stream, since) => Some(since + STALL_TIMEOUT),
            (Phase::Call, _) => None,
        }
    }

    /// Returns when the connection has been idle for too long, or its place is needed while it is idle, or its
    /// client takes nothing of a stream.
    async fn over(&self) {
        loop {
            let look_again = self.end().unwrap_or_else(|| Instant::now() + HEAD_TIMEOUT);
            tokio::select! {
                () = tokio::time::sleep_until(look_again) => {}
                () = self.close.notified() => if self.is_idle() { return },
            }
            if self.end().is_some_and(|end| end <= Instant::now()) {
                return;
            }
        }
    }
}

// === impl Streamed ===

impl http_body::Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Self { body, slot } = self.get_mut();
        // It is asked for more only when there is room: the client takes what it is sent.
        slot.turn(Phase::Stream);
        Pin::new(body).poll_frame(context)
    }
}

impl Drop for Streamed {
    fn drop(&mut self) {
        self.slot.turn(Phase::Idle);
    }
}

// === impl Context ===

impl Context {
    /// Returns once a read of this node's state is linearizable, or at once if the caller asked for `stale`.
    async fn consistent(&self, query: &Query<'_>) -> Result<(), ApiError> {
        if query.flag("stale")? {
            return Ok(());
        }
        let read = self.cluster.linearizable(query.timeout()?).await;
        // Only here may the caller ask for `stale`, as the whole message advises.
        read.map_err(|error| ApiError::Unavailable(error.to_string()))
    }
}

/// Runs `call` with what is left of `timeout` once it is known that it has to wait.
async fn within<T>(timeout: Duration, call: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(timeout, call).await.ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use http_body::Body as _;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stream_is_not_idle_and_ends_when_its_client_takes_nothing() {
        let slot = Arc::new(Slot::new());
        let frames = futures_util::stream::pending::<Result<Frame<Bytes>, Infallible>>();
        let body = Body::Stream(http_body_util::StreamBody::new(frames).boxed_unsync());
        let mut answer = slot.answered(http::Response::new(body));
        slot.close.notify_one();
        let mut over = pin!(slot.over());
        for _ in 0..10 {
            tokio::time::advance(STALL_TIMEOUT / 2).await;
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(Pin::new(answer.body_mut()).poll_frame(&mut context).is_pending());
            assert!(over.as_mut().now_or_never().is_none(), "it takes what it is sent");
        }
        tokio::time::advance(STALL_TIMEOUT + Duration::from_secs(1)).await;
        assert!(over.as_mut().now_or_never().is_some());
        drop(answer);
        assert!(slot.is_idle());
    }
}
