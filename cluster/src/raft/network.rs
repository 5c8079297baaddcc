//! The way to the peers: one channel each, connected when it is first used and again when it broke.
//!
//! Job: carries the library's calls, and hands out [`Link`]s for all others. Invariants: every call says who
//! is meant (cluster, id, incarnation), proves the secret, and with TLS says who calls; nothing is retried here. Neighbours: `server`
//! is the other end.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use gogate_proto::v1::{self, peer_client::PeerClient};
use openraft::{
    AnyError, RaftNetwork, RaftNetworkFactory,
    error::{InstallSnapshotError, NetworkError, PayloadTooLarge, RPCError, RaftError, Unreachable},
    network::{Backoff, RPCOption},
    raft::{
        AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
        VoteRequest, VoteResponse,
    },
};
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataValue, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{
    TypeConfig, convert,
    log_store::Durable,
    server::{MESSAGE_BYTES_MAX, META_CLUSTER, META_FROM, META_INCARNATION, META_SECRET, META_TARGET},
    stream::Connector,
};
use crate::{
    forward::never_sent,
    state::NodeId,
    storage::codec::{self, NodeRecord},
    tls::PeerTls,
};

/// A peer that does not complete a TCP handshake in this time is taken as gone for now.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(300);

/// The same where TLS adds two round trips and the work of signatures, on a busy machine.
const TLS_CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// A connection without an answer to its pings for this long is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);

/// After a failed attempt the replication to a peer pauses this long: a leader must reach a node that comes
/// back before that node campaigns.
const UNREACHABLE_PAUSE: Duration = Duration::from_millis(50);

/// Bytes that may be under way on one connection.
pub(super) const WINDOW_BYTES: u32 = 8 << 20;

/// All ways to peers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Links {
    shared: Arc<Shared>,
}

struct Shared {
    secret: Option<AsciiMetadataValue>,
    /// By which this node is reached, for whom its certificate has to be; none without TLS.
    from: Option<AsciiMetadataValue>,
    tls: Option<Arc<PeerTls>>,
    /// Empty until this node is part of a cluster.
    cluster: RwLock<Option<AsciiMetadataValue>>,
    channels: Mutex<BTreeMap<String, Channel>>,
    /// The term in which this node campaigns because the leader asked it to; 0: none.
    transfer_term: AtomicU64,
    /// What peers refused, so that each kind is logged once.
    refusals: Arc<Mutex<BTreeSet<String>>>,
}

/// The way to one peer. Cheap to make.
#[derive(Clone)]
pub(crate) struct Link {
    channel: Channel,
    address: String,
    shared: Arc<Shared>,
    target: Option<Target>,
}

/// The library's way to all peers.
pub(super) struct Replication {
    pub(super) links: Links,
    pub(super) log: Durable,
}

/// The library's way to one peer.
pub(super) struct Replicated {
    link: Link,
    log: Durable,
}

/// Whom a call means.
#[derive(Clone)]
struct Target {
    id: NodeId,
    cluster: Option<AsciiMetadataValue>,
    id_value: AsciiMetadataValue,
    incarnation: AsciiMetadataValue,
}

// === impl Links ===

