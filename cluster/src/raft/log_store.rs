//! The log as the library wants it, over a [`LogStore`].
//!
//! Job: one thread writes, in the order of the calls; everything queued when it wakes shares one barrier
//! (group commit). Invariants, each of which loses data when broken:
//!
//! - An append is reported as flushed only after the barrier that covers it, and callbacks run in log order;
//!   but for a leader's own batches of commands, see below.
//! - A vote is on the disk before anything that follows it is handed to the store, so no entry of a term
//!   survives that the node could deny having voted for.
//! - What is not written yet is always in the tail, so a reader never misses an entry between `append` and
//!   the disk: the tail only sheds entries that the store has taken.
//! - Entries are removed from the beginning only once a snapshot that holds them is on the disk: when one is
//!   installed, the library asks for both at once, and a crash in between would leave a log without a beginning.
//! - A format that the node does not understand stops it before anything of it is written, and one that is new to
//!   the disk is noted there first (`storage::formats`).
//! - After the first error nothing more is written: every later call fails, and the core stops.
//!
//! # A leader replicates while its own disk writes
//!
//! The library replicates an entry once the leader's append is reported as flushed: two disks, one after the
//! other. So what this node proposes as the leader of its term is reported at once, and counts for a majority
//! before it is on this disk (Ongaro's thesis, 10.2.1, lets the leader's write run beside the others', and counts
//! it when it is done). What makes up for it is that nobody learns of such a commit before [`Durable`] says that
//! the entry is on this disk as well: the state machine applies it only then (so does every answer and every
//! read, which wait for what is applied), and `network` holds a message back that tells a follower of it. So a
//! crash takes only what nobody was told of, and while this node lives it is a member whose log holds the entry:
//! it votes for none that lacks it, and a vote it gives is on the disk after the entry. What else the library does
//! on a commit is to go on with a change of the members, whose second step must not be proposed before the first
//! is safe: those entries, and the first one of a term, are reported when they are on the disk, as ever.
//!
//! Which index is committed is kept without a barrier of its own: it is a hint that lets a restarted node
//! show its last known state (P1), and one that is too old only makes it show less until a leader is heard.

