//! This process's part in the group: propose, read, watch, status.
//!
//! Job: the whole public interface of the crate beside the state's own types. Invariants: every call is
//! bounded by its deadline; what may have happened is `Unknown`, what cannot have happened is `NotDone`.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::{broadcast, watch};

use crate::{
    backup::{self, Backup},
    bootstrap::{self, Door, Facts},
    bugs,
    figures::Figures,
    heartbeats, manage,
    manage::ManageError,
    node::{Node, Report, Stores, Tasks, open_node},
    raft::{self, Links, Replica},
    state::{Change, ChangeKind, Command, Fate, Heartbeat, NodeId, Outcome, PART_BYTES, State},
    status::{self, Member, MemberReport, Status},
    storage::{DataDir, Owner, StorageError},
    tls::PeerTls,
};

/// What a node needs to take part.
#[derive(Debug)]
pub struct ClusterConfig {
    /// This node's name: stable and unique in the cluster.
    pub name: String,
    /// Where its identity, log and snapshots lie; made if it is not there.
    pub data_dir: PathBuf,
    /// The group's name; a data folder of another one is refused.
    pub cluster_name: String,
    /// How many nodes form the group on the first start; 1 with no peers: a cluster of one; 0: this node forms
    /// none, it waits for a member among its peers or for an invitation.
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
    /// Shared by all nodes; none: every peer is believed that `tls` lets in.
    pub secret: Option<Secret>,
    /// The peers' certificates; none: they speak without TLS.
    pub tls: Option<Arc<PeerTls>>,
    /// Told by `Status`.
    pub build: String,
    /// The newest format that it understands: the build's [`FORMAT`](crate::state::FORMAT), less only in tests.
    pub format: u8,
    /// Timers; the defaults are the design's.
    pub timers: Timers,
}

/// Text that is shown to nobody.
#[derive(Clone)]
pub struct Secret(pub String);

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
    /// The supervisor's silence before it asks for votes, to. 500 ms.
    pub campaign_max: Duration,
    /// Entries between two snapshots, and kept behind one. None: 50,000.
    pub snapshot_entries: Option<u64>,
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
    inner: Arc<Inner>,
}

struct Inner {
    node: Arc<Node>,
    door: Arc<Door>,
    stop: watch::Sender<bool>,
    /// Taken by the first shutdown.
    running: tokio::sync::Mutex<Option<Running>>,
}

/// What has to end before the data folder is free again.
struct Running {
    tasks: Tasks,
    writer: std::thread::JoinHandle<()>,
}

/// Changes as they are applied here, from the moment of subscription.
pub struct Changes {
    inner: broadcast::Receiver<Arc<[Change]>>,
    replica: Arc<Replica>,
    stop: watch::Receiver<bool>,
}

/// How long the calls of peers may go on after the end was announced.
const SERVER_GRACE: Duration = Duration::from_millis(500);

impl std::fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Secret(…)")
    }
}

// === impl Timers ===

impl Default for Timers {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(75),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(400),
            campaign_min: Duration::from_millis(400),
            campaign_max: Duration::from_millis(500),
            snapshot_entries: None,
        }
    }
}

// === impl Cluster ===

impl Cluster {
    /// Opens the store, serves the peers, forms the group or joins it. Returns once this node has its id and
    /// its last known state is readable; it does not wait for a leader.
    pub async fn start(config: ClusterConfig) -> Result<Self, StartError> {
        let ClusterConfig {
            name,
            data_dir,
            cluster_name,
            expect,
            peers,
            learner,
            listener,
            advertise,
            admin,
            format,
            ..
        } = config;
        let refused = |problem| StartError::Bootstrap { cluster: cluster_name.clone(), problem };
        let secret = config.secret.as_ref().map(|secret| secret.0.as_str());
        let links = Links::new(secret, config.tls.clone(), &advertise).map_err(refused)?;
        let dir = open_dir(&data_dir, &cluster_name, &name, learner, format).await?;
        if dir.identity.learner != learner {
            let role = bootstrap::role(dir.identity.learner);
            tracing::warn!(
                role,
                "the role of a node is that of its first start: `cluster.role` is not followed"
            );
        }
        let learner = dir.identity.learner;
        let stores =
            Stores { formats: dir.formats.clone(), log: dir.log.clone(), snapshots: dir.snapshots.clone() };
        let secret = config.secret;
        let facts = Facts { name, cluster_name, expect, peers, learner, advertise, admin, secret, format };
        let door = Arc::new(Door::new(facts.clone(), links.clone(), dir));

        let (stop, stopping) = watch::channel(false);
        let mut tasks = Tasks::new();
        let served = door.clone();
        let (server_stop, tls) = (stopping.clone(), config.tls);
        tasks.spawn(async move {
            if let Err(error) = raft::serve(listener, tls, served, server_stop).await {
                tracing::error!(error, "the peers are not served any more");
            }
        });
        let started = async {
            bootstrap::first_start(&door).await?;
            open_node(&door, &facts, config.build, &config.timers, links, stores).await
        };
        let (parts, writer) = match started.await {
            Ok(started) => started,
            Err(error) => {
                stop.send_replace(true);
                door.close();
                end(tasks).await;
                return Err(error);
            }
        };
        let node = parts.run(&door, learner, &mut tasks, &stopping);
        let running = tokio::sync::Mutex::new(Some(Running { tasks, writer }));
        Ok(Self { inner: Arc::new(Inner { node, door, stop, running }) })
    }

