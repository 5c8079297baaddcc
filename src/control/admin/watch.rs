//! `/v1/watch`: changes as server-sent events, for as long as the client listens.
//!
//! An event has its index as its id; whoever comes back with the last one, as `since` or as `Last-Event-ID`,
//! goes on behind it. Without one, and when it is too old, a `snapshot` comes first. The last event of a stream
//! that this node ends is `end`, with a problem as its data: a watcher that is too slow, a node that stops.
//!
//! Invariants: an event is made once for all watchers; a stream holds what it was given to send and no more: one
//! read of the ring, or a snapshot that it shares. Neighbours: `control::watch` says what comes next.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use gogate_cluster::{
    Cluster,
    state::{Instance, Registry, State},
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Context,
    answer::{Answer, Body, INDEX, Query, json_bytes},
    error::ApiError,
    services::InstanceJson,
};
use crate::control::watch::{Event, EventKind, Snapshot, Told, Watcher};

/// The header by which a client that comes back says where it was.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Bytes of a snapshot that are handed over at once.
const PIECE: usize = 64 << 10;

/// How long a snapshot may take to be taken by its watcher, and to be made for one that listens already.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(60);

/// Instances that are rendered where calls are answered; more are on a thread of their own.
const INSTANCES_AT_ONCE: usize = 500;

#[derive(Serialize)]
struct SnapshotJson<'a> {
    index: u64,
    /// The current version of the gateway document; for those who watch everything.
    #[serde(skip_serializing_if = "Option::is_none")]
    config_version: Option<u64>,
    instances: Vec<InstanceJson<'a>>,
}

#[derive(Serialize)]
struct ConfigJson {
    version: u64,
    index: u64,
}

/// What is known of a stream under way.
struct Sending {
    cluster: Cluster,
    watcher: Watcher,
    /// What is left of the snapshot.
    rest: Bytes,
    snapshot: Option<(Arc<Snapshot>, Instant)>,
    ended: bool,
}

/// `GET /v1/watch`
pub(super) async fn watch(
    context: &Context,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["name", "since", "stale"])?;
    let name = query.text("name")?;
    let deadline = query.deadline()?;
    let since = match last_event_id(headers)? {
        // A browser that comes back repeats the address that it began with: what it has seen since counts.
        Some(index) => Some(index),
        None => query.number("since")?,
    };
    let watcher = context.watches.join(name.as_deref())?;
    let cluster = context.cluster.clone();
    let mut sending = Sending { cluster, watcher, rest: Bytes::new(), snapshot: None, ended: false };
    let known = match since {
        // Changes that this node has not heard of yet, or another cluster's: the leader knows.
        Some(index) if index > context.cluster.read(State::index) => {
            context.cluster.linearizable(query.timeout()?).await?;
            index <= context.cluster.read(State::index)
        }
        Some(_) => true,
        None => false,
    };
    if let Some(index) = since.filter(|index| known && sending.watcher.resume(*index)) {
        return Ok(sending.answer(index));
    }
    context.consistent(&query).await?;
    if !sending.begin_snapshot(deadline).await {
        return Err(no_room());
    }
    let index = sending.snapshot.as_ref().map_or(0, |(snapshot, _)| snapshot.index);
    Ok(sending.answer(index))
}

fn no_room() -> ApiError {
    ApiError::Unavailable("too many snapshots are being sent to slow watchers: watch at another node".into())
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else { return Ok(None) };
    let index = value.to_str().ok().and_then(|text| text.parse().ok());
    index.map(Some).ok_or_else(|| ApiError::Malformed("`Last-Event-ID` is the index of an event".into()))
}

/// An event as it goes out, the same for all watchers.
fn rendered(event: &Event) -> Bytes {
    event
        .rendered(|event| {
            let instance = |instance: &Instance, lives: bool| {
                let expires_in_ms = (lives && instance.ttl_ms > 0).then_some(instance.ttl_ms);
                json_bytes(&InstanceJson::new(instance, expires_in_ms, Some(event.index)))
            };
            let (name, data) = match &event.kind {
                EventKind::Registered(now) => ("registered", instance(now, true)),
                EventKind::Updated { now, .. } => ("updated", instance(now, true)),
                EventKind::Deregistered(was) => ("deregistered", instance(was, false)),
                EventKind::Expired(was) => ("expired", instance(was, false)),
                EventKind::Config(version) => {
                    ("config", json_bytes(&ConfigJson { version: *version, index: event.index }))
                }
            };
            frame(Some(event.index), name, &data)
        })
        .clone()
}

