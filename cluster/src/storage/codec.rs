//! Types ↔ bytes, versioned: the only place that knows either format.
//!
//! Every encoding begins with the number of its format. What is a node's own or as it always was (votes, positions,
//! the frame of an entry, what peers tell each other) is of the oldest one. What the cluster agrees on, batches and states,
//! is of the format in the replicated state (`state::format`), so that no member meets what it does not understand.
//! Invariants: what a reader does not know is an error that stops the node, never something to skip. Neighbours:
//! `raft` (log, network), `storage::snapshot`, `forward`; `storage::formats` keeps older builds away from a folder.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::state::{Command, Frozen, NodeId, State};
pub use crate::state::{FORMAT, OLDEST};

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

/// `value` in the oldest format. For every type of this module, and for commands and outcomes between two nodes,
/// which are as they were when they came.
pub fn encode<T: Serialize>(value: &T) -> Bytes {
    encode_in(OLDEST, value)
}

/// `value` behind the number of `format`.
pub fn encode_in<T: Serialize>(format: u8, value: &T) -> Bytes {
    Bytes::from(extended(vec![format], value))
}

/// The state in the format that it says.
pub fn encode_state(state: &Frozen) -> Bytes {
    let bytes = extended(vec![state.format()], state);
    #[cfg(feature = "next-format")]
    let bytes = if state.format() >= 4 { extended(bytes, &state.counted()) } else { bytes };
    Bytes::from(bytes)
}

fn extended<T: Serialize>(bytes: Vec<u8>, value: &T) -> Vec<u8> {
    postcard::to_extend(value, bytes).expect("these types have a serialization and memory grows")
}

/// The value that [`encode`] wrote, whole: bytes left over are an error.
pub fn decode<T: DeserializeOwned>(what: &'static str, bytes: &[u8]) -> Result<T, CodecError> {
    let rest = understood(what, bytes)?;
    let (value, left) = split_off(what, rest)?;
    ended(what, left)?;
    Ok(value)
}

/// The state that [`encode_state`] wrote, whole.
pub fn decode_state(bytes: &[u8]) -> Result<State, CodecError> {
    const WHAT: &str = "the state";
    let rest = understood(WHAT, bytes)?;
    let (state, left) = split_off::<State>(WHAT, rest)?;
    let state = state.read_in(format_of(bytes));
    #[cfg(feature = "next-format")]
    let (state, left) = match state.format() {
        ..4 => (state, left),
        4.. => {
            let (counted, left) = split_off(WHAT, left)?;
            (state.with_counted(counted), left)
        }
    };
    ended(WHAT, left)?;
    Ok(state)
}

/// In which format something was written; 0: it is empty.
pub fn format_of(bytes: &[u8]) -> u8 {
    bytes.first().copied().unwrap_or(0)
}

/// What follows the format, if this build reads that one.
fn understood<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a [u8], CodecError> {
    match bytes.split_first() {
        None => Err(CodecError::Malformed { what, problem: "it is empty".to_owned() }),
        Some((&found, _)) if found > FORMAT => Err(CodecError::Newer { found }),
        Some((&found, _)) if found < OLDEST => Err(CodecError::Older { found }),
        Some((_, rest)) => Ok(rest),
    }
}

fn split_off<'a, T: DeserializeOwned>(
    what: &'static str,
    bytes: &'a [u8],
) -> Result<(T, &'a [u8]), CodecError> {
    postcard::take_from_bytes(bytes)
        .map_err(|error| CodecError::Malformed { what, problem: error.to_string() })
}

fn ended(what: &'static str, left: &[u8]) -> Result<(), CodecError> {
    match left.len() {
        0 => Ok(()),
        len => Err(CodecError::Malformed { what, problem: format!("{len} bytes are left over") }),
    }
}