    /// This node's id.
    pub fn node_id(&self) -> NodeId {
        self.inner.node.id
    }

    /// Has `command` agreed on: acknowledged once it is on a majority's disks and applied by the leader. A
    /// follower passes it on once, inside `timeout`. A large document goes ahead in parts.
    pub async fn propose(&self, command: Command, timeout: Duration) -> Result<Outcome, ProposeError> {
        let deadline = Instant::now() + timeout;
        let command = self.in_parts(command, deadline).await?;
        self.inner.node.proposer.propose(command, deadline.saturating_duration_since(Instant::now())).await
    }

    /// The same command, or one that uses what was stored of it in parts.
    async fn in_parts(&self, command: Command, deadline: Instant) -> Result<Command, ProposeError> {
        match command {
            Command::PutDocument(mut document) if document.content.len() > PART_BYTES => {
                let content = Bytes::copy_from_slice(document.content.as_bytes());
                document.content = "".into();
                let (upload, parts) = self.store(&content, deadline).await?;
                Ok(Command::PutUploaded { upload, parts, document })
            }
            Command::Once { key, fingerprint, command } => {
                let command = Box::new(Box::pin(self.in_parts(*command, deadline)).await?);
                Ok(Command::Once { key, fingerprint, command })
            }
            other => Ok(other),
        }
    }

    /// Stores `bytes` in parts that nobody sees yet; the upload's number, and how many parts it has.
    async fn store(&self, bytes: &Bytes, deadline: Instant) -> Result<(u64, u32), ProposeError> {
        let upload = rand::random();
        let parts = (0..).zip(bytes.chunks(PART_BYTES)).map(|(part, chunk)| {
            let command = Command::StorePart { upload, part, bytes: bytes.slice_ref(chunk) };
            self.inner.node.proposer.propose(command, deadline.saturating_duration_since(Instant::now()))
        });
        let stored = join_all(parts).await;
        let count = u32::try_from(stored.len()).unwrap_or(u32::MAX);
        for part in stored {
            part.map_err(|error| ProposeError::NotDone {
                reason: format!("it goes ahead in {count} parts, and one of them was not stored ({error})"),
            })?;
        }
        Ok((upload, count))
    }

    /// Returns once this node's state holds every write that was acknowledged before the call.
    pub async fn linearizable(&self, timeout: Duration) -> Result<(), ReadError> {
        let node = &self.inner.node;
        if bugs::is("stale-read") {
            return Ok(());
        }
        let read = async {
            let index = node.reader.index().await.map_err(|reason| ReadError { reason })?;
            let mut applied = node.replica.applied();
            match applied.wait_for(|applied| *applied >= index).await {
                Ok(_) => Ok(()),
                Err(_) => Err(ReadError { reason: "this node is stopping".to_owned() }),
            }
        };
        tokio::time::timeout(timeout, read).await.unwrap_or_else(|_| {
            let reason = match node.core.roles().leader() {
                None => "no leader is known: too few nodes can reach each other".to_owned(),
                Some(leader) => {
                    format!("node {leader}, the leader, could not confirm in {} ms", timeout.as_millis())
                }
            };
            Err(ReadError { reason })
        })
    }

