//! Types ↔ bytes, versioned: the only place that knows either format.
//!
//! Invariants: every encoding begins with its format version; what a reader does not know is an error that
//! stops the node, never something to skip. Neighbours: `raft` (log, network), `storage::snapshot`, `forward`.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::state::{Command, NodeId};

/// The format of all that is written; a reader accepts this one and older ones down to [`OLDEST`].
pub const FORMAT: u8 = 2;

/// The oldest format that is read. What is older was never released.
pub const OLDEST: u8 = 2;

/// What cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Written by a newer build.
    #[error("format {found} is newer than this build's {FORMAT}: run the newer build")]
    Newer {
        /// The format found.
        found: u8,
    },
    /// Written by a build that is too old.
    #[error(
        "format {found} is older than {OLDEST}, the oldest that this build reads: start with an empty data folder"
    )]
    Older {
        /// The format found.
        found: u8,
    },
    /// Not what any build wrote.
    #[error("cannot be read as {what}: {problem}")]
    Malformed {
        /// The type.
        what: &'static str,
        /// What was found.
        problem: String,
    },
}

/// Where an entry stands in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogPosition {
    /// The term of the leader that wrote it.
    pub term: u64,
    /// That leader.
    pub node: NodeId,
    /// Its index.
    pub index: u64,
}

/// A vote as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRecord {
    /// The term.
    pub term: u64,
    /// For whom.
    pub node: NodeId,
    /// Whether a majority granted it.
    pub committed: bool,
}

/// An entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryRecord {
    /// Where it stands.
    pub position: LogPosition,
    /// What it carries.
    pub payload: PayloadRecord,
}

/// What an entry carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PayloadRecord {
    /// Nothing: the first of a term.
    Blank,
    /// An encoded [`Batch`].
    Batch(Bytes),
    /// Who is part of the group.
    Membership(MembershipRecord),
}

/// Who is part of the group.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MembershipRecord {
    /// The voters; two sets while they change.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All nodes, learners included.
    pub nodes: BTreeMap<NodeId, NodeRecord>,
}

/// A member as the group knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Stable and unique.
    pub name: String,
    /// `host:port` of its gRPC service.
    pub peer: String,
    /// `host:port` of its admin API.
    pub admin: String,
    /// Made when its data folder was made.
    pub incarnation: u64,
}

/// The commands of one log entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// The leader's time since its last tick when it took them in.
    pub since_tick_ms: u64,
    /// In order.
    pub commands: Vec<Command>,
}

/// `value` behind the format's version. Used for every type of this module, commands and outcomes included.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    let bytes = vec![FORMAT];
    Bytes::from(postcard::to_extend(value, bytes).expect("these types have a serialization and memory grows"))
}

/// The value that [`encode`] wrote, whole: bytes left over are an error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let malformed = |problem: String| CodecError::Malformed { what, problem };
    match bytes.split_first() {
        None => Err(malformed("it is empty".to_owned())),
        Some((&found, _)) if found > FORMAT => Err(CodecError::Newer { found }),
        Some((&found, _)) if found < OLDEST => Err(CodecError::Older { found }),
        Some((_, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok((_, left)) => Err(malformed(format!("{} bytes are left over", left.len()))),
            Err(error) => Err(malformed(error.to_string())),
        },
    }
}
