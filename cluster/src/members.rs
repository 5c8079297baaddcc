//! Joining a cluster that runs.
//!
//! Job: [`Admission`] lets nodes in, on the leader; [`seek_vote`] has a node that joined ask until it votes, and
//! [`seek_certainty`] has one that nobody speaks to ask whether it was removed. `manage` is what operators ask for.
//! A node that joins gets an id that was never used (`Command::AdmitNode`), follows as a learner, and becomes a
//! voter when it has caught up, in one change that also removes the dead node of its name: a wiped disk comes
//! back as somebody new, and its old self is gone.
//!
//! Invariants: every step is idempotent and is driven by the node that wants in, which asks again through any
//! change of leader; one join at a time; a living node is never replaced; who does not understand what the cluster
//! writes is not let in (`upgrade`).

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use gogate_proto::v1;
use tokio::sync::Mutex;

use crate::{
    batch::Proposer,
    bootstrap::{self, Door},
    node::Node,
    raft::{Core, Links, Membership, Replica},
    state::{Command, NewNode, NodeId, Outcome},
    storage::codec::NodeRecord,
    upgrade,
};

/// A learner this close to the end of the log is caught up.
const PROMOTE_LAG_MAX: u64 = 1000;

/// Agreement on a new id.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(3);

/// Passing a join on to the leader.
const PASS_ON_TIMEOUT: Duration = Duration::from_secs(8);

/// A living node of the same name answers by then.
const ALIVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two questions of a node that wants to vote.
const SEEK_PAUSE: Duration = Duration::from_millis(200);

/// A node that has heard no leader for so long asks whether it is still a member.
const CERTAINTY_PERIOD: Duration = Duration::from_secs(2);

/// Lets nodes in.
pub(crate) struct Admission {
    id: NodeId,
    cluster_name: String,
    core: Core,
    replica: Arc<Replica>,
    links: Links,
    proposer: Proposer,
    /// Held while a join is carried out.
    busy: Mutex<()>,
    door: std::sync::Weak<Door>,
}

/// Why a join is not done.
enum NotYet {
    /// Ask again.
    Retry(String),
    /// Never.
    Refused(String),
    /// Never again: it was removed.
    Removed(String),
}

// === impl Admission ===

impl Admission {
    pub(crate) fn new(
        id: NodeId,
        cluster_name: String,
        core: Core,
        replica: Arc<Replica>,
        links: Links,
        proposer: Proposer,
        door: std::sync::Weak<Door>,
    ) -> Self {
        Self { id, cluster_name, core, replica, links, proposer, busy: Mutex::new(()), door }
    }

