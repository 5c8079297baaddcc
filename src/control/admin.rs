//! The admin API: HTTP and JSON for operators and services, on any node; the registry over gRPC, too.
//!
//! Invariants: connections, heads, bodies and waits are bounded; it runs on the control plane's runtime, never on a
//! worker of the proxy. Neighbours: `connection` brings the calls, `route` here picks a handler in one of the files
//! below, once `auth` has said who asks and that they may; `audit` logs changes and refusals, `error` alone makes
//! refusals.

mod answer;
mod audit;
pub mod auth;
mod backup;
mod cluster;
mod config;
mod connection;
mod error;
mod grpc;
mod health;
mod members;
mod once;
mod rate;
mod services;
mod watch;

use std::{
    future::Future,
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
    audit::Asked,
    auth::{Access, Origin},
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
    pub heartbeats: Heartbeats,
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

async fn handle(
    context: &OnceLock<Context>,
    access: &Access,
    origin: &Origin,
    request: Request<Incoming>,
) -> Answer {
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
    // In a box: a connection that waits or is sent a stream should not hold the room that a call takes.
    Box::pin(async {
        let request = if is_grpc { grpc::translated(request).await } else { Ok(request) };
        let (head, body) = match request {
            Ok(request) => request.into_parts(),
            Err(error) => return grpc::refusal(&error),
        };
        let mut asked = Asked::default();
        let (outcome, answer) = match route(context, access, origin, &mut asked, &head, body).await {
            Ok(answer) => (answer.status(), answer),
            Err(error) if is_grpc => (error.status(), grpc::refusal(&error)),
            Err(error) => (error.status(), error.answer(context.cluster.status().leader)),
        };
        asked.log(access, origin, &head, outcome, &answer);
        answer
    })
    .await
}

/// Finds the call, asks who makes it and whether they may, and picks the handler. The paths are few and short: a
/// match over their parts is the whole router.
async fn route(
    context: &Context,
    access: &Access,
    origin: &Origin,
    asked: &mut Asked,
    head: &Parts,
    body: answer::Incoming,
) -> Result<Answer, ApiError> {
    let query = head.uri.query();
    let path = head.uri.path();
    let mut parts = [""; 5];
    let mut count = 0;
    for part in path.trim_start_matches('/').split('/') {
        let Some(slot) = parts.get_mut(count) else { return Err(auth::unknown_path(path)) };
        *slot = part;
        count += 1;
    }
    let parts = &parts[..count];
    let route = &**asked.route.insert(auth::find(&head.method, parts, path)?);
    if route.method != "GET" {
        check_write(head)?;
    }
    let caller = &*asked.caller.insert(access.identify(route, &head.headers, origin)?);
    caller.check_role(route)?;
    access.check_rate(route, caller)?;
    match (route.method, parts) {
        ("POST", ["v1", "services"]) => services::register(context, caller, head, body).await,
        ("GET", ["v1", "services"]) => services::list(context, head).await,
        ("GET", ["v1", "services", id]) => services::get(context, &segment(id)?, query).await,
        ("DELETE", ["v1", "services", id]) => {
            services::deregister(context, caller, &segment(id)?, head).await
        }
        ("PUT", ["v1", "services", id, "heartbeat"]) => {
            services::heartbeat(context, caller, &segment(id)?, head).await
        }
        ("GET", ["v1", "config"]) => config::get(context, caller, query).await,
        ("PUT", ["v1", "config"]) => config::put(context, caller, head, body).await,
        ("PATCH", ["v1", "config"]) => config::patch(context, caller, head, body).await,
        ("GET", ["v1", "config", "versions"]) => config::versions(context, query).await,
        ("GET", ["v1", "config", "diff"]) => config::diff(context, query).await,
        ("GET", ["v1", "config", "status"]) => config::status(context, query).await,
        ("POST", ["v1", "config", "rollback"]) => config::rollback(context, caller, head, body).await,
        ("GET", ["v1", "cluster"]) => cluster::status(context, query).await,
        // What it answers has no end, which HEAD would have to wait for.
        ("GET", ["v1", "watch"]) if head.method == Method::HEAD => {
            Err(ApiError::Method { allow: "GET".into() })
        }
        ("GET", ["v1", "watch"]) => watch::watch(context, head).await,
        ("POST", ["v1", "cluster", "members"]) => members::add(context, query, body).await,
        ("DELETE", ["v1", "cluster", "members", id]) => members::remove(context, id, query).await,
        ("POST", ["v1", "cluster", "members", id, "promote"]) => members::promote(context, id, query).await,
        ("POST", ["v1", "cluster", "transfer-leader"]) => {
            members::transfer_leader(context, query, body).await
        }
        ("GET", ["v1", "cluster", "backup"]) => backup::backup(context, query).await,
        ("POST", ["v1", "cluster", "restore"]) => backup::restore(context, query, body).await,
        ("POST", ["v1", "cluster", "snapshot"]) => backup::snapshot(context, query).await,
        ("POST", ["v1", "node", "drain"]) => members::drain(context, query).await,
        ("GET", ["livez"]) => Ok(text(StatusCode::OK, "ok\n")),
        ("GET", ["readyz" | "health"]) => health::ready(context, query).await,
        ("GET", ["metrics"]) => health::metrics(context).await,
        ("GET", ["backends"]) => Ok(health::backends(context)),
        ("GET", [""]) => Ok(text(StatusCode::OK, health::index(context))),
        _ => Err(auth::unknown_path(path)),
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
