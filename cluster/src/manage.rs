//! What an operator asks of the group: let a node in, have it vote, take it out, hand the leadership over.
//!
//! Job: [`carry_out`] brings a [`Change`] to the leader from any node, once for each leader; the leader does it
//! here. Invariants: one change at a time; none leaves the group without a majority of voters that answer; a
//! node that leads is never taken out, it hands over first. A removal is a command first (`RetireNode`), so
//! that it is final, that the removed node hears of it, and that the next leader finishes what this one began.
//! Neighbours: `members` lets in whoever asks by itself, `batch` holds still during a hand-over, `election`
//! campaigns for it.
//!
//! # Handing over
//!
//! Raft's own way (thesis, 3.10). The leader (1) waits for the other's log to be nearly as long as its own; (2)
//! lets nothing new into its log, and waits until what is on its way is answered, so that no answer is lost;
//! (3) waits until the other's log is as long as its own; (4) asks it to campaign at once (`Campaign`). Those it
//! asks for votes make way, the old leader among them (`raft::server`). What callers ask for meanwhile waits
//! and goes to the new leader. When nothing comes of it the old one leads on, or there is an election as after
//! a failure; nothing is lost either way.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use gogate_proto::v1::{self, manage_request};
use tonic::Code;

use crate::{
    bootstrap,
    forward::never_sent,
    node::Node,
    raft::Membership,
    state::{Command, NewNode, NodeId, Outcome},
    storage::codec::NodeRecord,
};

/// Something to be done by the leader.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Another node is to lead; none: whichever is best.
    Transfer(Option<NodeId>),
    /// Lets the node in that waits at `address`.
    Add { address: String, learner: bool },
    /// A node that follows is to vote.
    Promote(NodeId),
    /// Takes a node out for good.
    Remove(NodeId),
}

/// Why a change of the group was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManageError {
    /// There is no such node.
    #[error("{0}")]
    UnknownNode(String),
    /// It would do harm, or makes no sense as things are.
    #[error("{0}; nothing was changed")]
    Refused(String),
    /// Nothing was changed; it may be asked for again.
    #[error("{0}; nothing was changed")]
    NotDone(String),
    /// It may have been done, or may yet be.
    #[error("{0}: it may have been done, or may yet be: look at the cluster's status")]
    Unknown(String),
}

/// What one node made of a change.
enum Tried {
    Done(NodeId),
    Failed(ManageError),
    /// Nothing was changed, and another node leads or will.
    Elsewhere(String),
}

/// A member has this long to say how it is.
const STATUS_TIMEOUT: Duration = Duration::from_millis(500);

/// How far behind a voter may be when nothing new is let into the log for its sake.
const TRANSFER_LAG_MAX: u64 = 2_000;

/// How long nothing new may be let into the log.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// For the call by which the leadership goes over; the campaign has its own, shorter bound.
const CAMPAIGN_TIMEOUT: Duration = Duration::from_millis(400);

/// Between two attempts, or two looks at something that others do.
const AGAIN_PAUSE: Duration = Duration::from_millis(20);

/// How long a living node is given to hear of its own removal.
const FAREWELL: Duration = Duration::from_secs(1);

const MOVED: &str = "this node does not lead";

// === Any node ===

/// Has the leader make a change, and returns the node that it was about.
pub(crate) async fn carry_out(node: &Node, change: Change, timeout: Duration) -> Result<NodeId, ManageError> {
    let deadline = Instant::now() + timeout;
    let mut roles = node.core.roles();
    let mut last = "no leader is known: too few nodes can reach each other".to_owned();
    loop {
        let tried = match roles.leader() {
            Some(leader) if leader == node.id => lead(node, &change, deadline).await,
            Some(leader) => pass_on(node, leader, &change, deadline).await,
            None => Tried::Elsewhere(last.clone()),
        };
        match tried {
            Tried::Done(id) => {
                let left = deadline.saturating_duration_since(Instant::now());
                // Done it is, seen here or not.
                let _ = tokio::time::timeout(left, seen(node, &change, id)).await;
                return Ok(id);
            }
            Tried::Failed(error) => return Err(error),
            Tried::Elsewhere(reason) => last = reason,
        }
        if Instant::now() + AGAIN_PAUSE >= deadline {
            return Err(ManageError::NotDone(last));
        }
        let pause = tokio::time::timeout(AGAIN_PAUSE, roles.changed());
        if pause.await == Ok(false) {
            return Err(ManageError::NotDone("this node is stopping".to_owned()));
        }
    }
}

