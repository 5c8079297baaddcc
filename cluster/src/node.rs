//! A node that is part of a cluster: everything that runs once it has an identity.
//!
//! Job: owns the parts and their tasks. Tasks, all stopped by `stop` and awaited by [`Tasks::end`]: the batcher,
//! the rounds of reads, the campaigns, the leader's duties, the decisions on documents, the raises of the format, the
//! news for new leaders (`heartbeats`), the first
//! start's end (`bootstrap`), the way to a vote and out of the group (`members`), the peers' server. Neighbours: `handle` is the
//! callers' side of it, `raft::server` the peers'.

use std::{
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use gogate_proto::v1;
use tokio::{sync::watch, task::JoinSet};

use crate::{
    activation::{Activation, Readiness},
    batch::{Batcher, Proposer},
    bootstrap::{self, Door, Facts},
    election::{Election, Heard},
    figures::Durations,
    handle::{StartError, Timers},
    heartbeats::{self, Inbox, Told},
    leader::Duties,
    members::{self, Admission},
    raft::{CommittedKeeper, Core, Links, RaftLog, Replica, StateMachine},
    reads::{Reader, Rounds},
    state::NodeId,
    storage::{Formats, SledLog, Snapshots},
    upgrade::Upgrade,
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
    pub(crate) told: Told,
    pub(crate) members: Admission,
    pub(crate) commit: Arc<Durations>,
    pub(crate) fsync: Arc<Durations>,
    pub(crate) report: Mutex<Report>,
    pub(crate) readiness: Readiness,
    pub(crate) committed: CommittedKeeper,
    formats: Arc<Formats>,
    /// Whether this node is no member any more.
    pub(crate) removed: watch::Sender<bool>,
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
            draining: self.election.holds_back(),
            format: self.format().into(),
        }
    }

    /// The newest format that this node understands.
    pub(crate) fn format(&self) -> u8 {
        self.formats.understood()
    }

    /// This node is no member any more: it goes on showing what it last knew, and takes part in nothing.
    pub(crate) fn note_removed(&self) {
        self.election.leave();
        if !self.removed.send_replace(true) {
            tracing::error!(
                node = self.id,
                "this node was removed from its cluster: it is not ready any more and serves what it last knew; stop it. \
                 To have it back as a new node, move its data folder away before the start"
            );
        }
    }
}

/// The tasks of a node.
pub(crate) type Tasks = JoinSet<()>;

/// A node whose parts are made and whose tasks do not run yet.
pub(crate) struct Parts {
    node: Arc<Node>,
    batcher: Batcher,
    rounds: Rounds,
    duties: Duties,
}

/// What of a data folder its parts use.
pub(crate) struct Stores {
    pub(crate) formats: Arc<Formats>,
    pub(crate) log: Arc<SledLog>,
    pub(crate) snapshots: Arc<Snapshots>,
}

/// Makes the parts over an opened data folder: afterwards the last known state is readable. Also returns the
/// log writer's thread, which ends when nothing uses the log any more.
pub(crate) async fn open_node(
    door: &Arc<Door>,
    facts: &Facts,
    build: String,
    timers: &Timers,
    links: Links,
    stores: Stores,
) -> Result<(Parts, thread::JoinHandle<()>), StartError> {
    let id = door.identity().node;
    let (commit, fsync) = (Arc::new(Durations::default()), Arc::new(Durations::default()));
    let replica = Arc::new(Replica::new());
    let Stores { formats, log, snapshots } = stores;
    let machine = StateMachine::open(replica.clone(), snapshots, formats.clone())?;
    let (log, writer) = RaftLog::open(log, formats.clone(), fsync.clone(), machine.covered())?;
    let committed = log.committed_keeper();
    let core = Core::start(id, &facts.cluster_name, timers, links.clone(), log, machine)
        .await
        .map_err(|problem| StartError::Bootstrap { cluster: facts.cluster_name.clone(), problem })?;
    let heard = Arc::new(Heard::new());
    let election = Election::new(id, core.clone(), links.clone(), heard.clone(), timers.clone());
    let (proposer, batcher) = Batcher::new(core.clone(), id, links.clone(), replica.clone(), commit.clone());
    let (reader, rounds) = Rounds::new(core.clone(), links.clone());
    let inbox = Arc::new(Inbox::new(core.roles()));
    let duties = Duties::new(core.clone(), replica.clone(), proposer.clone(), inbox.clone());
    let members = Admission::new(
        id,
        facts.cluster_name.clone(),
        core.clone(),
        replica.clone(),
        links.clone(),
        proposer.clone(),
        Arc::downgrade(door),
    );
    let node = Node {
        id,
        name: facts.name.clone(),
        build,
        core,
        replica,
        links,
        heard,
        election: Arc::new(election),
        proposer,
        reader,
        inbox,
        told: Told::default(),
        members,
        commit,
        fsync,
        report: Mutex::default(),
        readiness: Readiness::new(),
        committed,
        formats,
        removed: watch::Sender::new(false),
    };
    Ok((Parts { node: Arc::new(node), batcher, rounds, duties }, writer))
}

// === impl Parts ===

impl Parts {
    /// Opens the door and starts the tasks; each ends when `stop` turns true.
    pub(crate) fn run(
        self,
        door: &Arc<Door>,
        learner: bool,
        tasks: &mut Tasks,
        stop: &watch::Receiver<bool>,
    ) -> Arc<Node> {
        let Self { node, batcher, rounds, duties } = self;
        // Before anything can be agreed on: without a node, the door tells what the disk held at the start.
        door.open(node.clone());
        tasks.spawn(batcher.run(stop.clone()));
        tasks.spawn(rounds.run(stop.clone()));
        tasks.spawn(duties.run(stop.clone()));
        tasks.spawn(node.election.clone().run(stop.clone()));
        tasks.spawn(until(stop.clone(), Activation::new(node.clone()).run()));
        tasks.spawn(until(stop.clone(), Upgrade::new(node.clone()).run()));
        tasks.spawn(until(stop.clone(), heartbeats::tell_new_leaders(node.clone())));
        tasks.spawn(until(stop.clone(), bootstrap::complete_forming(door.clone(), node.clone())));
        tasks.spawn(until(stop.clone(), members::seek_certainty(door.clone(), node.clone())));
        if !learner {
            tasks.spawn(until(stop.clone(), members::seek_vote(door.clone(), node.clone())));
        }
        node
    }
}

async fn until(mut stop: watch::Receiver<bool>, work: impl Future<Output = ()>) {
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        () = work => {}
    }
}
