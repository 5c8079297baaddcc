//! The admin API: HTTP and JSON for operators and services, on any node; the registry over gRPC, too.
//!
//! Invariants: connections, heads, bodies and waits are bounded; a call is not logged; it runs on the control
//! plane's runtime, never on a worker of the proxy. Neighbours: `connection` brings the calls, `route` here picks
//! a handler in one of the files below, `error` alone makes refusals.

mod answer;
mod backup;
mod cluster;
mod config;
mod connection;
mod error;
mod grpc;
mod health;
mod members;
mod once;
mod services;
mod watch;

use std::{
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use gogate_cluster::Cluster;
use http::{Method, Request, StatusCode, Version, header, request::Parts};
use hyper::body::Incoming;
use tokio::sync::watch::Receiver;

pub use self::connection::serve;
use self::{
    answer::{Answer, Query, decode, text},
    error::ApiError,
};
use super::{drain::Drain, heartbeats::Heartbeats, publish::Published, watch::Watches};
use crate::proxy::Proxy;

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

async fn handle(context: &OnceLock<Context>, peer: SocketAddr, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    let is_grpc = head.version == Version::HTTP_2 && grpc::is_grpc(&head);
    let Some(context) = context.get() else {
        let starting = ApiError::Unavailable(
            "this node is starting: it opens its store, and waits for its peers if it has any; nothing was done"
                .into(),
        );
        return match head.uri.path() {
            _ if is_grpc => grpc::refusal(&starting),
            "/livez" => text(StatusCode::OK, "ok\n"),
            _ => starting.answer(None),
        };
    };
    let request = Request::from_parts(head, answer::Incoming::Network(body));
    if is_grpc {
        let answered = async { route(context, peer, grpc::translated(request).await?).await };
        return Box::pin(answered).await.unwrap_or_else(|error| grpc::refusal(&error));
    }
    // In a box: a connection that waits or is sent a stream should not hold the room that a call takes.
    match Box::pin(route(context, peer, request)).await {
        Ok(answer) => answer,
        Err(error) => error.answer(context.cluster.status().leader),
    }
}

/// Picks the handler. The paths are few and short: a match over their parts is the whole router.
async fn route(
    context: &Context,
    peer: SocketAddr,
    request: Request<answer::Incoming>,
) -> Result<Answer, ApiError> {
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
            _ if get => services::list(context, &head).await,
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
            Method::PUT => services::heartbeat(context, &segment(id)?, &head).await,
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
            Method::GET => watch::watch(context, &head).await,
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
        ["v1", "cluster", "backup"] if get => backup::backup(context, query).await,
        ["v1", "cluster", "backup"] => method("GET, HEAD"),
        ["v1", "cluster", "restore"] => match head.method {
            Method::POST => backup::restore(context, query, body).await,
            _ => method("POST"),
        },
        ["v1", "cluster", "snapshot"] => match head.method {
            Method::POST => backup::snapshot(context, query).await,
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
