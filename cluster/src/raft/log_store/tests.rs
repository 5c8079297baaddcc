//! What is reported when, and what is on the disk then, with disks whose barriers are let go one by one.

use std::{path::Path, sync::atomic::AtomicBool};

use futures_util::poll;
use openraft::{CommittedLeaderId, Membership, storage::RaftLogStorageExt};

use super::{super::Proposal, *};
use crate::storage::MemoryLog;

fn id(term: u64, index: u64) -> LogId<NodeId> {
    LogId::new(CommittedLeaderId::new(term, 1), index)
}

fn entries(term: u64, range: Range<u64>) -> Vec<Entry<TypeConfig>> {
    let entry = |index| Entry { log_id: id(term, index), payload: EntryPayload::Blank };
    range.map(entry).collect()
}

/// A batch of commands; proposed: by this node as the leader, else as it comes from one.
fn batch(index: u64, proposed: bool) -> Entry<TypeConfig> {
    let appended = proposed.then(|| Arc::new(AtomicBool::new(false)));
    let payload = EntryPayload::Normal(Proposal { batch: codec::encode(&0_u8), appended });
    Entry { log_id: id(1, index), payload }
}

/// For what is not newer than the oldest format: nothing is written.
fn formats() -> Arc<Formats> {
    Arc::new(Formats::open(Path::new(""), codec::FORMAT).unwrap())
}

fn open(store: &Arc<MemoryLog>, covered: &watch::Sender<Option<u64>>) -> RaftLog {
    let log = RaftLog::open(store.clone(), formats(), Arc::default(), covered.subscribe());
    log.unwrap().0
}

/// A log whose barriers end when they are told how.
struct SlowDisk {
    log: MemoryLog,
    barriers: Mutex<std::sync::mpsc::Receiver<bool>>,
}

impl SlowDisk {
    fn open() -> (RaftLog, std::sync::mpsc::Sender<bool>) {
        let (end, barriers) = std::sync::mpsc::channel();
        let disk = Self { log: MemoryLog::default(), barriers: Mutex::new(barriers) };
        let covered = watch::channel(Some(u64::MAX)).1;
        let log = RaftLog::open(Arc::new(disk), formats(), Arc::default(), covered);
        (log.unwrap().0, end)
    }
}

impl LogStore for SlowDisk {
    fn indexes(&self) -> Range<u64> {
        self.log.indexes()
    }
    fn append(&self, first: u64, records: &[Bytes]) -> Result<(), StorageError> {
        self.log.append(first, records)
    }
    fn truncate(&self, index: u64) -> Result<(), StorageError> {
        self.log.truncate(index)
    }
    fn purge(&self, index: u64) -> Result<(), StorageError> {
        self.log.purge(index)
    }
    fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, StorageError> {
        self.log.read(range)
    }
    fn put(&self, meta: Meta, value: Option<&[u8]>) -> Result<(), StorageError> {
        self.log.put(meta, value)
    }
    fn get(&self, meta: Meta) -> Result<Option<Bytes>, StorageError> {
        self.log.get(meta)
    }
    fn barrier(&self) -> Result<(), StorageError> {
        match self.barriers.lock().unwrap().recv() {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => {
                Err(StorageError::Io { path: "disk".into(), source: io::Error::other("full") })
            }
        }
    }
}

#[tokio::test]
async fn what_a_leader_proposes_is_replicated_at_once_and_durable_after_its_barrier() {
    let (mut log, barrier) = SlowDisk::open();
    let (mut first, mut second) = (log.durable(), log.durable());
    log.blocking_append([batch(0, true)]).await.unwrap();
    log.blocking_append([batch(1, true)]).await.unwrap();
    assert_eq!(log.read(0..2, usize::MAX).await.unwrap().len(), 2, "for the replication streams");
    let (mut first, mut second) = (std::pin::pin!(first.reaches(0)), std::pin::pin!(second.reaches(1)));
    assert!(poll!(&mut first).is_pending() && poll!(&mut second).is_pending());
    barrier.send(true).unwrap();
    first.await.unwrap();
    // They may have shared one.
    barrier.send(true).unwrap();
    second.await.unwrap();
}

#[tokio::test]
async fn a_change_of_members_and_what_another_leader_sends_wait_for_the_barrier() {
    let membership = EntryPayload::Membership(Membership::default());
    for entry in [Entry { log_id: id(1, 0), payload: membership }, batch(0, false)] {
        let (mut log, barrier) = SlowDisk::open();
        let mut durable = log.durable();
        let mut append = std::pin::pin!(log.blocking_append([entry]));
        assert!(poll!(&mut append).is_pending());
        barrier.send(true).unwrap();
        append.await.unwrap();
        assert!(poll!(std::pin::pin!(durable.reaches(0))).is_ready());
    }
}

