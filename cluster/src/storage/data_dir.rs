//! A node's data folder, opened in the one order that is safe.
//!
//! Job: lock, formats, identity, log, snapshots; and whether they belong together. Invariant: what was there once and is
//! missing now is damage, never a fresh start. A first start makes the log before the identity: an identity
//! means that all of it was there.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    Formats, Identity, LogStore, Meta, SledLog, Snapshots, StorageError,
    codec::FORMAT,
    folder::{lock_folder, sync_folder},
};

/// Whose folder it must be.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The cluster's name.
    pub cluster_name: &'a str,
    /// The node's name.
    pub name: &'a str,
    /// Whether a new node follows without a vote; a known one stays what it is.
    pub learner: bool,
    /// The newest format that it understands.
    pub format: u8,
}

/// All that lies in a data folder. Nobody else can open it until this is dropped.
pub struct DataDir {
    /// Which node of which cluster; [`DataDir::save_identity`] changes it.
    pub identity: Identity,
    /// Which formats it holds.
    pub formats: Arc<Formats>,
    /// The log.
    pub log: Arc<SledLog>,
    /// The snapshots.
    pub snapshots: Arc<Snapshots>,
    /// Whether a vote, a log or a snapshot was there when it was opened.
    pub used: bool,
    path: PathBuf,
    _lock: File,
}

// === impl DataDir ===

impl DataDir {
    /// Opens `path` for `owner`, or makes it on the first start.
    pub fn open(path: &Path, owner: Owner<'_>) -> Result<Self, StorageError> {
        let io = |source| StorageError::Io { path: path.to_owned(), source };
        let damaged = |problem: String| StorageError::Damaged { path: path.to_owned(), problem };
        fs::create_dir_all(path).map_err(io)?;
        let lock = lock_folder(path)?;
        let formats = Formats::open(path, owner.format)?;
        let known = Identity::load(path)?;
        if let Some(identity) = &known {
            identity.check(path, owner.cluster_name, owner.name)?;
        }
        let log_path = path.join("log");
        if known.is_some() && !SledLog::exists(&log_path) {
            return Err(damaged("it has an identity, but its log is missing".to_owned()));
        }
        let log = SledLog::open(&log_path)?;
        let snapshots = Snapshots::open(&path.join("snapshots"))?;
        let covered = snapshots.newest_index().map_or(0, |index| index + 1);
        if log.first() > covered.max(1) {
            return Err(damaged(format!(
                "its log begins at {}, but the snapshot of what came before is missing or older",
                log.first()
            )));
        }
        let used = log.is_used()? || snapshots.newest_index().is_some();
        let identity = match known {
            Some(identity) => identity,
            None if used => {
                return Err(damaged("it has a log or a snapshot, but its identity is missing".to_owned()));
            }
            None => {
                let identity = Identity::new(owner.cluster_name, owner.name, owner.learner);
                sync_folder(path)?;
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    sync_folder(parent)?;
                }
                identity.save(path)?;
                identity
            }
        };
        let (formats, log, snapshots) = (Arc::new(formats), Arc::new(log), Arc::new(snapshots));
        Ok(Self { identity, formats, log, snapshots, used, path: path.to_owned(), _lock: lock })
    }

    /// Opens the folder of a node that is stopped, whoever it is; makes nothing.
    pub fn open_existing(path: &Path) -> Result<Self, StorageError> {
        // Read before it is locked, and again by `open`: whoever runs keeps it out there.
        match Identity::load(path)? {
            Some(identity) => {
                let Identity { cluster_name, name, learner, .. } = &identity;
                Self::open(path, Owner { cluster_name, name, learner: *learner, format: FORMAT })
            }
            None => Err(StorageError::Refused {
                path: path.to_owned(),
                problem: "no node has its data here".to_owned(),
            }),
        }
    }

    /// Keeps what was learned about this node; returns when it is on the disk.
    pub fn save_identity(&mut self, identity: Identity) -> Result<(), StorageError> {
        identity.save(&self.path)?;
        self.identity = identity;
        Ok(())
    }
}

// === impl SledLog ===

impl SledLog {
    /// Whether anything was ever kept in it.
    fn is_used(&self) -> Result<bool, StorageError> {
        for meta in Meta::ALL {
            if self.get(meta)?.is_some() {
                return Ok(true);
            }
        }
        Ok(self.first() > 0 || !self.indexes().is_empty())
    }
}
