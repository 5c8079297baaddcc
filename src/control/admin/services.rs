//! `/v1/services`: register, list, get, deregister, heartbeat.
//!
//! Invariants: what is proposed was checked and is bounded; a heartbeat costs no log entry and is answered with what
//! the leader says; a call that waits for a change waits no longer than it said. Neighbours:
//! `heartbeats` carries the beats to the leader, `control::watch` says when something changed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use gogate_cluster::state::{Command, Instance, Outcome, Registration, Registry, State};
use gogate_proto::v1;
use http::{HeaderValue, Response, StatusCode, request::Parts};
use http_body_util::Full;
use serde::Serialize;

use super::{
    Context,
    answer::{Answer, Fields, INDEX, Incoming, Query, json, left, read_body},
    audit::Subject,
    auth::Caller,
    error::ApiError,
    grpc,
    once::Once,
};
use crate::{
    config::{check_name, parse_duration, problem::shown, reach},
    control::{
        heartbeats::Heard,
        watch::{Event, Form, Told, Watcher},
    },
};

/// Bytes of a registration.
const BODY_MAX: usize = 64 << 10;

/// Bytes of an id, a name, a tag, a key or a value of the metadata.
const TEXT_MAX: usize = 255;

/// Tags of an instance, and entries of its metadata.
const LABELS_MAX: usize = 64;

/// How long a call waits for something newer than the index that it names, unless it says so itself.
const WAIT_DEFAULT: Duration = Duration::from_secs(30);

/// The longest that it may wait.
const WAIT_MAX: Duration = Duration::from_secs(600);

/// The life without a heartbeat unless it is given.
const TTL_DEFAULT: Duration = Duration::from_secs(30);

/// The longest life without a heartbeat: a day.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// The shortest: below it, a beat a second would be too slow.
const TTL_MIN: Duration = Duration::from_secs(1);

/// An instance as answers and events show it.
#[derive(Serialize)]
pub(super) struct InstanceJson<'a> {
    id: &'a str,
    name: &'a str,
    address: &'a str,
    ttl: Ttl,
    weight: u32,
    metadata: &'a BTreeMap<String, String>,
    tags: &'a [String],
    epoch: u64,
    /// Until it expires unless it is heard from; null: never.
    expires_in_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
}

/// A TTL as it may be written back.
struct Ttl(u64);

#[derive(Serialize)]
struct HeartbeatJson {
    epoch: u64,
    expires_in_ms: Option<u64>,
    index: u64,
}

/// `POST /v1/services`
pub(super) async fn register(
    context: &Context,
    caller: &Caller,
    head: &Parts,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let deadline = Query::new(head.uri.query(), &[])?.deadline()?;
    let body = read_body(body, BODY_MAX, deadline).await?;
    let once = Once::of(head, &body)?;
    let registration = registration(&body, once.as_ref())?;
    caller.check_service(&registration.name)?;
    check_owner(context, caller, &registration.id, left(deadline)).await?;
    let command = Command::Register(registration);
    match context.cluster.propose(Once::command(once, command), left(deadline)).await? {
        Outcome::Registered { instance, created, expires_in_ms } => {
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let index = instance.epoch;
            let subject = Subject(format!("{} of {}", instance.id, instance.name));
            if form(head) == Form::Grpc {
                let instance = Some(grpc::instance(&instance, expires_in_ms));
                let mut answer = grpc::answer(&v1::RegisterReply { instance, created, index });
                answer.extensions_mut().insert(subject);
                return Ok(answer);
            }
            let mut answer = json(status, &InstanceJson::new(&instance, expires_in_ms, Some(index)));
            answer.headers_mut().insert(INDEX, HeaderValue::from(index));
            answer.extensions_mut().insert(subject);
            Ok(answer)
        }
        outcome => Err(unexpected(outcome)),
    }
}

