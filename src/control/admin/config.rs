//! `/v1/config`: read, apply, history, status, rollback.
//!
//! Invariants: what is proposed was validated here, so a document with problems costs the cluster nothing;
//! the answer to a change tells what every node runs, and a node that does not answer is not waited for.
//! Neighbours: `config::check` judges, the leader activates, `publish` on every node reports.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use gogate_cluster::{
    MemberReport,
    state::{Command, Fate, HISTORY, NewDocument, Outcome, Refusal, Version},
};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use serde::Serialize;
use tokio::time::Instant;

use super::{
    Context,
    answer::{Answer, Fields, Incoming, Query, json, left, read_body, text},
    audit::Subject,
    auth::Caller,
    error::ApiError,
    once::Once,
    services::unexpected,
};
use crate::{
    config,
    control::{compile, publish::refusal_of, reload::wall_clock_ms},
    telemetry::access_log::civil,
};

/// Bytes of a gateway document.
const BODY_MAX: usize = config::TEXT_BYTES_MAX;

/// Between two looks at what the nodes run.
const POLL: Duration = Duration::from_millis(10);

/// How long a node may take to say what it runs before it counts as unreachable.
const REPORT_TIMEOUT: Duration = Duration::from_millis(1000);

pub(super) const VERSION: HeaderName = HeaderName::from_static("x-gogate-version");

#[derive(Serialize)]
struct Applied {
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dry_run: Option<bool>,
    changed: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    nodes: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct VersionJson {
    version: u64,
    at: String,
    by: String,
    size: usize,
    sha256: String,
    current: bool,
}

#[derive(Serialize)]
struct StatusJson {
    version: u64,
    nodes: BTreeMap<String, NodeJson>,
}

#[derive(Serialize)]
struct NodeJson {
    state: &'static str,
    version: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// What one node makes of a version.
enum Running {
    Active,
    Pending(u64),
    Failed(u64, String),
    Unreachable,
    /// The call's own deadline was too short to hear from it.
    Unheard,
}

/// `GET /v1/config`
pub(super) async fn get(context: &Context, caller: &Caller, query: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["version", "stale", "secrets"])?;
    let wanted = query.number("version")?;
    let secrets = query.flag("secrets")?;
    if secrets {
        caller.check_secrets()?;
    }
    context.consistent(&query).await?;
    let found = context.cluster.read(|state| match wanted {
        Some(version) => state.documents().get(version).cloned(),
        None => state.documents().current().cloned(),
    });
    let document = found.ok_or_else(|| match wanted {
        Some(version) => not_kept(version),
        None => ApiError::NotFound("there is no gateway document yet: apply one".into()),
    })?;
    let json = document.content.trim_start().starts_with('{');
    let content = if secrets {
        Bytes::copy_from_slice(document.content.as_bytes())
    } else {
        redacted(&document).await?.into()
    };
    let mut answer = Response::new(Full::new(content).into());
    if secrets {
        answer.extensions_mut().insert(Subject("the document with its secrets".into()));
    }
    let headers = answer.headers_mut();
    let kind = if json { "application/json" } else { "application/yaml" };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    tag(headers, document.version);
    Ok(answer)
}

/// `PUT /v1/config`
pub(super) async fn put(
    context: &Context,
    caller: &Caller,
    head: &Parts,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let query = Query::new(head.uri.query(), &["dry_run"])?;
    let deadline = query.deadline()?;
    let expected = expected(&head.headers)?;
    let body = read_body(body, BODY_MAX, deadline).await?;
    let content: Arc<str> = config::text(&body).map_err(|problem| ApiError::Invalid(vec![problem]))?.into();
    let new = New { content, expected, once: Once::of(head, &body)? };
    put_document(context, caller, new, query.flag("dry_run")?, deadline).await
}

/// A document that shall become the current one.
struct New {
    content: Arc<str>,
    expected: Option<u64>,
    once: Option<Once>,
}

async fn put_document(
    context: &Context,
    caller: &Caller,
    new: New,
    dry_run: bool,
    deadline: Instant,
) -> Result<Answer, ApiError> {
    let New { content, expected, once } = new;
    let judged = content.clone();
    let checked = blocking("the document could not be checked", move || compile::check(&judged)).await?;
    let document = checked.map_err(ApiError::Invalid)?;
    if dry_run {
        context.cluster.linearizable(left(deadline)).await?;
        let (current, same) = context.cluster.read(|state| {
            let current = state.documents().current();
            (state.documents().current_version(), current.is_some_and(|current| current.content == content))
        });
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(Refusal::StaleDocument { current, expected }.into());
        }
        let nodes = BTreeMap::new();
        return Ok(json(
            StatusCode::OK,
            &Applied { version: current, dry_run: Some(true), changed: !same, nodes },
        ));
    }
    context.published.will_run(content.clone(), document);
    let by = format!("{caller} at {}", context.node);
    let command = Command::PutDocument(NewDocument { expected, content, by, at_ms: wall_clock_ms() });
    apply(context, Once::command(once, command), deadline).await
}

