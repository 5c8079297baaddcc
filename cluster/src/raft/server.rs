//! The peers' calls.
//!
//! Job: checks who calls and whom they mean, then hands each call to its owner: Raft's own to the core, the
//! others to `batch`, `reads`, `heartbeats`, `bootstrap` and `members`. Invariants: nothing of a message is looked
//! at before its metadata; a refusal is logged once for each kind and not once per call; what is refused with
//! `FAILED_PRECONDITION` or `RESOURCE_EXHAUSTED` has certainly not been written.

use std::{
    collections::BTreeSet,
    io,
    net::TcpListener,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::stream;
use gogate_proto::v1::{
    self,
    peer_server::{Peer, PeerServer},
};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest};
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::{Request, Response, Status, transport::Server};

use super::{Core, convert, stream::Shown};
use crate::{
    activation, bootstrap::Door, handle::ProposeError, heartbeats, node::Node, state::Command,
    storage::codec, tls::PeerTls,
};

pub(super) const META_SECRET: &str = "gogate-secret";
pub(super) const META_CLUSTER: &str = "gogate-cluster";
pub(super) const META_TARGET: &str = "gogate-target";
pub(super) const META_INCARNATION: &str = "gogate-incarnation";
/// By which the caller is reached; its certificate has to be for that.
pub(super) const META_FROM: &str = "gogate-from";

/// The largest message: a full batch of the largest commands with its frame.
pub(super) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Calls of one connection at once; further ones wait for their turn.
const CALLS_PER_CONNECTION: usize = 256;

/// AppendEntries in the core's hands at once. A leader has one on its way; more are left of those that it gave
/// up while this node's disk stood still. Beyond, it is told so and pauses: the core's own queue has no bound.
const APPENDS_MAX: usize = 8;

/// Batches of other nodes in hand at once; beyond, they are told to come again.
const PROPOSALS_MAX: usize = 64;

/// Heartbeats of one call.
const HEARTBEATS_MAX: usize = 200_000;

/// Connections that were made and not looked at yet.
const ACCEPTED_MAX: usize = 16;

/// The longest that a call may ask to wait.
const TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// The gRPC service of a node, from before it has an identity until it stops.
#[derive(Clone)]
pub(crate) struct Service {
    door: Arc<Door>,
    /// Whether callers show certificates.
    has_tls: bool,
    appends: Arc<Semaphore>,
    proposals: Arc<Semaphore>,
    refused: Arc<Mutex<BTreeSet<String>>>,
}

/// Serves `listener` until `stop` turns true. Calls that wait then are dropped.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<Arc<PeerTls>>,
    door: Arc<Door>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), String> {
    listener.set_nonblocking(true).map_err(|error| error.to_string())?;
    let listener = tokio::net::TcpListener::from_std(listener).map_err(|error| error.to_string())?;
    let (ready, mut accepted) = mpsc::channel(ACCEPTED_MAX);
    let incoming = stream::poll_fn(move |context| {
        accepted.poll_recv(context).map(|stream| stream.map(Ok::<_, io::Error>))
    });
    let accepting = super::stream::accept(listener, tls.clone(), ready);
    let service = Service {
        door,
        has_tls: tls.is_some(),
        appends: Arc::new(Semaphore::new(APPENDS_MAX)),
        proposals: Arc::new(Semaphore::new(PROPOSALS_MAX)),
        refused: Arc::default(),
    };
    let service = PeerServer::new(service)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let serving = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .initial_stream_window_size(Some(super::network::WINDOW_BYTES))
        .initial_connection_window_size(Some(super::network::WINDOW_BYTES))
        .add_service(service)
        .serve_with_incoming_shutdown(incoming, async move {
            let _ = stop.wait_for(|stop| *stop).await;
        });
    tokio::select! {
        served = serving => served.map_err(|error| error.to_string()),
        never = accepting => match never {},
    }
}

// === impl Service ===

