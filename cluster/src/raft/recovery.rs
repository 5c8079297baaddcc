//! A new group out of one surviving disk, when the majority of the old one is gone for good.
//!
//! Job: [`recover`] turns the data folder of a node that is stopped into that of the only voter of a new group:
//! it applies all that the disk holds, says so in a snapshot whose membership is this node alone, and gives the
//! cluster another uuid. Invariants: nobody of the old group is ever spoken to again (each call names the uuid),
//! and none of their ids is given again; a crash in the middle leaves a folder that is recovered by the same call,
//! and no node that two groups believe to be theirs. Neighbours: `storage` has the parts of the folder, `members`
//! lets new nodes in afterwards.
//!
//! What may be lost: what the disk does not hold. An acknowledged write is on a majority's disks, so this one may
//! lack the newest of them. What it holds beyond that was proposed and perhaps never acknowledged: it is kept,
//! because it may have been.
//!
//! The order: (1) the new uuid, so that from here on nobody of the old group answers this node; (2) the snapshot;
//! (3) the log, which it covers, is emptied. After (1) alone the node knows the old members and reaches none of
//! them: it leads nothing until the call is repeated.

use std::{collections::BTreeMap, path::Path};

use super::convert;
use crate::{
    bootstrap::new_uuid,
    handle::StartError,
    state::{Command, NewNode, NodeId, State},
    storage::{
        DataDir, LogStore, Meta, Snapshot, StorageError,
        codec::{
            self, Batch, CodecError, EntryRecord, LogPosition, MembershipRecord, NodeRecord, PayloadRecord,
        },
    },
};

/// Entries that are read at once.
const STEP: u64 = 256;

/// What the ids of the snapshots begin with that are made here.
const RECOVERED: &str = "recovered-";

/// What the disk of a survivor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survivor {
    /// The cluster's name.
    pub cluster: String,
    /// Its uuid, as it is on the disk now.
    pub cluster_uuid: String,
    /// This node's name.
    pub name: String,
    /// This node's id, which it keeps.
    pub node: NodeId,
    /// The last entry of its log.
    pub last_log: u64,
    /// How far it knows the log to be agreed on; what follows may have been acknowledged or not.
    pub committed: u64,
    /// The registered instances.
    pub instances: usize,
    /// The document's current version; 0: none.
    pub version: u64,
    /// The other members, which are to be gone for good.
    pub others: BTreeMap<NodeId, String>,
}

/// All that the disk says.
struct Found {
    dir: DataDir,
    node: NodeId,
    last: LogPosition,
    committed: u64,
    state: State,
    membership: MembershipRecord,
}

/// What the folder of a stopped node holds; changes nothing.
pub fn survivor(data_dir: &Path) -> Result<Survivor, StartError> {
    Ok(Found::read(data_dir)?.survivor())
}

/// Makes the node of this folder the only voter of a new group. Returns what it took over.
pub fn recover(data_dir: &Path) -> Result<Survivor, StartError> {
    let mut found = Found::read(data_dir)?;
    let mut identity = found.dir.identity.clone();
    identity.cluster_uuid = Some(new_uuid());
    identity.founders = Vec::new();
    identity.learner = false;
    found.dir.save_identity(identity)?;
    let survivor = found.survivor();
    found.retire_others();

    let Found { dir, node, last, state, membership, .. } = found;
    let own = membership.nodes.get(&node).cloned().unwrap_or_else(|| NodeRecord {
        name: dir.identity.name.clone(),
        incarnation: dir.identity.incarnation,
        ..NodeRecord::default()
    });
    let record = convert::SnapshotRecord {
        last: Some(last),
        membership_at: Some(last),
        membership: MembershipRecord { voters: vec![[node].into()], nodes: [(node, own)].into() },
        id: format!("{RECOVERED}{}", last.index),
    };
    let snapshot = Snapshot {
        index: last.index,
        meta: codec::encode(&record),
        state: codec::encode_state(&state.freeze()),
    };
    dir.snapshots.write(&snapshot)?;
    let position = codec::encode(&last);
    dir.log.put(Meta::Purged, Some(&position))?;
    dir.log.put(Meta::Committed, Some(&position))?;
    dir.log.barrier()?;
    dir.log.purge(last.index)?;
    dir.log.barrier()?;
    Ok(survivor)
}