/// Runs what takes long off the threads that answer calls.
async fn blocking<T: Send + 'static>(
    failed: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::Unavailable(format!("{failed}: {error}; nothing was written")))
}

/// The text of a version as everybody may see it.
async fn redacted(document: &Arc<Version>) -> Result<String, ApiError> {
    let document = document.clone();
    blocking("the document could not be redacted", move || config::redact(&document.content).into_owned())
        .await
}

fn not_kept(version: u64) -> ApiError {
    ApiError::NotFound(format!("version {version} is not among the {HISTORY} that are kept"))
}

/// `PATCH /v1/config`: a JSON merge patch (RFC 7396) on the current version. Without `If-Match` a change that came in
/// between is merged with, too.
pub(super) async fn patch(
    context: &Context,
    caller: &Caller,
    head: &Parts,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let query = Query::new(head.uri.query(), &["dry_run"])?;
    let deadline = query.deadline()?;
    let given = expected(&head.headers)?;
    let body = read_body(body, BODY_MAX, deadline).await?;
    let patch: Arc<serde_json::Value> = serde_json::from_slice(&body)
        .map(Arc::new)
        .map_err(|error| ApiError::Malformed(format!("the body is not JSON: {error}")))?;
    let mut once = Once::of(head, &body)?;
    loop {
        context.cluster.linearizable(left(deadline)).await?;
        let current = context.cluster.read(|state| state.documents().current().cloned());
        let version = current.as_ref().map_or(0, |current| current.version);
        if let Some(expected) = given.filter(|expected| *expected != version) {
            return Err(Refusal::StaleDocument { current: version, expected }.into());
        }
        let patch = patch.clone();
        let merged = blocking("the patch could not be merged", move || {
            config::merge(current.as_ref().map_or("", |current| &*current.content), &patch)
        });
        let merged = merged.await?.map_err(|problem| ApiError::Invalid(vec![problem]))?;
        let new = New { content: merged.into(), expected: Some(version), once: once.take() };
        let keyed = new.once.is_some();
        match put_document(context, caller, new, query.flag("dry_run")?, deadline).await {
            // With a key, what was answered first is what is answered again.
            Err(ApiError::Stale { .. }) if given.is_none() && !keyed && Instant::now() < deadline => {}
            answer => return answer,
        }
    }
}

/// `GET /v1/config/diff`
pub(super) async fn diff(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["from", "to", "stale"])?;
    let (from, to) = (query.number("from")?, query.number("to")?);
    context.consistent(&query).await?;
    let found = context.cluster.read(|state| {
        let documents = state.documents();
        let to = to.unwrap_or_else(|| documents.current_version());
        // The one before, whose number is lower by more than one where versions were refused.
        let before = documents.iter().rev().find(|kept| kept.version < to);
        let from = from.or_else(|| before.map(|before| before.version));
        let one = |version: u64| documents.get(version).cloned().ok_or(version);
        Ok((from.map(one).transpose()?, one(to)?))
    });
    let (from, to) = found.map_err(not_kept)?;
    let name = |version: &Version| format!("version {}\t{}", version.version, rfc3339(version.at_ms));
    let told = blocking("the versions could not be compared", move || match &from {
        Some(from) => config::diff(
            &name(from),
            &config::redact(&from.content),
            &name(&to),
            &config::redact(&to.content),
        ),
        None => config::diff("/dev/null", "", &name(&to), &config::redact(&to.content)),
    });
    Ok(text(StatusCode::OK, told.await?))
}

/// `POST /v1/config/rollback`
pub(super) async fn rollback(
    context: &Context,
    caller: &Caller,
    head: &Parts,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let query = Query::new(head.uri.query(), &[])?;
    let deadline = query.deadline()?;
    let expected = expected(&head.headers)?;
    let body = read_body(body, 4096, deadline).await?;
    let once = Once::of(head, &body)?;
    let mut fields = Fields::new(&body, &["version"])?;
    let to = fields.number("version");
    if to.is_none() {
        fields.wrong("version", "is not the number of a version".into(), "");
    }
    fields.checked()?;
    let to = to.unwrap_or_default();
    let by = format!("{caller} at {}, rollback to {to}", context.node);
    let command = Command::RollbackDocument { to, expected, by, at_ms: wall_clock_ms() };
    apply(context, Once::command(once, command), deadline).await
}