#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fmt::Debug,
    io,
    ops::{Bound, Range, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use openraft::{
    Entry, EntryPayload, LogId, LogState, OptionalSend, RaftLogReader, Vote,
    storage::{LogFlushed, RaftLogStorage},
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    TypeConfig,
    convert::{self, Failure},
};
use crate::{
    bugs,
    figures::Durations,
    state::NodeId,
    storage::{
        Formats, LogStore, Meta, StorageError,
        codec::{self, EntryRecord, LogPosition, VoteRecord},
    },
};

/// Writes that wait for the writer. One batch of commands is on its way at a time, so this is hardly ever reached;
/// when it is, the core waits.
const WRITER_QUEUE: usize = 256;

/// What the tail keeps in memory for the replication streams, so that they read no disk.
const TAIL_ENTRIES_MAX: usize = 4096;
const TAIL_BYTES_MAX: usize = 32 << 20;

/// How often it is noted how far the log is committed: a batch of the store's for each entry would cost as much
/// as the entry. A tick a second sees to it that the note is never much older.
const HINT_PERIOD: Duration = Duration::from_millis(100);

/// One AppendEntries carries at most this, or one entry: it must arrive within a heartbeat.
const READ_BYTES_MAX: usize = 1 << 20;

/// The log, its votes and its hints. Clones share everything: the library reads through them.
#[derive(Clone)]
pub(crate) struct RaftLog {
    shared: Arc<Shared>,
    writer: mpsc::Sender<Write>,
    /// The last index that is in a snapshot on the disk.
    covered: watch::Receiver<Option<u64>>,
    durable: Durable,
}

/// How far the log is on this node's disk. Clones look at the same log.
#[derive(Clone)]
pub(crate) struct Durable {
    /// The index after the last entry that is; none: the disk has failed.
    end: watch::Receiver<Option<u64>>,
}

struct Shared {
    store: Arc<dyn LogStore>,
    tail: Mutex<Tail>,
}

/// What is known without reading the disk.
struct Tail {
    /// The newest entries with their encoded sizes, without gaps.
    entries: VecDeque<(Entry<TypeConfig>, usize)>,
    bytes: usize,
    last: Option<LogId<NodeId>>,
    purged: Option<LogId<NodeId>>,
    committed: Option<LogId<NodeId>>,
    vote: Option<Vote<NodeId>>,
}

enum Write {
    Append {
        first: u64,
        /// The newest of the batches among them.
        format: u8,
        records: Vec<Bytes>,
        /// None: it was reported already.
        flushed: Option<LogFlushed<TypeConfig>>,
    },
    Vote {
        vote: Bytes,
        done: Done,
    },
    Committed {
        position: Bytes,
    },
    /// What was noted of how far the log is committed shall be on the disk.
    KeepCommitted {
        done: Done,
    },
    Truncate {
        from: u64,
        done: Done,
    },
    /// `all`: what follows `upto` was never agreed on, and goes too.
    Purge {
        upto: u64,
        all: bool,
        position: Bytes,
        done: Done,
    },
}

type Done = oneshot::Sender<Result<(), StorageError>>;

/// Has it kept how far the log is committed, without keeping the log open.
#[derive(Clone)]
pub(crate) struct CommittedKeeper {
    writer: mpsc::WeakSender<Write>,
}

// === impl CommittedKeeper ===

impl CommittedKeeper {
    /// Returns once a restart finds the log committed at least as far as it was applied before the call; or the
    /// disk has failed, which the core notices by itself.
    pub(crate) async fn keep(&self) {
        let Some(writer) = self.writer.upgrade() else { return };
        let (done, kept) = oneshot::channel();
        if writer.send(Write::KeepCommitted { done }).await.is_ok() {
            drop(writer);
            let _ = kept.await;
        }
    }
}

// === impl Durable ===

impl Durable {
    /// Of a log of which everything is on the disk.
    pub(crate) fn all() -> Self {
        Self { end: watch::channel(Some(u64::MAX)).1 }
    }

    /// Returns once the entry of `index` is on the disk.
    pub(crate) async fn reaches(&mut self, index: u64) -> io::Result<()> {
        let end = self.end.wait_for(|end| end.is_none_or(|end| end > index)).await;
        match end.map(|end| *end) {
            Ok(Some(_)) => Ok(()),
            Ok(None) | Err(_) => Err(gone()),
        }
    }
}

// === impl RaftLog ===

impl RaftLog {
    /// Reads what the store holds and starts the writer, whose thread ends when the last clone is dropped.
    /// `covered` is the last index that is in a snapshot on the disk; it ends when there will be no other.
    pub(crate) fn open(
        store: Arc<dyn LogStore>,
        formats: Arc<Formats>,
        fsync: Arc<Durations>,
        covered: watch::Receiver<Option<u64>>,
    ) -> Result<(Self, thread::JoinHandle<()>), StorageError> {
        let tail = Tail::load(store.as_ref())?;
        if let Some(purged) = tail.purged {
            if *covered.borrow() < Some(purged.index) {
                return Err(StorageError::Damaged {
                    path: "log".into(),
                    problem: format!(
                        "it begins after {}, and the snapshot of what came before is missing or older",
                        purged.index
                    ),
                });
            }
            // A crash may have come between noting a purge and carrying it out.
            if store.indexes().start <= purged.index {
                purge(store.as_ref(), purged.index, tail.last == Some(purged))?;
            }
        }
        let end = tail.next();
        let (durable, durable_end) = watch::channel(Some(end));
        let shared = Arc::new(Shared { store, tail: Mutex::new(tail) });
        let (writer, writes) = mpsc::channel(WRITER_QUEUE);
        let own = Writer {
            shared: shared.clone(),
            formats,
            fsync,
            end,
            durable,
            hint: None,
            hinted: Instant::now(),
            broken: false,
        };
        let thread = thread::Builder::new()
            .name("raft-log".to_owned())
            .spawn(move || own.run(writes))
            .map_err(|source| StorageError::Io { path: "the log's writer thread".into(), source })?;
        Ok((Self { shared, writer, covered, durable: Durable { end: durable_end } }, thread))
    }

    pub(crate) fn durable(&self) -> Durable {
        self.durable.clone()
    }

    pub(crate) fn committed_keeper(&self) -> CommittedKeeper {
        CommittedKeeper { writer: self.writer.downgrade() }
    }

    /// A node that led when it ended starts as a follower, like any (Raft paper, 5.2): it has voted in that term
    /// and no more. The library would let it lead on at once, with the first entry of the term for the one that
    /// a linearizable read has to wait for, and the hint of what is committed is older than what was
    /// acknowledged: such a read misses the newest writes. Only in memory: the next vote is for a higher term.
    pub(crate) fn lead_no_more(&self, id: NodeId) {
        let mut tail = self.shared.tail();
        if let Some(vote) = tail.vote.as_mut().filter(|vote| vote.leader_id.node_id == id) {
            vote.committed = false;
        }
    }

    async fn write(&self, write: Write) -> Result<(), Failure> {
        self.writer.send(write).await.map_err(|_| convert::cannot_write(&gone()))
    }

    async fn write_and_wait(&self, write: impl FnOnce(Done) -> Write) -> Result<(), Failure> {
        let (done, written) = oneshot::channel();
        self.write(write(done)).await?;
        match written.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(convert::cannot_write(&error)),
            Err(_) => Err(convert::cannot_write(&gone())),
        }
    }

    /// The entries of `range` that are there, up to `bytes_max` but at least one.
    async fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        let on_disk = {
            let tail = self.shared.tail();
            let start = range.start.max(tail.purged.map_or(0, |purged| purged.index + 1));
            let end = range.end.min(tail.next());
            if start >= end {
                return Ok(Vec::new());
            }
            match tail.first() {
                Some(first) if first <= start => return Ok(tail.read(start..end, bytes_max)),
                first => start..end.min(first.unwrap_or(end)),
            }
        };
        let shared = self.shared.clone();
        let (range, on_disk_end) = (on_disk.start..range.end, on_disk.end);
        let mut entries = tokio::task::spawn_blocking(move || shared.read_disk(on_disk, bytes_max))
            .await
            .map_err(|error| convert::cannot_read(&error))?
            .map_err(|error| convert::cannot_read(&error))?;
        // What the disk did not hold is in the tail, unless it was removed meanwhile.
        let next = entries.last().map_or(range.start, |entry| entry.log_id.index + 1);
        if entries.is_empty() || (next == on_disk_end && bytes_max == usize::MAX) {
            let tail = self.shared.tail();
            let start = next.max(tail.first().unwrap_or(u64::MAX));
            let end = range.end.min(tail.next());
            if start < end && (entries.is_empty() || start == next) {
                entries.extend(tail.read(start..end, bytes_max));
            }
        }
        Ok(entries)
    }
}