/// Returns once this node knows of the change as well: who asks it next finds what it was told.
async fn seen(node: &Node, change: &Change, id: NodeId) {
    let mut roles = node.core.roles();
    loop {
        let membership = roles.membership();
        let seen = match change {
            Change::Transfer(_) => roles.leader() == Some(id),
            Change::Add { .. } => membership.nodes.contains_key(&id),
            Change::Promote(_) => membership.is_voter(id),
            // A node that is out hears of nothing any more.
            Change::Remove(_) => id == node.id || !membership.nodes.contains_key(&id),
        };
        if seen || !roles.changed().await {
            return;
        }
    }
}

async fn pass_on(node: &Node, leader: NodeId, change: &Change, deadline: Instant) -> Tried {
    let membership = node.core.roles().membership();
    let Some(record) = membership.nodes.get(&leader) else {
        return Tried::Elsewhere(format!("node {leader}, the leader, is not known here yet"));
    };
    let link = node.links.member(leader, record);
    let timeout = deadline.saturating_duration_since(Instant::now());
    let message = v1::ManageRequest {
        change: Some(match change.clone() {
            Change::Transfer(to) => manage_request::Change::Transfer(to.unwrap_or(0)),
            Change::Add { address, learner } => manage_request::Change::Add(v1::Invitation {
                address,
                role: bootstrap::role(learner).to_owned(),
            }),
            Change::Promote(id) => manage_request::Change::Promote(id),
            Change::Remove(id) => manage_request::Change::Remove(id),
        }),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let at = link.address().to_owned();
    match link.client().manage(link.request(message, Some(timeout))).await {
        Ok(reply) => Tried::from(reply.into_inner()),
        Err(status) if never_sent(&status) => {
            Tried::Elsewhere(format!("node {leader}, the leader, cannot be reached at {at}"))
        }
        Err(status) => match status.code() {
            Code::Unauthenticated | Code::PermissionDenied | Code::NotFound | Code::Unimplemented => {
                Tried::Failed(ManageError::NotDone(format!("the leader at {at}: {}", status.message())))
            }
            _ => Tried::Failed(ManageError::Unknown(format!("the leader at {at} did not answer"))),
        },
    }
}

/// Answers a node that passed a change on.
pub(crate) async fn answer(node: &Node, request: v1::ManageRequest) -> v1::ManageReply {
    let change = match request.change {
        Some(manage_request::Change::Transfer(to)) => Change::Transfer((to > 0).then_some(to)),
        Some(manage_request::Change::Add(v1::Invitation { address, role })) => {
            Change::Add { address, learner: role == bootstrap::role(true) }
        }
        Some(manage_request::Change::Promote(id)) => Change::Promote(id),
        Some(manage_request::Change::Remove(id)) => Change::Remove(id),
        None => {
            let not_done = "update the leader before the others: it does not know this change".to_owned();
            return v1::ManageReply { not_done, ..v1::ManageReply::default() };
        }
    };
    let timeout = Duration::from_millis(request.timeout_ms).min(TIMEOUT_MAX);
    lead(node, &change, Instant::now() + timeout).await.into()
}

/// The longest that another node may ask to wait.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);

// === The leader ===

async fn lead(node: &Node, change: &Change, deadline: Instant) -> Tried {
    if node.core.roles().leading().is_none() {
        return Tried::Elsewhere(MOVED.to_owned());
    }
    let done = match change {
        Change::Transfer(to) => transfer(node, *to, deadline).await,
        Change::Add { address, learner } => add(node, address, *learner, deadline).await,
        Change::Promote(id) => promote(node, *id, deadline).await,
        Change::Remove(id) if *id == node.id => {
            // Whoever leads then takes this node out.
            match transfer(node, None, deadline).await {
                Ok(leader) => return Tried::Elsewhere(format!("node {leader} leads now")),
                Err(ManageError::Refused(_)) => Err(ManageError::Refused(format!(
                    "node {id} is the last voter, and a cluster without one decides nothing"
                ))),
                Err(error) => Err(error),
            }
        }
        Change::Remove(id) => remove(node, *id, deadline).await,
    };
    match done {
        Ok(id) => Tried::Done(id),
        Err(error) => Tried::Failed(error),
    }
}

fn member<'a>(node: &Node, membership: &'a Membership, id: NodeId) -> Result<&'a NodeRecord, ManageError> {
    membership.nodes.get(&id).ok_or_else(|| {
        let gone = node.replica.read(|state| state.members().knows(id));
        ManageError::UnknownNode(match gone {
            true => format!("node {id} is no member any more"),
            false => format!("no node has the id {id}"),
        })
    })
}