// === impl Found ===

impl Found {
    fn read(data_dir: &Path) -> Result<Self, StartError> {
        let refused = |problem: String| StartError::DataDir { path: data_dir.to_owned(), problem };
        let dir = DataDir::open_existing(data_dir)?;
        let Some(node) = dir.identity.node else {
            return Err(refused(
                "its node never was part of a cluster: there is nothing to recover".to_owned(),
            ));
        };
        let mut state = State::default();
        let mut membership = MembershipRecord::default();
        let mut last = None;
        let mut cut_short = false;
        if let Some(snapshot) = dir.snapshots.newest()? {
            let record: convert::SnapshotRecord = decode("a snapshot's description", &snapshot.meta)?;
            state = codec::decode_state(&snapshot.state).map_err(|error| unread(&error))?;
            cut_short = record.id.starts_with(RECOVERED);
            (last, membership) = (record.last, record.membership);
        }
        let indexes = dir.log.indexes();
        cut_short &= !indexes.is_empty() && last.is_some_and(|last| indexes.start <= last.index);
        let mut from = indexes.start;
        while from < indexes.end {
            let records = dir.log.read(from..indexes.end.min(from + STEP))?;
            if records.is_empty() {
                break;
            }
            from += records.len() as u64;
            for bytes in records {
                let EntryRecord { position, payload } = decode("an entry", &bytes)?;
                if last.is_some_and(|last: LogPosition| position.index <= last.index) {
                    continue;
                }
                last = Some(position);
                match payload {
                    PayloadRecord::Blank => {}
                    PayloadRecord::Membership(record) => membership = record,
                    PayloadRecord::Batch(batch) => {
                        let Batch { since_tick_ms, commands } = decode("a batch of commands", &batch)?;
                        for command in commands {
                            state.apply(command, since_tick_ms, &mut Vec::new());
                        }
                    }
                }
            }
        }
        let Some(last) = last else {
            return Err(refused(
                "nothing was ever agreed with its node: there is nothing to recover".to_owned(),
            ));
        };
        if state.members().is_retired(node) {
            return Err(refused(format!("node {node} was removed from its cluster: it cannot stand for it")));
        }
        if !cut_short && membership.nodes.keys().eq([&node]) && membership.voters == [[node].into()] {
            return Err(refused(format!(
                "node {node} is the only member of its cluster: it needs no other to lead, start it"
            )));
        }
        let committed = match dir.log.get(Meta::Committed)? {
            Some(bytes) => decode::<LogPosition>("a position", &bytes)?.index,
            None => 0,
        };
        Ok(Self { dir, node, last, committed, state, membership })
    }

    fn survivor(&self) -> Survivor {
        let identity = &self.dir.identity;
        let others = self.membership.nodes.iter().filter(|(id, _)| **id != self.node);
        Survivor {
            cluster: identity.cluster_name.clone(),
            cluster_uuid: identity.cluster_uuid.clone().unwrap_or_default(),
            name: identity.name.clone(),
            node: self.node,
            last_log: self.last.index,
            committed: self.committed.min(self.last.index),
            instances: self.state.registry().len(),
            version: self.state.documents().current_version(),
            others: others.map(|(id, record)| (*id, record.name.clone())).collect(),
        }
    }

    /// The ids of the others are never given again, those of founders that nobody had noted yet included.
    fn retire_others(&mut self) {
        for (id, record) in &self.membership.nodes {
            let admit = NewNode { name: record.name.clone(), incarnation: record.incarnation, id: Some(*id) };
            self.state.apply(Command::AdmitNode(admit), 0, &mut Vec::new());
        }
        let others: Vec<_> = self.state.members().ids().filter(|id| *id != self.node).collect();
        for node in others {
            self.state.apply(Command::RetireNode { node }, 0, &mut Vec::new());
        }
    }
}

fn decode<T: serde::de::DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, StartError> {
    codec::decode(what, bytes).map_err(|error| unread(&error))
}

fn unread(error: &CodecError) -> StartError {
    StorageError::of("the node's data folder", error).into()
}
