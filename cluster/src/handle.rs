//! This process's part in the group: propose, read, watch, status.
//!
//! Job: the whole public interface of the crate beside the state's own types. Invariants: every call is
//! bounded by its deadline; what may have happened is `Unknown`, what cannot have happened is `NotDone`.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::state::{Change, Command, Heartbeat, NodeId, Outcome, State};

/// What a node needs to take part.
#[derive(Debug)]
pub struct ClusterConfig {
    /// This node's name: stable and unique in the cluster.
    pub name: String,
    /// Where its identity, log and snapshots lie; made if it is not there.
    pub data_dir: PathBuf,
    /// The group's name; a data folder of another one is refused.
    pub cluster_name: String,
    /// How many nodes form the group on the first start; 1 with no peers: a cluster of one.
    pub expect: usize,
    /// `host:port` of all nodes that may form it, this one included or not.
    pub peers: Vec<String>,
    /// Whether this node follows without a vote.
    pub learner: bool,
    /// Where the gRPC service listens: a bound listener, so that a test can use port 0.
    pub listener: std::net::TcpListener,
    /// `host:port` by which the other nodes reach it.
    pub advertise: String,
    /// `host:port` of its admin API, told to whoever asks for the cluster's status.
    pub admin: String,
    /// Shared by all nodes; none: every peer is believed.
    pub secret: Option<String>,
    /// Told by `Status`.
    pub build: String,
    /// Timers; the defaults are the design's.
    pub timers: Timers,
}

/// Every timer of the group, so that a test may have others.
#[derive(Debug, Clone)]
pub struct Timers {
    /// Between the leader's heartbeats. 75 ms.
    pub heartbeat: Duration,
    /// The library's election timeout, from. 300 ms.
    pub election_min: Duration,
    /// The library's election timeout, to: also how long a vote is refused to others. 400 ms.
    pub election_max: Duration,
    /// The supervisor's silence before it asks for votes, from. 400 ms.
    pub campaign_min: Duration,
    /// The supervisor's silence before it asks for votes, to. 700 ms.
    pub campaign_max: Duration,
}

/// Where a node stands, for people and for `/metrics`.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// The cluster's uuid.
    pub cluster_uuid: String,
    /// This node.
    pub node: NodeId,
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// The current term.
    pub term: u64,
    /// The log index that the state has reached.
    pub applied: u64,
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
}

/// Why a node could not take part. Each message is one line that names the thing and what to do.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data folder cannot be used.
    #[error("data folder {path}: {problem}")]
    DataDir {
        /// Which folder.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The store is damaged; it is left as it is, for inspection.
    #[error(
        "the store in {path} is damaged: {problem}; it is never served: move it away and start again, and the node joins anew from its peers"
    )]
    Damaged {
        /// Which file or folder.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// The peers do not let it in.
    #[error("cannot join cluster `{cluster}`: {problem}")]
    Bootstrap {
        /// Which cluster.
        cluster: String,
        /// What they said and what to do.
        problem: String,
    },
}

/// What became of a proposal whose outcome is not an [`Outcome`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was written: there is no leader to write to, or this node is shedding.
    #[error("{reason}; nothing was written")]
    NotDone {
        /// Why.
        reason: String,
    },
    /// It may have been written, or may yet be (P5).
    #[error("no answer within {waited_ms} ms: it may or may not have been written")]
    Unknown {
        /// How long was waited.
        waited_ms: u64,
    },
}

/// Why a read cannot be linearizable now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}; ask with `stale` for what this node last knew")]
pub struct ReadError {
    /// Why.
    pub reason: String,
}

/// This process's part in the group. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<()>,
}

/// Changes as they are applied here, from the moment of subscription.
pub struct Changes {
    inner: tokio::sync::broadcast::Receiver<Arc<[Change]>>,
}

// === impl Timers ===

impl Default for Timers {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            heartbeat: ms(75),
            election_min: ms(300),
            election_max: ms(400),
            campaign_min: ms(400),
            campaign_max: ms(700),
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Opens the store, serves the peers, forms the group or joins it. Returns once this node has its id and
    /// its last known state is readable; it does not wait for a leader.
    pub async fn start(config: ClusterConfig) -> Result<Self, StartError> {
        todo!()
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        todo!()
    }

    /// Has `command` agreed on: acknowledged once it is on a majority's disks and applied by the leader. A
    /// follower passes it on once, inside `timeout`.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        todo!()
    }

    /// Returns once this node's state holds every write that was acknowledged before the call.
    pub async fn linearizable(&self, timeout: Duration) -> Result<(), ReadError> {
        todo!()
    }

    /// Looks at what this node last knew. `look` runs under a lock: it must be short, and copy what it needs.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        todo!()
    }

    /// Every change that is applied here from now on. A subscriber that falls too far behind gets `Reset`.
    pub fn changes(&self) -> Changes {
        todo!()
    }

    /// Passes on to the leader which instances were heard from; it puts them into its next tick.
    pub async fn forward_heartbeats(&self, heartbeats: Vec<Heartbeat>) -> Result<(), ProposeError> {
        todo!()
    }

    /// Where this node stands.
    pub fn status(&self) -> Status {
        todo!()
    }

    /// Tells what this node answers when it is asked which document it runs.
    pub fn report(&self, config_version: u64, config_error: String) {
        todo!()
    }

    /// Asks every member, this one too, what it runs; `None` for those that do not answer in time.
    pub async fn member_reports(&self, timeout: Duration) -> Vec<(Member, Option<MemberReport>)> {
        todo!()
    }

    /// Resolves when the consensus core has stopped by itself, with the reason: the process must end.
    pub async fn stopped(&self) -> String {
        todo!()
    }

    /// Stops taking part: the core, the gRPC service, the log writer; returns when the store is closed.
    pub async fn shutdown(&self) {
        todo!()
    }
}

// === impl Changes ===

impl Changes {
    /// The next changes, all of one log entry; none: the cluster was shut down.
    pub async fn next(&mut self) -> Option<Arc<[Change]>> {
        todo!()
    }
}