/// `GET /v1/services`
pub(super) async fn list(context: &Context, head: &Parts) -> Result<Answer, ApiError> {
    let query = Query::new(head.uri.query(), &["name", "tag", "stale", "index", "wait"])?;
    let (name, tag) = (query.text("name")?, query.text("tag")?);
    let known = query.number("index")?;
    let wait = query.duration("wait", WAIT_MAX)?.unwrap_or(WAIT_DEFAULT);
    let stale = query.flag("stale")?;
    // Before the state is looked at, so that no change comes in between.
    let watcher = known.map(|_| context.watches.join(name.as_deref())).transpose()?;
    context.consistent(&query).await?;
    let mut unchanged = None;
    if let Some((known, watcher)) = known.zip(watcher) {
        // An index that the leader has not given is another cluster's; one that this node may only not have
        // heard of yet is waited for.
        let foreign = !stale && known > context.cluster.read(State::index);
        if !foreign && !newer(watcher, known, tag.as_deref(), wait).await {
            unchanged = Some(known);
        }
    }
    let (index, instances) = context.cluster.read(|state| {
        let of = |registry: &Registry| -> Vec<Arc<Instance>> {
            match name.as_deref() {
                Some(name) => registry.of_service(name).cloned().collect(),
                None => registry.iter().cloned().collect(),
            }
        };
        let with_life = |instance: Arc<Instance>| (state.expires_in_ms(&instance.id), instance);
        (state.index(), of(state.registry()).into_iter().map(with_life).collect::<Vec<_>>())
    });
    let wanted =
        |instance: &Instance| tag.as_deref().is_none_or(|tag| instance.tags.iter().any(|own| own == tag));
    let wanted = instances.iter().filter(|(_, instance)| wanted(instance));
    // Nothing that was asked for has changed: the same index says so.
    let index = unchanged.map_or(index, |known| known.min(index));
    if form(head) == Form::Grpc {
        let instances = wanted.map(|(expires_in_ms, instance)| grpc::instance(instance, *expires_in_ms));
        return Ok(grpc::answer(&v1::ListReply { instances: instances.collect(), index }));
    }
    let list: Vec<InstanceJson<'_>> =
        wanted.map(|(expires_in_ms, instance)| InstanceJson::new(instance, *expires_in_ms, None)).collect();
    let mut answer = json(StatusCode::OK, &list);
    answer.headers_mut().insert(INDEX, HeaderValue::from(index));
    Ok(answer)
}

/// Waits up to `wait` for something newer than `known`; also true when nobody can say that there was nothing.
async fn newer(mut watcher: Watcher, known: u64, tag: Option<&str>, wait: Duration) -> bool {
    if !watcher.resume(known) {
        return true;
    }
    let concerns = |event: &Arc<Event>| tag.is_none_or(|tag| event.has_tag(tag));
    let happened = async {
        loop {
            match watcher.next().await {
                Told::Events(events) if events.iter().any(concerns) => return,
                Told::Events(_) | Told::Beat(_) => {}
                Told::Reset | Told::TooSlow | Told::Stopping => return,
            }
        }
    };
    tokio::time::timeout(wait, happened).await.is_ok()
}

/// `GET /v1/services/{id}`
pub(super) async fn get(context: &Context, id: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    context.consistent(&Query::new(query, &["stale"])?).await?;
    let (index, found) = context.cluster.read(|state| {
        let found = state.registry().get(id).cloned();
        (state.index(), found.map(|instance| (state.expires_in_ms(id), instance)))
    });
    let (expires_in_ms, instance) = found.ok_or_else(|| unknown(id))?;
    let mut answer = json(StatusCode::OK, &InstanceJson::new(&instance, expires_in_ms, None));
    answer.headers_mut().insert(INDEX, HeaderValue::from(index));
    Ok(answer)
}

/// `DELETE /v1/services/{id}`
pub(super) async fn deregister(
    context: &Context,
    caller: &Caller,
    id: &str,
    head: &Parts,
) -> Result<Answer, ApiError> {
    let timeout = Query::new(head.uri.query(), &[])?.timeout()?;
    check_owner(context, caller, id, timeout).await?;
    let command = Once::command(Once::of(head, &[])?, Command::Deregister { id: id.into() });
    match context.cluster.propose(command, timeout).await? {
        Outcome::Deregistered { index } if form(head) == Form::Grpc => {
            Ok(grpc::answer(&v1::DeregisterReply { index }))
        }
        Outcome::Deregistered { index } => {
            let mut answer = Response::new(Full::new(Bytes::new()).into());
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer.headers_mut().insert(INDEX, HeaderValue::from(index));
            Ok(answer)
        }
        outcome => Err(unexpected(outcome)),
    }
}

