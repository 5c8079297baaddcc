//! The gateway documents: numbered, compared, kept.
//!
//! Invariants: versions count up by one; the newest is the current one; at most [`HISTORY`] are kept; what
//! equals the current one is not a new version. Whether a document is valid was decided before it was
//! proposed: here it is text. Neighbours: `State::apply` calls, `crate::control` validates and compiles.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::command::{NewDocument, Refusal};

/// How many versions are kept.
pub const HISTORY: usize = 64;

/// One version of the gateway document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// From 1.
    pub version: u64,
    /// As the operator wrote it.
    pub content: Arc<str>,
    /// Of the content, in hexadecimal.
    pub sha256: String,
    /// Who made it.
    pub by: String,
    /// The proposer's wall clock, milliseconds since 1970.
    pub at_ms: u64,
}

/// The newest versions, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Documents {
    versions: VecDeque<Arc<Version>>,
}

// === impl Documents ===

impl Documents {
    /// The version that runs; none before the first.
    #[must_use]
    pub fn current(&self) -> Option<&Arc<Version>> {
        self.versions.back()
    }

    /// The current version's number; 0 before the first.
    #[must_use]
    pub fn current_version(&self) -> u64 {
        self.current().map_or(0, |document| document.version)
    }

    /// The version with this number, while it is kept.
    #[must_use]
    pub fn get(&self, version: u64) -> Option<&Arc<Version>> {
        self.versions.iter().find(|document| document.version == version)
    }

    /// All that are kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Version>> {
        self.versions.iter()
    }

    /// The current version's number, and whether it is new.
    pub(super) fn put(&mut self, document: NewDocument) -> Result<(u64, bool), Refusal> {
        let NewDocument { expected, content, by, at_ms } = document;
        let current = self.current_version();
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(Refusal::StaleDocument { current, expected });
        }
        if self.current().is_some_and(|document| document.content == content) {
            return Ok((current, false));
        }
        let version = current + 1;
        let sha256 = Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        self.versions.push_back(Arc::new(Version { version, content, sha256, by, at_ms }));
        if self.versions.len() > HISTORY {
            self.versions.pop_front();
        }
        Ok((version, true))
    }

    pub(super) fn rollback(
        &mut self,
        to: u64,
        expected: Option<u64>,
        by: String,
        at_ms: u64,
    ) -> Result<(u64, bool), Refusal> {
        let Some(document) = self.get(to) else {
            let oldest = self.versions.front().map_or(0, |document| document.version);
            return Err(Refusal::UnknownVersion { version: to, oldest, newest: self.current_version() });
        };
        let content = document.content.clone();
        self.put(NewDocument { expected, content, by, at_ms })
    }
}
