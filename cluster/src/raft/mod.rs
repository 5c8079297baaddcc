//! Raft, by the `openraft` library: the only folder that names it.
//!
//! Job: [`Core`] is what the rest of the crate sees of consensus. `log_store` and `state_machine` carry out
//! what the library decides, `network` and `server` are its two ends of the wire, `convert` turns its types
//! into the codec's and back. Invariants: elections are never started by the library's own timer
//! (`election` asks first); nothing here retries a write.

mod convert;
mod log_store;
mod network;
mod recovery;
mod server;
mod state_machine;
mod stream;
#[cfg(test)]
mod suite;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    ChangeMembers, Config, ServerState, SnapshotPolicy,
    error::{ClientWriteError, RaftError},
    metrics::{RaftDataMetrics, RaftMetrics, RaftServerMetrics},
};
use tokio::sync::watch;

use self::network::Replication;
pub use self::recovery::{Survivor, recover, survivor};
pub(crate) use self::{
    log_store::{CommittedKeeper, RaftLog},
    network::{Link, Links},
    server::serve,
    state_machine::{Replica, StateMachine},
};
use crate::{
    handle::Timers,
    state::{NodeId, Outcome},
    storage::codec::{LogPosition, NodeRecord},
};

openraft::declare_raft_types!(
    /// What the library is asked to carry.
    pub(crate) TypeConfig:
        D = Proposal,
        R = Outcomes,
        NodeId = NodeId,
        Node = NodeRecord,
        SnapshotData = tokio::fs::File,
);

/// An encoded batch on its way into the log.
#[derive(Debug, Clone)]
pub(crate) struct Proposal {
    pub(crate) batch: Bytes,
    /// Set when the log store is handed the entry: until then it is certain that nothing was written.
    appended: Option<Arc<AtomicBool>>,
}

/// What became of the commands of one entry, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcomes(pub(crate) Vec<Outcome>);

/// Why a batch has no outcomes.
#[derive(Debug)]
pub(crate) enum SubmitError {
    /// This node does not lead, and the batch never reached its log.
    NotLeader,
    /// The batch was in the log when this node lost the lead or stopped: nobody can tell here.
    Unknown,
}

/// The library's core task and the way to ask it.
#[derive(Clone)]
pub(crate) struct Core {
    id: NodeId,
    raft: openraft::Raft<TypeConfig>,
}

/// Who leads and who takes part, as this node knows it; changes can be awaited.
#[derive(Clone)]
pub(crate) struct Roles {
    id: NodeId,
    metrics: watch::Receiver<RaftServerMetrics<NodeId, NodeRecord>>,
    data: watch::Receiver<RaftDataMetrics<NodeId>>,
}

/// Who takes part.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Membership {
    /// The voters; two sets while they change.
    pub(crate) voters: Vec<BTreeSet<NodeId>>,
    /// All nodes, learners included.
    pub(crate) nodes: BTreeMap<NodeId, NodeRecord>,
}

/// How far things are, for status and metrics.
#[derive(Debug, Clone, Default)]
pub(crate) struct Progress {
    pub(crate) term: u64,
    /// Who leads in this term, as far as this node knows; it may be dead.
    pub(crate) leader: Option<NodeId>,
    pub(crate) role: &'static str,
    pub(crate) last_log: u64,
    /// On the leader: how far each node's log matches.
    pub(crate) matched: BTreeMap<NodeId, u64>,
}

/// Log entries kept behind a snapshot: a node that was away for less is caught up without one.
const SNAPSHOT_ENTRIES_DEFAULT: u64 = 50_000;

/// A leader that no majority has answered for so long leads nobody: it takes in no writes, which it could not
/// commit, and no heartbeats. Longer than any election, so that it does not refuse while all is well.
const MAJORITY_SILENT_MS_MAX: u64 = 1000;

/// Entries of one AppendEntries; `log_store` bounds their bytes.
const APPEND_ENTRIES_MAX: u64 = 256;

