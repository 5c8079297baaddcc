//! A follower passes what its callers asked for to the leader: once, as one call for many commands. Heartbeats
//! go the same way, and again to the next leader.
//!
//! Invariant: `NotDone` is returned only if the leader said so or was never reached; a connection that breaks
//! in the middle leaves the outcome unknown.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use gogate_proto::v1;
use tonic::{Code, Status};

use crate::{
    handle::ProposeError,
    node::Node,
    raft::{Link, Roles},
    state::{Command, Heartbeat, NodeId, Outcome},
    storage::codec,
};

/// What became of commands that were passed on.
#[derive(Debug)]
pub(crate) enum Forwarded {
    /// One for each.
    Outcomes(Vec<Outcome>),
    /// Certainly not written; another attempt may succeed.
    NotDone,
    /// Certainly not written, and another attempt will not help.
    Refused(String),
    /// Perhaps written.
    Unknown,
}

/// After another node has been seen to lead, the old leader's answer is waited for this long.
const OLD_LEADER_GRACE: Duration = Duration::from_millis(100);

/// Heartbeats are passed on again soon.
const HEARTBEATS_TIMEOUT: Duration = Duration::from_secs(1);

/// A leader loses at most what it was told since its last tick and what is in the tick on its way.
const TOLD_FOR: Duration = Duration::from_secs(3);

/// Beats that are remembered; of more, the oldest are forgotten.
const TOLD_MAX: usize = 500_000;

/// Between two attempts to tell a new leader.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);

/// What a leader was told lately: a beat that was taken must outlive the leader that took it.
#[derive(Debug, Default)]
pub(crate) struct Told {
    lately: Mutex<VecDeque<(Instant, Vec<Heartbeat>)>>,
}

// === impl Told ===

impl Told {
    fn note(&self, at: Instant, heartbeats: Vec<Heartbeat>) {
        let mut lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        lately.push_back((at, heartbeats));
        let mut count: usize = lately.iter().map(|(_, heartbeats)| heartbeats.len()).sum();
        while let Some((told, heartbeats)) = lately.front() {
            if count <= TOLD_MAX && told.elapsed() < TOLD_FOR {
                break;
            }
            count -= heartbeats.len();
            lately.pop_front();
        }
    }

    /// What was told in the last moments, with the ages that it has by now.
    fn lately(&self, now: Instant) -> Vec<Vec<Heartbeat>> {
        let lately = self.lately.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = lately.iter().filter(|(told, _)| now.duration_since(*told) < TOLD_FOR);
        fresh
            .map(|(told, heartbeats)| {
                let older_ms = u64::try_from(now.duration_since(*told).as_millis()).unwrap_or(u64::MAX);
                let aged = |beat: &Heartbeat| Heartbeat {
                    age_ms: beat.age_ms.saturating_add(older_ms),
                    ..beat.clone()
                };
                heartbeats.iter().map(aged).collect()
            })
            .collect()
    }
}

