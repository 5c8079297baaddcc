//! A node that is part of a cluster: everything that runs once it has an identity.
//!
//! Job: owns the parts and their tasks. Tasks, all stopped by `stop` and awaited by [`Tasks::end`]: the batcher,
//! the rounds of reads, the campaigns, the leader's duties, the way in (`members`). Neighbours: `handle` is the
//! callers' side of it, `raft::server` the peers'.

use std::sync::{Arc, Mutex, PoisonError};

use gogate_proto::v1;
use tokio::task::JoinSet;

use crate::{
    batch::Proposer,
    election::{Election, Heard},
    figures::Durations,
    leader::Inbox,
    members::Admission,
    raft::{Core, Links, Replica},
    reads::Reader,
    state::NodeId,
};

/// The parts of a running node.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) build: String,
    pub(crate) core: Core,
    pub(crate) replica: Arc<Replica>,
    pub(crate) links: Links,
    pub(crate) heard: Arc<Heard>,
    pub(crate) election: Arc<Election>,
    pub(crate) proposer: Proposer,
    pub(crate) reader: Reader,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) members: Admission,
    pub(crate) commit: Arc<Durations>,
    pub(crate) fsync: Arc<Durations>,
    pub(crate) report: Mutex<Report>,
}

/// Which document this node says it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) config_version: u64,
    pub(crate) config_error: String,
}

// === impl Node ===

impl Node {
    /// What this node says of itself when it is asked.
    pub(crate) fn status_reply(&self) -> v1::StatusReply {
        let report = self.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        v1::StatusReply {
            node: self.id,
            name: self.name.clone(),
            build: self.build.clone(),
            config_version: report.config_version,
            applied: *self.replica.applied().borrow(),
            state: self.core.progress().role.to_owned(),
            config_error: report.config_error,
        }
    }
}

/// The tasks of a node.
pub(crate) type Tasks = JoinSet<()>;
