//! `/v1/services`: register, list, get, deregister, heartbeat.
//!
//! Invariants: what is proposed was checked and is bounded; a heartbeat costs no log entry and is answered
//! from this node's own state. Neighbours: `heartbeats` carries the beats to the leader.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use gogate_cluster::state::{Command, Instance, Outcome, Registration, Registry};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};

use super::{
    Context,
    answer::{Answer, INDEX, Query, from_json, json, read_body},
    error::ApiError,
};
use crate::{
    config::{Problem, check_name, parse_duration, reach},
    control::heartbeats::Taken,
};

/// Bytes of a registration.
const BODY_MAX: usize = 64 << 10;

/// Bytes of an id, a name, a tag, a key or a value of the metadata.
const TEXT_MAX: usize = 255;

/// Tags of an instance, and entries of its metadata.
const LABELS_MAX: usize = 64;

/// The longest life without a heartbeat: a day.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// The shortest: below it, a beat a second would be too slow.
const TTL_MIN: Duration = Duration::from_secs(1);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written<'a> {
    #[serde(borrow, default)]
    id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    name: std::borrow::Cow<'a, str>,
    address: String,
    #[serde(borrow, default)]
    ttl: Option<std::borrow::Cow<'a, str>>,
    #[serde(default)]
    weight: Option<u32>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    tags: Vec<String>,
}

#[derive(Serialize)]
struct InstanceJson<'a> {
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
    query: Option<&str>,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let timeout = Query::new(query, &[])?.timeout()?;
    let body = read_body(body, BODY_MAX, timeout).await?;
    let registration = check(from_json(&body)?).map_err(ApiError::Invalid)?;
    match context.cluster.propose(Command::Register(registration), timeout).await? {
        Outcome::Registered { instance, created, expires_in_ms } => {
            let status = if created { StatusCode::CREATED } else { StatusCode::OK };
            let index = instance.epoch;
            let mut answer = json(status, &InstanceJson::new(&instance, expires_in_ms, Some(index)));
            answer.headers_mut().insert(INDEX, HeaderValue::from(index));
            Ok(answer)
        }
        outcome => Err(unexpected(outcome)),
    }
}

/// `GET /v1/services`
pub(super) async fn list(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["name", "tag", "stale", "index", "wait"])?;
    if query.get("index")?.is_some() || query.get("wait")?.is_some() {
        return Err(ApiError::Malformed(
            "blocking reads (`index`, `wait`) are not supported yet: ask again instead".into(),
        ));
    }
    let (name, tag) = (query.get("name")?, query.get("tag")?);
    context.consistent(&query).await?;
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
    let list: Vec<InstanceJson<'_>> = instances
        .iter()
        .filter(|(_, instance)| wanted(instance))
        .map(|(expires_in_ms, instance)| InstanceJson::new(instance, *expires_in_ms, None))
        .collect();
    let mut answer = json(StatusCode::OK, &list);
    answer.headers_mut().insert(INDEX, HeaderValue::from(index));
    Ok(answer)
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
pub(super) async fn deregister(context: &Context, id: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let timeout = Query::new(query, &[])?.timeout()?;
    match context.cluster.propose(Command::Deregister { id: id.into() }, timeout).await? {
        Outcome::Deregistered { index } => {
            let mut answer = Response::new(Full::new(Bytes::new()));
            *answer.status_mut() = StatusCode::NO_CONTENT;
            answer.headers_mut().insert(INDEX, HeaderValue::from(index));
            Ok(answer)
        }
        outcome => Err(unexpected(outcome)),
    }
}