    /// Looks at what this node last knew. `look` runs under a lock: it must be short, and copy what it needs.
    pub fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        self.inner.node.replica.read(look)
    }

    /// Every change that is applied here from now on. A subscriber that falls too far behind gets `Reset`.
    pub fn changes(&self) -> Changes {
        let replica = self.inner.node.replica.clone();
        Changes { inner: replica.changes(), replica, stop: self.inner.stop.subscribe() }
    }

    /// Passes on to the leader which instances were heard from; it puts them into its next tick. `age_ms` is
    /// how long ago each was heard. Returns the places of those whose instance is not there, or lives another life; the
    /// others live for a TTL from when they were heard, whoever leads. Tried once, for less than a second; on an error
    /// the caller passes them on again, older, or says what the error says.
    pub async fn forward_heartbeats(&self, heartbeats: Vec<Heartbeat>) -> Result<Vec<usize>, ProposeError> {
        heartbeats::pass_on(&self.inner.node, heartbeats).await
    }

    /// Has another voter lead: `to`, or whichever is best. Returns who leads then. Any node takes this call and
    /// those below.
    pub async fn transfer_leader(
        &self,
        to: Option<NodeId>,
        timeout: Duration,
    ) -> Result<NodeId, ManageError> {
        manage::carry_out(&self.inner.node, manage::Change::Transfer(to), timeout).await
    }

    /// Lets the node in that waits at `address`, the one of its gRPC service: returns its id once it follows. One
    /// that is to vote does so by itself when it has caught up.
    pub async fn add_member(
        &self,
        address: &str,
        learner: bool,
        timeout: Duration,
    ) -> Result<NodeId, ManageError> {
        let change = manage::Change::Add { address: address.to_owned(), learner };
        manage::carry_out(&self.inner.node, change, timeout).await
    }

    /// Has a node that follows vote; waits until it has caught up.
    pub async fn promote_member(&self, id: NodeId, timeout: Duration) -> Result<NodeId, ManageError> {
        manage::carry_out(&self.inner.node, manage::Change::Promote(id), timeout).await
    }

    /// Takes a node out for good, dead or alive; the leader hands over before.
    pub async fn remove_member(&self, id: NodeId, timeout: Duration) -> Result<NodeId, ManageError> {
        manage::carry_out(&self.inner.node, manage::Change::Remove(id), timeout).await
    }

    /// All instances and documents as this node knows them; `made_at_ms` is the caller's wall clock.
    pub fn backup(&self, made_at_ms: u64) -> Backup {
        let identity = self.inner.door.identity();
        let node = &self.inner.node;
        node.replica.read(|state| Backup {
            cluster: node.members.cluster_name().to_owned(),
            cluster_uuid: identity.cluster_uuid.clone(),
            node: node.name.clone(),
            made_at_ms,
            index: state.index(),
            instances: state.registry().iter().cloned().collect(),
            versions: state.documents().iter().cloned().collect(),
        })
    }

    /// Puts a backup in the place of what the cluster has, which must be nothing unless `force`. Returns the index
    /// of that one change, which this node has applied then; until it, nothing of the backup can be seen.
    pub async fn restore(&self, backup: Backup, force: bool, timeout: Duration) -> Result<u64, ManageError> {
        let index = backup::restore(&self.inner.node, backup, force, timeout).await?;
        // The leader has applied it; a caller that asks this node for it must find it.
        let mut applied = self.inner.node.replica.applied();
        let seen = applied.wait_for(|_| self.read(|state| state.index() >= index));
        let _ = tokio::time::timeout(timeout, seen).await;
        Ok(index)
    }

    /// Has every member write its state to its disk, and drop what its log need not keep any more. Returns the last
    /// log index that each has on its disk then; `None` for those that did not do it in time.
    pub async fn snapshot_all(&self, timeout: Duration) -> Vec<(Member, Option<u64>)> {
        status::snapshot_members(&self.inner.node, timeout).await
    }

    /// This node is to stop soon: from now on it leads only if nobody else can.
    pub fn hold_back(&self) {
        self.inner.node.election.hold_back();
    }

    /// Whether this node was taken out of its cluster. It shows what it last knew, and takes part in nothing.
    pub fn is_removed(&self) -> bool {
        *self.inner.node.removed.borrow()
    }

    /// Where this node stands.
    pub fn status(&self) -> Status {
        status::of(&self.inner.node, &self.inner.door.identity().cluster_uuid)
    }

    /// Figures for `/metrics`.
    pub fn figures(&self) -> Figures {
        status::figures(&self.inner.node)
    }

    /// Tells what this node answers when it is asked which document it runs.
    pub fn report(&self, config_version: u64, config_error: String) {
        let report = Report { config_version, config_error };
        *self.inner.node.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
    }

    /// Tells whether this node can run the staged document `version`, or why not; the leader waits for it.
    pub fn ready(&self, version: u64, result: Result<(), String>) {
        self.inner.node.readiness.say(version, result);
    }

    /// What became of a document that was staged: once it is activated or refused here, or after `timeout`.
    pub async fn fate(&self, version: u64, timeout: Duration) -> Fate {
        let look = || self.read(|state| state.documents().fate(version));
        let mut applied = self.inner.node.replica.applied();
        let decided = async {
            loop {
                // Unknown: this node's state may be behind the leader's, which staged it.
                match look() {
                    Fate::Staged | Fate::Unknown => {}
                    decided => return decided,
                }
                if applied.changed().await.is_err() {
                    return look();
                }
            }
        };
        tokio::time::timeout(timeout, decided).await.unwrap_or_else(|_| look())
    }

    /// Returns once this node's disk knows how far its state has come: a restart shows no less, even alone.
    pub async fn keep_applied(&self) {
        self.inner.node.committed.keep().await;
    }

    /// Asks every member, this one too, what it runs; `None` for those that do not answer in time.
    pub async fn member_reports(&self, timeout: Duration) -> Vec<(Member, Option<MemberReport>)> {
        status::of_members(&self.inner.node, timeout).await
    }

    /// Resolves when the consensus core has stopped by itself, with the reason: the process must end.
    pub async fn stopped(&self) -> String {
        self.inner.node.core.stopped().await
    }

    /// Stops taking part: the core, the gRPC service, the log writer; returns when the store is closed.
    pub async fn shutdown(&self) {
        let Some(Running { tasks, writer }) = self.inner.running.lock().await.take() else { return };
        let dir = self.inner.door.close();
        self.inner.stop.send_replace(true);
        self.inner.node.core.shutdown().await;
        self.inner.node.links.close();
        end(tasks).await;
        // The writer ends when the library's last task has let go of the log, which waits for one call at most.
        let closed = tokio::task::spawn_blocking(move || {
            if writer.join().is_err() {
                tracing::error!("the log's writer panicked");
            }
            drop(dir);
        });
        if closed.await.is_err() {
            tracing::error!("the data folder could not be closed");
        }
    }
}