/// One event on the wire. `data` has no line break.
fn frame(index: Option<u64>, name: &str, data: &[u8]) -> Bytes {
    let id = index.map_or_else(String::new, |index| format!("id: {index}\n"));
    let head = format!("{id}event: {name}\ndata: ");
    let mut bytes = Vec::with_capacity(head.len() + data.len() + 2);
    bytes.extend_from_slice(head.as_bytes());
    bytes.extend_from_slice(data);
    bytes.extend_from_slice(b"\n\n");
    bytes.into()
}

/// The state of a service, or all of it, at one index.
async fn render_snapshot(cluster: Cluster, service: Option<Arc<str>>) -> (u64, Bytes) {
    let (index, version, instances) = cluster.read(|state| {
        let with_life = |instance: &Arc<Instance>| (state.expires_in_ms(&instance.id), instance.clone());
        let registry: &Registry = state.registry();
        let instances: Vec<_> = match service.as_deref() {
            Some(name) => registry.of_service(name).map(with_life).collect(),
            None => registry.iter().map(with_life).collect(),
        };
        (state.index(), state.documents().current_version(), instances)
    });
    let count = instances.len();
    let render = move || {
        let instances =
            instances.iter().map(|(life, instance)| InstanceJson::new(instance, *life, None)).collect();
        let config_version = service.is_none().then_some(version);
        let snapshot = SnapshotJson { index, config_version, instances };
        frame(Some(index), "snapshot", &json_bytes(&snapshot))
    };
    if count <= INSTANCES_AT_ONCE {
        return (index, render());
    }
    let rendered = tokio::task::spawn_blocking(render).await;
    (index, rendered.expect("what is rendered has no failing impl, and the runtime outlives its calls"))
}

// === impl Sending ===

impl Sending {
    /// The answer; `index` is what the client knows once it has read what is there already.
    fn answer(self, index: u64) -> Answer {
        let frames = stream::unfold(self, |mut sending| async {
            let bytes = sending.next().await?;
            Some((Ok::<_, Infallible>(Frame::data(bytes)), sending))
        });
        let mut answer = Response::new(Body::Stream(StreamBody::new(frames).boxed_unsync()));
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(INDEX, HeaderValue::from(index));
        answer
    }

    /// The next bytes; none: the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(piece) = self.piece() {
                return Some(piece);
            }
            if self.ended {
                return None;
            }
            match self.watcher.next().await {
                Told::Events(events) => return Some(joined(&events)),
                // Clients skip comments; this one says how far a client that hears nothing has come.
                Told::Beat(index) => return Some(format!(": index={index}\n\n").into()),
                Told::Reset => {
                    if !self.begin_snapshot(Instant::now() + SNAPSHOT_DEADLINE).await {
                        return Some(self.end(&no_room()));
                    }
                }
                Told::TooSlow => return Some(self.end(&ApiError::TooSlow)),
                Told::Stopping => {
                    let stopping = "this node is stopping: go on at another one from the last event's id";
                    return Some(self.end(&ApiError::Unavailable(stopping.into())));
                }
            }
        }
    }

    /// What comes next of the snapshot.
    fn piece(&mut self) -> Option<Bytes> {
        let (_, deadline) = self.snapshot.as_ref()?;
        if Instant::now() > *deadline {
            self.rest.clear();
            self.snapshot = None;
            self.ended = true;
            self.watcher.count_cut();
            // In the middle of an event nothing can be told.
            return None;
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        if self.rest.is_empty() {
            self.snapshot = None;
        }
        Some(piece)
    }

    /// Makes a snapshot the next to be sent; false if there is no room for it.
    async fn begin_snapshot(&mut self, deadline: Instant) -> bool {
        let (cluster, service) = (self.cluster.clone(), self.watcher.service().map(Arc::from));
        let now = cluster.read(State::index);
        let render = || render_snapshot(cluster.clone(), service.clone());
        let Some(snapshot) = self.watcher.snapshot(deadline, now, render).await else { return false };
        self.rest = snapshot.bytes.clone();
        self.snapshot = Some((snapshot, Instant::now() + SNAPSHOT_DEADLINE));
        true
    }

    /// The last event.
    fn end(&mut self, error: &ApiError) -> Bytes {
        self.ended = true;
        frame(None, "end", &error.problem_json(None))
    }
}

/// The events in one piece: a write costs more than a copy.
fn joined(events: &[Arc<Event>]) -> Bytes {
    if let [event] = events {
        return rendered(event);
    }
    let frames: Vec<Bytes> = events.iter().map(|event| rendered(event)).collect();
    let mut bytes = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
    bytes.freeze()
}