impl Service {
    /// Whether the caller may speak at all.
    fn check_caller<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let metadata = request.metadata();
        if self.has_tls {
            let from = metadata.get(META_FROM).and_then(|value| value.to_str().ok()).unwrap_or_default();
            let shown = request.extensions().get::<Shown>();
            let shown =
                shown.map_or_else(|| Err("there is no certificate".to_owned()), |shown| shown.is_for(from));
            if let Err(problem) = shown {
                return Err(self.refuse(Status::unauthenticated(format!(
                    "node `{}` does not let a peer in that says it is reached at `{from}`: {problem}: give each node a certificate for the host of its `peer.advertise`",
                    self.door.name()
                ))));
            }
        }
        let Some(secret) = self.door.secret() else { return Ok(()) };
        let given = metadata.get(META_SECRET).map(|value| value.as_encoded_bytes());
        if given.is_some_and(|given| equal_in_constant_time(given, secret.as_bytes())) {
            return Ok(());
        }
        let given = if given.is_none() { "no secret" } else { "another secret" };
        Err(self.refuse(Status::unauthenticated(format!(
            "node `{}` does not let a peer in that has {given}: give all nodes the same `peer.secret_file`",
            self.door.name()
        ))))
    }

    /// The node that runs here, if it is the one that is meant.
    fn check<T>(&self, request: &Request<T>) -> Result<Arc<Node>, Status> {
        self.check_caller(request)?;
        let metadata = request.metadata();
        let identity = self.door.identity();
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let number = |name| text(name).parse::<u64>().unwrap_or_default();
        let Some(node) = self.door.node() else {
            return Err(Status::unavailable(format!(
                "node `{}` is not part of a cluster yet",
                self.door.name()
            )));
        };
        if text(META_CLUSTER) != identity.cluster_uuid {
            return Err(self.refuse(Status::permission_denied(format!(
                "node `{}` belongs to cluster {}, not to {}",
                self.door.name(),
                identity.cluster_uuid,
                text(META_CLUSTER)
            ))));
        }
        if number(META_TARGET) != identity.node || number(META_INCARNATION) != identity.incarnation {
            return Err(self.refuse(Status::not_found(format!(
                "node {} of incarnation {:x} is no more: here is node {} of incarnation {:x}",
                number(META_TARGET),
                number(META_INCARNATION),
                identity.node,
                identity.incarnation
            ))));
        }
        Ok(node)
    }

    /// Logs each kind of refusal once.
    fn refuse(&self, status: Status) -> Status {
        const KINDS_MAX: usize = 64;
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() < KINDS_MAX && refused.insert(status.message().to_owned()) {
            tracing::warn!("a peer was refused: {}", status.message());
        }
        status
    }
}

fn equal_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    let differing = left.iter().zip(right).fold(0, |differing, (left, right)| differing | (left ^ right));
    left.len() == right.len() && std::hint::black_box(differing) == 0
}

fn missing(what: &str) -> Status {
    Status::invalid_argument(format!("the message has no {what}"))
}

fn stopped(error: &impl std::fmt::Display) -> Status {
    Status::unavailable(format!("this node has stopped: {error}"))
}

fn not_proposed(error: ProposeError) -> Status {
    match error {
        ProposeError::NotDone { reason } => Status::failed_precondition(reason),
        ProposeError::Unknown { .. } => Status::deadline_exceeded(error.to_string()),
    }
}