/// A snapshot travels in pieces of this size.
const SNAPSHOT_CHUNK_BYTES: u64 = 1 << 20;

/// For one piece; the last one includes the installation.
const SNAPSHOT_CHUNK_TIMEOUT_MS: u64 = 30_000;

// === impl Core ===

impl Core {
    /// Starts the core task; the state machine is first brought to the last index that was known committed.
    pub(crate) async fn start(
        id: NodeId,
        cluster: &str,
        timers: &Timers,
        links: Links,
        log: RaftLog,
        mut machine: StateMachine,
    ) -> Result<Self, String> {
        let config = config(cluster, timers).validate().map_err(|error| error.to_string())?;
        log.lead_no_more(id);
        machine.follow(log.durable());
        let network = Replication { links, log: log.durable() };
        let raft = openraft::Raft::new(id, Arc::new(config), network, log, machine)
            .await
            .map_err(|error| error.to_string())?;
        Ok(Self { id, raft })
    }

    /// Hands a batch over. Calls are taken in their order; the answer comes when the entry is applied.
    pub(crate) async fn submit(
        &self,
        batch: Bytes,
    ) -> impl Future<Output = Result<Vec<Outcome>, SubmitError>> + use<> {
        let appended = Arc::new(AtomicBool::new(false));
        let proposal = Proposal { batch, appended: Some(appended.clone()) };
        let answer = self.raft.client_write_ff(proposal).await;
        async move {
            let failed = || match appended.load(Ordering::Acquire) {
                true => SubmitError::Unknown,
                false => SubmitError::NotLeader,
            };
            match answer {
                // The core is gone: it never took the message.
                Err(_) => Err(SubmitError::NotLeader),
                Ok(answer) => match answer.await {
                    Ok(Ok(response)) => Ok(response.data.0),
                    Ok(Err(
                        ClientWriteError::ForwardToLeader(_) | ClientWriteError::ChangeMembershipError(_),
                    )) => Err(failed()),
                    // The core stopped with the entry in its hands.
                    Err(_) => Err(SubmitError::Unknown),
                },
            }
        }
    }

    /// This node.
    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    pub(crate) fn roles(&self) -> Roles {
        Roles { id: self.id, metrics: self.raft.server_metrics(), data: self.raft.data_metrics() }
    }

    /// The index that a read begun now must see applied; confirmed with a majority.
    pub(crate) async fn read_index(&self) -> Result<u64, String> {
        let (index, _) = self.raft.get_read_log_id().await.map_err(|error| error.to_string())?;
        Ok(index.map_or(0, |id| id.index))
    }

    /// Where this node's log ends.
    pub(crate) fn last_log(&self) -> Option<LogPosition> {
        self.raft.data_metrics().borrow().last_log.map(convert::position)
    }

    /// Returns once this node's log reaches `position`; the core's end ends the wait too.
    pub(crate) async fn log_reaches(&self, position: Option<LogPosition>) {
        let reaches = |data: &RaftDataMetrics<NodeId>| data.last_log.map(convert::position) >= position;
        let _ = self.raft.data_metrics().wait_for(reaches).await;
    }

    /// On a leader: how long ago a majority last confirmed it; `None` until one has.
    pub(crate) fn since_quorum(&self) -> Option<Duration> {
        self.raft.data_metrics().borrow().millis_since_quorum_ack.map(Duration::from_millis)
    }

    /// Whether nothing can have been agreed with this node: it has neither voted nor a log.
    pub(crate) async fn is_pristine(&self) -> bool {
        self.raft.is_initialized().await.is_ok_and(|initialized| !initialized)
    }

    /// Begins a campaign at once; only `election` decides when.
    pub(crate) async fn elect(&self) {
        // An error means that the core has stopped, which `stopped` reports.
        let _ = self.raft.trigger().elect().await;
    }