fn busy() -> ManageError {
    ManageError::Refused("another change of the members is under way: ask again when it is done".to_owned())
}

/// The voters, unless they are just changing.
fn settled(membership: &Membership) -> Result<&BTreeSet<NodeId>, ManageError> {
    match membership.voters.as_slice() {
        [voters] => Ok(voters),
        _ => Err(busy()),
    }
}

/// What those of `nodes` say that answer.
pub(crate) async fn ask(
    node: &Node,
    membership: &Membership,
    nodes: impl IntoIterator<Item = NodeId>,
) -> BTreeMap<NodeId, v1::StatusReply> {
    let asked = nodes.into_iter().filter_map(|id| Some((id, membership.nodes.get(&id)?)));
    let answers = join_all(asked.map(|(id, record)| async move {
        if id == node.id {
            return Some((id, node.status_reply()));
        }
        let link = node.links.member(id, record);
        let mut client = link.client();
        let call = client.status(link.request(v1::StatusRequest {}, Some(STATUS_TIMEOUT)));
        let reply = tokio::time::timeout(STATUS_TIMEOUT, call).await.ok()?.ok()?;
        Some((id, reply.into_inner()))
    }));
    answers.await.into_iter().flatten().collect()
}

fn names(membership: &Membership, nodes: impl IntoIterator<Item = NodeId>) -> String {
    let name = |id| membership.nodes.get(&id).map_or_else(String::new, |node| format!(" (`{}`)", node.name));
    let all: Vec<_> = nodes.into_iter().map(|id| format!("node {id}{}", name(id))).collect();
    all.join(", ")
}

// === Handing over ===

async fn transfer(node: &Node, to: Option<NodeId>, deadline: Instant) -> Result<NodeId, ManageError> {
    let membership = node.core.roles().membership();
    if let Some(to) = to {
        member(node, &membership, to)?;
        if to == node.id {
            return Ok(to);
        }
        if !membership.is_voter(to) {
            return Err(ManageError::Refused(format!("node {to} has no vote: promote it first")));
        }
    }
    let Some(_one_at_a_time) = node.members.claim_by(deadline).await else { return Err(busy()) };
    let membership = node.core.roles().membership();
    let others = settled(&membership)?.iter().copied().filter(|id| *id != node.id);
    let others: Vec<_> = others.filter(|id| to.is_none_or(|to| to == *id)).collect();
    if others.is_empty() {
        return Err(ManageError::Refused("there is no other voter to lead".to_owned()));
    }
    let answers = ask(node, &membership, others.iter().copied()).await;
    let matched = node.core.progress().matched;
    let mut candidates: Vec<_> = answers
        .iter()
        .map(|(id, status)| (status.draining, std::cmp::Reverse(matched.get(id).copied()), *id))
        .collect();
    candidates.sort_unstable();
    let mut why = format!("no answer from {}", names(&membership, others));
    for (_, _, id) in candidates {
        match hand_over(node, &membership, id, deadline).await {
            Ok(()) => return Ok(id),
            Err(problem) => why = problem,
        }
        if node.core.roles().leading().is_none() {
            return Err(ManageError::Unknown(why));
        }
    }
    Err(ManageError::NotDone(why))
}

