//! A follower passes what its callers asked for to the leader: once, as one call for many commands.
//!
//! Invariant: `NotDone` is returned only if the leader said so or was never reached; a connection that breaks
//! in the middle leaves the outcome unknown. Neighbours: `batch` makes the calls, `heartbeats` has its own.

use std::time::{Duration, Instant};

use gogate_proto::v1;
use tonic::{Code, Status};

use crate::{
    bugs,
    raft::{Link, Roles},
    state::{Command, NodeId, Outcome},
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

/// Passes `commands` on and waits for the answer until `deadline`, or until another leader stands.
pub(crate) async fn to_leader(
    link: &Link,
    roles: Roles,
    commands: &[Command],
    deadline: Instant,
) -> Forwarded {
    let timeout = deadline.saturating_duration_since(Instant::now());
    let request = v1::ProposeRequest {
        commands: commands.iter().map(|command| codec::encode_in(command.format(), command)).collect(),
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
    };
    let mut client = link.client();
    tokio::select! {
        reply = client.propose(link.request(request, Some(timeout))) => match reply {
            Ok(reply) => outcomes(&reply.into_inner()),
            Err(status) => failure(&status),
        },
        () = deposed(roles, link.id()) => match bugs::is("forwarded-twice") {
            true => Forwarded::NotDone,
            false => Forwarded::Unknown,
        },
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

/// What a call that failed with this did.
pub(crate) fn failure(status: &Status) -> Forwarded {
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
        _ if bugs::is("forwarded-twice") => Forwarded::NotDone,
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

/// Resolves some time after a node other than `leader` was seen to lead.
pub(crate) async fn deposed(mut roles: Roles, leader: NodeId) {
    while roles.leader().is_none_or(|now| now == leader) {
        if !roles.changed().await {
            // The core is gone: the deadline ends the wait.
            std::future::pending::<()>().await;
        }
    }
    tokio::time::sleep(OLD_LEADER_GRACE).await;
}
