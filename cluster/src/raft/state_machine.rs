//! Carries committed entries into the replicated [`State`], and the state into snapshots and back.
//!
//! Invariants: entries are applied once, in the order of the log, by one task, and when they are on this node's
//! disk; what cannot be decoded stops
//! the core, it is never skipped; readers see all of an apply call or nothing of it. Neighbours: `handle`
//! reads the [`Replica`], `storage::snapshot` keeps the files.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
};

use openraft::{
    Entry, EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StoredMembership,
    storage::RaftStateMachine,
};
use tokio::sync::{broadcast, watch};

use super::{
    Outcomes, TypeConfig,
    convert::{self, Failure},
    log_store::Durable,
};
use crate::{
    state::{Change, ChangeKind, Frozen, NodeId, Outcome, State},
    storage::{
        self, Formats, Snapshots, StorageError,
        codec::{self, Batch, NodeRecord},
    },
};

/// Changes of this many entries wait for a subscriber; one that falls further behind is told to start over.
const CHANGES_QUEUE: usize = 4096;

/// The state as this node holds it, for readers.
#[derive(Debug)]
pub(crate) struct Replica {
    state: RwLock<State>,
    applied: watch::Sender<u64>,
    changes: broadcast::Sender<Arc<[Change]>>,
}

/// The library's side of a [`Replica`].
pub(crate) struct StateMachine {
    replica: Arc<Replica>,
    applied: Option<LogId<NodeId>>,
    membership: StoredMembership<NodeId, NodeRecord>,
    shelf: Arc<Shelf>,
    log: Durable,
}

/// The snapshot files, and what the newest one is.
struct Shelf {
    snapshots: Arc<Snapshots>,
    formats: Arc<Formats>,
    newest: Mutex<Option<Meta>>,
    /// The last log index that is in a snapshot on the disk.
    covered: watch::Sender<Option<u64>>,
}

/// The state at one index, to be written. It was copied: what is applied meanwhile does not show in it.
pub(crate) struct Builder {
    state: Frozen,
    applied: Option<LogId<NodeId>>,
    membership: StoredMembership<NodeId, NodeRecord>,
    shelf: Arc<Shelf>,
}

type Meta = SnapshotMeta<NodeId, NodeRecord>;

// === impl Replica ===

impl Replica {
    pub(crate) fn new() -> Self {
        let (applied, _) = watch::channel(0);
        let (changes, _) = broadcast::channel(CHANGES_QUEUE);
        Self { state: RwLock::default(), applied, changes }
    }

    pub(crate) fn read<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        // A panic in another reader leaves the state as it was.
        look(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The log index that the state has reached; changes after the state.
    pub(crate) fn applied(&self) -> watch::Receiver<u64> {
        self.applied.subscribe()
    }

    pub(crate) fn changes(&self) -> broadcast::Receiver<Arc<[Change]>> {
        self.changes.subscribe()
    }

    fn apply(&self, batches: Vec<Option<Batch>>) -> Vec<Outcomes> {
        let mut published = Vec::new();
        let mut outcomes = Vec::with_capacity(batches.len());
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            for batch in batches {
                let mut changes = Vec::new();
                outcomes.push(Outcomes(match batch {
                    None => Vec::new(),
                    Some(batch) => applied(&mut state, batch, &mut changes),
                }));
                if !changes.is_empty() {
                    published.push(changes);
                }
            }
        }
        for changes in published {
            // Nobody may be listening.
            let _ = self.changes.send(changes.into());
        }
        outcomes
    }

    fn replace(&self, state: State) {
        let index = state.index();
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = state;
        let _ = self.changes.send([Change { index, kind: ChangeKind::Reset }].into());
    }
}

fn applied(state: &mut State, batch: Batch, changes: &mut Vec<Change>) -> Vec<Outcome> {
    let Batch { since_tick_ms, commands } = batch;
    commands.into_iter().map(|command| state.apply(command, since_tick_ms, changes)).collect()
}

// === impl StateMachine ===

impl StateMachine {
    /// Brings `replica` to the newest snapshot.
    pub(crate) fn open(
        replica: Arc<Replica>,
        snapshots: Arc<Snapshots>,
        formats: Arc<Formats>,
    ) -> Result<Self, StorageError> {
        let (covered, _) = watch::channel(snapshots.newest_index());
        let shelf = Arc::new(Shelf { snapshots, formats, newest: Mutex::new(None), covered });
        let membership = StoredMembership::default();
        let mut machine = Self { replica, applied: None, membership, shelf, log: Durable::all() };
        if let Some(snapshot) = machine.shelf.snapshots.newest()? {
            let meta = machine.restore(&snapshot)?;
            *machine.shelf.newest() = Some(meta);
        }
        Ok(machine)
    }

