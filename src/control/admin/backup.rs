//! `/v1/cluster/backup`, `/v1/cluster/restore` and `/v1/cluster/snapshot`: the state on disks, and out of them.
//!
//! Invariants: a backup stands at one index and is checked whole before anything of it is proposed; what encodes or
//! checks much does it off the runtime's threads. Neighbours: `gogate_cluster`'s `backup` has the format and the way
//! into the state.

use gogate_cluster::Backup;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Map, Value, json as value};

use super::{
    Context,
    answer::{Answer, INDEX, Incoming, Query, json, left, read_body},
    error::ApiError,
};
use crate::control::{backup, reload::wall_clock_ms};

/// `GET /v1/cluster/backup`
pub(super) async fn backup(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    context.consistent(&Query::new(query, &["stale"])?).await?;
    let taken = context.cluster.backup(wall_clock_ms());
    let index = taken.index;
    let name = format!("{}-{index}.gogate-backup", context.cluster_name);
    let bytes = computed(move || taken.encode()).await?;
    let mut answer: Answer = Response::new(Full::new(bytes).into());
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(INDEX, HeaderValue::from(index));
    if let Ok(disposition) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, disposition);
    }
    Ok(answer)
}

/// `POST /v1/cluster/restore`
pub(super) async fn restore(
    context: &Context,
    query: Option<&str>,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let query = Query::new(query, &["force"])?;
    let (deadline, force) = (query.deadline()?, query.flag("force")?);
    let bytes = read_body(body, backup::BYTES_MAX, deadline).await?;
    let decoded = computed(move || Backup::decode(&bytes)).await?;
    let taken = decoded.map_err(|problem| {
        ApiError::Malformed(format!("the body is not a sound backup: {problem}; nothing was changed"))
    })?;
    let (instances, versions) = (taken.instances.len(), taken.versions.len());
    let index = context.cluster.restore(taken, force, left(deadline)).await?;
    let version = context.cluster.read(|state| state.documents().current_version());
    Ok(json(
        StatusCode::OK,
        &value!({ "index": index, "instances": instances, "versions": versions, "version": version }),
    ))
}

/// `POST /v1/cluster/snapshot`
pub(super) async fn snapshot(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let timeout = Query::new(query, &[])?.timeout()?;
    let written = context.cluster.snapshot_all(timeout).await;
    let nodes: Map<String, Value> = written
        .into_iter()
        .map(|(member, index)| (member.name, index.map_or(Value::Null, Value::from)))
        .collect();
    Ok(json(StatusCode::OK, &value!({ "nodes": nodes })))
}

/// Runs what computes for long where it holds nobody up.
async fn computed<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, ApiError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ApiError::Unavailable(format!("the backup could not be worked on: {error}")))
}