/// `GET /v1/config/versions`
pub(super) async fn versions(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    context.consistent(&Query::new(query, &["stale"])?).await?;
    let (current, kept) = context.cluster.read(|state| {
        let kept: Vec<Arc<Version>> = state.documents().iter().rev().cloned().collect();
        (state.documents().current_version(), kept)
    });
    let list: Vec<VersionJson> = kept.iter().map(|version| VersionJson::new(version, current)).collect();
    Ok(json(StatusCode::OK, &list))
}

/// `GET /v1/config/status`
pub(super) async fn status(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["wait", "stale"])?;
    let deadline = query.deadline()?;
    let wait = query.number("wait")?;
    context.consistent(&query).await?;
    let version = wait.unwrap_or_else(|| context.cluster.read(|state| state.documents().current_version()));
    let nodes = match wait {
        Some(_) => settled(context, version, deadline).await,
        None => look(context, version, left(deadline)).await,
    };
    if wait.is_some() && nodes.iter().any(|(_, running)| running.is_open()) {
        let detail = format!("not every node runs version {version} yet");
        return Err(ApiError::NotYet { detail, version, nodes: in_words(nodes) });
    }
    let nodes = nodes.into_iter().map(|(name, running)| (name, running.json(version))).collect();
    let version = context.cluster.read(|state| state.documents().current_version());
    Ok(json(StatusCode::OK, &StatusJson { version, nodes }))
}

/// Proposes, then waits until it is activated and every live node runs it, or until it is refused because one
/// cannot (P7).
async fn apply(context: &Context, command: Command, deadline: Instant) -> Result<Answer, ApiError> {
    let (version, staged) = stage(context, command, deadline).await?;
    if staged {
        match context.cluster.fate(version, left(deadline)).await {
            Fate::Activated => {}
            Fate::Refused { reason } => {
                let detail = format!(
                    "version {version} was refused by {reason}; what ran goes on everywhere: correct it and apply it again"
                );
                let current = context.cluster.read(|state| state.documents().current_version());
                let nodes = look(context, current, left(deadline)).await;
                let goes_on = |running: Running| match running {
                    Running::Active => format!("runs version {current}"),
                    other => other.text(),
                };
                let nodes = nodes.into_iter().map(|(name, running)| (name, goes_on(running))).collect();
                return Err(ApiError::Conflict { detail, nodes });
            }
            Fate::Staged | Fate::Unknown => {
                let detail = format!(
                    "version {version} is written, but the nodes have not all said yet whether they can run it; see GET /v1/config/status?wait={version}"
                );
                let nodes = in_words(look(context, version, left(deadline)).await);
                return Err(ApiError::NotYet { detail, version, nodes });
            }
        }
    }
    let nodes = settled(context, version, deadline).await;
    if nodes.iter().any(|(_, running)| running.is_open()) {
        let detail = format!(
            "version {version} is current, but not every node runs it yet; see GET /v1/config/status?wait={version}"
        );
        return Err(ApiError::NotYet { detail, version, nodes: in_words(nodes) });
    }
    let nodes = in_words(nodes);
    let mut answer = json(StatusCode::OK, &Applied { version, dry_run: None, changed: staged, nodes });
    tag(answer.headers_mut(), version);
    Ok(answer)
}

/// Proposes a document once no other one is being put into force. Its number, and whether it is staged; else it is
/// what is current.
async fn stage(context: &Context, command: Command, deadline: Instant) -> Result<(u64, bool), ApiError> {
    loop {
        match context.cluster.propose(command.clone(), left(deadline)).await? {
            Outcome::Staged { version } => return Ok((version, true)),
            Outcome::Documented { version, .. } => return Ok((version, false)),
            Outcome::Refused(Refusal::Staging { version }) if Instant::now() < deadline => {
                context.cluster.fate(version, left(deadline)).await;
            }
            outcome => return Err(unexpected(outcome)),
        }
    }
}

