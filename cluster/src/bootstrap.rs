//! The first start: how a node gets its identity, and why there is never a second cluster.
//!
//! Job: [`Door`] is who this node is, for the peers' server, from before it is anybody; [`first_start`] finds
//! out who it is to be; [`complete_forming`] lets the founders begin. Neighbours: `members` lets later nodes
//! in, `storage::identity` keeps the answer.
//!
//! # How it goes
//!
//! Every node asks every configured peer who it is (`Identify`).
//!
//! - A peer that is a member of a running cluster: this node joins it (`Join`), it never forms one.
//! - All `expect` nodes answer, know the secret, and nothing was ever agreed with any of them (*pristine*: no
//!   vote, no log): the one with the lowest advertised address, and no other, founds. It (1) makes the
//!   cluster's uuid, and the ids 1..n in the order of the addresses, and keeps both on its disk with the list
//!   of founders; (2) asks each other founder to keep the same (`Adopt`); (3) when every one of them has said
//!   that it did, and only then, writes the first membership (`initialize`), which begins the first election.
//!
//! # Why there is one cluster
//!
//! Two clusters would need two first memberships. One is written only by a designated founder, after all other
//! founders have kept its uuid. Nodes with the same list of peers designate the same one. If lists differ, the
//! two designated nodes need an `Adopt` from at least one node in common; that node keeps one uuid at a time,
//! checks that the list it is shown names it and is as long as it expects, and refuses every Raft call of
//! another uuid. It takes another uuid only from the same founder after the loss of its disk (same address,
//! another incarnation), which has forgotten the first one. Once it has voted or has a log it is not pristine and never adopts again.
//!
//! # What a crash leaves
//!
//! - Of the founder before (1): nothing, all are fresh.
//! - Of the founder between (1) and (3): it starts with an identity, a list of founders and a pristine log, and
//!   goes on at (2); `Adopt` with the same uuid is answered with yes again.
//! - Of the founder between (1) and (3) with the loss of its disk: it comes back fresh; the others are adopted,
//!   but pristine, so they count as fresh: it founds anew, and they adopt the new uuid. They may do so only
//!   because nothing can have been agreed: a first membership needs the votes of a majority, and a vote would
//!   have made them not pristine.
//! - Of another founder before or after (2): the founder asks until it answers. If it lost its disk after
//!   `Adopt` and before (3), its incarnation is another one: the founder asks who is there (`Identify`) and
//!   replaces it in its list before it asks again, which is possible while nothing is initialised.
//! - Of another founder with the loss of its disk after (3): it comes back fresh and finds members: it joins,
//!   under a new id (`members`).
//! - Of the founder with the loss of its disk after a vote was given and before any log was sent: those who
//!   voted are not pristine and have no log. The founder finds members and waits for a leader that cannot be;
//!   it says so. Nothing was ever acknowledged: wiping the other founders' data folders begins anew. This is
//!   the one case that a person has to solve, and it needs a disk lost in the first second of a cluster.

mod door;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use gogate_proto::v1;
use tonic::{Code, Status};

pub(crate) use self::door::{Door, Facts, Whoami, role};
use crate::{
    handle::StartError,
    node::Node,
    state::{NodeId, OLDEST},
    storage::{Identity, codec::NodeRecord},
};

/// Between two rounds of questions to the peers.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// One question.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(1);

/// `Join` includes agreement on a new id and a new membership.
const JOIN_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a start that waits says for what.
const PROGRESS_PERIOD: Duration = Duration::from_secs(5);

/// Returns once this node has an id in a cluster: its own, one that adopted it, or one that it joined.
pub(crate) async fn first_start(door: &Door) -> Result<(), StartError> {
    let facts = &door.facts;
    let others: BTreeSet<&String> = facts.peers.iter().filter(|peer| **peer != facts.advertise).collect();
    if others.len() + 1 < facts.expect {
        return Err(door.error(format!(
            "`cluster.expect` is {}, but `cluster.peers` names {} other nodes",
            facts.expect,
            others.len()
        )));
    }
    let mut progress = Progress::new();
    let mut changed = door.changes.subscribe();
    loop {
        if door.identity().node != 0 {
            return Ok(());
        }
        let invited_to = door.invited_to();
        let asked = others.iter().copied().chain(&invited_to);
        let answers = join_all(asked.map(|peer| identify(door, peer))).await;
        let mut seen = Seen::default();
        for answer in answers {
            seen.sort_in(door, answer)?;
        }
        // Another one each round: who was removed, or is cut off, does not know whom to pass it on to.
        if let Some(member) = seen.members.get(rand::random_range(0..seen.members.len().max(1))) {
            match join(door, member).await? {
                None => return Ok(()),
                Some(reason) => progress.tell(&reason),
            }
        } else if !facts.learner && seen.missing.is_empty() && seen.founders.len() + 1 == facts.expect {
            if found(door, &seen)? {
                return Ok(());
            }
            progress.tell("all founders are there, the one with the lowest address begins");
        } else {
            progress.tell(&seen.awaited(facts));
        }
        tokio::select! {
            () = tokio::time::sleep(ROUND_PAUSE) => {}
            _ = changed.changed() => {}
        }
    }
}