/// Passes `commands` on and waits for the answer until `deadline`, or until another leader stands.
pub(crate) async fn to_leader(
    link: &Link,
    roles: Roles,
    commands: &[Command],
    deadline: Instant,
) -> Forwarded {
    let timeout = deadline.saturating_duration_since(Instant::now());
    let request = v1::ProposeRequest {
        commands: commands.iter().map(codec::encode).collect(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let mut client = link.client();
    tokio::select! {
        reply = client.propose(link.request(request, Some(timeout))) => match reply {
            Ok(reply) => outcomes(&reply.into_inner()),
            Err(status) => failure(&status),
        },
        () = deposed(roles, link.id()) => Forwarded::Unknown,
    }
}

fn outcomes(reply: &v1::ProposeReply) -> Forwarded {
    let mut outcomes = Vec::with_capacity(reply.outcomes.len());
    for bytes in &reply.outcomes {
        match codec::decode("an outcome", bytes) {
            Ok(outcome) => outcomes.push(outcome),
            // It was written; what it led to cannot be read here.
            Err(_) => return Forwarded::Unknown,
        }
    }
    Forwarded::Outcomes(outcomes)
}

fn failure(status: &Status) -> Forwarded {
    if never_sent(status) {
        return Forwarded::NotDone;
    }
    match status.code() {
        // The codes by which `raft::server` says that nothing was written.
        Code::FailedPrecondition | Code::ResourceExhausted | Code::NotFound | Code::PermissionDenied => {
            Forwarded::NotDone
        }
        Code::InvalidArgument | Code::Unauthenticated | Code::Unimplemented | Code::OutOfRange => {
            Forwarded::Refused(format!("the leader refused it: {}", status.message()))
        }
        _ => Forwarded::Unknown,
    }
}

/// Whether the call failed before there was a connection.
pub(crate) fn never_sent(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<tonic::ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Passes heartbeats on to the leader, and remembers them for the next one.
pub(crate) async fn heartbeats(node: &Node, heartbeats: Vec<Heartbeat>) -> Result<(), ProposeError> {
    let told = Instant::now();
    pass_on(node, heartbeats.clone()).await?;
    node.told.note(told, heartbeats);
    Ok(())
}

/// Tells every new leader what the one before was told lately and may have died with. Ends with the core.
pub(crate) async fn tell_new_leaders(node: Arc<Node>) {
    let mut roles = node.core.roles();
    let mut told = (roles.term(), roles.leader());
    loop {
        let leader = (roles.term(), roles.leader());
        if leader != told && leader.1.is_some() {
            match tell_again(&node).await {
                Ok(()) => told = leader,
                Err(_) => {
                    tokio::time::sleep(AGAIN_PAUSE).await;
                    continue;
                }
            }
        }
        if !roles.changed().await {
            return;
        }
    }
}

async fn tell_again(node: &Node) -> Result<(), ProposeError> {
    for heartbeats in node.told.lately(Instant::now()) {
        pass_on(node, heartbeats).await?;
    }
    Ok(())
}

/// To the leader, or into the own inbox if that is this node.
async fn pass_on(node: &Node, heartbeats: Vec<Heartbeat>) -> Result<(), ProposeError> {
    let not_done = |reason: String| ProposeError::NotDone { reason };
    let roles = node.core.roles();
    if roles.leading().is_some() {
        return node.inbox.put(heartbeats, Instant::now()).map_err(not_done);
    }
    let membership = roles.membership();
    let leader = roles.leader().and_then(|leader| Some((leader, membership.nodes.get(&leader)?)));
    let Some((leader, record)) = leader else { return Err(not_done("no leader is known".to_owned())) };
    let beats = heartbeats
        .into_iter()
        .map(|beat| v1::Heartbeat { id: beat.id.to_string(), epoch: beat.epoch, age_ms: beat.age_ms })
        .collect();
    let link = node.links.member(leader, record);
    let request = link.request(v1::HeartbeatsRequest { heartbeats: beats }, Some(HEARTBEATS_TIMEOUT));
    match link.client().heartbeats(request).await {
        Ok(_) => Ok(()),
        Err(status) => Err(not_done(format!("the leader did not take the heartbeats: {}", status.message()))),
    }
}

/// Resolves some time after a node other than `leader` was seen to lead.
async fn deposed(mut roles: Roles, leader: NodeId) {
    while roles.leader().is_none_or(|now| now == leader) {
        if !roles.changed().await {
            // The core is gone: the deadline ends the wait.
            std::future::pending::<()>().await;
        }
    }
    tokio::time::sleep(OLD_LEADER_GRACE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_told_lately_is_told_again_with_its_age() {
        let told = Told::default();
        let beat = |id: &str| Heartbeat { id: id.into(), epoch: 1, age_ms: 10 };
        let start = Instant::now();
        told.note(start, vec![beat("a"), beat("b")]);
        told.note(start + Duration::from_secs(2), vec![beat("c")]);
        let again = told.lately(start + Duration::from_millis(2500));
        let ages: Vec<_> = again.iter().flatten().map(|beat| (&*beat.id, beat.age_ms)).collect();
        assert_eq!(ages, [("a", 2510), ("b", 2510), ("c", 510)]);
        let again = told.lately(start + Duration::from_millis(3500));
        let ages: Vec<_> = again.iter().flatten().map(|beat| (&*beat.id, beat.age_ms)).collect();
        assert_eq!(ages, [("c", 1510)], "the leader had time to tick with the others");
    }
}
