//! `/v1/cluster`: who is in it, who leads, who lags.
//!
//! Answered without a quorum too: it is what an operator looks at when there is none.

use std::time::Duration;

use gogate_cluster::{Member, MemberReport, state::NodeId};
use http::StatusCode;
use serde::Serialize;

use super::{
    Context,
    answer::{Answer, Query, json},
    error::ApiError,
};

/// How long a node may take to say how it is.
const REPORT_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Serialize)]
struct ClusterJson {
    cluster: String,
    leader: Option<NodeId>,
    term: u64,
    applied: u64,
    /// In which the cluster writes: each node understands it.
    format: u8,
    nodes: Vec<NodeJson>,
}

#[derive(Serialize)]
struct NodeJson {
    id: NodeId,
    name: String,
    role: &'static str,
    admin: String,
    peer: String,
    state: String,
    /// Whether it is to stop soon.
    draining: bool,
    /// Entries that its state is behind the furthest one that answers; null: it does not answer.
    lag: Option<u64>,
    config_version: Option<u64>,
    build: Option<String>,
    /// The newest that it understands.
    format: Option<u8>,
}

/// `GET /v1/cluster`
pub(super) async fn status(context: &Context, query: Option<&str>) -> Result<Answer, ApiError> {
    let timeout = Query::new(query, &["stale"])?.timeout()?;
    let reports = context.cluster.member_reports(REPORT_TIMEOUT.min(timeout)).await;
    let status = context.cluster.status();
    // What the leader has applied, or the furthest of those that answer.
    let furthest = reports
        .iter()
        .filter_map(|(_, report)| Some(report.as_ref()?.applied))
        .max()
        .unwrap_or(status.applied);
    let nodes = reports.into_iter().map(|(member, report)| NodeJson::new(member, report, furthest)).collect();
    let (leader, term, applied, format) = (status.leader, status.term, status.applied, status.format);
    Ok(json(
        StatusCode::OK,
        &ClusterJson { cluster: context.cluster_name.clone(), leader, term, applied, format, nodes },
    ))
}

// === impl NodeJson ===

impl NodeJson {
    fn new(member: Member, report: Option<MemberReport>, furthest: u64) -> Self {
        let Member { id, name, peer, admin, voter, lag: _ } = member;
        let role = if voter { "voter" } else { "learner" };
        let state = report.as_ref().map_or_else(|| "unreachable".to_owned(), |report| report.state.clone());
        Self {
            id,
            name,
            role,
            admin,
            peer,
            state,
            draining: report.as_ref().is_some_and(|report| report.draining),
            lag: report.as_ref().map(|report| furthest.saturating_sub(report.applied)),
            config_version: report.as_ref().map(|report| report.config_version),
            format: report.as_ref().map(|report| report.format),
            build: report.map(|report| report.build),
        }
    }
}