/// Says what a start waits for, when that changes and now and then.
struct Progress {
    told: String,
    at: Instant,
}

// === impl Progress ===

impl Progress {
    fn new() -> Self {
        Self { told: String::new(), at: Instant::now() }
    }

    fn tell(&mut self, what: &str) {
        if self.told != what || self.at.elapsed() > PROGRESS_PERIOD {
            tracing::info!("{what}");
            *self = Self { told: what.to_owned(), at: Instant::now() };
        }
    }
}

/// What the peers answered in one round.
#[derive(Default)]
struct Seen {
    /// The addresses of peers that are part of a running cluster, or were.
    members: Vec<String>,
    /// Those with whom nothing was agreed yet, by incarnation.
    founders: BTreeMap<u64, NodeRecord>,
    /// Who did not answer, and why.
    missing: Vec<String>,
}

// === impl Seen ===

impl Seen {
    fn sort_in(
        &mut self,
        door: &Door,
        (address, answer): (String, Result<v1::IdentifyReply, Status>),
    ) -> Result<(), StartError> {
        let reply = match answer {
            Ok(reply) => reply,
            Err(status) if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied) => {
                return Err(door.error(format!("{address}: {}", status.message())));
            }
            Err(status) => {
                self.missing.push(format!("{address} ({})", reason(&status)));
                return Ok(());
            }
        };
        if reply.incarnation == door.identity().incarnation {
            // One of the configured addresses is this node's own.
            return Ok(());
        }
        if reply.cluster_name != door.facts.cluster_name {
            return Err(door.error(format!(
                "the node at {address} is of cluster `{}`: take it out of `cluster.peers`, or set `cluster.name`",
                reply.cluster_name
            )));
        }
        if reply.node != 0 && !reply.pristine {
            self.members.push(address);
        } else if reply.role == role(false) {
            if reply.name == door.facts.name {
                return Err(door.error(format!("the node at {address} is called `{}` too", reply.name)));
            }
            let v1::IdentifyReply { name, peer, admin, incarnation, .. } = reply;
            self.founders.insert(incarnation, NodeRecord { name, peer, admin, incarnation });
        }
        Ok(())
    }

    fn awaited(&self, facts: &Facts) -> String {
        if facts.expect == 0 {
            return format!("waiting to be let in: `gogate cluster add {}` at any member", facts.advertise);
        }
        let present = self.founders.len() + usize::from(!facts.learner);
        let missing = match self.missing.as_slice() {
            [] => "more are configured than are there".to_owned(),
            missing => format!("no answer from {}", missing.join(", ")),
        };
        format!("{present} of {} nodes are there to form the cluster; {missing}", facts.expect)
    }
}

/// The shortest true thing about a call that failed.
fn reason(status: &Status) -> String {
    match crate::forward::never_sent(status) {
        true => "cannot be reached".to_owned(),
        false => status.message().to_owned(),
    }
}

async fn identify(door: &Door, address: &str) -> (String, Result<v1::IdentifyReply, Status>) {
    let link = door.links.stranger(address);
    let message = v1::IdentifyRequest { cluster_name: door.facts.cluster_name.clone() };
    let reply = link.client().identify(link.request(message, Some(QUESTION_TIMEOUT))).await;
    (address.to_owned(), reply.map(tonic::Response::into_inner))
}

/// Step (1), if this node is the one to do it.
fn found(door: &Door, seen: &Seen) -> Result<bool, StartError> {
    let mut founders: Vec<NodeRecord> = seen.founders.values().cloned().collect();
    founders.push(door.record());
    founders.sort_by(|left, right| left.peer.cmp(&right.peer));
    if let Some(pair) = founders.windows(2).find(|pair| pair[0].peer == pair[1].peer) {
        return Err(door.error(format!("two nodes advertise {}: set `peer.advertise`", pair[0].peer)));
    }
    if founders[0].incarnation != door.identity().incarnation {
        return Ok(false);
    }
    let uuid = new_uuid();
    tracing::info!(%uuid, nodes = founders.len(), "this node founds the cluster");
    door.keep(|identity| {
        if identity.node.is_none() {
            identity.node = Some(1);
            identity.cluster_uuid = Some(uuid);
            identity.founders = (1..).zip(founders).collect();
        }
        Ok(())
    })
    .map_err(|problem: String| door.error(problem))?;
    Ok(true)
}