impl RaftLogReader<TypeConfig> for RaftLog {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.read(start..end, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry<TypeConfig>>, Failure> {
        self.read(start..end, READ_BYTES_MAX).await
    }
}

impl RaftLogStorage<TypeConfig> for RaftLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, Failure> {
        let tail = self.shared.tail();
        Ok(LogState { last_purged_log_id: tail.purged, last_log_id: tail.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<NodeId>) -> Result<(), Failure> {
        let record = codec::encode(&convert::vote_record(vote));
        self.write_and_wait(|done| Write::Vote { vote: record, done }).await?;
        self.shared.tail().vote = Some(*vote);
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<NodeId>>, Failure> {
        Ok(self.shared.tail().vote)
    }

    async fn save_committed(&mut self, committed: Option<LogId<NodeId>>) -> Result<(), Failure> {
        self.shared.tail().committed = committed;
        match committed {
            None => Ok(()),
            Some(id) => {
                let position = codec::encode(&convert::position(id));
                self.write(Write::Committed { position }).await
            }
        }
    }

    async fn read_committed(&mut self) -> Result<Option<LogId<NodeId>>, Failure> {
        Ok(self.shared.tail().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<TypeConfig>) -> Result<(), Failure>
    where
        I: IntoIterator<Item = Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        let mut first = None;
        let (mut early, mut format) = (true, 0);
        {
            let mut tail = self.shared.tail();
            for mut entry in entries {
                let proposed = match &mut entry.payload {
                    EntryPayload::Normal(proposal) => {
                        format = format.max(codec::format_of(&proposal.batch));
                        proposal.appended.take()
                    }
                    EntryPayload::Blank | EntryPayload::Membership(_) => None,
                };
                // What came over the network or concerns the members has none.
                early &= proposed.is_some();
                if let Some(appended) = proposed {
                    appended.store(true, Ordering::Release);
                }
                let record = codec::encode(&convert::entry_record(&entry));
                first.get_or_insert(entry.log_id.index);
                tail.push(entry, record.len());
                records.push(record);
            }
        }
        let Some(first) = first else {
            callback.log_io_completed(Ok(()));
            return Ok(());
        };
        let (early, flushed) = if early { (Some(callback), None) } else { (None, Some(callback)) };
        self.write(Write::Append { first, format, records, flushed }).await?;
        if let Some(early) = early {
            early.log_io_completed(Ok(()));
        }
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId<NodeId>) -> Result<(), Failure> {
        let from = log_id.index;
        // Read first: the new last entry may lie on the disk only.
        let before = match from.checked_sub(1) {
            Some(last) => self.read(last..from, usize::MAX).await?.pop().map(|entry| entry.log_id),
            None => None,
        };
        {
            let mut tail = self.shared.tail();
            tail.truncate(from);
            tail.last = before.or(tail.purged);
        }
        self.write_and_wait(|done| Write::Truncate { from, done }).await
    }

    async fn purge(&mut self, log_id: LogId<NodeId>) -> Result<(), Failure> {
        // The core waits here, and its state machine, which writes the snapshot, does not wait for the core.
        let mut covered = self.covered.clone();
        let on_disk = covered.wait_for(|covered| *covered >= Some(log_id.index)).await.is_ok();
        if !on_disk {
            return Err(convert::cannot_write(&io::Error::other("the state machine has ended")));
        }
        let all = self.shared.tail().purge(log_id);
        let position = codec::encode(&convert::position(log_id));
        self.write_and_wait(|done| Write::Purge { upto: log_id.index, all, position, done }).await
    }
}

// === impl Shared ===

impl Shared {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        // A panic while it was held is one of the core's own, which then stops.
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In steps, so that a bounded read of a long range does not load all of it.
    fn read_disk(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Entry<TypeConfig>>, StorageError> {
        const STEP: u64 = 32;
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut start = range.start;
        while start < range.end && (entries.is_empty() || bytes < bytes_max) {
            let end = range.end.min(start.saturating_add(STEP));
            let records = self.store.read(start..end)?;
            if records.is_empty() {
                break;
            }
            start += records.len() as u64;
            for record in records {
                if !entries.is_empty() && bytes >= bytes_max {
                    break;
                }
                bytes += record.len();
                entries.push(convert::entry(decoded(&record)?));
            }
        }
        Ok(entries)
    }
}

// === impl Tail ===

impl Tail {
    fn load(store: &dyn LogStore) -> Result<Self, StorageError> {
        let position = |meta| -> Result<Option<LogId<NodeId>>, StorageError> {
            let Some(bytes) = store.get(meta)? else { return Ok(None) };
            Ok(Some(convert::log_id(decoded::<LogPosition>(&bytes)?)))
        };
        let vote = match store.get(Meta::Vote)? {
            Some(bytes) => Some(convert::vote(decoded::<VoteRecord>(&bytes)?)),
            None => None,
        };
        let purged = position(Meta::Purged)?;
        let indexes = store.indexes();
        let last = match indexes.end.checked_sub(1).filter(|_| !indexes.is_empty()) {
            Some(last) => store.read(last..last + 1)?.pop(),
            None => None,
        };
        let last = match last {
            Some(record) => Some(convert::log_id(decoded::<EntryRecord>(&record)?.position)),
            None => None,
        };
        let last = last.max(purged);
        let committed = position(Meta::Committed)?.min(last);
        Ok(Self { entries: VecDeque::new(), bytes: 0, last, purged, committed, vote })
    }

    /// The index of the first entry in memory.
    fn first(&self) -> Option<u64> {
        self.entries.front().map(|(entry, _)| entry.log_id.index)
    }

    /// The index after the last entry.
    fn next(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    fn push(&mut self, entry: Entry<TypeConfig>, bytes: usize) {
        self.last = Some(entry.log_id);
        self.bytes += bytes;
        self.entries.push_back((entry, bytes));
    }

    fn read(&self, range: Range<u64>, bytes_max: usize) -> Vec<Entry<TypeConfig>> {
        let Some(first) = self.first() else { return Vec::new() };
        let from = usize::try_from(range.start - first).unwrap_or(usize::MAX);
        let count = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
        let mut bytes = 0;
        let mut entries = Vec::new();
        for (entry, size) in self.entries.iter().skip(from).take(count) {
            if !entries.is_empty() && bytes + size > bytes_max {
                break;
            }
            bytes += size;
            entries.push(entry.clone());
        }
        entries
    }

    /// The store has everything before `written`: what exceeds the bounds may go.
    fn shed(&mut self, written: u64) {
        while self.entries.len() > TAIL_ENTRIES_MAX || self.bytes > TAIL_BYTES_MAX {
            match self.entries.front() {
                Some((entry, _)) if entry.log_id.index < written => self.pop_front(),
                _ => return,
            }
        }
    }

    fn pop_front(&mut self) {
        if let Some((_, bytes)) = self.entries.pop_front() {
            self.bytes -= bytes;
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|(entry, _)| entry.log_id.index >= from) {
            if let Some((_, bytes)) = self.entries.pop_back() {
                self.bytes -= bytes;
            }
        }
    }

    /// Whether nothing is left: what follows `upto` and is of an older term was never agreed on.
    fn purge(&mut self, upto: LogId<NodeId>) -> bool {
        while self.entries.front().is_some_and(|(entry, _)| entry.log_id.index <= upto.index) {
            self.pop_front();
        }
        self.purged = self.purged.max(Some(upto));
        self.last = self.last.max(self.purged);
        let all = self.last == self.purged;
        if all {
            self.entries.clear();
            self.bytes = 0;
        }
        all
    }
}

/// The one thread that writes.
struct Writer {
    shared: Arc<Shared>,
    formats: Arc<Formats>,
    fsync: Arc<Durations>,
    /// The index after the last entry that the store has taken.
    end: u64,
    /// The same for what passed a barrier.
    durable: watch::Sender<Option<u64>>,
    /// How far the log is committed, if that is not written yet, and when it was written last.
    hint: Option<Bytes>,
    hinted: Instant,
    /// The disk failed once: what follows an unwritten record must not be written.
    broken: bool,
}

// === impl Writer ===

impl Writer {
    fn run(mut self, mut writes: mpsc::Receiver<Write>) {
        let mut appended = Vec::new();
        while let Some(write) = writes.blocking_recv() {
            self.write(write, &mut appended);
            while let Ok(write) = writes.try_recv() {
                self.write(write, &mut appended);
            }
            self.flush(&mut appended);
            if self.hinted.elapsed() >= HINT_PERIOD {
                self.keep_hint();
            }
        }
        self.keep_hint();
    }

    /// Only a hint; a disk that fails is noticed at the next append.
    fn keep_hint(&mut self) {
        if let Some(position) = self.hint.take() {
            let _ = self.attempt(|store| store.put(Meta::Committed, Some(&position)));
            self.hinted = Instant::now();
        }
    }

    /// Carries out one write; appends wait in `appended` for the barrier that they share.
    fn write(&mut self, write: Write, appended: &mut Vec<LogFlushed<TypeConfig>>) {
        match write {
            Write::Append { first, format, records, flushed } => {
                let formats = self.formats.clone();
                let append =
                    |store: &dyn LogStore| formats.admit(format).and_then(|()| store.append(first, &records));
                match self.attempt(append) {
                    Ok(()) => {
                        self.end = first + records.len() as u64;
                        self.shared.tail().shed(self.end);
                        appended.extend(flushed);
                    }
                    Err(error) => {
                        if let Some(flushed) = flushed {
                            flushed.log_io_completed(Err(io::Error::other(error.to_string())));
                        }
                    }
                }
            }
            Write::Vote { vote, done } => {
                let put = match bugs::is("vote-forgotten") {
                    true => Ok(()),
                    false => self.attempt(|store| store.put(Meta::Vote, Some(&vote))),
                };
                let result = put.and_then(|()| self.barrier());
                // The barrier covers what was appended before, which may be told first.
                match &result {
                    Ok(()) => appended.drain(..).for_each(|flushed| flushed.log_io_completed(Ok(()))),
                    Err(_) => self.flush(appended),
                }
                answer(done, result);
            }
            Write::Committed { position } => self.hint = Some(position),
            Write::KeepCommitted { done } => {
                self.keep_hint();
                answer(done, self.barrier());
            }
            Write::Truncate { from, done } => {
                self.ends_at(self.end.min(from));
                answer(done, self.attempt(|store| store.truncate(from)));
            }
            Write::Purge { upto, all, position, done } => {
                let end = if all { upto + 1 } else { self.end.max(upto + 1) };
                self.ends_at(end);
                // Noted first: a log whose beginning is gone without a note cannot be opened.
                let noted = self.attempt(|store| store.put(Meta::Purged, Some(&position)));
                answer(done, noted.and_then(|()| self.attempt(|store| purge(store, upto, all))));
            }
        }
    }

    /// Entries were removed: what takes their place is another thing, and not on the disk yet.
    fn ends_at(&mut self, end: u64) {
        self.end = end;
        self.durable.send_modify(|durable| *durable = durable.map(|durable| durable.min(end)));
    }

    fn flush(&mut self, appended: &mut Vec<LogFlushed<TypeConfig>>) {
        if appended.is_empty() && *self.durable.borrow() == Some(self.end) {
            return;
        }
        let result = self.barrier().map_err(|error| error.to_string());
        for flushed in appended.drain(..) {
            flushed.log_io_completed(result.clone().map_err(io::Error::other));
        }
    }

    fn barrier(&mut self) -> Result<(), StorageError> {
        if bugs::is("barrier-skipped") {
            self.durable.send_replace(Some(self.end));
            return Ok(());
        }
        let begun = Instant::now();
        let result = self.attempt(LogStore::barrier);
        self.fsync.record(begun.elapsed());
        if result.is_ok() {
            self.durable.send_replace(Some(self.end));
        }
        result
    }

    fn attempt(
        &mut self,
        write: impl FnOnce(&dyn LogStore) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        if self.broken {
            let source = io::Error::other("an earlier write failed, nothing is written after it");
            return Err(StorageError::Io { path: "log".into(), source });
        }
        let result = write(self.shared.store.as_ref());
        if let Err(error) = &result {
            tracing::error!(%error, "the log cannot be written, this node stops");
            self.broken = true;
            self.durable.send_replace(None);
        }
        result
    }
}

fn purge(store: &dyn LogStore, upto: u64, all: bool) -> Result<(), StorageError> {
    if all && store.indexes().end > upto + 1 {
        store.truncate(upto + 1)?;
    }
    store.purge(upto)
}

/// The core that asked may be gone already.
fn answer(done: Done, result: Result<(), StorageError>) {
    let _ = done.send(result);
}

fn gone() -> io::Error {
    io::Error::other("the log's writer has ended")
}

fn decoded<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, StorageError> {
    codec::decode("a record of the log", bytes).map_err(|error| StorageError::of("log", &error))
}