#[tonic::async_trait]
impl Peer for Service {
    async fn append_entries(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        let vote = convert::message_vote(&message.vote.ok_or_else(|| missing("vote"))?);
        // Noted before the disk has it: a slow disk here is no reason to depose whoever sent this.
        node.core.note_leader(&vote, &node.heard);
        let permit = self.appends.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Status::resource_exhausted("too many entries wait for the disk"))?;
        let mut entries = Vec::with_capacity(message.entries.len());
        for bytes in &message.entries {
            let record = codec::decode("an entry", bytes)
                .map_err(|error| Status::invalid_argument(error.to_string()))?;
            entries.push(convert::entry(record));
        }
        let request = AppendEntriesRequest {
            vote,
            prev_log_id: message.previous.as_ref().map(convert::message_log_id),
            entries,
            leader_commit: message.commit.as_ref().map(convert::message_log_id),
        };
        // A task of its own, which ends with the core's answer: the permit is held for as long as the core holds
        // the message, also when the leader has given this call up.
        let raft = node.core.raft.clone();
        let answer = tokio::spawn(async move {
            let _permit = permit;
            raft.append_entries(request).await
        });
        let response = answer.await.map_err(|error| stopped(&error))?.map_err(|error| stopped(&error))?;
        use v1::append_reply::Result as Reply;
        let result = match response {
            AppendEntriesResponse::Success => Reply::Success(true),
            AppendEntriesResponse::PartialSuccess(Some(id)) => Reply::Partial(convert::log_id_message(id)),
            AppendEntriesResponse::PartialSuccess(None) => return Err(Status::internal("nothing matched")),
            AppendEntriesResponse::Conflict => Reply::Conflict(true),
            AppendEntriesResponse::HigherVote(vote) => Reply::HigherVote(convert::vote_message(&vote)),
        };
        if !matches!(result, Reply::HigherVote(_)) {
            node.heard.leader();
        }
        Ok(Response::new(v1::AppendReply { result: Some(result) }))
    }

    async fn vote(&self, request: Request<v1::VoteRequest>) -> Result<Response<v1::VoteReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        let request = VoteRequest {
            vote: convert::message_vote(&message.vote.ok_or_else(|| missing("vote"))?),
            last_log_id: message.last_log.as_ref().map(convert::message_log_id),
        };
        if message.transfer {
            node.core.leave_leader_for(&request).await;
        }
        let response = node.core.raft.vote(request).await.map_err(|error| stopped(&error))?;
        if response.vote_granted {
            node.heard.candidate();
        }
        Ok(Response::new(v1::VoteReply {
            vote: Some(convert::vote_message(&response.vote)),
            granted: response.vote_granted,
            last_log: response.last_log_id.map(convert::log_id_message),
        }))
    }

    async fn install_snapshot(
        &self,
        request: Request<v1::SnapshotChunk>,
    ) -> Result<Response<v1::SnapshotReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        let record = codec::decode("a snapshot's description", &message.meta)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let vote = convert::message_vote(&message.vote.ok_or_else(|| missing("vote"))?);
        node.core.note_leader(&vote, &node.heard);
        let request = InstallSnapshotRequest {
            vote,
            meta: convert::snapshot_meta(record),
            offset: message.offset,
            data: message.data.into(),
            done: message.done,
        };
        let response = node.core.raft.install_snapshot(request).await;
        let response = response.map_err(|error| Status::aborted(error.to_string()))?;
        Ok(Response::new(v1::SnapshotReply { vote: Some(convert::vote_message(&response.vote)) }))
    }

    async fn pre_vote(
        &self,
        request: Request<v1::VoteRequest>,
    ) -> Result<Response<v1::PreVoteReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        let candidate = message.vote.map_or(0, |vote| vote.node);
        let refusal =
            node.election.would_vote(candidate, message.last_log.as_ref().map(convert::message_position));
        Ok(Response::new(v1::PreVoteReply {
            granted: refusal.is_none(),
            reason: refusal.unwrap_or_default().to_owned(),
        }))
    }

    async fn propose(
        &self,
        request: Request<v1::ProposeRequest>,
    ) -> Result<Response<v1::ProposeReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        let _permit = self
            .proposals
            .try_acquire()
            .map_err(|_| Status::resource_exhausted("too many writes are waiting on the leader"))?;
        let mut commands = Vec::with_capacity(message.commands.len());
        for bytes in &message.commands {
            let command = codec::decode("a command", bytes).map_err(|error| {
                Status::invalid_argument(format!(
                    "{error}: update the leader before the others use what it lacks"
                ))
            })?;
            if matches!(command, Command::Tick { .. } | Command::RaiseFormat { .. }) {
                return Err(Status::invalid_argument("ticks and the format are the leader's own"));
            }
            commands.push(command);
        }
        let timeout = Duration::from_millis(message.timeout_ms).min(TIMEOUT_MAX);
        let outcomes = node.proposer.propose_as_leader(commands, timeout).await.map_err(not_proposed)?;
        Ok(Response::new(v1::ProposeReply { outcomes: outcomes.iter().map(codec::encode).collect() }))
    }

    async fn read_index(
        &self,
        request: Request<v1::ReadIndexRequest>,
    ) -> Result<Response<v1::ReadIndexReply>, Status> {
        let node = self.check(&request)?;
        let index = node.core.read_index().await.map_err(Status::failed_precondition)?;
        Ok(Response::new(v1::ReadIndexReply { index }))
    }

    async fn heartbeats(
        &self,
        request: Request<v1::HeartbeatsRequest>,
    ) -> Result<Response<v1::HeartbeatsReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        if message.heartbeats.len() > HEARTBEATS_MAX {
            return Err(Status::resource_exhausted(format!(
                "more than {HEARTBEATS_MAX} heartbeats in one call"
            )));
        }
        let reply = heartbeats::take_passed_on(&node, message.heartbeats).await;
        Ok(Response::new(reply.map_err(not_proposed)?))
    }

    async fn keep_heartbeats(
        &self,
        request: Request<v1::KeepHeartbeatsRequest>,
    ) -> Result<Response<v1::KeepHeartbeatsReply>, Status> {
        let node = self.check(&request)?;
        heartbeats::keep_for_leader(&node, request.into_inner());
        Ok(Response::new(v1::KeepHeartbeatsReply {}))
    }

    async fn identify(
        &self,
        request: Request<v1::IdentifyRequest>,
    ) -> Result<Response<v1::IdentifyReply>, Status> {
        self.check_caller(&request)?;
        Ok(Response::new(self.door.identify().await?))
    }

    async fn adopt(&self, request: Request<v1::AdoptRequest>) -> Result<Response<v1::AdoptReply>, Status> {
        self.check_caller(&request)?;
        let reason = self.door.adopt(request.into_inner()).await.err();
        Ok(Response::new(v1::AdoptReply { adopted: reason.is_none(), reason: reason.unwrap_or_default() }))
    }

    async fn join(&self, request: Request<v1::JoinRequest>) -> Result<Response<v1::JoinReply>, Status> {
        self.check_caller(&request)?;
        let Some(node) = self.door.node() else {
            return Err(Status::unavailable(format!(
                "node `{}` is not part of a cluster yet",
                self.door.name()
            )));
        };
        let from = request.metadata().get(META_FROM).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let message = request.into_inner();
        // A member passes on what another one asked for; that one was looked at there.
        if self.has_tls && !message.passed_on && from.as_deref() != Some(message.peer.as_str()) {
            return Err(self.refuse(Status::permission_denied(format!(
                "node `{}` lets nobody join as `{}` who is not reached there",
                self.door.name(),
                message.peer
            ))));
        }
        Ok(Response::new(node.members.join(message).await))
    }

    async fn take_snapshot(
        &self,
        request: Request<v1::TakeSnapshotRequest>,
    ) -> Result<Response<v1::TakeSnapshotReply>, Status> {
        let node = self.check(&request)?;
        let index = node.core.snapshot().await.map_err(Status::unavailable)?;
        Ok(Response::new(v1::TakeSnapshotReply { index }))
    }

    async fn invite(&self, request: Request<v1::InviteRequest>) -> Result<Response<v1::InviteReply>, Status> {
        self.check_caller(&request)?;
        let refused = self.door.invite(request.into_inner()).err();
        Ok(Response::new(v1::InviteReply { refused: refused.unwrap_or_default() }))
    }

    async fn campaign(
        &self,
        request: Request<v1::CampaignRequest>,
    ) -> Result<Response<v1::CampaignReply>, Status> {
        let node = self.check(&request)?;
        let message = request.into_inner();
        let last_log = message.last_log.as_ref().map(convert::message_position);
        let refused = node.election.campaign_for(message.term, last_log).await.err();
        Ok(Response::new(v1::CampaignReply { refused: refused.unwrap_or_default().to_owned() }))
    }

    async fn manage(&self, request: Request<v1::ManageRequest>) -> Result<Response<v1::ManageReply>, Status> {
        let node = self.check(&request)?;
        Ok(Response::new(crate::manage::answer(&node, request.into_inner()).await))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusReply>, Status> {
        let node = self.check(&request)?;
        Ok(Response::new(node.status_reply()))
    }

    async fn readiness(
        &self,
        request: Request<v1::ReadinessRequest>,
    ) -> Result<Response<v1::ReadinessReply>, Status> {
        let node = self.check(&request)?;
        let v1::ReadinessRequest { version, wait_ms } = request.into_inner();
        let said = node.readiness.of(version, activation::wait(wait_ms)).await;
        let ready = matches!(said, Some(Ok(())));
        Ok(Response::new(v1::ReadinessReply {
            ready,
            refused: said.and_then(Result::err).unwrap_or_default(),
        }))
    }
}

