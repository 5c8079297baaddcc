//! A follower passes what its callers asked for to the leader: once, as one call for many commands. Heartbeats
//! go the same way, and again to the next leader.
//!
//! Invariant: `NotDone` is returned only if the leader said so or was never reached; a connection that breaks
//! in the middle leaves the outcome unknown.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use gogate_proto::v1;
use tokio::sync::Notify;
use tonic::{Code, Status};

use crate::{
    bugs,
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

/// What leaders were told lately: a beat that was taken must outlive the leader that took it.
#[derive(Debug, Default)]
pub(crate) struct Told {
    lately: Mutex<VecDeque<Telling>>,
    /// A leader answered from another inbox than before.
    other_inbox: Notify,
}

/// Beats with the ages that they had at `at`, and the inbox that took them.
#[derive(Debug)]
struct Telling {
    at: Instant,
    inbox: u64,
    heartbeats: Vec<Heartbeat>,
}

// === impl Told ===

impl Told {
    fn lately(&self) -> MutexGuard<'_, VecDeque<Telling>> {
        self.lately.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets what the same inbox took long ago; what lies in a lost one stays until it is told again.
    fn note(&self, telling: Telling) {
        let mut lately = self.lately();
        let (at, inbox) = (telling.at, telling.inbox);
        if lately.back().is_some_and(|last| last.inbox != inbox) {
            self.other_inbox.notify_one();
        }
        lately.push_back(telling);
        let mut count: usize = lately.iter().map(|telling| telling.heartbeats.len()).sum();
        while let Some(oldest) = lately.front() {
            let ticked = oldest.inbox == inbox && at.duration_since(oldest.at) >= TOLD_FOR;
            if count <= TOLD_MAX && !ticked {
                break;
            }
            count -= oldest.heartbeats.len();
            lately.pop_front();
        }
    }

    /// Takes out the oldest that another inbox than `inbox` took.
    fn take_lost(&self, inbox: u64) -> Option<Telling> {
        let mut lately = self.lately();
        let at = lately.iter().position(|telling| telling.inbox != inbox)?;
        lately.remove(at)
    }

    fn put_back(&self, telling: Telling) {
        self.lately().push_front(telling);
    }
}

// === impl Telling ===

impl Telling {
    fn aged(&self, now: Instant) -> Vec<Heartbeat> {
        let older_ms = u64::try_from(now.duration_since(self.at).as_millis()).unwrap_or(u64::MAX);
        let aged =
            |beat: &Heartbeat| Heartbeat { age_ms: beat.age_ms.saturating_add(older_ms), ..beat.clone() };
        self.heartbeats.iter().map(aged).collect()
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

/// Passes heartbeats on to the leader, and remembers them for the next one.
pub(crate) async fn heartbeats(node: &Node, heartbeats: Vec<Heartbeat>) -> Result<(), ProposeError> {
    let at = Instant::now();
    let inbox = pass_on(node, heartbeats.clone()).await?;
    node.told.note(Telling { at, inbox, heartbeats });
    Ok(())
}

/// Tells every new leader what the one before was told lately and may have died with. Ends with the core.
pub(crate) async fn tell_new_leaders(node: Arc<Node>) {
    let mut roles = node.core.roles();
    loop {
        if roles.leader().is_some() && tell_again(&node).await.is_err() {
            tokio::time::sleep(AGAIN_PAUSE).await;
            continue;
        }
        tokio::select! {
            runs = roles.changed() => if !runs {
                return;
            },
            () = node.told.other_inbox.notified() => {}
        }
    }
}

async fn tell_again(node: &Node) -> Result<(), ProposeError> {
    // Without beats it is only asked which inbox there is.
    let inbox = pass_on(node, Vec::new()).await?;
    while let Some(lost) = node.told.take_lost(inbox) {
        let at = Instant::now();
        let heartbeats = lost.aged(at);
        match pass_on(node, heartbeats.clone()).await {
            Ok(inbox) => node.told.note(Telling { at, inbox, heartbeats }),
            Err(error) => {
                node.told.put_back(lost);
                return Err(error);
            }
        }
    }
    Ok(())
}

/// To the leader, or into the own inbox if that is this node. Returns the inbox's id.
async fn pass_on(node: &Node, heartbeats: Vec<Heartbeat>) -> Result<u64, ProposeError> {
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
        Ok(reply) => Ok(reply.into_inner().inbox),
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

    fn note(told: &Told, at: Instant, inbox: u64, id: &str) {
        let heartbeats = vec![Heartbeat { id: id.into(), epoch: 1, age_ms: 10 }];
        told.note(Telling { at, inbox, heartbeats });
    }

    #[test]
    fn what_a_lost_inbox_took_is_told_again_with_its_age() {
        let told = Told::default();
        let start = Instant::now();
        note(&told, start, 7, "a");
        note(&told, start + Duration::from_secs(2), 8, "b");
        // However long the election took.
        note(&told, start + 2 * TOLD_FOR, 8, "c");
        let lost = told.take_lost(8).expect("inbox 7 was lost");
        let again = lost.aged(start + Duration::from_millis(2500));
        assert_eq!((&*again[0].id, again[0].age_ms), ("a", 2510));
        assert!(told.take_lost(8).is_none());
        told.put_back(lost);
        assert!(told.take_lost(8).is_some(), "it was not told yet");
    }

    #[test]
    fn what_the_leader_had_time_to_tick_with_is_forgotten() {
        let told = Told::default();
        let start = Instant::now();
        note(&told, start, 7, "a");
        note(&told, start + TOLD_FOR, 7, "b");
        let ids: Vec<_> = told.lately().iter().map(|telling| telling.heartbeats[0].id.clone()).collect();
        assert_eq!(ids, ["b".into()]);
    }
}
