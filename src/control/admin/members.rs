//! `/v1/cluster/members`, `/v1/cluster/transfer-leader` and `/v1/node/drain`: running the cluster.
//!
//! Invariants: any node takes these calls, and the leader decides; only `drain` is about the node that is asked.
//! Neighbours: `gogate_cluster` says what is allowed, `drain` lets this node go.

use std::time::Duration;

use gogate_cluster::{Member, state::NodeId};
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::json as value;
use tokio::time::Instant;

use super::{
    Context,
    answer::{Answer, Fields, Incoming, Query, json, left, read_body},
    error::ApiError,
};
use crate::config;

/// Bytes of a body.
const BODY_MAX: usize = 4096;

/// Between two looks at whether a node votes by now.
const POLL: Duration = Duration::from_millis(25);

/// `POST /v1/cluster/members`
pub(super) async fn add(context: &Context, query: Option<&str>, body: Incoming) -> Result<Answer, ApiError> {
    let deadline = Query::new(query, &[])?.deadline()?;
    let mut fields = Fields::new(&read_body(body, BODY_MAX, deadline).await?, &["address", "role"])?;
    let address = fields.needed("address").unwrap_or_default();
    if !address.is_empty()
        && let Err((problem, suggestion)) = config::reach(&address)
    {
        fields.wrong("address", problem, &suggestion.unwrap_or_default());
    }
    let learner = match fields.text("role").as_deref() {
        None | Some("voter") => false,
        Some("learner") => true,
        Some(other) => {
            let problem = format!("expected `voter` or `learner`, found `{}`", config::problem::shown(other));
            fields.wrong("role", problem, "");
            false
        }
    };
    fields.checked()?;
    let id = context.cluster.add_member(&address, learner, left(deadline)).await?;
    // One that is to vote follows first; how far it came is told, not waited for beyond the call's time.
    let mut member = known(context, id);
    while member.as_ref().is_none_or(|member| member.voter == learner) && Instant::now() + POLL < deadline {
        tokio::time::sleep(POLL).await;
        member = known(context, id);
    }
    Ok(json(StatusCode::CREATED, &shown(id, member.as_ref())))
}

/// `POST /v1/cluster/members/{id}/promote`
pub(super) async fn promote(context: &Context, id: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let deadline = Query::new(query, &[])?.deadline()?;
    let id = context.cluster.promote_member(node_id(id)?, left(deadline)).await?;
    let mut member = known(context, id);
    while member.as_ref().is_none_or(|member| !member.voter) && Instant::now() + POLL < deadline {
        tokio::time::sleep(POLL).await;
        member = known(context, id);
    }
    Ok(json(StatusCode::OK, &shown(id, member.as_ref())))
}

/// `DELETE /v1/cluster/members/{id}`
pub(super) async fn remove(context: &Context, id: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let deadline = Query::new(query, &[])?.deadline()?;
    context.cluster.remove_member(node_id(id)?, left(deadline)).await?;
    let mut answer = Response::new(Full::default().into());
    *answer.status_mut() = StatusCode::NO_CONTENT;
    Ok(answer)
}

/// `POST /v1/cluster/transfer-leader`
pub(super) async fn transfer_leader(
    context: &Context,
    query: Option<&str>,
    body: Incoming,
) -> Result<Answer, ApiError> {
    let deadline = Query::new(query, &[])?.deadline()?;
    let body = read_body(body, BODY_MAX, deadline).await?;
    let to = if body.is_empty() {
        None
    } else {
        let mut fields = Fields::new(&body, &["to"])?;
        let to = fields.number("to");
        fields.checked()?;
        to
    };
    let leader = context.cluster.transfer_leader(to, left(deadline)).await?;
    Ok(json(StatusCode::OK, &value!({ "leader": leader })))
}

/// `POST /v1/node/drain`: 200 once all is done, 202 while it goes on.
pub(super) async fn drain(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let deadline = Query::new(query, &[])?.deadline()?;
    context.drain.begin();
    let drained = tokio::time::timeout(left(deadline), context.drain.done()).await.is_ok();
    let (status, state) =
        if drained { (StatusCode::OK, "drained") } else { (StatusCode::ACCEPTED, "draining") };
    Ok(json(status, &value!({ "node": context.node, "state": state })))
}

fn node_id(segment: &str) -> Result<NodeId, ApiError> {
    let id = segment.parse().ok().filter(|id| *id > 0);
    id.ok_or_else(|| {
        let shown = config::problem::shown(segment);
        ApiError::Malformed(format!("`{shown}` is no id of a node: GET /v1/cluster lists them"))
    })
}

fn known(context: &Context, id: NodeId) -> Option<Member> {
    context.cluster.status().members.into_iter().find(|member| member.id == id)
}

fn shown(id: NodeId, member: Option<&Member>) -> serde_json::Value {
    let role = member.map(|member| if member.voter { "voter" } else { "learner" });
    value!({ "id": id, "name": member.map(|member| &member.name), "role": role, "peer": member.map(|member| &member.peer) })
}