impl Links {
    /// The secret must be printable ASCII. `advertise` is by which this node is reached.
    pub(crate) fn new(
        secret: Option<&str>,
        tls: Option<Arc<PeerTls>>,
        advertise: &str,
    ) -> Result<Self, String> {
        let from = AsciiMetadataValue::try_from(advertise).ok().filter(|_| tls.is_some());
        let secret = match secret {
            None => None,
            Some(secret) => Some(
                AsciiMetadataValue::try_from(secret)
                    .map_err(|_| "the peers' secret must be one line of printable ASCII".to_owned())?,
            ),
        };
        let shared = Shared {
            secret,
            from,
            tls,
            cluster: RwLock::default(),
            channels: Mutex::default(),
            transfer_term: AtomicU64::new(0),
            refusals: Arc::default(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// From now on calls name this cluster.
    pub(crate) fn set_cluster(&self, uuid: &str) {
        let value = AsciiMetadataValue::try_from(uuid).ok();
        *self.shared.cluster.write().unwrap_or_else(PoisonError::into_inner) = value;
    }

    /// Votes that are asked for in this term are asked for with the leader's consent.
    pub(crate) fn set_transfer_term(&self, term: u64) {
        self.shared.transfer_term.store(term, Ordering::Release);
    }

    /// The way to a member.
    pub(crate) fn member(&self, id: NodeId, node: &NodeRecord) -> Link {
        let cluster = self.shared.cluster.read().unwrap_or_else(PoisonError::into_inner).clone();
        let target = Target {
            id,
            cluster,
            id_value: MetadataValue::from(id),
            incarnation: MetadataValue::from(node.incarnation),
        };
        self.link(&node.peer, Some(target))
    }

    /// The way to whoever listens there.
    pub(crate) fn stranger(&self, address: &str) -> Link {
        self.link(address, None)
    }

    fn link(&self, address: &str, target: Option<Target>) -> Link {
        let mut channels = self.shared.channels.lock().unwrap_or_else(PoisonError::into_inner);
        let channel = match channels.get(address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.connect_lazily(address);
                channels.insert(address.to_owned(), channel.clone());
                channel
            }
        };
        Link { channel, address: address.to_owned(), shared: self.shared.clone(), target }
    }

    fn connect_lazily(&self, address: &str) -> Channel {
        let endpoint = endpoint(address);
        match &self.shared.tls {
            None => endpoint.connect_lazy(),
            Some(tls) => {
                let connector = Connector::new(address, tls.clone(), &self.shared.refusals);
                endpoint.connect_timeout(TLS_CONNECT_TIMEOUT).connect_with_connector_lazy(connector)
            }
        }
    }

    /// Drops all connections.
    pub(crate) fn close(&self) {
        self.shared.channels.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

fn endpoint(address: &str) -> Endpoint {
    // An address that is no address fails like one where nobody listens; the configuration was checked before.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .unwrap_or_else(|_| Endpoint::from_static("http://0.0.0.0:0"));
    endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
}

impl RaftNetworkFactory<TypeConfig> for Replication {
    type Network = Replicated;

    async fn new_client(&mut self, target: NodeId, node: &NodeRecord) -> Replicated {
        Replicated { link: self.links.member(target, node), log: self.log.clone() }
    }
}

impl fmt::Debug for Links {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Links").finish_non_exhaustive()
    }
}

// === impl Link ===

impl Link {
    /// The member that is meant; 0: whoever listens there.
    pub(crate) fn id(&self) -> NodeId {
        self.target.as_ref().map_or(0, |target| target.id)
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn client(&self) -> PeerClient<Channel> {
        PeerClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Logs once what no repetition will mend: a peer that does not let this node in.
    pub(crate) fn note(&self, status: &Status) {
        if !matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied | Code::NotFound) {
            return;
        }
        let mut refusals = self.shared.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() < REFUSALS_MAX && refusals.insert(format!("{} {}", self.address, status.message()))
        {
            tracing::warn!(peer = self.address, "a peer refuses this node: {}", status.message());
        }
    }

    /// `message` with all that every call carries.
    pub(crate) fn request<T>(&self, message: T, timeout: Option<Duration>) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(timeout) = timeout {
            request.set_timeout(timeout);
        }
        let metadata = request.metadata_mut();
        if let Some(secret) = &self.shared.secret {
            metadata.insert(META_SECRET, secret.clone());
        }
        if let Some(from) = &self.shared.from {
            metadata.insert(META_FROM, from.clone());
        }
        if let Some(target) = &self.target {
            metadata.insert(META_TARGET, target.id_value.clone());
            metadata.insert(META_INCARNATION, target.incarnation.clone());
            if let Some(cluster) = &target.cluster {
                metadata.insert(META_CLUSTER, cluster.clone());
            }
        }
        request
    }
}

/// Kinds of refusals that are remembered; further ones are not logged.
const REFUSALS_MAX: usize = 64;

type RpcError<E> = RPCError<NodeId, NodeRecord, RaftError<NodeId, E>>;

/// The library pauses only for who is unreachable; anything else it repeats at once.
fn rpc_error<E: std::error::Error>(link: &Link, status: &Status) -> RpcError<E> {
    link.note(status);
    let refused = matches!(
        status.code(),
        Code::Unavailable
            | Code::NotFound
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::ResourceExhausted
    );
    if refused || never_sent(status) {
        RPCError::Unreachable(Unreachable::new(status))
    } else {
        RPCError::Network(NetworkError::new(status))
    }
}

fn malformed<E: std::error::Error>(what: &str) -> RpcError<E> {
    let error = io::Error::other(format!("a peer's answer lacks its {what}"));
    RPCError::Network(NetworkError::new(&AnyError::new(&error)))
}

impl RaftNetwork<TypeConfig> for Replicated {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<NodeId>, RpcError<openraft::error::Infallible>> {
        let message = v1::AppendRequest {
            vote: Some(convert::vote_message(&rpc.vote)),
            previous: rpc.prev_log_id.map(convert::log_id_message),
            commit: rpc.leader_commit.map(convert::log_id_message),
            entries: rpc.entries.iter().map(|entry| codec::encode(&convert::entry_record(entry))).collect(),
        };
        if let Some(commit) = rpc.leader_commit {
            // A follower must not learn of what is committed before this node's own disk has it.
            let durable = self.log.reaches(commit.index).await;
            durable.map_err(|error| RPCError::Unreachable(Unreachable::new(&error)))?;
        }
        let entries = message.entries.len() as u64;
        let mut client = self.link.client();
        let call = client.append_entries(self.link.request(message, None));
        let reply = if entries < 2 {
            call.await
        } else {
            // The library gives a call up after a heartbeat, and would repeat the same one for ever: what cannot
            // arrive in that time is sent in smaller parts.
            let timely = tokio::time::timeout(option.soft_ttl(), call).await;
            timely.map_err(|_| PayloadTooLarge::new_entries_hint(entries / 2))?
        };
        let reply = reply.map_err(|status| rpc_error(&self.link, &status))?.into_inner();
        match reply.result.ok_or_else(|| malformed("result"))? {
            v1::append_reply::Result::Success(_) => Ok(AppendEntriesResponse::Success),
            v1::append_reply::Result::Partial(id) => {
                Ok(AppendEntriesResponse::PartialSuccess(Some(convert::message_log_id(&id))))
            }
            v1::append_reply::Result::Conflict(_) => Ok(AppendEntriesResponse::Conflict),
            v1::append_reply::Result::HigherVote(vote) => {
                Ok(AppendEntriesResponse::HigherVote(convert::message_vote(&vote)))
            }
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<InstallSnapshotResponse<NodeId>, RpcError<InstallSnapshotError>> {
        let message = v1::SnapshotChunk {
            vote: Some(convert::vote_message(&rpc.vote)),
            meta: codec::encode(&convert::snapshot_record(&rpc.meta)),
            offset: rpc.offset,
            data: rpc.data.into(),
            done: rpc.done,
        };
        let reply = self.link.client().install_snapshot(self.link.request(message, None)).await;
        let reply = reply.map_err(|status| rpc_error(&self.link, &status))?.into_inner();
        let vote = reply.vote.ok_or_else(|| malformed("vote"))?;
        Ok(InstallSnapshotResponse { vote: convert::message_vote(&vote) })
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<NodeId>,
        _option: RPCOption,
    ) -> Result<VoteResponse<NodeId>, RpcError<openraft::error::Infallible>> {
        let message = v1::VoteRequest {
            vote: Some(convert::vote_message(&rpc.vote)),
            last_log: rpc.last_log_id.map(convert::log_id_message),
            transfer: self.link.shared.transfer_term.load(Ordering::Acquire) == rpc.vote.leader_id.term,
        };
        let reply = self.link.client().vote(self.link.request(message, None)).await;
        let reply = reply.map_err(|status| rpc_error(&self.link, &status))?.into_inner();
        let vote = reply.vote.ok_or_else(|| malformed("vote"))?;
        let last_log = reply.last_log.as_ref().map(convert::message_log_id);
        Ok(VoteResponse::new(convert::message_vote(&vote), last_log, reply.granted))
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(UNREACHABLE_PAUSE))
    }
}