    /// Writes the first membership. Repeating it is harmless.
    pub(crate) async fn initialize(&self, nodes: BTreeMap<NodeId, NodeRecord>) -> Result<(), String> {
        use openraft::error::InitializeError;
        match self.raft.initialize(nodes).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Adds a node that follows without a vote; returns once that is committed.
    pub(crate) async fn add_learner(&self, id: NodeId, node: NodeRecord) -> Result<(), String> {
        self.raft.add_learner(id, node, false).await.map(drop).map_err(|error| error.to_string())
    }

    /// Makes `voters` the voters; whoever was one and is not named leaves altogether.
    pub(crate) async fn change_voters(&self, voters: BTreeSet<NodeId>) -> Result<(), String> {
        let change = ChangeMembers::ReplaceAllVoters(voters);
        self.raft.change_membership(change, false).await.map(drop).map_err(|error| error.to_string())
    }

    /// Takes nodes without a vote out of the group.
    pub(crate) async fn remove_learners(&self, nodes: BTreeSet<NodeId>) -> Result<(), String> {
        let change = ChangeMembers::RemoveNodes(nodes);
        self.raft.change_membership(change, false).await.map(drop).map_err(|error| error.to_string())
    }

    pub(crate) fn progress(&self) -> Progress {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow();
        Progress {
            term: metrics.current_term,
            leader: metrics.current_leader,
            role: role(&metrics),
            last_log: metrics.last_log_index.unwrap_or(0),
            matched: metrics
                .replication
                .iter()
                .flatten()
                .map(|(id, matched)| (*id, matched.map_or(0, |id| id.index)))
                .collect(),
        }
    }

    /// On a leader: returns once the log of `id` is as long as its own; false: it does not lead, or not that node.
    pub(crate) async fn matched(&self, id: NodeId) -> bool {
        let mut metrics = self.raft.metrics();
        loop {
            {
                let metrics = metrics.borrow_and_update();
                let Some(matched) = metrics.replication.as_ref().and_then(|all| all.get(&id)) else {
                    return false;
                };
                if matched.map(|id| id.index) >= metrics.last_log_index {
                    return true;
                }
            }
            if metrics.changed().await.is_err() {
                return false;
            }
        }
    }

    /// Has the state written to the disk as it is now, and what the log need not keep any more removed; returns the
    /// last index that is in it.
    pub(crate) async fn snapshot(&self) -> Result<u64, String> {
        /// A trigger is passed over while a snapshot is being written: then it is pulled again.
        const AGAIN_PERIOD: Duration = Duration::from_millis(100);
        let mut metrics = self.raft.metrics();
        let wanted = metrics.borrow().last_applied.map(|id| id.index);
        let index = |id: Option<openraft::LogId<NodeId>>| id.map(|id| id.index);
        loop {
            if index(metrics.borrow().snapshot) >= wanted {
                return Ok(wanted.unwrap_or(0));
            }
            self.raft.trigger().snapshot().await.map_err(|error| error.to_string())?;
            let written = metrics.wait_for(|metrics| index(metrics.snapshot) >= wanted);
            if let Ok(Err(_)) = tokio::time::timeout(AGAIN_PERIOD, written).await {
                return Err("this node is stopping".to_owned());
            }
        }
    }

    /// Resolves when the core task has ended, with the reason.
    pub(crate) async fn stopped(&self) -> String {
        // These change seldom, the others with every entry; both end with the core.
        let mut roles = self.raft.server_metrics();
        while roles.changed().await.is_ok() {}
        match &self.raft.metrics().borrow().running_state {
            Ok(()) => "the consensus core is gone".to_owned(),
            Err(fatal) => fatal.to_string(),
        }
    }

    pub(crate) async fn shutdown(&self) {
        // The join error says that the core panicked: it is stopped all the same.
        let _ = self.raft.shutdown().await;
    }
}

fn config(cluster: &str, timers: &Timers) -> Config {
    let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let snapshot_entries = timers.snapshot_entries.unwrap_or(SNAPSHOT_ENTRIES_DEFAULT);
    Config {
        cluster_name: cluster.to_owned(),
        heartbeat_interval: millis(timers.heartbeat),
        election_timeout_min: millis(timers.election_min),
        election_timeout_max: millis(timers.election_max),
        enable_tick: true,
        enable_heartbeat: true,
        // `election` campaigns instead, after asking.
        enable_elect: false,
        max_payload_entries: APPEND_ENTRIES_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(snapshot_entries),
        max_in_snapshot_log_to_keep: snapshot_entries,
        replication_lag_threshold: snapshot_entries.saturating_mul(2),
        purge_batch_size: (snapshot_entries / 10).max(1),
        snapshot_max_chunk_size: SNAPSHOT_CHUNK_BYTES,
        install_snapshot_timeout: SNAPSHOT_CHUNK_TIMEOUT_MS,
        ..Config::default()
    }
}

fn role(metrics: &RaftMetrics<NodeId, NodeRecord>) -> &'static str {
    match metrics.state {
        ServerState::Leader => "leader",
        ServerState::Follower => "follower",
        ServerState::Candidate => "candidate",
        ServerState::Learner => "learner",
        ServerState::Shutdown => "stopped",
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Core").field("id", &self.id).finish_non_exhaustive()
    }
}

