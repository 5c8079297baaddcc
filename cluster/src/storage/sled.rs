//! The log in sled: durable after a barrier, checked whole at open.
//!
//! Job: carries [`LogStore`] out on sled 0.34, and makes up for what sled does not do. Invariants: what passed
//! a barrier is there after kill -9 and after a power cut, or `open` says `Damaged`; nothing that does not
//! check is ever handed out. Neighbours: `raft::log_store` decides what to write and when to wait.
//!
//! # What lies in the folder
//!
//! sled's own `db`, `conf`, `blobs/`, `snap.*`, and our `watermark`. In sled's default tree:
//!
//! | key | value |
//! |---|---|
//! | `h` | the [`Head`]: a count of all writes, the first and the next index, the last record's checksum, each meta's |
//! | `m` + meta | a meta |
//! | `r` + index + chunk | a record; its value is cut into chunks of [`CHUNK`] bytes, so that sled makes no blob files |
//!
//! Every value is framed: version, length, crc32c over key and payload. A record's payload begins with the
//! checksum of the record before it, so the log is a chain that ends in the head: a record that is missing, stale
//! or another one than was written shows, even where sled serves it with a good checksum of its own.
//!
//! # What is durable when
//!
//! 1. A write is one sled batch (or several, each whole in itself, when it is large) that carries the new head.
//!    sled recovers a batch whole or not at all, and never a later batch without the earlier ones. A record that
//!    is added to a log that has some is a write without a batch, as each of those has sled write its buffer twice,
//!    and without the head: it belongs to the log because it follows by its index and its chain. Of its chunks a
//!    crash may leave the first ones only; such a record was never acknowledged, and `open` removes it.
//! 2. `barrier`: sled's `flush` hands its buffers to the kernel; on Linux it calls `sync_file_range`, which
//!    neither waits for the disk's own cache nor writes the file's length. So `sync_data` on a descriptor of our
//!    own follows. Without it: append 7, flush, acknowledge, power cut, and the file ends before record 7.
//! 3. Then the count of writes goes to `watermark`, without a sync: it may be older than what is durable, never
//!    newer. It survives a kill at once and a power cut within the kernel's write-back time.
//!
//! At open a head that counts fewer writes than the watermark means that acknowledged writes are gone: sled
//! stops at the first message that does not check, takes it for the torn end of a crash and zeroes the rest. A
//! torn end of what never passed a barrier is told apart by this count alone: it is as high as the watermark.
//! After a power cut the watermark may be old, and then a damaged byte in the last seconds of the log reads as
//! a torn end. Raft does not notice either; the disk's own checksums are what is left there.
//!
//! `open` ends with a barrier: what a killed process wrote without one is in the page cache, will be read and
//! built upon, and must not vanish in a power cut after that.
//!
//! # sled's `snap.*`
//!
//! A kill while one is written leaves a `snap.*.generating` on which every later open fails, so those go before
//! each open. The complete ones must stay, although sled calls them an optimisation. Its recovery begins at the
//! segment that holds the newest stable position any header tells of. Opening zeroes every segment that no page
//! lives in any more, that one included: segment 0 is full, every page of it has been rewritten to segment 1,
//! whose header says "stable up to the end of segment 0". Open: segment 0 is zeroed, and the snapshot says to
//! begin at segment 1. Without the snapshot the next open looks for segment 0, finds a gap before segment 1,
//! and drops it: an empty store. Seen in about one of 100 kills, when all `snap.*` were removed.
//!
//! # Figures
//!
//! On two virtual cores with a virtual disk, ext4: one record of 300 bytes and a barrier take 0.3 to 0.4 ms and
//! 0.25 ms of CPU, of which 0.18 in the kernel: sled writes through a pool of seven threads and wakes all of
//! them. So a barrier is worth sharing, which the batcher does. Without barriers 80,000 records a second.
//! 120,000 records appended and purged 10,000 at a time: `db` stays between 12 and 24 MiB, and the process
//! below 80 MiB. 59,000 records purged at once: 70 MiB on the disk and 250 MiB of memory that glibc does not give back,
//! so snapshots should come every few thousand entries. `Mode::LowSpace` costs no speed here and lets `db` shrink.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    iter::Peekable,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use super::{
    LogStore, Meta, StorageError, codec,
    folder::{lock_folder, sync_folder, write_file},
    frame, guard,
};

