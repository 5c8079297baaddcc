//! What lies on the disk: the log, the vote, the snapshots, the identity.
//!
//! Invariants: nothing here knows Raft's rules, it keeps bytes and says when they are durable; a record that
//! does not check is reported, never served. Layout of a data folder: `identity` (which node of which
//! cluster), `format` (who can read it), `log/` (sled), `snapshots/` (our own files). Neighbours: `raft::log_store` decides what to write
//! and in which order, `codec` alone turns types into bytes.

pub mod codec;
mod data_dir;
mod folder;
mod formats;
mod frame;
mod guard;
mod identity;
mod memory;
mod sled;
mod snapshot;

use std::{ops::Range, path::PathBuf};

use bytes::Bytes;

pub use data_dir::{DataDir, Owner};
pub use formats::Formats;
pub use identity::Identity;
pub use memory::MemoryLog;
pub use snapshot::{Snapshot, Snapshots};

pub use self::sled::SledLog;

/// What goes wrong with a disk.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The system refused: full, unwritable, gone.
    #[error("{path}: {source}")]
    Io {
        /// Which file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// What is there is not what was written.
    #[error("{path}: {problem}")]
    Damaged {
        /// Which file or folder.
        path: PathBuf,
        /// What was found.
        problem: String,
    },
    /// It is somebody else's, or of a format that this build does not understand.
    #[error("{path}: {problem}")]
    Refused {
        /// Which folder or file.
        path: PathBuf,
        /// Whose it is, and what to do.
        problem: String,
    },
}

// === impl StorageError ===

impl StorageError {
    /// Of something in `path` that cannot be decoded: what another build wrote is sound.
    pub(crate) fn of(path: impl Into<PathBuf>, error: &codec::CodecError) -> Self {
        let (path, problem) = (path.into(), error.to_string());
        match error {
            codec::CodecError::Newer { .. } | codec::CodecError::Older { .. } => {
                Self::Refused { path, problem }
            }
            codec::CodecError::Malformed { .. } => Self::Damaged { path, problem },
        }
    }
}

/// The small values that are kept beside the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Meta {
    /// Who was voted for in which term.
    Vote,
    /// How far the log was known to be committed: a hint, written without a barrier of its own.
    Committed,
    /// The last log id that was purged.
    Purged,
}

// === impl Meta ===

impl Meta {
    /// Each of them.
    pub(crate) const ALL: [Self; 3] = [Self::Vote, Self::Committed, Self::Purged];
}

/// A log of records numbered without gaps, with a few small values beside it.
///
/// Writes are visible to reads at once and durable after the next [`LogStore::barrier`]; they reach the disk
/// in the order of the calls. One thread writes at a time; reads may come from any. All calls block.
pub trait LogStore: Send + Sync + 'static {
    /// The indexes that are there; empty: `0..0`.
    fn indexes(&self) -> Range<u64>;
    /// Adds records; the first one's index follows the last one that is there, or starts an empty log.
    fn append(&self, first: u64, records: &[Bytes]) -> Result<(), StorageError>;
    /// Removes every record from `index` on.
    fn truncate(&self, index: u64) -> Result<(), StorageError>;
    /// Removes every record up to and including `index`.
    fn purge(&self, index: u64) -> Result<(), StorageError>;
    /// The records of `range` that are there, in order.
    fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, StorageError>;
    /// Keeps a small value; `None` forgets it.
    fn put(&self, meta: Meta, value: Option<&[u8]>) -> Result<(), StorageError>;
    /// The small value.
    fn get(&self, meta: Meta) -> Result<Option<Bytes>, StorageError>;
    /// Returns when all that was written before is on the disk.
    fn barrier(&self) -> Result<(), StorageError>;
}