// === impl Roles ===

impl Roles {
    /// The leader that this node last heard of; it may be dead. Not this node, unless a majority hears it.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let leader = self.metrics.borrow().current_leader.filter(|_| self.core_runs())?;
        (leader != self.id || self.leading().is_some()).then_some(leader)
    }

    /// The term in which this node leads and a majority hears it: the library's own leader goes on taking what
    /// it cannot commit.
    pub(crate) fn leading(&self) -> Option<u64> {
        if !self.is_leader() {
            return None;
        }
        let silent_ms = self.data.borrow().millis_since_quorum_ack;
        silent_ms.is_none_or(|silent_ms| silent_ms < MAJORITY_SILENT_MS_MAX).then(|| self.term())
    }

    /// Whether this node leads by its own account, heard by a majority or not.
    pub(crate) fn is_leader(&self) -> bool {
        let metrics = self.metrics.borrow();
        metrics.current_leader == Some(self.id) && metrics.state == ServerState::Leader && self.core_runs()
    }

    /// What the core last told would stand for ever once it has ended.
    pub(crate) fn core_runs(&self) -> bool {
        self.metrics.has_changed().is_ok()
    }

    pub(crate) fn term(&self) -> u64 {
        self.metrics.borrow().vote.leader_id.term
    }

    pub(crate) fn membership(&self) -> Membership {
        let membership = self.metrics.borrow().membership_config.clone();
        let membership = membership.membership();
        Membership {
            voters: membership.get_joint_config().clone(),
            nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
        }
    }

    /// Waits for something to change, but for a majority's silence; false: the core has ended.
    pub(crate) async fn changed(&mut self) -> bool {
        self.metrics.changed().await.is_ok()
    }
}

// === impl Membership ===

impl Membership {
    pub(crate) fn is_voter(&self, id: NodeId) -> bool {
        self.voters.iter().any(|voters| voters.contains(&id))
    }

    /// Whether `nodes` are a majority of the voters; of both sets while they change.
    pub(crate) fn is_majority(&self, nodes: &BTreeSet<NodeId>) -> bool {
        !self.voters.is_empty()
            && self.voters.iter().all(|voters| voters.intersection(nodes).count() * 2 > voters.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn while_voters_change_both_sets_must_have_a_majority() {
        let set = |ids: &[NodeId]| ids.iter().copied().collect::<BTreeSet<_>>();
        let mut membership = Membership { voters: vec![set(&[1, 2, 3])], nodes: BTreeMap::new() };
        assert!(membership.is_majority(&set(&[1, 3])));
        assert!(!membership.is_majority(&set(&[1, 4])));
        membership.voters.push(set(&[1, 3, 4]));
        assert!(!membership.is_majority(&set(&[1, 2])), "not of the second");
        assert!(membership.is_majority(&set(&[1, 3])));
        assert!(!Membership::default().is_majority(&set(&[1])), "of nobody there is no majority");
    }
}
