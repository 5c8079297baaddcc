//! `/v1/watch`: changes as server-sent events, or as messages of gRPC, for as long as the client listens.
//!
//! An event has its index as its id; whoever comes back with the last one, as `since` or as `Last-Event-ID`,
//! goes on behind it. Without one, and when it is too old, a `snapshot` comes first. The last event of a stream
//! that this node ends is `end`, with a problem as its data: a watcher that is too slow, a node that stops. Over
//! gRPC the call's status says so.
//!
//! Invariants: an event is made once for all watchers of one form; a stream holds what it was given to send and no
//! more: one read of the ring, or a snapshot that it shares, and that for [`SNAPSHOT_DEADLINE`] at most. Neighbours: `control::watch` says what comes next.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use gogate_cluster::{
    Cluster,
    state::{Instance, Registry, State},
};
use gogate_proto::v1::{self, watch_event};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header, request::Parts};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Context,
    answer::{Answer, Body, INDEX, Query, json_bytes},
    error::ApiError,
    grpc,
    services::{InstanceJson, form},
};
use crate::control::watch::{Event, EventKind, Form, Snapshot, Told, Watcher};

/// The header by which a client that comes back says where it was.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Bytes of a snapshot that are handed over at once.
const PIECE: usize = 64 << 10;

/// How long a snapshot may take to be taken by its watcher, and to be made for one that listens already.
const SNAPSHOT_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes of instances in one message of a snapshot: an instance has 100 KiB at most.
const PAGE_BYTES: usize = 1 << 20;

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
    form: Form,
    cluster: Cluster,
    watcher: Watcher,
    /// A snapshot on its way; empty when it took too long.
    pieces: Option<Arc<Mutex<Option<Pieces>>>>,
    ended: bool,
}

/// What is left of a snapshot. While it is here, it takes its room among those that are being sent.
struct Pieces {
    rest: Bytes,
    _snapshot: Arc<Snapshot>,
}