pub(crate) fn new_uuid() -> String {
    let random: u128 = rand::random();
    // Version 4, variant 1, as RFC 9562 has them.
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Asks a member to let this node in: `None` once it is, otherwise why not yet.
async fn join(door: &Door, address: &str) -> Result<Option<String>, StartError> {
    match ask_to_join(door, address).await {
        Err(status) if status.code() == Code::Unauthenticated => {
            Err(door.error(format!("{address}: {}", status.message())))
        }
        Err(status) => Ok(Some(format!("waiting to join through {address}: {}", reason(&status)))),
        Ok(reply) if !reply.refused.is_empty() => Err(door.error(reply.refused)),
        Ok(reply) if reply.node == 0 => {
            Ok(Some(format!("waiting to join through {address}: {}", reply.retry)))
        }
        Ok(reply) => {
            door.keep(|identity| {
                // It may have been adopted while it waited; what it has become then, it stays.
                if identity.node.is_none() {
                    tracing::info!(node = reply.node, uuid = %reply.cluster_uuid, "this node joins the cluster");
                    identity.node = Some(reply.node);
                    identity.cluster_uuid = Some(reply.cluster_uuid);
                }
                Ok(())
            })
            .map_err(|problem: String| door.error(problem))?;
            Ok(None)
        }
    }
}

/// One `Join`; it also has a learner that is to vote promoted.
pub(crate) async fn ask_to_join(door: &Door, address: &str) -> Result<v1::JoinReply, Status> {
    let record = door.record();
    let message = v1::JoinRequest {
        cluster_name: door.facts.cluster_name.clone(),
        name: record.name,
        peer: record.peer,
        admin: record.admin,
        incarnation: record.incarnation,
        role: role(door.facts.learner).to_owned(),
        passed_on: false,
        format: door.facts.format.into(),
        oldest_format: OLDEST.into(),
    };
    let link = door.links.stranger(address);
    let reply = link.client().join(link.request(message, Some(JOIN_TIMEOUT))).await?;
    Ok(reply.into_inner())
}

/// Steps (2) and (3), by the founder, whenever it starts before they are done. Ends when they are.
pub(crate) async fn complete_forming(door: Arc<Door>, node: Arc<Node>) {
    let mut progress = Progress::new();
    loop {
        let Some(identity) = door.kept() else { return };
        let founds =
            identity.founders.first().is_some_and(|(_, first)| first.incarnation == identity.incarnation);
        if !founds || !node.core.is_pristine().await {
            return;
        }
        let others = &identity.founders[1..];
        let refusals = join_all(others.iter().map(|other| adopt(&door, &identity, other))).await;
        let refusals: Vec<_> = refusals.into_iter().flatten().collect();
        if refusals.is_empty() {
            let nodes = identity.founders.iter().cloned().collect();
            match node.core.initialize(nodes).await {
                Ok(()) => return,
                Err(error) => progress.tell(&format!("the first membership cannot be written: {error}")),
            }
        } else {
            progress.tell(&format!("the cluster is not formed yet: {}", refusals.join("; ")));
        }
        tokio::time::sleep(ROUND_PAUSE).await;
    }
}

/// Has one founder keep the identity of the cluster; why it did not.
async fn adopt(door: &Door, identity: &Identity, (id, record): &(NodeId, NodeRecord)) -> Option<String> {
    let (_, answer) = identify(door, &record.peer).await;
    match answer {
        Err(status) => return Some(format!("`{}` at {}: {}", record.name, record.peer, reason(&status))),
        Ok(reply) if reply.incarnation != record.incarnation && reply.node == 0 => {
            replace_founder(door, *id, &reply);
            return Some(format!("`{}` has lost its disk and is asked again", record.name));
        }
        Ok(_) => {}
    }
    let request = v1::AdoptRequest {
        cluster_name: identity.cluster_name.clone(),
        cluster_uuid: identity.cluster_uuid.clone().unwrap_or_default(),
        founders: identity.founders.iter().map(door::message).collect(),
    };
    let link = door.links.stranger(&record.peer);
    match link.client().adopt(link.request(request, Some(QUESTION_TIMEOUT))).await {
        Ok(reply) => {
            let reply = reply.into_inner();
            (!reply.adopted).then_some(reply.reason)
        }
        Err(status) => Some(format!("`{}` at {}: {}", record.name, record.peer, reason(&status))),
    }
}

/// A founder that lost its disk before anything was agreed is the same founder with another incarnation.
fn replace_founder(door: &Door, id: NodeId, reply: &v1::IdentifyReply) {
    let kept = door.keep(|identity| {
        for (founder, record) in &mut identity.founders {
            if *founder == id && record.peer == reply.peer && record.name == reply.name {
                record.incarnation = reply.incarnation;
            }
        }
        Ok(())
    });
    if let Err(problem) = kept.map_err(|problem: String| problem) {
        tracing::warn!(problem, "the list of founders cannot be kept");
    }
}