async fn open_dir(
    path: &Path,
    cluster: &str,
    name: &str,
    learner: bool,
    format: u8,
) -> Result<DataDir, StartError> {
    let (owned, cluster, name) = (path.to_owned(), cluster.to_owned(), name.to_owned());
    let opened = tokio::task::spawn_blocking(move || {
        DataDir::open(&owned, Owner { cluster_name: &cluster, name: &name, learner, format })
    });
    match opened.await {
        Ok(opened) => opened.map_err(StartError::from),
        Err(error) => Err(StartError::DataDir { path: path.to_owned(), problem: error.to_string() }),
    }
}

/// Gives the tasks a moment to end by themselves.
async fn end(mut tasks: Tasks) {
    let ended = async { while tasks.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(SERVER_GRACE, ended).await;
    tasks.shutdown().await;
}

// === impl StartError ===

impl From<StorageError> for StartError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Io { path, source } => Self::DataDir { path, problem: source.to_string() },
            StorageError::Refused { path, problem } => Self::DataDir { path, problem },
            StorageError::Damaged { path, problem } => Self::Damaged { path, problem },
        }
    }
}

// === impl Changes ===

impl Changes {
    /// The next changes, all of one log entry; none: the cluster was shut down.
    pub async fn next(&mut self) -> Option<Arc<[Change]>> {
        let received = tokio::select! {
            received = self.inner.recv() => received,
            _ = self.stop.wait_for(|stop| *stop) => return None,
        };
        match received {
            Ok(changes) => Some(changes),
            Err(broadcast::error::RecvError::Closed) => None,
            Err(broadcast::error::RecvError::Lagged(_)) => {
                // Subscribe anew first: what is applied in between is then seen twice, not missed.
                self.inner = self.replica.changes();
                let index = self.replica.read(State::index);
                Some([Change { index, kind: ChangeKind::Reset }].into())
            }
        }
    }
}
