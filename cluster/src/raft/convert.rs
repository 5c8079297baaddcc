//! The library's types ↔ the codec's records.

use openraft::{
    CommittedLeaderId, Entry, EntryPayload, LogId, SnapshotMeta, StorageError, StorageIOError,
    StoredMembership, Vote,
};

use gogate_proto::v1;
use serde::{Deserialize, Serialize};

use super::{Proposal, TypeConfig};
use crate::{
    state::NodeId,
    storage::codec::{EntryRecord, LogPosition, MembershipRecord, NodeRecord, PayloadRecord, VoteRecord},
};

/// An error as the library wants it.
pub(super) type Failure = StorageError<NodeId>;

pub(super) fn position(id: LogId<NodeId>) -> LogPosition {
    LogPosition { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(super) fn log_id(position: LogPosition) -> LogId<NodeId> {
    LogId::new(CommittedLeaderId::new(position.term, position.node), position.index)
}

pub(super) fn vote_record(vote: &Vote<NodeId>) -> VoteRecord {
    VoteRecord { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn vote(record: VoteRecord) -> Vote<NodeId> {
    match record.committed {
        true => Vote::new_committed(record.term, record.node),
        false => Vote::new(record.term, record.node),
    }
}

pub(super) fn entry_record(entry: &Entry<TypeConfig>) -> EntryRecord {
    let payload = match &entry.payload {
        EntryPayload::Blank => PayloadRecord::Blank,
        EntryPayload::Normal(proposal) => PayloadRecord::Batch(proposal.batch.clone()),
        EntryPayload::Membership(membership) => PayloadRecord::Membership(membership_record(membership)),
    };
    EntryRecord { position: position(entry.log_id), payload }
}

pub(super) fn entry(record: EntryRecord) -> Entry<TypeConfig> {
    let payload = match record.payload {
        PayloadRecord::Blank => EntryPayload::Blank,
        PayloadRecord::Batch(batch) => EntryPayload::Normal(Proposal { batch, appended: None }),
        PayloadRecord::Membership(record) => EntryPayload::Membership(membership(record)),
    };
    Entry { log_id: log_id(record.position), payload }
}

pub(super) fn membership_record(membership: &openraft::Membership<NodeId, NodeRecord>) -> MembershipRecord {
    MembershipRecord {
        voters: membership.get_joint_config().clone(),
        nodes: membership.nodes().map(|(id, node)| (*id, node.clone())).collect(),
    }
}

pub(super) fn membership(record: MembershipRecord) -> openraft::Membership<NodeId, NodeRecord> {
    openraft::Membership::new(record.voters, record.nodes)
}

pub(super) fn stored_membership(
    at: Option<LogPosition>,
    record: MembershipRecord,
) -> StoredMembership<NodeId, NodeRecord> {
    StoredMembership::new(at.map(log_id), membership(record))
}

/// What identifies a snapshot, as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SnapshotRecord {
    pub(super) last: Option<LogPosition>,
    pub(super) membership_at: Option<LogPosition>,
    pub(super) membership: MembershipRecord,
    pub(super) id: String,
}

pub(super) fn snapshot_record(meta: &SnapshotMeta<NodeId, NodeRecord>) -> SnapshotRecord {
    SnapshotRecord {
        last: meta.last_log_id.map(position),
        membership_at: meta.last_membership.log_id().map(position),
        membership: membership_record(meta.last_membership.membership()),
        id: meta.snapshot_id.clone(),
    }
}

pub(super) fn snapshot_meta(record: SnapshotRecord) -> SnapshotMeta<NodeId, NodeRecord> {
    SnapshotMeta {
        last_log_id: record.last.map(log_id),
        last_membership: stored_membership(record.membership_at, record.membership),
        snapshot_id: record.id,
    }
}

pub(super) fn cannot_read(error: &(impl std::error::Error + 'static)) -> Failure {
    StorageIOError::read(openraft::AnyError::new(error)).into()
}

pub(super) fn cannot_write(error: &(impl std::error::Error + 'static)) -> Failure {
    StorageIOError::write(openraft::AnyError::new(error)).into()
}

// === On the wire ===

pub(super) fn vote_message(vote: &Vote<NodeId>) -> v1::Vote {
    v1::Vote { term: vote.leader_id.term, node: vote.leader_id.node_id, committed: vote.committed }
}

pub(super) fn message_vote(message: &v1::Vote) -> Vote<NodeId> {
    vote(VoteRecord { term: message.term, node: message.node, committed: message.committed })
}

pub(super) fn log_id_message(id: LogId<NodeId>) -> v1::LogId {
    v1::LogId { term: id.leader_id.term, node: id.leader_id.node_id, index: id.index }
}

pub(super) fn message_log_id(message: &v1::LogId) -> LogId<NodeId> {
    log_id(message_position(message))
}

pub(super) fn message_position(message: &v1::LogId) -> LogPosition {
    LogPosition { term: message.term, node: message.node, index: message.index }
}