/// The most of a record that lies under one key. sled writes a leaf of up to 20 values as one message, and a
/// message above a quarter of a segment becomes a file of its own, which is neither synced nor checked in time.
const CHUNK: usize = 6 * 1024;

/// sled's unit of reuse, its default: a quarter of it must hold 20 chunks.
const SEGMENT_BYTES: usize = 512 * 1024;

/// What sled may keep in memory of its pages. The log is read from its end, or once through.
const CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// Records that one batch removes at most.
const BATCH_RECORDS: u64 = 256;

/// How long sled may take to let go of a file that this process has just closed.
const LINGER: Duration = Duration::from_secs(5);

const HEAD: &[u8] = b"h";

/// A [`LogStore`] in a folder.
pub struct SledLog {
    path: PathBuf,
    /// Dropped before the lock, which keeps other processes out of the folder until sled has closed it.
    db: sled::Db,
    /// Another descriptor of sled's file, to sync it by.
    file: File,
    head: RwLock<Head>,
    watermark: Mutex<Watermark>,
    /// Set when a write or a barrier failed: what is on the disk is not known any more, so nothing is added.
    failed: AtomicBool,
    _lock: File,
}

/// What must be there: kept in memory, and rewritten by every batch. On the disk it may lack the newest records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// How many batches were written since the store was formed.
    writes: u64,
    first: u64,
    next: u64,
    /// The checksum of the last record; of the one before the first if there is none.
    chain: u32,
    /// The checksum of each meta that is there.
    metas: BTreeMap<u8, u32>,
}

/// The count of writes that are known to be durable, in its file.
struct Watermark {
    file: File,
    writes: u64,
}

// === impl SledLog ===