/// `PUT /v1/services/{id}/heartbeat`
pub(super) async fn heartbeat(
    context: &Context,
    caller: &Caller,
    id: &str,
    head: &Parts,
) -> Result<Answer, ApiError> {
    let deadline = Query::new(head.uri.query(), &[])?.deadline()?;
    let look = || {
        context.cluster.read(|state| state.registry().get(id).cloned().map(|found| (found, state.index())))
    };
    let mut seen = look();
    let (instance, index) = loop {
        if seen.is_none() {
            // This node may only be behind: it says 404 when it knows that nobody has it.
            context.cluster.linearizable(left(deadline)).await?;
            seen = look();
        }
        let (instance, index) = seen.ok_or_else(|| unknown(id))?;
        caller.check_service(&instance.name)?;
        match context.heartbeats.beat(&instance, deadline).await? {
            Heard::Lives => break (instance, index),
            // Or it was registered anew, and this node is behind.
            Heard::Gone => seen = None,
        }
    };
    let expires_in_ms = (instance.ttl_ms > 0).then_some(instance.ttl_ms);
    let epoch = instance.epoch;
    if form(head) == Form::Grpc {
        return Ok(grpc::answer(&v1::BeatReply { epoch, expires_in_ms, index }));
    }
    Ok(json(StatusCode::OK, &HeartbeatJson { epoch, expires_in_ms, index }))
}

/// How a call is answered.
pub(super) fn form(head: &Parts) -> Form {
    head.extensions.get().copied().unwrap_or_default()
}

/// Refuses a limited caller what would replace or remove an instance of somebody else's service. Between this look
/// and the change another caller may give the id to another service; ids are to be their owner's.
async fn check_owner(
    context: &Context,
    caller: &Caller,
    id: &str,
    timeout: Duration,
) -> Result<(), ApiError> {
    if !caller.is_limited() {
        return Ok(());
    }
    context.cluster.linearizable(timeout).await?;
    let found = context.cluster.read(|state| state.registry().get(id).cloned());
    found.map_or(Ok(()), |instance| caller.check_service(&instance.name))
}

fn unknown(id: &str) -> ApiError {
    ApiError::NotFound(format!("no instance has the id `{id}`; it may have expired: register it again"))
}

/// A refusal, or an outcome of another command, which would be a defect of the cluster's codec.
pub(super) fn unexpected(outcome: Outcome) -> ApiError {
    match outcome {
        Outcome::Refused(refusal) => refusal.into(),
        other => ApiError::Unknown(format!("the cluster answered something else than was asked: {other:?}")),
    }
}

/// The instance to be that `body` asks for, or everything that is wrong with it.
fn registration(body: &[u8], once: Option<&Once>) -> Result<Registration, ApiError> {
    let mut fields = Fields::new(body, &["id", "name", "address", "ttl", "weight", "metadata", "tags"])?;
    let id = fields.text("id");
    let name = fields.needed("name");
    let address = fields.needed("address");
    let (weight, ttl) = (fields.number("weight").unwrap_or(1), fields.text("ttl"));
    let (metadata, tags) = (fields.texts_by_name("metadata"), fields.texts("tags"));

    if let Some(id) = &id {
        check_text(&mut fields, "id", id, false);
    }
    for (key, value) in &metadata {
        check_text(&mut fields, "metadata", key, false);
        check_text(&mut fields, &format!("metadata.{}", shown(key)), value, true);
    }
    for tag in &tags {
        check_text(&mut fields, "tags", tag, false);
    }
    if metadata.len() > LABELS_MAX || tags.len() > LABELS_MAX {
        fields.wrong("metadata", format!("more than {LABELS_MAX} entries of metadata or tags"), "");
    }
    if let Some(name) = &name
        && let Err(rule) = check_name(name)
    {
        fields.wrong("name", format!("`{}` cannot name a service", shown(name)), rule);
    }
    let address = address.and_then(|written| match reach(&written) {
        Ok(address) => Some(address),
        Err((problem, suggestion)) => {
            let usual = "write host:port, as in 10.0.0.5:9000 or [::1]:9000";
            fields.wrong("address", problem, suggestion.as_deref().unwrap_or(usual));
            None
        }
    });
    let weight = u32::try_from(weight).ok().filter(|weight| (1..=65535).contains(weight));
    if weight.is_none() {
        fields.wrong("weight", "is not a weight".into(), "use 1 to 65535");
    }
    let ttl = ttl.map_or(Some(TTL_DEFAULT), |written| {
        let ttl = parse_duration(&written).ok();
        let ttl = ttl.filter(|ttl| ttl.is_zero() || (TTL_MIN..=TTL_MAX).contains(ttl));
        if ttl.is_none() {
            let problem = format!("`{}` is not a life", shown(&written));
            fields.wrong("ttl", problem, "use 1s to 24h, or 0s to never expire");
        }
        ttl
    });
    fields.checked()?;
    let (Some(name), Some(address), Some(weight), Some(ttl)) = (name, address, weight, ttl) else {
        return Err(ApiError::Malformed("the body is not an instance".into()));
    };
    // With a key, the same call makes the same instance at whichever node it is repeated.
    let id =
        id.unwrap_or_else(|| format!("{name}-{:016x}", once.map_or_else(rand::random::<u64>, Once::number)));
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    Ok(Registration { id: id.into(), name: name.into(), address, ttl_ms, weight, metadata, tags })
}