/// What each node makes of `version`: once none that answers is still on its way to it, or at the deadline.
async fn settled(context: &Context, version: u64, deadline: Instant) -> Vec<(String, Running)> {
    loop {
        let nodes = look(context, version, left(deadline)).await;
        let open = nodes.iter().any(|(_, running)| running.is_open());
        if !open || left(deadline) <= POLL {
            return nodes;
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn look(context: &Context, version: u64, left: Duration) -> Vec<(String, Running)> {
    let reports = context.cluster.member_reports(REPORT_TIMEOUT.min(left)).await;
    let silent = || if left < REPORT_TIMEOUT { Running::Unheard } else { Running::Unreachable };
    let running =
        |report: Option<MemberReport>| report.map_or_else(silent, |report| Running::of(version, &report));
    reports.into_iter().map(|(member, report)| (member.name, running(report))).collect()
}

fn in_words(nodes: Vec<(String, Running)>) -> BTreeMap<String, String> {
    nodes.into_iter().map(|(name, running)| (name, running.text())).collect()
}

/// The version of `If-Match`; `*` and its absence mean any.
fn expected(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let mut values = headers.get_all(header::IF_MATCH).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::Malformed("`If-Match` is there twice".into()));
    }
    let text = value.to_str().unwrap_or_default().trim();
    if text == "*" {
        return Ok(None);
    }
    let version = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text).parse();
    version.map(Some).map_err(|_| {
        ApiError::Malformed("`If-Match` is a version in quotes, as `ETag` told it: \"3\"".into())
    })
}

fn tag(headers: &mut HeaderMap, version: u64) {
    let etag =
        HeaderValue::try_from(format!("\"{version}\"")).expect("digits and quotes make a header value");
    headers.insert(header::ETAG, etag);
    headers.insert(VERSION, HeaderValue::from(version));
}

/// A time as RFC 3339 has it, in UTC, from milliseconds since 1970.
fn rfc3339(at_ms: u64) -> String {
    let second = at_ms / 1000;
    let (year, month, day) = civil(second / 86_400);
    let (hour, minute, second) = (second / 3600 % 24, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

// === impl Running ===

impl Running {
    fn of(version: u64, report: &MemberReport) -> Self {
        match refusal_of(version, &report.config_error) {
            Some(reason) => Self::Failed(report.config_version, reason.to_owned()),
            None if report.config_version >= version => Self::Active,
            None => Self::Pending(report.config_version),
        }
    }

    /// Whether waiting may still show something else.
    fn is_open(&self) -> bool {
        match self {
            Self::Pending(_) | Self::Unheard => true,
            Self::Active | Self::Failed(..) | Self::Unreachable => false,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Active => "active".into(),
            Self::Pending(runs) => format!("pending: still runs version {runs}"),
            Self::Failed(_, reason) => format!("failed: {reason}"),
            Self::Unreachable => "unreachable".into(),
            Self::Unheard => "unknown: it did not answer in time".into(),
        }
    }

    fn json(self, wanted: u64) -> NodeJson {
        match self {
            Self::Active => NodeJson { state: "active", version: Some(wanted), error: None },
            Self::Pending(runs) => NodeJson { state: "pending", version: Some(runs), error: None },
            Self::Failed(runs, reason) => {
                NodeJson { state: "failed", version: Some(runs), error: Some(reason) }
            }
            Self::Unreachable => NodeJson { state: "unreachable", version: None, error: None },
            Self::Unheard => NodeJson { state: "unknown", version: None, error: None },
        }
    }
}

// === impl VersionJson ===

impl VersionJson {
    fn new(version: &Version, current: u64) -> Self {
        let Version { version, content, sha256, by, at_ms } = version;
        let (size, at) = (content.len(), rfc3339(*at_ms));
        Self {
            version: *version,
            at,
            by: by.clone(),
            size,
            sha256: sha256.clone(),
            current: *version == current,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_rfc_3339() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(951_782_400_000), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(1_767_225_599_999), "2025-12-31T23:59:59Z");
    }

    #[test]
    fn an_if_match_that_is_no_version_is_refused() {
        let expected = |text: &'static str| {
            expected(&HeaderMap::from_iter([(header::IF_MATCH, HeaderValue::from_static(text))]))
        };
        assert_eq!(expected("\"3\""), Ok(Some(3)));
        assert_eq!(expected("3"), Ok(Some(3)));
        assert_eq!(expected("*"), Ok(None));
        assert!(expected("W/\"3\"").is_err());
        assert!(expected("").is_err());
        let mut twice = HeaderMap::new();
        twice.append(header::IF_MATCH, HeaderValue::from_static("*"));
        twice.append(header::IF_MATCH, HeaderValue::from_static("\"3\""));
        assert!(super::expected(&twice).is_err());
    }
}