    /// The right to change the members, once nobody else is at it: a node that wants a vote asks again and again, which
    /// is short. None: not by `deadline`.
    pub(crate) async fn claim_by(&self, deadline: Instant) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        tokio::time::timeout_at(deadline.into(), self.busy.lock()).await.ok()
    }

    /// The right to change the members, if nobody else is at it.
    pub(crate) fn claim(&self) -> Option<tokio::sync::MutexGuard<'_, ()>> {
        self.busy.try_lock().ok()
    }

    /// The cluster's name.
    pub(crate) fn cluster_name(&self) -> &str {
        &self.cluster_name
    }

    /// Who this node is; none once it has stopped.
    pub(crate) fn identity(&self) -> Option<Arc<bootstrap::Whoami>> {
        self.door.upgrade().map(|door| door.identity())
    }

    /// Where others reach this node.
    pub(crate) fn address(&self) -> Option<String> {
        self.door.upgrade().map(|door| door.address().to_owned())
    }

    /// Takes one step for the node that asks, or passes it on to the leader once.
    pub(crate) async fn join(&self, request: v1::JoinRequest) -> v1::JoinReply {
        let roles = self.core.roles();
        let answer = if roles.leading().is_some() {
            self.lead_in(&request).await
        } else if request.passed_on {
            Err(NotYet::Retry("the leader is just changing".to_owned()))
        } else {
            match roles.leader().filter(|leader| *leader != self.id) {
                None => Err(NotYet::Retry("there is no leader".to_owned())),
                Some(leader) => return self.pass_on(leader, request).await,
            }
        };
        let uuid = self.door.upgrade().map(|door| door.identity().cluster_uuid.clone()).unwrap_or_default();
        match answer {
            Ok(node) => v1::JoinReply { cluster_uuid: uuid, node, ..v1::JoinReply::default() },
            Err(NotYet::Retry(retry)) => v1::JoinReply { retry, ..v1::JoinReply::default() },
            Err(NotYet::Refused(refused)) => v1::JoinReply { refused, ..v1::JoinReply::default() },
            Err(NotYet::Removed(refused)) => {
                v1::JoinReply { refused, removed: true, ..v1::JoinReply::default() }
            }
        }
    }

    async fn pass_on(&self, leader: NodeId, mut request: v1::JoinRequest) -> v1::JoinReply {
        let retry = |retry: String| v1::JoinReply { retry, ..v1::JoinReply::default() };
        let membership = self.core.roles().membership();
        let Some(node) = membership.nodes.get(&leader) else {
            return retry("the leader is not known yet".to_owned());
        };
        let link = self.links.member(leader, node);
        request.passed_on = true;
        match link.client().join(link.request(request, Some(PASS_ON_TIMEOUT))).await {
            Ok(reply) => reply.into_inner(),
            Err(status) => retry(format!("the leader at {}: {}", link.address(), status.message())),
        }
    }

    async fn lead_in(&self, request: &v1::JoinRequest) -> Result<NodeId, NotYet> {
        if request.cluster_name != self.cluster_name {
            return Err(NotYet::Refused(format!("this is cluster `{}`", self.cluster_name)));
        }
        let Ok(_busy) = self.busy.try_lock() else {
            return Err(NotYet::Retry("another node is just joining".to_owned()));
        };
        self.refuse_another_format(request)?;
        let membership = self.core.roles().membership();
        let known = membership.nodes.iter().find(|(_, node)| node.incarnation == request.incarnation);
        if let Some((id, _)) = known.filter(|(id, _)| !self.is_retired(**id)) {
            if request.role == "voter" && !membership.is_voter(*id) {
                // It asks for as long as it takes: whom it replaces may live again by now.
                self.refuse_a_living_name(request, &membership).await?;
                self.promote(*id, &request.name, &membership).await.map_err(NotYet::Retry)?;
            }
            return Ok(*id);
        }
        self.refuse_the_removed(request)?;
        self.refuse_a_living_name(request, &membership).await?;
        let id = self.admit(request, &membership).await?;
        // A raise that a leader before this one began may have come ahead of the id.
        self.refuse_another_format(request)?;
        let node = NodeRecord {
            name: request.name.clone(),
            peer: request.peer.clone(),
            admin: request.admin.clone(),
            incarnation: request.incarnation,
        };
        self.core.add_learner(id, node).await.map_err(NotYet::Retry)?;
        tracing::info!(node = id, name = request.name, peer = request.peer, "a node joins as a learner");
        Ok(id)
    }

    fn refuse_another_format(&self, request: &v1::JoinRequest) -> Result<(), NotYet> {
        let current = self.replica.read(|state| state.format());
        let (format, oldest) = (upgrade::said(request.format), upgrade::said(request.oldest_format));
        upgrade::check(format, oldest, current)
            .map_err(|problem| NotYet::Refused(format!("node `{}` is not let in: {problem}", request.name)))
    }

    fn is_retired(&self, id: NodeId) -> bool {
        self.replica.read(|state| state.members().is_retired(id))
    }

    /// An id that was removed is not taken up again: its disk may hold what was since replaced.
    fn refuse_the_removed(&self, request: &v1::JoinRequest) -> Result<(), NotYet> {
        let newer = |id: NodeId| {
            let nodes = self.core.roles().membership().nodes;
            nodes.iter().any(|(other, node)| node.name == request.name && *other > id)
        };
        let known = self.replica.read(|state| {
            let id = state.members().by_incarnation(request.incarnation)?;
            Some((id, state.members().is_retired(id)))
        });
        match known {
            Some((id, true)) => Err(NotYet::Removed(format!(
                "node {id} (`{}`) was removed from the cluster: move its data folder away, and it joins as a new node",
                request.name
            ))),
            Some((id, false)) if newer(id) => Err(NotYet::Refused(format!(
                "node {id} (`{}`) was replaced by a newer one of its name: move its data folder away",
                request.name
            ))),
            _ => Ok(()),
        }
    }

    async fn refuse_a_living_name(
        &self,
        request: &v1::JoinRequest,
        membership: &Membership,
    ) -> Result<(), NotYet> {
        let other = |node: &NodeRecord| node.name == request.name && node.incarnation != request.incarnation;
        for (id, node) in membership.nodes.iter().filter(|(_, node)| other(node)) {
            let link = self.links.stranger(&node.peer);
            let message = v1::IdentifyRequest { cluster_name: self.cluster_name.clone() };
            let reply = link.client().identify(link.request(message, Some(ALIVE_TIMEOUT))).await;
            if reply.is_ok_and(|reply| reply.into_inner().incarnation == node.incarnation) {
                return Err(NotYet::Refused(format!(
                    "node {id} at {} is called `{}` and is alive: give the new node another `node.name`",
                    node.peer, node.name
                )));
            }
        }
        Ok(())
    }

    async fn admit(&self, request: &v1::JoinRequest, membership: &Membership) -> Result<NodeId, NotYet> {
        let all_admitted = self.replica.read(|state| {
            membership.nodes.values().all(|node| state.members().by_incarnation(node.incarnation).is_some())
        });
        if !all_admitted {
            return Err(NotYet::Retry("the cluster is just being formed".to_owned()));
        }
        let new = NewNode { name: request.name.clone(), incarnation: request.incarnation, id: None };
        let outcomes = self.proposer.propose_as_leader(vec![Command::AdmitNode(new)], ADMIT_TIMEOUT).await;
        match outcomes.map_err(|error| NotYet::Retry(error.to_string()))?.pop() {
            Some(Outcome::Admitted { node }) => Ok(node),
            other => Err(NotYet::Retry(format!("no id was given: {other:?}"))),
        }
    }

    /// Makes a learner that has caught up a voter, in the place of the dead one of its name.
    pub(crate) async fn promote(
        &self,
        id: NodeId,
        name: &str,
        membership: &Membership,
    ) -> Result<(), String> {
        let progress = self.core.progress();
        let matched = progress.matched.get(&id).copied().unwrap_or(0);
        let lag = progress.last_log.saturating_sub(matched);
        if matched == 0 || lag > PROMOTE_LAG_MAX {
            return Err(format!("{lag} entries behind, a voter once it has caught up"));
        }
        let [voters] = membership.voters.as_slice() else {
            return Err("the voters are just changing".to_owned());
        };
        let same_name = |other: &NodeId| {
            *other != id && membership.nodes.get(other).is_some_and(|node| node.name == name)
        };
        let mut wanted: BTreeSet<_> = voters.iter().copied().filter(|voter| !same_name(voter)).collect();
        wanted.insert(id);
        let replaced: Vec<_> = voters.difference(&wanted).collect();
        self.core.change_voters(wanted.clone()).await?;
        tracing::info!(node = id, name, ?replaced, "a node votes from now on");
        for replaced in replaced {
            // Without this it is still refused, by its name.
            let retire = Command::RetireNode { node: *replaced };
            let _ = self.proposer.propose_as_leader(vec![retire], ADMIT_TIMEOUT).await;
        }
        let old_learners: BTreeSet<_> = membership
            .nodes
            .keys()
            .copied()
            .filter(|other| same_name(other) && !voters.contains(other))
            .collect();
        if !old_learners.is_empty() {
            self.core.remove_learners(old_learners).await?;
        }
        Ok(())
    }

    /// Takes nodes out of the group, whatever they are in it.
    pub(crate) async fn take_out(
        &self,
        nodes: BTreeSet<NodeId>,
        membership: &Membership,
    ) -> Result<(), String> {
        take_out(&self.core, nodes, membership).await
    }
}