fn check_text(fields: &mut Fields, path: &str, value: &str, may_be_empty: bool) {
    if value.len() > TEXT_MAX {
        fields.wrong(path, format!("has {} bytes, more than {TEXT_MAX}", value.len()), "");
    } else if value.chars().any(char::is_control) || (value.is_empty() && !may_be_empty) {
        fields.wrong(path, "is empty or has control characters".into(), "use printable characters");
    }
}

// === impl InstanceJson ===

impl<'a> InstanceJson<'a> {
    /// `expires_in_ms`: none for one that lives for ever. `index`: of the change that is told of.
    pub(super) fn new(instance: &'a Instance, expires_in_ms: Option<u64>, index: Option<u64>) -> Self {
        let Instance { id, name, address, ttl_ms, weight, metadata, tags, epoch } = instance;
        Self {
            id,
            name,
            address,
            ttl: Ttl(*ttl_ms),
            weight: *weight,
            metadata,
            tags,
            epoch: *epoch,
            expires_in_ms,
            index,
        }
    }
}

// === impl Ttl ===

impl Serialize for Ttl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            ms if ms % 1000 == 0 => serializer.collect_str(&format_args!("{}s", ms / 1000)),
            ms => serializer.collect_str(&format_args!("{ms}ms")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn problems_of(body: &str) -> Vec<String> {
        match registration(body.as_bytes(), None) {
            Ok(_) => Vec::new(),
            Err(ApiError::Invalid(problems)) => problems.into_iter().map(|problem| problem.path).collect(),
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn an_instance_needs_a_name_and_an_address_only() {
        let registration = registration(br#"{"name":"api","address":"10.0.0.1:80"}"#, None).unwrap();
        assert_eq!((registration.ttl_ms, registration.weight), (30_000, 1));
        assert!(registration.id.starts_with("api-"));
    }

    #[test]
    fn every_problem_is_listed() {
        let body = r#"{"id":"","name":"a\nb","address":"nowhere","ttl":"soon","weight":0}"#;
        assert_eq!(problems_of(body), ["id", "name", "address", "weight", "ttl"]);
        let body = r#"{"adress":"h:1","id":7,"ttl":30,"weight":-1,"tags":["a",1],"metadata":[]}"#;
        let wrong = ["adress", "id", "name", "address", "weight", "ttl", "metadata", "tags"];
        assert_eq!(problems_of(body), wrong);
        assert_eq!(problems_of(r#"["a","api","h:1"]"#)[0], "", "a list is no instance");
    }

    #[test]
    fn a_life_has_bounds() {
        for (ttl, good) in
            [("0s", true), ("1s", true), ("24h", true), ("10ms", false), ("25h", false), ("-1s", false)]
        {
            let body = format!(r#"{{"name":"a","address":"h:1","ttl":"{ttl}"}}"#);
            assert_eq!(problems_of(&body).is_empty(), good, "{ttl}");
        }
    }
}