/// `GET /v1/watch`
pub(super) async fn watch(context: &Context, head: &Parts) -> Result<Answer, ApiError> {
    let query = Query::new(head.uri.query(), &["name", "since", "stale"])?;
    let name = query.text("name")?;
    let deadline = query.deadline()?;
    let since = match last_event_id(&head.headers)? {
        // A browser that comes back repeats the address that it began with: what it has seen since counts.
        Some(index) => Some(index),
        None => query.number("since")?,
    };
    let watcher = context.watches.join(name.as_deref())?;
    let cluster = context.cluster.clone();
    let form = form(head);
    let mut sending = Sending { form, cluster, watcher, pieces: None, ended: false };
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
    let index = sending.begin_snapshot(deadline).await.ok_or_else(no_room)?;
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
fn rendered(event: &Event, form: Form) -> Bytes {
    if form == Form::Grpc {
        return event.rendered(form, message).clone();
    }
    event
        .rendered(form, |event| {
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

/// The same as a message of gRPC.
fn message(event: &Event) -> Bytes {
    let instance = |instance: &Instance, lives: bool| {
        grpc::instance(instance, (lives && instance.ttl_ms > 0).then_some(instance.ttl_ms))
    };
    watch_event(
        event.index,
        match &event.kind {
            EventKind::Registered(now) => watch_event::Event::Registered(instance(now, true)),
            EventKind::Updated { now, .. } => watch_event::Event::Updated(instance(now, true)),
            EventKind::Deregistered(was) => watch_event::Event::Deregistered(instance(was, false)),
            EventKind::Expired(was) => watch_event::Event::Expired(instance(was, false)),
            EventKind::Config(version) => watch_event::Event::Config(*version),
        },
    )
}

fn watch_event(index: u64, event: watch_event::Event) -> Bytes {
    let mut bytes = BytesMut::new();
    grpc::framed(&v1::WatchEvent { index, event: Some(event) }, &mut bytes);
    bytes.freeze()
}

/// A snapshot as messages, each well below what gRPC's clients take.
fn snapshot_messages(
    index: u64,
    config_version: Option<u64>,
    instances: &[(Option<u64>, Arc<Instance>)],
) -> Bytes {
    let mut bytes = BytesMut::new();
    let mut rest = instances;
    loop {
        let mut size = 0;
        let page = rest.iter().take_while(|(_, instance)| {
            size += size_of(instance);
            size <= PAGE_BYTES
        });
        let (page, left) = rest.split_at(page.count().max(1).min(rest.len()));
        rest = left;
        let instances = page.iter().map(|(life, instance)| grpc::instance(instance, *life)).collect();
        let snapshot = v1::Snapshot { instances, config_version, more: !rest.is_empty() };
        let event = Some(watch_event::Event::Snapshot(snapshot));
        grpc::framed(&v1::WatchEvent { index, event }, &mut bytes);
        if rest.is_empty() {
            return bytes.freeze();
        }
    }
}

/// About how many bytes of a message an instance takes.
fn size_of(instance: &Instance) -> usize {
    let Instance { id, name, address, metadata, tags, .. } = instance;
    let labels = metadata.iter().map(|(key, value)| key.len() + value.len() + 8);
    let tags = tags.iter().map(|tag| tag.len() + 4);
    id.len() + name.len() + address.len() + 64 + labels.chain(tags).sum::<usize>()
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
async fn render_snapshot(cluster: Cluster, service: Option<Arc<str>>, form: Form) -> (u64, Bytes) {
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
        let config_version = service.is_none().then_some(version);
        if form == Form::Grpc {
            return snapshot_messages(index, config_version, &instances);
        }
        let instances =
            instances.iter().map(|(life, instance)| InstanceJson::new(instance, *life, None)).collect();
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
        let form = self.form;
        let frames = stream::unfold(self, |mut sending| async {
            let frame = sending.next().await?;
            Some((Ok::<_, Infallible>(frame), sending))
        });
        let mut answer = Response::new(Body::Stream(StreamBody::new(frames).boxed_unsync()));
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(INDEX, HeaderValue::from(index));
        if form == Form::Grpc { grpc::with_kind(answer) } else { answer }
    }

    /// What comes next; none: the end.
    async fn next(&mut self) -> Option<Frame<Bytes>> {
        loop {
            if let Some(piece) = self.piece() {
                return Some(Frame::data(piece));
            }
            if self.ended {
                return None;
            }
            match self.watcher.next().await {
                Told::Events(events) => return Some(Frame::data(joined(&events, self.form))),
                Told::Beat(index) => {
                    return Some(Frame::data(match self.form {
                        // Clients skip comments; this one says how far a client that hears nothing has come.
                        Form::Json => format!(": index={index}\n\n").into(),
                        Form::Grpc => watch_event(index, watch_event::Event::Reached(true)),
                    }));
                }
                Told::Reset => {
                    // In a box: a watcher should not hold the room for it all its life.
                    let deadline = Instant::now() + SNAPSHOT_DEADLINE;
                    if Box::pin(self.begin_snapshot(deadline)).await.is_none() {
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
        let shared = self.pieces.as_ref()?;
        let mut pieces = shared.lock().expect("nothing panics under this lock");
        let Some(left) = &mut *pieces else {
            // In the middle of an event nothing can be told.
            drop(pieces);
            (self.pieces, self.ended) = (None, true);
            self.watcher.watches().count_cut();
            return None;
        };
        // Copied: what waits in the connection's buffers must not keep all of it.
        let piece = left.rest.split_to(left.rest.len().min(PIECE));
        let (piece, is_last) = (Bytes::copy_from_slice(&piece), left.rest.is_empty());
        drop(pieces);
        if is_last {
            self.pieces = None;
        }
        Some(piece)
    }

    /// Makes a snapshot the next to be sent, and returns its index; none: there is no room for it.
    async fn begin_snapshot(&mut self, deadline: Instant) -> Option<u64> {
        let (cluster, service) = (self.cluster.clone(), self.watcher.service().map(Arc::from));
        let now = cluster.read(State::index);
        let form = self.form;
        let render = || render_snapshot(cluster.clone(), service.clone(), form);
        let snapshot = self.watcher.snapshot(form, deadline, now, render).await?;
        let (index, are_many) = (snapshot.index, snapshot.bytes.len() > PIECE);
        let pieces = Pieces { rest: snapshot.bytes.clone(), _snapshot: snapshot };
        let pieces = Arc::new(Mutex::new(Some(pieces)));
        if are_many {
            // A client that takes nothing more is never asked again whether it is late.
            let pieces = Arc::downgrade(&pieces);
            tokio::spawn(async move {
                tokio::time::sleep(SNAPSHOT_DEADLINE).await;
                if let Some(pieces) = pieces.upgrade() {
                    pieces.lock().expect("nothing panics under this lock").take();
                }
            });
        }
        self.pieces = Some(pieces);
        Some(index)
    }

    /// The last event.
    fn end(&mut self, error: &ApiError) -> Frame<Bytes> {
        self.ended = true;
        match self.form {
            Form::Json => Frame::data(frame(None, "end", &error.problem_json(None))),
            Form::Grpc => grpc::end(Some(error)),
        }
    }
}

/// The events in one piece: a write costs more than a copy.
fn joined(events: &[Arc<Event>], form: Form) -> Bytes {
    if let [event] = events {
        return rendered(event, form);
    }
    let frames: Vec<Bytes> = events.iter().map(|event| rendered(event, form)).collect();
    let mut bytes = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
    frames.iter().for_each(|frame| bytes.extend_from_slice(frame));
    bytes.freeze()
}