    /// Up to which index the log may be removed, because a snapshot on the disk holds it. Ends with the state
    /// machine, which the library drops when it fails.
    pub(crate) fn covered(&self) -> watch::Receiver<Option<u64>> {
        self.shelf.covered.subscribe()
    }

    /// From now on entries are applied only when they are durable in the log.
    pub(crate) fn follow(&mut self, log: Durable) {
        self.log = log;
    }

    fn restore(&mut self, snapshot: &storage::Snapshot) -> Result<Meta, StorageError> {
        let unread = |error| StorageError::of(format!("the snapshot of index {}", snapshot.index), &error);
        let record = codec::decode("a snapshot's description", &snapshot.meta).map_err(unread)?;
        let state = codec::decode_state(&snapshot.state).map_err(unread)?;
        let meta = convert::snapshot_meta(record);
        self.replica.replace(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.replica.applied.send_replace(snapshot.index);
        Ok(meta)
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(
        &mut self,
    ) -> Result<(Option<LogId<NodeId>>, StoredMembership<NodeId, NodeRecord>), Failure> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcomes>, Failure>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut batches = Vec::new();
        for entry in entries {
            batches.push(match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => {
                    let batch = codec::decode::<Batch>("a batch of commands", &proposal.batch);
                    Some(batch.map_err(|error| {
                        let index = entry.log_id.index;
                        tracing::error!(index, %error, "an entry cannot be applied, this node stops");
                        convert::cannot_read(&error)
                    })?)
                }
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    None
                }
            });
            self.applied = Some(entry.log_id);
        }
        if let Some(last) = self.applied {
            // A leader's own disk may be the last to have what a majority has agreed on.
            self.log.reaches(last.index).await.map_err(|error| convert::cannot_write(&error))?;
        }
        let outcomes = self.replica.apply(batches);
        self.replica.applied.send_replace(self.applied.map_or(0, |id| id.index));
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            state: self.replica.read(State::freeze),
            applied: self.applied,
            membership: self.membership.clone(),
            shelf: self.shelf.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<tokio::fs::File>, Failure> {
        let file = self.shelf.snapshots.begin_receiving().map_err(|error| convert::cannot_write(&error))?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }

    async fn install_snapshot(
        &mut self,
        _meta: &Meta,
        snapshot: Box<tokio::fs::File>,
    ) -> Result<(), Failure> {
        let mut file = snapshot.into_std().await;
        let shelf = self.shelf.clone();
        let snapshot = blocking(move || {
            let _newest = shelf.newest();
            let snapshot = shelf
                .snapshots
                .install(&mut file, |snapshot| shelf.formats.admit(codec::format_of(&snapshot.state)))?;
            shelf.covered.send_replace(shelf.snapshots.newest_index());
            Ok(snapshot)
        })
        .await?;
        let meta = self.restore(&snapshot).map_err(|error| convert::cannot_read(&error))?;
        tracing::info!(index = snapshot.index, "a snapshot was installed");
        *self.shelf.newest() = Some(meta);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        let shelf = self.shelf.clone();
        blocking(move || shelf.current()).await
    }
}

/// Runs what waits for the disk off the tasks' threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| convert::cannot_read(&error))?
        .map_err(|error| convert::cannot_write(&error))
}

// === impl Shelf ===

impl Shelf {
    fn newest(&self) -> MutexGuard<'_, Option<Meta>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn current(&self) -> Result<Option<Snapshot<TypeConfig>>, StorageError> {
        let newest = self.newest();
        let Some(meta) = newest.clone() else { return Ok(None) };
        let Some(file) = self.snapshots.newest_file()? else { return Ok(None) };
        Ok(Some(Snapshot { meta, snapshot: Box::new(tokio::fs::File::from_std(file)) }))
    }

    fn keep(&self, meta: Meta, snapshot: &storage::Snapshot) -> Result<(), StorageError> {
        let mut newest = self.newest();
        self.snapshots.write(snapshot)?;
        self.covered.send_replace(self.snapshots.newest_index());
        // A newer one may have been installed meanwhile; then that one stays.
        if newest.as_ref().is_none_or(|newest| newest.last_log_id <= meta.last_log_id) {
            *newest = Some(meta);
        }
        Ok(())
    }
}

// === impl Builder ===

impl RaftSnapshotBuilder<TypeConfig> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Failure> {
        let index = self.applied.map_or(0, |id| id.index);
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id: format!("{index}-{:08x}", rand::random::<u32>()),
        };
        let (state, shelf) = (std::mem::take(&mut self.state), self.shelf.clone());
        let built = blocking(move || {
            let snapshot = storage::Snapshot {
                index,
                meta: codec::encode(&convert::snapshot_record(&meta)),
                state: codec::encode_state(&state),
            };
            shelf.keep(meta, &snapshot)?;
            shelf.current()
        })
        .await?;
        built.ok_or_else(|| {
            convert::cannot_read(&io::Error::other("the snapshot that was just written is gone"))
        })
    }
}