impl SledLog {
    /// Opens the log in `path`, or forms one if the folder is missing or was left while being formed.
    pub fn open(path: &Path) -> Result<Self, StorageError> {
        let io = |source| StorageError::Io { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(io)?;
        let lock = lock_folder(path)?;
        let durable = prepare(path)?;
        let db = open_sled(path)?;
        let file = File::open(path.join("db")).map_err(io)?;
        let (head, torn) = guard::quietly(path, || match durable {
            0 => Ok((Head::default(), Vec::new())),
            _ => check(&db, path, durable),
        })?;
        let watermark_path = path.join("watermark");
        let watermark = File::options().write(true).open(&watermark_path).map_err(io)?;
        let log = Self {
            path: path.to_owned(),
            db,
            file,
            head: RwLock::new(head),
            watermark: Mutex::new(Watermark { file: watermark, writes: durable }),
            failed: AtomicBool::new(false),
            _lock: lock,
        };
        if durable == 0 {
            // Forms the store: its files are durable by name before the watermark says that there is something.
            log.write(|_, _| Ok(()))?;
            log.db.flush().map_err(|error| sled_error(path, error))?;
            log.file.sync_all().map_err(io)?;
        }
        if !torn.is_empty() {
            log.write(|batch, _| {
                torn.into_iter().for_each(|key| batch.remove(key));
                Ok(())
            })?;
        }
        sync_folder(path)?;
        log.barrier()?;
        log.watermark.lock().unwrap_or_else(PoisonError::into_inner).file.sync_all().map_err(io)?;
        Ok(log)
    }

    /// The index of the first record that is there, or of the next one if there is none: what was purged lies
    /// before it.
    pub(super) fn first(&self) -> u64 {
        self.head().first
    }

    /// Whether `path` holds a log that was formed.
    pub(super) fn exists(path: &Path) -> bool {
        path.join("watermark").exists()
    }

    /// One batch: what `fill` puts into it, and the head as `fill` leaves it.
    fn write(
        &self,
        fill: impl FnOnce(&mut sled::Batch, &mut Head) -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        self.check_sound()?;
        let mut current = self.head.write().unwrap_or_else(PoisonError::into_inner);
        let mut head = current.clone();
        let mut batch = sled::Batch::default();
        fill(&mut batch, &mut head)?;
        head.writes += 1;
        batch.insert(HEAD, frame::seal(HEAD, &[&codec::encode(&head)]).to_vec());
        let written = guard::quietly(&self.path, || {
            self.db.apply_batch(batch).map_err(|error| sled_error(&self.path, error))
        });
        match written {
            Ok(()) => *current = head,
            Err(_) => self.failed.store(true, Ordering::Release),
        }
        written
    }

    fn check_sound(&self) -> Result<(), StorageError> {
        if self.failed.load(Ordering::Acquire) {
            let source =
                io::Error::other("an earlier write failed, so nothing more is written: restart the node");
            return Err(StorageError::Io { path: self.path.clone(), source });
        }
        Ok(())
    }

    fn head(&self) -> Head {
        self.head.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn damaged(&self, problem: String) -> StorageError {
        StorageError::Damaged { path: self.path.clone(), problem }
    }

    fn invalid(&self, problem: String) -> StorageError {
        let source = io::Error::new(io::ErrorKind::InvalidInput, problem);
        StorageError::Io { path: self.path.clone(), source }
    }

    /// Every key of the records in `range`.
    fn keys(&self, range: Range<u64>) -> Result<Vec<sled::IVec>, StorageError> {
        guard::quietly(&self.path, || {
            let keys = self.db.range(record_key(range.start, 0)..record_key(range.end, 0)).keys();
            keys.collect::<Result<_, _>>().map_err(|error| sled_error(&self.path, error))
        })
    }
}

impl LogStore for SledLog {
    fn indexes(&self) -> Range<u64> {
        let head = self.head();
        if head.first < head.next { head.first..head.next } else { 0..0 }
    }

    fn append(&self, first: u64, records: &[Bytes]) -> Result<(), StorageError> {
        let mut rest = (first..).zip(records);
        if self.indexes().is_empty()
            && let Some((index, record)) = rest.next()
        {
            // Where an empty log goes on only the head can say.
            self.write(|batch, head| {
                let sealed = head.seal(index, record);
                head.admit(index, &sealed).map_err(|problem| self.invalid(problem))?;
                chunks(index, &sealed).for_each(|(key, part)| batch.insert(&key, part));
                Ok(())
            })?;
        }
        self.check_sound()?;
        let mut head = self.head.write().unwrap_or_else(PoisonError::into_inner);
        for (index, record) in rest {
            let sealed = head.seal(index, record);
            head.admit(index, &sealed).map_err(|problem| self.invalid(problem))?;
            head.writes += 1;
            let written = guard::quietly(&self.path, || {
                chunks(index, &sealed).try_for_each(|(key, part)| match self.db.insert(key, part) {
                    Ok(_) => Ok(()),
                    Err(error) => Err(sled_error(&self.path, error)),
                })
            });
            if written.is_err() {
                self.failed.store(true, Ordering::Release);
                return written;
            }
        }
        Ok(())
    }

    fn truncate(&self, index: u64) -> Result<(), StorageError> {
        // From the end backwards, so that what is left has no gap wherever this stops.
        loop {
            let head = self.head();
            let index = index.max(head.first);
            if index >= head.next {
                return Ok(());
            }
            let from = index.max(head.next.saturating_sub(BATCH_RECORDS));
            let keys = self.keys(from..head.next)?;
            let mut chain = head.chain;
            guard::quietly(&self.path, || {
                each_record(&self.db, &self.path, from..from + 1, |_, sealed, _| {
                    chain = frame::chained_to(sealed).map_err(|problem| self.damaged(problem))?;
                    Ok(())
                })
            })?;
            self.write(|batch, head| {
                keys.into_iter().for_each(|key| batch.remove(key));
                head.next = from;
                head.chain = chain;
                Ok(())
            })?;
        }
    }

    fn purge(&self, index: u64) -> Result<(), StorageError> {
        // From the front, for the same reason.
        loop {
            let Head { first, next, .. } = self.head();
            let end = index.saturating_add(1).min(next);
            if first >= end {
                return Ok(());
            }
            let end = end.min(first + BATCH_RECORDS);
            let keys = self.keys(first..end)?;
            self.write(|batch, head| {
                keys.into_iter().for_each(|key| batch.remove(key));
                head.first = end;
                Ok(())
            })?;
        }
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, StorageError> {
        // Held to the end, so that no record is removed while they are gathered.
        let head = self.head.read().unwrap_or_else(PoisonError::into_inner);
        let range = range.start.max(head.first)..range.end.min(head.next);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let mut records = Vec::with_capacity((range.end - range.start) as usize);
        guard::quietly(&self.path, || {
            each_record(&self.db, &self.path, range.clone(), |_, _, record| {
                records.push(record);
                Ok(())
            })
        })?;
        Ok(records)
    }

    fn put(&self, meta: Meta, value: Option<&[u8]>) -> Result<(), StorageError> {
        let key = meta_key(meta);
        self.write(|batch, head| {
            match value {
                None => {
                    batch.remove(&key);
                    head.metas.remove(&(meta as u8));
                }
                Some(value) => {
                    let sealed = frame::seal(&key, &[value]);
                    head.metas.insert(meta as u8, frame::checksum(&sealed));
                    batch.insert(&key, sealed.to_vec());
                }
            }
            Ok(())
        })
    }

    fn get(&self, meta: Meta) -> Result<Option<Bytes>, StorageError> {
        let head = self.head.read().unwrap_or_else(PoisonError::into_inner);
        guard::quietly(&self.path, || read_meta(&self.db, &self.path, &head, meta))
    }

    fn barrier(&self) -> Result<(), StorageError> {
        self.check_sound()?;
        let writes = self.head().writes;
        let synced = guard::quietly(&self.path, || {
            self.db.flush().map_err(|error| sled_error(&self.path, error))?;
            self.file.sync_data().map_err(|source| StorageError::Io { path: self.path.join("db"), source })
        })
        .and_then(|()| {
            let mut watermark = self.watermark.lock().unwrap_or_else(PoisonError::into_inner);
            watermark
                .raise(writes)
                .map_err(|source| StorageError::Io { path: self.path.join("watermark"), source })
        });
        if synced.is_err() {
            // The kernel reports a failed write-back once and forgets it: a later sync that succeeds proves nothing.
            self.failed.store(true, Ordering::Release);
        }
        synced
    }
}

// === impl Head ===

impl Head {
    /// The record of `index` as it lies on the disk, behind the last one.
    fn seal(&self, index: u64, record: &[u8]) -> Bytes {
        frame::seal(&record_key(index, 0), &[&self.chain.to_le_bytes(), record])
    }

    /// Takes in the next record.
    fn admit(&mut self, index: u64, sealed: &[u8]) -> Result<(), String> {
        if self.first == self.next {
            (self.first, self.next) = (index, index);
        }
        if index != self.next {
            return Err(format!("record {index} does not follow the last one, {}", self.next - 1));
        }
        self.next += 1;
        self.chain = frame::checksum(sealed);
        Ok(())
    }

    /// Whether a record belongs behind the last one.
    fn is_followed_by(&self, sealed: &[u8]) -> Result<bool, String> {
        Ok(frame::chained_to(sealed)? == self.chain)
    }
}

// === impl Watermark ===

impl Watermark {
    fn raise(&mut self, writes: u64) -> io::Result<()> {
        if writes > self.writes {
            self.file.write_all_at(&Self::encode(writes), 0)?;
            self.writes = writes;
        }
        Ok(())
    }

    fn encode(writes: u64) -> Bytes {
        frame::seal(b"watermark", &[&writes.to_le_bytes()])
    }

    fn decode(bytes: &[u8]) -> Result<u64, String> {
        let payload = frame::unseal(b"watermark", bytes)?;
        payload.try_into().map(u64::from_le_bytes).map_err(|_| format!("it holds {} bytes", payload.len()))
    }
}

// === opening ===

/// Clears the folder of what a crash may have left, and says how many writes must be there; 0: form it.
fn prepare(path: &Path) -> Result<u64, StorageError> {
    let io = |source| StorageError::Io { path: path.to_owned(), source };
    let watermark = path.join("watermark");
    let db = path.join("db");
    let damaged =
        |problem: &str| StorageError::Damaged { path: path.to_owned(), problem: problem.to_owned() };
    let durable = match fs::read(&watermark) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if db.exists() {
                return Err(damaged("there is a `db` without its `watermark`"));
            }
            write_file(&watermark, &Watermark::encode(0))?;
            0
        }
        Err(error) => return Err(io(error)),
        Ok(bytes) => Watermark::decode(&bytes)
            .map_err(|problem| StorageError::Damaged { path: watermark.clone(), problem })?,
    };
    if durable > 0 && !db.exists() {
        return Err(damaged("its `db` is missing"));
    }
    for entry in fs::read_dir(path).map_err(io)? {
        let entry = entry.map_err(io)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // Nothing was ever acknowledged from a store that was not formed: sled's files may be half of what it needs.
        let unformed = durable == 0 && (name == "db" || name == "conf" || name.starts_with("snap."));
        if unformed || name.ends_with(".generating") {
            fs::remove_file(entry.path()).map_err(io)?;
        }
    }
    Ok(durable)
}

fn open_sled(path: &Path) -> Result<sled::Db, StorageError> {
    let config = sled::Config::new()
        .path(path)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(CACHE_BYTES)
        .segment_size(SEGMENT_BYTES)
        .use_compression(false)
        .flush_every_ms(None);
    let patience = Instant::now() + LINGER;
    loop {
        match guard::quietly(path, || config.open().map_err(|error| sled_error(path, error))) {
            // The folder's lock is ours: a store that this process has closed is still being let go of.
            Err(StorageError::Io { source, .. })
                if source.to_string().contains("could not acquire lock") && Instant::now() < patience =>
            {
                thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// The head, once all that it tells of and what was added to that is found to be there; and the keys of a record
/// that is only half there: it was being written when the process ended, and never passed a barrier.
fn check(db: &sled::Db, path: &Path, durable: u64) -> Result<(Head, Vec<sled::IVec>), StorageError> {
    let damaged = |problem: String| StorageError::Damaged { path: path.to_owned(), problem };
    let sealed = db.get(HEAD).map_err(|error| sled_error(path, error))?;
    let sealed = sealed.ok_or_else(|| damaged("its head is missing".to_owned()))?;
    let payload = frame::unseal(HEAD, &sealed).map_err(|problem| damaged(format!("its head: {problem}")))?;
    let mut head: Head =
        codec::decode("the head of a log", payload).map_err(|error| damaged(error.to_string()))?;
    for meta in Meta::ALL {
        read_meta(db, path, &head, meta)?;
    }
    let mut previous = None;
    each_record(db, path, head.first..head.next, |index, sealed, _| {
        let chained_to = frame::chained_to(sealed).map_err(damaged)?;
        if previous.is_some_and(|previous| previous != chained_to) {
            return Err(damaged(format!("record {index} does not belong behind the one before it")));
        }
        previous = Some(frame::checksum(sealed));
        Ok(())
    })?;
    if previous.is_some_and(|previous| previous != head.chain) {
        return Err(damaged(format!("record {} is not the last that was written", head.next - 1)));
    }
    let mut records = Records::new(db, path, head.next..u64::MAX);
    let mut torn = Vec::new();
    // An empty log has no such records.
    while head.first < head.next
        && let Some(sealed) = records.next(head.next)?
    {
        if frame::is_cut(&sealed) {
            let keys = db.range(record_key(head.next, 0)..record_key(head.next + 1, 0)).keys();
            torn = keys.collect::<Result<_, _>>().map_err(|error| sled_error(path, error))?;
            break;
        }
        unsealed(path, head.next, &sealed)?;
        if !head.is_followed_by(&sealed).map_err(damaged)? {
            return Err(damaged(format!("record {} does not belong behind the one before it", head.next)));
        }
        head.admit(head.next, &sealed).map_err(damaged)?;
        head.writes += 1;
    }
    if head.writes < durable {
        let lost = durable - head.writes;
        return Err(damaged(format!("the last {lost} writes of {durable} that were durable are gone")));
    }
    let end = head.next + u64::from(!torn.is_empty());
    let outside = db.range(record_key(end, 0)..).keys().next();
    let before = db.range(record_key(0, 0)..record_key(head.first, 0)).keys().next();
    if outside.is_some() || before.is_some() {
        return Err(damaged(format!("there are records outside of {}..{}", head.first, head.next)));
    }
    Ok((head, torn))
}

fn read_meta(db: &sled::Db, path: &Path, head: &Head, meta: Meta) -> Result<Option<Bytes>, StorageError> {
    let damaged = |problem: String| StorageError::Damaged {
        path: path.to_owned(),
        problem: format!("{meta:?}: {problem}"),
    };
    let key = meta_key(meta);
    let sealed = db.get(key).map_err(|error| sled_error(path, error))?;
    if sealed.as_ref().map(|sealed| frame::checksum(sealed)) != head.metas.get(&(meta as u8)).copied() {
        return Err(damaged("it is not what was written last".to_owned()));
    }
    let Some(sealed) = sealed else { return Ok(None) };
    let payload = frame::unseal(&key, &sealed).map_err(damaged)?;
    Ok(Some(Bytes::copy_from_slice(payload)))
}

/// Hands over each record of `range` as it is sealed and as it is, in order; a gap is damage.
fn each_record(
    db: &sled::Db,
    path: &Path,
    range: Range<u64>,
    mut take: impl FnMut(u64, &[u8], Bytes) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let mut records = Records::new(db, path, range.clone());
    for index in range {
        let Some(sealed) = records.next(index)? else {
            let problem = format!("record {index} is missing");
            return Err(StorageError::Damaged { path: path.to_owned(), problem });
        };
        let record = unsealed(path, index, &sealed)?;
        take(index, &sealed, record)?;
    }
    Ok(())
}

/// What was sealed as the record of `index`.
fn unsealed(path: &Path, index: u64, sealed: &Bytes) -> Result<Bytes, StorageError> {
    let payload = frame::unseal(&record_key(index, 0), sealed)
        .and_then(|payload| payload.get(frame::CHAIN_BYTES..).ok_or_else(|| "it is too short".to_owned()));
    match payload {
        Ok(payload) => Ok(sealed.slice_ref(payload)),
        Err(problem) => {
            let problem = format!("record {index}: {problem}");
            Err(StorageError::Damaged { path: path.to_owned(), problem })
        }
    }
}

/// Sealed records in the order of their indexes, put together from their chunks.
struct Records<'a> {
    path: &'a Path,
    chunks: Peekable<sled::Iter>,
}

// === impl Records ===

impl<'a> Records<'a> {
    fn new(db: &sled::Db, path: &'a Path, range: Range<u64>) -> Self {
        let chunks = db.range(record_key(range.start, 0)..record_key(range.end, 0)).peekable();
        Self { path, chunks }
    }

    /// The chunks of `index` up to the first that is missing; none if there are none.
    fn next(&mut self, index: u64) -> Result<Option<Bytes>, StorageError> {
        let mut sealed = BytesMut::new();
        let mut expected = 0;
        loop {
            let next = self.chunks.next_if(|chunk| match chunk {
                Ok((key, _)) => **key == record_key(index, expected),
                Err(_) => true,
            });
            match next {
                Some(Ok((_, part))) => sealed.put_slice(&part),
                Some(Err(error)) => return Err(sled_error(self.path, error)),
                None => break,
            }
            expected += 1;
        }
        Ok((expected > 0).then(|| sealed.freeze()))
    }
}

/// The keys and values under which a sealed record lies.
fn chunks(index: u64, sealed: &[u8]) -> impl Iterator<Item = ([u8; 13], &[u8])> {
    (0..).zip(sealed.chunks(CHUNK)).map(move |(chunk, part)| (record_key(index, chunk), part))
}

fn record_key(index: u64, chunk: u32) -> [u8; 13] {
    let mut key = [b'r'; 13];
    key[1..9].copy_from_slice(&index.to_be_bytes());
    key[9..].copy_from_slice(&chunk.to_be_bytes());
    key
}

fn meta_key(meta: Meta) -> [u8; 2] {
    [b'm', meta as u8]
}

fn sled_error(path: &Path, error: sled::Error) -> StorageError {
    let path = path.to_owned();
    match error {
        sled::Error::Io(source)
            if !matches!(source.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
        {
            StorageError::Io { path, source }
        }
        error => StorageError::Damaged { path, problem: error.to_string() },
    }
}
