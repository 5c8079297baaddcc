//! A document takes effect everywhere or nowhere (P7): on the leader, from staged to activated or refused.
//!
//! Job: [`Activation`] asks every member whether it can run the staged document, and proposes what follows:
//! all that live are ready, it is activated; one cannot, it is refused in that one's words. [`Readiness`] is a
//! node's own answer, given by whoever compiles.
//!
//! Invariants: only nodes that answer are waited for, and none for longer than [`READY_TIMEOUT`]; nothing is kept but
//! what is staged in the state, so a new leader begins anew; a leader that was deposed proposes in vain.
//! Neighbours: `state::config` stages, `crate::raft::server` passes the question on, the control plane answers.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use gogate_proto::v1;
use tokio::sync::watch;

use crate::{
    node::Node,
    state::{Command, NodeId, Outcome, State},
    storage::codec::NodeRecord,
};

/// How long a node that answers may take to know whether it can run a document.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// How often a node that does not know yet says so: whoever is silent for longer is not alive.
const QUESTION_WAIT: Duration = Duration::from_millis(500);

/// How long a node may take to say anything before it counts as dead, and is not waited for.
const ALIVE_TIMEOUT: Duration = Duration::from_millis(1500);

/// Between two tries to propose what was decided.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// How long a proposal may take.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Characters of a refusal's reason.
const REASON_MAX: usize = 4096;

/// Whether this node can run a staged document: the last that it said.
#[derive(Debug)]
pub(crate) struct Readiness {
    said: watch::Sender<Said>,
}

/// Of which version, and why not.
#[derive(Debug, Clone, Default)]
struct Said {
    version: u64,
    result: Option<Result<(), String>>,
}

/// The leader's side; idle on every other node.
pub(crate) struct Activation {
    node: Arc<Node>,
}

// === impl Readiness ===

impl Readiness {
    pub(crate) fn new() -> Self {
        Self { said: watch::Sender::new(Said::default()) }
    }

    /// Says that this node can run `version`, or why not.
    pub(crate) fn say(&self, version: u64, result: Result<(), String>) {
        self.said.send_replace(Said { version, result: Some(result) });
    }

    /// What this node says of `version`, as soon as it does; none: not within `wait`.
    pub(crate) async fn of(&self, version: u64, wait: Duration) -> Option<Result<(), String>> {
        let mut said = self.said.subscribe();
        let of_it = said.wait_for(|said| said.version == version && said.result.is_some());
        let said = tokio::time::timeout(wait, of_it).await.ok()?.ok()?;
        said.result.clone()
    }
}

// === impl Activation ===

impl Activation {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }

    /// Decides on every document that is staged while this node leads. Ends by being dropped.
    pub(crate) async fn run(self) {
        let mut roles = self.node.core.roles();
        let mut applied = self.node.replica.applied();
        loop {
            let staged = self.node.replica.read(staged);
            if let Some(version) = staged.filter(|_| roles.leading().is_some()) {
                self.decide(version).await;
                continue;
            }
            tokio::select! {
                changed = applied.changed() => if changed.is_err() { return },
                runs = roles.changed() => if !runs { return },
            }
        }
    }

    async fn decide(&self, version: u64) {
        let command = match self.ask_all(version).await {
            Ok(()) => Command::ActivateDocument { version },
            Err(reason) => {
                let reason: String = reason.chars().take(REASON_MAX).collect();
                tracing::warn!(version, %reason, "a document is refused");
                Command::RefuseDocument { version, reason }
            }
        };
        match self.node.proposer.propose_as_leader(vec![command], PROPOSE_TIMEOUT).await.as_deref() {
            Ok([Outcome::Documented { .. }]) => {}
            // Whoever leads now decides; here the state may only be behind.
            _ => tokio::time::sleep(RETRY_PAUSE).await,
        }
    }

    /// Whether all that live can run `version`; else who cannot, and why.
    async fn ask_all(&self, version: u64) -> Result<(), String> {
        let members = self.node.core.roles().membership().nodes;
        let mut answers: FuturesUnordered<_> =
            members.iter().map(|(id, record)| self.ask(*id, record, version)).collect();
        while let Some((name, answer)) = answers.next().await {
            answer.map_err(|reason| format!("{name}: {reason}"))?;
        }
        Ok(())
    }

    /// Asks one member until it knows. One that does not answer is not alive, which is as good as ready.
    async fn ask<'a>(
        &self,
        id: NodeId,
        record: &'a NodeRecord,
        version: u64,
    ) -> (&'a str, Result<(), String>) {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            let answer = if id == self.node.id {
                self.node.readiness.of(version, QUESTION_WAIT).await
            } else {
                match self.ask_once(id, record, version).await {
                    Ok(answer) => answer,
                    Err(problem) => {
                        tracing::info!(node = id, name = record.name, %problem, "not waited for: it does not answer");
                        return (&record.name, Ok(()));
                    }
                }
            };
            if let Some(answer) = answer {
                return (&record.name, answer);
            }
        }
        let reason = format!("it did not know within {} s whether it can run it", READY_TIMEOUT.as_secs());
        (&record.name, Err(reason))
    }

    async fn ask_once(
        &self,
        id: NodeId,
        record: &NodeRecord,
        version: u64,
    ) -> Result<Option<Result<(), String>>, String> {
        let link = self.node.links.member(id, record);
        let wait_ms = u64::try_from(QUESTION_WAIT.as_millis()).unwrap_or(u64::MAX);
        let message = v1::ReadinessRequest { version, wait_ms };
        let mut client = link.client();
        let call = client.readiness(link.request(message, Some(ALIVE_TIMEOUT)));
        match tokio::time::timeout(ALIVE_TIMEOUT, call).await {
            Err(_) => Err("no answer in time".to_owned()),
            Ok(Err(status)) => Err(status.message().to_owned()),
            Ok(Ok(reply)) => Ok(match reply.into_inner() {
                v1::ReadinessReply { ready: true, .. } => Some(Ok(())),
                v1::ReadinessReply { refused, .. } if !refused.is_empty() => Some(Err(refused)),
                v1::ReadinessReply { .. } => None,
            }),
        }
    }
}

/// The longest that a question may be kept waiting on behalf of a peer.
pub(crate) fn wait(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms).min(QUESTION_WAIT)
}

fn staged(state: &State) -> Option<u64> {
    state.documents().staged().map(|staged| staged.version)
}
