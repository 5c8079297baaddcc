//! The replicated state: what every node computes alike from the same log.
//!
//! Job: [`State::apply`] decides what a [`Command`] does; everything else carries it there and back.
//! Invariants: no clock, no randomness, no files, sockets, threads or floats, and no map without an order, so
//! that two nodes with one log hold equal bytes. Time enters as data (`clock`). A refusal is an outcome.
//! Neighbours: `raft` calls `apply` in the order of the log; `handle` reads.

mod clock;
mod command;
mod config;
mod members;
mod registry;

use std::sync::Arc;

pub use clock::{ELAPSED_MS_MAX, LogClock, TICK_PERIOD};
pub use command::{Command, Heartbeat, NewDocument, NewNode, Outcome, Refusal, Registration};
pub use config::{Documents, HISTORY, Version};
pub use members::Members;
pub use registry::{Instance, Registry};
use serde::{Deserialize, Serialize};

/// A node's id: at least 1, given once, never used again.
pub type NodeId = u64;

/// Everything the cluster agrees on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Counts the changes that a reader can see, from 1: `X-Gogate-Index`.
    index: u64,
    clock: LogClock,
    registry: Registry,
    documents: Documents,
    members: Members,
}

/// Something a reader can see changed, at `index`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it stands in the order of all changes.
    pub index: u64,
    /// What changed.
    pub kind: ChangeKind,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ChangeKind {
    /// A new instance.
    Registered(Arc<Instance>),
    /// An instance was replaced by one of the same id; `was` tells which service lost it.
    Updated {
        /// What it was.
        was: Arc<Instance>,
        /// What it is.
        now: Arc<Instance>,
    },
    /// An instance was removed.
    Deregistered(Arc<Instance>),
    /// An instance was not heard from in time.
    Expired(Arc<Instance>),
    /// The document's current version.
    Document(u64),
    /// Everything may have changed: a snapshot was installed.
    Reset,
}

// === impl State ===

impl State {
    /// Carries out one command. `since_tick_ms` is the leader's time since its last tick when it took the
    /// command in, so that a life counted from now is not counted from the tick.
    ///
    /// Must not fail: whatever cannot be done is refused. Called in the order of the log, by one thread.
    pub fn apply(&mut self, command: Command, since_tick_ms: u64, changes: &mut Vec<Change>) -> Outcome {
        let now_ms = self.clock.at(since_tick_ms);
        match command {
            Command::Tick { elapsed_ms, heartbeats } => {
                let now_ms = self.clock.advance(elapsed_ms);
                for heartbeat in &heartbeats {
                    self.registry.renew(heartbeat, now_ms);
                }
                for instance in self.registry.expire(now_ms) {
                    self.index += 1;
                    changes.push(Change { index: self.index, kind: ChangeKind::Expired(instance) });
                }
                Outcome::Ticked
            }
            Command::Register(registration) => {
                self.index += 1;
                let (was, now) = self.registry.register(registration, self.index, now_ms);
                let expires_in_ms = (now.ttl_ms > 0).then_some(now.ttl_ms);
                let created = was.is_none();
                let kind = match was {
                    None => ChangeKind::Registered(now.clone()),
                    Some(was) => ChangeKind::Updated { was, now: now.clone() },
                };
                changes.push(Change { index: self.index, kind });
                Outcome::Registered { instance: now, created, expires_in_ms }
            }
            Command::Deregister { id } => match self.registry.remove(&id) {
                None => Outcome::Refused(Refusal::UnknownInstance { id }),
                Some(instance) => {
                    self.index += 1;
                    changes.push(Change { index: self.index, kind: ChangeKind::Deregistered(instance) });
                    Outcome::Deregistered { index: self.index }
                }
            },
            Command::PutDocument(document) => {
                let documented = self.documents.put(document);
                self.documented(documented, changes)
            }
            Command::RollbackDocument { to, expected, by, at_ms } => {
                let documented = self.documents.rollback(to, expected, by, at_ms);
                self.documented(documented, changes)
            }
            Command::AdmitNode(node) => match self.members.admit(node) {
                Ok(node) => Outcome::Admitted { node },
                Err(refusal) => Outcome::Refused(refusal),
            },
        }
    }

    fn documented(&mut self, result: Result<(u64, bool), Refusal>, changes: &mut Vec<Change>) -> Outcome {
        match result {
            Err(refusal) => Outcome::Refused(refusal),
            Ok((version, changed)) => {
                if changed {
                    self.index += 1;
                    changes.push(Change { index: self.index, kind: ChangeKind::Document(version) });
                }
                Outcome::Documented { version, changed }
            }
        }
    }

    /// The index of the last change.
    #[must_use]
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The instances.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The gateway documents.
    #[must_use]
    pub fn documents(&self) -> &Documents {
        &self.documents
    }

    /// The nodes that were ever part of the cluster.
    #[must_use]
    pub fn members(&self) -> &Members {
        &self.members
    }

    /// How long `instance` lives on unless it is heard from; none: for ever, or it is gone already.
    #[must_use]
    pub fn expires_in_ms(&self, id: &str) -> Option<u64> {
        let deadline_ms = self.registry.deadline_ms(id)?;
        Some(deadline_ms.saturating_sub(self.clock.at(0)))
    }
}