#[tokio::test]
async fn what_a_disk_did_not_take_is_never_durable() {
    let (mut log, barrier) = SlowDisk::open();
    let mut durable = log.durable();
    log.blocking_append([batch(0, true)]).await.unwrap();
    barrier.send(false).unwrap();
    durable.reaches(0).await.unwrap_err();
    log.save_vote(&Vote::new(2, 2)).await.unwrap_err();
}

#[tokio::test]
async fn what_takes_the_place_of_removed_entries_is_not_durable_before_its_own_barrier() {
    let (mut log, barrier) = SlowDisk::open();
    barrier.send(true).unwrap();
    log.blocking_append([batch(0, false), batch(1, false), batch(2, false)]).await.unwrap();
    log.truncate(id(1, 1)).await.unwrap();
    let mut durable = log.durable();
    durable.reaches(0).await.unwrap();
    log.blocking_append([batch(1, true)]).await.unwrap();
    let mut again = std::pin::pin!(durable.reaches(1));
    assert!(poll!(&mut again).is_pending());
    barrier.send(true).unwrap();
    again.await.unwrap();
}

#[tokio::test]
async fn nothing_is_purged_before_its_snapshot_is_on_the_disk() {
    let (snapshots, _) = watch::channel(None);
    let store = Arc::new(MemoryLog::default());
    let mut log = open(&store, &snapshots);
    let mut other = log.clone();
    log.blocking_append(entries(1, 0..6)).await.unwrap();
    {
        let mut purge = std::pin::pin!(log.purge(id(1, 3)));
        assert!(poll!(&mut purge).is_pending());
        // The writer has done all that it was asked for before this.
        other.save_vote(&Vote::new(1, 1)).await.unwrap();
        assert_eq!((store.indexes(), store.get(Meta::Purged).unwrap()), (0..6, None));
        snapshots.send_replace(Some(3));
        purge.await.unwrap();
    }
    assert_eq!(store.indexes(), 4..6);
    drop(snapshots);
    log.purge(id(1, 4)).await.unwrap_err();
    assert_eq!(store.indexes(), 4..6);
}

#[tokio::test]
async fn a_format_that_is_not_understood_is_not_written() {
    let folder = tempfile::tempdir().unwrap();
    let formats = Arc::new(Formats::open(folder.path(), 5).unwrap());
    let store = Arc::new(MemoryLog::default());
    let (covered, _) = watch::channel(None);
    let log = RaftLog::open(store.clone(), formats, Arc::default(), covered.subscribe());
    let (mut log, _) = log.unwrap();
    let entry = |index, format| {
        let batch = codec::encode_in(format, &0_u8);
        let payload = EntryPayload::Normal(Proposal { batch, appended: None });
        [Entry { log_id: id(1, index), payload }]
    };
    log.blocking_append(entry(0, 5)).await.unwrap();
    // Whoever opens the folder next can tell before it opens the store.
    Formats::open(folder.path(), 4).unwrap_err();
    log.blocking_append(entry(1, 6)).await.unwrap_err();
    log.blocking_append(entry(1, 5)).await.unwrap_err();
    assert_eq!(store.indexes(), 0..1);
    Formats::open(folder.path(), 5).unwrap();
}

#[tokio::test]
async fn what_a_snapshot_replaced_is_gone_after_a_crash() {
    let (snapshots, _) = watch::channel(Some(9));
    let store = Arc::new(MemoryLog::default());
    let mut log = open(&store, &snapshots);
    log.blocking_append(entries(1, 0..20)).await.unwrap();
    // A snapshot of a later term ends in the middle of what this node never had agreed on.
    log.purge(id(2, 9)).await.unwrap();
    assert_eq!(store.indexes(), 0..0);
    log.blocking_append(entries(2, 10..12)).await.unwrap();
    assert_eq!(store.indexes(), 10..12);

    // The same with a crash after the note.
    let store = Arc::new(MemoryLog::default());
    let mut log = open(&store, &snapshots);
    log.blocking_append(entries(1, 0..20)).await.unwrap();
    store.put(Meta::Purged, Some(&codec::encode(&convert::position(id(2, 9))))).unwrap();
    let mut log = open(&store, &snapshots);
    assert_eq!(store.indexes(), 0..0);
    log.blocking_append(entries(2, 10..12)).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(id(2, 11)));
}
