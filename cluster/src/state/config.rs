//! The gateway documents: staged, then activated or refused; numbered, compared, kept.
//!
//! A document takes effect everywhere or nowhere (P7): [`Documents::stage`] keeps it beside what runs, every live
//! node says whether it can run it, and [`Documents::activate`] makes it current for all at one place in the log,
//! or [`Documents::refuse`] drops it.
//!
//! Invariants: a number is given once and numbers go up, those that were refused included; at most one document is
//! staged; the current one is the newest that was activated; at most [`HISTORY`] of those and some 64 MiB are kept; what equals the
//! current one is not a new version. Whether a document is valid was decided before it was proposed: here it is
//! text. Neighbours: `State::apply` calls, `crate::activation` asks the nodes, `crate::control` validates and compiles.

use std::{collections::VecDeque, sync::Arc};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::command::{NewDocument, Refusal};

/// How many versions are kept.
pub const HISTORY: usize = 64;

/// Bytes of all that are kept; of more, the oldest go, but not the last two: the current one, and the one to go back to.
const HISTORY_BYTES: usize = 64 << 20;

/// How many refusals are kept, for callers that still wait for the answer.
const REFUSED_MAX: usize = 16;

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

/// What became of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// The nodes are being asked whether they can run it.
    Staged,
    /// It is or was the current one.
    Activated,
    /// It never runs.
    Refused {
        /// Which node cannot, and why.
        reason: String,
    },
    /// It was never given, or was forgotten.
    Unknown,
}

/// The newest versions, oldest first, and the one to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Documents {
    versions: VecDeque<Arc<Version>>,
    staged: Option<Arc<Version>>,
    refused: VecDeque<(u64, String)>,
    /// The last number that was given.
    last: u64,
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

    /// The version that is to become the current one if every live node can run it.
    #[must_use]
    pub fn staged(&self) -> Option<&Arc<Version>> {
        self.staged.as_ref()
    }

    /// The version with this number, while it is kept.
    #[must_use]
    pub fn get(&self, version: u64) -> Option<&Arc<Version>> {
        self.versions.iter().find(|document| document.version == version)
    }

    /// All that were activated and are kept, oldest first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Version>> {
        self.versions.iter()
    }

    /// What became of a version.
    #[must_use]
    pub fn fate(&self, version: u64) -> Fate {
        if self.staged.as_ref().is_some_and(|staged| staged.version == version) {
            return Fate::Staged;
        }
        match self.refused.iter().find(|(refused, _)| *refused == version) {
            Some((_, reason)) => Fate::Refused { reason: reason.clone() },
            None if self.get(version).is_some() => Fate::Activated,
            None => Fate::Unknown,
        }
    }

    /// The number of the staged version, or of the current one if the document equals it; and whether it is staged.
    pub(super) fn stage(&mut self, document: NewDocument) -> Result<(u64, bool), Refusal> {
        let NewDocument { expected, content, by, at_ms } = document;
        let current = self.current_version();
        if let Some(staged) = &self.staged {
            return Err(Refusal::Staging { version: staged.version });
        }
        if let Some(expected) = expected.filter(|expected| *expected != current) {
            return Err(Refusal::StaleDocument { current, expected });
        }
        if self.current().is_some_and(|document| document.content == content) {
            return Ok((current, false));
        }
        self.last += 1;
        let version = self.last;
        let sha256 = Sha256::digest(content.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        self.staged = Some(Arc::new(Version { version, content, sha256, by, at_ms }));
        Ok((version, true))
    }

    pub(super) fn stage_old(
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
        self.stage(NewDocument { expected, content, by, at_ms })
    }

    /// Makes the staged version the current one.
    pub(super) fn activate(&mut self, version: u64) -> Result<(), Refusal> {
        let staged = self.take_staged(version)?;
        self.versions.push_back(staged);
        let mut bytes: usize = self.versions.iter().map(|version| version.content.len()).sum();
        while self.versions.len() > HISTORY || (bytes > HISTORY_BYTES && self.versions.len() > 2) {
            bytes -= self.versions.pop_front().map_or(0, |oldest| oldest.content.len());
        }
        Ok(())
    }

    /// The last number that was given.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Puts other versions in the place of these. The newest of them is in force under a number beyond
    /// `given`: if its own is not, it becomes a new version, too.
    pub(super) fn replace(&mut self, versions: Vec<Arc<Version>>, given: u64) {
        if let Some(staged) = self.staged.take() {
            self.refused.push_back((staged.version, "a backup was restored".to_owned()));
        }
        self.versions = versions.into();
        self.last = self.last.max(self.current_version());
        if let Some(current) = self.current().filter(|current| current.version <= given) {
            let again = Version { version: self.last + 1, ..Version::clone(current) };
            self.last += 1;
            self.versions.push_back(Arc::new(again));
        }
        while self.versions.len() > HISTORY {
            self.versions.pop_front();
        }
        while self.refused.len() > REFUSED_MAX {
            self.refused.pop_front();
        }
    }

    /// Drops the staged version.
    pub(super) fn refuse(&mut self, version: u64, reason: String) -> Result<(), Refusal> {
        self.take_staged(version)?;
        self.refused.push_back((version, reason));
        if self.refused.len() > REFUSED_MAX {
            self.refused.pop_front();
        }
        Ok(())
    }

    fn take_staged(&mut self, version: u64) -> Result<Arc<Version>, Refusal> {
        self.staged.take_if(|staged| staged.version == version).ok_or(Refusal::NotStaged { version })
    }
}