/// Takes nodes out of the group: voters in one change, then those without a vote in another.
pub(crate) async fn take_out(
    core: &Core,
    nodes: BTreeSet<NodeId>,
    membership: &Membership,
) -> Result<(), String> {
    let [voters] = membership.voters.as_slice() else {
        return Err("the voters are just changing".to_owned());
    };
    let left: BTreeSet<_> = voters.difference(&nodes).copied().collect();
    if left.is_empty() {
        return Err("no voter would be left".to_owned());
    }
    if left.len() < voters.len() {
        core.change_voters(left).await?;
    }
    let followers: BTreeSet<_> =
        nodes.into_iter().filter(|id| membership.nodes.contains_key(id) && !voters.contains(id)).collect();
    if !followers.is_empty() {
        core.remove_learners(followers).await?;
    }
    Ok(())
}

/// Finds out whether this node was removed: from its own state while it is still spoken to, else by asking. Ends
/// when it was, or with the core.
pub(crate) async fn seek_certainty(door: Arc<Door>, node: Arc<Node>) {
    let mut applied = node.replica.applied();
    loop {
        if node.replica.read(|state| state.members().is_retired(node.id)) {
            node.note_removed();
            return;
        }
        let silent = node.heard.silence() >= CERTAINTY_PERIOD && !node.core.roles().is_leader();
        let roles = node.core.roles();
        if silent
            && let Some(address) = whom_to_ask(&door, None, &roles.membership(), node.id)
            && let Ok(reply) = bootstrap::ask_to_join(&door, &address).await
            && reply.removed
        {
            node.note_removed();
            return;
        }
        if !roles.core_runs() {
            return;
        }
        // Every entry may be the one; a look at the state costs next to nothing.
        let _ = tokio::time::timeout(CERTAINTY_PERIOD, applied.changed()).await;
    }
}

