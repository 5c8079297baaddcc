//! The library's own suite for storages, over both logs.

use std::sync::Arc;

use openraft::{
    StorageError,
    testing::{StoreBuilder, Suite},
};
use tokio::sync::watch;

use super::{RaftLog, Replica, StateMachine, TypeConfig, convert};
use crate::{
    state::NodeId,
    storage::{Formats, LogStore, MemoryLog, SledLog, Snapshots, codec},
};

/// Makes each test a store of its own; what it returns first keeps the folder there.
struct Builder {
    sled: bool,
}

impl StoreBuilder<TypeConfig, RaftLog, StateMachine, tempfile::TempDir> for Builder {
    async fn build(&self) -> Result<(tempfile::TempDir, RaftLog, StateMachine), StorageError<NodeId>> {
        let folder = tempfile::tempdir().map_err(|error| convert::cannot_write(&error))?;
        let log: Arc<dyn LogStore> = match self.sled {
            true => {
                let log = SledLog::open(&folder.path().join("log"));
                Arc::new(log.map_err(|error| convert::cannot_write(&error))?)
            }
            false => Arc::new(MemoryLog::default()),
        };
        let snapshots = Snapshots::open(&folder.path().join("snapshots"));
        let snapshots = Arc::new(snapshots.map_err(|error| convert::cannot_write(&error))?);
        // The suite purges what no snapshot holds.
        let (_, covered) = watch::channel(Some(u64::MAX));
        let formats = Formats::open(folder.path(), codec::FORMAT);
        let formats = Arc::new(formats.map_err(|error| convert::cannot_read(&error))?);
        let (log, _writer) = RaftLog::open(log, formats.clone(), Arc::default(), covered)
            .map_err(|error| convert::cannot_write(&error))?;
        let machine = StateMachine::open(Arc::new(Replica::new()), snapshots, formats)
            .map_err(|error| convert::cannot_write(&error))?;
        Ok((folder, log, machine))
    }
}

#[test]
fn the_memory_log_passes_the_librarys_suite() {
    Suite::test_all(Builder { sled: false }).unwrap();
}

#[test]
fn the_sled_log_passes_the_librarys_suite() {
    Suite::test_all(Builder { sled: true }).unwrap();
}
