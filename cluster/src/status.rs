//! Where a node and its cluster stand, for people and for `/metrics`.

use std::time::Duration;

use futures_util::future::join_all;
use gogate_proto::v1;

use crate::{
    figures::Figures,
    node::Node,
    state::{NodeId, State},
    upgrade,
};

/// Where a node stands, for people and for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The cluster's uuid.
    pub cluster_uuid: String,
    /// This node.
    pub node: NodeId,
    /// Who leads; none while this node hears no leader, who may be dead.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// The log index that the state has reached.
    pub applied: u64,
    /// The format in which the cluster writes.
    pub format: u8,
    /// The members as of the last membership entry.
    pub members: Vec<Member>,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its id.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// `host:port` of its gRPC service.
    pub peer: String,
    /// `host:port` of its admin API.
    pub admin: String,
    /// Whether it votes.
    pub voter: bool,
    /// Entries behind the leader; known on the leader only.
    pub lag: Option<u64>,
}

/// What a member says of itself when asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberReport {
    /// Its build.
    pub build: String,
    /// The version of the document that it runs; 0: none.
    pub config_version: u64,
    /// Why it does not run the current one, if it cannot; empty otherwise.
    pub config_error: String,
    /// The log index that its state has reached.
    pub applied: u64,
    /// `leader`, `follower`, `candidate`, `learner`.
    pub state: String,
    /// Whether it is to stop soon.
    pub draining: bool,
    /// The newest format that it understands.
    pub format: u8,
}

/// Where this node stands.
pub(crate) fn of(node: &Node, cluster_uuid: &str) -> Status {
    let progress = node.core.progress();
    let roles = node.core.roles();
    let membership = roles.membership();
    let leads = roles.leading().is_some();
    // Of the same look as the term: nobody is shown to lead in another's.
    let leader = progress.leader.filter(|leader| {
        roles.core_runs() && if *leader == node.id { leads } else { node.election.hears_leader() }
    });
    let members = membership
        .nodes
        .iter()
        .map(|(id, record)| {
            let matched =
                if *id == node.id { Some(progress.last_log) } else { progress.matched.get(id).copied() };
            Member {
                id: *id,
                name: record.name.clone(),
                peer: record.peer.clone(),
                admin: record.admin.clone(),
                voter: membership.is_voter(*id),
                lag: matched.filter(|_| leads).map(|matched| progress.last_log.saturating_sub(matched)),
            }
        })
        .collect();
    Status {
        cluster_uuid: cluster_uuid.to_owned(),
        node: node.id,
        leader,
        term: progress.term,
        applied: *node.replica.applied().borrow(),
        format: node.replica.read(State::format),
        members,
    }
}

pub(crate) fn figures(node: &Node) -> Figures {
    let roles = node.core.roles();
    Figures {
        term: roles.term(),
        is_leader: roles.leading().is_some(),
        applied: *node.replica.applied().borrow(),
        commit: node.commit.totals(),
        fsync: node.fsync.totals(),
    }
}

/// What every member says of itself; `None` for those that do not answer in `timeout`.
pub(crate) async fn of_members(node: &Node, timeout: Duration) -> Vec<(Member, Option<MemberReport>)> {
    let status = of(node, "");
    let membership = node.core.roles().membership();
    let asked = status.members.into_iter().map(|member| {
        let record = membership.nodes.get(&member.id).cloned();
        async move {
            if member.id == node.id {
                return (member, Some(report(node.status_reply())));
            }
            let Some(record) = record else { return (member, None) };
            let link = node.links.member(member.id, &record);
            let mut client = link.client();
            let call = client.status(link.request(v1::StatusRequest {}, Some(timeout)));
            let reply = tokio::time::timeout(timeout, call).await;
            let reply = reply.ok().and_then(Result::ok).map(|reply| report(reply.into_inner()));
            (member, reply)
        }
    });
    join_all(asked).await
}

/// Has every member write a snapshot; `None` for those that did not do it in `timeout`.
pub(crate) async fn snapshot_members(node: &Node, timeout: Duration) -> Vec<(Member, Option<u64>)> {
    let membership = node.core.roles().membership();
    let asked = of(node, "").members.into_iter().map(|member| {
        let record = membership.nodes.get(&member.id).cloned();
        async move {
            let written = async {
                if member.id == node.id {
                    return node.core.snapshot().await.ok();
                }
                let link = node.links.member(member.id, &record?);
                let request = link.request(v1::TakeSnapshotRequest {}, Some(timeout));
                Some(link.client().take_snapshot(request).await.ok()?.into_inner().index)
            };
            let index = tokio::time::timeout(timeout, written).await.ok().flatten();
            (member, index)
        }
    });
    join_all(asked).await
}

fn report(reply: v1::StatusReply) -> MemberReport {
    let v1::StatusReply { build, config_version, config_error, applied, state, draining, format, .. } = reply;
    let format = upgrade::said(format);
    MemberReport { build, config_version, config_error, applied, state, draining, format }
}