/// Steps (1) to (4) of the module's documentation.
async fn hand_over(
    node: &Node,
    membership: &Membership,
    to: NodeId,
    deadline: Instant,
) -> Result<(), String> {
    let Some(record) = membership.nodes.get(&to) else { return Err(format!("node {to} is gone")) };
    loop {
        let progress = node.core.progress();
        let lag = progress.last_log.saturating_sub(progress.matched.get(&to).copied().unwrap_or(0));
        if lag <= TRANSFER_LAG_MAX {
            break;
        }
        if Instant::now() + AGAIN_PAUSE >= deadline {
            return Err(format!("node {to} is {lag} entries behind"));
        }
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
    let mut roles = node.core.roles();
    let term = roles.term();
    let begun = Instant::now();
    let paused = node.proposer.pause();
    let still = async {
        paused.quiet().await;
        node.core.matched(to).await
    };
    match tokio::time::timeout(PAUSE_MAX, still).await {
        Ok(true) => {}
        Ok(false) => return Err(MOVED.to_owned()),
        Err(_) => return Err(format!("node {to} did not catch up in {} ms", PAUSE_MAX.as_millis())),
    }
    let last_log = node.core.last_log();
    let message = v1::CampaignRequest {
        term,
        last_log: last_log.map(|last| v1::LogId { term: last.term, node: last.node, index: last.index }),
    };
    let link = node.links.member(to, record);
    let reply = link.client().campaign(link.request(message, Some(CAMPAIGN_TIMEOUT))).await;
    let refused = match reply {
        Ok(reply) => reply.into_inner().refused,
        Err(status) => status.message().to_owned(),
    };
    let taken_over = async {
        while roles.leader() != Some(to) && roles.changed().await {}
        roles.leader() == Some(to)
    };
    // It says that it leads, or it may: this node hears of it with the first entries.
    let patience = if refused.is_empty() { CAMPAIGN_TIMEOUT } else { Duration::ZERO };
    if tokio::time::timeout(patience, taken_over).await == Ok(true) {
        let took_ms = begun.elapsed().as_millis();
        tracing::info!(to, took_ms, "the leadership was handed over");
        return Ok(());
    }
    Err(format!("node {to} did not take over: {refused}"))
}

// === Members ===

async fn add(node: &Node, address: &str, learner: bool, deadline: Instant) -> Result<NodeId, ManageError> {
    let refused = |problem: String| Err(ManageError::Refused(format!("the node at {address} {problem}")));
    let Some(identity) = node.members.identity() else {
        return Err(ManageError::NotDone("this node is stopping".to_owned()));
    };
    let link = node.links.stranger(address);
    let message = v1::IdentifyRequest { cluster_name: node.members.cluster_name().to_owned() };
    let reply = match link.client().identify(link.request(message, Some(STATUS_TIMEOUT))).await {
        Ok(reply) => reply.into_inner(),
        Err(status) if never_sent(&status) => {
            return refused(
                "does not answer: start it first, and give the address of its peer port".to_owned(),
            );
        }
        Err(status) => return refused(format!("says: {}", status.message())),
    };
    if reply.cluster_name != node.members.cluster_name() {
        return refused(format!(
            "is of cluster `{}`, this is `{}`",
            reply.cluster_name,
            node.members.cluster_name()
        ));
    }
    if reply.role != bootstrap::role(learner) {
        return refused(format!(
            "is to be a {}, not a {}: that is set in its node file, as cluster.role",
            reply.role,
            bootstrap::role(learner)
        ));
    }
    let known = || {
        let nodes = node.core.roles().membership().nodes;
        nodes.into_iter().find(|(_, record)| record.incarnation == reply.incarnation).map(|(id, _)| id)
    };
    if let Some(id) = known() {
        return if learner { Ok(id) } else { promote(node, id, deadline).await };
    }
    if node.replica.read(|state| state.members().is_retired(reply.node))
        && identity.cluster_uuid == reply.cluster_uuid
    {
        return refused(format!(
            "was node {} and was removed: move its data folder away and start it again",
            reply.node
        ));
    }
    if reply.node != 0 && !(reply.pristine && reply.cluster_uuid != identity.cluster_uuid) {
        return refused("is part of a cluster already".to_owned());
    }
    let message = v1::InviteRequest {
        cluster_name: node.members.cluster_name().to_owned(),
        address: node.members.address().unwrap_or_default(),
    };
    match link.client().invite(link.request(message, Some(STATUS_TIMEOUT))).await {
        Err(status) => return refused(format!("says: {}", status.message())),
        Ok(reply) if !reply.get_ref().refused.is_empty() => return refused(reply.into_inner().refused),
        Ok(_) => {}
    }
    let mut roles = node.core.roles();
    loop {
        if let Some(id) = known() {
            return Ok(id);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        match tokio::time::timeout(left, roles.changed()).await {
            Ok(true) => {}
            Ok(false) => return Err(ManageError::Unknown("this node is stopping".to_owned())),
            Err(_) => {
                return Err(ManageError::Unknown(format!(
                    "{address} was invited and has not joined in time"
                )));
            }
        }
    }
}

async fn promote(node: &Node, id: NodeId, deadline: Instant) -> Result<NodeId, ManageError> {
    loop {
        let membership = node.core.roles().membership();
        let record = member(node, &membership, id)?;
        if membership.is_voter(id) {
            return Ok(id);
        }
        if !ask(node, &membership, [id]).await.contains_key(&id) {
            return Err(ManageError::Refused(format!(
                "{} does not answer: a voter that is away only weakens the group",
                names(&membership, [id])
            )));
        }
        let problem = match node.members.claim() {
            None => "another change of the members is under way".to_owned(),
            Some(_one_at_a_time) => {
                let left = deadline.saturating_duration_since(Instant::now());
                let promoted = node.members.promote(id, &record.name, &membership);
                match tokio::time::timeout(left, promoted).await {
                    Ok(Ok(())) => return Ok(id),
                    Ok(Err(problem)) => problem,
                    Err(_) => {
                        return Err(ManageError::Unknown("no majority agreed in time".to_owned()));
                    }
                }
            }
        };
        if node.core.roles().leading().is_none() {
            return Err(ManageError::Unknown("this node leads no longer".to_owned()));
        }
        if Instant::now() + AGAIN_PAUSE >= deadline {
            return Err(ManageError::NotDone(format!("node {id} does not vote yet: {problem}")));
        }
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
}

async fn remove(node: &Node, id: NodeId, deadline: Instant) -> Result<NodeId, ManageError> {
    let Some(_one_at_a_time) = node.members.claim_by(deadline).await else { return Err(busy()) };
    let membership = node.core.roles().membership();
    member(node, &membership, id)?;
    let voters = settled(&membership)?;
    if voters.contains(&id) {
        let left: BTreeSet<_> = voters.iter().copied().filter(|voter| *voter != id).collect();
        let alive: BTreeSet<_> = ask(node, &membership, left.iter().copied()).await.into_keys().collect();
        if alive.len() * 2 <= left.len() {
            return Err(ManageError::Refused(format!(
                "without node {id} there are {} voters, and only {} of them answer, which is no majority: start {} first, or remove it",
                left.len(),
                alive.len(),
                names(&membership, left.difference(&alive).copied())
            )));
        }
    }
    let mut commands = vec![Command::RetireNode { node: id }];
    // A founder's id may not be noted yet, which happens within the first second of a cluster.
    if let Some(record) =
        membership.nodes.get(&id).filter(|_| !node.replica.read(|state| state.members().knows(id)))
    {
        let new = NewNode { name: record.name.clone(), incarnation: record.incarnation, id: Some(id) };
        commands.insert(0, Command::AdmitNode(new));
    }
    let left = || deadline.saturating_duration_since(Instant::now());
    match node.proposer.propose_as_leader(commands, left()).await {
        Ok(outcomes) => match outcomes.last() {
            Some(Outcome::Retired { .. }) => {}
            other => return Err(ManageError::NotDone(format!("the removal was refused: {other:?}"))),
        },
        Err(crate::handle::ProposeError::NotDone { reason }) => return Err(ManageError::NotDone(reason)),
        Err(error) => return Err(ManageError::Unknown(error.to_string())),
    }
    // From here on it is decided, and the next leader would finish it.
    farewell(node, &membership, id, deadline).await;
    loop {
        let membership = node.core.roles().membership();
        if !membership.nodes.contains_key(&id) {
            tracing::info!(node = id, "a node was removed");
            return Ok(id);
        }
        let change = node.members.take_out(BTreeSet::from([id]), &membership);
        let problem = match tokio::time::timeout(left(), change).await {
            Ok(Ok(())) => continue,
            Ok(Err(problem)) => problem,
            Err(_) => "no majority agreed in time".to_owned(),
        };
        if Instant::now() + AGAIN_PAUSE >= deadline {
            return Err(ManageError::Unknown(format!("node {id} is to go: {problem}")));
        }
        tokio::time::sleep(AGAIN_PAUSE).await;
    }
}

/// Gives a living node the time to hear from the log itself that it is removed: afterwards it hears nothing.
async fn farewell(node: &Node, membership: &Membership, id: NodeId, deadline: Instant) {
    let told = *node.replica.applied().borrow();
    let until = deadline.min(Instant::now() + FAREWELL);
    while Instant::now() < until {
        match ask(node, membership, [id]).await.get(&id) {
            Some(status) if status.applied < told => tokio::time::sleep(AGAIN_PAUSE).await,
            _ => return,
        }
    }
}

// === impl ManageError ===

impl ManageError {
    /// Why, without what follows from it.
    fn reason(&self) -> &str {
        let (Self::UnknownNode(reason)
        | Self::Refused(reason)
        | Self::NotDone(reason)
        | Self::Unknown(reason)) = self;
        reason
    }
}

// === impl Tried ===

impl From<v1::ManageReply> for Tried {
    fn from(reply: v1::ManageReply) -> Self {
        let v1::ManageReply { node, unknown, refused, not_done, elsewhere, unclear } = reply;
        if !elsewhere.is_empty() {
            return Self::Elsewhere(elsewhere);
        }
        let failures = [
            ManageError::UnknownNode(unknown),
            ManageError::Refused(refused),
            ManageError::NotDone(not_done),
            ManageError::Unknown(unclear),
        ];
        match failures.into_iter().find(|failure| !failure.reason().is_empty()) {
            Some(failure) => Self::Failed(failure),
            None => Self::Done(node),
        }
    }
}

impl From<Tried> for v1::ManageReply {
    fn from(tried: Tried) -> Self {
        let reply = Self::default();
        match tried {
            Tried::Done(node) => Self { node, ..reply },
            Tried::Elsewhere(elsewhere) => Self { elsewhere, ..reply },
            Tried::Failed(ManageError::UnknownNode(unknown)) => Self { unknown, ..reply },
            Tried::Failed(ManageError::Refused(refused)) => Self { refused, ..reply },
            Tried::Failed(ManageError::NotDone(not_done)) => Self { not_done, ..reply },
            Tried::Failed(ManageError::Unknown(unclear)) => Self { unclear, ..reply },
        }
    }
}