/// Has a node that is to vote ask for it until it does. Ends with the core.
pub(crate) async fn seek_vote(door: Arc<Door>, node: Arc<Node>) {
    let Some(identity) = door.kept() else { return };
    let mut roles = node.core.roles();
    let mut told = String::new();
    loop {
        let membership = roles.membership();
        let forming = !identity.founders.is_empty() && membership.nodes.is_empty();
        if forming || membership.is_voter(node.id) {
            if !roles.changed().await {
                return;
            }
            continue;
        }
        if *node.removed.borrow() {
            return;
        }
        if let Some(address) = whom_to_ask(&door, roles.leader(), &membership, node.id) {
            let news = match bootstrap::ask_to_join(&door, &address).await {
                Ok(reply) if !reply.refused.is_empty() => reply.refused,
                Ok(reply) => reply.retry,
                Err(status) => format!("{address}: {}", status.message()),
            };
            if !news.is_empty() && news != told {
                tracing::info!("this node does not vote yet: {news}");
                told = news;
            }
        }
        tokio::time::sleep(SEEK_PAUSE).await;
    }
}

/// The leader, or any other member, or a configured peer.
fn whom_to_ask(door: &Door, leader: Option<NodeId>, membership: &Membership, own: NodeId) -> Option<String> {
    let leader = leader.and_then(|leader| membership.nodes.get(&leader));
    let others: Vec<_> =
        membership.nodes.iter().filter(|(id, _)| **id != own).map(|(_, node)| node).collect();
    let member = leader.or_else(|| others.get(rand::random_range(0..others.len().max(1))).copied());
    match member {
        Some(member) => Some(member.peer.clone()),
        None => door.some_peer(),
    }
}