// === impl Core ===

impl Core {
    /// Makes way for a candidate that the leader itself asked to campaign: without this the library refuses every
    /// vote while it hears a leader, and a leader every vote at all. It has no call for that, but any message of a
    /// later vote makes it note that vote, with the same persistence and the same promise as when a vote is given.
    /// Whether the candidate's log is good enough is still for the vote itself to say. This message is one of
    /// entries behind a place where no log can be: nothing else of it is looked at.
    async fn leave_leader_for(&self, request: &VoteRequest<crate::state::NodeId>) {
        const NOWHERE: u64 = u64::MAX >> 1;
        let vote = request.vote;
        let own_log = self.raft.data_metrics().borrow().last_log;
        let late = vote <= self.raft.server_metrics().borrow().vote;
        if late || vote.committed || vote.leader_id.node_id == self.id || request.last_log_id < own_log {
            return;
        }
        let nothing = AppendEntriesRequest {
            vote,
            prev_log_id: Some(openraft::LogId::new(
                openraft::CommittedLeaderId::new(vote.leader_id.term, vote.leader_id.node_id),
                NOWHERE,
            )),
            entries: Vec::new(),
            leader_commit: None,
        };
        // An error means that the core has stopped, which the vote will tell.
        let _ = self.raft.append_entries(nothing).await;
    }

    /// Notes that a leader of at least the current vote was heard.
    fn note_leader(&self, vote: &openraft::Vote<crate::state::NodeId>, heard: &crate::election::Heard) {
        if *vote >= self.raft.server_metrics().borrow().vote {
            heard.leader();
        }
    }
}