/// `PUT /v1/services/{id}/heartbeat`
pub(super) async fn heartbeat(context: &Context, id: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let timeout = Query::new(query, &[])?.timeout()?;
    let look = || {
        context.cluster.read(|state| state.registry().get(id).cloned().map(|found| (found, state.index())))
    };
    let (instance, index) = match look() {
        Some(found) => found,
        None => {
            // This node may only be behind: it says 404 when it knows that nobody has it.
            context.cluster.linearizable(timeout).await?;
            look().ok_or_else(|| unknown(id))?
        }
    };
    match context.heartbeats.take(&instance) {
        Taken::Noted => {}
        Taken::CutOff => {
            let detail = "this node has not reached a leader for a while, so nothing is renewed through it: beat at another node";
            return Err(ApiError::Unavailable(detail.into()));
        }
        Taken::Full => return Err(ApiError::Unavailable("too many heartbeats wait for the leader".into())),
    }
    let expires_in_ms = (instance.ttl_ms > 0).then_some(instance.ttl_ms);
    Ok(json(StatusCode::OK, &HeartbeatJson { epoch: instance.epoch, expires_in_ms, index }))
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

/// Everything that is wrong with an instance, or the instance to be.
fn check(written: Written<'_>) -> Result<Registration, Vec<Problem>> {
    let mut problems = Vec::new();
    let mut wrong = |path: &str, problem: String, suggestion: &str| {
        let suggestion = Some(suggestion.to_owned()).filter(|text| !text.is_empty());
        problems.push(Problem { path: path.into(), ..Problem::general(problem, suggestion) });
    };
    let mut text = |path: &str, value: &str, may_be_empty: bool| {
        if value.len() > TEXT_MAX {
            wrong(path, format!("has {} bytes, more than {TEXT_MAX}", value.len()), "");
        } else if value.chars().any(char::is_control) || (value.is_empty() && !may_be_empty) {
            wrong(path, "is empty or has control characters".into(), "use printable characters");
        }
    };
    if let Some(id) = &written.id {
        text("id", id, false);
    }
    for (key, value) in &written.metadata {
        text("metadata", key, false);
        text(&format!("metadata.{}", crate::config::problem::shown(key)), value, true);
    }
    for tag in &written.tags {
        text("tags", tag, false);
    }
    if written.metadata.len() > LABELS_MAX || written.tags.len() > LABELS_MAX {
        wrong("metadata", format!("more than {LABELS_MAX} entries of metadata or tags"), "");
    }
    if let Err(rule) = check_name(&written.name) {
        wrong(
            "name",
            format!("`{}` cannot name a service", crate::config::problem::shown(&written.name)),
            rule,
        );
    }
    let address = reach(&written.address).unwrap_or_else(|(problem, suggestion)| {
        let usual = "write host:port, as in 10.0.0.5:9000 or [::1]:9000";
        wrong("address", problem, suggestion.as_deref().unwrap_or(usual));
        String::new()
    });
    let weight = written.weight.unwrap_or(1);
    if !(1..=65535).contains(&weight) {
        wrong("weight", format!("{weight} is not a weight"), "use 1 to 65535");
    }
    let ttl = match written.ttl.as_deref() {
        None => Duration::from_secs(30),
        Some(text) => match parse_duration(text) {
            Ok(ttl) if ttl.is_zero() || (TTL_MIN..=TTL_MAX).contains(&ttl) => ttl,
            _ => {
                let shown = crate::config::problem::shown(text);
                wrong("ttl", format!("`{shown}` is not a life"), "use 1s to 24h, or 0s to never expire");
                Duration::ZERO
            }
        },
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    let id = match written.id {
        Some(id) => Arc::from(id.as_ref()),
        None => Arc::from(format!("{}-{:016x}", written.name, rand::random::<u64>())),
    };
    let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
    let Written { name, metadata, tags, .. } = written;
    Ok(Registration { id, name: Arc::from(name.as_ref()), address, ttl_ms, weight, metadata, tags })
}

// === impl InstanceJson ===

impl<'a> InstanceJson<'a> {
    fn new(instance: &'a Instance, expires_in_ms: Option<u64>, index: Option<u64>) -> Self {
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
        let written: Written<'_> = serde_json::from_str(body).unwrap();
        check(written).err().unwrap_or_default().into_iter().map(|problem| problem.path).collect()
    }

    #[test]
    fn an_instance_needs_a_name_and_an_address_only() {
        let written = serde_json::from_str(r#"{"name":"api","address":"10.0.0.1:80"}"#).unwrap();
        let registration = check(written).unwrap();
        assert_eq!((registration.ttl_ms, registration.weight), (30_000, 1));
        assert!(registration.id.starts_with("api-"));
    }

    #[test]
    fn every_problem_is_listed() {
        let body = r#"{"id":"","name":"a\nb","address":"nowhere","ttl":"soon","weight":0}"#;
        assert_eq!(problems_of(body), ["id", "name", "address", "weight", "ttl"]);
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
